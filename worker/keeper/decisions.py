"""What to do with a lease that is being held: pure decisions from events and the time; the keeper carries them out."""

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
from worker.wire.protocol import Done, Failed, Lost, Report, StopLease, error_from
from worker.wire.pulse import Beat

_STRENGTH = list(StopReason)  # weakest first
_TIMES_THE_SLOWEST = 5.0  # a progress may take this many times the longest one yet, whatever the limit says
_SILENCE_SECONDS = 2.0  # a runner tells each second what has gone on; where nothing comes, none of its threads runs

# -- what happens to a lease beside what its runner says -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Renewed:
    """A heartbeat was answered."""

    asked_at: float
    """When the question was sent, on the keeper's own clock; the lease lasts at least from then on."""
    stop: StopReason | None
    """Why the database wants the lease back; None where it does not."""


@dataclass(frozen=True, slots=True)
class RenewalRefused:
    """A heartbeat was answered: the lease is over."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """This worker is to give the lease back."""

    reason: StopReason


Event = RunnerUp | RunnerBroken | Exited | Report | Renewed | RenewalRefused | StopAsked

# -- how a lease ends ----------------------------------------------------------------------------------------------


class RunnerAction(StrEnum):
    """What happens to the runner at the lease's end."""

    KEEP = "keep"  # it waits for the next lease, its models warm
    KILL = "kill"  # its whole group, before anything is recorded; the next runner is started


class EndRecord(StrEnum):
    """What the database is told at the lease's end."""

    RELEASE = "release"  # given back in order; nobody is blamed
    FAIL_JOB = "fail_job"  # the job is at fault and ends
    CRASH = "crash"  # the machine failed; the chunk under computation, or else the job's start, is blamed
    NOTHING = "nothing"  # the lease is somebody else's business already


@dataclass(frozen=True, slots=True)
class Ending:
    """A decision to end a lease."""

    record: EndRecord
    runner_action: RunnerAction
    reason: str
    error: StokerError | None = None
    computing: int | None = None
    """First row of the chunk that a crash is blamed on."""
    pause: bool = False
    """Whether a service was away, so that ending at once would only bring the same lease back to fail again."""


@dataclass(frozen=True, slots=True)
class StartLease:
    """A decision to give the lease to the runner."""


Decision = StartLease | StopLease | Ending
"""What to do: give the lease to the runner, relay a stop to it, or end the lease."""

# -- the lease under way -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rules:
    """The times that decide, in seconds."""

    lease_seconds: float
    grace_seconds: float
    stall_limits: Mapping[Activity, float]
    """How long each activity may go without progress."""

    @classmethod
    def of(cls, times: LeaseTimes) -> Rules:
        """The rules that the settings make."""
        limits = stall_limits(times.stall_seconds, times.stall_limits)
        # Recording waits for a database or a store that is away as long as a lease lasts, and says nothing meanwhile.
        limits[Activity.COMMIT] = max(limits[Activity.COMMIT], 2.0 * times.lease_seconds)
        return cls(times.lease_seconds, times.grace_seconds, limits)


@dataclass(frozen=True, slots=True)
class StageProgress:
    """What one of the runner's threads or processes does, by its last beat."""

    beat: Beat
    since: float
    """When it began."""
    heard_at: float
    """When it last made progress."""

    def after(self, beat: Beat, now: float) -> StageProgress:
        """What it does once it has said this."""
        return replace(self, heard_at=now) if beat == self.beat else StageProgress(beat, now, now)

    @property
    def in_words(self) -> str:
        """The activity as people read it; only for a stage that does not wait."""
        assert self.beat.activity is not None
        return in_words(self.beat.activity, start_row=self.beat.chunk, step=self.beat.step)


@dataclass(frozen=True, slots=True)
class HeldLease:
    """What the keeper knows of the lease it holds. Times are on its own monotonic clock."""

    rules: Rules
    held_until: float
    """The lease is surely ours until then; later, somebody else may own its work."""
    handed_over: bool = False
    """Whether a living runner was given the lease."""
    taken_up: bool = False
    """Whether that runner has begun with it."""
    stages: Mapping[str, StageProgress] = field(default_factory=dict)
    """What each of its threads does, by its name. Those that wait for others are not among them."""
    heard_at: float = 0.0
    """When any of them last said something."""
    slowest_seconds: Mapping[Activity, float] = field(default_factory=dict)
    """The longest that each activity took from one progress to the next."""
    stop: StopReason | None = None
    kill_at: float | None = None
    """When the grace after a stop ends."""

    def due(self) -> float:
        """The next time at which `overdue` may have something to say."""
        times = [self.held_until]
        if self.kill_at is not None:
            times.append(self.kill_at)
        return min([*times, *(self._stalls_at(one) for one in self.stages.values())])

    @property
    def foremost(self) -> StageProgress | None:
        """What the runner does, in one: what it has been at for the longest."""
        return min(self.stages.values(), key=lambda one: one.since, default=None)

    @property
    def suspect(self) -> int | None:
        """First row of the chunk to blame if the runner dies now: that in the model, else one on its way there or from
        there; None where no chunk is at work."""
        at_work = [one.beat for one in self.stages.values() if one.beat.activity in CHUNK_ACTIVITIES]
        in_model = [beat.chunk for beat in at_work if beat.activity is Activity.FORWARD]
        return next(iter([*in_model, *(beat.chunk for beat in at_work)]), None)

    def overdue(self, now: float) -> Ending | None:
        """What to do because of the time alone."""
        runner_action = RunnerAction.KILL if self.handed_over else RunnerAction.KEEP
        if now >= self.held_until:
            away = f"the database did not answer for {self.rules.lease_seconds:g} s"
            return Ending(EndRecord.RELEASE, runner_action, away, ServiceUnavailable(away))
        if self.kill_at is not None and now >= self.kill_at:
            late = f"the runner did not stop within {self.rules.grace_seconds:g} s and was killed"
            return Ending(EndRecord.RELEASE, runner_action, late)
        stalled = self._stalled(now)
        if stalled is not None:
            silent_seconds = round(now - stalled.heard_at, 1)
            error = RunnerStalled(
                f"{stalled.in_words} made no progress for {silent_seconds:g} s; the runner was killed"
            )
            blamed = stalled.beat.chunk if stalled.beat.activity in CHUNK_ACTIVITIES else None
            return Ending(EndRecord.CRASH, runner_action, error.message, error, blamed)
        return None

    def _stalls_at(self, one: StageProgress) -> float:
        """When something counts as stalled, if it makes no progress until then."""
        activity = one.beat.activity
        assert activity is not None
        slowest_seconds = self.slowest_seconds.get(activity, 0.0)
        return one.heard_at + max(self.rules.stall_limits[activity], _TIMES_THE_SLOWEST * slowest_seconds)

    def _stalled(self, now: float) -> StageProgress | None:
        """What has made no progress for too long, if anything has."""
        late = min(self.stages.values(), key=self._stalls_at, default=None)
        if late is None or now < self._stalls_at(late):
            return None
        if self.heard_at > late.heard_at + _SILENCE_SECONDS:
            return late
        # Nothing was heard of the others either: one holds them all up (Python lets one thread at a time run, and a
        # regular expression does not let go). It is the one that was heard last.
        return max(self.stages.values(), key=lambda one: one.heard_at)

    def _heard(self, beat: Beat, now: float) -> HeldLease:
        stages, slowest = dict(self.stages), dict(self.slowest_seconds)
        before = stages.pop(beat.stage, None)
        if before is not None and before.beat.activity is not None and before.beat.activity is beat.activity:
            slowest[beat.activity] = max(slowest.get(beat.activity, 0.0), now - before.heard_at)
        if beat.activity is not None:
            stages[beat.stage] = StageProgress(beat, now, now) if before is None else before.after(beat, now)
        return replace(self, taken_up=True, stages=stages, heard_at=now, slowest_seconds=slowest)

    def on_event(self, what: Event, now: float) -> tuple[HeldLease, Decision | None]:
        """What is known after `what` happened at `now`, and what to do about it."""
        match what:
            case RunnerUp() if not self.handed_over:
                return replace(self, handed_over=True), StartLease()
            case RunnerBroken(reason):
                return self, Ending(EndRecord.RELEASE, RunnerAction.KEEP, reason)
            case Exited(status):
                return self._runner_died(status)
            case Beat():
                return self._heard(what, now), None
            case Done(outcome):
                return self, Ending(EndRecord.RELEASE, RunnerAction.KEEP, outcome)
            case Failed():
                return self, self._failed(what)
            case Lost():
                return self, Ending(EndRecord.NOTHING, RunnerAction.KEEP, LostLease().message, LostLease())
            case Renewed(asked_at, stop):
                held = replace(self, held_until=max(self.held_until, asked_at + self.rules.lease_seconds))
                return held._asked(stop, now) if stop is not None else (held, None)
            case RenewalRefused():
                runner_action = RunnerAction.KILL if self.handed_over else RunnerAction.KEEP
                return self, Ending(EndRecord.NOTHING, runner_action, LostLease().message, LostLease())
            case StopAsked(reason):
                return self._asked(reason, now)
            case _:
                return self, None

    def _asked(self, reason: StopReason, now: float) -> tuple[HeldLease, Decision | None]:
        """Relay a stop once, and again only when a stronger one follows."""
        if self.stop is not None and _STRENGTH.index(reason) <= _STRENGTH.index(self.stop):
            return self, None
        if not self.handed_over:
            return replace(self, stop=reason), Ending(
                EndRecord.RELEASE, RunnerAction.KEEP, f"{reason}: before it was begun"
            )
        kill_at = self.kill_at
        if kill_at is None and reason is not StopReason.YIELD:  # a yielding runner may take its chunk's whole time
            kill_at = now + self.rules.grace_seconds
        return replace(self, stop=reason, kill_at=kill_at), StopLease(reason)

    def _runner_died(self, status: str) -> tuple[HeldLease, Decision | None]:
        if not self.taken_up and self.stop is None:  # it died idle, and only seemed to be there; the next one gets it
            return replace(self, handed_over=False), None
        if not self.taken_up:
            return self, Ending(EndRecord.RELEASE, RunnerAction.KEEP, f"{self.stop}: before it was begun")
        died = RunnerDied(f"the runner {status}")
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
