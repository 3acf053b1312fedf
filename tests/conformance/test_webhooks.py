"""Webhook verbs on both databases: an event is written with the change that it announces, and sent at least once."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import Session, col

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import DELIVERY_TRANSITIONS, BatchState, DeliveryState, JobState
from jobs.db.tables import Job, Webhook, WebhookDelivery
from jobs.errors import Conflict, MachineError, NotFound
from jobs.ledger import jobs as job_ledger
from jobs.ledger import overdue, slots
from jobs.ledger.groups import batch_ends, batches
from jobs.ledger.groups.batch_ends import BatchOutcome
from jobs.ledger.groups.batches import BatchCounts
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.ledger.records import webhooks
from jobs.ledger.records.webhooks import EVENT_TYPES, Sending
from jobs.retries import RetryPolicy
from jobs.specs.inference import parse_spec
from tests.support.clock import Clock
from tests.support.ledger import accepted, new_batch, set_job

POLICY = RetryPolicy(3, 10.0, 60.0)


@pytest.fixture
def clock(database: Database) -> Clock:
    """Set in place of the database's own."""
    made = Clock()
    database._clock = made
    return made


def make(db: Database, *events: str, project: str = "p") -> Webhook:
    """A webhook."""
    return webhooks.create(db, "https://hooks.test/x", events=events, project=project)


def log(db: Database, webhook: Webhook) -> list[WebhookDelivery]:
    """Its deliveries, oldest first."""
    with db.read() as session:
        return webhooks.deliveries(session, webhook.id, limit=100)[0][::-1]


def announced(db: Database, webhook: Webhook) -> list[tuple[str, str]]:
    """Event type and subject id of each delivery of the webhook."""
    return [(delivery.type, json.loads(delivery.body)["data"]["id"]) for delivery in log(db, webhook)]


def due(db: Database) -> list[str]:
    """Webhooks that something is due to."""
    with db.read() as session:
        return webhooks.due(session)


def claim(db: Database, webhook: Webhook) -> Sending:
    """A try that must be there."""
    sending = webhooks.claim(db, webhook.id, max_attempts=3, claim_seconds=30)
    assert sending is not None
    return sending


def job(db: Database, **fields: Any) -> str:
    """A job of project `p` that is validating."""
    document = {"task": "embeddings", "model": "org/model", "input": {"path": "rows.jsonl"}, **fields}
    return job_ledger.submit(db, parse_spec(document), project="p").id


# -- webhooks ------------------------------------------------------------------------------------------------------


def test_a_webhook_has_a_secret_of_its_own(database: Database) -> None:
    """A secret that can be guessed signs anybody's lies."""
    first, second = make(database, "batch.completed", "batch.completed"), make(database)
    keys = [base64.b64decode(webhook.secret.removeprefix("whsec_"), validate=True) for webhook in (first, second)]
    assert [len(key) for key in keys] == [32, 32]
    assert keys[0] != keys[1]
    assert (first.events, second.events) == (["batch.completed"], [])


def test_lists_are_newest_first_and_by_project(database: Database) -> None:
    """A page must neither repeat nor skip a webhook."""
    made = [make(database).id for _ in range(5)]
    other = make(database, project="q").id
    for project, wanted in (("p", made[::-1]), (None, [other, *made[::-1]])):
        seen: list[str] = []
        has_more, after = True, None
        while has_more:
            with database.read() as session:
                page, has_more = webhooks.list_webhooks(session, project=project, after=after, limit=2)
            seen += [webhook.id for webhook in page]
            after = seen[-1]
        assert seen == wanted


def test_a_project_has_only_so_many(database: Database) -> None:
    """Each event is sent to all of them: one key could turn this host against a receiver."""
    for _ in range(100):
        make(database)
    with pytest.raises(Conflict):
        make(database)
    make(database, project="q")


def test_a_deleted_webhook_gets_no_more_events(database: Database) -> None:
    """Its owner has no use for it, and may have no host any more."""
    webhook, other = make(database), make(database)
    job_ledger.cancel(database, job(database))
    sending = claim(database, webhook)
    webhooks.delete(database, webhook.id)
    assert log(database, webhook) == []
    assert due(database) == [other.id]
    assert webhooks.claim(database, webhook.id, max_attempts=3, claim_seconds=30) is None
    for record in (
        lambda: webhooks.record_delivered(database, sending, 200),
        lambda: webhooks.record_failed(database, sending, MachineError("no"), POLICY),
    ):
        with pytest.raises(Conflict):
            record()
    for verb in (webhooks.delete, webhooks.announce_test):
        with pytest.raises(NotFound):
            verb(database, webhook.id)
    with database.read() as session, pytest.raises(NotFound):
        webhooks.get(session, webhook.id)


def test_a_delivery_written_while_its_webhook_is_deleted_goes_too(database: Database) -> None:
    """Such a delivery would stay due for ever."""
    webhook = make(database)
    deleting = threading.Thread(target=webhooks.delete, args=(database, webhook.id))
    with database.write() as session:
        webhooks.announce(session, "job.failed", "job_1", project="p")
        deleting.start()
        deleting.join(0.3)
        assert deleting.is_alive(), "the deletion did not wait for the event"
    deleting.join()
    with database.read() as session:
        assert session.scalars(select(WebhookDelivery)).all() == []


# -- events --------------------------------------------------------------------------------------------------------


def end_batch(db: Database, state: BatchState) -> str:
    """A batch of project `p` that has come to this end, through the verbs."""
    if state == BatchState.FAILED:
        batch = batches.create(db, new_batch(), project="p")
        batches.reject(db, batch.id, [])
        return batch.id
    batch = accepted(db, 1)
    if state == BatchState.CANCELLED:
        batches.cancel(db, batch.id)
    with db.read() as session:
        (only,) = batches.jobs_of(session, batch.id)
    job_ledger.cancel(db, only.id)
    batch_ends.begin_finalizing(db, batch.id)
    batch_ends.end(db, batch.id, BatchOutcome(state, BatchCounts(1, 0, 0), None, None), default_seconds=60)
    return batch.id


@pytest.mark.parametrize("state", [state for state in BatchState if state.is_terminal])
def test_each_end_of_a_batch_is_announced_once_to_its_project(database: Database, state: BatchState) -> None:
    """This event exists in the hosted service as well; the ends of the batch's jobs are not announced."""
    webhook, picky, other = make(database), make(database, "job.completed"), make(database, project="q")
    batch_id = end_batch(database, state)
    assert announced(database, webhook) == [(f"batch.{state}", batch_id)]
    assert announced(database, picky) == announced(database, other) == []
    (delivery,) = log(database, webhook)
    event = json.loads(delivery.body)
    assert set(event) == {"id", "object", "created_at", "type", "data"}
    assert (event["object"], event["type"], event["data"]) == ("event", f"batch.{state}", {"id": batch_id})
    assert isinstance(event["created_at"], int)
    assert (delivery.state, delivery.attempts) == (DeliveryState.PENDING, 0)


def test_a_batch_cancelled_before_it_is_read_is_announced_too(database: Database) -> None:
    """It ends in another verb than all others."""
    webhook = make(database)
    batch = batches.create(database, new_batch(), project="p")
    batches.cancel(database, batch.id)
    assert announced(database, webhook) == [("batch.cancelled", batch.id)]


def completed(db: Database, settings: Settings) -> str:
    """A job that has completed."""
    job_id = job(db)
    set_job(db, job_id, state=JobState.FINALIZING)
    job_ledger.complete(db, job_id, [])
    return job_id


def failed(db: Database, settings: Settings) -> str:
    """A job that an error has ended."""
    job_id = job(db)
    assert job_ledger.fail(db, job_id, MachineError("no"))
    assert not job_ledger.fail(db, job_id, MachineError("no"))
    return job_id


def cancelled(db: Database, settings: Settings) -> str:
    """A job that was cancelled while it waited."""
    job_id = job(db)
    job_ledger.cancel(db, job_id)
    return job_id


def cancelled_at_work(db: Database, settings: Settings) -> str:
    """A job that was cancelled while a slot worked on it, and has ended with the return of its lease."""
    job_id = job(db)
    set_job(db, job_id, state=JobState.QUEUED)
    slots.register(db, [slots.SlotInfo("s", "host", "cpu", None, "CPU", 0, 1)])
    slots.enter(db, "s", "worker", settings)
    (lease_id,) = grants.grant(db, Grant(job_id, ("s",)), lease_seconds=60)
    assert leases.activate(db, lease_id, "worker", lease_seconds=60) is not None
    assert job_ledger.cancel(db, job_id).state == JobState.CANCELLING
    leases.release(db, lease_id, "cancelled")
    return job_id


def expired(db: Database, settings: Settings) -> str:
    """A job whose time limit has passed."""
    job_id = job(db)
    set_job(db, job_id, deadline_at=1.0)
    assert overdue.expire_overdue(db) == [job_id]
    return job_id


@pytest.mark.parametrize("end", [completed, failed, cancelled, cancelled_at_work, expired])
def test_each_end_of_a_job_is_announced_once_to_its_project(
    database: Database, settings: Settings, end: Callable[[Database, Settings], str]
) -> None:
    """A program that waits for the event would wait for ever if one kind of end had none."""
    webhook, other = make(database), make(database, project="q")
    job_id = end(database, settings)
    state = end.__name__.removesuffix("_at_work")
    assert announced(database, webhook) == [(f"job.{state}", job_id)]
    assert announced(database, other) == []
    with database.read() as session:
        assert session.get_one(Job, job_id).state == state


def test_an_event_stands_if_and_only_if_its_change_does(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise an end could be announced that was rolled back, or one could go unannounced."""
    webhook = make(database)
    job_id = job(database)

    def broken(session: Session, *_: Any) -> None:
        raise RuntimeError("the process dies here")

    with monkeypatch.context() as patch:
        patch.setattr(Session, "refresh", broken)  # the last thing that a cancel does
        with pytest.raises(RuntimeError):
            job_ledger.cancel(database, job_id)
    assert announced(database, webhook) == []
    with monkeypatch.context() as patch:
        patch.setattr(webhooks, "_add_deliveries", broken)
        with pytest.raises(RuntimeError):
            job_ledger.cancel(database, job_id)
    with database.read() as session:
        assert session.get_one(Job, job_id).state == JobState.VALIDATING
    job_ledger.cancel(database, job_id)
    assert announced(database, webhook) == [("job.cancelled", job_id)]


def test_the_types_of_events_are_these() -> None:
    """Programs compare them with words of their own."""
    ends = {"completed", "failed", "expired", "cancelled"}
    assert set(EVENT_TYPES) == {f"{noun}.{end}" for noun in ("batch", "job") for end in ends}


def test_one_event_is_one_to_all_webhooks_and_each_delivery_its_own(database: Database) -> None:
    """A receiver behind two webhooks knows the event by its id, and each delivery by its own."""
    first, second = make(database), make(database, "job.cancelled", "job.failed")
    job_ledger.cancel(database, job(database))
    (one,), (two,) = log(database, first), log(database, second)
    assert one.body == two.body
    assert one.id != two.id


# -- deliveries ----------------------------------------------------------------------------------------------------


def test_a_delivery_is_claimed_by_one_and_ends_once(database: Database, clock: Clock) -> None:
    """Otherwise two schedulers would send everything twice."""
    webhook = make(database)
    assert webhooks.claim(database, webhook.id, max_attempts=3, claim_seconds=30) is None
    job_ledger.cancel(database, job(database))
    assert due(database) == [webhook.id]
    sending = claim(database, webhook)
    (delivery,) = log(database, webhook)
    assert sending == Sending(delivery.id, webhook.id, 1, webhook.url, webhook.secret, delivery.body, at=clock.time)
    assert due(database) == []
    assert webhooks.claim(database, webhook.id, max_attempts=3, claim_seconds=30) is None
    webhooks.record_delivered(database, sending, 202)
    for record in (
        lambda: webhooks.record_delivered(database, sending, 200),
        lambda: webhooks.record_failed(database, sending, MachineError("no"), POLICY),
    ):
        with pytest.raises(Conflict):
            record()
    (delivery,) = log(database, webhook)
    assert (delivery.state, delivery.attempts, delivery.status_code) == (DeliveryState.DELIVERED, 1, 202)
    assert (delivery.ended_at, delivery.error) == (clock.time, None)
    clock.time += 1_000
    assert due(database) == []


def test_a_claim_whose_holder_died_runs_out(database: Database, clock: Clock) -> None:
    """A delivery must survive its killed sender; one that comes back must not undo the work of its successor."""
    webhook = make(database)
    job_ledger.cancel(database, job(database))
    dead = claim(database, webhook)
    clock.time += 29
    assert due(database) == []
    clock.time += 1
    assert due(database) == [webhook.id]
    following = claim(database, webhook)
    assert (following.delivery_id, following.body) == (dead.delivery_id, dead.body)
    assert (dead.attempt, following.attempt) == (1, 2)
    with pytest.raises(Conflict):
        webhooks.record_failed(database, dead, MachineError("no"), POLICY)
    webhooks.record_delivered(database, following, 200)
    assert [delivery.state for delivery in log(database, webhook)] == [DeliveryState.DELIVERED]


def test_a_delivery_that_kills_its_senders_is_given_up(database: Database, clock: Clock) -> None:
    """It would kill one scheduler after the other, and no event behind it would ever be sent."""
    webhook = make(database)
    job_ledger.cancel(database, job(database))
    for _ in range(3):
        poison = claim(database, webhook)
        clock.time += 30
    behind = webhooks.announce_test(database, webhook.id)
    assert claim(database, webhook).delivery_id == behind.id
    given_up, _ = log(database, webhook)
    assert given_up.id == poison.delivery_id
    assert (given_up.state, given_up.attempts, given_up.ended_at) == (DeliveryState.FAILED, 3, clock.time)
    assert given_up.error == "interrupted (tried 3 times)"


def test_a_failed_try_waits_longer_each_time_until_it_is_given_up(database: Database, clock: Clock) -> None:
    """A receiver that is down for an hour must miss nothing; one that is gone must not be tried for ever."""
    webhook = make(database)
    job_ledger.cancel(database, job(database))
    for attempt, least, most in ((1, 5.0, 10.0), (2, 10.0, 20.0)):
        sending = claim(database, webhook)
        webhooks.record_failed(database, sending, MachineError("answered 500"), POLICY, status_code=500)
        (delivery,) = log(database, webhook)
        assert (delivery.state, delivery.attempts) == (DeliveryState.PENDING, attempt)
        assert (delivery.status_code, delivery.error) == (500, "answered 500")
        assert least <= delivery.not_before - clock.time <= most
        assert due(database) == []
        clock.time += most
        assert due(database) == [webhook.id]
    webhooks.record_failed(database, claim(database, webhook), MachineError("no answer"), POLICY)
    (delivery,) = log(database, webhook)
    assert (delivery.state, delivery.attempts, delivery.status_code) == (DeliveryState.FAILED, 3, None)
    assert (delivery.error, delivery.ended_at) == ("no answer (tried 3 times)", clock.time)
    clock.time += 1_000
    assert due(database) == []


def test_a_receiver_that_is_away_is_away_for_all_that_is_due(database: Database, clock: Clock) -> None:
    """Deliveries to a dead receiver must not pile up one try each; one that is refused must not delay the rest."""
    webhook, other = make(database), make(database)
    for _ in range(3):
        clock.time += 1
        job_ledger.cancel(database, job(database))
    first = claim(database, webhook)
    webhooks.record_failed(database, first, MachineError("answered 500"), POLICY, status_code=500)
    assert [delivery.attempts for delivery in log(database, webhook)] == [1, 0, 0]
    second = claim(database, webhook)
    assert second.delivery_id != first.delivery_id
    webhooks.record_failed(database, second, MachineError("no answer"), POLICY)
    assert [delivery.attempts for delivery in log(database, webhook)] == [1, 1, 1]
    assert due(database) == [other.id]
    clock.time += 60
    assert due(database) == [other.id, webhook.id], "the one that has waited longest comes first"


def test_a_test_event_is_sent_to_a_webhook_of_any_events(database: Database) -> None:
    """A user must be able to try a webhook without a job."""
    webhook, other = make(database, "batch.failed"), make(database)
    delivery = webhooks.announce_test(database, webhook.id)
    assert announced(database, webhook) == [("webhook.test", webhook.id)]
    assert claim(database, webhook).delivery_id == delivery.id
    assert log(database, other) == []


def test_the_log_is_newest_first_and_pages(database: Database) -> None:
    """A page must neither repeat nor skip a delivery."""
    webhook, other = make(database), make(database)
    made = [webhooks.announce_test(database, webhook.id).id for _ in range(5)]
    foreign = webhooks.announce_test(database, other.id).id
    seen: list[str] = []
    has_more, after = True, None
    while has_more:
        with database.read() as session:
            page, has_more = webhooks.deliveries(session, webhook.id, after=after, limit=2)
        seen += [delivery.id for delivery in page]
        after = seen[-1]
    assert seen == made[::-1]
    with database.read() as session, pytest.raises(NotFound):
        webhooks.deliveries(session, webhook.id, after=foreign)


def test_many_senders_claim_each_delivery_once(database: Database) -> None:
    """A failover must not turn every event into two."""
    webhook = make(database)
    made = {webhooks.announce_test(database, webhook.id).id for _ in range(20)}
    claimed: list[str] = []

    def take() -> None:
        while (sending := webhooks.claim(database, webhook.id, max_attempts=3, claim_seconds=30)) is not None:
            claimed.append(sending.delivery_id)
            webhooks.record_delivered(database, sending, 200)

    senders = [threading.Thread(target=take) for _ in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert sorted(claimed) == sorted(made)


def test_the_verbs_keep_to_the_transition_table(database: Database) -> None:
    """The documentation shows this table."""
    webhook = make(database)
    for _ in range(2):
        webhooks.announce_test(database, webhook.id)
    assert {delivery.state for delivery in log(database, webhook)} == {DeliveryState.PENDING}
    webhooks.record_delivered(database, claim(database, webhook), 200)
    webhooks.record_failed(database, claim(database, webhook), MachineError("no"), RetryPolicy(1, 1.0, 1.0))
    assert {delivery.state for delivery in log(database, webhook)} == DELIVERY_TRANSITIONS[DeliveryState.PENDING]
    with database.write() as session:
        session.execute(update(WebhookDelivery).values(not_before=0.0).where(col(WebhookDelivery.attempts) == 1))
    assert due(database) == []
