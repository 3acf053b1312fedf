"""What a task brings to the Trainer: the model, the rows as it learns from them, and how it is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, EvalPrediction, PretrainedConfig, PreTrainedModel

from jobs.errors import InvalidModel
from jobs.settings import Settings
from jobs.specs import TrainingSpec
from jobs.training_spec import ArchitectureSpec
from worker.device import is_out_of_memory, one_line
from worker.training.data import Record
from worker.training.plan import Plan


@dataclass(frozen=True, slots=True)
class Learning:
    """One training's parts."""

    model: PreTrainedModel
    processing: Any
    """The tokenizer or processor that is saved with the model."""
    train: Any
    """Rows by number, with a length."""
    evaluation: Any | None
    collate: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]
    metrics: Callable[[EvalPrediction], dict[str, float]] | None = None
    reduce_logits: Callable[[Any, torch.Tensor], torch.Tensor] | None = None
    """Makes logits small before they are gathered over a whole evaluation."""
    facts: tuple[str, ...] = ()
    """Sentences for the model's card."""


class BuildTask(Protocol):
    """Makes a task's `Learning`."""

    def __call__(self, origin: Origin, records: Sequence[Record], judged: Sequence[Record] | None, /) -> Learning:
        """
        Args:
            origin: what it starts from.
            records: rows to learn from.
            judged: rows to judge by.

        Raises:
            UserError: the model or a row cannot be used.
        """
        ...


@dataclass(frozen=True, slots=True)
class Origin:
    """What a training starts from: a model's files, or a configuration."""

    spec: TrainingSpec
    plan: Plan
    settings: Settings
    trust_remote_code: bool

    @classmethod
    def of(cls, plan: Plan, settings: Settings) -> Origin:
        """That of a plan."""
        spec = plan.training_spec()
        is_trusted = isinstance(spec.model, str) and spec.model in settings.trusted_remote_code
        return cls(spec, plan, settings, trust_remote_code=is_trusted)

    @property
    def name(self) -> str:
        """What the user calls the model, or its architecture."""
        return self.spec.model.architecture if isinstance(self.spec.model, ArchitectureSpec) else str(self.spec.model)

    @property
    def processor_folder(self) -> Path | None:
        """Where its tokenizer or processor lies."""
        folder = self.plan.model or self.plan.processor
        return None if folder is None else Path(folder)

    def invalid(self, reason: str, *, param: str = "model") -> InvalidModel:
        """The error that says what is wrong with it."""
        return InvalidModel(f"{param}: '{self.name}' {reason}", param=param)

    def tokenizer(self) -> Any:
        """The model's tokenizer.

        Raises:
            InvalidModel: there is none.
        """
        if self.processor_folder is None:
            raise self.invalid("has no tokenizer from scratch; name one", param="model.processor")
        with self.explaining("its tokenizer cannot be loaded"):
            tokenizer = AutoTokenizer.from_pretrained(self.processor_folder, trust_remote_code=self.trust_remote_code)
        if tokenizer.pad_token is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def model(self, auto_class: Any, **overrides: Any) -> PreTrainedModel:
        """The model to train, in float32.

        Args:
            auto_class: of transformers, with the task's head.
            overrides: of its configuration.

        Raises:
            InvalidModel: it cannot be made.
        """
        with self.explaining("cannot be trained for this task"):
            if self.plan.model is not None:
                model = auto_class.from_pretrained(
                    self.plan.model,
                    trust_remote_code=self.trust_remote_code,
                    use_safetensors=True,
                    dtype=torch.float32,
                    ignore_mismatched_sizes=True,  # a head for other classes is replaced
                    **overrides,
                )
            else:
                model = auto_class.from_config(self.config(**overrides)).float()
        assert isinstance(model, PreTrainedModel)
        return model

    def config(self, **overrides: Any) -> PretrainedConfig:
        """The configuration of a model from scratch; of a pretrained one its own."""
        if self.plan.model is not None:
            return AutoConfig.from_pretrained(self.plan.model, trust_remote_code=self.trust_remote_code)
        assert isinstance(self.spec.model, ArchitectureSpec)
        return AutoConfig.for_model(self.spec.model.architecture, **{**overrides, **self.spec.model.config})

    def from_scratch(self, **values: Any) -> dict[str, Any]:
        """Values of a configuration that the tokenizer says; none of a pretrained model's, which has its own."""
        if self.plan.model is not None:
            return {}
        return {name: value for name, value in values.items() if value is not None}

    def explaining(self, what: str) -> _Explaining:
        """While inside, an error of transformers becomes one sentence on the model."""
        return _Explaining(self, what)


class _Explaining:
    def __init__(self, origin: Origin, what: str) -> None:
        self._origin, self._what = origin, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, InvalidModel) and not is_out_of_memory(error):
            raise self._origin.invalid(f"{self._what}: {one_line(error)}") from error


def tokenizer_identity(tokenizer: Any) -> str:
    """Changes with what a tokenizer does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return str(backend.to_str()) if backend is not None else repr(tokenizer)


def classification_metrics(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> Mapping[str, float]:
    """Accuracy, and the mean of the classes' F1 (of those that occur in either)."""
    scores = []
    for each in range(num_classes):
        hits = int(((predicted == each) & (labels == each)).sum())
        total = int((predicted == each).sum() + (labels == each).sum())
        if total:
            scores.append(2 * hits / total)
    return {"accuracy": float((predicted == labels).mean()), "f1": float(np.mean(scores))}
