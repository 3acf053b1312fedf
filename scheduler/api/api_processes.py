"""Several processes that serve the API on one port. One that dies is started again, and the others go on serving."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from jobs import process
from jobs.child_modules import python_module
from jobs.retries import Backoff
from jobs.supervisor import Program, Supervisor
from scheduler.api.api_process import INVALID_STATUS, REQUEST_GRACE_SECONDS
from scheduler.api.server import bind, url_of

logger = logging.getLogger(__name__)

_RESTART_BACKOFF = Backoff(first_seconds=0.1, longest_seconds=10.0)
_POLL_SECONDS = 0.05
_SETTLED_SECONDS = 5.0  # a process that lived this long was healthy, so its next death counts as the first
_GRACE_SECONDS = REQUEST_GRACE_SECONDS + 4.0  # with time to close its connections


class ApiProcesses:
    """Keeps API processes running that share a port: each has a socket of its own that listens on it.

    The kernel divides new connections evenly among the sockets that listen now. With one socket for all, an idle system
    would give nearly all connections to the same process.
    """

    def __init__(self, host: str, port: int, *, num_processes: int, on_end: Callable[[], None]) -> None:
        """Reserve the port.

        Args:
            port: The port; 0 takes a free one.
            on_end: Called when no process is left and none is started again.

        Raises:
            InvalidSpec: The address cannot be bound.
        """
        bind(host, port).close()  # fails if other processes share the port already, which the next line would not
        self._reserved = bind(host, port, is_shared=True, listens=False)
        self.url = url_of(self._reserved)
        self._port = int(self._reserved.getsockname()[1])
        self._on_end = on_end
        self._supervisor = Supervisor(_RESTART_BACKOFF, settled_seconds=_SETTLED_SECONDS)
        self._supervisor.start(
            *(
                Program(
                    f"API process {number}",
                    self._start_process,
                    _GRACE_SECONDS,
                    final_statuses={INVALID_STATUS: "a setting is invalid (see above)"},
                )
                for number in range(1, num_processes + 1)
            )
        )
        self._thread = threading.Thread(target=self._run, name="api-processes", daemon=True)

    def start(self, *, is_wanted: Callable[[], bool]) -> None:
        """Start the processes, and wait until the first of them accepts connections.

        Args:
            is_wanted: Called while waiting; False ends the wait.
        """
        self._thread.start()
        while is_wanted() and self._thread.is_alive() and not self._accepts():
            time.sleep(_POLL_SECONDS)  # there is no signal when another process listens

    def _accepts(self) -> bool:
        address = urlsplit(self.url)
        try:
            socket.create_connection((address.hostname, address.port), timeout=1.0).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End all processes in order, and wait for their end."""
        self._supervisor.stop()
        if self._thread.ident is not None:
            self._thread.join()
        self._reserved.close()

    def _run(self) -> None:
        try:
            self._supervisor.run()
        except Exception:
            logger.exception("the API's processes are no longer supervised")
        finally:
            self._on_end()

    def _start_process(self, _num_quick_deaths: int) -> subprocess.Popen[bytes]:
        return process.spawn(
            python_module("scheduler.api.api_process", str(self._port)),
            on_parent_death=signal.SIGKILL,  # without its supervisor it would hold the port of the next one
        )
