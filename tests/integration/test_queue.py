"""The two doorbells over a real Redis: they ring, they never block for long, and an outage costs nothing but time."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
from pathlib import Path

import pytest
from kombu import Connection, Consumer, Queue, transport

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import SlotState
from jobs.db.tables import Slot
from jobs.errors import ServiceUnavailable
from jobs.ledger import slots
from jobs.queue import Doorbell, WakeReason, broker_trouble, connect, make_app, queue_name, ring, ring_all
from tests.conftest import RedisServer, wait_until
from worker.keeper import mailbox
from worker.keeper.doorbell_check import DoorbellCheck, DoorbellState
from worker.keeper.heartbeat import Heartbeat
from worker.keeper.mailbox import find_lease_id


@pytest.fixture
def queue_settings(tmp_path: Path, redis_server: RedisServer) -> Settings:
    """Settings that point at the test's own Redis."""
    return Settings(data_dir=tmp_path, redis_url=redis_server.url)


def test_a_ring_puts_one_lease_id_into_the_slots_queue(queue_settings: Settings) -> None:
    app = make_app(queue_settings)
    ring(app, "host-cpu0", "lease_1")
    with connect(queue_settings) as client:
        (message,) = client.lrange(f"stoker:{queue_name('host-cpu0')}", 0, -1)
    arguments, keywords, _ = json.loads(base64.b64decode(json.loads(message)["body"]))
    assert (arguments, keywords) == (["lease_1"], {})
    app.close()


def test_a_pass_rings_all_doorbells_in_one_round_trip_or_none(
    queue_settings: Settings, redis_server: RedisServer
) -> None:
    app = make_app(queue_settings)
    rings = [(f"s{number}", f"lease_{number}") for number in range(1000)]
    with connect(queue_settings) as client:
        ring_all(app, [("warm", "up")])
        before = client.info("stats")["total_reads_processed"]
        ring_all(app, rings)
        # A pipeline of this size is read in some large pieces; a round trip for each ring would be 1,000 reads.
        assert client.info("stats")["total_reads_processed"] - before < 100
        for slot_id, lease_id in rings:
            (message,) = client.lrange(f"stoker:{queue_name(slot_id)}", 0, -1)
            assert find_lease_id(json.loads(message)) == lease_id
        client.flushall()
        with redis_server.refusing_writes(), pytest.raises(ServiceUnavailable, match=r"^Redis refuses to write: "):
            ring_all(app, rings)
        assert client.keys(f"*{queue_name('s')}*") == []
    app.close()


def test_a_ring_goes_to_the_database_that_the_url_names(queue_settings: Settings, redis_server: RedisServer) -> None:
    url = f"{redis_server.url}?virtual_host=3"
    app, received = make_app(queue_settings.model_copy(update={"redis_url": url})), []
    ring(app, "s0", "lease_1")
    with (
        app.connection_for_read() as connection,
        Consumer(
            connection,
            Queue(queue_name("s0"), connection),
            callbacks=[lambda body, message: (received.append(body), message.ack())],
        ),
    ):
        wait_until(lambda: _drained(connection) and bool(received), "the ring is heard")
    assert received[0][0] == ["lease_1"]
    app.close()


def test_ringing_without_redis_fails_in_bounded_time_with_one_sentence(
    queue_settings: Settings, redis_server: RedisServer
) -> None:
    redis_server.kill()
    app = make_app(queue_settings)
    with pytest.raises(ServiceUnavailable, match="Redis cannot be reached"):
        ring(app, "s0", "lease_1")
    redis_server.start()
    ring(app, "s0", "lease_2")
    app.close()


def test_a_redis_that_refuses_writes_is_named_and_not_called_away(
    queue_settings: Settings, redis_server: RedisServer
) -> None:
    app = make_app(queue_settings)
    assert broker_trouble(app) is None
    with redis_server.refusing_writes():
        assert str(broker_trouble(app)).startswith("refuses to write: ")
        with pytest.raises(
            ServiceUnavailable, match=r"^Redis refuses to write: .* the doorbell of slot s0 was not rung$"
        ):
            ring(app, "s0", "lease_1")
    ring(app, "s0", "lease_2")
    app.close()


def test_a_consumer_outlives_a_redis_that_refuses_to_be_read(
    queue_settings: Settings,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As one does that cannot save its data (MISCONF)."""
    monkeypatch.setattr(transport, "_transport_cache", {})  # other tests have used kombu's own
    monkeypatch.setattr(transport, "TRANSPORT_ALIASES", dict(transport.TRANSPORT_ALIASES))
    monkeypatch.setattr(mailbox, "TRANSPORT_ALIASES", transport.TRANSPORT_ALIASES)
    mailbox.install()
    app, received = make_app(queue_settings), []
    with (
        app.connection_for_read() as connection,
        connect(queue_settings) as client,
        Consumer(connection, Queue(queue_name("s0"), connection), callbacks=[lambda body, _: received.append(body)]),
    ):
        client.config_set("min-replicas-to-write", "1")
        with pytest.raises(socket.timeout):
            connection.drain_events(timeout=0.1)
        client.config_set("min-replicas-to-write", "0")
        ring(app, "s0", "lease_1")
        wait_until(lambda: _drained(connection) and bool(received), "the ring is heard")
    assert "the doorbell cannot be read" in caplog.text
    app.close()


def _drained(connection: Connection) -> bool:
    with contextlib.suppress(socket.timeout):
        connection.drain_events(timeout=1.0)
    return True


def test_a_worker_finds_out_whether_its_doorbell_reaches_it(
    queue_settings: Settings, redis_server: RedisServer
) -> None:
    app = make_app(queue_settings)
    patient, hasty = (DoorbellCheck(app, name, echo_seconds=seconds) for name, seconds in (("s0", 3600.0), ("s1", 0.0)))
    with redis_server.refusing_writes():
        assert patient.check() is DoorbellState.NOT_RUNG
    assert (patient.check(), patient.check()) == (DoorbellState.WAITING, DoorbellState.WAITING)
    with connect(queue_settings) as client:
        (message,) = client.lrange(f"stoker:{queue_name('s0')}", 0, -1)
    echo = find_lease_id(json.loads(message))
    assert echo is not None
    assert not patient.is_echo("lease_1"), "a lease is not its own ring"
    assert patient.is_echo(echo)
    assert patient.check() is DoorbellState.WORKS
    assert patient.check() is DoorbellState.WAITING, "the next time it is asked it rings anew"
    assert hasty.check() is DoorbellState.WAITING
    assert hasty.check() is DoorbellState.LOST
    app.close()


@pytest.mark.parametrize(
    ("verdict", "is_online"),
    [(DoorbellState.WORKS, True), (DoorbellState.LOST, False), (DoorbellState.NOT_RUNG, False)],
)
def test_a_slot_that_did_not_answer_a_ring_recovers_or_is_given_up(
    settings: Settings, sqlite_database: Database, verdict: DoorbellState, is_online: bool
) -> None:
    slots.register(sqlite_database, [slots.SlotInfo("s0", "host", "cpu", None, "CPU", 0, 1)])
    asked, received, deaf = threading.Event(), threading.Event(), threading.Event()

    class Scripted:
        def check(self) -> DoorbellState:
            asked.set()
            return verdict

    heartbeat = Heartbeat(
        sqlite_database,
        settings.model_copy(update={"slot_seconds": 0.2}),
        slot_id="s0",
        incarnation="s0-1",
        warm_models=lambda: (),
        doorbell_check=Scripted(),  # type: ignore[arg-type]
        on_displaced=lambda: None,
        on_doorbell_works=received.set,
        on_doorbell_lost=deaf.set,
    )
    heartbeat.enter()

    def slot() -> Slot:
        with sqlite_database.read() as session:
            return session.get_one(Slot, "s0")

    with sqlite_database.write() as session:
        silent = session.get_one(Slot, "s0")
        silent.state, silent.reason = SlotState.UNHEARD, "its worker did not answer the doorbell, which rang 3 times"
    assert asked.wait(60.0)
    if verdict is not DoorbellState.NOT_RUNG:
        assert (received if is_online else deaf).wait(60.0)
    assert (slot().state == SlotState.ONLINE) == is_online
    heartbeat.leave()
    heartbeat.join()


def test_many_rings_wake_once(queue_settings: Settings) -> None:
    bell = Doorbell(queue_settings)
    for _ in range(5):
        assert bell.wake()
    assert bell.wait(60.0)
    assert not bell.wait(0.05)
    bell.close()


def test_a_submission_is_told_apart_from_other_rings(queue_settings: Settings) -> None:
    bell = Doorbell(queue_settings)
    for _ in range(3):
        assert bell.wake(WakeReason.SUBMISSION)
    assert bell.wait(60.0) is WakeReason.SUBMISSION
    assert bell.wait(0.05) is None
    bell.wake()
    assert bell.wait(60.0) is WakeReason.SLOTS
    bell.close()


def test_a_wait_ends_with_a_ring_from_elsewhere_and_with_close(queue_settings: Settings) -> None:
    bell, other = Doorbell(queue_settings), Doorbell(queue_settings)
    threading.Timer(0.1, other.wake).start()
    assert bell.wait(60.0)
    waiting = threading.Thread(target=bell.wait, args=(4.0,))
    waiting.start()
    bell.close()
    waiting.join(300)
    assert not waiting.is_alive()
    other.close()


def test_without_redis_the_bell_is_silent_but_alive(queue_settings: Settings, redis_server: RedisServer) -> None:
    bell = Doorbell(queue_settings)
    redis_server.kill()
    assert not bell.wake()
    assert not bell.wait(0.05)
    redis_server.start()
    assert bell.wake()
    assert bell.wait(60.0)
    bell.close()
