"""API keys that were valid a moment ago, so that not every request reads its key from the database."""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable

from jobs.db.database import Database
from jobs.db.tables import ApiKey
from scheduler.admin.keys import digest_of, find_key

FRESH_SECONDS = 1.0
"""How long a key counts as valid without being read again; a revoked key works for at most this long."""
_MOST_KEYS = 1000


class KeyCache:
    """Finds keys by their secrets. Only valid keys are remembered, so wrong ones take no memory."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            clock: Returns seconds; replaced in tests.
        """
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._found: dict[str, tuple[ApiKey, float]] = {}
        """Digest of a secret -> its key, and when it was read; the key that was read first comes first."""

    def find(self, secret: str) -> ApiKey | None:
        """Return the active key with this secret, or None.

        Raises:
            ServiceUnavailable: The database cannot be reached.
        """
        digest, now = digest_of(secret), self._clock()
        key, read_at = self._found.get(digest, (None, 0.0))
        # As in `find_key`: looking up a digest reveals nothing, and the deciding comparison takes constant time.
        if key is not None and now - read_at < FRESH_SECONDS and hmac.compare_digest(key.sha256, digest):
            return key
        key = find_key(self._database, secret)
        with self._lock:
            self._found.pop(digest, None)
            if key is not None:
                while len(self._found) >= _MOST_KEYS:
                    del self._found[next(iter(self._found))]
                self._found[digest] = key, now
        return key
