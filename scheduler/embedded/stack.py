"""The embedded stack of `stoker up`: one process owns Redis, the API with the scheduler, and the workers."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import select
from sqlmodel import col

from jobs.child_modules import python_module
from jobs.config.private_files import FOLDERS, make_database_file, make_private
from jobs.config.projects import OPERATOR
from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import SlotState
from jobs.db.tables import ApiKey, Slot
from jobs.errors import InvalidSpec, ServiceUnavailable, StokerError
from jobs.messages import reason
from jobs.retries import Backoff
from jobs.supervisor import Supervisor
from scheduler.admin.keys import ensure_local_key
from scheduler.admin.schema import migrate
from scheduler.client.http_client import StokerClient
from scheduler.embedded import redis_server
from scheduler.embedded.data_dir import MAKE_ROOM, StackLock, make_data_dir
from scheduler.embedded.environment import settings_environment
from scheduler.embedded.logged_program import last_line, logged_program

logger = logging.getLogger(__name__)

_START_SECONDS = 120.0
"""Longest time from the first process to the last slot online."""
_POLL_SECONDS = 0.05
"""Interval of polling a part that starts; there is no signal for a new socket or slot."""
_DEATHS_BEFORE_GIVING_UP = 4
_RESTART_BACKOFF = Backoff(first_seconds=0.1, longest_seconds=10.0)
_SETTLED_SECONDS = 5.0
"""A part that lived this long was healthy, so its next death counts as the first."""
_SERVER_GRACE_SECONDS = 10.0
_WORKER_EXTRA_SECONDS = 10.0
"""Time beyond the runners' grace in which the worker ends its processes and returns its leases."""


@dataclass(frozen=True, slots=True)
class _Before:
    """State of the database before the parts were started."""

    at: float
    """Unix seconds of the database's clock."""
    incarnations: frozenset[str]
    """Worker processes of earlier stacks, whose slots may still look alive."""


class Stack:
    """A stack of real server processes that runs inside a `with`. A process that dies is restarted until the end."""

    def __init__(self, settings: Settings) -> None:
        """
        Args:
            settings: Settings of the whole stack. Input and output roots that are not set become `/`, and any model
                may be named, since all processes run as one user, who can read those files anyway.
        """
        open_to_user = {
            "input_roots": [Path("/")],
            "output_roots": [Path("/")],
            "code_roots": code_roots(settings.data_dir),
            "any_model": True,
        }
        unset = {name: value for name, value in open_to_user.items() if name not in settings.model_fields_set}
        self.settings = settings.model_copy(update={"data_dir": settings.data_dir, "host": settings.host} | unset)
        self._opens_everything = "input_roots" in unset or "output_roots" in unset
        self._supervisor = Supervisor(_RESTART_BACKOFF, settled_seconds=_SETTLED_SECONDS)
        self._supervision: threading.Thread | None = None
        self._is_unsupervised = threading.Event()
        self._lock = StackLock()
        self.is_stopping = False

    @property
    def url(self) -> str:
        """URL of the API."""
        host = self.settings.host
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{self.settings.port}"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start every part and wait until all slots are online.

        Raises:
            AlreadyRunning: Another stack holds the data directory.
            UserError: A setting is wrong, such as a port in use or a data directory that cannot be written.
            ServiceUnavailable: A part does not start, or the data directory's disk is full.
        """
        try:
            self._start()
        except OSError as error:
            place = error.filename or self.settings.data_dir
            raise ServiceUnavailable(f"cannot write '{place}': {reason(error)}; {MAKE_ROOM}") from error

    def _start(self) -> None:
        make_data_dir(self.settings.data_dir)
        make_private(self.settings, folders=FOLDERS)
        wait_seconds = self.settings.grace_seconds + _WORKER_EXTRA_SECONDS + _SERVER_GRACE_SECONDS
        self._lock.take(self.settings, wait_seconds=wait_seconds)
        self._choose_port()
        self._lock.announce(self.url)
        self.settings.url_path.unlink(missing_ok=True)
        if not self.settings.database_url:
            make_database_file(self.settings)
        database = Database(self.settings.resolved_database_url)
        try:
            migrate(database)
            if self._opens_everything:
                _warn_of_projects(database)
            key = ensure_local_key(self.settings, database)
            with database.read() as session:
                before = _Before(session.time(), frozenset(session.scalars(select(col(Slot.incarnation)))))
            self._start_programs()
            self._await_ready(database, key, before)
        finally:
            database.close()

    def wait(self) -> None:
        """Wait while the stack runs. A signal handler that raises ends the wait.

        Raises:
            ServiceUnavailable: The thread that restarts the parts has failed, and all parts have ended.
        """
        self._is_unsupervised.wait()  # a signal handler that raises in `Thread.join` leaves the thread marked as ended
        raise ServiceUnavailable("all parts have ended, because the thread that restarts them failed (see above)")

    def stop(self) -> None:
        """Stop the workers, the API and Redis in this order; no process is left."""
        self.is_stopping = True
        if self._supervision is not None:
            self._supervisor.stop()
            self._supervision.join()
            self._supervision = None
            self.settings.url_path.unlink(missing_ok=True)
        self._lock.give_back()

    def kill_if_stopping(self) -> bool:
        """Kill every part at once if the stack is being stopped. Safe in a signal handler, since it takes no lock.

        Returns:
            Whether the stack is being stopped.
        """
        if self.is_stopping:
            self._supervisor.kill()
        return self.is_stopping

    # -- the steps of a start

    def _choose_port(self) -> None:
        """Check that the port is free. Port 0 is replaced by a free one, so that a restarted API keeps its URL."""
        host, port = self.settings.host, self.settings.port
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                free = int(probe.getsockname()[1])
        except socket.gaierror as error:
            raise InvalidSpec(f"host '{host}' is not an address of this machine", param="host") from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise InvalidSpec(
                f"cannot listen on port {port} of {host}: {reason.lower()}; choose another port with --port",
                param="port",
            ) from error
        self.settings = self.settings.model_copy(update={"port": free})

    def _start_programs(self) -> None:
        env = {**os.environ, **settings_environment(self.settings)}
        make = partial(logged_program, env=env, pass_fds=self._lock.inherited)
        supervision = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        supervision.start()
        self._supervision = supervision
        if not self.settings.redis_url:
            redis_server.prepare_folders(self.settings)
            command = redis_server.redis_command(self.settings)
            put_aside = partial(redis_server.put_aside_broken_files, self.settings)
            self._supervisor.start(
                make(command, self._log("redis"), grace_seconds=_SERVER_GRACE_SECONDS, before_start=put_aside)
            )
            self._await(lambda: redis_server.responds(self.settings), "Redis does not respond")
        else:
            redis_server.check_given(self.settings)
        worker_grace_seconds = self.settings.grace_seconds + _WORKER_EXTRA_SECONDS
        # Each is started by itself and so stopped by itself: the workers while API and Redis still respond.
        for name, module, grace_seconds in (
            ("serve", "scheduler.api.serve", _SERVER_GRACE_SECONDS),
            ("worker", "worker.host.main", worker_grace_seconds),
        ):
            self._supervisor.start(make(python_module(module), self._log(name), grace_seconds=grace_seconds))

    def _supervise(self) -> None:
        try:
            self._supervisor.run()
        finally:
            self._is_unsupervised.set()

    def _await_ready(self, database: Database, key: str, before: _Before) -> None:
        with StokerClient(self.url, key, retry_seconds=0) as client:
            self._await(lambda: _serves(client), "the API does not respond")
        self._await(lambda: _slots_entered(database, before), "the slots do not come online")
        with database.read() as session:
            for slot in session.scalars(select(Slot).where(col(Slot.state) == SlotState.BROKEN)):
                logger.warning("slot %s cannot be used: %s", slot.id, slot.reason)

    def _await(self, condition: Callable[[], bool], otherwise: str) -> None:
        give_up_at = time.monotonic() + _START_SECONDS
        while not condition():
            for name, num_quick_deaths in self._supervisor.num_quick_deaths().items():
                if num_quick_deaths >= _DEATHS_BEFORE_GIVING_UP:
                    raise ServiceUnavailable(f"{name} keeps exiting: {self._last_log_line(name)}")
            if time.monotonic() > give_up_at:
                raise ServiceUnavailable(f"{otherwise}; see the logs in {self.settings.data_dir / 'logs'}")
            time.sleep(_POLL_SECONDS)  # there is no signal when a server is ready

    def _last_log_line(self, name: str) -> str:
        log = self._log(name)
        return f"{last_line(log) or 'it logged nothing'} (log: {log})"

    def _log(self, name: str) -> Path:
        return self.settings.data_dir / "logs" / f"{name}.log"


# -- access of jobs to files ------------------------------------------------------------------------------------------


def code_roots(data_dir: Path) -> list[Path]:
    """Folders whose modules jobs may run: the folder where the stack is started, unless it is inside the data
    directory, as the working directory of a service may be."""
    here = Path.cwd()
    return [] if here.resolve().is_relative_to(data_dir.resolve()) else [here]


def _warn_of_projects(database: Database) -> None:
    with database.read() as session:
        others = select(col(ApiKey.project)).where(col(ApiKey.project) != OPERATOR, col(ApiKey.revoked_at).is_(None))
        projects = sorted(set(session.scalars(others)))
    if projects:
        logger.warning("%s", open_roots_warning(projects))


def open_roots_warning(projects: Sequence[str]) -> str:
    """Warning for an operator who creates keys of other projects while jobs may name any file."""
    return (
        f"jobs of {', '.join(projects)} can read and write every file of this user except Stoker's own; set "
        "STOKER_INPUT_ROOTS, STOKER_OUTPUT_ROOTS and STOKER_CODE_ROOTS to the folders that projects may use"
    )


# -- readiness of the parts ------------------------------------------------------------------------------------------


def _serves(client: StokerClient) -> bool:
    try:
        return str(client.health()["status"]) == "ok"
    except StokerError:
        return False


def _slots_entered(database: Database, before: _Before) -> bool:
    """Whether every slot that our worker registered has its new worker process by now, usable or broken."""
    with database.read() as session:
        ours = session.scalars(select(Slot).where(col(Slot.registered_at) >= before.at)).all()
    return bool(ours) and all(
        slot.incarnation not in before.incarnations and slot.state != SlotState.OFFLINE for slot in ours
    )
