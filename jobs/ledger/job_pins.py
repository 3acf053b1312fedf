"""Pins of a job: made at submission, completed with digests by the planner; hub ids are pinned by the first runner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlmodel import Session

from jobs.access.model_check import local_model
from jobs.access.paths import check_code_path
from jobs.access.pins import Part, PinnedRevision, Pins, check_pin, pin_path
from jobs.config.access_rules import AccessRules
from jobs.db.database import Database
from jobs.db.tables import Job
from jobs.errors import InvalidModel, InvalidSpec, UserError
from jobs.ledger.leasing.leases import fenced
from jobs.specs.inference import JOB_PREFIX, JobSpec, TrainingSpec
from jobs.specs.training import recipe_name


@dataclass(frozen=True, slots=True)
class _Named:
    """A file or folder that a spec may name."""

    part: Part
    param: str
    """Field of the spec with the name."""
    name: str
    path: Path | None
    """Real path on this machine; None for a hub id."""
    error: type[UserError] = InvalidModel


def stamp_spec(spec: JobSpec, rules: AccessRules) -> Pins:
    """Make the pins of a job that is being submitted: names, sizes and stamps, but no digests, so that no file is read.

    A model `job:<id>` gets no pin: a training's artifacts never change, and they are fetched by their digests.

    Raises:
        UserError: A file or folder cannot be read, or a folder contains too many files.
        ServiceUnavailable: A file or folder cannot be read now.
    """
    return _pin(spec, rules, with_digests=False)


def pin_spec(spec: JobSpec, rules: AccessRules) -> Pins:
    """Make pins with digests, which reads all files and so takes time in proportion to their sizes.

    Raises:
        UserError: See `stamp_spec`.
        ServiceUnavailable: See `stamp_spec`.
    """
    return _pin(spec, rules, with_digests=True)


def check_spec(spec: JobSpec, pins: Pins, rules: AccessRules) -> None:
    """Check that a job's files have not changed since it was submitted.

    Args:
        pins: Result of `stamp_spec` at submission, possibly on another host.

    Raises:
        UserError: A file or folder changed or was removed, or a former hub id now names a folder; the message names the
            field.
        ServiceUnavailable: A file or folder cannot be read now.
    """
    for named in _all_named(spec, rules):
        pin = pins.of(named.part)
        if named.path is not None and pin is None:
            reason = "a folder of this name was created after the job was submitted"
            raise named.error(f"{named.param} '{named.name}': {reason}", param=named.param)
        # A relative name means a folder while that exists, and may be taken for a hub id once it is gone.
        path = Path(named.name) if named.path is None else named.path
        check_pin(pin, path, name=named.name, param=named.param, error=named.error)


def pin_revision(db: Database, lease_id: str, part: Part, revision: str) -> str:
    """Pin the commit that a hub id was resolved to, unless another runner of the job has pinned one before.

    Args:
        lease_id: An active lease of the job.
        part: The part of the job that the hub id names.
        revision: The commit to which this runner resolved the hub id.

    Returns:
        The commit that the whole job uses.

    Raises:
        LostLease: The lease is no longer active.
    """
    with fenced(db, lease_id) as (tx, lease):
        job = _lock_job(tx, lease.job_id)
        pins = Pins.parse(job.pins)
        pinned = pins.of(part)
        if isinstance(pinned, PinnedRevision):
            return pinned.revision
        job.pins = pins.with_pin(part, PinnedRevision(revision)).stored()
        return revision


def _lock_job(session: Session, job_id: str) -> Job:
    return session.get_one(Job, job_id, with_for_update={"key_share": True})


def _pin(spec: JobSpec, rules: AccessRules, *, with_digests: bool) -> Pins:
    pins = Pins()
    for named in _all_named(spec, rules):
        if named.path is not None:
            pin = pin_path(named.path, name=named.name, param=named.param, error=named.error, with_digests=with_digests)
            pins = pins.with_pin(named.part, pin)
    return pins


def _all_named(spec: JobSpec, rules: AccessRules) -> Iterator[_Named]:
    """Each model, processor and module that a spec names, except artifacts of other jobs."""
    if isinstance(spec.model, str):
        yield from _model("model", "model", spec.model, rules)
    elif spec.model is not None and spec.model.processor is not None:
        yield from _model("processor", "model.processor", spec.model.processor, rules)
    if isinstance(spec, TrainingSpec) and spec.module is not None and recipe_name(spec.module) is None:
        path = check_code_path(spec.module, rules, param="module")
        yield _Named("module", "module", spec.module, path, InvalidSpec)


def _model(part: Part, param: str, name: str, rules: AccessRules) -> Iterator[_Named]:
    if not name.startswith(JOB_PREFIX):
        yield _Named(part, param, name, local_model(name, rules, param=param))
