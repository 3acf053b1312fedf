"""transformers' Trainer under a plan: exact losses, checkpoints, a stop at each step's end, and a model with its card.

The Trainer computes; what follows a step is decided here, in one place and one order: log, judge, save, stop. So a
checkpoint holds what the next step finds, and an evaluation that fell on its step is not lost with the process.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from jobs.errors import InvalidInput, InvalidSpec, LossNotFinite
from jobs.settings import Settings
from jobs.specs import TrainingSpec
from worker.device import one_line, pick_device, resolve_dtype
from worker.stop import Stop, StopReason
from worker.training.checkpoints import Best, Judged, checkpoint_aside
from worker.training.data import Rows
from worker.training.delivery import Course, deliver
from worker.training.learning import Learning, Origin
from worker.training.losses import Losses, Point
from worker.training.plan import Plan
from worker.training.reports import Begun, Finished, Progress, Report, Saved, Stopped
from worker.training.sampling import EpochSampler
from worker.training.schedule import Schedule, epoch_steps, halved
from worker.training.tasks import build

logger = logging.getLogger(__name__)

_ROWS_FILE = "rows.sha256"
_REPORT_SECONDS = 2.0
"""Losses are fetched at least so often where steps are slow: somebody may be watching."""
_DECIDED_HERE = frozenset({
    "logging_steps", "logging_strategy", "logging_first_step", "eval_strategy", "eval_steps", "eval_on_start",
    "train_sampling_strategy",
})  # fmt: skip


def train(plan: Plan, *, settings: Settings, stop: Stop, report: Callable[[Report], None]) -> None:
    """Train what a plan says, to its end or to a stop.

    Raises:
        UserError: the model, the data or an argument cannot be used, or the loss is not a number.
    """
    spec = plan.training_spec()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    set_seed(int(spec.arguments.get("seed", 42)))  # a new head's weights
    StepTrainer(plan, _learning(plan, settings), stop=stop, report=report).run()


def _learning(plan: Plan, settings: Settings) -> Learning:
    spec = plan.training_spec()
    assert spec.data is not None
    columns, judged = spec.columns(), spec.data.eval_input
    rows = Rows(spec.data.train_input, columns, settings, param="data.train")
    if judged is None:
        return build(Origin.of(plan, settings), rows, None)
    param = "data.eval" if spec.data.eval is not None else "data.eval_split"
    return build(Origin.of(plan, settings), rows, Rows(judged, columns, settings, param=param))


def make_arguments(spec: TrainingSpec, plan: Plan, *, is_raw: bool) -> TrainingArguments:
    """The Trainer's arguments for a spec.

    Raises:
        InvalidSpec: transformers refuses one of them, or the device the dtype.
    """
    given = {name: value for name, value in spec.arguments.items() if name not in _DECIDED_HERE}
    given["per_device_train_batch_size"], given["gradient_accumulation_steps"] = halved(
        given.get("per_device_train_batch_size", 8), given.get("gradient_accumulation_steps", 1), plan.num_halvings
    )
    dtype = resolve_dtype(spec.dtype, pick_device())
    if dtype is torch.float16 and plan.device == "cpu":
        raise InvalidSpec("dtype: a CPU cannot train in float16; use auto or bfloat16", param="dtype")
    try:
        return TrainingArguments(
            output_dir=plan.folder,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            log_level="error",
            disable_tqdm=True,
            use_cpu=plan.device == "cpu",
            bf16=dtype is torch.bfloat16,
            fp16=dtype is torch.float16,
            logging_nan_inf_filter=False,  # it would look at each loss, and hide what must end the training
            remove_unused_columns=not is_raw,
            **given,
        )
    except (TypeError, ValueError) as error:
        raise InvalidSpec(f"arguments: {one_line(error)}", param="arguments") from error


class StepTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that reports each step's exact loss and keeps checkpoints by a plan."""

    def __init__(self, plan: Plan, learning: Learning, *, stop: Stop, report: Callable[[Report], None]) -> None:
        """
        Args:
            plan: of the attempt.
            learning: what the task brings.
            stop: asked when it is to end before its end.
            report: is told what the runner must know.
        """
        self._plan, self._spec, self._learning = plan, plan.training_spec(), learning
        self._stop, self._report = stop, report
        self._folder = Path(plan.folder)
        self._losses = Losses()
        self._reported_at = time.monotonic()
        self._ended_step, self._good_step = 0, 0
        self._best = Best(self._spec.checkpoint.best, self._folder)
        self._judged: Judged | None = None
        self._keeps_cache = getattr(learning.model.config, "use_cache", None)  # the Trainer switches it off for good
        super().__init__(
            learning.model,
            make_arguments(self._spec, plan, is_raw=learning.is_raw),
            train_dataset=learning.train,
            eval_dataset=learning.evaluation,
            data_collator=learning.collate,
            processing_class=learning.processing,
            compute_metrics=learning.metrics,
            preprocess_logits_for_metrics=learning.reduce_logits,
            callbacks=[_Begin(self._begin)],
        )
        self.remove_callback(PrinterCallback)
        # Many a model takes the number of items in the whole batch and does not divide by it; its gradients would then
        # grow with the accumulation. So a step's loss is the mean over its micro-batches, for every model.
        self.model_accepts_loss_kwargs = False

    def run(self) -> None:
        """Train, judge, and hand over what came of it; or stop."""
        started = time.monotonic()
        resumed = self._plan.resume
        if resumed is not None:
            self._check_rows(Path(resumed))
            self._best.restore(Path(resumed))
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.train(resume_from_checkpoint=resumed)
        if self.state.global_step < self.state.max_steps:
            self._report(Stopped(self.state.global_step))
            return
        self._finish(time.monotonic() - started)

    # -- called by the Trainer ------------------------------------------------------------------------------------

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """A micro-batch: its part of the step's loss is kept as it was computed."""
        loss: torch.Tensor = super().training_step(*arguments, **options)
        self._losses.add(loss)
        return loss

    def create_scheduler(self, *arguments: Any, **options: Any) -> Any:
        """The schedule of learning rates, whose further arguments only it can judge."""
        try:
            return super().create_scheduler(*arguments, **options)
        except (TypeError, ValueError) as error:
            param = "arguments.lr_scheduler_kwargs"
            raise InvalidSpec(f"{param}: {one_line(error)}", param=param) from error

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Nothing: what is to be told is told in `_after_step`, and a history would grow in each checkpoint."""

    def _get_train_sampler(self, _: Any = None) -> Any:
        """The order of rows, by the seed and the epoch alone."""
        strategy, dataset = self._spec.arguments.get("train_sampling_strategy", "random"), self.train_dataset
        if strategy == "sequential":
            return torch.utils.data.SequentialSampler(dataset)
        lengths = None
        if strategy == "group_by_length":
            if self._learning.lengths is None:
                param = "arguments.train_sampling_strategy"
                raise InvalidSpec(f"{param}: rows of {self._spec.task} have no length to group by", param=param)
            lengths = self._learning.lengths()
        return EpochSampler(
            len(dataset),
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            lengths=lengths,
            batch_rows=self._step_rows,
        )

    def _maybe_log_save_evaluate(self, _loss: Any, grad_norm: Any, model: Any, *_: Any, **rest: Any) -> None:
        """The Trainer has ended a step, or an epoch, whose last step it ended before."""
        if self.state.global_step != self._ended_step:
            self._ended_step = self.state.global_step
            self._after_step(grad_norm, rest.get("learning_rate"), model)

    # -- what follows a step --------------------------------------------------------------------------------------

    @property
    def _step_rows(self) -> int:
        return int(self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps)

    def _begin(self) -> None:
        """The checkpoint is loaded, and the first step is about to be computed."""
        step, num_rows = self.state.global_step, len(self._learning.train)
        steps = epoch_steps(
            num_rows,
            micro_batch=self.args.per_device_train_batch_size,
            accumulation=self.args.gradient_accumulation_steps,
            drops_last=self.args.dataloader_drop_last,
        )
        if steps == 0:
            raise InvalidInput(
                f"data.train: {num_rows} rows do not fill one batch, and arguments.dataloader_drop_last drops the rest",
                param="data.train",
            )
        self._schedule = Schedule.of(
            self._spec,
            total_steps=self.state.max_steps,
            epoch_steps=steps,
            has_eval=self._learning.evaluation is not None,
        )
        self._ended_step = self._good_step = self._resumed_step = step
        self._report(Begun(step, self.state.max_steps, num_rows))
        logger.info("%d rows, %d steps, %d of them in an epoch", num_rows, self.state.max_steps, steps)
        if step == 0 and self._spec.arguments.get("eval_on_start") and self._schedule.has_eval:
            self._judge()

    def _after_step(self, grad_norm: Any, learning_rate: float | None, model: Any) -> None:
        step = self.state.global_step
        self._losses.end_step(step, self._step_rows)
        due = self._schedule.due(step)
        if due.log:
            self._log(grad_norm, learning_rate)
        elif time.monotonic() - self._reported_at >= _REPORT_SECONDS:
            self._tell([])
        is_best = due.evaluate and self._judge()
        if step >= self.state.max_steps:
            return
        reason = self._stop.reason
        if reason is not None:
            self.control.should_training_stop = True
        if reason != StopReason.CANCEL and (due.save or is_best or reason is not None):
            self._tell([])
            self._keep(model)
        elif reason is not None:
            self._tell([])
        if due.evaluate or due.save:
            self._losses.skip_time()

    def _log(self, grad_norm: Any, learning_rate: float | None) -> None:
        named = {
            "learning_rate": learning_rate,
            "grad_norm": None if grad_norm is None else float(grad_norm),
            "epoch": self.state.epoch,
            "samples_per_second": self._losses.take_rate(),
        }
        told = {name: float(value) for name, value in named.items() if value is not None}
        step = self.state.global_step
        self._tell([(step, name, value) for name, value in told.items()])
        shown = ", ".join(f"{name} {value:.4g}" for name, value in {"loss": self._losses.latest, **told}.items())
        logger.info("step %d of %d: %s", step, self.state.max_steps, shown)

    def _tell(self, more: list[Point]) -> None:
        """Report the losses since the last time, and some more.

        Raises:
            LossNotFinite: one of them is not a finite number.
        """
        self._reported_at = time.monotonic()
        points = self._losses.take()
        broken = next((step for step, _, value in points if not math.isfinite(value)), None)
        good = [point for point in (*points, *more) if broken is None or point[0] < broken]
        step = self.state.global_step if broken is None else broken - 1
        if good:
            self._report(Progress(step, tuple(good)))
        if broken is not None:
            raise self._not_finite(f"the loss of step {broken} is not a finite number")

    def _not_finite(self, what: str) -> LossNotFinite:
        return LossNotFinite(
            f"{what}; the last good checkpoint is of step {self._good_step}; a smaller arguments.learning_rate may help"
        )

    def _judge(self) -> bool:
        """Evaluate and report. The random generators stay as they are: a later attempt need not judge again.

        Returns:
            Whether these are the best weights so far, where `checkpoint.best` wants to know.
        """
        step = self.state.global_step
        self._tell([])  # weights of no number are not worth judging
        with _generators_kept():
            found = self.evaluate()
        metrics = {name: float(value) for name, value in found.items() if _is_told(name)}
        if self._spec.task == "text-generation":
            metrics["eval_perplexity"] = math.exp(min(metrics["eval_loss"], 700.0))  # the largest that a float holds
        self._judged = Judged(step, metrics)
        self._report(Progress(step, tuple((step, name, value) for name, value in metrics.items())))
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        logger.info("step %d: judged by %d rows: %s", step, len(self._learning.evaluation or ()), shown)
        return self._best.offer(self._judged, self.model.save_pretrained)

    def _keep(self, model: Any) -> None:
        """Write a checkpoint by the Trainer's own means, and report it once it is whole.

        Raises:
            LossNotFinite: a weight is not a finite number.
        """
        step = self.state.global_step
        if not self._weights_are_finite():
            raise self._not_finite(f"the weights after step {step} are not finite numbers")
        path = self._folder / f"checkpoint-{step}"
        with checkpoint_aside(path) as aside:
            self.args.output_dir = str(aside.parent)
            self._save_checkpoint(model, None)
            (aside / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
            (aside / _ROWS_FILE).write_text(self._learning.digest)
            self._best.carry(aside)
        self._good_step = step
        metric = None
        if self._judged is not None and self._judged.step == step and self._spec.checkpoint.best is not None:
            metric = self._judged.metrics[self._spec.checkpoint.best]
        self._report(Saved(step, str(path), metric))
        logger.info("step %d: saved a checkpoint", step)

    def _check_rows(self, checkpoint: Path) -> None:
        """Raises InvalidInput where the rows to learn from are not those that the checkpoint came from."""
        if (checkpoint / _ROWS_FILE).read_text() != self._learning.digest:
            raise InvalidInput("data.train: changed since the training began; submit it anew", param="data.train")

    def _weights_are_finite(self) -> bool:
        learned = [weight for weight in self.model.parameters() if weight.requires_grad]
        return bool(torch.stack([weight.detach().isfinite().all() for weight in learned]).all())

    def _finish(self, seconds: float) -> None:
        step, best = self.state.global_step, self._best.judged
        if not self._weights_are_finite():
            raise self._not_finite(f"the weights after step {step} are not finite numbers")
        if best is not None and best.step != step:
            logger.info("the best weights are those of step %d", best.step)
            self._load_from_checkpoint(str(self._best.folder))
        if self._keeps_cache is not None:
            self.model.config.use_cache = self._keeps_cache
        course = Course(
            step=step,
            resumed_step=self._resumed_step,
            epochs=float(self.state.epoch or 0.0),
            seconds=seconds,
            rows_per_second=self._losses.mean_rate,
            last_loss=self._losses.latest,
            micro_batch=self.args.per_device_train_batch_size,
            accumulation=self.args.gradient_accumulation_steps,
            judged=self._judged if best is None else best,
            has_chosen=best is not None,
        )
        made = self._folder / "made"
        self._report(Finished(step, str(made), deliver(made, self.model, self._learning, self._spec, course)))


class _Begin(TrainerCallback):  # type: ignore[misc]
    """Tells when the Trainer has loaded everything."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self._begin = begin

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """See `TrainerCallback`."""
        self._begin()


def _is_told(name: str) -> bool:
    """Whether a number of an evaluation says something of the model, and not of the clock."""
    return name.startswith("eval_") and not name.endswith(("_runtime", "_per_second", "_time"))


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
