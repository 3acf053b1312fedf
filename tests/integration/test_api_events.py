"""A job's history and logs over HTTP: pages, and streams that end with the job and go on where they broke off."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from jobs.db.states import JobState
from jobs.ledger import jobs as job_ledger
from jobs.ledger import logs
from jobs.ledger.leasing import leases
from jobs.ledger.records import pages
from jobs.specs.bounds import LONGEST_ENTRY_CHARACTERS
from scheduler.api.bodies import job_stream
from scheduler.api.bodies.job_looks import Message
from scheduler.api.bodies.tail import Tail
from scheduler.client.event_stream import read_events
from scheduler.client.http_client import ApiError
from tests.conftest import wait_until
from tests.support.leased_job import LeasedJob
from tests.support.live_api import LiveApi


@pytest.fixture
def job(api: LiveApi, tmp_path: Path) -> LeasedJob:
    """A queued job of two rows."""
    return LeasedJob(api.database, api.settings, tmp_path, [{"id": "a", "text": "a"}, {"id": "b", "text": "b"}])


def in_background(iterator: Iterator[dict[str, Any]]) -> tuple[threading.Thread, list[dict[str, Any]]]:
    """Collect an iterator in a thread; the list has its items so far."""
    seen: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: seen.extend(_each(iterator, seen)), daemon=True)
    thread.start()
    return thread, seen


def _each(iterator: Iterator[dict[str, Any]], seen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for entry in iterator:
        seen.append(entry)
    return []


def test_a_stream_gives_each_event_as_it_happens_and_ends_with_the_job(api: LiveApi, job: LeasedJob) -> None:
    thread, seen = in_background(api.client.events(job.job_id))
    wait_until(lambda: len(seen) == 2, "what has happened before comes first")
    lease = job.lease()
    wait_until(lambda: seen[-1]["name"] == "lease.active", "the lease is seen")
    assert thread.is_alive()
    job_ledger.cancel(api.database, job.job_id)
    leases.release(api.database, lease.lease_id, "cancelled")
    thread.join(300)
    assert not thread.is_alive()
    names = [event["name"] for event in seen]
    assert names[0] == "job.submitted"
    assert names[-1] == "job.cancelled"
    assert seen == list(api.client.events(job.job_id, follow=False))
    assert set(seen[0]) == {"id", "object", "job_id", "at", "name", "data"}


def test_a_broken_stream_goes_on_after_the_last_event(api: LiveApi, job: LeasedJob) -> None:
    """Browsers send the last event's id as `Last-Event-ID`."""
    job.lease()
    job_ledger.fail(api.database, job.job_id, leases.LostLease())
    everything = list(api.client.events(job.job_id, follow=False))
    assert len(everything) >= 4
    headers = {"Last-Event-ID": str(everything[1]["id"])}
    answer = api.http.get(f"/v1/jobs/{job.job_id}/events", headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    messages = list(read_events(answer))
    assert [message.id for message in messages[:-1]] == [event["id"] for event in everything[2:]]
    assert [message.name for message in messages] == [event["name"] for event in everything[2:]] + ["end"]
    assert list(api.client.events(job.job_id, after=everything[1]["id"])) == everything[2:]
    bad = api.http.get(f"/v1/jobs/{job.job_id}/events", headers={"Last-Event-ID": "x"})
    assert bad.status_code == 400


def test_events_come_in_pages_to_a_client_that_accepts_json(api: LiveApi, job: LeasedJob) -> None:
    path, headers = f"/v1/jobs/{job.job_id}/events", {"Accept": "application/json"}
    first = api.http.get(path, headers=headers, params={"limit": 1}).json()
    assert (first["object"], first["has_more"], len(first["data"])) == ("list", True, 1)
    assert first["first_id"] == first["last_id"] == first["data"][0]["id"]
    rest = api.http.get(path, headers=headers, params={"after": first["last_id"]}).json()
    assert ([event["name"] for event in rest["data"]], rest["has_more"]) == (["job.queued"], False)
    assert api.http.get("/v1/jobs/job_unknown/events").status_code == 404
    with pytest.raises(ApiError, match="no job"):
        list(api.client.events("job_unknown"))


def test_progress_has_each_change_of_the_counts_and_the_end(api: LiveApi, job: LeasedJob) -> None:
    thread, seen = in_background(api.client.watch(job.job_id))
    wait_until(lambda: bool(seen), "the job is told at once")
    assert (seen[0]["state"], seen[0]["counts"]["total"]) == ("queued", 2)
    job.lease()
    wait_until(lambda: seen[-1]["state"] == "running", "it runs")
    job_ledger.fail(api.database, job.job_id, leases.LostLease())
    thread.join(300)
    assert not thread.is_alive()
    assert (seen[-1]["state"], seen[-1]["error"]["code"]) == ("failed", "lost_lease")
    reported: list[dict[str, Any]] = []
    assert api.client.wait(job.job_id, reported.append) == seen[-1]
    assert reported == [seen[-1]]


def test_a_wait_that_is_too_long_ends_and_the_job_goes_on(api: LiveApi, job: LeasedJob) -> None:
    with pytest.raises(TimeoutError):
        api.client.wait(job.job_id, timeout_seconds=0.2)
    assert job.job().state == JobState.QUEUED


def test_logs_are_paged_and_followed_to_the_last_line(api: LiveApi, job: LeasedJob) -> None:
    lease = job.lease()
    logs.append(api.database, lease, [(1.0, "loading"), (2.0, "a\u2028b\x00")], max_lines=100)
    thread, seen = in_background(api.client.logs(job.job_id, follow=True))
    wait_until(lambda: len(seen) == 2, "earlier lines come first")
    assert seen[1]["line"] == "a\u2028b\ufffd"
    assert (seen[0]["slot_id"], seen[0]["attempt"], seen[0]["lease_id"]) == ("slot-0", 1, lease.lease_id)
    job_ledger.fail(api.database, job.job_id, leases.LostLease())
    logs.append(api.database, lease, [(3.0, "the last words")], max_lines=100)
    wait_until(lambda: len(seen) == 3, "a line after the end is seen")
    assert thread.is_alive()
    leases.release(api.database, lease.lease_id, "done")
    thread.join(300)
    assert not thread.is_alive()
    assert list(api.client.logs(job.job_id)) == seen
    assert list(api.client.logs(job.job_id, after=seen[1]["id"])) == seen[2:]
    page = api.http.get(f"/v1/jobs/{job.job_id}/logs", params={"limit": 2}).json()
    assert (len(page["data"]), page["has_more"]) == (2, True)


def test_a_client_that_goes_away_frees_its_stream(
    api: LiveApi, job: LeasedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_stream, "_LONGEST_PAUSE_SECONDS", 0.02)
    other = LeasedJob(api.database, api.settings, tmp_path, [{"id": "a", "text": "a"}])
    looks: Counter[str] = Counter()

    def count(_connection: Any, _cursor: Any, _statement: str, parameters: Any, *_: Any) -> None:
        looks.update(job_id for job_id in (job.job_id, other.job_id) if job_id in str(parameters))

    def is_left_alone() -> bool:
        """Whether the job is never read while the stream of the other one reads many times."""
        before, later = looks[job.job_id], looks[other.job_id] + 100
        wait_until(lambda: looks[other.job_id] > later, "the stream that stays goes on")
        return looks[job.job_id] == before

    event.listen(api.database.engine, "before_cursor_execute", count)
    with streaming(api, other):
        with streaming(api, job):
            wait_until(lambda: looks[job.job_id] > 100, "the stream asks the database again and again")
            assert not is_left_alone()
        wait_until(is_left_alone, "nobody asks the database any more")


@contextmanager
def streaming(api: LiveApi, job: LeasedJob) -> Iterator[None]:
    """A client that follows a job's events inside the block."""
    headers = {"Authorization": f"Bearer {api.key}"}
    with httpx.stream(
        "GET", f"{api.url}/v1/jobs/{job.job_id}/events", headers=headers, timeout=300, trust_env=False
    ) as stream:
        blocks = stream.iter_raw()  # kept to the end: an iterator that goes away closes the connection
        next(blocks)
        yield


def test_entries_that_show_themselves_late_are_given_all_the_same() -> None:
    """PostgreSQL gives an entry its id when it is written and shows it when it is committed."""
    visible = [1, 2, 4]
    tail = Tail(after=0, settle_seconds=5.0)

    def more(now: float) -> list[int]:
        floor = tail.floor(now)
        return [entry.id for entry in tail.take([Message(each, b"") for each in sorted(visible) if each > floor], now)]

    assert more(0.0) == [1, 2, 4]
    visible.append(3)
    assert more(1.0) == [3]
    assert more(2.0) == []
    visible.append(5)
    assert more(100.0) == [5]
    assert more(200.0) == []


def test_a_history_longer_than_a_page_is_given_whole(api: LiveApi, job: LeasedJob) -> None:
    lease = job.lease()
    lines = [(float(number), f"line {number}") for number in range(2500)]
    logs.append(api.database, lease, lines, max_lines=10_000)
    leases.release(api.database, lease.lease_id, "done")
    job_ledger.fail(api.database, job.job_id, leases.LostLease())
    assert [line["line"] for line in api.client.logs(job.job_id, follow=True)] == [text for _, text in lines]
    assert [line["line"] for line in api.client.logs(job.job_id)] == [text for _, text in lines]


@pytest.mark.parametrize("noun", ["events", "logs"])
def test_a_page_of_long_entries_ends_early_and_goes_on(api: LiveApi, job: LeasedJob, noun: str) -> None:
    lease = job.lease()
    text = "\x01" * (LONGEST_ENTRY_CHARACTERS + 1)  # six bytes of JSON for each character
    logs.append(api.database, lease, [(float(number), text) for number in range(300)], max_lines=10_000)
    with api.database.write() as session:
        for number in range(300):
            session.record(job.job_id, "job.notice", code=str(number), message=text)
    job_ledger.fail(api.database, job.job_id, leases.LostLease())
    leases.release(api.database, lease.lease_id, "done")
    parts, after, has_more = [], 0, True
    while has_more:
        headers = {"Accept": "application/json"}
        answer = api.http.get(f"/v1/jobs/{job.job_id}/{noun}?limit=1000&after={after}", headers=headers)
        assert len(answer.content) < pages.PAGE_BYTES + 2 * 6 * LONGEST_ENTRY_CHARACTERS
        parts.append(answer.json()["data"])
        after, has_more = answer.json()["last_id"], answer.json()["has_more"]
    assert len(parts) == 2
    whole = [entry for entries in parts for entry in entries]
    assert len(whole) >= 300
    assert list(getattr(api.client, noun)(job.job_id, follow=True)) == whole
    assert list(getattr(api.client, noun)(job.job_id, follow=False)) == whole
