"""Text generation gives what `generate` gives for each row alone, with each row's own parameters."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, pipeline
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from jobs.data.rows import Row, RowError
from jobs.errors import InvalidModel, InvalidSpec
from jobs.specs.parameters import read_parameters
from jobs.specs.parameters.generation import NO_TEMPLATE_VARIABLES, TextGenerationParameters
from tests.support.architectures import save_small, small_config
from tests.support.generation import generated, rows_of
from tests.support.task_kit import TEXTS, error_codes, load, outputs, text_rows
from tests.support.tiny import (
    CHAT_TEMPLATE,
    byte_level_tokenizer,
    tiny_causal_lm,
    tiny_classifier,
    tiny_gpt2,
    tiny_mistral,
)
from worker.inference.tasks.text_generation import TextGeneration

TASK = "text-generation"
BUILDERS = (tiny_causal_lm, tiny_gpt2)
PROMPTS = [text for text in TEXTS if text]
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is Ada?"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama without a chat template."""
    return tiny_causal_lm(tmp_path_factory.mktemp("llama"))


class Reference:
    """Transformers' `generate`, one row at a time."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(self, text: str) -> list[int]:
        """Tokens of a prompt."""
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids

    def tokens(self, ids: Sequence[int], max_new_tokens: int) -> list[int]:
        """Tokens that come greedily after a prompt's."""
        prompt = torch.tensor([list(ids)])
        options = {"do_sample": False, "max_new_tokens": max_new_tokens, "pad_token_id": 0}
        found = self.model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        tokens: list[int] = found[0, len(ids) :].tolist()
        return tokens

    def logprobs(self, ids: Sequence[int]) -> torch.Tensor:
        """(T, V): log-probabilities of the token after each."""
        with torch.no_grad():
            scores: torch.Tensor = self.model(torch.tensor([list(ids)])).logits[0].float().log_softmax(-1)
        return scores


def texts_of(output: Sequence[Mapping[str, Any]]) -> list[str]:
    """The texts of an output's choices."""
    return [choice["generated_text"] for choice in output]


def num_tokens_of(output: Sequence[Mapping[str, Any]]) -> int:
    """Tokens of all choices of an output."""
    return sum(choice["num_tokens"] for choice in output)


# -- greedy ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=BUILDERS)
def alone(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TextGeneration, list[Row], list[list[int]]]:
    """A model, rows of very different lengths, and the tokens that `generate` gives for each."""
    folder = request.param(tmp_path_factory.mktemp("model"))
    reference = Reference(folder)
    lengths = [1 + 13 * number % 90 for number in range(len(PROMPTS))]
    rows = rows_of(*((text, {"max_new_tokens": most}) for text, most in zip(PROMPTS, lengths, strict=True)))
    task_model = load(TASK, folder)
    assert isinstance(task_model, TextGeneration)
    return (
        task_model,
        rows,
        [reference.tokens(reference.ids(text), most) for text, most in zip(PROMPTS, lengths, strict=True)],
    )


@pytest.mark.parametrize(("max_rows", "max_tokens"), [(1, 10_000), (3, 10_000), (5, 400), (100, 10_000)])
def test_greedy_tokens_are_those_of_generate(
    alone: tuple[TextGeneration, list[Row], list[list[int]]], max_rows: int, max_tokens: int
) -> None:
    task_model, rows, expected = alone
    requests = task_model.collate(task_model.encode(rows))
    with torch.inference_mode():
        found = task_model.forward_in_flight(requests, max_tokens=max_tokens, max_rows=max_rows, between=lambda: None)
    assert [one.tokens for (one,) in found] == expected


@pytest.mark.parametrize("build", [*BUILDERS, tiny_mistral])
def test_a_beginning_that_prompts_share_is_computed_once(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    folder = build(tmp_path)
    reference = Reference(folder)
    system = "You are a helpful assistant, brief and never wrong. "
    texts = [*(system + text[:60] for text in PROMPTS), *PROMPTS[:3], system + "Where", system + "Where is Ada?"]
    lengths = [1 + 7 * number % 20 for number in range(len(texts))]
    rows = rows_of(*((text, {"max_new_tokens": most}) for text, most in zip(texts, lengths, strict=True)))
    expected = [reference.tokens(reference.ids(text), most) for text, most in zip(texts, lengths, strict=True)]
    task_model = load(TASK, folder)
    assert isinstance(task_model, TextGeneration)
    requests = task_model.collate(task_model.encode(rows))
    num_computed = [0]

    def count(_: object, __: object, inputs: dict[str, Any]) -> None:
        num_computed[0] += inputs["input_ids"].numel()

    with torch.inference_mode(), task_model._model.register_forward_pre_hook(count, with_kwargs=True):
        found = task_model.forward_in_flight(requests, max_tokens=10_000, max_rows=4, between=lambda: None)
    assert [one.tokens for (one,) in found] == expected
    beginning = len(reference.ids(system)) - 1
    assert beginning > 16
    assert num_computed[0] < sum(len(one.prompt) for one in requests) + sum(lengths) - 8 * beginning


def test_the_output_text_does_not_repeat_the_prompt(model: Path) -> None:
    reference = Reference(model)
    for text, output in zip(
        PROMPTS, outputs(load(TASK, model, {"max_new_tokens": 9}), text_rows(PROMPTS)), strict=True
    ):
        ids = reference.ids(text)
        tokens = reference.tokens(ids, 9)
        whole = reference.tokenizer.decode(ids + tokens, skip_special_tokens=True)
        assert texts_of(output) == [whole[len(reference.tokenizer.decode(ids, skip_special_tokens=True)) :]]
        assert num_tokens_of(output) == len(tokens)


def test_every_end_token_of_the_generation_config_ends_a_row(tmp_path: Path) -> None:
    folder = tiny_causal_lm(tmp_path)
    reference = Reference(folder)
    ids = reference.ids("My name is")
    tokens = reference.tokens(ids, 12)
    config = json.loads((folder / "generation_config.json").read_text())
    config["eos_token_id"] = [2, tokens[7]]
    (folder / "generation_config.json").write_text(json.dumps(config))
    (output,) = generated(load(TASK, folder, {"max_new_tokens": 12, "logprobs": True}), text_rows(["My name is"]))
    (choice,) = output
    end = tokens.index(tokens[7])
    assert choice["finish_reason"] == "stop"
    assert choice["generated_text"] == reference.tokenizer.decode(tokens[:end])
    assert len(choice["logprobs"]) == end
    assert num_tokens_of(output) == end + 1


@pytest.mark.parametrize(
    "fields",
    [
        {"repetition_penalty": 1.5},
        {"forced_eos_token_id": 2},
        {"forced_eos_token_id": 0, "eos_token_id": None},
        {"no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
    ],
    ids=",".join,
)
def test_the_models_generation_config_is_followed_as_generate_does(tmp_path: Path, fields: dict[str, Any]) -> None:
    folder = tiny_causal_lm(tmp_path)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, **fields}))
    reference = Reference(folder)
    task_model = load(TASK, folder, {"max_new_tokens": 40})
    found = task_model.forward(task_model.collate(task_model.encode(text_rows(PROMPTS[:4]))))
    assert [one.tokens for (one,) in found] == [reference.tokens(reference.ids(text), 40) for text in PROMPTS[:4]]


@pytest.mark.parametrize(
    "rule", ["bad_words_ids", "begin_suppress_tokens", "suppress_tokens", "min_length", "min_new_tokens"]
)
def test_tokens_that_the_models_configuration_forbids_are_not_written(tmp_path: Path, rule: str) -> None:
    folder = tiny_causal_lm(tmp_path)
    plain = Reference(folder)
    first, second, *_ = (token for token in plain.tokens(plain.ids(PROMPTS[0]), 20) if token != 2)
    config = json.loads((folder / "generation_config.json").read_text())
    ends_late = {"eos_token_id": [2, second]}
    fields = {
        "bad_words_ids": {"bad_words_ids": [[second], [first, first]]},
        "begin_suppress_tokens": {"begin_suppress_tokens": [first]},
        "suppress_tokens": {"suppress_tokens": [first, second]},
        "min_length": {"min_length": len(plain.ids(PROMPTS[0])) + 6, **ends_late},
        "min_new_tokens": {"min_new_tokens": 6, **ends_late},
    }[rule]
    (folder / "generation_config.json").write_text(json.dumps({**config, **fields}))
    task_model = load(TASK, folder, {"max_new_tokens": 20})
    found = task_model.forward(task_model.collate(task_model.encode(text_rows(PROMPTS[:4]))))
    tokens = [one.tokens for (one,) in found]
    assert tokens == [Reference(folder).tokens(plain.ids(text), 20) for text in PROMPTS[:4]]
    assert tokens[0] != plain.tokens(plain.ids(PROMPTS[0]), 20)


@pytest.mark.parametrize(
    ("kind", "own"),
    [("jamba", {"num_experts": 4, "num_hidden_layers": 5}), ("minimax", {"num_local_experts": 4})],
    ids=["jamba", "minimax"],
)
def test_models_whose_cache_cannot_be_shared_give_the_tokens_of_generate(
    tmp_path: Path, kind: str, own: dict[str, Any]
) -> None:
    """Some layers of Jamba keep a state; MiniMax accepts only its own kind of cache."""
    tokenizer = byte_level_tokenizer()
    architecture = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])
    save_small(tmp_path, architecture, small_config(kind, tokenizer, **own), tokenizer)
    reference = Reference(tmp_path)
    task_model = load(TASK, tmp_path, {"max_new_tokens": 12})
    found = task_model.forward(task_model.collate(task_model.encode(text_rows(PROMPTS[:4]))))
    assert [one.tokens for (one,) in found] == [reference.tokens(reference.ids(text), 12) for text in PROMPTS[:4]]


def test_new_tokens_are_cut_to_the_models_context(tmp_path: Path) -> None:
    folder = tiny_gpt2(tmp_path, max_tokens=20)
    ids = list(range(5, 20))
    rows = rows_of((ids, None), (ids + ids[:4], None), (ids + ids[:5], None))
    first, second, third = generated(load(TASK, folder, {"max_new_tokens": 100}), rows)
    assert (num_tokens_of(first), num_tokens_of(second)) == (5, 1)
    assert {one[0]["finish_reason"] for one in (first, second)} == {"length"}
    assert third == RowError(
        "row_too_long", "the prompt has 20 tokens; the model accepts 20, including at least one new token"
    )


# -- each row's own parameters --------------------------------------------------------------------------------------


def test_a_sampled_row_does_not_depend_on_its_neighbours(model: Path) -> None:
    task_model = load(TASK, model, {"temperature": 1.0, "max_new_tokens": 30, "seed": 7})
    rows = text_rows(PROMPTS)
    together = generated(task_model, rows, max_rows=100)
    assert generated(task_model, rows, max_rows=3) == together
    assert generated(task_model, rows[::-1], max_rows=5)[::-1] == together
    assert [generated(task_model, [row])[0] for row in rows] == together
    others = rows_of(*((text, {"temperature": 0, "max_new_tokens": 50}) for text in PROMPTS))
    mixed = [rows[index] if index % 3 == 0 else others[index] for index in range(len(rows))]
    assert generated(task_model, mixed)[::3] == together[::3]
    assert (
        generated(
            task_model.with_parameters(TextGenerationParameters.read({"temperature": 1.0, "max_new_tokens": 30})), rows
        )
        != together
    )


def test_a_seed_of_the_row_itself_gives_the_same_text_anywhere(model: Path) -> None:
    own = {"temperature": 1.0, "seed": 11, "max_new_tokens": 20}
    first, second, third = generated(
        load(TASK, model), rows_of(("Ada", own), ("Ada", own), ("Ada", {**own, "seed": 1}))
    )
    assert texts_of(first) == texts_of(second) != texts_of(third)
    inherited = load(TASK, model, own)
    first, second = generated(inherited, text_rows(["Ada", "Ada"]))
    assert texts_of(first) != texts_of(second)


def test_each_row_has_its_own_parameters_over_those_of_the_job(model: Path) -> None:
    reference = Reference(model)
    rows = rows_of(
        ("Ada", None),
        ("Ada", {"max_new_tokens": 3}),
        ("Ada", {"n": 2, "max_new_tokens": None}),
        ("Ada", '{"max_new_tokens": 2, "temperature": 0}'),
        ("Ada", " "),
    )
    results = generated(load(TASK, model, {"max_new_tokens": 6}), rows)
    assert [num_tokens_of(one) for one in results] == [6, 3, 12, 2, 6]
    assert len(results[2]) == 2
    whole = reference.tokens(reference.ids("Ada"), 6)
    assert texts_of(results[1]) == [reference.tokenizer.decode(whole[:3])]


def test_several_choices_are_drawn_each_by_itself(model: Path) -> None:
    drawn = load(TASK, model, {"temperature": 1.0, "n": 4, "max_new_tokens": 10})
    first, second = generated(drawn, text_rows(["My name", "is"]), max_rows=3)
    assert len(set(texts_of(first))) == len(set(texts_of(second))) == 4
    fewer = generated(
        drawn.with_parameters(TextGenerationParameters.read({"temperature": 1.0, "n": 2, "max_new_tokens": 10})),
        text_rows(["My name"]),
    )
    assert texts_of(fewer[0]) == texts_of(first)[:2]
    assert num_tokens_of(first) == 40
    greedy = generated(load(TASK, model, {"n": 3, "max_new_tokens": 5}), text_rows(["My name"]))
    assert len(set(texts_of(greedy[0]))) == 1


# -- stop strings ---------------------------------------------------------------------------------------------------


def test_a_text_is_cut_before_a_stop_string(model: Path) -> None:
    reference = Reference(model)
    task_model = load(TASK, model, {"max_new_tokens": 40})
    for prompt in PROMPTS[:6]:
        tokens = reference.tokens(reference.ids(prompt), 40)
        whole = texts_of(generated(task_model, text_rows([prompt]))[0])[0]
        for start in (3, 9, 17):
            for stop in (whole[start : start + 1], whole[start : start + 4]):
                rows = rows_of((prompt, {"stop": [stop, "never there"]}))
                (output,) = generated(task_model, rows)
                (choice,) = output
                assert choice["generated_text"] == whole[: whole.find(stop)]
                assert choice["finish_reason"] == "stop"
                assert num_tokens_of(output) <= len(tokens)
    (output,) = generated(task_model, rows_of(("Ada", {"stop": "never there"})))
    assert output[0]["finish_reason"] == "length"


def test_a_special_token_can_be_a_stop_string(tmp_path: Path) -> None:
    """The token that ends a turn is in no text, and not every chat model's files say that it ends one."""
    folder = tiny_causal_lm(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = Reference(folder).tokens(Reference(folder).ids("Ada"), 12)
    end = tokens.index(tokens[5])
    turn = tokenizer.convert_ids_to_tokens(tokens[5])
    tokenizer.add_special_tokens({"additional_special_tokens": [turn]})
    tokenizer.save_pretrained(folder)
    rows = rows_of(("Ada", {"stop": [turn, "never there"], "logprobs": True}))
    (output,) = generated(load(TASK, folder, {"max_new_tokens": 12}), rows)
    assert (output[0]["finish_reason"], num_tokens_of(output), len(output[0]["logprobs"])) == ("stop", end + 1, end)
    assert texts_of(output) == [tokenizer.decode(tokens[:end])]


def test_a_stop_string_ends_a_row_at_once(model: Path) -> None:
    reference = Reference(model)
    tokens = reference.tokens(reference.ids("Ada"), 30)
    beginning = reference.tokenizer.decode(tokens[:4])
    (output,) = generated(
        load(TASK, model, {"max_new_tokens": 30, "stop": beginning[-2:], "logprobs": True}), text_rows(["Ada"])
    )
    assert num_tokens_of(output) <= 4
    text = "".join(one["token"] for one in output[0]["logprobs"])
    assert text.startswith(output[0]["generated_text"])


# -- log-probabilities ----------------------------------------------------------------------------------------------


def test_logprobs_are_those_of_the_model(model: Path) -> None:
    reference = Reference(model)
    rows = rows_of(
        ("My name is", {"top_logprobs": 3, "temperature": 1.5, "top_k": 5, "seed": 2}),
        ("I live in London", {"logprobs": True}),
        ("Ada", None),
    )
    task_model = load(TASK, model, {"max_new_tokens": 8})
    results = generated(task_model, rows)
    requests = task_model.collate(task_model.encode(rows))
    tokens = [one.tokens for (one,) in task_model.forward(requests)]
    for result, request, chosen in zip(results[:2], requests, tokens, strict=False):
        logprobs_TV = reference.logprobs([*request.prompt, *chosen])[len(request.prompt) - 1 : -1]
        logprobs = result[0]["logprobs"]
        for step, token in enumerate(chosen):
            assert logprobs[step]["logprob"] == pytest.approx(float(logprobs_TV[step, token]), abs=1e-4)
            assert bytes(logprobs[step]["bytes"]).decode(errors="replace") == logprobs[step]["token"]
        assert b"".join(bytes(one["bytes"]) for one in logprobs).decode(errors="replace") == texts_of(result)[0]
    best = reference.logprobs([*requests[0].prompt, *tokens[0]])[len(requests[0].prompt) - 1 : -1].topk(3)
    for step, one in enumerate(results[0][0]["logprobs"]):
        expected = pytest.approx(best.values[step].tolist(), abs=1e-4)
        assert [top["logprob"] for top in one["top_logprobs"]] == expected
    assert all(one["top_logprobs"] == [] for one in results[1][0]["logprobs"])
    assert results[2][0]["logprobs"] is None


# -- prompts --------------------------------------------------------------------------------------------------------


def test_a_chat_goes_through_the_models_template(tmp_path: Path) -> None:
    folder = tiny_causal_lm(tmp_path, chat_template=CHAT_TEMPLATE)
    reference = Reference(folder)
    prompt = "system: Be brief.\nuser: Where is Ada?\nassistant:"
    ids = reference.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    task_model = load(TASK, folder, {"max_new_tokens": 7})
    rows = rows_of(
        (MESSAGES, None),
        (ids, None),
        ([{"role": "tool", "content": "x"}], None),
        ([{"role": "user"}], None),
        ([{"content": "x"}], None),
    )
    assert task_model.encode(rows)[0].features.prompt == tuple(ids)
    results = generated(task_model, rows)
    assert texts_of(results[0]) == texts_of(results[1])
    assert error_codes(results) == [None, None, *["invalid_messages"] * 3]
    assert "no tools here" in results[2].message
    assert results[3].message == "messages[0].content: must be a text, or a list of parts of type text"


def test_parts_of_a_content_are_one_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Where is "}, {"type": "text", "text": "Ada?"}]
    image = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "x.png"}}]
    task_model = load(TASK, tiny_causal_lm(tmp_path, chat_template=CHAT_TEMPLATE))
    whole, joined, refused = task_model.encode(
        rows_of(
            (MESSAGES, None),
            ([MESSAGES[0], {"role": "user", "content": parts}], None),
            ([{"role": "user", "content": image}], None),
        )
    )
    assert joined.features.prompt == whole.features.prompt
    assert refused.error is not None
    assert refused.error.code == "invalid_messages"
    assert refused.error.message.startswith("the model takes only texts, and the messages have images")


def test_variables_of_the_template_come_from_the_parameters(tmp_path: Path) -> None:
    template = "{% if thinks is defined and not thinks %}quick {% endif %}" + CHAT_TEMPLATE
    task_model = load(
        TASK, tiny_causal_lm(tmp_path, chat_template=template), {"chat_template_kwargs": {"thinks": False}}
    )
    job, own = task_model.encode(rows_of((MESSAGES, None), (MESSAGES, {"chat_template_kwargs": {"thinks": True}})))
    assert "quick" in Reference(tmp_path).tokenizer.decode(job.features.prompt)
    assert "quick" not in Reference(tmp_path).tokenizer.decode(own.features.prompt)


def test_arguments_of_the_template_call_are_not_its_variables() -> None:
    """A release of transformers may add an argument; a row must not replace the model's template with it."""
    taken = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    assert taken - {"kwargs", "tools", "documents"} <= NO_TEMPLATE_VARIABLES
    with pytest.raises(InvalidSpec, match="own variables"):
        read_parameters(TASK, {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}})


def test_rows_that_cannot_be_prompts(model: Path) -> None:
    rows = rows_of(
        (None, None),
        (5, None),
        ([], None),
        ([1, "a"], None),
        ([1, True], None),
        ([5, 10_000_000], None),
        ([-1], None),
        (MESSAGES, None),
        ("\ud800", None),
        ("good", None),
        ([5, 6], None),
        ("x" * 2000, None),
    )
    codes = error_codes(generated(load(TASK, model, {"max_new_tokens": 2}), rows))
    expected = ["null_value", "wrong_type", "empty_row", "wrong_type", "wrong_type", "unknown_token", "unknown_token"]
    assert codes == [*expected, "no_chat_template", "invalid_text", None, None, "row_too_long"]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"temprature": 1}, "parameters.temprature: task 'text-generation' has no parameter 'temprature'"),
        ({"n": 0}, "parameters.n: must be a whole number from 1 to 128, not 0"),
        ([1], "parameters: must be an object, not a list"),
        ("{", "parameters: is not valid JSON"),
        ("[1]", "parameters: must be an object, not a list"),
    ],
)
def test_a_bad_parameter_of_a_row_is_the_rows_error(model: Path, own: Any, message: str) -> None:
    bad, good = generated(load(TASK, model, {"max_new_tokens": 2}), rows_of(("Ada", own), ("Ada", None)))
    assert bad.code == "invalid_parameter"
    assert bad.message.startswith(message)
    assert texts_of(good)


def test_models_and_parameters_that_do_not_fit_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="top_p"):
        load(TASK, model, {"top_p": 3})
    with pytest.raises(InvalidModel):
        load(TASK, tiny_classifier(tmp_path))


# -- the pipeline's own words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [True, False])
def test_results_are_the_pipelines(tmp_path: Path, full: bool) -> None:
    folder = tiny_causal_lm(tmp_path, chat_template=CHAT_TEMPLATE)
    reference = pipeline("text-generation", model=str(folder), device="cpu")
    begun = [*MESSAGES, {"role": "assistant", "content": "Ada is in"}]
    texts: list[Any] = [*PROMPTS[:6], MESSAGES, begun]
    options = {"max_new_tokens": 9, "do_sample": False, "return_full_text": full}
    results = generated(load(TASK, folder, options), rows_of(*((text, None) for text in texts)))
    for text, result in zip(texts, results, strict=True):
        assert [{"generated_text": one["generated_text"]} for one in result] == reference(text, **options)
    answered = {**options, "continue_final_message": False}
    (result,) = generated(load(TASK, folder, answered), rows_of((begun, None)))
    assert [{"generated_text": one["generated_text"]} for one in result] == reference(begun, **answered)


def test_transformers_names_are_understood(model: Path) -> None:
    task_model = load(TASK, model, {"num_return_sequences": 3, "temperature": 1.0, "max_new_tokens": 5})
    first, second = generated(task_model, rows_of(("Ada", None), ("Ada", {"n": 2, "stop_strings": "e"})))
    assert (len(first), len(second)) == (3, 2)
    assert not any("e" in text for text in texts_of(second))
