"""Check and read the files in a model's folder: regular files in allowed folders, JSON and headers of limited size."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import Forbidden, InvalidModel

MOST_FILES = 10_000
"""Maximum number of files in one folder of a model, since listing more takes too long."""
LARGEST_JSON_BYTES = 256 * 2**20
"""Maximum size of a JSON file in a model's folder; the largest tokenizers have about 40 MB."""
_LONGEST_HEADER_BYTES = 100_000_000  # safetensors' own limit
_READ_BY_LOADING = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken", ".safetensors", ".py"})
_TEMPLATES = "additional_chat_templates"


class TooManyFiles(Exception):
    """A folder has more than `MOST_FILES` files."""


@dataclass(frozen=True, slots=True)
class Header:
    """The shapes of a model's tensors, from the headers of its safetensors files."""

    shapes: Mapping[str, tuple[int, ...]]

    @property
    def largest_dimension(self) -> int:
        """The largest dimension of any tensor."""
        return max((max(shape, default=1) for shape in self.shapes.values()), default=1)


def invalid(name: str, reason: str, param: str = "model") -> InvalidModel:
    """Make the error for an invalid model.

    Args:
        name: The model name that the user gave.
        reason: The message after that name.
        param: The field of the spec that names the model.
    """
    return InvalidModel(f"{param} '{name}': {reason}", param=param)


def model_files(path: Path) -> Iterator[tuple[str, Path]]:
    """Relative name and path of each file that loading may read, sorted by name. If the path is a file, only that file.

    The files are those of the folder and of the subfolders that belong to the model: modules of sentence-transformers,
    and additional chat templates.

    Raises:
        TooManyFiles: A folder has more than `MOST_FILES` files.
        OSError: A folder cannot be read.
    """
    if not path.is_dir():
        yield path.name, path
        return
    for folder in sorted({"", *_inner_folders(path)}):
        for name in _names(path / folder):
            if Path(name).suffix in _READ_BY_LOADING and not name.startswith("."):
                yield str(Path(folder) / name), path / folder / name


def check_regular(folder: Path, *, name: str, may_read: Callable[[Path], bool] | None, param: str = "model") -> None:
    """Check that loading will not wait for a pipe, read a device, or follow a link to a place that jobs may not read.

    Args:
        folder: The model's folder.
        name: The model name that the user gave, for the message.
        may_read: Whether jobs may read the real path of a file; None allows all files.
        param: The field of the spec that names the model.

    Raises:
        InvalidModel: A file is not a regular file, or there are too many files.
        Forbidden: A file is a link to a place that jobs may not read.
    """
    try:
        for file, path in model_files(folder):
            try:
                mode = path.stat().st_mode
            except FileNotFoundError:
                continue  # a broken link; the code that needs the file reports it
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise invalid(name, f"its {file} is not a regular file", param)
            if may_read is not None and not may_read(path.resolve()):
                message = f"its {file} is a link to a file outside the allowed folders (setting input_roots)"
                raise Forbidden(f"{param} '{name}': {message}", param=param)
    except TooManyFiles as error:
        raise invalid(name, f"has more than {MOST_FILES} files in one folder", param) from error
    except (OSError, RuntimeError) as error:  # some versions of Python raise RuntimeError for a loop of links
        raise invalid(name, f"cannot be read: {getattr(error, 'strerror', None) or error}", param) from error


def read_json(path: Path, *, name: str, required: bool = True) -> dict[str, Any]:
    """Read a JSON object from a file in a model's folder.

    Args:
        path: The path of the file.
        name: The model name that the user gave, for the message.
        required: Whether a missing file is an error; if not, it reads as an empty object.

    Raises:
        InvalidModel: The file is missing or does not contain a JSON object.
    """
    if not path.is_file():
        if required:
            raise invalid(name, f"is not a model: it has no {path.name}")
        return {}
    value = parse_json(path, name=name)
    if not isinstance(value, dict):
        raise invalid(name, f"its {path.name} does not contain a JSON object")
    return value


def parse_json(path: Path, *, name: str) -> object:
    """Read a JSON value from a regular file in a model's folder.

    Raises:
        InvalidModel: The file cannot be read, is too large, or is not valid JSON.
    """
    try:
        if path.stat().st_size > LARGEST_JSON_BYTES:
            raise invalid(name, f"its {path.name} is larger than {LARGEST_JSON_BYTES // 2**20} MiB")
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise invalid(name, f"its {path.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise invalid(name, f"its {path.name} is not valid JSON") from error
    return value


def read_header(paths: Sequence[Path], *, name: str) -> Header:
    """Read the headers of a model's safetensors files, and check each file with `check_safetensors`.

    Raises:
        InvalidModel: A file is missing, damaged or truncated.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        shapes.update(check_safetensors(path, name=name))
    return Header(shapes)


def check_safetensors(path: Path, *, name: str) -> dict[str, tuple[int, ...]]:
    """Check that a safetensors file is complete.

    Args:
        path: The path of the file.
        name: The model name that the user gave, for the message.

    Returns:
        Name -> shape of each tensor.

    Raises:
        InvalidModel: The file is missing, or its header does not match the bytes that follow it.
    """
    # `safetensors.safe_open` is not used because it maps the file: if the file shrinks or the disk fails meanwhile,
    # SIGBUS would end this process, which is the API.
    if not path.is_file():
        raise invalid(name, f"its weights are incomplete: {path.name} is missing")
    try:
        with path.open("rb") as stream:
            num_bytes = path.stat().st_size
            header_bytes = int.from_bytes(stream.read(8), "little")
            if num_bytes < 8 or header_bytes > min(num_bytes - 8, _LONGEST_HEADER_BYTES):
                raise invalid(name, f"{path.name} is not a safetensors file, or it is truncated")
            header = json.loads(stream.read(header_bytes))
            tensors = {key: tensor for key, tensor in header.items() if key != "__metadata__"}
            ends = [int(tensor["data_offsets"][1]) for tensor in tensors.values()]
            shapes = {key: tuple(int(size) for size in tensor["shape"]) for key, tensor in tensors.items()}
    except OSError as error:
        raise invalid(name, f"{path.name} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError) as error:
        raise invalid(name, f"{path.name} is not a safetensors file") from error
    if max(ends, default=0) != num_bytes - 8 - header_bytes:
        raise invalid(name, f"{path.name} is truncated or has extra bytes; copy or download it again")
    return shapes


def _names(folder: Path) -> list[str]:
    names: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            names.append(entry.name)
            if len(names) > MOST_FILES:
                raise TooManyFiles
    return sorted(names)


def _inner_folders(folder: Path) -> set[str]:
    found = {_TEMPLATES} if (folder / _TEMPLATES).is_dir() else set()
    modules = folder / "modules.json"
    if not modules.is_file() or modules.stat().st_size > LARGEST_JSON_BYTES:
        return found
    try:
        listed = json.loads(modules.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # `sentence_modules` reports what is wrong
        return found
    root = folder.resolve()
    for item in listed if isinstance(listed, list) else ():
        path = item.get("path") if isinstance(item, dict) else None
        inner = _inside(root, path) if isinstance(path, str) and path else None
        if inner is not None:
            found.add(inner)
    return found


def _inside(root: Path, path: str) -> str | None:
    try:
        inner = (root / path).resolve()
        return str(inner.relative_to(root)) if inner.is_dir() and inner != root else None
    except (OSError, RuntimeError, ValueError):  # not a path, or one outside the folder
        return None
