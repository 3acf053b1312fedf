"""All uses of undocumented parts of transformers, which may change in any release.

Each `check_*` compares what this file uses with the installed release, and the function that is called first calls it.

A pipeline's own call parses its arguments (labels, tables, pairs, defaults), prepares a row, computes it and reads the
result, one row at a time. Stoker runs these four steps separately. `catch_call` calls the pipeline as a user would and
stops it before the row is prepared; the other steps are the methods `preprocess`, `_forward` and `postprocess`.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from packaging.specifiers import SpecifierSet
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.pipelines import REMOVED_TASKS, SUPPORTED_TASKS, TASK_ALIASES
from transformers.pipelines.base import ChunkPipeline, Pipeline

from jobs.errors import MachineError

__all__ = ["REMOVED_TASKS", "SUPPORTED_TASKS", "TASK_ALIASES"]

logger = logging.getLogger(__name__)

SUPPORTED_RELEASES = SpecifierSet(">=5.10,<6")
"""Releases of transformers that Stoker supports; pyproject.toml names the same minimum."""
_PIPELINE: Mapping[str, Sequence[str] | None] = {
    "run_single": ("inputs", "preprocess_params", "forward_params", "postprocess_params"),
    "get_iterator": (
        "inputs", "num_workers", "batch_size", "preprocess_params", "forward_params", "postprocess_params",
    ),
    **dict.fromkeys(("_sanitize_parameters", "preprocess", "_forward", "postprocess", "device_placement")),
    "_pipeline_calls_generate": None,
}  # fmt: skip
"""Attributes of a pipeline that this file uses. For a method whose parameters matter, their names without `self`."""
_TRAINER: Mapping[str, Sequence[str] | None] = {
    "_get_train_sampler": ("train_dataset",),
    "_maybe_log_save_evaluate": (
        "tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time", "learning_rate",
    ),
    "_save_checkpoint": ("model", "trial"),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
}  # fmt: skip


def check_pipelines() -> None:
    """Check that pipelines have what this file uses.

    Raises:
        MachineError: Something is missing or differs; the message names it.
    """
    for base in (Pipeline, ChunkPipeline):
        _check(base, _PIPELINE)


def check_trainer() -> None:
    """Check that the Trainer has what this file uses; see `check_pipelines`."""
    _check(transformers.Trainer, _TRAINER)


def check_models() -> None:
    """Check that models and their configurations have what this file uses; see `check_pipelines`."""
    _check(PreTrainedModel, {"_is_stateful": None})
    _check(GenerationMixin, {"_supports_default_dynamic_cache": ()})
    _check(PretrainedConfig, {"_attn_implementation": None})


def _check(owner: type, used: Mapping[str, Sequence[str] | None]) -> None:
    _warn_if_unsupported(transformers.__version__)
    for name, expected in used.items():
        if not hasattr(owner, name):
            raise _misfit(f"{owner.__name__} has no {name}")
        if expected is not None:
            found = inspect.signature(getattr(owner, name)).parameters
            if [parameter for parameter in found if parameter != "self"] != list(expected):
                raise _misfit(f"{owner.__name__}.{name} takes other arguments")


@lru_cache(maxsize=1)
def _warn_if_unsupported(version: str) -> None:
    if not SUPPORTED_RELEASES.contains(version, prereleases=True):
        logger.warning("transformers %s is not supported; install a release in '%s'", version, SUPPORTED_RELEASES)


def _misfit(reason: str) -> MachineError:
    return MachineError(
        f"transformers {transformers.__version__} does not work with this version of Stoker: {reason}; install the "
        "release that ops/constraints.txt names"
    )


# -- pipelines ---------------------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """The parsed arguments of a pipeline's call."""

    inputs: Any
    """What the pipeline's `preprocess` takes for the row."""
    preprocess: dict[str, Any]
    forward: dict[str, Any]
    postprocess: dict[str, Any]


class _Caught(BaseException):
    """Carries a caught call out of the pipeline; not an Exception, so that no pipeline handles it."""

    def __init__(self, call: Call) -> None:
        self.call = call


def pipeline_class(task: str) -> type[Pipeline]:
    """The pipeline class of transformers for a task."""
    implementation = SUPPORTED_TASKS[task]["impl"]
    if isinstance(implementation, str):
        module, _, name = implementation.rpartition(".")
        implementation = getattr(importlib.import_module(module), name)
    found: type[Pipeline] = implementation
    return found


def loads_part(task: str, part: str) -> bool:
    """Whether the pipeline of a task loads this part of a model, such as `tokenizer`."""
    return getattr(pipeline_class(task), f"_load_{part}", False) is not False


def config_classes(auto_class: Any) -> Any:
    """The configuration classes whose models an Auto class can load."""
    _check(auto_class, {"_model_mapping": None})
    return auto_class._model_mapping.keys()  # the mapping's own `in` would import every model


def listed_model_classes(task: str) -> set[str]:
    """Names of the model classes that a pipeline's module lists; they may be more than its Auto classes list."""
    names: set[str] = set()
    for name, value in vars(importlib.import_module(pipeline_class(task).__module__)).items():
        if name.startswith("MODEL_FOR_") and name.endswith("_MAPPING_NAMES"):
            for entry in value.values():
                names.update(entry if isinstance(entry, (list, tuple)) else (entry,))
    return names


def catch_call(pipeline: Any, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Call:
    """Parse a pipeline's call for one row without running it.

    Args:
        pipeline: The pipeline to call.
        arguments: Positional arguments of the call, for one row.
        options: Keyword arguments of the call; the pipeline may change them.

    Raises:
        TypeError, ValueError, KeyError: The pipeline rejects the arguments.
    """
    probe = copy.copy(pipeline)
    probe.call_count = float("-inf")  # otherwise it warns about calls for single rows

    def run_single(inputs: Any, preprocess: Any, forward: Any, postprocess: Any) -> None:
        raise _Caught(Call(inputs, preprocess, forward, postprocess))

    def get_iterator(
        inputs: Any, num_workers: int, batch_size: int, preprocess: Any, forward: Any, postprocess: Any
    ) -> None:
        del num_workers, batch_size
        [row] = inputs
        raise _Caught(Call(row, preprocess, forward, postprocess))

    probe.run_single, probe.get_iterator = run_single, get_iterator
    try:
        probe(*arguments, **options)
    except _Caught as caught:
        return caught.call
    raise _misfit(f"{type(pipeline).__name__} no longer ends in run_single or get_iterator")


def is_chunked(pipeline: Any) -> bool:
    """Whether `preprocess` makes several items from a row, and `postprocess` takes the list of their outputs."""
    return isinstance(pipeline, ChunkPipeline)


def calls_generate(pipeline: Any) -> bool:
    """Whether `_forward` calls the model's `generate`."""
    return bool(pipeline._pipeline_calls_generate) and pipeline.model.can_generate()


def preprocess(pipeline: Any, call: Call) -> list[Any]:
    """The items of a row: one, unless the pipeline is chunked."""
    found = pipeline.preprocess(call.inputs, **call.preprocess)
    return list(found) if is_chunked(pipeline) else [found]


def compute(pipeline: Any, inputs: Any, parameters: Mapping[str, Any]) -> Any:
    """Run a forward pass over inputs on the device. The pipeline may change `inputs`."""
    with pipeline.device_placement():
        return pipeline._forward(inputs, **parameters)


def sanitized(pipeline: Any, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Split a call's parameters into those of `preprocess`, `_forward` and `postprocess`.

    Raises:
        TypeError, ValueError, KeyError, AttributeError: The pipeline rejects them.
    """
    preprocess, forward, postprocess = pipeline._sanitize_parameters(**copy.deepcopy(dict(parameters)))
    return preprocess, forward, postprocess


def steps(pipeline: Any) -> tuple[Callable[..., Any], ...]:
    """The methods that prepare a row, compute it and read its result."""
    return pipeline.preprocess, pipeline._forward, pipeline.postprocess


def declared_parameters(pipeline: Any) -> list[inspect.Parameter]:
    """The parameters that a pipeline's call declares; many pipelines also take `**kwargs`."""
    return list(inspect.signature(pipeline._sanitize_parameters).parameters.values())


# -- the Trainer -------------------------------------------------------------------------------------------------------


def hook_trainer(
    trainer: transformers.Trainer,
    *,
    train_sampler: Callable[[], torch.utils.data.Sampler[int]],
    after_step: Callable[[Any, float | None], None],
) -> None:
    """Replace a Trainer's sampler of training rows, and its own logging, evaluation and checkpoints after each step.

    Args:
        trainer: A Trainer that has not started.
        train_sampler: Makes the sampler of the training rows.
        after_step: Called after each step, and again after each epoch, with the gradient's norm and the learning rate.

    Raises:
        MachineError: The installed Trainer has no such methods, or they take other arguments.
    """
    check_trainer()
    if not hasattr(trainer, "model_accepts_loss_kwargs"):
        raise _misfit("Trainer has no model_accepts_loss_kwargs")

    def maybe_log_save_evaluate(_loss: Any, grad_norm: Any, *_: Any, learning_rate: float | None = None) -> None:
        after_step(grad_norm, learning_rate)

    trainer._get_train_sampler = lambda _dataset=None: train_sampler()
    trainer._maybe_log_save_evaluate = maybe_log_save_evaluate
    # Many models accept the number of items in the whole batch but do not divide by it, so their gradients would
    # grow with the accumulation. With this flag a step's loss is the mean over its micro-batches, for every model.
    trainer.model_accepts_loss_kwargs = False


def save_trainer_checkpoint(trainer: transformers.Trainer, folder: Path) -> None:
    """Write the Trainer's files of a checkpoint into a folder, whose name must be `checkpoint-<step>`."""
    trainer.args.output_dir = str(folder.parent)
    trainer._save_checkpoint(trainer.model_wrapped, None)


def load_trainer_weights(trainer: transformers.Trainer, folder: Path) -> None:
    """Load the weights of a checkpoint into the Trainer's model."""
    trainer._load_from_checkpoint(str(folder))


# -- models ------------------------------------------------------------------------------------------------------------


def makes_own_cache(model: PreTrainedModel) -> bool:
    """Whether a model accepts only its own kind of cache, which it creates when it gets none (MiniMax)."""
    check_models()
    return not model._supports_default_dynamic_cache()


def is_stateful(model: PreTrainedModel) -> bool:
    """Whether a model's class says that it keeps a state other than keys and values."""
    return bool(model._is_stateful)


def attention_implementation(model: PreTrainedModel) -> str:
    """The implementation of attention that a model uses, such as `sdpa`."""
    return str(model.config._attn_implementation)


def bytes_of_letters() -> dict[str, int]:
    """Letter -> the byte that it stands for in the vocabulary of a byte-level tokenizer."""
    return {letter: byte for byte, letter in bytes_to_unicode().items()}


def language_codes() -> dict[str, str]:
    """Name of a language -> its code, as Whisper's tokenizer knows them."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return dict(TO_LANGUAGE_CODE)
