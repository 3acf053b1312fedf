"""Beginnings that prompts have in common: which are worth computing once, and their keys and values under each row.

A chunk's prompts often begin alike: a system prompt, a document with many questions. What is shared is decided from the
prompts of the chunk alone, so that the same chunk is computed in the same way every time.

Shapes: B rows, H heads, P tokens of a beginning, D dimensions of a head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from transformers import DynamicCache

Prompt = tuple[int, ...]

_LEAST_TOKENS = 16
"""Shorter beginnings (a chat template's first words) are not looked at."""


def shared_beginnings(prompts: Iterable[Prompt], *, least_saved: int) -> dict[Prompt, int]:
    """How many of its first tokens a prompt shares with others, for those with which that pays.

    Sorted prompts are taken into a group one by one, as long as at least half of what it shares stays shared: one that
    begins like the others for a few words only would make all of them share no more than those.

    Args:
        prompts: of one chunk; equal ones count once.
        least_saved: tokens that a group must save; computing its beginning is a forward pass more.

    Returns:
        Prompt -> length of its group's beginning, at least one token less than each prompt of the group has.
    """
    shared: dict[Prompt, int] = {}
    group: list[Prompt] = []
    length = 0

    def close() -> None:
        if length * (len(group) - 1) >= least_saved:
            shared.update(dict.fromkeys(group, length))

    for prompt in sorted(set(prompts)):
        common = _common(group[-1], prompt, at_most=length or len(prompt)) if group else 0
        if common >= max(_LEAST_TOKENS, length / 2):
            length = common
        else:
            close()
            group, length = [], 0
        group.append(prompt)
    close()
    return shared


def _common(one: Prompt, other: Prompt, *, at_most: int) -> int:
    """Tokens that two prompts begin with alike; at least the last one of each is left to be computed."""
    most = min(len(one) - 1, len(other) - 1, at_most)
    if one[:most] == other[:most]:
        return most
    return next(place for place in range(most) if one[place] != other[place])


def under_rows(beginning: DynamicCache, padding: Sequence[int]) -> DynamicCache:
    """A beginning's keys and values for several rows, each moved to the right.

    Args:
        beginning: of one row, (1, H, P, D) in each layer.
        padding: columns that are left free before each row; what of it does not fit into P columns any more is cut off
            at its end, and the model is to be given those tokens.

    Returns:
        (B, H, P, D) in each layer; what stands in the free columns is finite, and to be masked out.
    """
    cache = DynamicCache()
    for index, layer in enumerate(beginning.layers):
        columns_P = torch.arange(layer.keys.shape[2], device=layer.keys.device)
        source_BP = (columns_P[None, :] - torch.tensor(padding, device=columns_P.device)[:, None]).clamp(min=0)
        keys, values = (kept[0][:, source_BP].transpose(0, 1) for kept in (layer.keys, layer.values))
        cache.update(keys, values, index)
    return cache


class Beginnings:
    """The keys and values of a chunk's shared beginnings, each kept until its last row has begun or room is short."""

    def __init__(self, shared: Mapping[Prompt, int], prompts: Iterable[Prompt], *, most_tokens: int) -> None:
        """
        Args:
            shared: from `shared_beginnings`.
            prompts: of all rows that will begin, equal ones as often as they come.
            most_tokens: of all that are kept; a longer one is kept alone.
        """
        self._shared = shared
        self._most_tokens = most_tokens
        self._num_waiting = Counter(self.of(prompt) for prompt in prompts)
        self._kept: dict[Prompt, DynamicCache] = {}

    def of(self, prompt: Prompt) -> Prompt:
        """What a prompt shares with others; empty where that is nothing."""
        return prompt[: self._shared.get(prompt, 0)]

    def kept(self, beginning: Prompt, compute: Callable[[Prompt], DynamicCache]) -> DynamicCache:
        """A beginning's keys and values, computed where they are not kept."""
        found = self._kept.pop(beginning, None)
        while self._kept and len(beginning) + sum(map(len, self._kept)) > self._most_tokens:
            del self._kept[next(iter(self._kept))]  # the one that was used the longest time ago
        self._kept[beginning] = compute(beginning) if found is None else found
        return self._kept[beginning]

    def begun(self, beginning: Prompt, num_rows: int) -> None:
        """So many of its rows have begun; with the last one its keys and values are dropped."""
        self._num_waiting[beginning] -= num_rows
        if not self._num_waiting[beginning]:
            self._kept.pop(beginning, None)
