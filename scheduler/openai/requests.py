"""Translate OpenAI's request bodies to rows of a job. Pure: no database, no files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import InvalidSpec
from jobs.messages import short, short_message, shown
from jobs.specs.parameters import read_parameters
from scheduler.openai.responses import Body, LineResult, write_chat, write_classify, write_completions, write_embeddings


class LineError(Exception):
    """One line's body is invalid; other lines are not affected."""

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        """
        Args:
            message: One clear sentence.
            code: `missing_required_parameter`, `unknown_parameter`, `unsupported_parameter` or `invalid_value`.
            param: The invalid key of the body.
        """
        super().__init__(message)
        self.message, self.code, self.param = short_message(message), code, param and short(param)


@dataclass(frozen=True, slots=True)
class LineRequest:
    """One line's body as a row of a job."""

    values: Mapping[str, Any]
    """Columns of the row."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the job: lines with different ones go into different jobs."""
    form: str | None = None
    """How to format the response, if the client chose."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint of OpenAI's API."""

    task: str
    read: Callable[[Body], LineRequest]
    """Parses a body; raises `LineError`."""
    write: Callable[[LineResult], Body]
    prompt: str
    """The body's key that a row's text comes from."""
    columns: tuple[str, ...] = ("text",)
    """Column names of the rows."""


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
_ROLES: Mapping[str, str] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MESSAGE_KEYS = ("role", "content", "name")
_COMPLETION_TOKENS = 16  # OpenAI's default for `/v1/completions`


def _check_names(body: Body, *known: str) -> None:
    for name, value in body.items():
        if name in known or name in _IGNORED:
            continue
        if name not in _NEUTRAL:
            raise LineError(f"unknown parameter: {shown(name)}", code="unknown_parameter", param=short(name))
        if value not in _NEUTRAL[name]:
            raise LineError(f"{name}: is not supported here", code="unsupported_parameter", param=name)


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
        raise LineError(f"{name}: must be a whole number, at least 1", code="invalid_value", param=name)
    return {name: value}


def _read_chat(body: Body) -> LineRequest:
    _check_names(body, "messages", "logprobs", "top_logprobs", *_SAMPLING, *_EXTENSIONS)
    messages = _required(body, "messages")
    if not isinstance(messages, list) or not messages:
        raise LineError("messages: must be a list of at least one message", code="invalid_value", param="messages")
    parameters = _generation(body, {"logprobs": "logprobs", "top_logprobs": "top_logprobs", **_SAMPLING, **_EXTENSIONS})
    if parameters.get("top_logprobs") and not parameters.get("logprobs"):
        raise LineError("top_logprobs: needs logprobs to be true", code="invalid_value", param="top_logprobs")
    return LineRequest({"text": [_message(item, at) for at, item in enumerate(messages)], "parameters": parameters})


def _message(message: Any, at: int) -> dict[str, str]:
    place = f"messages[{at}]"
    if not isinstance(message, dict):
        raise LineError(f"{place}: must be an object with role and content", code="invalid_value", param=place)
    for name, value in message.items():  # messages returned by an SDK have every key, most of them null
        if value and name not in _MESSAGE_KEYS:
            param = f"{place}.{name}"
            raise LineError(f"{param}: is not supported here", code="unsupported_parameter", param=param)
    role = str(message.get("role"))
    if role not in _ROLES:
        raise LineError(
            f"{place}.role: must be one of {', '.join(_ROLES)}", code="invalid_value", param=f"{place}.role"
        )
    content = message.get("content")
    if isinstance(content, list) and content and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        param = f"{place}.content"
        raise LineError(f"{param}: must be a text, or a list of parts of type text", code="invalid_value", param=param)
    name = message.get("name")
    if name is not None and not isinstance(name, str):
        raise LineError(f"{place}.name: must be a text", code="invalid_value", param=f"{place}.name")
    return {"role": _ROLES[role], "content": content} | ({} if name is None else {"name": name})


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _read_completions(body: Body) -> LineRequest:
    extensions = {name: ours for name, ours in _EXTENSIONS.items() if name != "chat_template_kwargs"}
    _check_names(body, "prompt", "logprobs", *_SAMPLING, *extensions)
    prompt = _required(body, "prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if not isinstance(prompt, str) and not _is_ids(prompt):
        expected = "must be a text, or a list of token ids"
        if isinstance(prompt, list) and len(prompt) > 1 and all(isinstance(one, str) or _is_ids(one) for one in prompt):
            expected = "must be one prompt; send each prompt in a separate line"
        raise LineError(f"prompt: {expected}", code="invalid_value", param="prompt")
    parameters = _generation(body, {"logprobs": "top_logprobs", **_SAMPLING, **extensions})
    if "top_logprobs" in parameters:
        parameters["logprobs"] = True
    return LineRequest({"text": prompt, "parameters": {"max_new_tokens": _COMPLETION_TOKENS, **parameters}})


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _generation(body: Body, names: Mapping[str, str]) -> Body:
    """The task's parameters in a body. If two names mean the same parameter, the first one in the table wins."""
    parameters: Body = {}
    for name, ours in reversed(list(names.items())):
        if body.get(name) is None:
            continue
        try:
            read_parameters("text-generation", {ours: body[name]})
        except InvalidSpec as error:
            message = error.message.replace(f"parameters.{ours}", name, 1)
            raise LineError(message, code="invalid_value", param=name) from error
        parameters[ours] = body[name]
    return parameters


_GENERATION = ("text", "parameters")
ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/embeddings": Endpoint("embeddings", _read_embeddings, write_embeddings, "input"),
    "/v1/chat/completions": Endpoint("text-generation", _read_chat, write_chat, "messages", _GENERATION),
    "/v1/completions": Endpoint("text-generation", _read_completions, write_completions, "prompt", _GENERATION),
    "/v1/classify": Endpoint("text-classification", _read_classify, write_classify, "input"),
}
"""The endpoints that a batch may use."""

TASK_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"text-generation": {"do_sample": True, "max_new_tokens": 4096}}
"""Default parameters of a batch's jobs per task; the catalogue and the lines override them."""
TASK_PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "embeddings": {"inputs": "any", "truncate": False},
    "text-classification": {"inputs": "any", "truncation": False},
    "text-generation": {"return_full_text": False, "continue_final_message": False},
}
"""Fixed parameters of a batch's jobs per task: accept every form of input, never truncate text silently, and reply to
every chat, whichever role wrote its last message."""
