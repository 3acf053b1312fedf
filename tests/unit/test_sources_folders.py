"""Folders of data sets and Parquet files that would fetch, load or unpack more than anybody agreed to."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.config.settings import Settings
from jobs.data.sources.formats.parquet import expansion
from jobs.errors import InvalidInput
from tests.support.sources_kit import open_at, outcomes, read_all

MIB = 2**20
SMALL = Settings(input_roots=[Path("/")], max_dataset_bytes=MIB)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of data sets of the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache" / "downloads")
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", tmp_path / "cache" / "extracted")
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "set"
    path.mkdir()
    return path


def _refusal(folder: Path, settings: Settings = SMALL) -> str:
    with pytest.raises(InvalidInput) as refused:
        open_at(folder, format="dataset", settings=settings).column_names()
    assert refused.value.param == "input.path"
    assert "\n" not in refused.value.message
    return refused.value.message


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    "files",
    [
        "http://127.0.0.1:9/rows.jsonl",
        "[rows.jsonl, 'https://example.invalid/rows.jsonl']",
        "{train: 's3://bucket/rows.jsonl'}",
        "[{split: train, path: ['zip://a.jsonl::http://127.0.0.1:9/a.zip']}]",
    ],
)
def test_files_that_a_folders_readme_names_elsewhere_are_refused_unfetched(folder: Path, name: str, files: str) -> None:
    """The library would send a request to that host, even an internal one, to list the files."""
    notes = f"configs:\n- config_name: default\n  data_files: {files}\n"
    (folder / name).write_text(f"---\n{notes}---\n# Set\n" if name == "README.md" else notes)
    (folder / "rows.jsonl").write_text('{"text": "a"}\n')
    assert f"its {name} names" in _refusal(folder)


@pytest.mark.parametrize("notes", ["configs: [", "configs: *nowhere", "- a\n- b", "configs: {a: &a [*a]}"])
def test_a_readme_that_is_no_yaml_is_one_sentence(folder: Path, notes: str) -> None:
    (folder / "README.md").write_text(f"---\n{notes}\n---\n")
    _refusal(folder)


def test_a_readme_may_name_files_of_its_folder(folder: Path) -> None:
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: a\n  data_files: rows.jsonl\n---\n")
    (folder / "rows.jsonl").write_text('{"text": "a"}\n')
    assert outcomes(read_all(open_at(folder, format="dataset", settings=SMALL))) == ["a"]


def test_pickled_tensors_in_a_tar_file_are_refused(folder: Path) -> None:
    with tarfile.open(folder / "train.tar", "w") as archive:
        for name in ("0.txt", "0.pth"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    assert "contains '0.pth', which is pickled data and is never loaded" in _refusal(folder)


@pytest.mark.parametrize("kind", ["gzip", "zip", "tar", "tar.gz", "plain", "parquet"])
def test_a_folder_that_unpacks_to_more_than_the_limit_is_refused(folder: Path, cache: Path, kind: str) -> None:
    """Counted before a byte of it is in the cache."""
    line = b'{"text": "' + b"a" * 1000 + b'"}\n'
    body = line * 3000
    if kind == "gzip":
        (folder / "train.jsonl.gz").write_bytes(gzip.compress(body))
    elif kind == "zip":
        with zipfile.ZipFile(folder / "train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("train.jsonl", body)
    elif kind.startswith("tar"):
        with tarfile.open(folder / f"train.{kind}", "w:gz" if kind == "tar.gz" else "w") as tar:
            member = tarfile.TarInfo("0.txt")
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    elif kind == "plain":
        (folder / "train.jsonl").write_bytes(body)
    else:
        table = pa.table({"text": ["a" * 1000] * 3000})
        pq.write_table(table, folder / "train.parquet", use_dictionary=False, compression="zstd")
    packed = sum(path.stat().st_size for path in folder.iterdir())
    assert packed < 50_000 or kind in {"tar", "plain"}
    assert "unpacked, its files take more than 1048576 bytes (setting max_dataset_bytes)" in _refusal(folder)
    assert not list(cache.rglob("*.arrow"))
    if "tar" not in kind:
        large = Settings(input_roots=[Path("/")], max_dataset_bytes=8 * MIB)
        assert len(read_all(open_at(folder, format="dataset", settings=large))) == 3000


@pytest.mark.parametrize("name", ["train.parquet", "train.zip", "train.tar", "train.jsonl.gz", "state.json"])
def test_a_damaged_file_in_a_folder_is_one_sentence(folder: Path, name: str) -> None:
    beginning = {
        "train.parquet": b"PAR1",
        "train.zip": b"PK\x03\x04",
        "train.tar": b"0.txt",
        "train.jsonl.gz": b"\x1f\x8b\x08",
        "state.json": b"{",
    }
    (folder / name).write_bytes(beginning[name] + b"\xff" * 600)
    _refusal(folder)


@pytest.mark.parametrize("damage", range(12))
def test_a_damaged_parquet_file_is_the_users_fault(tmp_path: Path, damage: int) -> None:
    """As a temporary error the job would be retried for ever."""
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": [f"row {at}" for at in range(100)]}), path)
    data = bytearray(path.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little")
    start = len(data) - 8 - footer
    for at in range(start, len(data) - 8, 12):
        data[at + damage if at + damage < len(data) - 8 else at] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match="is not a readable Parquet file"):
        open_at(path).column_names()


def test_a_parquet_file_of_few_bytes_and_one_huge_value_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    table = pa.table({"text": ["a" * 80 * MIB], "id": [1]})
    pq.write_table(table, path, compression="brotli", use_dictionary=False, write_statistics=False)
    assert path.stat().st_size < 4000
    for look in (lambda: open_at(path).column_names(), lambda: list(open_at(path).index(1))):
        with pytest.raises(InvalidInput, match="column 'text' expands to 83886") as refused:
            look()
        assert refused.value.param == "input.path"
    assert len(read_all(open_at(path, {"table": "id"}))) == 1  # the column is not decoded


def test_a_parquet_file_of_equal_values_is_no_bomb(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(["a"] * 2_000_000)}), tmp_path / "in.parquet")
    assert open_at(tmp_path / "in.parquet").column_names() == ["text"]


def test_a_parquet_file_that_claims_more_rows_than_fit_is_refused() -> None:
    footer = SimpleNamespace(num_rows=2**31, num_row_groups=0)
    assert "which is not possible with real rows" in (expansion(footer, 946, None, 1) or "")
    assert expansion(footer, 100_000, None, 1) is None


def _compressed(path: Path, num_rows: int, *, file: bool) -> None:
    """A table of equal numbers, compressed; zstd makes some kilobytes of megabytes."""
    table = pa.table({"text": pa.array([0] * num_rows, pa.int64())})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    opened = pa.ipc.new_file if file else pa.ipc.new_stream
    with opened(str(path), table.schema, options=options) as writer:
        writer.write_table(table)


def test_a_saved_data_set_is_not_unpacked_in_memory(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "saved"))
    assert outcomes(read_all(open_at(tmp_path / "saved"))) == ["a", "b"]
    [arrow] = (tmp_path / "saved").glob("*.arrow")
    _compressed(arrow, 10**6, file=False)
    with pytest.raises(InvalidInput, match=r"'data-00000-of-00001\.arrow' is compressed; .* save_to_disk") as refused:
        open_at(tmp_path / "saved").column_names()
    assert refused.value.param == "input.path"


@pytest.mark.parametrize("file", [False, True], ids=["stream", "file"])
def test_compressed_arrow_files_count_with_their_unpacked_size(folder: Path, file: bool) -> None:
    path = folder / "train.arrow"
    _compressed(path, 2**20, file=file)
    assert path.stat().st_size < MIB / 8
    assert "unpacked, its files take more than 1048576 bytes" in _refusal(folder)
    large = Settings(input_roots=[Path("/")], max_dataset_bytes=8 * MIB + 2**10)
    assert open_at(folder, format="dataset", settings=large).column_names() == ["text"]
    _compressed(path, 2**24, file=file)
    assert "'train.arrow' has a table that expands from" in _refusal(folder, Settings(input_roots=[Path("/")]))
