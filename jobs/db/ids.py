"""Ids: a prefix for the kind of object, then a token like a UUIDv7, so that ids sort by creation time."""

from __future__ import annotations

import secrets
import time


def new_id(prefix: str) -> str:
    """A new id such as `job_0193f2c1a7e8b1d2c3e4f5a60718`: 12 hex digits of Unix milliseconds, then 64 random bits."""
    return f"{prefix}_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"
