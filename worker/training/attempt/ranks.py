"""The processes of a training's ranks as their runner sees them: started together, listened to, stopped, killed.

They are started here and not by `torchrun`: what torchrun tells its processes they are told as well (`RANK`,
`WORLD_SIZE`, ...), but a rank's death is seen at once, each rank's last words are heard, none outlives this process,
and no port has to be free.
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
from jobs.errors import DeviceOutOfMemory, MachineError, RunnerDied
from worker.children import python_module
from worker.stop import Stop
from worker.training.plan import Plan
from worker.training.reports import Broken, Finished, Report, Stopped, parse_report, stop_line

logger = logging.getLogger(__name__)

_PROCESS_MODULE = "worker.training.attempt.process"
_READ_BYTES = 65536
_MARK = "IN_STOKER_RANKS"
"""In the environment of all that an attempt starts."""
_LAST_WORDS_SECONDS = 10.0
"""One rank's end breaks the others: so long they may take to say so, since one of them may know the cause."""


class RankProcesses:
    """All ranks of an attempt: killed with all that they started when the block ends, however that is."""

    def __init__(self, plan: Plan, environment: Mapping[str, str] | None = None) -> None:
        """
        Args:
            plan: of the attempt; says how many ranks there are.
            environment: theirs; this process's where absent.
        """
        self._plan, self._mark = plan, uuid.uuid4().hex
        self._environment = {**(os.environ if environment is None else environment), _MARK: self._mark}
        if plan.num_ranks > 1:  # it would advise each gang to turn off a flag that a spec cannot set
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
        process.kill_marked(_MARK, self._mark)  # what a module started, in whatever session
        for rank in self._ranks:
            rank.close()
        process.kill_adopted()  # and what it started with an environment of its own, an orphan now

    def ask(self, stop: Stop) -> None:
        """Relay a stop to the leader, which tells the others."""
        if stop.reason is not None:
            self._ranks[0].tell(stop_line(stop.reason))

    def reports(self) -> Iterator[Report]:
        """Each report of the leader as it comes, and at last a `Finished`, `Stopped` or `Broken` of any rank.

        Raises:
            RunnerDied: a rank is gone without a word.
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
                    deadline = time.monotonic() + _LAST_WORDS_SECONDS
        yield self._cause(broken)

    def _cause(self, broken: list[Broken]) -> Broken:
        """Of what the ranks said, and of how they ended, what tells most."""
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
    """One process."""

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
        # A loader's process may keep the pipe open beyond the rank's death; the pid's own file cannot lie.
        self._pid_fd = os.pidfd_open(self.process.pid) if hasattr(os, "pidfd_open") else None
        self._partial = b""
        self._said_last = self.has_ended = False

    @property
    def descriptors(self) -> list[int]:
        """Readable where there is something to hear."""
        return [self._report_fd] if self._pid_fd is None else [self._report_fd, self._pid_fd]

    @property
    def has_died(self) -> bool:
        """Whether it is gone and did not say why; a rank that does not lead says nothing where all is well."""
        return self.has_ended and not self._said_last and (self.number == 0 or self.process.wait() != 0)

    @property
    def status(self) -> str:
        """How it ended, in words."""
        return process.status_in_words(self.process.wait())

    def read(self) -> Iterator[Report]:
        """What it has said since."""
        is_gone = self.process.poll() is not None  # asked first: what it said before is all there then
        while True:
            try:
                chunk = os.read(self._report_fd, _READ_BYTES)
            except BlockingIOError:
                self.has_ended = is_gone
                return
            if not chunk:
                self.process.wait()
                self.has_ended = True
                return
            *lines, self._partial = (self._partial + chunk).split(b"\n")
            for line in lines:
                report = parse_report(line)
                self._said_last = isinstance(report, Broken | Finished | Stopped)
                yield report

    def tell(self, line: bytes) -> None:
        """Send a line. One that cannot be sent is dropped: the process is ending, and its reports say so."""
        assert self.process.stdin is not None
        try:
            os.write(self.process.stdin.fileno(), line)
        except BrokenPipeError:
            logger.debug("the training process is gone already")

    def close(self) -> None:
        """Wait for its end, and let go of it."""
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        os.close(self._report_fd)
        if self._pid_fd is not None:
            os.close(self._pid_fd)
