"""Text classification gives, row by row, what transformers' pipeline gives for the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import LlamaConfig, LlamaForSequenceClassification, pipeline

from jobs.data.rows import Row
from jobs.errors import InvalidModel, InvalidSpec
from jobs.specs.parameters.text_tasks import TextClassificationParameters
from tests.support.task_kit import LONG_TEXT, TEXTS, error_codes, load, outputs, same, text_rows
from tests.support.through_engine import compute
from tests.support.tiny import byte_level_tokenizer, tiny_classifier, tiny_encoder, tiny_masked_lm

TASK = "text-classification"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three labels."""
    return tiny_classifier(tmp_path_factory.mktemp("classifier"), num_labels=3)


def _pipeline(model: Path) -> Any:
    return pipeline(TASK, model=str(model), device="cpu", dtype=torch.float32)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"top_k": None},
        {"top_k": 1},
        {"top_k": 2},
        {"top_k": 99},
        {"top_k": None, "function_to_apply": "sigmoid"},
        {"top_k": None, "function_to_apply": "softmax"},
        {"top_k": None, "function_to_apply": "none"},
        {"top_k": None, "truncation": True, "max_length": 12, "padding": True},
    ],
    ids=str,
)
def test_outputs_are_the_pipelines(classifier: Path, parameters: dict[str, Any]) -> None:
    """A user who moves a loop around `pipeline` to Stoker would get other labels or scores."""
    reference = _pipeline(classifier)
    results = outputs(load(TASK, classifier, parameters), text_rows(TEXTS))
    expected = [reference(text, **parameters) for text in TEXTS]
    assert all(map(same, results, expected))
    assert all(isinstance(result, list) for result in results)
    assert len({str(result) for result in results}) > 3, "the model must tell the texts apart for this to mean anything"
    assert orjson.loads(orjson.dumps(results)) == results


@pytest.mark.parametrize(
    ("num_labels", "problem_type"),
    [
        (4, "multi_label_classification"),
        (4, "single_label_classification"),
        (1, None),
        (1, "regression"),
        (2, "regression"),
    ],
)
def test_the_models_own_function_is_applied(tmp_path: Path, num_labels: int, problem_type: str | None) -> None:
    """A multi-label model's scores would add up to one, or a regression's be squeezed between 0 and 1."""
    folder = tiny_classifier(tmp_path, num_labels=num_labels, problem_type=problem_type)
    reference = _pipeline(folder)
    results = outputs(load(TASK, folder, {"top_k": None}), text_rows(TEXTS))
    assert all(map(same, results, [reference(text, top_k=None) for text in TEXTS]))
    results = outputs(load(TASK, folder), text_rows(TEXTS))
    assert all(map(same, results, [reference(text) for text in TEXTS]))


def test_pairs_of_sentences(classifier: Path) -> None:
    """A pair would be classified by its first sentence alone. The shape stays a list, as for a single text."""
    pairs = [{"text": first, "text_pair": second} for first, second in zip(TEXTS, reversed(TEXTS), strict=True)]
    rows = [Row(index, None, pair) for index, pair in enumerate(pairs)]
    reference = _pipeline(classifier)
    assert all(map(same, outputs(load(TASK, classifier), rows), [[reference(pair)] for pair in pairs]))
    results = outputs(load(TASK, classifier, {"top_k": None}), rows)
    assert all(map(same, results, [reference(pair, top_k=None) for pair in pairs]))


def test_pairs_and_single_texts_in_one_chunk(classifier: Path) -> None:
    """Rows without a second sentence would take the place of those with one."""
    rows = [
        Row(0, None, {"text": "a"}),
        Row(1, None, {"text": "b", "text_pair": "c"}),
        Row(2, None, {"text": "d", "text_pair": None}),
    ]
    reference = _pipeline(classifier)
    expected = [reference("a"), [reference({"text": "b", "text_pair": "c"})], reference("d")]
    assert all(map(same, outputs(load(TASK, classifier), rows), expected))


@pytest.mark.parametrize("function", ["sigmoid", "none"])
def test_reranking_gives_the_scores_of_a_cross_encoder(tmp_path: Path, function: str) -> None:
    """A question and a passage in a row; the longest passage is truncated, as sentence-transformers does."""
    folder = tiny_classifier(tmp_path, num_labels=1)
    pairs = [(question, passage) for question in TEXTS[:3] for passage in (*filter(None, TEXTS), LONG_TEXT)]
    rows = [Row(index, None, {"text": one, "text_pair": other}) for index, (one, other) in enumerate(pairs)]
    activation = torch.nn.Sigmoid() if function == "sigmoid" else torch.nn.Identity()
    expected = CrossEncoder(str(folder), device="cpu").predict(pairs, activation_fn=activation)
    # For a model of one label, sigmoid is also the default.
    parameters = {"truncation": True, **({"function_to_apply": function} if function == "none" else {})}
    found = compute(load(TASK, folder, parameters), rows).outputs
    np.testing.assert_allclose([output[0]["score"] for output in found], expected, atol=1e-5, rtol=0)
    assert np.std(expected) > 1e-3, "equal scores would show nothing"


def test_a_batch_of_any_size_gives_the_same(classifier: Path) -> None:
    """A row's result would depend on the rows that it happened to be batched with."""
    task_model = load(TASK, classifier, {"top_k": None})
    alone = outputs(task_model, text_rows(TEXTS), batch_rows=1)
    assert all(map(same, outputs(task_model, text_rows(TEXTS), batch_rows=len(TEXTS)), alone))


def test_a_row_that_is_too_long_fails_alone(classifier: Path) -> None:
    """One long review would end the job, as it ends the pipeline's loop."""
    task_model = load(TASK, classifier)
    rows = text_rows(["short", LONG_TEXT, "short"])
    results = outputs(task_model, rows)
    assert error_codes(results) == [None, "row_too_long", None]
    num_tokens = len(_pipeline(classifier).tokenizer(LONG_TEXT)["input_ids"])
    assert f"{num_tokens} tokens" in results[1].message
    assert "128" in results[1].message
    cut = outputs(task_model.with_parameters(TextClassificationParameters.read({"truncation": True})), rows)
    assert same(cut[1], _pipeline(classifier)(LONG_TEXT, truncation=True))


def test_rows_that_are_no_text_fail_alone(classifier: Path) -> None:
    """Half a surrogate pair, a number or a null would take its whole chunk down."""
    rows = text_rows(["good", "half \ud800", None, 7, "good"])
    results = outputs(load(TASK, classifier), rows)
    assert error_codes(results) == [None, "invalid_text", "null_value", "wrong_type", None]
    assert results[0] == results[4]


def test_a_row_that_comes_to_nothing_fails_alone(classifier: Path) -> None:
    """A NaN would be recorded as a score."""
    task_model = load(TASK, classifier)
    batch = task_model.encode(text_rows(["a", "b"]))
    scores = task_model.forward(task_model.collate(batch)).clone()
    scores[1, 0] = torch.nan
    assert error_codes(task_model.decode(batch, scores)) == [None, "not_a_number"]


def test_a_decoder_classifies_by_its_last_token(tmp_path: Path) -> None:
    """A model without a padding token would be read at the padding of a batch, or could not be batched at all."""
    tokenizer = byte_level_tokenizer()
    tokenizer.pad_token = None
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        num_labels=3,
        pad_token_id=None,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reference = _pipeline(tmp_path)
    results = outputs(load(TASK, tmp_path, {"top_k": None}), text_rows(TEXTS))
    assert all(map(same, results, [reference(text, top_k=None) for text in TEXTS]))


def test_warm_weights_take_another_jobs_parameters(classifier: Path) -> None:
    """The second of two jobs on a warm model would be answered with the first one's parameters."""
    first = load(TASK, classifier, {"top_k": 2})
    second = first.with_parameters(TextClassificationParameters.read({"top_k": None}))
    assert [len(result) for result in outputs(first, text_rows(["a"]))] == [2]
    assert [len(result) for result in outputs(second, text_rows(["a"]))] == [3]
    with pytest.raises(InvalidSpec, match="top_q") as caught:
        first.with_parameters(TextClassificationParameters.read({"top_q": 1}))
    assert caught.value.param == "parameters.top_q"


def test_a_head_of_random_weights_is_refused(tmp_path: Path) -> None:
    """An encoder without a trained head would give random labels without any error."""
    with pytest.raises(InvalidModel, match="BertModel, which has no text-classification head"):
        load(TASK, tiny_encoder(tmp_path / "encoder"))
    folder = tiny_masked_lm(tmp_path / "masked")
    config = folder / "config.json"
    document = orjson.loads(config.read_bytes())
    config.write_bytes(orjson.dumps({**document, "architectures": None}))
    with pytest.raises(InvalidModel, match=r"no trained weights for 'classifier"):
        load(TASK, folder)


def test_memory_is_that_of_the_weights(classifier: Path) -> None:
    """The scheduler would believe that a model fits where it does not."""
    task_model = load(TASK, classifier)
    assert task_model.memory_bytes == pytest.approx((classifier / "model.safetensors").stat().st_size, rel=0.1)


def test_bfloat16_gives_nearly_the_same(classifier: Path) -> None:
    """The fast dtype would come to other labels."""
    exact = outputs(load(TASK, classifier, {"top_k": None, "function_to_apply": "softmax"}), text_rows(TEXTS))
    fast = outputs(
        load(TASK, classifier, {"top_k": None, "function_to_apply": "softmax"}, dtype=torch.bfloat16), text_rows(TEXTS)
    )
    for one, other in zip(exact, fast, strict=True):
        scores = {entry["label"]: entry["score"] for entry in other}
        assert all(abs(entry["score"] - scores[entry["label"]]) < 0.1 for entry in one)
