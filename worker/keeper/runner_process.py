"""The keeper's side of one runner process: starts it, sends orders, reads its reports and its output, and ends it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import selectors
import signal
import subprocess
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jobs import process
from worker.wire.pipes import LineSplitter, ProtocolError, read_some, write_all
from worker.wire.protocol import Done, Failed, Lost, Order, Report, order_line, parse_report

logger = logging.getLogger(__name__)

_PIPE_BYTES = 1 << 20  # an order must fit even while the runner is stopped, so that sending one never blocks
_LONGEST_LINE = 8192  # bytes of output without a line end that are kept as one line
_TAIL_LINES = 20
_KILL_SECONDS = 10.0
_MARK = "IN_STOKER_RUNNER"
"""Variable that marks the environment of every process that a runner starts. A training's processes lead their own
process groups, so killing the runner's group would leave them and their children alive."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The runner has ended, and all its reports and output have been read."""

    status: str
    """A description of how the runner ended."""


RunnerEvent = Report | Exited


class RunnerProcess:
    """One runner. It and all processes that it started are killed when this process ends, however it ends."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        listen: Callable[[RunnerProcess, RunnerEvent], None],
        log: Callable[[float, str], None],
    ) -> None:
        """Start it.

        Args:
            command: Program and arguments; `--report-fd N` is added.
            environment: All environment variables of the runner.
            listen: Called with each report and at last with `Exited`, from this runner's own listening thread.
            log: Called with each line of output and the Unix seconds at which it was read; must not block.

        Raises:
            OSError: The runner cannot be started.
        """
        self._listen, self._log, self._mark = listen, log, uuid.uuid4().hex
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        """The last lines of the runner's output."""
        self._gone = threading.Event()
        self._order_lock = threading.Lock()
        self._kill_lock = threading.Lock()
        self._is_reaped = self._is_killed = False
        report_fd, child_fd = os.pipe()
        try:
            self._process = process.spawn(
                [*command, "--report-fd", str(child_fd)],
                env={**environment, _MARK: self._mark},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(child_fd,),
                on_parent_death=signal.SIGKILL,
            )
        except OSError:
            os.close(report_fd)
            raise
        finally:
            os.close(child_fd)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self._orders = self._process.stdin
        self._output_fd, self._report_fd = self._process.stdout.fileno(), report_fd
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):  # more than this user may set; the default size stays
                fcntl.fcntl(self._orders.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._output, self._reports = LineSplitter(_LONGEST_LINE), LineSplitter()
        self._reader = threading.Thread(target=self._read, name=f"runner-{self.pid}", daemon=True)
        self._reader.start()

    def give(self, order: Order) -> None:
        """Send an order. An order that cannot be sent is dropped, because the runner is ending; `Exited` follows."""
        with self._order_lock, contextlib.suppress(BrokenPipeError):
            if not self._orders.closed:
                write_all(self._orders.fileno(), order_line(order))

    def dismiss(self) -> None:
        """Close the pipe of orders, upon which the runner exits at once."""
        with self._order_lock:
            self._orders.close()

    def kill(self) -> None:
        """Kill the runner's process group and wait some seconds for it; see `is_gone`, since a driver can block it."""
        self._is_killed = True
        with self._kill_lock:
            if not self._is_reaped:  # afterwards another process may have its id
                process.kill_group(self._process)
        if threading.current_thread() is not self._reader:
            self._gone.wait(_KILL_SECONDS)

    @property
    def is_gone(self) -> bool:
        """Whether the runner has ended."""
        return self._gone.is_set()

    # -- the listening thread

    def _read(self) -> None:
        os.set_blocking(self._output_fd, False)
        os.set_blocking(self._report_fd, False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._output_fd, selectors.EVENT_READ)
            selector.register(self._report_fd, selectors.EVENT_READ)
            # A forked child can keep the pipes open after the runner's death, so its end is read from a pidfd.
            pid_fd = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else None
            if pid_fd is not None:
                selector.register(pid_fd, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if self._output_fd in ready and not self._read_output():
                    selector.unregister(self._output_fd)
                if self._report_fd in ready and not self._read_reports():
                    break
                if pid_fd in ready:
                    break
            if pid_fd is not None:
                os.close(pid_fd)
        self._clean_up()

    def _clean_up(self) -> None:
        """Kill all that the runner started, even if its parent is gone, read the rest of the pipes, report the end."""
        with self._kill_lock:
            process.kill_group(self._process)
            status = self._process.wait()
            self._is_reaped = True
        process.kill_marked(_MARK, self._mark)
        process.kill_adopted()
        self._read_output()
        self._read_reports()
        for line in self._output.rest():
            self._log_line(line)
        assert self._process.stdout is not None
        self._process.stdout.close()
        os.close(self._report_fd)
        self.dismiss()
        self._gone.set()
        self._listen(self, Exited("was killed by its keeper" if self._is_killed else process.status_in_words(status)))

    def _read_output(self) -> bool:
        """Read the available output; False at its end."""
        while chunk := read_some(self._output_fd):
            for line in self._output.split(chunk):
                self._log_line(line)
        return chunk is None

    def _log_line(self, line: bytes) -> None:
        # Of a progress bar only the last state is kept.
        text = line.decode(errors="replace").rstrip("\r").rpartition("\r")[2].rstrip()
        if text:
            self.tail.append(text)
            self._log(time.time(), text)

    def _read_reports(self) -> bool:
        """Read the available reports and pass them on; False at their end."""
        while chunk := read_some(self._report_fd):
            for line in self._reports.split(chunk):
                try:
                    report = parse_report(line)
                except ProtocolError:
                    logger.exception("the runner sent an invalid report and is killed")
                    self.kill()
                    continue
                if isinstance(report, Done | Failed | Lost):
                    self._read_output()  # output from before the report belongs to the lease that ends here
                self._listen(self, report)
        return chunk is None
