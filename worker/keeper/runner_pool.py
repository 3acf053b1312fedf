"""Keeps one runner alive for a slot, so that leases start warm: starts it, and replaces it after it died."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from jobs.errors import MachineError
from jobs.retries import ENDLESS, RetryAt, RetryPolicy, decide
from worker.keeper.runner_process import Exited, RunnerEvent, RunnerProcess
from worker.wire.protocol import Ready, Report, Warm

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunnerUp:
    """A runner is ready and waits for orders."""

    runner: RunnerProcess


@dataclass(frozen=True, slots=True)
class RunnerBroken:
    """The slot's runner could not start; the next attempt follows after a delay."""

    reason: str


Listener = Callable[[RunnerUp | RunnerBroken | Report | Exited], None]


class RunnerPool:
    """One slot's runner. At any time one runner is alive or starting, or the start of the next one is scheduled.

    The exception is a vacant slot, which has no runner until it is occupied again.
    """

    def __init__(
        self,
        start: Callable[[Callable[[RunnerProcess, RunnerEvent], None]], RunnerProcess],
        *,
        policy: RetryPolicy,
        start_seconds: float,
        on_broken: Callable[[str], None],
        on_ready: Callable[[], None],
        on_warm: Callable[[], None],
    ) -> None:
        """
        Args:
            start: Starts a runner that passes its reports to the given callable.
            policy: How long to wait after a failed start. The number of attempts is not limited.
            start_seconds: Time in which a runner must become ready; otherwise it is killed.
            on_broken: Called with the reason when a runner could not start, before the listener is called.
            on_ready: Called when a runner has become ready, before the listener is called.
            on_warm: Called when the runner's loaded models have changed.
        """
        self._start, self._start_seconds = start, start_seconds
        self._policy = RetryPolicy(ENDLESS, policy.first_seconds, policy.max_seconds)
        self._on_broken, self._on_ready, self._on_warm = on_broken, on_ready, on_warm
        self._lock = threading.Lock()
        self._runner: RunnerProcess | None = None
        self._is_ready = False
        self._broken: RunnerBroken | None = None
        self._failures = 0
        self._due = time.monotonic()  # when to start a runner or, while one is starting, when to kill it
        self._warm_models: tuple[str, ...] = ()
        self._listener: Listener | None = None
        self._closed = self._vacant = False
        self._changes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="runner-pool", daemon=True)

    def open(self) -> None:
        """Start the first runner without waiting for it."""
        self._thread.start()

    def close(self) -> None:
        """End the runner and start no other."""
        with self._lock:
            self._closed = True
            runner = self._runner
        self._changes.put(None)
        self._thread.join()
        if runner is not None:
            runner.dismiss()
            runner.kill()

    def attach(self, listener: Listener) -> None:
        """Pass the runner's reports to `listener`, first of all `RunnerUp` or `RunnerBroken` if one of them holds now.

        The listener is called from several threads and must not block.
        """
        with self._lock:
            self._listener = listener
            if self._runner is not None and self._is_ready:
                listener(RunnerUp(self._runner))
            elif self._broken is not None:
                listener(self._broken)

    def detach(self) -> None:
        """Stop passing reports to the listener."""
        with self._lock:
            self._listener = None

    def replace(self, runner: RunnerProcess) -> None:
        """Kill a runner and start the next one. If the runner does not die, the slot is broken until it does."""
        runner.kill()
        if runner.is_gone:
            return
        with self._lock:
            if self._runner is not runner:
                return  # it has died in the meantime
            self._is_ready = False
        self._report_broken(f"runner {runner.pid} could not be killed: it is stuck in the kernel or a driver")

    def vacate(self) -> bool:
        """End the runner and start none until `occupy`, so that other processes can use the slot's device.

        Returns:
            Whether the device is free. If the runner does not die, the slot is broken until it does.
        """
        with self._lock:
            self._vacant = True
            runner = self._runner
        self._changes.put(None)
        if runner is not None:
            self.replace(runner)
        return runner is None or runner.is_gone

    def occupy(self) -> None:
        """Start a runner again, without waiting for it."""
        with self._lock:
            self._vacant = False
        self._changes.put(None)

    @property
    def warm_models(self) -> tuple[str, ...]:
        """Keys of the models that the runner has loaded."""
        with self._lock:
            return self._warm_models

    # -- the runner's life

    def _run(self) -> None:
        """Start runners when they are due, and kill those that do not become ready."""
        while True:
            with self._lock:
                if self._closed:
                    return
                runner = self._runner
                waits = self._is_ready if runner is not None else self._vacant
                seconds = self._due - time.monotonic()
            if waits or seconds > 0:
                with contextlib.suppress(queue.Empty):  # no change came, so the start or kill is due now
                    self._changes.get(timeout=None if waits else seconds)
            elif runner is None:
                self._start_runner()
            else:
                logger.error("the runner was not ready after %g s and is killed", self._start_seconds)
                runner.kill()
                self._changes.get()  # until it is gone

    def _start_runner(self) -> None:
        try:
            with self._lock:  # so that its first report is handled only after `_runner` is set
                if self._vacant:
                    return
                self._runner, self._is_ready = self._start(self._on_runner_event), False
                self._due = time.monotonic() + self._start_seconds
        except OSError as error:
            self._report_broken(f"the runner could not be started: {error}")

    def _on_runner_event(self, runner: RunnerProcess, event: RunnerEvent) -> None:
        match event:
            case Ready(device, start_seconds):
                with self._lock:
                    self._is_ready, self._broken, self._failures = True, None, 0
                logger.info("runner %d is ready on %s after %.1f s", runner.pid, device, start_seconds)
                self._on_ready()
                self._changes.put(None)
                self._pass_on(RunnerUp(runner))
            case Exited(status):
                self._on_exit(runner, status)
            case Warm(model_keys):
                with self._lock:
                    self._warm_models = model_keys
                self._on_warm()
            case _:
                self._pass_on(event)

    def _on_exit(self, runner: RunnerProcess, status: str) -> None:
        with self._lock:
            was_ready, is_intended = self._is_ready, self._closed or self._vacant
            self._runner, self._is_ready, self._warm_models = None, False, ()
            self._due = time.monotonic()
        if is_intended:
            logger.info("runner %d %s", runner.pid, status)
        elif was_ready:
            logger.warning("runner %d %s; the next one is started", runner.pid, status)
        else:
            last_line = f": {runner.tail[-1]}" if runner.tail else ""
            self._report_broken(f"the runner could not start: it {status}{last_line}")
        self._pass_on(Exited(status))  # before the next one is started, so that no listener confuses the two
        self._changes.put(None)

    def _report_broken(self, reason: str) -> None:
        with self._lock:
            self._broken = RunnerBroken(reason)
            self._failures += 1
            retry = decide(MachineError(reason), self._failures, self._policy)
            delay_seconds = retry.delay_seconds if isinstance(retry, RetryAt) else self._policy.max_seconds
            self._due = time.monotonic() + delay_seconds
        logger.error("%s; the next try is in %.1f s", reason, delay_seconds)
        self._on_broken(reason)
        self._pass_on(RunnerBroken(reason))

    def _pass_on(self, what: RunnerUp | RunnerBroken | Report | Exited) -> None:
        with self._lock:
            if self._listener is not None:
                self._listener(what)
