"""Image classification: each row is a picture with one class. The model's own processor resizes and normalises it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pyarrow
import torch
from datasets import Dataset
from transformers import AutoImageProcessor, AutoModelForImageClassification

from jobs.config.access_rules import AccessRules
from jobs.data.rows import RowError, RowErrorCode
from jobs.errors import InvalidInput
from worker.models.image_processor import pillow_processor
from worker.models.load import ModelFolder
from worker.models.media.fast_images import find_fast_images
from worker.models.media.open_media import open_media
from worker.training.tasks.classes import Classes
from worker.training.tasks.data import Columns, InputRows, Record, Survey, left_out, prepared
from worker.training.tasks.setup import TaskContext, TaskSetup, classes_in_words, evaluate_classes, likeliest

_CPU = torch.device("cpu")
_CELL = pyarrow.struct([("path", pyarrow.string()), ("bytes", pyarrow.binary())])


def build(context: TaskContext, rows: InputRows, eval_rows: InputRows | None) -> TaskSetup:
    """See `BuildTask`."""
    if context.processor_folder is None:
        raise context.invalid("needs an image processor; name the folder or hub id of one", param="model.processor")
    with context.explaining("its image processor cannot be loaded"):
        folder = ModelFolder(str(context.processor_folder), context.processor_folder, context.trust_remote_code)
        # The same pixels as in inference, whether or not torchvision is installed.
        processor = pillow_processor(folder) or AutoImageProcessor.from_pretrained(
            folder.path, trust_remote_code=folder.trust_remote_code
        )
    fast_images = find_fast_images(processor, _CPU, torch.float32, bytes_to_device=False)
    prepare = processor if fast_images is None else fast_images.processor(processor)
    cells = rows.raw("image")
    survey = cells.survey()
    classes = Classes.of(
        survey.labels, context.known_labels, data_names=cells.names, has_head=context.has_head("ForImageClassification")
    )
    model = context.model(AutoModelForImageClassification, **classes.config())

    def pictures(source: InputRows, survey: Survey) -> Dataset:
        check = partial(_checked, rows=source, classes=classes, rules=context.rules)
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
        collate=partial(_collate, prepare=prepare, rules=context.rules),
        metrics=partial(evaluate_classes, num_classes=len(classes.names)),
        reduce_logits=likeliest,
        is_raw=True,
        digest=survey.digest,
        facts=(classes_in_words(classes.names), *left_out(cells, survey, train, lacking="label")),
    )


def _checked(
    batches: Iterable[list[tuple[int, Record]]], *, rows: InputRows, classes: Classes, rules: AccessRules
) -> Iterator[Columns]:
    """Check the pictures by opening each once, so that errors show before the first step; keep them encoded."""
    for batch in batches:
        cells, labels = [], []
        for row_index, record in batch:
            (label,) = classes.ids_of(rows, row_index, record)
            if label is None:
                continue
            cell = _cell(record["cell"])
            image = RowError(RowErrorCode.WRONG_TYPE, "it has no image") if cell is None else _open(cell, rules)
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


def _open(cell: dict[str, Any], rules: AccessRules) -> Any:
    return open_media("image", cell["path"] if cell["bytes"] is None else cell["bytes"], rules)


def _collate(rows: list[dict[str, Any]], *, prepare: Callable[..., Any], rules: AccessRules) -> dict[str, torch.Tensor]:
    images = []
    for row in rows:
        image = _open(row["image"], rules)
        if isinstance(image, RowError):  # the file changed after it was checked
            raise InvalidInput(f"data: {image.message}", param="data.train")
        images.append(image)
    pixels_BCHW = prepare(images, return_tensors="pt")["pixel_values"]
    return {"pixel_values": pixels_BCHW, "labels": torch.tensor([row["labels"] for row in rows])}
