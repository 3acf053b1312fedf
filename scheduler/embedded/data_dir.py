"""The data directory of an embedded stack: private to its owner, and locked by the one stack that uses it."""

from __future__ import annotations

import os
from pathlib import Path

from jobs import locks
from jobs.config.locations import Locations
from jobs.errors import Conflict, InvalidSpec, ServiceUnavailable

_PROBE_SECONDS = 0.2  # `is_running` in another process may hold the lock for a moment
MAKE_ROOM = "free some space there, or choose another data directory with --data-dir"
"""Advice for a full disk."""


class AlreadyRunning(Conflict):
    """Another stack runs on this data directory."""


def make_data_dir(path: Path) -> None:
    """Create the data directory, private to its owner. An existing one keeps its mode, since every file that Stoker
    writes into it is private (`jobs.config.private_files`).

    Raises:
        InvalidSpec: The directory cannot be created or written to.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSpec(f"cannot create the data directory {path}: {error.strerror}", param="data_dir") from error
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise InvalidSpec(f"cannot write to the data directory {path}: permission denied", param="data_dir")


class StackLock:
    """Two locks: one is held while a stack runs; the other is inherited by its processes and held until all end."""

    def __init__(self) -> None:
        self._owner: int | None = None
        self._parts: int | None = None

    def take(self, locations: Locations, *, wait_seconds: float) -> None:
        """Take both locks.

        Args:
            locations: Their data directory is locked.
            wait_seconds: How long to wait for the processes of an earlier, killed stack to end.

        Raises:
            AlreadyRunning: Another stack holds the data directory.
            ServiceUnavailable: Processes of an earlier stack did not end in time.
        """
        try:
            self._owner = _open_lock(locations.data_dir / "up.lock")
            if not locks.take_within(self._owner, _PROBE_SECONDS):
                raise AlreadyRunning(_already_running(locations.data_dir))
            os.ftruncate(self._owner, 0)  # remove the URL of a killed stack
            self._parts = _open_lock(locations.data_dir / "parts.lock")
            if not locks.take_within(self._parts, wait_seconds):
                raise ServiceUnavailable(
                    f"processes of an earlier stack on {locations.data_dir} still run; stop them, then try again"
                )
        except BaseException:
            self.give_back()
            raise

    def announce(self, url: str) -> None:
        """Record the stack's URL in the lock file; it counts while the lock is held."""
        assert self._owner is not None
        os.ftruncate(self._owner, 0)
        os.pwrite(self._owner, url.encode(), 0)

    @property
    def inherited(self) -> list[int]:
        """File descriptors that every process of the stack must inherit."""
        return [] if self._parts is None else [self._parts]

    def give_back(self) -> None:
        """Release both locks; processes that inherited the second one still hold it."""
        for descriptor in (self._parts, self._owner):
            if descriptor is not None:
                os.close(descriptor)
        self._owner = self._parts = None


class StackUseLock:
    """Marks a command as a user of a data directory's stack, so that whoever started the stack keeps it alive."""

    def __init__(self, data_dir: Path) -> None:
        """
        Args:
            data_dir: Data directory; created if missing.
        """
        make_data_dir(data_dir)
        self._descriptor = _open_lock(data_dir / "use.lock")

    def share(self) -> None:
        """Count as a user from now on. Waits while a stack is being stopped."""
        locks.share(self._descriptor)

    def try_take(self) -> bool:
        """Return whether no other command uses the stack. If so, none can start to use it until `close`."""
        return locks.try_take(self._descriptor)

    def take(self) -> None:
        """Wait until no other command uses the stack. Then none can start to use it until `close`."""
        locks.take(self._descriptor)

    def close(self) -> None:
        """Stop counting as a user."""
        os.close(self._descriptor)


def is_running(data_dir: Path) -> bool:
    """Whether a stack, ready or not, holds this data directory."""
    try:
        descriptor = os.open(data_dir / "up.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not locks.try_take(descriptor)
    finally:
        os.close(descriptor)


def running_url(data_dir: Path) -> str | None:
    """URL of the stack that holds this data directory, even if it does not serve yet; None without a stack."""
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
        raise InvalidSpec(f"cannot open '{path}': {error.strerror}", param="data_dir") from error
