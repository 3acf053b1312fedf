"""The plain loop: a killed and resumed module has exactly the losses and weights of one that was left alone."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.config.settings import Settings
from jobs.errors import Forbidden, UserError
from tests.support.rows import write_rows
from tests.support.trained import KILL_STEPS, Attempt, attempt, kill_at, run_with_kills
from tests.support.training_specs import CLASSIFIER, NUM_STEPS, module_spec, write_module
from worker.training.loops.rehearsal import rehearse
from worker.training.modules.load_module import load_module
from worker.training.reports import Finished, Progress, Saved

pytestmark = pytest.mark.slow


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A small net on images, evaluated on the way."""
    monkeypatch.setenv("STOKER_CODE_ROOTS", json.dumps([str(tmp_path)]))
    return module_spec(tmp_path)


def weights(found: Attempt) -> dict[str, str]:
    """Digest of each model's weights."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found.model.glob("*.safetensors")}


def numbers(found: Attempt) -> dict[tuple[int, str], str]:
    """All metrics but the speed, to the last bit."""
    return {(step, name): value.hex() for step, name, value in found.points if name != "samples_per_second"}


def test_the_loop_loads_neither_transformers_nor_a_database() -> None:
    """They more than double the time in which a training starts."""
    modules = "worker.training.attempt.process, worker.training.loops.loop"
    unwanted = {"transformers", "datasets", "sqlalchemy", "redis", "celery"}
    code = f"import sys, {modules}; sys.exit(', '.join({unwanted} & sys.modules.keys()) or 0)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "fields", "steps"),
    [
        ({"gradient_accumulation_steps": 3, "dataloader_num_workers": 2}, {}, KILL_STEPS),
        ({}, {"module": "recipes.gan", "checkpoint": {"every_steps": 4}, "dtype": "bfloat16"}, [7]),
        ({}, {"module": "recipes.gan", "checkpoint": {"every_steps": 4}, "dtype": "float16"}, [7]),
    ],
    ids=["accumulation and workers", "two optimizers in bfloat16", "a scaler of losses in float16"],
)
def test_kills_change_nothing(
    tmp_path: Path, spec: dict[str, Any], arguments: dict[str, Any], fields: dict[str, Any], steps: Sequence[int]
) -> None:
    spec["arguments"] |= arguments
    spec |= fields
    calm = attempt(tmp_path / "calm", spec)
    assert list(calm.losses) == list(range(1, NUM_STEPS + 1))
    attempts = run_with_kills(tmp_path / "killed", spec, steps)
    recorded: dict[tuple[int, str], str] = {}
    for each in attempts:
        recorded |= numbers(each)
    assert recorded == numbers(calm)
    assert weights(attempts[-1]) == weights(calm)
    assert min(attempts[-1].losses) > 4, "the last attempt began where a checkpoint was"


def test_a_module_that_ends_early_ends_as_if_the_step_were_its_last(tmp_path: Path, spec: dict[str, Any]) -> None:
    found = attempt(
        tmp_path / "first",
        spec,
        until=lambda report: "finish" if isinstance(report, Progress) and report.step == 8 else None,
    )
    finished = found.last(Finished)
    assert isinstance(finished, Finished), found.reports[-1]
    assert 8 <= finished.step < NUM_STEPS
    assert list(found.losses) == list(range(1, finished.step + 1))
    assert [step for step, name, _ in found.points if name == "eval_accuracy"] == [6, finished.step]
    assert list(weights(found)) == ["net.safetensors"]


def test_an_edited_module_changes_no_training_that_has_begun(tmp_path: Path, spec: dict[str, Any]) -> None:
    """Neither the module nor its imports, at its top or later, may change; a retry has both as they are then."""
    source = CLASSIFIER.replace(
        "return nn.functional", "from late_helper import FACTOR\n        return FACTOR * nn.functional"
    )
    (tmp_path / "late_helper.py").write_text("FACTOR = 1.0\n")
    first_file = Path(write_module(tmp_path, source)).read_bytes()
    calm = attempt(tmp_path / "calm", spec)
    killed = attempt(tmp_path / "killed", spec, until=kill_at(7))
    (tmp_path / "late_helper.py").write_text("FACTOR = 1000.0\n")
    write_module(tmp_path, source.replace("FACTOR * nn", "0 * nn"))
    last = attempt(tmp_path / "last", spec, resume=killed.last(Saved), goes_on=True)
    assert min(last.losses) > 4
    assert {**killed.losses, **last.losses} == calm.losses
    assert weights(last) == weights(calm)
    assert (last.model / "module.py").read_bytes() == first_file
    retry = attempt(tmp_path / "retry", spec, resume=killed.last(Saved))
    assert set(retry.losses.values()) == {(0.0).hex()}
    assert (retry.model / "module.py").read_bytes() != first_file


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("import nowhere_at_all\ndef build(setup): ...", "module_failed", "module: importing it: ModuleNotFoundError"),
        ("x = 1", "invalid_spec", "has no function build(setup)"),
        ("def build(setup):\n    return 3", "module_failed", "module: build returned int, not Parts"),
        (CLASSIFIER.replace("0, 60", "0, 0"), "module_failed", "module: Parts.train is empty"),
        (CLASSIFIER.replace("60, 100", "60, 60"), "module_failed", "module: Parts.eval_data is empty"),
        (CLASSIFIER.replace("return nn.functional", "return 1 / 0 * nn.functional"), "module_failed",
         "module: the loss of phase 'loss': ZeroDivisionError: division by zero (net.py, line"),
        (CLASSIFIER.replace("cross_entropy(", "cross_entropy(float('nan') * "), "loss_not_finite",
         "the loss of step 1 is not a finite number"),
        (CLASSIFIER.replace("int(self.labels[index])", "self.labels[index + 10**6]"), "module_failed",
         "module: loading a batch of Parts.train: IndexError"),
        (CLASSIFIER.replace('models={"net": model}', 'models={"other": nn.Linear(1, 1)}'), "module_failed",
         "the optimizer of phase 'loss' has weights of a model that is not in Parts.models"),
    ],
    ids=["import", "no build", "no parts", "empty", "no rows to evaluate", "loss", "nan", "row", "foreign weights"],
)  # fmt: skip
def test_a_faulty_module_is_named_in_one_sentence(tmp_path: Path, source: str, code: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        rehearse(write_module(tmp_path, source), folder=tmp_path, arguments={"max_steps": 2})
    assert caught.value.code == code
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_a_module_outside_the_code_roots_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    module = write_module(tmp_path, f"open({str(mark)!r}, 'w')\n" + CLASSIFIER)
    with pytest.raises(Forbidden):
        load_module(module, Settings(code_roots=[]))
    assert not mark.exists()


def test_a_module_is_tried_out_without_a_daemon(tmp_path: Path) -> None:
    source = CLASSIFIER.replace("train=Images(0, 60)", "train=[(torch.ones(64) * row['x'], 1) for row in setup.rows]")
    tried = rehearse(
        write_module(tmp_path, source), arguments={"max_steps": 3}, rows=[{"x": number} for number in range(20)]
    )
    assert len(tried.losses) == 3
    assert len(tried.metrics["eval_accuracy"]) == 1
    assert (tried.folder / "model" / "net.safetensors").is_file()


def test_a_module_reads_the_rows_of_the_spec(tmp_path: Path, spec: dict[str, Any]) -> None:
    source = CLASSIFIER.replace(
        "train=Images(0, 60)", "train=[(torch.full((64,), row['x']), row['y']) for row in setup.rows]"
    ).replace(
        "eval_data=Images(60, 100)", "eval_data=[(torch.full((64,), row['x']), row['y']) for row in setup.eval_rows]"
    )
    records = [{"size": number / 40, "kind": number % 10, "more": "?"} for number in range(40)]
    spec |= {
        "module": write_module(tmp_path, source),
        "data": {
            "train": str(write_rows(tmp_path / "train.jsonl", records)),
            "eval": str(write_rows(tmp_path / "eval.jsonl", records[:10])),
            "columns": {"x": "size", "y": "kind"},
        },
    }
    found = attempt(tmp_path / "a", spec)
    assert json.loads((found.model.parent / "summary.json").read_text())["rows"] == 40
