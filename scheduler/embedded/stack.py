"""The embedded stack of `stoker up`: one process owns Redis, the API with the scheduler, and the workers."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from scheduler.admin.keys import ensure_local_key
from scheduler.admin.schema import migrate
from scheduler.client.http_client import StokerClient
from scheduler.embedded import redis_server
from scheduler.embedded.data_dir import MAKE_ROOM, StackLock, make_data_dir
from scheduler.embedded.environment import settings_environment
from scheduler.embedded.supervisor import Program, Supervisor, last_line

logger = logging.getLogger(__name__)

_START_SECONDS = 120.0
"""Longest time from the first process to the last slot online."""
_LOOK_SECONDS = 0.05
"""Interval of polling a part that starts; there is no signal for a new socket or slot."""
_DEATHS_BEFORE_GIVING_UP = 4
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
        self._supervisor: Supervisor | None = None
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
            raise ServiceUnavailable(f"'{place}' cannot be written: {reason(error)}; {MAKE_ROOM}") from error

    def _start(self) -> None:
        make_data_dir(self.settings.data_dir)
        make_private(self.settings, folders=FOLDERS)
        patience_seconds = self.settings.grace_seconds + _WORKER_EXTRA_SECONDS + _SERVER_GRACE_SECONDS
        self._lock.take(self.settings, patience_seconds=patience_seconds)
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

    def stop(self) -> None:
        """Stop the workers, the API and Redis in this order; no process is left."""
        self.is_stopping = True
        if self._supervisor is not None:
            self._supervisor.stop()
            self._supervisor = None
            self.settings.url_path.unlink(missing_ok=True)
        self._lock.give_back()

    def hurry(self) -> bool:
        """Kill every part at once if the stack is being stopped. Safe in a signal handler, since it takes no lock.

        Returns:
            Whether the stack is being stopped.
        """
        if self.is_stopping and self._supervisor is not None:
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
                f"port {port} on {host} cannot be served ({reason.lower()}); choose another with --port", param="port"
            ) from error
        self.settings = self.settings.model_copy(update={"port": free})

    def _start_programs(self) -> None:
        self._supervisor = Supervisor(pass_fds=self._lock.inherited)
        logs = self.settings.data_dir / "logs"
        env = {**os.environ, **settings_environment(self.settings)}
        if not self.settings.redis_url:
            redis_server.prepare_folders(self.settings)
            self._supervisor.start(
                Program(
                    "redis",
                    redis_server.redis_command(self.settings),
                    env,
                    logs / "redis.log",
                    _SERVER_GRACE_SECONDS,
                    lambda deaths: redis_server.put_aside_broken_files(self.settings, deaths),
                )
            )
            self._await(lambda: redis_server.answers(self.settings), "Redis does not answer")
        else:
            redis_server.check_given(self.settings)
        worker_grace_seconds = self.settings.grace_seconds + _WORKER_EXTRA_SECONDS
        for name, module, grace_seconds in (
            ("serve", "scheduler.api.serve", _SERVER_GRACE_SECONDS),
            ("worker", "worker.host.main", worker_grace_seconds),
        ):
            self._supervisor.start(Program(name, python_module(module), env, logs / f"{name}.log", grace_seconds))

    def _await_ready(self, database: Database, key: str, before: _Before) -> None:
        with StokerClient(self.url, key, retry_seconds=0) as client:
            self._await(lambda: _serves(client), "the API does not answer")
        self._await(lambda: _slots_entered(database, before), "the slots do not come online")
        with database.read() as session:
            for slot in session.scalars(select(Slot).where(col(Slot.state) == SlotState.BROKEN)):
                logger.warning("slot %s cannot be used: %s", slot.id, slot.reason)

    def _await(self, condition: Callable[[], bool], otherwise: str) -> None:
        assert self._supervisor is not None
        give_up_at = time.monotonic() + _START_SECONDS
        while not condition():
            for name, num_quick_deaths in self._supervisor.num_quick_deaths().items():
                if num_quick_deaths >= _DEATHS_BEFORE_GIVING_UP:
                    raise ServiceUnavailable(f"{name} keeps ending: {self._last_words(name)}")
            if time.monotonic() > give_up_at:
                raise ServiceUnavailable(f"{otherwise}; see the logs in {self.settings.data_dir / 'logs'}")
            time.sleep(_LOOK_SECONDS)  # there is no signal when a server is ready

    def _last_words(self, name: str) -> str:
        log = self.settings.data_dir / "logs" / f"{name}.log"
        return f"{last_line(log) or 'it said nothing'} (its log: {log})"


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
        f"jobs of {', '.join(projects)} may read and write every file that this user may, but Stoker's own: set "
        "STOKER_INPUT_ROOTS, STOKER_OUTPUT_ROOTS and STOKER_CODE_ROOTS to what projects are to share"
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
