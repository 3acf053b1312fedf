"""What would happen to a job if it were submitted now: the checks of a submission and a forecast, and no change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from jobs.config.access_rules import AccessRules
from jobs.config.times import LeaseTimes
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.ledger.accounts import usage
from jobs.ledger.job_pins import stamp_spec
from jobs.ledger.timing import rates
from jobs.ledger.timing.forecasts import Forecast
from jobs.ledger.timing.workloads import workload_of
from jobs.specs.fields import parse_time
from jobs.specs.inference import InferenceSpec, JobSpec, model_key
from scheduler.control.admission.promise_admission import assess, check_promise
from scheduler.control.admission.row_counts import count_job_rows
from scheduler.control.admission.submission import Submission, measure_size
from scheduler.control.dispatch.project_shares import project_facts
from scheduler.control.forecast_state import State, read_state
from scheduler.control.planning.planner import check_submission
from scheduler.forecast.simulate import QUEUE_HEAD, Work
from scheduler.forecast.spans import Moment, Span
from scheduler.policy.promises import Promise
from scheduler.policy.types import JobFacts

_MOST_WORK = 100_000
"""Most work of each run of the policy, see `scheduler.forecast.simulate.MOST_WORK`: a client waits for it."""
_NEW_JOB = "~"  # sorts after the id of every job
_LEAST_DELAY_SECONDS = 1.0
_LEAST_DELAY_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class JobPlan:
    """What would happen to a job if it were submitted now."""

    num_rows: int | None
    """Number of rows, or of steps of a training; None if counting them takes too long, or only a run can tell."""
    num_chunks: int | None
    """Number of chunks; None if unknown, and for a training."""
    forecast: Forecast
    slots: tuple[tuple[float, int], ...]
    """The numbers of slots that it would hold, each with the time from when on."""
    delays: Mapping[str, float]
    """Job id -> by how many seconds the end, or else the start, of another job would be later."""
    earliest_promise: float | None
    """The earliest time that would be taken as the job's promise; None if none would be."""


def plan_submission(
    spec: JobSpec, *, rules: AccessRules, times: LeaseTimes, store: Store, database: Database, project: str
) -> JobPlan:
    """Say what would happen to a job if it were submitted now. Changes nothing.

    Raises:
        UserError: The spec would be refused; see `check_submission` and `check_promise`.
        QueueFull: The project's queue has not enough room now.
        TooManyRows: The job would not fit even into an empty queue.
        ServiceUnavailable: The spec cannot be checked now.
    """
    needs = check_submission(spec, rules=rules, database=database, store=store, project=project)
    pins = stamp_spec(spec, rules)
    wanted = count_job_rows(spec, project=project, rules=rules, store=store, database=database)
    size = measure_size(spec, rules=rules, store=store, database=database, project=project)
    submission = Submission(spec, project, workload_of(spec, pins), needs, size)
    with database.read() as session:
        if wanted is not None:
            usage.check_room(session, project, wanted)
        state = read_state(session, times, rules.projects)
        facts = _facts(submission, state, times)
        known = rates.of_workloads(session, {submission.workload}).get(submission.workload, rates.UNKNOWN)
        facts = replace(
            facts,
            work_seconds=None if size.num_rows is None else known.work_seconds(size.num_rows, ()),
            loading_seconds=known.loading_seconds,
        )
        found = submission.estimates(session, state.slots)
        is_later = submission.comes_later(session)
        promise = assess(session, submission, state.slots, rules.projects)
        promised = None if spec.promise is None else check_promise(spec.promise, promise, state.now)
        projects = project_facts(session, {*state.projects, project}, rules.projects, state.now)
    amount = None if size.num_rows is None else float(size.num_rows)
    work = Work(facts, amount, {device: one.per_second for device, one in found.items()}, size.chunk_rows)
    before = state.spans(most_work=_MOST_WORK)
    state = state.beside(projects)
    if spec.promise is not None and promised is not None:
        admitted = Promise(project, parse_time(spec.promise), promised)
        state, work = state.with_promise(work, admitted)
    after = state.spans(work, most_work=_MOST_WORK)
    span = after.pop(facts.id)
    if is_later:  # for jobs that have not ended yet, for example; when they end is not part of the runs
        span = _no_earlier(span)
    said = state.said(facts.rank, span)
    delays = _delays(before, after, state.now)
    return JobPlan(size.num_rows, size.num_chunks, said, span.slots, delays, promise.earliest)


def _facts(submission: Submission, state: State, times: LeaseTimes) -> JobFacts:
    """The job as the policy would see it."""
    spec, num_chunks = submission.spec, submission.size.num_chunks
    most_chunks = QUEUE_HEAD + len(state.slots)
    is_elastic = isinstance(spec, InferenceSpec)
    return JobFacts(
        id=_NEW_JOB,
        rank=spec.priority.rank,
        created_at=state.now,
        elastic=is_elastic,
        gang_size=submission.gang_size,
        max_slots=submission.max_slots,
        pending_chunks=min(most_chunks if num_chunks is None else num_chunks, most_chunks) if is_elastic else 0,
        model_key=model_key(spec),
        not_before=0.0 if spec.start_at is None else parse_time(spec.start_at),
        preemptable_seconds=times.preemptable_seconds,
        needs=submission.needs,
        project=submission.project,
    )


def _no_earlier(span: Span) -> Span:
    def bound(moment: Moment | None) -> Moment | None:
        return None if moment is None else Moment(moment.at, is_bound=True)

    return Span(bound(span.start), bound(span.end), span.slots)


def _delays(before: Mapping[str, Span], after: Mapping[str, Span], now: float) -> dict[str, float]:
    delays: dict[str, float] = {}
    for job_id, span in before.items():
        for alone, behind in ((span.end, after[job_id].end), (span.start, after[job_id].start)):
            if alone is not None and behind is not None:
                seconds = behind.at - alone.at
                if seconds > _LEAST_DELAY_SECONDS + _LEAST_DELAY_SHARE * (alone.at - now):
                    delays[job_id] = seconds
                break
    return delays
