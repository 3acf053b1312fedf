"""The process that holds torch and a slot's models, and works on the leases that its keeper sends, one by one."""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from jobs import process
from jobs.config.activities import stall_limits
from jobs.config.settings import Settings
from jobs.errors import LostLease, StokerError
from jobs.ledger.leasing.leases import WorkingLease
from worker.log_format import set_up_runner_logging
from worker.runner.keeper_link import OrderReader, ReportWriter
from worker.stop import Outcome, Stop
from worker.wire.protocol import Done, Lost, Ready, Report, failure_report
from worker.wire.pulse import Beat, Pulse

logger = logging.getLogger(__name__)

_BEAT_SECONDS = 1.0


class LeaseEngine(Protocol):
    """How a runner works on leases."""

    device: str
    """Name of the device that is used, for people."""

    def run(self, lease: WorkingLease, stop: Stop, pulse: Pulse) -> Outcome:
        """Work on a lease to its end.

        Args:
            stop: The request to give the lease back, which may come at any time.
            pulse: Receives what each thread is doing. A thread without progress for too long makes the keeper kill the
                runner.

        Returns:
            How the lease ended in order.

        Raises:
            UserError: The job must fail.
            LostLease: The database refused the work of this lease.
            MachineError: The machine failed.
        """

    def warm_models(self) -> Sequence[str]:
        """Keys of the loaded models, most recently used last."""


def serve(report_fd: int, load: Callable[[], LeaseEngine], *, least_stall_seconds: float) -> None:
    """Load the engine, then work on leases until the keeper closes the orders. Does not return.

    Args:
        report_fd: File descriptor of the pipe for reports.
        load: Makes the engine. An exception ends this process, and the last line of its output says why.
        least_stall_seconds: The shortest time without a beat that counts as a stall for the keeper.
    """
    started = time.monotonic()
    process.die_with_parent(signal.SIGKILL)
    process.adopt_orphans()  # processes that a training leaves behind are killed at the attempt's end
    faulthandler.enable()
    os.set_inheritable(report_fd, False)
    for name in (signal.SIGTERM, signal.SIGINT):  # a service manager may signal every process of the service at once,
        signal.signal(name, lambda *_: None)  # but only the keeper, which knows the lease, decides when to stop
    orders = OrderReader()
    reporter = ReportWriter(report_fd)
    gc.disable()  # a quarter of the libraries' loading time is garbage collection that finds nothing
    engine = load()
    gc.freeze()  # so that later collections skip these objects too
    gc.enable()
    reporter.send(Ready(engine.device, time.monotonic() - started))

    def send(beat: Beat) -> None:
        reporter.send(beat)
        reporter.send_warm(engine.warm_models())

    pulse = Pulse(send, beat_seconds=min(_BEAT_SECONDS, least_stall_seconds / 4))
    while True:
        lease, stop = orders.next()
        reporter.send(Beat())  # the lease has started: from here on a death of the runner counts against its job
        with pulse.ticking():
            report = _work(engine, lease, stop, pulse)
        reporter.send_warm(engine.warm_models())
        reporter.send(report)


def _work(engine: LeaseEngine, lease: WorkingLease, stop: Stop, pulse: Pulse) -> Report:
    try:
        return Done(engine.run(lease, stop, pulse))
    except LostLease:
        logger.info("the lease was lost; its work is dropped")
        return Lost()
    except StokerError as error:
        logger.error("%s: %s", error.code, error.message)
        return failure_report(error)
    except Exception as error:  # the runner's outermost level: every error is reported to the keeper
        logger.exception("the runner failed with an unexpected error")
        return failure_report(error)


def load_engine(settings: Settings, *, device: str, num_threads: int) -> LeaseEngine:
    """Load torch, transformers and the engine; see `TorchEngine`."""
    # This takes seconds, and its error must be the last output of this process.
    from worker.runner.torch_engine import TorchEngine

    return TorchEngine(settings, device=device, num_threads=num_threads)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments that every runner is started with."""
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
        lambda: load_engine(settings, device=arguments.device, num_threads=arguments.threads),
        least_stall_seconds=min(stall_limits(settings.stall_seconds, settings.stall_limits).values()),
    )


if __name__ == "__main__":
    main()
