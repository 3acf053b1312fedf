"""Dispatcher, reaper, retention and metrics, each by itself on both databases, with a clock that the test sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, update
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.data.sinks import open_sink
from jobs.data.sources import ChunkRange
from jobs.data.store import Store
from jobs.data.store_keys import part_key, upload_key
from jobs.db.database import Database
from jobs.db.states import ChunkState, JobState, LeaseState, SlotState
from jobs.db.tables import Chunk, Event, Job, Lease, LeaseCounts, Notice, ResultRecord, Slot, StoredFile
from jobs.errors import MachineError, NotFound, ServiceUnavailable
from jobs.ledger import chunks, planning
from jobs.ledger import jobs as job_ledger
from jobs.ledger.accounts.uploads import find_upload
from jobs.ledger.groups import crons
from jobs.ledger.leasing import leases
from jobs.ledger.records import history, webhooks
from jobs.queue import make_app
from jobs.retries import RetryPolicy
from jobs.specs.array_spec import parse_single, parse_submission
from jobs.specs.inference import parse_spec
from jobs.specs.needs import Needs
from jobs.specs.schedule import parse_schedule
from scheduler.admin import metrics
from scheduler.control import retention
from scheduler.control.dispatch.dispatcher import explain, read_policy_input
from scheduler.control.finalizer import finalize_job
from tests.conftest import RedisServer
from tests.support.ledger import job_state
from tests.support.manual_scheduler import ManualScheduler
from tests.support.statements import count_commits

DAY = 24 * 3600.0


@pytest.fixture
def scheduler(
    database: Database, settings: Settings, tmp_path: Path, redis_server: RedisServer
) -> Iterator[ManualScheduler]:
    settings = settings.model_copy(update={"redis_url": redis_server.url})
    app = make_app(settings)
    scheduler = ManualScheduler(database, settings, Store(str(tmp_path / "store")), app)
    scheduler.db = Database(database.url.render_as_string(hide_password=False), clock=scheduler.clock)
    yield scheduler
    scheduler.db.close()
    app.close()


# -- dispatcher


def test_a_free_slot_is_granted_once(scheduler: ManualScheduler) -> None:
    scheduler.online("s0", "s1")
    job_id = scheduler.job()
    assert scheduler.dispatch() == 2
    assert scheduler.live() == {"s0": job_id, "s1": job_id}
    assert scheduler.dispatch() == 0


def test_the_warm_slot_is_selected(scheduler: ManualScheduler) -> None:
    scheduler.online("s0", "s1")
    job_id = scheduler.job(num_chunks=1)
    with scheduler.db.read() as session:
        model_key = job_ledger.get(session, job_id).model_key
    scheduler.beat("s1", warm=(model_key,))
    scheduler.dispatch()
    assert scheduler.live() == {"s1": job_id}


def test_a_job_gets_the_slot_whose_host_has_its_packages(scheduler: ManualScheduler) -> None:
    for slot, packages in (("s0", ["vllm"]), ("s1", []), ("s2", ["av", "vllm"])):
        scheduler.online(slot, packages=packages)
    job_id = scheduler.job(num_chunks=9, needs=Needs(packages=frozenset({"av", "vllm"})))
    scheduler.dispatch()
    assert scheduler.live() == {"s2": job_id}


def test_jobs_that_wait_for_a_host_do_not_hide_those_behind_them(scheduler: ManualScheduler) -> None:
    scheduler.online("s0")
    for label in ("away", "gone"):
        needs = Needs(labels=frozenset({label}))
        waiting = [scheduler.job(num_chunks=1, needs=needs) for _ in range(100)]
    other = scheduler.job(num_chunks=1)
    assert scheduler.dispatch() == 1
    assert scheduler.live() == {"s0": other}
    with scheduler.db.read() as session:
        assert "label gone" in explain(session, scheduler.settings)[waiting[0]]


def test_many_trainings_that_wait_do_not_hide_inference(scheduler: ManualScheduler) -> None:
    scheduler.online("s0")
    training = {"kind": "training", "task": "text-classification", "data": {"train": "rows.jsonl"}, "slots": 4}
    for _ in range(100):
        spec = parse_spec({"model": "org/name", **training})
        planning.enqueue(scheduler.db, job_ledger.submit(scheduler.db, spec).id)
    other = scheduler.job(num_chunks=1)
    assert scheduler.dispatch() == 1
    assert scheduler.live() == {"s0": other}


def test_a_job_gets_a_slot_that_meets_its_needs_and_waits_for_one(scheduler: ManualScheduler) -> None:
    scheduler.online("small", device="cuda", memory_bytes=16 * 10**9)
    scheduler.online("plain", device="cuda", memory_bytes=80 * 10**9)
    scheduler.online("a100", device="cuda", memory_bytes=80 * 10**9, labels=["a100"])
    needs = Needs(memory_bytes=40 * 10**9, device="cuda", labels=frozenset({"a100"}))
    first, second = (scheduler.job(num_chunks=1, needs=needs) for _ in range(2))
    scheduler.dispatch()
    assert scheduler.live() == {"a100": first}
    anyone = scheduler.job(num_chunks=1)
    scheduler.dispatch()
    assert scheduler.live() == {"a100": first, "small": anyone}, "the large one is left to others"
    with scheduler.db.read() as session:
        reasons = explain(session, scheduler.settings)
    assert reasons[second] == (
        "number 1 in the queue; the only slot with 40 GB of memory, device cuda, label a100 is busy with jobs before it"
    )


def test_a_slot_that_missed_its_heartbeats_gets_no_new_lease(scheduler: ManualScheduler) -> None:
    """Otherwise a job would wait for a dead worker while another slot is free."""
    scheduler.online("s0", "s1")
    scheduler.time += scheduler.settings.slot_seconds * 0.6
    scheduler.beat("s1")
    job_id = scheduler.job(num_chunks=9)
    scheduler.dispatch()
    assert scheduler.live() == {"s1": job_id}


def test_a_chunk_that_backs_off_requests_no_slot(scheduler: ManualScheduler) -> None:
    scheduler.online("s0")
    job_id = scheduler.job(num_chunks=1)
    with scheduler.db.write() as session:
        session.execute(update(Chunk).values(not_before=scheduler.time + 5.0))
    assert scheduler.dispatch() == 0
    scheduler.time += 5.0
    assert scheduler.dispatch() == 1
    assert scheduler.live() == {"s0": job_id}


def test_a_running_job_without_pending_chunks_blocks_no_other(scheduler: ManualScheduler) -> None:
    scheduler.online("s0", "s1")
    first = scheduler.job(num_chunks=1)
    scheduler.dispatch()
    chunks.claim(scheduler.db, scheduler.activate("s0"), limit=1)
    second = scheduler.job(num_chunks=1)
    scheduler.dispatch()
    assert scheduler.live() == {"s0": first, "s1": second}


def test_only_the_head_of_a_long_queue_is_read(scheduler: ManualScheduler) -> None:
    scheduler.online("s0")
    waiting = [scheduler.job(num_chunks=1, priority="low") for _ in range(100)]
    last = scheduler.job(num_chunks=1, priority="high")
    with scheduler.db.read() as session:
        views = read_policy_input(session, scheduler.settings)
    assert len(views.jobs) < 80
    scheduler.dispatch()
    assert scheduler.live() == {"s0": last}
    with scheduler.db.read() as session:
        assert waiting[0] in explain(session, scheduler.settings)


def test_a_job_that_waited_a_day_precedes_a_newer_one_of_higher_priority(scheduler: ManualScheduler) -> None:
    scheduler.online("s0")
    low = scheduler.job(num_chunks=1, priority="low")
    scheduler.time += DAY + 60
    scheduler.job(num_chunks=1, priority="normal")
    scheduler.beat("s0")
    scheduler.dispatch()
    assert scheduler.live() == {"s0": low}


def test_a_job_that_had_slots_lately_has_not_waited(scheduler: ManualScheduler) -> None:
    scheduler.online("s0")
    low = scheduler.job(priority="low")
    scheduler.time += DAY + 60
    scheduler.beat("s0")
    scheduler.dispatch()
    leases.release(scheduler.db, scheduler.activate("s0"), "yielded")
    normal = scheduler.job(num_chunks=1, priority="normal")
    scheduler.time += 60
    scheduler.beat("s0")
    scheduler.dispatch()
    assert scheduler.live() == {"s0": normal}
    with scheduler.db.read() as session:
        waited = {view.id: view.waited_seconds for view in read_policy_input(session, scheduler.settings).jobs}
    assert waited[low] == pytest.approx(60.0)


def test_without_redis_the_grant_stands_and_the_ring_is_left_to_the_reaper(
    scheduler: ManualScheduler, redis_server: RedisServer
) -> None:
    redis_server.kill()
    scheduler.online("s0", "s1")
    scheduler.job()
    assert scheduler.dispatch() == 2
    assert len(scheduler.live()) == 2


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


def test_an_idle_system_sends_at_most_two_statements(scheduler: ManualScheduler) -> None:
    scheduler.online("s0", "s1")
    assert count_statements(scheduler.db, lambda: (scheduler.reap(), scheduler.dispatch())) <= 2


def test_a_lease_that_was_not_renewed_is_given_back(scheduler: ManualScheduler) -> None:
    scheduler.online("s0")
    job_id = scheduler.job()
    scheduler.dispatch()
    chunks.claim(scheduler.db, scheduler.activate("s0"), limit=2)
    scheduler.time += scheduler.settings.lease_seconds + 1
    scheduler.beat("s0")
    scheduler.reap()
    assert scheduler.live() == {}
    scheduler.reap()
    assert job_state(scheduler.db, job_id) == JobState.QUEUED, "a job that holds no slot says that it waits"
    assert scheduler.dispatch() == 1


def test_an_unanswered_doorbell_rings_again_then_its_slot_is_unheard(scheduler: ManualScheduler) -> None:
    scheduler.online("s0")
    scheduler.job()
    scheduler.dispatch()
    for _ in range(scheduler.settings.doorbell_rings - 1):
        scheduler.time += scheduler.settings.doorbell_seconds
        scheduler.beat("s0")
        scheduler.reap()
        assert len(scheduler.live()) == 1
    assert scheduler.lease_on("s0").rings == scheduler.settings.doorbell_rings
    scheduler.time += scheduler.settings.doorbell_seconds
    scheduler.beat("s0")
    scheduler.reap()
    assert scheduler.live() == {}
    with scheduler.db.read() as session:
        assert session.get_one(Slot, "s0").state == SlotState.UNHEARD


@pytest.mark.parametrize("trouble", [RedisServer.refusing_writes, RedisServer.away], ids=["full", "away"])
def test_no_slot_is_blamed_for_a_doorbell_that_could_not_ring(
    scheduler: ManualScheduler,
    redis_server: RedisServer,
    trouble: Callable[[RedisServer], AbstractContextManager[None]],
) -> None:
    """Otherwise every slot would become unheard in turn while Redis is away."""
    with trouble(redis_server):
        scheduler.online("s0")
        scheduler.job()
        scheduler.dispatch()
        for _ in range(2 * scheduler.settings.doorbell_rings):
            scheduler.time += scheduler.settings.doorbell_seconds
            scheduler.beat("s0")
            scheduler.reap()
        assert scheduler.lease_on("s0").rings == 1
    scheduler.reap()
    assert scheduler.lease_on("s0").rings == 2


def test_a_silent_slot_goes_offline(scheduler: ManualScheduler) -> None:
    scheduler.online("s0")
    scheduler.time += scheduler.settings.slot_seconds + 1
    scheduler.reap()
    with scheduler.db.read() as session:
        assert session.get_one(Slot, "s0").state == SlotState.OFFLINE


def test_a_job_past_its_time_limit_is_expired(scheduler: ManualScheduler) -> None:
    job_id = scheduler.job(time_limit="1h")
    scheduler.time += 3601
    scheduler.reap()
    assert job_state(scheduler.db, job_id) == JobState.EXPIRED


def test_a_cancel_is_settled_when_the_last_holder_is_dead(scheduler: ManualScheduler) -> None:
    scheduler.online("s0")
    job_id = scheduler.job()
    scheduler.dispatch()
    scheduler.activate("s0")
    job_ledger.cancel(scheduler.db, job_id)
    assert job_state(scheduler.db, job_id) == JobState.CANCELLING
    scheduler.time += scheduler.settings.lease_seconds + 1
    scheduler.reap()
    assert job_state(scheduler.db, job_id) == JobState.CANCELLED


# -- finalizer


def test_a_finalizing_that_was_cut_off_is_done_again(
    scheduler: ManualScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler.online("s0")
    out = tmp_path / "out.jsonl"
    job_id = scheduler.job(output={"to": "jsonl", "path": str(out)})

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(job_ledger, "complete", cut_off)
        with pytest.raises(KeyboardInterrupt):
            scheduler.finish(job_id, "s0")
    first = out.read_bytes()
    assert job_state(scheduler.db, job_id) == JobState.FINALIZING
    finalize_job(scheduler.db, scheduler.store, scheduler.settings, job_id)
    finalize_job(scheduler.db, scheduler.store, scheduler.settings, job_id)
    assert job_state(scheduler.db, job_id) == JobState.COMPLETED
    assert out.read_bytes() == first
    assert len(first.splitlines()) == 40


# -- retention


def test_parts_that_no_chunk_names_are_deleted_and_results_stay_readable(scheduler: ManualScheduler) -> None:
    scheduler.online("s0")
    job_id = scheduler.job(output={"to": "jsonl"})
    orphan = part_key(job_id, 0, "lease_lost", ".jsonl")
    scheduler.store.put(orphan, [b"{}\n"])
    scheduler.retain()
    assert scheduler.store.exists(orphan), "the job still runs: its writer may be about to commit"
    scheduler.finish(job_id, "s0")
    scheduler.retain()
    assert not scheduler.store.exists(orphan)
    sink = open_sink(
        parse_spec(spec_of_job(scheduler, job_id)).output,
        vector_output=False,
        database=scheduler.db,
        store=scheduler.store,
    )
    assert [result.row_index for result in sink.read(job_id, after_row=34)] == [35, 36, 37, 38, 39]


def spec_of_job(scheduler: ManualScheduler, job_id: str) -> dict[str, Any]:
    with scheduler.db.read() as session:
        return job_ledger.get(session, job_id).spec


def upload(scheduler: ManualScheduler, file_id: str, *, expires_at: float | None = None) -> None:
    scheduler.store.put(upload_key(file_id), [b'{"text":"a"}\n'])
    with scheduler.db.write() as session:
        session.add(
            StoredFile(
                id=file_id, filename="rows.jsonl", purpose="batch", key=upload_key(file_id), num_bytes=13, sha256="",
                created_at=scheduler.time, expires_at=expires_at,
            )
        )  # fmt: skip


def test_expired_uploads_are_deleted_unless_a_live_job_reads_them(scheduler: ManualScheduler) -> None:
    upload(scheduler, "file_short", expires_at=scheduler.time + 10)
    upload(scheduler, "file_used", expires_at=scheduler.time + 10)
    upload(scheduler, "file_old")
    job_id = scheduler.job(input={"path": "file:file_used"})
    scheduler.retain()
    assert scheduler.store.exists(upload_key("file_short"))
    scheduler.time += 11
    scheduler.retain()
    assert [scheduler.store.exists(upload_key(name)) for name in ("file_short", "file_used", "file_old")] == [
        False,
        True,
        True,
    ]
    job_ledger.cancel(scheduler.db, job_id)
    scheduler.time += scheduler.settings.upload_days * DAY
    scheduler.retain()
    assert list(scheduler.store.list("uploads/")) == []
    with scheduler.db.read() as session:
        assert session.scalars(select(StoredFile)).all() == []


def test_old_jobs_are_deleted_with_all_their_rows_and_others_stay(scheduler: ManualScheduler) -> None:
    scheduler.online("s0")
    old = scheduler.job(output={"to": "jsonl"})
    scheduler.finish(old, "s0")
    old_rows = scheduler.job()
    scheduler.finish(old_rows, "s0")
    scheduler.time += 10 * DAY
    scheduler.retain()
    assert job_state(scheduler.db, old) == JobState.COMPLETED, "jobs are kept unless job_days says otherwise"
    waiting, fresh = scheduler.job(), scheduler.job()
    scheduler.finish(fresh, "s0")
    scheduler.settings = scheduler.settings.model_copy(update={"job_days": 7.0})
    scheduler.retain()
    with scheduler.db.read() as session:
        assert set(session.scalars(select(col(Job.id)))) == {waiting, fresh}
        for table in (Chunk, Lease, Event, ResultRecord):
            assert set(session.scalars(select(table.job_id))) <= {waiting, fresh}
        assert list(history.events(session, fresh))
    assert list(scheduler.store.list("jobs/")) == []


def test_no_job_can_name_an_upload_whose_deletion_has_begun(
    scheduler: ManualScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["file_a", "file_b", "file_c"]
    for name in names:
        upload(scheduler, name, expires_at=scheduler.time)
    found: list[str] = []

    def delete(_key: str) -> None:
        for name in names:
            with suppress(NotFound):
                found.append(find_upload(scheduler.db, name).id)
        raise ServiceUnavailable("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler.store, "delete", delete)
        with pytest.raises(ServiceUnavailable):
            scheduler.retain()
    assert found == []
    scheduler.retain()
    assert list(scheduler.store.list("uploads/")) == []
    with scheduler.db.read() as session:
        assert session.scalars(select(StoredFile)).all() == []


def test_an_old_job_is_kept_while_a_live_job_or_cron_uses_its_model(scheduler: ManualScheduler) -> None:
    scheduler.online("s0")
    ended = [scheduler.job(output={"to": "jsonl"}) for _ in range(6)]
    for job_id in ended:
        scheduler.finish(job_id, "s0")
    model, processor, of_cron, one_value, other_value, unused = ended
    live = [
        scheduler.job(0, model=f"job:{model}"),
        submit(scheduler, training(model={"architecture": "bert", "processor": f"job:{processor}"})),
        submit(scheduler, training(model="job:${value}", array={"values": [one_value, other_value]})),
    ]
    spec = parse_single(training(model=f"job:{of_cron}"), "")
    entry = crons.add(scheduler.db, "nightly", parse_schedule("0 7 * * *", "UTC"), spec, project="default")
    scheduler.time += 10 * DAY
    scheduler.settings = scheduler.settings.model_copy(update={"job_days": 7.0})
    scheduler.retain()
    with scheduler.db.read() as session:
        assert set(session.scalars(select(col(Job.id)))) == {*ended, *live} - {unused}
    assert len(list(scheduler.store.list("jobs/"))) == 5 * 5, "each has a file and its parts"
    crons.remove(scheduler.db, entry.id)
    for job_id in live:
        job_ledger.cancel(scheduler.db, job_id)
    scheduler.retain()
    with scheduler.db.read() as session:
        assert set(session.scalars(select(col(Job.id)))) == set(live)


def training(**fields: Any) -> dict[str, Any]:
    return {"kind": "training", "task": "text-classification", "data": {"train": "rows.jsonl"}, **fields}


def submit(scheduler: ManualScheduler, document: dict[str, Any]) -> str:
    return job_ledger.submit(scheduler.db, parse_submission(document)).id


def test_many_old_jobs_are_deleted_in_few_transactions(
    scheduler: ManualScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_BATCH_JOBS", 40)
    ended = {"state": JobState.COMPLETED, "spec": {}, "created_at": 1.0, "ended_at": 2.0}
    with scheduler.db.write() as session:
        session.add(Slot(id="s0", host="h", device="cpu", name="CPU", registered_at=1.0, heartbeat_at=1.0))
        for number in range(100):
            job_id = f"job_{number}"
            session.add(Job(id=job_id, kind="inference", **ended))
            session.flush()
            session.add_all([
                Chunk(job_id=job_id, start_row=0, stop_row=3, locator={}, state=ChunkState.DONE),
                *(ResultRecord(job_id=job_id, row_index=row, output="1") for row in range(3)),
                *(Event(job_id=job_id, at=1.0, name="chunks.done") for _ in range(5)),
                Notice(job_id=job_id, code="padding", message="a notice", at=1.0),
                Lease(
                    id=f"lease_{number}", job_id=job_id, slot_id="s0", state=LeaseState.RELEASED, granted_at=1.0,
                    rung_at=1.0, expires_at=1.0,
                ),
                LeaseCounts(lease_id=f"lease_{number}", job_id=job_id, num_done=3),
            ])  # fmt: skip
    kept = scheduler.job()
    scheduler.settings = scheduler.settings.model_copy(update={"job_days": 1.0})
    with count_commits(scheduler.db) as commits:
        scheduler.retain()
    assert commits.number < 50, "three times as many transactions as tables, however many jobs"
    with scheduler.db.read() as session:
        assert session.scalars(select(col(Job.id))).all() == [kept]
        for table in (Chunk, Event, Lease, LeaseCounts, Notice, ResultRecord):
            assert set(session.scalars(select(table.job_id))) <= {kept}


def test_old_deliveries_are_deleted_and_unsent_ones_are_kept(scheduler: ManualScheduler) -> None:
    webhook = webhooks.create(scheduler.db, "https://hooks.test/", events=[], project="default")
    waiting, delivered, failed = (webhooks.announce_test(scheduler.db, webhook.id).id for _ in range(3))

    def claimed() -> webhooks.Sending:
        sending = webhooks.claim(scheduler.db, webhook.id, max_attempts=3, claim_seconds=30)
        assert sending is not None
        return sending

    def kept() -> set[str]:
        with scheduler.db.read() as session:
            return {delivery.id for delivery in webhooks.deliveries(session, webhook.id)[0]}

    by_id = {sending.delivery_id: sending for sending in (claimed(), claimed(), claimed())}
    webhooks.record_delivered(scheduler.db, by_id[delivered], 200)
    error, once = MachineError("answered 500"), RetryPolicy(1, 1.0, 1.0)
    webhooks.record_failed(scheduler.db, by_id[failed], error, once, status_code=500)
    scheduler.time += scheduler.settings.webhook_days * DAY
    scheduler.retain()
    assert kept() == {waiting, delivered, failed}
    scheduler.time += 1
    scheduler.retain()
    assert kept() == {waiting}


def test_what_needs_no_store_is_deleted_while_the_store_is_away(
    scheduler: ManualScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler.online("s0")
    old = scheduler.job()
    scheduler.finish(old, "s0")
    upload(scheduler, "file_a", expires_at=scheduler.time)
    scheduler.time += 10 * DAY
    scheduler.settings = scheduler.settings.model_copy(update={"job_days": 7.0})

    def delete(key: str) -> None:
        raise ServiceUnavailable(f"cannot delete {key}")

    monkeypatch.setattr(scheduler.store, "delete", delete)
    with pytest.raises(ServiceUnavailable, match="cannot delete uploads/file_a"):
        scheduler.retain()
    with scheduler.db.read() as session:
        assert session.scalars(select(col(Job.id))).all() == [], "its results are in the database"
        assert session.scalars(select(col(StoredFile.id))).all() == ["file_a"]


# -- metrics


def test_metrics_are_right(scheduler: ManualScheduler) -> None:
    scheduler.online("s0", "s1")
    scheduler.finish(scheduler.job(), "s0")
    running = scheduler.job(num_chunks=3, slots={"max": 1})
    scheduler.dispatch()
    slot_id = next(slot_id for slot_id, job_id in scheduler.live().items() if job_id == running)
    chunks.claim(scheduler.db, scheduler.activate(slot_id), limit=1)
    scheduler.time += 5
    scheduler.job(num_chunks=2)
    scheduler.job(num_chunks=0)
    scheduler.time += 7
    numbers = metrics.snapshot(scheduler.db)
    wanted = {JobState.COMPLETED: 1, JobState.RUNNING: 1, JobState.QUEUED: 1, JobState.VALIDATING: 1}
    assert numbers.jobs == {state: wanted.get(state, 0) for state in JobState}
    assert numbers.slots == {state: 2 if state == SlotState.ONLINE else 0 for state in SlotState}
    assert (numbers.slots_busy, numbers.leased_chunks) == (1, 1)
    assert numbers.rows_waiting == sum(job.num_rows for job in unfinished(scheduler.db))
    assert (numbers.rows_done, numbers.rows_failed) == (40, 0)
    assert numbers.oldest_wait_seconds == pytest.approx(7.0)


def unfinished(db: Database) -> list[Job]:
    """The queued and running jobs."""
    with db.read() as session:
        return list(session.scalars(select(Job).where(col(Job.state).in_((JobState.QUEUED, JobState.RUNNING)))))


def test_metrics_of_an_empty_system(scheduler: ManualScheduler) -> None:
    numbers = metrics.snapshot(scheduler.db)
    assert (numbers.rows_waiting, numbers.rows_done, numbers.oldest_wait_seconds) == (0, 0, 0.0)


def test_the_jobs_of_one_project_hide_those_of_no_other(scheduler: ManualScheduler) -> None:
    """Otherwise a project that submits thousands of jobs would get all slots."""
    scheduler.online("s0", "s1")
    document = {"task": "text-classification", "model": "org/name", "input": {"path": "rows.jsonl"}}
    for number in range(80):
        project = "many" if number < 79 else "one"
        job = job_ledger.submit(scheduler.db, parse_spec(document), project=project)
        planning.plan(scheduler.db, job.id, [ChunkRange(0, 10, {})])
        scheduler.time += 1
    scheduler.beat("s0", "s1")
    scheduler.dispatch()
    with scheduler.db.read() as session:
        holders = [session.get_one(Job, job_id).project for job_id in scheduler.live().values()]
    assert sorted(holders) == ["many", "one"]
