"""Specs on their way to the API: they arrive as the user meant them, or are refused in one sentence."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, cast

import pytest

from jobs.errors import InvalidInput, InvalidModel, InvalidOutput, InvalidSpec, NotFound
from jobs.specs.inference import parse_spec
from scheduler.cli.outputs import check_output
from scheduler.cli.spec_documents import parse_needs, parse_pairs, parse_parameters, read_spec
from scheduler.client.http_client import StokerClient
from scheduler.client.inference_paths import absolute_path, adapt_inference, check_local_inputs


class Api:
    """Replaces the API: knows whether it can read this machine's files, and keeps the uploads."""

    def __init__(self, *, shares_files: bool) -> None:
        self._shares_files = shares_files
        self.uploads: dict[str, bytes] = {}

    def shares_files(self) -> bool:
        """As asked."""
        return self._shares_files

    def upload(self, path: Path, **_: Any) -> dict[str, str]:
        """Keep it."""
        file_id = f"file_{len(self.uploads)}"
        self.uploads[file_id] = path.read_bytes()
        return {"id": file_id}


def spec(path: str | list[str], **fields: Any) -> dict[str, Any]:
    """A spec's document."""
    return {"task": "fill-mask", "model": "org/model", "input": {"path": path}, **fields}


def adapted(document: dict[str, Any], api: Api) -> dict[str, Any]:
    """The document as the API gets it."""
    return adapt_inference(document, cast(StokerClient, api))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two inputs in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl", "c.csv", "rows"):
        (tmp_path / name).write_text(f'{{"text": "{name}"}}\n')
    (tmp_path / "models").mkdir()
    return tmp_path


def test_needs_are_options_of_the_command_line() -> None:
    needs = parse_needs(["memory=40GB", "labels=a100", "device=cuda", "labels=eu, nvlink"])
    assert needs == {"memory": "40GB", "device": "cuda", "labels": ["a100", "eu", "nvlink"]}
    assert parse_spec(spec("a.jsonl", needs=needs)).needs.memory == 40 * 10**9
    assert parse_needs(["memory=1GB"]) == {"memory": "1GB"}
    with pytest.raises(InvalidSpec, match="'memory' is set twice"):
        parse_needs(["memory=1GB", "memory=2GB"])


def test_relative_paths_start_where_the_user_stands(folder: Path) -> None:
    """Paths must not depend on the daemon's working directory."""
    here = Api(shares_files=True)
    document = spec("a.jsonl", model="models", output={"to": "jsonl", "path": "out.jsonl"})
    got = adapted(document, here)
    assert got["input"]["path"] == str(folder / "a.jsonl")
    assert got["model"] == str(folder / "models")
    assert got["output"] == {"to": "jsonl", "path": str(folder / "out.jsonl")}
    assert adapted(spec(["a.jsonl", "x*.csv"]), here)["input"]["path"] == [
        str(folder / "a.jsonl"),
        str(folder / "x*.csv"),
    ]
    assert not here.uploads


@pytest.mark.parametrize("path", ["file:file_1", "s3://bucket/a.jsonl", "hf://datasets/org/name", "org/dataset"])
@pytest.mark.parametrize("shares_files", [True, False])
def test_what_is_no_local_file_is_left_as_it_is(path: str, shares_files: bool) -> None:
    """Uploads, URLs and names on the hub would be lost as paths."""
    assert adapted(spec(path), Api(shares_files=shares_files)) == spec(path)


@pytest.mark.parametrize("shares_files", [True, False])
def test_the_home_of_a_user_that_is_not_known_is_left_to_the_api(shares_files: bool) -> None:
    """A slip of the pen is the user's, and no fault of the command."""
    path = "~no-such-user/rows.jsonl"
    document = spec(path, model="~no-such-user/model")
    if shares_files:
        document["output"] = {"to": "jsonl", "path": "~no-such-user/out.jsonl"}
        assert adapted(document, Api(shares_files=True)) == document
        assert absolute_path(Path("~no-such-user/module.py")) == "~no-such-user/module.py"
    else:
        with pytest.raises(InvalidInput, match=r"there is no file '~no-such-user/rows\.jsonl'"):
            adapted(document, Api(shares_files=False))


def test_local_inputs_are_uploaded_to_another_machine(folder: Path) -> None:
    """Otherwise a remote daemon would not find the file."""
    there = Api(shares_files=False)
    got = adapted(spec(["?.jsonl", "file:file_x"]), there)
    assert got["input"] == {"path": ["file:file_0", "file:file_1", "file:file_x"], "format": "jsonl"}
    assert there.uploads == {f"file_{n}": (folder / name).read_bytes() for n, name in enumerate(("a.jsonl", "b.jsonl"))}
    single = adapted(spec("c.csv"), there)
    assert single["input"] == {"path": "file:file_2", "format": "csv"}
    parse_spec(single)


@pytest.mark.parametrize(
    ("document", "error", "words"),
    [
        (spec("rows"), InvalidInput, "does not show its format"),
        (spec("models"), InvalidInput, "is a folder on this machine"),
        (spec("z*.jsonl"), InvalidInput, "no file matches"),
        (spec("missing.jsonl"), InvalidInput, "there is no file"),
        (spec(["a.jsonl", "c.csv"]), InvalidInput, "must have one format"),
        (spec("a.jsonl", model="./models"), InvalidModel, "is a path on this machine"),
        (spec("a.jsonl", output={"to": "jsonl", "path": "x.jsonl"}), InvalidOutput, "is a path on this machine"),
    ],
)
def test_what_another_machine_cannot_get_is_refused(
    document: dict[str, Any], error: type[Exception], words: str
) -> None:
    """A job that cannot work must not be queued."""
    with pytest.raises(error, match=words):
        adapted(document, Api(shares_files=False))


@pytest.mark.parametrize("document", [{}, {"input": 3}, {"input": {"path": 3}}, {"input": {"path": [3]}}])
def test_documents_that_are_no_specs_reach_the_api(document: dict[str, Any]) -> None:
    """The API words the error; the command must not stumble before it."""
    assert adapted(document, Api(shares_files=True)) == document


def test_a_missing_input_is_found_before_anything_is_started() -> None:
    """Starting a stack for a typing error would cost seconds."""
    check_local_inputs(spec(["a.jsonl", "org/dataset", "s3://bucket/x.jsonl", "*.nothing"]))
    with pytest.raises(InvalidInput, match=r"no file 'missing\.jsonl'"):
        check_local_inputs(spec("missing.jsonl"))


def test_parameters_are_json_where_they_can_be() -> None:
    """`top_k=3` must arrive as a number, a label as text."""
    assert parse_parameters(["top_k=3", "function=none", 'labels=["a","b"]', "x=null", "eq=a=b"]) == {
        "top_k": 3,
        "function": "none",
        "labels": ["a", "b"],
        "x": None,
        "eq": "a=b",
    }
    for bad in (["top_k"], ["=3"], ["a=1", "a=2"]):
        with pytest.raises(InvalidSpec):
            parse_pairs(bad, "--param")


def test_specs_are_read_as_yaml_or_json(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """People write both, and programs pipe both."""
    (folder / "s.yaml").write_text("task: fill-mask\ninput: {path: a.jsonl}\n")
    assert read_spec("s.yaml") == {"task": "fill-mask", "input": {"path": "a.jsonl"}}
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"task": "fill-mask"}')))
    assert read_spec("-") == {"task": "fill-mask"}


def test_numbers_are_written_as_people_write_them(folder: Path) -> None:
    (folder / "s.yaml").write_text("a: 5e-5\nb: 1E3\nc: -2.5e+4\nd: .5e1\ne: 5e\nf: 1e-5m\n")
    assert read_spec("s.yaml") == {"a": 5e-5, "b": 1e3, "c": -2.5e4, "d": 5.0, "e": "5e", "f": "1e-5m"}


@pytest.mark.parametrize("name", ["s.json", "s.yaml", "s"])
def test_json_may_be_indented_with_tabs(folder: Path, name: str) -> None:
    """YAML forbids them, and a spec that another program wrote may be full of them."""
    (folder / name).write_text('\ufeff{\n\t"task": "fill-mask",\n\t"input": {"path": "a.jsonl"}\n}\n', encoding="utf-8")
    assert read_spec(name) == {"task": "fill-mask", "input": {"path": "a.jsonl"}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [1", "in line 1"),
        (b"- 1\n- 2\n", "must be a mapping"),
        (b"\xff\xfe\xfa", "not UTF-8"),
        (b"", "must be a mapping"),
        (b"time_limit: .nan", "time_limit: must be a finite number"),
        (b"slots: {max: 123456789012345678901234567890}", "slots.max: the number is too large"),
        (b"parameters: {1: 2}", "parameters: the name of a field must be a text, not 1"),
        (b"name: 2026-01-01", "name: a date is not a value of a spec; put it in quotes"),
        (b"a: &a {b: *a}", "aliases are not allowed in line 1"),
        (b"task: a\ntask: b", "'task' appears twice in line 2"),
    ],
)
def test_a_spec_that_cannot_be_read_is_named(folder: Path, content: bytes, words: str) -> None:
    """The user must learn which file and which line."""
    (folder / "bad.yaml").write_bytes(content)
    with pytest.raises(InvalidSpec, match=words):
        read_spec("bad.yaml")
    with pytest.raises(NotFound):
        read_spec("none.yaml")
    with pytest.raises(InvalidSpec, match="cannot read"):
        read_spec("models")


@pytest.mark.parametrize(
    ("path", "words"),
    [("out.xls", "must end in"), ("out", "must end in"), ("nowhere/out.csv", "is not an existing folder")],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(path: str, words: str) -> None:
    """Hours of work must not end in a file that cannot be written."""
    with pytest.raises(InvalidOutput, match=words):
        check_output(Path(path))


def test_outputs_by_their_ending(folder: Path) -> None:
    """The ending is the one thing that names the format."""
    assert [check_output(Path(f"out{ending}")) for ending in (".jsonl", ".PARQUET", ".csv")] == [
        "jsonl",
        "parquet",
        "csv",
    ]
    (folder / "d.csv").mkdir()
    with pytest.raises(InvalidOutput, match="is a directory"):
        check_output(Path("d.csv"))
