"""Adapt the paths of a spec to the API: make them absolute on the same machine, upload the files to another."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.access.paths import is_local, local_path
from jobs.errors import InvalidInput, InvalidModel, InvalidOutput
from scheduler.client.connection import Json
from scheduler.client.http_client import StokerClient

_GLOB_MARKS = "*?["


def check_local_inputs(document: Json) -> None:
    """Reject a missing local input file before anything is started.

    Raises:
        InvalidInput: A path certainly names a file, which does not exist.
    """
    for path in _paths(document):
        local = local_path(path)
        if local is not None and _means_file(path) and not _is_glob(path) and not _exists(local):
            raise InvalidInput(f"input.path: there is no file '{path}'", param="input.path")


def adapt_inference(
    document: Json, client: StokerClient, *, on_upload: Callable[[str, int, int], None] | None = None
) -> Json:
    """Adapt the paths of a document to the API.

    If the API sees this machine's files, relative paths become absolute, starting at the working directory. If not,
    local inputs are uploaded.

    Args:
        document: Spec as the user wrote it, not yet validated.
        client: Client of the API that the spec is submitted to.
        on_upload: Called with the file's name, the bytes sent and the total bytes.

    Raises:
        InvalidInput, InvalidModel, InvalidOutput: A path is not accessible to the API.
    """
    try:
        inputs = _paths(document)
    except (TypeError, ValueError):
        return document  # not a valid spec; the API reports what is wrong with it
    if client.shares_files():
        adapted: Json = {"path": [absolute_input(path) for path in inputs]}
        moved = {"model": absolute_model(document.get("model")), "output": _absolute_output(document.get("output"))}
    else:
        adapted = upload_inputs(document["input"], inputs, client, on_upload)
        moved = {"model": remote_model(document.get("model")), "output": _remote_output(document.get("output"))}
    if len(adapted["path"]) == 1 and isinstance(document["input"]["path"], str):
        adapted["path"] = adapted["path"][0]
    kept = {name: value for name, value in moved.items() if value is not None}
    return {**document, **kept, "input": {**document["input"], **adapted}}


# -- on this machine -----------------------------------------------------------------------------------------------


def _paths(document: Json) -> list[str]:
    """The input's paths. Raises ValueError if they are not strings."""
    spec_input = document.get("input")
    path = spec_input.get("path") if isinstance(spec_input, dict) else None
    paths = [path] if isinstance(path, str) else path
    if not isinstance(paths, list) or not all(isinstance(each, str) for each in paths):
        raise ValueError("input.path must be a text or a list of texts")
    return paths


def absolute_input(path: str) -> str:
    """An input's path for an API that sees this machine's files."""
    local = local_path(path)
    if local is None or not (_means_file(path) or _is_glob(path) or _exists(local)):
        return path  # a URL, an upload, or the name of a dataset on the hub
    return absolute_path(local)


def absolute_path(path: Path) -> str:
    """The absolute path. A path that begins with an unknown user (`~name`) is returned unchanged."""
    with contextlib.suppress(RuntimeError):  # the API reports it
        path = path.expanduser()
    return str(path) if str(path).startswith("~") else str(path.absolute())


def _exists(path: Path) -> bool:
    return Path(absolute_path(path)).exists()


def absolute_model(model: object) -> str | None:
    """A model's folder for an API that sees this machine's files; None if the model stays as it is."""
    return absolute_path(Path(model)) if isinstance(model, str) and _exists(Path(model)) else None


def _absolute_output(output: object) -> Json | None:
    if not isinstance(output, dict) or not isinstance(output.get("path"), str):
        return None
    local = local_path(output["path"])
    return None if local is None else {**output, "path": absolute_path(local)}


def _is_glob(path: str) -> bool:
    return any(mark in path for mark in _GLOB_MARKS)


def _means_file(path: str) -> bool:
    """Whether a string is certainly a path, and not the name of a dataset on the hub."""
    return path.startswith(("/", "./", "../", "~", "file://", "local://")) or _format_of(path) is not None


def _format_of(name: str) -> str | None:
    from jobs.data.sources.locate import SUFFIXES  # imports the sources' libraries

    return SUFFIXES.get(Path(name).suffix.lower())


# -- on another machine --------------------------------------------------------------------------------------------


def upload_inputs(
    spec_input: Json, paths: Sequence[str], client: StokerClient, on_upload: Callable[[str, int, int], None] | None
) -> Json:
    """Upload the local files of an input. Returns its new `path`, and its `format` if files were uploaded."""
    adapted: list[str] = []
    formats: set[str] = set()
    for path in paths:
        files = _local_files(path)
        if files is None:
            adapted.append(path)
            continue
        for file in files:
            formats.add(_upload_format(spec_input, file))
            adapted.append(f"file:{_upload(file, client, on_upload)}")
    if len(formats) > 1:
        raise InvalidInput(f"input.path: all files of a job must have one format, not {' and '.join(sorted(formats))}")
    return {"path": adapted, **({"format": formats.pop()} if formats else {})}


def _local_files(path: str) -> list[Path] | None:
    """The local files that a path names; None if it names something that the API finds itself."""
    local = local_path(path)
    if local is None:
        return None
    local = Path(absolute_path(local)) if path.startswith("~") else local
    if _is_glob(path) and not local.exists():
        names = glob.glob(str(local), recursive=True)  # noqa: PTH207, Path.glob accepts no absolute pattern
        files = sorted(found for found in map(Path, names) if found.is_file())
        if not files:
            raise InvalidInput(f"input.path: no file matches '{path}'", param="input.path")
        return files
    if local.is_dir():
        raise InvalidInput(
            f"input.path: '{path}' is a folder on this machine, but the API runs on another; name files instead",
            param="input.path",
        )
    if local.exists():
        return [local]
    if _means_file(path) and not local.is_absolute():
        raise InvalidInput(f"input.path: there is no file '{path}'", param="input.path")
    return None


def _upload_format(spec_input: Json, file: Path) -> str:
    """Find the format of an upload, which must be explicit because an upload's id has no suffix."""
    declared = spec_input.get("format", "auto")
    if declared != "auto":
        return str(declared)
    found = _format_of(file.name)
    if found is None:
        raise InvalidInput(
            f"input.format: the name of '{file.name}' does not show its format; "
            "set the format to jsonl, json, csv, text or parquet",
            param="input.format",
        )
    return found


def _upload(file: Path, client: StokerClient, on_upload: Callable[[str, int, int], None] | None) -> str:
    num_bytes = file.stat().st_size

    def on_progress(sent: int) -> None:
        if on_upload is not None:
            on_upload(file.name, sent, num_bytes)

    return str(client.upload(file, on_progress=on_progress)["id"])


def remote_model(model: object) -> str | None:
    """Reject a local model folder, which an API on another machine cannot see."""
    if isinstance(model, str) and model.startswith(("./", "../", "~")):
        raise InvalidModel(
            f"model: '{model}' is a path on this machine, but the API runs on another; "
            "use a hub id or an absolute path on that machine",
            param="model",
        )
    return None


def _remote_output(output: object) -> Json | None:
    path = output.get("path") if isinstance(output, dict) else None
    if isinstance(path, str) and is_local(path) and not Path(path).is_absolute():
        raise InvalidOutput(
            f"output.path: '{path}' is a path on this machine, but the API runs on another; "
            "leave it out and fetch the file with `stoker results JOB --output`",
            param="output.path",
        )
    return None
