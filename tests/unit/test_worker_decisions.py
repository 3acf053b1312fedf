"""What a keeper decides, with the time in the test's hands: nothing outlives its lease, nobody is blamed wrongly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.errors import InvalidModel, RunnerDied, RunnerStalled, ServiceUnavailable
from worker.decisions import (
    Decision,
    Ending,
    Fate,
    Give,
    Happening,
    Holding,
    Record,
    RenewalRefused,
    Renewed,
    Rules,
    StopAsked,
)
from worker.protocol import Beat, Done, Failed, Halt, Lost
from worker.runner_process import Exited
from worker.standby import RunnerBroken, RunnerUp
from worker.stop import StopReason

RULES = Rules(lease_seconds=16.0, grace_seconds=10.0, stall_seconds=300.0)
FRESH = Holding(RULES, held_until=16.0)
UP = RunnerUp(None)  # type: ignore[arg-type]  # decisions never look at the runner itself


def after(*what: Happening, now: float = 1.0, start: Holding = FRESH) -> tuple[Holding, Decision | None]:
    holding, decision = start, None
    for one in what:
        holding, decision = holding.hear(one, now)
    return holding, decision


WORKING, _ = after(UP, Beat(None), Beat(64))


def ending(*what: Happening, start: Holding = WORKING) -> Ending:
    _, decision = after(*what, start=start)
    assert isinstance(decision, Ending)
    return decision


def test_a_runner_is_given_the_lease_once() -> None:
    holding, decision = after(UP)
    assert decision == Give(None)
    assert after(UP, start=holding)[1] is None


@pytest.mark.parametrize(
    ("what", "record", "fate", "computing"),
    [
        (Done("drained"), Record.RELEASE, Fate.KEEP, None),
        (Lost(), Record.NOTHING, Fate.KEEP, None),
        (RenewalRefused(), Record.NOTHING, Fate.KILL, None),
        (Exited("was ended by SIGKILL"), Record.CRASH, Fate.KEEP, 64),
        (RunnerBroken("no memory"), Record.RELEASE, Fate.KEEP, None),
        (Failed("invalid_model", "no", None, is_users=True, is_poisoned=False), Record.FAIL_JOB, Fate.KEEP, None),
        (Failed("out_of_memory", "no", None, is_users=False, is_poisoned=False), Record.CRASH, Fate.KEEP, 64),
        (Failed("machine_error", "no", None, is_users=False, is_poisoned=True), Record.CRASH, Fate.KILL, 64),
    ],
)
def test_each_end_is_recorded_as_what_it_is(what: Happening, record: Record, fate: Fate, computing: int | None) -> None:
    made = ending(what)
    assert (made.record, made.fate, made.computing) == (record, fate, computing)


def test_an_error_keeps_its_class_over_the_pipe() -> None:
    made = ending(Failed("invalid_model", "no such thing", "model", is_users=True, is_poisoned=False))
    assert isinstance(made.error, InvalidModel)
    assert (made.error.message, made.error.param) == ("no such thing", "model")


def test_a_death_outside_any_chunk_is_the_jobs() -> None:
    made = ending(Beat(None), Exited("was ended by SIGSEGV"))
    assert isinstance(made.error, RunnerDied)
    assert made.computing is None


def test_a_runner_that_died_idle_is_not_the_jobs_fault() -> None:
    holding, decision = after(UP, Exited("was ended by SIGKILL"))
    assert decision is None
    assert after(UP, start=holding)[1] == Give(None), "the next runner gets the lease"


def test_a_service_away_blames_nobody_and_waits() -> None:
    made = ending(Failed("service_unavailable", "away", None, is_users=False, is_poisoned=False))
    assert (made.record, made.fate, made.pause) == (Record.RELEASE, Fate.KEEP, True)


def test_a_lease_that_is_not_renewed_in_time_ends_its_runner() -> None:
    holding, _ = after(Renewed(asked_at=4.0, stop=None), start=WORKING)
    assert holding.due() == 20.0, "it lasts from when the question was asked, not from its answer"
    assert holding.overdue(19.9) is None
    made = holding.overdue(20.0)
    assert made is not None
    assert (made.record, made.fate) == (Record.RELEASE, Fate.KILL)
    assert isinstance(made.error, ServiceUnavailable)


def test_a_late_answer_never_shortens_a_lease() -> None:
    holding, _ = after(Renewed(8.0, None), Renewed(4.0, None), start=WORKING)
    assert holding.held_until == 24.0


def test_a_runner_without_a_beat_is_stalled_only_while_it_computes() -> None:
    forever = replace(WORKING, held_until=1e9)
    assert forever.overdue(300.9) is None
    made = forever.overdue(301.0)
    assert made is not None
    assert (made.record, made.fate, made.computing) == (Record.CRASH, Fate.KILL, 64)
    assert isinstance(made.error, RunnerStalled)
    loading, _ = after(Beat(None), start=forever)
    assert loading.overdue(1e6) is None, "a model may take long to load"


def test_a_cancel_is_relayed_once_and_the_grace_then_ends() -> None:
    holding, decision = after(Renewed(1.0, "cancel"), start=WORKING)
    assert decision == Give(Halt(StopReason.CANCEL))
    again, decision = after(Renewed(5.0, "cancel"), now=5.0, start=holding)
    assert decision is None
    made = again.overdue(11.0)
    assert made is not None, "a second heartbeat must not prolong the grace"
    assert (made.record, made.fate) == (Record.RELEASE, Fate.KILL)


def test_a_yielding_runner_may_finish_its_chunk_however_long_it_takes() -> None:
    holding, decision = after(Renewed(1.0, "yield"), start=replace(WORKING, held_until=1e9))
    assert decision == Give(Halt(StopReason.YIELD))
    assert holding.kill_at is None
    stronger, decision = after(StopAsked(StopReason.SHUTDOWN), now=2.0, start=holding)
    assert decision == Give(Halt(StopReason.SHUTDOWN))
    assert stronger.kill_at == 12.0


def test_a_stop_before_the_runner_is_up_ends_the_lease() -> None:
    made = ending(StopAsked(StopReason.SHUTDOWN), start=FRESH)
    assert (made.record, made.fate) == (Record.RELEASE, Fate.KEEP)
