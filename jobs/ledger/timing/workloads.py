"""What decides how fast a job is: its model, its task, and the settings that change the work of a row or step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import orjson

from jobs.access.pins import Pin, PinnedFiles, PinnedRevision, Pins
from jobs.specs.inference import InferenceSpec, JobSpec
from jobs.specs.training import ArchitectureSpec, TrainingSpec

_WORK_OF_A_ROW = ("max_new_tokens", "n", "num_return_sequences")
"""Parameters of inference that change how much is computed for a row."""
_ONLY_COUNT_STEPS = frozenset({"max_steps", "num_train_epochs", "learning_rate", "seed", "data_seed"})
"""Training arguments that do not change the work of a step."""
_DIGEST_CHARACTERS = 16


@dataclass(frozen=True, slots=True)
class Workload:
    """Jobs with equal workloads are equally fast on equal slots, as far as can be known before they run."""

    model: str
    """The model, architecture or module as the spec names it."""
    revision: str
    """The commit of a hub id, or a digest of the names and sizes of the model's files; empty if unknown."""
    task: str
    settings: str
    """Digest of the settings that change the work of a row or step; empty if there are none."""
    dtype: str

    def as_json(self) -> dict[str, str]:
        """The value of the column `workload` of a job."""
        return asdict(self)

    def with_commit(self, pin: Pin | None) -> Workload:
        """The workload with the commit that the first runner of the job has pinned, if there is one."""
        return replace(self, revision=pin.revision) if isinstance(pin, PinnedRevision) else self


def workload_of(spec: JobSpec, pins: Pins | None) -> Workload:
    """The workload of a job.

    Args:
        pins: The pins of the job; those made at submission are enough.
    """
    pins = pins or Pins()
    if isinstance(spec, InferenceSpec):
        chosen = {name: spec.parameters[name] for name in _WORK_OF_A_ROW if spec.parameters.get(name) is not None}
        settings = chosen if spec.engine == "auto" else {**chosen, "engine": spec.engine}
        return Workload(spec.model, _revision(pins.model), spec.task, _digest(settings), spec.dtype)
    revision = _revision(pins.model or pins.module)
    if isinstance(spec.model, ArchitectureSpec):
        model, revision = spec.model.architecture, _digest(spec.model.config)
    else:
        model = spec.model or spec.module or ""
    return Workload(model, revision, f"training {spec.task or spec.trainer}", _digest(_of_a_step(spec)), spec.dtype)


def _of_a_step(spec: TrainingSpec) -> dict[str, Any]:
    return {
        "arguments": {name: value for name, value in spec.arguments.items() if name not in _ONLY_COUNT_STEPS},
        "options": spec.options,
        "max_length": None if spec.data is None else spec.data.max_length,
        "lora": None if spec.lora is None else spec.lora.model_dump(),
    }


def _revision(pin: Pin | None) -> str:
    match pin:
        case PinnedRevision(revision):
            return revision
        case PinnedFiles(files):
            return _digest({file.name: file.num_bytes for file in files})
        case _:
            return ""


def _digest(values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    canonical = orjson.dumps(values, option=orjson.OPT_SORT_KEYS, default=str)
    return hashlib.sha256(canonical).hexdigest()[:_DIGEST_CHARACTERS]
