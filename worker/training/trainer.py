"""transformers' Trainer under a plan: exact losses, checkpoints, a stop at each step's end, and a model with its card.

The Trainer's own saving is used for what a checkpoint holds, not for when and where: it is written aside and renamed,
at a step's end, so that every random generator stands where the next step finds it. An evaluation leaves the
generators as they were.
"""

from __future__ import annotations

import logging
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
import transformers
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from jobs.atomic import sync_directory
from jobs.errors import InvalidSpec, LossNotFinite
from jobs.settings import Settings
from jobs.specs import TrainingSpec
from jobs.training import is_better
from worker.device import device_name, pick_device, resolve_dtype
from worker.stop import Stop, StopReason
from worker.training.card import write_card
from worker.training.data import read_records
from worker.training.learning import Learning, Origin
from worker.training.plan import Plan
from worker.training.reports import Begun, Finished, Progress, Report, Saved, Stopped
from worker.training.tasks import build

logger = logging.getLogger(__name__)

_LOGGING_STEPS = 10
_LARGEST_EXPONENT = 700.0  # of e, that a float holds
_BEST_FOLDER, _BEST_FILE = "best", "best.json"
_UNTOLD = frozenset({"loss", "total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second"})


def train(plan: Plan, *, settings: Settings, stop: Stop, report: Callable[[Report], None]) -> None:
    """Train what a plan says, to its end or to a stop.

    Raises:
        UserError: the model, the data or an argument cannot be used, or the loss is not a number.
    """
    spec = plan.training_spec()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    set_seed(int(spec.arguments.get("seed", 42)))  # a new head's weights
    learning = _learning(plan, settings)
    trainer = StepTrainer(plan, learning, stop=stop, report=report)
    trainer.run()


def _learning(plan: Plan, settings: Settings) -> Learning:
    spec = plan.training_spec()
    columns, judged_input = spec.columns(), spec.data.eval_input
    records = read_records(spec.data.train_input, columns, settings, param="data.train")
    judged = None
    if judged_input is not None:
        judged = read_records(judged_input, columns, settings, param="data.eval")
    return build(Origin.of(plan, settings), records, judged)


def make_arguments(spec: TrainingSpec, plan: Plan, *, has_eval: bool) -> TrainingArguments:
    """The Trainer's arguments for a spec.

    Raises:
        InvalidSpec: transformers refuses one of them.
    """
    given = {"logging_steps": _LOGGING_STEPS, **spec.arguments}
    batch, accumulation = given.get("per_device_train_batch_size", 8), given.get("gradient_accumulation_steps", 1)
    if plan.num_halvings:
        smaller = max(1, batch >> plan.num_halvings)
        given["gradient_accumulation_steps"], given["per_device_train_batch_size"] = (
            accumulation * (batch // smaller), smaller
        )  # fmt: skip
    if has_eval and spec.checkpoint.best is not None and "eval_strategy" not in given:
        given |= {"eval_strategy": "steps", "eval_steps": given.get("eval_steps", spec.checkpoint.every_steps)}
    dtype = resolve_dtype(spec.dtype, pick_device())
    try:
        return TrainingArguments(
            output_dir=plan.folder,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,  # rows hold what the collator needs, by names of its own
            use_cpu=plan.device == "cpu",
            bf16=dtype is torch.bfloat16,
            fp16=dtype is torch.float16,
            logging_nan_inf_filter=False,
            **given,
        )
    except (TypeError, ValueError) as error:
        raise InvalidSpec(f"arguments: {str(error).splitlines()[0]}", param="arguments") from error


class StepTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that reports each step's exact loss and keeps checkpoints by a plan."""

    def __init__(self, plan: Plan, learning: Learning, *, stop: Stop, report: Callable[[Report], None]) -> None:
        spec = plan.training_spec()
        self._plan, self._spec, self._learning, self._report = plan, spec, learning, report
        self._folder = Path(plan.folder)
        self._losses = _Losses()
        self._last_good_step = 0
        self._best: float | None = None
        self._evaluated: tuple[int, dict[str, float]] = (-1, {})
        super().__init__(
            learning.model,
            make_arguments(spec, plan, has_eval=learning.evaluation is not None),
            train_dataset=learning.train,
            eval_dataset=learning.evaluation,
            data_collator=learning.collate,
            processing_class=learning.processing,
            compute_metrics=learning.metrics,
            preprocess_logits_for_metrics=learning.reduce_logits,
            callbacks=[_StepEnd(self, stop)],
        )
        self.remove_callback(PrinterCallback)
        # Many a model takes the number of items in the whole batch and does not divide by it; its gradients would then
        # grow with the accumulation. So a step's loss is the mean over its micro-batches, for every model.
        self.model_accepts_loss_kwargs = False
        self._stop = stop

    def run(self) -> None:
        """Train, judge, and hand over what came of it; or stop."""
        started = time.monotonic()
        self._take_up_best()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.train(resume_from_checkpoint=self._plan.resume)
        self.flush()
        if self._stop.asked and self.state.global_step < self.state.max_steps:
            self._report(Stopped(self.state.global_step))
            return
        self._finish(time.monotonic() - started)

    # -- called by the Trainer

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """A micro-batch: its part of the step's loss is kept as it was computed."""
        loss: torch.Tensor = super().training_step(*arguments, **options)
        self._losses.add(loss)
        return loss

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Judge, and leave the random generators as they were: a resumed attempt need not judge again."""
        with _generators_kept():
            metrics: dict[str, float] = super().evaluate(*arguments, **options)
        if "eval_loss" in metrics and self._spec.task == "text-generation":
            metrics["eval_perplexity"] = math.exp(min(metrics["eval_loss"], _LARGEST_EXPONENT))
            self.flush({"eval_perplexity": metrics["eval_perplexity"]})
        self._evaluated = (self.state.global_step, metrics)
        self._note_best(metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: ARG002 - the Trainer's own
        """Report what the Trainer measured; its averaged loss is not told, since each step's is."""
        step = self.state.global_step
        told = {name: float(value) for name, value in logs.items() if name not in _UNTOLD}
        self.flush({name: value for name, value in told.items() if not name.startswith("train_")})
        shown = {"loss": self._losses.latest, **told}
        logger.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint aside, make it durable, and rename it."""
        self.flush()
        super()._save_checkpoint(model, trial)
        step = self.state.global_step
        aside = self._aside() / f"checkpoint-{step}"
        (aside / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
        if self._best is not None:
            shutil.copytree(self._folder / _BEST_FOLDER, aside / _BEST_FOLDER)
            (aside / _BEST_FILE).write_bytes(orjson.dumps({"metric": self._best}))
        for path in aside.rglob("*"):
            if path.is_file():
                _sync(path)
        finished = self._folder / f"checkpoint-{step}"
        aside.rename(finished)
        sync_directory(self._folder)
        self._last_good_step = step
        at, metrics = self._evaluated
        metric = metrics.get(self._spec.checkpoint.best or "") if at == step else None
        self._report(Saved(step, str(finished), metric))
        logger.info("step %d: saved a checkpoint", step)

    def _get_output_dir(self, trial: Any) -> str:  # noqa: ARG002 - the Trainer's own
        return str(self._aside())

    def _aside(self) -> Path:
        return self._folder / "saving"

    # -- what it adds

    def begin(self) -> None:
        """Say that the first step is about to be computed."""
        self._last_good_step = self.state.global_step
        self._report(Begun(self.state.global_step, self.state.max_steps, len(self._learning.train)))

    def end_step(self) -> None:
        """Note that a step is complete."""
        self._losses.end_step(
            self.state.global_step, self.args.train_batch_size * self.args.gradient_accumulation_steps
        )

    def flush(self, more: dict[str, float] | None = None) -> None:
        """Report the losses since the last time, with some more numbers of the present step.

        Raises:
            LossNotFinite: one of them is not a finite number.
        """
        step = self.state.global_step
        points, rate = self._losses.take()
        named = dict(more or {})
        if rate is not None and points:
            named["samples_per_second"] = rate
        points += [(step, name, value) for name, value in named.items()]
        if points:
            self._report(Progress(step, tuple(points)))
        broken = next((at for at, name, value in points if name == "loss" and not math.isfinite(value)), None)
        if broken is not None:
            raise LossNotFinite(
                f"the loss of step {broken} is not a finite number; the last good checkpoint is of step "
                f"{self._last_good_step}; a smaller arguments.learning_rate may help"
            )

    def _take_up_best(self) -> None:
        """Go on with the best weights so far of the attempt before."""
        if self._plan.resume is None or not (Path(self._plan.resume) / _BEST_FILE).is_file():
            return
        resumed = Path(self._plan.resume)
        self._best = float(orjson.loads((resumed / _BEST_FILE).read_bytes())["metric"])
        shutil.copytree(resumed / _BEST_FOLDER, self._folder / _BEST_FOLDER)

    def _note_best(self, metrics: dict[str, float]) -> None:
        name = self._spec.checkpoint.best
        if name is None:
            return
        if name not in metrics:
            known = ", ".join(sorted(each for each in metrics if isinstance(metrics[each], float)))
            raise InvalidSpec(f"checkpoint.best: an evaluation has no '{name}', only {known}", param="checkpoint.best")
        if self._best is None or is_better(name, metrics[name], self._best):
            self._best = metrics[name]
            shutil.rmtree(self._folder / _BEST_FOLDER, ignore_errors=True)
            self.model.save_pretrained(self._folder / _BEST_FOLDER)

    def _finish(self, seconds: float) -> None:
        scores = self._scores()
        model = self.model
        if self._best is not None:
            model.load_state_dict(_weights(self._folder / _BEST_FOLDER), strict=False)
        if hasattr(model, "merge_and_unload"):  # adapters become part of the weights
            model = model.merge_and_unload()
        made = self._folder / "made"
        model.save_pretrained(made / "model")
        self._learning.processing.save_pretrained(made / "model")
        summary = {
            "task": self._spec.task,
            "steps": self.state.global_step,
            "epochs": self.state.epoch,
            "seconds": seconds,
            "steps_of_this_attempt": self._losses.num_steps,
            "samples_per_second": self._losses.mean_rate,
            "rows": len(self._learning.train),
            "device": device_name(self.args.device),
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
            "best_metric": self._spec.checkpoint.best,
            "best_value": self._best,
            "scores": scores,
            "resumed": self._plan.resume is not None,
            "micro_batch": self.args.per_device_train_batch_size,
            "accumulation": self.args.gradient_accumulation_steps,
        }
        (made / "summary.json").write_bytes(
            orjson.dumps(summary, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY)
        )
        write_card(made / "model" / "README.md", self._spec, self._learning.facts, summary)
        self._report(Finished(self.state.global_step, str(made), summary))

    def _scores(self) -> dict[str, float]:
        """What the rows to judge by say of the last step's weights."""
        if self._learning.evaluation is None:
            return {}
        if self._evaluated[0] != self.state.global_step:
            self.evaluate()
        names = ("runtime", "per_second")
        return {
            name: float(value)
            for name, value in self._evaluated[1].items()
            if name.startswith("eval_") and not any(word in name for word in names)
        }


class _StepEnd(TrainerCallback):  # type: ignore[misc]
    """What happens at each step's end: a look at the stop, and a checkpoint when one is due."""

    def __init__(self, trainer: StepTrainer, stop: Stop) -> None:
        self._trainer, self._stop = trainer, stop

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The Trainer has loaded its checkpoint."""
        self._trainer.begin()

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Decide what follows this step."""
        self._trainer.end_step()
        every = self._trainer._spec.checkpoint.every_steps
        if state.global_step % every == 0 and state.global_step < state.max_steps:
            control.should_save = True
        if self._stop.asked and state.global_step < state.max_steps:
            control.should_training_stop = True
            control.should_save = self._stop.reason != StopReason.CANCEL
        return control


class _Losses:
    """The losses of steps, kept on the device until they are asked for."""

    def __init__(self) -> None:
        self._parts: torch.Tensor | None = None
        self._steps: list[tuple[int, torch.Tensor]] = []
        self._num_samples = 0
        self._since = time.monotonic()
        self._all_samples, self._all_seconds = 0, 0.0
        self.num_steps = 0
        self.latest = math.nan

    def add(self, loss: torch.Tensor) -> None:
        """A micro-batch's part of the step's loss."""
        loss = loss.detach()
        self._parts = loss if self._parts is None else self._parts + loss

    def end_step(self, step: int, num_samples: int) -> None:
        """The step is complete."""
        assert self._parts is not None
        if not self.num_steps:
            self._since = time.monotonic()  # the first step brings what is loaded at first use
        else:
            self._num_samples += num_samples
        self._steps.append((step, self._parts))
        self._parts = None
        self.num_steps += 1

    def take(self) -> tuple[list[tuple[int, str, float]], float | None]:
        """The losses since the last call, fetched from the device together, and samples per second."""
        if not self._steps:
            return [], None
        values = torch.stack([loss for _, loss in self._steps]).double().tolist()
        points = [(step, "loss", value) for (step, _), value in zip(self._steps, values, strict=True)]
        self.latest = values[-1]
        seconds = time.monotonic() - self._since
        rate = self._num_samples / seconds if self._num_samples and seconds > 0 else None
        self._all_samples, self._all_seconds = self._all_samples + self._num_samples, self._all_seconds + seconds
        self._steps, self._num_samples, self._since = [], 0, time.monotonic()
        return points, rate

    @property
    def mean_rate(self) -> float | None:
        """Samples per second over all steps but the first."""
        return self._all_samples / self._all_seconds if self._all_seconds > 0 else None


@contextmanager
def _generators_kept() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_device = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_device is not None:
            torch.cuda.set_rng_state(on_device)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
