"""The best weights of a training so far, by the metric `checkpoint.best`. Each checkpoint contains them."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from jobs.errors import InvalidSpec
from jobs.specs.training_options.training_metrics import Mode, is_better

_BEST_FOLDER, _BEST_FILE = "best", "best.json"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics of one evaluation."""

    step: int
    metrics: Mapping[str, float]


class Best:
    """The best weights so far by `checkpoint.best`. Each checkpoint contains them, since a resumed attempt sees only
    the newest checkpoint."""

    def __init__(self, name: str | None, mode: Mode, folder: Path, *, writes: bool = True) -> None:
        """
        Args:
            name: The metric's name; None: no weights are kept.
            mode: Whether the least or the largest value is the best.
            folder: The attempt's folder.
            writes: Whether this process writes the files; true for the leader only.
        """
        self._name, self._mode, self._writes = name, mode, writes
        self.folder = folder / _BEST_FOLDER
        """Folder of the best weights."""
        self.evaluation: Evaluation | None = None
        """The evaluation of the best weights."""

    @property
    def value(self) -> float | None:
        """The best value of the metric so far."""
        return None if self.evaluation is None or self._name is None else self.evaluation.metrics[self._name]

    def restore(self, checkpoint: Path) -> None:
        """Restore the best weights from a checkpoint."""
        if (checkpoint / _BEST_FILE).is_file():
            kept = Evaluation(**orjson.loads((checkpoint / _BEST_FILE).read_bytes()))
            metrics = {name: math.nan if value is None else value for name, value in kept.metrics.items()}
            self.evaluation = Evaluation(kept.step, metrics)  # JSON writes NaN as null
            if self._writes:
                shutil.copytree(checkpoint / _BEST_FOLDER, self.folder)

    def offer(self, evaluation: Evaluation, write: Callable[[Path], object]) -> bool:
        """Keep the present weights if they are better than all earlier ones.

        Args:
            evaluation: The evaluation of the present weights.
            write: Writes the present weights into a folder.

        Returns:
            Whether the present weights are the best.

        Raises:
            InvalidSpec: The evaluation has no such metric.
        """
        if self._name is None:
            return False
        check_has_metric(self._name, evaluation.metrics)
        value = evaluation.metrics[self._name]
        if not math.isfinite(value) or (self.value is not None and not is_better(value, self.value, self._mode)):
            return False
        if self._writes:
            shutil.rmtree(self.folder, ignore_errors=True)
            write(self.folder)
        self.evaluation = evaluation
        return True

    def carry(self, aside: Path) -> None:
        """Add the best weights to a checkpoint that is being written, by hard links."""
        if self.evaluation is not None:
            shutil.copytree(self.folder, aside / _BEST_FOLDER, copy_function=os.link)
            (aside / _BEST_FILE).write_bytes(orjson.dumps(asdict(self.evaluation)))


def check_has_metric(best: str, found: Iterable[str]) -> None:
    """Refuse a `checkpoint.best` that is no metric of an evaluation.

    Raises:
        InvalidSpec: There is no such metric; the message lists the metrics.
    """
    found = sorted(found)
    if best not in found:
        raise InvalidSpec(
            f"checkpoint.best: an evaluation has no metric '{best}'; its metrics are {', '.join(found)}",
            param="checkpoint.best",
        )
