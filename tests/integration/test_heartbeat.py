"""A slot's state in the database follows its runner, even if the database was away when the runner changed."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import SlotState
from jobs.db.tables import Slot
from jobs.errors import ServiceUnavailable
from jobs.ledger import slots
from jobs.queue import make_app
from worker.keeper.doorbell_check import DoorbellCheck
from worker.keeper.heartbeat import Heartbeat


@contextmanager
def beating(db: Database, settings: Settings, beats: queue.SimpleQueue[None]) -> Iterator[Heartbeat]:
    """A slot's heartbeat; `beats` gets an entry at the begin of each beat."""

    def warm_models() -> list[str]:
        beats.put(None)
        return []

    slots.register(db, [slots.SlotInfo("s0", "host", "cpu", None, "CPU", 0, 1)])
    heartbeat = Heartbeat(
        db,
        settings,
        slot_id="s0",
        incarnation="s0-1",
        warm_models=warm_models,
        doorbell_check=DoorbellCheck(make_app(settings), "s0", echo_seconds=3600.0),
        on_displaced=lambda: None,
        on_doorbell_works=lambda: None,
        on_doorbell_lost=lambda: None,
    )
    heartbeat.enter()
    try:
        yield heartbeat
    finally:
        heartbeat.leave()
        heartbeat.join()


def state_after_beats(db: Database, heartbeat: Heartbeat, beats: queue.SimpleQueue[None]) -> str:
    """The slot's state after one whole beat from now."""
    while not beats.empty():
        beats.get()
    for _ in range(2):  # the second one begins after the first one's end
        heartbeat.beat_now()
        beats.get(timeout=300)
    with db.read() as session:
        return session.get_one(Slot, "s0").state


@pytest.mark.parametrize("verb", ["mark_broken", "mark_mended"])
def test_what_could_not_be_recorded_is_recorded_with_a_later_beat(
    sqlite_database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    beats: queue.SimpleQueue[None] = queue.SimpleQueue()
    real, refused = getattr(slots, verb), []

    def away_once(*arguments: object) -> None:
        if not refused:
            refused.append(arguments)
            raise ServiceUnavailable("the database is away")
        real(*arguments)

    with beating(sqlite_database, settings, beats) as heartbeat:
        if verb == "mark_mended":
            heartbeat.broken("no memory")
            assert state_after_beats(sqlite_database, heartbeat, beats) == SlotState.BROKEN
        monkeypatch.setattr(slots, verb, away_once)
        if verb == "mark_mended":
            heartbeat.mended()
        else:
            heartbeat.broken("no memory")
        assert len(refused) == 1
        wanted = SlotState.ONLINE if verb == "mark_mended" else SlotState.BROKEN
        assert state_after_beats(sqlite_database, heartbeat, beats) == wanted
