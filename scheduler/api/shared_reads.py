"""Reads of the database that streams share: all that wait for the same thing are answered by one read."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")

READS_AT_ONCE = 4
"""Number of threads of all shared reads. Those of other requests are separate, so streams never use them up."""

_FINISH_SECONDS = 3.0


@dataclass(slots=True)
class _Round:
    """The asks about one thing that the next read answers."""

    read: Callable[[Sequence[Any]], Sequence[Any]]
    asks: list[tuple[Any, asyncio.Future[Any]]] = field(default_factory=list)
    due_at: float = math.inf
    """Time of the event loop at which the read starts."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when `due_at` is earlier than before."""
    task: asyncio.Task[None] | None = None

    def add(self, ask: Any, answer: asyncio.Future[Any], due_at: float) -> None:
        self.asks.append((ask, answer))
        if due_at < self.due_at:
            self.due_at = due_at
            self.changed.set()

    async def wait_until_due(self) -> None:
        while (left := self.due_at - asyncio.get_running_loop().time()) > 0:
            self.changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self.changed.wait()
            except TimeoutError:
                return

    def take(self) -> list[tuple[Any, asyncio.Future[Any]]]:
        """The asks whose streams still wait."""
        asks, self.asks, self.due_at = self.asks, [], math.inf
        return [(ask, answer) for ask, answer in asks if not answer.done()]


class SharedReads:
    """Answers asks by reads in threads: one at a time about each thing. Used on the server's event loop."""

    def __init__(self) -> None:
        self._rounds: dict[str, _Round] = {}
        self._threads = CapacityLimiter(READS_AT_ONCE)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False

    def bind(self) -> None:
        """Remember the server's event loop; called on that loop."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Answer all asks with None from now on, since the server is shutting down. May be called from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._close)

    async def finish(self) -> None:
        """Wait a few seconds at most for the end of the reads that run, so that none outlives the server."""
        self._close()
        tasks = [current.task for current in self._rounds.values() if current.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=_FINISH_SECONDS)

    async def ask(
        self,
        subject: str,
        ask: Ask,
        read: Callable[[Sequence[Ask]], Sequence[Answer]],
        *,
        within_seconds: float,
    ) -> Answer | None:
        """Wait for the next read about a subject, which starts after this call and within `within_seconds`.

        Args:
            subject: What the read is about; all asks about it are answered together.
            ask: This stream's part of the question.
            read: Answers several asks about the subject, in their order; runs in a thread.

        Returns:
            The answer; None if the server is shutting down.

        Raises:
            Exception: What `read` raised.
        """
        if self._is_closed:
            return None
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer | None] = loop.create_future()
        if subject not in self._rounds:
            self._rounds[subject] = _Round(read)
            self._rounds[subject].task = loop.create_task(self._answer(subject))
        self._rounds[subject].add(ask, answer, loop.time() + within_seconds)
        return await answer

    async def _answer(self, subject: str) -> None:
        """Read about a subject until nobody asks any more."""
        current = self._rounds[subject]
        try:
            while current.asks:
                await current.wait_until_due()
                taken = current.take()
                if taken:
                    await self._read(current.read, taken)
        finally:
            del self._rounds[subject]

    async def _read(
        self, read: Callable[[Sequence[Any]], Sequence[Any]], taken: list[tuple[Any, asyncio.Future[Any]]]
    ) -> None:
        try:
            answers = await anyio.to_thread.run_sync(read, [ask for ask, _ in taken], limiter=self._threads)
        except Exception as error:  # noqa: BLE001 - each stream that waits for the answer raises it
            for _, waiting in taken:
                if not waiting.done():
                    waiting.set_exception(error)
            return
        for (_, waiting), answer in zip(taken, answers, strict=True):
            if not waiting.done():  # otherwise its client has gone away meanwhile
                waiting.set_result(answer)

    def _close(self) -> None:
        self._is_closed = True
        for current in self._rounds.values():
            for _, answer in current.asks:
                if not answer.done():
                    answer.set_result(None)
            current.due_at = 0.0
            current.changed.set()
