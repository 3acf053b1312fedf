"""Paths of a spec stay under the configured roots, through any links and dots."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from jobs.access.paths import (
    check_code_path,
    check_input_url,
    is_local,
    resolve_input_path,
    resolve_output_path,
    upload_id,
)
from jobs.config.settings import Settings
from jobs.errors import Forbidden, InvalidInput, InvalidOutput


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def settings(root: Path) -> Settings:
    return Settings(input_roots=[root], output_roots=[root])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a/b.jsonl", True),
        ("b.jsonl", True),
        ("file:///a/b.jsonl", True),
        ("file:abc123", False),
        ("s3://bucket/a", False),
        ("hf://datasets/a", False),
        ("zip::file:///a", False),
    ],
)
def test_what_is_local(path: str, expected: bool) -> None:
    """A local input is uploaded when the daemon is elsewhere; a URL or an upload never is."""
    assert is_local(path) is expected


def test_upload_ids() -> None:
    assert upload_id("file:abc") == "abc"
    assert upload_id("file:///abc") is None
    assert upload_id("abc") is None


def test_paths_under_a_root_are_resolved(root: Path, settings: Settings) -> None:
    (root / "real.jsonl").write_text("")
    (root / "link.jsonl").symlink_to(root / "real.jsonl")
    assert resolve_input_path(root / "link.jsonl", settings) == (root / "real.jsonl").resolve()
    assert resolve_input_path(f"file://{root}/not-there.jsonl", settings) == root / "not-there.jsonl"
    assert resolve_output_path(root / "out.jsonl", settings) == root / "out.jsonl"


def test_ways_out_of_the_roots_are_refused(root: Path, settings: Settings, tmp_path: Path) -> None:
    """A spec must not read or overwrite files that the operator did not allow."""
    (tmp_path / "secret").write_text("")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path)
    (tmp_path / "root-but-longer").mkdir()
    ways = [
        tmp_path / "secret",
        root / "link",
        root / "folder" / "secret",
        root / ".." / "secret",
        tmp_path / "root-but-longer" / "x",
        Path("/etc/passwd"),
        tmp_path / "not-there",
    ]
    for way in ways:
        with pytest.raises(Forbidden) as refused:
            resolve_input_path(way, settings)
        assert refused.value.param == "input.path"
        with pytest.raises(Forbidden) as refused:
            resolve_output_path(way, settings)
        assert refused.value.param == "output.path"


def test_without_roots_no_local_path_is_allowed(root: Path) -> None:
    closed = Settings(input_roots=[], output_roots=[])
    with pytest.raises(Forbidden, match="input_roots"):
        resolve_input_path(root, closed)
    with pytest.raises(Forbidden, match="output_roots"):
        resolve_output_path(root / "out", closed)


@pytest.mark.parametrize("path", ["a\0b", "~no-such-user-here/x", "s3://bucket/x", "\udcff"])
def test_what_is_no_path_is_refused(path: str, settings: Settings) -> None:
    with pytest.raises(InvalidInput):
        resolve_input_path(path, settings)
    with pytest.raises(InvalidOutput):
        resolve_output_path(path, settings)


@pytest.mark.parametrize(
    "path",
    ["/" + "a/" * 1_000_000, "/" + "a" * 256, "/a" * 129, "/" + "ab/" * 1500, "../" * 100_000 + "x", "ä" * 128],
)
def test_a_path_that_is_too_long_is_refused_before_it_is_followed(
    path: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "lstat", lambda *_, **__: pytest.fail("a file was looked at"))
    for resolve, error in ((resolve_input_path, InvalidInput), (resolve_output_path, InvalidOutput)):
        with pytest.raises(error) as refused:
            resolve(path, settings)
        assert len(refused.value.message) < 400
    with pytest.raises(InvalidInput):
        check_code_path(path, settings, param="module")


def test_a_path_that_links_make_too_long_is_refused(root: Path, settings: Settings) -> None:
    deep = root
    for _ in range(15):
        deep = deep / ("d" * 200)
    deep.mkdir(parents=True)
    (root / "link").symlink_to(deep)
    with pytest.raises(InvalidInput, match=r"longer than|not a usable path"):
        resolve_input_path(root / "link" / "/".join(["e" * 250] * 6), settings)


def test_stokers_own_files_are_refused_wherever_the_roots_lie(tmp_path: Path) -> None:
    """A project's key must not read the local key, the database or the uploads of others."""
    own = Settings(
        data_dir=tmp_path / "data",
        database_url=f"sqlite:///{tmp_path}/jobs.db",
        store_url=f"file://{tmp_path}/store",
        input_roots=[Path("/")],
        output_roots=[Path("/")],
        code_roots=[Path("/")],
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "way").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "code.py").touch()
    for path in (
        "data/local.key", "way/local.key", "data", "x/../data/store/uploads/a", "jobs.db", "jobs.db-wal",
        "store/uploads/file_a", "data/code.py", "way/code.py",
    ):  # fmt: skip
        for resolve in (resolve_input_path, resolve_output_path):
            with pytest.raises(Forbidden, match="belongs to Stoker"):
                resolve(tmp_path / path, own)
        with pytest.raises(Forbidden):
            check_code_path(tmp_path / path, own, param="module")
    for path in ("/proc/self/environ", f"/proc/self/root{tmp_path}/data/local.key", "/sys/kernel/notes"):
        with pytest.raises(Forbidden, match="belongs to Stoker or the system"):
            resolve_input_path(path, own)
    assert resolve_input_path(tmp_path / "data-of-mine.jsonl", own) == tmp_path / "data-of-mine.jsonl"


def test_the_file_of_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stoker.toml").write_text('database_url = "postgresql://user:secret@host/db"\n')
    monkeypatch.setenv("STOKER_CONFIG", str(tmp_path / "stoker.toml"))
    with pytest.raises(Forbidden):
        resolve_input_path(tmp_path / "stoker.toml", Settings(input_roots=[Path("/")]))


def test_the_store_in_a_bucket_is_refused() -> None:
    open_machine = Settings(input_roots=[Path("/")], store_url="s3://bucket/stoker/")
    for url in ("s3://bucket/stoker/uploads/file_a", "s3a://bucket/stoker/uploads/*", "S3://bucket/stoker"):
        with pytest.raises(Forbidden, match="Stoker's artifact store"):
            check_input_url(url, open_machine)
    check_input_url("s3://bucket/stoker-data/a.jsonl", open_machine)


def test_an_output_behind_a_folder_that_cannot_be_entered_is_refused(
    root: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)  # for root there is no such folder
    with pytest.raises(InvalidOutput, match="cannot be written: Permission denied"):
        resolve_output_path(root / "closed" / "out.jsonl", settings)


def test_outputs_that_cannot_be_written_are_refused_before_any_work(root: Path, settings: Settings) -> None:
    """Hours of results must not end at a folder that was never there."""
    os.mkfifo(root / "pipe")
    (root / "file").write_text("")
    for path, reason in (
        (root, "is a directory"),
        (root / "no" / "out.jsonl", "does not exist"),
        (root / "file" / "out.jsonl", "does not exist"),
        (root / "pipe", "not a regular file"),
    ):
        with pytest.raises(InvalidOutput, match=reason) as refused:
            resolve_output_path(path, settings)
        assert refused.value.param == "output.path"


def test_an_output_folder_without_write_permission_is_refused(
    root: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:  # for root every folder is writable, so the kernel's answer is simulated
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    else:
        root.chmod(0o500)
    with pytest.raises(InvalidOutput, match="permission denied"):
        resolve_output_path(root / "out.jsonl", settings)


def test_remote_urls_need_a_prefix_or_an_open_machine() -> None:
    narrow = Settings(input_roots=[], input_urls=["s3://bucket/in"])
    check_input_url("s3://bucket/in/a.jsonl", narrow)
    check_input_url("hf://datasets/org/name/a.parquet", narrow)
    check_input_url("s3://any/thing", Settings(input_roots=[Path("/")]))
    for url in ("s3://bucket/input/a", "s3://bucket", "gs://bucket/in/a"):
        with pytest.raises(Forbidden):
            check_input_url(url, narrow)
    for url in ("http://169.254.169.254/latest", "s3://bucket/in/../x", "sftp://host/x", "memory://x"):
        with pytest.raises(InvalidInput):
            check_input_url(url, narrow)
