"""Ids: a prefix for the kind of object, then a token like a UUIDv7, so that ids sort by creation time."""

from __future__ import annotations

import secrets
import time

_PARTS_OF_MILLISECOND = 0x1000


def new_id(prefix: str) -> str:
    """A new id such as `job_0193f2c1a7e8b1d2c3e4f5a60718`: 12 hex digits of Unix milliseconds, 3 of the millisecond's
    4,096 parts (RFC 9562, section 6.2, method 3), then 52 random bits.

    Lists are ordered by id, and a host makes many objects in one millisecond, but none in less than one part of it.
    """
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    part = nanoseconds * _PARTS_OF_MILLISECOND // 1_000_000
    return f"{prefix}_{milliseconds:012x}{part:03x}{secrets.randbits(52):013x}"
