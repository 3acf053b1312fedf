"""`engine: vllm`: the same rows, parameters and outputs over its engine's calls, with a stand-in for vLLM.

`acceptance/test_vllm.py` runs the package itself.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.config.settings import Settings
from jobs.data.rows import Row
from jobs.errors import DeviceOutOfMemory, InvalidSpec
from jobs.specs.inference import model_key, parse_spec
from tests.support import scripted_vllm
from tests.support.generation import generated, leave_between_two_steps, rows_of, spec_of
from tests.support.scripted_vllm import LLMEngine
from tests.support.tiny import SENTENCES, tiny_causal_lm
from tests.support.tiny_vision import chat, image_part, tiny_llava
from worker.inference.generation import vllm_decoding
from worker.inference.tasks import load_task_model, needs_whole_device
from worker.models.cache import ModelCache
from worker.models.model_ref import ModelRef

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama."""
    return tiny_causal_lm(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def with_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that has vLLM."""
    for name, module in scripted_vllm.modules().items():
        monkeypatch.setitem(sys.modules, name, module)


def load(model: Path, parameters: Mapping[str, Any] | None = None, *, device: torch.device = CPU, **fields: Any) -> Any:
    settings = Settings(input_roots=[Path("/")])
    spec = spec_of(model, parameters, **fields)
    ref, dtype = ModelRef.of(spec), torch.float32
    return load_task_model(ref, spec.task_parameters, device=device, dtype=dtype, rules=settings)


def test_its_outputs_are_those_of_our_own_loop(model: Path, with_vllm: None) -> None:
    parameters = {"max_new_tokens": 12, "logprobs": True, "top_logprobs": 3}
    rows: list[Row] = rows_of(*((text, None) for text in SENTENCES[:5]), (SENTENCES[0], {"max_new_tokens": 3}))
    ours = generated(load(model, parameters), rows)
    theirs = generated(load(model, parameters, engine="vllm"), rows)
    for one, other in zip(ours, theirs, strict=True):
        (mine,), (its,) = one, other
        assert {name: mine[name] for name in ("generated_text", "finish_reason", "num_tokens")} == {
            name: its[name] for name in ("generated_text", "finish_reason", "num_tokens")
        }
        for own, vllms in zip(mine["logprobs"], its["logprobs"], strict=True):
            assert vllms["token"] == own["token"]
            assert vllms["logprob"] == pytest.approx(own["logprob"], abs=1e-4)
            assert [each["token"] for each in vllms["top_logprobs"]] == [each["token"] for each in own["top_logprobs"]]


def test_images_reach_it_with_one_placeholder_each(tmp_path: Path, with_vllm: None) -> None:
    folder = tiny_llava(tmp_path)
    chats = [chat("What is this? ", image_part(1)), chat(image_part(2), image_part(1), "?"), chat("Where is Ada?")]
    rows = rows_of(*((one, {"max_new_tokens": 5}) for one in chats))
    ours = generated(load(folder), rows)
    assert generated(load(folder, engine="vllm"), rows) == ours
    (engine,) = LLMEngine.made
    placeholder = engine.tokenizer.convert_tokens_to_ids("<image>")
    assert [prompt["prompt_token_ids"].count(placeholder) for prompt in engine.prompts] == [1, 2, 0]
    images = [len(prompt.get("multi_modal_data", {}).get("image", ())) for prompt in engine.prompts]
    assert images == [1, 2, 0]


def test_each_rows_own_parameters_reach_it(model: Path, with_vllm: None) -> None:
    task = load(model, {"max_new_tokens": 4}, engine="vllm")
    own = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.2, "seed": 11, "stop": ["x"], "n": 2}
    generated(task, rows_of((SENTENCES[0], own), (SENTENCES[1], None)))
    (engine,) = LLMEngine.made
    first, second, third = engine.requests
    assert (first.temperature, first.top_p, first.top_k, first.repetition_penalty) == (0.7, 0.9, 5, 1.2)
    assert (first.stop, first.max_tokens, first.n) == (["x"], 4, 1)
    assert first.seed is not None
    assert first.seed != second.seed, "each choice draws its own"
    assert (third.temperature, third.seed, third.stop) == (0.0, None, None)
    assert engine.arguments.model == str(model)


def test_a_stop_ends_between_two_steps(model: Path, with_vllm: None) -> None:
    task = load(model, {"max_new_tokens": 50}, engine="vllm")
    leave_between_two_steps(task)
    (engine,) = LLMEngine.made
    assert not engine.has_unfinished_requests()
    assert len(engine.aborted) == 2


def test_a_host_without_vllm_is_an_error_that_names_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InvalidSpec, match="not installed on this worker") as caught:
        load(model, engine="vllm")
    assert caught.value.param == "engine"


def test_vllm_for_another_device_is_an_error_that_says_so(model: Path, with_vllm: None) -> None:
    with pytest.raises(InvalidSpec, match="computes on cpu, and this slot is a cuda"):
        load(model, device=torch.device("cuda", 0), engine="vllm")


@pytest.mark.usefixtures("with_vllm")
@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (ValueError("No available memory for the cache blocks"), DeviceOutOfMemory, "vllm could not start: .*No avail"),
        (ValueError("No attention backend has head size 8"), InvalidSpec, "does not support this model: .*head size 8"),
        (NotImplementedError("no such layer"), InvalidSpec, "does not support this model: .*no such layer"),
        (RuntimeError("the device is gone"), RuntimeError, "the device is gone"),
    ],
)
def test_errors_at_the_start_of_vllm_are_classified(
    model: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, kind: type[Exception], words: str
) -> None:

    def refuse(*_: Any, **__: Any) -> Any:
        raise raised

    monkeypatch.setattr(LLMEngine, "from_vllm_config", refuse)
    with pytest.raises(kind, match=words):
        load(model, engine="vllm")


@pytest.mark.usefixtures("with_vllm")
def test_it_is_alone_on_the_slot_and_closed_before_it_goes(model: Path) -> None:
    load = partial(load_task_model, rules=Settings(input_roots=[Path("/")]))
    models = ModelCache(2, CPU, load=load, needs_whole_device=needs_whole_device)
    for spec in (spec_of(model), spec_of(model, engine="vllm")):
        models.get(ModelRef.of(spec), spec.task_parameters)
    assert models.keys() == [model_key(spec_of(model, engine="vllm"))]
    (engine,) = LLMEngine.made
    assert not engine.is_shut_down
    assert not engine.log_stats
    models.drop_all()
    assert engine.is_shut_down


def test_vllms_memory_is_a_share_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default vLLM takes nine tenths of the whole device, even if other processes use its memory."""
    free_bytes = 60 * 2**30
    monkeypatch.setattr(vllm_decoding, "free_memory_bytes", lambda _: free_bytes)
    monkeypatch.setattr(vllm_decoding, "total_memory_bytes", lambda _: 80 * 2**30)
    assert vllm_decoding.memory_arguments(torch.device("cuda", 0)) == {"gpu_memory_utilization": pytest.approx(0.675)}
    assert vllm_decoding.memory_arguments(CPU)["kv_cache_memory_bytes"] == 4 * 2**30
    free_bytes = 10 * 2**30
    assert vllm_decoding.memory_arguments(CPU)["kv_cache_memory_bytes"] == 2**30


def test_it_is_for_text_generation_and_warm_apart(model: Path) -> None:
    with pytest.raises(InvalidSpec, match="supports only task: text-generation"):
        parse_spec({"task": "embeddings", "model": "m", "input": {"path": "r.jsonl"}, "engine": "vllm"})
    keys = [model_key(spec_of(model, engine=engine)) for engine in ("auto", "transformers", "vllm")]
    assert keys[0] == keys[1] != keys[2]


def test_its_absence_costs_nothing() -> None:
    code = "import sys, worker.inference.tasks; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
