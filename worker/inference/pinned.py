"""Holds a job to one model: the folder that was pinned when it was planned, or one commit of a hub id."""

from __future__ import annotations

from jobs.database import Database
from jobs.leases import WorkingLease
from jobs.modelcheck import local_model
from jobs.pins import check_pin, pin_revision
from jobs.settings import Settings
from jobs.specs import JOB_PREFIX
from worker.inference.tasks.loading import fetch_model


def pinned_model(
    model: str,
    lease: WorkingLease,
    *,
    database: Database,
    settings: Settings,
    part: str = "model",
    param: str = "model",
) -> str:
    """The name by which a model of a leased job is to be loaded.

    Args:
        model: as the spec names it.
        part: of the job's pins: `model` or `processor`.
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
    if local_model(model, settings, param=param) is not None:
        check_pinned(model, lease, settings=settings, part=part, param=param)
        return model
    pin = (lease.pins or {}).get(part)
    repository = model.partition("@")[0]
    if pin is None or "revision" not in pin:
        # A snapshot in the hub's cache lies in a folder that is called like its commit.
        resolved = fetch_model(model, settings).path.name
        return f"{repository}@{pin_revision(database, lease.lease_id, part, resolved)}"
    return f"{repository}@{pin['revision']}"


def check_pinned(
    model: str, lease: WorkingLease, *, settings: Settings, part: str = "model", param: str = "model"
) -> None:
    """Refuse a model's folder that is not what was pinned; before it is loaded, and again once it is.

    Raises:
        InvalidModel: it changed after the job was submitted.
        ServiceUnavailable: it cannot be read.
    """
    if model.startswith(JOB_PREFIX):
        return
    folder = local_model(model, settings, param=param)
    if folder is not None:
        check_pin((lease.pins or {}).get(part), folder, name=model, param=param)
