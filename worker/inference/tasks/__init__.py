"""Inference tasks: each makes a `TaskModel` of a model's files; `load_task_model` picks the one for a spec."""

from __future__ import annotations

import torch

from jobs.config.settings import Settings
from jobs.specs.inference import InferenceSpec
from worker.inference.pipelines.staged import Staged
from worker.inference.tasks.embeddings import Embeddings
from worker.inference.tasks.fill_mask import FillMask
from worker.inference.tasks.text_classification import TextClassification
from worker.inference.tasks.text_generation import TextGeneration
from worker.inference.tasks.token_classification import TokenClassification
from worker.models.load import find_model
from worker.models.task_model import Encoded, TaskModel

__all__ = ["Encoded", "TaskModel", "load_task_model"]

OWN_TASKS: dict[str, type[Embeddings | TextClassification | TokenClassification | FillMask | TextGeneration]] = {
    "embeddings": Embeddings,
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "fill-mask": FillMask,
    "text-generation": TextGeneration,
}
"""The tasks that do not run through transformers' pipeline."""


def load_task_model(spec: InferenceSpec, *, device: torch.device, dtype: torch.dtype, settings: Settings) -> TaskModel:
    """Load a spec's model for its task, with its parameters.

    Args:
        spec: what was submitted.
        device: where it is to compute.
        dtype: in which it is to compute.
        settings: input roots, and which models may bring their own code.

    Raises:
        InvalidModel: it cannot be used for this task; one sentence says why.
        InvalidSpec: a parameter is wrong.
        Forbidden: it lies outside the input roots.
        ServiceUnavailable: the hub cannot be reached, and the model is not cached.
        RuntimeError: the device has too little memory for it.
    """
    source = find_model(spec, settings)
    task = OWN_TASKS.get(spec.task)
    if task is None:
        return Staged(spec.task, source, spec.parameters, device=device, dtype=dtype, settings=settings)
    if task is TextGeneration and spec.engine == "vllm":
        return TextGeneration.on_vllm(source, spec.parameters, device=device, dtype=dtype)
    return task(source, spec.parameters, device=device, dtype=dtype)
