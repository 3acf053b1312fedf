"""The scheduler's part in webhooks, with real receivers: failing, hanging, refusing ones, and a kill in the middle."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import DeliveryState
from jobs.db.tables import WebhookDelivery
from jobs.errors import Conflict
from jobs.ledger import jobs as job_ledger
from jobs.ledger import webhooks
from jobs.specs.inference import parse_spec
from tests.conftest import RedisServer, wait_until
from tests.support.live_scheduler import LiveScheduler, start_process
from tests.support.receiver import Receiver, receiver

SPEC = {"task": "embeddings", "model": "org/model", "input": {"path": "rows.jsonl"}}


class Office(LiveScheduler):
    """A house whose jobs are told of."""

    def webhook(self, url: str, *events: str) -> str:
        """The id of a new webhook."""
        return webhooks.create(self.db, url, events=events, project="default").id

    def end_a_job(self) -> str:
        """The id of a job that has just ended."""
        job_id = job_ledger.submit(self.db, parse_spec(SPEC)).id
        with contextlib.suppress(Conflict):  # the planner has found already that there is no input
            job_ledger.cancel(self.db, job_id)
        self.doorbell.wake()
        return job_id

    def log(self, webhook_id: str) -> list[WebhookDelivery]:
        """A webhook's deliveries, oldest first."""
        with self.db.read() as session:
            return webhooks.deliveries(session, webhook_id, limit=100)[0][::-1]

    def wait_for_end(self, webhook_id: str, num_deliveries: int = 1) -> list[WebhookDelivery]:
        """Its deliveries once so many have ended."""

        def ended() -> list[WebhookDelivery]:
            return [delivery for delivery in self.log(webhook_id) if delivery.ended_at is not None]

        wait_until(lambda: len(ended()) >= num_deliveries, lambda: f"the end of {self.log(webhook_id)}")
        return ended()


@pytest.fixture
def office(settings: Settings, database: Database, redis_server: RedisServer) -> Iterator[Office]:
    """One on each database, with an operator who allows 127.0.0.1, and retries at once."""
    changes: dict[str, Any] = {
        "database_url": database.url.render_as_string(hide_password=False),
        "redis_url": redis_server.url,
        "sweep_seconds": 0.2,
        "webhook_private_hosts": ["127.0.0.1"],
        "webhook_retry_seconds": 0.1,
        "webhook_retry_max_seconds": 0.2,
        "webhook_attempts": 5,
    }
    house = Office(settings.model_copy(update=changes), database)
    yield house
    house.close()


class Holding:
    """Keeps a request without an answer until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        self.let_go.wait(300)


@pytest.fixture
def holding() -> Iterator[Holding]:
    """Let go at the end."""
    made = Holding()
    yield made
    made.let_go.set()


def ids(hooks: Receiver) -> list[str]:
    """The ids of what it was sent, in order."""
    return [got.delivery_id for got in hooks.received]


def test_a_receiver_that_fails_first_is_told_in_the_end(office: Office) -> None:
    with receiver(500, 503, 200) as hooks:
        webhook_id = office.webhook(hooks.url)
        office.service().start()
        job_id = office.end_a_job()
        (delivery,) = office.wait_for_end(webhook_id)
        assert (delivery.state, delivery.attempts, delivery.status_code) == (DeliveryState.DELIVERED, 3, 200)
        assert ids(hooks) == [delivery.id] * 3
        assert {got.body for got in hooks.received} == {delivery.body.encode()}
        assert job_id in delivery.body


def test_a_receiver_that_is_started_late_is_told_everything(office: Office) -> None:
    with receiver() as hooks:
        url, port = hooks.url, hooks.port
    office.settings = office.settings.model_copy(update={"webhook_attempts": 1000})
    webhook_id = office.webhook(url)
    office.service().start()
    jobs = [office.end_a_job() for _ in range(10)]
    wait_until(lambda: all(delivery.error for delivery in office.log(webhook_id)), "all are tried")
    assert {delivery.error for delivery in office.log(webhook_id)} == {"no answer: connection refused"}
    with receiver(200, port=port) as hooks:
        deliveries = office.wait_for_end(webhook_id, 10)
        assert {delivery.state for delivery in deliveries} == {DeliveryState.DELIVERED}
        assert sorted(ids(hooks)) == sorted(delivery.id for delivery in deliveries)
        assert all(any(job_id in got.body.decode() for got in hooks.received) for job_id in jobs)


def test_a_receiver_that_never_answers_delays_no_other(office: Office, holding: Holding) -> None:
    office.settings = office.settings.model_copy(update={"webhook_timeout_seconds": 60.0})
    with receiver(holding) as dead, receiver(200) as hooks:
        office.webhook(dead.url)
        office.service().start()
        office.end_a_job()
        dead.wait(1)
        webhook_id = office.webhook(hooks.url)
        for _ in range(20):
            office.end_a_job()
        office.wait_for_end(webhook_id, 20)
        assert len(dead.received) == 1, "it still has its first request, and is sent nothing beside it"
        assert not holding.let_go.is_set()


def test_a_delivery_that_is_refused_delays_no_other_to_the_same_receiver(office: Office) -> None:

    def picky(handler: BaseHTTPRequestHandler) -> None:
        poison = handler.headers["webhook-id"] == hooks.received[0].delivery_id
        handler.send_response(422 if poison else 200)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    office.settings = office.settings.model_copy(update={"webhook_attempts": 1000})
    with receiver(picky) as hooks:
        webhook_id = office.webhook(hooks.url)
        office.service().start()
        office.end_a_job()
        hooks.wait(1)
        for _ in range(5):
            office.end_a_job()
        office.wait_for_end(webhook_id, 5)
        poisoned = next(delivery for delivery in office.log(webhook_id) if delivery.id == ids(hooks)[0])
        assert (poisoned.state, poisoned.error) == (DeliveryState.PENDING, "answered 422")


def test_what_is_never_taken_is_given_up(office: Office) -> None:
    with receiver(500) as failing, receiver(410) as gone:
        of_failing, of_gone = office.webhook(failing.url), office.webhook(gone.url)
        office.service().start()
        office.end_a_job()
        (given_up,) = office.wait_for_end(of_failing)
        assert (given_up.state, given_up.attempts, len(failing.received)) == (DeliveryState.FAILED, 5, 5)
        assert given_up.error == "answered 500 (tried 5 times)"
        (told,) = office.wait_for_end(of_gone)
        assert (told.state, told.attempts, len(gone.received)) == (DeliveryState.FAILED, 1, 1)


def test_what_is_not_allowed_any_more_is_not_sent(office: Office) -> None:
    with receiver(200) as hooks:
        webhook_id = office.webhook(hooks.url)
        office.settings = office.settings.model_copy(update={"webhook_private_hosts": []})
        office.service().start()
        office.end_a_job()
        (delivery,) = office.wait_for_end(webhook_id)
        assert (delivery.state, delivery.status_code) == (DeliveryState.FAILED, None)
        assert delivery.error == "the host '127.0.0.1' is not a public one (tried 5 times)"
        assert hooks.received == []


def test_a_redirect_to_an_inner_service_leads_nowhere(office: Office) -> None:
    with receiver(200, host="127.0.0.2") as inner:

        def redirect(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(308)
            handler.send_header("Location", inner.url)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        with receiver(redirect) as hooks:
            webhook_id = office.webhook(hooks.url)
            office.service().start()
            office.end_a_job()
            (delivery,) = office.wait_for_end(webhook_id)
            assert (delivery.state, delivery.status_code) == (DeliveryState.FAILED, 308)
            assert inner.received == []


def test_a_scheduler_killed_in_the_middle_of_a_delivery_is_followed(office: Office, holding: Holding) -> None:
    changes = {"webhook_timeout_seconds": 2.0, "leader_seconds": 2.0}
    office.settings = office.settings.model_copy(update=changes)
    with receiver(holding, 200) as hooks:
        webhook_id = office.webhook(hooks.url)
        child = start_process(office.settings)
        try:
            office.end_a_job()
            hooks.wait(1)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        (cut_off,) = office.log(webhook_id)
        assert (cut_off.state, cut_off.attempts) == (DeliveryState.PENDING, 1)
        office.service().start()
        (delivery,) = office.wait_for_end(webhook_id)
        assert (delivery.state, delivery.attempts) == (DeliveryState.DELIVERED, 2)
        assert ids(hooks) == [delivery.id, delivery.id]


def test_a_service_that_stops_does_not_wait_for_a_receiver(office: Office, holding: Holding) -> None:
    office.settings = office.settings.model_copy(update={"webhook_timeout_seconds": 20.0})
    with receiver(holding, 200) as hooks:
        webhook_id = office.webhook(hooks.url)
        service = office.service()
        service.start()
        office.end_a_job()
        hooks.wait(1)
        service.stop()
        assert not holding.let_go.is_set()
        assert [delivery.state for delivery in office.log(webhook_id)] == [DeliveryState.PENDING]
