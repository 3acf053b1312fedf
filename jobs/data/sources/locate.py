"""List the files that a spec's `input.path` names, in order, without opening any of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from jobs.access.paths import check_input_url, local_path, resolve_input_path, upload_id
from jobs.config.access_rules import AccessRules
from jobs.data.sources.globs import local_matches
from jobs.data.sources.open_file import PARAM, directory_message, remote_file_system, translated
from jobs.data.sources.reader import InputFile
from jobs.data.store import Store
from jobs.db.tables import StoredFile
from jobs.errors import InvalidInput, NotFound
from jobs.specs.bounds import MOST_INPUT_FILES, glob_fault
from jobs.specs.inference import InputSpec

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".txt": "text",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
"""Maps file name suffixes to formats."""

_COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".zip", ".lz4", ".7z"}
_HUB_PREFIX = "hf://datasets/"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
_GLOB = re.compile(r"[*?\[]")
_SAVED_DATASET_MARKS = ("dataset_dict.json", "state.json")


class Locator:
    """Resolves a spec's paths to files."""

    def __init__(
        self, spec_input: InputSpec, *, rules: AccessRules, store: Store, find_upload: Callable[[str], StoredFile]
    ) -> None:
        """
        Args:
            spec_input: The spec with the paths and the format.
            rules: The access rules; files outside their roots may not be read.
            store: The store that holds uploads.
            find_upload: Finds an upload by its id, or raises NotFound.
        """
        self._spec = spec_input
        self._rules = rules
        self._store = store
        self._find_upload = find_upload

    def files(self) -> list[InputFile]:
        """All files, in the order of the spec's paths; files that match one glob are sorted by name.

        Raises:
            InvalidInput: A path matches no file, a file's format is unknown, or the formats differ.
            Forbidden: Jobs may not read one of the paths.
        """
        found: list[InputFile] = []
        for path in self._spec.paths:
            with translated(InputFile(path, path, "")):
                for file in self._files_of(path):
                    found.append(file)
                    if len(found) > MOST_INPUT_FILES:
                        raise _invalid(f"the input has more than {MOST_INPUT_FILES} files; merge some of them")
        other = next((file for file in found if file.format != found[0].format), None)
        if other is not None:
            raise _invalid(
                f"'{found[0].name}' is {found[0].format} and '{other.name}' is {other.format}; "
                "all files of a job must have the same format"
            )
        return found

    def _files_of(self, path: str) -> Iterator[InputFile]:
        if not path or "\0" in path:
            raise _invalid(f"{path!r} is not a usable path")
        upload = upload_id(path)
        if upload is not None:
            yield self._upload(path, upload)
        elif self._is_hub_dataset(path):
            yield InputFile(path if path.startswith(_HUB_PREFIX) else _HUB_PREFIX + path, path, "dataset")
        elif local_path(path) is None:
            yield from self._remote(path)
        else:
            yield from self._local(path)

    def _is_hub_dataset(self, path: str) -> bool:
        if path.startswith(_HUB_PREFIX):
            name = path.removeprefix(_HUB_PREFIX)
            is_file_in_it = name.count("/") > 1 and PurePosixPath(name).suffix.lower() in SUFFIXES
            return self._spec.format == "dataset" or (_HUB_NAME.fullmatch(name) is not None and not is_file_in_it)
        looks_local = path.startswith(("/", ".", "~")) or Path(path).exists()
        return self._spec.format == "dataset" and not looks_local and _HUB_NAME.fullmatch(path) is not None

    def _upload(self, path: str, file_id: str) -> InputFile:
        try:
            stored = self._find_upload(file_id)
        except NotFound as error:
            raise _invalid(f"there is no uploaded file '{file_id}'") from error
        if self._spec.format == "dataset":
            raise _invalid(f"'{path}' is a single file, not a data set; set input.format to auto")
        form = self._format(stored.filename)
        return InputFile(self._store.url(stored.key), stored.filename or path, form, is_upload=True)

    def _remote(self, url: str) -> Iterator[InputFile]:
        check_input_url(url, self._rules)
        if self._spec.format == "dataset":
            raise _invalid(f"'{url}' cannot be read as a data set; use a local folder or the hub ({_HUB_PREFIX}<name>)")
        if not _GLOB.search(url):
            yield InputFile(url, url, self._format(url))
            return
        if fault := glob_fault(url):
            raise _invalid(f"'{url}' {fault}")
        with translated(InputFile(url, url, "")):
            system, pattern = remote_file_system(url)
            matches = sorted(
                name for name, facts in system.glob(pattern, detail=True).items() if facts["type"] == "file"
            )
        if not matches:
            raise _invalid(f"no file matches '{url}'")
        for match in matches:
            full = str(system.unstrip_protocol(match))
            check_input_url(full, self._rules)
            yield InputFile(full, full, self._format(full))

    def _local(self, path: str) -> Iterator[InputFile]:
        resolved = resolve_input_path(path, self._rules)
        if _GLOB.search(path) and not resolved.exists():
            yield from self._matches(path)
        elif resolved.is_dir():
            is_saved = any((resolved / mark).is_file() for mark in _SAVED_DATASET_MARKS)
            if self._spec.format != "dataset" and not (self._spec.format == "auto" and is_saved):
                raise _invalid(directory_message(path).removeprefix(f"{PARAM}: "))
            yield InputFile(str(resolved), path, "dataset")
        elif not resolved.exists():
            raise _invalid(f"there is no {'data set folder' if self._spec.format == 'dataset' else 'file'} '{path}'")
        elif self._spec.format == "dataset":
            raise _invalid(f"'{path}' is a file, not the folder of a data set; set input.format to auto")
        else:
            yield InputFile(str(resolved), path, self._format(path))

    def _matches(self, pattern: str) -> Iterator[InputFile]:
        local = local_path(pattern)
        files = [] if local is None else local_matches(str(local.expanduser()))
        if not files:
            raise _invalid(f"no file matches '{pattern}'")
        for match in files:
            yield InputFile(str(resolve_input_path(match, self._rules)), match, self._format(match))

    def _format(self, name: str) -> str:
        if self._spec.format not in {"auto", "dataset"}:
            return self._spec.format
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in _COMPRESSED:
            raise _invalid(f"'{name}' is compressed; unpack it first")
        if suffix not in SUFFIXES:
            known = ", ".join(SUFFIXES)
            raise _invalid(
                f"the format of '{name}' is unknown, because its name does not end in one of {known}; "
                "set input.format to jsonl, json, csv, text, parquet or dataset"
            )
        return SUFFIXES[suffix]


def _invalid(message: str) -> InvalidInput:
    return InvalidInput(f"{PARAM}: {message}", param=PARAM)
