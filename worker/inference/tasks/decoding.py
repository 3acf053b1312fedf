"""In-flight batching: rows are continued together, each leaves when it is done, and waiting ones take its place.

transformers' own `generate_batch` does this over a paged cache. But its requests can have neither a seed nor stop
strings nor the likeliest other tokens, it cannot be stopped between two steps, and on a CPU it is slower than
`generate` over batches of 16 (`ops/benchmarks/generation.py` measures both). So this loop is our own, on every device.
It asks of a model no more than `generate` does, and greedy decoding gives the tokens that `generate` gives for each row
alone.

Shapes: B rows, T tokens of the longest prompt, V tokens of the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from worker.inference.tasks.rowcache import RowCache, SoloCache
from worker.inference.tasks.sampling import Sampling, choose, penalize

_PREFILL_TOKENS = {"cpu": 3072, "cuda": 16_384}
"""Most padded tokens of a forward pass over prompts; a single longer one has its own."""
_JOIN_PART = 8
"""Prompts wait until they are this part of the rows at work: each forward pass over prompts holds all of those up."""

_ATTENTIONS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})

STOP, LENGTH, NOT_A_NUMBER = "stop", "length", "not_a_number"
"""Why a continuation ended; the last one has no text."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be generated for one row."""

    row_index: int
    prompt: tuple[int, ...]
    max_new_tokens: int
    """What fits into the model's context, at most."""
    sampling: Sampling
    num_choices: int = 1
    end_tokens: frozenset[int] = frozenset()
    """Each of them ends the row, and is not in its text."""
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    """How many of the likeliest tokens are told with each token's log-probability; None: not even that one."""
    full_text: bool = False
    """Whether the result repeats the prompt."""
    continues: bool = False
    """Whether the text goes on with the last message of a chat."""

    @property
    def num_sequences(self) -> int:
        """Continuations to compute: without a draw, all choices are the same."""
        return 1 if self.sampling.is_greedy else self.num_choices

    @property
    def num_tokens(self) -> int:
        """The most tokens that a continuation may have in the cache, prompt included."""
        return len(self.prompt) + self.max_new_tokens


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of the probabilities that the model itself gave, before any of the row's parameters."""

    logprob: float
    """Of the token that was chosen."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens, best first."""


@dataclass(slots=True)
class Continuation:
    """What was generated of one choice of a request."""

    request: Request
    key: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None


Cached = RowCache | SoloCache


class Decoder:
    """A model that goes on with rows, some leaving and some joining after each token."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        pad_token: int,
        finds_stop: Callable[[Request, Sequence[int]], bool],
    ) -> None:
        """
        Args:
            model: a decoder. Of one with recurrent layers, rows are computed one at a time.
            pad_token: any token that the model has.
            finds_stop: whether a stop string of a request is in the text of its tokens so far, the last of them new.
        """
        self._model = model
        self._device = model.device
        self._pad_token = pad_token
        self._finds_stop = finds_stop
        self._is_solo = is_recurrent(model)
        taken = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in taken
        self._options: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in taken:
            self._options["logits_to_keep"] = 1

    def generate(
        self, requests: Sequence[Request], *, max_tokens: int, max_rows: int, between: Callable[[], None]
    ) -> list[list[Continuation]]:
        """Go on with every request until it is done.

        Args:
            requests: at least one.
            max_tokens: of rows at work times the longest of them; a row that has more alone is computed alone.
            max_rows: most rows at work.
            between: called before each forward pass; what it raises ends everything.

        Returns:
            The continuations of each request, in order.
        """
        results = [
            [Continuation(one, one.sampling.key(one.row_index, choice)) for choice in range(one.num_sequences)]
            for one in requests
        ]
        waiting = [one for position in admission_order(requests) for one in results[position]]
        cache = SoloCache() if self._is_solo else RowCache()
        max_rows = 1 if self._is_solo else max_rows
        live: list[Continuation] = []
        while waiting or live:
            joining = next_to_join(waiting, live, max_tokens=max_tokens, max_rows=max_rows)
            if joining:
                waiting = waiting[len(joining) :]
                for group in prefill_groups(joining, max_tokens=_PREFILL_TOKENS[self._device.type]):
                    between()
                    logits_BV = self._prefill(group, cache)
                    live += group
                    # The newest rows only: the others wait for their next token.
                    live = self._take_in(logits_BV, live, cache, start=len(live) - len(group))
            if live:
                between()
                live = self._take_in(self._step(live, cache), live, cache, start=0)
        return results

    # -- forward passes

    def _prefill(self, group: Sequence[Continuation], cache: Cached) -> torch.Tensor:
        """Compute prompts, equal ones once, and add a row for each continuation. Returns (B, V) logits."""
        prompts = list(dict.fromkeys(one.request.prompt for one in group))
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        tokens_BT = torch.tensor([[self._pad_token] * pad + [*p] for pad, p in zip(padding, prompts, strict=True)])
        mask_BT = torch.tensor([[0] * pad + [1] * len(p) for pad, p in zip(padding, prompts, strict=True)])
        positions_BT = (mask_BT.cumsum(dim=-1) - 1).clamp(min=0)
        # Without the model's config all layers keep everything, those with a sliding window too: as the mask keeps to
        # the window, rows can be cut and moved alike in all of them.
        prefilled = DynamicCache(config=self._model.config) if self._is_solo else DynamicCache()
        logits_BV = self._forward(
            tokens_BT.to(self._device), mask_BT.to(self._device), positions_BT.to(self._device), prefilled
        )
        place = {prompt: index for index, prompt in enumerate(prompts)}
        rows = [place[one.request.prompt] for one in group]
        cache.join(prefilled, rows, [len(one.request.prompt) for one in group])
        return logits_BV[rows]

    def _step(self, live: Sequence[Continuation], cache: Cached) -> torch.Tensor:
        """Compute the newest token of every row. Returns (B, V) logits."""
        cache.make_room()
        tokens_B1 = torch.tensor([[one.tokens[-1]] for one in live], device=self._device)
        positions_B1 = torch.tensor([[length] for length in cache.lengths], device=self._device)
        logits_BV = self._forward(tokens_B1, cache.attention_mask(self._device), positions_B1, cache.cache)
        cache.advance()
        return logits_BV

    def _forward(self, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        options = {**self._options, "position_ids": positions} if self._takes_positions else self._options
        output = self._model(input_ids=tokens, attention_mask=mask, past_key_values=cache, **options)
        logits_BV: torch.Tensor = output.logits[:, -1].float()
        return logits_BV

    # -- tokens

    def _take_in(
        self, logits_BV: torch.Tensor, live: list[Continuation], cache: Cached, *, start: int
    ) -> list[Continuation]:
        """Choose the next token of the rows from `start` on; those that are done leave.

        Returns:
            The rows that go on, in the cache's order.
        """
        rows = live[start:]
        samplings = [one.request.sampling for one in rows]
        penalized_BV = penalize(logits_BV, samplings, _Seen(rows))
        tokens_B = choose(penalized_BV, samplings, [one.key for one in rows], [len(one.tokens) for one in rows])
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
    """Prompt and tokens of each row, put together only for those that are asked for."""

    def __init__(self, rows: Sequence[Continuation]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        one = self._rows[row]
        return [*one.request.prompt, *one.tokens]


def is_recurrent(model: PreTrainedModel) -> bool:
    """Whether a model keeps a state that is not keys and values."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return bool(getattr(model, "_is_stateful", False)) or not _ATTENTIONS.issuperset(kinds)


# -- pure decisions --------------------------------------------------------------------------------------------------


def admission_order(requests: Sequence[Request]) -> list[int]:
    """The order in which requests are begun: long ones first, and those of similar length by their shared prefix.

    The longest rows set the width of what all of them attend to, and one that is begun last would end alone. Lengths
    are taken by powers of two, and the order inside each is the prompts' own, so that equal ones stand side by side.
    """

    def rank(position: int) -> tuple[int, tuple[int, ...], int]:
        one = requests[position]
        return -one.num_tokens.bit_length(), one.prompt, position

    return sorted(range(len(requests)), key=rank)


def next_to_join(
    waiting: Sequence[Continuation], live: Sequence[Continuation], *, max_tokens: int, max_rows: int
) -> list[Continuation]:
    """How many of those that wait, from the first on, join now.

    As many as fit beside those at work, counted by the most tokens that each may come to; none while they are too few
    to hold the others up for.
    """
    longest = max((one.request.num_tokens for one in live), default=0)
    num_rows = len(live)
    joining: list[Continuation] = []
    for one in waiting:
        longest, num_rows = max(longest, one.request.num_tokens), num_rows + 1
        if num_rows > 1 and (num_rows > max_rows or num_rows * longest > max_tokens):
            break
        joining.append(one)
    is_worth_it = not live or len(joining) >= min(len(waiting), max(1, len(live) // _JOIN_PART))
    return joining if is_worth_it else []


def prefill_groups(joining: Sequence[Continuation], *, max_tokens: int) -> list[list[Continuation]]:
    """Cut those that join into groups whose prompts, padded and equal ones counted once, have at most `max_tokens`."""
    groups: list[list[Continuation]] = []
    prompts: set[tuple[int, ...]] = set()
    for one in joining:
        prompts.add(one.request.prompt)
        if not groups or len(prompts) * max(map(len, prompts)) > max_tokens:
            groups.append([])
            prompts = {one.request.prompt}
        groups[-1].append(one)
    return groups
