"""What Stoker reaches of transformers' pipelines beyond their documented calls, all of it in this file.

A pipeline's own call parses its arguments (labels, tables, pairs, defaults), prepares a row, computes it and reads the
result, one row at a time. Stoker wants the four apart. `catch_call` makes a call as a user would and stops it where
the row is about to be prepared; the steps themselves are the methods `preprocess`, `_forward` and `postprocess`.
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
"""The methods that a pipeline's call ends in, with the parameters that `catch_call` expects of them."""
_USED = (
    "_sanitize_parameters",
    "preprocess",
    "_forward",
    "postprocess",
    "device_placement",
    "_pipeline_calls_generate",
)
_ALSO_TAKEN = {"document-question-answering": {"VisionEncoderDecoderModel"}}
"""Model classes that a pipeline takes and does not name in a mapping."""


class Call(NamedTuple):
    """A pipeline's call, parsed and not carried out."""

    inputs: Any
    """What its `preprocess` takes for the one row."""
    preprocess: dict[str, Any]
    forward: dict[str, Any]
    postprocess: dict[str, Any]


class _Caught(BaseException):
    """Carries a caught call out of the pipeline; no Exception, so that no pipeline handles it."""

    def __init__(self, call: Call) -> None:
        self.call = call


def check_internals() -> None:
    """Make sure that the installed transformers has what this file uses, in the form in which it is used.

    Raises:
        MachineError: it has not; one sentence says what.
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
    """The class that transformers has for a task."""
    implementation = SUPPORTED_TASKS[task]["impl"]
    if isinstance(implementation, str):
        module, _, name = implementation.rpartition(".")
        implementation = getattr(importlib.import_module(module), name)
    found: type[Pipeline] = implementation
    return found


def model_class(source: ModelFolder, task: str, config: PretrainedConfig) -> Any:
    """The class that a model is loaded with for a task: an Auto class of the task, or else the class that the model's
    config.json names, where it is transformers' own and of a kind that the pipeline takes.

    Raises:
        InvalidModel: there is none.
    """
    if task == "decision" and read_json(source.path / "decision.json", name=source.name, required=False).get("adapter"):
        raise source.invalid("its decision.json names an adapter; merge it into the model and save the result")
    for auto_class in SUPPORTED_TASKS[task]["pt"]:
        # Qwen2's config, say, is also that of models which only write; those are asked for the logits of their labels.
        if auto_class.__name__ == "AutoModelForDecision" and not _decides(config):
            continue
        mapping = auto_class._model_mapping
        # The mapping's `in` would load every model.
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
    """Names of the model classes that a pipeline's module lists: `image-segmentation` takes more than its Auto
    classes know."""
    names = set(_ALSO_TAKEN.get(task, ()))
    for name, value in vars(importlib.import_module(pipeline_class(task).__module__)).items():
        if name.startswith("MODEL_FOR_") and name.endswith("_MAPPING_NAMES"):
            for entry in value.values():
                names.update(entry if isinstance(entry, (list, tuple)) else (entry,))
    return names


def open_pipeline(source: ModelFolder, task: str, model: Any, device: torch.device) -> Any:
    """The pipeline of a loaded model.

    Raises:
        InvalidModel: a part of it (its processor, say) is missing or does not fit.
    """
    check_internals()
    implementation = pipeline_class(task)
    # A pipeline is told for each of its parts where to load it from, as it gets the model itself and not its name.
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
    """The same pipeline with tokenizers and processors of its own, for the thread that prepares rows.

    A tokenizer keeps its padding and truncation as a state, so that one which two threads call with other settings
    gives wrong results without a word.
    """
    other = copy.copy(pipeline)
    parts = {name: getattr(pipeline, name) for name in _PARTS}
    for name, part in copy.deepcopy(parts).items():  # in one call, as a processor holds the tokenizer
        setattr(other, name, part)
    return other


def catch_call(pipeline: Any, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Call:
    """What a pipeline's call for one row would prepare, compute and read, with which parameters.

    Args:
        pipeline: the pipeline.
        arguments: of the call, for one row.
        options: of the call, by name; the pipeline may take them apart, so they are the caller's last use of them.

    Raises:
        TypeError, ValueError, KeyError: the pipeline refuses the arguments.
    """
    probe = copy.copy(pipeline)
    probe.call_count = float("-inf")  # it warns a user who calls it for one row after another

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
    """Whether `preprocess` makes several items of a row, and `postprocess` takes the list of their outputs."""
    return isinstance(pipeline, ChunkPipeline)


def calls_generate(pipeline: Any) -> bool:
    """Whether `_forward` generates token after token with this model."""
    return bool(pipeline._pipeline_calls_generate) and pipeline.model.can_generate()


def preprocess(pipeline: Any, call: Call) -> list[Any]:
    """The items that a row is computed as; one, unless the pipeline is chunked."""
    found = pipeline.preprocess(call.inputs, **call.preprocess)
    return list(found) if is_chunked(pipeline) else [found]


def compute(pipeline: Any, inputs: Any, parameters: Mapping[str, Any]) -> Any:
    """A forward pass over inputs on the device. The pipeline takes `inputs` apart."""
    with pipeline.device_placement():
        return pipeline._forward(inputs, **parameters)


@contextmanager
def fixed_randomness(device: torch.device) -> Iterator[None]:
    """The same random numbers for each row, whichever rows came before it; the process's own are as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


def accepted_names(pipeline: Any) -> tuple[list[str], Callable[[str], bool]]:
    """The parameters of a call that a pipeline names itself, and whether any other name is one that it reads.

    Many pipelines take `**kwargs` and look for their own names in them; others hand on whatever they do not know.
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
    """Whether a parameter of this name reaches `generate` as it is."""
    takes_more = any(
        parameter.kind is parameter.VAR_KEYWORD
        for parameter in inspect.signature(pipeline._forward).parameters.values()
    )
    return takes_more and calls_generate(pipeline) and name in pipeline._sanitize_parameters(**{name: object()})[1]


def sanitized(pipeline: Any, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A call's parameters as the pipeline deals them out to its three steps.

    Raises:
        TypeError, ValueError, KeyError, AttributeError: it refuses them.
    """
    preprocess, forward, postprocess = pipeline._sanitize_parameters(**copy.deepcopy(dict(parameters)))
    return preprocess, forward, postprocess


def _changes(pipeline: Any, name: str) -> bool:
    value = "x"
    try:
        return bool(pipeline._sanitize_parameters(**{name: value}) != pipeline._sanitize_parameters())
    except (ValueError, KeyError, AttributeError):
        return True  # it looked at the value
    except TypeError:
        return False
