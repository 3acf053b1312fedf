"""The pins of a job: taken at its submission and completed by its planning; those of hub ids by its first runner."""

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
from jobs.ledger.leases import fenced
from jobs.specs.inference import JOB_PREFIX, JobSpec, TrainingSpec
from jobs.specs.training import recipe_name


@dataclass(frozen=True, slots=True)
class _Named:
    """A file or folder that a spec may name."""

    part: Part
    param: str
    """The field of the spec that names it."""
    name: str
    path: Path | None
    """The real path on this machine; None for a hub id."""
    error: type[UserError] = InvalidModel


def stamp_spec(spec: JobSpec, rules: AccessRules) -> Pins:
    """The pins of a job that is being submitted: names, sizes and stamps, but no digests, so that no file is read.

    Of `job:<id>` there is none: what a training made never changes, and its files are fetched by their digests.

    Raises:
        UserError: something cannot be read, or holds too many files.
        ServiceUnavailable: it cannot be read now.
    """
    return _pin(spec, rules, with_digests=False)


def pin_spec(spec: JobSpec, rules: AccessRules) -> Pins:
    """The same with digests, which take as long as the files are large.

    Raises:
        UserError: as for `stamp_spec`.
        ServiceUnavailable: as for `stamp_spec`.
    """
    return _pin(spec, rules, with_digests=True)


def check_spec(spec: JobSpec, pins: Pins, rules: AccessRules) -> None:
    """Refuse a job whose files are not those that were there when it was submitted.

    Args:
        pins: what `stamp_spec` gave then, perhaps on another host.

    Raises:
        UserError: something changed, was removed, or is a folder now and was a hub id; the message names the field.
        ServiceUnavailable: it cannot be read now.
    """
    for named in _all_named(spec, rules):
        pin = pins.of(named.part)
        if named.path is not None and pin is None:
            reason = "a folder of this name has appeared after the job was submitted"
            raise named.error(f"{named.param} '{named.name}': {reason}", param=named.param)
        # A relative name is a folder's while that exists, and may be a hub id's once it is gone.
        path = Path(named.name) if named.path is None else named.path
        check_pin(pin, path, name=named.name, param=named.param, error=named.error)


def pin_revision(db: Database, lease_id: str, part: Part, revision: str) -> str:
    """Pin the commit that a hub id was resolved to, unless another runner of the job has pinned one before.

    Args:
        lease_id: a live lease of the job.
        part: what of the job the hub id is.
        revision: the commit that this runner resolved.

    Returns:
        The commit that the whole job uses.

    Raises:
        LostLease: the lease is not active any more.
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
    return session.get_one(Job, job_id, with_for_update=True)


def _pin(spec: JobSpec, rules: AccessRules, *, with_digests: bool) -> Pins:
    pins = Pins()
    for named in _all_named(spec, rules):
        if named.path is not None:
            pin = pin_path(named.path, name=named.name, param=named.param, error=named.error, with_digests=with_digests)
            pins = pins.with_pin(named.part, pin)
    return pins


def _all_named(spec: JobSpec, rules: AccessRules) -> Iterator[_Named]:
    """Each model, processor and module that a spec names, but those that are another job's."""
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
