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
from jobs.ledger.records import webhooks
from jobs.specs.inference import parse_spec
from tests.conftest import RedisServer, wait_until
from tests.support.ledger import expire_delivery_claims, expire_leader_lock
from tests.support.live_scheduler import LiveScheduler, start_process
from tests.support.receiver import Receiver, receiver

SPEC = {"task": "embeddings", "model": "org/model", "input": {"path": "rows.jsonl"}}


class WebhookScheduler(LiveScheduler):
    """The scheduler, with webhooks that announce its jobs."""

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
        """Wait until `num_deliveries` of its deliveries have ended, and return these."""

        def ended() -> list[WebhookDelivery]:
            return [delivery for delivery in self.log(webhook_id) if delivery.ended_at is not None]

        wait_until(lambda: len(ended()) >= num_deliveries, lambda: f"the end of {self.log(webhook_id)}")
        return ended()


@pytest.fixture
def system(settings: Settings, database: Database, redis_server: RedisServer) -> Iterator[WebhookScheduler]:
    """One on each database, whose webhooks may go to 127.0.0.1 and are retried at once."""
    changes: dict[str, Any] = {
        "database_url": database.url.render_as_string(hide_password=False),
        "redis_url": redis_server.url,
        "sweep_seconds": 0.2,
        "webhook_private_hosts": ["127.0.0.1"],
        "webhook_retry_seconds": 0.1,
        "webhook_retry_max_seconds": 0.2,
        "webhook_attempts": 5,
        "webhook_timeout_seconds": 600.0,  # a try that timed out, or was cut off with the lead, would be made again
        "leader_seconds": 600.0,
    }
    system = WebhookScheduler(settings.model_copy(update=changes), database)
    yield system
    system.close()


class HeldResponse:
    """Sends no response until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        self.released.wait(300)


@pytest.fixture
def held() -> Iterator[HeldResponse]:
    """Released at the end of the test, also of one that fails."""
    made = HeldResponse()
    yield made
    made.released.set()


def ids(hooks: Receiver) -> list[str]:
    """Delivery ids of the requests that it received, in order."""
    return [got.delivery_id for got in hooks.received]


def test_a_delivery_succeeds_after_its_receiver_failed_first(system: WebhookScheduler) -> None:
    with receiver(500, 503, 200) as hooks:
        webhook_id = system.webhook(hooks.url)
        system.service().start()
        job_id = system.end_a_job()
        (delivery,) = system.wait_for_end(webhook_id)
        assert (delivery.state, delivery.attempts, delivery.status_code) == (DeliveryState.DELIVERED, 3, 200)
        assert ids(hooks) == [delivery.id] * 3
        assert {got.body for got in hooks.received} == {delivery.body.encode()}
        assert job_id in delivery.body


def test_a_receiver_that_starts_late_gets_every_event(system: WebhookScheduler) -> None:
    with receiver() as hooks:
        url, port = hooks.url, hooks.port
    system.settings = system.settings.model_copy(update={"webhook_attempts": 1000})
    webhook_id = system.webhook(url)
    system.service().start()
    jobs = [system.end_a_job() for _ in range(10)]
    wait_until(lambda: all(delivery.error for delivery in system.log(webhook_id)), "all are tried")
    assert {delivery.error for delivery in system.log(webhook_id)} == {"no response: connection refused"}
    with receiver(200, port=port) as hooks:
        deliveries = system.wait_for_end(webhook_id, 10)
        assert {delivery.state for delivery in deliveries} == {DeliveryState.DELIVERED}
        assert sorted(ids(hooks)) == sorted(delivery.id for delivery in deliveries)
        assert all(any(job_id in got.body.decode() for got in hooks.received) for job_id in jobs)


def test_a_receiver_that_never_answers_delays_no_other(system: WebhookScheduler, held: HeldResponse) -> None:
    system.settings = system.settings.model_copy(update={"webhook_timeout_seconds": 3600.0})
    with receiver(held) as dead, receiver(200) as hooks:
        system.webhook(dead.url)
        system.service().start()
        system.end_a_job()
        dead.wait(1)
        webhook_id = system.webhook(hooks.url)
        for _ in range(20):
            system.end_a_job()
        system.wait_for_end(webhook_id, 20)
        assert len(dead.received) == 1, "it still has its first request, and is sent nothing beside it"
        assert not held.released.is_set()


def test_a_delivery_that_is_refused_delays_no_other_to_the_same_receiver(system: WebhookScheduler) -> None:

    def picky(handler: BaseHTTPRequestHandler) -> None:
        poison = handler.headers["webhook-id"] == hooks.received[0].delivery_id
        handler.send_response(422 if poison else 200)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    system.settings = system.settings.model_copy(update={"webhook_attempts": 1000})
    with receiver(picky) as hooks:
        webhook_id = system.webhook(hooks.url)
        system.service().start()
        system.end_a_job()
        hooks.wait(1)
        for _ in range(5):
            system.end_a_job()
        system.wait_for_end(webhook_id, 5)
        poisoned = next(delivery for delivery in system.log(webhook_id) if delivery.id == ids(hooks)[0])
        assert (poisoned.state, poisoned.error) == (DeliveryState.PENDING, "HTTP status 422")


def test_a_delivery_that_always_fails_is_given_up(system: WebhookScheduler) -> None:
    with receiver(500) as failing, receiver(410) as gone:
        of_failing, of_gone = system.webhook(failing.url), system.webhook(gone.url)
        system.service().start()
        system.end_a_job()
        (given_up,) = system.wait_for_end(of_failing)
        assert (given_up.state, given_up.attempts, len(failing.received)) == (DeliveryState.FAILED, 5, 5)
        assert given_up.error == "HTTP status 500 (tried 5 times)"
        (delivery,) = system.wait_for_end(of_gone)
        assert (delivery.state, delivery.attempts, len(gone.received)) == (DeliveryState.FAILED, 1, 1)


def test_a_url_that_is_not_allowed_any_more_gets_nothing(system: WebhookScheduler) -> None:
    with receiver(200) as hooks:
        webhook_id = system.webhook(hooks.url)
        system.settings = system.settings.model_copy(update={"webhook_private_hosts": []})
        system.service().start()
        system.end_a_job()
        (delivery,) = system.wait_for_end(webhook_id)
        assert (delivery.state, delivery.status_code) == (DeliveryState.FAILED, None)
        assert (
            delivery.error
            == "the host '127.0.0.1' has an address that is not public (setting webhook_private_hosts) (tried 5 times)"
        )
        assert hooks.received == []


def test_a_redirect_to_an_internal_service_is_not_followed(system: WebhookScheduler) -> None:
    with receiver(200, host="127.0.0.2") as inner:

        def redirect(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(308)
            handler.send_header("Location", inner.url)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        with receiver(redirect) as hooks:
            webhook_id = system.webhook(hooks.url)
            system.service().start()
            system.end_a_job()
            (delivery,) = system.wait_for_end(webhook_id)
            assert (delivery.state, delivery.status_code) == (DeliveryState.FAILED, 308)
            assert inner.received == []


def test_a_scheduler_killed_in_the_middle_of_a_delivery_is_followed(
    system: WebhookScheduler, held: HeldResponse
) -> None:
    with receiver(held, 200) as hooks:
        webhook_id = system.webhook(hooks.url)
        child = start_process(system.settings)
        try:
            system.end_a_job()
            hooks.wait(1)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        (cut_off,) = system.log(webhook_id)
        assert (cut_off.state, cut_off.attempts) == (DeliveryState.PENDING, 1)
        expire_delivery_claims(system.db)
        expire_leader_lock(system.db)
        system.service().start()
        (delivery,) = system.wait_for_end(webhook_id)
        assert (delivery.state, delivery.attempts) == (DeliveryState.DELIVERED, 2)
        assert ids(hooks) == [delivery.id, delivery.id]


def test_a_service_that_stops_does_not_wait_for_a_receiver(system: WebhookScheduler, held: HeldResponse) -> None:
    system.settings = system.settings.model_copy(update={"webhook_timeout_seconds": 20.0})
    with receiver(held, 200) as hooks:
        webhook_id = system.webhook(hooks.url)
        service = system.service()
        service.start()
        system.end_a_job()
        hooks.wait(1)
        service.stop()
        assert not held.released.is_set()
        assert [delivery.state for delivery in system.log(webhook_id)] == [DeliveryState.PENDING]
