"""Each training task on tiny real models and data: the loss falls, and the trained model loads and computes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from tests.support import tiny
from tests.support.rows import write_rows
from tests.support.trained import Attempt, attempt, broken
from worker.training.reports import Saved
from worker.training.tasks.edit_distance import edits

pytestmark = pytest.mark.slow

ARGUMENTS = {"max_steps": 40, "per_device_train_batch_size": 8, "learning_rate": 3e-3, "logging_steps": 5}


def falls(found: Attempt) -> bool:
    """Whether the last losses are lower than the first ones."""
    losses = [float.fromhex(loss) for loss in found.losses.values()]
    return sum(losses[-5:]) < 0.9 * sum(losses[:5])


def cuts_and_fills(model: Path) -> tuple[Any, Any]:
    """What the tokenizer of a model does to long and short texts where a program does not say it."""
    document = json.loads((model / "tokenizer.json").read_text())
    return document["truncation"], document["padding"]


def texts(folder: Path, num_rows: int = 48) -> str:
    records = [
        {
            "text": f"{tiny.SENTENCES[number % 8]} {('fox', 'London')[number % 2]}",
            "label": ("animal", "city")[number % 2],
        }
        for number in range(num_rows)
    ]
    return str(write_rows(folder / "texts.jsonl", records))


def spec_of(task: str, model: Any, train: str, **fields: Any) -> dict[str, Any]:
    return {
        "kind": "training", "task": task, "model": model, "data": {"train": train, "eval": train},
        "arguments": ARGUMENTS, **fields,
    }  # fmt: skip


def test_texts_are_classified(tmp_path: Path) -> None:
    spec = spec_of("text-classification", str(tiny.tiny_encoder(tmp_path / "m")), texts(tmp_path))
    found = attempt(tmp_path / "a", spec, cache=str(tmp_path))
    assert falls(found)
    assert cuts_and_fills(found.model) == cuts_and_fills(tmp_path / "m") == (None, None)
    classify = transformers.pipeline("text-classification", model=str(found.model))
    assert classify("A fox")[0]["label"] in {"animal", "city"}
    summary = json.loads((found.model.parent / "summary.json").read_text())
    assert summary["steps"] == 40
    assert summary["scores"]["eval_accuracy"] > 0.9
    card = (found.model / "README.md").read_text()
    assert "eval_accuracy" in card
    assert "max_steps | 40" in card
    assert "rows of `texts.jsonl`" in card
    assert str(tmp_path) not in card, "where things lie on this host is not the world's business"
    again = attempt(tmp_path / "b", spec, cache=str(tmp_path))
    assert again.weights == found.weights, "rows that were prepared before are the same rows"


def test_a_model_from_scratch(tmp_path: Path) -> None:
    processor = str(tiny.tiny_encoder(tmp_path / "m"))
    config = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = {"architecture": "bert", "config": config, "processor": processor}
    found = attempt(tmp_path / "a", spec_of("text-classification", model, texts(tmp_path)))
    assert falls(found)
    assert transformers.AutoConfig.from_pretrained(found.model).hidden_size == 32


def test_words_are_classified(tmp_path: Path) -> None:
    records = [
        {"tokens": ["Ada", "lives", "in", "Londonderry"], "labels": ["B-PER", "O", "O", "B-LOC"]},
        {"tokens": ["In", "Paris", "Ada", "sang"], "labels": ["O", "B-LOC", "B-PER", "O"]},
    ] * 12
    train = str(write_rows(tmp_path / "rows.jsonl", records))
    model = tiny.tiny_encoder(tmp_path / "m")
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_truncation(40)
    tokenizer.save(str(model / "tokenizer.json"))
    found = attempt(tmp_path / "a", spec_of("token-classification", str(model), train))
    assert falls(found)
    assert cuts_and_fills(found.model) == cuts_and_fills(model), "as the base model's, not as the training used it"
    tag = transformers.pipeline("token-classification", model=str(found.model))
    assert {one["entity"] for one in tag("Ada lives in Londonderry")} <= {"B-PER", "B-LOC", "O"}
    records[0]["labels"] = ["O"]
    bad = spec_of("token-classification", str(tmp_path / "m"), str(write_rows(tmp_path / "bad.jsonl", records)))
    assert "row 0: the row has 4 tokens but" in broken(attempt(tmp_path / "b", bad)).message


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["all weights", "adapters"])
def test_texts_are_gone_on_with(tmp_path: Path, lora: dict[str, Any] | None) -> None:
    model = str(tiny.tiny_causal_lm(tmp_path / "m"))
    fields = {} if lora is None else {"lora": lora}
    spec = spec_of("text-generation", model, texts(tmp_path), **fields)
    spec["data"]["max_length"] = 32
    found = attempt(tmp_path / "a", spec)
    assert falls(found) or lora is not None
    assert any(name == "eval_perplexity" and math.isfinite(value) for _, name, value in found.points)
    assert not (found.model / "adapter_config.json").exists()
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(found.model, output_loading_info=True)
    assert not info["missing_keys"], "a plain model of the same architecture"
    assert loaded.num_parameters() == transformers.AutoModelForCausalLM.from_pretrained(model).num_parameters()


def test_pictures_are_classified(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    records = []
    for number in range(24):
        path = tmp_path / f"{number}.png"
        image.new("RGB", (32, 32), ("red", "blue")[number % 2]).save(path)
        records.append({"image": str(path), "label": ("red", "blue")[number % 2]})
    train = str(write_rows(tmp_path / "rows.jsonl", records))
    model = str(tiny.tiny_image_classifier(tmp_path / "m"))
    found = attempt(tmp_path / "a", spec_of("image-classification", model, train))
    assert falls(found)
    classify = transformers.pipeline("image-classification", model=str(found.model))
    assert classify(str(tmp_path / "0.png"))[0]["label"] == "red"


def test_sounds_are_written_down(tmp_path: Path) -> None:
    records = []
    for number in range(16):
        word = ("ab", "ba")[number % 2]
        tone = {"a": 0.3, "b": 0.7}
        sound = [math.sin(at * tone[letter]) for letter in word for at in range(800)]
        records.append({"audio": sound, "text": word})
    train = str(write_rows(tmp_path / "rows.jsonl", records))
    found = attempt(tmp_path / "a", spec_of("automatic-speech-recognition", str(tiny.tiny_ctc(tmp_path / "m")), train))
    assert falls(found)
    assert {"eval_wer", "eval_cer"} <= {name for _, name, _ in found.points}
    assert transformers.AutoProcessor.from_pretrained(found.model).tokenizer.vocab_size > 0


def test_edits_are_the_fewest() -> None:
    assert (edits("kitten", "sitting"), edits("", "ab"), edits(["a"], ["a"])) == (3, 2, 0)


def test_the_best_checkpoint_comes_out(tmp_path: Path) -> None:
    spec = spec_of("text-classification", str(tiny.tiny_encoder(tmp_path / "m")), texts(tmp_path))
    spec["arguments"] = {**ARGUMENTS, "max_steps": 12, "eval_strategy": "steps", "eval_steps": 4}
    spec["checkpoint"] = {"every_steps": 4, "best": "eval_loss"}
    found = attempt(tmp_path / "a", spec)
    saved = [report for report in found.reports if isinstance(report, Saved)]
    assert [report.step for report in saved] == [4, 8]
    assert all(report.metric is not None for report in saved)
    summary = json.loads((found.model.parent / "summary.json").read_text())
    evaluated = [value for _, name, value in found.points if name == "eval_loss"]
    assert summary["best_value"] == min(evaluated)
    resumed = attempt(tmp_path / "b", spec, resume=saved[0])
    assert json.loads((resumed.model.parent / "summary.json").read_text())["best_value"] == min(evaluated)


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    spec = spec_of("text-classification", str(tiny.tiny_encoder(tmp_path / "m")), texts(tmp_path))
    spec["arguments"] = {**ARGUMENTS, "learning_rate": 1e30, "max_grad_norm": 0.0, "logging_steps": 1}
    spec["checkpoint"] = {"every_steps": 1}
    found = attempt(tmp_path / "a", spec)
    why = broken(found)
    assert (why.code, why.is_users) == ("loss_not_finite", True)
    assert f"the last good checkpoint is that of step {found.last(Saved).step}" in why.message


def test_bad_starts_and_rows_are_one_sentence_each(tmp_path: Path) -> None:
    model = str(tiny.tiny_encoder(tmp_path / "m"))
    scratch = {"architecture": "bert", "config": {"hidden_size": 32, "num_attention_heads": 2}}
    assert (
        broken(attempt(tmp_path / "a", spec_of("text-classification", scratch, texts(tmp_path)))).param
        == "model.processor"
    )
    rows = str(write_rows(tmp_path / "bad.jsonl", [{"text": "a", "label": "x"}, {"text": None, "label": "y"}]))
    why = broken(attempt(tmp_path / "b", spec_of("text-classification", model, rows)))
    assert why.message == "data.train: row 1, line 2: column 'text' is null"
    assert why.is_users
