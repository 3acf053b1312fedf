"""Text classification: texts, or pairs of them, each with one class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, EvalPrediction

from worker.inference.tasks.tokens import longest_row
from worker.training.data import Record, label_names, prepared
from worker.training.learning import Learning, Origin, classification_metrics, tokenizer_identity


def build(origin: Origin, records: Sequence[Record], judged: Sequence[Record] | None) -> Learning:
    """See `BuildTask`."""
    tokenizer = origin.tokenizer()
    known = origin.config().label2id if origin.plan.model is not None else {}
    names = label_names(records, "label", known or {})
    model = origin.model(
        AutoModelForSequenceClassification,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        **origin.from_scratch(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id),
    )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id  # decoders look for the last token before the padding
    longest = longest_row(model, tokenizer)
    max_length = min((limit for limit in (origin.spec.data.max_length, longest) if limit), default=None)
    tokenize = partial(_tokenize, tokenizer=tokenizer, names=names, max_length=max_length)
    recipe = {
        "task": "text-classification",
        "names": names,
        "max_length": max_length,
        "tokenizer": tokenizer_identity(tokenizer),
    }
    cache = origin.plan.cache
    return Learning(
        model=model,
        processing=tokenizer,
        train=prepared(records, tokenize, recipe=recipe, cache=cache),
        evaluation=None if judged is None else prepared(judged, tokenize, recipe=recipe, cache=cache),
        collate=DataCollatorWithPadding(tokenizer),
        metrics=partial(_metrics, num_classes=len(names)),
        reduce_logits=lambda logits, _labels: (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1),
        facts=(f"{len(names)} classes: {', '.join(names[:50])}",),
    )


def _tokenize(records: Sequence[Record], *, tokenizer: Any, names: Sequence[str], max_length: int | None) -> Dataset:
    ids = {name: number for number, name in enumerate(names)}
    texts = [record["text"] for record in records]
    pairs = [record.get("text_pair") or "" for record in records] if "text_pair" in records[0] else None
    features = tokenizer(texts, pairs, truncation=max_length is not None, max_length=max_length)
    return Dataset.from_dict({**features, "label": [ids[str(record["label"])] for record in records]})


def _metrics(prediction: EvalPrediction, *, num_classes: int) -> dict[str, float]:
    predicted, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    return dict(classification_metrics(predicted, labels, num_classes))
