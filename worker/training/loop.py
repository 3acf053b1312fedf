"""The plain loop of `trainer: torch`: it trains what a module builds, and what follows a step is `Steps`' to decide."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from jobs.errors import InvalidInput, InvalidSpec
from jobs.settings import Settings
from jobs.specs import TrainingSpec
from worker.device import pick_device, resolve_dtype
from worker.stop import Stop
from worker.training import generators
from worker.training.batches import Layout, Place, load
from worker.training.delivery import Course, deliver_parts
from worker.training.gang import Gang
from worker.training.loading import build_parts, load_module, source_of, users_code
from worker.training.losses import LOSS
from worker.training.module import Batch, Loss, Module, Parts, Phase, Rows, Setup
from worker.training.plan import Plan
from worker.training.reports import Finished, Report, Stopped
from worker.training.schedule import Schedule, halved
from worker.training.steps import Steps
from worker.training.weights import learned_weights, read_models, write_models

logger = logging.getLogger(__name__)

_STATE_FILE = "state.pt"
_GENERATORS_FILE = "generators-{rank}.pt"
_NUMBERS_OF_NUMPY: list[Any] = [
    np.dtype, np.float64(0).__reduce__()[0], *(type(np.dtype(name)) for name in ("f8", "f4", "f2", "i8", "i4", "?"))
]  # fmt: skip
"""A schedule that computes with numpy leaves such numbers in its state and its optimizer's."""
_OWN_NAMES = frozenset({LOSS, "epoch", "learning_rate", "grad_norm", "samples_per_second"})
_LONGEST_NAME = 200
_EVAL_ROWS = 8
"""`per_device_eval_batch_size` unless the spec says otherwise, as transformers has it."""


def train(plan: Plan, *, gang: Gang, settings: Settings, stop: Stop, report: Callable[[Report], None]) -> None:
    """Train what a plan's module builds, to its end or to a stop.

    Raises:
        UserError: the module, the data or an argument cannot be used, or the loss is not a number.
    """
    spec = plan.training_spec()
    assert spec.module is not None
    module = load_module(spec.module, settings)
    with gang.leader_first():  # who finds the rows prepared need not prepare them
        given = Given.of(spec, plan, settings)
    Loop(plan, module, given, gang, stop=stop, report=report).run()


@dataclass(frozen=True, slots=True)
class Given:
    """The rows of a spec's `data`, where it has one."""

    rows: Rows | None = None
    judged: Rows | None = None
    digest: str = ""
    """Of `rows`."""

    @classmethod
    def of(cls, spec: TrainingSpec, plan: Plan, settings: Settings) -> Given:
        """Read them, or find them prepared."""
        if spec.data is None:
            return cls()
        from worker.training.data import Rows as InputRows  # loads pyarrow and datasets
        from worker.training.data import as_they_are

        folder = Path(plan.folder) / "data" if plan.cache is None else Path(plan.cache)
        source = InputRows(spec.data.train_input, spec.columns(), settings, param="data.train")
        rows, digest = as_they_are(source, folder)
        if spec.data.eval_input is None:
            return cls(rows, digest=digest)
        param = "data.eval" if spec.data.eval is not None else "data.eval_split"
        judged, _ = as_they_are(InputRows(spec.data.eval_input, spec.columns(), settings, param=param), folder)
        return cls(rows, judged, digest)


class Loop:
    """A training of plain PyTorch."""

    def __init__(
        self,
        plan: Plan,
        module: Module,
        given: Given,
        gang: Gang,
        *,
        stop: Stop,
        report: Callable[[Report], None],
    ) -> None:
        """Have the parts built.

        Args:
            plan: of the attempt.
            module: the user's.
            given: the rows that the spec names.
            gang: of which this process is a rank.
            stop: asked when it is to end before its end.
            report: is told what the runner must know.

        Raises:
            UserError: the module failed, or an argument does not go with what it built.
        """
        self._plan, self._spec, self._gang, self._report = plan, plan.training_spec(), gang, report
        self._module = module
        self._folder = Path(plan.folder)
        self._device = pick_device()
        self._dtype = _autocast_dtype(self._spec, self._device)
        arguments = self._spec.arguments
        seed = int(arguments.get("seed", 42))
        _seed_all(seed)
        setup = Setup(dict(self._spec.options), seed, self._device, given.rows, given.judged)
        self._parts = build_parts(module, setup)
        _seed_all(seed + gang.rank)  # what each rank draws is its own
        micro_batch, accumulation = halved(
            arguments.get("per_device_train_batch_size", 8),
            arguments.get("gradient_accumulation_steps", 1),
            plan.num_halvings,
        )
        self._layout = Layout(
            num_rows=len(self._parts.train),
            seed=seed,
            micro_batch=micro_batch,
            accumulation=accumulation,
            drops_last=arguments.get("dataloader_drop_last", False),
            rank=gang.rank,
            num_ranks=gang.size,
        )
        self._schedule = self._make_schedule()
        self._turns = [_Turn(phase, self._parts, self._schedule.total_steps, gang) for phase in self._parts.phases]
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._dtype is torch.float16)
        digest = f"{self._layout.num_rows} rows {given.digest}"
        self._steps = Steps(plan, self, gang, digest=digest, stop=stop, report=report)
        self._step = 0

    def run(self) -> None:
        """Train, judge, and hand over what came of it; or stop."""
        started = time.monotonic()
        if self._plan.resume is not None:
            self._restore(Path(self._plan.resume))
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        layout = self._layout
        self._steps.begin(self._step, self._schedule, num_rows=layout.num_rows, step_rows=layout.step_rows)
        self._set_learning(learning=True)
        while self._step < self._schedule.total_steps:
            epoch, first_step = divmod(self._step, layout.epoch_steps)
            for batches in self._load_steps(layout.steps(epoch, first_step)):
                self._learn(batches)
                self._step += 1
                if self._steps.after(self._step, self._named):
                    self._report(Stopped(self._step))
                    return
                if self._step == self._schedule.total_steps:
                    break
        self._steps.conclude(self._step)
        if self._gang.rank == 0:
            self._finish(time.monotonic() - started)

    # -- a step -------------------------------------------------------------------------------------------------------

    def _load_steps(self, steps: list[list[list[Place]]]) -> Iterator[list[Batch]]:
        """The batches of each step."""
        places = [batch for step in steps for batch in step]
        with users_code("loading a batch of Parts.train"):
            loaded = self._load(self._parts.train, places)
        for step in steps:
            with users_code("loading a batch of Parts.train"):
                batches = [next(loaded) for _ in step]
            yield batches

    def _load(self, rows: Rows, places: list[list[Place]]) -> Iterator[Batch]:
        return load(
            rows,
            places,
            collate=self._parts.collate,
            seed=self._layout.seed,
            num_workers=self._spec.arguments.get("dataloader_num_workers", 0),
            device=self._device,
        )

    def _learn(self, batches: list[Batch]) -> None:
        """One turn of each phase over a step's batches."""
        total: torch.Tensor | float = 0.0
        told: dict[str, torch.Tensor] = {}
        for turn in self._turns:
            turn.optimizer.zero_grad(set_to_none=True)
            for number, batch in enumerate(batches):
                with turn.syncing(number == len(batches) - 1):
                    loss, more = self._loss(turn, batch)
                    self._backward(turn, loss / len(batches))
                total = total + loss.detach().float() / len(batches)
                if len(self._turns) > 1:
                    more = {**more, f"loss_{turn.name}": loss}
                for name, value in more.items():
                    told[name] = told.get(name, 0.0) + value.detach().float() / len(batches)
            self._update(turn)
        self._scaler.update()
        self._steps.losses.add({LOSS: torch.as_tensor(total), **told})

    def _loss(self, turn: _Turn, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        with self._autocast():
            found = turn.loss(batch)
        return found if isinstance(found, tuple) else (found, {})

    def _backward(self, turn: _Turn, loss: torch.Tensor) -> None:
        scaled: torch.Tensor = self._scaler.scale(loss)
        # In a gang the other ranks take part, and what fails may be one of them.
        blamed = (
            users_code(f"the gradient of phase '{turn.name}'") if self._gang.size == 1 else contextlib.nullcontext()
        )
        with blamed:
            scaled.backward()  # type: ignore[no-untyped-call]

    def _update(self, turn: _Turn) -> None:
        limit = float(self._spec.arguments.get("max_grad_norm", 0.0))
        if limit > 0:
            self._scaler.unscale_(turn.optimizer)
            turn.grad_norm = nn.utils.clip_grad_norm_(turn.weights, limit)
        with users_code(f"the optimizer of phase '{turn.name}'"):
            self._scaler.step(turn.optimizer)
        if turn.scheduler is not None:
            with users_code(f"the scheduler of phase '{turn.name}'"):
                turn.scheduler.step()

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not torch.float32)

    def _named(self) -> dict[str, float | None]:
        """What is logged of a step beside its losses."""
        named: dict[str, float | None] = {"epoch": self._step / self._layout.epoch_steps}
        for turn in self._turns:
            suffix = "" if len(self._turns) == 1 else f"_{turn.name}"
            named[f"learning_rate{suffix}"] = float(turn.optimizer.param_groups[0]["lr"])
            named[f"grad_norm{suffix}"] = None if turn.grad_norm is None else float(turn.grad_norm)
        return named

    def _set_learning(self, *, learning: bool) -> None:
        for model in self._parts.models.values():
            model.train(learning)

    # -- called by `Steps` ----------------------------------------------------------------------------------------

    def judge(self) -> dict[str, float]:
        """See `Work`. Ranks share the rows."""
        judged, judge = self._parts.judged, self._parts.judge
        assert judged is not None
        assert judge is not None
        num_rows = self._spec.arguments.get("per_device_eval_batch_size", _EVAL_ROWS)
        starts = range(self._gang.rank * num_rows, len(judged), self._gang.size * num_rows)
        places = [[(-1, row) for row in range(start, min(start + num_rows, len(judged)))] for start in starts]
        sums: dict[str, float] = defaultdict(float)
        self._set_learning(learning=False)
        with torch.no_grad(), users_code("judging a batch of Parts.judged"):
            for batch, rows in zip(self._load(judged, places), places, strict=True):
                with self._autocast():
                    found = judge(batch)
                for name, value in found.items():
                    _check_name(f"eval_{name}")
                    sums[name] += float(value) * len(rows)
        self._set_learning(learning=True)
        shares = self._gang.gather(dict(sums))
        names = [name for share in shares[:1] for name in share]
        return {f"eval_{name}": sum(share.get(name, 0.0) for share in shares) / len(judged) for name in names}

    def write_checkpoint(self, folder: Path) -> None:
        """See `Work`."""
        torch.save(generators.states(), folder / _GENERATORS_FILE.format(rank=self._gang.rank))
        if self._gang.rank != 0:
            return
        self.write_weights(folder)
        state = {
            "step": self._step,
            "optimizers": [turn.optimizer.state_dict() for turn in self._turns],
            "schedulers": [None if turn.scheduler is None else turn.scheduler.state_dict() for turn in self._turns],
            "scaler": self._scaler.state_dict(),
        }
        torch.save(state, folder / _STATE_FILE)

    def write_weights(self, folder: Path) -> None:
        """See `Work`."""
        write_models(folder, self._parts)

    def learned(self) -> Iterable[torch.Tensor]:
        """See `Work`."""
        return learned_weights(self._parts)

    # -- its ends -------------------------------------------------------------------------------------------------

    def _make_schedule(self) -> Schedule:
        epoch_steps = self._layout.epoch_steps
        if epoch_steps == 0:
            raise InvalidInput(
                f"module: {self._layout.num_rows} rows do not fill one batch, and arguments.dataloader_drop_last drops "
                "the rest",
                param="module",
            )
        given, has_eval = self._spec.arguments, self._parts.judged is not None
        if not has_eval and (self._spec.checkpoint.best is not None or given.get("eval_strategy", "no") != "no"):
            param = "checkpoint.best" if self._spec.checkpoint.best is not None else "arguments.eval_strategy"
            raise InvalidSpec(f"{param}: the module builds no rows to judge by, Parts.judged", param=param)
        total = given.get("max_steps") or round(float(given.get("num_train_epochs", 3)) * epoch_steps)
        return Schedule.of(self._spec, total_steps=max(1, total), epoch_steps=epoch_steps, has_eval=has_eval)

    def _restore(self, checkpoint: Path) -> None:
        self._steps.restore(checkpoint)
        with torch.serialization.safe_globals(_NUMBERS_OF_NUMPY):
            state = torch.load(checkpoint / _STATE_FILE, map_location="cpu", weights_only=True)
        with users_code("what build made does not fit the checkpoint to go on from"):
            read_models(checkpoint, self._parts)
            for turn, optimizer, scheduler in zip(self._turns, state["optimizers"], state["schedulers"], strict=True):
                turn.optimizer.load_state_dict(optimizer)
                if turn.scheduler is not None:
                    turn.scheduler.load_state_dict(scheduler)
        self._scaler.load_state_dict(state["scaler"])
        self._step = state["step"]
        name = _GENERATORS_FILE.format(rank=self._gang.rank)
        generators.restore(torch.load(checkpoint / name, map_location="cpu", weights_only=True))

    def _finish(self, seconds: float) -> None:
        best = self._steps.best.judged
        if best is not None and best.step != self._step:
            logger.info("the best weights are those of step %d", best.step)
            read_models(self._steps.best.folder, self._parts)
        course = Course(
            step=self._step,
            resumed_step=self._steps.resumed_step,
            epochs=self._step / self._layout.epoch_steps,
            seconds=seconds,
            rows_per_second=self._steps.losses.mean_rate,
            last_loss=self._steps.losses.latest,
            micro_batch=self._layout.micro_batch,
            accumulation=self._layout.accumulation,
            num_slots=self._gang.size,
            judged=self._steps.judged if best is None else best,
            has_chosen=best is not None,
        )
        self._set_learning(learning=False)
        made = self._folder / "made"
        with torch.no_grad():
            summary = deliver_parts(
                made, self._parts, self._spec, course, source=source_of(self._module), device=self._device
            )
        self._report(Finished(self._step, str(made), summary))


class _Turn:
    """A phase with its schedule, and its loss as all ranks compute it together."""

    def __init__(self, phase: Phase, parts: Parts, total_steps: int, gang: Gang) -> None:
        self.name, self.optimizer = phase.name, phase.optimizer
        self.weights = [weight for group in phase.optimizer.param_groups for weight in group["params"]]
        self.grad_norm: torch.Tensor | None = None
        with users_code(f"the scheduler of phase '{phase.name}'"):
            self.scheduler: LRScheduler | None = phase.scheduler and phase.scheduler(phase.optimizer, total_steps)
        self.loss: Callable[[Batch], Loss] = _explained(phase)
        self._together: DistributedDataParallel | None = None
        if gang.size > 1:
            mine = {id(weight) for weight in self.weights}
            models = [
                model for model in parts.models.values() if any(id(weight) in mine for weight in model.parameters())
            ]
            self._together = DistributedDataParallel(_Call(models, self.loss))
            self.loss = self._together

    def syncing(self, is_last: bool) -> contextlib.AbstractContextManager[object]:
        """Gradients are exchanged with the last batch of a step alone."""
        return contextlib.nullcontext() if is_last or self._together is None else self._together.no_sync()


class _Call(nn.Module):
    """A loss as a model, since gradients are exchanged where a model is called. It has those models that learn."""

    def __init__(self, models: list[nn.Module], loss: Callable[[Batch], Loss]) -> None:
        super().__init__()
        self.models, self._loss = nn.ModuleList(models), loss

    def forward(self, batch: Batch) -> Loss:
        """See `Phase.loss`."""
        return self._loss(batch)


def _explained(phase: Phase) -> Callable[[Batch], Loss]:
    """A phase's loss, whose faults are the module's; those of the exchange around it are not."""

    def loss(batch: Batch) -> Loss:
        with users_code(f"the loss of phase '{phase.name}'"):
            found = phase.loss(batch)
            value, more = found if isinstance(found, tuple) and len(found) == 2 else (found, {})
            if not _is_scalar(value) or not isinstance(more, Mapping):
                raise TypeError("it must return a scalar tensor, or that and a mapping of further ones")
            for name, further in more.items():
                _check_name(name)
                if not _is_scalar(further):
                    raise TypeError(f"its '{name}' is no scalar tensor")
        return found

    return loss


def _is_scalar(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 0


def _check_name(name: object) -> None:
    """Raises ValueError where a metric cannot be called that."""
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"{name!r:.80} cannot name a metric: it must be a text of 1 to {_LONGEST_NAME} characters")
    if name in _OWN_NAMES:
        raise ValueError(f"'{name}' is what the loop calls a metric of its own")


def _autocast_dtype(spec: TrainingSpec, device: torch.device) -> torch.dtype:
    dtype = resolve_dtype(spec.dtype, device)
    if dtype is torch.float16 and device.type == "cpu":
        raise InvalidSpec("dtype: a CPU cannot train in float16; use auto or bfloat16", param="dtype")
    return dtype


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.manual_seed(seed)
