"""Speech recognition by connectionist temporal classification (Graves et al. 2006): sounds, each with its text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCTC, AutoProcessor, EvalPrediction

from jobs.errors import InvalidInput
from jobs.rows import RowError
from worker.inference.tasks.media import open_media
from worker.training.data import Record
from worker.training.learning import Learning, Origin
from worker.training.tasks.image_classification import Examples

_NO_LABEL = -100


def build(origin: Origin, records: Sequence[Record], judged: Sequence[Record] | None) -> Learning:
    """See `BuildTask`."""
    if origin.processor_folder is None:
        raise origin.invalid("has no processor from scratch; name one", param="model.processor")
    with origin.explaining("its processor cannot be loaded"):
        processor = AutoProcessor.from_pretrained(origin.processor_folder, trust_remote_code=origin.trust_remote_code)
    tokenizer = processor.tokenizer
    model = origin.model(
        AutoModelForCTC,
        **origin.from_scratch(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id),
    )

    def examples(rows: Sequence[Record], param: str) -> list[dict[str, Any]]:
        return [_example(origin, processor, row, place, param) for place, row in enumerate(rows)]

    return Learning(
        model=model,
        processing=processor,
        train=Examples(examples(records, "data.train")),
        evaluation=None if judged is None else Examples(examples(judged, "data.eval")),
        collate=partial(_collate, processor=processor),
        metrics=partial(_metrics, tokenizer=tokenizer),
        reduce_logits=lambda logits, _labels: (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1),
        facts=(f"{len(records):,} recordings at {processor.feature_extractor.sampling_rate} Hz",),
    )


def _example(origin: Origin, processor: Any, row: Record, place: int, param: str) -> dict[str, Any]:
    rate = processor.feature_extractor.sampling_rate
    sound = open_media("audio", row["audio"], origin.settings)
    if isinstance(sound, RowError):
        raise InvalidInput(f"{param}: row {place}: {sound.message}", param=param)
    if isinstance(sound, dict):
        if sound["sampling_rate"] != rate:
            message = f"is sampled at {sound['sampling_rate']} Hz, and the model hears {rate} Hz"
            raise InvalidInput(f"{param}: row {place} {message}", param=param)
        sound = sound["raw"]
    if isinstance(sound, bytes):
        from transformers.pipelines.audio_utils import ffmpeg_read

        try:
            sound = ffmpeg_read(sound, rate)
        except ValueError as error:
            raise InvalidInput(f"{param}: row {place}: the sound cannot be read: {error}", param=param) from error
    labels = processor.tokenizer(row["text"])["input_ids"]
    if not labels:
        raise InvalidInput(f"{param}: row {place} has an empty text", param=param)
    return {"samples": np.asarray(sound, dtype=np.float32), "labels": labels}


def _collate(rows: list[dict[str, Any]], *, processor: Any) -> dict[str, torch.Tensor]:
    extractor = processor.feature_extractor
    features = extractor(
        [row["samples"] for row in rows], sampling_rate=extractor.sampling_rate, padding=True, return_tensors="pt"
    )
    longest = max(len(row["labels"]) for row in rows)
    labels = [row["labels"] + [_NO_LABEL] * (longest - len(row["labels"])) for row in rows]
    return {**features, "labels": torch.tensor(labels)}


def _metrics(prediction: EvalPrediction, *, tokenizer: Any) -> dict[str, float]:
    """Word and character error rates: edits over what is right, all rows together."""
    pad = tokenizer.pad_token_id
    predicted, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    heard = tokenizer.batch_decode(np.where(predicted == _NO_LABEL, pad, predicted))
    right = tokenizer.batch_decode(np.where(labels == _NO_LABEL, pad, labels), group_tokens=False)
    words = [(one.split(), other.split()) for one, other in zip(heard, right, strict=True)]
    return {
        "wer": sum(edits(one, other) for one, other in words) / max(1, sum(len(other) for _, other in words)),
        "cer": sum(edits(one, other) for one, other in zip(heard, right, strict=True)) / max(1, sum(map(len, right))),
    }


def edits(one: Sequence[str], other: Sequence[str]) -> int:
    """The fewest insertions, deletions and replacements between two sequences (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for place, item in enumerate(one, start=1):
        diagonal, row[0] = row[0], place
        for at, wanted in enumerate(other, start=1):
            diagonal, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, diagonal + (item != wanted))
    return row[-1]
