"""Models kept loaded between leases, the least recently used dropped first."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from jobs.access.paths import local_path
from jobs.access.pins import folder_stamp
from jobs.config.settings import Settings
from jobs.errors import DeviceOutOfMemory, StokerError
from jobs.specs.inference import InferenceSpec, model_key
from worker.device import device_name, free_memory_bytes, is_out_of_memory, release_memory, resolve_dtype
from worker.models.load import load_error
from worker.models.task_model import Closable, TaskModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Warm:
    model: TaskModel
    version: Hashable
    """What a model's folder looked like when it was loaded."""


class ModelCache:
    """At most `limit` loaded models on one device. Used by one thread."""

    def __init__(self, limit: int, device: torch.device, *, load: Callable[..., TaskModel]) -> None:
        """
        Args:
            limit: models to keep loaded; at least 1.
            device: where they are loaded to.
            load: Makes a model of a spec; called as `load_task_model` is.
        """
        self._limit = limit
        self._load = load
        self._warm: OrderedDict[str, _Warm] = OrderedDict()
        self.device = device

    def get(self, spec: InferenceSpec, settings: Settings, *, name: str | None = None) -> TaskModel:
        """The spec's model with the spec's parameters, loaded now where it is not warm.

        Args:
            spec: names the model and the task; a warm model is found by it.
            settings: input roots, and which models may bring their own code.
            name: by which the model is loaded, where that says more than the spec does: `org/name@commit`.

        Raises:
            UserError: it cannot be used for this task, or not with these parameters.
            DeviceOutOfMemory: the device has too little memory for it, even alone.
        """
        wanted = spec if name is None else spec.model_copy(update={"model": name})
        key, version = model_key(spec), _version(wanted.model)
        warm = self._warm.get(key)
        if warm is not None and warm.version != version:
            logger.info("%s has changed on disk since it was loaded", spec.model)
            self._drop(key)
            warm = None
        if warm is None:
            if spec.engine == "vllm":  # it takes most of what is free, until it is closed
                self.drop_all()
            while len(self._warm) >= self._limit:
                self._drop(next(iter(self._warm)))
            warm = _Warm(self._load_with_room(spec, wanted, settings), version)
            self._warm[key] = warm
        self._warm.move_to_end(key)
        try:
            return warm.model.with_parameters(spec.parameters)
        except Exception as error:
            if isinstance(error, StokerError) or is_out_of_memory(error):
                raise
            raise load_error(spec.model, error, what=f"cannot do {spec.task} with these parameters") from error

    def keys(self) -> list[str]:
        """Keys of the warm models, most recently used last."""
        return list(self._warm)

    def drop_all(self) -> None:
        """Free what all models hold."""
        for key in list(self._warm):
            self._drop(key)

    def drop_others(self, spec: InferenceSpec) -> bool:
        """Free what all models but this spec's hold; says whether there were any."""
        others = [key for key in self._warm if key != model_key(spec)]
        for key in others:
            self._drop(key)
        return bool(others)

    def _load_with_room(self, spec: InferenceSpec, wanted: InferenceSpec, settings: Settings) -> TaskModel:
        dtype = resolve_dtype(spec.dtype, self.device)
        try:
            return self._load_now(wanted, dtype, settings)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("out of memory while loading %s", spec.model)
        # Out of the except block: its frames hold what was loaded so far.
        if not self.drop_others(spec):
            release_memory(self.device)
        try:
            return self._load_now(wanted, dtype, settings)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceOutOfMemory(
                f"{spec.model} does not fit into the memory of {device_name(self.device)}"
            ) from error

    def _load_now(self, spec: InferenceSpec, dtype: torch.dtype, settings: Settings) -> TaskModel:
        started = time.monotonic()
        try:
            model = self._load(spec, device=self.device, dtype=dtype, settings=settings)
        except Exception as error:
            if isinstance(error, StokerError) or is_out_of_memory(error):
                raise
            logger.warning("%s cannot be loaded", spec.model, exc_info=error)  # for those who wrote its code
            raise load_error(spec.model, error) from error
        logger.info(
            "loaded %s for %s in %.1f s: %s on %s, weights %.0f MiB, %.0f MiB free",
            spec.model,
            spec.task,
            time.monotonic() - started,
            str(dtype).removeprefix("torch."),
            device_name(self.device),
            model.memory_bytes / 2**20,
            free_memory_bytes(self.device) / 2**20,
        )
        return model

    def _drop(self, key: str) -> None:
        warm = self._warm.pop(key)
        try:
            if isinstance(warm.model, Closable):
                warm.model.close()
        finally:
            del warm
            release_memory(self.device)
        logger.info("dropped the warm model %s", key)


def _version(model: str) -> Hashable:
    """Tells a model folder from what it was: names, sizes and stamps of its files. A hub id is its own version."""
    path = local_path(model)
    folder = None if path is None else path.expanduser()
    if folder is None or not folder.is_dir():
        return model
    return folder_stamp(folder)
