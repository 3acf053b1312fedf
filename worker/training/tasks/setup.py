"""What a training task gives to the Trainer: the model, the prepared rows and the metrics; and what it starts from."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, EvalPrediction, PretrainedConfig, PreTrainedModel

from jobs.config.access_rules import AccessRules
from jobs.errors import InvalidModel
from jobs.messages import one_line
from jobs.specs.inference import TrainingSpec
from jobs.specs.training import ArchitectureSpec
from worker.device import is_out_of_memory
from worker.models.texts.limits import longest_row
from worker.training.plan import Plan
from worker.training.tasks.data import InputRows

logger = logging.getLogger(__name__)

_MAY_BE_NEW = ("*pooler.*", "*masked_spec_embed", "*position_ids", "*inv_freq", "*relative_position_index")
"""Weights below the head that a pretrained model's file may lack: poolers, and buffers that the config determines."""
NO_LABEL = -100
"""The label that torch's cross entropy ignores, and with which transformers pads labels."""
_MOST_NAMED = 50  # classes in one sentence


@dataclass(frozen=True, slots=True)
class TaskSetup:
    """What a training task gives to the Trainer."""

    model: PreTrainedModel
    processing: Any
    """The tokenizer or processor that is saved with the model."""
    train: Any
    """The prepared rows to train on: a data set with a length."""
    evaluation: Any | None
    """The prepared rows to evaluate, if there are any."""
    collate: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]
    """Makes the model's inputs of a list of rows."""
    metrics: Callable[[EvalPrediction], dict[str, float]] | None = None
    """Computes metrics from the predictions of a whole evaluation."""
    reduce_logits: Callable[[Any, torch.Tensor], torch.Tensor] | None = None
    """Reduces the size of logits before they are gathered over a whole evaluation."""
    is_raw: bool = False
    """Whether rows have columns other than the model's inputs, so that no column may be removed."""
    lengths: Callable[[], Sequence[int]] | None = None
    """Returns the length of each row to train on, if rows have a length."""
    digest: str = ""
    """Digest of the rows to train on. A resumed attempt must find the same rows."""
    facts: tuple[str, ...] = ()
    """Sentences for the model's card."""


class BuildTask(Protocol):
    """Builds a task's `TaskSetup`."""

    def __call__(self, context: TaskContext, rows: InputRows, eval_rows: InputRows | None, /) -> TaskSetup:
        """
        Args:
            context: What the task starts from.
            rows: The rows to train on.
            eval_rows: The rows to evaluate, if there are any.

        Raises:
            UserError: The model or a row is invalid.
        """
        ...


@dataclass(frozen=True, slots=True)
class TaskContext:
    """What a training task starts from: the spec, the plan, and the files of a model or a configuration."""

    spec: TrainingSpec
    plan: Plan
    rules: AccessRules
    trust_remote_code: bool

    @classmethod
    def of(cls, plan: Plan, rules: AccessRules) -> TaskContext:
        """Make the context of a plan."""
        spec = plan.spec
        is_trusted = isinstance(spec.model, str) and spec.model in rules.trusted_remote_code
        return cls(spec, plan, rules, trust_remote_code=is_trusted)

    @property
    def name(self) -> str:
        """Name of the model in the spec, or of its architecture."""
        return self.spec.model.architecture if isinstance(self.spec.model, ArchitectureSpec) else str(self.spec.model)

    @property
    def processor_folder(self) -> Path | None:
        """Folder of the tokenizer or processor."""
        folder = self.plan.model or self.plan.processor
        return None if folder is None else Path(folder)

    @property
    def data_folder(self) -> Path:
        """Folder for prepared rows."""
        return Path(self.plan.folder) / "data" if self.plan.cache is None else Path(self.plan.cache)

    @property
    def known_labels(self) -> Mapping[str, int]:
        """The `label2id` of a pretrained model; empty for a model from scratch."""
        with self.explaining("its config.json cannot be read"):
            return {} if self.plan.model is None else dict(self.config().label2id or {})

    def has_head(self, suffix: str) -> bool:
        """Return whether the pretrained model's class name ends with a suffix, such as `ForCTC`."""
        if self.plan.model is None:
            return False
        with self.explaining("its config.json cannot be read"):
            return any(str(name).endswith(suffix) for name in self.config().architectures or ())

    def longest(self, model: Any, tokenizer: Any) -> int | None:
        """Return the most tokens of a row: the least limit of the spec, the model and its tokenizer."""
        assert self.spec.data is not None
        limits = (self.spec.data.max_length, longest_row(model, tokenizer))
        return min((limit for limit in limits if limit), default=None)

    def invalid(self, reason: str, *, param: str = "model") -> InvalidModel:
        """Make the error that says what is wrong with the model."""
        return InvalidModel(f"{param}: '{self.name}' {reason}", param=param)

    def tokenizer(self) -> Any:
        """Load the model's tokenizer.

        Raises:
            InvalidModel: There is no tokenizer, or it cannot be loaded.
        """
        if self.processor_folder is None:
            raise self.invalid("needs a tokenizer; name the folder or hub id of one", param="model.processor")
        with self.explaining("its tokenizer cannot be loaded"):
            tokenizer = AutoTokenizer.from_pretrained(self.processor_folder, trust_remote_code=self.trust_remote_code)
        if tokenizer.pad_token is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def model(self, auto_class: Any, **overrides: Any) -> PreTrainedModel:
        """Make the model to train, in float32.

        Args:
            auto_class: The class of transformers with the task's head.
            overrides: Values of the model's configuration to change.

        Raises:
            InvalidModel: The model cannot be made, weights are missing, or the model's `forward` names no input.
        """
        model = self._made(auto_class, overrides)
        parameters = inspect.signature(model.forward).parameters.values()
        if all(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in parameters):  # of a model's own code
            raise self.invalid("cannot be trained: its `forward` has no parameter such as `input_ids` or `labels`")
        return model

    def _made(self, auto_class: Any, overrides: Mapping[str, Any]) -> PreTrainedModel:
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
        """Refuse a model that lacks weights below its head. A new head is expected; a random encoder means damage."""
        body = f"{model.base_model_prefix}."
        missing = sorted(
            key for key in keys if key.startswith(body) and not any(fnmatch(key, each) for each in _MAY_BE_NEW)
        )
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise self.invalid(f"has no weights of the right shape for '{missing[0]}'{more}")
        if keys:
            logger.info("new weights, initialized at random: %s", ", ".join(sorted(keys)))

    def config(self, **overrides: Any) -> PretrainedConfig:
        """Return the configuration: a pretrained model's own, or one made from the spec."""
        if self.plan.model is not None:
            return AutoConfig.from_pretrained(self.plan.model, trust_remote_code=self.trust_remote_code)
        assert isinstance(self.spec.model, ArchitectureSpec)
        return AutoConfig.for_model(self.spec.model.architecture, **{**overrides, **self.spec.model.config})

    def from_scratch(self, **values: Any) -> dict[str, Any]:
        """Return the given values of a configuration for a model from scratch; nothing for a pretrained model."""
        if self.plan.model is not None:
            return {}
        return {name: value for name, value in values.items() if value is not None}

    def explaining(self, what: str) -> _Explaining:
        """Turn errors of the block into one sentence about the model."""
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
    """Return a text that differs between tokenizers that tokenize differently."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return str(backend.to_str()) if backend is not None else repr(tokenizer)


def classification_metrics(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, float]:
    """Return the accuracy, and the mean F1 over the classes that occur in predictions or labels."""
    scores = []
    for each in range(num_classes):
        hits = int(((predicted == each) & (labels == each)).sum())
        total = int((predicted == each).sum() + (labels == each).sum())
        if total:
            scores.append(2 * hits / total)
    return {"accuracy": float((predicted == labels).mean()), "f1": float(np.mean(scores))}


def evaluate_classes(prediction: EvalPrediction, *, num_classes: int) -> dict[str, float]:
    """Return `classification_metrics` of an evaluation whose logits were reduced by `likeliest`."""
    return classification_metrics(np.asarray(prediction.predictions), np.asarray(prediction.label_ids), num_classes)


def likeliest(logits: Any, _labels: torch.Tensor) -> torch.Tensor:
    """Return the class of the largest logit over the last dimension; see `TaskSetup.reduce_logits`."""
    found: torch.Tensor = (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)
    return found


def classes_in_words(names: Sequence[str]) -> str:
    """Return a sentence for the model's card that names the classes."""
    return f"{len(names)} classes: {', '.join(names[:_MOST_NAMED])}"
