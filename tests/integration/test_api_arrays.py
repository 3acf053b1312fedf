"""Arrays through the API and the command line: checked at submission, shown and changed as one thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.config.settings import Settings
from jobs.errors import StokerError
from jobs.ledger import jobs as job_ledger
from scheduler.cli import command_line as cli
from scheduler.control.planning.arrays import fill_array, plan_any
from tests.support.arrays import Arrays
from tests.support.live_api import LiveApi, spec_document
from tests.support.rows import write_rows


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", 3)


def document(rows: Path, field: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**spec_document(rows), "array": field, **fields}


def started(api: LiveApi, settings: Settings, spec: dict[str, Any]) -> str:
    array_id = str(api.client.submit(spec)["id"])
    plan_any(api.database, api.store, settings, array_id)
    fill_array(api.database, api.store, settings, array_id)
    return array_id


def test_an_array_is_one_job_with_counts_of_its_children(api: LiveApi, settings: Settings, rows: Path) -> None:
    spec = document(rows, {"grid": {"k": [1, 2], "n": ["a", "b", "c"]}, "max_parallel": 2}, name="n ${n}")
    array_id = started(api, settings, spec)
    array = api.client.job(array_id)
    assert (array["kind"], array["state"]) == ("array", "running")
    assert array["counts"] == {"total": 6, "done": 0, "failed": 0}
    assert array["children"] == {"validating": 6}
    assert [job["id"] for job in api.client.jobs()] == [array_id], "a list shows the array, not its children"
    children = list(api.client.jobs(parent=array_id))
    assert [child["child_index"] for child in children] == [5, 4, 3, 2, 1, 0]
    assert {child["parent_id"] for child in children} == {array_id}
    assert children[0]["name"] == "n c"
    assert children[0]["waiting_reason"] == f"waits for a place in its array, {array_id}"
    job_ledger.fail(api.database, children[5]["id"], StokerError("it broke"))
    assert api.client.job(array_id)["children"] == {"validating": 5, "failed": 1}
    assert api.client.cancel(array_id)["state"] == "cancelled"
    assert api.client.job(array_id)["children"] == {"failed": 1, "cancelled": 5}
    retry = api.client.retry(array_id)
    assert (retry["kind"], retry["retry_of"]) == ("array", array_id)
    assert api.http.get(f"/v1/jobs/{array_id}/results").status_code == 404


def test_one_idempotency_key_makes_one_array(api: LiveApi, rows: Path) -> None:
    spec = document(rows, {"values": [1, 2]})
    first, second = (api.client.submit(spec, idempotency_key="k") for _ in range(2))
    assert first["id"] == second["id"]


@pytest.mark.parametrize(
    ("field", "fields", "param"),
    [
        ({"values": [1], "max_parallel": 0}, {}, "array.max_parallel"),
        ({"values": [1]}, {"name": "${x}"}, "array"),
        ({"values": ["embedings"]}, {"task": "${value}"}, "task"),
        ({"values": [1, 0]}, {"parameters": {"top_k": "${value}"}}, "parameters.top_k"),
        ({"values": ["none.jsonl"]}, {"input": {"path": "/nowhere/${value}"}}, "input.path"),
        ({"file": "/nowhere/none.jsonl"}, {}, "array.file"),
        ({"values": [1]}, {"promise": "2090-01-01T07:00Z"}, "promise"),
        ({"values": ["2090-01-01T07:00Z"]}, {"promise": "${value}"}, "promise"),
    ],
)
def test_a_bad_array_is_refused_by_the_field_at_fault(
    api: LiveApi, rows: Path, field: dict[str, Any], fields: dict[str, Any], param: str
) -> None:
    answer = api.http.post("/v1/jobs", json=document(rows, field, **fields))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.json()
    assert list(api.client.jobs()) == []


def test_a_file_with_another_column_is_refused(api: LiveApi, rows: Path, tmp_path: Path) -> None:
    values = write_rows(tmp_path / "values.jsonl", [{"lang": "de"}])
    answer = api.http.post("/v1/jobs", json=document(rows, {"file": str(values)}, name="${language}"))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("array.file: ")
    assert "has no column 'language'; it has lang" in answer.json()["error"]["message"]


def test_a_retry_checks_the_kept_values_from_the_first_open_child(
    api: LiveApi, settings: Settings, tmp_path: Path
) -> None:
    inputs = [write_rows(tmp_path / f"rows{number}.jsonl", 3) for number in range(3)]
    file = write_rows(tmp_path / "values.jsonl", [{"path": str(path)} for path in inputs])
    array_id = started(api, settings, document(Path("${path}"), {"file": str(file)}))
    system = Arrays(api.database, settings)
    for child in system.children(array_id):
        system.end(child, completes=child.child_index == 0)
    file.unlink()
    inputs[0].unlink()
    retry = api.client.retry(array_id)
    plan_any(api.database, api.store, settings, retry["id"])
    assert api.client.job(retry["id"])["counts"]["total"] == 2
    api.client.cancel(retry["id"])
    inputs[1].unlink()
    answer = api.http.post(f"/v1/jobs/{retry['id']}/retry")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input.path")
    assert str(inputs[1]) in answer.json()["error"]["message"]


def test_the_command_line_shows_an_array_and_its_children(
    api: LiveApi,
    settings: Settings,
    tmp_path: Path,
    rows: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STOKER_URL", api.url)
    monkeypatch.setenv("STOKER_API_KEY", api.key)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "values.jsonl", [{"k": number} for number in range(100)])
    Path("spec.yaml").write_text(
        "task: text-classification\nmodel: org/name\ninput: {path: rows.jsonl}\nname: k ${k}\n"
        "array: {file: values.jsonl, max_parallel: 2}\n"
    )
    assert cli.main(["submit", "spec.yaml"]) == 0
    array_id = capsys.readouterr().out.strip()
    assert api.client.job(array_id)["spec"]["array"]["file"] == str(tmp_path / "values.jsonl")
    plan_any(api.database, api.store, settings, array_id)
    fill_array(api.database, api.store, settings, array_id)
    assert cli.main(["status", array_id]) == 0
    shown = capsys.readouterr().out
    assert "array: text-classification" in shown
    assert "0 of 100" in shown
    assert "82 waiting, 18 validating" in shown
    assert cli.main(["status", array_id, "--children", "--limit", "2"]) == 0
    listed = capsys.readouterr().out
    assert "k 17" in listed
    assert "k 16" in listed
    assert "k 15" not in listed
    assert cli.main(["status", "--children"]) == 2
