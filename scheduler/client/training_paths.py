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
    adapt_inference,
    remote_model,
    upload_inputs,
)

OnUpload = Callable[[str, int, int], None]


def adapt_spec(document: Json, client: StokerClient, *, on_upload: OnUpload | None = None) -> Json:
    """Adapt the paths of any kind of spec to the API; see `adapt_inference` and `adapt_training`."""
    adapt = adapt_training if document.get("kind") == TRAINING else adapt_inference
    adapted = adapt(document, client, on_upload=on_upload)
    array = document.get("array")
    if not isinstance(array, dict) or not isinstance(array.get("file"), str):
        return adapted
    if client.shares_files():
        return {**adapted, "array": {**array, "file": absolute_input(array["file"])}}
    uploaded = upload_inputs(array, [array["file"]], client, on_upload)
    return {**adapted, "array": {**array, **_without_path(uploaded), "file": uploaded["path"]}}


def adapt_training(document: Json, client: StokerClient, *, on_upload: OnUpload | None = None) -> Json:
    """Adapt the paths of a training's document to the API, as `inference_paths.adapt_inference` does for inference.

    Args:
        document: Spec as the user wrote it, not yet validated.
        client: Client of the API that the spec is submitted to.
        on_upload: Called with the file's name, the bytes sent and the total bytes.

    Raises:
        InvalidInput, InvalidModel: A path is not accessible to the API.
    """
    shares_files = client.shares_files()
    adapted = dict(document)
    data = document.get("data")
    if isinstance(data, dict):
        adapted["data"] = _adapt_data(data, client, on_upload, shares_files=shares_files)
    model = document.get("model")
    if isinstance(model, dict):
        processor = _adapt_model(model.get("processor"), shares_files=shares_files)
        adapted["model"] = model if processor is None else {**model, "processor": processor}
    elif (moved := _adapt_model(model, shares_files=shares_files)) is not None:
        adapted["model"] = moved
    module = document.get("module")
    if isinstance(module, str) and module.endswith(".py"):
        if not shares_files and not Path(module).is_absolute():
            raise InvalidInput(
                f"module: '{module}' is a path on this machine, but the API runs on another; "
                "use an absolute path on that machine",
                param="module",
            )
        adapted["module"] = absolute_path(Path(module))
    return adapted


def _adapt_data(data: Json, client: StokerClient, on_upload: OnUpload | None, *, shares_files: bool) -> Json:
    adapted = dict(data)
    for name in ("train", "eval"):
        given = data.get(name)
        paths = [given] if isinstance(given, str) else given
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            continue  # absent or not valid; the API reports what is wrong with it
        if shares_files:
            moved = [absolute_input(path) for path in paths]
        else:
            uploaded = upload_inputs(adapted, paths, client, on_upload)
            moved, adapted = uploaded["path"], {**adapted, **_without_path(uploaded)}
        adapted[name] = moved[0] if isinstance(given, str) and len(moved) == 1 else moved
    return adapted


def _without_path(uploaded: Json) -> Json:
    return {name: value for name, value in uploaded.items() if name != "path"}


def _adapt_model(model: object, *, shares_files: bool) -> str | None:
    return absolute_model(model) if shares_files else remote_model(model)
