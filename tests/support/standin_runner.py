"""A runner without torch: the real runner's loop around an engine whose behaviour follows from the job's `model`.

`obey` computes; `die@N`, `hang@N` and `bug@N` fail at the chunk that holds row N, `hang-encode@N` hangs there in an
encoding thread; `fork@N` leaves a child that holds all its files; `deaf` never stops; `load-for-ever` hangs before its
first claim; `wait` computes nothing until it is stopped; `bad-model` and `store-away` raise; `talk@N` prints N lines.
STANDIN_START makes the start `fail`, `fail-once` or `hang`; the file STANDIN_TRACE records what happened.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.config.activities import Activity
from jobs.config.settings import Settings
from jobs.data.rows import Result
from jobs.data.sinks import open_sink
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.errors import InvalidModel, ServiceUnavailable
from jobs.ledger import chunks
from jobs.ledger.chunks import ChunkResults, Claim
from jobs.ledger.leasing.leases import WorkingLease
from worker.log_format import set_up_runner_logging
from worker.runner.main_loop import parse_arguments, serve
from worker.stop import Outcome, Stop
from worker.wire.pulse import Pulse


class StandIn:
    """An engine whose outputs are the id of the process that computed them."""

    device = "nothing"

    def __init__(self, settings: Settings) -> None:
        self._database = Database(settings.resolved_database_url)
        self._store = Store(settings.resolved_store_url)
        self._models: list[str] = []

    def warm_models(self) -> Sequence[str]:
        return self._models

    def run(self, lease: WorkingLease, stop: Stop, pulse: Pulse) -> Outcome:
        entered = time.monotonic()
        spec = lease.spec
        what, _, number = spec.model.partition("@")
        self._models = [spec.model]
        pulse.at(Activity.LOAD)
        if what == "load-for-ever":
            threading.Event().wait()
        pulse.at(None)
        if trace := os.environ.get("STANDIN_TRACE"):
            with Path(trace).open("a") as file:
                file.write(f"{lease.lease_id} {entered}\n")
        if what == "bad-model":
            raise InvalidModel("this is not a model", param="model")
        if what == "store-away":
            raise ServiceUnavailable("the store cannot be reached")
        if what == "talk":
            for index in range(int(number)):
                print(f"line {index}", flush=True)
        if what == "deaf":
            threading.Event().wait()
        if what == "wait":
            stop.wait()
        while not stop.is_requested:
            claims = chunks.claim(self._database, lease.lease_id, limit=1)
            if not claims:
                return Outcome.DRAINED
            pulse.at(Activity.FORWARD, chunk=claims[0].start_row)
            if number and claims[0].row_error is None and claims[0].start_row <= int(number) < claims[0].stop_row:
                _misbehave(what, claims[0], pulse)
            self._record(lease, claims[0])
            pulse.at(None)
        return Outcome.STOPPED

    def _record(self, lease: WorkingLease, claim: Claim) -> None:
        spec = lease.spec
        sink = open_sink(spec.output, vector_output=False, database=self._database, store=self._store)
        error = claim.row_error
        results = [
            Result(row, None, output=None if error else os.getpid(), error=error)
            for row in range(claim.start_row, claim.stop_row)
        ]
        chunk = ChunkResults(claim.start_row, claim.stop_row, results)
        chunks.commit(
            self._database, lease.lease_id, [chunk], lambda session: sink.record(session, lease.job_id, results)
        )


def _misbehave(what: str, claim: Claim, pulse: Pulse) -> None:
    match what:
        case "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            threading.Event().wait()
        case "hang-encode":
            pulse.at(None)

            def encode() -> None:
                with pulse.doing(Activity.ENCODE, chunk=claim.start_row):
                    threading.Event().wait()

            encoder = threading.Thread(target=encode, name="encoder")
            encoder.start()
            encoder.join()
        case "bug":
            raise RuntimeError("a bug that nobody\nthought of")
        case "fork":
            child = subprocess.Popen(["sleep", "600"], close_fds=False, start_new_session=True)  # like a rank
            Path(os.environ["STANDIN_TRACE"]).write_text(str(child.pid))
            os.kill(os.getpid(), signal.SIGKILL)


def _load(settings: Settings) -> StandIn:
    start = os.environ.get("STANDIN_START")
    if start == "fail":
        raise ImportError("the engine's library is not installed")
    if start == "hang":
        threading.Event().wait()
    if start == "fail-once" and not (flag := Path(os.environ["STANDIN_TRACE"])).exists():
        flag.touch()
        sys.exit("no memory yet")
    return StandIn(settings)


if __name__ == "__main__":
    arguments = parse_arguments()
    set_up_runner_logging()
    settings = Settings()
    serve(arguments.report_fd, lambda: _load(settings), least_stall_seconds=settings.stall_seconds)
