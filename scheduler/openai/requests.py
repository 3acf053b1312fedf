"""OpenAI's request bodies, translated to rows of a job, and its endpoints. Pure: no database, no files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import InvalidSpec
from jobs.messages import short, short_message, shown
from jobs.specs.parameters import read_parameters
from scheduler.openai.responses import Answered, Body, write_chat, write_classify, write_completions, write_embeddings


class Refusal(Exception):
    """One line's body cannot be carried out; its neighbours can."""

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        """
        Args:
            message: one clear sentence.
            code: `missing_required_parameter`, `unknown_parameter`, `unsupported_parameter` or `invalid_value`.
            param: the key of the body at fault.
        """
        super().__init__(message)
        self.message, self.code, self.param = short_message(message), code, param and short(param)


@dataclass(frozen=True, slots=True)
class Asked:
    """What one line's body asks for, as a row."""

    values: Mapping[str, Any]
    """The row's columns."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Of the job: lines that differ in them go into different jobs."""
    form: str | None = None
    """How the answer is to be written, where the client chooses."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One of the contract's endpoints."""

    task: str
    read: Callable[[Body], Asked]
    """Raises `Refusal`."""
    write: Callable[[Answered], Body]
    prompt: str
    """The key of the body that a row's text is made of."""
    columns: tuple[str, ...] = ("text",)
    """Of the rows."""


# -- reading -------------------------------------------------------------------------------------------------------

_IGNORED = frozenset({"model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
"""What may stand in any body and changes no result here."""
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
"""Parameters of the contract that are not carried out, and their values that ask for nothing."""
_SAMPLING: Mapping[str, str] = {
    "max_completion_tokens": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "stop": "stop",
    "n": "n",
}
"""The contract's names, and those of the task."""
_EXTENSIONS: Mapping[str, str] = {name: name for name in ("top_k", "repetition_penalty", "chat_template_kwargs")}
"""Parameters of the task that the contract does not have, by the names that other model servers use."""
_ROLES: Mapping[str, str] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MESSAGE_KEYS = ("role", "content", "name")
_COMPLETION_TOKENS = 16  # the contract's default of `/v1/completions`


def _check_names(body: Body, *known: str) -> None:
    for name, value in body.items():
        if name in known or name in _IGNORED:
            continue
        if name not in _NEUTRAL:
            raise Refusal(f"unknown parameter: {shown(name)}", code="unknown_parameter", param=short(name))
        if value not in _NEUTRAL[name]:
            raise Refusal(f"{name}: is not supported here", code="unsupported_parameter", param=name)


def _required(body: Body, name: str) -> Any:
    value = body.get(name)
    if value is None:
        raise Refusal(f"{name}: is required", code="missing_required_parameter", param=name)
    return value


def _read_embeddings(body: Body) -> Asked:
    _check_names(body, "input", "encoding_format", "dimensions")
    form = body.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise Refusal("encoding_format: must be float or base64", code="invalid_value", param="encoding_format")
    return Asked({"text": _required(body, "input")}, _whole_number(body, "dimensions"), form)


def _read_classify(body: Body) -> Asked:
    _check_names(body, "input", "top_k")
    return Asked({"text": _required(body, "input")}, _whole_number(body, "top_k"))


def _whole_number(body: Body, name: str) -> dict[str, int]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Refusal(f"{name}: must be a whole number, at least 1", code="invalid_value", param=name)
    return {name: value}


def _read_chat(body: Body) -> Asked:
    _check_names(body, "messages", "logprobs", "top_logprobs", *_SAMPLING, *_EXTENSIONS)
    messages = _required(body, "messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal("messages: must be a list of at least one message", code="invalid_value", param="messages")
    parameters = _generation(body, {"logprobs": "logprobs", "top_logprobs": "top_logprobs", **_SAMPLING, **_EXTENSIONS})
    if parameters.get("top_logprobs") and not parameters.get("logprobs"):
        raise Refusal("top_logprobs: needs logprobs to be true", code="invalid_value", param="top_logprobs")
    return Asked({"text": [_message(item, at) for at, item in enumerate(messages)], "parameters": parameters})


def _message(message: Any, at: int) -> dict[str, str]:
    place = f"messages[{at}]"
    if not isinstance(message, dict):
        raise Refusal(f"{place}: must be an object with role and content", code="invalid_value", param=place)
    for name, value in message.items():  # an answer that an SDK gave back has every key, most of them null
        if value and name not in _MESSAGE_KEYS:
            param = f"{place}.{name}"
            raise Refusal(f"{param}: is not supported here", code="unsupported_parameter", param=param)
    role = str(message.get("role"))
    if role not in _ROLES:
        raise Refusal(f"{place}.role: must be one of {', '.join(_ROLES)}", code="invalid_value", param=f"{place}.role")
    content = message.get("content")
    if isinstance(content, list) and content and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        param = f"{place}.content"
        raise Refusal(f"{param}: must be a text, or a list of parts of type text", code="invalid_value", param=param)
    name = message.get("name")
    if name is not None and not isinstance(name, str):
        raise Refusal(f"{place}.name: must be a text", code="invalid_value", param=f"{place}.name")
    return {"role": _ROLES[role], "content": content} | ({} if name is None else {"name": name})


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _read_completions(body: Body) -> Asked:
    extensions = {name: ours for name, ours in _EXTENSIONS.items() if name != "chat_template_kwargs"}
    _check_names(body, "prompt", "logprobs", *_SAMPLING, *extensions)
    prompt = _required(body, "prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if not isinstance(prompt, str) and not _is_ids(prompt):
        expected = "must be a text, or a list of token ids"
        if isinstance(prompt, list) and len(prompt) > 1 and all(isinstance(one, str) or _is_ids(one) for one in prompt):
            expected = "one prompt to a line; send each in a line of its own"
        raise Refusal(f"prompt: {expected}", code="invalid_value", param="prompt")
    parameters = _generation(body, {"logprobs": "top_logprobs", **_SAMPLING, **extensions})
    if "top_logprobs" in parameters:
        parameters["logprobs"] = True
    return Asked({"text": prompt, "parameters": {"max_new_tokens": _COMPLETION_TOKENS, **parameters}})


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _generation(body: Body, names: Mapping[str, str]) -> Body:
    """The task's parameters that a body gives, by the contract's names for them; of two, the later name gives way."""
    parameters: Body = {}
    for name, ours in reversed(list(names.items())):
        if body.get(name) is None:
            continue
        try:
            read_parameters("text-generation", {ours: body[name]})
        except InvalidSpec as error:
            message = error.message.replace(f"parameters.{ours}", name, 1)
            raise Refusal(message, code="invalid_value", param=name) from error
        parameters[ours] = body[name]
    return parameters


_GENERATION = ("text", "parameters")
ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/embeddings": Endpoint("embeddings", _read_embeddings, write_embeddings, "input"),
    "/v1/chat/completions": Endpoint("text-generation", _read_chat, write_chat, "messages", _GENERATION),
    "/v1/completions": Endpoint("text-generation", _read_completions, write_completions, "prompt", _GENERATION),
    "/v1/classify": Endpoint("text-classification", _read_classify, write_classify, "input"),
}
"""What a batch may be for."""

TASK_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"text-generation": {"do_sample": True, "max_new_tokens": 4096}}
"""Parameters that a batch's jobs of a task have unless the catalogue or the line says another value."""
TASK_PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "embeddings": {"inputs": "any", "truncate": False},
    "text-classification": {"inputs": "any", "truncation": False},
    "text-generation": {"return_full_text": False, "continue_final_message": False},
}
"""Parameters of every job of a task that a batch makes: any form of input, no text cut without a word, and an answer
to each chat, whoever spoke last."""
