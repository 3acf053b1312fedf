"""Writes a runner's output to the job's log: lines are collected, time-stamped and written in batches."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from jobs.config.settings import ApiAddress
from jobs.db.database import Database
from jobs.errors import ServiceUnavailable
from jobs.ledger import logs
from jobs.ledger.leasing.leases import WorkingLease

logger = logging.getLogger(__name__)
_mirror = logging.getLogger("runner")

_BATCH_LINES = 100
_BATCH_SECONDS = 0.5
_MAX_WAITING = 10_000  # lines; while the database is away, they must not fill the memory


@dataclass(slots=True)
class _LeaseLog:
    """The lines of one lease's runner that are not yet written, and the number of lines dropped."""

    lease: WorkingLease
    waiting: list[tuple[float, str]] = field(default_factory=list)
    num_taken: int = 0
    num_dropped: int = 0
    is_closed: bool = False


class JobLog:
    """Accepts lines from any thread without blocking it; a separate thread writes them."""

    def __init__(self, database: Database, api_address: ApiAddress, *, max_lines: int) -> None:
        """
        Args:
            database: Where the lines are stored.
            api_address: The settings that contain secrets, which are removed from the lines.
            max_lines: Maximum number of lines kept for one lease.
        """
        self._database, self._max_lines = database, max_lines
        self._secrets = _secrets(api_address)
        self._changed = threading.Condition()
        self._open: _LeaseLog | None = None
        self._logs: list[_LeaseLog] = []  # oldest first; the open one is the last
        self._ending = False
        self._writer = threading.Thread(target=self._write, name="job-log", daemon=True)
        self._writer.start()

    def open(self, lease: WorkingLease) -> None:
        """Assign the lines from now on to this lease."""
        with self._changed:
            self._close_open()
            self._open = _LeaseLog(lease)
            self._logs.append(self._open)

    def close(self) -> None:
        """Assign the lines from now on to no lease."""
        with self._changed:
            self._close_open()
            self._changed.notify_all()

    def line(self, at: float, text: str) -> None:
        """Add one line, written at `at` Unix seconds. It always goes to the worker's own log too."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        _mirror.info("%s", text)
        with self._changed:
            log = self._open
            if log is None:
                return
            if log.num_taken >= self._max_lines or len(log.waiting) >= _MAX_WAITING:
                log.num_dropped += 1
                return
            log.num_taken += 1
            log.waiting.append((at, text))
            if len(log.waiting) in (1, _BATCH_LINES):
                self._changed.notify_all()

    def end(self) -> None:
        """Write the remaining lines and stop."""
        with self._changed:
            self._close_open()
            self._ending = True
            self._changed.notify_all()
        self._writer.join()

    # -- the writing thread

    def _close_open(self) -> None:
        if self._open is not None:
            self._open.is_closed = True
            self._open = None

    def _write(self) -> None:
        out_of_reach = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ending or any(log.waiting or log.is_closed for log in self._logs))
                if not self._ending:  # wait until a batch is full
                    self._changed.wait_for(self._is_urgent, timeout=_BATCH_SECONDS)
                work = [(log, log.waiting, log.is_closed) for log in self._logs]
                for log, _, _ in work:
                    log.waiting = []
                self._logs = [log for log, _, is_closed in work if not is_closed]
                ending = self._ending
            for log, lines, is_closed in work:
                try:
                    self._write_lines(log, lines, is_closed)
                    out_of_reach = False
                except ServiceUnavailable as error:
                    log.num_dropped += len(lines)
                    if not out_of_reach:
                        logger.warning("log lines of job %s are dropped: %s", log.lease.job_id, error)
                    out_of_reach = True
            if ending:
                return

    def _is_urgent(self) -> bool:
        return self._ending or any(log.is_closed or len(log.waiting) >= _BATCH_LINES for log in self._logs)

    def _write_lines(self, log: _LeaseLog, lines: Sequence[tuple[float, str]], is_closed: bool) -> None:
        if lines:
            logs.append(self._database, log.lease, lines, max_lines=self._max_lines)
        if is_closed and log.num_dropped and self._max_lines:
            note = f"[{log.num_dropped} more lines were not kept; log_lines is {self._max_lines}]"
            logs.append(self._database, log.lease, [(time.time(), note)], max_lines=self._max_lines + 1)


def _secrets(api_address: ApiAddress) -> list[str]:
    """The passwords and keys to remove from log lines, since an error's message may quote them."""
    urls = [url for url in (api_address.resolved_database_url, api_address.resolved_redis_url) if "@" in url]
    passwords = [password for url in urls for password in (make_url(url).password, urlsplit(url).password)]
    return [secret for secret in (*passwords, api_address.api_key.get_secret_value()) if secret]
