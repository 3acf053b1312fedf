"""The routes and commands of cron entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scheduler.cli import command_line as cli
from tests.support.live_api import LiveApi, spec_document
from tests.support.rows import write_rows


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", 3)


def entry(rows: Path, **fields: Any) -> dict[str, Any]:
    return {"name": "morning", "schedule": "0 7 * * 1-5", "spec": spec_document(rows), **fields}


def test_an_entry_is_added_listed_and_removed(api: LiveApi, rows: Path) -> None:
    made = api.http.post("/v1/crons", json=entry(rows, timezone="Europe/Zurich"))
    assert made.status_code == 201
    cron = made.json()
    assert (cron["object"], cron["name"], cron["timezone"]) == ("cron", "morning", "Europe/Zurich")
    assert cron["next_at"] > cron["created_at"]
    assert cron["last_at"] is cron["last_job_id"] is cron["last_error"] is None
    assert list(api.client.crons()) == [cron] == [api.http.get(f"/v1/crons/{cron['id']}").json()]
    assert api.http.post("/v1/crons", json=entry(rows)).status_code == 409
    other = api.client_of("other")
    assert other.get("/v1/crons").json()["data"] == []
    assert other.delete(f"/v1/crons/{cron['id']}").status_code == 404
    api.client.remove_cron(cron["id"])
    assert list(api.client.crons()) == []


@pytest.mark.parametrize(
    ("changed", "param", "message"),
    [
        ({"schedule": "61 7 * * *"}, "schedule", "'61 7 * * *' is not a cron expression: its minute is not valid"),
        ({"timezone": "Mars/Base"}, "timezone", "there is no time zone 'Mars/Base'"),
        ({"name": "a b"}, "name", "must be 1 to 100 letters, digits, dots, underscores or hyphens, and begin with"),
        ({"spec": {"task": "embeddings"}}, "model", ""),
        ({"start_at": "2090-01-01T00:00:00Z"}, "start_at", "cannot be used in a cron entry"),
        ({"promise": "2090-01-01T00:00Z"}, "promise", "cannot be used in a cron entry"),
        ({"array": {"values": [1]}}, "array", "cannot be used in a cron entry, which submits single jobs"),
    ],
)
def test_a_bad_entry_is_refused_by_the_field_at_fault(
    api: LiveApi, rows: Path, changed: dict[str, Any], param: str, message: str
) -> None:
    document = entry(rows, **changed)
    if param in ("start_at", "promise", "array"):
        document = entry(rows, spec=spec_document(rows, **changed))
    answer = api.http.post("/v1/crons", json=document)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert f"{param}: {message}" in answer.json()["error"]["message"]
    assert list(api.client.crons()) == []


def test_an_entry_whose_input_does_not_exist_is_refused(api: LiveApi, tmp_path: Path) -> None:
    answer = api.http.post("/v1/crons", json=entry(tmp_path / "none.jsonl"))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input.path"


def test_the_commands_add_list_and_remove(
    api: LiveApi, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_URL", api.url)
    monkeypatch.setenv("STOKER_API_KEY", api.key)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text("task: text-classification\nmodel: org/name\ninput: {path: rows.jsonl}\n")
    assert cli.main(["cron", "add", "morning", "0 7 * * 1-5", "spec.yaml", "--timezone", "Europe/Zurich"]) == 0
    cron_id = capsys.readouterr().out.strip()
    (made,) = api.client.crons()
    assert (made["id"], made["spec"]["input"]["path"]) == (cron_id, str(rows))
    assert cli.main(["cron", "list"]) == 0
    listed = capsys.readouterr().out
    assert "morning" in listed
    assert "0 7 * * 1-5 Europe/Zurich" in listed
    assert cli.main(["cron", "add", "morning", "0 7 * *", "spec.yaml"]) == 2
    assert cli.main(["cron", "remove", "evening"]) == 2
    assert "there is no cron entry 'evening'" in capsys.readouterr().err
    assert cli.main(["cron", "remove", "morning"]) == 0
    assert list(api.client.crons()) == []
