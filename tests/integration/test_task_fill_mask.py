"""Fill-mask gives, row by row, the propositions of transformers' pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from transformers import pipeline

from jobs.errors import InvalidModel, InvalidSpec
from jobs.specs.parameters.text_tasks import FillMaskParameters
from tests.support.task_kit import LONG_TEXT, error_codes, load, outputs, same, text_rows
from tests.support.tiny import tiny_classifier, tiny_masked_lm

TASK = "fill-mask"
MASKED = (
    "My name is [MASK] and I live in London.",
    "[MASK]",
    "The quick brown [MASK] jumps over the lazy [MASK].",
    "Grüße aus [MASK] 你好 🙂",
    "[MASK] [MASK] [MASK]",
    "It broke on the second day; I want my [MASK] back. " * 5,
)


@pytest.fixture(scope="module")
def masked_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model."""
    return tiny_masked_lm(tmp_path_factory.mktemp("masked"))


def _pipeline(model: Path) -> Any:
    return pipeline(TASK, model=str(model), device="cpu", dtype=torch.float32)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"top_k": 1},
        {"top_k": 20},
        {"targets": ["fox", "dog", "london"]},
        {"targets": "fox"},
        {"targets": ["fox", "unheardof"], "top_k": 2},
    ],
    ids=str,
)
def test_propositions_are_the_pipelines(masked_lm: Path, parameters: dict[str, Any]) -> None:
    """Other words, or words in another order, would be proposed for a mask."""
    reference = _pipeline(masked_lm)
    results = outputs(load(TASK, masked_lm, parameters), text_rows(MASKED), batch_rows=3)
    assert all(map(same, results, [reference(text, **parameters) for text in MASKED]))
    assert orjson.loads(orjson.dumps(results)) == results


def test_rows_that_cannot_be_filled_fail_alone(masked_lm: Path) -> None:
    """A text without a mask, or too long a one, would end the job, as it ends the pipeline's loop."""
    long = f"the [MASK] {LONG_TEXT}"
    rows = text_rows(["no mask", "the [MASK]", long, f"{LONG_TEXT} [MASK]"])
    task_model = load(TASK, masked_lm)
    assert error_codes(outputs(task_model, rows)) == ["no_mask", None, "row_too_long", "row_too_long"]
    for parameters in ({"truncation": True}, {"tokenizer_kwargs": {"truncation": True}}):
        results = outputs(task_model.with_parameters(FillMaskParameters.read(parameters)), rows)
        assert error_codes(results) == ["no_mask", None, None, "no_mask"]
        assert same(results[2], _pipeline(masked_lm)(long, tokenizer_kwargs={"truncation": True}))


def test_targets_that_are_no_words_are_refused(masked_lm: Path) -> None:
    """The job would run and give nothing."""
    with pytest.raises(InvalidSpec, match=r"parameters\.targets"):
        load(TASK, masked_lm, {"targets": [""]})


def test_a_row_that_comes_to_nothing_fails_alone(masked_lm: Path) -> None:
    """A NaN would be recorded as a score."""
    task_model = load(TASK, masked_lm)
    batch = task_model.encode(text_rows(MASKED[:2]))
    scores, ids = task_model.forward(task_model.collate(batch))
    scores = scores.clone()
    scores[0] = torch.nan
    assert error_codes(task_model.decode(batch, (scores, ids))) == ["not_a_number", None]


def test_models_without_a_head_or_a_mask_are_refused(masked_lm: Path, tmp_path: Path) -> None:
    """Masks would be filled at random."""
    with pytest.raises(InvalidModel, match="has no fill-mask head"):
        load(TASK, tiny_classifier(tmp_path / "classifier"))
    folder = tiny_masked_lm(tmp_path / "maskless")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "mask_token": None}))
    with pytest.raises(InvalidModel, match="no mask token"):
        load(TASK, folder)
