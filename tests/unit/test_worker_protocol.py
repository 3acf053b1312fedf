"""Keeper and runner understand each other, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.access.pins import PinnedFile, PinnedFiles, PinnedRevision, Pins
from jobs.config.activities import Activity
from jobs.db.states import StopReason
from jobs.errors import DeviceOutOfMemory, InvalidInput, MachineError, UserError
from jobs.ledger.leasing.leases import WorkingLease
from jobs.specs.inference import parse_spec
from worker.stop import Outcome
from worker.wire.pipes import ProtocolError
from worker.wire.protocol import (
    Done,
    Failed,
    Lost,
    Order,
    Ready,
    Report,
    Run,
    StopLease,
    Warm,
    error_from,
    failure_report,
    order_line,
    parse_order,
    parse_report,
    report_line,
)
from worker.wire.pulse import Beat

_SPEC = parse_spec({"task": "fill-mask", "model": "m\n\u2028", "input": {"path": "rows.jsonl", "key": "id"}})
_LEASE = WorkingLease("lease_1", "job_1", "here-cpu0", _SPEC, 3, 0)
_PINNED = replace(
    _LEASE,
    pins=Pins(model=PinnedRevision("c" * 40), module=PinnedFiles((PinnedFile("net.py", 7, "1+2.3@0000abcd"),))),
)


@pytest.mark.parametrize("order", [Run(_LEASE), Run(_PINNED), *map(StopLease, StopReason)], ids=str)
def test_an_order_is_one_line_and_comes_back_equal(order: Order) -> None:
    line = order_line(order)
    assert line.count(b"\n") == 1
    assert parse_order(line) == order


@pytest.mark.parametrize(
    "report",
    [
        Ready("NVIDIA H200", 3.25),
        Beat(),
        *(Beat("feed-read", activity, 0, 7) for activity in Activity),
        Warm(()),
        Warm(("a|b|c", "d|e|f")),
        Done(Outcome.DRAINED),
        Failed("invalid_model", "two\nlines", "model", is_users=True, is_poisoned=False),
        Failed("machine_error", "x", None, is_users=False, is_poisoned=True),
        Lost(),
    ],
    ids=str,
)
def test_a_report_is_one_line_and_comes_back_equal(report: Report) -> None:
    line = report_line(report)
    assert line.count(b"\n") == 1
    assert parse_report(line) == report


@pytest.mark.parametrize("line", [b"", b"\xff", b"[]", b"7", b'{"a": 1, "b": 2}', b'{"stop": "never"}', b'{"run": {}}'])
def test_anything_else_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_order(line)
    with pytest.raises(ProtocolError):
        parse_report(line)


@pytest.mark.parametrize("error", [InvalidInput("bad line", param="input"), DeviceOutOfMemory(), UserError("no")])
def test_an_error_of_ours_keeps_its_class_message_and_param(error: UserError | MachineError) -> None:
    failure = parse_report(report_line(failure_report(error)))
    assert isinstance(failure, Failed)
    back = error_from(failure)
    assert (type(back), back.message, back.param) == (type(error), error.message, error.param)
    assert not failure.is_poisoned


@pytest.mark.parametrize("error", [RuntimeError("CUDA error:\nillegal access"), MachineError("the device is lost")])
def test_an_unknown_error_is_the_machines_and_its_runner_is_not_kept(error: Exception) -> None:
    failure = failure_report(error)
    assert failure.is_poisoned
    assert not failure.is_users
    assert "\n" not in failure.message
