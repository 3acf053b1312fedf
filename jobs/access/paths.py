"""Check the paths and URLs in a spec: local ones against configured roots, remote ones against configured prefixes."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from jobs.config.access_rules import AccessRules
from jobs.errors import Forbidden, InvalidInput, InvalidOutput, UserError
from jobs.messages import shown
from jobs.specs.bounds import path_fault

REMOTE_PROTOCOLS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"})
"""Protocols of object stores for inputs. Others, such as http, would give a spec access to internal services."""

_SAME_PROTOCOLS = {"s3a": "s3", "gcs": "gs", "abfss": "abfs", "az": "abfs"}
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?:::|://)")
_KERNEL_PLACES = (Path("/proc"), Path("/sys"))
"""Folders of the kernel: they expose environments of processes, which may contain passwords, and their open files."""
_LOCAL_PREFIXES = ("file://", "local://")
_UPLOAD_PREFIX = "file:"


def upload_id(path: str) -> str | None:
    """The id in `file:<id>`, or None if `path` does not name an uploaded file."""
    if path.startswith(_UPLOAD_PREFIX) and not path.startswith("file://"):
        return path.removeprefix(_UPLOAD_PREFIX)
    return None


def local_path(path: str) -> Path | None:
    """The path on this machine's file systems that `path` or a `file://` URL names, or None for anything else."""
    for prefix in _LOCAL_PREFIXES:
        if path.startswith(prefix):
            return Path(path.removeprefix(prefix))
    if path.startswith(_UPLOAD_PREFIX) or _PROTOCOL.match(path):
        return None
    return Path(path)


def is_local(path: str) -> bool:
    """Whether `path` is a local path or a `file://` URL, and not an upload or another URL."""
    return local_path(path) is not None


def resolve_input_path(path: str | Path, rules: AccessRules, *, param: str = "input.path") -> Path:
    """The real path behind `path`, if jobs may read it.

    Args:
        path: A local path or `file://` URL, which need not exist. `~` is the home of this process's user, and a
            relative path starts at the process's working directory.
        rules: The access rules; the path must lie under their `input_roots`. An empty list allows no local path.
        param: The field of the spec that an error names.

    Returns:
        An absolute path without symbolic links that lies under one of the roots.

    Raises:
        Forbidden: The path is not allowed. The message does not reveal whether it exists.
        InvalidInput: The text is not a local path.
    """
    resolved = _resolve(path, error=InvalidInput, param=param)
    _check_roots(path, resolved, rules.input_roots, setting="input_roots", param=param)
    _check_not_own(path, resolved, rules, param=param)
    return resolved


def check_code_path(path: str | Path, rules: AccessRules, *, param: str) -> Path:
    """The real path of a user's own Python file, if it may be run.

    Args:
        path: The local path of the file.
        rules: The access rules; the path must lie under their `code_roots`. An empty list allows no file.
        param: The field of the spec that an error names.

    Raises:
        Forbidden: The path is not allowed. The message does not reveal whether it exists.
        InvalidInput: The path is not that of a Python file.
    """
    resolved = _resolve(path, error=InvalidInput, param=param)
    _check_roots(path, resolved, rules.code_roots, setting="code_roots", param=param)
    _check_not_own(path, resolved, rules, param=param)
    if resolved.suffix != ".py" or not _is_file(resolved):
        raise InvalidInput(f"{param}: '{path}' is not a Python file", param=param)
    return resolved


def check_replaces_no_input(output: Path, inputs: Sequence[str], *, param: str) -> None:
    """Check that a job's output file would not replace one of its inputs.

    Args:
        output: The path for the results, which need not exist.
        inputs: The inputs; only valid local paths, globs and `file://` URLs are checked.
        param: The field or option that an error names.

    Raises:
        InvalidOutput: The output file exists and is one of the inputs.
    """
    if not output.exists():
        return
    target = output.resolve()
    for name in inputs:
        path = local_path(name)
        if path is None:
            continue
        path = path.expanduser().absolute()
        if path.resolve() == target or target.match(str(path)):
            raise InvalidOutput(f"{param}: '{output}' is an input of this job; choose another file", param=param)


def resolve_output_path(path: str | Path, rules: AccessRules, *, param: str = "output.path") -> Path:
    """The real path behind `path`, if jobs may write a file there.

    Args:
        path: A local path or `file://` URL of the file to write, as in `resolve_input_path`.
        rules: The access rules; the path must lie under their `output_roots`. An empty list allows no local path.
        param: The field of the spec that an error names.

    Returns:
        An absolute path without symbolic links, in an existing folder that this process may write to.

    Raises:
        Forbidden: The path lies outside the roots.
        InvalidOutput: Its folder is missing or not writable, or the path is a directory.
    """
    resolved = _resolve(path, error=InvalidOutput, param=param)
    _check_roots(path, resolved, rules.output_roots, setting="output_roots", param=param)
    _check_not_own(path, resolved, rules, param=param)
    parent = resolved.parent
    try:
        if resolved.is_dir():
            raise InvalidOutput(f"{param}: '{path}' is a directory; name a file in it", param=param)
        if not parent.is_dir():
            raise InvalidOutput(f"{param}: the folder '{parent}' for '{resolved.name}' does not exist", param=param)
        if not os.access(parent, os.W_OK | os.X_OK):
            raise InvalidOutput(f"{param}: the folder '{parent}' is not writable: permission denied", param=param)
        if resolved.exists() and not resolved.is_file():
            raise InvalidOutput(f"{param}: '{path}' is not a regular file", param=param)
    except OSError as error:  # a parent folder without access, or a name that is too long for its file system
        raise InvalidOutput(f"{param}: '{path}' cannot be written: {error.strerror}", param=param) from error
    return resolved


def check_input_url(url: str, rules: AccessRules, *, param: str = "input.path") -> None:
    """Check that jobs may read a remote URL.

    `hf://` is always allowed, like hub ids. Other object stores are read with this host's own credentials, so a URL
    must lie under one of `rules.input_urls`; the input root `/` (a machine with a single user) allows all of them.

    Raises:
        InvalidInput: Inputs cannot be read by this protocol.
        Forbidden: The URL lies under none of the configured prefixes, or in Stoker's store.
    """
    match = _PROTOCOL.match(url)
    protocol = match.group(1).lower() if match else ""
    if protocol not in REMOTE_PROTOCOLS or "::" in url or "/../" in f"{url}/":
        known = ", ".join(f"{name}://" for name in sorted(REMOTE_PROTOCOLS))
        raise InvalidInput(f"{param}: inputs cannot be read from '{url}'; use one of {known}", param=param)
    if protocol == "hf":
        return
    if _is_in_store(url, rules):
        raise Forbidden(f"{param}: '{url}' is in Stoker's artifact store, which jobs cannot use", param=param)
    if Path("/") in rules.input_roots:
        return
    if not any(url == prefix or url.startswith(prefix.rstrip("/") + "/") for prefix in rules.input_urls):
        raise Forbidden(f"{param}: '{url}' is outside the URLs allowed here (setting input_urls)", param=param)


def own_places(rules: AccessRules) -> tuple[Path, ...]:
    """Files and folders that no job may name, even if they lie under a root.

    They are Stoker's own (keys, the database, uploads of all projects) and those of the kernel.

    Symbolic links to them are detected. Hard links are not, but only a user of this host who may write to such a file
    can create one. A second mount of the same folder is not detected either.
    """
    return _own_places(rules.data_dir, rules.resolved_store_url, rules.database_url, rules.config_path)


@functools.lru_cache(maxsize=16)
def _own_places(data_dir: Path, store_url: str, database_url: str, config_path: Path) -> tuple[Path, ...]:
    places = [data_dir, config_path]
    store = local_path(store_url)
    if store is not None:
        places.append(store)
    if database_url.startswith("sqlite:///"):
        file = database_url.removeprefix("sqlite:///").partition("?")[0]
        places.extend(Path(file + ending) for ending in ("", "-wal", "-shm", "-journal"))
    return (*(place.expanduser().resolve() for place in places), *_KERNEL_PLACES)


def _is_in_store(url: str, rules: AccessRules) -> bool:
    """Whether a URL of an object store lies in the artifact store."""

    def plain(name: str) -> str:
        protocol, _, rest = name.partition("://")
        return f"{_SAME_PROTOCOLS.get(protocol.lower(), protocol.lower())}://{rest.rstrip('/')}/"

    return "://" in rules.store_url and plain(url).startswith(plain(rules.store_url))


def _resolve(path: str | Path, *, error: type[UserError], param: str) -> Path:
    local = local_path(path) if isinstance(path, str) else path
    if local is None:
        raise error(f"{param}: '{path}' is not a local path", param=param)
    fault = path_fault(str(path))  # checked before links are followed, which looks up each part of the path
    if fault is not None:
        raise error(f"{param}: {shown(str(path))} {fault}", param=param)
    try:
        resolved = local.expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as cause:  # a loop of links, or an unknown ~user
        raise error(f"{param}: {shown(str(path))} is not a usable path", param=param) from cause
    fault = path_fault(str(resolved))
    if fault is not None:
        raise error(f"{param}: {shown(str(path))} resolves to a path that {fault}", param=param)
    return resolved


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a parent folder without access
        return False


def _check_roots(path: str | Path, resolved: Path, roots: Sequence[Path], *, setting: str, param: str) -> None:
    if not roots:
        raise Forbidden(f"{param}: '{path}': no local paths are allowed here (setting {setting} is empty)", param=param)
    if not any(resolved.is_relative_to(root) for root in roots):
        raise Forbidden(f"{param}: '{path}' is outside the folders allowed here (setting {setting})", param=param)


def _check_not_own(path: str | Path, resolved: Path, rules: AccessRules, *, param: str) -> None:
    if any(resolved.is_relative_to(place) for place in own_places(rules)):
        raise Forbidden(f"{param}: '{path}' belongs to Stoker or the system, so jobs cannot use it", param=param)
