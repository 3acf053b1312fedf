"""The types of a training module, and `rehearse`, which tries a module in this process.

Importing this module loads torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker.training.modules.user_module import Batch, Loss, Module, Parts, Phase, Rows, Setup

if TYPE_CHECKING:
    from worker.training.loops.rehearsal import Rehearsal, rehearse

__all__ = ["Batch", "Loss", "Module", "Parts", "Phase", "Rehearsal", "Rows", "Setup", "rehearse"]


def __getattr__(name: str) -> Any:
    if name not in ("Rehearsal", "rehearse"):  # they import transformers, which few modules need
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from worker.training.loops import rehearsal

    return getattr(rehearsal, name)
