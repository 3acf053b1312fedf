"""Image classification: each row is a picture with one class. The model's own processor resizes and normalises it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import pyarrow
import torch
from datasets import Dataset
from transformers import AutoImageProcessor, AutoModelForImageClassification

from jobs.config.settings import Settings
from jobs.data.rows import RowError, RowErrorCode
from jobs.errors import InvalidInput
from worker.models.media import open_media
from worker.training.tasks.classes import Classes
from worker.training.tasks.data import Columns, InputRows, Record, Survey, left_out, prepared
from worker.training.tasks.setup import TaskContext, TaskSetup, classes_in_words, evaluate_classes, likeliest

_CELL = pyarrow.struct([("path", pyarrow.string()), ("bytes", pyarrow.binary())])


def build(context: TaskContext, rows: InputRows, eval_rows: InputRows | None) -> TaskSetup:
    """See `BuildTask`."""
    if context.processor_folder is None:
        raise context.invalid("has no image processor from scratch; name one", param="model.processor")
    with context.explaining("its image processor cannot be loaded"):
        processor = AutoImageProcessor.from_pretrained(
            context.processor_folder, trust_remote_code=context.trust_remote_code
        )
    cells = rows.raw("image")
    survey = cells.survey()
    classes = Classes.of(
        survey.labels, context.known_labels, data_names=cells.names, has_head=context.has_head("ForImageClassification")
    )
    model = context.model(AutoModelForImageClassification, **classes.config())

    def pictures(source: InputRows, survey: Survey) -> Dataset:
        check = partial(_checked, rows=source, classes=classes, settings=context.settings)
        recipe = {"task": "image-classification", "ids": classes.ids}
        return prepared(source, survey, check, recipe=recipe, folder=context.data_folder)

    evaluation = None
    if eval_rows is not None:
        eval_rows = eval_rows.raw("image")
        eval_survey = eval_rows.survey()
        evaluation = pictures(eval_rows, eval_survey)
        left_out(eval_rows, eval_survey, evaluation, lacking="label")
    train = pictures(cells, survey)
    return TaskSetup(
        model=model,
        processing=processor,
        train=train,
        evaluation=evaluation,
        collate=partial(_collate, processor=processor, settings=context.settings),
        metrics=partial(evaluate_classes, num_classes=len(classes.names)),
        reduce_logits=likeliest,
        is_raw=True,
        digest=survey.digest,
        facts=(classes_in_words(classes.names), *left_out(cells, survey, train, lacking="label")),
    )


def _checked(
    batches: Iterable[list[tuple[int, Record]]], *, rows: InputRows, classes: Classes, settings: Settings
) -> Iterator[Columns]:
    """Check the pictures by opening each once, so that errors show before the first step; keep them encoded."""
    for batch in batches:
        cells, labels = [], []
        for row_index, record in batch:
            (label,) = classes.ids_of(rows, row_index, record)
            if label is None:
                continue
            cell = _cell(record["cell"])
            image = RowError(RowErrorCode.WRONG_TYPE, "it has no picture") if cell is None else _open(cell, settings)
            if isinstance(image, RowError):
                raise rows.invalid(row_index, image.message)
            cells.append(cell)
            labels.append(label)
        if cells:
            yield {"image": pyarrow.array(cells, _CELL), "labels": labels}


def _cell(value: Any) -> dict[str, Any] | None:
    if isinstance(value, str):
        return {"path": value, "bytes": None}
    if isinstance(value, bytes):
        return {"path": None, "bytes": value}
    if isinstance(value, dict) and value.keys() == {"path", "bytes"}:  # the form in which data sets store pictures
        return value if value["bytes"] is None else {"path": None, "bytes": value["bytes"]}
    return None


def _open(cell: dict[str, Any], settings: Settings) -> Any:
    return open_media("image", cell["path"] if cell["bytes"] is None else cell["bytes"], settings)


def _collate(rows: list[dict[str, Any]], *, processor: Any, settings: Settings) -> dict[str, torch.Tensor]:
    images = []
    for row in rows:
        image = _open(row["image"], settings)
        if isinstance(image, RowError):  # the file changed after it was checked
            raise InvalidInput(f"data: {image.message}", param="data.train")
        images.append(image.convert("RGB"))
    pixels_BCHW = processor(images, return_tensors="pt")["pixel_values"]
    return {"pixel_values": pixels_BCHW, "labels": torch.tensor([row["labels"] for row in rows])}
