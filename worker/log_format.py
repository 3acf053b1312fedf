"""How the worker's processes log: one line each with the time, the level and the slot, on stderr."""

from __future__ import annotations

import logging
import sys


class _OneLine(logging.Formatter):
    """Keeps a record on one line; only a traceback, which is an error of ours, takes more."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, the base class's name
        return super().formatMessage(record).replace("\n", " | ")


def set_up_logging(who: str) -> None:
    """Send this process's log to stderr.

    Args:
        who: the slot's id, or `supervisor`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(f"%(asctime)s %(levelname)s {who} %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for chatty in ("celery.worker.strategy", "celery.app.trace", "kombu", "amqp", "httpx", "filelock", "fsspec"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def set_up_runner_logging() -> None:
    """Send a runner's log to stderr, which is its job's log: the keeper adds the time and the slot to each line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for chatty in ("httpx", "filelock", "fsspec", "datasets", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
