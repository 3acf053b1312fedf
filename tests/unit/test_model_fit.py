"""Parts of a model that do not go together, and files that loading must not touch, are refused at submission."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs.access import model_files
from jobs.access.model_check import check_model
from jobs.access.model_fit import template_fault
from jobs.config.settings import Settings
from jobs.errors import Forbidden, InvalidModel

EMBEDDINGS = "bert.embeddings.word_embeddings.weight"


def safetensors(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """A file with these tensors, of one byte for each value."""
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in shapes.items():
        num_bytes = 1
        for size in shape:
            num_bytes *= size
        header[name] = {"dtype": "I8", "shape": list(shape), "data_offsets": [offset, offset + num_bytes]}
        offset += num_bytes
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(offset)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings that allow local models under one folder only."""
    return Settings(input_roots=[tmp_path / "models"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of four tokens."""
    path = tmp_path / "models" / "model"
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "bert", "vocab_size": 4, "num_hidden_layers": 2}')
    vocabulary = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2, "d": 3}}
    (path / "tokenizer.json").write_text(json.dumps({"model": vocabulary, "added_tokens": []}))
    (path / "preprocessor_config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(safetensors({EMBEDDINGS: (4, 8)}))
    return path


def refused(folder: Path, settings: Settings, task: str = "embeddings", error: type[Exception] = InvalidModel) -> str:
    """The sentence that a model is refused with."""
    with pytest.raises(error) as caught:
        check_model(str(folder), task, settings)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 100_000_000},
        {"n_layer": 1e8},
        {"text_config": {"num_hidden_layers": 100_000_000}},
        {"vision_config": {"inner": {"depths": [3, 100_000_000]}}},
        {"hidden_size": 10**12},
        {"vocab_size": 10**10},
        {"num_labels": 10**9},
        {"num_hidden_layers": -1},
        {"max_position_embeddings": 10**12},
        {"num_experts": 10**7},
    ],
    ids=str,
)
def test_a_config_far_larger_than_its_weights_is_refused(
    config: dict[str, Any], folder: Path, settings: Settings
) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    assert "config.json has" in refused(folder, settings)


@pytest.mark.parametrize(
    "config",
    [{"num_hidden_layers": 900}, {"max_position_embeddings": 10_485_760}, {"hidden_size": 8192}, {"depths": "x"},
     {"rope_theta": 1e12}, {"num_labels": 10_000}],
    ids=str,
)  # fmt: skip
def test_large_but_possible_numbers_pass(config: dict[str, Any], folder: Path, settings: Settings) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    check_model(str(folder), "embeddings", settings)


def test_a_tokenizer_of_another_model_is_refused(folder: Path, settings: Settings) -> None:
    for name in ("tokenizer.json", "vocab.json", "vocab.txt"):
        (folder / "tokenizer.json").unlink(missing_ok=True)
        words = {f"w{number}": number for number in range(9)}
        text = {
            "tokenizer.json": json.dumps({"model": {"vocab": words}}),
            "vocab.json": json.dumps(words),
            "vocab.txt": "\n".join(words),
        }[name]
        (folder / name).write_text(text)
        assert "ids up to 8, but the model has vectors for only 4 tokens" in refused(folder, settings)
        (folder / name).unlink()


def test_tokens_that_were_added_to_a_tokenizer_are_no_reason(folder: Path, settings: Settings) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [{"id": 4, "content": "[PAD]"}]
    tokenizer["model"]["vocab"]["[PAD]"] = 4
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    check_model(str(folder), "embeddings", settings)


def test_a_vocabulary_smaller_than_the_table_passes(folder: Path, settings: Settings) -> None:
    (folder / "model.safetensors").write_bytes(safetensors({EMBEDDINGS: (64, 8)}))
    check_model(str(folder), "embeddings", settings)


@pytest.mark.parametrize("task", ["zero-shot-image-classification", "automatic-speech-recognition", "fill-mask"])
def test_a_missing_tokenizer_is_an_error_that_names_it(task: str, folder: Path, settings: Settings) -> None:
    (folder / "tokenizer.json").unlink()
    assert f"has no tokenizer (tokenizer.json, tokenizer_config.json, vocab.txt, ...), which '{task}' needs" in refused(
        folder, settings, task
    )


@pytest.mark.parametrize("task", ["image-classification", "audio-classification", "image-text-to-text"])
def test_a_missing_preprocessor_is_an_error_that_names_it(task: str, folder: Path, settings: Settings) -> None:
    (folder / "preprocessor_config.json").unlink()
    assert f"has no preprocessor_config.json, which '{task}' needs" in refused(folder, settings, task)


@pytest.mark.parametrize("task", ["image-classification", "text-generation", "embeddings"])
@pytest.mark.parametrize(("text", "reason"), [("{", "is not valid JSON"), ("[]", "does not contain a JSON object")])
def test_a_damaged_preprocessor_is_an_error_that_names_it(
    task: str, text: str, reason: str, folder: Path, settings: Settings
) -> None:
    (folder / "preprocessor_config.json").write_text(text)
    assert refused(folder, settings, task).endswith(f"its preprocessor_config.json {reason}")


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json", "chat_template.json"])
def test_a_chat_template_that_is_no_jinja_is_refused(file: str, folder: Path, settings: Settings) -> None:
    template = "line\n{% for message in messages %}{{ message.content }"
    text = template if file.endswith(".jinja") else json.dumps({"chat_template": template})
    (folder / file).write_text(text)
    message = refused(folder, settings, "text-generation")
    assert f"its chat template ({file}) cannot be used: line 2: " in message
    assert refused(folder, settings, "embeddings") == message
    check_model(str(folder), "feature-extraction", settings)


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{{ messages[0].content }}", None),
        ("{% for m in messages %}{% generation %}{{ m }}{% endgeneration %}{% continue %}{% endfor %}", None),
        ("{{ raise_exception('no') }}", None),
        ("{{ 'a' | center(10 ** 12) }}{{ 9 ** 9 ** 9 }}", None),
        ("{% nosuchtag %}", "line 1: Encountered unknown tag 'nosuchtag'"),
        ("a\n{% if x %}", "line 2: Unexpected end of template"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "nested too deeply"),
        ("a" * 1_000_001, "more than 1000000 characters"),
    ],
    ids=range(8),
)
def test_templates_are_read_as_transformers_reads_them(template: str, fault: str | None) -> None:
    found = template_fault(template)
    assert (found is None) == (fault is None)
    assert fault is None or fault in str(found)


def test_a_shard_outside_the_folder_is_refused(folder: Path, settings: Settings, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "models" / "other.safetensors")
    for name in ("../other.safetensors", str(tmp_path / "models" / "other.safetensors"), "a/../x", ".."):
        index = {"weight_map": {EMBEDDINGS: name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "names a file outside the model's folder" in refused(folder, settings)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_link_out_of_the_roots_is_forbidden(file: str, folder: Path, settings: Settings, tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_bytes((folder / file).read_bytes() if (folder / file).exists() else b"")
    (folder / file).unlink(missing_ok=True)
    (folder / file).symlink_to(outside)
    assert f"its {file} is a link to a file outside the allowed folders" in refused(folder, settings, error=Forbidden)


def test_a_link_to_stokers_own_files_is_forbidden_in_any_root(folder: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "local.key").write_text("secret")
    (folder / "chat_template.jinja").symlink_to(data_dir / "local.key")
    assert "its chat_template.jinja is a link to a file outside" in refused(
        folder, Settings(input_roots=[Path("/")], data_dir=data_dir), error=Forbidden
    )


def test_links_inside_the_roots_pass(folder: Path, settings: Settings, tmp_path: Path) -> None:
    blobs = tmp_path / "models" / "blobs"
    blobs.mkdir()
    for file in ("model.safetensors", "config.json"):
        (folder / file).rename(blobs / file)
        (folder / file).symlink_to(blobs / file)
    check_model(str(folder), "embeddings", settings)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    os.chdir(path.parent)  # a socket's path may have 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [_pipe, _socket, _device])
@pytest.mark.parametrize("file", ["tokenizer.json", "config.json", "model.safetensors", "vocab.txt"])
def test_a_file_that_is_not_regular_is_refused(
    make: Callable[[Path], None], file: str, folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / file).unlink(missing_ok=True)
    make(folder / file)
    assert f"its {file} is not a regular file" in refused(folder, settings)


def test_files_and_folders_are_bounded(folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "LARGEST_JSON_BYTES", 20)
    assert "its config.json is larger than" in refused(folder, settings)
    monkeypatch.setattr(model_files, "MOST_FILES", 2)
    assert "more than 2 files" in refused(folder, settings)


def test_a_config_of_endless_depth_is_refused(folder: Path, settings: Settings) -> None:
    (folder / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    assert "config.json is not valid JSON" in refused(folder, settings)
