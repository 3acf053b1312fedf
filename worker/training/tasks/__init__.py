"""Training tasks: each makes a `Learning` of rows and a model to start from; `build` picks the one of a spec."""

from __future__ import annotations

from collections.abc import Mapping

from worker.training.data import InputRows
from worker.training.learning import BuildTask, Learning, Origin
from worker.training.tasks import (
    image_classification,
    speech_recognition,
    text_classification,
    text_generation,
    token_classification,
)

_TASKS: Mapping[str, BuildTask] = {
    "text-classification": text_classification.build,
    "token-classification": token_classification.build,
    "text-generation": text_generation.build,
    "image-classification": image_classification.build,
    "automatic-speech-recognition": speech_recognition.build,
}


def build(origin: Origin, rows: InputRows, judged: InputRows | None) -> Learning:
    """What a spec's task brings; see `BuildTask`."""
    return _TASKS[origin.spec.task or ""](origin, rows, judged)
