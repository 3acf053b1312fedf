"""Check before the first row whether a pipeline and its model accept the parameters of a job."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from transformers import GenerationConfig

from jobs.access.video_models import check_num_frames
from jobs.errors import InvalidSpec
from jobs.specs.parameters.media_tasks import VideoClassificationParameters
from jobs.specs.parameters.task_parameters import FORBIDDEN_NAMES, TaskParameters, unknown_parameter
from worker.models import transformers_internals as internals
from worker.models.failures import plain_sentence
from worker.models.transformers_internals import calls_generate, sanitized

_NOT_OURS = frozenset({"timeout"})
"""Parameters of pipelines that mean nothing here: no pipeline fetches a URL."""
_GENERATION = "generate_kwargs"
_WRONG = (TypeError, ValueError, KeyError, AttributeError)


def pipeline_parameters(parameters: TaskParameters) -> dict[str, Any]:
    """The parameters that a job sets for the pipeline, without nulls, which some pipelines would treat as values."""
    return {name: value for name, value in _given(parameters).items() if value is not None or name in parameters.NULLS}


def _given(parameters: TaskParameters) -> dict[str, Any]:
    return {name: value for name, value in parameters.given().items() if name not in parameters.OWN}


def check_against_pipeline(pipeline: Any, parameters: TaskParameters) -> None:
    """Reject parameters that a task's pipeline does not accept.

    Args:
        pipeline: The task's pipeline, with the model.
        parameters: The job's parameters.

    Raises:
        InvalidSpec: A parameter is unknown, not allowed or has an invalid value; the message names it.
    """
    task, given = parameters.TASK, pipeline_parameters(parameters)
    if isinstance(parameters, VideoClassificationParameters):
        check_num_frames(pipeline.model.config.to_dict(), parameters.num_frames)
    if parameters.is_open():
        _check_names(task, pipeline, _given(parameters))
    try:
        sanitized(pipeline, given)
    except _WRONG as error:
        raise InvalidSpec(f"parameters: {task} rejects them: {plain_sentence(error)}", param="parameters") from error
    if calls_generate(pipeline):
        _check_generation(pipeline, given)


def _check_names(task: str, pipeline: Any, parameters: Mapping[str, Any]) -> None:
    named, is_read = accepted_names(pipeline)
    takes_generation = _goes_to_generate(pipeline, "num_beams")
    generation = _generation_names(pipeline.model) if calls_generate(pipeline) else frozenset()
    known = [name for name in named if name not in FORBIDDEN_NAMES | _NOT_OURS]
    if takes_generation:
        known += [name for name in sorted(generation) if name not in known]
        known += [_GENERATION] if _GENERATION not in known else []
    for name in parameters:
        if name not in known and not is_read(name):
            raise _unknown(task, name, known, generation)
    inner = parameters.get(_GENERATION)
    if inner is not None:
        _check_inner(task, inner, generation)


def accepted_names(pipeline: Any) -> tuple[list[str], Callable[[str], bool]]:
    """Names of a call's parameters that a pipeline declares, and a function for whether it reads any other name.

    Many pipelines take `**kwargs` and look up their own names in them; others pass on all unknown names.
    """
    declared = internals.declared_parameters(pipeline)
    named = [parameter.name for parameter in declared if parameter.kind is not parameter.VAR_KEYWORD]
    of_steps = {
        name
        for step in internals.steps(pipeline)
        for name, parameter in inspect.signature(step).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD and parameter.default is not parameter.empty
    }

    def is_read(name: str) -> bool:
        return name in of_steps and _changes(pipeline, name)

    return [*named, *sorted(name for name in of_steps - set(named) if is_read(name))], is_read


def _changes(pipeline: Any, name: str) -> bool:
    try:
        return sanitized(pipeline, {name: "x"}) != sanitized(pipeline, {})
    except (ValueError, KeyError, AttributeError):
        return True  # it read the value
    except TypeError:
        return False


def _goes_to_generate(pipeline: Any, name: str) -> bool:
    """Whether a parameter of this name is passed to `generate` unchanged."""
    _, forward, _ = internals.steps(pipeline)
    takes_more = any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(forward).parameters.values()
    )
    return takes_more and calls_generate(pipeline) and name in sanitized(pipeline, {name: object()})[1]


def _unknown(task: str, name: str, known: Collection[str], generation: Collection[str]) -> InvalidSpec:
    if name in generation and name not in FORBIDDEN_NAMES and _GENERATION in known:
        param = f"parameters.{name}"
        return InvalidSpec(f"{param}: task '{task}' accepts it only inside 'parameters.{_GENERATION}'", param=param)
    return unknown_parameter(task, name, tuple(known))


def _check_inner(task: str, inner: Any, generation: Collection[str]) -> None:
    param = f"parameters.{_GENERATION}"
    if not isinstance(inner, Mapping):
        raise InvalidSpec(f"{param}: must be a mapping of parameters of `generate` to their values", param=param)
    for name in inner:
        if name not in generation:
            error = unknown_parameter(task, f"{_GENERATION}.{name}", ())
            hint = "the model's `generate` has no parameter of this name"
            raise InvalidSpec(f"{error.param}: {hint}", param=error.param)


def _generation_names(model: Any) -> frozenset[str]:
    """Names of the parameters that a model's `generate` accepts."""
    parameters = inspect.signature(model.generate).parameters.values()
    of_generate = {one.name for one in parameters if one.kind is not one.VAR_KEYWORD and one.default is None}
    names = of_generate | {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    return frozenset(
        names - FORBIDDEN_NAMES - {model.main_input_name, "inputs", "attention_mask", "transformers_version"}
    )


def _check_generation(pipeline: Any, parameters: Mapping[str, Any]) -> None:
    """Reject values that otherwise `generate` would reject, for each row again."""
    names = _generation_names(pipeline.model)
    selected = {name: value for name, value in parameters.items() if name in names}
    selected.update(parameters.get(_GENERATION) or {})
    config = pipeline.model.generation_config
    standard = {name: value for name, value in selected.items() if name in vars(GenerationConfig())}
    try:
        GenerationConfig(**{**config.to_diff_dict(), **standard}).validate()
    except _WRONG as error:
        raise InvalidSpec(f"parameters: {plain_sentence(error)}", param="parameters") from error
    for name in ("language", "task"):
        if selected.get(name) is not None:
            _check_speech(name, selected[name], config)


def _check_speech(name: str, value: Any, config: Any) -> None:
    """Check `language` or `task` (transcribe or translate) for a speech recognition model such as Whisper."""
    param = f"parameters.{name}"
    if getattr(config, "is_multilingual", True) is False:
        raise InvalidSpec(
            f"{param}: this model supports only one language, so it does not accept '{name}'", param=param
        )
    if name == "task":
        known = sorted(getattr(config, "task_to_id", None) or ())
        if value not in known:
            raise InvalidSpec(f"{param}: must be one of {', '.join(known) or 'none'} for this model", param=param)
        return
    if not isinstance(value, str):
        raise InvalidSpec(f"{param}: must be the name or the code of a language", param=param)
    codes = {token.strip("<|>") for token in getattr(config, "lang_to_id", None) or ()}
    if not codes:
        raise InvalidSpec(f"{param}: the model's generation_config.json lists no languages", param=param)
    if _language_code(value) not in codes:
        raise InvalidSpec(f"{param}: the model does not support the language '{value[:40]}'", param=param)


def _language_code(value: str) -> str:
    code = value.lower().strip("<|>")
    return internals.language_codes().get(code, code)
