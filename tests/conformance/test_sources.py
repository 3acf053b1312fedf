"""One suite for every kind of source: all rows are read once, in order, and from any range."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.config.settings import Settings
from jobs.data.rows import Row
from jobs.data.sources import ChunkRange, Source, check_columns, open_source
from jobs.data.store import Store
from jobs.data.store_keys import upload_key
from jobs.db.tables import StoredFile
from jobs.errors import Forbidden, InvalidInput, NotFound
from jobs.specs.inference import InputSpec
from tests.support.rows import write_rows

COLUMNS = {"text": "body"}
Records = list[dict[str, Any]]


def _csv(path: Path, records: Records) -> Path:
    names = list(records[0]) if records else ["id", "body"]
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, names)
        writer.writeheader()
        writer.writerows(records)
    return path


def _table(records: Records) -> pa.Table:
    if not records:
        return pa.table({"id": pa.array([], pa.int64()), "body": pa.array([], pa.string())})
    return pa.Table.from_pylist(records)


def _parquet(path: Path, records: Records) -> Path:
    pq.write_table(_table(records), path, row_group_size=17)
    return path


class Kind:
    """One way to hold rows; `write` makes an input of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = Settings(input_roots=[folder], data_dir=folder / "data")
        self.store = Store(str(folder / "store"))
        self.uploads: dict[str, StoredFile] = {}

    def write(self, records: Records) -> dict[str, Any]:
        raise NotImplementedError

    def changing(self) -> Path:
        """A file of the input whose change must be seen."""
        return next(path for path in sorted(self.folder.glob("in*")) if path.is_file())

    def source(self, path: Mapping[str, Any], key: str | None = "id", columns: Mapping[str, str] = COLUMNS) -> Source:
        return open_source(
            InputSpec(**{"key": key, **path}),
            columns,
            rules=self.settings,
            store=self.store,
            find_upload=self.find_upload,
        )

    def find_upload(self, file_id: str) -> StoredFile:
        if file_id not in self.uploads:
            raise NotFound(f"no file {file_id}")
        return self.uploads[file_id]


class JsonLines(Kind):
    def write(self, records: Records) -> dict[str, Any]:
        return {"path": str(write_rows(self.folder / "in.jsonl", records))}


class JsonArray(Kind):
    def write(self, records: Records) -> dict[str, Any]:
        (self.folder / "in.json").write_text(json.dumps(records, indent=1))
        return {"path": str(self.folder / "in.json")}


class Delimited(Kind):
    def write(self, records: Records) -> dict[str, Any]:
        return {"path": str(_csv(self.folder / "in.csv", records))}


class Parquet(Kind):
    def write(self, records: Records) -> dict[str, Any]:
        return {"path": str(_parquet(self.folder / "in.parquet", records))}


class ManyJsonLines(Kind):
    """A glob of files, some of them empty."""

    def write(self, records: Records) -> dict[str, Any]:
        for number in range(5):
            begin, end = number * 31, (number + 1) * 31 if number < 4 else len(records)
            write_rows(self.folder / f"in{number * 2}.jsonl", records[begin:end])
        (self.folder / "in1.jsonl").write_bytes(b"")
        return {"path": str(self.folder / "in*.jsonl")}


class ManyParquet(Kind):
    """A list of files."""

    def write(self, records: Records) -> dict[str, Any]:
        half = len(records) // 2
        paths = [_parquet(self.folder / "in1.parquet", records[:half] or []), self.folder / "in2.parquet"]
        _parquet(paths[1], records[half:])
        return {"path": [str(path) for path in paths]}


class Upload(Kind):
    """A file in the artifact store."""

    def write(self, records: Records) -> dict[str, Any]:
        stored = self.store.put_file(upload_key("f1"), write_rows(self.folder / "local.jsonl", records))
        self.uploads["f1"] = StoredFile(
            id="f1",
            filename="mine.jsonl",
            purpose="batch",
            key=stored.key,
            num_bytes=stored.num_bytes,
            sha256=stored.sha256,
            created_at=0.0,
        )
        self.settings = Settings(input_roots=[], data_dir=self.folder / "data")
        return {"path": "file:f1"}

    def changing(self) -> Path:
        return Path(self.store.url(upload_key("f1")))


class SavedDataset(Kind):
    def write(self, records: Records) -> dict[str, Any]:
        import datasets

        datasets.Dataset(_table(records)).save_to_disk(str(self.folder / "saved"))
        return {"path": str(self.folder / "saved")}

    def changing(self) -> Path:
        return next((self.folder / "saved").glob("*.arrow"))


class SavedSplits(Kind):
    def write(self, records: Records) -> dict[str, Any]:
        import datasets

        other = datasets.Dataset.from_list([{"id": 1, "body": "other"}])
        whole = datasets.DatasetDict({"train": other, "test": datasets.Dataset(_table(records))})
        whole.save_to_disk(str(self.folder / "saved"))
        return {"path": str(self.folder / "saved"), "split": "test", "format": "dataset"}

    def changing(self) -> Path:
        return next((self.folder / "saved" / "test").glob("*.arrow"))


class DatasetFolder(Kind):
    def write(self, records: Records) -> dict[str, Any]:
        folder = self.folder / "set"
        folder.mkdir()
        _parquet(folder / "train.parquet", records)
        return {"path": str(folder), "format": "dataset"}

    def changing(self) -> Path:
        return self.folder / "set" / "train.parquet"


KINDS = [
    JsonLines,
    JsonArray,
    Delimited,
    Parquet,
    ManyJsonLines,
    ManyParquet,
    Upload,
    SavedDataset,
    SavedSplits,
    DatasetFolder,
]
TYPED_KINDS = [kind for kind in KINDS if kind is not Delimited]
"""Those whose cells may be something else than text."""


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kind:
    if "Dataset" in request.param.__name__ or "Splits" in request.param.__name__:
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return request.param(tmp_path)


@pytest.fixture
def records() -> Records:
    nasty = ["", " ", "plain", "zwei Wörter", "日本 🎈", 'say "hi"', "a,b;c\td|e", "two\nlines", "x" * 5000, "null"]
    return [{"id": 1000 + at, "body": f"{nasty[at % 10]}{at if at % 3 else ''}"} for at in range(143)]


def _as_rows(records: Records) -> list[Row]:
    return [Row(at, str(record["id"]), {"text": record["body"]}) for at, record in enumerate(records)]


def _all_rows(source: Source, chunks: list[ChunkRange]) -> list[Row]:
    return [row for chunk in chunks for row in source.read(chunk.start_row, chunk.stop_row, chunk.locator)]


@pytest.mark.parametrize("chunk_rows", [1, 7, 31, 50, 1000])
def test_every_row_comes_back_once_in_order_with_its_key(kind: Kind, records: Records, chunk_rows: int) -> None:
    source = kind.source(kind.write(records))
    chunks = list(source.index(chunk_rows))
    assert [chunk.start_row for chunk in chunks] == [0, *(chunk.stop_row for chunk in chunks[:-1])]
    assert chunks[-1].stop_row == len(records)
    assert all(0 < chunk.stop_row - chunk.start_row <= chunk_rows for chunk in chunks)
    assert _all_rows(source, chunks) == _as_rows(records)


def test_a_worker_reads_with_the_locator_alone(kind: Kind, records: Records) -> None:
    """A worker on another host has only what the database kept of the plan."""
    path = kind.write(records)
    plan = [(chunk.start_row, chunk.stop_row, json.dumps(chunk.locator)) for chunk in kind.source(path).index(40)]
    kind.uploads.clear()
    source = kind.source(path)
    rows = [row for start, stop, locator in reversed(plan) for row in source.read(start, stop, json.loads(locator))]
    assert sorted(rows, key=lambda row: row.row_index) == _as_rows(records)


def test_a_chunk_that_is_cut_in_two_reads_the_same_rows(kind: Kind, records: Records) -> None:
    """A crashing row is found by halving its chunk; the halves must not read other rows."""
    source = kind.source(kind.write(records))
    expected = _as_rows(records)
    for chunk in source.index(25):
        for start in range(chunk.start_row, chunk.stop_row, 6):
            for stop in (start, start + 1, chunk.stop_row):
                assert list(source.read(start, stop, chunk.locator)) == expected[start:stop]


def test_reads_that_overlap_do_not_disturb_each_other(kind: Kind, records: Records) -> None:
    source = kind.source(kind.write(records))
    first, second = list(source.index(20))[:2]
    one = source.read(first.start_row, first.stop_row, first.locator)
    two = source.read(second.start_row, second.stop_row, second.locator)
    mixed = [row for pair in zip(one, two, strict=False) for row in pair]
    found = sorted(mixed, key=lambda row: row.row_index)
    by_index = {row.row_index: row for row in _as_rows(records)}
    assert found == [by_index[row.row_index] for row in found]


def test_planning_twice_gives_the_same_chunks(kind: Kind, records: Records) -> None:
    """A scheduler that died while planning starts again; chunks that moved would double or lose rows."""
    path = kind.write(records)
    assert list(kind.source(path).index(11)) == list(kind.source(path).index(11))


def test_columns_are_named_and_missing_ones_refused(kind: Kind, records: Records) -> None:
    path = kind.write(records)
    source = kind.source(path)
    assert source.column_names() == ["id", "body"]
    check_columns(source, InputSpec(**{"key": "id", **path}), COLUMNS)
    with pytest.raises(InvalidInput, match="has no column 'nope'; it has id, body") as refused:
        check_columns(source, InputSpec(**path), {"text": "nope"})
    assert refused.value.param == "input.columns.text"
    with pytest.raises(InvalidInput, match="no column 'nokey'") as refused:
        check_columns(source, InputSpec(**{"key": "nokey", **path}), COLUMNS)
    assert refused.value.param == "input.key"


def test_rows_without_the_column_are_row_errors_and_keep_their_key(kind: Kind, records: Records) -> None:
    source = kind.source(kind.write(records), columns={"text": "elsewhere"})
    rows = _all_rows(source, list(source.index(50)))
    assert [row.key for row in rows] == [str(record["id"]) for record in records]
    assert {row.error.code for row in rows if row.error} == {"missing_column"}
    assert all(row.error for row in rows)


def test_an_input_without_rows_is_refused(kind: Kind) -> None:
    """A job over nothing would complete and look like success."""
    source = kind.source(kind.write([]))
    with pytest.raises(InvalidInput, match=r"^input\.path: ") as refused:
        list(source.index(10))
    if not isinstance(kind, DatasetFolder):  # there the library gives the reason
        assert re.search("has no rows|has any rows|has a row", refused.value.message)
    assert refused.value.param == "input.path"


def test_a_file_that_changed_after_planning_is_noticed(kind: Kind, records: Records) -> None:
    """Results would belong to rows that the user never saw together."""
    path = kind.write(records)
    chunk = next(iter(kind.source(path).index(10)))
    file = kind.changing()
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 3_000_000_000))
    with pytest.raises(InvalidInput, match="changed after the job was submitted"):
        list(kind.source(path).read(chunk.start_row, chunk.stop_row, chunk.locator))


@pytest.mark.parametrize("kind", TYPED_KINDS, indirect=True)
def test_nulls_are_row_errors(kind: Kind) -> None:
    """A null quietly made text would get a wrong, plausible output."""
    nulls = [{"id": 1, "body": None}, {"id": None, "body": "b"}]
    source = kind.source(kind.write(nulls))
    rows = _all_rows(source, list(source.index(10)))
    assert [(row.key, row.error.code if row.error else None) for row in rows] == [("1", "null_value"), (None, None)]


@pytest.mark.parametrize("kind", TYPED_KINDS, indirect=True)
def test_numbers_are_not_made_text(kind: Kind, records: Records) -> None:
    """A column mapped by mistake must show, not be embedded as digits."""
    source = kind.source(kind.write(records), columns={"text": "id"})
    rows = _all_rows(source, list(source.index(100)))
    assert {row.error.code for row in rows if row.error} == {"wrong_type"}


def test_one_megabyte_rows(kind: Kind) -> None:
    big = [{"id": at, "body": chr(97 + at) * 2**20} for at in range(4)]
    source = kind.source(kind.write(big))
    assert _all_rows(source, list(source.index(3))) == _as_rows(big)


def test_rows_over_the_limit_are_row_errors(kind: Kind) -> None:
    """One absurd row must not take the worker's memory, nor the rows around it."""
    path = kind.write([{"id": 1, "body": "a"}, {"id": 2, "body": "é" * 60_000}, {"id": 3, "body": "c"}])
    kind.settings = kind.settings.model_copy(update={"max_row_bytes": 100_000})
    source = kind.source(path)
    rows = _all_rows(source, list(source.index(10)))
    assert [row.error.code if row.error else None for row in rows] == [None, "row_too_large", None]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not Upload], indirect=True)
def test_a_path_outside_the_roots_is_refused_even_to_read(
    kind: Kind, records: Records, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A plan made under wider rules must not open the door for a worker with narrower ones."""
    path = kind.write(records)
    chunk = next(iter(kind.source(path).index(10)))
    kind.settings = Settings(input_roots=[tmp_path_factory.mktemp("elsewhere")])
    source = kind.source(path)
    checks: list[Callable[[], object]] = [
        source.column_names,
        lambda: list(source.index(10)),
        lambda: list(source.read(chunk.start_row, chunk.stop_row, chunk.locator)),
    ]
    for check in checks:
        with pytest.raises(Forbidden):
            check()
