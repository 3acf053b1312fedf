"""The process of one rank of an attempt. It trains according to its plan, reports to its runner, and ends with it."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from jobs import process
from jobs.config.activities import Activity, stall_limits
from jobs.config.settings import Settings
from jobs.errors import DeviceOutOfMemory, MachineError, ModuleFailed, StokerError, UserError
from jobs.messages import one_line
from worker.log_format import set_up_runner_logging
from worker.stop import Stop
from worker.training.plan import Plan
from worker.training.reports import Broken, Doing, RankReport, parse_stop, report_line
from worker.wire.pipes import LineWriter, read_lines
from worker.wire.pulse import Beat, Pulse

logger = logging.getLogger(__name__)

_STOP_FD = 0
_BEAT_SECONDS = 1.0


class Reporter:
    """Writes reports to the runner. Any thread can write; each report is written at once and in one piece."""

    def __init__(self, fd: int, *, beat_seconds: float = _BEAT_SECONDS) -> None:
        self._writer = LineWriter(fd)
        self._pulse = Pulse(
            self._write_beat, beat_seconds=beat_seconds, is_eager=False
        )  # steps may be shorter than the interval

    def __call__(self, report: RankReport) -> None:
        """Write a report. Activities are written only when they change, and at regular intervals."""
        if isinstance(report, Doing):
            self._pulse.at(report.activity, step=report.step)
            return
        self._writer.write(report_line(report))

    def ticking(self) -> AbstractContextManager[None]:
        """RankReport progress at regular intervals while the block runs, even if the training itself is busy."""
        return self._pulse.ticking()

    def _write_beat(self, beat: Beat) -> None:
        if beat.activity is not None:
            self._writer.write(report_line(Doing(beat.activity, beat.step)))


def listen(stop: Stop) -> None:
    """Read stop requests from standard input, and end this process at once when its runner has ended."""
    for line in read_lines(_STOP_FD):
        stop.request(parse_stop(line))
    os._exit(0)  # no process is left to record what this one computes


def run(plan: Plan, rank: int, report: Callable[[RankReport], None], stop: Stop) -> None:
    """Train. Any rank reports its failure as `Broken`; the leader alone sends all other reports."""
    from worker import device as devices
    from worker.training.collectives import Ranks, SingleProcess

    if rank == 0:
        report(Doing(Activity.START))
    try:
        gang = (
            SingleProcess()
            if plan.num_ranks == 1
            else Ranks(rank, plan.num_ranks, folder=Path(plan.folder), device=plan.device)
        )
        devices.prepare(devices.pick_device(), num_threads=plan.num_threads)
        _trainer(plan)(plan, gang=gang, rules=Settings(), stop=stop, report=report if rank == 0 else lambda _: None)
        gang.close()
    except StokerError as error:
        logger.error("%s: %s", error.code, error.message)
        report(Broken(error.code, error.message, error.param, is_users=isinstance(error, UserError)))
    except Exception as error:  # the edge of the process: every error is reported to the runner
        if devices.is_out_of_memory(error):
            message = f"the device has too little memory: {one_line(error)}"
            report(Broken(DeviceOutOfMemory.code, message))
            return
        logger.exception("the training failed with an unexpected error")
        report(Broken(MachineError.code, one_line(error)))
    except BaseException as error:  # signals raise no exception here, so the user's code raised it
        logger.exception("the module ended the training")
        message = f"module: {one_line(error)} ended the training"
        report(Broken(ModuleFailed.code, message, "module", is_users=True))


def _trainer(plan: Plan) -> Callable[..., None]:
    if plan.spec.trainer == "torch":
        from worker.training.loops.loop import train as train_loop

        return train_loop
    from worker.training.loops.trainer import train

    return train


def main(argv: Sequence[str] | None = None) -> int:
    """Run as the child of a runner."""
    parser = argparse.ArgumentParser(prog="worker.training.attempt.process", description=__doc__)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--report-fd", type=int, required=True)
    arguments = parser.parse_args(argv)
    process.die_with_parent(signal.SIGKILL)
    os.set_inheritable(arguments.report_fd, False)
    # A service manager may signal all processes at once, but only the runner decides when to stop.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    set_up_runner_logging()
    if arguments.rank != 0:  # its log lines would repeat the leader's
        logging.getLogger().setLevel(logging.WARNING)
    stop = Stop()
    threading.Thread(target=listen, args=(stop,), name="stop requests", daemon=True).start()
    settings = Settings()
    least_seconds = min(stall_limits(settings.stall_seconds, settings.stall_limits).values())
    reporter = Reporter(arguments.report_fd, beat_seconds=min(_BEAT_SECONDS, least_seconds / 4))
    with reporter.ticking():
        run(Plan.read(arguments.plan), arguments.rank, reporter, stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
