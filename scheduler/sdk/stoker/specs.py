"""The specs of jobs as types. An invalid field raises an error when the spec is created, before anything is sent."""

from __future__ import annotations

from typing import Literal

from jobs.specs.fields import InputSpec, Priority
from jobs.specs.inference import BatchingSpec, InferenceSpec, JobSpec, OutputSpec, SlotsSpec
from jobs.specs.training import ArchitectureSpec, CheckpointSpec, DataSpec, LoraSpec
from jobs.specs.training import TrainingSpec as FullTrainingSpec

__all__ = [
    "ArchitectureSpec", "BatchingSpec", "CheckpointSpec", "DataSpec", "InferenceSpec", "InputSpec", "JobSpec",
    "LoraSpec", "OutputSpec", "Priority", "SlotsSpec", "TrainingSpec",
]  # fmt: skip


class TrainingSpec(FullTrainingSpec):
    """A training job."""

    kind: Literal["training"] = "training"
