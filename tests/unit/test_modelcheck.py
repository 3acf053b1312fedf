"""Faults of a model are reported when a job is submitted, in one sentence, without loading the model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.access.model_check import check_model, local_model
from jobs.access.sentence_folder import check_vectors
from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.errors import Forbidden, InvalidModel, InvalidSpec
from jobs.specs.inference import parse_spec
from jobs.specs.parameters import PARAMETERS, read_parameters
from jobs.specs.parameters.text_tasks import EmbeddingsParameters
from jobs.specs.tasks import TASKS
from scheduler.control.planning.planner import check_submission

TENSOR = {"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def _safetensors(header: Any = TENSOR, data: bytes = bytes(8)) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings that allow local models under `tmp_path` only."""
    return Settings(input_roots=[tmp_path])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that passes as a text classifier."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForSequenceClassification"]}')
    (path / "tokenizer.json").write_text("{}")
    (path / "preprocessor_config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(_safetensors())
    return path


def _refused(model: object, settings: Settings, task: str = "text-classification") -> str:
    with pytest.raises(InvalidModel) as caught:
        check_model(str(model), task, settings)
    assert caught.value.param == "model"
    assert caught.value.message.count("\n") == 0
    assert str(model) in caught.value.message
    return caught.value.message


def test_a_good_model_passes(folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """No job could be submitted."""
    check_model(str(folder), "text-classification", settings)
    check_model(str(folder), "embeddings", settings)
    check_model(f"file://{folder}", "text-classification", settings)
    monkeypatch.chdir(folder.parent)
    check_model("model", "text-classification", settings)
    check_model("./model", "text-classification", settings)


def test_a_model_in_shards_passes(folder: Path, settings: Settings) -> None:
    """Large models could not be used; and half a download would only fail on a worker."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"weight": "model-00001-of-00002.safetensors", "bias": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors is missing" in _refused(folder, settings)
    (folder / "model-00002-of-00002.safetensors").write_bytes(_safetensors())
    check_model(str(folder), "text-classification", settings)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "weight_map" in _refused(folder, settings)


@pytest.mark.parametrize("model", ["gpt2", "org/name", "org/name@main", "org/name@refs/pr/1", "Org-1/na_me.v2@v1.0"])
def test_hub_ids_pass(model: str, settings: Settings) -> None:
    """Whether the hub has a model is found out where it is loaded; its form is checked at once."""
    check_model(model, "text-classification", settings)


@pytest.mark.parametrize(
    "model", ["a/b/c", "org/", "org/na me", "org/name@", "-x", "s3://bucket/model", "org//name", "ü/x"]
)
def test_what_is_neither_a_folder_nor_a_hub_id(model: str, settings: Settings) -> None:
    """Otherwise a typing error would be reported only by a worker."""
    assert "neither an existing folder nor a hub id" in _refused(model, settings)


def test_another_jobs_model_lies_where_workers_fetch_it_to(settings: Settings) -> None:
    """`job:<id>` would be looked for on the hub, or anywhere on the machine."""
    assert local_model("job:job_1", settings) == settings.data_dir / "job-models" / "job_1"
    assert "no valid job id" in _refused("job:../../etc", settings)


def test_models_outside_the_roots_are_forbidden(tmp_path: Path, folder: Path) -> None:
    """A user could load, and so read, any folder of the machine."""
    other = Settings(input_roots=[tmp_path / "other"])
    for model in (str(folder), "/etc", "~", "..", f"file://{folder}"):
        with pytest.raises(Forbidden) as caught:
            check_model(model, "embeddings", other)
        assert caught.value.param == "model"
    with pytest.raises(Forbidden):
        check_model(str(folder), "embeddings", Settings())


def _write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _replace_weights(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (_write("config.json", b"{"), "config.json is not valid JSON"),
        (_write("config.json", b"\xff"), "config.json is not valid JSON"),
        (_write("config.json", b"[1]"), "config.json does not contain a JSON object"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (_replace_weights("pytorch_model.bin"), "only in pytorch_model.bin, a pickle"),
        (_replace_weights("tf_model.h5"), "only in tf_model.h5"),
        (_write("model.safetensors", b""), "truncated"),
        (_write("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid"), "not a safetensors file"),
        (_write("model.safetensors", _safetensors(data=bytes(7))), "truncated"),
        (_write("model.safetensors", _safetensors()[:-40]), "truncated"),
        (_write("model.safetensors", _safetensors(data=bytes(9))), "has extra bytes"),
        (_write("model.safetensors", _safetensors(header=[1])), "is not a safetensors file"),
        (_write("model.safetensors", _safetensors(header={"w": {}})), "is not a safetensors file"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
    ],
)
def test_damaged_folders(folder: Path, settings: Settings, damage: Callable[[Path], object], reason: str) -> None:
    """A broken download would fail on a worker, with a traceback."""
    damage(folder)
    assert reason in _refused(folder, settings)


def test_an_adapter_is_recognized(folder: Path, settings: Settings) -> None:
    """An adapter would be called a model without weights."""
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    assert "adapter without its base model" in _refused(folder, settings)


def test_what_is_no_folder(folder: Path, settings: Settings, tmp_path: Path) -> None:
    """A file or a missing folder would be looked for on the hub."""
    assert "there is no such folder" in _refused(tmp_path / "absent", settings)
    assert "is a file" in _refused(folder / "model.safetensors", settings)


@pytest.mark.parametrize(
    ("task", "architecture", "passes"),
    [
        ("text-classification", "BertForSequenceClassification", True),
        ("text-classification", "BertModel", False),
        ("text-classification", "BertForMaskedLM", False),
        ("token-classification", "BertForTokenClassification", True),
        ("token-classification", "BertForSequenceClassification", False),
        ("fill-mask", "RobertaForMaskedLM", True),
        ("fill-mask", "BertForPreTraining", True),
        ("fill-mask", "XLMWithLMHeadModel", True),
        ("fill-mask", "BertModel", False),
        ("image-classification", "ViTForImageClassification", True),
        ("image-classification", "DeiTForImageClassificationWithTeacher", True),
        ("image-classification", "ViTModel", False),
        ("embeddings", "BertModel", True),
        ("embeddings", "BertForMaskedLM", True),
        ("text-generation", "LlamaForCausalLM", True),
    ],
)
def test_a_model_without_the_tasks_head(
    folder: Path, settings: Settings, task: str, architecture: str, passes: bool
) -> None:
    """The head would be made of random weights, and every result be worthless."""
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    if passes:
        check_model(str(folder), task, settings)
    else:
        assert f"its architecture is {architecture}, which has no {task} head" in _refused(folder, settings, task)


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        ("{", "modules.json is not valid JSON"),
        ('{"0": {}}', "not a list of modules"),
        ('[{"type": "sentence_transformers.models.Transformer", "path": ""}]', "does not begin with"),
        (
            '[{"type": "sentence_transformers.models.LSTM", "path": ""}]',
            "the module 'sentence_transformers.models.LSTM'",
        ),
        ('[{"type": "custom.Transformer", "path": ""}]', "the module 'custom.Transformer'"),
        ('[{"type": "sentence_transformers.models.Transformer", "path": "../.."}]', "names a folder outside"),
        (
            '[{"type": "sentence_transformers.models.Transformer", "path": ""},'
            ' {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]',
            "has no 1_Pooling/config.json",
        ),
    ],
)
def test_sentence_transformers_folders_that_cannot_be_honoured(
    folder: Path, settings: Settings, modules: str, reason: str
) -> None:
    """A module that is left out would change every vector without a word."""
    (folder / "modules.json").write_text(modules)
    assert reason in _refused(folder, settings, "embeddings")


def test_a_transformer_in_a_sub_folder(folder: Path, settings: Settings) -> None:
    """Older sentence-transformers folders would be refused, as they have no config.json at the top."""
    kinds = (("0_Transformer", "models.Transformer"), ("1_Pooling", "sentence_transformer.modules.pooling.Pooling"))
    modules = [
        {"idx": i, "path": path, "type": f"sentence_transformers.{kind}"} for i, (path, kind) in enumerate(kinds)
    ]
    inner = folder / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).rename(inner / name)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "modules.json").write_text(json.dumps(modules))
    check_model(str(folder), "embeddings", settings)


def _sentence_folder(folder: Path, config: dict[str, Any], dense: int | None) -> None:
    """Make a folder one of sentence-transformers, with two prompts and two pooling modes joined."""
    kinds = ["Transformer", "Pooling"] + ["Dense"] * (dense is not None)
    modules = [{"path": f"{i}" if i else "", "type": f"sentence_transformers.{kind}"} for i, kind in enumerate(kinds)]
    for i, inner in enumerate([{"pooling_mode": ["cls", "mean"]}, {"in_features": 128, "out_features": dense}], 1):
        (folder / f"{i}").mkdir()
        (folder / f"{i}" / "config.json").write_text(json.dumps(inner))
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "q: ", "passage": "p: "}}')
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("config", "dense", "parameters", "words"),
    [
        ({"hidden_size": 64}, None, {"dimensions": 129}, "dimensions: the model's vectors have only 128 dimensions"),
        ({"hidden_size": 64}, None, {"dimensions": 128}, None),
        ({"hidden_size": 64}, None, {"dimensions": 65, "pooling": "cls"}, "have only 64 dimensions"),
        ({"text_config": {"hidden_size": 64}}, None, {"dimensions": 129}, "have only 128 dimensions"),
        ({"hidden_size": 64}, 256, {"dimensions": 257}, "have only 256 dimensions"),
        ({"hidden_size": 64}, 256, {"dimensions": 256}, None),
        ({"model_type": "reformer", "hidden_size": 64}, None, {"dimensions": 256}, None),
        ({"model_type": "own", "hidden_size": 64}, None, {"dimensions": 1000}, None),
        ({"hidden_size": 64, "auto_map": {}}, None, {"dimensions": 1000}, None),
        ({}, None, {"prompt_name": "passages"}, "no prompt 'passages'; it has query, passage"),
        ({}, None, {"prompt_name": "passage", "dimensions": 10**6}, None),
    ],
)
def test_vectors_that_the_model_does_not_make_are_refused(
    folder: Path, config: dict[str, Any], dense: int | None, parameters: dict[str, Any], words: str | None
) -> None:
    _sentence_folder(folder, {"model_type": "bert", **config}, dense)
    if words is None:
        check_vectors(folder, EmbeddingsParameters.read(parameters), name="m")
        return
    with pytest.raises(InvalidSpec, match=words) as caught:
        check_vectors(folder, EmbeddingsParameters.read(parameters), name="m")
    assert caught.value.param in caught.value.message


@pytest.mark.parametrize(
    ("parameters", "param"),
    [({"dimensions": 10**6}, "parameters.dimensions"), ({"prompt_name": "q"}, "parameters.prompt_name")],
)
def test_a_submission_looks_at_the_vectors(
    folder: Path, settings: Settings, sqlite_database: Database, parameters: dict[str, Any], param: str
) -> None:
    (folder / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')
    (folder.parent / "rows.jsonl").write_text('{"text": "a"}\n')
    rows = {"path": str(folder.parent / "rows.jsonl")}
    spec = parse_spec({"task": "embeddings", "model": str(folder), "input": rows, "parameters": parameters})
    store = Store(settings.resolved_store_url)
    with pytest.raises(InvalidSpec) as caught:
        check_submission(spec, rules=settings, store=store, database=sqlite_database)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("task", "parameters"),
    [
        ("embeddings", {"pooling": "cls", "normalize": True, "dimensions": 64, "max_length": 9, "truncate": False}),
        ("embeddings", {"prompt": "", "prompt_name": None, "pooling": None}),
        (
            "text-classification",
            {"top_k": None, "function_to_apply": "none", "truncation": "only_first", "padding": True},
        ),
        ("token-classification", {"aggregation_strategy": "max", "ignore_labels": [], "stride": 0}),
        ("fill-mask", {"top_k": 3, "targets": "word", "tokenizer_kwargs": {"truncation": True}}),
        ("text-generation", {"temperature": 0.7, "top_p": 1, "seed": -5, "stop": [], "n": 3, "top_logprobs": 0}),
        ("automatic-speech-recognition", {"anything": "is checked where the pipeline is"}),
    ],
)
def test_possible_parameters_pass(task: str, parameters: dict[str, Any]) -> None:
    """A good job would be refused."""
    read_parameters(task, parameters)


@pytest.mark.parametrize(
    ("task", "parameters", "param", "reason"),
    [
        ("text-classification", {"top_q": 1}, "top_q", "did you mean 'top_k'"),
        ("text-generation", {"max_token": 1}, "max_token", "did you mean 'max_new_tokens'"),
        ("text-generation", {"max_new_tokens": 0}, "max_new_tokens", "a whole number from 1"),
        ("text-generation", {"temperature": -0.1}, "temperature", "a number from 0"),
        ("text-generation", {"temperature": float("nan")}, "temperature", "a number from 0"),
        ("text-generation", {"top_p": 0}, "top_p", "a number above 0 and up to 1"),
        ("text-generation", {"repetition_penalty": 0}, "repetition_penalty", "a number above 0"),
        ("text-generation", {"seed": 2**63}, "seed", "a 64-bit whole number"),
        ("text-generation", {"stop": ["a", ""]}, "stop", "none of them empty"),
        ("text-generation", {"stop": ["a"] * 17}, "stop", "a list of at most 16"),
        ("text-generation", {"n": 129}, "n", "a whole number from 1 to 128"),
        ("text-generation", {"logprobs": 5}, "logprobs", "true or false"),
        ("text-generation", {"top_logprobs": 21}, "top_logprobs", "a whole number from 0 to 20"),
        ("text-classification", {"zzz": 1}, "zzz", "it has top_k, function_to_apply"),
        ("text-classification", {"top_k": 0}, "top_k", "a whole number from 1"),
        ("text-classification", {"top_k": True}, "top_k", "not True"),
        ("text-classification", {"top_k": "2"}, "top_k", "not '2'"),
        ("text-classification", {"function_to_apply": "relu"}, "function_to_apply", "sigmoid"),
        ("text-classification", {"truncation": []}, "truncation", "true, false or one of"),
        ("fill-mask", {"targets": []}, "targets", "a word or a list"),
        ("fill-mask", {"tokenizer_kwargs": {"truncation": 3}}, "tokenizer_kwargs", "mapping"),
        ("embeddings", {"prompt": 5}, "prompt", "a text"),
        ("embeddings", {"dimensions": 1.5}, "dimensions", "whole number"),
        ("depth-estimation", {"x": 1}, "x", "it has none"),
        ("image-classification", {"topk": 1}, "topk", "did you mean 'top_k'"),
        ("image-classification", {"function_to_apply": "relu"}, "function_to_apply", "softmax"),
        ("video-classification", {"num_frames": 0}, "num_frames", "a whole number from 1"),
        ("keypoint-matching", {"threshold": "high"}, "threshold", "a number"),
        ("mask-generation", {"points_per_batch": 0.5}, "points_per_batch", "a whole number from 1"),
        ("automatic-speech-recognition", {"chunk_length_s": -1}, "chunk_length_s", "a number from 0"),
        ("automatic-speech-recognition", {"return_timestamps": "words"}, "return_timestamps", "'char' or 'word'"),
        ("automatic-speech-recognition", {"return_segments": True}, "return_segments", "`return_timestamps: word`"),
        ("automatic-speech-recognition", {"trust_remote_code": True}, "trust_remote_code", "no parameter"),
        (
            "automatic-speech-recognition",
            {"generate_kwargs": {"a": [{"streamer": 1}]}},
            "generate_kwargs.streamer",
            "cannot be set by a job",
        ),
        ("document-question-answering", {"top_k": "1"}, "top_k", "a whole number from 1"),
        ("feature-extraction", {"tokenize_kwargs": [1]}, "tokenize_kwargs", "a mapping"),
        ("image-text-to-text", {"max_new_tokens": 0}, "max_new_tokens", "a whole number from 1"),
        ("any-to-any", {"skip_special_tokens": "no"}, "skip_special_tokens", "true or false"),
        ("zero-shot-classification", {"candidate_labels": []}, "candidate_labels", "a list of labels"),
        ("token-classification", {"stride": 5}, "stride", "needs an aggregation_strategy other than none"),
        (
            "token-classification",
            {"stride": 0, "aggregation_strategy": "none"},
            "stride",
            "needs an aggregation_strategy other than none",
        ),
        ("token-classification", {"delimiter": "-"}, "delimiter", "can only be used with is_split_into_words"),
        (
            "feature-extraction",
            {"truncation": True, "tokenize_kwargs": {"truncation": True}},
            "tokenize_kwargs.truncation",
            "cannot be used with parameters.truncation",
        ),
        (
            "feature-extraction",
            {"tokenize_kwargs": {"return_tensors": "np"}},
            "tokenize_kwargs.return_tensors",
            "cannot be set: task 'feature-extraction' sets it itself",
        ),
        (
            "image-feature-extraction",
            {"image_processor_kwargs": {"return_tensors": "np"}},
            "image_processor_kwargs.return_tensors",
            "cannot be set",
        ),
        (
            "image-text-to-text",
            {"max_new_tokens": 5, "generate_kwargs": {"max_new_tokens": 5}},
            "generate_kwargs.max_new_tokens",
            "cannot be used with parameters.max_new_tokens",
        ),
        ("any-to-any", {"processor_kwargs": {"text": "a"}}, "processor_kwargs.text", "cannot be set"),
        (
            "any-to-any",
            {"return_full_text": False, "return_tensors": True},
            "return_tensors",
            "cannot be used with parameters.return_full_text",
        ),
    ],
)
def test_impossible_parameters_are_refused(task: str, parameters: dict[str, Any], param: str, reason: str) -> None:
    """A misspelt parameter would be ignored, or fail on a worker."""
    with pytest.raises(InvalidSpec, match="parameters") as caught:
        read_parameters(task, parameters)
    assert caught.value.param == f"parameters.{param}"
    assert reason in caught.value.message


def test_parameters_are_those_of_tasks() -> None:
    """An entry under a misspelt task would never be looked at."""
    assert PARAMETERS.keys() == TASKS.keys()


def test_checking_needs_no_torch() -> None:
    """The scheduler would take seconds and gigabytes more to start."""
    code = "import sys, jobs.access.model_check, jobs.specs.parameters\n"
    code += "sys.exit(len({'torch', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_model_of_the_catalogue_may_lie_outside_the_roots(folder: Path, tmp_path: Path) -> None:
    """An operator who lists a folder allows its use."""
    closed = Settings(input_roots=[])
    with pytest.raises(Forbidden):
        check_model(str(folder), "embeddings", closed)
    listed = Settings.model_validate({"input_roots": [], "models": {"a": str(folder), "b": "org/name"}})
    check_model(str(folder), "text-classification", listed)
    with pytest.raises(InvalidModel):
        check_model(str(folder), "fill-mask", listed)
    with pytest.raises(Forbidden):
        check_model(str(tmp_path), "embeddings", listed)
    check_model("org/name", "embeddings", listed)
