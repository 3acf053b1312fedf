"""The plain loop of `trainer: torch`. It trains what a module builds; `Steps` does what follows each step."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from jobs.config.access_rules import AccessRules
from jobs.errors import InvalidSpec
from jobs.specs.training import recipe_name
from worker.device import pick_device, resolve_dtype
from worker.stop import Stop
from worker.training.collectives import Gang
from worker.training.loops import rng
from worker.training.loops.data_loading import Draw, Layout, load
from worker.training.loops.loop_inputs import LoopInputs
from worker.training.loops.loop_state import read_state, restore_phases, write_state
from worker.training.loops.loss_values import LOSS
from worker.training.loops.phase_steps import PhaseStep, check_metric_name
from worker.training.loops.schedule import Schedule, halved, too_few_rows
from worker.training.loops.steps import Steps
from worker.training.modules.dependencies import Sources
from worker.training.modules.load_module import build_parts, load_module, source_of, users_code
from worker.training.modules.user_module import Batch, Module, Rows, Setup
from worker.training.plan import Plan
from worker.training.reports import RankReport, Stopped
from worker.training.results.best_weights import check_has_metric
from worker.training.results.export_results import TrainingSummary, write_module_artifacts
from worker.training.results.weights import learned_weights, read_models, write_models


def train(plan: Plan, *, gang: Gang, rules: AccessRules, stop: Stop, report: Callable[[RankReport], None]) -> None:
    """Train what a plan's module builds, to the end or until a stop is requested.

    Raises:
        UserError: The module, the data or an argument is invalid, or the loss is not a finite number.
    """
    spec = plan.spec
    assert spec.module is not None
    roots = () if recipe_name(spec.module) is not None else (*rules.code_roots, Path(spec.module).resolve().parent)
    has_kept = plan.resume is not None and plan.goes_on
    sources = Sources.restore(roots, Path(plan.resume or "")) if has_kept else Sources(roots)
    with sources.importing():  # for the whole training, since a loss or a row may import files, too
        module = load_module(spec.module, rules, sources)
        with gang.leader_first():  # the leader prepares the rows, and the others find them
            inputs = LoopInputs.of(spec, plan, rules)
        Loop(plan, module, inputs, gang, stop=stop, report=report, sources=sources).run()


class Loop:
    """One attempt of a training in plain PyTorch, on one rank."""

    def __init__(
        self,
        plan: Plan,
        module: Module,
        inputs: LoopInputs,
        gang: Gang,
        *,
        stop: Stop,
        report: Callable[[RankReport], None],
        sources: Sources | None = None,
    ) -> None:
        """Build the parts of the training.

        Args:
            plan: What this attempt trains, and where.
            module: The user's module.
            inputs: The rows of the spec's `data`.
            gang: All ranks of the training.
            stop: The stop request, if any.
            report: Sends a report to the runner.
            sources: The files that the module was imported from, to be saved with checkpoints and artifacts.

        Raises:
            UserError: The module failed, or an argument does not fit what it built.
        """
        self._plan, self._spec, self._gang, self._report = plan, plan.spec, gang, report
        self._module, self._sources = module, sources or Sources()
        self._folder = Path(plan.folder)
        self._device = pick_device()
        self._dtype = resolve_dtype(self._spec.dtype, self._device)
        arguments = self._spec.training_arguments
        seed = arguments.seed
        rng.seed_all(seed)
        setup = Setup(dict(self._spec.options), seed, self._device, inputs.rows, inputs.eval_rows)
        self._parts = build_parts(module, setup)
        rng.seed_all(seed + gang.rank)  # each rank draws different random numbers
        micro_batch, accumulation = halved(arguments, plan.num_halvings)
        self._layout = Layout(
            num_rows=len(self._parts.train),
            seed=seed,
            micro_batch=micro_batch,
            accumulation=accumulation,
            drops_last=arguments.dataloader_drop_last,
            rank=gang.rank,
            num_ranks=gang.size,
        )
        self._schedule = self._make_schedule()
        self._phase_steps = [
            PhaseStep(phase, self._parts, self._schedule.total_steps, gang) for phase in self._parts.phases
        ]
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._dtype is torch.float16)
        digest = f"{self._layout.num_rows} rows {inputs.digest}"
        self._steps = Steps(plan, self, gang, digest=digest, stop=stop, report=report)
        self._step = 0

    def run(self) -> None:
        """Train, evaluate and write the artifacts; or stop early if a stop is requested."""
        started = time.monotonic()
        if self._plan.resume is not None:
            self._restore(Path(self._plan.resume))
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        layout = self._layout
        self._steps.begin(self._step, self._schedule, num_rows=layout.num_rows, step_rows=layout.step_rows)
        self._check_best()
        self._set_learning(learning=True)
        while self._step < self._steps.total_steps:
            epoch, first_step = divmod(self._step, layout.epoch_steps)
            for batches in self._load_steps(layout.steps(epoch, first_step)):
                self._learn(batches)
                self._step += 1
                if self._steps.after(self._step, self._metrics):
                    self._report(Stopped(self._step))
                    return
                if self._step == self._steps.total_steps:
                    break
        self._steps.conclude(self._step)
        if self._gang.rank == 0:
            self._steps.finish(
                self._step,
                self._write_artifacts,
                epochs=self._step / layout.epoch_steps,
                micro_batch=layout.micro_batch,
                accumulation=layout.accumulation,
                seconds=time.monotonic() - started,
            )

    def _load_steps(self, steps: list[list[list[Draw]]]) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each step."""
        draws = [batch for step in steps for batch in step]
        with users_code("loading a batch of Parts.train"):
            loaded = self._load(self._parts.train, draws)
        for step in steps:
            with users_code("loading a batch of Parts.train"):
                batches = [next(loaded) for _ in step]
            yield batches

    def _load(self, rows: Rows, draws: list[list[Draw]]) -> Iterator[Batch]:
        return load(
            rows,
            draws,
            collate=self._parts.collate,
            seed=self._layout.seed,
            num_workers=self._spec.training_arguments.dataloader_num_workers,
            device=self._device,
        )

    def _learn(self, batches: list[Batch]) -> None:
        """Run each phase once over the micro-batches of a step."""
        total: torch.Tensor | float = 0.0
        recorded: dict[str, torch.Tensor] = {}
        max_grad_norm = self._spec.training_arguments.max_grad_norm
        for phase_step in self._phase_steps:
            phase_step.optimizer.zero_grad(set_to_none=True)
            for number, batch in enumerate(batches):
                with phase_step.syncing(number == len(batches) - 1):
                    loss, more = self._loss(phase_step, batch)
                    phase_step.backward(self._scaler.scale(loss / len(batches)))
                self._steps.mark()
                total = total + loss.detach().float() / len(batches)
                if len(self._phase_steps) > 1:
                    more = {**more, f"loss_{phase_step.name}": loss}
                for name, value in more.items():
                    recorded[name] = recorded.get(name, 0.0) + value.detach().float() / len(batches)
            phase_step.update(self._scaler, max_grad_norm=max_grad_norm)
        self._scaler.update()
        self._steps.losses.add({LOSS: torch.as_tensor(total), **recorded})

    def _loss(self, phase_step: PhaseStep, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        with self._autocast():
            found = phase_step.loss(batch)
        return found if isinstance(found, tuple) else (found, {})

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not torch.float32)

    def _metrics(self) -> dict[str, float | None]:
        """Return the metrics of a step that are logged beside its losses."""
        metrics: dict[str, float | None] = {"epoch": self._step / self._layout.epoch_steps}
        for phase_step in self._phase_steps:
            suffix = "" if len(self._phase_steps) == 1 else f"_{phase_step.name}"
            metrics[f"learning_rate{suffix}"] = float(phase_step.optimizer.param_groups[0]["lr"])
            metrics[f"grad_norm{suffix}"] = None if phase_step.grad_norm is None else float(phase_step.grad_norm)
        return metrics

    def _set_learning(self, *, learning: bool) -> None:
        for model in self._parts.models.values():
            model.train(learning)

    def run_evaluation(self) -> dict[str, float]:
        """See `Work`. The rows are divided between the ranks."""
        eval_data = self._parts.eval_data
        assert eval_data is not None
        num_rows = self._spec.training_arguments.per_device_eval_batch_size
        starts = range(self._gang.rank * num_rows, len(eval_data), self._gang.size * num_rows)
        draws = [[(-1, row) for row in range(start, min(start + num_rows, len(eval_data)))] for start in starts]
        shares = self._gang.all_gather(self._evaluation_sums(draws))
        names = [name for share in shares[:1] for name in share]
        return {f"eval_{name}": sum(share.get(name, 0.0) for share in shares) / len(eval_data) for name in names}

    def _evaluation_sums(self, draws: list[list[Draw]]) -> dict[str, float]:
        """Return the sum over rows of each metric, by the module's own names."""
        eval_data, evaluate = self._parts.eval_data, self._parts.evaluate
        assert eval_data is not None
        assert evaluate is not None
        sums: dict[str, float] = defaultdict(float)
        self._set_learning(learning=False)
        with torch.no_grad(), users_code("evaluating a batch of Parts.eval_data"):
            for batch, rows in zip(self._load(eval_data, draws), draws, strict=True):
                self._steps.mark()
                with self._autocast():
                    found = evaluate(batch)
                for name, value in found.items():
                    check_metric_name(f"eval_{name}")
                    sums[name] += float(value) * len(rows)
        self._set_learning(learning=True)
        return dict(sums)

    def _check_best(self) -> None:
        """Evaluate one batch before the first step if `checkpoint.best` names a metric that only the module knows.

        Otherwise the first evaluation, after many steps, would show that the module has no such metric.

        Raises:
            InvalidSpec: The module has no such metric.
        """
        best = self._spec.checkpoint.best
        if best is None or self._spec.eval_metrics is not None or self._step > 0:
            return
        assert self._parts.eval_data is not None
        num_rows = self._spec.training_arguments.per_device_eval_batch_size
        with rng.kept():
            found = self._evaluation_sums([[(-1, row) for row in range(min(num_rows, len(self._parts.eval_data)))]])
        check_has_metric(best, [f"eval_{name}" for name in found])

    def write_checkpoint(self, folder: Path) -> None:
        """See `Work`."""
        rng.save(folder, self._gang.rank)
        if self._gang.rank != 0:
            return
        self.write_weights(folder)
        self._sources.carry(folder)
        write_state(folder, self._step, self._phase_steps, self._scaler)

    def write_weights(self, folder: Path) -> None:
        """See `Work`."""
        write_models(folder, self._parts)

    def load_weights(self, folder: Path) -> None:
        """See `Work`."""
        read_models(folder, self._parts)

    def learned(self) -> Iterable[torch.Tensor]:
        """See `Work`."""
        return learned_weights(self._parts)

    def _make_schedule(self) -> Schedule:
        epoch_steps = self._layout.epoch_steps
        if epoch_steps == 0:
            raise too_few_rows(self._layout.num_rows, param="module")
        arguments, has_eval = self._spec.training_arguments, self._parts.eval_data is not None
        wanted = self._spec.evaluation_param
        if not has_eval and wanted is not None:
            raise InvalidSpec(f"{wanted}: needs rows to evaluate, but the module sets no Parts.eval_data", param=wanted)
        total = arguments.max_steps or round(arguments.num_train_epochs * epoch_steps)
        return Schedule.of(self._spec, total_steps=max(1, total), epoch_steps=epoch_steps, has_eval=has_eval)

    def _restore(self, checkpoint: Path) -> None:
        self._steps.restore(checkpoint)
        state = read_state(checkpoint)
        with users_code("the Parts from build do not fit the checkpoint to resume from"):
            read_models(checkpoint, self._parts)
            restore_phases(state, self._phase_steps)
        self._scaler.load_state_dict(state["scaler"])
        self._step = state["step"]
        rng.load(checkpoint, self._gang.rank)

    def _write_artifacts(self, folder: Path, summary: TrainingSummary) -> dict[str, Any]:
        self._set_learning(learning=False)
        source = self._sources.read(str(source_of(self._module)))
        with torch.no_grad():
            return write_module_artifacts(folder, self._parts, self._spec, summary, source=source, device=self._device)
