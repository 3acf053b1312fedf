"""Image classification: pictures, each with one class, sized and normalised by the model's own processor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, EvalPrediction

from jobs.errors import InvalidInput
from jobs.rows import RowError
from worker.inference.tasks.media import open_media
from worker.training.data import Record, label_names
from worker.training.learning import Learning, Origin, classification_metrics


def build(origin: Origin, records: Sequence[Record], judged: Sequence[Record] | None) -> Learning:
    """See `BuildTask`."""
    if origin.processor_folder is None:
        raise origin.invalid("has no image processor from scratch; name one", param="model.processor")
    with origin.explaining("its image processor cannot be loaded"):
        processor = AutoImageProcessor.from_pretrained(
            origin.processor_folder, trust_remote_code=origin.trust_remote_code
        )
    known = origin.config().label2id if origin.plan.model is not None else {}
    names = label_names(records, "label", known or {})
    ids = {name: number for number, name in enumerate(names)}
    model = origin.model(
        AutoModelForImageClassification, num_labels=len(names), id2label=dict(enumerate(names)), label2id=ids
    )

    def examples(rows: Sequence[Record], param: str) -> list[dict[str, Any]]:
        return [
            {"image": _opened(origin, row["image"], place, param), "label": ids[str(row["label"])]}
            for place, row in enumerate(rows)
        ]

    return Learning(
        model=model,
        processing=processor,
        train=Examples(examples(records, "data.train")),
        evaluation=None if judged is None else Examples(examples(judged, "data.eval")),
        collate=partial(_collate, processor=processor),
        metrics=partial(_metrics, num_classes=len(names)),
        reduce_logits=lambda logits, _labels: logits.argmax(dim=-1),
        facts=(f"{len(names)} classes: {', '.join(names[:50])}",),
    )


class Examples(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows that are held as they are."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self._rows[place]


def _opened(origin: Origin, value: Any, place: int, param: str) -> Any:
    image = open_media("image", value, origin.settings)
    if isinstance(image, RowError):
        raise InvalidInput(f"{param}: row {place}: {image.message}", param=param)
    return image.convert("RGB")


def _collate(rows: list[dict[str, Any]], *, processor: Any) -> dict[str, torch.Tensor]:
    pixels = processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    return {"pixel_values": pixels, "labels": torch.tensor([row["label"] for row in rows])}


def _metrics(prediction: EvalPrediction, *, num_classes: int) -> dict[str, float]:
    predicted, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    return dict(classification_metrics(predicted, labels, num_classes))
