"""The keeper's decisions, with a clock that the test sets: no runner outlives its lease, no chunk is blamed wrongly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.config.activities import Activity, stall_limits
from jobs.config.settings import Settings
from jobs.db.states import StopReason
from jobs.errors import InvalidModel, RunnerDied, RunnerStalled, ServiceUnavailable
from worker.keeper.decisions import (
    Decision,
    Ending,
    EndRecord,
    Event,
    HeldLease,
    RenewalRefused,
    Renewed,
    Rules,
    RunnerAction,
    StartLease,
    StopRequested,
)
from worker.keeper.runner_pool import RunnerBroken, RunnerUp
from worker.keeper.runner_process import Exited
from worker.stop import Outcome
from worker.wire.protocol import Done, Failed, Lost, StopLease
from worker.wire.pulse import Beat

RULES = Rules(lease_seconds=16.0, grace_seconds=10.0, stall_limits=stall_limits(300.0, {}))
FRESH = HeldLease(RULES, held_until=16.0)
UP = RunnerUp(None)  # type: ignore[arg-type]  # decisions never look at the runner itself


def after(*what: Event, now: float = 1.0, start: HeldLease = FRESH) -> tuple[HeldLease, Decision | None]:
    held, decision = start, None
    for one in what:
        held, decision = held.on_event(one, now)
    return held, decision


FORWARD = Beat("main", Activity.FORWARD, chunk=64)
WORKING, _ = after(UP, Beat(), FORWARD)


def ending(*what: Event, start: HeldLease = WORKING) -> Ending:
    _, decision = after(*what, start=start)
    assert isinstance(decision, Ending)
    return decision


def test_a_runner_is_given_the_lease_once() -> None:
    held, decision = after(UP)
    assert decision == StartLease()
    assert after(UP, start=held)[1] is None


@pytest.mark.parametrize(
    ("what", "record", "runner_action", "computing"),
    [
        (Done(Outcome.DRAINED), EndRecord.DRAINED, RunnerAction.KEEP, None),
        (Done(Outcome.STOPPED), EndRecord.RELEASE, RunnerAction.KEEP, None),
        (Lost(), EndRecord.NOTHING, RunnerAction.KEEP, None),
        (RenewalRefused(), EndRecord.NOTHING, RunnerAction.KILL, None),
        (Exited("was ended by SIGKILL"), EndRecord.CRASH, RunnerAction.KEEP, 64),
        (RunnerBroken("no memory"), EndRecord.RELEASE, RunnerAction.KEEP, None),
        (
            Failed("invalid_model", "no", None, is_users=True, is_poisoned=False),
            EndRecord.FAIL_JOB,
            RunnerAction.KEEP,
            None,
        ),
        (
            Failed("out_of_memory", "no", None, is_users=False, is_poisoned=False),
            EndRecord.CRASH,
            RunnerAction.KEEP,
            64,
        ),
        (Failed("machine_error", "no", None, is_users=False, is_poisoned=True), EndRecord.CRASH, RunnerAction.KILL, 64),
    ],
)
def test_each_kind_of_end_is_recorded(
    what: Event, record: EndRecord, runner_action: RunnerAction, computing: int | None
) -> None:
    made = ending(what)
    assert (made.record, made.runner_action, made.computing) == (record, runner_action, computing)


def test_an_error_keeps_its_class_over_the_pipe() -> None:
    made = ending(Failed("invalid_model", "no such thing", "model", is_users=True, is_poisoned=False))
    assert isinstance(made.error, InvalidModel)
    assert (made.error.message, made.error.param) == ("no such thing", "model")


def test_a_death_outside_any_chunk_is_the_jobs() -> None:
    made = ending(Beat(), Exited("was ended by SIGSEGV"))
    assert isinstance(made.error, RunnerDied)
    assert made.computing is None


def test_a_runner_that_died_idle_is_not_the_jobs_fault() -> None:
    held, decision = after(UP, Exited("was ended by SIGKILL"))
    assert decision is None
    assert after(UP, start=held)[1] == StartLease(), "the next runner gets the lease"


def test_runners_that_cannot_read_their_order_are_not_started_without_end() -> None:
    held, num_deaths = FRESH, 0
    decision: Decision | None = None
    while decision is None:
        held, decision = after(UP, Exited("exited with code 1"), start=held)
        num_deaths += 1
        assert num_deaths < 20
    assert isinstance(decision, Ending)
    assert (decision.record, decision.computing) == (EndRecord.CRASH, None)
    assert decision.reason == f"{num_deaths} runners died before they began the job; the last one exited with code 1"


def test_a_runner_that_never_begins_is_killed() -> None:
    held, _ = after(UP, start=replace(FRESH, held_until=1e9))
    assert held.due() == 901.0
    assert held.overdue(900.9) is None
    made = held.overdue(901.0)
    assert made is not None
    assert (made.record, made.runner_action) == (EndRecord.CRASH, RunnerAction.KILL)
    assert made.reason == "the runner did not begin the job within 900 s and was killed"
    started, _ = after(Beat(), start=held)
    assert started.overdue(902.0) is None


def test_a_service_that_is_away_blames_no_chunk_and_waits() -> None:
    made = ending(Failed("service_unavailable", "away", None, is_users=False, is_poisoned=False))
    assert (made.record, made.runner_action, made.pause) == (EndRecord.RELEASE, RunnerAction.KEEP, True)


def test_a_lease_that_is_not_renewed_in_time_ends_its_runner() -> None:
    held, _ = after(Renewed(sent_at=4.0, stop=None), start=WORKING)
    assert held.due() == 20.0, "it lasts from when the question was asked, not from its answer"
    assert held.overdue(19.9) is None
    made = held.overdue(20.0)
    assert made is not None
    assert (made.record, made.runner_action) == (EndRecord.RELEASE, RunnerAction.KILL)
    assert isinstance(made.error, ServiceUnavailable)


def test_a_late_answer_never_shortens_a_lease() -> None:
    held, _ = after(Renewed(8.0, None), Renewed(4.0, None), start=WORKING)
    assert held.held_until == 24.0


FOREVER = replace(WORKING, held_until=1e9)
READ, ENCODE = Beat("feed-read", Activity.READ, chunk=96), Beat("feed-encode", Activity.ENCODE, chunk=80)


def test_a_chunk_without_progress_is_blamed_as_for_a_crash() -> None:
    assert FOREVER.overdue(300.9) is None
    made = FOREVER.overdue(301.0)
    assert made is not None
    assert (made.record, made.runner_action, made.computing) == (EndRecord.CRASH, RunnerAction.KILL, 64)
    assert isinstance(made.error, RunnerStalled)
    assert made.reason == "computing rows from 64 made no progress for 300 s; the runner was killed"
    beating, _ = after(FORWARD, now=300.0, start=FOREVER)
    assert beating.overdue(599.9) is None


def test_a_runner_that_waits_is_never_stalled() -> None:
    waiting, _ = after(Beat(), start=FOREVER)
    assert waiting.overdue(1e6) is None
    assert waiting.due() == 1e9


@pytest.mark.parametrize("activity", Activity)
def test_every_activity_has_its_limit(activity: Activity) -> None:
    limits = {**stall_limits(300.0, {}), activity: 7.0}
    start = replace(FRESH, rules=replace(RULES, stall_limits=limits), held_until=1e9)
    busy, _ = after(UP, Beat("s", activity), start=start)
    assert busy.overdue(7.9) is None
    made = busy.overdue(8.0)
    assert made is not None
    assert isinstance(made.error, RunnerStalled)


def test_a_stalled_load_fails_the_job_with_a_reason() -> None:
    loading, _ = after(UP, Beat("main", Activity.LOAD), start=replace(FRESH, held_until=1e9))
    assert loading.overdue(900.9) is None
    made = loading.overdue(901.0)
    assert made is not None
    assert (made.record, made.runner_action, made.computing) == (EndRecord.CRASH, RunnerAction.KILL, None)
    assert made.reason == "loading the model made no progress for 900 s; the runner was killed"


def test_a_store_that_hangs_is_no_rows_fault() -> None:
    committing, _ = after(Beat("main"), Beat("writer", Activity.COMMIT, chunk=64), start=FOREVER)
    made = committing.overdue(601.0)
    assert made is not None
    assert made.computing is None


def test_a_hung_reader_is_found_however_busy_the_others_are() -> None:
    held, _ = after(READ, start=FOREVER)
    for now in range(1, 301):
        held, _ = after(FORWARD, replace(ENCODE, chunk=now), now=float(now), start=held)
    made = held.overdue(301.0)
    assert made is not None
    assert made.computing == READ.chunk
    assert made.reason.startswith("reading rows from 96 ")


def test_a_thread_that_holds_up_all_others_is_blamed_and_not_they() -> None:
    """A regular expression lets no other thread run: the thread that reported last hangs, not the overdue one."""
    held, _ = after(ENCODE, now=1.5, start=FOREVER)
    made = held.overdue(301.0)
    assert made is not None
    assert made.computing == ENCODE.chunk


def test_a_limit_grows_with_the_speed_that_was_seen() -> None:
    held, _ = after(FORWARD, now=201.0, start=FOREVER)
    assert held.overdue(1200.9) is None, "a pass took 200 s, so the next may take five times that"
    assert held.overdue(1201.0) is not None


def test_what_a_thread_waited_does_not_count_as_slowness() -> None:
    held, _ = after(Beat("main"), now=2.0, start=FOREVER)
    held, _ = after(FORWARD, now=290.0, start=held)
    assert held.overdue(590.0) is not None


@pytest.mark.parametrize(
    ("beats", "blamed"),
    [((READ,), 64), ((Beat("main"), READ), 96), ((Beat("main"), Beat("main", Activity.LOAD)), None)],
    ids=["in the model", "on its way there", "no chunk"],
)
def test_a_death_is_blamed_on_the_chunk_nearest_to_the_model(beats: tuple[Beat, ...], blamed: int | None) -> None:
    held, _ = after(*beats, start=WORKING)
    assert ending(Exited("was ended by SIGSEGV"), start=held).computing == blamed


def test_a_runners_activity_is_reported_with_its_start() -> None:
    step = Beat("ranks", Activity.STEP, step=6)
    held, _ = after(UP, Beat(), step, now=2.0)
    held, _ = after(step, now=30.0, start=held)
    assert held.foremost is not None
    assert (held.foremost.in_words, held.foremost.since) == ("training step 6", 2.0)
    assert after(Beat("ranks"), start=held)[0].foremost is None


def test_recording_is_given_as_long_as_it_waits_for_the_database() -> None:
    rules = Rules.of(Settings(stall_seconds=1.0, lease_seconds=30.0, stall_limits={"load": 5.0}))
    assert rules.stall_limits[Activity.COMMIT] == 60.0
    assert rules.stall_limits[Activity.LOAD] == 5.0
    assert rules.stall_limits[Activity.STEP] == 3.0


def test_a_cancel_is_relayed_once_and_the_grace_then_ends() -> None:
    held, decision = after(Renewed(1.0, StopReason.CANCEL), start=WORKING)
    assert decision == StopLease(StopReason.CANCEL)
    again, decision = after(Renewed(5.0, StopReason.CANCEL), now=5.0, start=held)
    assert decision is None
    made = again.overdue(11.0)
    assert made is not None, "a second heartbeat must not prolong the grace"
    assert (made.record, made.runner_action) == (EndRecord.RELEASE, RunnerAction.KILL)


def test_a_yielding_runner_may_finish_its_chunk_however_long_it_takes() -> None:
    held, decision = after(Renewed(1.0, StopReason.YIELD), start=replace(WORKING, held_until=1e9))
    assert decision == StopLease(StopReason.YIELD)
    assert held.kill_at is None
    stronger, decision = after(StopRequested(StopReason.SHUTDOWN), now=2.0, start=held)
    assert decision == StopLease(StopReason.SHUTDOWN)
    assert stronger.kill_at == 12.0


def test_a_stop_before_the_runner_is_up_ends_the_lease() -> None:
    made = ending(StopRequested(StopReason.SHUTDOWN), start=FRESH)
    assert (made.record, made.runner_action) == (EndRecord.RELEASE, RunnerAction.KEEP)
