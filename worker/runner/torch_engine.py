"""The runner's engine: torch, the models that stay loaded, and the code for inference and training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import transformers

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.errors import MachineError
from jobs.ledger.leasing.leases import WorkingLease
from jobs.specs.inference import InferenceSpec, TrainingSpec
from worker import device as devices
from worker.inference.lease_run import run_lease
from worker.inference.tasks import load_task_model, needs_whole_device
from worker.models.cache import ModelCache
from worker.stop import Outcome, Stop
from worker.training.attempt.attempt_run import run_training
from worker.wire.pulse import Pulse


class TorchEngine:
    """The `LeaseEngine` of a runner. Importing this module loads torch and transformers."""

    device: str

    def __init__(self, settings: Settings, *, device: str, num_threads: int) -> None:
        """Load the libraries and initialize the device.

        Args:
            settings: The settings of this process.
            device: `cuda` or `cpu`.
            num_threads: Number of CPU threads for one operation.

        Raises:
            MachineError: The slot's GPU cannot be used.
        """
        transformers.utils.logging.disable_progress_bar()
        for name in ("AutoConfig", "AutoModel", "AutoTokenizer"):  # otherwise the first job would load them
            getattr(transformers, name)
        found = devices.pick_device()
        if found.type != device:
            raise MachineError(f"the slot's device is {device}, but torch {torch.__version__} finds only {found.type}")
        devices.prepare(found, num_threads=num_threads)
        torch.zeros(1, device=found)  # an unusable device must fail here, not in the first job
        self.device = devices.device_name(found)
        self._device_type, self._num_threads, self._settings = found.type, num_threads, settings
        # On a GPU, one core launches the forward passes.
        self._encode_threads = settings.encode_threads or max(1, num_threads - (found.type == "cuda"))
        self._database, self._store = Database(settings.resolved_database_url), Store(settings.resolved_store_url)
        self._models = ModelCache(
            settings.warm_models,
            found,
            load=partial(load_task_model, rules=settings),
            needs_whole_device=needs_whole_device,
        )

    def run(self, lease: WorkingLease, stop: Stop, pulse: Pulse) -> Outcome:
        """See `LeaseEngine`."""
        match lease.spec:
            case InferenceSpec() as spec:
                return run_lease(
                    lease,
                    spec,
                    database=self._database,
                    store=self._store,
                    rules=self._settings,
                    lease_times=self._settings,
                    chunk_seconds=self._settings.chunk_seconds,
                    models=self._models,
                    encode_threads=self._encode_threads,
                    num_threads=self._num_threads,
                    stop=stop,
                    pulse=pulse,
                    packed_attention=self._settings.packed_attention,
                )
            case TrainingSpec() as spec:
                self._models.drop_all()  # a training may use all memory of the device
                return run_training(
                    lease,
                    spec,
                    database=self._database,
                    store=self._store,
                    rules=self._settings,
                    device=self._device_type,
                    num_threads=self._num_threads,
                    stop=stop,
                    pulse=pulse,
                )

    def warm_models(self) -> Sequence[str]:
        """See `LeaseEngine`."""
        return self._models.keys()
