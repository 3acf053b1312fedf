"""What follows a step of a training, whoever computes it: log, judge, save, stop, decided in one place and one order.

So a checkpoint holds what the next step finds, and an evaluation that fell on its step is not lost with the process.
All ranks of a gang come through here at the same steps; the leader decides what only a clock or a pipe can say.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from jobs.config.activities import Activity
from jobs.db.states import StopReason
from jobs.errors import InvalidInput, LossNotFinite, NotKept, StokerError
from worker.device import is_out_of_memory, one_line
from worker.stop import Stop
from worker.training.collectives import Gang
from worker.training.loops import rng
from worker.training.loops.loss_values import LOSS, Losses, Point
from worker.training.loops.schedule import Schedule
from worker.training.plan import Plan
from worker.training.reports import Begun, Doing, Finished, Progress, Report, Saved
from worker.training.results.checkpoints import Best, Evaluation, checkpoint_aside
from worker.training.results.export_results import TrainingSummary

logger = logging.getLogger(__name__)

_ROWS_FILE = "rows.sha256"
_REPORT_SECONDS = 2.0
"""Losses are fetched at least so often where steps are slow: somebody may be watching."""
_REASONS = list(StopReason)


class Work(Protocol):
    """Who computes. Each method is called on all ranks at the same step."""

    def run_evaluation(self) -> Mapping[str, float]:
        """Evaluate the present weights; names begin with `eval_`."""
        ...

    def write_checkpoint(self, folder: Path) -> None:
        """Write all that the next step needs: the leader what all share, each rank what is its own."""
        ...

    def write_weights(self, folder: Path) -> None:
        """Write the weights alone, into a folder that this method makes. Called on the leader only."""
        ...

    def load_weights(self, folder: Path) -> None:
        """Load what `write_weights` wrote. Called on the leader only."""
        ...

    def learned(self) -> Iterable[torch.Tensor]:
        """The weights that are learned."""
        ...


class Steps:
    """A training's course from step to step."""

    def __init__(
        self, plan: Plan, work: Work, gang: Gang, *, digest: str, stop: Stop, report: Callable[[Report], None]
    ) -> None:
        """
        Args:
            plan: of the attempt.
            work: who computes.
            gang: of which this process is a rank.
            digest: of the rows to learn from; an attempt that goes on must find the same.
            stop: asked on the leader when it is to end before its end.
            report: is told what the runner must know; the leader's alone.
        """
        self._spec, self._work, self._gang, self._digest = plan.spec, work, gang, digest
        self._stop, self._report = stop, report
        self._folder = Path(plan.folder)
        self.losses = Losses(gang)
        """Of the steps, to be added to."""
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
        """Go on with what a checkpoint carries.

        Raises:
            InvalidInput: the rows to learn from are not those that it came from.
        """
        if (checkpoint / _ROWS_FILE).read_text() != self._digest:
            param = "data.train" if self._spec.data is not None else "module"
            raise InvalidInput(
                f"{param}: other rows to learn from than when the training began; submit it anew", param=param
            )
        self.best.restore(checkpoint)

    def begin(self, step: int, schedule: Schedule, *, num_rows: int, step_rows: int) -> None:
        """The next step is about to be computed.

        Args:
            step: steps that are done already.
            schedule: of what is due.
            num_rows: to learn from.
            step_rows: of one step, over all ranks.
        """
        self._schedule, self._step_rows = schedule, step_rows
        self.resumed_step = self._good_step = step
        self._tell_runner(Begun(step, schedule.total_steps, num_rows))
        logger.info("%d rows, %d steps, %d of them in an epoch", num_rows, schedule.total_steps, schedule.epoch_steps)
        if step == 0 and self._spec.arguments.get("eval_on_start") and schedule.has_eval:
            self._evaluate(step)
        self._at(Activity.STEP, step + 1)

    def mark(self) -> None:
        """A part of what is being done is done: a micro-batch of a step, a batch of an evaluation."""
        self._tell_runner(self._doing)

    def after(self, step: int, named: Callable[[], Mapping[str, float | None]]) -> bool:
        """Do what is due after a step whose losses were added.

        Args:
            step: that is done.
            named: further metrics; asked only where they are logged.

        Returns:
            Whether the training stops here.

        Raises:
            LossNotFinite: a loss or a weight is not a finite number.
        """
        self.losses.end_step(step, self._step_rows)
        due = self._schedule.due(step)
        is_late, asked = self._gang.broadcast(time.monotonic() - self._reported_at >= _REPORT_SECONDS, self._asked())
        reason = None if asked < 0 else _REASONS[asked]
        if due.log:
            self._log(step, named())
        elif is_late:
            self._tell(step)
        is_best = due.evaluate and self._evaluate(step)
        if step >= self._schedule.total_steps:
            return False
        if reason != StopReason.CANCEL and (due.save or is_best or reason is not None):
            self._tell(step)
            self._keep(step)
        elif reason is not None:
            self._tell(step)
        if due.evaluate or due.save:
            self.losses.skip_time()
        if reason is None:
            self._at(Activity.STEP, step + 1)
        return reason is not None

    def conclude(self, step: int) -> None:
        """The last step is done, and what came of it is the leader's to deliver: no rank needs another any more.

        Raises:
            LossNotFinite: a weight is not a finite number.
        """
        self._at(Activity.SAVE, step)
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

    # -- steps of the above

    def _at(self, activity: Activity, step: int) -> None:
        self._doing = Doing(activity, step)
        self.mark()

    def _check_weights(self, step: int) -> None:
        if not bool(torch.stack([weight.detach().isfinite().all() for weight in self._work.learned()]).all()):
            raise self._not_finite(f"the weights after step {step} are not finite numbers")

    def _asked(self) -> int:
        reason = self._stop.reason
        return -1 if reason is None else _REASONS.index(reason)

    def _tell_runner(self, report: Report) -> None:
        if self._gang.rank == 0:
            self._report(report)

    def _log(self, step: int, named: Mapping[str, float | None]) -> None:
        told = {**named, "samples_per_second": self.losses.take_rate()}
        numbers = {name: float(value) for name, value in told.items() if value is not None}
        self._tell(step, [(step, name, value) for name, value in numbers.items()])
        shown = ", ".join(f"{name} {value:.4g}" for name, value in {LOSS: self.losses.latest, **numbers}.items())
        logger.info("step %d of %d: %s", step, self._schedule.total_steps, shown)

    def _tell(self, step: int, more: Iterable[Point] = ()) -> None:
        """Report the losses since the last time, and some more.

        Raises:
            LossNotFinite: one of them is not a finite number.
        """
        self._reported_at = time.monotonic()
        points = self.losses.take()
        broken = next((at for at, name, value in points if name == LOSS and not math.isfinite(value)), None)
        good = [point for point in (*points, *more) if broken is None or point[0] < broken]
        if good:
            self._tell_runner(Progress(step if broken is None else broken - 1, tuple(good)))
        if broken == 1 and self._spec.trainer == "transformers":
            raise LossNotFinite(
                "the loss of step 1 is not a finite number, and nothing had been learned yet, so no learning rate is "
                "the cause: look at the rows, and at the weights that the training began with"
            )
        if broken is not None:
            raise self._not_finite(f"the loss of step {broken} is not a finite number")

    def _not_finite(self, what: str) -> LossNotFinite:
        return LossNotFinite(
            f"{what}; the last good checkpoint is of step {self._good_step}; a smaller learning rate may help"
        )

    def _evaluate(self, step: int) -> bool:
        """Evaluate and report. The random generators stay as they are: a later attempt need not judge again.

        Returns:
            Whether these are the best weights so far, where `checkpoint.best` wants to know.
        """
        self._at(Activity.EVALUATION, step)
        self._tell(step)  # weights of no number are not worth judging
        with rng.kept():
            metrics = dict(self._work.run_evaluation())
        self.latest_evaluation = Evaluation(step, metrics)
        self._tell_runner(Progress(step, tuple((step, name, value) for name, value in metrics.items())))
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        logger.info("step %d: evaluated: %s", step, shown)
        return self.best.offer(self.latest_evaluation, self._work.write_weights)

    def _keep(self, step: int) -> None:
        """Have a checkpoint written, and report it once it is whole.

        Raises:
            LossNotFinite: a weight is not a finite number.
            NotKept: the checkpoint cannot be written.
        """
        self._at(Activity.CHECKPOINT, step)
        self._check_weights(step)
        path = self._folder / f"checkpoint-{step}"
        with _explained(step), checkpoint_aside(path, self._gang) as aside:
            self._work.write_checkpoint(aside)
            if self._gang.rank == 0:
                (aside / _ROWS_FILE).write_text(self._digest)
                self.best.carry(aside)
        self._good_step = step
        best, latest = self._spec.checkpoint.best, self.latest_evaluation
        metric = latest.metrics[best] if best is not None and latest is not None and latest.step == step else None
        self._tell_runner(Saved(step, str(path), metric))
        logger.info("step %d: saved a checkpoint", step)


@contextmanager
def _explained(step: int) -> Iterator[None]:
    """While inside, what the system, torch or safetensors say of a full disk becomes a sentence on the checkpoint."""
    try:
        yield
    except StokerError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise NotKept(f"the checkpoint of step {step} could not be written: {one_line(error)}") from error
