"""The state of a plain loop in a checkpoint: step, optimizers, learning rate schedulers and loss scaler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worker.training.loops.phase_steps import PhaseStep

_STATE_FILE = "state.pt"
_NUMBERS_OF_NUMPY: list[Any] = [
    np.dtype, np.float64(0).__reduce__()[0], *(type(np.dtype(name)) for name in ("f8", "f4", "f2", "i8", "i4", "?"))
]  # fmt: skip
"""Types of numbers that a scheduler that computes with numpy leaves in its own state and in its optimizer's."""


def write_state(folder: Path, step: int, phase_steps: Sequence[PhaseStep], scaler: torch.amp.GradScaler) -> None:
    """Write the state after a step into the folder of a checkpoint."""
    schedulers = [phase_step.scheduler for phase_step in phase_steps]
    state = {
        "step": step,
        "optimizers": [phase_step.optimizer.state_dict() for phase_step in phase_steps],
        "schedulers": [None if scheduler is None else scheduler.state_dict() for scheduler in schedulers],
        "scaler": scaler.state_dict(),
    }
    torch.save(state, folder / _STATE_FILE)


def read_state(folder: Path) -> dict[str, Any]:
    """Read what `write_state` wrote."""
    with torch.serialization.safe_globals(_NUMBERS_OF_NUMPY):
        state: dict[str, Any] = torch.load(folder / _STATE_FILE, map_location="cpu", weights_only=True)
    return state


def restore_phases(state: dict[str, Any], phase_steps: Sequence[PhaseStep]) -> None:
    """Restore the optimizers and the learning rate schedulers.

    Raises:
        ValueError: The module built others than those of the checkpoint.
    """
    states = zip(state["optimizers"], state["schedulers"], strict=True)
    for phase_step, (optimizer, scheduler) in zip(phase_steps, states, strict=True):
        phase_step.optimizer.load_state_dict(optimizer)
        if phase_step.scheduler is not None:
            phase_step.scheduler.load_state_dict(scheduler)
