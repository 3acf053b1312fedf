"""What a training in plain PyTorch is made of: a module's `build`, and the parts that it returns.

A module is a Python file with one function, `build(setup) -> Parts`. It makes models, optimizers and data, and says
what each optimizer learns from a batch. The loop does the rest: devices, mixed precision, accumulation, clipping,
several slots, checkpoints that resume bit for bit, metrics and evaluation.

Whatever the module draws from the generators of `torch`, `numpy` or `random` is part of what resumes exactly: in a
loss, since their state belongs to each checkpoint; in a data set's row, since each row is drawn from generators that
are seeded by the training's seed, the epoch and the row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import default_collate

from worker.training.modules.old_names import renamed_arguments

Batch = Any
"""What `collate` makes of some rows: tensors, or tuples, lists and mappings of them; on the device when it is seen."""
Loss = torch.Tensor | tuple[torch.Tensor, Mapping[str, torch.Tensor]]
"""A scalar, the mean over the batch's rows; or that and further scalars to be recorded, by their names."""


class Rows(Protocol):
    """A data set: rows by number."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """One of them."""
        ...


@renamed_arguments(judged_rows="eval_rows")
@dataclass(frozen=True, slots=True)
class Setup:
    """What a module is told."""

    options: Mapping[str, Any]
    """The spec's `options`, as they are."""
    seed: int
    """`arguments.seed`. The global generators are seeded with it when `build` is called."""
    device: torch.device
    """Where it will compute. The loop moves the models there, whole; batches as well."""
    rows: Rows | None = None
    """Those of `data.train`, as mappings by the names in `data.columns`; None where the spec has no `data`."""
    eval_rows: Rows | None = None
    """Those of `data.eval` or `data.eval_split`; None where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One optimizer's turn in a step. A step is one turn of each phase, in their order, over the same rows."""

    optimizer: Optimizer
    """Over parameters of `Parts.models`, in groups of its own. Their gradients are zero when the turn begins."""
    loss: Callable[[Batch], Loss]
    """What the optimizer makes smaller. Called once for each micro-batch, under autocast where the dtype asks for it;
    it must not call `backward`."""
    name: str = "loss"
    """By which its loss is recorded, where there are several phases."""
    scheduler: Callable[[Optimizer, int], LRScheduler] | None = None
    """Makes a schedule of learning rates from the optimizer and the training's number of steps."""


@renamed_arguments(judge="evaluate", judged="eval_data")
@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a module builds."""

    models: Mapping[str, nn.Module]
    """By their names, under which their weights are saved. All that is learned or counted is in them."""
    phases: Sequence[Phase]
    """At least one."""
    train: Rows
    """The rows to learn from. `len` and each row must be the same whenever `build` is called with the same setup."""
    collate: Callable[[list[Any]], Batch] = default_collate
    eval_data: Rows | None = None
    """The rows to evaluate."""
    evaluate: Callable[[Batch], Mapping[str, torch.Tensor]] | None = None
    """Scalars, each a mean over the batch's rows, by their names; recorded as `eval_<name>`, as the mean over all rows.
    Called with all models in evaluation mode and without gradients."""
    finish: Callable[[Path], None] | None = None
    """Writes further files into a folder that becomes artifacts: pictures, vocabularies, ..."""
    facts: Sequence[str] = ()
    """Sentences for the model's card."""


class Module(Protocol):
    """A user's module."""

    def build(self, setup: Setup, /) -> Parts:
        """Make models, optimizers and data.

        Raises:
            ValueError: an option cannot be used; a message that begins with `options.` is the job's error as it is.
        """
        ...
