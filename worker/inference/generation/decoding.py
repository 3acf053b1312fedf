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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from transformers import DynamicCache, PreTrainedModel

from jobs.messages import one_line
from worker.device import is_out_of_memory, is_poisoned
from worker.inference.generation.admission import admission_order, next_to_join, prefill_groups
from worker.inference.generation.constraints import constraints_of
from worker.inference.generation.continuations import Continuation, Request
from worker.inference.generation.generate_alone import ROWS_ALONE, generate_alone, is_same
from worker.inference.generation.generation_engine import FindsStop
from worker.inference.generation.images.prompt_images import Prompt, PromptImages
from worker.inference.generation.prefixes import Beginnings, shared_beginnings, under_rows
from worker.inference.generation.prompt_tensors import prompt_tensors
from worker.inference.generation.rowcache import RowCache, SoloCache
from worker.inference.generation.token_choice import TokenChoice
from worker.models.generation_class import generation_class, rope_index_of
from worker.models.load import ModelFolder, load_weights, memory_bytes
from worker.models.texts.padding import NOTICES, Padding
from worker.models.transformers_internals import is_stateful, makes_own_cache

_PREFILL_TOKENS = {"cpu": 3072, "cuda": 16_384}
"""Most padded tokens of a forward pass over prompts; a longer prompt is computed alone."""
_LEAST_SAVED = {"cpu": 128, "cuda": 4096}
"""Tokens that a shared prefix must save to be worth an additional forward pass."""
_PREFILL_IMAGE_BYTES = {"cpu": 32 * 2**20, "cuda": 256 * 2**20}
"""Most bytes of the images of a forward pass over prompts; a prompt with more is computed alone."""
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
    prepares_images: ClassVar[bool] = False
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
        self._choice = TokenChoice(finds_stop)
        self._accepted = accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._has_planes = rope_index_of(model) is not None
        self._computes_alone = False
        self._options: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in accepted:
            self._options["logits_to_keep"] = 1
        self._makes_cache = makes_own_cache(model)
        self._is_solo = self._makes_cache or is_recurrent(model)
        if not self._is_solo and self._sees_padding():
            logger.warning("%s", NOTICES[Padding.ONE_BY_ONE])
            self._is_solo = True

    @staticmethod
    def load_model(source: ModelFolder, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        """See `GenerationEngine`."""
        return load_weights(source, generation_class(source), task="text-generation", device=device, dtype=dtype)

    def _sees_padding(self) -> bool:
        """Whether padding on the left changes a model's outputs. Models like BART count positions from the first
        column, padding or not, and accept no other positions."""
        try:
            return self._changes_with_padding()
        except Exception as error:
            if "pixel_values" not in self._accepted or is_out_of_memory(error) or is_poisoned(error):
                raise
            logger.warning("the model cannot compute a prompt without images: %s", one_line(error))
            return True

    @torch.inference_mode()
    def _changes_with_padding(self) -> bool:
        num_ids = self._model.config.get_text_config().vocab_size
        short, long = (tuple(7 * token % num_ids for token in range(first, first + _PROBED)) for first in (1, 2))
        short = short[: _PROBED // 2]
        alone_V = self._forward_prompts({short: None}, [0], self._empty(), start=0)[0][0]
        padding = [len(long) - len(short), 0]
        beside_V = self._forward_prompts({short: None, long: None}, padding, self._empty(), start=0)[0][0]
        scale = max(1.0, float(alone_V.abs().max()))
        tolerance = _PROBE_TOLERANCE if self._model.dtype == torch.float32 else _PROBE_TOLERANCE_16_BITS
        return not float((alone_V - beside_V).abs().max()) <= tolerance * scale

    def generate(
        self, requests: Sequence[Request], *, max_tokens: int, max_rows: int, between: Callable[[], None]
    ) -> list[list[Continuation]]:
        """See `GenerationEngine`."""
        results = [self._begun(one) for one in requests]
        if self._computes_alone:
            for one in (each for result in results for each in result):
                generate_alone(self._model, one, self._choice, between)
            return results
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
                limits = {
                    "max_tokens": _PREFILL_TOKENS[self._device.type],
                    "max_image_bytes": _PREFILL_IMAGE_BYTES[self._device.type],
                }
                for group in prefill_groups(joining, shared, **limits):
                    logits_BV = self._prefill(group, cache, beginnings, between)
                    live += group
                    # Only the new rows have logits now; the others get their next token in the next step.
                    live = self._extend(logits_BV, live, cache, start=len(live) - len(group))
            if live:
                between()
                live = self._extend(self._step(live, cache), live, cache, start=0)
        return results

    @torch.inference_mode()
    def check_images(self, requests: Sequence[Request]) -> None:
        """See `GenerationEngine`. Compares what the loop computes for all rows together with `generate` for each alone.

        If they differ, all rows are computed by `generate`, one at a time.
        """
        alone = [self._begun(one)[0] for one in requests]
        tolerance = _PROBE_TOLERANCE if self._model.dtype == torch.float32 else _PROBE_TOLERANCE_16_BITS
        try:
            for one in alone:
                generate_alone(self._model, one, self._choice, between=lambda: None)
            together = self.generate(requests, max_tokens=2**31, max_rows=len(requests), between=lambda: None)
        except Exception as error:
            if is_out_of_memory(error) or is_poisoned(error):
                raise
            reason = one_line(error)
        else:
            if all(is_same(one, beside, tolerance) for one, (beside,) in zip(alone, together, strict=True)):
                return
            reason = "its outputs differ"
        logger.warning("%s: %s", ROWS_ALONE, reason)
        self._computes_alone = True

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
        prompts = {one.request.prompt: one.request.images for one in group}
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        beginning = beginnings.of(group[0].request.prompt)
        if beginning:
            begin = partial(self._begin, group[0].request.images, between)
            prefilled = under_rows(beginnings.kept(beginning, begin), padding)
            beginnings.begun(beginning, len(group))
        else:
            prefilled = self._empty()
        between()
        logits_BV, prefilled = self._forward_prompts(prompts, padding, prefilled, start=len(beginning))
        place = {prompt: index for index, prompt in enumerate(prompts)}
        rows = [place[one.request.prompt] for one in group]
        cache.join(prefilled, rows, [len(one.request.prompt) for one in group])
        return logits_BV[rows]

    def _begin(self, images: PromptImages | None, between: Callable[[], None], beginning: Prompt) -> DynamicCache:
        """Compute a prefix that several prompts share; `images` are those of one of the prompts."""
        between()
        _, kept = self._forward_prompts({beginning: images}, [0], self._empty(), start=0)
        return kept

    def _empty(self) -> DynamicCache | None:
        if self._makes_cache:
            return None
        # Without the model's config all layers keep all tokens, also those with a sliding window. The mask applies the
        # window, and rows can be cut and moved in the same way in all layers.
        return DynamicCache(config=self._model.config) if self._is_solo else DynamicCache()

    def _forward_prompts(
        self,
        prompts: Mapping[Prompt, PromptImages | None],
        padding: Sequence[int],
        cache: DynamicCache | None,
        *,
        start: int,
    ) -> tuple[torch.Tensor, DynamicCache]:
        """Compute prompts, padded on the left, from column `start` on; the cache holds the columns before it.

        Returns:
            (B, V) logits, and the cache with the prompts.
        """
        made = prompt_tensors(
            list(prompts),
            list(prompts.values()),
            padding,
            start=start,
            pad_token=self._pad_token,
            has_planes=self._has_planes,
        )
        images = {
            name: tensor.to(self._device, self._model.dtype if tensor.is_floating_point() else None)
            for name, tensor in made.images.items()
            if name in self._accepted
        }
        tokens, mask, positions = (each.to(self._device) for each in (made.tokens, made.mask, made.positions))
        return self._forward(tokens, mask, positions, cache, **images)

    def _step(self, live: Sequence[Continuation], cache: Cached) -> torch.Tensor:
        """Compute the newest token of every row. Returns (B, V) logits."""
        cache.make_room()
        tokens_B1 = torch.tensor([[one.tokens[-1]] for one in live], device=self._device)
        shifts = [0 if one.request.images is None else one.request.images.shift for one in live]
        places = [[length + shift] for length, shift in zip(cache.lengths, shifts, strict=True)]
        positions = torch.tensor(places, device=self._device)
        if self._has_planes:
            positions = positions.expand(3, -1, -1)
        logits_BV, _ = self._forward(tokens_B1, cache.attention_mask(self._device), positions, cache.cache)
        cache.advance()
        return logits_BV

    def _forward(
        self, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any, **images: torch.Tensor
    ) -> tuple[torch.Tensor, Any]:
        options = {**self._options, **images}
        if self._takes_positions:
            options["position_ids"] = positions
        output = self._model(input_ids=tokens, attention_mask=mask, past_key_values=cache, **options)
        logits_BV: torch.Tensor = output.logits[:, -1].float()
        return logits_BV, output.past_key_values if cache is None else cache

    def _extend(
        self, logits_BV: torch.Tensor, live: list[Continuation], cache: Cached, *, start: int
    ) -> list[Continuation]:
        """Choose the next token of the rows from `start` on, and remove the rows that are done.

        Returns:
            The rows that are not done, in the cache's order.
        """
        self._choice.extend(logits_BV, live[start:])
        done = [row for row, one in enumerate(live) if one.finish_reason is not None]
        return [live[row] for row in cache.leave(done)] if done else live


def is_recurrent(model: PreTrainedModel) -> bool:
    """Whether a model keeps a state other than keys and values."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return is_stateful(model) or not _ATTENTIONS.issuperset(kinds)
