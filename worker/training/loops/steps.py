"""What follows each step of both training loops: log, evaluate, save, stop, decided in one place and in this order.

A checkpoint is written after the evaluation of its step, so that no evaluation is lost when the process dies. All ranks
call this code at the same steps; the leader decides what depends on a clock or on a stop request.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from jobs.config.activities import Activity
from jobs.db.states import StopReason
from jobs.errors import InvalidInput, LossNotFinite
from worker.stop import Stop
from worker.training.collectives import Gang
from worker.training.loops import rng
from worker.training.loops.loss_values import LOSS, Losses, Point
from worker.training.loops.schedule import Schedule
from worker.training.loops.work import Work
from worker.training.loops.write_checkpoint import writing_checkpoint
from worker.training.plan import Plan
from worker.training.reports import Begun, Doing, Finished, Progress, RankReport, Saved
from worker.training.results.best_weights import Best, Evaluation
from worker.training.results.export_results import TrainingSummary

logger = logging.getLogger(__name__)

_ROWS_FILE = "rows.sha256"
_REPORT_SECONDS = 2.0
"""The longest time between two reports of losses, if steps are slow."""
_REASONS = list(StopReason)


class Steps:
    """Does what is due after each step of a training, and at its end."""

    def __init__(
        self, plan: Plan, work: Work, gang: Gang, *, digest: str, stop: Stop, report: Callable[[RankReport], None]
    ) -> None:
        """
        Args:
            plan: What this attempt trains, and where.
            work: The loop that computes.
            gang: All ranks of the training.
            digest: Digest of the rows to train on. A resumed attempt must find the same rows.
            stop: The stop request, if any; only the leader reads it.
            report: Sends a report to the runner; only the leader calls it.
        """
        self._spec, self._work, self._gang, self._digest = plan.spec, work, gang, digest
        self._stop, self._report = stop, report
        self._folder = Path(plan.folder)
        self.losses = Losses(gang)
        """The losses of steps; the loop adds each micro-batch's part to them."""
        self.best = Best(
            self._spec.checkpoint.best, self._spec.checkpoint.best_mode, self._folder, writes=gang.rank == 0
        )
        """The best weights so far."""
        self.latest_evaluation: Evaluation | None = None
        """The latest evaluation."""
        self.resumed_step = 0
        self._reported_at = time.monotonic()
        self._good_step = 0
        self._doing = Doing(Activity.START)

    def restore(self, checkpoint: Path) -> None:
        """Restore this object's state from a checkpoint.

        Raises:
            InvalidInput: The rows to train on are not those of the checkpoint.
        """
        if (checkpoint / _ROWS_FILE).read_text() != self._digest:
            param = "data.train" if self._spec.data is not None else "module"
            raise InvalidInput(
                f"{param}: the rows to train on have changed since the training started; submit it as a new job",
                param=param,
            )
        self.best.restore(checkpoint)

    def begin(self, step: int, schedule: Schedule, *, num_rows: int, step_rows: int) -> None:
        """RankReport that the first step of this attempt starts now.

        Args:
            step: Number of steps that earlier attempts completed.
            schedule: What is due after which step.
            num_rows: Number of rows to train on.
            step_rows: Number of rows of one step on all ranks together.
        """
        self._schedule, self._step_rows = schedule, step_rows
        self.resumed_step = self._good_step = step
        self._report_to_runner(Begun(step, schedule.total_steps, num_rows))
        logger.info("%d rows, %d steps, %d of them in an epoch", num_rows, schedule.total_steps, schedule.epoch_steps)
        if step == 0 and self._spec.training_arguments.eval_on_start and schedule.has_eval:
            self._evaluate(step)
        self._start(Activity.STEP, step + 1)

    @property
    def total_steps(self) -> int:
        """Number of steps of the training; fewer than at its start if it ends early."""
        return self._schedule.total_steps

    def mark(self) -> None:
        """RankReport progress of the present activity: a micro-batch of a step, or a batch of an evaluation."""
        self._report_to_runner(self._doing)

    def after(self, step: int, metrics: Callable[[], Mapping[str, float | None]]) -> bool:
        """Do what is due after a step whose losses were added. A request to finish makes the step the last one.

        Args:
            step: Number of the step that was completed.
            metrics: Returns further metrics of the step; called only if they are logged.

        Returns:
            Whether the training stops after this step, and does not conclude.

        Raises:
            LossNotFinite: A loss or a weight is not a finite number.
        """
        self.losses.end_step(step, self._step_rows)
        is_late, stop_code = self._gang.broadcast(
            time.monotonic() - self._reported_at >= _REPORT_SECONDS, self._stop_code()
        )
        reason = None if stop_code < 0 else _REASONS[stop_code]
        if reason == StopReason.FINISH:
            self._schedule = replace(self._schedule, total_steps=step)
        due = self._schedule.due(step)
        if due.log:
            self._log(step, metrics())
        elif is_late:
            self._report_losses(step)
        is_best = due.evaluate and self._evaluate(step)
        if step >= self._schedule.total_steps:
            return False
        if reason != StopReason.CANCEL and (due.save or is_best or reason is not None):
            self._report_losses(step)
            self._write_checkpoint(step)
        elif reason is not None:
            self._report_losses(step)
        if due.evaluate or due.save:
            self.losses.skip_time()
        if reason is None:
            self._start(Activity.STEP, step + 1)
        return reason is not None

    def conclude(self, step: int) -> None:
        """Check the weights after the last step, and wait for all ranks: the rest is done by the leader alone.

        Raises:
            LossNotFinite: A weight is not a finite number.
        """
        self._start(Activity.SAVE, step)
        self._check_weights(step)
        self._gang.barrier()

    def finish(
        self,
        step: int,
        write: Callable[[Path, TrainingSummary], Mapping[str, Any]],
        *,
        epochs: float,
        micro_batch: int,
        accumulation: int,
        seconds: float,
    ) -> None:
        """Have the artifacts of the best weights written, and report the end. Called on the leader only.

        Args:
            step: The last step.
            write: Writes the artifacts into a folder and returns the content of `summary.json`.
            epochs: Passes over the data.
            micro_batch: Rows of one micro-batch on each slot.
            accumulation: Micro-batches of one step.
            seconds: Duration of this attempt.
        """
        best = self.best.evaluation
        if best is not None and best.step != step:
            logger.info("the best weights are those of step %d", best.step)
            self._work.load_weights(self.best.folder)
        summary = TrainingSummary(
            step=step,
            resumed_step=self.resumed_step,
            epochs=epochs,
            seconds=seconds,
            rows_per_second=self.losses.mean_rate,
            last_loss=self.losses.latest,
            micro_batch=micro_batch,
            accumulation=accumulation,
            num_slots=self._gang.size,
            evaluation=self.latest_evaluation if best is None else best,
            is_best=best is not None,
        )
        folder = self._folder / "artifacts"
        self._report(Finished(step, str(folder), write(folder, summary)))

    # -- parts of the above

    def _start(self, activity: Activity, step: int) -> None:
        self._doing = Doing(activity, step)
        self.mark()

    def _check_weights(self, step: int) -> None:
        if not bool(torch.stack([weight.detach().isfinite().all() for weight in self._work.learned()]).all()):
            raise self._not_finite(f"the weights after step {step} are not finite numbers")

    def _stop_code(self) -> int:
        reason = self._stop.reason
        return -1 if reason is None else _REASONS.index(reason)

    def _report_to_runner(self, report: RankReport) -> None:
        if self._gang.rank == 0:
            self._report(report)

    def _log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        logged = {**metrics, "samples_per_second": self.losses.read_rate()}
        numbers = {name: float(value) for name, value in logged.items() if value is not None}
        self._report_losses(step, [(step, name, value) for name, value in numbers.items()])
        shown = ", ".join(f"{name} {value:.4g}" for name, value in {LOSS: self.losses.latest, **numbers}.items())
        logger.info("step %d of %d: %s", step, self._schedule.total_steps, shown)

    def _report_losses(self, step: int, more: Iterable[Point] = ()) -> None:
        """RankReport the losses since the last report, and further metrics.

        Raises:
            LossNotFinite: A loss is not a finite number.
        """
        self._reported_at = time.monotonic()
        points = self.losses.read()
        broken = next((at for at, name, value in points if name == LOSS and not math.isfinite(value)), None)
        good = [point for point in (*points, *more) if broken is None or point[0] < broken]
        if good:
            self._report_to_runner(Progress(step if broken is None else broken - 1, tuple(good)))
        if broken == 1 and self._spec.trainer == "transformers":
            raise LossNotFinite(
                "the loss of step 1 is not a finite number; check the rows and the initial weights (the learning rate "
                "cannot be the cause, because no weight has changed yet)"
            )
        if broken is not None:
            raise self._not_finite(f"the loss of step {broken} is not a finite number")

    def _not_finite(self, what: str) -> LossNotFinite:
        return LossNotFinite(
            f"{what}; the last good checkpoint is that of step {self._good_step}; try a smaller learning rate"
        )

    def _evaluate(self, step: int) -> bool:
        """Evaluate the weights and report the metrics.

        The random number generators are restored afterwards, since a resumed attempt does not repeat the evaluation.

        Returns:
            Whether these are the best weights so far; False without `checkpoint.best`.
        """
        self._start(Activity.EVALUATION, step)
        self._report_losses(step)  # raises if a loss is not finite; such weights are not evaluated
        with rng.kept():
            metrics = dict(self._work.run_evaluation())
        self.latest_evaluation = Evaluation(step, metrics)
        self._report_to_runner(Progress(step, tuple((step, name, value) for name, value in metrics.items())))
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        logger.info("step %d: evaluation: %s", step, shown)
        return self.best.offer(self.latest_evaluation, self._work.write_weights)

    def _write_checkpoint(self, step: int) -> None:
        """Write a checkpoint, and report it when it is complete.

        Raises:
            LossNotFinite: A weight is not a finite number.
            NotKept: The checkpoint cannot be written.
        """
        self._start(Activity.CHECKPOINT, step)
        self._check_weights(step)
        path = self._folder / f"checkpoint-{step}"
        with writing_checkpoint(path, step, self._gang) as aside:
            self._work.write_checkpoint(aside)
            if self._gang.rank == 0:
                (aside / _ROWS_FILE).write_text(self._digest)
                self.best.carry(aside)
        self._good_step = step
        best, latest = self._spec.checkpoint.best, self.latest_evaluation
        metric = latest.metrics[best] if best is not None and latest is not None and latest.step == step else None
        self._report_to_runner(Saved(step, str(path), metric))
        logger.info("step %d: saved a checkpoint", step)
