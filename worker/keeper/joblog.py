"""Writes a runner's output to the job's log: lines are collected, time-stamped and written in batches."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.errors import ServiceUnavailable
from jobs.ledger import logs
from jobs.ledger.leases import WorkingLease

logger = logging.getLogger(__name__)
_mirror = logging.getLogger("runner")

_BATCH_LINES = 100
_BATCH_SECONDS = 0.5
_MOST_WAITING = 10_000  # lines; while the database is away, they must not fill the memory


@dataclass(slots=True)
class _Book:
    """The lines of one lease's runner that are not yet written, and the number of lines dropped."""

    lease: WorkingLease
    waiting: list[tuple[float, str]] = field(default_factory=list)
    num_taken: int = 0
    num_dropped: int = 0
    is_closed: bool = False


class JobLog:
    """Accepts lines from any thread without blocking it; a separate thread writes them."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._max_lines = database, settings.log_lines
        self._secrets = _secrets(settings)
        self._changed = threading.Condition()
        self._open: _Book | None = None
        self._books: list[_Book] = []  # oldest first; the open one is the last
        self._ending = False
        self._writer = threading.Thread(target=self._write, name="job-log", daemon=True)
        self._writer.start()

    def open(self, lease: WorkingLease) -> None:
        """Assign the lines from now on to this lease."""
        with self._changed:
            self._close_open()
            self._open = _Book(lease)
            self._books.append(self._open)

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
            book = self._open
            if book is None:
                return
            if book.num_taken >= self._max_lines or len(book.waiting) >= _MOST_WAITING:
                book.num_dropped += 1
                return
            book.num_taken += 1
            book.waiting.append((at, text))
            if len(book.waiting) in (1, _BATCH_LINES):
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
                self._changed.wait_for(
                    lambda: self._ending or any(book.waiting or book.is_closed for book in self._books)
                )
                if not self._ending:  # wait until a batch is full
                    self._changed.wait_for(self._is_urgent, timeout=_BATCH_SECONDS)
                work = [(book, book.waiting, book.is_closed) for book in self._books]
                for book, _, _ in work:
                    book.waiting = []
                self._books = [book for book, _, is_closed in work if not is_closed]
                ending = self._ending
            for book, lines, is_closed in work:
                try:
                    self._keep(book, lines, is_closed)
                    out_of_reach = False
                except ServiceUnavailable as error:
                    book.num_dropped += len(lines)
                    if not out_of_reach:
                        logger.warning("log lines of job %s are dropped: %s", book.lease.job_id, error)
                    out_of_reach = True
            if ending:
                return

    def _is_urgent(self) -> bool:
        return self._ending or any(book.is_closed or len(book.waiting) >= _BATCH_LINES for book in self._books)

    def _keep(self, book: _Book, lines: Sequence[tuple[float, str]], is_closed: bool) -> None:
        if lines:
            logs.append(self._database, book.lease, lines, max_lines=self._max_lines)
        if is_closed and book.num_dropped and self._max_lines:
            note = f"[{book.num_dropped} more lines were not kept; log_lines is {self._max_lines}]"
            logs.append(self._database, book.lease, [(time.time(), note)], max_lines=self._max_lines + 1)


def _secrets(settings: Settings) -> list[str]:
    """The passwords and keys to remove from log lines, since an error's message may quote them."""
    urls = [url for url in (settings.resolved_database_url, settings.resolved_redis_url) if "@" in url]
    passwords = [password for url in urls for password in (make_url(url).password, urlsplit(url).password)]
    return [secret for secret in (*passwords, settings.api_key.get_secret_value()) if secret]
