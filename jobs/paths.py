"""Which paths and URLs a spec may name: local ones under configured roots, remote ones under configured prefixes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from jobs.errors import Forbidden, InvalidInput, InvalidOutput, UserError
from jobs.settings import Settings

REMOTE_PROTOCOLS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"})
"""Protocols of object stores that inputs are read from. Others, such as http, would let a spec reach inner services."""

_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?:::|://)")
_LOCAL_PREFIXES = ("file://", "local://")
_UPLOAD_PREFIX = "file:"


def upload_id(path: str) -> str | None:
    """The id in `file:<id>`, or None where `path` does not name an uploaded file."""
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
    """Whether `path` names something on this machine's file systems: not an upload and no URL but `file://`."""
    return local_path(path) is not None


def resolve_input_path(path: str | Path, settings: Settings, *, param: str = "input.path") -> Path:
    """The real path behind `path`, if jobs may read it.

    Args:
        path: local path or `file://` URL; `~` is the home of this process's user, a relative path starts at its
            working directory. It need not exist.
        settings: whose `input_roots` bound it; an empty list allows no local path.
        param: the field of the spec that an error names.

    Returns:
        An absolute path without symbolic links that lies under one of the roots.

    Raises:
        Forbidden: it lies elsewhere. Whether it exists is not told.
        InvalidInput: it is not a path at all.
    """
    resolved = _resolve(path, error=InvalidInput, param=param)
    _check_roots(path, resolved, settings.input_roots, setting="input_roots", param=param)
    return resolved


def check_code_path(path: str | Path, settings: Settings, *, param: str) -> Path:
    """The real path of a user's own Python file, if it may be run.

    Args:
        path: local path of the file.
        settings: whose `code_roots` bound it; an empty list allows none.
        param: the field of the spec that an error names.

    Raises:
        Forbidden: it lies elsewhere. Whether it exists is not told.
        InvalidInput: it is not a Python file.
    """
    resolved = _resolve(path, error=InvalidInput, param=param)
    _check_roots(path, resolved, settings.code_roots, setting="code_roots", param=param)
    if resolved.suffix != ".py" or not resolved.is_file():
        raise InvalidInput(f"{param}: '{path}' is not a Python file", param=param)
    return resolved


def resolve_output_path(path: str | Path, settings: Settings, *, param: str = "output.path") -> Path:
    """The real path behind `path`, if jobs may write a file there.

    Args:
        path: local path or `file://` URL of the file to write, as in `resolve_input_path`.
        settings: whose `output_roots` bound it; an empty list allows no local path.
        param: the field of the spec that an error names.

    Returns:
        An absolute path without symbolic links, in an existing folder that this process may write to.

    Raises:
        Forbidden: it lies outside the roots.
        InvalidOutput: its folder is missing or cannot be written to, or it is a directory itself.
    """
    resolved = _resolve(path, error=InvalidOutput, param=param)
    _check_roots(path, resolved, settings.output_roots, setting="output_roots", param=param)
    parent = resolved.parent
    if resolved.is_dir():
        raise InvalidOutput(f"{param}: '{path}' is a directory; name a file in it", param=param)
    if not parent.is_dir():
        raise InvalidOutput(f"{param}: there is no folder '{parent}' to write '{resolved.name}' to", param=param)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InvalidOutput(f"{param}: the folder '{parent}' may not be written to: permission denied", param=param)
    if resolved.exists() and not resolved.is_file():
        raise InvalidOutput(f"{param}: '{path}' is not a regular file", param=param)
    return resolved


def check_input_url(url: str, settings: Settings, *, param: str = "input.path") -> None:
    """Refuse a remote URL that jobs may not read.

    `hf://` is always allowed, as hub ids are. Other object stores are read with this host's own credentials, so a URL
    must lie under one of `settings.input_urls`; input roots that hold `/` (one user's own machine) allow all of them.

    Raises:
        InvalidInput: the protocol is not one that inputs are read from.
        Forbidden: the URL is under none of the configured prefixes.
    """
    match = _PROTOCOL.match(url)
    protocol = match.group(1).lower() if match else ""
    if protocol not in REMOTE_PROTOCOLS or "::" in url or "/../" in f"{url}/":
        known = ", ".join(f"{name}://" for name in sorted(REMOTE_PROTOCOLS))
        raise InvalidInput(f"{param}: '{url}' is not a URL that inputs are read from ({known})", param=param)
    if protocol == "hf" or Path("/") in settings.input_roots:
        return
    if not any(url == prefix or url.startswith(prefix.rstrip("/") + "/") for prefix in settings.input_urls):
        raise Forbidden(f"{param}: '{url}' is under none of the URLs allowed here (setting input_urls)", param=param)


def _resolve(path: str | Path, *, error: type[UserError], param: str) -> Path:
    local = local_path(path) if isinstance(path, str) else path
    if local is None:
        raise error(f"{param}: '{path}' is not a local path", param=param)
    try:
        resolved = local.expanduser().resolve()
        str(resolved).encode()
    except (OSError, RuntimeError, ValueError) as cause:  # a loop of links, an unknown ~user, a zero byte, not UTF-8
        raise error(f"{param}: {str(path)!r} is not a usable path", param=param) from cause
    return resolved


def _check_roots(path: str | Path, resolved: Path, roots: Sequence[Path], *, setting: str, param: str) -> None:
    if not roots:
        raise Forbidden(f"{param}: '{path}': no local paths are allowed here (setting {setting} is empty)", param=param)
    if not any(resolved.is_relative_to(root) for root in roots):
        raise Forbidden(f"{param}: '{path}' is outside the folders allowed here (setting {setting})", param=param)
