"""Translate OpenAI's request bodies to rows of a job. Pure: no database, no files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import InvalidSpec
from jobs.messages import short, shown
from jobs.specs.parameters import read_parameters
from scheduler.openai.chat_messages import read_messages
from scheduler.openai.line_error import LineError
from scheduler.openai.responses import Body, LineResult, write_chat, write_classify, write_completions, write_embeddings
from scheduler.openai.transcripts import FORMATS, TIMED_FORMATS, write_transcript


@dataclass(frozen=True, slots=True)
class LineRequest:
    """One line's body as a row of a job."""

    values: Mapping[str, Any]
    """Columns of the row."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the job: lines with different ones go into different jobs."""
    form: str | None = None
    """How to format the response, if the client chose."""
    file_id: str | None = None
    """The upload whose bytes, as a data URL, become the value of the row's column; None if the row has its value."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint of OpenAI's API."""

    task: str
    read: Callable[[Body], LineRequest]
    """Parses a body; raises `LineError`."""
    write: Callable[[LineResult], Body | str]
    prompt: str
    """The body's key that a row's input comes from."""
    columns: tuple[str, ...] = ("text",)
    """Column names of the rows."""


_OF_JOBS = ("dimensions", "language", "top_k")
"""Keys of bodies that become parameters of the line's job under the same name."""


def of_line(job_error: str) -> tuple[str, str | None]:
    """The error of a job in the words of its lines.

    Args:
        job_error: The message of the job's error.

    Returns:
        The message, and the key of the body that it names, if any.
    """
    for name in _OF_JOBS:
        param = f"parameters.{name}"
        if job_error.startswith(f"{param}: "):
            return job_error.removeprefix("parameters."), name
    return job_error, None


# -- reading -------------------------------------------------------------------------------------------------------

_IGNORED = frozenset({"model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
"""Keys that any body may have and that do not change results."""
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "stream": (False, None),
    "stream_options": (None,),
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
    "suffix": (None, ""),
    "echo": (None, False),
    "best_of": (None, 1),
    "include": (None, []),
    "chunking_strategy": (None,),
    "keywords": (None, []),
    "languages": (None, []),
    "known_speaker_names": (None, []),
    "known_speaker_references": (None, []),
}
"""Unsupported parameters of OpenAI's API, with the values that have no effect and are accepted."""
_SAMPLING: Mapping[str, str] = {
    "max_completion_tokens": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "stop": "stop",
    "n": "n",
}
"""OpenAI's parameter name -> the task's parameter name."""
_EXTENSIONS: Mapping[str, str] = {name: name for name in ("top_k", "repetition_penalty", "chat_template_kwargs")}
"""Parameters of the task that OpenAI's API lacks, under the names that other model servers use."""
_SPEECH_TASK = "automatic-speech-recognition"
_SEGMENTS: Body = {"return_timestamps": True}
_SPEECH = ("file", "prompt", "response_format", "temperature")
"""Keys that bodies of both `/v1/audio` endpoints may have."""
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,")
_FILE_ID = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
_COMPLETION_TOKENS = 16  # OpenAI's default for `/v1/completions`


def _check_names(body: Body, *known: str) -> None:
    for name, value in body.items():
        if name in known or name in _IGNORED:
            continue
        if name not in _NEUTRAL:
            raise LineError(f"unknown parameter: {shown(name)}", code="unknown_parameter", param=short(name))
        if value not in _NEUTRAL[name]:
            raise LineError(f"{name}: is not supported", code="unsupported_parameter", param=name)


def _required(body: Body, name: str) -> Any:
    value = body.get(name)
    if value is None:
        raise LineError(f"{name}: is required", code="missing_required_parameter", param=name)
    return value


def _read_embeddings(body: Body) -> LineRequest:
    _check_names(body, "input", "encoding_format", "dimensions")
    form = body.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise LineError("encoding_format: must be float or base64", code="invalid_value", param="encoding_format")
    return LineRequest({"text": _required(body, "input")}, _whole_number(body, "dimensions"), form)


def _read_classify(body: Body) -> LineRequest:
    _check_names(body, "input", "top_k")
    return LineRequest({"text": _required(body, "input")}, _whole_number(body, "top_k"))


def _whole_number(body: Body, name: str) -> dict[str, int]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise LineError(f"{name}: must be a whole number of at least 1", code="invalid_value", param=name)
    return {name: value}


def _read_chat(body: Body) -> LineRequest:
    _check_names(body, "messages", "logprobs", "top_logprobs", *_SAMPLING, *_EXTENSIONS)
    messages = read_messages(_required(body, "messages"))
    names = {"logprobs": "logprobs", "top_logprobs": "top_logprobs", **_SAMPLING, **_EXTENSIONS}
    parameters = _task_parameters("text-generation", body, names)
    if parameters.get("top_logprobs") and not parameters.get("logprobs"):
        raise LineError("top_logprobs: requires `logprobs: true`", code="invalid_value", param="top_logprobs")
    return LineRequest({"text": messages, "parameters": parameters})


def _read_completions(body: Body) -> LineRequest:
    extensions = {name: ours for name, ours in _EXTENSIONS.items() if name != "chat_template_kwargs"}
    _check_names(body, "prompt", "logprobs", *_SAMPLING, *extensions)
    prompt = _required(body, "prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if not isinstance(prompt, str) and not _is_ids(prompt):
        expected = "must be a text, or a list of token ids"
        if isinstance(prompt, list) and len(prompt) > 1 and all(isinstance(one, str) or _is_ids(one) for one in prompt):
            expected = "must be one prompt; put each prompt on its own line"
        raise LineError(f"prompt: {expected}", code="invalid_value", param="prompt")
    parameters = _task_parameters("text-generation", body, {"logprobs": "top_logprobs", **_SAMPLING, **extensions})
    if "top_logprobs" in parameters:
        parameters["logprobs"] = True
    return LineRequest({"text": prompt, "parameters": {"max_new_tokens": _COMPLETION_TOKENS, **parameters}})


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _task_parameters(task: str, body: Body, names: Mapping[str, str]) -> Body:
    """Read a task's parameters from a body.

    Args:
        names: OpenAI's name of a parameter -> the task's. If two mean the same parameter, the first one wins.
    """
    parameters: Body = {}
    for name, ours in reversed(list(names.items())):
        if body.get(name) is None:
            continue
        try:
            read_parameters(task, {ours: body[name]})
        except InvalidSpec as error:
            message = error.message.replace(f"parameters.{ours}", name, 1)
            raise LineError(message, code="invalid_value", param=name) from error
        parameters[ours] = body[name]
    return parameters


def _read_transcriptions(body: Body) -> LineRequest:
    _check_names(body, "language", "timestamp_granularities", *_SPEECH)
    parameters = _task_parameters(_SPEECH_TASK, body, {"language": "language"})
    return _speech(body, parameters, _granularities(body))


def _read_translations(body: Body) -> LineRequest:
    _check_names(body, *_SPEECH)
    return _speech(body, {"task": "translate"}, _SEGMENTS)


def _granularities(body: Body) -> Body:
    """The task's parameters for `timestamp_granularities`."""
    name, requested = "timestamp_granularities", body.get("timestamp_granularities") or ["segment"]
    if not isinstance(requested, list) or any(one not in ("segment", "word") for one in requested):
        raise LineError(f"{name}: must be a list with segment, word or both", code="invalid_value", param=name)
    if "word" not in requested:
        return _SEGMENTS
    if body.get("response_format") != "verbose_json":
        raise LineError(f"{name}: requires `response_format: verbose_json`", code="invalid_value", param=name)
    return {"return_timestamps": "word", **({"return_segments": True} if "segment" in requested else {})}


def _speech(body: Body, parameters: Body, times: Body) -> LineRequest:
    """The row of a transcription or translation; `times` are the task's parameters for formats that have times."""
    form = body.get("response_format") or "json"
    if form not in FORMATS:
        message = f"response_format: must be one of {', '.join(FORMATS)}"
        raise LineError(message, code="invalid_value", param="response_format")
    if body.get("prompt"):
        raise LineError("prompt: is not supported", code="unsupported_parameter", param="prompt")
    if body.get("temperature"):
        message = "temperature: is not supported, except 0; Stoker does not sample transcripts"
        raise LineError(message, code="unsupported_parameter", param="temperature")
    if form in TIMED_FORMATS:
        parameters.update(times)
    if form == "verbose_json":
        parameters["return_info"] = True
    file = _required(body, "file")
    if isinstance(file, str) and _DATA_URL.match(file):
        return LineRequest({"audio": file}, parameters, form)
    # Any other text would be the path of a file to a worker.
    if isinstance(file, str) and _FILE_ID.fullmatch(file):
        return LineRequest({"audio": None}, parameters, form, file_id=file)
    message = "file: must be a data: URL with base64, or the id of an uploaded file"
    raise LineError(message, code="invalid_value", param="file")


_GENERATION = ("text", "parameters")
ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/embeddings": Endpoint("embeddings", _read_embeddings, write_embeddings, "input"),
    "/v1/chat/completions": Endpoint("text-generation", _read_chat, write_chat, "messages", _GENERATION),
    "/v1/completions": Endpoint("text-generation", _read_completions, write_completions, "prompt", _GENERATION),
    "/v1/classify": Endpoint("text-classification", _read_classify, write_classify, "input"),
    "/v1/audio/transcriptions": Endpoint(_SPEECH_TASK, _read_transcriptions, write_transcript, "file", ("audio",)),
    "/v1/audio/translations": Endpoint(_SPEECH_TASK, _read_translations, write_transcript, "file", ("audio",)),
}
"""The endpoints that a batch may use."""

TASK_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"text-generation": {"do_sample": True, "max_new_tokens": 4096}}
"""Default parameters of a batch's jobs per task; the catalogue and the lines override them."""
TASK_PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "embeddings": {"inputs": "any", "truncate": False},
    "text-classification": {"inputs": "any", "truncation": False},
    _SPEECH_TASK: {},
    "text-generation": {"return_full_text": False, "continue_final_message": False},
}
"""Fixed parameters of a batch's jobs per task: accept every form of input, never truncate text silently, and reply to
every chat, whichever role wrote its last message."""
