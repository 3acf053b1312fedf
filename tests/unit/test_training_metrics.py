"""Whether a larger metric is better: known from its name or from the spec, else the spec is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InvalidSpec
from jobs.specs.inference import TrainingSpec, parse_spec
from jobs.specs.training_options.training_metrics import LESS_IS_BETTER, MORE_IS_BETTER, Mode, mode_of
from worker.training.loops.schedule import Schedule
from worker.training.results.best_weights import Best, Evaluation

MODULE = """
import torch
from torch import nn
from stoker.training import Parts, Phase

def build(setup):
    model = nn.Linear(1, 1)
    rows = [torch.full((1,), float(n)) for n in range(8)]
    loss = lambda batch: model(batch).square().mean()
    return Parts(
        models={"model": model}, phases=[Phase(optimizer=torch.optim.SGD(model.parameters(), lr=0.01), loss=loss)],
        train=rows, eval_data=rows, evaluate=lambda batch: {"error": loss(batch)},
    )
"""


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("eval_loss", "min"), ("eval_perplexity", "min"), ("eval_wer", "min"), ("eval_cer", "min"),
        ("eval_error", "min"), ("eval_top5_error", "min"), ("eval_word-error-rate", "min"), ("eval_RMSE", "min"),
        ("eval_accuracy", "max"), ("eval_macro_f1", "max"), ("eval_exact", "max"), ("eval_log_likelihood", "max"),
        ("eval_neg_mean_squared_error", None), ("eval_negative_elbo", None), ("eval_beauty", None),
        ("eval_terror", None), ("eval_faccuracy", None),
    ],
)  # fmt: skip
def test_the_last_words_of_a_metric_imply_its_direction(name: str, mode: Mode | None) -> None:
    assert mode_of(name) == mode


def spec_of(best: str, **fields: Any) -> TrainingSpec:
    document = {
        "kind": "training",
        "trainer": "torch",
        "module": "/m/module.py",
        "checkpoint": {"best": best, **fields},
    }
    spec = parse_spec(document)
    assert isinstance(spec, TrainingSpec)
    return spec


def test_a_metric_without_a_known_direction_is_refused() -> None:
    with pytest.raises(InvalidSpec, match=r"set checkpoint\.mode to min or max") as caught:
        spec_of("eval_beauty")
    assert caught.value.param == "checkpoint.mode"
    assert spec_of("eval_beauty", mode="max").checkpoint.best_mode == "max"
    assert spec_of("eval_accuracy", mode="min").checkpoint.best_mode == "min", "the spec's word comes first"


@pytest.mark.parametrize(("name", "best_step"), [("eval_perplexity", 3), ("eval_error", 3), ("eval_accuracy", 2)])
def test_the_best_weights_are_those_of_the_best_value(tmp_path: Path, name: str, best_step: int) -> None:
    best = Best(name, spec_of(name).checkpoint.best_mode, tmp_path, writes=False)
    for step, value in ((1, 275.9), (2, 300.0), (3, 111.7), (4, float("nan"))):
        best.offer(Evaluation(step, {name: value}), lambda _: None)
    assert best.evaluation is not None
    assert best.evaluation.step == best_step


def test_a_metric_that_is_not_a_number_survives_a_checkpoint(tmp_path: Path) -> None:
    best = Best("loss", "min", tmp_path)
    assert best.offer(Evaluation(4, {"loss": 0.5, "auc": math.nan}), lambda folder: folder.mkdir())
    (tmp_path / "checkpoint").mkdir()
    best.carry(tmp_path / "checkpoint")
    resumed = Best("loss", "min", tmp_path / "resumed")
    (tmp_path / "resumed").mkdir()
    resumed.restore(tmp_path / "checkpoint")
    assert resumed.evaluation is not None
    assert resumed.evaluation.metrics["loss"] == 0.5
    assert math.isnan(resumed.evaluation.metrics["auc"])


def test_eval_steps_alone_means_evaluations_at_these_steps() -> None:
    def every(arguments: dict[str, Any], **checkpoint: Any) -> int | None:
        spec = spec_of("eval_loss", **checkpoint) if checkpoint else None
        document = {"kind": "training", "trainer": "torch", "module": "/m/module.py", "arguments": arguments}
        if spec is not None:
            document["checkpoint"] = {"best": "eval_loss", **checkpoint}
        made = parse_spec(document)
        assert isinstance(made, TrainingSpec)
        return Schedule.of(made, total_steps=100, epoch_steps=10, has_eval=True).evaluate_every

    assert every({}) is None
    assert every({"eval_steps": 7}) == 7
    assert every({"eval_strategy": "steps", "eval_steps": 7}) == 7
    assert every({"eval_strategy": "epoch"}) == 10
    assert every({}, every_steps=20) == 20
    assert every({"eval_steps": 7}, every_steps=20) == 7


def test_a_metric_that_a_module_does_not_have_costs_no_step(tmp_path: Path) -> None:
    from jobs.config.settings import Settings
    from worker.stop import Stop
    from worker.training.collectives import SingleProcess
    from worker.training.loops.loop import Loop
    from worker.training.loops.loop_inputs import LoopInputs
    from worker.training.modules.load_module import load_module
    from worker.training.plan import Plan
    from worker.training.reports import Progress, RankReport

    (tmp_path / "module.py").write_text(MODULE)
    module = load_module(str(tmp_path / "module.py"), Settings(code_roots=[tmp_path]))

    def run(best: str) -> None:
        spec = {
            "kind": "training", "trainer": "torch", "module": str(tmp_path / "module.py"),
            "arguments": {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1}, "checkpoint": {"best": best},
        }  # fmt: skip
        plan = Plan(
            job_id="job_1", spec=TrainingSpec.model_validate(spec), folder=str(tmp_path), device="cpu", num_threads=1
        )
        Loop(plan, module, LoopInputs(), SingleProcess(), stop=Stop(), report=found.append).run()

    found: list[RankReport] = []
    with pytest.raises(InvalidSpec, match="an evaluation has no metric 'eval_accuracy'; its metrics are eval_error"):
        run("eval_accuracy")
    assert not [report for report in found if isinstance(report, Progress)]
    run("eval_error")
    assert [report for report in found if isinstance(report, Progress)]


def test_the_listed_words_are_those_of_the_reference() -> None:
    page = (Path(__file__).parents[2] / "ops" / "docs" / "reference.md").read_text()
    section = page.split("### What a training records")[1].split("\n## ")[0]
    for word in (*LESS_IS_BETTER, *MORE_IS_BETTER):
        assert f"`{word}`" in section, word
