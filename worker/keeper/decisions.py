"""What to do with a held lease: pure decisions from events and the time, which the keeper carries out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from jobs.config.activities import CHUNK_ACTIVITIES, Activity, in_words, stall_limits
from jobs.config.times import LeaseTimes
from jobs.db.states import StopReason
from jobs.errors import LostLease, MachineError, RunnerDied, RunnerStalled, ServiceUnavailable, StokerError
from worker.keeper.runner_pool import RunnerBroken, RunnerUp
from worker.keeper.runner_process import Exited
from worker.stop import Outcome
from worker.wire.protocol import Done, Failed, Lost, Report, StopLease, error_from
from worker.wire.pulse import Beat

_STRENGTH = list(StopReason)  # weakest first
_TIMES_THE_SLOWEST = 5.0  # a step may take this many times as long as the slowest so far, even beyond the limit
_MOST_EARLY_DEATHS = 5  # a runner that cannot read its order dies each time
_SILENCE_SECONDS = 2.0  # a runner reports progress every second; if no report comes, none of its threads runs

# -- events of a lease that do not come from its runner ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Renewed:
    """The lease was renewed."""

    sent_at: float
    """When the renewal was sent, by the keeper's clock. The lease's new term starts no earlier than that."""
    stop: StopReason | None
    """Why the database wants the lease back; None if it does not."""


@dataclass(frozen=True, slots=True)
class RenewalRefused:
    """The lease was not renewed, because it is over."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """This worker must give the lease back."""

    reason: StopReason


Event = RunnerUp | RunnerBroken | Exited | Report | Renewed | RenewalRefused | StopRequested

# -- how a lease ends ----------------------------------------------------------------------------------------------


class RunnerAction(StrEnum):
    """What happens to the runner at the lease's end."""

    KEEP = "keep"  # it waits for the next lease, its models warm
    KILL = "kill"  # its whole process group is killed before anything is recorded; the next runner is started


class EndRecord(StrEnum):
    """What is recorded in the database at the lease's end."""

    RELEASE = "release"  # the lease is given back in order, and no failure is counted
    DRAINED = "drained"  # as `RELEASE`, but the slot may go on with the next job
    FAIL_JOB = "fail_job"  # the error is in the job, which fails
    CRASH = "crash"  # the machine failed; the failure counts against the chunk being computed, or else the job's start
    NOTHING = "nothing"  # another process has already dealt with the lease


@dataclass(frozen=True, slots=True)
class Ending:
    """A decision to end a lease."""

    record: EndRecord
    runner_action: RunnerAction
    reason: str
    error: StokerError | None = None
    computing: int | None = None
    """First row of the chunk that a crash counts against."""
    pause: bool = False
    """Whether to wait before the lease ends: a service could not be reached, and a new lease would fail again."""


@dataclass(frozen=True, slots=True)
class StartLease:
    """A decision to give the lease to the runner."""


Decision = StartLease | StopLease | Ending
"""What to do: give the lease to the runner, relay a stop to it, or end the lease."""

# -- the current lease ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rules:
    """The time limits of a lease, in seconds."""

    lease_seconds: float
    grace_seconds: float
    stall_limits: Mapping[Activity, float]
    """How long each activity may go without progress."""

    @classmethod
    def of(cls, times: LeaseTimes) -> Rules:
        """The limits that follow from the settings."""
        limits = stall_limits(times.stall_seconds, times.stall_limits)
        # A commit waits for an unreachable database or store as long as a lease lasts, and reports no progress.
        limits[Activity.COMMIT] = max(limits[Activity.COMMIT], 2.0 * times.lease_seconds)
        return cls(times.lease_seconds, times.grace_seconds, limits)


@dataclass(frozen=True, slots=True)
class StageProgress:
    """What one of the runner's threads or processes is doing, according to its last beat."""

    beat: Beat
    since: float
    """When the thread or process began this."""
    beat_at: float
    """When the thread or process last made progress."""

    def after(self, beat: Beat, now: float) -> StageProgress:
        """The progress after this beat."""
        return replace(self, beat_at=now) if beat == self.beat else StageProgress(beat, now, now)

    @property
    def in_words(self) -> str:
        """The activity as text for people. Must not be called for a stage that waits."""
        assert self.beat.activity is not None
        return in_words(self.beat.activity, start_row=self.beat.chunk, step=self.beat.step)


@dataclass(frozen=True, slots=True)
class HeldLease:
    """What the keeper knows about the lease that it holds. Times are by its own monotonic clock."""

    rules: Rules
    held_until: float
    """Time until which the lease certainly belongs to this keeper. Afterwards another may have its work."""
    handed_over_at: float | None = None
    """When the lease was passed to the present runner; None before."""
    has_started: bool = False
    """Whether that runner has started to work on the lease."""
    num_early_deaths: int = 0
    """Number of runners that died after the lease was passed to them and before they started to work on it."""
    stages: Mapping[str, StageProgress] = field(default_factory=dict)
    """What each thread of the runner is doing, by the thread's name, without threads that wait for others."""
    beat_at: float = 0.0
    """When the last beat of any thread came."""
    slowest_seconds: Mapping[Activity, float] = field(default_factory=dict)
    """The longest time between two beats of each activity."""
    stop: StopReason | None = None
    kill_at: float | None = None
    """When the grace after a stop ends."""

    def due(self) -> float:
        """The next time at which `overdue` may return an ending."""
        times = [self.held_until]
        if self.kill_at is not None:
            times.append(self.kill_at)
        if self.handed_over_at is not None and not self.has_started:
            times.append(self.handed_over_at + self.rules.stall_limits[Activity.LOAD])
        return min([*times, *(self._stalls_at(one) for one in self.stages.values())])

    @property
    def handed_over(self) -> bool:
        """Whether the lease was passed to a running runner."""
        return self.handed_over_at is not None

    @property
    def foremost(self) -> StageProgress | None:
        """The runner's main activity: the one that started first."""
        return min(self.stages.values(), key=lambda one: one.since, default=None)

    @property
    def suspect(self) -> int | None:
        """First row of the chunk that a death of the runner now would count against: the chunk in the model, else one
        being read or written; None without any."""
        beats = [one.beat for one in self.stages.values() if one.beat.activity in CHUNK_ACTIVITIES]
        in_model = [beat.chunk for beat in beats if beat.activity is Activity.FORWARD]
        return next(iter([*in_model, *(beat.chunk for beat in beats)]), None)

    def overdue(self, now: float) -> Ending | None:
        """How the lease must end because of the time alone; None if it goes on."""
        runner_action = RunnerAction.KILL if self.handed_over else RunnerAction.KEEP
        if now >= self.held_until:
            away = f"the database did not respond for {self.rules.lease_seconds:g} s"
            return Ending(EndRecord.RELEASE, runner_action, away, ServiceUnavailable(away))
        if self.kill_at is not None and now >= self.kill_at:
            late = f"the runner did not stop within {self.rules.grace_seconds:g} s and was killed"
            return Ending(EndRecord.RELEASE, runner_action, late)
        limit = self.rules.stall_limits[Activity.LOAD]
        if self.handed_over_at is not None and not self.has_started and now >= self.handed_over_at + limit:
            idle = RunnerStalled(f"the runner did not begin the job within {limit:g} s and was killed")
            return Ending(EndRecord.CRASH, runner_action, idle.message, idle)
        stalled = self._stalled(now)
        if stalled is not None:
            silent_seconds = round(now - stalled.beat_at, 1)
            error = RunnerStalled(
                f"{stalled.in_words} made no progress for {silent_seconds:g} s; the runner was killed"
            )
            chunk = stalled.beat.chunk if stalled.beat.activity in CHUNK_ACTIVITIES else None
            return Ending(EndRecord.CRASH, runner_action, error.message, error, chunk)
        return None

    def _stalls_at(self, one: StageProgress) -> float:
        """The time from which this stage counts as stalled unless it makes progress."""
        activity = one.beat.activity
        assert activity is not None
        slowest_seconds = self.slowest_seconds.get(activity, 0.0)
        return one.beat_at + max(self.rules.stall_limits[activity], _TIMES_THE_SLOWEST * slowest_seconds)

    def _stalled(self, now: float) -> StageProgress | None:
        """The stage that has made no progress for too long, if any."""
        late = min(self.stages.values(), key=self._stalls_at, default=None)
        if late is None or now < self._stalls_at(late):
            return None
        if self.beat_at > late.beat_at + _SILENCE_SECONDS:
            return late
        # The other stages are silent too, so one of them blocks all: Python runs one thread at a time, and a regular
        # expression, for example, does not release the GIL. It is the stage that reported last.
        return max(self.stages.values(), key=lambda one: one.beat_at)

    def _on_beat(self, beat: Beat, now: float) -> HeldLease:
        stages, slowest = dict(self.stages), dict(self.slowest_seconds)
        before = stages.pop(beat.stage, None)
        if before is not None and before.beat.activity is not None and before.beat.activity is beat.activity:
            slowest[beat.activity] = max(slowest.get(beat.activity, 0.0), now - before.beat_at)
        if beat.activity is not None:
            stages[beat.stage] = StageProgress(beat, now, now) if before is None else before.after(beat, now)
        return replace(self, has_started=True, stages=stages, beat_at=now, slowest_seconds=slowest)

    def on_event(self, what: Event, now: float) -> tuple[HeldLease, Decision | None]:
        """The state after the event `what` at the time `now`, and what to do about it."""
        match what:
            case RunnerUp() if not self.handed_over:
                return replace(self, handed_over_at=now), StartLease()
            case RunnerBroken(reason):
                return self, Ending(EndRecord.RELEASE, RunnerAction.KEEP, reason)
            case Exited(status):
                return self._runner_died(status)
            case Beat():
                return self._on_beat(what, now), None
            case Done(outcome):
                record = EndRecord.DRAINED if outcome is Outcome.DRAINED else EndRecord.RELEASE
                return self, Ending(record, RunnerAction.KEEP, outcome)
            case Failed():
                return self, self._failed(what)
            case Lost():
                return self, Ending(EndRecord.NOTHING, RunnerAction.KEEP, LostLease().message, LostLease())
            case Renewed(sent_at, stop):
                held = replace(self, held_until=max(self.held_until, sent_at + self.rules.lease_seconds))
                return held._on_stop(stop, now) if stop is not None else (held, None)
            case RenewalRefused():
                runner_action = RunnerAction.KILL if self.handed_over else RunnerAction.KEEP
                return self, Ending(EndRecord.NOTHING, runner_action, LostLease().message, LostLease())
            case StopRequested(reason):
                return self._on_stop(reason, now)
            case _:
                return self, None

    def _on_stop(self, reason: StopReason, now: float) -> tuple[HeldLease, Decision | None]:
        """Relay a stop once, and again only when a stronger one follows."""
        if self.stop is not None and _STRENGTH.index(reason) <= _STRENGTH.index(self.stop):
            return self, None
        if not self.handed_over:
            return replace(self, stop=reason), Ending(
                EndRecord.RELEASE, RunnerAction.KEEP, f"{reason}: before the work started"
            )
        kill_at = self.kill_at
        if kill_at is None and reason is not StopReason.YIELD:  # a runner that yields may finish its chunk first
            kill_at = now + self.rules.grace_seconds
        return replace(self, stop=reason, kill_at=kill_at), StopLease(reason)

    def _runner_died(self, status: str) -> tuple[HeldLease, Decision | None]:
        if not self.has_started and self.stop is not None:
            return self, Ending(EndRecord.RELEASE, RunnerAction.KEEP, f"{self.stop}: before the work started")
        died = RunnerDied(f"the runner {status}")
        if not self.has_started:
            num_early_deaths = self.num_early_deaths + self.handed_over
            if num_early_deaths < _MOST_EARLY_DEATHS:  # the next runner gets the order
                return replace(self, handed_over_at=None, num_early_deaths=num_early_deaths), None
            died = RunnerDied(f"{num_early_deaths} runners died before they began the job; the last one {status}")
        return self, Ending(EndRecord.CRASH, RunnerAction.KEEP, died.message, died, self.suspect)

    def _failed(self, failure: Failed) -> Ending:
        error = error_from(failure)
        runner_action = RunnerAction.KILL if failure.is_poisoned else RunnerAction.KEEP
        if failure.is_users:
            return Ending(EndRecord.FAIL_JOB, runner_action, error.message, error)
        if isinstance(error, ServiceUnavailable):
            return Ending(EndRecord.RELEASE, runner_action, error.message, error, pause=True)
        assert isinstance(error, MachineError)
        return Ending(EndRecord.CRASH, runner_action, error.message, error, self.suspect)
