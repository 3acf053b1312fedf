"""OpenAI's bodies: every parameter is carried out, known to ask for nothing, or refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from scheduler.openai.line_error import LineError
from scheduler.openai.requests import ENDPOINTS
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
    request = EMBEDDINGS.read({"model": "m", "input": ["a", "b"], "dimensions": 8, "user": "u"})
    assert (request.values, request.parameters, request.form) == ({"text": ["a", "b"]}, {"dimensions": 8}, "float")
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
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
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
    """A parameter that is silently ignored gives other outputs than requested."""
    assert refusal(endpoint, body) == expected


SOUND = "data:audio/wav;base64,UklGRg=="
TRANSCRIPTIONS, TRANSLATIONS = ENDPOINTS["/v1/audio/transcriptions"], ENDPOINTS["/v1/audio/translations"]


@pytest.mark.parametrize(
    ("body", "parameters", "form"),
    [
        ({}, {}, "json"),
        ({"response_format": "text", "language": "de", "prompt": "", "temperature": 0}, {"language": "de"}, "text"),
        ({"response_format": "srt", "timestamp_granularities": []}, {"return_timestamps": True}, "srt"),
        ({"response_format": "vtt", "stream": False, "include": []}, {"return_timestamps": True}, "vtt"),
        (
            {"response_format": "verbose_json", "chunking_strategy": None},
            {"return_timestamps": True, "return_info": True},
            "verbose_json",
        ),
        (
            {"response_format": "verbose_json", "timestamp_granularities": ["word"]},
            {"return_timestamps": "word", "return_info": True},
            "verbose_json",
        ),
        (
            {"response_format": "verbose_json", "timestamp_granularities": ["word", "segment"]},
            {"return_timestamps": "word", "return_segments": True, "return_info": True},
            "verbose_json",
        ),
    ],
)
def test_what_a_transcription_asks_for(body: dict[str, Any], parameters: dict[str, Any], form: str) -> None:
    request = TRANSCRIPTIONS.read({"model": "m", "file": SOUND, **body})
    assert (request.values, request.parameters, request.form, request.file_id) == (
        {"audio": SOUND}, parameters, form, None,
    )  # fmt: skip


def test_a_sound_can_be_an_uploaded_file() -> None:
    request = TRANSLATIONS.read({"model": "m", "file": "file_abc", "response_format": "srt"})
    assert (request.values, request.file_id) == ({"audio": None}, "file_abc")
    assert request.parameters == {"task": "translate", "return_timestamps": True}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"file": None}, ("missing_required_parameter", "file")),
        ({"file": ""}, ("invalid_value", "file")),
        ({"file": 7}, ("invalid_value", "file")),
        ({"file": "/etc/passwd"}, ("invalid_value", "file")),
        ({"file": "sound.wav"}, ("invalid_value", "file")),
        ({"file": "file:file_abc"}, ("invalid_value", "file")),
        ({"file": "https://example.com/a.wav"}, ("invalid_value", "file")),
        ({"file": "data:audio/wav,RIFF"}, ("invalid_value", "file")),
        ({"file": "UklGRg=="}, ("invalid_value", "file")),
        ({"prompt": "names: Ada"}, ("unsupported_parameter", "prompt")),
        ({"temperature": 0.2}, ("unsupported_parameter", "temperature")),
        ({"temperature": "0"}, ("unsupported_parameter", "temperature")),
        ({"response_format": "diarized_json"}, ("invalid_value", "response_format")),
        ({"response_format": {"type": "text"}}, ("invalid_value", "response_format")),
        ({"stream": True}, ("unsupported_parameter", "stream")),
        ({"include": ["logprobs"]}, ("unsupported_parameter", "include")),
        ({"chunking_strategy": "auto"}, ("unsupported_parameter", "chunking_strategy")),
        ({"input": "x"}, ("unknown_parameter", "input")),
    ],
)
def test_what_a_sound_cannot_be_asked_is_refused(body: dict[str, Any], expected: tuple[str, str]) -> None:
    """A text that is neither data nor an id would be the path of a file to a worker."""
    for endpoint in ("/v1/audio/transcriptions", "/v1/audio/translations"):
        assert refusal(endpoint, {"file": SOUND, **body}) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"language": 5}, ("invalid_value", "language")),
        ({"timestamp_granularities": ["word"]}, ("invalid_value", "timestamp_granularities")),
        ({"timestamp_granularities": "word"}, ("invalid_value", "timestamp_granularities")),
        (
            {"response_format": "verbose_json", "timestamp_granularities": ["word", "letter"]},
            ("invalid_value", "timestamp_granularities"),
        ),
    ],
)
def test_what_a_transcription_cannot_be_asked_is_refused(body: dict[str, Any], expected: tuple[str, str]) -> None:
    assert refusal("/v1/audio/transcriptions", {"file": SOUND, **body}) == expected
    assert refusal("/v1/audio/translations", {"file": SOUND, "language": "de"}) == ("unknown_parameter", "language")


SPOKEN = {
    "text": " Hello there. This & that --> <end>.",
    "chunks": [
        {"timestamp": [0.0, 1.5], "text": " Hello there."},
        {"timestamp": [3599.9996, None], "text": " This & that\n\n--> <end>."},
    ],
}
SRT = """1
00:00:00,000 --> 00:00:01,500
Hello there.

2
01:00:00,000 --> 01:00:02,000
This & that -> <end>.
"""
VTT = """WEBVTT

00:00:00.000 --> 00:00:01.500
Hello there.

01:00:00.000 --> 01:00:02.000
This &amp; that --&gt; &lt;end&gt;.
"""


def transcript(form: str, output: Any = SPOKEN, **parameters: Any) -> Any:
    """The response body of a transcription in a format."""
    return TRANSCRIPTIONS.write(LineResult(output, 3, "m", form, "x", 0, parameters))


def test_the_formats_of_a_transcript() -> None:
    text = "Hello there. This & that --> <end>."
    assert transcript("json", {"text": SPOKEN["text"]}) == {"text": text}
    assert transcript("text", {"text": SPOKEN["text"]}) == text
    assert transcript("srt") == SRT, "rounding carries over to the hour"
    assert transcript("vtt") == VTT


def test_a_verbose_transcript_has_only_what_the_model_reported() -> None:
    segments = [
        {"id": 0, "start": 0.0, "end": 1.5, "text": " Hello there."},
        {"id": 1, "start": 3599.9996, "end": None, "text": " This & that\n\n--> <end>."},
    ]
    text = "Hello there. This & that --> <end>."
    facts = {"task": "transcribe", "duration": 3601.5, "usage": {"type": "duration", "seconds": 3601.5}}
    body = {**facts, "text": text, "segments": segments}
    heard = {**SPOKEN, "duration": 3601.5, "language": "german"}
    unknown = {**heard, "language": None}
    for output, parameters, language in (
        (heard, {}, "german"),
        (unknown, {"language": "de"}, "de"),
        (unknown, {}, "unknown"),
    ):
        found = transcript("verbose_json", output, return_timestamps=True, **parameters)
        assert found == {**body, "language": language}
    english = {**body, "task": "translate", "language": "english"}
    assert transcript("verbose_json", heard, return_timestamps=True, task="translate") == english
    words = {**heard, "text": " Hi you", "chunks": [{"timestamp": [0.5, 1.0], "text": " Hi"}]}
    assert transcript("verbose_json", words, return_timestamps="word") == {
        **facts, "language": "german", "text": "Hi you", "words": [{"word": "Hi", "start": 0.5, "end": 1.0}],
    }  # fmt: skip


def test_subtitles_get_the_times_that_the_model_did_not_find() -> None:
    times = [[None, 1.0], [1.5, None], [4.0, 3.0], [None, None]]
    chunks = [{"timestamp": time, "text": f" {number}"} for number, time in enumerate(times)]
    lines = transcript("vtt", {"text": "", "chunks": chunks}).splitlines()
    assert [line for line in lines if "-->" in line] == [
        "00:00:00.000 --> 00:00:01.000",
        "00:00:01.500 --> 00:00:04.000",
        "00:00:04.000 --> 00:00:06.000",
        "00:00:06.000 --> 00:00:08.000",
    ]
    silence = {"timestamp": [1.0, 2.0], "text": " "}
    assert transcript("srt", {"text": "", "chunks": []}) == transcript("srt", {"text": "", "chunks": [silence]}) == ""
    assert transcript("vtt", {"text": "", "chunks": []}) == "WEBVTT\n"


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
    request = CHAT.read({"model": "m", "messages": messages, **body, "logprobs": True, "tools": None, "top_p": None})
    assert request.values["text"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who is Ada?", "name": "Bob"},
    ]
    expected = {"max_new_tokens": 7, "temperature": 0, "n": 2, "stop": ["\n"], "seed": 3, "logprobs": True}
    assert request.values["parameters"] == expected
    assert request.parameters == {}


def test_an_answer_can_be_sent_back_as_it_came() -> None:
    answer = {"generated_text": "Ada.", "finish_reason": "stop", "num_tokens": 2, "logprobs": None}
    chat = ChatCompletion.model_validate(CHAT.write(LineResult([answer], 3, "m", None, "id", 0)))
    request = CHAT.read({"model": "m", "messages": [*HELLO, chat.choices[0].message.model_dump(), *HELLO]})
    assert request.values["text"][1] == {"role": "assistant", "content": "Ada."}


def test_what_a_completions_body_asks_for() -> None:
    """16 tokens by default, as in OpenAI's API; one prompt, in any of its forms."""
    assert COMPLETIONS.read({"model": "m", "prompt": "a"}).values == {"text": "a", "parameters": {"max_new_tokens": 16}}
    assert COMPLETIONS.read({"model": "m", "prompt": ["a"]}).values["text"] == "a"
    assert COMPLETIONS.read({"model": "m", "prompt": [[5, 6]]}).values["text"] == [5, 6]
    assert COMPLETIONS.read({"model": "m", "prompt": [5, 6]}).values["text"] == [5, 6]
    request = COMPLETIONS.read({"model": "m", "prompt": "a", "logprobs": 0, "max_tokens": 2})
    assert request.values["parameters"] == {"max_new_tokens": 2, "logprobs": True, "top_logprobs": 0}


def test_what_is_refused_names_the_clients_parameter() -> None:
    """Nobody who sent `max_tokens` knows of `max_new_tokens`."""
    with pytest.raises(LineError) as caught:
        CHAT.read({"model": "m", "messages": HELLO, "max_tokens": 0})
    assert caught.value.message == "max_tokens: must be a whole number from 1, not 0"


def test_generated_answers_have_the_contracts_form() -> None:
    """The SDK's own types read them, strictly."""
    top = {"token": "a", "logprob": -0.5, "bytes": [97]}
    logprobs = [{**top, "top_logprobs": [top]}, {"token": "bc", "logprob": -1.0, "bytes": [98, 99], "top_logprobs": []}]
    output = [
        {"generated_text": "abc", "finish_reason": "stop", "num_tokens": 3, "logprobs": logprobs},
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
    # The selected token is listed in addition to the requested number of likeliest ones.
    assert completion.choices[0].logprobs.top_logprobs == [{"a": -0.5}, {"bc": -1.0}]


def test_tokens_that_are_parts_of_characters_are_distinguished() -> None:
    parts = ([0xF0, 0x9F], [0x99, 0x82], [0x20, 0x78])  # the smile in two tokens, then " x"
    logprobs = [
        {"token": bytes(part).decode(errors="replace"), "logprob": -float(at), "bytes": part, "top_logprobs": []}
        for at, part in enumerate(parts, 1)
    ]
    logprobs[0]["top_logprobs"] = [{"token": "�", "logprob": -0.5, "bytes": [0xE2]}]
    choice = {"generated_text": "🙂 x", "finish_reason": "stop", "num_tokens": 3, "logprobs": logprobs}
    body = COMPLETIONS.write(LineResult([choice], 5, "m", None, "id", 0))["choices"][0]["logprobs"]
    assert body["tokens"] == ["bytes:\\xf0\\x9f", "bytes:\\x99\\x82", " x"]
    assert body["top_logprobs"][0] == {"bytes:\\xe2": -0.5, "bytes:\\xf0\\x9f": -1.0}
    assert body["text_offset"] == [0, 0, 1]


PNG = "data:image/png;base64,iVBORw0KGgo="
IMAGE_URL = "messages[0].content[0].image_url"


def pictured(*images: Any) -> dict[str, Any]:
    """A body with one message that has these images."""
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": one} for one in images]}]}


def test_the_images_of_a_chat_are_parts_of_its_row() -> None:
    text = {"type": "text", "text": "What?"}
    content = [text, {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    row = CHAT.read({"model": "m", "messages": messages}).values
    assert row["text"] == [messages[0], {"role": "user", "content": [text, {"type": "image", "url": PNG}]}]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({"url": "https://example.com/a.png"}, ("url_not_allowed", f"{IMAGE_URL}.url")),
        ({"url": "file:///etc/passwd"}, ("url_not_allowed", f"{IMAGE_URL}.url")),
        ({"url": "/etc/passwd"}, ("invalid_value", f"{IMAGE_URL}.url")),
        ({"url": "data:image/tiff;base64,SUkq"}, ("invalid_value", f"{IMAGE_URL}.url")),
        ({"url": "data:image/png,iVBORw0KGgo"}, ("invalid_value", f"{IMAGE_URL}.url")),
        ({"url": PNG + "A" * 26_666_680}, ("invalid_value", f"{IMAGE_URL}.url")),
        ({"url": PNG, "detail": "best"}, ("invalid_value", f"{IMAGE_URL}.detail")),
        ({"url": PNG, "size": 3}, ("unsupported_parameter", f"{IMAGE_URL}.size")),
        ({}, ("invalid_value", IMAGE_URL)),
        (PNG, ("invalid_value", IMAGE_URL)),
    ],
    ids=[*map(str, range(10))],
)
def test_images_that_a_line_may_not_have_are_refused_by_name(image: Any, expected: tuple[str, str]) -> None:
    assert refusal("/v1/chat/completions", pictured(image)) == expected


def test_the_beginning_of_a_data_url_may_be_in_capitals() -> None:
    """To a worker, a text that does not begin with `data:` is the path of a file."""
    image = CHAT.read({"model": "m", **pictured({"url": "DATA:IMAGE/PNG;BASE64,iVBORw0KGgo="})}).values["text"][0]
    assert image["content"][0]["url"] == "data:image/png;base64,iVBORw0KGgo="


def test_a_line_has_at_most_500_images() -> None:
    assert len(CHAT.read({"model": "m", **pictured(*[{"url": PNG}] * 500)}).values["text"][0]["content"]) == 500
    assert refusal("/v1/chat/completions", pictured(*[{"url": PNG}] * 501)) == ("invalid_value", "messages")
