"""A stand-in for the package `vllm`: the engine calls that Stoker uses, over a real tiny model, one token per step.

vLLM has a size of gigabytes and requires other releases of packages than the tested ones. `acceptance/test_vllm.py`
compares the stand-in with the package where it is installed. Decoding is greedy, so that outputs can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer


@dataclass
class EngineArgs:
    """The fields of vLLM's class that Stoker uses."""

    model: str
    dtype: str = "auto"
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    kv_cache_memory_bytes: int | None = None
    enforce_eager: bool = False
    enable_prefix_caching: bool | None = None
    max_logprobs: int = 20
    trust_remote_code: bool = False
    seed: int | None = 0

    def create_engine_config(self) -> Config:
        longest = AutoConfig.from_pretrained(self.model).get_text_config().max_position_embeddings
        return Config(self, SimpleNamespace(max_model_len=longest))


@dataclass
class Config:
    arguments: EngineArgs
    model_config: SimpleNamespace


@dataclass
class SamplingParams:
    """The fields of vLLM's class that Stoker uses."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None


@dataclass
class RequestOutput:
    request_id: str
    outputs: list[CompletionOutput]
    finished: bool


@dataclass
class _Open:
    prompt: list[int]
    params: SamplingParams
    images: dict[str, torch.Tensor] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)


class LLMEngine:
    """An engine that generates one token of every open request at each step."""

    made: ClassVar[list[LLMEngine]] = []

    def __init__(self, config: Config, *, log_stats: bool) -> None:
        self.arguments, self.model_config, self.log_stats = config.arguments, config.model_config, log_stats
        arguments = config.arguments
        has_vision = hasattr(AutoConfig.from_pretrained(arguments.model), "vision_config")
        model_class = AutoModelForImageTextToText if has_vision else AutoModelForCausalLM
        self.model = model_class.from_pretrained(arguments.model)
        self.tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        self.open: dict[str, _Open] = {}
        self.requests: list[SamplingParams] = []
        self.prompts: list[dict[str, Any]] = []
        self.aborted: list[str] = []
        self.is_shut_down = False
        self.engine_core = SimpleNamespace(shutdown=self._shut_down)
        LLMEngine.made.append(self)

    @classmethod
    def from_vllm_config(cls, vllm_config: Config, *, disable_log_stats: bool = False) -> LLMEngine:
        return cls(vllm_config, log_stats=not disable_log_stats)

    def _shut_down(self) -> None:
        self.is_shut_down = True

    def add_request(self, request_id: str, prompt: dict[str, Any], params: SamplingParams) -> None:
        assert request_id not in self.open
        tokens, images = prompt["prompt_token_ids"], {}
        if "multi_modal_data" in prompt:
            tokens, images = self._with_images(tokens, prompt["multi_modal_data"]["image"])
        self.open[request_id] = _Open(tokens, params, images)
        self.requests.append(params)
        self.prompts.append(prompt)

    def _with_images(self, tokens: list[int], images: list[Any]) -> tuple[list[int], dict[str, torch.Tensor]]:
        """The prompt with all placeholders of its images, of which it has one each, and the tensors of the images."""
        processor = AutoProcessor.from_pretrained(self.arguments.model)
        text = self.tokenizer.decode(tokens)
        made = processor(text=[text], images=[images], add_special_tokens=False, return_tensors="pt")
        return made["input_ids"][0].tolist(), {"pixel_values": made["pixel_values"]}

    def abort_request(self, request_ids: Sequence[str]) -> None:
        self.aborted += request_ids
        for request_id in request_ids:
            self.open.pop(request_id)

    def has_unfinished_requests(self) -> bool:
        return bool(self.open)

    def step(self) -> list[RequestOutput]:
        return [self._advance(request_id, one) for request_id, one in list(self.open.items())]

    def _advance(self, request_id: str, one: _Open) -> RequestOutput:
        with torch.no_grad():
            tokens = torch.tensor([one.prompt + one.tokens])
            scores = self.model(tokens, **one.images).logits[0, -1].float().log_softmax(-1)
        token = int(scores.argmax())
        one.tokens.append(token)
        if one.params.logprobs is not None:
            best = scores.topk(max(1, one.params.logprobs)).indices.tolist()[: one.params.logprobs]
            logprobs = {each: Logprob(float(scores[each])) for each in {*best, token}}
            one.logprobs.append(logprobs)
        text = self.tokenizer.decode(one.tokens) if one.params.detokenize else ""
        reason = None
        if token in (one.params.stop_token_ids or ()) or any(stop in text for stop in one.params.stop or ()):
            reason = "stop"
        elif len(one.tokens) >= (one.params.max_tokens or 0):
            reason = "length"
        if reason is not None:
            del self.open[request_id]
        output = CompletionOutput(0, list(one.tokens), one.logprobs or None, reason)
        return RequestOutput(request_id, [output], reason is not None)


def tokens_input(prompt_token_ids: list[int]) -> dict[str, Any]:
    return {"type": "token", "prompt_token_ids": prompt_token_ids}


def tokens_prompt(**fields: Any) -> dict[str, Any]:
    return fields


def modules() -> dict[str, ModuleType]:
    """Module name -> module, for a vLLM that is built for CPUs."""
    LLMEngine.made.clear()
    names = ("vllm", "vllm.distributed", "vllm.inputs", "vllm.platforms")
    found: dict[str, Any] = {name: ModuleType(name) for name in names}
    vllm, vllm.distributed, vllm.inputs, vllm.platforms = found.values()
    vllm.EngineArgs, vllm.SamplingParams, vllm.LLMEngine = EngineArgs, SamplingParams, LLMEngine
    vllm.distributed.cleanup_dist_env_and_memory = lambda: None
    vllm.inputs.tokens_input, vllm.inputs.TokensPrompt = tokens_input, tokens_prompt
    vllm.platforms.current_platform = SimpleNamespace(device_type="cpu")
    return found
