"""OpenAI's bodies: every parameter is carried out, known to ask for nothing, or refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scheduler.api.openai import ENDPOINTS, Answered, Refusal

EMBEDDINGS, CLASSIFY = ENDPOINTS["/v1/embeddings"], ENDPOINTS["/v1/classify"]


def refusal(endpoint: str, body: dict[str, Any]) -> tuple[str, str | None]:
    """Code and parameter of the refusal of a body."""
    with pytest.raises(Refusal) as caught:
        ENDPOINTS[endpoint].read({"model": "m", **body})
    return caught.value.code, caught.value.param


def test_what_an_embeddings_body_asks_for() -> None:
    """Dimensions belong to the job, the encoding to the answer, the input to the row."""
    asked = EMBEDDINGS.read({"model": "m", "input": ["a", "b"], "dimensions": 8, "user": "u"})
    assert (asked.values, asked.parameters, asked.form) == ({"text": ["a", "b"]}, {"dimensions": 8}, "float")
    assert EMBEDDINGS.read({"model": "m", "input": "a", "encoding_format": "base64"}).form == "base64"
    assert CLASSIFY.read({"model": "m", "input": "a", "top_k": 2}).parameters == {"top_k": 2}


@pytest.mark.parametrize(
    ("endpoint", "body", "expected"),
    [
        ("/v1/embeddings", {}, ("missing_required_parameter", "input")),
        ("/v1/embeddings", {"input": None}, ("missing_required_parameter", "input")),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, ("invalid_value", "dimensions")),
        ("/v1/embeddings", {"input": "a", "dimensions": True}, ("invalid_value", "dimensions")),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, ("invalid_value", "encoding_format")),
        ("/v1/embeddings", {"input": "a", "temperature": 1}, ("unknown_parameter", "temperature")),
        ("/v1/embeddings", {"input": "a", "stream": True}, ("unsupported_parameter", "stream")),
        ("/v1/classify", {"input": "a", "top_k": "all"}, ("invalid_value", "top_k")),
    ],
)
def test_what_cannot_be_carried_out_is_refused_by_name(
    endpoint: str, body: dict[str, Any], expected: tuple[str, str | None]
) -> None:
    """A parameter that is quietly ignored gives answers that nobody asked for."""
    assert refusal(endpoint, body) == expected


def test_answers_have_the_contracts_form() -> None:
    """The SDK's types read nothing else."""
    vectors = np.array([[1, 2], [3, 4]], dtype=np.float32)
    body = EMBEDDINGS.write(Answered(vectors, 7, "m", "float"))
    assert [(entry["index"], list(entry["embedding"])) for entry in body["data"]] == [(0, [1, 2]), (1, [3, 4])]
    assert (body["model"], body["usage"]) == ("m", {"prompt_tokens": 7, "total_tokens": 7})
    best = [{"label": "a", "score": 0.75}, {"label": "b", "score": 0.25}]
    body = CLASSIFY.write(Answered([best], 3, "m", None))
    assert body["data"] == [{"object": "classification", "index": 0, "label": "a", "score": 0.75, "scores": best}]
