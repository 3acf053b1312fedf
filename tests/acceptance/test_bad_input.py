"""An invalid request fails with one sentence that names the fault and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import yaml

from scheduler.cli import main
from scheduler.client.http_client import ApiError
from tests.support import tiny
from tests.support.deployment import Deployment
from tests.support.records import records_of
from tests.support.rows import write_rows
from tests.support.stack import stack


@dataclass(frozen=True)
class BadSpec:
    """A request with one fault."""

    name: str
    says: tuple[str, ...]
    """What the sentence must contain."""
    param: str | None
    """The field that the API names."""
    task: str = "embeddings"
    model: str = "model"
    path: Any = "rows.jsonl"
    key: str | None = "id"
    columns: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def spec(self) -> dict[str, Any]:
        """As a spec's document."""
        spec_input = {"path": self.path, "key": self.key, "columns": dict(self.columns)}
        return {"task": self.task, "model": self.model, "input": spec_input, "parameters": dict(self.parameters)}

    def options(self) -> list[str]:
        """As options of `stoker run`."""
        paths = self.path if isinstance(self.path, list) else [self.path]
        options = [self.task, "--model", self.model]
        options += [part for path in paths for part in ("--input", path)]
        options += [] if self.key is None else ["--key", self.key]
        options += [part for name, column in self.columns.items() for part in ("--column", f"{name}={column}")]
        return options + [part for name, value in self.parameters.items() for part in ("--param", f"{name}={value}")]


BAD = [
    BadSpec("missing file", ("no file", "none.jsonl"), "input.path", path="none.jsonl"),
    BadSpec("unknown column", ("body", "id, text"), "input.columns.text", columns={"text": "body"}),
    BadSpec("missing key column", ("input.key", "uuid"), "input.key", key="uuid"),
    BadSpec("column of no input", ("input.columns.txt", "text"), "input.columns.txt", columns={"txt": "text"}),
    BadSpec("unknown task", ("embedings", "did you mean 'embeddings'"), "task", task="embedings"),
    BadSpec("empty input", ("empty",), "input.path", path="empty.jsonl"),
    BadSpec("blank input", ("no rows",), "input.path", path="blank.jsonl"),
    BadSpec("a header alone", ("no rows",), "input.path", path="header.csv"),
    BadSpec("a directory as input", ("folder", "directory"), "input.path", path="folder"),
    BadSpec("no match of a glob", ("no file", "*.parquet"), "input.path", path="part-*.parquet"),
    BadSpec("two formats", ("rows.jsonl", "bare.csv"), "input.path", path=["rows.jsonl", "bare.csv"]),
    BadSpec("unknown ending", ("rows.doc", "input.format"), "input.path", path="rows.doc"),
    BadSpec("damaged parquet", ("broken.parquet",), "input.path", path="broken.parquet"),
    BadSpec("CSV without header", ("no column 'text'",), "input.columns.text", path="bare.csv", key=None),
    BadSpec("outside the roots", ("input.path",), "input.path", path="../outside.jsonl"),
    BadSpec("a link out of the roots", ("input.path",), "input.path", path="link.jsonl"),
    BadSpec("a model that is none", ("config.json",), "model", model="folder"),
    BadSpec("no such model", ("./nothing",), "model", model="./nothing"),
    BadSpec("a file as model", ("rows.jsonl", "folder"), "model", model="rows.jsonl"),
    BadSpec("pickled weights", ("pytorch_model.bin", "pickle"), "model", model="pickled"),
    BadSpec("cut off weights", ("model.safetensors", "truncated"), "model", model="cut"),
    BadSpec("no head", ("text-classification head",), "model", task="text-classification"),
    BadSpec("unknown parameter", ("poolling", "pooling"), "parameters.poolling", parameters={"poolling": "mean"}),
    BadSpec("wrong value", ("pooling", "mean"), "parameters.pooling", parameters={"pooling": "best"}),
]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One slot, and one folder that jobs may read."""
    home = tmp_path_factory.mktemp("bad")
    folder = home / "mine"
    (folder / "folder").mkdir(parents=True)
    rows = write_rows(folder / "rows.jsonl", 3).read_text()
    for name, content in {
        "rows.doc": rows,
        "empty.jsonl": "",
        "blank.jsonl": "\n  \n\n",
        "header.csv": "id,text\n",
        "bare.csv": "r0,the first row\nr1,the second row\n",
        "broken.parquet": "this is no parquet file at all",
        "../outside.jsonl": rows,
    }.items():
        (folder / name).write_text(content)
    (folder / "link.jsonl").symlink_to(home / "outside.jsonl")
    tiny.tiny_encoder(folder / "model")
    pickled = tiny.tiny_encoder(folder / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    weights = tiny.tiny_encoder(folder / "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with (
        stack(home / "data", slots=1, STOKER_INPUT_ROOTS=json.dumps([str(folder)])) as running,
        records_of(running) as seen,
    ):
        yield Deployment(running, seen, folder)


@pytest.fixture
def refused(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Runs a command that must be refused and change nothing. Returns the one sentence that it prints."""
    handlers = logging.getLogger().handlers[:]
    monkeypatch.chdir(deployed.folder)
    for name, value in deployed.stack.environment.items():
        if name.startswith("STOKER_"):
            monkeypatch.setenv(name, value)

    def run(*arguments: str) -> str:
        before = everything(deployed)
        capfd.readouterr()
        assert main(arguments) == 2
        printed = capfd.readouterr()
        assert printed.out == ""
        (sentence,) = printed.err.splitlines()
        assert sentence.startswith("error: ")
        assert everything(deployed) == before
        return sentence

    yield run
    logging.getLogger().handlers[:] = handlers


def everything(deployed: Deployment) -> dict[str, int]:
    """Every file of the user and of the store, temporary ones too, with its size; and every job."""
    places = (deployed.folder, deployed.stack.data_dir / "store")
    files = {str(path): path.lstat().st_size for place in places for path in place.rglob("*")}
    with deployed.stack.client() as client:
        return files | {str(job["id"]): 1 for job in client.jobs()}


# A few for each command: the API finds the faults, and is tested with all of them below.
@pytest.mark.parametrize("bad", BAD[1::6], ids=lambda bad: bad.name)
def test_run_refuses(refused: Callable[..., str], bad: BadSpec) -> None:
    sentence = refused("run", *bad.options(), "--output", "out.jsonl")
    assert all(word in sentence for word in bad.says), sentence


@pytest.mark.parametrize("bad", BAD[::6], ids=lambda bad: bad.name)
def test_submit_refuses(refused: Callable[..., str], deployed: Deployment, bad: BadSpec) -> None:
    spec = deployed.folder.parent / "spec.yaml"
    spec.write_text(yaml.safe_dump(bad.spec()))
    sentence = refused("submit", str(spec))
    assert all(word in sentence for word in bad.says), sentence


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_the_api_refuses(deployed: Deployment, bad: BadSpec) -> None:
    before = everything(deployed)
    document = bad.spec()
    paths = [str(deployed.folder / path) for path in (bad.path if isinstance(bad.path, list) else [bad.path])]
    document["input"]["path"] = paths
    document["model"] = str(deployed.folder / bad.model)
    with deployed.stack.client() as client, pytest.raises(ApiError) as caught:
        client.submit(document)
    assert caught.value.is_user_error
    assert 400 <= caught.value.status < 500
    assert caught.value.param == bad.param
    assert "\n" not in caught.value.message
    assert everything(deployed) == before


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("out.doc", ("out.doc", ".jsonl, .parquet or .csv")),
        ("out", ("must end in",)),
        ("nowhere/out.jsonl", ("nowhere", "is not an existing folder")),
        ("dir.jsonl", ("dir.jsonl", "directory")),
        ("rows.jsonl/out.csv", ("rows.jsonl", "is not an existing folder")),
        ("/proc/out.jsonl", ("/proc",)),
    ],
)
def test_run_refuses_an_output_that_cannot_be(
    refused: Callable[..., str], deployed: Deployment, output: str, says: tuple[str, ...]
) -> None:
    (deployed.folder / "dir.jsonl").mkdir(exist_ok=True)
    good = ["run", "embeddings", "--model", "model", "--input", "rows.jsonl"]
    sentence = refused(*good, "--output", output)
    assert all(word in sentence for word in says), sentence


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("task: embeddings\n  model: [", ("line 2", "YAML")),
        ("- a list", ("mapping",)),
        ("task: embeddings\nmodel: model\ninput: {path: rows.jsonl}\nouput: {to: jsonl}", ("ouput", "unknown field")),
        ("task: embeddings\nmodel: model\ninput: {path: rows.jsonl, colums: {}}", ("input.colums", "unknown field")),
        ("task: embeddings\ninput: {path: rows.jsonl}", ("model", "required")),
        ("task: embeddings\nmodel: model\ninput: {path: rows.jsonl}\noutput: {to: csv}", ("output.to",)),
        ("task: embeddings\nmodel: model\ninput: {path: rows.jsonl}\noutput: {path: a.jsonl}", ("output.path",)),
        (
            "task: embeddings\nmodel: model\ninput: {path: rows.jsonl}\noutput: {to: jsonl, path: nowhere/a.jsonl}",
            ("output.path", "nowhere"),
        ),
        ("task: embeddings\nmodel: model\ninput: {path: rows.jsonl}\ntime_limit: soon", ("time_limit",)),
        ("task: embeddings\nmodel: model\ninput: {path: rows.jsonl}\nkind: cooking", ("kind", "cooking")),
        ("task: embeddings\nmodel: model\ninput: {path: 'file:none'}", ("none", "uploaded file")),
        ("task: embeddings\nmodel: model\ninput: {path: rows.jsonl}\nbatching: {chunk_rows: 0}", ("chunk_rows",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_submit_refuses_a_document_that_is_no_spec(
    refused: Callable[..., str], deployed: Deployment, document: str, says: tuple[str, ...]
) -> None:
    spec = deployed.folder.parent / "spec.yaml"
    spec.write_text(document)
    sentence = refused("submit", str(spec))
    assert all(word in sentence for word in says), sentence


def test_nothing_was_left_behind(refused: Callable[..., str], deployed: Deployment) -> None:
    assert json.loads(deployed.stack.run("status", "--json").stdout)["data"] == []
    sentence = refused("submit", "no-such-spec.yaml")
    assert "no-such-spec.yaml" in sentence
