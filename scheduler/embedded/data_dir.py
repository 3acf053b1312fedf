"""The data directory of an embedded stack: made for its owner only, and locked by the one stack that lives in it."""

from __future__ import annotations

import os
from pathlib import Path

from jobs import locks
from jobs.config.locations import Locations
from jobs.errors import Conflict, InvalidSpec, ServiceUnavailable

_PROBE_SECONDS = 0.2  # `is_running` of another process may hold the lock for a moment
MAKE_ROOM = "make room there, or name another data directory with --data-dir"
"""The advice where the data directory's disk is full."""


class AlreadyRunning(Conflict):
    """Another stack runs on this data directory."""


def make_data_dir(path: Path) -> None:
    """Make the data directory, for its owner's eyes only. One that is there keeps its mode: what Stoker puts into it is
    private by itself (`jobs.config.private_files`).

    Raises:
        InvalidSpec: it cannot be made or written to.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSpec(f"the data directory {path} cannot be made: {error.strerror}", param="data_dir") from error
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise InvalidSpec(f"the data directory {path} cannot be written to: permission denied", param="data_dir")


class StackLock:
    """Two locks: one says that a stack is here; the other, which its processes inherit, that all of one are gone."""

    def __init__(self) -> None:
        self._owner: int | None = None
        self._parts: int | None = None

    def take(self, locations: Locations, *, patience_seconds: float) -> None:
        """Take both.

        Args:
            locations: Their data directory is locked.
            patience_seconds: how long the processes of an earlier stack, which was killed, may take to end.

        Raises:
            AlreadyRunning: another stack is here.
            ServiceUnavailable: processes of an earlier one are, and stay.
        """
        try:
            self._owner = _open_lock(locations.data_dir / "up.lock")
            if not locks.take_within(self._owner, _PROBE_SECONDS):
                raise AlreadyRunning(_already_running(locations.data_dir))
            os.ftruncate(self._owner, 0)  # what a killed stack had announced
            self._parts = _open_lock(locations.data_dir / "parts.lock")
            if not locks.take_within(self._parts, patience_seconds):
                raise ServiceUnavailable(
                    f"processes of an earlier stack on {locations.data_dir} do not end; end them, then try again"
                )
        except BaseException:
            self.give_back()
            raise

    def announce(self, url: str) -> None:
        """Write down where the stack serves, for as long as the lock is held."""
        assert self._owner is not None
        os.ftruncate(self._owner, 0)
        os.pwrite(self._owner, url.encode(), 0)

    @property
    def inherited(self) -> list[int]:
        """The file descriptors that every process of the stack must inherit."""
        return [] if self._parts is None else [self._parts]

    def give_back(self) -> None:
        """Let go of both; processes that inherited theirs still hold it."""
        for descriptor in (self._parts, self._owner):
            if descriptor is not None:
                os.close(descriptor)
        self._owner = self._parts = None


class Use:
    """Says that a command needs the stack on a data directory, so that the command that started it does not end it."""

    def __init__(self, data_dir: Path) -> None:
        """
        Args:
            data_dir: made where it is missing.
        """
        make_data_dir(data_dir)
        self._descriptor = _open_lock(data_dir / "use.lock")

    def begin(self) -> None:
        """Count as a user from now on; waits while a stack is being stopped."""
        locks.share(self._descriptor)

    def try_end_all(self) -> bool:
        """Whether nobody else uses the stack; if so, nobody begins to until `close`."""
        return locks.try_take(self._descriptor)

    def end_all(self) -> None:
        """Wait until nobody else uses the stack; nobody begins to until `close`."""
        locks.take(self._descriptor)

    def close(self) -> None:
        """Stop counting as a user."""
        os.close(self._descriptor)


def is_running(data_dir: Path) -> bool:
    """Whether a process holds this data directory's stack, ready or not."""
    try:
        descriptor = os.open(data_dir / "up.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not locks.try_take(descriptor)
    finally:
        os.close(descriptor)


def running_url(data_dir: Path) -> str | None:
    """Where the stack that holds this data directory serves, or is about to; None where there is none."""
    return _announced_url(data_dir) if is_running(data_dir) else None


def _announced_url(data_dir: Path) -> str | None:
    return (data_dir / "up.lock").read_text().strip() or None


def _already_running(data_dir: Path) -> str:
    url = _announced_url(data_dir)
    return f"a stack is already running on {data_dir}{f', at {url}' if url else ''}"


def _open_lock(path: Path) -> int:
    try:
        return locks.open_lock(path)
    except OSError as error:
        raise InvalidSpec(f"'{path}' cannot be opened: {error.strerror}", param="data_dir") from error
