"""Chats with images in text generation: what `generate` gives for each row alone, whatever is computed beside it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText

from jobs.config.settings import Settings
from jobs.data.rows import RowError
from tests.support.generation import generated, rows_of
from tests.support.task_kit import error_codes, load, outputs
from tests.support.tiny import tiny_causal_lm
from tests.support.tiny_vision import (
    chat,
    image_part,
    picture,
    template,
    tiny_gemma3,
    tiny_idefics3,
    tiny_llava,
    tiny_mllama,
    tiny_qwen2_5_vl,
    tiny_qwen2_vl,
    tiny_qwen3_vl,
)
from worker.inference.generation.images.chat_processor import load_chat_processor
from worker.inference.generation.images.image_chats import open_messages
from worker.inference.tasks.vision_generation import VisionGeneration
from worker.models.load import ModelFolder
from worker.models.task_model import EncodesRowByRow

TASK = "text-generation"
SIZES = ((60, 60), (100, 40), (60, 60), (48, 96), (120, 120))
LIMITS = (3, 9, 6, 1, 12, 7)
ALONE = "rows are computed one at a time by the model's generate"
Chat = list[dict[str, Any]]


class Reference:
    """Transformers' `generate`, one chat at a time."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(folder)
        self.processor = load_chat_processor(ModelFolder("reference", folder, trust_remote_code=False))
        self.template = self.processor.chat_template or self.processor.tokenizer.chat_template

    def texts(self, rows: Sequence[tuple[Chat, int]]) -> list[str]:
        """The text that comes greedily after each chat, with as many tokens at most."""
        return [self._text(messages, most) for messages, most in rows]

    def _text(self, messages: Chat, max_new_tokens: int) -> str:
        opened = open_messages(messages, Settings(input_roots=["/"]))
        continues = messages[-1]["role"] == "assistant"
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        options |= {"add_generation_prompt": not continues, "continue_final_message": continues}
        inputs = self.processor.apply_chat_template(opened, self.template, **options)
        found = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        tokens = found[0, inputs["input_ids"].shape[1] :]
        text: str = self.processor.tokenizer.decode(tokens, skip_special_tokens=True)
        return text


def chats() -> list[tuple[Chat, int]]:
    """Chats about images of several sizes, two of them equal, and one without an image, with different limits."""
    about = [chat("What is this? ", image_part(seed, size)) for seed, size in enumerate(SIZES)]
    return list(zip([*about, chat("Where is Ada?")], LIMITS, strict=True))


def questions(num: int, *images: dict[str, Any]) -> list[Chat]:
    """Chats with different questions about the same images."""
    before = "Look very carefully at all that you see here, think about it, and then answer one question: "
    return [chat(before, *images, f"Is it {'very ' * number}large?") for number in range(num)]


def texts_of(results: Sequence[Any]) -> list[str]:
    """The first choice's text of each result."""
    return [result[0]["generated_text"] for result in results]


def rows_with_limits(rows: Sequence[tuple[Chat, int]], **own: Any) -> Any:
    return rows_of(*((messages, {"max_new_tokens": most, **own}) for messages, most in rows))


@pytest.fixture(
    scope="module",
    params=[tiny_llava, tiny_qwen2_vl, tiny_qwen2_5_vl, tiny_qwen3_vl, tiny_gemma3, tiny_idefics3, tiny_mllama],
)
def build(request: pytest.FixtureRequest) -> Callable[[Path], Path]:
    found: Callable[[Path], Path] = request.param
    return found


@pytest.fixture(scope="module")
def both(build: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[VisionGeneration, Reference]:
    folder = build(tmp_path_factory.mktemp("model"))
    task = load(TASK, folder)
    assert isinstance(task, VisionGeneration)
    return task, Reference(folder)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("llava"))


def test_greedy_texts_are_those_of_generate(both: tuple[VisionGeneration, Reference]) -> None:
    task, reference = both
    expected = reference.texts(chats())
    assert len(set(expected)) == len(expected)
    for max_rows in (1, 3, 6):
        assert texts_of(generated(task, rows_with_limits(chats()), max_rows=max_rows)) == expected


def test_several_images_and_many_questions_are_those_of_generate(both: tuple[VisionGeneration, Reference]) -> None:
    task, reference = both
    one, two, large = image_part(1), image_part(2), image_part(3, (120, 100))
    messages = [
        chat(one, "Is it large?"),
        chat(two, "Is it large?"),
        chat(one, two, "And these?"),
        chat(two, one, "And these?"),
        chat("First ", one, " then ", large, "?"),
        [*chat("What is this? ", one), {"role": "assistant", "content": "It is a"}],
        *questions(4, one),
        *questions(2, two),
        *questions(2, two, large),
    ]
    rows = [(each, 3 + number % 4) for number, each in enumerate(messages)]
    expected = reference.texts(rows)
    for max_rows in (3, 20):
        assert texts_of(generated(task, rows_with_limits(rows), max_rows=max_rows)) == expected


@contextmanager
def counted(task: VisionGeneration) -> Iterator[dict[str, int]]:
    """Counts the tokens that the model computes, and the forward passes with images."""
    counts = {"tokens": 0, "with_images": 0}

    def count(_: object, __: object, inputs: dict[str, Any]) -> None:
        counts["tokens"] += inputs["input_ids"].numel()
        counts["with_images"] += "pixel_values" in inputs

    with task._model.register_forward_pre_hook(count, with_kwargs=True):
        yield counts


def test_an_image_with_many_questions_is_computed_once(llava: Path) -> None:
    task = load(TASK, llava, {"max_new_tokens": 2})
    assert isinstance(task, VisionGeneration)
    rows = rows_of(*((each, None) for each in questions(6, image_part(1))))
    longest = max(one.num_tokens for one in task.encode(rows))
    with counted(task) as counts:
        generated(task, rows, max_rows=6)
    assert counts["with_images"] == 1
    assert counts["tokens"] < 2.5 * longest
    others = rows_of(*((questions(1, image_part(seed))[0], None) for seed in range(6)))
    with counted(task) as counts:
        generated(task, others, max_rows=6)
    assert counts["with_images"] == 1
    assert len({one.features.prompt for one in task.encode(others)}) == 6, "equal sizes, but other images"


def test_each_rows_own_parameters_count_in_rows_computed_by_generate(llava: Path) -> None:
    task = load(TASK, llava)
    assert isinstance(task, VisionGeneration)
    own = {"temperature": 0.9, "top_p": 0.9, "n": 2, "logprobs": True, "top_logprobs": 2, "repetition_penalty": 1.3}
    rows = [*rows_with_limits(chats(), **own), *rows_with_limits(chats(), stop=["e"])]
    together = generated(task, rows)
    task._engine._computes_alone = True  # type: ignore[attr-defined]
    alone = generated(task, rows)
    for one, other in zip(together, alone, strict=True):
        for mine, its in zip(one, other, strict=True):
            assert {**mine, "logprobs": None} == {**its, "logprobs": None}
            for token, same in zip(mine["logprobs"] or (), its["logprobs"] or (), strict=True):
                assert token["logprob"] == pytest.approx(same["logprob"], abs=1e-4)


def test_a_model_that_does_not_fit_the_loop_is_found_when_it_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(TASK, tiny_qwen3_vl(tmp_path / "fits"))
    assert ALONE not in caplog.text
    load(TASK, tiny_mllama(tmp_path / "not"))
    assert caplog.text.count(ALONE) == 1


def test_rows_are_encoded_by_threads_with_their_own_processors(llava: Path) -> None:
    task = load(TASK, llava)
    assert isinstance(task, EncodesRowByRow)
    rows = rows_with_limits(chats())
    expected = [one.features.prompt for one in task.encode(rows)]
    for number in (0, 1):
        assert [one.features.prompt for one in task.for_thread(number).encode(rows)] == expected


def test_images_and_texts_that_cannot_be_used_are_row_errors(llava: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes(b"x")
    settings = Settings(input_roots=[llava])
    bad: Mapping[str, Sequence[Any]] = {
        "url_not_allowed": [
            chat({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}),
            chat({"type": "image", "url": "http://localhost/a.png"}),
            chat({"type": "image", "url": str(llava / "config.json")}),
            chat({"type": "image_url", "image_url": {"url": ""}}),
        ],
        "forbidden_path": [chat({"type": "image", "path": str(outside)})],
        "invalid_image": [
            chat("What is this?", {"type": "image", "base64": "iVBORw0KGgoAAAANSUhEUg=="}),
            chat({"type": "image", "base64": base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0").decode()}),
        ],
        "invalid_value": [chat({"type": "image", "base64": "iVBORw0KGgoAAAANSUhEUg!!"})],
        "missing_file": [chat({"type": "image", "image": str(llava / "none.png")})],
        "invalid_messages": [
            chat({"type": "image"}),
            chat({"type": "video", "url": "a.mp4"}),
            chat("What is <image> for?", image_part(1)),
            chat("What is <image> for?"),
            [{"role": "user", "content": "What is <image> for?"}],
            "Plain text with <image> in it",
            [{"role": "user", "content": []}],
        ],
        "row_too_long": [chat(image_part(1), "very " * 600)],
    }
    rows = rows_of(*((text, None) for texts in bad.values() for text in texts), (chat(image_part(1), "Good"), None))
    *results, good = generated(load(TASK, llava, {"max_new_tokens": 2}, settings=settings), rows)
    assert error_codes(results) == [code for code, texts in bad.items() for _ in texts]
    assert isinstance(good, list)
    messages = [one.message for one in results]
    reserved = "the row must not contain '<image>', which stands for media in prompts; add an image part instead"
    assert messages.count(reserved) == 4
    assert any(message.startswith("messages[0].content[1]: ") for message in messages)
    assert not any("input 'image'" in message for message in messages)


def test_a_template_or_a_model_without_images_is_a_clear_row_error(tmp_path: Path) -> None:
    blind = template("<image>").replace("{% if part.type == 'image' %}<image>{% else %}", "{% if part.text %}")
    cases = (tiny_llava(tmp_path / "llava", chat_template=blind), tiny_causal_lm(tmp_path / "llama", chat_template="x"))
    found = [generated(load(TASK, folder), rows_of((chat("A", image_part(1)), None))) for folder in cases]
    assert [one.code for (one,) in found] == ["invalid_messages"] * 2
    messages = [one.message for (one,) in found]
    assert "has places for 0 of the messages' images (1)" in messages[0]
    assert "the model takes only texts" in messages[1]


def test_texts_are_computed_where_the_processor_cannot_be_loaded(tmp_path: Path) -> None:
    folder = tiny_llava(tmp_path)
    (folder / "processor_config.json").write_text('{"processor_class": "LlavaProcessor"}')
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "Nothing"}')
    text, image = generated(load(TASK, folder), rows_of(("Ada", None), (chat("A", image_part(1)), None)))
    assert isinstance(text, list)
    assert image.code == "invalid_messages"
    assert image.message.startswith("the messages have images, which cannot be prepared here: ")


def test_a_repeated_prompt_has_no_image_data(llava: Path) -> None:
    messages = chat("What is this? ", image_part(1))
    (output,) = outputs(load(TASK, llava, {"max_new_tokens": 3, "return_full_text": True}), rows_of((messages, None)))
    *before, answer = output[0]["generated_text"]
    assert before == chat("What is this? ", {"type": "image"})
    assert answer["role"] == "assistant"


def test_texts_are_rendered_as_texts_by_templates_that_read_no_parts(tmp_path: Path) -> None:
    simple = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
    texts = ([{"role": "user", "content": "Where is Ada?"}], chat("Where is ", "Ada?"))
    task = load(TASK, tiny_llava(tmp_path, chat_template=simple), {"max_new_tokens": 3})
    rows = rows_of(*((text, None) for text in texts), (chat("A", image_part(1)), None))
    assert isinstance(task, VisionGeneration)
    *encoded, image = task.encode(rows)
    found = [task._tokenizer.decode(one.features.prompt) for one in encoded]
    assert found == ["user: Where is Ada?\nassistant:"] * 2
    assert image.error is not None
    assert image.error.code == "invalid_messages"


def test_paths_and_plain_texts_work_as_well(llava: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture(1))
    by_path, by_data = (chat("What? ", part) for part in ({"type": "image", "path": str(path)}, image_part(1)))
    results = generated(load(TASK, llava), rows_of((by_path, None), (by_data, None), ("Ada", None), ([5, 6, 7], None)))
    assert texts_of(results[:1]) == texts_of(results[1:2])
    assert not any(isinstance(one, RowError) for one in results)
