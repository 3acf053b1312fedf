"""A state machine over grant, claim, commit, expire and cancel: in any order, no row is lost or doubled."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import func, select
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.data.sources import ChunkRange
from jobs.db import migrations
from jobs.db.database import Database
from jobs.db.states import JOB_TRANSITIONS, LIVE_LEASE_STATES, ChunkState, JobState, LeaseState
from jobs.db.tables import Chunk, Job, Lease, ResultRecord
from jobs.errors import Conflict, LostLease, RunnerDied
from jobs.ledger import chunks, overdue, planning, slots
from jobs.ledger import jobs as job_ledger
from jobs.ledger.chunks import Claim
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.specs.inference import parse_spec
from tests.support.ledger import commit, make_slots

SLOTS = ("s0", "s1", "s2")
CHUNK_ROWS = 4


class Fencing(RuleBasedStateMachine):
    """Workers that use their old leases for ever, against a scheduler that may end any lease at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = 1000.0
        self.db = Database(f"sqlite:///{self.folder.name}/test.db", clock=lambda: self.clock)
        migrations.upgrade(self.db)
        self.settings = Settings(data_dir=Path(self.folder.name), lease_seconds=10.0)
        make_slots(self.db, self.settings, *SLOTS)
        self.job_ids: list[str] = []
        self.lease_ids: list[str] = []
        self.claims: dict[str, list[Claim]] = {}
        self.recorded: set[tuple[str, int]] = set()
        self.seen_states: dict[str, JobState] = {}
        self.incarnations = itertools.count(2)

    def teardown(self) -> None:
        self.db.close()
        self.folder.cleanup()

    # -- users and the scheduler

    @precondition(lambda self: len(self.job_ids) < 3)
    @rule(num_chunks=st.integers(1, 4))
    def submit(self, num_chunks: int) -> None:
        job = job_ledger.submit(self.db, parse_spec({"task": "embeddings", "model": "m", "input": {"path": "x.csv"}}))
        planning.plan(
            self.db, job.id, [ChunkRange(i * CHUNK_ROWS, (i + 1) * CHUNK_ROWS, {}) for i in range(num_chunks)]
        )
        self.job_ids.append(job.id)

    @precondition(lambda self: self.job_ids)
    @rule(data=st.data())
    def grant(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(self.job_ids))
        slot_ids = data.draw(st.lists(st.sampled_from(SLOTS), min_size=1, max_size=2, unique=True))
        before = self._num_leases()
        try:
            self.lease_ids += grants.grant(self.db, Grant(job_id, tuple(slot_ids)), lease_seconds=10.0)
        except Conflict:
            assert self._num_leases() == before, "a refused grant leaves nothing"

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock += seconds

    @rule()
    def sweep(self) -> None:
        leases.expire_dead(self.db, self.settings)
        leases.unanswered(self.db, self.settings)
        overdue.settle_cancelled(self.db)
        overdue.requeue_idle(self.db)
        for slot_id in SLOTS:
            with self.db.read() as session:
                incarnation = session.get_one(slots.Slot, slot_id).incarnation
            slots.beat(self.db, slot_id, incarnation, [])

    @precondition(lambda self: self.job_ids)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(self.job_ids))
        try:
            job_ledger.cancel(self.db, job_id)
        except Conflict:
            assert self._job(job_id).state.is_terminal

    @rule(slot_id=st.sampled_from(SLOTS))
    def worker_restarts(self, slot_id: str) -> None:
        slots.enter(self.db, slot_id, f"{slot_id}-{next(self.incarnations)}", self.settings)

    @rule()
    def finalize(self) -> None:
        for job_id in self.job_ids:
            if self._job(job_id).state == JobState.FINALIZING:
                job_ledger.complete(self.db, job_id, [])

    @precondition(lambda self: self.job_ids)
    @rule(data=st.data(), slot_id=st.sampled_from(SLOTS))
    def take_up_work(self, data: st.DataObject, slot_id: str) -> None:
        """Grant, activate and claim in one step, so that most examples get as far as racing commits."""
        job_id = data.draw(st.sampled_from(self.job_ids))
        try:
            (lease_id,) = grants.grant(self.db, Grant(job_id, (slot_id,)), lease_seconds=10.0)
        except Conflict:
            return
        self.lease_ids.append(lease_id)
        assert leases.activate(self.db, lease_id, "any", lease_seconds=10.0) is not None
        self.claims[lease_id] = chunks.claim(self.db, lease_id, limit=2)

    @precondition(lambda self: any(self.claims.values()))
    @rule(data=st.data())
    def lose_work(self, data: st.DataObject) -> None:
        """The lease of a worker with claimed chunks expires, and the worker continues all the same."""
        lease_id = data.draw(st.sampled_from([lease_id for lease_id, claims in self.claims.items() if claims]))
        self.clock += 11.0
        leases.expire_dead(self.db, self.settings)
        assert self._lease(lease_id).state != LeaseState.ACTIVE

    # -- workers, with any lease that they ever had

    @precondition(lambda self: self.lease_ids)
    @rule(data=st.data())
    def activate(self, data: st.DataObject) -> None:
        leases.activate(self.db, data.draw(st.sampled_from(self.lease_ids)), "any", lease_seconds=10.0)

    @precondition(lambda self: self.lease_ids)
    @rule(data=st.data(), limit=st.integers(1, 3))
    def claim(self, data: st.DataObject, limit: int) -> None:
        lease_id = data.draw(st.sampled_from(self.lease_ids))
        try:
            self.claims.setdefault(lease_id, []).extend(chunks.claim(self.db, lease_id, limit=limit))
        except LostLease:
            assert self._lease(lease_id).state != LeaseState.ACTIVE

    @precondition(lambda self: any(self.claims.values()))
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        lease_id = data.draw(st.sampled_from([lease_id for lease_id, claims in self.claims.items() if claims]))
        claim = data.draw(st.sampled_from(self.claims[lease_id]))
        job_id = self._lease(lease_id).job_id
        live = self._lease(lease_id).state == LeaseState.ACTIVE
        try:
            commit(self.db, lease_id, job_id, [claim])
        except LostLease:
            return
        assert live, "only the live holder of a lease can record"
        rows = {(job_id, row) for row in range(claim.start_row, claim.stop_row)}
        assert not rows & self.recorded, "a row was recorded twice"
        self.recorded |= rows

    @precondition(lambda self: self.lease_ids)
    @rule(data=st.data(), how=st.sampled_from(["renew", "release", "crash", "crash computing", "give back"]))
    def end(self, data: st.DataObject, how: str) -> None:
        lease_id = data.draw(st.sampled_from(self.lease_ids))
        held = self.claims.get(lease_id) or []
        try:
            match how:
                case "renew":
                    leases.renew(self.db, lease_id, lease_seconds=10.0)
                case "release":
                    leases.release(self.db, lease_id, "done")
                case "give back":
                    chunks.give_back(self.db, lease_id, [claim.start_row for claim in held[:1]])
                case _:
                    computing = held[0].start_row if held and how == "crash computing" else None
                    leases.crash(self.db, lease_id, RunnerDied(), computing=computing, retries=self.settings)
        except LostLease:
            assert self._lease(lease_id).state != LeaseState.ACTIVE

    # -- invariants

    @invariant()
    def counters_equal_the_rows_and_chunks_cover_the_input(self) -> None:
        with self.db.read() as session:
            for job in session.scalars(select(Job)).all():
                count = select(func.count()).where(col(ResultRecord.job_id) == job.id)
                assert session.scalar(count) == job.num_done
                assert job.num_done == sum(recorded == job.id for recorded, _ in self.recorded)
                chunks = session.scalars(
                    select(Chunk).where(col(Chunk.job_id) == job.id).order_by(col(Chunk.start_row))
                ).all()
                edges = [0, *(chunk.stop_row for chunk in chunks)]
                assert edges[:-1] == [chunk.start_row for chunk in chunks]
                assert edges[-1] == job.num_rows
                if job.state in (JobState.FINALIZING, JobState.COMPLETED):
                    assert job.num_done == job.num_rows
                    assert all(chunk.state in (ChunkState.DONE, ChunkState.FAILED) for chunk in chunks)

    @invariant()
    def a_leased_chunk_belongs_to_an_active_lease_and_a_slot_to_one(self) -> None:
        with self.db.read() as session:
            for chunk in session.scalars(select(Chunk).where(col(Chunk.state) == ChunkState.LEASED)).all():
                assert chunk.lease_id is not None
                assert session.get_one(Lease, chunk.lease_id).state == LeaseState.ACTIVE
            live = session.scalars(select(col(Lease.slot_id)).where(col(Lease.state).in_(LIVE_LEASE_STATES))).all()
            assert len(live) == len(set(live))

    @invariant()
    def a_gang_lives_and_ends_as_one(self) -> None:
        with self.db.read() as session:
            found = session.execute(select(col(Lease.gang_id), col(Lease.state)).where(col(Lease.gang_id).is_not(None)))
            live: dict[str, set[bool]] = {}
            for gang_id, state in found:
                live.setdefault(gang_id, set()).add(state in LIVE_LEASE_STATES)
            assert all(len(states) == 1 for states in live.values()), "one of a gang's leases outlived the others"

    @invariant()
    def a_job_moves_only_along_its_transitions(self) -> None:
        reachable = {state: _reachable(state) for state in JobState}
        for job_id in self.job_ids:
            state = self._job(job_id).state
            before = self.seen_states.get(job_id, JobState.QUEUED)
            assert state in reachable[before], f"{before} -> {state}"
            self.seen_states[job_id] = state

    # -- reading

    def _job(self, job_id: str) -> Job:
        with self.db.read() as session:
            return job_ledger.get(session, job_id)

    def _lease(self, lease_id: str) -> Lease:
        with self.db.read() as session:
            return session.get_one(Lease, lease_id)

    def _num_leases(self) -> int:
        with self.db.read() as session:
            return session.scalar(select(func.count()).select_from(Lease)) or 0


def _reachable(state: JobState) -> set[JobState]:
    seen, todo = {state}, [state]
    while todo:
        for following in JOB_TRANSITIONS[todo.pop()]:
            if following not in seen:
                seen.add(following)
                todo.append(following)
    return seen


TestFencing = Fencing.TestCase
TestFencing.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
