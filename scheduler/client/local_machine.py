"""Identify this machine or container, to know whether a path names the same file for a client and the API."""

from __future__ import annotations

import hashlib
import platform
import uuid
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MOUNTS = Path("/proc/self/ns/mnt")


def host_id() -> str:
    """An id that two processes have in common exactly if they see the same files.

    Two containers of one host differ, because their mount namespaces do; so a client in one uploads its input to an
    API in the other. The machine's own identifiers are hashed to keep them private.
    """
    try:
        origin = f"{_BOOT_ID.read_text().strip()}|{_MOUNTS.readlink()}"
    except OSError:  # not Linux, or /proc is hidden
        origin = f"{uuid.getnode()}|{platform.node()}"
    return hashlib.sha256(f"stoker-host|{origin}".encode()).hexdigest()[:32]
