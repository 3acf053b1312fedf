"""Where the time of an inference job goes: seconds by stage, over all its leases, and which stage limits its speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from operator import add

from sqlalchemy import JSON, func, select
from sqlmodel import Session, col

from jobs.config.activities import Activity
from jobs.db.tables import Lease, LeaseCounts

STAGES = ("read", "encode", "wait", "forward", "decode", "commit")
"""The fields of `StageTimes` that are seconds since the model was ready."""
_BUSY_SHARE = 0.9
"""A device that computes for this share of the time or more is what limits a job."""


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds that each stage has worked. The stages of a lease run at the same time, so their sum may exceed the
    elapsed time."""

    read: float = 0.0
    """Time in which rows were read from the input."""
    encode: float = 0.0
    """Time in which rows were tokenized or decoded, and their tensors made."""
    wait: float = 0.0
    """Time in which the device had nothing to compute."""
    forward: float = 0.0
    """Time in which the device computed."""
    decode: float = 0.0
    """Time in which tensors were converted to outputs."""
    commit: float = 0.0
    """Time in which results were recorded."""
    load: float = 0.0
    """Time in which the model was loaded, before all other stages; 0 if the slot had it."""
    num_tokens: int = 0
    """Tokens of the computed rows without padding; 0 for text generation, which pads no rows."""
    num_padded_tokens: int = 0
    """Tokens of the computed rows with padding; 0 for text generation."""
    num_rows: int = 0
    """Recorded rows."""
    num_row_tokens: int = 0
    """Tokens of the recorded rows, text generation included, as their results count them."""

    @property
    def seconds(self) -> float:
        """Time since the model was ready, from which the speed of a slot follows."""
        return self.wait + self.forward

    @property
    def device_busy(self) -> float | None:
        """Share of the time in which the device computed, or None if nothing was computed."""
        seconds = self.forward + self.wait
        return self.forward / seconds if self.forward > 0 else None

    @property
    def padding(self) -> float | None:
        """Share of the computed tokens that are padding, or None if no padded batch was computed."""
        return 1 - self.num_tokens / self.num_padded_tokens if self.num_padded_tokens else None

    @property
    def limited_by(self) -> Activity | None:
        """The stage that limits the speed, or None if nothing was computed."""
        busy = self.device_busy
        if busy is None:
            return None
        if busy >= _BUSY_SHARE:
            return Activity.FORWARD
        before_and_after = (Activity.READ, Activity.ENCODE, Activity.DECODE, Activity.COMMIT)
        return max(before_and_after, key=lambda stage: getattr(self, stage.value))

    def __add__(self, other: StageTimes) -> StageTimes:
        return StageTimes(*map(add, astuple(self), astuple(other)))

    def as_json(self) -> dict[str, float]:
        """The value of the column `stage_times` of `lease_counts`."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


ADVICE: Mapping[Activity, str] = {
    Activity.FORWARD: "the device computes nearly all the time; more slots or a smaller dtype make the job faster",
    Activity.READ: "the device waits for input; put it on faster storage, or cut it into fewer, larger rows",
    Activity.ENCODE: "the device waits for tokenizers and media decoders; raise the setting encode_threads",
    Activity.DECODE: "the device waits for outputs to be converted; request less output per row",
    Activity.COMMIT: "the device waits for results to be recorded; use a faster database, or raise batching.chunk_rows",
}
"""What to change if a stage limits a job."""


def of_jobs(session: Session, job_ids: Sequence[str]) -> dict[str, StageTimes]:
    """The times of jobs by job id; jobs that have recorded nothing are absent."""
    if not job_ids:
        return {}
    times = func.coalesce(LeaseCounts.stage_times, Lease.stage_times, type_=JSON())
    query = (
        select(col(Lease.job_id), times)
        .join(LeaseCounts, col(LeaseCounts.lease_id) == col(Lease.id), isouter=True)
        .where(col(Lease.job_id).in_(job_ids), times.is_not(None))
    )
    found: dict[str, StageTimes] = {}
    for job_id, recorded in session.execute(query):
        found[job_id] = found.get(job_id, StageTimes()) + StageTimes(**recorded)
    return found
