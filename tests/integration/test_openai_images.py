"""Images in chats of OpenAI batches: the unmodified SDK, the API, the scheduler's duties and a real tiny Llava."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai.types.chat import ChatCompletion

from jobs.config.settings import Settings
from jobs.db.database import Database
from tests.support.batch_scheduler import BatchScheduler
from tests.support.computed_batches import ComputedBatches
from tests.support.generation import generated, rows_of
from tests.support.live_api import live_api
from tests.support.task_kit import load
from tests.support.tiny_vision import chat, image_part, tiny_llava

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, of models with random weights
CHAT = "/v1/chat/completions"
OWN = {"max_tokens": 5, "temperature": 0}


@pytest.fixture
def batches(settings: Settings, sqlite_database: Database, tmp_path: Path) -> Iterator[ComputedBatches]:
    folder = tiny_llava(tmp_path / "llava")
    scheduler = BatchScheduler(sqlite_database, settings, {"eye": {"model": str(folder)}})
    with live_api(scheduler.settings, sqlite_database) as api:
        yield ComputedBatches(api.url, scheduler, "eye", folder)


def test_chats_with_images_are_answered_beside_others(
    batches: ComputedBatches, caplog: pytest.LogCaptureFixture
) -> None:
    chats = [chat("What is this? ", image_part(1)), chat(image_part(2), image_part(1)), chat("Where is Ada?")]
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    fetched = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    refused = [chat(fetched), chat(broken), chat("What is <image>? ", image_part(1))]
    with batches.client("mine") as mine:
        batch = batches.run(mine, CHAT, [{"messages": one, **OWN} for one in [*chats, *refused]])
        assert (batch.state, batch.num_completed, batch.num_failed) == ("completed", 3, 3)
        found = batches.bodies(mine, batch)
    task = load("text-generation", batches.folder, {"max_new_tokens": 5})
    expected = [output[0]["generated_text"] for output in generated(task, rows_of(*((one, None) for one in chats)))]
    answers = [ChatCompletion.model_validate(found[str(number)]) for number in range(3)]
    assert [answer.choices[0].message.content for answer in answers] == expected
    assert [found[str(number)]["code"] for number in (3, 4, 5)] == [
        "url_not_allowed", "invalid_image", "invalid_messages",
    ]  # fmt: skip
    assert found["3"]["param"] == "messages[0].content[0].image_url.url"
    assert {found[str(number)]["param"] for number in (4, 5)} == {"messages"}
    image = image_part(1)["image_url"]["url"][100:200]
    assert image not in caplog.text
    with batches.scheduler.db.read() as session:
        dump = "\n".join(session.connection().connection.iterdump())  # type: ignore[attr-defined]
    assert "eye" in dump
    assert image not in dump, "rows are in the store"
