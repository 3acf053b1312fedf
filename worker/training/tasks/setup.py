"""What a task brings to the Trainer: the model, the rows as it learns from them, and how it is evaluated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, EvalPrediction, PretrainedConfig, PreTrainedModel

from jobs.config.settings import Settings
from jobs.errors import InvalidModel
from jobs.specs.inference import TrainingSpec
from jobs.specs.training import ArchitectureSpec
from worker.device import is_out_of_memory, one_line
from worker.models.limits import longest_row
from worker.training.plan import Plan
from worker.training.tasks.data import InputRows

logger = logging.getLogger(__name__)

_MAY_BE_NEW = ("*pooler.*", "*masked_spec_embed", "*position_ids", "*inv_freq", "*relative_position_index")
"""Below the head, what the file of a model without it may lack: poolers, and buffers that follow from the config."""
NO_LABEL = -100
"""The label that torch's cross entropy passes over, and transformers' padding of labels."""
_MOST_NAMED = 50  # classes in a sentence


@dataclass(frozen=True, slots=True)
class TaskSetup:
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
    is_raw: bool = False
    """Whether `collate` makes the model's inputs of other columns, all of which it needs."""
    lengths: Callable[[], Sequence[int]] | None = None
    """Of each row to learn from, where rows have one."""
    digest: str = ""
    """Of the rows to learn from: an attempt that goes on must find the same."""
    facts: tuple[str, ...] = ()
    """Sentences for the model's card."""


class BuildTask(Protocol):
    """Makes a task's `TaskSetup`."""

    def __call__(self, context: TaskContext, rows: InputRows, eval_rows: InputRows | None, /) -> TaskSetup:
        """
        Args:
            context: what it starts from.
            rows: to learn from.
            eval_rows: to judge by.

        Raises:
            UserError: the model or a row cannot be used.
        """
        ...


@dataclass(frozen=True, slots=True)
class TaskContext:
    """What a training starts from: a model's files, or a configuration."""

    spec: TrainingSpec
    plan: Plan
    settings: Settings
    trust_remote_code: bool

    @classmethod
    def of(cls, plan: Plan, settings: Settings) -> TaskContext:
        """That of a plan."""
        spec = plan.spec
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

    @property
    def data_folder(self) -> Path:
        """Where prepared rows are kept."""
        return Path(self.plan.folder) / "data" if self.plan.cache is None else Path(self.plan.cache)

    @property
    def known_labels(self) -> Mapping[str, int]:
        """A pretrained model's own ids of its classes; none of a model from scratch."""
        with self.explaining("its config.json cannot be read"):
            return {} if self.plan.model is None else dict(self.config().label2id or {})

    def has_head(self, suffix: str) -> bool:
        """Whether it is a pretrained model of a class whose name ends so, such as `ForCTC`."""
        if self.plan.model is None:
            return False
        with self.explaining("its config.json cannot be read"):
            return any(str(name).endswith(suffix) for name in self.config().architectures or ())

    def longest(self, model: Any, tokenizer: Any) -> int | None:
        """The most tokens of a row: what the spec, the model or its tokenizer says, whichever is least."""
        assert self.spec.data is not None
        limits = (self.spec.data.max_length, longest_row(model, tokenizer))
        return min((limit for limit in limits if limit), default=None)

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
            if self.plan.model is None:
                return cast("PreTrainedModel", auto_class.from_config(self.config(**overrides)).float())
            model, found = auto_class.from_pretrained(
                self.plan.model,
                trust_remote_code=self.trust_remote_code,
                use_safetensors=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # a head for other classes is replaced
                output_loading_info=True,
                **overrides,
            )
        self._check_new(model, [*found["missing_keys"], *(str(key) for key, *_ in found["mismatched_keys"])])
        return cast("PreTrainedModel", model)

    def _check_new(self, model: Any, keys: Sequence[str]) -> None:
        """A new head is what training is for; an encoder of random weights is a damaged model, which nothing says."""
        body = f"{model.base_model_prefix}."
        lost = sorted(
            key for key in keys if key.startswith(body) and not any(fnmatch(key, each) for each in _MAY_BE_NEW)
        )
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise self.invalid(f"has no weights of the right shape for '{lost[0]}'{more}")
        if keys:
            logger.info("new weights, trained from random values: %s", ", ".join(sorted(keys)))

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
    def __init__(self, context: TaskContext, what: str) -> None:
        self._context, self._what = context, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, InvalidModel) and not is_out_of_memory(error):
            raise self._context.invalid(f"{self._what}: {one_line(error)}") from error


def tokenizer_identity(tokenizer: Any) -> str:
    """Changes with what a tokenizer does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return str(backend.to_str()) if backend is not None else repr(tokenizer)


def classification_metrics(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, float]:
    """Accuracy, and the mean of the classes' F1 (of those that occur in either)."""
    scores = []
    for each in range(num_classes):
        hits = int(((predicted == each) & (labels == each)).sum())
        total = int((predicted == each).sum() + (labels == each).sum())
        if total:
            scores.append(2 * hits / total)
    return {"accuracy": float((predicted == labels).mean()), "f1": float(np.mean(scores))}


def evaluate_classes(prediction: EvalPrediction, *, num_classes: int) -> dict[str, float]:
    """`classification_metrics` of an evaluation whose logits `likeliest` has reduced."""
    return classification_metrics(np.asarray(prediction.predictions), np.asarray(prediction.label_ids), num_classes)


def likeliest(logits: Any, _labels: torch.Tensor) -> torch.Tensor:
    """The class of the largest logit, over the last dimension; see `TaskSetup.reduce_logits`."""
    found: torch.Tensor = (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)
    return found


def classes_in_words(names: Sequence[str]) -> str:
    """A sentence for the model's card."""
    return f"{len(names)} classes: {', '.join(names[:_MOST_NAMED])}"
