"""All uses of undocumented parts of transformers' pipelines.

A pipeline's own call parses its arguments (labels, tables, pairs, defaults), prepares a row, computes it and reads the
result, one row at a time. Stoker runs these four steps separately. `catch_call` calls the pipeline as a user would and
stops it before the row is prepared; the other steps are the methods `preprocess`, `_forward` and `postprocess`.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PretrainedConfig
from transformers.pipelines import REMOVED_TASKS, SUPPORTED_TASKS, TASK_ALIASES
from transformers.pipelines.base import ChunkPipeline, Pipeline

from jobs.access.model_files import read_json
from jobs.errors import MachineError
from worker.device import is_out_of_memory
from worker.models.load import ModelFolder, load_error

__all__ = ["REMOVED_TASKS", "SUPPORTED_TASKS", "TASK_ALIASES"]

_PARTS = ("tokenizer", "image_processor", "video_processor", "feature_extractor", "processor")
_CAUGHT = {
    "run_single": ["self", "inputs", "preprocess_params", "forward_params", "postprocess_params"],
    "get_iterator": [
        "self", "inputs", "num_workers", "batch_size", "preprocess_params", "forward_params", "postprocess_params",
    ],
}  # fmt: skip
"""The methods in which a pipeline's call ends, with the parameters that `catch_call` expects."""
_USED = (
    "_sanitize_parameters",
    "preprocess",
    "_forward",
    "postprocess",
    "device_placement",
    "_pipeline_calls_generate",
)
_ALSO_TAKEN = {"document-question-answering": {"VisionEncoderDecoderModel"}}
"""Model classes that a pipeline accepts but does not list in a mapping."""


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


def check_internals() -> None:
    """Check that the installed transformers has what this file uses, with the expected parameters.

    Raises:
        MachineError: Something is missing or differs; the message names it.
    """
    for base in (Pipeline, ChunkPipeline):
        for name, expected in _CAUGHT.items():
            if list(inspect.signature(getattr(base, name)).parameters) != expected:
                raise _misfit(f"{base.__name__}.{name} takes other arguments")
        for name in _USED:
            if not hasattr(base, name):
                raise _misfit(f"{base.__name__} has no {name}")


def _misfit(reason: str) -> MachineError:
    return MachineError(
        f"transformers {transformers.__version__} does not fit this version of Stoker: {reason}; install a version that"
        " ops/constraints.txt names"
    )


def pipeline_class(task: str) -> type[Pipeline]:
    """The pipeline class of transformers for a task."""
    implementation = SUPPORTED_TASKS[task]["impl"]
    if isinstance(implementation, str):
        module, _, name = implementation.rpartition(".")
        implementation = getattr(importlib.import_module(module), name)
    found: type[Pipeline] = implementation
    return found


def model_class(source: ModelFolder, task: str, config: PretrainedConfig) -> Any:
    """The class with which a model is loaded for a task: an Auto class of the task, or else the class that the model's
    config.json names, if transformers has it and the pipeline accepts it.

    Raises:
        InvalidModel: No class fits.
    """
    if task == "decision" and read_json(source.path / "decision.json", name=source.name, required=False).get("adapter"):
        raise source.invalid("its decision.json names an adapter; merge it into the model and save the result")
    for auto_class in SUPPORTED_TASKS[task]["pt"]:
        # A config such as Qwen2's also belongs to plain language models, which give the logits of labels instead.
        if auto_class.__name__ == "AutoModelForDecision" and not _decides(config):
            continue
        mapping = auto_class._model_mapping
        # The mapping's `in` would import every model.
        if type(config) in mapping.keys() or auto_class.__name__ in getattr(config, "auto_map", {}):  # noqa: SIM118
            return auto_class
    taken = _named_classes(task)
    for architecture in config.architectures or ():
        if architecture in taken and hasattr(transformers, architecture):
            return getattr(transformers, architecture)
    named = f" ({config.architectures[0]})" if config.architectures else ""
    raise source.invalid(f"it is a {config.model_type} model{named}, which transformers does not have for {task}")


def _decides(config: PretrainedConfig) -> bool:
    return any(architecture.endswith("ForDecision") for architecture in config.architectures or ())


def _named_classes(task: str) -> set[str]:
    """Names of the model classes that a pipeline's module lists. `image-segmentation` accepts more classes than its
    Auto classes list."""
    names = set(_ALSO_TAKEN.get(task, ()))
    for name, value in vars(importlib.import_module(pipeline_class(task).__module__)).items():
        if name.startswith("MODEL_FOR_") and name.endswith("_MAPPING_NAMES"):
            for entry in value.values():
                names.update(entry if isinstance(entry, (list, tuple)) else (entry,))
    return names


def open_pipeline(source: ModelFolder, task: str, model: Any, device: torch.device) -> Any:
    """The pipeline of a loaded model.

    Raises:
        InvalidModel: A part of the model (such as its processor) is missing or does not fit.
    """
    check_internals()
    implementation = pipeline_class(task)
    # Each part needs a path to load it from, as the pipeline gets the model itself and not its name.
    parts = {part: str(source.path) for part in _PARTS if getattr(implementation, f"_load_{part}", False) is not False}
    parts["config"] = str(source.path)
    try:
        return transformers.pipeline(
            task, model=model, device=device, dtype=None, trust_remote_code=source.trust_remote_code, **parts
        )
    except Exception as error:
        # `pipeline` itself raises bare Exceptions, such as for a missing processor.
        if is_out_of_memory(error):
            raise
        raise load_error(source.name, error, what=f"cannot be used for {task}") from error


def for_encoding(pipeline: Any) -> Any:
    """A copy of a pipeline with separate tokenizers and processors, for the thread that prepares rows.

    A tokenizer keeps its padding and truncation settings as state. If two threads call it with different settings, it
    silently gives wrong results.
    """
    other = copy.copy(pipeline)
    parts = {name: getattr(pipeline, name) for name in _PARTS}
    for name, part in copy.deepcopy(parts).items():  # in one call, as a processor refers to the tokenizer
        setattr(other, name, part)
    return other


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


@contextmanager
def fixed_randomness(device: torch.device) -> Iterator[None]:
    """Use the same random numbers for each row, and restore the process's random state afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


def accepted_names(pipeline: Any) -> tuple[list[str], Callable[[str], bool]]:
    """Names of a call's parameters that a pipeline declares, and a function for whether it reads any other name.

    Many pipelines take `**kwargs` and look up their own names in them; others pass on all unknown names.
    """
    kinds = inspect.signature(pipeline._sanitize_parameters).parameters.values()
    named = [parameter.name for parameter in kinds if parameter.kind is not parameter.VAR_KEYWORD]
    steps = (pipeline.preprocess, pipeline._forward, pipeline.postprocess)
    of_steps = {
        name
        for step in steps
        for name, parameter in inspect.signature(step).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD and parameter.default is not parameter.empty
    }

    def is_read(name: str) -> bool:
        return name in of_steps and _changes(pipeline, name)

    return [*named, *sorted(name for name in of_steps - set(named) if is_read(name))], is_read


def goes_to_generate(pipeline: Any, name: str) -> bool:
    """Whether a parameter of this name is passed to `generate` unchanged."""
    takes_more = any(
        parameter.kind is parameter.VAR_KEYWORD
        for parameter in inspect.signature(pipeline._forward).parameters.values()
    )
    return takes_more and calls_generate(pipeline) and name in pipeline._sanitize_parameters(**{name: object()})[1]


def sanitized(pipeline: Any, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Split a call's parameters into those of `preprocess`, `_forward` and `postprocess`.

    Raises:
        TypeError, ValueError, KeyError, AttributeError: The pipeline rejects them.
    """
    preprocess, forward, postprocess = pipeline._sanitize_parameters(**copy.deepcopy(dict(parameters)))
    return preprocess, forward, postprocess


def _changes(pipeline: Any, name: str) -> bool:
    value = "x"
    try:
        return bool(pipeline._sanitize_parameters(**{name: value}) != pipeline._sanitize_parameters())
    except (ValueError, KeyError, AttributeError):
        return True  # it read the value
    except TypeError:
        return False
