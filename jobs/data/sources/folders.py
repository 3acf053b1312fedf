"""Check a data set before the `datasets` library reads it: which files it names, and their unpacked size.

The library follows URLs that a README names, and it unpacks and converts all files into its cache before their size
could be checked.
"""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from fsspec.compression import compr

from jobs.access.paths import resolve_input_path
from jobs.config.access_rules import AccessRules
from jobs.data.sources.open_file import PARAM
from jobs.data.sources.reader import InputFile, is_bomb
from jobs.errors import InvalidInput

_METADATA_FILES = ("README.md", ".huggingface.yaml")
_OTHER_METADATA_FILES = ("dataset_infos.json", "dataset_dict.json", "state.json", "dataset_info.json")
_LARGEST_METADATA_BYTES = 2**20
_BLOCK_BYTES = 2**20
_PICKLED = (".pth",)
"""Suffixes of tar members that the library would load with torch."""
_CODECS = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
)


def check_metadata(file: InputFile, rules: AccessRules) -> None:
    """Reject a folder whose README names files outside local folders. Nothing is downloaded for this check.

    Raises:
        InvalidInput: The README names a URL, or the metadata cannot be read.
        Forbidden: The metadata files are links to files that jobs may not read.
    """
    folder = Path(file.url)
    for name in (*_METADATA_FILES, *_OTHER_METADATA_FILES):
        path = folder / name
        if not path.exists():
            continue
        resolved = resolve_input_path(path, rules)
        if name in _METADATA_FILES:
            if resolved.stat().st_size > _LARGEST_METADATA_BYTES:
                raise _refused(file, f"its {name} is larger than {_LARGEST_METADATA_BYTES} bytes")
            for text in _named_files(_configurations(resolved, file)):
                if "://" in text or "::" in text:
                    raise _refused(file, f"its {name} names '{text}', but all files must be inside the folder")


def check_size(file: InputFile, claim: str, sizes: Iterable[int], most_bytes: int) -> None:
    """Reject a data set whose parts exceed the limit in total. Parts after the one that exceeds it are not read.

    Args:
        file: The data set.
        claim: Beginning of the error message, such as "its files on the hub take".
        sizes: Size of each part in bytes.
        most_bytes: Maximum total size (setting `max_dataset_bytes`).
    """
    num_bytes = 0
    for size in sizes:
        num_bytes += size
        if num_bytes > most_bytes:
            raise _refused(file, f"{claim} more than {most_bytes} bytes (setting max_dataset_bytes)")


def check_expansion(file: InputFile, paths: Iterable[str], *, most_bytes: int, max_row_bytes: int) -> None:
    """Reject files that unpack to more than the limit or hold pickled data. Nothing is written.

    Args:
        file: The data set.
        paths: The data set's local files.
        most_bytes: Maximum total size of the unpacked files (setting `max_dataset_bytes`).
        max_row_bytes: Maximum size of a value; a larger one is a row error.

    Raises:
        InvalidInput: The files exceed the limit, or one is damaged or holds pickled data.
    """
    sizes = (size for path in dict.fromkeys(paths) for size in _unpacked(file, Path(path), max_row_bytes))
    check_size(file, "unpacked, its files take", sizes, most_bytes)


def _unpacked(file: InputFile, path: Path, max_row_bytes: int) -> Iterator[int]:
    """Yield a file's unpacked size in bytes, in parts, so that the caller can stop at the limit."""
    with path.open("rb") as handle:
        head = handle.read(512)
        handle.seek(0)
        codec = next((name for mark, name in _CODECS if head.startswith(mark)), None)
        if head.startswith(b"PK"):
            with zipfile.ZipFile(handle) as archive:  # it reads no more of a member than the size in its header
                yield from (member.file_size for member in archive.infolist())
        elif ".tar" in path.suffixes or path.suffix == ".tgz" or head[257:262] == b"ustar":
            yield from _members(file, handle)
        elif codec is not None:
            yield from _stream(handle, codec)
        elif head.startswith(b"PAR1"):
            yield _parquet_bytes(file, handle, path, max_row_bytes)
        elif path.suffix == ".arrow":
            yield from _arrow_bytes(file, path)
        else:
            yield path.stat().st_size


def _members(file: InputFile, handle: BinaryIO) -> Iterator[int]:
    with tarfile.open(fileobj=handle, mode="r|*") as archive:
        for member in archive:
            if member.name.lower().endswith(_PICKLED):
                raise _refused(file, f"it contains '{member.name}', which is pickled data and is never loaded")
            yield member.size


def _stream(handle: BinaryIO, codec: str) -> Iterator[int]:
    if codec not in compr:
        return  # the library reports which package is missing
    with compr[codec](handle, mode="rb") as unpacked:
        while block := unpacked.read(_BLOCK_BYTES):
            yield len(block)


def _arrow_bytes(file: InputFile, path: Path) -> Iterator[int]:
    from jobs.data.sources.formats.arrow_messages import messages

    for message in messages(path):
        packed, unpacked = message.packed_bytes, message.unpacked_bytes
        if is_bomb(packed, unpacked):
            raise _refused(file, f"'{path.name}' has a table that expands from {packed} bytes to {unpacked}")
        yield unpacked


def check_saved(file: InputFile, folder: Path, rules: AccessRules) -> None:
    """Reject a saved data set that names files which jobs may not read, or whose tables are compressed.

    The library memory-maps its files; a compressed table would be unpacked into memory completely.

    Raises:
        InvalidInput: A table is compressed, or the metadata is too large.
        Forbidden: The data set names files that jobs may not read.
    """
    from jobs.data.sources.formats.arrow_messages import messages

    state = resolve_input_path(folder / "state.json", rules)
    if not state.is_file():
        return
    if state.stat().st_size > _LARGEST_METADATA_BYTES:
        raise _refused(file, f"its state.json is larger than {_LARGEST_METADATA_BYTES} bytes")
    for facts in json.loads(state.read_bytes())["_data_files"]:
        path = resolve_input_path(folder / facts["filename"], rules)
        if any(message.is_compressed for message in messages(path)):
            raise _refused(
                file,
                f"'{path.name}' is compressed; save the data set with save_to_disk of the datasets library, which does "
                "not compress",
            )


def _parquet_bytes(file: InputFile, handle: BinaryIO, path: Path, max_row_bytes: int) -> int:
    import pyarrow.parquet as pq

    from jobs.data.sources.formats.parquet import expansion
    from jobs.data.sources.formats.parquet_pages import dictionaries

    with pq.ParquetFile(path) as parquet:
        metadata = parquet.metadata
        fault = expansion(metadata, path.stat().st_size, None, max_row_bytes)
        if fault is not None:
            raise _refused(file, f"'{path.name}' {fault}")
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        try:
            for facts in groups:
                dictionaries(handle, facts, None, max_row_bytes)
        except ValueError as error:
            raise _refused(file, f"'{path.name}' {error}") from error
        return sum(facts.total_byte_size for facts in groups)


def _configurations(path: Path, file: InputFile) -> Any:
    """The value that the library uses as the data set's configurations."""
    try:
        if path.suffix == ".md":
            from huggingface_hub import metadata_load

            metadata = metadata_load(path)
        else:
            metadata = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _refused(file, f"the metadata in {path.name} is not valid YAML") from error
    return metadata.get("configs") if isinstance(metadata, dict) else None


def _named_files(configurations: Any) -> Iterator[str]:
    each: Sequence[Any] = configurations if isinstance(configurations, list) else [configurations]
    todo = [part.get(key) for part in each if isinstance(part, dict) for key in ("data_files", "data_dir")]
    seen: set[int] = set()  # with YAML aliases, one value may occur in many places
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, dict)) and id(value) not in seen:
            seen.add(id(value))
            todo.extend(value.values() if isinstance(value, dict) else value)


def _refused(file: InputFile, reason: str) -> InvalidInput:
    return InvalidInput(f"{PARAM}: data set '{file.name}': {reason}", param=PARAM)
