"""Every text and list in a request has a bound, which is in the OpenAPI document; the largest valid value costs
little, and a larger one is refused with the name of its field.

Cost is the processor time of this process, in which the API runs: a busy machine does not change it.
"""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs.specs.bounds import LONGEST_VALUES_CHARACTERS, MOST_VALUES
from tests.support.live_api import LiveApi, fresh_api

MOST_SECONDS = 2.0
"""Processor time of one request on a processor that counts to a million in `COUNT_SECONDS`; on a slower one more, in
proportion. The sending of the request, whose body is made before, and the reading of the answer are part of it, since
they happen in this process."""
COUNT_SECONDS = 0.05
MOST_GROWTH_BYTES = 256 * 2**20
"""The most by which this process's memory may grow over all requests."""
MOST_ERROR_BYTES = 4000
FREE = {"parameters", "options", "arguments", "config"}
"""Fields whose values the document leaves open."""
ENDLESS = 100_000
"""Characters sent where a field lists its values."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    """A running API with one upload."""
    with fresh_api(tmp_path_factory.mktemp("bounds"), code_roots=[Path("/")]) as running:
        yield running


@pytest.fixture(scope="module")
def document(api: LiveApi) -> dict[str, Any]:
    """The OpenAPI document."""
    return dict(api.http.get("/openapi.json").json())


@dataclass(frozen=True)
class Field:
    """One place in a request where a client writes a free value."""

    name: str
    """Dotted, from the body's root."""
    largest: Any
    beyond: Any
    """None where the field's values are listed, and the largest is refused too."""


def fields_of(schema: dict[str, Any], schemas: dict[str, Any], name: str = "") -> Iterator[Field]:
    """The texts, lists and mappings of a schema. Fails where one has no bound."""
    schema = resolved(schema, schemas)
    for branch in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from fields_of(branch, schemas, name)
    if "enum" in schema or "const" in schema:
        yield Field(name, "x" * ENDLESS, None)
    elif schema.get("type") == "string":
        most = length_of(schema)
        assert most is not None, f"{name}: a text without a bound"
        yield Field(name, text_of(name, most), text_of(name, most) + "x")
    elif schema.get("type") == "array":
        most = schema.get("maxItems")
        assert most is not None, f"{name}: a list without a bound"
        yield Field(name, ["x"] * most, ["x"] * (most + 1))
        for inner in fields_of(schema["items"], schemas, name):
            beyond = None if inner.beyond is None else [inner.beyond]
            yield Field(inner.name, [inner.largest], beyond)
    elif "properties" in schema:
        for part, inner_schema in schema["properties"].items():
            yield from fields_of(inner_schema, schemas, f"{name}.{part}" if name else part)
    elif schema.get("type") == "object":
        most = schema.get("maxProperties")
        assert most is not None, f"{name}: a mapping without a bound"
        yield Field(name, {f"n{at}": "x" for at in range(most)}, {f"n{at}": "x" for at in range(most + 1)})
        if name.rpartition(".")[2] in FREE:
            yield Field(name, {"a": ["x"] * (MOST_VALUES - 1)}, {"a": ["x"] * MOST_VALUES})
            most = LONGEST_VALUES_CHARACTERS - 1
            yield Field(name, {"a": "x" * most}, {"a": "x" * (most + 1)})


def resolved(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return dict(schemas[name]) if name else schema


def length_of(schema: dict[str, Any]) -> int | None:
    """The most characters of a text, from `maxLength` or from its pattern."""
    if "maxLength" in schema:
        return int(schema["maxLength"])
    if re.fullmatch(r"\^[\w ]+\$", schema.get("pattern", "")):
        return len(schema["pattern"]) - 2
    found = re.search(r"\{(\d+),(\d+)\}\$$", schema.get("pattern", ""))
    if found is None:
        return None
    return int(found[2]) + ("]" in schema["pattern"].removesuffix(found[0])[:-1] and schema["pattern"].count("[") > 1)


def text_of(name: str, length: int) -> str:
    """A text of this length; of a path, one with names as long as they may be."""
    if length < 1000:
        return "x" * length
    return ("/" + "/".join(["x" * 100] * (length // 101 + 1)))[:length]


def changed(document: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """A document with one field, dotted, set to a value."""
    head, _, rest = name.partition(".")
    inner = document.get(head)
    return {**document, head: changed(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


def memory_bytes() -> int:
    """How much of this process is in memory now."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def seconds_to_count() -> float:
    """Processor time that this machine takes to count to a million."""
    before = time.process_time()
    for _ in range(1_000_000):
        pass
    return time.process_time() - before


class CostMeter:
    """Sends requests and checks the cost of each."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._most_seconds = MOST_SECONDS * max(1.0, seconds_to_count() / COUNT_SECONDS)
        self.num_sent = 0

    def send(self, what: str, method: str, path: str, **options: Any) -> httpx.Response:
        request = self._client.build_request(method, path, **options)
        request.read()
        before = time.process_time()
        answer = self._client.send(request)
        seconds = time.process_time() - before
        self.num_sent += 1
        assert seconds < self._most_seconds, f"{what} took {seconds:.2f} s of processor time"
        assert answer.status_code < 500, f"{what}: {answer.text[:500]}"
        if answer.status_code >= 400:
            assert len(answer.content) < MOST_ERROR_BYTES, f"{what} is answered with {len(answer.content)} bytes"
        return answer

    def refused(self, what: str, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer = self.send(f"{what}, one beyond", method, path, **options)
        assert answer.status_code in (400, 404), f"{what}: {answer.status_code} {answer.text[:500]}"
        return dict(answer.json()["error"]) if answer.headers["content-type"] == "application/json" else {}


ROWS = "/etc/hostname"
BODIES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "InferenceSpec": ("/v1/jobs", [{"task": "fill-mask", "model": "org/model", "input": {"path": ROWS}}]),
    "TrainingSpec": (
        "/v1/jobs",
        [
            {"kind": "training", "task": "text-generation", "model": "org/model", "data": {"train": ROWS}},
            {"kind": "training", "trainer": "torch", "module": "recipes.gan", "options": {}},
        ],
    ),
    "BatchRequest": (
        "/v1/batches",
        [{"input_file_id": "file_a", "endpoint": "/v1/embeddings", "completion_window": "24h"}],
    ),
    "WebhookRequest": ("/v1/webhooks", [{"url": "https://8.8.8.8/told"}]),
}


def test_bodies_are_bounded_in_every_field(api: LiveApi, document: dict[str, Any]) -> None:
    meter, schemas, before = CostMeter(api.http), document["components"]["schemas"], memory_bytes()
    for name, (path, bases) in BODIES.items():
        fields = list(fields_of(schemas[name], schemas))
        assert len(fields) >= 3
        for field in fields:
            head = field.name.partition(".")[0]
            base = next((one for one in bases if head in one), bases[0])
            what = f"{name}.{field.name}"
            meter.send(what, "POST", path, json=changed(base, field.name, field.largest))
            if field.beyond is not None:
                error = meter.refused(what, "POST", path, json=changed(base, field.name, field.beyond))
                assert (error["param"] or "").partition(".")[0] in (head, ""), f"{what}: {error}"
        meter.refused(f"{name}, fields", "POST", path, json={**bases[0], **{f"f{at}": 1 for at in range(50_000)}})
        meter.refused(f"{name}, a name", "POST", path, json={**bases[0], "x" * 2**20: 1})
    assert memory_bytes() - before < MOST_GROWTH_BYTES
    answer = meter.send("the list afterwards", "GET", "/v1/jobs?limit=100")
    assert len(answer.content) < 2**21


WORST: list[dict[str, Any]] = [
    {"path": "/" + "a/" * 2_000_000},
    {"path": ["/a"] * 10_000},
    {"path": ["/" + "/".join(["a"] * 9)] * 10_000},
    {"path": ["/" + "/".join(["a"] * 99)] * 1000},
    {"path": ["x" * 400] * 10_000},
    {"path": "/nowhere/" + "*a" * 16},
    {"path": "/nowhere/" + "**/" * 2 + "*[a-z]?" * 4},
    {"path": "s3://" + "a/" * 2000},
    {"path": "hf://datasets/" + "a" * 4000},
    {"path": "file:" + "a" * 4000},
    {"path": "~" + "a" * 200},
    {"path": [1] * 200_000},
    {"path": ROWS, "columns": {"text": ["x"] * 100_000}},
]


@pytest.mark.parametrize("at", range(len(WORST)))
def test_the_worst_inputs_are_refused_quickly(api: LiveApi, at: int) -> None:
    spec = {"task": "fill-mask", "model": "org/model", "input": WORST[at]}
    answer = CostMeter(api.http).send(f"input {at}", "POST", "/v1/jobs", json=spec)
    assert answer.status_code in (400, 403)


@pytest.mark.parametrize(
    "body",
    [
        "x: " + ":".join(["59"] * 80_000),
        "x: " + "9" * 200_000,
        "x: 0x" + "f" * 200_000,
        "x: " + "[" * 200_000,
        "x: [" + "1, " * 80_000 + "1]",
        "x: {" + ", ".join(f"a{at}: 1" for at in range(20_000)) + "}",
        "x: !!" + "a" * 200_000 + " 1",
        '"' + "x" * 200_000 + '": 1\n"' + "x" * 10 + '": 1',
        "- " * 100_000,
        "? " * 100_000,
        "x: |\n  " + "a\n  " * 40_000,
    ],
)
def test_the_worst_yaml_is_read_quickly(api: LiveApi, body: str) -> None:
    headers = {"Content-Type": "application/yaml"}
    assert CostMeter(api.http).refused(body[:10], "POST", "/v1/jobs", content=body, headers=headers)


def test_parameters_of_every_operation_are_bounded(api: LiveApi, document: dict[str, Any]) -> None:
    meter = CostMeter(api.http)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parameters = operation.get("parameters", [])
            filled = {one["name"]: "x" for one in parameters if one["in"] == "path"}
            for parameter in parameters:
                for field in fields_of(parameter["schema"], document["components"]["schemas"], parameter["name"]):
                    for value in (field.largest, field.beyond):
                        if value is None or not isinstance(value, str):
                            continue
                        what = f"{method} {path}: {parameter['name']} of {len(value)} characters"
                        value = value.replace("/", "x")[:12_000]
                        options: dict[str, Any] = {"params": {}, "headers": {}}
                        url = path
                        if parameter["in"] == "path":
                            url = path.format(**{**filled, parameter["name"]: value})
                        else:
                            url = path.format(**filled)
                            options["params" if parameter["in"] == "query" else "headers"][parameter["name"]] = value
                        if value is field.largest or field.beyond is None:
                            meter.send(what, method, url, **options)
                        else:
                            meter.refused(what, method, url, **options)
    assert meter.num_sent > 50


def test_parts_of_an_upload_are_bounded(api: LiveApi) -> None:
    meter, before = CostMeter(api.http), memory_bytes()
    for name in ("purpose", "expires_after[anchor]", "expires_after[seconds]", "unknown"):
        for value in ("1" * 4096, "1" * 4097, "1" * 2**20):
            files = {"file": ("a.jsonl", b"{}\n")}
            meter.send(name, "POST", "/v1/files", data={"purpose": "input", name: value}, files=files)
    answer = meter.send(
        "filename", "POST", "/v1/files", data={"purpose": "input"}, files={"file": ("a" * 3000, b"{}\n")}
    )
    assert len(answer.json()["filename"]) == 255
    meter.refused("filename", "POST", "/v1/files", data={"purpose": "input"}, files={"file": ("a" * 2**20, b"{}\n")})
    many = {f"f{at}": "x" for at in range(10_000)}
    meter.refused("parts", "POST", "/v1/files", data=many, files={"file": ("a.jsonl", b"{}\n")})
    assert memory_bytes() - before < MOST_GROWTH_BYTES


def test_headers_are_bounded(api: LiveApi) -> None:
    meter = CostMeter(api.http)
    for name in ("Authorization", "Accept", "Range", "Idempotency-Key", "Last-Event-ID", "Content-Type", "Host"):
        for length in (10_000, 60_000):
            meter.send(f"{name} of {length}", "GET", "/v1/jobs", headers={name: "x" * length})
