"""Which machine, or container, this process is on: whether a path means the same file to a client and to the API."""

from __future__ import annotations

import hashlib
import platform
import uuid
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MOUNTS = Path("/proc/self/ns/mnt")


def host_id() -> str:
    """A word that is equal for two processes exactly where they see the same files, and that tells nothing else.

    Two containers of one host differ, because their mount namespaces do; so a client in one uploads its input to an
    API in the other. The machine's own identifiers are hashed: they are nobody's business.
    """
    try:
        origin = f"{_BOOT_ID.read_text().strip()}|{_MOUNTS.readlink()}"
    except OSError:  # not Linux, or /proc is hidden
        origin = f"{uuid.getnode()}|{platform.node()}"
    return hashlib.sha256(f"stoker-host|{origin}".encode()).hexdigest()[:32]
