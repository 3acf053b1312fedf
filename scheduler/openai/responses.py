"""Build OpenAI's response bodies from results. Pure: no database, no files."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LineResult:
    """One line's result, with everything else that its response body needs."""

    output: Any
    """The task's output."""
    num_tokens: int
    model: str
    """The model name in the line."""
    form: str | None
    response_id: str
    """A random-looking id that is the same at each rendering."""
    created_at: int
    """Unix seconds."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the job that computed the line."""


def write_embeddings(result: LineResult) -> Body:
    """The response body of `/v1/embeddings`."""
    vectors = np.asarray(result.output, dtype="<f4")
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.tobytes()).decode() if result.form == "base64" else vector,
        }
        for index, vector in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": result.model, "usage": _input_usage(result)}


def write_classify(result: LineResult) -> Body:
    """The response body of `/v1/classify`."""
    data = []
    for index, output in enumerate(result.output):
        scores = output if isinstance(output, list) else [output]
        data.append({"object": "classification", "index": index, **scores[0], "scores": scores})
    return {"object": "list", "data": data, "model": result.model, "usage": _input_usage(result)}


def _input_usage(result: LineResult) -> Body:
    return {"prompt_tokens": result.num_tokens, "total_tokens": result.num_tokens}


def write_chat(result: LineResult) -> Body:
    """The response body of `/v1/chat/completions`."""
    choices = [
        {
            "index": index,
            "finish_reason": choice["finish_reason"],
            "logprobs": _chat_logprobs(choice["logprobs"]),
            "message": {"role": "assistant", "content": choice["generated_text"], "refusal": None},
        }
        for index, choice in enumerate(result.output)
    ]
    return _generated(result, "chatcmpl", "chat.completion", choices)


def _chat_logprobs(tokens: Sequence[Body] | None) -> Body | None:
    return None if tokens is None else {"content": list(tokens), "refusal": None}


def write_completions(result: LineResult) -> Body:
    """The response body of `/v1/completions`."""
    choices = [
        {
            "index": index,
            "finish_reason": choice["finish_reason"],
            "logprobs": _completion_logprobs(choice["logprobs"]),
            "text": choice["generated_text"],
        }
        for index, choice in enumerate(result.output)
    ]
    return _generated(result, "cmpl", "text_completion", choices)


def _completion_logprobs(tokens: Sequence[Body] | None) -> Body | None:
    if tokens is None:
        return None
    return {
        "tokens": [_token_name(token) for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        # The chosen token is always included, so there may be one more than requested.
        "top_logprobs": [
            {_token_name(one): one["logprob"] for one in (*token["top_logprobs"], token)} for token in tokens
        ],
        "text_offset": _offsets(tokens),
    }


def _token_name(token: Body) -> str:
    """A token's text; for a token that is only part of a character, its bytes."""
    raw = bytes(token["bytes"])
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _offsets(tokens: Sequence[Body]) -> list[int]:
    """Offset of each token in the text; for a token that is part of a character, the offset of that character."""
    decoder, offsets, length = codecs.getincrementaldecoder("utf-8")(errors="replace"), [], 0
    for token in tokens:
        offsets.append(length)
        length += len(decoder.decode(bytes(token["bytes"])))
    return offsets


def _generated(result: LineResult, prefix: str, kind: str, choices: list[Body]) -> Body:
    num_generated = sum(choice["num_tokens"] for choice in result.output)
    return {
        "id": f"{prefix}-{result.response_id}",
        "object": kind,
        "created": result.created_at,
        "model": result.model,
        "choices": choices,
        "usage": {
            "prompt_tokens": result.num_tokens - num_generated,
            "completion_tokens": num_generated,
            "total_tokens": result.num_tokens,
        },
    }
