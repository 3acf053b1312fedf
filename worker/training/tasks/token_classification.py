"""Token classification: lists of words, each word with a class; the first piece of a word carries it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification, EvalPrediction

from jobs.errors import InvalidInput
from worker.training.data import Columns, InputRows, Record, label_names, prepared, row_lengths
from worker.training.learning import (
    NO_LABEL,
    Learning,
    Origin,
    classes_in_words,
    classification_metrics,
    likeliest,
    tokenizer_identity,
)


def build(origin: Origin, rows: InputRows, judged: InputRows | None) -> Learning:
    """See `BuildTask`."""
    tokenizer = origin.tokenizer()
    if not tokenizer.is_fast:
        raise origin.invalid("has a slow tokenizer, which does not tell which word a piece is of")
    survey = rows.survey("labels")
    names = label_names(survey.labels, origin.known_labels)
    ids = {name: number for number, name in enumerate(names)}
    model = origin.model(
        AutoModelForTokenClassification,
        id2label=dict(enumerate(names)),
        label2id=ids,
        **origin.from_scratch(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id),
    )
    longest = origin.longest(model, tokenizer)
    recipe = {
        "task": "token-classification", "ids": ids, "longest": longest, "tokenizer": tokenizer_identity(tokenizer),
    }  # fmt: skip

    def prepare(source: InputRows) -> partial[Iterator[Columns]]:
        return partial(_tokenize, rows=source, tokenizer=tokenizer, ids=ids, longest=longest)

    train = prepared(rows, survey, prepare(rows), recipe=recipe, folder=origin.data_folder)
    evaluation = None
    if judged is not None:
        evaluation = prepared(judged, judged.survey(), prepare(judged), recipe=recipe, folder=origin.data_folder)
    return Learning(
        model=model,
        processing=tokenizer,
        train=train,
        evaluation=evaluation,
        collate=DataCollatorForTokenClassification(tokenizer),
        metrics=partial(_metrics, num_classes=len(names)),
        reduce_logits=likeliest,
        lengths=lambda: row_lengths(train, "input_ids"),
        digest=survey.digest,
        facts=(classes_in_words(names),),
    )


def _tokenize(
    batches: Iterable[list[tuple[int, Record]]],
    *,
    rows: InputRows,
    tokenizer: Any,
    ids: dict[str, int],
    longest: int | None,
) -> Iterator[Columns]:
    for batch in batches:
        for row_index, record in batch:
            flaw = _flaw(record)
            if flaw is not None:
                raise rows.invalid(row_index, flaw)
        words = [record["tokens"] for _, record in batch]
        features = tokenizer(words, is_split_into_words=True, truncation=longest is not None, max_length=longest)
        labels = [
            _labels(features.word_ids(place), [ids[str(label)] for label in record["labels"]])
            for place, (_, record) in enumerate(batch)
        ]
        yield {**features, "labels": labels}


def _flaw(record: Record) -> str | None:
    tokens, labels = record["tokens"], record["labels"]
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        return "its tokens are not a list of words"
    if not isinstance(labels, list) or len(labels) != len(tokens):
        return f"it does not have a label for each of its {len(tokens)} tokens"
    return None


def _labels(words: list[int | None], labels: list[int]) -> list[int]:
    """Of each piece the label of its word, where it is the first of it."""
    before = [None, *words[:-1]]
    return [
        labels[word] if word is not None and word != last else NO_LABEL
        for word, last in zip(words, before, strict=True)
    ]


def _metrics(prediction: EvalPrediction, *, num_classes: int) -> dict[str, float]:
    predicted, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    told = labels != NO_LABEL
    if not told.any():
        raise InvalidInput("data.eval: no word of it has a class", param="data.eval")
    return classification_metrics(predicted[told], labels[told], num_classes)
