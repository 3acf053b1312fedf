"""OpenAI's request and response bodies, translated to rows of a job and back. Pure: no database, no files."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One of the contract's endpoints."""

    task: str
    read: Callable[[Body], Asked]
    """Raises `Refusal`."""
    write: Callable[[Answered], Body]


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


ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/embeddings": Endpoint("embeddings", _read_embeddings, _write_embeddings),
    "/v1/classify": Endpoint("text-classification", _read_classify, _write_classify),
}
"""What a batch may be for."""

TASK_PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "embeddings": {"inputs": "any", "truncate": False},
    "text-classification": {"inputs": "any", "truncation": False},
}
"""Parameters of every job of a task that a batch makes: any form of input, and no text cut without a word."""
