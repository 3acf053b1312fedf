"""Stamps of local files: a replaced file is noticed; older plans and other hosts are not refused wrongly."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest

from jobs.access.stamps import file_stamp, is_same
from jobs.errors import InvalidInput
from tests.support.sources_kit import open_at, outcomes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "one"}\n')
    return path


def _replace(path: Path) -> None:
    """Put a file of equal size and modification time in its place, as `cp -p` and `mv` do."""
    status = path.stat()
    other = path.with_name("other")
    other.write_text('{"text": "two"}\n')
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def test_a_file_that_is_left_alone_keeps_its_stamp(path: Path) -> None:
    before = file_stamp(path.stat())
    path.read_bytes()
    assert is_same(before, file_stamp(path.stat()))


def test_a_file_replaced_by_one_of_equal_size_and_time_is_noticed(path: Path) -> None:
    before = file_stamp(path.stat())
    source = open_at(path)
    [chunk] = source.index(10)
    _replace(path)
    assert not is_same(before, file_stamp(path.stat()))
    with pytest.raises(InvalidInput, match="changed after the job was submitted"):
        list(source.read(0, 1, chunk.locator))


def test_a_file_rewritten_in_place_with_its_old_time_is_noticed(path: Path) -> None:
    status = path.stat()
    while path.stat().st_ctime_ns == status.st_ctime_ns:  # the kernel's clock ticks every few milliseconds
        path.write_text('{"text": "two"}\n')
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not is_same(file_stamp(status), file_stamp(path.stat()))


def test_a_plan_with_the_modification_time_alone_is_still_read(path: Path) -> None:
    source = open_at(path)
    [chunk] = source.index(10)
    older = {**chunk.locator, "stamp": str(path.stat().st_mtime_ns)}
    assert outcomes(list(source.read(0, 1, older))) == ["one"]
    with pytest.raises(InvalidInput, match="changed after the job was submitted"):
        list(source.read(0, 1, {**older, "stamp": "1"}))


def test_another_host_goes_by_the_modification_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    here = file_stamp(path.stat())
    assert not is_same(here, file_stamp(copy.stat()))
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="another"))
    assert is_same(here, file_stamp(copy.stat()))
    os.utime(copy, ns=(0, 5))
    assert not is_same(here, file_stamp(copy.stat()))


def test_texts_without_a_stamp_must_be_equal() -> None:
    """ETags of buckets and fingerprints of data sets."""
    assert is_same("etag", "etag")
    assert not is_same("etag", "other")


def test_a_saved_data_set_of_an_older_plan_is_still_read(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["one"]}).save_to_disk(str(tmp_path / "saved"))
    source = open_at(tmp_path / "saved")
    [chunk] = source.index(10)
    [arrow] = (tmp_path / "saved").glob("*.arrow")
    status = arrow.stat()
    fingerprint = chunk.locator["stamp"].partition("-")[0]
    older = {**chunk.locator, "stamp": f"{fingerprint}-{status.st_size}.{status.st_mtime_ns}"}
    assert outcomes(list(source.read(0, 1, older))) == ["one"]
    copy = tmp_path / "copy"
    shutil.copy2(arrow, copy)
    copy.replace(arrow)
    with pytest.raises(InvalidInput, match="changed after the job was submitted"):
        list(open_at(tmp_path / "saved").read(0, 1, chunk.locator))
