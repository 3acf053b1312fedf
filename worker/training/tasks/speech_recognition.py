"""Speech recognition by connectionist temporal classification (Graves et al. 2006), from sounds with their texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow
import torch
from datasets import Dataset
from transformers import AutoModelForCTC, AutoProcessor, EvalPrediction

from jobs.config.access_rules import AccessRules
from jobs.data.rows import RowError
from jobs.data.sources.media import media_value
from worker.models.media.open_media import open_media
from worker.training.tasks.alphabet import Alphabet
from worker.training.tasks.data import Columns, InputRows, Record, Survey, prepared, row_lengths
from worker.training.tasks.edit_distance import edits
from worker.training.tasks.setup import NO_LABEL, TaskContext, TaskSetup, likeliest, tokenizer_identity

_SAMPLES = pyarrow.list_(pyarrow.float32())


def build(context: TaskContext, rows: InputRows, eval_rows: InputRows | None) -> TaskSetup:
    """See `BuildTask`."""
    if context.processor_folder is None:
        raise context.invalid("needs a processor; name the folder or hub id of one", param="model.processor")
    with context.explaining("its processor cannot be loaded"):
        processor = AutoProcessor.from_pretrained(context.processor_folder, trust_remote_code=context.trust_remote_code)
    tokenizer, extractor = getattr(processor, "tokenizer", None), getattr(processor, "feature_extractor", None)
    if tokenizer is None or extractor is None:
        raise context.invalid("has no processor with both a feature extractor and a tokenizer")
    # A text that is longer than its sound cannot be aligned; its infinite loss must not end the training.
    lenient = {"ctc_zero_infinity": True} if hasattr(context.config(), "ctc_zero_infinity") else {}
    # An encoder without a head gets one of the tokenizer's size, whatever size its configuration says by default.
    head = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if head["pad_token_id"] is None:
        raise context.invalid("has a tokenizer without a pad_token, which is the blank between two letters")
    model = context.model(AutoModelForCTC, **lenient, **({} if context.has_head("ForCTC") else head))
    alphabet = Alphabet.of(context, model, tokenizer)
    rate = int(extractor.sampling_rate)
    recipe = {
        "task": "automatic-speech-recognition", "rate": rate, "letters": alphabet.num_letters,
        "layers": alphabet.layers, "tokenizer": tokenizer_identity(tokenizer),
    }  # fmt: skip

    def recordings(source: InputRows, survey: Survey) -> Dataset:
        prepare = partial(_decoded, rows=source, alphabet=alphabet, rate=rate, rules=context.rules)
        dataset = prepared(source, survey, prepare, recipe=recipe, folder=context.data_folder)
        alphabet.check_letters(source, dataset)
        alphabet.warn_of_long_texts(source, dataset)
        return dataset

    cells = rows.raw("audio")
    survey = cells.survey()
    train = recordings(cells, survey)
    evaluation = None
    if eval_rows is not None:
        eval_rows = eval_rows.raw("audio")
        evaluation = recordings(eval_rows, eval_rows.survey())
    return TaskSetup(
        model=model,
        processing=processor,
        train=train,
        evaluation=evaluation,
        collate=partial(_collate, extractor=extractor),
        metrics=partial(_metrics, tokenizer=tokenizer),
        reduce_logits=likeliest,
        is_raw=True,
        lengths=lambda: row_lengths(train, "samples"),
        digest=survey.digest,
        facts=(f"{len(train):,} recordings at {rate} Hz",),
    )


def _decoded(
    batches: Iterable[list[tuple[int, Record]]], *, rows: InputRows, alphabet: Alphabet, rate: int, rules: AccessRules
) -> Iterator[Columns]:
    for batch in batches:
        samples = []
        for row_index, record in batch:
            sound = _samples(record["cell"], rate, rules)
            if isinstance(sound, str):
                raise rows.invalid(row_index, sound)
            samples.append(sound)
        labels = alphabet.tokenizer([record["text"] for _, record in batch])["input_ids"]
        for (row_index, _), sound, ids in zip(batch, samples, labels, strict=True):
            alphabet.check_row(rows, row_index, len(sound), ids)
        yield {"samples": pyarrow.array(samples, _SAMPLES), "labels": labels}


def _samples(value: Any, rate: int, rules: AccessRules) -> np.ndarray | str:
    """Return a recording's samples, or what is wrong with it."""
    cell = media_value("audio", value)
    sound = cell if isinstance(cell, RowError) else open_media("audio", cell, rules, rate=rate)
    if isinstance(sound, RowError):
        return sound.message
    if not isinstance(sound, np.ndarray) or sound.ndim != 1 or not sound.size:
        return "it has no sound; give a list of samples or a file"
    return sound


def _collate(rows: list[dict[str, Any]], *, extractor: Any) -> dict[str, torch.Tensor]:
    sounds = [np.asarray(row["samples"], dtype=np.float32) for row in rows]
    features = extractor(sounds, sampling_rate=extractor.sampling_rate, padding=True, return_tensors="pt")
    longest = max(len(row["labels"]) for row in rows)
    labels_BL = [row["labels"] + [NO_LABEL] * (longest - len(row["labels"])) for row in rows]
    return {**features, "labels": torch.tensor(labels_BL)}


def _metrics(prediction: EvalPrediction, *, tokenizer: Any) -> dict[str, float]:
    """Return word and character error rates: the edits of all rows, divided by the length of all right texts."""
    pad = tokenizer.pad_token_id
    predicted, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    recognized = tokenizer.batch_decode(np.where(predicted == NO_LABEL, pad, predicted))
    right = tokenizer.batch_decode(np.where(labels == NO_LABEL, pad, labels), group_tokens=False)
    words = [(one.split(), other.split()) for one, other in zip(recognized, right, strict=True)]
    return {
        "wer": sum(edits(one, other) for one, other in words) / max(1, sum(len(other) for _, other in words)),
        "cer": sum(edits(one, other) for one, other in zip(recognized, right, strict=True))
        / max(1, sum(map(len, right))),
    }
