"""The two doorbells over a real Redis: they ring, they never block for long, and an outage costs nothing but time."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path

import pytest

from jobs.errors import ServiceUnavailable
from jobs.queue import Doorbell, connect, make_app, queue_name, ring
from jobs.settings import Settings
from tests.conftest import RedisServer


@pytest.fixture
def queue_settings(tmp_path: Path, redis_server: RedisServer) -> Settings:
    """Settings that point at the test's own Redis."""
    return Settings(data_dir=tmp_path, redis_url=redis_server.url)


def test_a_ring_puts_one_lease_id_into_the_slots_queue(queue_settings: Settings) -> None:
    """Lost: the message a worker waits for, and that nothing but an id crosses Redis."""
    app = make_app(queue_settings)
    ring(app, "host-cpu0", "lease_1")
    with connect(queue_settings) as client:
        (message,) = client.lrange(f"stoker:{queue_name('host-cpu0')}", 0, -1)
    arguments, keywords, _ = json.loads(base64.b64decode(json.loads(message)["body"]))
    assert (arguments, keywords) == (["lease_1"], {})
    app.close()


def test_ringing_without_redis_fails_in_bounded_time_with_one_sentence(
    queue_settings: Settings, redis_server: RedisServer
) -> None:
    """Lost: a scheduler that hangs on a dead Redis."""
    redis_server.kill()
    app = make_app(queue_settings)
    with pytest.raises(ServiceUnavailable, match="Redis cannot be reached"):
        ring(app, "s0", "lease_1")
    redis_server.start()
    ring(app, "s0", "lease_2")
    app.close()


def test_many_rings_wake_once(queue_settings: Settings) -> None:
    """Lost: a scheduler that spins through a queue of old rings."""
    bell = Doorbell(queue_settings)
    for _ in range(5):
        assert bell.wake()
    assert bell.wait(60.0)
    assert not bell.wait(0.05)
    bell.close()


def test_a_wait_ends_with_a_ring_from_elsewhere_and_with_close(queue_settings: Settings) -> None:
    """Lost: the wake-up that makes the next job start at once, and a clean shutdown."""
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
    """Lost: a scheduler that dies with Redis."""
    bell = Doorbell(queue_settings)
    redis_server.kill()
    assert not bell.wake()
    assert not bell.wait(0.05)
    redis_server.start()
    assert bell.wake()
    assert bell.wait(60.0)
    bell.close()
