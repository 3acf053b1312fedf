"""The types of a user's training module: what `build` receives and what it returns.

A module is a Python file with one function, `build(setup) -> Parts`. It makes models, optimizers and data, and defines
the loss of each optimizer. The loop does the rest: devices, mixed precision, accumulation, clipping, several slots,
checkpoints that resume bit for bit, metrics and evaluation.

Random numbers from the generators of `torch`, `numpy` or `random` resume exactly, too. The state of the generators is
saved with each checkpoint, for losses that draw numbers. For rows that draw numbers, the generators are seeded from the
training's seed, the epoch and the row.
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
"""What `collate` makes of a list of rows: a tensor, or a tuple, list or mapping of tensors. The loop moves it to the
device."""
Loss = torch.Tensor | tuple[torch.Tensor, Mapping[str, torch.Tensor]]
"""A scalar tensor, the mean over the batch's rows; or a pair of it and a mapping of names to further scalars."""


class Rows(Protocol):
    """A data set: rows by their index."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return one row."""
        ...


@renamed_arguments(judged_rows="eval_rows")
@dataclass(frozen=True, slots=True)
class Setup:
    """What `build` receives."""

    options: Mapping[str, Any]
    """The spec's `options`, unchanged."""
    seed: int
    """The spec's `arguments.seed`. The global generators are seeded with it before `build` is called."""
    device: torch.device
    """The device of the training. The loop moves models and batches to it."""
    rows: Rows | None = None
    """The rows of `data.train`, as mappings by the names in `data.columns`. None if the spec has no `data`."""
    eval_rows: Rows | None = None
    """The rows of `data.eval` or `data.eval_split`. None if the spec has neither."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One optimizer and its loss. A step runs each phase once, in order, over the same rows."""

    optimizer: Optimizer
    """An optimizer over parameters of `Parts.models`. Their gradients are zero when the phase begins."""
    loss: Callable[[Batch], Loss]
    """Computes the loss of a micro-batch, under autocast if the dtype needs it. It must not call `backward`."""
    name: str = "loss"
    """Name of the phase. With several phases, its loss is recorded as `loss_<name>`."""
    scheduler: Callable[[Optimizer, int], LRScheduler] | None = None
    """Makes a learning rate scheduler from the optimizer and the training's total number of steps."""


@renamed_arguments(judge="evaluate", judged="eval_data")
@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What `build` returns."""

    models: Mapping[str, nn.Module]
    """Name -> model. Weights are saved under these names. All that is learned or counted must be in a model."""
    phases: Sequence[Phase]
    """The phases of a step, at least one."""
    train: Rows
    """The rows to train on. `len` and each row must be the same whenever `build` is called with the same setup."""
    collate: Callable[[list[Any]], Batch] = default_collate
    """Makes a batch of a list of rows."""
    eval_data: Rows | None = None
    """The rows to evaluate. Needs `evaluate`."""
    evaluate: Callable[[Batch], Mapping[str, torch.Tensor]] | None = None
    """Computes the metrics of a batch of `eval_data`: name -> scalar, each the mean over the batch's rows. The mean
    over all rows is recorded as `eval_<name>`. Called with all models in evaluation mode and without gradients."""
    finish: Callable[[Path], None] | None = None
    """Writes further files into a folder, such as pictures or vocabularies; they become artifacts."""
    facts: Sequence[str] = ()
    """Sentences for the model's card."""


class Module(Protocol):
    """A user's module: a Python file with this function."""

    def build(self, setup: Setup, /) -> Parts:
        """Make models, optimizers and data.

        Raises:
            ValueError: An option is invalid. A message that begins with `options.` becomes the job's error unchanged.
        """
        ...
