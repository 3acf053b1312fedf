"""Adapt the paths of a training's spec to the API: its data, model and module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jobs.errors import InvalidInput
from jobs.specs.inference import TRAINING
from scheduler.client.connection import Json
from scheduler.client.http_client import StokerClient
from scheduler.client.inference_paths import (
    absolute_input,
    absolute_model,
    absolute_path,
    bring,
    remote_model,
    upload_inputs,
)

OnUpload = Callable[[str, int, int], None]


def bring_spec(document: Json, client: StokerClient, *, on_upload: OnUpload | None = None) -> Json:
    """Adapt the paths of any kind of spec to the API; see `bring` and `bring_training`."""
    brings = bring_training if document.get("kind") == TRAINING else bring
    return brings(document, client, on_upload=on_upload)


def bring_training(document: Json, client: StokerClient, *, on_upload: OnUpload | None = None) -> Json:
    """Adapt the paths of a training's document to the API, as `inference_paths.bring` does for inference.

    Args:
        document: Spec as the user wrote it, not yet validated.
        client: Client of the API that the spec is submitted to.
        on_upload: Called with the file's name, the bytes sent and the total bytes.

    Raises:
        InvalidInput, InvalidModel: A path is not accessible to the API.
    """
    shares_files = client.shares_files()
    brought = dict(document)
    data = document.get("data")
    if isinstance(data, dict):
        brought["data"] = _bring_data(data, client, on_upload, shares_files=shares_files)
    model = document.get("model")
    if isinstance(model, dict):
        processor = _bring_model(model.get("processor"), shares_files=shares_files)
        brought["model"] = model if processor is None else {**model, "processor": processor}
    elif (moved := _bring_model(model, shares_files=shares_files)) is not None:
        brought["model"] = moved
    module = document.get("module")
    if isinstance(module, str) and module.endswith(".py"):
        if not shares_files and not Path(module).is_absolute():
            raise InvalidInput(
                f"module: '{module}' is a path on this machine, and the API is on another; name an absolute path there",
                param="module",
            )
        brought["module"] = absolute_path(Path(module))
    return brought


def _bring_data(data: Json, client: StokerClient, on_upload: OnUpload | None, *, shares_files: bool) -> Json:
    brought = dict(data)
    for name in ("train", "eval"):
        given = data.get(name)
        paths = [given] if isinstance(given, str) else given
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            continue  # absent or not valid; the API reports what is wrong with it
        if shares_files:
            moved = [absolute_input(path) for path in paths]
        else:
            uploaded = upload_inputs(brought, paths, client, on_upload)
            moved, brought = uploaded["path"], {**brought, **_without_path(uploaded)}
        brought[name] = moved[0] if isinstance(given, str) and len(moved) == 1 else moved
    return brought


def _without_path(uploaded: Json) -> Json:
    return {name: value for name, value in uploaded.items() if name != "path"}


def _bring_model(model: object, *, shares_files: bool) -> str | None:
    return absolute_model(model) if shares_files else remote_model(model)
