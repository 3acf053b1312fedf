"""Fix a job's model to one version: the folder's state when the job was submitted, or one commit of a hub id."""

from __future__ import annotations

from pathlib import Path

from jobs.access.model_check import local_model
from jobs.access.pins import Part, PinnedFiles, PinnedRevision, check_pin
from jobs.config.access_rules import AccessRules
from jobs.db.database import Database
from jobs.ledger.job_pins import pin_revision
from jobs.ledger.leasing.leases import WorkingLease
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
    """Return the name under which to load a model of a leased job.

    Args:
        model: The model's name in the spec.
        part: The part of the job that it is: `model` or `processor`.
        param: The field of the spec, for error messages.

    Returns:
        The name itself; for a hub id, `org/name@commit` with the commit that the job's first runner found.

    Raises:
        InvalidModel: The folder changed after the job was submitted, or there is no such model.
        LostLease: The lease is no longer active.
        ServiceUnavailable: The hub cannot be reached.
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
        return model  # the job was planned before pins existed
    # In the hub's cache, the name of a snapshot's folder is its commit.
    resolved = fetch_model(model, rules).path.name
    return f"{repository}@{pin_revision(database, lease.lease_id, part, resolved)}"


def check_pinned(
    model: str, lease: WorkingLease, *, rules: AccessRules, part: Part = "model", param: str = "model"
) -> None:
    """Reject a model's folder that has changed since it was pinned. Called before and after loading.

    Raises:
        InvalidModel: The folder changed after the job was submitted.
        ServiceUnavailable: The folder cannot be read.
    """
    pin = lease.pins.of(part)
    if isinstance(pin, PinnedFiles):
        # A relative name means a folder as long as that exists; without it, the name may be a hub id.
        folder = local_model(model, rules, param=param) or Path(model)
        check_pin(pin, folder, name=model, param=param)
