"""How ids are made: a prefix that says what it is, then a UUIDv7-like token that sorts by time of making."""

from __future__ import annotations

import secrets
import time


def new_id(prefix: str) -> str:
    """A new id such as `job_0193f2c1a7e8b1d2c3e4f5a60718`: 12 hex digits of Unix milliseconds, then 64 random bits."""
    return f"{prefix}_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"
