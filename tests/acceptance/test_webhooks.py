"""Webhooks of a running stack: the unmodified SDK unwraps the event of its batch, also after a kill."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import openai
import psutil
import pytest

from tests.conftest import wait_until
from tests.support import tiny
from tests.support.batch_client import BatchClient, batch_client, embedding_lines
from tests.support.ledger import expire_delivery_claims, expire_leader_lock
from tests.support.receiver import Receiver, receiver
from tests.support.stack import QUICK, stack

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatchClient]:
    """A stack whose operator lets webhooks go to this machine, and the SDK pointed at it."""
    folder = tmp_path_factory.mktemp("webhooks")
    tiny.tiny_encoder(folder / "encoder")
    allowed = {"STOKER_WEBHOOK_PRIVATE_HOSTS": '["127.0.0.1"]', "STOKER_WEBHOOK_TIMEOUT_SECONDS": "600"}
    quick = {"STOKER_WEBHOOK_RETRY_SECONDS": "0.5", "STOKER_LEADER_SECONDS": "30", **QUICK}
    with stack(folder / "data", slots=1, **allowed, **quick) as running, batch_client(running, folder) as client:
        yield client


def log(sdk: BatchClient, webhook_id: str) -> list[dict[str, Any]]:
    """The delivery log as the command shows it."""
    entries: list[dict[str, Any]] = json.loads(sdk.stack.run("webhooks", "log", webhook_id, "--json").stdout)
    return entries


def wait_for_delivery(sdk: BatchClient, webhook_id: str) -> dict[str, Any]:
    """The one entry of the log, once it is delivered."""
    wait_until(
        lambda: [entry["state"] for entry in log(sdk, webhook_id)] == ["delivered"],
        lambda: f"the delivery of {log(sdk, webhook_id)}",
    )
    return log(sdk, webhook_id)[0]


def unwrapped(sdk: BatchClient, hooks: Receiver, secret: str) -> list[tuple[str, str]]:
    """What the SDK makes of all that the receiver was sent."""
    events = [sdk.client.webhooks.unwrap(got.body, got.headers, secret=secret) for got in hooks.received]
    return [(event.type, event.data.id) for event in events]


def test_the_sdk_gets_the_event_of_its_batch_and_unwraps_it(sdk: BatchClient) -> None:
    with receiver(500, 200) as hooks:
        made = json.loads(sdk.stack.run("webhooks", "create", hooks.url, "--json").stdout)
        batch = sdk.ended(sdk.create(sdk.upload(embedding_lines(sdk))))
        assert batch.status == "completed", batch
        hooks.wait(2)
        assert unwrapped(sdk, hooks, made["secret"]) == [("batch.completed", batch.id)] * 2
        delivery = wait_for_delivery(sdk, made["id"])
        assert {got.delivery_id for got in hooks.received} == {delivery["id"]}
        assert (delivery["attempts"], delivery["status_code"]) == (2, 200)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            unwrapped(sdk, hooks, "whsec_" + "A" * 43 + "=")
        logs = "".join(path.read_text() for path in (sdk.stack.data_dir / "logs").iterdir())
        assert made["secret"] not in logs
        assert hooks.url not in logs
        sdk.stack.run("webhooks", "delete", made["id"])


def test_a_scheduler_killed_before_a_delivery_loses_no_event(sdk: BatchClient) -> None:
    let_go = threading.Event()

    def hold(_handler: BaseHTTPRequestHandler) -> None:
        let_go.wait(300)

    with receiver(hold, 200) as hooks, contextlib.ExitStack() as at_last:
        at_last.callback(let_go.set)  # else a failing test would wait for the one that holds
        secret = sdk.stack.run("webhooks", "create", hooks.url, "--event", "batch.completed").stdout.strip()
        batch = sdk.create(sdk.upload(embedding_lines(sdk)))
        hooks.wait(1, 120.0)  # so the batch has ended, and its delivery has not
        for victim in sdk.stack.of_role("scheduler"):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
                victim.wait()  # else it could renew its lock once more
        with contextlib.closing(sdk.stack.database()) as db:  # what would take half an hour by itself
            expire_delivery_claims(db)
            expire_leader_lock(db)
        hooks.wait(2)
        let_go.set()
        assert {got.delivery_id for got in hooks.received[:2]} == {hooks.received[0].delivery_id}
        assert unwrapped(sdk, hooks, secret) == [("batch.completed", batch.id)] * len(hooks.received)
        wait_until(lambda: sdk.stack.of_role("scheduler"), "the API is there again")
        with sdk.stack.client() as client:
            (webhook,) = client.webhooks()
        delivery = wait_for_delivery(sdk, webhook["id"])
        assert delivery["id"] == hooks.received[0].delivery_id
        assert sdk.ended(batch).status == "completed"
