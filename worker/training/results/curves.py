"""Writes a training's metrics for people: a picture of the loss, and TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_PLOTTED = ("loss", "eval_loss")


def write_curves(folder: Path, points: Sequence[tuple[int, str, float]]) -> None:
    """Write `loss.png`, and `runs/` for TensorBoard.

    Args:
        folder: The folder to write to.
        points: All metrics as (step, name, value), in the order of steps.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "runs")) as writer:
        for step, name, value in points:
            writer.add_scalar(name, value, step)
    _plot(folder / "loss.png", points)


def _plot(path: Path, points: Sequence[tuple[int, str, float]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)  # pyplot would need a window system and keep state
    axes = figure.subplots()
    for name in _PLOTTED:
        curve = [(step, value) for step, each, value in points if each == name]
        if curve:
            axes.plot(*zip(*curve, strict=True), label=name, marker="o" if len(curve) < 20 else "")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=120)
