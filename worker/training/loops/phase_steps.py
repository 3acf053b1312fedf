"""One phase of a step: its loss, its gradients, exchanged with the other ranks if there are any, and its update."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from worker.training.collectives import Gang
from worker.training.loops.loss_values import LOSS
from worker.training.modules.load_module import users_code
from worker.training.modules.user_module import Batch, Loss, Parts, Phase

_OWN_NAMES = frozenset({LOSS, "epoch", "learning_rate", "grad_norm", "samples_per_second"})
_LONGEST_NAME = 200


class PhaseStep:
    """A user's phase with its scheduler; with several ranks, its gradients are exchanged."""

    def __init__(self, phase: Phase, parts: Parts, total_steps: int, gang: Gang) -> None:
        """Make the phase's scheduler, and wrap its models if there are several ranks.

        Raises:
            UserError: The phase's scheduler cannot be made.
        """
        self._is_alone = gang.size == 1
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
            # A weight that a step does not use, on one rank or on all, must not end the training. With one slot it does
            # not, either.
            self._together = DistributedDataParallel(_Call(models, self.loss), find_unused_parameters=True)
            self.loss = self._together

    def syncing(self, is_last: bool) -> contextlib.AbstractContextManager[object]:
        """Exchange gradients in the block only if it computes the last batch of a step."""
        return contextlib.nullcontext() if is_last or self._together is None else self._together.no_sync()

    def backward(self, scaled_loss: torch.Tensor) -> None:
        """Add a batch's gradients to those of the step.

        Raises:
            UserError: The backward pass of the module failed. With several ranks the error is raised unchanged, since
                the cause may be the end of another rank.
        """
        context = users_code(f"the gradient of phase '{self.name}'") if self._is_alone else contextlib.nullcontext()
        with context:
            scaled_loss.backward()  # type: ignore[no-untyped-call]

    def update(self, scaler: torch.amp.GradScaler, *, max_grad_norm: float) -> None:
        """Update the weights with the step's gradients, clipped to `max_grad_norm` if that is above 0."""
        if max_grad_norm > 0:
            scaler.unscale_(self.optimizer)
            self.grad_norm = nn.utils.clip_grad_norm_(self.weights, max_grad_norm)
        with users_code(f"the optimizer of phase '{self.name}'"):
            scaler.step(self.optimizer)
        if self.scheduler is not None:
            with users_code(f"the scheduler of phase '{self.name}'"):
                self.scheduler.step()


class _Call(nn.Module):
    """Wraps a loss as a module, since `DistributedDataParallel` exchanges gradients when a module is called.

    Its submodules are the models that the phase trains.
    """

    def __init__(self, models: list[nn.Module], loss: Callable[[Batch], Loss]) -> None:
        super().__init__()
        self.models, self._loss = nn.ModuleList(models), loss

    def forward(self, batch: Batch) -> Loss:
        """See `Phase.loss`. Further scalars are detached, so that no rank waits for gradients of weights that only they
        use."""
        found = self._loss(batch)
        if isinstance(found, tuple):
            return found[0], {name: value.detach() for name, value in found[1].items()}
        return found


def _explained(phase: Phase) -> Callable[[Batch], Loss]:
    """Return a phase's loss with its errors reported as the module's; errors of the exchange around it are not."""

    def loss(batch: Batch) -> Loss:
        with users_code(f"the loss of phase '{phase.name}'"):
            found = phase.loss(batch)
            value, more = found if isinstance(found, tuple) and len(found) == 2 else (found, {})
            if not _is_scalar(value) or not isinstance(more, Mapping):
                raise TypeError(
                    "it must return a scalar tensor, or a scalar tensor and a mapping of further scalar tensors"
                )
            for name, further in more.items():
                check_metric_name(name)
                if not _is_scalar(further):
                    raise TypeError(f"its '{name}' is not a scalar tensor")
        return found

    return loss


def check_metric_name(name: object) -> None:
    """Raise ValueError if a metric cannot have this name."""
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"{name!r:.80} cannot name a metric: it must be a text of 1 to {_LONGEST_NAME} characters")
    if name in _OWN_NAMES:
        raise ValueError(f"the loop has a metric '{name}' of its own; choose another name")


def _is_scalar(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 0
