"""Speeds are measured from what leases and attempts recorded, kept when a job completes, and found again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest

from jobs.access.pins import PinnedFile, PinnedFiles, Pins
from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.ledger import attempts, chunks, planning
from jobs.ledger import jobs as job_ledger
from jobs.ledger.chunks import ChunkResults
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.ledger.timing import rates, speeds
from jobs.ledger.timing.rates import Rates
from jobs.ledger.timing.speeds import Measured, Speed, SpeedKey, Unit
from jobs.ledger.timing.stage_times import StageTimes
from jobs.ledger.timing.workloads import Workload, workload_of
from jobs.specs.inference import parse_spec
from tests.support.ledger import SPEC, hold, make_job, make_slots, results_of

TRAINING = {"kind": "training", "task": "text-classification", "model": "m", "data": {"train": "rows.jsonl"}}


class Clock:
    """A clock that the test sets."""

    time = 1_000_000.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def db(database_url: str, clock: Clock) -> Iterator[Database]:
    database = Database(database_url, clock=lambda: clock.time)
    yield database
    database.close()


def complete(db: Database, job_id: str, slot_id: str, seconds: float, *, load: float = 0.0) -> None:
    """Record all of a job in so many seconds of work, after loading its model for so many, and complete it."""
    lease_id = hold(db, job_id, slot_id)
    claims = chunks.claim(db, lease_id, limit=100)
    num_rows = claims[-1].stop_row
    times = StageTimes(
        wait=seconds / 4, forward=seconds * 3 / 4, load=load, num_rows=num_rows, num_row_tokens=2 * num_rows
    )
    computed = [ChunkResults(one.start_row, one.stop_row, results_of(one.start_row, one.stop_row)) for one in claims]
    chunks.commit(db, lease_id, computed, stage_times=times)
    leases.release(db, lease_id, "drained")
    job_ledger.complete(db, job_id, [])


def known(db: Database, model: str = "m") -> dict[SpeedKey, Speed]:
    with db.read() as session:
        return speeds.of_models(session, [model])


def test_a_completed_job_leaves_the_speed_of_its_slot(db: Database, settings: Settings) -> None:
    make_slots(db, settings, "s0")
    assert known(db) == {}, "what was never measured must be unknown"
    complete(db, make_job(db), "s0", seconds=8.0)
    found = known(db)
    key = SpeedKey(workload_of(SPEC, None), "cpu CPU", 1, Unit.ROWS)
    assert set(found) == {key, replace(key, unit=Unit.TOKENS)}
    assert found[key].per_second == pytest.approx(40 / 8.0)
    assert found[replace(key, unit=Unit.TOKENS)].per_second == pytest.approx(80 / 8.0)


def test_the_time_of_loading_is_kept_beside_the_speed(db: Database, settings: Settings) -> None:
    make_slots(db, settings, "s0")
    with db.read() as session:
        assert rates.of_jobs(session, [make_job(db)]) == {}
    complete(db, make_job(db), "s0", seconds=8.0, load=20.0)
    job_id = make_job(db)
    complete(db, job_id, "s0", seconds=8.0)
    with db.read() as session:
        found = rates.of_jobs(session, [job_id, "job_other"])
    assert found == {job_id: Rates({"cpu CPU": pytest.approx(5.0)}, {"cpu CPU": pytest.approx(20.0)})}
    complete(db, make_job(db), "s0", seconds=8.0, load=5.0)
    with db.read() as session:
        seconds = rates.of_jobs(session, [job_id])[job_id].loading_seconds["cpu CPU"]
    assert 5.0 < seconds < 20.0


def test_the_latest_commit_of_a_model_says_how_long_it_loads(db: Database) -> None:
    workload = Workload("org/m", "", "embeddings", "", "auto")
    with db.write() as tx:
        for commit, seconds in (("a", 10.0), ("b", 30.0)):
            key = SpeedKey(replace(workload, revision=commit), "cpu CPU", 1, Unit.LOADS)
            speeds.store(tx, key, speeds.NOTHING.with_measured(Measured(key, 1.0, seconds)))
        found = rates.of_workloads(tx, {workload, replace(workload, revision="a"), replace(workload, dtype="float32")})
    seconds = {one.revision: known.loading_seconds["cpu CPU"] for one, known in found.items()}
    assert seconds == {"": pytest.approx(30.0), "a": pytest.approx(10.0)}


def test_the_work_that_is_left_counts_by_the_slots_that_do_it() -> None:
    known = Rates({"gpu": 100.0, "cpu": 1.0}, {"gpu": 5.0})
    assert known.work_seconds(1000, ["gpu", "gpu"]) == pytest.approx(10.0)
    assert known.work_seconds(1000, ["gpu", "cpu"]) == pytest.approx(2 * 1000 / 101)
    assert known.work_seconds(1000, []) == pytest.approx(10.0), "before it starts: on the fastest"
    assert known.work_seconds(1000, ["gpu", "tpu"]) is None
    assert rates.UNKNOWN.work_seconds(1000, []) is None


def test_later_jobs_move_the_mean_and_show_the_spread(db: Database, settings: Settings) -> None:
    make_slots(db, settings, "s0")
    for seconds in (10.0, 10.0, 40.0):
        complete(db, make_job(db), "s0", seconds=seconds)
    speed = known(db)[SpeedKey(workload_of(SPEC, None), "cpu CPU", 1, Unit.ROWS)]
    logs, weights = [math.log(4.0), math.log(4.0), math.log(1.0)], [10.0, 10.0, 40.0]
    mean = sum(map(math.prod, zip(logs, weights, strict=True))) / 60
    spread = sum(weight * (log - mean) ** 2 for log, weight in zip(logs, weights, strict=True)) / 60
    assert (speed.log_mean, speed.log_variance, speed.seconds) == pytest.approx((mean, spread, 60.0))


def test_a_running_job_is_measured_by_its_own_leases(db: Database, settings: Settings) -> None:
    make_slots(db, settings, "s0", "s1")
    job_id = make_job(db)
    for slot_id, seconds in (("s0", 2.0), ("s1", 3.0)):
        lease_id = hold(db, job_id, slot_id)
        (claim,) = chunks.claim(db, lease_id, limit=1)
        results = ChunkResults(claim.start_row, claim.stop_row, results_of(claim.start_row, claim.stop_row))
        chunks.commit(db, lease_id, [results], stage_times=StageTimes(forward=seconds, num_rows=10))
    with db.read() as session:
        (rows,) = speeds.measure(session, [job_id])[job_id]
    assert (rows.amount, rows.seconds) == (20, 5.0)
    assert known(db) == {}


def test_a_training_leaves_its_steps_per_second(db: Database, settings: Settings, clock: Clock) -> None:
    """Time before its processes were ready, and after its last step, is no part of its speed."""
    make_slots(db, settings, "s0", "s1")
    spec = parse_spec({**TRAINING, "slots": 2})
    job_id = job_ledger.submit(db, spec).id
    planning.enqueue(db, job_id)
    leader, member = grants.grant(db, Grant(job_id, ("s0", "s1")), lease_seconds=1e6)
    assert leases.activate(db, leader, "s0-1", lease_seconds=1e6) is not None
    assert leases.activate(db, member, "s1-1", lease_seconds=1e6) is not None
    attempts.begin(db, leader, resumed_step=0)
    clock.time += 30
    attempts.advance(db, leader, step=0, total_steps=100, points=())
    for step in (60, 100):
        clock.time += 20
        attempts.advance(db, leader, step=step, total_steps=100, points=())
    clock.time += 500
    attempts.finish(db, leader, [], step=100)
    leases.release(db, leader, "done")
    job_ledger.complete(db, job_id, [])
    ((key, speed),) = known(db).items()
    assert (key.num_slots, key.unit, key.device_name) == (2, Unit.STEPS, "cpu CPU")
    assert speed.per_second == pytest.approx(100 / 40)


def test_old_work_counts_less_and_less() -> None:
    key = SpeedKey(workload_of(SPEC, None), "cpu CPU", 1, Unit.ROWS)
    speed = speeds.NOTHING
    for _ in range(20):
        speed = speed.with_measured(Measured(key, 1000.0, 100.0))
    for _ in range(20):
        speed = speed.with_measured(Measured(key, 100.0, 100.0))
    assert speed.seconds == speeds.REMEMBERED_SECONDS
    assert 1.0 < speed.per_second < 1.2


def test_one_measurement_does_not_pass_for_certainty() -> None:
    key = SpeedKey(workload_of(SPEC, None), "cpu CPU", 1, Unit.ROWS)
    once = speeds.NOTHING.with_measured(Measured(key, 10.0, 1.0))
    often = once
    for _ in range(20):
        often = often.with_measured(Measured(key, 1000.0, 100.0))
    assert once.log_variance == 0.0
    assert once.deviation > 2 * often.deviation > 0


def test_what_changes_the_work_changes_the_workload() -> None:
    base = workload_of(parse_spec(TRAINING), None)
    same = {"arguments": {"max_steps": 10, "learning_rate": 0.1, "seed": 3}, "priority": "low", "name": "x"}
    assert workload_of(parse_spec({**TRAINING, **same}), None) == base
    for other in (
        {"arguments": {"per_device_train_batch_size": 64}},
        {"dtype": "bfloat16"},
        {"data": {"train": "rows.jsonl", "max_length": 64}},
        {"model": {"architecture": "bert", "config": {"hidden_size": 8}, "processor": "m"}},
    ):
        assert workload_of(parse_spec({**TRAINING, **other}), None) != base, other
    files = [Pins(model=PinnedFiles((PinnedFile("model.safetensors", size, "stamp"),))) for size in (10, 20)]
    assert len({workload_of(SPEC, pins) for pins in files}) == 2
    assert Workload(**workload_of(SPEC, files[0]).as_json()) == workload_of(SPEC, files[0])


def test_jobs_of_an_older_release_have_no_speed(db: Database, settings: Settings) -> None:
    make_slots(db, settings, "s0")
    job_id = make_job(db)
    with db.write() as tx:
        job_ledger.get(tx, job_id).workload = None
    complete(db, job_id, "s0", seconds=8.0)
    assert known(db) == {}
