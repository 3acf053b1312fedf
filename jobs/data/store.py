"""The artifact store on fsspec. Objects are written atomically."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from jobs.data.atomic import make_directory, sync_directory
from jobs.data.drafts import Draft, StoredObject, failing_writes
from jobs.data.store_keys import is_name
from jobs.errors import Forbidden, InvalidSpec, NotFound, ServiceUnavailable, StokerError
from jobs.messages import reason

_ATOMIC_UPLOADS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"}
"""Protocols whose uploads are atomic; others would need an atomic rename, which fsspec does not guarantee."""
_ASIDE = ".tmp"
_BLOCK_BYTES = 2**20
_PUBLISH_TRIES = 20


class Store:
    """Objects by key in one local folder or bucket. Threads may share a store; create a new one after a fork.

    A local object is written under a temporary name, synced and renamed. For a bucket, it is first written to the local
    temporary folder and then uploaded, so that a writer that dies never leaves an incomplete object in the store.
    """

    def __init__(self, url: str) -> None:
        """
        Args:
            url: A local path, or a URL such as `s3://bucket/folder` or `gs://bucket/folder`.

        Raises:
            InvalidSpec: The URL cannot be a store, or the package for it is not installed.
        """
        import fsspec

        try:
            # never cache listings, because other processes write here, too
            self._fs, self._base = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise InvalidSpec(f"store_url: '{url}' cannot be used: {reason(error)}", param="store_url") from error
        protocols = {self._fs.protocol} if isinstance(self._fs.protocol, str) else set(self._fs.protocol)
        self._root = Path(self._base).absolute() if "file" in protocols else None
        if self._root is None and not protocols & _ATOMIC_UPLOADS:
            raise InvalidSpec(
                f"store_url: '{url}' is neither a local path nor s3://, gs:// or az://", param="store_url"
            )
        self._failures: type[Exception] = OSError if self._root is not None else Exception

    # -- writing

    @contextmanager
    def create(self, key: str, *, max_bytes: int | None = None) -> Iterator[Draft]:
        """Write an object in pieces. It replaces the object at `key` when the block ends, but not if the block raises.

        Yields:
            The file to write to; its `stored` is the result after the block has ended.

        Raises:
            TooLarge: More than `max_bytes` bytes were written.
            ServiceUnavailable: The store cannot be reached or is full.
        """
        location = self._locate(key)
        with failing_writes(key, OSError):
            aside, handle = self._open_aside()
        try:
            with handle:
                draft = Draft(key, handle, max_bytes)
                yield draft
                with failing_writes(key, OSError):
                    handle.flush()
                    if self._root is not None:
                        os.fsync(handle.fileno())
            with failing_writes(key, self._failures):
                self._publish(aside, location)
        finally:
            aside.unlink(missing_ok=True)

    def put(self, key: str, chunks: Iterable[bytes], *, max_bytes: int | None = None) -> StoredObject:
        """Store an object from pieces; see `create`."""
        with self.create(key, max_bytes=max_bytes) as draft:
            for chunk in chunks:
                draft.write(chunk)
        return draft.stored

    def put_file(self, key: str, path: Path) -> StoredObject:
        """Store a copy of a local file, which must not change meanwhile; see `create`."""
        with path.open("rb") as source:
            if self._root is not None:
                return self.put(key, iter(lambda: source.read(_BLOCK_BYTES), b""))
            location = self._locate(key)
            stored = StoredObject(key, path.stat().st_size, hashlib.file_digest(source, "sha256").hexdigest())
        with failing_writes(key, self._failures):
            self._fs.put_file(str(path), location)
        return stored

    def fetch(self, key: str, path: Path) -> str:
        """Copy an object to a local file; its folder is created if it is missing.

        Returns:
            The hexadecimal SHA-256 digest of the copied content.

        Raises:
            NotFound: The object does not exist.
            ServiceUnavailable: The store cannot be reached.
            OSError: The file cannot be written, or reading from a local store fails halfway.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with self.open(key) as source, path.open("wb") as target:
            while block := self._read_block(key, source):
                digest.update(block)
                target.write(block)
        return digest.hexdigest()

    def check_writable(self, key: str, num_bytes: int) -> None:
        """Check that the store accepts objects now, by writing one at `key` and deleting it.

        Args:
            key: A key that nothing else uses.
            num_bytes: Total size of the objects to come; compared with the free disk space of a local store.

        Raises:
            ServiceUnavailable: The store does not accept objects, or has too little space.
        """
        self.put(key, [b"x"])
        self.delete(key)
        if self._root is not None and (free := shutil.disk_usage(self._root).free) < num_bytes:
            raise ServiceUnavailable(f"the artifact store has {free} bytes left, but {num_bytes} are needed")

    def delete(self, key: str) -> None:
        """Remove an object if it exists. The names that `stale_temporaries` yields are accepted, too."""
        location = self._locate(key, temporaries=True)
        with self._reaching(key, "delete"):
            try:
                self._fs.rm_file(location)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return
            self._prune(Path(location).parent)

    # -- reading

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading. The file is seekable, and the caller closes it.

        Raises:
            NotFound: The object does not exist.
            ServiceUnavailable: The store cannot be reached.
        """
        with self._reaching(key, "read"):
            handle = self._fs.open(self._locate(key), "rb")
            if isinstance(handle, io.BytesIO):  # all readers of an fsspec memory file share one position
                return io.BytesIO(handle.getvalue())
            return cast("BinaryIO", handle)

    def url(self, key: str) -> str:
        """The URL of an object for `fsspec.open`; for a local store, its absolute path."""
        location = self._locate(key)
        return location if self._root is not None else str(self._fs.unstrip_protocol(location))

    def exists(self, key: str) -> bool:
        """Whether the object exists."""
        with self._reaching(key, "read"):
            return bool(self._fs.isfile(self._locate(key)))

    def size(self, key: str) -> int:
        """Size of an object in bytes.

        Raises:
            NotFound: The object does not exist.
        """
        with self._reaching(key, "read"):
            found = self._fs.info(self._locate(key))
            if found["type"] != "file":
                raise FileNotFoundError(key)
            return int(found["size"])

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that begin with `prefix`, sorted by name within each folder."""
        folder = prefix.rpartition("/")[0]
        start = self._locate(folder) if folder else self._base
        found = self._walk(Path(start)) if self._root is not None else self._find(start)
        return (key for key in found if key.startswith(prefix) and not key.startswith(f"{_ASIDE}/"))

    def stale_temporaries(self, older_than_seconds: float) -> Iterator[str]:
        """Yield names, for `delete`, of files that dead writers left in a local store; buckets have lifecycle rules."""
        folder = None if self._root is None else self._root / _ASIDE
        if folder is None or not folder.is_dir():
            return
        latest = time.time() - older_than_seconds  # file times come from this host, as this clock does
        for path in sorted(folder.iterdir()):
            try:
                modified = path.stat().st_mtime
            except FileNotFoundError:  # its writer has just published it
                continue
            if modified <= latest:
                yield f"{_ASIDE}/{path.name}"

    # -- internals

    def _locate(self, key: str, *, temporaries: bool = False) -> str:
        names = key.split("/")
        if not is_name(key) or (names[0] == _ASIDE and not temporaries):
            raise Forbidden(f"{key!r} is not a valid name for the artifact store")
        return "/".join([str(self._root) if self._root is not None else self._base.rstrip("/"), *names])

    def _open_aside(self) -> tuple[Path, BinaryIO]:
        folder = Path(tempfile.gettempdir()) if self._root is None else self._root / _ASIDE
        make_directory(folder)
        mode = 0o600 if self._root is None else 0o666  # all users share the temporary folder; a store follows the umask
        aside = folder / f"stoker-{secrets.token_hex(16)}"
        return aside, os.fdopen(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode), "wb")

    def _publish(self, aside: Path, location: str) -> None:
        if self._root is None:
            self._fs.put_file(str(aside), location)
            return
        path = Path(location)
        for tries_left in reversed(range(_PUBLISH_TRIES)):
            try:
                make_directory(path.parent)
                aside.replace(path)
                sync_directory(path.parent)
            except FileNotFoundError:  # a `delete` has just pruned the folder: create it again
                if not tries_left or not aside.exists():
                    raise
            else:
                return

    def _prune(self, folder: Path) -> None:
        """Remove folders that a deletion has emptied, but not the ones directly below the root."""
        while self._root is not None and self._root in folder.parent.parents:
            try:
                folder.rmdir()
            except OSError:  # not empty, or already pruned by another process
                return
            folder = folder.parent

    def _walk(self, folder: Path) -> Iterator[str]:
        with self._reaching(str(folder), "list"):
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except (FileNotFoundError, NotADirectoryError):
                return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(Path(entry.path))
            else:
                yield Path(entry.path).relative_to(cast("Path", self._root)).as_posix()

    def _read_block(self, key: str, source: BinaryIO) -> bytes:
        if self._root is not None:
            return source.read(_BLOCK_BYTES)
        with self._reaching(key, "read"):  # a bucket's client raises errors of its own
            return source.read(_BLOCK_BYTES)

    def _find(self, folder: str) -> Iterator[str]:
        with self._reaching(folder, "list"):
            found: list[Any] = sorted(self._fs.find(folder))
        yield from (str(path).removeprefix(self._base.rstrip("/")).lstrip("/") for path in found)

    @contextmanager
    def _reaching(self, key: str, verb: str) -> Iterator[None]:
        try:
            yield
        except StokerError:
            raise
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise NotFound(f"the artifact store has no object '{key}'") from error
        except self._failures as error:
            raise ServiceUnavailable(f"the artifact store cannot {verb} '{key}': {reason(error)}") from error
