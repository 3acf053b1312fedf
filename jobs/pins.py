"""What a job computes with, pinned when it is planned and compared by every runner before it uses it.

A model folder whose weights are replaced in mid job would give one job two models, so a change is refused, as it is for
inputs. A pin holds, for each file that loading may read, its size, its stamp (`jobs.stamps`) and a digest.

On the host that made the pin, size and stamp decide. Another host has other inodes, and a copy of the folder has times
of its own; there the sizes and the digests decide. A digest is of all bytes of a file of up to 64 MiB (configurations,
tokenizers), and of blocks spread over a larger one (weights), which tells other weights but no single flipped bit.

A job's `pins` are `{part: pin}`, where a part is `model`, `processor` or `module` and a pin is made by `pin_path` or,
of a hub id, is `{"revision": commit}`, written by the first runner that has resolved the name.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlmodel import Session

from jobs.database import Database
from jobs.errors import InvalidModel, InvalidSpec, ServiceUnavailable, UserError
from jobs.leases import hold
from jobs.model_files import MOST_FILES, TooManyFiles, model_files
from jobs.modelcheck import local_model
from jobs.paths import check_code_path
from jobs.settings import Settings
from jobs.specs import JOB_PREFIX, JobSpec, TrainingSpec
from jobs.stamps import file_stamp, is_same
from jobs.tables import Job
from jobs.training_spec import recipe_name
from jobs.wording import reason

_WHOLE_BYTES = 64 * 2**20  # the largest file whose digest is of all its bytes
_BLOCK_BYTES = 64 * 2**10
_NUM_BLOCKS = 64  # blocks that are read of a larger file
_MOST_DIGESTS = 4096  # remembered by one process


def pin_spec(spec: JobSpec, settings: Settings) -> dict[str, Any]:
    """The pins of everything on this machine's file systems that a job computes with, its input left aside.

    Of `job:<id>` there is none: what a training made never changes, and its files are fetched by their digests.

    Raises:
        UserError: something cannot be read, or holds too many files.
        ServiceUnavailable: it cannot be read now.
    """
    pins: dict[str, Any] = {}
    for part, param, name in _models(spec):
        folder = None if name.startswith(JOB_PREFIX) else local_model(name, settings, param=param)
        if folder is not None:
            pins[part] = pin_path(folder, name=name, param=param)
    if isinstance(spec, TrainingSpec) and spec.module is not None and recipe_name(spec.module) is None:
        path = check_code_path(spec.module, settings, param="module")
        pins["module"] = pin_path(path, name=spec.module, param="module", error=InvalidSpec)
    return pins


def _models(spec: JobSpec) -> Iterator[tuple[str, str, str]]:
    """Part, field and name of each model or processor that a spec names."""
    if isinstance(spec.model, str):
        yield "model", "model", spec.model
    elif spec.model is not None and spec.model.processor is not None:
        yield "processor", "model.processor", spec.model.processor


def pin_path(path: Path, *, name: str, param: str = "model", error: type[UserError] = InvalidModel) -> dict[str, Any]:
    """A pin of a file, or of the files in a folder that loading may read.

    Args:
        path: the real path.
        name: what the user called it, for messages.
        param: the field of the spec that named it.
        error: what is raised.

    Raises:
        UserError: of class `error`: it cannot be read, or holds too many files.
    """
    with _translated(name, param, error, missing="there is no such file or folder"):
        files = [
            {"name": file, "num_bytes": status.st_size, "stamp": file_stamp(status), "digest": _digest(full, status)}
            for file, full, status in _files(path)
        ]
    return {"files": files}


def check_pin(
    pin: Mapping[str, Any] | None,
    path: Path,
    *,
    name: str,
    param: str = "model",
    error: type[UserError] = InvalidModel,
    by_content: bool = False,
) -> None:
    """Refuse a file or folder that is not what was pinned. Does nothing without a pin of this kind.

    Cheap: files are read only on other hosts than the one that pinned them, and there once by each process.

    Args:
        by_content: Whether the digests decide on every host, for small files that may be written anew as they were.

    Raises:
        UserError: of class `error`: it changed after the job was submitted.
        ServiceUnavailable: it cannot be read.
    """
    if pin is None or "files" not in pin:
        return
    pinned = {file["name"]: file for file in pin["files"]}
    with _translated(name, param, error, missing="was removed after the job was submitted"):
        present = {file: (full, status) for file, full, status in _files(path)}
        changed = (
            file
            for file in sorted(pinned.keys() | present.keys())
            if file not in present
            or file not in pinned
            or not _is_pinned(pinned[file], *present[file], by_content=by_content)
        )
        first = next(changed, None)
    if first is not None:
        raise error(f"{param} '{name}': {first} changed after the job was submitted", param=param)


@contextmanager
def _translated(name: str, param: str, error: type[UserError], *, missing: str) -> Iterator[None]:
    """While inside, what reading files raises becomes an error that names the field.

    Args:
        name: what the user called the file or folder.
        param: the field of the spec that named it.
        error: the class of what is raised, unless it is the machine's.
        missing: the end of the sentence where there is nothing.
    """
    try:
        yield
    except TooManyFiles as cause:
        raise error(f"{param} '{name}': has more than {MOST_FILES} files in one folder", param=param) from cause
    except FileNotFoundError as cause:
        raise error(f"{param} '{name}': {missing}", param=param) from cause
    except OSError as cause:
        raise ServiceUnavailable(f"{param} '{name}': cannot be read: {reason(cause)}") from cause


def folder_stamp(path: Path) -> tuple[tuple[str, int, str], ...]:
    """What tells a folder on this host from what it was before; empty where there is none."""
    try:
        return tuple((file, status.st_size, file_stamp(status)) for file, _, status in _files(path))
    except (OSError, TooManyFiles):
        return ()


def pin_revision(db: Database, lease_id: str, part: str, revision: str) -> str:
    """Pin the commit that a hub id was resolved to, unless another runner of the job has pinned one before.

    Args:
        lease_id: a live lease of the job.
        part: `model` or `processor`.
        revision: the commit that this runner resolved.

    Returns:
        The commit that the whole job uses.

    Raises:
        LostLease: the lease is not active any more.
    """
    with db.write() as session:
        job = _lock_job(session, hold(session, lease_id).job_id)
        pins = dict(job.pins or {})
        pinned = pins.get(part, {}).get("revision")
        if pinned is None:
            pins[part] = {"revision": revision}
            job.pins = pins
        return revision if pinned is None else str(pinned)


def _lock_job(session: Session, job_id: str) -> Job:
    return session.get_one(Job, job_id, with_for_update=True)


def _is_pinned(file: Mapping[str, Any], path: Path, status: os.stat_result, *, by_content: bool) -> bool:
    if file["num_bytes"] != status.st_size:
        return False
    if by_content:
        return bool(file["digest"] == _digest(path, status))
    present = file_stamp(status)
    return is_same(file["stamp"], present) or (
        _host(file["stamp"]) != _host(present) and file["digest"] == _digest(path, status)
    )


def _host(stamp: str) -> str:
    return stamp.rpartition("@")[2]


def _files(path: Path) -> Iterator[tuple[str, Path, os.stat_result]]:
    """Name, place and status of each regular file that loading may read."""
    path.stat()  # says that there is nothing at all
    for name, full in model_files(path):
        try:
            status = full.stat()
        except FileNotFoundError:
            continue  # a link to nothing
        if stat.S_ISREG(status.st_mode):
            yield name, full, status


def _digest(path: Path, status: os.stat_result) -> str:
    return _digest_of(str(path), status.st_size, file_stamp(status))


@lru_cache(maxsize=_MOST_DIGESTS)
def _digest_of(path: str, num_bytes: int, _stamp: str) -> str:
    """The digest of a file in one state of it."""
    digest = hashlib.sha256(str(num_bytes).encode())
    with Path(path).open("rb") as file:
        if num_bytes <= _WHOLE_BYTES:
            while block := file.read(2**20):
                digest.update(block)
        else:
            for number in range(_NUM_BLOCKS):
                file.seek((num_bytes - _BLOCK_BYTES) * number // (_NUM_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()
