"""A row with several inputs gives the outputs of its inputs one by one, in each of the four forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.data.rows import RowError
from tests.support.task_kit import LONG_TEXT, load, outputs, text_rows
from tests.support.tiny import SENTENCES, tiny_classifier, tiny_encoder, wordpiece_tokenizer
from worker.inference.tasks import multi_input

ONE, TWO, THREE = SENTENCES[:3]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain encoder of 32 dimensions."""
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three labels."""
    return tiny_classifier(tmp_path_factory.mktemp("classifier"))


def _any(task: str, model: Path, values: list[Any], **parameters: Any) -> list[Any]:
    return outputs(load(task, model, {"inputs": "any", **parameters}), text_rows(values))


def test_vectors_equal_those_of_single_texts(encoder: Path) -> None:
    """An answer's entry would belong to another input."""
    alone = outputs(load("embeddings", encoder), text_rows([ONE, TWO, THREE]))
    found = _any("embeddings", encoder, [[ONE, TWO], THREE, [THREE], [TWO, ONE, THREE]])
    assert [one.shape for one in found] == [(2, 32), (1, 32), (1, 32), (3, 32)]
    assert all(one.dtype == np.float32 for one in found)
    for vectors, texts in zip(found, [(0, 1), (2,), (2,), (1, 0, 2)], strict=True):
        np.testing.assert_allclose(vectors, np.stack([alone[text] for text in texts]), atol=1e-5, rtol=0)


def test_token_ids_are_taken_as_they_are(encoder: Path) -> None:
    """Clients that count tokens send ids, with the special ones where they want them."""
    tokenizer = wordpiece_tokenizer()
    ids = [tokenizer(text)["input_ids"] for text in (ONE, TWO)]
    texts = _any("embeddings", encoder, [[ONE, TWO]])[0]
    for given in (ids, [*ids]):
        np.testing.assert_allclose(_any("embeddings", encoder, [given])[0], texts, atol=1e-5, rtol=0)
    np.testing.assert_allclose(_any("embeddings", encoder, [ids[0]])[0], texts[:1], atol=1e-5, rtol=0)
    mixed = _any("embeddings", encoder, [[ONE, ids[1]]])[0]
    np.testing.assert_allclose(mixed, texts, atol=1e-5, rtol=0)


def test_labels_of_several_texts(classifier: Path) -> None:
    """Classification takes the same forms."""
    alone = outputs(load("text-classification", classifier), text_rows([ONE, TWO]))
    found = _any("text-classification", classifier, [[ONE, TWO], TWO])
    assert [[entry[0]["label"] for entry in row] for row in found] == [
        [alone[0][0]["label"], alone[1][0]["label"]],
        [alone[1][0]["label"]],
    ]
    assert found[0][1][0]["score"] == pytest.approx(alone[1][0]["score"], abs=1e-5)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "null_value"),
        ([], "empty_input"),
        (7, "wrong_type"),
        ({"text": ONE}, "wrong_type"),
        ([ONE, 7], "wrong_type"),
        ([ONE, []], "wrong_type"),
        ([True, False], "wrong_type"),
        ([[ONE]], "wrong_type"),
        ([1, 10**6], "unknown_token"),
        ([-1], "unknown_token"),
        ([ONE] * 2049, "too_many_inputs"),
        ([ONE, LONG_TEXT], "row_too_long"),
        ([5] * 200, "row_too_long"),
    ],
)
def test_a_bad_input_is_its_rows_error_alone(encoder: Path, value: Any, code: str) -> None:
    """A neighbour would lose its vector."""
    before, bad, after = _any("embeddings", encoder, [ONE, value, TWO], truncate=False)
    assert isinstance(bad, RowError)
    assert bad.code == code
    expected = _any("embeddings", encoder, [ONE, TWO])
    np.testing.assert_allclose(np.concatenate([before, after]), np.concatenate(expected), atol=1e-5, rtol=0)


def test_tokens_are_counted_over_all_inputs(encoder: Path) -> None:
    """Clients are billed by usage."""
    model = load("embeddings", encoder, {"inputs": "any"})
    both, one, two = model.encode(text_rows([[ONE, TWO], ONE, TWO]))
    assert both.num_tokens == one.num_tokens + two.num_tokens


def test_many_inputs_of_one_row_are_computed_in_parts(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of 2,048 inputs would need more memory than any batch."""
    whole = _any("embeddings", encoder, [[ONE, TWO, THREE] * 5])[0]
    monkeypatch.setattr(multi_input, "_MOST_TOKENS", 64)
    np.testing.assert_allclose(_any("embeddings", encoder, [[ONE, TWO, THREE] * 5])[0], whole, atol=1e-5, rtol=0)
