"""Token classification gives, row by row, the entities of transformers' pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from transformers import BertConfig, BertForTokenClassification, pipeline

from jobs.errors import InvalidModel, InvalidSpec
from jobs.specs.parameters.text_tasks import TokenClassificationParameters
from tests.support.task_kit import LONG_TEXT, TEXTS, error_codes, load, outputs, same, text_rows
from tests.support.tiny import SENTENCES, TAGS, byte_level_tokenizer, tiny_classifier, tiny_tagger

TASK = "token-classification"
STRATEGIES = ("none", "simple", "first", "average", "max")


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagger with five tags."""
    return tiny_tagger(tmp_path_factory.mktemp("tagger"))


def _pipeline(model: Path) -> Any:
    return pipeline(TASK, model=str(model), device="cpu", dtype=torch.float32)


def _with_batches(parameters: dict[str, Any], model: Path) -> None:
    reference = _pipeline(model)
    results = outputs(load(TASK, model, parameters), text_rows(TEXTS))
    expected = [reference(text, **parameters) for text in TEXTS]
    assert all(map(same, results, expected))
    assert any(results), "without an entity this would show nothing"
    assert orjson.loads(orjson.dumps(results)) == results


@pytest.mark.parametrize("strategy", [None, *STRATEGIES])
def test_entities_are_the_pipelines(tagger: Path, strategy: str | None) -> None:
    """Names would be cut elsewhere, or carry other labels, scores or places in the text."""
    _with_batches({} if strategy is None else {"aggregation_strategy": strategy}, tagger)


@pytest.mark.parametrize("strategy", ["none", "average"])
@pytest.mark.parametrize("ignored", [[], ["O", "PER", "B-PER", "I-PER"]])
def test_ignored_labels(tagger: Path, strategy: str, ignored: list[str]) -> None:
    """Labels that the user leaves out would be in the results."""
    _with_batches({"aggregation_strategy": strategy, "ignore_labels": ignored}, tagger)


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words:UserWarning")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_tokenizer_without_word_marks(tmp_path: Path, strategy: str) -> None:
    """Models with a byte-level tokenizer would get other words."""
    tokenizer = byte_level_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=256,
        id2label=dict(enumerate(TAGS)),
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    BertForTokenClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    _with_batches({"aggregation_strategy": strategy}, tmp_path)


@pytest.mark.parametrize("stride", [0, 5, 60])
@pytest.mark.parametrize("strategy", ["simple", "first", "max"])
def test_a_long_text_in_overlapping_windows(tagger: Path, strategy: str, stride: int) -> None:
    """Entities behind the model's longest row would be missing, or those in an overlap would be there twice."""
    parameters = {"aggregation_strategy": strategy, "stride": stride}
    texts = [*SENTENCES, LONG_TEXT, LONG_TEXT[:900]]
    reference = _pipeline(tagger)
    task_model = load(TASK, tagger, parameters)
    encoded = task_model.encode(text_rows(texts))
    assert len(encoded[-2].features) > 1
    assert encoded[-2].num_tokens == sum(len(window["input_ids"]) for window in encoded[-2].features)
    results = outputs(task_model, text_rows(texts), batch_rows=4)
    assert all(map(same, results, [reference(text, **parameters) for text in texts]))


WORDS = (
    ["My", "name", "is", "Ada", "Lovelace"],
    ["Ada"],
    ["supercalifragilistic", "", "O'Brien,", "你好", "a  b"],
    LONG_TEXT.split()[:30],
)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"aggregation_strategy": "first"},
        {"aggregation_strategy": "max", "delimiter": ""},
        {"aggregation_strategy": "simple", "stride": 3, "max_length": 16},
    ],
    ids=str,
)
def test_lists_of_words_are_taken_as_the_pipeline_takes_them(tagger: Path, parameters: dict[str, Any]) -> None:
    reference = _pipeline(tagger)
    own = {name: value for name, value in parameters.items() if name != "max_length"}
    if "max_length" in parameters:
        reference.tokenizer.model_max_length = parameters["max_length"]
    results = outputs(load(TASK, tagger, {**parameters, "is_split_into_words": True}), text_rows(WORDS))
    expected = [reference(words, **own, is_split_into_words=True)[0] for words in WORDS]
    assert all(map(same, results, expected))
    assert any(results), "without an entity this would show nothing"


def test_words_and_texts_are_not_confused(tagger: Path) -> None:
    task_model = load(TASK, tagger)
    results = outputs(task_model, text_rows(["Ada", ["Ada"], "Lovelace"]))
    assert error_codes(results) == [None, "wrong_type", None]
    assert "is_split_into_words" in results[1].message
    results = outputs(
        task_model.with_parameters(TokenClassificationParameters.read({"is_split_into_words": True})),
        text_rows(["Ada", ["Ada"], ["a", 1]]),
    )
    assert error_codes(results) == ["wrong_type", None, "wrong_type"]
    with pytest.raises(InvalidSpec, match="is_split_into_words"):
        task_model.with_parameters(TokenClassificationParameters.read({"delimiter": "-"}))


def test_a_row_that_is_too_long_fails_alone(tagger: Path) -> None:
    """The pipeline silently drops the end of a long text; here the row is an error unless the cut is requested."""
    task_model = load(TASK, tagger)
    rows = text_rows(["short", LONG_TEXT, "short"])
    results = outputs(task_model, rows)
    assert error_codes(results) == [None, "row_too_long", None]
    cut = outputs(task_model.with_parameters(TokenClassificationParameters.read({"truncation": True})), rows)
    assert same(cut[1], _pipeline(tagger)(LONG_TEXT))


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"stride": 5}, "stride"),
        ({"stride": 5, "aggregation_strategy": "none"}, "stride"),
        ({"stride": 126, "aggregation_strategy": "first"}, "stride"),
        ({"aggregation_strategy": "middle"}, "aggregation_strategy"),
        ({"aggregation": "first"}, "aggregation"),
        ({"ignore_labels": "O"}, "ignore_labels"),
    ],
    ids=str,
)
def test_impossible_parameters_are_refused(tagger: Path, parameters: dict[str, Any], param: str) -> None:
    """A misspelt parameter would be ignored, and the job would have to be run again."""
    with pytest.raises(InvalidSpec) as caught:
        load(TASK, tagger).with_parameters(TokenClassificationParameters.read(parameters))
    assert caught.value.param == f"parameters.{param}"


def test_a_row_that_comes_to_nothing_fails_alone(tagger: Path) -> None:
    """A NaN would be recorded as an entity's score."""
    task_model = load(TASK, tagger)
    batch = task_model.encode(text_rows(["ada", "ada"]))
    logits = task_model.forward(task_model.collate(batch)).clone()
    logits[0, 1] = torch.nan
    assert error_codes(task_model.decode(batch, logits)) == ["not_a_number", None]


def test_another_head_is_refused(tmp_path: Path) -> None:
    """A text classifier would tag words at random."""
    with pytest.raises(InvalidModel, match="has no token-classification head"):
        load(TASK, tiny_classifier(tmp_path))
