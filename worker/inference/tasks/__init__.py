"""Inference tasks: each loads a model's files as a `TaskModel`; `load_task_model` selects the one for a model."""

from __future__ import annotations

from typing import Any

import torch

from jobs.access.joint_models import image_with_texts_only, is_joint
from jobs.config.access_rules import AccessRules
from jobs.specs.inference import InferenceSpec
from worker.inference.pipelines.staged import Staged
from worker.inference.tasks.embeddings import Embeddings
from worker.inference.tasks.fill_mask import FillMask
from worker.inference.tasks.joint_embeddings import JointEmbeddings
from worker.inference.tasks.text_classification import TextClassification
from worker.inference.tasks.text_generation import ENGINES, TASK, TextGeneration
from worker.inference.tasks.token_classification import TokenClassification
from worker.inference.tasks.vision_generation import load_generation
from worker.models.load import find_model
from worker.models.model_ref import ModelRef
from worker.models.task_model import Encoded, TaskModel

__all__ = ["Encoded", "TaskModel", "check_inputs", "load_task_model", "needs_whole_device"]

OWN_TASKS: dict[str, type[Embeddings | TextClassification | TokenClassification | FillMask | TextGeneration]] = {
    "embeddings": Embeddings,
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "fill-mask": FillMask,
    "text-generation": TextGeneration,
}
"""The tasks that do not run through a transformers pipeline."""


def needs_whole_device(ref: ModelRef) -> bool:
    """Whether a model takes the device's free memory, so that no other model can be loaded beside it."""
    return ENGINES[ref.engine].needs_whole_device


def load_task_model(
    ref: ModelRef,
    parameters: Any,
    *,
    device: torch.device,
    dtype: torch.dtype,
    rules: AccessRules,
) -> TaskModel:
    """Load a model for its task.

    Args:
        ref: The model.
        parameters: The parameters of the job, of the type that the task has in `jobs.specs.parameters`.
        device: The device that the model computes on.
        dtype: The dtype that the model computes in.
        rules: Input roots, and which models may bring their own code.

    Raises:
        InvalidModel: The model cannot be used for this task; the message gives the reason.
        InvalidSpec: A parameter is invalid.
        Forbidden: The model lies outside the input roots.
        ServiceUnavailable: The hub cannot be reached, and the model is not cached.
        RuntimeError: The device has too little memory for the model.
    """
    source = find_model(ref, rules)
    if ref.task == TASK:
        return load_generation(source, parameters, device=device, dtype=dtype, rules=rules, engine=ENGINES[ref.engine])
    if ref.task == JointEmbeddings.TASK and is_joint(source.path, name=source.name):
        return JointEmbeddings(source, parameters, device=device, dtype=dtype, rules=rules)
    task = OWN_TASKS.get(ref.task)
    if task is None:
        return Staged(source, parameters, device=device, dtype=dtype, rules=rules)
    return task(source, parameters, device=device, dtype=dtype)


def check_inputs(model: TaskModel, spec: InferenceSpec) -> None:
    """Check that a model takes all inputs that a job reads.

    Raises:
        InvalidSpec: The job has images for `embeddings`, but the model takes only texts.
    """
    if spec.has_alternative and not isinstance(model, JointEmbeddings):
        raise image_with_texts_only()
