"""Stamps: a short text for the state of a local file, to detect whether the file has changed.

Size and modification time are not enough to detect a file that was replaced by one of equal size and time (`cp -p`,
`rsync -a`, unpacked archives). The inode and the change time, which users cannot set, detect it. Another host with
its own copy under the same path, or with a network disk that numbers its files differently, sees other inodes and
change times. There only the modification time is compared, as in plans of older versions, which have no other.
"""

from __future__ import annotations

import hashlib
import os
import re

_STAMP = re.compile(r"(\d+)\+\d+\.\d+@([0-9a-f]{8})")


def file_stamp(status: os.stat_result) -> str:
    """The stamp of a local file: modification time, change time, inode and host. Store it together with the size.

    The device number is omitted, because it may change when the machine restarts.
    """
    host = hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:8]
    return f"{status.st_mtime_ns}+{status.st_ctime_ns}.{status.st_ino}@{host}"


def is_same(planned: str, present: str) -> bool:
    """Whether a stamp made now matches a stamp made at planning.

    Args:
        planned: A text with one or more results of `file_stamp`, made at planning and perhaps on another host. In a
            plan of an older version, it has modification times in their place.
        present: The same text, made now on this host.
    """
    if planned == present:
        return True
    if _hosts(planned) == _hosts(present):
        return False
    return _STAMP.sub(r"\1", planned) == _STAMP.sub(r"\1", present)


def _hosts(stamp: str) -> set[str]:
    return {match[2] for match in _STAMP.finditer(stamp)}
