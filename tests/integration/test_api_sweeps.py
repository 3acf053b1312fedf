"""Sweeps through the API and the command line: refused by the field at fault, and shown with their best trial."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.db.tables import Job
from scheduler.cli import command_line as cli
from scheduler.control.planning.arrays import fill_array, plan_any
from tests.support.arrays import Arrays, sweep_document, train
from tests.support.live_api import LiveApi


def document(**changed: Any) -> dict[str, Any]:
    return {**sweep_document(**{"trials": 12, **changed}), "arguments": {"max_steps": 50, "eval_steps": 20}}


@pytest.mark.parametrize(
    ("changed", "param", "message"),
    [
        ({"search": "grid"}, "sweep.search", "sweep.search: "),
        ({"search": "tpe", "trials": 2000}, "sweep.trials", "sweep.trials: search: tpe takes at most 1000 trials"),
        (
            {"early_stopping": {"method": "asha", "min_steps": 41}},
            "sweep.early_stopping.min_steps",
            "sweep.early_stopping.min_steps: the first 'eval_loss' from step 41 on is that of step 60, but the "
            "training has only 50 steps",
        ),
    ],
)
def test_a_sweep_that_cannot_work_is_refused(api: LiveApi, changed: dict[str, Any], param: str, message: str) -> None:
    answer = api.http.post("/v1/jobs", json=document(**changed))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["message"].startswith(message)) == (param, True), error
    assert list(api.client.jobs()) == []


def test_tpe_without_its_package_is_refused(api: LiveApi, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "optuna" else found(name, *more)
    )
    answer = api.http.post("/v1/jobs", json=document(search="tpe", max_parallel=2))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "sweep.search"
    assert "pip install 'stoker[sweeps]'" in answer.json()["error"]["message"]
    assert api.http.post("/v1/jobs", json=document()).status_code == 201


def test_a_sweep_shows_its_best_trial_and_each_trial_its_values(
    api: LiveApi, settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_URL", api.url)
    monkeypatch.setenv("STOKER_API_KEY", api.key)
    monkeypatch.setenv("COLUMNS", "200")
    sweep_id = str(api.client.submit(document(search="tpe", max_parallel=3))["id"])
    plan_any(api.database, api.store, settings, sweep_id)
    fill_array(api.database, api.store, settings, sweep_id)
    assert api.client.job(sweep_id)["sweep"] == {"metric": "eval_loss", "best": None, "num_pruned": 0}
    system = Arrays(api.database, settings)
    for trial, loss in zip(system.ready(sweep_id), (0.5, 0.25, 0.75), strict=True):
        train(system, trial, loss)
        if loss == 0.25:
            with api.database.write() as tx:
                tx.execute(update(Job).where(col(Job.id) == trial.id).values(pruned_step=20))
    best = system.children(sweep_id)[1]
    assert api.client.job(sweep_id)["sweep"] == {
        "metric": "eval_loss",
        "best": {
            "index": 1, "job_id": best.id, "value": 0.25, "values": best.trial_values, "pruned_step": 20,
        },
        "num_pruned": 1,
    }  # fmt: skip
    assert [job["sweep"] for job in api.client.jobs()] == [None], "a list is cheap"
    assert next(api.client.watch(sweep_id))["sweep"] is None, "so is a stream"
    shown = api.client.job(best.id)
    assert (shown["trial_values"], shown["pruned_step"], shown["sweep"]) == (best.trial_values, 20, None)
    assert best.trial_values is not None
    value = f"lr={best.trial_values['lr']:.4g}"
    assert cli.main(["status", sweep_id]) == 0
    told = capsys.readouterr().out
    assert f"{best.id}: eval_loss 0.25, {value}" in told
    assert "1 trial" in told
    assert cli.main(["status", sweep_id, "--children"]) == 0
    assert value in capsys.readouterr().out
    assert cli.main(["status", best.id]) == 0
    assert "by its sweep, at step 20" in capsys.readouterr().out
    api.client.cancel(sweep_id)
    waited_for = api.client.wait(sweep_id, timeout_seconds=300)["sweep"]
    assert waited_for["best"]["index"] == 1
    assert waited_for == api.client.job(sweep_id)["sweep"]
