"""The child that holds torch and the models of a slot: it works on the leases that its keeper orders, one by one."""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from jobs import process
from jobs.config.activities import stall_limits
from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.errors import LostLease, MachineError, StokerError
from jobs.ledger.leases import WorkingLease
from jobs.specs.inference import InferenceSpec, TrainingSpec
from worker.log_format import set_up_runner_logging
from worker.stop import Stop
from worker.wire.protocol import Done, Halt, Lost, Ready, Report, Run, Warm, failure_report, parse_order, report_line
from worker.wire.pulse import Beat, Pulse

logger = logging.getLogger(__name__)

_ORDERS_FD = 0
_READ_BYTES = 65536
_BEAT_SECONDS = 1.0


class Engine(Protocol):
    """What a runner does with a lease."""

    device: str
    """What it computes on, for people."""

    def run(self, lease: WorkingLease, stop: Stop, pulse: Pulse) -> str:
        """Work on a lease to its end.

        Args:
            stop: asked when the lease is to be given back.
            pulse: is told what each thread does; what makes no progress for too long is ended from outside.

        Returns:
            The outcome, `drained` or `stopped`.

        Raises:
            UserError: the job must fail.
            LostLease: the database refused its work.
            MachineError: the machine failed.
        """

    def warm_models(self) -> Sequence[str]:
        """Keys of the models it holds loaded, most recently used last."""


class _Reporter:
    """Writes reports, from any thread, each at once: the last one before a crash tells which chunk was at fault."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._model_keys: tuple[str, ...] = ()

    def send(self, report: Report) -> None:
        rest = memoryview(report_line(report))
        with self._lock:
            while rest:
                rest = rest[os.write(self._fd, rest) :]

    def warm(self, model_keys: Sequence[str]) -> None:
        """Say which models are loaded, where that has changed."""
        if tuple(model_keys) != self._model_keys:
            self._model_keys = tuple(model_keys)
            self.send(Warm(self._model_keys))


class _Orders:
    """Reads orders in a thread of its own, and ends this process at once when its keeper is gone."""

    def __init__(self) -> None:
        self._runs: queue.SimpleQueue[tuple[WorkingLease, Stop]] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def next(self) -> tuple[WorkingLease, Stop]:
        """Wait for a lease to work on; a stop that is ordered after it is asked of its `Stop`."""
        return self._runs.get()

    def _read(self) -> None:
        stop = Stop()
        partial = b""
        while chunk := os.read(_ORDERS_FD, _READ_BYTES):
            *lines, partial = (partial + chunk).split(b"\n")
            for line in lines:
                match parse_order(line):
                    case Run(lease):
                        stop = Stop()
                        self._runs.put((lease, stop))
                    case Halt(reason):
                        stop.ask(reason)
        os._exit(0)  # nobody watches any more; not a moment longer on the device


def serve(report_fd: int, load: Callable[[], Engine], *, least_stall_seconds: float) -> None:
    """Load the engine, then work on leases until the keeper closes the orders. Does not return.

    Args:
        report_fd: where the reports go.
        load: makes the engine; an exception from it ends this process, and its last line says why.
        least_stall_seconds: the shortest time without a beat that the keeper takes for a stall.
    """
    started = time.monotonic()
    process.die_with_parent(signal.SIGKILL)
    process.adopt_orphans()  # what a training's processes leave behind is killed at the attempt's end
    faulthandler.enable()
    os.set_inheritable(report_fd, False)
    for name in (signal.SIGTERM, signal.SIGINT):  # a service manager may signal every process of the service at once,
        signal.signal(name, lambda *_: None)  # but when to stop is the keeper's to say: it knows about the lease
    orders = _Orders()
    reporter = _Reporter(report_fd)
    gc.disable()  # a quarter of the libraries' loading time is looking for garbage among objects that stay
    engine = load()
    gc.freeze()  # and no later collection shall look at them
    gc.enable()
    reporter.send(Ready(engine.device, time.monotonic() - started))

    def tell(beat: Beat) -> None:
        reporter.send(beat)
        reporter.warm(engine.warm_models())

    pulse = Pulse(tell, beat_seconds=min(_BEAT_SECONDS, least_stall_seconds / 4))
    while True:
        lease, stop = orders.next()
        reporter.send(Beat())  # the lease is taken up: from here on a death is its job's doing
        with pulse.ticking():
            report = _work(engine, lease, stop, pulse)
        reporter.warm(engine.warm_models())
        reporter.send(report)


def _work(engine: Engine, lease: WorkingLease, stop: Stop, pulse: Pulse) -> Report:
    try:
        return Done(engine.run(lease, stop, pulse))
    except LostLease:
        logger.info("the lease was lost; its work is dropped")
        return Lost()
    except StokerError as error:
        logger.error("%s: %s", error.code, error.message)
        return failure_report(error)
    except Exception as error:  # the runner's edge: whatever it was, the keeper is told
        logger.exception("the runner met an error that it does not know")
        return failure_report(error)


# -- the engines ---------------------------------------------------------------------------------------------------


def load_engines(settings: Settings, *, device: str, num_threads: int) -> Engine:
    """Load torch, transformers and the engines, and wake the device.

    Args:
        device: `cuda` or `cpu`.

    Raises:
        MachineError: the slot's GPU cannot be used.
    """
    import torch
    import transformers

    from worker import device as devices
    from worker.inference.lease_run import run_lease
    from worker.inference.tasks import load_task_model, needs_whole_device
    from worker.models.cache import ModelCache
    from worker.training.attempt.attempt_run import run_training

    transformers.utils.logging.disable_progress_bar()
    for name in ("AutoConfig", "AutoModel", "AutoTokenizer"):  # loaded on first use otherwise: by the first job
        getattr(transformers, name)
    chosen = devices.pick_device()
    if chosen.type != device:
        raise MachineError(f"the slot's device is {device}, but torch {torch.__version__} finds only {chosen.type}")
    devices.prepare(chosen, num_threads=num_threads)
    torch.zeros(1, device=chosen)  # a device that cannot be used must say so now, not to the first job
    database, store = Database(settings.resolved_database_url), Store(settings.resolved_store_url)
    models = ModelCache(
        settings.warm_models,
        chosen,
        load=partial(load_task_model, settings=settings),
        needs_whole_device=needs_whole_device,
    )

    class Engines:
        device = devices.device_name(chosen)

        def run(self, lease: WorkingLease, stop: Stop, pulse: Pulse) -> str:
            match lease.spec:
                case InferenceSpec() as spec:
                    return run_lease(
                        lease,
                        spec,
                        database=database,
                        store=store,
                        settings=settings,
                        models=models,
                        stop=stop,
                        pulse=pulse,
                    )
                case TrainingSpec() as spec:
                    models.drop_all()  # the device's memory is the training's
                    return run_training(
                        lease,
                        spec,
                        database=database,
                        store=store,
                        settings=settings,
                        device=chosen.type,
                        num_threads=num_threads,
                        stop=stop,
                        pulse=pulse,
                    )

        def warm_models(self) -> Sequence[str]:
            return models.keys()

    return Engines()


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments that every runner is started with."""
    parser = argparse.ArgumentParser(prog="worker.runner.main_loop", description=__doc__)
    parser.add_argument("--report-fd", type=int, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args(argv)


def main() -> None:
    """Run as the child of a keeper."""
    arguments = parse_arguments()
    set_up_runner_logging()
    settings = Settings()
    serve(
        arguments.report_fd,
        lambda: load_engines(settings, device=arguments.device, num_threads=arguments.threads),
        least_stall_seconds=min(stall_limits(settings.stall_seconds, settings.stall_limits).values()),
    )


if __name__ == "__main__":
    main()
