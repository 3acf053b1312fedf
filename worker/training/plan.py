"""The plan of one attempt: the JSON file from which its training processes read what to train, and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import orjson

from jobs.specs.training import TrainingSpec


@dataclass(frozen=True, slots=True)
class Plan:
    """What one attempt trains, and where."""

    job_id: str
    spec: TrainingSpec
    folder: str
    """An existing folder for all files that this attempt writes; no other attempt uses it."""
    device: str
    """`cuda` or `cpu`."""
    num_threads: int
    """Number of CPU threads of one operation. A different number changes the last bits of every result."""
    model: str | None = None
    """Folder of the model to start from. None if a configuration or a module makes the model."""
    processor: str | None = None
    """Folder of the tokenizer or processor, if it is not in the model's folder."""
    resume: str | None = None
    """Folder of a verified checkpoint to resume from. The process must not change it."""
    goes_on: bool = False
    """Whether the checkpoint in `resume` is from this job. If so, the module is run as it was saved with the
    checkpoint. A retry of another job runs the module as it is now."""
    cache: str | None = None
    """Folder for prepared rows, by the hash of their content; it is kept after the attempt."""
    num_ranks: int = 1
    """Number of processes that train together, one on each slot of the gang."""
    num_halvings: int = 0
    """How many times to halve the micro-batch (and double the accumulation) after earlier attempts ran out of
    memory."""

    def write(self, path: Path) -> None:
        """Write the plan to a file."""
        path.write_bytes(orjson.dumps(self, default=lambda spec: spec.model_dump(mode="json")))

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read a plan from a file."""
        fields = orjson.loads(path.read_bytes())
        return cls(**{**fields, "spec": TrainingSpec.model_validate(fields["spec"])})
