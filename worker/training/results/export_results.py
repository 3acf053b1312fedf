"""Writes the artifacts of a training: the model or models with a card, and `summary.json`."""

from __future__ import annotations

import math
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import torch

from jobs.data.store_keys import is_name
from jobs.specs.inference import TrainingSpec
from worker.device import device_name
from worker.training.modules.load_module import users_code
from worker.training.modules.user_module import Parts
from worker.training.results.best_weights import Evaluation
from worker.training.results.card import write_card, write_parts_card
from worker.training.results.weights import write_models

if TYPE_CHECKING:  # it loads transformers
    from worker.training.tasks.setup import TaskSetup


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """The figures of a training when its last attempt ends."""

    step: int
    resumed_step: int
    epochs: float
    seconds: float
    """Duration of this attempt."""
    rows_per_second: float | None
    last_loss: float
    micro_batch: int
    """Number of rows of one micro-batch on each slot."""
    accumulation: int
    num_slots: int
    evaluation: Evaluation | None
    """The evaluation of the weights that are written."""
    is_best: bool
    """Whether `checkpoint.best` selected them."""


def write_artifacts(
    folder: Path, model: Any, setup: TaskSetup, spec: TrainingSpec, summary: TrainingSummary
) -> dict[str, Any]:
    """Write `model/` with its card, and `summary.json`.

    Args:
        folder: The folder to write to; made here.
        model: The trained model; adapters are merged into its weights.
        setup: The task's processor and rows.
        spec: The job's spec.
        summary: The figures of the training.

    Returns:
        The content of `summary.json`.
    """
    from worker.training.tasks.adapters import merged  # loads transformers, which the plain loop does not need

    device = next(model.parameters()).device
    model = merged(model)
    model.save_pretrained(folder / "model")
    setup.processing.save_pretrained(folder / "model")
    document = _summarize(folder, {"task": spec.task}, spec, summary, num_rows=len(setup.train), device=device)
    write_card(folder / "model" / "README.md", spec, setup.facts, document)
    return document


def write_module_artifacts(
    folder: Path, parts: Parts, spec: TrainingSpec, summary: TrainingSummary, *, source: bytes, device: torch.device
) -> dict[str, Any]:
    """Write a module's models with a card and the module itself, the files of `Parts.finish`, and `summary.json`.

    Args:
        folder: The folder to write to; made here.
        parts: What the module built, with trained models.
        spec: The job's spec.
        summary: The figures of the training.
        source: The content of the module's file.
        device: The device of the training.

    Returns:
        The content of `summary.json`.
    """
    write_models(folder / "model", parts)
    (folder / "model" / "module.py").write_bytes(source)
    if parts.finish is not None:
        with users_code("Parts.finish"):
            parts.finish(folder)
            _check_written(folder)
    head = {"module": spec.module, "options": dict(spec.options)}
    document = _summarize(folder, head, spec, summary, num_rows=len(parts.train), device=device)
    write_parts_card(folder / "model" / "README.md", spec, parts, document)
    return document


def _check_written(folder: Path) -> None:
    """Raise ValueError if the files that `Parts.finish` left cannot become artifacts."""
    if not (folder / "model").is_dir() or (folder / "summary.json").is_dir():
        raise ValueError("it must not remove the folder model/ or make a folder summary.json")
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not is_name(name):
            raise ValueError(f"{name!r:.80} cannot be the name of an artifact")


def _summarize(
    folder: Path,
    head: dict[str, Any],
    spec: TrainingSpec,
    summary: TrainingSummary,
    *,
    num_rows: int,
    device: torch.device,
) -> dict[str, Any]:
    scores = {} if summary.evaluation is None else dict(summary.evaluation.metrics)
    best = spec.checkpoint.best if summary.is_best else None
    document = {
        **head,
        "steps": summary.step,
        "epochs": summary.epochs,
        "rows": num_rows,
        "loss": summary.last_loss if math.isfinite(summary.last_loss) else None,
        "scores": scores,
        "scored_step": None if summary.evaluation is None else summary.evaluation.step,
        "best_metric": best,
        "best_value": None if best is None else scores[best],
        "resumed": summary.resumed_step > 0,
        "resumed_step": summary.resumed_step,
        "seconds": summary.seconds,
        "samples_per_second": summary.rows_per_second,
        "micro_batch": summary.micro_batch,
        "accumulation": summary.accumulation,
        "slots": summary.num_slots,
        "device": device_name(device),
        "peak_memory_bytes": peak_memory_bytes(device),
    }
    (folder / "summary.json").write_bytes(
        orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    )
    return document


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of this process: on the device, or on the host for a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
