"""A request that cannot be met gets one sentence that names what is wrong, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from scheduler.client.http_client import ApiError
from tests.support import tiny
from tests.support.stack import Stack, stack

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Bad:
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
    Bad("missing file", ("no file", "none.jsonl"), "input.path", path="none.jsonl"),
    Bad("unknown column", ("body", "id, text"), "input.columns.text", columns={"text": "body"}),
    Bad("missing key column", ("input.key", "uuid"), "input.key", key="uuid"),
    Bad("column of no input", ("input.columns.txt", "text"), "input.columns.txt", columns={"txt": "text"}),
    Bad("unknown task", ("embedings", "did you mean 'embeddings'"), "task", task="embedings"),
    Bad("empty input", ("empty",), "input.path", path="empty.jsonl"),
    Bad("blank input", ("no rows",), "input.path", path="blank.jsonl"),
    Bad("a header alone", ("no rows",), "input.path", path="header.csv"),
    Bad("a directory as input", ("folder", "directory"), "input.path", path="folder"),
    Bad("no match of a glob", ("no file", "*.parquet"), "input.path", path="part-*.parquet"),
    Bad("two formats", ("rows.jsonl", "bare.csv"), "input.path", path=["rows.jsonl", "bare.csv"]),
    Bad("unknown ending", ("rows.doc", "input.format"), "input.path", path="rows.doc"),
    Bad("damaged parquet", ("broken.parquet",), "input.path", path="broken.parquet"),
    Bad("CSV without header", ("no column 'text'",), "input.columns.text", path="bare.csv", key=None),
    Bad("outside the roots", ("input.path",), "input.path", path="../outside.jsonl"),
    Bad("a link out of the roots", ("input.path",), "input.path", path="link.jsonl"),
    Bad("a model that is none", ("config.json",), "model", model="folder"),
    Bad("no such model", ("./nothing",), "model", model="./nothing"),
    Bad("a file as model", ("rows.jsonl", "folder"), "model", model="rows.jsonl"),
    Bad("pickled weights", ("pytorch_model.bin", "pickle"), "model", model="pickled"),
    Bad("cut off weights", ("model.safetensors", "cut off"), "model", model="cut"),
    Bad("no head", ("text-classification head",), "model", task="text-classification"),
    Bad("unknown parameter", ("poolling", "pooling"), "parameters.poolling", parameters={"poolling": "mean"}),
    Bad("wrong value", ("pooling", "mean"), "parameters.pooling", parameters={"pooling": "best"}),
]


@dataclass
class Site:
    """A running stack and a folder with good and bad files."""

    stack: Stack
    folder: Path

    def refused(self, *arguments: str) -> str:
        """The sentence of a command that must be refused and change nothing."""
        before = self.everything()
        done = self.stack.run(*arguments, code=2, cwd=self.folder)
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("error: ")
        assert self.everything() == before
        return lines[0]

    def everything(self) -> dict[str, int]:
        """Every file of the user's and of the store, temporary ones too, with its size; and every job."""
        places = (self.folder, self.stack.data_dir / "store")
        files = {str(path): path.lstat().st_size for place in places for path in place.rglob("*")}
        with self.stack.client() as client:
            return files | {str(job["id"]): 1 for job in client.jobs()}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One slot, and one folder that jobs may read."""
    home = tmp_path_factory.mktemp("bad")
    folder = home / "mine"
    (folder / "folder").mkdir(parents=True)
    rows = "".join(json.dumps({"id": f"r{row}", "text": f"row {row}"}) + "\n" for row in range(3))
    for name, content in {
        "rows.jsonl": rows,
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
    with stack(home / "data", slots=1, STOKER_INPUT_ROOTS=json.dumps([str(folder)])) as running:
        yield Site(running, folder)


# A few each for the commands, which take seconds: it is the API that finds the faults, and it meets them all below.
@pytest.mark.parametrize("bad", BAD[1::6], ids=lambda bad: bad.name)
def test_run_refuses(site: Site, bad: Bad) -> None:
    sentence = site.refused("run", *bad.options(), "--output", "out.jsonl")
    assert all(word in sentence for word in bad.says), sentence


@pytest.mark.parametrize("bad", BAD[::6], ids=lambda bad: bad.name)
def test_submit_refuses(site: Site, bad: Bad) -> None:
    spec = site.stack.data_dir.parent / "spec.yaml"
    spec.write_text(yaml.safe_dump(bad.spec()))
    sentence = site.refused("submit", str(spec))
    assert all(word in sentence for word in bad.says), sentence


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_the_api_refuses(site: Site, bad: Bad) -> None:
    before = site.everything()
    document = bad.spec()
    paths = [str(site.folder / path) for path in (bad.path if isinstance(bad.path, list) else [bad.path])]
    document["input"]["path"] = paths
    document["model"] = str(site.folder / bad.model)
    with site.stack.client() as client, pytest.raises(ApiError) as caught:
        client.submit(document)
    assert caught.value.is_user_error
    assert 400 <= caught.value.status < 500
    assert caught.value.param == bad.param
    assert "\n" not in caught.value.message
    assert site.everything() == before


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("out.doc", ("out.doc", ".jsonl, .parquet or .csv")),
        ("out", ("must end in",)),
        ("nowhere/out.jsonl", ("nowhere", "no folder")),
        ("dir.jsonl", ("dir.jsonl", "directory")),
        ("rows.jsonl/out.csv", ("rows.jsonl", "no folder")),
        ("/proc/out.jsonl", ("/proc",)),
    ],
)
def test_run_refuses_an_output_that_cannot_be(site: Site, output: str, says: tuple[str, ...]) -> None:
    (site.folder / "dir.jsonl").mkdir(exist_ok=True)
    good = ["run", "embeddings", "--model", "model", "--input", "rows.jsonl"]
    sentence = site.refused(*good, "--output", output)
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
def test_submit_refuses_a_document_that_is_no_spec(site: Site, document: str, says: tuple[str, ...]) -> None:
    spec = site.stack.data_dir.parent / "spec.yaml"
    spec.write_text(document)
    sentence = site.refused("submit", str(spec))
    assert all(word in sentence for word in says), sentence


def test_nothing_was_left_behind(site: Site) -> None:
    assert json.loads(site.stack.run("status", "--json").stdout)["data"] == []
    sentence = site.refused("submit", "no-such-spec.yaml")
    assert "no-such-spec.yaml" in sentence
