"""Tell whether a local file is still the one that was looked at before: one short text for each state of a file.

Size and modification time alone miss a file that was replaced by one of equal size and time (`cp -p`, `rsync -a`,
unpacked archives); its inode and change time, which nobody can set, do not. Another host that has a copy of its own
under the same path, or mounts a network disk that numbers its files anew, sees other inodes and change times: there
the modification time decides, as in plans that were made before stamps held more.
"""

from __future__ import annotations

import hashlib
import os
import re

_STAMP = re.compile(r"(\d+)\+\d+\.\d+@([0-9a-f]{8})")


def file_stamp(status: os.stat_result) -> str:
    """The state of a local file, to be kept beside its size: modification time, change time, inode and host.

    The device's number is left out, for it may be another one after the next start of the machine.
    """
    host = hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:8]
    return f"{status.st_mtime_ns}+{status.st_ctime_ns}.{status.st_ino}@{host}"


def is_same(planned: str, present: str) -> bool:
    """Whether a present stamp is that of what was planned.

    Args:
        planned: a text that holds what `file_stamp` gave at planning, perhaps on another host, for one file or for
            several; in a plan of an older version, modification times in their place.
        present: the same text, made now and here.
    """
    if planned == present:
        return True
    if _hosts(planned) == _hosts(present):
        return False
    return _STAMP.sub(r"\1", planned) == _STAMP.sub(r"\1", present)


def _hosts(stamp: str) -> set[str]:
    return {match[2] for match in _STAMP.finditer(stamp)}
