"""What one attempt's training process is told, as a JSON file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import orjson

from jobs.specs.training import TrainingSpec


@dataclass(frozen=True, slots=True)
class Plan:
    """One attempt."""

    job_id: str
    spec: TrainingSpec
    folder: str
    """An existing folder of this attempt's own, for everything that it writes."""
    device: str
    """`cuda` or `cpu`."""
    num_threads: int
    """CPU threads of one operation. Another number changes the last bits of every result."""
    model: str | None = None
    """The folder of the model to start from; None where it is made from a configuration, or by a module."""
    processor: str | None = None
    """The folder of the tokenizer or processor, where it is not the model's own."""
    resume: str | None = None
    """The folder of a verified checkpoint to go on from; the process must not change it."""
    goes_on: bool = False
    """Whether `resume` is this very job's: its module then goes on as it was. A retry has its module as it is now."""
    cache: str | None = None
    """A folder that outlives the attempt, for data that are prepared once (by their content's hash)."""
    num_ranks: int = 1
    """Processes that compute together, one on each slot of a gang."""
    num_halvings: int = 0
    """How often the micro-batch is to be halved (and the accumulation doubled) for want of memory."""

    def write(self, path: Path) -> None:
        """Write it as a file."""
        path.write_bytes(orjson.dumps(self, default=lambda spec: spec.model_dump(mode="json")))

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read it back."""
        fields = orjson.loads(path.read_bytes())
        return cls(**{**fields, "spec": TrainingSpec.model_validate(fields["spec"])})
