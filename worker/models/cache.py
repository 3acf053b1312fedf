"""Models that stay loaded between leases; the least recently used one is dropped first."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from jobs.access.paths import local_path
from jobs.access.pins import folder_stamp
from jobs.errors import DeviceOutOfMemory, StokerError
from jobs.specs.parameters.task_parameters import TaskParameters
from worker.device import device_name, free_memory_bytes, is_out_of_memory, release_memory, resolve_dtype
from worker.models.load import load_error
from worker.models.model_ref import ModelRef
from worker.models.task_model import Closable, TaskModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Warm:
    model: TaskModel
    version: Hashable
    """The state of the model's folder when it was loaded, from `_version`."""


class ModelCache:
    """At most `limit` loaded models on one device. Used by one thread."""

    def __init__(
        self,
        limit: int,
        device: torch.device,
        *,
        load: Callable[..., TaskModel],
        needs_whole_device: Callable[[ModelRef], bool] = lambda _: False,
    ) -> None:
        """
        Args:
            limit: Most models to keep loaded; at least 1.
            device: The device that models are loaded onto.
            load: Loads a model; called like `load_task_model`, but without access rules.
            needs_whole_device: Whether all other models must be dropped before this one is loaded.
        """
        self._limit = limit
        self._load = load
        self._needs_whole_device = needs_whole_device
        self._warm: OrderedDict[ModelRef, _Warm] = OrderedDict()
        self.device = device
        self.loading_seconds = 0.0
        """Time that the latest `get` has taken to load its model; 0 if it was warm."""

    def get(self, ref: ModelRef, parameters: TaskParameters) -> TaskModel:
        """Return the model with a job's parameters, and load it if it is not warm.

        Args:
            ref: The model; the key of the cache.
            parameters: The parameters of the job.

        Raises:
            UserError: The model cannot be used for this task or with these parameters.
            DeviceOutOfMemory: The device has too little memory for the model, even with no other model loaded.
        """
        version = _version(ref.source)
        self.loading_seconds = 0.0
        warm = self._warm.get(ref)
        if warm is not None and warm.version != version:
            logger.info("%s has changed on disk since it was loaded", ref.name)
            self._drop(ref)
            warm = None
        if warm is None:
            if self._needs_whole_device(ref):
                self.drop_all()
            while len(self._warm) >= self._limit:
                self._drop(next(iter(self._warm)))
            started = time.monotonic()
            warm = _Warm(self._load_with_room(ref, parameters), version)
            self.loading_seconds = time.monotonic() - started
            self._warm[ref] = warm
        self._warm.move_to_end(ref)
        try:
            return warm.model.with_parameters(parameters)
        except Exception as error:
            if isinstance(error, StokerError) or is_out_of_memory(error):
                raise
            raise load_error(ref.name, error, what=f"cannot run {ref.task} with these parameters") from error

    def keys(self) -> list[str]:
        """Keys of the warm models, most recently used last."""
        return list(dict.fromkeys(ref.key for ref in reversed(self._warm)))[::-1]

    def drop_all(self) -> None:
        """Drop all models and free their memory."""
        for ref in list(self._warm):
            self._drop(ref)

    def drop_others(self, ref: ModelRef) -> bool:
        """Drop all other models and free their memory. Returns whether there were any."""
        others = [other for other in self._warm if other != ref]
        for other in others:
            self._drop(other)
        return bool(others)

    def _load_with_room(self, ref: ModelRef, parameters: TaskParameters) -> TaskModel:
        dtype = resolve_dtype(ref.dtype, self.device)
        try:
            return self._load_now(ref, parameters, dtype)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("out of memory while loading %s", ref.name)
        # Outside the except block, whose frames hold what was loaded so far.
        if not self.drop_others(ref):
            release_memory(self.device)
        try:
            return self._load_now(ref, parameters, dtype)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceOutOfMemory(f"{ref.name} does not fit in the memory of {device_name(self.device)}") from error

    def _load_now(self, ref: ModelRef, parameters: TaskParameters, dtype: torch.dtype) -> TaskModel:
        started = time.monotonic()
        try:
            model = self._load(ref, parameters, device=self.device, dtype=dtype)
        except Exception as error:
            if isinstance(error, StokerError) or is_out_of_memory(error):
                raise
            logger.warning("%s cannot be loaded", ref.source, exc_info=error)  # helps the authors of the model's code
            raise load_error(ref.source, error) from error
        logger.info(
            "loaded %s for %s in %.1f s: %s on %s, weights %.0f MiB, %.0f MiB free",
            ref.source,
            ref.task,
            time.monotonic() - started,
            str(dtype).removeprefix("torch."),
            device_name(self.device),
            model.memory_bytes / 2**20,
            free_memory_bytes(self.device) / 2**20,
        )
        return model

    def _drop(self, ref: ModelRef) -> None:
        warm = self._warm.pop(ref)
        try:
            if isinstance(warm.model, Closable):
                warm.model.close()
        finally:
            del warm
            release_memory(self.device)
        logger.info("dropped the warm model %s", ref.key)


def _version(model: str) -> Hashable:
    """Names, sizes and timestamps of a model folder's files, to detect changes. A hub id is its own version."""
    path = local_path(model)
    folder = None if path is None else path.expanduser()
    if folder is None or not folder.is_dir():
        return model
    return folder_stamp(folder)
