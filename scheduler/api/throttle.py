"""Limits requests per second of each project, counted in Redis for all API processes, or per process without Redis."""

from __future__ import annotations

import logging
import threading
import time

import redis
from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from jobs.config.access_rules import AccessRules
from jobs.config.limits import limits_of
from jobs.errors import TooManyRequests
from jobs.queue import connect

logger = logging.getLogger(__name__)

_RETRY_AFTER_SECONDS = 1  # the window's length


class Throttle:
    """Limits the requests of each project per second, as exactly as a sliding window counter can."""

    def __init__(self, rules: AccessRules, *, redis_seconds: float = 0.25, outage_seconds: float = 5.0) -> None:
        """Connects to Redis at the first request of a project that has a limit.

        Args:
            rules: The limits, and the URL of Redis.
            redis_seconds: How long a request waits for Redis, at most twice.
            outage_seconds: How long Redis is not used after a failure.
        """
        self._rules = rules
        self._outage_seconds = outage_seconds
        self._redis = connect(rules, timeout_seconds=redis_seconds)
        # The pool has the address; the library requires a URL here but does not use it.
        shared = RedisStorage("redis://", connection_pool=self._redis.connection_pool, key_prefix="stoker:limits")
        self._shared = SlidingWindowCounterRateLimiter(shared)
        self._starting = threading.Lock()
        self._own: SlidingWindowCounterRateLimiter | None = None
        self._use_redis_at = 0.0

    def close(self) -> None:
        """Close the connections."""
        self._redis.connection_pool.disconnect()

    def admit(self, project: str) -> None:
        """Count a request.

        Raises:
            TooManyRequests: The project has reached its requests per second.
        """
        limit = limits_of(project, self._rules.projects).requests_per_second
        if limit is None:
            return
        if not self._has_room(RateLimitItemPerSecond(limit), project):
            raise TooManyRequests(
                f"project '{project}' has sent more than {limit} requests in a second (requests_per_second); try again",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )

    def _has_room(self, item: RateLimitItemPerSecond, project: str) -> bool:
        """Count a request if the limit allows it; returns whether it did."""
        if time.monotonic() >= self._use_redis_at:
            try:
                return self._shared.hit(item, project)
            except (redis.RedisError, OSError) as error:
                self._use_redis_at = time.monotonic() + self._outage_seconds
                logger.warning("cannot reach Redis; this process counts requests on its own: %s", error)
        return self._by_itself().hit(item, project)

    def _by_itself(self) -> SlidingWindowCounterRateLimiter:
        with self._starting:
            if self._own is None:  # created lazily, since it starts a thread
                self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
            return self._own
