"""Dispatcher, reaper, retention and metrics, each by itself on both databases, with a clock that the test sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, update
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.data.sinks import open_sink
from jobs.data.store import Store, part_key, upload_key
from jobs.db.database import Database
from jobs.db.states import JobState, SlotState
from jobs.db.tables import Chunk, Event, Job, Lease, ResultRecord, Slot, StoredFile
from jobs.errors import MachineError
from jobs.ledger import chunks, history, leases, webhooks
from jobs.ledger import jobs as job_ledger
from jobs.queue import make_app
from jobs.retries import RetryPolicy
from jobs.specs.inference import parse_spec
from scheduler.admin import metrics
from scheduler.control.dispatcher import explain, read_views
from scheduler.control.finalizer import finalize_job
from tests.conftest import RedisServer
from tests.support.hand import job_state
from tests.support.manual_scheduler import ManualScheduler

DAY = 24 * 3600.0


@pytest.fixture
def house(
    database: Database, settings: Settings, tmp_path: Path, redis_server: RedisServer
) -> Iterator[ManualScheduler]:
    settings = settings.model_copy(update={"redis_url": redis_server.url})
    app = make_app(settings)
    house = ManualScheduler(database, settings, Store(str(tmp_path / "store")), app)
    house.db = Database(database.url.render_as_string(hide_password=False), clock=house.clock)
    yield house
    house.db.close()
    app.close()


# -- dispatcher


def test_what_is_free_is_granted_once(house: ManualScheduler) -> None:
    house.online("s0", "s1")
    job_id = house.job()
    assert house.dispatch() == 2
    assert house.live() == {"s0": job_id, "s1": job_id}
    assert house.dispatch() == 0


def test_the_warm_slot_is_chosen(house: ManualScheduler) -> None:
    house.online("s0", "s1")
    job_id = house.job(num_chunks=1)
    with house.db.read() as session:
        model_key = job_ledger.get(session, job_id).model_key
    house.beat("s1", warm=(model_key,))
    house.dispatch()
    assert house.live() == {"s1": job_id}


def test_a_slot_that_missed_its_heartbeats_gets_nothing_new(house: ManualScheduler) -> None:
    """Else a job would wait for the rings at a dead worker's door while another slot is free."""
    house.online("s0", "s1")
    house.time += house.settings.slot_seconds * 0.6
    house.beat("s1")
    job_id = house.job(num_chunks=9)
    house.dispatch()
    assert house.live() == {"s1": job_id}


def test_a_chunk_that_backs_off_calls_for_no_slot(house: ManualScheduler) -> None:
    house.online("s0")
    job_id = house.job(num_chunks=1)
    with house.db.write() as session:
        session.execute(update(Chunk).values(not_before=house.time + 5.0))
    assert house.dispatch() == 0
    house.time += 5.0
    assert house.dispatch() == 1
    assert house.live() == {"s0": job_id}


def test_a_chunk_less_running_job_holds_up_nobody(house: ManualScheduler) -> None:
    house.online("s0", "s1")
    first = house.job(num_chunks=1)
    house.dispatch()
    chunks.claim(house.db, house.activate("s0"), limit=1)
    second = house.job(num_chunks=1)
    house.dispatch()
    assert house.live() == {"s0": first, "s1": second}


def test_a_queue_of_thousands_is_read_by_its_head_only(house: ManualScheduler) -> None:
    house.online("s0")
    waiting = [house.job(num_chunks=1, priority="low") for _ in range(100)]
    last = house.job(num_chunks=1, priority="high")
    with house.db.read() as session:
        views = read_views(session, house.settings)
    assert len(views.jobs) < 80
    house.dispatch()
    assert house.live() == {"s0": last}
    with house.db.read() as session:
        assert waiting[0] in explain(session, house.settings)


def test_an_old_job_is_served_before_a_newer_one_of_the_class_above(house: ManualScheduler) -> None:
    house.online("s0")
    low = house.job(num_chunks=1, priority="low")
    house.time += DAY + 60
    house.job(num_chunks=1, priority="normal")
    house.beat("s0")
    house.dispatch()
    assert house.live() == {"s0": low}


def test_a_job_that_had_slots_lately_has_not_waited(house: ManualScheduler) -> None:
    house.online("s0")
    low = house.job(priority="low")
    house.time += DAY + 60
    house.beat("s0")
    house.dispatch()
    leases.release(house.db, house.activate("s0"), "yielded")
    normal = house.job(num_chunks=1, priority="normal")
    house.time += 60
    house.beat("s0")
    house.dispatch()
    assert house.live() == {"s0": normal}
    with house.db.read() as session:
        waited = {view.id: view.waited_seconds for view in read_views(session, house.settings).jobs}
    assert waited[low] == pytest.approx(60.0)


def test_without_redis_the_grant_stands_and_the_ring_is_left_to_the_reaper(
    house: ManualScheduler, redis_server: RedisServer
) -> None:
    redis_server.kill()
    house.online("s0", "s1")
    house.job()
    assert house.dispatch() == 2
    assert len(house.live()) == 2


# -- reaper


def count_statements(db: Database, work: Any) -> int:
    """How many SQL statements some work sends."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        work()
    finally:
        event.remove(db.engine, "before_cursor_execute", note)
    return len([statement for statement in sent if not statement.startswith(("BEGIN", "COMMIT", "ROLLBACK"))])


def test_an_idle_house_costs_next_to_nothing(house: ManualScheduler) -> None:
    house.online("s0", "s1")
    assert count_statements(house.db, lambda: (house.reap(), house.dispatch())) <= 2


def test_a_lease_that_was_not_renewed_is_given_back(house: ManualScheduler) -> None:
    house.online("s0")
    job_id = house.job()
    house.dispatch()
    chunks.claim(house.db, house.activate("s0"), limit=2)
    house.time += house.settings.lease_seconds + 1
    house.beat("s0")
    house.reap()
    assert house.live() == {}
    house.reap()
    assert job_state(house.db, job_id) == JobState.QUEUED, "a job that holds no slot says that it waits"
    assert house.dispatch() == 1


def test_an_unanswered_doorbell_rings_again_then_its_slot_is_unheard(house: ManualScheduler) -> None:
    house.online("s0")
    house.job()
    house.dispatch()
    for _ in range(house.settings.doorbell_rings - 1):
        house.time += house.settings.doorbell_seconds
        house.beat("s0")
        house.reap()
        assert len(house.live()) == 1
    assert house.lease_on("s0").rings == house.settings.doorbell_rings
    house.time += house.settings.doorbell_seconds
    house.beat("s0")
    house.reap()
    assert house.live() == {}
    with house.db.read() as session:
        assert session.get_one(Slot, "s0").state == SlotState.UNHEARD


@pytest.mark.parametrize("trouble", [RedisServer.refusing_writes, RedisServer.away], ids=["full", "away"])
def test_no_slot_is_blamed_for_a_doorbell_that_could_not_ring(
    house: ManualScheduler, redis_server: RedisServer, trouble: Callable[[RedisServer], AbstractContextManager[None]]
) -> None:
    """Else every slot would be out of use in turn while Redis is away."""
    with trouble(redis_server):
        house.online("s0")
        house.job()
        house.dispatch()
        for _ in range(2 * house.settings.doorbell_rings):
            house.time += house.settings.doorbell_seconds
            house.beat("s0")
            house.reap()
        assert house.lease_on("s0").rings == 1
    house.reap()
    assert house.lease_on("s0").rings == 2


def test_a_silent_slot_goes_offline(house: ManualScheduler) -> None:
    house.online("s0")
    house.time += house.settings.slot_seconds + 1
    house.reap()
    with house.db.read() as session:
        assert session.get_one(Slot, "s0").state == SlotState.OFFLINE


def test_a_job_past_its_time_limit_is_expired(house: ManualScheduler) -> None:
    job_id = house.job(time_limit="1h")
    house.time += 3601
    house.reap()
    assert job_state(house.db, job_id) == JobState.EXPIRED


def test_a_cancel_is_settled_when_the_last_holder_is_dead(house: ManualScheduler) -> None:
    house.online("s0")
    job_id = house.job()
    house.dispatch()
    house.activate("s0")
    job_ledger.cancel(house.db, job_id)
    assert job_state(house.db, job_id) == JobState.CANCELLING
    house.time += house.settings.lease_seconds + 1
    house.reap()
    assert job_state(house.db, job_id) == JobState.CANCELLED


# -- finalizer


def test_a_finalizing_that_was_cut_off_is_done_again(
    house: ManualScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.online("s0")
    out = tmp_path / "out.jsonl"
    job_id = house.job(output={"to": "jsonl", "path": str(out)})

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(job_ledger, "complete", cut_off)
        with pytest.raises(KeyboardInterrupt):
            house.finish(job_id, "s0")
    first = out.read_bytes()
    assert job_state(house.db, job_id) == JobState.FINALIZING
    finalize_job(house.db, house.store, house.settings, job_id)
    finalize_job(house.db, house.store, house.settings, job_id)
    assert job_state(house.db, job_id) == JobState.COMPLETED
    assert out.read_bytes() == first
    assert len(first.splitlines()) == 40


# -- retention


def test_parts_that_no_chunk_names_are_deleted_and_results_stay_readable(house: ManualScheduler) -> None:
    house.online("s0")
    job_id = house.job(output={"to": "jsonl"})
    orphan = part_key(job_id, 0, "lease_lost", ".jsonl")
    house.store.put(orphan, [b"{}\n"])
    house.retain()
    assert house.store.exists(orphan), "the job still runs: its writer may be about to commit"
    house.finish(job_id, "s0")
    house.retain()
    assert not house.store.exists(orphan)
    sink = open_sink(
        parse_spec(house_spec(house, job_id)).output, vector_output=False, database=house.db, store=house.store
    )
    assert [result.row_index for result in sink.read(job_id, after_row=34)] == [35, 36, 37, 38, 39]


def house_spec(house: ManualScheduler, job_id: str) -> dict[str, Any]:
    with house.db.read() as session:
        return job_ledger.get(session, job_id).spec


def upload(house: ManualScheduler, file_id: str, *, expires_at: float | None = None) -> None:
    house.store.put(upload_key(file_id), [b'{"text":"a"}\n'])
    with house.db.write() as session:
        session.add(
            StoredFile(
                id=file_id, filename="rows.jsonl", purpose="batch", key=upload_key(file_id), num_bytes=13, sha256="",
                created_at=house.time, expires_at=expires_at,
            )
        )  # fmt: skip


def test_expired_uploads_are_deleted_unless_a_live_job_reads_them(house: ManualScheduler) -> None:
    upload(house, "file_short", expires_at=house.time + 10)
    upload(house, "file_used", expires_at=house.time + 10)
    upload(house, "file_old")
    job_id = house.job(input={"path": "file:file_used"})
    house.retain()
    assert house.store.exists(upload_key("file_short"))
    house.time += 11
    house.retain()
    assert [house.store.exists(upload_key(name)) for name in ("file_short", "file_used", "file_old")] == [
        False,
        True,
        True,
    ]
    job_ledger.cancel(house.db, job_id)
    house.time += house.settings.upload_days * DAY
    house.retain()
    assert list(house.store.list("uploads/")) == []
    with house.db.read() as session:
        assert session.scalars(select(StoredFile)).all() == []


def test_old_jobs_go_with_all_that_is_theirs_and_others_stay(house: ManualScheduler) -> None:
    house.online("s0")
    old = house.job(output={"to": "jsonl"})
    house.finish(old, "s0")
    old_rows = house.job()
    house.finish(old_rows, "s0")
    house.time += 10 * DAY
    house.retain()
    assert job_state(house.db, old) == JobState.COMPLETED, "jobs are kept unless job_days says otherwise"
    waiting, fresh = house.job(), house.job()
    house.finish(fresh, "s0")
    house.settings = house.settings.model_copy(update={"job_days": 7.0})
    house.retain()
    with house.db.read() as session:
        assert set(session.scalars(select(col(Job.id)))) == {waiting, fresh}
        for table in (Chunk, Lease, Event, ResultRecord):
            assert set(session.scalars(select(table.job_id))) <= {waiting, fresh}
        assert list(history.events(session, fresh))
    assert list(house.store.list("jobs/")) == []


def test_old_deliveries_are_deleted_and_unsent_ones_are_kept(house: ManualScheduler) -> None:
    webhook = webhooks.create(house.db, "https://hooks.test/", events=[], project="default")
    waiting, delivered, failed = (webhooks.announce_test(house.db, webhook.id).id for _ in range(3))

    def claimed() -> webhooks.Sending:
        sending = webhooks.claim(house.db, webhook.id, max_attempts=3, claim_seconds=30)
        assert sending is not None
        return sending

    def kept() -> set[str]:
        with house.db.read() as session:
            return {delivery.id for delivery in webhooks.deliveries(session, webhook.id)[0]}

    by_id = {sending.delivery_id: sending for sending in (claimed(), claimed(), claimed())}
    webhooks.record_delivered(house.db, by_id[delivered], 200)
    error, once = MachineError("answered 500"), RetryPolicy(1, 1.0, 1.0)
    webhooks.record_failed(house.db, by_id[failed], error, once, status_code=500)
    house.time += house.settings.webhook_days * DAY
    house.retain()
    assert kept() == {waiting, delivered, failed}
    house.time += 1
    house.retain()
    assert kept() == {waiting}


# -- metrics


def test_the_numbers_are_right(house: ManualScheduler) -> None:
    house.online("s0", "s1")
    house.finish(house.job(), "s0")
    running = house.job(num_chunks=3, slots={"max": 1})
    house.dispatch()
    slot_id = next(slot_id for slot_id, job_id in house.live().items() if job_id == running)
    chunks.claim(house.db, house.activate(slot_id), limit=1)
    house.time += 5
    house.job(num_chunks=2)
    house.job(num_chunks=0)
    house.time += 7
    numbers = metrics.snapshot(house.db)
    wanted = {JobState.COMPLETED: 1, JobState.RUNNING: 1, JobState.QUEUED: 1, JobState.VALIDATING: 1}
    assert numbers.jobs == {state: wanted.get(state, 0) for state in JobState}
    assert numbers.slots == {state: 2 if state == SlotState.ONLINE else 0 for state in SlotState}
    assert (numbers.slots_busy, numbers.pending_chunks, numbers.leased_chunks) == (1, 4, 1)
    assert (numbers.rows_done, numbers.rows_failed) == (40, 0)
    assert numbers.oldest_wait_seconds == pytest.approx(7.0)


def test_an_empty_house_has_numbers_too(house: ManualScheduler) -> None:
    numbers = metrics.snapshot(house.db)
    assert (numbers.pending_chunks, numbers.rows_done, numbers.oldest_wait_seconds) == (0, 0, 0.0)
