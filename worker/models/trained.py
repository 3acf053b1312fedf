"""Models from training jobs: downloaded once from the artifact store to this host, completely or not at all."""

from __future__ import annotations

from pathlib import Path

from jobs.config.access_rules import AccessRules
from jobs.data.atomic import folder_aside
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import Artifact
from jobs.errors import InvalidModel, ServiceUnavailable
from jobs.ledger import jobs as job_ledger
from jobs.specs.inference import JOB_PREFIX

MODEL_FOLDER = "model/"
"""Prefix of the names of those artifacts of a training that are its model."""


def fetch_job_model(model: str, *, database: Database, store: Store, rules: AccessRules, param: str = "model") -> None:
    """Make sure that the folder that `local_model` gives for `job:<id>` exists. Does nothing for other names.

    Args:
        model: The name of a model or processor.
        param: The field of the spec that contains this name.

    Raises:
        InvalidModel: That job has not completed or produced no model.
        ServiceUnavailable: The store or the disk cannot be used.
    """
    job_id = model.removeprefix(JOB_PREFIX)
    if job_id == model or (rules.job_models_path / job_id).is_dir():
        return
    with database.read() as session:
        job = job_ledger.get(session, job_id)
        artifacts = job_ledger.artifacts(session, job_id)
        made = [artifact for artifact in artifacts if artifact.name.startswith(MODEL_FOLDER)]
    if job.state != JobState.COMPLETED or not made:
        raise InvalidModel(f"{param} '{JOB_PREFIX}{job_id}': that job has no model", param=param)
    try:
        with folder_aside(rules.job_models_path / job_id) as aside:  # another slot's runner may be first
            for artifact in made:
                _fetch(store, artifact, aside / artifact.name.removeprefix(MODEL_FOLDER))
    except OSError as error:
        raise ServiceUnavailable(f"the model of {job_id} cannot be stored on this host: {error}") from error


def _fetch(store: Store, artifact: Artifact, path: Path) -> None:
    if store.fetch(artifact.key, path) != artifact.sha256:
        raise ServiceUnavailable(
            f"the artifact '{artifact.name}' of {artifact.job_id} is damaged: its size or SHA-256 differs"
        )
