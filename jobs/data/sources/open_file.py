"""Open local and remote input files, and convert errors to one clear sentence."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from jobs.access.paths import local_path
from jobs.access.stamps import file_stamp, is_same
from jobs.data.sources.reader import InputFile, changed_message
from jobs.errors import InvalidInput, ServiceUnavailable
from jobs.messages import first_line

PARAM = "input.path"
_READ_AHEAD_BYTES = 512 * 2**10  # for a remote file; a chunk is often smaller than a megabyte
_REMOTE_STAMPS = (
    "ETag",
    "etag",
    "generation",
    "md5Hash",
    "content_md5",
    "oid",
    "blob_id",
    "LastModified",
    "last_modified",
    "mtime",
)
# Exceptions of cloud clients that are not OSErrors; looked up only if the client's module is loaded.
_CLIENT_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
    ("httpx", "HTTPError"),
)
_NO_SUCH_FILE = {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}


def stamped(file: InputFile) -> InputFile:
    """The file with its current size in bytes and its stamp.

    Raises:
        InvalidInput: The file does not exist, is not a regular file, or may not be read.
        ServiceUnavailable: A remote file cannot be reached now.
    """
    with translated(file):
        size, stamp = _stat(file)
    return replace(file, size=size, stamp=stamp)


@contextmanager
def opened(file: InputFile) -> Iterator[BinaryIO]:
    """Open the file for reading at byte 0, after checking that it did not change since the job was planned.

    Raises:
        InvalidInput: The file is missing or unreadable, or its size or stamp changed.
        ServiceUnavailable: A remote file cannot be reached now.
    """
    with translated(file), _open(file) as handle:
        yield handle


@contextmanager
def translated(file: InputFile) -> Iterator[None]:
    """Convert errors of file systems and cloud clients to InvalidInput or ServiceUnavailable."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InvalidInput(f"{PARAM}: there is no file '{file.name}'", param=PARAM) from error
    except IsADirectoryError as error:
        raise InvalidInput(directory_message(file.name), param=PARAM) from error
    except PermissionError as error:
        raise InvalidInput(f"{PARAM}: '{file.name}' cannot be read: permission denied", param=PARAM) from error
    except ImportError as error:
        package = error.name or str(error)
        raise InvalidInput(
            f"{PARAM}: reading '{file.name}' needs the package {package}, which is not installed", param=PARAM
        ) from error
    except _unreachable_errors() as error:
        if isinstance(error, OSError) and error.errno in _NO_SUCH_FILE and local_path(file.url) is not None:
            raise InvalidInput(f"{PARAM}: '{file.name}' is not the path of a file", param=PARAM) from error
        raise ServiceUnavailable(f"'{file.name}' cannot be read now: {first_line(error)}", param=PARAM) from error


def remote_file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path within it."""
    return cast("tuple[Any, str]", fsspec.core.url_to_fs(url))


def directory_message(name: str) -> str:
    """The error message for a path that is a directory."""
    return (
        f"{PARAM}: '{name}' is a directory, not a file; name its files with a glob such as '*.jsonl', or set "
        "input.format to dataset"
    )


def local_stamp(status: os.stat_result) -> tuple[int, str]:
    """Size in bytes and stamp of a local file."""
    return status.st_size, file_stamp(status)


def check_unchanged(file: InputFile, size: int, stamp: str) -> None:
    """Raise InvalidInput if a file changed since the job was planned."""
    if file.stamp and (size != file.size or not is_same(file.stamp, stamp)):
        raise InvalidInput(changed_message(file), param=PARAM)


def _stat(file: InputFile) -> tuple[int, str]:
    path = local_path(file.url)
    if path is not None:
        return local_stamp(_regular(file, path))
    system, inner = remote_file_system(file.url)
    system.invalidate_cache(system._parent(inner))  # a long-lived process must not use an old listing
    facts = cast("Mapping[str, Any]", system.info(inner))
    if facts["type"] != "file":
        raise IsADirectoryError(inner)
    stamp = next((str(facts[name]) for name in _REMOTE_STAMPS if facts.get(name) is not None), "unknown")
    return int(facts["size"]), stamp


def _regular(file: InputFile, path: Path) -> os.stat_result:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(path)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would block forever
        raise InvalidInput(f"{PARAM}: '{file.name}' is not a regular file", param=PARAM)
    return status


@contextmanager
def _open(file: InputFile) -> Iterator[BinaryIO]:
    path = local_path(file.url)
    if path is None:
        check_unchanged(file, *_stat(file))
        system, inner = remote_file_system(file.url)
        with system.open(inner, "rb", block_size=_READ_AHEAD_BYTES, cache_type="readahead") as remote:
            yield cast("BinaryIO", remote)
        return
    _regular(file, path)
    with path.open("rb", buffering=0) as local:
        check_unchanged(file, *local_stamp(os.fstat(local.fileno())))
        yield cast("BinaryIO", local)


def _unreachable_errors() -> tuple[type[Exception], ...]:
    loaded = [(sys.modules[module], name) for module, name in _CLIENT_ERRORS if module in sys.modules]
    return (OSError, *(getattr(module, name) for module, name in loaded))
