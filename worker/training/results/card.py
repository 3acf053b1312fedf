"""Writes a trained model's card: the data, metrics, arguments and versions of the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from jobs.specs.inference import TrainingSpec
from jobs.specs.training import ArchitectureSpec
from worker.training.modules.user_module import Parts
from worker.training.results.weights import num_learned


def write_card(path: Path, spec: TrainingSpec, facts: Sequence[str], summary: Mapping[str, Any]) -> None:
    """Write the card of a model of transformers, with the header that the hub reads.

    Args:
        path: The path of `README.md`.
        spec: The job's spec.
        facts: Sentences about the data, from the task.
        summary: The content of `summary.json`.
    """
    from_scratch = isinstance(spec.model, ArchitectureSpec)
    start = spec.model.architecture if isinstance(spec.model, ArchitectureSpec) else spec.model
    assert spec.data is not None
    header = ["---", "library_name: transformers", f"pipeline_tag: {spec.task}"]
    if isinstance(start, str) and not from_scratch and not start.startswith(("/", "job:")):
        header.append(f"base_model: {start.partition('@')[0]}")
    lines = [
        *header,
        "---",
        "",
        f"# {spec.name or f'{spec.task} model'}",
        "",
        f"A {start}, trained from scratch." if from_scratch else f"Fine-tuned from `{_tail(str(start), 2)}`.",
        *facts,
        "",
        "| | |",
        "|---|---|",
        f"| trained on | {summary['rows']:,} rows of `{_file_names(spec.data.train)}` |",
        *(f"| evaluated on | `{_file_names(rows)}` |" for rows in (spec.data.eval or spec.data.eval_split,) if rows),
        *(f"| {name} | {value:.6g} |" for name, value in summary["scores"].items()),
        *_training_lines(spec, summary),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_parts_card(path: Path, spec: TrainingSpec, parts: Parts, summary: Mapping[str, Any]) -> None:
    """Write the card of the models of a user's module.

    Args:
        path: The path of `README.md`.
        spec: The job's spec.
        parts: What the module built.
        summary: The content of `summary.json`.
    """
    name = _tail(spec.module or "", 1)
    lines = [
        "---",
        "library_name: pytorch",
        "---",
        "",
        f"# {spec.name or name}",
        "",
        f"Trained by `{name}`, which is saved here as `module.py`; its `build` makes the models for these weights.",
        *parts.facts,
        "",
        "| | |",
        "|---|---|",
        *(f"| `{name}.safetensors` | {number:,} trained weights |" for name, number in num_learned(parts).items()),
        f"| trained on | {summary['rows']:,} rows{_of_files(None if spec.data is None else spec.data.train)} |",
        *([] if parts.eval_data is None else [f"| evaluated on | {len(parts.eval_data):,} rows |"]),
        *(f"| {name} | {value:.6g} |" for name, value in summary["scores"].items()),
        *(f"| {name} | {value} |" for name, value in spec.options.items()),
        *_training_lines(spec, summary),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _training_lines(spec: TrainingSpec, summary: Mapping[str, Any]) -> list[str]:
    slots = f" on each of {summary['slots']} slots" if summary["slots"] > 1 else ""
    return [
        f"| steps, epochs | {summary['steps']:,}, {summary['epochs']:.2f} |",
        f"| micro-batch, accumulation | {summary['micro_batch']}{slots}, {summary['accumulation']} |",
        *(f"| {name} | {value} |" for name, value in spec.arguments.items()),
        f"| device | {summary['device']} |",
        f"| versions | torch {torch.__version__}, transformers {version('transformers')} |",
    ]


def _of_files(paths: str | list[str] | None) -> str:
    return "" if paths is None else f" of `{_file_names(paths)}`"


def _file_names(paths: str | list[str]) -> str:
    return ", ".join(_tail(path, 1) for path in ([paths] if isinstance(paths, str) else paths))


def _tail(path: str, num_parts: int) -> str:
    """Return the last parts of an absolute path, so that the card does not show folders of this host."""
    return "/".join(path.rstrip("/").split("/")[-num_parts:]) if path.startswith("/") else path
