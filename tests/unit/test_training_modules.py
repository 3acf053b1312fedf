"""Faults of a user's module: each is one sentence, and none is reported as an error of the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.config.settings import Settings
from jobs.errors import ModuleFailed, UserError
from jobs.specs.training import TrainingSpec
from worker.stop import Stop
from worker.training.attempt import process
from worker.training.collectives import SingleProcess
from worker.training.loops.loop import Loop
from worker.training.loops.loop_inputs import LoopInputs
from worker.training.loops.rehearsal import rehearse
from worker.training.modules.load_module import load_module
from worker.training.modules.user_module import Parts
from worker.training.plan import Plan
from worker.training.reports import Broken, Progress, RankReport, Saved

MODULE = """
import sys
import numpy as np
import torch
from torch import nn
from stoker.training import Parts, Phase, Setup

class Data:
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return torch.ones(2) * index / 8

def build(setup):
    model = nn.Linear(2, 1)
    def loss(batch):
        value = model(batch).square().mean()
        return value
    def evaluate(batch):
        return {"loss": model(batch).square().mean()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = None
    models, facts = {"net": model}, ()
    return Parts(
        models=models, phases=[Phase(optimizer=optimizer, loss=loss, scheduler=scheduler)],
        train=Data(), eval_data=Data(), evaluate=evaluate, facts=facts,
    )
"""
OF_LOSS, OF_EVALUATE = "module: the loss of phase 'loss': ", "module: evaluating a batch of Parts.eval_data: "
OF_PHASES = "module: Parts.phases must be a list of Phase"
OF_MODELS = "module: Parts.models must be a mapping of names to nn.Module"


def write_module(folder: Path, old: str, new: str) -> str:
    """The module with one fault."""
    assert old in MODULE
    path = folder / "net.py"
    path.write_text(MODULE.replace(old, new))
    return str(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model = nn.Linear(2, 1)", "sys.exit(0)", "module: build: SystemExit: 0 (net.py, line 15)"),
        ("return value", "sys.exit('enough')", OF_LOSS + "SystemExit: enough (net.py, line 18)"),
        ("return value", "return value, {'part': 0.5}", OF_LOSS + "TypeError: its 'part' is not a scalar tensor"),
        ("return value", "return value, {'part': torch.ones(3)}", OF_LOSS + "TypeError: its 'part' is not a scalar"),
        ("return value", "return value, [value]", OF_LOSS + "TypeError: it must return a scalar tensor, or a scalar"),
        ("return value", "return value, {}, value", OF_LOSS + "TypeError: it must return a scalar tensor, or a"),
        ("return value", "return value, {3: value}", OF_LOSS + "ValueError: 3 cannot name a metric"),
        ("return value", "return value, {'n' * 201: value}", OF_LOSS + "ValueError: 'nnn"),
        ("return value", "return value, {'loss': value}", OF_LOSS + "ValueError: the loop has a metric 'loss'"),
        ('return {"loss":', "return {'n' * 201:", OF_EVALUATE + "ValueError: 'eval_nnn"),
        ("torch.optim.SGD(", "torch.optim.LBFGS(", "module: the optimizer of phase 'loss': TypeError: LBFGS.step()"),
        ("optimizer = torch.optim.SGD(model.parameters(), lr=0.01)", "optimizer = None",
         "module: the optimizer of phase 'loss' is not a torch optimizer"),
        ("scheduler = None", "scheduler = lambda optimizer, _: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)",
         "module: the scheduler of phase 'loss': TypeError: ReduceLROnPlateau.step() missing"),
        ('models, facts = {"net": model}, ()', "models, facts = [model], ()", OF_MODELS),
        ('{"net": model}', "{'net': 3}", OF_MODELS),
        ('{"net": model}', "{'../../net': model}", "module: Parts.models: '../../net' cannot name a model"),
        ('{"net": model}', "{'a/net': model}", "module: Parts.models: 'a/net' cannot name a model"),
        ("model = nn.Linear(2, 1)",
         "model = type('M', (nn.Linear,), {'get_extra_state': lambda self: 1, 'set_extra_state': print})(2, 1)",
         "module: the model 'net' keeps '_extra_state', which is not a tensor"),
        ("model = nn.Linear(2, 1)", "model = nn.Linear(2, 1, device='meta')",
         "module: moving the model 'net' to the device: NotImplementedError"),
        ("[Phase(optimizer=optimizer, loss=loss, scheduler=scheduler)]", "Phase(optimizer=optimizer, loss=loss)",
         OF_PHASES),
        ("[Phase(optimizer=optimizer, loss=loss, scheduler=scheduler)]", "[(optimizer, loss)]", OF_PHASES),
        ("train=Data()", "train=iter(Data())", "module: the length of Parts.train: TypeError: object of type"),
        ("eval_data=Data()", "eval_data=[]", "module: Parts.eval_data is empty"),
        ("eval_data=Data()", "eval_data=7", "module: the length of Parts.eval_data: TypeError: object of type 'int'"),
        ("facts=facts", "finish=lambda folder: (folder / 'a\\nb').write_text('x')",
         "module: Parts.finish: ValueError: 'a\\nb' cannot be the name of an artifact"),
        ("facts=facts", "finish=lambda folder: __import__('shutil').rmtree(folder)",
         "module: Parts.finish: ValueError: it must not remove the folder model/"),
        ('{"net": model}, ()', '{"net": model}, "a fact"', "module: Parts.facts must be a list of sentences"),
    ],
)  # fmt: skip
def test_a_modules_fault_is_reported_as_its_own(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        rehearse(
            write_module(tmp_path, old, new), folder=tmp_path, arguments={"max_steps": 2, "eval_strategy": "steps"}
        )
    assert caught.value.message.startswith(message)
    assert caught.value.param == "module"
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("raise KeyError('here')", "module: loading a batch of Parts.train: KeyError: 'here'"),
        ("sys.exit(1)", "module: loading a batch of Parts.train: RuntimeError: a row ended its process: SystemExit: 1"),
    ],
)
def test_what_a_row_raises_in_a_loaders_process_is_reported(tmp_path: Path, new: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        rehearse(
            write_module(tmp_path, "return torch.ones(2) * index / 8", new),
            folder=tmp_path,
            arguments={"max_steps": 2, "dataloader_num_workers": 1},
        )
    assert caught.value.message == message


def test_the_old_names_of_a_module_are_accepted_with_a_warning(tmp_path: Path) -> None:
    rows = [torch.ones(2), torch.zeros(2)]
    module = write_module(tmp_path, "eval_data=Data(), evaluate=evaluate", "judged=setup.judged_rows, judge=evaluate")
    arguments = {"max_steps": 1}
    with pytest.warns(DeprecationWarning, match="is now called") as warned:
        old = rehearse(module, arguments=arguments, judged_rows=rows)  # type: ignore[call-arg]
    now_called = {f"{warning.message}".partition(";")[0] for warning in warned}
    assert now_called == {
        "rehearse: 'judged_rows' is now called 'eval_rows'",
        "Setup: 'judged_rows' is now called 'eval_rows'",
        "Parts: 'judged' is now called 'eval_data'",
        "Parts: 'judge' is now called 'evaluate'",
    }
    assert {warning.filename for warning in warned} == {__file__, module}
    new = write_module(tmp_path, "eval_data=Data(), evaluate", "eval_data=setup.eval_rows, evaluate")
    assert rehearse(new, arguments=arguments, eval_rows=rows).metrics["eval_loss"] == old.metrics["eval_loss"]


@pytest.mark.parametrize("name", ["judge", "judged"])
def test_an_old_name_is_refused_beside_the_new_one(name: str) -> None:
    given: dict[str, Any] = {"models": {}, "phases": [], "train": [], "evaluate": None, "eval_data": None, name: None}
    with pytest.raises(TypeError, match=f"'{name}' is the old name of 'eval"):
        Parts(**given)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GeneratorExit("mine")])
def test_whatever_ends_the_process_from_within_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:

    def train(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(process, "_trainer", lambda plan: train)
    spec = {"kind": "training", "trainer": "torch", "module": "recipes.vae"}
    plan = Plan(
        job_id="job_0", spec=TrainingSpec.model_validate(spec), folder=str(tmp_path), device="cpu", num_threads=1
    )
    reports: list[RankReport] = []
    process.run(plan, 0, reports.append, Stop())
    report = reports[-1]
    assert isinstance(report, Broken)
    assert report.is_users
    assert report.message.startswith(f"module: {type(error).__name__}")


def train(module: str, folder: Path, *, resume: str | None = None) -> list[RankReport]:
    """Three steps with a checkpoint after the second, or from there."""
    spec = {
        "kind": "training", "trainer": "torch", "module": module, "checkpoint": {"every_steps": 2},
        "arguments": {"max_steps": 3, "per_device_train_batch_size": 4},
    }  # fmt: skip
    folder.mkdir()
    plan = Plan(
        job_id="job_0",
        spec=TrainingSpec.model_validate(spec),
        folder=str(folder),
        device="cpu",
        num_threads=1,
        resume=resume,
    )
    reports: list[RankReport] = []
    loaded = load_module(module, Settings(code_roots=[Path(module).parent]))
    Loop(plan, loaded, LoopInputs(), SingleProcess(), stop=Stop(), report=reports.append).run()
    return reports


def last_loss(reports: list[RankReport]) -> float:
    """Of step 3."""
    points = [point for report in reports if isinstance(report, Progress) for point in report.points]
    return next(value for step, name, value in points if (step, name) == (3, "loss"))


def test_a_schedule_that_computes_with_numpy_goes_on(tmp_path: Path) -> None:
    schedule = "lambda optimizer, _: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: np.cos(step / 10))"
    module = write_module(tmp_path, "scheduler = None", f"scheduler = {schedule}")
    calm = train(module, tmp_path / "calm")
    (saved,) = [report for report in calm if isinstance(report, Saved)]
    assert last_loss(train(module, tmp_path / "again", resume=saved.folder)) == last_loss(calm)


def test_a_module_that_was_changed_does_not_go_on(tmp_path: Path) -> None:
    module = write_module(tmp_path, "nn.Linear(2, 1)", "nn.Linear(2, 1)")
    (saved,) = [report for report in train(module, tmp_path / "first") if isinstance(report, Saved)]
    write_module(tmp_path, "nn.Linear(2, 1)", "nn.Linear(2, 3)")
    with pytest.raises(ModuleFailed, match="the Parts from build do not fit the checkpoint to resume from"):
        train(module, tmp_path / "again", resume=saved.folder)
