"""The runner's ends of the two pipes to its keeper: orders come in, reports go out."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Sequence

from jobs.ledger.leasing.leases import WorkingLease
from worker.stop import Stop
from worker.wire.pipes import LineWriter, read_lines
from worker.wire.protocol import Report, Run, StopLease, Warm, parse_order, report_line

logger = logging.getLogger(__name__)

_ORDERS_FD = 0


class ReportWriter:
    """Writes reports from any thread, each at once, because the last one before a crash names the suspected chunk."""

    def __init__(self, fd: int) -> None:
        self._writer = LineWriter(fd)
        self._model_keys: tuple[str, ...] = ()

    def send(self, report: Report) -> None:
        """Write a report."""
        self._writer.write(report_line(report))

    def send_warm(self, model_keys: Sequence[str]) -> None:
        """Report which models are loaded, if that has changed."""
        if tuple(model_keys) != self._model_keys:
            self._model_keys = tuple(model_keys)
            self.send(Warm(self._model_keys))


class OrderReader:
    """Reads orders in a separate thread, and ends this process at once when its keeper is gone."""

    def __init__(self) -> None:
        self._runs: queue.SimpleQueue[tuple[WorkingLease, Stop]] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def next(self) -> tuple[WorkingLease, Stop]:
        """Wait for the next lease; a later order to stop it is passed on through the returned `Stop`."""
        return self._runs.get()

    def _read(self) -> None:
        try:
            self._pass_on_orders()
        except BaseException:  # nobody would read further orders, and the lease would be held without end
            logger.exception("the orders of the keeper cannot be followed; this runner ends")
            logging.shutdown()
            os._exit(1)
        os._exit(0)  # without a keeper nothing watches this process, so it must free the device at once

    def _pass_on_orders(self) -> None:
        stop = Stop()
        for line in read_lines(_ORDERS_FD):
            match parse_order(line):
                case Run(lease):
                    stop = Stop()
                    self._runs.put((lease, stop))
                case StopLease(reason):
                    stop.request(reason)
