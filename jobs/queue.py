"""The configuration of the Celery app, and the doorbells: each slot's queue, and the lists that wake the scheduler."""

from __future__ import annotations

import base64
import functools
import logging
import threading
import uuid
from collections.abc import Iterable
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import redis
from celery import Celery
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs.config.locations import Locations
from jobs.errors import ServiceUnavailable
from jobs.messages import first_line, short

logger = logging.getLogger(__name__)

TASK = "stoker.run_lease"
_PREFIX = "stoker:"
_SOCKET_SECONDS = 5.0
_OUTAGE_PAUSE_SECONDS = 0.5
_PROBE_KEY = f"{_PREFIX}probe"
_PROBE_SECONDS = 60
_LONGEST_TROUBLE_CHARACTERS = 120


def make_app(locations: Locations) -> Celery:
    """Make the Celery app. The broker is only a doorbell: no late acks, no redelivery, no results.

    Each option was tested with `kill -9` and with loss of Redis. Only `scheduler.control.dispatch.doorbells` repeats a
    ring, if the database requires it.
    """
    app = Celery("stoker", broker=locations.resolved_redis_url)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_create_missing_queues=True,
        task_default_queue="slot.none",
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_pool="threads",
        worker_send_task_events=False,
        task_send_sent_event=False,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=False,  # with it, every client of Redis could shut workers down
        broker_connection_retry_on_startup=True,
        broker_connection_retry=True,
        broker_connection_max_retries=None,
        broker_pool_limit=4,
        broker_transport_options={
            "global_keyprefix": _PREFIX,
            "socket_timeout": _SOCKET_SECONDS + 5.0,  # above the transport's own blocking read
            "socket_connect_timeout": _SOCKET_SECONDS,
            "socket_keepalive": not locations.resolved_redis_url.startswith("redis+socket"),
            "health_check_interval": 10,
            "retry_on_timeout": False,
        },
    )
    return app


def queue_name(slot_id: str) -> str:
    """Name of the queue that only this slot's worker reads."""
    return f"slot.{slot_id}"


def ring(app: Celery, slot_id: str, lease_id: str) -> None:
    """Notify a slot's worker of a lease that was granted to it. The message holds only the lease id.

    Raises:
        ServiceUnavailable: Redis could not be reached in time. The scheduler's `doorbells` ring again later.
    """
    try:
        ring_all(app, [(slot_id, lease_id)])
    except ServiceUnavailable as error:
        raise ServiceUnavailable(f"{error.message}; the doorbell of slot {slot_id} was not rung") from error


def ring_all(app: Celery, rings: Iterable[tuple[str, str]]) -> None:
    """Ring the doorbells of many slots in one round trip, all or none.

    Celery's own way of sending takes several round trips for each message, and tries ten times with growing pauses;
    this detects an outage at once, so that it does not delay the scheduler's other duties.

    Args:
        app: The Celery app whose broker the workers read.
        rings: The slot and the lease of each ring.

    Raises:
        ServiceUnavailable: Redis could not be reached in time, or refuses to write; no doorbell was rung.
    """
    try:
        with _probe(app.conf.broker_url).pipeline(transaction=True) as pipe:
            for slot_id, lease_id in rings:
                name = queue_name(slot_id)
                pipe.lpush(f"{_PREFIX}{name}", orjson.dumps(make_ring(lease_id, name)))
            pipe.execute()
    except (redis.RedisError, OSError) as error:
        raise ServiceUnavailable(f"Redis {_in_words(error)}") from error


def make_ring(lease_id: str, queue: str) -> dict[str, Any]:
    """A task message of Celery for this queue, in the form in which kombu stores it in Redis."""
    message_id = str(uuid.uuid4())
    return {
        "body": base64.b64encode(orjson.dumps([[lease_id], {}, {}])).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"lang": "py", "task": TASK, "id": message_id, "retries": 0, "ignore_result": True},
        "properties": {
            "body_encoding": "base64",
            "correlation_id": message_id,
            "delivery_tag": message_id,
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }


def broker_trouble(app: Celery) -> str | None:
    """Why messages cannot be sent now, in the words of `trouble`; None if they can be sent."""
    return trouble(_probe(app.conf.broker_url))


def trouble(client: redis.Redis) -> str | None:
    """Why Redis cannot be written to, as a phrase to follow the word "Redis"; None if it can.

    A server that responds may still refuse writes: its memory or disk is full, or it is a replica.
    """
    try:
        client.set(_PROBE_KEY, b"1", ex=_PROBE_SECONDS)
    except (redis.RedisError, OSError) as error:
        return _in_words(error)
    return None


def _in_words(error: Exception) -> str:
    if isinstance(error, redis.ResponseError):
        return f"refuses to write: {short(first_line(error), _LONGEST_TROUBLE_CHARACTERS)}"
    return f"cannot be reached: {type(error).__name__}"


def connect(locations: Locations, *, timeout_seconds: float = _SOCKET_SECONDS) -> redis.Redis:
    """Make a Redis client that is independent of Celery's. It connects at its first command."""
    return _client(locations.resolved_redis_url, timeout_seconds)


@functools.lru_cache(maxsize=4)
def _probe(url: str) -> redis.Redis:
    return _client(url, _SOCKET_SECONDS)


def _client(url: str, timeout_seconds: float) -> redis.Redis:
    # One retry is enough after a restart of the server; the ten retries of the library would block for seconds.
    once = Retry(NoBackoff(), 1)
    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": once,
    }
    if url.startswith("redis+socket://"):
        parts = urlsplit(url)
        database = int(parse_qs(parts.query).get("virtual_host", ["0"])[-1].strip("/") or 0)
        return redis.Redis(unix_socket_path=parts.path, db=database, **options)
    return redis.Redis.from_url(url, socket_keepalive=True, **options)


class WakeReason(StrEnum):
    """Why the scheduler is woken; the name of the list in Redis that keeps the ring."""

    SLOTS = f"{_PREFIX}wake"
    """A slot may be free or wanted, or something else may have to be done: all duties look."""
    SUBMISSION = f"{_PREFIX}wake-new"
    """Something was submitted. It is planned before it needs a slot."""


class Doorbell:
    """Wakes the scheduler: any process may ring, and the leader waits.

    A ring is only a hint. Without Redis, each wait lasts until its timeout.
    """

    def __init__(self, locations: Locations) -> None:
        self._ringer = connect(locations, timeout_seconds=1.0)
        self._waiter = connect(locations, timeout_seconds=_SOCKET_SECONDS)
        self._ringing = threading.Lock()  # closing a client while another thread uses it causes odd errors
        self._closed = threading.Event()
        self._hung_up = False
        self._out = False

    def wake(self, reason: WakeReason = WakeReason.SLOTS) -> bool:
        """Ring. Never raises, because a lost ring only delays the scheduler until its next round.

        Returns:
            Whether Redis stored the ring; always False after `close`.
        """
        with self._ringing:
            if self._hung_up:
                return False
            try:
                with self._ringer.pipeline(transaction=True) as pipe:
                    pipe.lpush(reason, b"1")
                    pipe.ltrim(reason, 0, 0)  # one stored ring is enough
                    pipe.execute()
            except (redis.RedisError, OSError) as error:
                self._log_outage(error)
                return False
            self._out = False
            return True

    def wait(self, timeout_seconds: float) -> WakeReason | None:
        """Wait for a ring, at most `timeout_seconds` (and at most 4 s, the socket's limit).

        Returns:
            Why it was rung; None if it was not, during an outage of Redis and after `close`.
        """
        if self._closed.is_set():
            return None
        try:
            found = self._waiter.blpop([*WakeReason], timeout=max(0.01, min(timeout_seconds, _SOCKET_SECONDS - 1.0)))
        except (redis.RedisError, OSError) as error:
            self._log_outage(error)
            self._closed.wait(min(timeout_seconds, _OUTAGE_PAUSE_SECONDS))
            return None
        self._out = False
        if found is None or self._closed.is_set():
            return None
        return next(reason for reason in WakeReason if reason.encode() == found[0])

    def close(self) -> None:
        """End the current wait. Later waits return at once, and later rings do nothing."""
        self._closed.set()
        self.wake()
        with self._ringing:
            self._hung_up = True
            self._ringer.close()

    def _log_outage(self, error: Exception) -> None:
        if not self._out and not self._closed.is_set():
            logger.warning("Redis cannot be reached, looking regularly instead: %s", error)
        self._out = True
