"""transformers' Trainer as the loop of `trainer: transformers`; `Steps` does what follows each step."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed

from jobs.config.access_rules import AccessRules
from jobs.errors import InvalidSpec
from jobs.messages import one_line
from worker.models.transformers_internals import hook_trainer, load_trainer_weights, save_trainer_checkpoint
from worker.stop import Stop
from worker.training.collectives import Gang
from worker.training.loops.data_loading import first_rows
from worker.training.loops.loss_values import LOSS
from worker.training.loops.row_order import EpochSampler
from worker.training.loops.schedule import Schedule, epoch_steps, too_few_rows
from worker.training.loops.steps import Steps
from worker.training.loops.trainer_arguments import make_arguments
from worker.training.plan import Plan
from worker.training.reports import RankReport, Stopped
from worker.training.results.export_results import TrainingSummary, write_artifacts
from worker.training.tasks import build
from worker.training.tasks.data import rows_of
from worker.training.tasks.setup import TaskContext, TaskSetup
from worker.training.tasks.text_generation import NLL

logger = logging.getLogger(__name__)


def train(plan: Plan, *, gang: Gang, rules: AccessRules, stop: Stop, report: Callable[[RankReport], None]) -> None:
    """Train a plan's model, to the end or until a stop is requested.

    Raises:
        UserError: The model, the data or an argument is invalid, or the loss is not a finite number.
    """
    spec = plan.spec
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    set_seed(spec.training_arguments.seed)  # the weights of a new head are random
    with gang.leader_first():  # the leader prepares the rows, and the others find them
        setup = _build_setup(plan, rules)
    StepTrainer(plan, setup, gang, stop=stop, report=report).run()


def _build_setup(plan: Plan, rules: AccessRules) -> TaskSetup:
    spec = plan.spec
    return build(TaskContext.of(plan, rules), *rows_of(spec, rules))


class StepTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that reports each step's exact loss and keeps checkpoints by a plan."""

    def __init__(
        self, plan: Plan, setup: TaskSetup, gang: Gang, *, stop: Stop, report: Callable[[RankReport], None]
    ) -> None:
        """
        Args:
            plan: What this attempt trains, and where.
            setup: The task's model, rows and functions.
            gang: All ranks of the training.
            stop: The stop request, if any.
            report: Sends a report to the runner.
        """
        self._plan, self._spec, self._setup, self._gang = plan, plan.spec, setup, gang
        self._report = report
        self._folder = Path(plan.folder)
        self._steps = Steps(plan, self, gang, digest=setup.digest, stop=stop, report=report)
        self._ended_step = 0
        self._sampler: EpochSampler | None = None
        self._keeps_cache = getattr(
            setup.model.config, "use_cache", None
        )  # the Trainer switches it off and never on again
        super().__init__(
            setup.model,
            make_arguments(self._spec, plan, is_raw=setup.is_raw),
            train_dataset=setup.train,
            eval_dataset=setup.evaluation,
            data_collator=setup.collate,
            processing_class=setup.processing,
            compute_metrics=setup.metrics,
            preprocess_logits_for_metrics=setup.reduce_logits,
            callbacks=[_Begin(self._begin)],
        )
        self.remove_callback(PrinterCallback)
        hook_trainer(self, train_sampler=self._make_train_sampler, after_step=self._after_step)

    def run(self) -> None:
        """Train, evaluate and write the artifacts; or stop early if a stop is requested."""
        started = time.monotonic()
        resumed = self._plan.resume
        if resumed is not None:
            self._steps.restore(Path(resumed))
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.train(resume_from_checkpoint=resumed)
        step = self.state.global_step
        if step < self._steps.total_steps:
            self._report(Stopped(step))
            return
        self._steps.conclude(step)
        if self._gang.rank == 0:
            self._steps.finish(
                step,
                self._write_artifacts,
                epochs=float(self.state.epoch or 0.0),
                micro_batch=self.args.per_device_train_batch_size,
                accumulation=self.args.gradient_accumulation_steps,
                seconds=time.monotonic() - started,
            )

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """Compute a micro-batch, and record its part of the step's loss unrounded."""
        loss: torch.Tensor = super().training_step(*arguments, **options)
        self._steps.losses.add({LOSS: loss})
        self._steps.mark()
        return loss

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """Evaluate a batch.

        All ranks get equally many rows, so the last batch may be filled up with rows that were evaluated before. The
        Trainer cuts these off from what it gathers, and this method from the mean loss.
        """
        self._steps.mark()
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        num_rows = self._num_new_rows()
        if loss is not None and num_rows is not None and num_rows > 0:
            loss, _, _ = super().prediction_step(model, first_rows(inputs, num_rows), True, ignore_keys)
        return loss, logits, labels

    def _num_new_rows(self) -> int | None:
        """Return how many rows of the present evaluation batch are not repeated; None if all are new."""
        state, batch_rows = self.accelerator.gradient_state, self.args.per_device_eval_batch_size
        if self._gang.size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return None
        num_rows = min(batch_rows, state.remainder - self._gang.rank * batch_rows)
        return None if num_rows == batch_rows else max(0, num_rows)

    def create_scheduler(self, *arguments: Any, **options: Any) -> Any:
        """Make the learning rate scheduler. Errors in its arguments become errors of the spec."""
        try:
            return super().create_scheduler(*arguments, **options)
        except (TypeError, ValueError) as error:
            param = "arguments.lr_scheduler_kwargs"
            raise InvalidSpec(f"{param}: {one_line(error)}", param=param) from error

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Do nothing: `Steps` reports metrics, and the Trainer's own history would grow with each checkpoint."""

    def _make_train_sampler(self) -> torch.utils.data.Sampler[int]:
        """Return the order of rows, which depends only on the seed and the epoch."""
        strategy, dataset = self._spec.training_arguments.train_sampling_strategy, self.train_dataset
        if strategy == "sequential":
            return torch.utils.data.SequentialSampler(dataset)
        lengths = None
        if strategy == "group_by_length":
            if self._setup.lengths is None:
                param = "arguments.train_sampling_strategy"
                raise InvalidSpec(f"{param}: rows of {self._spec.task} have no length to group by", param=param)
            lengths = self._setup.lengths()
        self._sampler = EpochSampler(
            len(dataset),
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            lengths=lengths,
            batch_rows=self._step_rows,
        )
        return self._sampler

    def _after_step(self, grad_norm: Any, learning_rate: float | None) -> None:
        """Called by the Trainer after each step, and again after each epoch, whose last step was reported before."""
        step = self.state.global_step
        if step == self._ended_step:
            return
        self._ended_step = step

        def metrics() -> dict[str, float | None]:
            norm = None if grad_norm is None else float(grad_norm)
            return {"learning_rate": learning_rate, "grad_norm": norm, "epoch": self.state.epoch}

        if self._steps.after(step, metrics) or step >= self._steps.total_steps:
            self.control.should_training_stop = True

    def run_evaluation(self) -> dict[str, float]:
        """See `Work`."""
        metrics = {name: float(value) for name, value in self.evaluate().items() if _is_metric(name)}
        if self._spec.task == "text-generation":
            nll = metrics.pop(f"eval_{NLL}", metrics["eval_loss"])
            metrics["eval_perplexity"] = math.exp(min(nll, 700.0))  # the exponential of more would not fit a float
        return metrics

    def write_checkpoint(self, folder: Path) -> None:
        """See `Work`. The Trainer writes its own files."""
        save_trainer_checkpoint(self, folder)
        if self._gang.rank == 0:
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; nothing reads it

    def write_weights(self, folder: Path) -> None:
        """See `Work`."""
        self.model.save_pretrained(folder)

    def load_weights(self, folder: Path) -> None:
        """See `Work`."""
        load_trainer_weights(self, folder)

    def learned(self) -> Iterable[torch.Tensor]:
        """See `Work`."""
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    @property
    def _step_rows(self) -> int:
        return int(self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps) * self._gang.size

    def _begin(self) -> None:
        """Called by the Trainer before the first step of this attempt, after the checkpoint was loaded."""
        step, num_rows = self.state.global_step, len(self._setup.train)
        steps = epoch_steps(
            num_rows,
            micro_batch=self.args.per_device_train_batch_size * self._gang.size,
            accumulation=self.args.gradient_accumulation_steps,
            drops_last=self.args.dataloader_drop_last,
        )
        if steps == 0:
            raise too_few_rows(num_rows, param="data.train")
        schedule = Schedule.of(
            self._spec,
            total_steps=self.state.max_steps,
            epoch_steps=steps,
            has_eval=self._setup.evaluation is not None,
        )
        if self._sampler is not None:
            # The libraries' own call does not reach the sampler of a gang that resumes in the middle of an epoch, which
            # would so compute the rows in the order of the first epoch.
            self._sampler.set_epoch(step // steps)
        self._ended_step = step
        self._steps.begin(step, schedule, num_rows=num_rows, step_rows=self._step_rows)

    def _write_artifacts(self, folder: Path, summary: TrainingSummary) -> dict[str, Any]:
        if self._keeps_cache is not None:
            self.model.config.use_cache = self._keeps_cache
        return write_artifacts(folder, self.model, self._setup, self._spec, summary)


class _Begin(TrainerCallback):  # type: ignore[misc]
    """Calls a function when the Trainer has loaded everything."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self._begin = begin

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """See `TrainerCallback`."""
        self._begin()


def _is_metric(name: str) -> bool:
    """Return whether a number of an evaluation is a metric of the model, not a time."""
    return name.startswith("eval_") and not name.endswith(("_runtime", "_per_second", "_time"))
