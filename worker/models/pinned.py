"""Holds a job to one model: the folder that was there when it was submitted, or one commit of a hub id."""

from __future__ import annotations

from pathlib import Path

from jobs.access.model_check import local_model
from jobs.access.pins import Part, PinnedFiles, PinnedRevision, check_pin
from jobs.config.access_rules import AccessRules
from jobs.db.database import Database
from jobs.ledger.job_pins import pin_revision
from jobs.ledger.leases import WorkingLease
from jobs.specs.inference import JOB_PREFIX
from worker.models.load import fetch_model


def pinned_model(
    model: str,
    lease: WorkingLease,
    *,
    database: Database,
    rules: AccessRules,
    part: Part = "model",
    param: str = "model",
) -> str:
    """The name by which a model of a leased job is to be loaded.

    Args:
        model: as the spec names it.
        part: what of the job it is: `model` or `processor`.
        param: the field of the spec.

    Returns:
        The name itself; for a hub id, `org/name@commit`, where the commit is the one that the job's first runner found.

    Raises:
        InvalidModel: the folder changed after the job was submitted, or there is no such model.
        LostLease: the lease is not active any more.
        ServiceUnavailable: the hub cannot be reached.
    """
    if model.startswith(JOB_PREFIX):
        return model
    repository = model.partition("@")[0]
    match lease.pins.of(part):
        case PinnedRevision(revision):
            return f"{repository}@{revision}"
        case PinnedFiles():
            check_pinned(model, lease, rules=rules, part=part, param=param)
            return model
    if local_model(model, rules, param=param) is not None:
        return model  # of a job that was planned before there were pins
    # A snapshot in the hub's cache lies in a folder that is called like its commit.
    resolved = fetch_model(model, rules).path.name
    return f"{repository}@{pin_revision(database, lease.lease_id, part, resolved)}"


def check_pinned(
    model: str, lease: WorkingLease, *, rules: AccessRules, part: Part = "model", param: str = "model"
) -> None:
    """Refuse a model's folder that is not what was pinned; before it is loaded, and again once it is.

    Raises:
        InvalidModel: it changed after the job was submitted.
        ServiceUnavailable: it cannot be read.
    """
    pin = lease.pins.of(part)
    if isinstance(pin, PinnedFiles):
        # A relative name is a folder's while that exists, and may be a hub id's once it is gone.
        folder = local_model(model, rules, param=param) or Path(model)
        check_pin(pin, folder, name=model, param=param)
