"""The worker's log has a failure of Redis once and on one line, and every other error with its traceback."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
import redis
from kombu.exceptions import OperationalError

from worker.log_format import RedisErrors

REFUSED = "MISCONF Redis is configured to save RDB snapshots, but cannot"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What a handler with the filter writes of the logger `celery.worker`."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RedisErrors())
    logger = logging.getLogger("celery.worker")
    logger.addHandler(handler)
    yield stream
    logger.removeHandler(handler)


def fail(error: Exception) -> None:
    try:
        raise error
    except type(error):
        logging.getLogger("celery.worker").exception("it ended: %r", "poll")


def test_a_trouble_with_redis_is_one_line_once(written: io.StringIO) -> None:
    for _ in range(3):
        fail(redis.ResponseError(f"{REFUSED}\nmore"))
    fail(redis.exceptions.OutOfMemoryError("command not allowed"))
    fail(OperationalError("gone"))
    assert written.getvalue().splitlines() == [
        f"it ended: 'poll': {REFUSED}",
        "it ended: 'poll': command not allowed",
        "it ended: 'poll': gone",
    ]


def test_other_errors_keep_their_tracebacks_each_time(written: io.StringIO) -> None:
    for _ in range(2):
        fail(KeyError("ours"))
    logging.getLogger("celery.worker").warning("no error")
    logging.getLogger("celery.worker").warning("no error")
    assert written.getvalue().count("Traceback") == 2
    assert written.getvalue().count("no error\n") == 2
