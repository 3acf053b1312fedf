"""`stoker worker`: discovers the host's slots and keeps one Celery worker running for each until a signal ends it."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import FrameType

import redis
from sqlalchemy.exc import ProgrammingError

from jobs import process
from jobs.config.private_files import make_private
from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.ids import new_id
from jobs.errors import ServiceUnavailable
from jobs.ledger import slots
from jobs.ledger.slots import SlotInfo
from jobs.messages import first_line
from jobs.queue import connect
from jobs.retries import Backoff
from jobs.supervisor import Program, Supervisor
from worker.children import DISPLACED_STATUS, RUNNER_MODULE, app_command, app_environment
from worker.host.slots import discover, installed_packages
from worker.log_format import set_up_logging

logger = logging.getLogger(__name__)

_RESTART_BACKOFF = Backoff(first_seconds=0.25, longest_seconds=30.0)
_SETTLED_SECONDS = 30.0  # a worker that lived this long has started well, so its next death counts as the first
_SERVICES_BACKOFF = Backoff(first_seconds=0.25, longest_seconds=5.0)
_END_MARGIN_SECONDS = 5.0  # beyond the grace: time for a worker to record the end and exit


class HostWorkers:
    """Runs one Celery worker for each slot, until a signal comes or other workers have taken every slot."""

    def __init__(self, settings: Settings, infos: Sequence[SlotInfo], *, runner_module: str = RUNNER_MODULE) -> None:
        self._settings, self._infos, self._runner_module = settings, infos, runner_module
        self._database = Database(settings.resolved_database_url)
        self._supervisor = Supervisor(_RESTART_BACKOFF, settled_seconds=_SETTLED_SECONDS)
        self._incarnations: dict[str, str] = {}
        """Slot id -> incarnation of the slot's newest worker."""
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()

    def run(self) -> int:
        """Run the workers until SIGTERM or SIGINT; a second signal kills them.

        Returns:
            The exit status: 0 after an end in order, 1 if other workers have taken every slot.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take_signal)
        if not self._wait_for_services():
            return 0
        self._supervisor.start(*(self._program(info) for info in self._infos))
        self._supervisor.run()
        if self._signals.empty():
            logger.error("every slot of this host belongs to another worker; give one of them a host_name")
            return 1
        self._retire()
        self._database.close()
        logger.info("ended")
        return 0

    def _take_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._signals.empty():
            self._supervisor.stop()
        else:
            self._supervisor.kill()
        self._signals.put(number)

    def _wait_for_services(self) -> bool:
        """Wait until the slots are registered and Redis answers; False if a signal came first."""
        num_failures = 0
        while True:
            try:
                slots.register(self._database, self._infos)
                with connect(self._settings) as client:
                    client.ping()
                return True
            except (ServiceUnavailable, ProgrammingError, redis.RedisError, OSError) as error:
                num_failures += 1
                if num_failures == 1:  # a missing table is waited for too: the schema may be about to be created
                    logger.warning("waiting for the database and Redis: %s", first_line(error))
            with contextlib.suppress(queue.Empty):
                self._signals.get(timeout=_SERVICES_BACKOFF.delay_seconds(num_failures))
                return False

    def _program(self, info: SlotInfo) -> Program:
        return Program(
            f"the worker of {info.id}",
            partial(self._start, info),
            self._settings.grace_seconds + _END_MARGIN_SECONDS,
            final_statuses={DISPLACED_STATUS: "its slot belongs to another worker now"},
        )

    def _start(self, info: SlotInfo, _num_quick_deaths: int) -> subprocess.Popen[bytes]:
        self._incarnations[info.id] = new_id("worker")
        return process.spawn(
            app_command(info, self._incarnations[info.id], runner_module=self._runner_module),
            env=app_environment(os.environ, device_uuid=info.device_uuid),
            on_parent_death=signal.SIGTERM,  # so that the workers end in order, and their runners with them
        )

    def _retire(self) -> None:
        try:
            for slot_id, incarnation in self._incarnations.items():
                slots.retire(self._database, [slot_id], incarnation=incarnation)
        except ServiceUnavailable as error:
            logger.warning("the slots could not be retired, they will fall silent: %s", error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the workers of this host until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="worker.host.main", description=__doc__)
    parser.add_argument("--runner-module", default=RUNNER_MODULE, help="the module that is run as the runner")
    arguments = parser.parse_args(argv)
    set_up_logging("supervisor")
    process.adopt_orphans()  # processes that a killed worker leaves behind are killed too
    settings = Settings()
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_private(settings, folders=("job-models", "training"))
    found = discover(settings, visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"))
    packages = installed_packages()
    infos = [replace(info, packages=packages, labels=settings.labels) for info in found]
    for info in infos:
        logger.info(
            "slot %s: %s, %.1f GiB, %d threads", info.id, info.name, info.memory_bytes / 2**30, info.num_threads
        )
    return HostWorkers(settings, infos, runner_module=arguments.runner_module).run()


if __name__ == "__main__":
    sys.exit(main())
