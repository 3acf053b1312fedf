"""The leader lock in the database: only one of the running schedulers acts; another replaces it once its lock expires.

The lock saves work but is not needed for safety: every duty names the state it expects, so a leader that was frozen and
wakes up after its successor has started may waste work but cannot do harm.
"""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy import exists, select, update
from sqlmodel import col

from jobs.db.database import Database
from jobs.db.ids import new_id
from jobs.db.tables import LeaderLock
from jobs.db.transaction import Transaction
from jobs.errors import ServiceUnavailable

logger = logging.getLogger(__name__)

_NAME = "scheduler"
_RENEWALS_PER_LIFE = 3


def has_leader(session: Transaction) -> bool:
    """Whether a scheduler leads now."""
    leads = exists().where(col(LeaderLock.name) == _NAME, col(LeaderLock.expires_at) > session.now())
    return bool(session.scalar(select(leads)))


class Leader:
    """One scheduler's hold on the lock. A separate thread renews it, so that a long duty does not lose it."""

    def __init__(self, db: Database, *, leader_seconds: float) -> None:
        """
        Args:
            leader_seconds: How long the lock lasts without a renewal.
        """
        self.owner = new_id("leader")
        self._db = db
        self._life_seconds = leader_seconds
        self._held_until = 0.0  # by this host's monotonic clock, starting before the renewal was sent
        self._stopping = threading.Event()
        self._renewer: threading.Thread | None = None

    @property
    def held(self) -> bool:
        """Whether this scheduler is certainly the leader now."""
        return time.monotonic() < self._held_until

    def acquire(self) -> float:
        """Take the lock if it is free, and renew it from then on.

        Returns:
            0.0 if this scheduler leads, else the seconds after which a new attempt can succeed.

        Raises:
            ServiceUnavailable: The database cannot be reached.
        """
        self._join()
        sent_at = time.monotonic()
        with self._db.read() as session:  # a standby scheduler must not take SQLite's write lock again and again
            lock = session.get(LeaderLock, _NAME)
            left = 0.0 if lock is None or lock.owner == self.owner else lock.expires_at - session.time()
        if left > 0:
            return left
        with self._db.write() as session:
            now = session.time()
            taken = session.insert(LeaderLock).values(name=_NAME, owner=self.owner, expires_at=now + self._life_seconds)
            taken = taken.on_conflict_do_update(
                index_elements=["name"],
                set_={"owner": self.owner, "expires_at": now + self._life_seconds},
                where=(col(LeaderLock.expires_at) <= now) | (col(LeaderLock.owner) == self.owner),
            )
            session.execute(taken)
            owner, expires_at = session.execute(select(col(LeaderLock.owner), col(LeaderLock.expires_at))).one()
            if owner != self.owner:
                return max(0.0, float(expires_at) - now)
        self._held_until = sent_at + self._life_seconds
        self._stopping.clear()
        self._renewer = threading.Thread(target=self._renew_until_lost, name="leader", daemon=True)
        self._renewer.start()
        logger.info("this scheduler is the leader (%s)", self.owner)
        return 0.0

    def resign(self) -> None:
        """Stop the renewals and free the lock, so that a standby scheduler takes over at once. Never raises."""
        self._join()
        if not self._held_until:
            return
        self._held_until = 0.0
        try:
            with self._db.write() as session:
                session.execute(
                    update(LeaderLock)
                    .where(col(LeaderLock.name) == _NAME, col(LeaderLock.owner) == self.owner)
                    .values(expires_at=0.0)
                )
        except ServiceUnavailable as error:
            logger.warning("cannot release the leader lock, which will expire: %s", error)

    def _join(self) -> None:
        self._stopping.set()
        if self._renewer is not None:
            self._renewer.join()
            self._renewer = None

    def _renew_until_lost(self) -> None:
        pause_seconds = self._life_seconds / _RENEWALS_PER_LIFE
        while not self._stopping.wait(pause_seconds):
            sent_at = time.monotonic()
            try:
                if not self._renew():
                    self._held_until = 0.0
                    logger.warning("another scheduler is the leader now; this one waits")
                    return
            except ServiceUnavailable as error:
                if not self.held:
                    logger.warning("the leader lock expired while the database could not be reached: %s", error)
                    return
                logger.warning("cannot renew the leader lock yet: %s", error)
                continue
            self._held_until = sent_at + self._life_seconds

    def _renew(self) -> bool:
        with self._db.write() as session:
            renewed = (
                update(LeaderLock)
                .where(col(LeaderLock.name) == _NAME, col(LeaderLock.owner) == self.owner)
                .values(expires_at=self._db.now() + self._life_seconds)
            )
            return session.changed(renewed) > 0
