"""Checks, plans and fills arrays: makes their children as places come free."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterator, Mapping
from itertools import islice

from jobs.config.access_rules import AccessRules
from jobs.config.catalogue import with_catalogue
from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import Job
from jobs.errors import Conflict, InvalidSpec, NotFound, UserError
from jobs.ledger import jobs as job_ledger
from jobs.ledger import planning
from jobs.ledger.groups import arrays
from jobs.ledger.groups.arrays import NewChild
from jobs.ledger.job_pins import stamp_spec
from jobs.specs.array_spec import ARRAY, SWEEP, ArraySpec, Value, parse_submission
from jobs.specs.inference import parse_spec
from scheduler.control.planning.array_values import copy_file, copy_retried, has_values, read_file, values_from
from scheduler.control.planning.planner import check_submission, plan_job
from scheduler.control.planning.trial_search import check_search, proposals

logger = logging.getLogger(__name__)

_CHECKED_CHILDREN = 1000
"""Number of children to make, from the first, whose specs are checked at submission; others when they are made."""
_MADE_AT_ONCE = 50  # children of one transaction, so that others do not wait long for the write lock


def check_array(
    spec: ArraySpec,
    settings: Settings,
    *,
    store: Store,
    database: Database,
    project: str,
    retried: Job | None = None,
) -> None:
    """Check the first child of an array like a job that is submitted, and the fields of the next ones.

    Args:
        retried: The ended array that this one retries. Its copy of the values is read, not their file, and its
            completed children, which the retry does not make, are not checked.

    Raises:
        UserError: A child cannot be used; the message names the field.
        ServiceUnavailable: A store or remote file cannot be reached, so the spec cannot be checked now.
    """
    done: Container[int] = ()
    if retried is not None:
        with database.read() as session:
            done = arrays.completed_so_far(session, retried)
    if retried is not None and has_values(spec, retried.id, store):
        listed = values_from(spec, retried.id, store, 0)
    elif spec.file is not None:
        listed = enumerate(read_file(spec, rules=settings, store=store, database=database, project=project))
    else:
        listed = enumerate(spec.listed())
    is_first = True
    for index, values in islice((one for one in listed if one[0] not in done), _CHECKED_CHILDREN):
        child = spec.child(index, values)
        if child.after or child.start_at is not None:
            raise InvalidSpec("array: `after` and `start_at` belong to the whole array", param=ARRAY)
        if child.promise is not None and retried is None:  # a retry keeps no promise, whatever its spec says
            field = ARRAY if spec.sweep is None else SWEEP
            message = f"promise: cannot be used with `{field}`, whose children are not admitted when it is submitted"
            raise InvalidSpec(message, param="promise")
        if spec.sweep is not None:
            check_search(spec.sweep)
            spec.sweep.check_trial(child)
        if is_first:
            first = with_catalogue(child, settings.models)
            check_submission(first, rules=settings, store=store, database=database, project=project)
        is_first = False


def plan_any(
    db: Database, store: Store, rules: AccessRules, job_id: str, *, is_wanted: Callable[[], bool] = lambda: True
) -> None:
    """Move a validating job or array to `queued`, or to `failed` after a user error; see `planner.plan_job`."""
    with db.read() as session:
        job = job_ledger.get(session, job_id)
    if job.kind != ARRAY:
        plan_job(db, store, rules, job_id, is_wanted=is_wanted)
        return
    if job.state != JobState.VALIDATING:
        return
    try:
        number = _count(db, store, rules, job, is_wanted)
        planning.enqueue(db, job_id, num_rows=number)
    except (Conflict, InterruptedError) as error:
        logger.info("stopped planning array %s: %s", job_id, error)
    except UserError as error:
        logger.info("cannot plan array %s: %s", job_id, error)
        job_ledger.fail(db, job_id, error)
    else:
        logger.info("array %s has %d children to make", job_id, number)


def _count(db: Database, store: Store, rules: AccessRules, job: Job, is_wanted: Callable[[], bool]) -> int:
    """Count the children to make, and copy their values if they are in a file."""
    spec = _spec_of(job)
    number = spec.num_listed
    if number is None and job.retry_of is not None:
        number = copy_retried(job.id, job.retry_of, store)
    if number is None:
        number = copy_file(
            spec, job.id, rules=rules, store=store, database=db, project=job.project, is_wanted=is_wanted
        )
    with db.read() as session:
        num_left = number - len(arrays.completed_before(session, job))
    if num_left == 0:
        raise InvalidSpec("array: all of its children have completed already", param=ARRAY)
    return num_left


def fill_array(
    db: Database, store: Store, settings: Settings, array_id: str, *, is_wanted: Callable[[], bool] = lambda: True
) -> None:
    """Make children of an array until it has no room for more.

    If this is killed, the children of the last transaction exist or do not; the next call makes the others.

    Raises:
        MachineError: A service could not be reached; try again later.
    """
    while is_wanted():
        with db.read() as session:
            try:
                array = job_ledger.get(session, array_id)
            except NotFound:
                return
            progress = arrays.progress(session, array)
            done = arrays.completed_before(session, array)
        children: list[NewChild] = []
        if progress.room:
            spec = _spec_of(array)
            left = _values_left(db, store, spec, array, progress.next_index, done)
            children = [
                _new_child(spec, index, values, settings)
                for index, values in islice(left, min(progress.room, _MADE_AT_ONCE))
            ]
        if not arrays.fill(db, array_id, progress.num_made, children) or not children:
            return
        logger.info("array %s: made %d children, up to number %d", array_id, len(children), children[-1].index)


def _values_left(
    db: Database, store: Store, spec: ArraySpec, array: Job, start: int, done: Container[int]
) -> Iterator[tuple[int, Mapping[str, Value]]]:
    """Yield index and values of the children from one of them on, without those that are done."""
    if spec.sweep is None or not spec.sweep.is_adaptive:
        yield from (one for one in values_from(spec, array.id, store, start) if one[0] not in done)
        return
    with db.read() as session:
        trials = arrays.trials(session, array, spec.sweep)
    yield from proposals(
        spec.sweep, trials, (number for number in range(start, spec.sweep.trials) if number not in done)
    )


def _new_child(spec: ArraySpec, index: int, values: Mapping[str, Value], settings: Settings) -> NewChild:
    document, trial_values = spec.template, None if spec.sweep is None else values
    try:
        document = spec.document_of(index, values)
        child = with_catalogue(parse_spec(document), settings.models)
        return NewChild(index, child, document, trial_values, pins=stamp_spec(child, settings))
    except UserError as error:
        return NewChild(index, None, document, trial_values, error=error)


def _spec_of(array: Job) -> ArraySpec:
    spec = parse_submission(array.spec)
    assert isinstance(spec, ArraySpec)
    return spec
