"""OpenAI's request and response bodies, translated to rows of a job and back. Pure: no database, no files."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jobs.errors import InvalidSpec
from jobs.parameters import check_parameters

Body = dict[str, Any]


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
        self.message, self.code, self.param = message, code, param


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
class Answered:
    """One line's result, with what its body needs besides."""

    output: Any
    """As the task gave it."""
    num_tokens: int
    model: str
    """As the line named it."""
    form: str | None
    answer_id: str
    """Random-looking, the same at each rendering."""
    created_at: int
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One of the contract's endpoints."""

    task: str
    read: Callable[[Body], Asked]
    """Raises `Refusal`."""
    write: Callable[[Answered], Body]
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
_ROLES: Mapping[str, str] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_COMPLETION_TOKENS = 16  # the contract's default of `/v1/completions`


def _check_names(body: Body, *known: str) -> None:
    for name, value in body.items():
        if name in known or name in _IGNORED:
            continue
        if name not in _NEUTRAL:
            raise Refusal(f"unknown parameter: '{name}'", code="unknown_parameter", param=name)
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
    _check_names(body, "messages", "logprobs", "top_logprobs", *_SAMPLING)
    messages = _required(body, "messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal("messages: must be a list of at least one message", code="invalid_value", param="messages")
    parameters = _generation(body, {"logprobs": "logprobs", "top_logprobs": "top_logprobs", **_SAMPLING})
    if parameters.get("top_logprobs") and not parameters.get("logprobs"):
        raise Refusal("top_logprobs: needs logprobs to be true", code="invalid_value", param="top_logprobs")
    return Asked({"text": [_message(item, at) for at, item in enumerate(messages)], "parameters": parameters})


def _message(message: Any, at: int) -> dict[str, str]:
    place = f"messages[{at}]"
    if not isinstance(message, dict):
        raise Refusal(f"{place}: must be an object with role and content", code="invalid_value", param=place)
    for name in ("tool_calls", "function_call", "audio"):
        if message.get(name):
            param = f"{place}.{name}"
            raise Refusal(f"{param}: is not supported here", code="unsupported_parameter", param=param)
    role = str(message.get("role"))
    if role not in _ROLES:
        raise Refusal(f"{place}.role: must be one of {', '.join(_ROLES)}", code="invalid_value", param=f"{place}.role")
    content = message.get("content")
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        param = f"{place}.content"
        raise Refusal(f"{param}: must be a text, or a list of parts of type text", code="invalid_value", param=param)
    return {"role": _ROLES[role], "content": content}


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _read_completions(body: Body) -> Asked:
    _check_names(body, "prompt", "logprobs", *_SAMPLING)
    prompt = _required(body, "prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, list) and not all(isinstance(token, int) for token in prompt):
        raise Refusal(
            "prompt: one prompt to a line; send each in a line of its own", code="invalid_value", param="prompt"
        )
    parameters = _generation(body, {"logprobs": "top_logprobs", **_SAMPLING})
    if "top_logprobs" in parameters:
        parameters["logprobs"] = True
    return Asked({"text": prompt, "parameters": {"max_new_tokens": _COMPLETION_TOKENS, **parameters}})


def _generation(body: Body, names: Mapping[str, str]) -> Body:
    """The task's parameters that a body gives, by the contract's names for them; of two, the later name gives way."""
    parameters: Body = {}
    for name, ours in reversed(list(names.items())):
        if body.get(name) is None:
            continue
        try:
            check_parameters("text-generation", {ours: body[name]})
        except InvalidSpec as error:
            message = error.message.replace(f"parameters.{ours}", name, 1)
            raise Refusal(message, code="invalid_value", param=name) from error
        parameters[ours] = body[name]
    return parameters


# -- writing -------------------------------------------------------------------------------------------------------


def _write_embeddings(answered: Answered) -> Body:
    vectors = np.asarray(answered.output, dtype="<f4")
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.tobytes()).decode() if answered.form == "base64" else vector,
        }
        for index, vector in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": answered.model, "usage": _input_usage(answered)}


def _write_classify(answered: Answered) -> Body:
    data = []
    for index, output in enumerate(answered.output):
        scores = output if isinstance(output, list) else [output]
        data.append({"object": "classification", "index": index, **scores[0], "scores": scores})
    return {"object": "list", "data": data, "model": answered.model, "usage": _input_usage(answered)}


def _input_usage(answered: Answered) -> Body:
    return {"prompt_tokens": answered.num_tokens, "total_tokens": answered.num_tokens}


def _write_chat(answered: Answered) -> Body:
    choices = [
        {
            "index": index,
            "finish_reason": choice["finish_reason"],
            "logprobs": _chat_logprobs(choice["logprobs"]),
            "message": {"role": "assistant", "content": choice["generated_text"], "refusal": None},
        }
        for index, choice in enumerate(answered.output)
    ]
    return _generated(answered, "chatcmpl", "chat.completion", choices)


def _chat_logprobs(tokens: Sequence[Body] | None) -> Body | None:
    return None if tokens is None else {"content": list(tokens), "refusal": None}


def _write_completions(answered: Answered) -> Body:
    choices = [
        {
            "index": index,
            "finish_reason": choice["finish_reason"],
            "logprobs": _completion_logprobs(choice["logprobs"]),
            "text": choice["generated_text"],
        }
        for index, choice in enumerate(answered.output)
    ]
    return _generated(answered, "cmpl", "text_completion", choices)


def _completion_logprobs(tokens: Sequence[Body] | None) -> Body | None:
    if tokens is None:
        return None
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [{top["token"]: top["logprob"] for top in token["top_logprobs"]} for token in tokens],
        "text_offset": np.cumsum([0, *(len(token["token"]) for token in tokens)])[:-1].tolist(),
    }


def _generated(answered: Answered, prefix: str, kind: str, choices: list[Body]) -> Body:
    num_generated = sum(choice["num_tokens"] for choice in answered.output)
    return {
        "id": f"{prefix}-{answered.answer_id}",
        "object": kind,
        "created": answered.created_at,
        "model": answered.model,
        "choices": choices,
        "usage": {
            "prompt_tokens": answered.num_tokens - num_generated,
            "completion_tokens": num_generated,
            "total_tokens": answered.num_tokens,
        },
    }


ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/embeddings": Endpoint("embeddings", _read_embeddings, _write_embeddings),
    "/v1/chat/completions": Endpoint("text-generation", _read_chat, _write_chat, ("text", "parameters")),
    "/v1/completions": Endpoint("text-generation", _read_completions, _write_completions, ("text", "parameters")),
    "/v1/classify": Endpoint("text-classification", _read_classify, _write_classify),
}
"""What a batch may be for."""

TASK_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"text-generation": {"do_sample": True, "max_new_tokens": 4096}}
"""Parameters that a batch's jobs of a task have unless the catalogue or the line says another value."""
TASK_PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "embeddings": {"inputs": "any", "truncate": False},
    "text-classification": {"inputs": "any", "truncation": False},
    "text-generation": {"return_full_text": False},
}
"""Parameters of every job of a task that a batch makes: any form of input, and no text cut without a word."""
