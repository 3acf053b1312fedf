"""What an array and its children do to each other: places for children, counts, and the end of the array.

The row of the array is locked for all of it. A transaction that changes both locks children before their array; it
takes further children under the array's lock only if nobody else holds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, exists, func, select
from sqlalchemy.orm import aliased, defer
from sqlmodel import Session, col

from jobs.db.moves import move
from jobs.db.states import LIVE_JOB_STATES, JobState
from jobs.db.tables import Dependency, Job
from jobs.db.transaction import Transaction
from jobs.errors import ChildrenFailed
from jobs.ledger.dependencies import make_ready
from jobs.messages import counted
from jobs.specs.array_spec import ARRAY, SWEEP

_SPEC: Any = Job.spec  # the mapped column
child = aliased(Job)
"""The table of jobs, where it stands for the children of a job in a query."""
HAS_LIVE_CHILD: ColumnElement[bool] = exists().where(
    col(child.parent_id) == col(Job.id), col(child.state).in_(LIVE_JOB_STATES)
)
"""The condition that a job has children that have not ended."""
IS_ARRAY: ColumnElement[bool] = col(Job.kind) == ARRAY


def lock_array(tx: Transaction, array_id: str) -> Job:
    """Lock the row of an array, and read it as it is then."""
    locked = select(Job).where(col(Job.id) == array_id).with_for_update()
    locked = locked.options(defer(_SPEC))  # its list of values may be megabytes
    return tx.scalars(locked.execution_options(populate_existing=True)).one()


def retried(session: Session, array: Job) -> Iterator[Job]:
    """Yield the array that this one retries, the one that that one retried, and so on, as far as they are kept."""
    before: Job | None = array
    while before is not None and before.retry_of is not None:
        before = session.get(Job, before.retry_of)
        if before is not None:
            yield before


def release(tx: Transaction, array: Job) -> int:
    """Make waiting children of a locked array ready, the lowest first, as many as there are places for.

    Returns:
        The number of these children.
    """
    tx.flush()
    is_child = col(Job.parent_id) == array.id
    is_ready = (col(Job.state).in_(LIVE_JOB_STATES), col(Job.ready_at).is_not(None))
    ready = select(func.count()).select_from(Job).where(is_child, *is_ready)
    num_free = (array.max_slots or 1) - (tx.scalar(ready) or 0)
    if num_free <= 0:
        return 0
    waits_for_other = exists().where(col(Dependency.job_id) == col(Job.id))
    waiting = (
        select(Job)
        .where(is_child, col(Job.state) == JobState.VALIDATING, col(Job.ready_at).is_(None), ~waits_for_other)
        .order_by(col(Job.child_index))
        .limit(num_free)
        .with_for_update(skip_locked=True)
    )
    released = list(tx.scalars(waiting))
    for one in released:
        make_ready(one, tx.time())
    return len(released)


def count_end(tx: Transaction, array_id: str, state: JobState) -> tuple[JobState, dict[str, Any]] | None:
    """Count the end of a child, give its place to the next one, and end the array with its last child.

    Args:
        state: The child's terminal state, which the caller has set in this transaction.

    Returns:
        The terminal state of the array and what its event says, if it has ended now. The caller records its end.
    """
    tx.flush()
    array = lock_array(tx, array_id)
    array.own_done += 1
    array.own_failed += state != JobState.COMPLETED
    if array.state == JobState.CANCELLING:
        return end_if_cancelling(tx, array)
    if array.state != JobState.RUNNING:
        return None
    release(tx, array)
    return end_if_done(tx, array)


def end_if_done(tx: Transaction, array: Job) -> tuple[JobState, dict[str, Any]] | None:
    """End a locked array whose children have all ended; if all completed, the finalizer completes it. One trial that
    completed suffices for a sweep."""
    if array.own_done < array.num_rows:
        return None
    is_sweep = array.own_failed and array.own_failed < array.own_done and array.spec.get(SWEEP)
    if array.own_failed == 0 or is_sweep:  # a trial that failed only cannot win
        move(array, JobState.FINALIZING)
        tx.record(array.id, "job.finalizing")
        return None
    error = ChildrenFailed(
        f"{array.own_failed} of {counted(array.num_rows, 'child', 'children')} did not complete; `stoker retry` runs "
        "these again"
    )
    move(array, JobState.FAILED)
    array.ended_at, array.error_code, array.error_message = tx.time(), error.code, error.message
    tx.flush()
    return JobState.FAILED, {"code": error.code, "reason": error.message}


def end_if_cancelling(tx: Transaction, array: Job) -> tuple[JobState, dict[str, Any]] | None:
    """Cancel a locked array that is being cancelled and whose last child has ended."""
    tx.flush()
    if tx.scalar(select(HAS_LIVE_CHILD).where(col(Job.id) == array.id)):
        return None
    move(array, JobState.CANCELLED)
    array.ended_at = tx.time()
    tx.flush()
    return JobState.CANCELLED, {}
