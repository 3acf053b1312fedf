"""Read Hugging Face data sets, memory-mapped: from the hub, from a folder without script, or saved to disk."""

from __future__ import annotations

import errno
import json
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pyarrow
import yaml

from jobs.access.paths import resolve_input_path
from jobs.access.stamps import file_stamp
from jobs.config.access_rules import AccessRules
from jobs.data.sources.folders import check_expansion, check_metadata, check_saved, check_size
from jobs.data.sources.formats.arrow import table_records
from jobs.data.sources.formats.class_names import names_of_feature
from jobs.data.sources.open_file import PARAM, check_unchanged, remote_file_system
from jobs.data.sources.reader import Cut, InputFile, Record
from jobs.errors import Forbidden, InvalidInput, ServiceUnavailable
from jobs.messages import first_line

_HUB_PREFIX = "hf://datasets/"
_BATCH_ROWS = 256
_SPLIT_PARAM = "input.split"
_CONFIG_PARAM = "input.config"
_DEFAULT_SPLIT = "train"
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
_DAMAGE = (
    RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, ImportError, EOFError,
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, yaml.YAMLError, pyarrow.ArrowException,
)  # fmt: skip
"""Exceptions that the library and its dependencies raise for scripts, damaged files and files without data sets."""


class DatasetReader:
    """Reads data sets through the `datasets` library, which is loaded only when one is read.

    `HF_HUB_OFFLINE` and the other `HF_*` variables work as usual. Data sets that come with a script are rejected.
    """

    def __init__(self, *, columns: Sequence[str], split: str, config: str | None, rules: AccessRules) -> None:
        """
        Args:
            columns: Columns to read; a column that the data set does not have is missing in its records.
            split: Name of the split; unless the data set was saved to disk, also a slice such as `train[:1000]`.
            config: Configuration of a hub data set, or of a folder that declares several.
            rules: The access rules; a data set may not name files outside their `input_roots`.
        """
        self._columns = tuple(columns)
        self._split = split
        self._config = config
        self._rules = rules
        self._loaded: tuple[str, Any] | None = None

    def stamped(self, file: InputFile) -> InputFile:
        """The data set with its number of rows and its fingerprint."""
        return _stamped(file, self._data(file))

    def column_names(self, file: InputFile) -> list[str] | None:
        """The names of the data set's features; None if it has no rows."""
        data = self._data(file)
        return list(data.column_names) if len(data) else None

    def class_names(self, file: InputFile, column: str) -> list[str] | None:
        """The names of a `ClassLabel` feature, or of a list of them."""
        return names_of_feature(self._data(file).features.get(column))

    def cut(self, file: InputFile, chunk_rows: int) -> Iterator[Cut]:
        """Split by the number of rows; no data is read."""
        num_rows = len(self._data(file))
        for row in range(0, num_rows, chunk_rows):
            yield Cut(row, min(row + chunk_rows, num_rows), row, {"index": row})

    def records(self, file: InputFile, place: Mapping[str, Any], skip: int, count: int) -> Iterator[Record]:
        """Slice the memory-mapped tables; only Arrow values are decoded, not media."""
        data = self._data(file)
        check_unchanged(file, len(data), _stamped(file, data).stamp)
        columns = [name for name in data.column_names if name in self._columns]
        start = place["index"] + skip
        stop = min(start + count, len(data))
        if not columns:
            yield from (Record({}, None) for _ in range(start, stop))
            return
        table = data.select_columns(columns).with_format("arrow")
        for begin in range(start, stop, _BATCH_ROWS):
            yield from table_records(table[begin : min(begin + _BATCH_ROWS, stop)])

    def _data(self, file: InputFile) -> Any:
        if self._loaded is None or self._loaded[0] != file.url:
            with _translated(file):
                self._loaded = (file.url, self._load(file))
        return self._loaded[1]

    def _load(self, file: InputFile) -> Any:
        import datasets

        datasets.disable_progress_bars()  # a runner's log is not a terminal
        if not file.url.startswith(_HUB_PREFIX):
            folder = Path(file.url)
            check_metadata(file, self._rules)
            saved = _saved_folder(folder, self._split, file)
            if saved is not None:
                check_saved(file, saved, self._rules)
                data = _saved(saved, self._split, file, is_single=saved == folder)
                return data
            return self._built(file, datasets.load_dataset_builder(str(folder), name=self._config))
        name, _, revision = file.url.removeprefix(_HUB_PREFIX).partition("@")
        if Path(name).exists():  # the library would prefer it, and it may be outside the input roots
            raise InvalidInput(
                f"{PARAM}: '{name}' is also a file or folder in the working directory; rename that", param=PARAM
            )
        return self._built(file, datasets.load_dataset_builder(name, name=self._config, revision=revision or None))

    def _built(self, file: InputFile, builder: Any) -> Any:
        named = builder.config.data_files or {}
        urls = [url for urls in named.values() for url in urls]
        self._check_allowed(file, urls)
        if not Path(builder.cache_dir).exists():
            paths = list(dict.fromkeys(url.rpartition("::")[2] for url in urls))
            if file.url.startswith(_HUB_PREFIX):
                paths = self._downloaded(file, builder, paths)
            rules = self._rules
            check_expansion(file, paths, most_bytes=rules.max_dataset_bytes, max_row_bytes=rules.max_row_bytes)
        builder.download_and_prepare()
        return builder.as_dataset(split=self._split)

    def _downloaded(self, file: InputFile, builder: Any, urls: Sequence[str]) -> list[str]:
        """Download a hub data set's files, unless the hub says that they are too large. Returns their local paths."""
        from datasets import DownloadConfig, DownloadManager

        (hub, _), options = remote_file_system(urls[0]), builder.storage_options
        check_size(file, "its metadata declares", [builder.info.dataset_size or 0], self._rules.max_dataset_bytes)
        sizes = (hub.info(url)["size"] for url in urls)
        check_size(file, "its files on the hub take", sizes, self._rules.max_dataset_bytes)
        config = DownloadConfig(use_etag=False, token=builder.token, storage_options=options)
        return cast("list[str]", DownloadManager(download_config=config).download(list(urls)))

    def _check_allowed(self, file: InputFile, urls: Iterable[str]) -> None:
        """Reject files that jobs may not read: a README, a link or a saved data set's metadata may name any file."""
        for url in urls:
            place = url.rpartition("::")[2]  # for a member of an archive, the path of the archive
            if not file.url.startswith(_HUB_PREFIX):
                resolve_input_path(place, self._rules)
            elif not place.startswith("hf://"):
                raise Forbidden(
                    f"{PARAM}: data set '{file.name}' names the file '{place}' outside the hub", param=PARAM
                )


def _stamped(file: InputFile, data: Any) -> InputFile:
    """The data set with its number of rows and its stamp.

    The stamp is the fingerprint. For a saved data set, the sizes and times of its files are added, because its
    fingerprint is only stored in a metadata file.
    """
    stamp = str(data._fingerprint)
    if not file.url.startswith(_HUB_PREFIX):
        folder = Path(file.url)
        states = [Path(facts["filename"]).stat() for facts in data.cache_files]
        if all(Path(facts["filename"]).is_relative_to(folder) for facts in data.cache_files):
            stamp = "-".join([stamp, *(f"{state.st_size}.{file_stamp(state)}" for state in states)])
    return replace(file, size=len(data), stamp=stamp)


def _saved_folder(folder: Path, split: str, file: InputFile) -> Path | None:
    """The folder of the split to load if `folder` was saved to disk; otherwise None."""
    if (folder / "state.json").is_file():
        return folder
    marks = folder / "dataset_dict.json"
    if not marks.is_file():
        return None
    splits = [str(name) for name in json.loads(marks.read_bytes())["splits"]]
    if split not in splits:
        raise _unknown_split(split, file, splits)
    return folder / split


def _saved(folder: Path, split: str, file: InputFile, *, is_single: bool) -> Any:
    import datasets

    try:
        data = datasets.load_from_disk(str(folder))
    except IndexError as error:  # the library raises this for tables without rows
        raise InvalidInput(f"{PARAM}: '{file.name}' has no rows", param=PARAM) from error
    own = str(data.split) if data.split is not None else None
    if is_single and split not in {_DEFAULT_SPLIT, own}:
        raise _unknown_split(split, file, [own or _DEFAULT_SPLIT])
    return data


def _unknown_split(split: str, file: InputFile, splits: Sequence[str]) -> InvalidInput:
    known = ", ".join(splits)
    message = f"{_SPLIT_PARAM}: data set '{file.name}' has no split '{split}'; it has {known}"
    return InvalidInput(message, param=_SPLIT_PARAM)


@contextmanager
def _translated(file: InputFile) -> Iterator[None]:
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (FileNotFoundError, DatasetsError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno in _DISK_ERRORS:
            raise ServiceUnavailable(f"the cache of data sets cannot be written: {first_line(cause)}") from error
        raise _unreadable(file, first_line(error) if isinstance(error, OSError) else first_line(cause)) from error
    except PermissionError as error:
        raise _unreadable(file, "permission denied") from error
    except (ConnectionError, TimeoutError) as error:
        from huggingface_hub.constants import HF_HUB_OFFLINE

        if HF_HUB_OFFLINE:
            raise _unreadable(file, "it is not in the cache of this host, and HF_HUB_OFFLINE is set") from error
        raise ServiceUnavailable(f"the hub cannot be reached: {first_line(error)}", param=PARAM) from error
    except ValueError as error:
        text = first_line(error)
        unknown = re.match(r'Unknown split "(.*?)"\. Should be one of \[(.*)\]', text)
        if unknown:
            splits = re.findall(r"'([^']*)'", unknown.group(2))
            raise _unknown_split(unknown.group(1), file, splits) from error
        param = _CONFIG_PARAM if re.search(r"BuilderConfig|Config name", text) else PARAM
        raise InvalidInput(f"{param}: data set '{file.name}': {text}", param=param) from error
    except OSError as error:
        if error.errno is not None or file.url.startswith(_HUB_PREFIX):
            raise ServiceUnavailable(f"'{file.name}' cannot be read now: {first_line(error)}", param=PARAM) from error
        raise _unreadable(file, first_line(error)) from error  # libraries raise this for damaged files
    except _DAMAGE as error:
        raise _unreadable(file, first_line(error)) from error


def _unreadable(file: InputFile, reason: str) -> InvalidInput:
    return InvalidInput(f"{PARAM}: '{file.name}' cannot be read as a data set: {reason}", param=PARAM)
