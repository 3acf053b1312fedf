"""In-flight batching: rows are continued together, each leaves when it is done, and waiting rows take its place.

transformers' own `generate_batch` does this over a paged cache. But its requests support no seed, no stop strings and
no top log-probabilities, it cannot be stopped between two steps, and on a CPU it is slower than `generate` over batches
of 16 (`ops/benchmarks/generation.py` measures both). So this loop is used on every device. It requires no more of a
model than `generate` does, and greedy decoding gives the tokens that `generate` gives for each row alone.

Shapes: B rows, T tokens of the longest prompt, V tokens of the vocabulary.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from worker.inference.generation.admission import admission_order, next_to_join, prefill_groups
from worker.inference.generation.constraints import constrain, constraints_of
from worker.inference.generation.continuations import LENGTH, NOT_A_NUMBER, STOP, Continuation, Request, TokenLogprobs
from worker.inference.generation.generation_engine import FindsStop
from worker.inference.generation.prefixes import Beginnings, Prompt, shared_beginnings, under_rows
from worker.inference.generation.rowcache import RowCache, SoloCache
from worker.inference.generation.sampling import choose, penalize
from worker.models.load import ModelFolder, load_weights, memory_bytes
from worker.models.padding import NOTICES, Padding

_PREFILL_TOKENS = {"cpu": 3072, "cuda": 16_384}
"""Most padded tokens of a forward pass over prompts; a longer prompt is computed alone."""
_LEAST_SAVED = {"cpu": 128, "cuda": 4096}
"""Tokens that a shared prefix must save to be worth an additional forward pass."""
_KEPT_PART = 8
"""Prefixes kept for later rows may take 1/`_KEPT_PART` of the cache's tokens."""
_ATTENTIONS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})

_PROBED = 12
"""Number of tokens of the longer of the two prompts that test whether padding changes outputs."""
_PROBE_TOLERANCE, _PROBE_TOLERANCE_16_BITS = 1e-3, 0.05
"""Largest difference by rounding between logits of about 1; a wrong position changes them far more."""

logger = logging.getLogger(__name__)

Cached = RowCache | SoloCache


class DecodingLoop:
    """Stoker's own `GenerationEngine`: rows leave and join after each token.

    The rows of a model with recurrent layers, or whose outputs change with padding, are computed one at a time.
    """

    needs_whole_device: ClassVar[bool] = False
    longest: int | None = None

    def __init__(
        self,
        source: ModelFolder,  # noqa: ARG002 - the weights are in `model`
        model: PreTrainedModel,
        *,
        device: torch.device,  # noqa: ARG002 - the model's own device is used
        pad_token: int,
        finds_stop: FindsStop,
    ) -> None:
        """See `GenerationEngine`."""
        self.memory_bytes = memory_bytes(model)
        self._model = model
        self._device = model.device
        self._pad_token = pad_token
        self._finds_stop = finds_stop
        taken = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in taken
        self._options: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in taken:
            self._options["logits_to_keep"] = 1
        self._makes_cache = makes_cache(model)
        self._is_solo = self._makes_cache or is_recurrent(model)
        if not self._is_solo and self._sees_padding():
            logger.warning("%s", NOTICES[Padding.ONE_BY_ONE])
            self._is_solo = True

    @staticmethod
    def load_model(source: ModelFolder, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        """See `GenerationEngine`."""
        return load_weights(source, AutoModelForCausalLM, task="text-generation", device=device, dtype=dtype)

    @torch.inference_mode()
    def _sees_padding(self) -> bool:
        """Whether padding on the left changes a model's outputs. Models like BART count positions from the first
        column, padding or not, and accept no other positions."""
        num_ids = self._model.config.get_text_config().vocab_size
        short, long = (tuple(7 * token % num_ids for token in range(first, first + _PROBED)) for first in (1, 2))
        short = short[: _PROBED // 2]
        alone_V = self._forward_prompts([short], [0], self._empty(), start=0)[0][0]
        padding = [len(long) - len(short), 0]
        beside_V = self._forward_prompts([short, long], padding, self._empty(), start=0)[0][0]
        scale = max(1.0, float(alone_V.abs().max()))
        tolerance = _PROBE_TOLERANCE if self._model.dtype == torch.float32 else _PROBE_TOLERANCE_16_BITS
        return not float((alone_V - beside_V).abs().max()) <= tolerance * scale

    def generate(
        self, requests: Sequence[Request], *, max_tokens: int, max_rows: int, between: Callable[[], None]
    ) -> list[list[Continuation]]:
        """See `GenerationEngine`."""
        results = [self._begun(one) for one in requests]
        waiting = [one for position in admission_order(requests) for one in results[position]]
        prompts = [one.request.prompt for one in waiting]
        least_saved = _LEAST_SAVED[self._device.type]
        shared = {} if self._is_solo else shared_beginnings(prompts, least_saved=least_saved)
        beginnings = Beginnings(shared, prompts, most_tokens=max_tokens // _KEPT_PART)
        cache = SoloCache() if self._is_solo else RowCache()
        max_rows = 1 if self._is_solo else max_rows
        live: list[Continuation] = []
        while waiting or live:
            joining = next_to_join(waiting, live, max_tokens=max_tokens, max_rows=max_rows)
            if joining:
                waiting = waiting[len(joining) :]
                for group in prefill_groups(joining, shared, max_tokens=_PREFILL_TOKENS[self._device.type]):
                    logits_BV = self._prefill(group, cache, beginnings, between)
                    live += group
                    # Only the new rows have logits now; the others get their next token in the next step.
                    live = self._take_in(logits_BV, live, cache, start=len(live) - len(group))
            if live:
                between()
                live = self._take_in(self._step(live, cache), live, cache, start=0)
        return results

    def close(self) -> None:
        """See `GenerationEngine`. The loop holds tensors only, which are freed with it."""

    def _begun(self, request: Request) -> list[Continuation]:
        """The continuations of a request, with no token yet."""
        constraints = constraints_of(
            self._model.generation_config,
            num_prompt=len(request.prompt),
            max_new_tokens=request.max_new_tokens,
            device=self._device,
        )
        keys = [request.sampling.key(request.row_index, choice) for choice in range(request.num_sequences)]
        return [Continuation(request, key, constraints) for key in keys]

    # -- forward passes

    def _prefill(
        self, group: Sequence[Continuation], cache: Cached, beginnings: Beginnings, between: Callable[[], None]
    ) -> torch.Tensor:
        """Compute prompts with one shared prefix, equal ones once, and add a row for each. Returns (B, V) logits."""
        prompts = list(dict.fromkeys(one.request.prompt for one in group))
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        beginning = beginnings.of(prompts[0])
        if beginning:
            prefilled = under_rows(beginnings.kept(beginning, partial(self._begin, between)), padding)
            beginnings.begun(beginning, len(group))
        else:
            prefilled = self._empty()
        between()
        logits_BV, prefilled = self._forward_prompts(prompts, padding, prefilled, start=len(beginning))
        place = {prompt: index for index, prompt in enumerate(prompts)}
        rows = [place[one.request.prompt] for one in group]
        cache.join(prefilled, rows, [len(one.request.prompt) for one in group])
        return logits_BV[rows]

    def _begin(self, between: Callable[[], None], beginning: Prompt) -> DynamicCache:
        """Compute a prefix that several prompts share."""
        between()
        _, kept = self._forward_prompts([beginning], [0], self._empty(), start=0)
        return kept

    def _empty(self) -> DynamicCache | None:
        if self._makes_cache:
            return None
        # Without the model's config all layers keep all tokens, also those with a sliding window. The mask applies the
        # window, and rows can be cut and moved in the same way in all layers.
        return DynamicCache(config=self._model.config) if self._is_solo else DynamicCache()

    def _forward_prompts(
        self, prompts: Sequence[Prompt], padding: Sequence[int], cache: DynamicCache | None, *, start: int
    ) -> tuple[torch.Tensor, DynamicCache]:
        """Compute prompts, padded on the left, from column `start` on; the cache holds the columns before it.

        Returns:
            (B, V) logits, and the cache with the prompts.
        """
        tokens_BT = torch.tensor([[self._pad_token] * pad + [*p] for pad, p in zip(padding, prompts, strict=True)])
        mask_BT = torch.tensor([[0] * pad + [1] * len(p) for pad, p in zip(padding, prompts, strict=True)])
        positions_BT = (mask_BT.cumsum(dim=-1) - 1).clamp(min=0)
        tokens, positions = (each[:, start:].to(self._device) for each in (tokens_BT, positions_BT))
        return self._forward(tokens, mask_BT.to(self._device), positions, cache)

    def _step(self, live: Sequence[Continuation], cache: Cached) -> torch.Tensor:
        """Compute the newest token of every row. Returns (B, V) logits."""
        cache.make_room()
        tokens_B1 = torch.tensor([[one.tokens[-1]] for one in live], device=self._device)
        positions_B1 = torch.tensor([[length] for length in cache.lengths], device=self._device)
        logits_BV, _ = self._forward(tokens_B1, cache.attention_mask(self._device), positions_B1, cache.cache)
        cache.advance()
        return logits_BV

    def _forward(
        self, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any
    ) -> tuple[torch.Tensor, Any]:
        options = {**self._options, "position_ids": positions} if self._takes_positions else self._options
        output = self._model(input_ids=tokens, attention_mask=mask, past_key_values=cache, **options)
        logits_BV: torch.Tensor = output.logits[:, -1].float()
        return logits_BV, output.past_key_values if cache is None else cache

    # -- tokens

    def _take_in(
        self, logits_BV: torch.Tensor, live: list[Continuation], cache: Cached, *, start: int
    ) -> list[Continuation]:
        """Choose the next token of the rows from `start` on, and remove the rows that are done.

        Returns:
            The rows that are not done, in the cache's order.
        """
        rows = live[start:]
        samplings = [one.request.sampling for one in rows]
        seen = _Seen(rows)
        allowed_BV = constrain(penalize(logits_BV, samplings, seen), [one.constraints for one in rows], seen)
        tokens_B = choose(allowed_BV, samplings, [one.key for one in rows], [len(one.tokens) for one in rows])
        self._note_logprobs(logits_BV, tokens_B, rows)
        broken = logits_BV.amax(dim=-1).isnan().tolist()
        for one, token, is_broken in zip(rows, tokens_B.tolist(), broken, strict=True):
            one.tokens.append(token)
            one.finish_reason = NOT_A_NUMBER if is_broken else self._finish_reason(one, token)
        done = [row for row, one in enumerate(live) if one.finish_reason is not None]
        return [live[row] for row in cache.leave(done)] if done else live

    def _finish_reason(self, one: Continuation, token: int) -> str | None:
        if token in one.request.end_tokens:
            return STOP
        if one.request.stop and self._finds_stop(one.request, one.tokens):
            return STOP
        return LENGTH if len(one.tokens) >= one.request.max_new_tokens else None

    def _note_logprobs(self, logits_BV: torch.Tensor, tokens_B: torch.Tensor, rows: Sequence[Continuation]) -> None:
        asked = [row for row, one in enumerate(rows) if one.request.top_logprobs is not None]
        if not asked:
            return
        logprobs_AV = logits_BV[asked].log_softmax(dim=-1)
        chosen = logprobs_AV.gather(-1, tokens_B[asked][:, None])[:, 0].tolist()
        most = min(max(rows[row].request.top_logprobs or 0 for row in asked), logprobs_AV.shape[-1])
        best = logprobs_AV.topk(most, dim=-1)
        values, tokens = best.values.tolist(), best.indices.tolist()
        for place, row in enumerate(asked):
            count = rows[row].request.top_logprobs
            top = tuple(zip(tokens[place][:count], values[place][:count], strict=True))
            rows[row].logprobs.append(TokenLogprobs(chosen[place], top))


class _Seen(Sequence[Sequence[int]]):
    """Prompt and generated tokens of each row, concatenated only when a row is accessed."""

    def __init__(self, rows: Sequence[Continuation]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        one = self._rows[row]
        return [*one.request.prompt, *one.tokens]


def makes_cache(model: PreTrainedModel) -> bool:
    """Whether a model accepts only its own kind of cache, which it creates when it gets none (MiniMax)."""
    return not model._supports_default_dynamic_cache()


def is_recurrent(model: PreTrainedModel) -> bool:
    """Whether a model keeps a state other than keys and values."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return bool(getattr(model, "_is_stateful", False)) or not _ATTENTIONS.issuperset(kinds)
