"""OpenAI's bodies: every parameter is carried out, known to ask for nothing, or refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from scheduler.openai.requests import ENDPOINTS, LineError
from scheduler.openai.responses import LineResult

EMBEDDINGS, CLASSIFY = ENDPOINTS["/v1/embeddings"], ENDPOINTS["/v1/classify"]


CHAT, COMPLETIONS = ENDPOINTS["/v1/chat/completions"], ENDPOINTS["/v1/completions"]
HELLO = [{"role": "user", "content": "Hello"}]


def refusal(endpoint: str, body: dict[str, Any]) -> tuple[str, str | None]:
    """Code and parameter of the refusal of a body."""
    with pytest.raises(LineError) as caught:
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
        ("/v1/chat/completions", {}, ("missing_required_parameter", "messages")),
        ("/v1/chat/completions", {"messages": []}, ("invalid_value", "messages")),
        ("/v1/chat/completions", {"messages": ["hello"]}, ("invalid_value", "messages[0]")),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "tool", "content": "x"}]},
            ("invalid_value", "messages[0].role"),
        ),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, ("invalid_value", "messages[0].content")),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            ("invalid_value", "messages[0].content"),
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "x"}]}]},
            ("unsupported_parameter", "messages[0].tool_calls"),
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x", "tool_call_id": "y"}]},
            ("unsupported_parameter", "messages[0].tool_call_id"),
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x", "name": 5}]},
            ("invalid_value", "messages[0].name"),
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": []}]},
            ("invalid_value", "messages[0].content"),
        ),
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 0}, ("invalid_value", "max_tokens")),
        ("/v1/chat/completions", {"messages": HELLO, "temperature": "hot"}, ("invalid_value", "temperature")),
        ("/v1/chat/completions", {"messages": HELLO, "logprobs": 2}, ("invalid_value", "logprobs")),
        ("/v1/chat/completions", {"messages": HELLO, "top_logprobs": 2}, ("invalid_value", "top_logprobs")),
        (
            "/v1/chat/completions",
            {"messages": HELLO, "tools": [{"type": "function"}]},
            ("unsupported_parameter", "tools"),
        ),
        (
            "/v1/chat/completions",
            {"messages": HELLO, "presence_penalty": 0.5},
            ("unsupported_parameter", "presence_penalty"),
        ),
        (
            "/v1/chat/completions",
            {"messages": HELLO, "response_format": {"type": "json_object"}},
            ("unsupported_parameter", "response_format"),
        ),
        ("/v1/chat/completions", {"messages": HELLO, "stream": True}, ("unsupported_parameter", "stream")),
        ("/v1/completions", {}, ("missing_required_parameter", "prompt")),
        ("/v1/completions", {"prompt": ["a", "b"]}, ("invalid_value", "prompt")),
        ("/v1/completions", {"prompt": 5}, ("invalid_value", "prompt")),
        ("/v1/completions", {"prompt": {"text": "a"}}, ("invalid_value", "prompt")),
        ("/v1/completions", {"prompt": []}, ("invalid_value", "prompt")),
        ("/v1/completions", {"prompt": [True]}, ("invalid_value", "prompt")),
        ("/v1/completions", {"prompt": [[[5]]]}, ("invalid_value", "prompt")),
        ("/v1/completions", {"prompt": "a", "echo": True}, ("unsupported_parameter", "echo")),
        ("/v1/completions", {"prompt": "a", "stop": [""]}, ("invalid_value", "stop")),
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
    body = EMBEDDINGS.write(LineResult(vectors, 7, "m", "float", "x", 0))
    assert [(entry["index"], list(entry["embedding"])) for entry in body["data"]] == [(0, [1, 2]), (1, [3, 4])]
    assert (body["model"], body["usage"]) == ("m", {"prompt_tokens": 7, "total_tokens": 7})
    best = [{"label": "a", "score": 0.75}, {"label": "b", "score": 0.25}]
    body = CLASSIFY.write(LineResult([best], 3, "m", None, "x", 0))
    assert body["data"] == [{"object": "classification", "index": 0, "label": "a", "score": 0.75, "scores": best}]


def test_what_a_chat_body_asks_for() -> None:
    """Each line's own parameters go with its row; roles and parts of the contract become those of a chat template."""
    parts = [{"type": "text", "text": "Who is "}, {"type": "text", "text": "Ada?"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "name": "Bob", "content": parts}]
    body = {"max_tokens": 5, "max_completion_tokens": 7, "temperature": 0, "n": 2, "stop": ["\n"], "seed": 3}
    asked = CHAT.read({"model": "m", "messages": messages, **body, "logprobs": True, "tools": None, "top_p": None})
    assert asked.values["text"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who is Ada?", "name": "Bob"},
    ]
    expected = {"max_new_tokens": 7, "temperature": 0, "n": 2, "stop": ["\n"], "seed": 3, "logprobs": True}
    assert asked.values["parameters"] == expected
    assert asked.parameters == {}


def test_an_answer_can_be_sent_back_as_it_came() -> None:
    answer = {"generated_text": "Ada.", "finish_reason": "stop", "num_tokens": 2, "logprobs": None}
    chat = ChatCompletion.model_validate(CHAT.write(LineResult([answer], 3, "m", None, "id", 0)))
    asked = CHAT.read({"model": "m", "messages": [*HELLO, chat.choices[0].message.model_dump(), *HELLO]})
    assert asked.values["text"][1] == {"role": "assistant", "content": "Ada."}


def test_what_a_completions_body_asks_for() -> None:
    """The contract's 16 tokens where the line says nothing; one prompt, in any of its forms."""
    assert COMPLETIONS.read({"model": "m", "prompt": "a"}).values == {"text": "a", "parameters": {"max_new_tokens": 16}}
    assert COMPLETIONS.read({"model": "m", "prompt": ["a"]}).values["text"] == "a"
    assert COMPLETIONS.read({"model": "m", "prompt": [[5, 6]]}).values["text"] == [5, 6]
    assert COMPLETIONS.read({"model": "m", "prompt": [5, 6]}).values["text"] == [5, 6]
    asked = COMPLETIONS.read({"model": "m", "prompt": "a", "logprobs": 0, "max_tokens": 2})
    assert asked.values["parameters"] == {"max_new_tokens": 2, "logprobs": True, "top_logprobs": 0}


def test_what_is_refused_names_the_clients_parameter() -> None:
    """Nobody who sent `max_tokens` knows of `max_new_tokens`."""
    with pytest.raises(LineError) as caught:
        CHAT.read({"model": "m", "messages": HELLO, "max_tokens": 0})
    assert caught.value.message == "max_tokens: must be a whole number from 1, not 0"


def test_generated_answers_have_the_contracts_form() -> None:
    """The SDK's own types read them, strictly."""
    top = {"token": "a", "logprob": -0.5, "bytes": [97]}
    told = [{**top, "top_logprobs": [top]}, {"token": "bc", "logprob": -1.0, "bytes": [98, 99], "top_logprobs": []}]
    output = [
        {"generated_text": "abc", "finish_reason": "stop", "num_tokens": 3, "logprobs": told},
        {"generated_text": "x", "finish_reason": "length", "num_tokens": 1, "logprobs": None},
    ]
    answered = LineResult(output, 10, "m", None, "id", 1700000000)
    chat = ChatCompletion.model_validate(CHAT.write(answered), strict=True)
    assert [choice.message.content for choice in chat.choices] == ["abc", "x"]
    assert [choice.finish_reason for choice in chat.choices] == ["stop", "length"]
    assert chat.choices[0].logprobs is not None
    assert [one.token for one in chat.choices[0].logprobs.content or []] == ["a", "bc"]
    assert chat.usage is not None
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens, chat.usage.total_tokens) == (6, 4, 10)
    assert (chat.id, chat.created, chat.model) == ("chatcmpl-id", 1700000000, "m")
    completion = Completion.model_validate(COMPLETIONS.write(answered), strict=True)
    assert [choice.text for choice in completion.choices] == ["abc", "x"]
    assert completion.choices[0].logprobs is not None
    assert completion.choices[0].logprobs.tokens == ["a", "bc"]
    assert completion.choices[0].logprobs.text_offset == [0, 1]
    # The chosen token is there besides the likeliest ones that were asked for.
    assert completion.choices[0].logprobs.top_logprobs == [{"a": -0.5}, {"bc": -1.0}]


def test_tokens_that_are_parts_of_characters_are_told_apart() -> None:
    parts = ([0xF0, 0x9F], [0x99, 0x82], [0x20, 0x78])  # the smile in two tokens, then " x"
    told = [
        {"token": bytes(part).decode(errors="replace"), "logprob": -float(at), "bytes": part, "top_logprobs": []}
        for at, part in enumerate(parts, 1)
    ]
    told[0]["top_logprobs"] = [{"token": "�", "logprob": -0.5, "bytes": [0xE2]}]
    choice = {"generated_text": "🙂 x", "finish_reason": "stop", "num_tokens": 3, "logprobs": told}
    body = COMPLETIONS.write(LineResult([choice], 5, "m", None, "id", 0))["choices"][0]["logprobs"]
    assert body["tokens"] == ["bytes:\\xf0\\x9f", "bytes:\\x99\\x82", " x"]
    assert body["top_logprobs"][0] == {"bytes:\\xe2": -0.5, "bytes:\\xf0\\x9f": -1.0}
    assert body["text_offset"] == [0, 0, 1]
