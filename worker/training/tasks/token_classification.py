"""Token classification: lists of words, each word with a class; the first piece of a word carries it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification, EvalPrediction

from jobs.errors import InvalidInput
from worker.inference.tasks.tokens import longest_row
from worker.training.data import Record, label_names, prepared
from worker.training.learning import Learning, Origin, classification_metrics, tokenizer_identity

_NO_LABEL = -100
"""What torch's cross entropy passes over."""


def build(origin: Origin, records: Sequence[Record], judged: Sequence[Record] | None) -> Learning:
    """See `BuildTask`."""
    tokenizer = origin.tokenizer()
    if not tokenizer.is_fast:
        raise origin.invalid("has a slow tokenizer, which does not tell which word a piece is of")
    for param, rows in (("data.train", records), ("data.eval", judged or ())):
        _check_lengths(rows, param)
    known = origin.config().label2id if origin.plan.model is not None else {}
    names = label_names(records, "labels", known or {})
    model = origin.model(
        AutoModelForTokenClassification,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        **origin.from_scratch(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id),
    )
    longest = longest_row(model, tokenizer)
    max_length = min((limit for limit in (origin.spec.data.max_length, longest) if limit), default=None)
    tokenize = partial(_tokenize, tokenizer=tokenizer, names=names, max_length=max_length)
    recipe = {
        "task": "token-classification", "names": names, "max_length": max_length,
        "tokenizer": tokenizer_identity(tokenizer),
    }  # fmt: skip
    cache = origin.plan.cache
    return Learning(
        model=model,
        processing=tokenizer,
        train=prepared(records, tokenize, recipe=recipe, cache=cache),
        evaluation=None if judged is None else prepared(judged, tokenize, recipe=recipe, cache=cache),
        collate=DataCollatorForTokenClassification(tokenizer),
        metrics=partial(_metrics, num_classes=len(names)),
        reduce_logits=lambda logits, _labels: logits.argmax(dim=-1),
        facts=(f"{len(names)} classes: {', '.join(names[:50])}",),
    )


def _check_lengths(records: Sequence[Record], param: str) -> None:
    for place, record in enumerate(records):
        tokens, labels = record["tokens"], record["labels"]
        if not isinstance(tokens, list) or not isinstance(labels, list) or len(tokens) != len(labels) or not tokens:
            raise InvalidInput(f"{param}: row {place} does not have a label for each of its tokens", param=param)
        if not all(isinstance(token, str) for token in tokens):
            raise InvalidInput(f"{param}: row {place} has tokens that are not text", param=param)


def _tokenize(records: Sequence[Record], *, tokenizer: Any, names: Sequence[str], max_length: int | None) -> Dataset:
    ids = {name: number for number, name in enumerate(names)}
    words = [record["tokens"] for record in records]
    features = tokenizer(words, is_split_into_words=True, truncation=max_length is not None, max_length=max_length)
    labels = []
    for place, record in enumerate(records):
        before: int | None = None
        row = []
        for word in features.word_ids(place):
            is_first = word is not None and word != before
            row.append(ids[str(record["labels"][word])] if is_first else _NO_LABEL)
            before = word
        labels.append(row)
    return Dataset.from_dict({**features, "labels": labels})


def _metrics(prediction: EvalPrediction, *, num_classes: int) -> dict[str, float]:
    predicted, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    told = labels != _NO_LABEL
    return dict(classification_metrics(predicted[told], labels[told], num_classes))
