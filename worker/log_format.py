"""How the worker's processes log: to stderr, one line per record with the time, the level and the slot."""

from __future__ import annotations

import logging
import sys
import time

from jobs.messages import first_line

_REPEATED_SECONDS = 60.0
"""Shortest time between two log lines about the same error of Redis."""


class _OneLine(logging.Formatter):
    """Keeps a record on one line, except for a traceback, which means a bug."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, the base class's name
        return super().formatMessage(record).replace("\n", " | ")


class RedisErrors(logging.Filter):
    """Logs each error of Redis as one line without a traceback, and drops its repetitions within a minute.

    Celery and kombu log such an error at each attempt, always with the same traceback through their own code.
    """

    def __init__(self) -> None:
        super().__init__()
        self._logged_at: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown; see `logging.Filter`."""
        if not record.exc_info:
            return True
        import redis  # a training's process, which logs no error of Redis, starts sooner without it
        from kombu.exceptions import OperationalError as BrokerError

        error = record.exc_info[1]
        if not isinstance(error, redis.RedisError | BrokerError):
            return True
        record.msg, record.args = f"{record.getMessage()}: {first_line(error)}", ()
        record.exc_info = record.exc_text = None
        kind, now = (record.name, record.msg), time.monotonic()
        if now < self._logged_at.get(kind, -_REPEATED_SECONDS) + _REPEATED_SECONDS:
            return False
        self._logged_at[kind] = now
        return True


def set_up_logging(who: str) -> None:
    """Send this process's log to stderr.

    Args:
        who: The slot's id, or `supervisor`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RedisErrors())
    handler.setFormatter(_OneLine(f"%(asctime)s %(levelname)s {who} %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for chatty in ("celery.worker.strategy", "celery.app.trace", "kombu", "amqp", "httpx", "filelock", "fsspec"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def set_up_runner_logging() -> None:
    """Send a runner's log to stderr, which becomes the job's log: the keeper adds the time and slot to each line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for chatty in ("httpx", "filelock", "fsspec", "datasets", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
