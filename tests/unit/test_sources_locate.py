"""Which files a path means, and one clear sentence where it means none."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jobs.config.settings import Settings
from jobs.data.sources import open_source
from jobs.data.store import Store
from jobs.db.tables import StoredFile
from jobs.errors import Forbidden, InvalidInput, NotFound, ServiceUnavailable
from jobs.specs.inference import InputSpec
from tests.support.sources_kit import open_at, outcomes, read_all

LINE = '{"text":"%s"}\n'


def _refusal(path: str | Path | list[str], **fields: object) -> InvalidInput:
    with pytest.raises(InvalidInput) as named:
        open_at(path, **fields).column_names()
    with pytest.raises(InvalidInput) as indexed:
        list(open_at(path, **fields).index(10))
    assert named.value.message == indexed.value.message
    assert "\n" not in named.value.message
    return named.value


def test_each_wrong_path_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.md").write_text("hello")
    (tmp_path / "a.jsonl").write_text(LINE % "a")
    (tmp_path / "b.csv").write_text("text\nb\n")
    (tmp_path / "c.jsonl.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    cases: list[tuple[str | list[str], str]] = [
        (str(tmp_path / "missing.jsonl"), "there is no file"),
        (str(tmp_path / "a.jsonl" / "b.jsonl"), "there is no file"),
        (str(tmp_path / "*.parquet"), "no file matches"),
        (str(tmp_path / "folder"), "is a directory, not a file"),
        (str(tmp_path / "folder.jsonl"), "is a directory, not a file"),
        (str(tmp_path / "notes.md"), "set input.format to jsonl, json, csv, text, parquet or dataset"),
        (str(tmp_path / "c.jsonl.gz"), "is compressed"),
        ([str(tmp_path / "a.jsonl"), str(tmp_path / "b.csv")], "the same format"),
        (str(tmp_path / "[ab].*"), "the same format"),
        (str(tmp_path / "pipe.jsonl"), "is not a regular file"),
        ("", "is not a usable path"),
        ("file:nope", "there is no uploaded file 'nope'"),
        ("http://127.0.0.1/a.jsonl", "inputs cannot be read from"),
        ("s3://bucket::file:///etc/passwd", "inputs cannot be read from"),
    ]
    for path, reason in cases:
        refusal = _refusal(path or [""])
        assert reason in refusal.message, path
        assert refusal.param == "input.path"


def test_a_file_that_may_not_be_read_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(LINE % "a")
    path.chmod(0)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        refusal = _refusal(path)
    finally:
        os.seteuid(was)
    assert "permission denied" in refusal.message


def test_the_format_can_be_given_if_the_name_lacks_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(LINE % "a")
    assert outcomes(read_all(open_at(tmp_path / "notes.txt", format="jsonl"))) == ["a"]


def test_names_are_matched_without_regard_to_case(tmp_path: Path) -> None:
    (tmp_path / "A.JSONL").write_text(LINE % "a")
    assert outcomes(read_all(open_at(tmp_path / "A.JSONL"))) == ["a"]


def test_globs_are_sorted_and_a_file_may_have_glob_characters(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "x[1].jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(LINE % name)
    assert outcomes(read_all(open_at(tmp_path / "?.jsonl"))) == ["a.jsonl", "b.jsonl"]
    assert outcomes(read_all(open_at(tmp_path / "x[1].jsonl"))) == ["x[1].jsonl"]
    everything = ["a.jsonl", "b.jsonl", "sub/c.jsonl", "x[1].jsonl"]
    assert outcomes(read_all(open_at(tmp_path / "**/*.jsonl"))) == everything
    assert outcomes(read_all(open_at([str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")]))) == ["b.jsonl", "a.jsonl"]


def test_a_file_that_comes_later_does_not_join_a_planned_job(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(LINE % "b")
    source = open_at(tmp_path / "*.jsonl")
    [chunk] = source.index(10)
    (tmp_path / "a.jsonl").write_text(LINE % "a")
    assert outcomes(list(source.read(0, 1, chunk.locator))) == ["b"]


def test_links_that_lead_out_of_the_roots_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text(LINE % "secret")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "in.jsonl").write_text(LINE % "a")
    narrow = Settings(input_roots=[inside])
    [chunk] = open_at(inside / "in.jsonl", settings=narrow).index(10)
    (inside / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    for path in (inside / "link.jsonl", inside / "*.jsonl", inside / "../secret.jsonl", inside / "*/../../secret.*"):
        with pytest.raises(Forbidden):
            open_at(path, settings=narrow).column_names()
    forged = {**chunk.locator, "file": str(tmp_path / "secret.jsonl")}
    with pytest.raises(Forbidden):
        list(open_at(inside / "in.jsonl", settings=narrow).read(0, 1, forged))


def test_a_locator_from_the_wrong_chunk_is_a_fault_of_ours(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINE % "a" * 10)
    source = open_at(tmp_path / "a.jsonl")
    second = list(source.index(5))[1]
    with pytest.raises(ValueError, match="begin before"):
        list(source.read(0, 5, second.locator))


class _Bucket(MemoryFileSystem):  # type: ignore[misc]
    """Stands in for the network of an object store; everything above fsspec is real."""

    protocol = ("gs", "gcs")
    store: dict[str, object] = {}  # noqa: RUF012 - the library's own form
    pseudo_dirs = [""]  # noqa: RUF012
    failure: OSError | None = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("gs://").strip("/")

    def unstrip_protocol(self, name: str) -> str:
        return "gs://" + name.lstrip("/")

    def info(self, path: str, **kwargs: object) -> object:
        if self.failure is not None:
            raise self.failure
        facts = super().info(path, **kwargs)
        return {**facts, "ETag": str(facts.get("created"))}


@pytest.fixture
def bucket() -> Iterator[type[_Bucket]]:
    fsspec.register_implementation("gs", _Bucket, clobber=True)
    _Bucket.store.clear()
    _Bucket.failure = None
    yield _Bucket
    fsspec.register_implementation("gs", "gcsfs.GCSFileSystem", clobber=True)


def test_files_in_a_bucket_are_planned_and_read(bucket: type[_Bucket]) -> None:
    system = bucket()
    for name in ("b", "a"):
        system.pipe(f"/box/in/{name}.jsonl", (LINE % name * 3).encode())
    source = open_at("gs://box/in/*.jsonl")
    chunks = list(source.index(2))
    assert outcomes(read_all(source, 2)) == ["a", "a", "a", "b", "b", "b"]
    system.pipe("/box/in/a.jsonl", (LINE % "x" * 3).encode())
    with pytest.raises(InvalidInput, match="changed"):
        list(source.read(0, 2, chunks[0].locator))
    assert "there is no file" in _refusal("gs://box/in/c.jsonl").message
    assert "no file matches" in _refusal("gs://box/in/*.csv").message
    assert "directory" in _refusal("gs://box/in", format="jsonl").message


def test_a_bucket_needs_its_prefix_allowed(bucket: type[_Bucket]) -> None:
    """The worker's own cloud credentials must not read for just anyone."""
    bucket().pipe("/box/in/a.jsonl", (LINE % "a").encode())
    allowed = Settings(input_roots=[], input_urls=["gs://box/in/"])
    assert outcomes(read_all(open_at("gs://box/in/a.jsonl", settings=allowed))) == ["a"]
    for urls in ([], ["gs://box/i"], ["gs://other"]):
        with pytest.raises(Forbidden, match="input_urls"):
            open_at("gs://box/in/a.jsonl", settings=Settings(input_roots=[], input_urls=urls)).column_names()


def test_a_bucket_that_cannot_be_reached_is_the_machines_fault(bucket: type[_Bucket]) -> None:
    """A network that is away for a minute must not fail the user's job for good."""
    bucket().pipe("/box/a.jsonl", (LINE % "a").encode())
    [chunk] = open_at("gs://box/a.jsonl").index(10)
    bucket.failure = OSError(errno.ECONNRESET, "connection reset")
    with pytest.raises(ServiceUnavailable):
        list(open_at("gs://box/a.jsonl").read(0, 1, chunk.locator))


@pytest.mark.parametrize(("filename", "expected"), [("a.csv", ["x"]), ("a.bin", None), ("a.jsonl.gz", None)])
def test_the_format_of_an_upload_is_by_its_own_name(tmp_path: Path, filename: str, expected: list[str] | None) -> None:
    store = Store(str(tmp_path / "store"))
    stored = store.put("uploads/abc", [b"text\nx\n"])

    def find(file_id: str) -> StoredFile:
        if file_id != "abc":
            raise NotFound("no")
        return StoredFile(
            id="abc", filename=filename, purpose="batch", key=stored.key, num_bytes=7, sha256="", created_at=0.0
        )

    source = open_source(InputSpec(path="file:abc"), {"text": "text"}, rules=Settings(), store=store, find_upload=find)
    if expected is None:
        with pytest.raises(InvalidInput, match=filename):
            source.column_names()
    else:
        assert outcomes(read_all(source)) == expected
