"""Channels and stages: no thread waits for one that is gone, whichever side ends first."""

from __future__ import annotations

import threading

import pytest

from tests.conftest import wait_until
from worker.inference.stages import Channel, Closed, Stages


def test_a_full_channel_holds_the_producer_up() -> None:
    """A fast reader must not fill the memory while the device is slow."""
    channel: Channel[int] = Channel(2)
    taken: list[int] = []

    def produce() -> None:
        for number in range(5):
            channel.put(number)
            taken.append(number)
        channel.finish()

    stages = Stages("test-", channel.cancel)
    stages.start(produce)
    wait_until(lambda: len(taken) == 2, "the channel is full")
    assert list(channel) == [0, 1, 2, 3, 4]
    assert stages.join() is None


def test_items_that_take_much_memory_hold_the_producer_up() -> None:
    """Few images may be gigabytes; one that is larger than the limit still passes."""
    channel: Channel[int] = Channel(10, most_bytes=100, size=lambda item: item)
    channel.put(500)
    assert not channel.has_room(1)
    assert channel.get() == 500
    channel.put(60)
    assert channel.has_room(40)
    assert not channel.has_room(41)
    added = threading.Event()

    def produce() -> None:
        channel.put(41)
        added.set()

    stages = Stages("test-", channel.cancel)
    stages.start(produce)
    assert channel.get() == 60
    assert added.wait(300)
    assert stages.join() is None


@pytest.mark.parametrize("end", ["cancel", "finish"])
def test_ending_a_full_channel_frees_its_producer(end: str) -> None:
    """When the device's side dies, the reader must not wait for it for ever."""
    channel: Channel[int] = Channel(1)
    channel.put(0)
    ended = threading.Event()

    def produce() -> None:
        try:
            channel.put(1)
        except Closed:
            ended.set()

    thread = threading.Thread(target=produce)
    thread.start()
    getattr(channel, end)()
    thread.join(300)
    assert ended.is_set()


def test_cancelling_an_empty_channel_frees_its_consumer() -> None:
    """When the reader dies, the device's thread must not wait for it for ever."""
    channel: Channel[int] = Channel(1)
    stages = Stages("test-", channel.cancel)
    stages.start(lambda: list(channel) and None)
    channel.cancel()
    assert stages.join() is None
    with pytest.raises(Closed):
        channel.get()
    with pytest.raises(Closed):
        channel.get_all()


def test_peeking_takes_nothing() -> None:
    channel: Channel[int] = Channel(2)
    assert channel.peek() is None
    channel.put(1)
    channel.put(2)
    assert channel.peek() == 1
    assert [channel.get(), channel.get(), channel.peek()] == [1, 2, None]


def test_what_is_inside_is_still_got_after_finish() -> None:
    """The last chunks of a job are committed, not dropped."""
    channel: Channel[int] = Channel(3)
    channel.put(1)
    channel.put(2)
    channel.finish()
    assert channel.get_all() == [1, 2]
    assert channel.is_empty
    with pytest.raises(Closed):
        channel.get()


def test_a_wait_can_be_ended() -> None:
    """A stop reaches a device that waits for its next chunk."""
    channel: Channel[int] = Channel(1)
    stopped = threading.Event()
    seen = threading.Event()

    def wait() -> None:
        try:
            channel.get(stopped.is_set)
        except Closed:
            seen.set()

    thread = threading.Thread(target=wait)
    thread.start()
    stopped.set()
    channel.wake()
    thread.join(300)
    assert seen.is_set()


def test_the_first_failure_ends_the_others_and_is_kept() -> None:
    """The user sees the cause, not its consequences."""
    first: Channel[int] = Channel(1)
    second: Channel[int] = Channel(1)

    def cancel() -> None:
        first.cancel()
        second.cancel()

    def fail() -> None:
        first.get()
        raise OSError("the cause")

    def follow() -> None:
        try:
            second.get()
        except Closed as closed:
            raise RuntimeError("what followed") from closed

    stages = Stages("test-", cancel)
    stages.start(fail, follow)
    first.put(1)
    error = stages.join()
    assert isinstance(error, OSError)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test-")]
