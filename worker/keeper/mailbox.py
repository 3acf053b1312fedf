"""Accepts only rings from the queue of a slot's Celery worker, whatever else is put into Redis.

kombu and Celery exit or loop forever on a message that they cannot read, and they act on its fields (callbacks, chords,
times). So each message is read here first: a ring is replaced by a new message with nothing but its lease id; any other
message is dropped and logged.

This uses private parts of kombu's Redis transport; `test_queue.py` and `test_host_workers.py` in `tests/integration/`
check that they still work as expected here.
"""

from __future__ import annotations

import base64
import binascii
import logging
import time
from queue import Empty
from typing import Any

import orjson
import redis
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis

from jobs.queue import TASK, make_ring

logger = logging.getLogger(__name__)

_LONGEST_ID = 100
_REFUSED_SECONDS = 0.5
"""Pause after an error reply of Redis before the next request. Signals are handled only after it."""
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""The errors that reading hostile JSON may raise."""


def install() -> None:
    """Make all later connections of this process accept only rings."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"


class _Channel(kombu_redis.Channel):  # type: ignore[misc]
    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except _UNREADABLE as error:
            logger.warning("dropped a message that cannot be read: %s", type(error).__name__)
            raise Empty from error  # the same as for an empty queue
        except redis.ResponseError as error:  # it would end Celery, and the runner's loaded models would be lost
            logger.warning("the doorbell cannot be read", exc_info=error)
            time.sleep(_REFUSED_SECONDS)
            raise Empty from error


class Transport(kombu_redis.Transport):  # type: ignore[misc]
    """kombu's Redis transport, restricted to rings."""

    Channel = _Channel

    def _deliver(self, message: Any, queue: str) -> None:
        lease_id = find_lease_id(message)
        if lease_id is None:
            logger.warning("dropped a message in the queue %s that is not a ring", queue)
            return
        super()._deliver(make_ring(lease_id, queue), queue)


def find_lease_id(message: Any) -> str | None:
    """The lease id of a ring in the form that Redis stores; None if the message is not a ring."""
    try:
        if message["headers"]["task"] != TASK or message["properties"]["body_encoding"] != "base64":
            return None
        ((lease_id,), keywords, _) = orjson.loads(base64.b64decode(message["body"], validate=True))
    except (*_UNREADABLE, binascii.Error):
        return None
    is_id = isinstance(lease_id, str) and 0 < len(lease_id) <= _LONGEST_ID
    return lease_id if is_id and keywords == {} else None
