"""The rank processes of a training as their runner sees them: starts them, reads their reports, stops and kills them.

They get the same environment variables as from `torchrun` (`RANK`, `WORLD_SIZE`, ...) but are started here, so that a
rank's death is noticed at once, each rank's last report is read, no rank outlives this process, and no port is needed.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from jobs import process
from jobs.child_modules import python_module
from jobs.errors import DeviceOutOfMemory, MachineError, RunnerDied
from worker.stop import Stop
from worker.training.plan import Plan
from worker.training.reports import Broken, Finished, RankReport, Stopped, parse_report, stop_line
from worker.wire.pipes import LineSplitter, read_some, write_all

logger = logging.getLogger(__name__)

_PROCESS_MODULE = "worker.training.attempt.process"
_MARK = "IN_STOKER_RANKS"
"""Environment variable that marks all processes that an attempt starts."""
_LAST_REPORT_SECONDS = 10.0
"""When one rank ends, the others fail. This is how long to wait for their reports, since one of them may name the
cause."""


class RankProcesses:
    """All ranks of an attempt. When the block ends, for whatever reason, they and all processes that they started are
    killed."""

    def __init__(self, plan: Plan, environment: Mapping[str, str] | None = None) -> None:
        """
        Args:
            plan: What this attempt trains, and on how many ranks.
            environment: The environment of the ranks; this process's environment if absent.
        """
        self._plan, self._mark = plan, uuid.uuid4().hex
        self._environment = {**(os.environ if environment is None else environment), _MARK: self._mark}
        if plan.num_ranks > 1:  # torch would advise to turn off a flag that no spec can set
            self._environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        self._ranks: list[_Rank] = []

    def __enter__(self) -> RankProcesses:
        path = Path(self._plan.folder) / "plan.json"
        self._plan.write(path)
        try:
            for rank in range(self._plan.num_ranks):
                self._ranks.append(_Rank(rank, path, self._environment))
        except OSError as error:
            self._kill()
            raise MachineError(f"the training process cannot be started: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def _kill(self) -> None:
        for rank in self._ranks:
            process.kill_group(rank.process)
        process.kill_marked(_MARK, self._mark)  # processes that a module started, in any session
        for rank in self._ranks:
            rank.close()
        process.kill_adopted()  # orphans that it started with another environment

    def request_stop(self, stop: Stop) -> None:
        """Relay a stop request to the leader, which relays it to the other ranks."""
        if stop.reason is not None:
            self._ranks[0].send(stop_line(stop.reason))

    def reports(self) -> Iterator[RankReport]:
        """Yield the leader's reports as they arrive; the last is `Finished` or `Stopped`, or `Broken` of any rank.

        Raises:
            RunnerDied: A rank ended without a final report.
        """
        living = set(self._ranks)
        broken: list[Broken] = []
        deadline: float | None = None
        with selectors.DefaultSelector() as selector:
            for rank in self._ranks:
                for descriptor in rank.descriptors:
                    selector.register(descriptor, selectors.EVENT_READ, rank)
            while living and (deadline is None or time.monotonic() < deadline):
                timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
                for rank in {key.data for key, _ in selector.select(timeout)} & living:
                    for report in rank.read():
                        if isinstance(report, Broken):
                            broken.append(report)
                        elif rank.number == 0:
                            yield report
                    if rank.has_ended:
                        living.remove(rank)
                        for descriptor in rank.descriptors:
                            selector.unregister(descriptor)
                if deadline is None and (broken or any(rank.has_died for rank in self._ranks)):
                    deadline = time.monotonic() + _LAST_REPORT_SECONDS
        yield self._cause(broken)

    def _cause(self, broken: list[Broken]) -> Broken:
        """Select the report that names the most likely cause: a user's error, then out-of-memory, then a dead rank."""
        for report in broken:
            if report.is_users:
                return report
        for report in broken:
            if report.code == DeviceOutOfMemory.code:
                return report
        for rank in self._ranks:
            if rank.has_died:
                which = f" of rank {rank.number}" if len(self._ranks) > 1 else ""
                raise RunnerDied(f"the training process{which} {rank.status}")
        return broken[0]


class _Rank:
    """The process of one rank."""

    def __init__(self, number: int, plan: Path, environment: Mapping[str, str] | None) -> None:
        self.number = number
        self._report_fd, child_fd = os.pipe()
        argv = ["--plan", str(plan), "--rank", str(number), "--report-fd", str(child_fd)]
        try:
            self.process = process.spawn(
                python_module(_PROCESS_MODULE, *argv),
                env=environment,
                stdin=subprocess.PIPE,
                pass_fds=(child_fd,),
                on_parent_death=signal.SIGKILL,
            )
        except OSError:
            os.close(self._report_fd)
            raise
        finally:
            os.close(child_fd)
        os.set_blocking(self._report_fd, False)
        # A data loader's process may keep the pipe open after the rank's death; the pidfd shows the death reliably.
        self._pid_fd = os.pidfd_open(self.process.pid) if hasattr(os, "pidfd_open") else None
        self._splitter = LineSplitter()
        self._has_reported_end = self.has_ended = False

    @property
    def descriptors(self) -> list[int]:
        """Descriptors that become readable when there are reports, or when the process ends."""
        return [self._report_fd] if self._pid_fd is None else [self._report_fd, self._pid_fd]

    @property
    def has_died(self) -> bool:
        """Whether the process ended without saying why. Ranks other than the leader send no report on success."""
        return self.has_ended and not self._has_reported_end and (self.number == 0 or self.process.wait() != 0)

    @property
    def status(self) -> str:
        """How the process ended, in words."""
        return process.status_in_words(self.process.wait())

    def read(self) -> Iterator[RankReport]:
        """Yield the reports that arrived since the last call."""
        is_gone = self.process.poll() is not None  # checked first: all its reports are in the pipe then
        while True:
            chunk = read_some(self._report_fd)
            if chunk is None:
                self.has_ended = is_gone
                return
            if not chunk:
                self.process.wait()
                self.has_ended = True
                return
            for line in self._splitter.split(chunk):
                report = parse_report(line)
                self._has_reported_end = isinstance(report, Broken | Finished | Stopped)
                yield report

    def send(self, line: bytes) -> None:
        """Send a line to the process. If it is ending, the line is dropped; its reports show the end."""
        assert self.process.stdin is not None
        try:
            write_all(self.process.stdin.fileno(), line)
        except BrokenPipeError:
            logger.debug("the training process has already ended")

    def close(self) -> None:
        """Wait until the process ends, and close its descriptors."""
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        os.close(self._report_fd)
        if self._pid_fd is not None:
            os.close(self._pid_fd)
