"""Make the children of arrays, a few at a time: an array of 100,000 costs as much as one of its `max_parallel`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import case, exists, func, literal, select, union_all
from sqlmodel import Session, col

from jobs.access.pins import Pins
from jobs.db.database import Database
from jobs.db.moves import move
from jobs.db.states import LIVE_JOB_STATES, JobState
from jobs.db.tables import Job, Metric
from jobs.db.transaction import Transaction
from jobs.errors import UserError
from jobs.ledger import families, jobs
from jobs.ledger.families import IS_ARRAY
from jobs.ledger.leasing import lost_work
from jobs.specs.array_spec import Value
from jobs.specs.inference import INFERENCE, JobSpec
from jobs.specs.sweep_spec import SweepField, SweptValue
from jobs.specs.training_options.training_metrics import Mode

_SPEC: Any = Job.spec  # the mapped column
_WORKING = (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class NewChild:
    """A child to make: its spec, or its document and the reason why it is no spec."""

    index: int
    spec: JobSpec | None
    document: dict[str, object]
    trial_values: Mapping[str, Value] | None = None
    """The values of a trial of a sweep."""
    pins: Pins | None = None
    error: UserError | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an array is."""

    num_made: int
    """Number of its children so far: the token of the next filling."""
    next_index: int
    """The lowest index that no child of this array has reached."""
    room: int
    """Number of children to make now."""


def to_fill(session: Session) -> list[str]:
    """Return the ids of the arrays that need children, or a child of which may be ready, oldest first."""
    num_live = col(Job.num_children) - col(Job.own_done)
    is_short = (col(Job.num_children) < col(Job.num_rows)) & (num_live < col(Job.max_slots) + col(Job.num_ahead))
    child = families.child
    of_array = (col(child.parent_id) == col(Job.id), col(child.state).in_(LIVE_JOB_STATES))
    num_ready = select(func.count()).where(*of_array, col(child.ready_at).is_not(None)).scalar_subquery()
    has_waiting = exists().where(*of_array, col(child.ready_at).is_(None))
    has_place = has_waiting & (num_ready < col(Job.max_slots))
    queued = col(Job.state) == literal(JobState.QUEUED, literal_execute=True)  # in the words of the index
    running = col(Job.state) == JobState.RUNNING
    # Two queries instead of one with an OR, each of which reads only the arrays or the running jobs.
    wanting = (select(col(Job.id)).where(IS_ARRAY, state, is_short | has_place) for state in (queued, running))
    return sorted(session.scalars(union_all(*wanting)))


def progress(session: Session, array: Job) -> Progress:
    """Read how far an array is."""
    last = session.scalar(select(func.max(col(Job.child_index))).where(col(Job.parent_id) == array.id))
    num_live = array.num_children - array.own_done
    room = min(array.num_rows - array.num_children, (array.max_slots or 1) + array.num_ahead - num_live)
    return Progress(array.num_children, 0 if last is None else last + 1, max(0, room))


def completed_before(session: Session, array: Job) -> set[int]:
    """Return the indexes whose children completed in the arrays that this one retries."""
    return _completed_in(session, families.retried(session, array))


def completed_so_far(session: Session, array: Job) -> set[int]:
    """Return the indexes whose children completed in this array or in those that it retries."""
    return _completed_in(session, (array, *families.retried(session, array)))


def _completed_in(session: Session, family: Iterable[Job]) -> set[int]:
    done: set[int] = set()
    for array in family:
        completed = (col(Job.parent_id) == array.id, col(Job.state) == JobState.COMPLETED)
        done.update(
            index for index in session.scalars(select(col(Job.child_index)).where(*completed)) if index is not None
        )
    return done


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial of a sweep."""

    index: int
    job_id: str
    state: JobState
    values: Mapping[str, SweptValue]
    """The values that the search gave to this trial."""
    value: float | None
    """The trial's value of the sweep's metric; None if it recorded none."""
    pruned_step: int | None = None
    """The step at which the sweep decided to end the trial early; None if it did not."""


def trials(session: Session, array: Job, sweep: SweepField) -> list[Trial]:
    """Return the trials of a sweep, and of those that it retries, by their index.

    The value of a trial is that of the weights it made: the last one that was recorded; if its `checkpoint.best` is the
    same metric, the best one.
    """
    sweep_ids = [array.id, *(before.id for before in families.retried(session, array))]
    recorded = (col(Metric.job_id) == col(Job.id), col(Metric.name) == sweep.metric, col(Metric.value).is_not(None))
    last = select(col(Metric.value)).where(*recorded).order_by(col(Metric.step).desc()).limit(1).scalar_subquery()
    extreme = func.min if sweep.best_mode == "min" else func.max
    best = select(extreme(col(Metric.value))).where(*recorded).scalar_subquery()
    keeps_best = _SPEC["checkpoint"]["best"].as_string() == sweep.metric
    columns = (col(Job.id), col(Job.child_index), col(Job.state), col(Job.trial_values), col(Job.pruned_step))
    found = session.execute(
        select(*columns, case((keeps_best, best), else_=last).label("value"))
        .where(col(Job.parent_id).in_(sweep_ids))
        .order_by(col(Job.child_index), col(Job.id))
    )
    return [
        Trial(
            row.child_index,
            row.id,
            row.state,
            sweep.drawn(row.child_index) if row.trial_values is None else row.trial_values,
            row.value,
            row.pruned_step,
        )
        for row in found
    ]


def winner_of(found: Sequence[Trial], mode: Mode) -> Trial | None:
    """Return the completed trial with the best value, of equal ones the first; None if none has a value."""
    valued = [trial for trial in found if trial.state == JobState.COMPLETED and trial.value is not None]
    sign = 1 if mode == "min" else -1
    return min(valued, key=lambda trial: (sign * (trial.value or 0.0), trial.index), default=None)


def fill(db: Database, array_id: str, num_made: int, children: Sequence[NewChild]) -> bool:
    """Make children of an array, and make ready as many as it has places for, in one transaction.

    Args:
        num_made: The number of children that the array must have; otherwise nothing is changed.
        children: The next children, lowest index first.

    Returns:
        Whether the array was as expected.
    """
    with db.write() as tx:
        array = families.lock_array(tx, array_id)
        if array.state not in _WORKING or array.num_children != num_made:
            return False  # it was cancelled, or another scheduler was first
        if array.state == JobState.QUEUED:
            move(array, JobState.RUNNING)
            array.started_at = tx.time()
        array.num_children += len(children)
        for child in children:
            _make(tx, array, child)
        if array.state == JobState.RUNNING:  # all of its children may have failed at once
            families.release(tx, array)
        return True


def _make(tx: Transaction, array: Job, child: NewChild) -> None:
    if child.spec is not None:
        try:
            jobs.add(
                tx,
                child.spec,
                project=array.project,
                child_of=(array.id, child.index),
                trial_values=child.trial_values,
                pins=child.pins,
            )
            return
        except UserError as error:  # it names a job that it cannot wait for
            failure: UserError = error
    else:
        assert child.error is not None
        failure = child.error
    kind = child.document.get("kind", INFERENCE)
    job = Job(
        id=jobs.new_job_id(),
        kind=kind if isinstance(kind, str) else INFERENCE,
        state=JobState.VALIDATING,
        spec=child.document,
        priority=array.priority,
        project=array.project,
        parent_id=array.id,
        child_index=child.index,
        trial_values=None if child.trial_values is None else dict(child.trial_values),
        created_at=tx.time(),
        ready_at=tx.time(),
    )
    tx.add(job)
    tx.record(job.id, "job.submitted", kind=job.kind)
    lost_work.fail_job(tx, job.id, failure.code, failure.message)


def children_by_state(session: Session, array_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return array id -> state -> number of its children in that state."""
    if not array_ids:
        return {}
    counted = (
        select(col(Job.parent_id), col(Job.state), func.count())
        .where(col(Job.parent_id).in_(array_ids))
        .group_by(col(Job.parent_id), col(Job.state))
    )
    found: dict[str, dict[str, int]] = {}
    for array_id, state, number in session.execute(counted):
        found.setdefault(array_id, {})[state.value] = number
    return found
