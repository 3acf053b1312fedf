"""The unmodified OpenAI SDK, its answers strictly checked, drives files and batches of a running stack."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import openai
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from tests.conftest import wait_until
from tests.support import tiny
from tests.support.batch_client import TEXTS, BatchClient, batch_client, embedding_lines, line
from tests.support.stack import stack

pytestmark = pytest.mark.slow

Answer = TypeVar("Answer", bound=BaseModel)


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatchClient]:
    """One stack for the module's tests."""
    folder = tmp_path_factory.mktemp("sdk")
    tiny.tiny_encoder(folder / "encoder")
    tiny.tiny_encoder(folder / "other", seed=1)
    tiny.tiny_classifier(folder / "classifier")
    tiny.tiny_causal_lm(folder / "writer", chat_template=tiny.CHAT_TEMPLATE)
    with stack(folder / "data", slots=1) as running, batch_client(running, folder) as client:
        yield client


def many_lines(sdk: BatchClient, num_lines: int) -> list[dict[str, Any]]:
    """Enough work for a good many seconds."""
    model = sdk.model("encoder")
    return [
        line(f"t{number}", "/v1/embeddings", model=model, input=f"{number} {TEXTS[number % len(TEXTS)]}")
        for number in range(num_lines)
    ]


def read_strictly(kind: type[Answer], body: dict[str, Any]) -> Answer:
    """A body as the SDK's own type, every field of the type that it should have, and none that it does not know."""
    answer = kind.model_validate_json(json.dumps(body), strict=True)
    assert answer.model_dump(mode="json", exclude_unset=True) == body
    assert not list(unknown_fields(answer))
    return answer


def unknown_fields(value: object) -> Iterator[str]:
    """The names of all fields that the SDK's types do not have."""
    if isinstance(value, BaseModel):
        yield from value.model_extra or {}
        for name in type(value).model_fields:
            yield from unknown_fields(getattr(value, name))
    elif isinstance(value, list):
        for one in value:
            yield from unknown_fields(one)


# -- the ordinary way ----------------------------------------------------------------------------------------------


def test_embeddings_come_back_for_every_line(sdk: BatchClient) -> None:
    """The whole contract in its plainest use: upload, create, poll, read."""
    file_id = sdk.upload(embedding_lines(sdk))
    created = sdk.create(file_id, metadata={"team": "search"})
    assert (created.status, created.object, created.metadata) == ("validating", "batch", {"team": "search"})
    batch = sdk.ended(created)
    assert batch.status == "completed", batch
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 40, "completed": 40, "failed": 0}
    assert batch.error_file_id is None
    answers = sdk.lines(batch.output_file_id)
    assert [answer["custom_id"] for answer in answers] == [f"t{number}" for number in range(40)]
    assert {answer["response"]["status_code"] for answer in answers} == {200}
    bodies = [answer["response"]["body"] for answer in answers]
    read_strictly(CreateEmbeddingResponse, bodies[0])
    assert all(body["data"][0]["object"] == "embedding" and len(body["data"][0]["embedding"]) == 32 for body in bodies)
    assert bodies[0]["model"] == sdk.model("encoder")
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(body["usage"]["prompt_tokens"] for body in bodies) > 40
    output = sdk.client.files.retrieve(batch.output_file_id or "")
    assert (output.purpose, output.status) == ("batch_output", "processed")
    assert output.bytes == len(sdk.client.files.content(output.id).content)


def test_the_forms_of_an_embedding_input(sdk: BatchClient) -> None:
    """Existing files have lists of texts, token ids and base64 outputs."""
    model, url = sdk.model("encoder"), "/v1/embeddings"
    lines = [
        line("text", url, model=model, input=TEXTS[0]),
        line("texts", url, model=model, input=TEXTS[:3]),
        line("tokens", url, model=model, input=[5, 6, 7]),
        line("base64", url, model=model, input=TEXTS[0], encoding_format="base64"),
        line("short", url, model=model, input=TEXTS[0], dimensions=8),
    ]
    batch = sdk.ended(sdk.create(sdk.upload(lines)))
    assert batch.status == "completed", batch
    found = {answer["custom_id"]: answer["response"]["body"]["data"] for answer in sdk.lines(batch.output_file_id)}
    assert list(found) == ["text", "texts", "tokens", "base64", "short"]
    assert [entry["index"] for entry in found["texts"]] == [0, 1, 2]
    assert np.allclose(found["texts"][0]["embedding"], found["text"][0]["embedding"], atol=1e-5)
    decoded = np.frombuffer(base64.b64decode(found["base64"][0]["embedding"]), dtype="<f4")
    assert np.allclose(decoded, found["text"][0]["embedding"], atol=1e-5)
    assert len(found["short"][0]["embedding"]) == 8


def test_lines_of_several_models_are_split_and_come_back_in_order(sdk: BatchClient) -> None:
    """OpenAI refuses such a file; here each model gets its own job."""
    pairs = zip(embedding_lines(sdk, "encoder"), embedding_lines(sdk, "other"), strict=True)
    lines = [pair[number % 2] for number, pair in enumerate(pairs)]
    batch = sdk.ended(sdk.create(sdk.upload(lines)))
    assert batch.status == "completed", batch
    assert batch.model is None
    answers = sdk.lines(batch.output_file_id)
    assert [answer["custom_id"] for answer in answers] == [f"t{number}" for number in range(40)]
    models = [answer["response"]["body"]["model"] for answer in answers]
    assert models == [sdk.model("encoder"), sdk.model("other")] * 20


def test_classification_has_the_same_line_format(sdk: BatchClient) -> None:
    """An extension: the endpoint is ours, the rest is the contract's."""
    model = sdk.model("classifier")
    lines = [line(f"c{number}", "/v1/classify", model=model, input=text) for number, text in enumerate(TEXTS[:4])]
    batch = sdk.ended(sdk.create(sdk.upload(lines), "/v1/classify"))
    assert batch.status == "completed", batch
    first = sdk.lines(batch.output_file_id)[0]["response"]["body"]["data"][0]
    assert first["label"].startswith("label-")
    assert 0 < first["score"] <= 1


def test_chats_are_answered_each_by_its_own_parameters(sdk: BatchClient) -> None:
    """What most batches are made of."""
    model, url = sdk.model("writer"), "/v1/chat/completions"
    chat = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Where is Ada?"}]
    lines = [
        line("greedy", url, model=model, messages=chat, temperature=0, max_tokens=6),
        line("same", url, model=model, messages=chat, temperature=0, max_completion_tokens=6, n=2),
        line("drawn", url, model=model, messages=chat, seed=5, max_tokens=9, logprobs=True, top_logprobs=2),
        line("drawn again", url, model=model, messages=chat, seed=5, max_tokens=9),
        line("refused", url, model=model, messages=[{"role": "tool", "content": "x"}]),
        line("unsupported", url, model=model, messages=chat, tools=[{"type": "function"}]),
        line("structured", url, model=model, messages=chat, response_format={"type": "json_object"}),
        line("streamed", url, model=model, messages=chat, stream=True),
        line("empty", url, model=model, messages=[]),
        line("long", url, model=model, messages=[{"role": "user", "content": "word " * 500}]),
        line("to the end", url, model=model, messages=chat, temperature=0, max_tokens=10_000),
        line("stopped", url, model=model, messages=chat, seed=5, max_tokens=100, stop=list("aeiou"), logprobs=True),
    ]
    batch = sdk.ended(sdk.create(sdk.upload(lines), url))
    assert batch.status == "completed", batch
    answers = {one["custom_id"]: one["response"]["body"] for one in sdk.lines(batch.output_file_id)}
    found = {name: read_strictly(ChatCompletion, body) for name, body in answers.items()}
    assert list(found) == ["greedy", "same", "drawn", "drawn again", "to the end", "stopped"]
    texts = {name: [choice.message.content for choice in one.choices] for name, one in found.items()}
    assert texts["same"] == texts["greedy"] * 2
    assert texts["drawn"] == texts["drawn again"]
    logprobs = found["drawn"].choices[0].logprobs
    assert logprobs is not None
    assert {len(one.top_logprobs) for one in logprobs.content or []} == {2}
    reasons = {name: one.choices[0].finish_reason for name, one in found.items()}
    assert (reasons["greedy"], reasons["to the end"], reasons["stopped"]) == ("length", "length", "stop")
    assert found["to the end"].usage is not None
    assert found["to the end"].usage.total_tokens == 256, "the model's context"
    assert not set(texts["stopped"][0] or "") & set("aeiou")
    usages = {name: one.usage.completion_tokens for name, one in found.items() if one.usage is not None}
    assert usages["same"] == 2 * usages["greedy"] == 12
    assert batch.usage is not None
    assert batch.usage.output_tokens == sum(usages.values())
    refused = [(one["custom_id"], one["response"]["body"]["error"]) for one in sdk.lines(batch.error_file_id)]
    assert [(name, error["code"], error["param"]) for name, error in refused] == [
        ("refused", "invalid_value", "messages[0].role"),
        ("unsupported", "unsupported_parameter", "tools"),
        ("structured", "unsupported_parameter", "response_format"),
        ("streamed", "unsupported_parameter", "stream"),
        ("empty", "invalid_value", "messages"),
        ("long", "row_too_long", "messages"),
    ]
    assert {one["response"]["status_code"] for one in sdk.lines(batch.error_file_id)} == {400}


def test_completions_are_answered_and_bad_lines_are_reported(sdk: BatchClient) -> None:
    """The older endpoint, in all forms of a prompt; one that is too long harms no other."""
    model, url = sdk.model("writer"), "/v1/completions"
    lines = [
        line("text", url, model=model, prompt="My name is", temperature=0),
        line("tokens", url, model=model, prompt=[5, 6, 7], temperature=0, max_tokens=3, logprobs=1),
        line("long", url, model=model, prompt="word " * 500),
        line("two", url, model=model, prompt=["a", "b"]),
        line("number", url, model=model, prompt=5),
        line("unknown", url, model=model, prompt=[10**9]),
    ]
    batch = sdk.ended(sdk.create(sdk.upload(lines), url))
    assert batch.status == "completed", batch
    answers = {one["custom_id"]: one["response"]["body"] for one in sdk.lines(batch.output_file_id)}
    found = {name: read_strictly(Completion, body) for name, body in answers.items()}
    assert {name: one.usage.completion_tokens for name, one in found.items() if one.usage} == {"text": 16, "tokens": 3}
    logprobs = found["tokens"].choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.tokens or []) == 3
    refused = {one["custom_id"]: one["response"] for one in sdk.lines(batch.error_file_id)}
    assert {one["status_code"] for one in refused.values()} == {400}
    errors = {name: one["body"]["error"] for name, one in refused.items()}
    assert {name: (error["code"], error["param"]) for name, error in errors.items()} == {
        "long": ("row_too_long", "prompt"),
        "two": ("invalid_value", "prompt"),
        "number": ("invalid_value", "prompt"),
        "unknown": ("unknown_token", "prompt"),
    }


# -- errors -------------------------------------------------------------------------------------------------------


def test_every_bad_line_is_reported(sdk: BatchClient) -> None:
    """A user must be able to fix the whole file at once."""
    good, model = "/v1/embeddings", sdk.model("encoder")
    lines: list[Any] = [
        line("a", good, model=model, input="x"),
        "not json",
        line("a", good, model=model, input="x"),
        line("b", "/v1/completions", model=model, input="x"),
        {"custom_id": "c", "method": "GET", "url": good, "body": {"model": model, "input": "x"}},
        {"method": "POST", "url": good, "body": {"model": model, "input": "x"}},
        line("d", good, input="x"),
        line("e", good, model="nobody-has-this", input="x"),
        "[1]",
    ]
    batch = sdk.ended(sdk.create(sdk.upload(lines)))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(error.line, error.code) for error in batch.errors.data] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (4, "url_mismatch"),
        (5, "invalid_method"),
        (6, "missing_required_parameter"),
        (7, "missing_required_parameter"),
        (8, "model_not_found"),
        (9, "invalid_json_line"),
    ]
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


def test_an_empty_file_fails_the_batch(sdk: BatchClient) -> None:
    """Nothing to do is most likely a mistake upstream."""
    batch = sdk.ended(sdk.create(sdk.upload(["", "  "])))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [error.code for error in batch.errors.data or []] == ["empty_file"]


def test_a_bad_row_goes_to_the_error_file_and_harms_no_other(sdk: BatchClient) -> None:
    """Each refused line says why, with the status that the live API would have answered."""
    model, url = sdk.model("encoder"), "/v1/embeddings"
    lines = [
        line("good", url, model=model, input="fine"),
        line("none", url, model=model),
        line("number", url, model=model, input=7),
        line("long", url, model=model, input="word " * 500),
        line("odd", url, model=model, input="x", colour="red"),
        line("also good", url, model=model, input="fine too"),
    ]
    batch = sdk.ended(sdk.create(sdk.upload(lines)))
    assert batch.status == "completed", batch
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 6, "completed": 2, "failed": 4}
    assert [answer["custom_id"] for answer in sdk.lines(batch.output_file_id)] == ["good", "also good"]
    errors = {answer["custom_id"]: answer for answer in sdk.lines(batch.error_file_id)}
    assert list(errors) == ["none", "number", "long", "odd"]
    assert all(answer["error"] is None and answer["response"]["status_code"] == 400 for answer in errors.values())
    codes = {name: answer["response"]["body"]["error"]["code"] for name, answer in errors.items()}
    assert codes == {
        "none": "missing_required_parameter",
        "number": "wrong_type",
        "long": "row_too_long",
        "odd": "unknown_parameter",
    }


def test_errors_raise_what_the_sdk_expects(sdk: BatchClient) -> None:
    """A program's `except` clauses go on working."""
    with pytest.raises(openai.NotFoundError):
        sdk.client.batches.retrieve("batch_nothing")
    with pytest.raises(openai.NotFoundError, match="input_file_id"):
        sdk.create("file_nothing")
    file_id = sdk.upload(embedding_lines(sdk)[:1])
    with pytest.raises(openai.BadRequestError, match="endpoint"):
        sdk.create(file_id, "/v1/images/generations")
    with pytest.raises(openai.BadRequestError, match="completion_window"):
        sdk.client.batches.create(
            input_file_id=file_id,
            endpoint="/v1/embeddings",
            completion_window="soon",  # type: ignore[arg-type]
        )
    with pytest.raises(openai.BadRequestError, match="metadata"):
        sdk.create(file_id, metadata={str(number): "x" for number in range(17)})
    with pytest.raises(openai.BadRequestError, match="colour"):
        sdk.create(file_id, extra_body={"colour": "red"})
    with pytest.raises(openai.BadRequestError, match="jsonl"):
        sdk.client.files.create(file=("batch.txt", b"{}"), purpose="batch")
    batch = sdk.ended(sdk.create(file_id))
    with pytest.raises(openai.ConflictError):
        sdk.client.batches.cancel(batch.id)
    stranger = sdk.client.with_options(api_key="sk-stranger")
    with pytest.raises(openai.AuthenticationError):
        stranger.batches.list()


# -- while it runs -------------------------------------------------------------------------------------------------


def test_a_cancel_keeps_the_finished_lines(sdk: BatchClient) -> None:
    """Lines that were never run say so, and none is lost between the two files."""
    lines = many_lines(sdk, 20_000)
    batch = sdk.create(sdk.upload(lines))

    def has_answers() -> bool:
        counts = sdk.client.batches.retrieve(batch.id).request_counts
        return counts is not None and counts.completed > 0

    wait_until(has_answers, "the first answers", 60.0)
    running = sdk.client.batches.retrieve(batch.id)
    assert running.status == "in_progress"
    growing = sdk.lines(running.output_file_id)
    assert 0 < len(growing) < 20_000
    cancelling = sdk.client.batches.cancel(batch.id)
    assert cancelling.status in ("cancelling", "cancelled")
    ended = sdk.ended(batch)
    assert ended.status == "cancelled"
    done, left = sdk.lines(ended.output_file_id), sdk.lines(ended.error_file_id)
    assert {answer["custom_id"] for answer in growing} <= {answer["custom_id"] for answer in done}
    assert sorted(int(answer["custom_id"][1:]) for answer in [*done, *left]) == list(range(20_000))
    assert {answer["error"]["code"] for answer in left} == {"batch_cancelled"}
    assert all(answer["response"] is None for answer in left)

    retried = sdk.create(running.input_file_id, extra_body={"retry_of": batch.id})
    assert sdk.client.batches.cancel(retried.id).status in ("cancelling", "cancelled")
    sdk.ended(retried)


def test_a_retry_runs_the_rest_and_merges_the_output(sdk: BatchClient) -> None:
    """No line is computed twice."""
    lines = embedding_lines(sdk)
    lines[3] = line("t3", "/v1/embeddings", model=sdk.model("encoder"), input=7)
    file_id = sdk.upload(lines)
    first = sdk.ended(sdk.create(file_id))
    assert first.request_counts is not None
    assert first.request_counts.failed == 1
    second = sdk.ended(sdk.create(file_id, extra_body={"retry_of": first.id}))
    assert second.status == "completed", second
    assert second.request_counts is not None
    assert second.request_counts.model_dump() == {"total": 40, "completed": 39, "failed": 1}
    assert sdk.lines(second.output_file_id) == sdk.lines(first.output_file_id)
    assert [answer["custom_id"] for answer in sdk.lines(second.error_file_id)] == ["t3"]
    with sdk.stack.client() as client:
        jobs = [job for job in client.jobs(limit=100) if job["name"] == second.id]
    assert [job["counts"]["total"] for job in jobs] == [1]


def test_retries_of_one_create_are_one_batch(sdk: BatchClient) -> None:
    """The SDK repeats a create whose answer was lost, and sends no key."""
    file_id = sdk.upload(embedding_lines(sdk)[:1])
    first = sdk.create(file_id)
    assert sdk.create(file_id, extra_headers={"x-stainless-retry-count": "1"}).id == first.id
    assert sdk.create(file_id).id != first.id
    keyed = sdk.create(file_id, extra_headers={"Idempotency-Key": "once"})
    assert sdk.create(file_id, extra_headers={"Idempotency-Key": "once"}).id == keyed.id
    with pytest.raises(openai.ConflictError):
        sdk.create(file_id, metadata={"other": "body"}, extra_headers={"Idempotency-Key": "once"})


def test_lists_page_through_every_batch_once(sdk: BatchClient) -> None:
    """The SDK's own paging."""
    file_id = sdk.upload(embedding_lines(sdk)[:1])
    made = [sdk.create(file_id, metadata={"n": str(number)}).id for number in range(5)]
    listed = [batch.id for batch in sdk.client.batches.list(limit=2)]
    assert listed[:5] == made[::-1]
    assert len(set(listed)) == len(listed)


def test_a_window_that_ends_expires_the_rest(sdk: BatchClient) -> None:
    """The batch ends at its deadline, and finished lines stay readable."""
    lines = many_lines(sdk, 50_000)
    file_id = sdk.upload(lines)
    window: Any = "1s"
    batch = sdk.client.batches.create(input_file_id=file_id, endpoint="/v1/embeddings", completion_window=window)
    ended = sdk.ended(batch)
    assert ended.status == "expired", ended
    assert ended.expired_at is not None
    left = sdk.lines(ended.error_file_id)
    assert {answer["error"]["code"] for answer in left} == {"batch_expired"}
    done = 0 if ended.output_file_id is None else len(sdk.lines(ended.output_file_id))
    assert done + len(left) == 50_000


def test_a_file_in_use_is_not_deleted(sdk: BatchClient) -> None:
    """An input that vanished would fail the batch in its middle."""
    lines = embedding_lines(sdk) * 1
    file_id = sdk.upload(lines)
    batch = sdk.create(file_id)
    ended = sdk.ended(batch)
    assert sdk.client.files.delete(file_id).deleted
    assert ended.output_file_id is not None
    assert sdk.client.files.delete(ended.output_file_id).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.client.files.content(ended.output_file_id)
    assert all(file.purpose != "batch_rows" for file in sdk.client.files.list(limit=100))
