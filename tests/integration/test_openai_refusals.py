"""The unmodified OpenAI SDK with refused requests: each status raises its exception; temporary refusals are retried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest

from jobs.config.limits import ProjectLimits
from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.ledger.accounts import usage
from scheduler.admin.keys import create_key
from tests.support.live_api import LiveApi, live_api
from tests.support.rows import json_lines

ROWS, BYTES, LARGEST = 10, 20_000, 8_000


class ProjectClients:
    """An API and SDK clients of its projects, whose answers are strictly checked."""

    def __init__(self, api: LiveApi, clients: ExitStack) -> None:
        self.api, self._clients = api, clients
        self.statuses: list[int] = []
        """Of every answer that a client got."""
        self.on_refusal: Callable[[], object] = lambda: None
        """Done at each 429, before the SDK acts on it."""

    def client(self, project: str, *, key: str | None = None, **options: Any) -> openai.OpenAI:
        """The SDK with a key of a project, or with another."""
        secret = key or create_key(self.api.database, "sdk", project=project).secret
        http = self._clients.enter_context(
            httpx.Client(event_hooks={"response": [self._note]}, timeout=300, trust_env=False)
        )
        return openai.OpenAI(
            base_url=f"{self.api.url}/v1", api_key=secret, http_client=http, _strict_response_validation=True, **options
        )

    def _note(self, response: httpx.Response) -> None:
        self.statuses.append(response.status_code)
        if response.status_code == 429:
            self.on_refusal()


@pytest.fixture
def clients(settings: Settings, sqlite_database: Database) -> Iterator[ProjectClients]:
    """Projects with limits: `mine`, `theirs`, and `quick`, whose rate is low."""
    limits = ProjectLimits(queued_rows=ROWS, upload_bytes=BYTES)
    projects = {"mine": limits, "theirs": limits, "quick": ProjectLimits(requests_per_second=3)}
    changed = {"projects": projects, "max_upload_bytes": LARGEST}
    with live_api(settings.model_copy(update=changed), sqlite_database) as api, ExitStack() as clients:
        yield ProjectClients(api, clients)


def upload(client: openai.OpenAI, num_lines: int, *, text: str = "x") -> str:
    """Upload a batch file of `num_lines` lines. Returns its id."""
    lines = [
        {"custom_id": f"c{number}", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": text}}
        for number in range(num_lines)
    ]
    content = json_lines(lines).encode()
    return client.files.create(file=("batch.jsonl", content), purpose="batch").id


def create(client: openai.OpenAI, file_id: str) -> openai.types.Batch:
    """A new batch."""
    return client.batches.create(input_file_id=file_id, endpoint="/v1/embeddings", completion_window="24h")


# -- refusals that stay -------------------------------------------------------------------------------------------


def test_an_invalid_key_is_an_authentication_error(clients: ProjectClients) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        clients.client("", key="sk-stranger").files.list()
    assert (refused.value.code, refused.value.type) == ("invalid_api_key", "authentication_error")
    assert clients.statuses == [401], "asked once"


def test_a_missing_or_foreign_id_is_a_not_found_error(clients: ProjectClients) -> None:
    mine, theirs = clients.client("mine"), clients.client("theirs")
    file_id = upload(theirs, 1)
    batch = create(theirs, file_id)
    for name in (file_id, "file_nothing"):
        asks: list[Callable[[], object]] = [
            lambda name=name: mine.files.retrieve(name),
            lambda name=name: mine.files.content(name),
            lambda name=name: mine.files.delete(name),
            lambda name=name: create(mine, name),
            lambda: mine.batches.retrieve(batch.id),
            lambda: mine.batches.cancel(batch.id),
        ]
        for ask in asks:
            with pytest.raises(openai.NotFoundError) as refused:
                ask()
            assert refused.value.code == "not_found"
    assert [file.id for file in mine.files.list()] == [batch.id for batch in mine.batches.list()] == []
    assert theirs.batches.retrieve(batch.id).status == "validating"


def test_a_conflict_is_not_tried_again(clients: ProjectClients) -> None:
    """The SDK repeats a 409 unless a header forbids it."""
    mine = clients.client("mine")
    file_id = upload(mine, 1)
    batch = create(mine, file_id)
    with pytest.raises(openai.ConflictError, match="still reads file"):
        mine.files.delete(file_id)
    assert mine.batches.cancel(batch.id).status == "cancelled"
    with pytest.raises(openai.ConflictError, match="has ended already"):
        mine.batches.cancel(batch.id)
    assert clients.statuses == [200, 200, 409, 200, 409]


def test_too_large_a_file_is_a_413_and_not_tried_again(clients: ProjectClients) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        upload(clients.client("mine"), 1, text="x" * LARGEST)
    assert (refused.value.status_code, refused.value.code) == (413, "too_large")
    assert clients.statuses == [413]


def test_a_batch_that_fits_into_no_queue_is_a_bad_request(clients: ProjectClients) -> None:
    mine = clients.client("mine")
    file_id = upload(mine, ROWS + 1)
    with pytest.raises(openai.BadRequestError, match="more than 10 rows") as refused:
        create(mine, file_id)
    assert (refused.value.code, refused.value.param) == ("too_many_rows", "input_file_id")
    assert "retry-after" not in refused.value.response.headers


# -- temporary refusals --------------------------------------------------------------------------------------------


def test_a_full_queue_is_a_rate_limit_error(clients: ProjectClients) -> None:
    mine = clients.client("mine", max_retries=0)
    create(mine, upload(mine, 8))
    with pytest.raises(openai.RateLimitError) as refused:
        create(mine, upload(mine, 3))
    assert (refused.value.code, refused.value.type) == ("queued_rows_exceeded", "rate_limit_exceeded")
    assert int(refused.value.response.headers["retry-after"]) >= 1


def test_the_sdks_own_retry_succeeds_once_the_queue_has_room(
    clients: ProjectClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "_GUESSED_WAIT_SECONDS", 1)
    mine, other = clients.client("mine"), clients.client("mine")
    file_id = upload(mine, 8)
    first = create(mine, file_id)
    clients.on_refusal = lambda: other.batches.cancel(first.id)
    second = create(mine, file_id)
    assert clients.statuses == [200, 200, 429, 200, 200], "one refusal, and the cancel before the SDK's next try"
    assert second.id != first.id
    assert mine.batches.retrieve(second.id).status == "validating"


def test_the_sdks_own_retry_of_an_upload_succeeds_once_there_is_room(
    clients: ProjectClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "_LONGEST_WAIT_SECONDS", 1)
    mine, other = clients.client("mine"), clients.client("mine")
    files = [upload(mine, 1, text="x" * 6_500) for _ in range(3)]
    clients.on_refusal = lambda: other.files.delete(files[0])
    last = upload(mine, 1, text="x" * 6_500)
    assert clients.statuses == [200, 200, 200, 429, 200, 200]
    assert {file.id for file in mine.files.list()} == {*files[1:], last}
    clients.on_refusal = lambda: None
    with pytest.raises(openai.RateLimitError) as refused:
        upload(clients.client("mine", max_retries=0), 1, text="x" * 6_500)
    assert (refused.value.code, refused.value.param) == ("upload_bytes_exceeded", "file")


def test_the_sdk_slows_down_to_its_rate_limit(clients: ProjectClients) -> None:
    quick = clients.client("quick", max_retries=8)
    for _ in range(12):
        quick.batches.list()
    assert clients.statuses.count(200) == 12
