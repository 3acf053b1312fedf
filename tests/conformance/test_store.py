"""The artifact store in a local folder and in an fsspec object store: whole objects, or none, under safe names."""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jobs.data.store import Store
from jobs.data.store_keys import artifact_key, job_prefix, part_key, upload_key
from jobs.errors import Forbidden, InvalidSpec, NotFound, ServiceUnavailable, TooLarge


@pytest.fixture(params=["folder", "object store"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    return Store(str(tmp_path / "store") if request.param == "folder" else f"memory://{secrets.token_hex(8)}/deep")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def files_under(folder: Path) -> list[Path]:
    """Every file that is there, temporary ones too."""
    return [path for path in folder.rglob("*") if path.is_file()]


def read(store: Store, key: str) -> bytes:
    with store.open(key) as handle:
        return handle.read()


def test_an_object_comes_back_with_its_size_and_digest(store: Store) -> None:
    content = secrets.token_bytes(3_000_000)
    stored = store.put("uploads/a", [content[:1_000_000], b"", content[1_000_000:]])
    assert stored.key == "uploads/a"
    assert stored.num_bytes == store.size("uploads/a") == len(content)
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
    assert read(store, "uploads/a") == content
    assert store.exists("uploads/a")


def test_an_empty_object_is_an_object(store: Store) -> None:
    assert store.put("uploads/empty", []).num_bytes == 0
    assert store.exists("uploads/empty")
    assert read(store, "uploads/empty") == b""


def test_a_local_file_is_stored(store: Store, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"w" * 2_500_000)
    stored = store.put_file("jobs/j/artifacts/weights", tmp_path / "weights")
    assert stored.num_bytes == 2_500_000
    assert read(store, stored.key) == b"w" * 2_500_000


def test_what_is_opened_can_seek_and_two_readers_do_not_disturb_each_other(store: Store) -> None:
    store.put("uploads/a", [b"0123456789"])
    with store.open("uploads/a") as one, store.open("uploads/a") as other:
        one.seek(5)
        assert other.read(2) == b"01"
        assert one.read(2) == b"56"


def test_fsspec_opens_the_url_of_an_object(store: Store) -> None:
    store.put("uploads/a b#c?d%20e", [b"content"])
    with fsspec.open(store.url("uploads/a b#c?d%20e"), "rb") as handle:
        assert handle.read() == b"content"


def test_a_put_replaces_an_object_and_an_open_reader_keeps_the_old_one(store: Store) -> None:
    store.put("uploads/a", [b"old"])
    with store.open("uploads/a") as reader:
        store.put("uploads/a", [b"newer"])
        assert reader.read() == b"old"
    assert read(store, "uploads/a") == b"newer"


def test_a_writer_that_raises_leaves_the_old_object(store: Store) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionResetError("the client went away")

    store.put("uploads/a", [b"old"])
    with pytest.raises(ConnectionResetError):
        store.put("uploads/a", broken())
    with pytest.raises(ConnectionResetError):
        store.put("uploads/b", broken())
    assert read(store, "uploads/a") == b"old"
    assert list(store.list()) == ["uploads/a"]


def test_an_object_is_not_there_before_it_is_whole(store: Store) -> None:
    with store.create("uploads/a") as draft:
        draft.write(b"half")
        assert not store.exists("uploads/a")
        assert list(store.list()) == []
    assert draft.stored.num_bytes == 4
    assert store.exists("uploads/a")


def test_too_large_an_upload_stops_at_the_limit_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    taken = []

    def endless() -> Iterator[bytes]:
        while True:
            taken.append(1)
            yield b"x" * 1000

    assert store.put("uploads/fits", [b"x" * 5000], max_bytes=5000).num_bytes == 5000
    with pytest.raises(TooLarge, match="5000 bytes"):
        store.put("uploads/a", endless(), max_bytes=5000)
    assert len(taken) == 6
    assert list(store.list()) == ["uploads/fits"]
    assert len(files_under(tmp_path)) <= 1


def test_a_missing_object_is_not_found(store: Store) -> None:
    store.put("uploads/a/b", [b""])
    for key in ("uploads/missing", "nowhere/a", "uploads/a"):
        assert not store.exists(key)
        with pytest.raises(NotFound):
            store.open(key)
        with pytest.raises(NotFound):
            store.size(key)
        store.delete(key)
    assert store.exists("uploads/a/b")


def test_delete_removes_the_object_and_may_be_repeated(store: Store) -> None:
    key = part_key("job_1", 0, "lease_1", ".jsonl")
    store.put(key, [b"part"])
    store.delete(key)
    store.delete(key)
    assert not store.exists(key)
    assert list(store.list()) == []


def test_deleting_a_job_leaves_no_empty_folders(folder: Path) -> None:
    store = Store(str(folder))
    for start_row in range(3):
        store.put(part_key("job_1", start_row, "lease_1", ".jsonl"), [b"part"])
    store.put(upload_key("file_1"), [b"upload"])
    for key in list(store.list(job_prefix("job_1"))):
        store.delete(key)
    assert not (folder / "jobs" / "job_1").exists()
    assert list(store.list()) == ["uploads/file_1"]


def test_list_gives_the_keys_that_begin_with_a_prefix(store: Store) -> None:
    keys = [part_key("job_1", 256, "l", ".jsonl"), artifact_key("job_1", "a/b.txt"), part_key("job_10", 0, "l", ".x")]
    for key in keys:
        store.put(key, [b"x"])
    assert sorted(store.list(job_prefix("job_1"))) == sorted(keys[:2])
    assert list(store.list("jobs/job_1/parts/000")) == keys[:1]
    assert sorted(store.list()) == sorted(keys)
    assert list(store.list("uploads/")) == []


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../a", "a/../../b", "a/./b", "a//b", "a/", "..", "a\\..\\b", "a\0b", "a\nb", "a/\ud800",
     "x" * 256, "é" * 128, ".tmp/a"],
)  # fmt: skip
def test_a_key_that_could_leave_the_store_is_refused(store: Store, key: str) -> None:
    with pytest.raises(Forbidden, match="not a valid name"):
        store.put(key, [b"x"])
    for verb in (store.open, store.exists, store.size, store.url):
        with pytest.raises(Forbidden):
            verb(key)


def test_a_file_id_cannot_lead_out_of_the_store(store: Store) -> None:
    with pytest.raises(Forbidden):
        store.open(upload_key("../../../etc/passwd"))


def test_parts_of_two_leases_never_have_the_same_key() -> None:
    """Otherwise a lost owner could overwrite the results of the live one."""
    assert part_key("j", 0, "lease_a", ".jsonl") != part_key("j", 0, "lease_b", ".jsonl")
    assert part_key("j", 999, "l", ".x") < part_key("j", 1_000_000, "l", ".x")


def test_writers_at_once_each_store_a_whole_object(store: Store) -> None:
    def write(mark: int) -> None:
        for _ in range(20):
            store.put("uploads/shared", [bytes([mark]) * 10_000] * 3)

    threads = [threading.Thread(target=write, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = read(store, "uploads/shared")
    assert len(content) == 30_000
    assert len(set(content)) == 1


def test_a_put_survives_a_delete_that_prunes_its_folder(folder: Path) -> None:
    """Retention empties a folder at the moment another writer puts its first object there."""
    store = Store(str(folder))
    failures: list[Exception] = []

    def churn(name: str) -> None:
        try:
            for _ in range(150):
                store.put(f"jobs/j/parts/{name}", [b"x"])
                store.delete(f"jobs/j/parts/{name}")
        except ServiceUnavailable as error:
            failures.append(error)

    threads = [threading.Thread(target=churn, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_what_a_killed_writer_left_is_found_and_deleted(folder: Path) -> None:
    """Otherwise every crash would cost disk space for ever."""
    script = (
        "import os, sys; from jobs.data.store import Store\n"
        "with Store(sys.argv[1]).create('uploads/a') as draft:\n"
        "    draft.write(b'half'); draft._handle.flush(); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(folder)], check=False)
    store = Store(str(folder))
    assert list(store.list()) == []
    assert list(store.stale_temporaries(3600)) == []
    (left,) = files_under(folder)
    os.utime(left, (time.time() - 7200,) * 2)
    (name,) = store.stale_temporaries(3600)
    store.delete(name)
    assert files_under(folder) == []


def test_an_object_store_or_a_new_folder_has_no_temporaries(store: Store) -> None:
    assert list(store.stale_temporaries(0)) == []


def test_a_full_disk_is_reported_and_leaves_no_file(folder: Path) -> None:
    """The kernel refuses to write on, as it does on a full disk: no object may be half there."""
    script = (
        "import resource, sys; from jobs.data.store import Store; from jobs.errors import ServiceUnavailable\n"
        "store = Store(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: store.put('uploads/a', [b'x' * 50_000] * 3)\n"
        "except ServiceUnavailable as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], check=True, capture_output=True, text=True)
    assert done.stdout == "the artifact store cannot write 'uploads/a': File too large\n"
    assert files_under(folder) == []


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = Store(str(tmp_path / "file" / "store"))
    with pytest.raises(ServiceUnavailable, match="cannot write 'uploads/a': Not a directory"):
        store.put("uploads/a", [b"x"])


@pytest.mark.skipif(os.geteuid() != 0, reason="a user of one's own is needed to lose a permission")
def test_a_folder_without_permission_is_reported(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    store.put("uploads/a", [b"x"])
    tmp_path.chmod(0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(ServiceUnavailable, match="Permission denied"):
            store.put("uploads/b", [b"x"])
        with pytest.raises(ServiceUnavailable, match="Permission denied"):
            store.open("uploads/a")
    finally:
        os.seteuid(0)


class _Unreachable(MemoryFileSystem):
    """An object store behind a network that has failed."""

    protocol = ("memory", "unreachable")

    def put_file(self, *_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("could not connect to the endpoint URL")

    def _open(self, *_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("could not connect to the endpoint URL")


def test_an_unreachable_object_store_is_reported() -> None:
    fsspec.register_implementation("unreachable", _Unreachable, clobber=True)
    store = Store("unreachable://bucket")
    with pytest.raises(ServiceUnavailable, match="cannot write 'uploads/a': could not connect"):
        store.put("uploads/a", [b"x"])
    with pytest.raises(ServiceUnavailable, match="cannot read 'uploads/a': could not connect"):
        store.open("uploads/a")


@pytest.mark.parametrize("url", ["nosuch://a/b", "http://example.org/store"])
def test_a_url_that_cannot_be_a_store_is_refused_at_once(url: str) -> None:
    with pytest.raises(InvalidSpec, match="store_url"):
        Store(url)


def test_a_relative_path_and_a_file_url_are_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Store("here").put("uploads/a", [b"x"])
    assert Store(f"file://{tmp_path}/here").exists("uploads/a")
    assert Store("here").url("uploads/a") == str(tmp_path / "here/uploads/a")


def test_a_file_is_stored_as_it_is(store: Store, tmp_path: Path) -> None:
    content = secrets.token_bytes(3_000_000)
    (tmp_path / "weights").write_bytes(content)
    stored = store.put_file("jobs/job_1/weights", tmp_path / "weights")
    assert (stored.num_bytes, stored.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert read(store, "jobs/job_1/weights") == content
    assert store.fetch("jobs/job_1/weights", tmp_path / "back" / "weights") == stored.sha256


def test_a_file_reaches_a_bucket_without_a_local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").write_bytes(b"weights")
    bucket = Store(f"memory://{secrets.token_hex(8)}")
    monkeypatch.setattr("tempfile.gettempdir", lambda: pytest.fail("a copy is made"))
    assert bucket.put_file("jobs/job_1/weights", tmp_path / "weights").num_bytes == 7


def test_a_bucket_that_fails_while_it_is_read_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking:
        """An object whose connection ends after the first block."""

        def __enter__(self) -> Breaking:
            return self

        def __exit__(self, *_: object) -> None: ...

        def read(self, _num_bytes: int) -> bytes:
            raise RuntimeError("the connection was reset")

    bucket = Store(f"memory://{secrets.token_hex(8)}")
    bucket.put("jobs/job_1/weights", [b"weights"])
    monkeypatch.setattr(bucket, "open", lambda _key: Breaking())
    with pytest.raises(ServiceUnavailable, match="cannot read 'jobs/job_1/weights': the connection was reset"):
        bucket.fetch("jobs/job_1/weights", tmp_path / "weights")
