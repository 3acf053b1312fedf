"""The training tasks. Each builds a `TaskSetup` from rows and a base model; `build` selects the task of a spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.errors import InvalidSpec
from jobs.specs.training_options.training_arguments import TrainingArguments
from worker.training.tasks import (
    image_classification,
    speech_recognition,
    text_classification,
    text_generation,
    token_classification,
)
from worker.training.tasks.data import InputRows
from worker.training.tasks.setup import BuildTask, TaskContext, TaskSetup

_TASKS: Mapping[str, BuildTask] = {
    "text-classification": text_classification.build,
    "token-classification": token_classification.build,
    "text-generation": text_generation.build,
    "image-classification": image_classification.build,
    "automatic-speech-recognition": speech_recognition.build,
}


def build(context: TaskContext, rows: InputRows, eval_rows: InputRows | None) -> TaskSetup:
    """Build the `TaskSetup` of a spec's task; see `BuildTask`."""
    setup = _TASKS[context.spec.task or ""](context, rows, eval_rows)
    _check_arguments(context.spec.training_arguments, setup.model)
    return setup


def _check_arguments(arguments: TrainingArguments, model: Any) -> None:
    """Refuse arguments that the model does not support, before the Trainer fails at its first step.

    Raises:
        InvalidSpec: The model does not support an argument.
    """
    kind = model.config.model_type
    if arguments.gradient_checkpointing and not model.supports_gradient_checkpointing:
        param = "arguments.gradient_checkpointing"
        raise InvalidSpec(f"{param}: a {kind} model does not support it", param=param)
    if arguments.neftune_noise_alpha:
        try:
            model.get_input_embeddings()
        except NotImplementedError as error:
            param = "arguments.neftune_noise_alpha"
            raise InvalidSpec(f"{param}: a {kind} model has no embeddings to add noise to", param=param) from error
