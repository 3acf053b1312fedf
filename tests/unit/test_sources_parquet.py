"""Parquet: any column type that can hold a task's input, any part of a row group, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.data.sources import check_columns, open_file
from jobs.errors import InvalidInput
from jobs.specs.inference import InputSpec
from tests.support.sources_kit import open_at, outcomes, read_all


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in.parquet"


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()], ids=str
)
def test_every_kind_of_text_column_is_text(path: Path, kind: pa.DataType) -> None:
    texts = ["a", None, "", "ü🎈", "a"] * 50
    column = pa.array(texts, pa.string()).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(texts, kind)
    pq.write_table(pa.table({"text": column}), path, row_group_size=60)
    expected = [("null_value", None) if text is None else text for text in texts]
    assert outcomes(read_all(open_at(path), 7)) == expected


def test_nested_values_pass_as_python_objects(path: Path) -> None:
    pq.write_table(pa.table({"q": ["how many?"], "t": [{"a": ["1"], "b": ["2"]}], "l": [["x", "y"]]}), path)
    [row] = read_all(open_at(path, {"query": "q", "table": "t", "candidate_labels": "l"}))
    assert row.values == {"query": "how many?", "table": {"a": ["1"], "b": ["2"]}, "candidate_labels": ["x", "y"]}


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        (pa.array([1, None, 2**63 - 1]), ["1", None, str(2**63 - 1)]),
        (pa.array([1.0, float("nan"), 2.5]), ["1.0", None, "2.5"]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array([0, 86_400_000_000, None], pa.timestamp("us")), ["1970-01-01T00:00:00", "1970-01-02T00:00:00", None]),
        (pa.array([b"\x00\xff", b"", None]), ["00ff", "", None]),
        (pa.array([["a"], [], None]), ['["a"]', "[]", None]),
    ],
)
def test_keys_of_every_type_become_text(path: Path, values: pa.Array, keys: list[str | None]) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"], "k": values}), path)
    assert [row.key for row in read_all(open_at(path, key="k"))] == keys


def test_one_value_that_is_not_utf8_costs_one_row(path: Path) -> None:
    broken = pa.array([b"a", b"\xff\xfe", b"c"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": broken}), path)
    assert outcomes(read_all(open_at(path))) == ["a", ("invalid_utf8", None), "c"]


def test_binary_is_not_taken_for_text(path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([b"a"], pa.binary())}), path)
    assert outcomes(read_all(open_at(path))) == [("wrong_type", None)]


def test_a_dotted_column_is_not_mistaken_for_a_nested_one(path: Path) -> None:
    pq.write_table(pa.table({"a": [{"b": "wrong"}], "a.b": ["right"]}), path)
    assert outcomes(read_all(open_at(path, {"text": "a.b"}))) == ["right"]


def test_two_columns_of_one_name_are_refused(path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"]), path)
    with pytest.raises(InvalidInput, match="more than one column 'text'"):
        check_columns(open_at(path), InputSpec(path=str(path)), {"text": "text"})


def test_a_file_that_lacks_the_column_gives_row_errors(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"other": [1, 2]}), tmp_path / "2.parquet")
    missing = ("missing_column", None)
    assert outcomes(read_all(open_at(tmp_path / "*.parquet"))) == ["a", missing, missing]


@pytest.mark.parametrize("content", [b"", b"PAR1", b'{"text":"a"}\n' * 10, b"PAR1" + b"\xff" * 100 + b"PAR1"])
def test_what_is_not_parquet_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for attempt in (lambda: open_at(path).column_names(), lambda: list(open_at(path).index(10))):
        with pytest.raises(InvalidInput, match="is not a readable Parquet file") as refused:
            attempt()
        assert refused.value.param == "input.path"


def test_damaged_pages_fail_the_job_not_the_machine(path: Path) -> None:
    """Retrying a damaged file on every worker would never end well."""
    pq.write_table(pa.table({"text": [f"row {at}" * 20 for at in range(20_000)]}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[1000:6000] = b"\xaa" * 5000
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match="is not a readable Parquet file"):
        read_all(open_at(path))


def test_the_next_chunk_goes_on_where_the_last_one_stopped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding a large row group again for each of its chunks would make the reader slower than the GPU."""
    texts = [f"row {at}" for at in range(5000)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=2000)
    source = open_at(path)
    chunks = list(source.index(64))
    num_opened = 0
    opened = open_file.opened

    def counted(file: Any) -> Any:
        nonlocal num_opened
        num_opened += 1
        return opened(file)

    monkeypatch.setattr(open_file, "opened", counted)
    mine = chunks[::3]  # the others go to other workers
    found = [row for chunk in mine for row in source.read(chunk.start_row, chunk.stop_row, chunk.locator)]
    assert [row.values["text"] for row in found] == [text for c in mine for text in texts[c.start_row : c.stop_row]]
    assert num_opened == 3  # once for each row group
    again = list(source.read(mine[0].start_row, mine[0].stop_row, mine[0].locator))  # a retried chunk lies behind
    assert [row.values["text"] for row in again] == texts[:64]
    assert num_opened == 4


def test_a_read_that_was_abandoned_does_not_affect_the_next(path: Path) -> None:
    texts = [f"row {at}" for at in range(1000)]
    pq.write_table(pa.table({"text": texts}), path)
    source = open_at(path)
    first, second = list(source.index(500))
    rows = source.read(first.start_row, first.stop_row, first.locator)
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert outcomes(list(source.read(second.start_row, second.stop_row, second.locator))) == texts[500:]


def test_a_huge_row_group_is_read_in_bounded_memory(path: Path) -> None:
    """Some writers put a whole file into one row group; a worker must not hold it decoded."""
    row = "word " * 2000
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())]), use_dictionary=False) as writer:
        writer.write_table(pa.table({"text": [f"{at} {row}" for at in range(20_000)]}), row_group_size=20_000)  # 200 MB
    source = open_at(path)
    chunk = list(source.index(500))[-1]
    before = pa.total_allocated_bytes()
    peak = 0
    for row_read in source.read(chunk.start_row, chunk.stop_row, chunk.locator):
        assert row_read.error is None
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 64 * 2**20


_POOLS: list[pa.MemoryPool] = []  # kept, since memory that is freed later returns to them


@contextmanager
def measured() -> Iterator[pa.MemoryPool]:
    """What Arrow allocates while inside, with the most of it."""
    usual = pa.default_memory_pool()
    own = pa.proxy_memory_pool(usual)
    _POOLS.append(own)
    pa.set_memory_pool(own)
    try:
        yield own
    finally:
        pa.set_memory_pool(usual)


def test_a_page_is_refused_whose_own_header_claims_too_much(path: Path) -> None:
    texts = ["word " * 400_000]
    pq.write_table(pa.table({"text": texts}), path, compression="zstd", use_dictionary=False)
    data = path.read_bytes()
    at = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    assert data[at : at + 3] == b"\x15\x00\x15"  # a page of data; its size unpacked, a number of four bytes, follows
    assert [byte >> 7 for byte in data[at + 3 : at + 7]] == [1, 1, 1, 0]
    path.write_bytes(data[: at + 3] + b"\xfe\xff\xff\x7f" + data[at + 7 :])
    with (
        measured() as pool,
        pytest.raises(InvalidInput, match=r"has a page of column 'text' that expands from \d+ bytes to 134217727$"),
    ):
        read_all(open_at(path))
    assert pool.max_memory() < 2**24


def _repeated(value: str, times: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), pa.array([value]))


def test_a_long_value_that_a_dictionary_repeats_is_read_in_parts(path: Path) -> None:
    value = "word " * 800_000
    table = pa.table({"text": [value] * 100})
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=2**23)
    assert path.stat().st_size < 2**16
    source = open_at(path)
    [chunk] = source.index(100)
    with measured() as pool:
        assert all(row.values["text"] == value for row in source.read(chunk.start_row, chunk.stop_row, chunk.locator))
    assert pool.max_memory() < 200 * 2**20


def _in_one_list(values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def test_a_row_of_too_many_values_is_refused_before_it_is_decoded(path: Path) -> None:
    values = _in_one_list(pa.repeat(pa.scalar(0, pa.int8()), 9 * 2**20))
    pq.write_table(pa.table({"text": ["a"], "labels": values}), path, compression="zstd")
    assert path.stat().st_size < 2**16
    with pytest.raises(InvalidInput, match=r"has a row group of 1 row in which column 'labels' expands to \d+ bytes,"):
        read_all(open_at(path, {"text": "text", "candidate_labels": "labels"}))


def test_a_row_that_repeats_a_long_value_a_million_times_is_refused(path: Path) -> None:
    values = _in_one_list(_repeated("word " * 200_000, 10**6))
    pq.write_table(pa.table({"text": ["a"], "labels": values}), path, compression="zstd")
    source = open_at(path, {"text": "text", "candidate_labels": "labels"})
    with (
        measured() as pool,
        pytest.raises(InvalidInput, match="has a row that expands to 1000000000000 bytes by repeated values"),
    ):
        read_all(source)
    assert pool.max_memory() < 100 * 2**20
    assert outcomes(read_all(open_at(path))) == ["a"]


@pytest.mark.parametrize("length", [3, 40_000])  # of words that are read at once, and in parts
def test_lists_of_words_that_a_dictionary_keeps_are_read_whole(path: Path, length: int) -> None:
    words = [f"{at}" * length for at in range(10)]
    rows = [[words[(at + place) % 10] for place in range(at % 7)] for at in range(600)]
    nested = [{"a": row} for row in rows]
    pq.write_table(pa.table({"text": ["a"] * 600, "words": rows, "nested": nested}), path, compression="zstd")
    read = read_all(open_at(path, {"text": "text", "candidate_labels": "words", "table": "nested"}), 250)
    assert [row.values["candidate_labels"] for row in read] == rows
    assert [row.values["table"] for row in read] == nested
