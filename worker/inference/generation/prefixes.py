"""Prefixes that prompts share: which are worth computing once, and copies of their keys and values for each row.

The prompts of a chunk often share a prefix: a system prompt, or a document with many questions. What is shared depends
only on the prompts of the chunk, so that the same chunk is computed in the same way every time.

Shapes: B rows, H heads, P tokens of a prefix, D dimensions of a head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from transformers import DynamicCache

from worker.inference.generation.images.prompt_images import Prompt, common_length

_LEAST_TOKENS = 16
"""Shorter prefixes (such as a chat template's first words) are ignored."""


def shared_beginnings(prompts: Iterable[Prompt], *, least_saved: int) -> dict[Prompt, int]:
    """Find groups of prompts whose shared prefix is worth computing once.

    Sorted prompts are added to a group one by one, as long as at least half of its prefix stays shared. A prompt that
    shares only a few words with the others would reduce the prefix of all of them to those words.

    Args:
        prompts: The prompts of one chunk; equal ones count once.
        least_saved: Tokens that a group must save, since computing its prefix takes an additional forward pass.

    Returns:
        Prompt -> length of its group's prefix in tokens, at least one less than each prompt of the group has.
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
    """Length of the prefix that two prompts share, without the last token of either, which must be computed. It has no
    image or all images of both, so that it never ends inside an image."""
    most = min(len(one) - 1, len(other) - 1, at_most)
    if one[:most] != other[:most]:
        most = next(place for place in range(most) if one[place] != other[place])
    return common_length(one, other, most)


def under_rows(beginning: DynamicCache, padding: Sequence[int]) -> DynamicCache:
    """Copy a prefix's keys and values to several rows, each shifted right by its padding.

    Args:
        beginning: Cache of one row, (1, H, P, D) in each layer.
        padding: Number of free columns before each row. What no longer fits into P columns is cut off at the end; the
            caller must compute those tokens again.

    Returns:
        Cache with (B, H, P, D) in each layer; the values in the free columns are finite and must be masked.
    """
    cache = DynamicCache()
    for index, layer in enumerate(beginning.layers):
        columns_P = torch.arange(layer.keys.shape[2], device=layer.keys.device)
        source_BP = (columns_P[None, :] - torch.tensor(padding, device=columns_P.device)[:, None]).clamp(min=0)
        keys, values = (kept[0][:, source_BP].transpose(0, 1) for kept in (layer.keys, layer.values))
        cache.update(keys, values, index)
    return cache


class Beginnings:
    """Keys and values of a chunk's shared prefixes, each kept until its last row has started or space runs out."""

    def __init__(self, shared: Mapping[Prompt, int], prompts: Iterable[Prompt], *, most_tokens: int) -> None:
        """
        Args:
            shared: What `shared_beginnings` returned.
            prompts: Prompts of all rows that will start, duplicates included.
            most_tokens: Most tokens of all kept prefixes together; a longer prefix is kept alone.
        """
        self._shared = shared
        self._most_tokens = most_tokens
        self._num_waiting = Counter(self.of(prompt) for prompt in prompts)
        self._kept: dict[Prompt, DynamicCache] = {}

    def of(self, prompt: Prompt) -> Prompt:
        """The prefix that a prompt shares with others; empty if it shares none."""
        return prompt[: self._shared.get(prompt, 0)]

    def kept(self, beginning: Prompt, compute: Callable[[Prompt], DynamicCache]) -> DynamicCache:
        """The keys and values of a prefix, computed if they are not kept."""
        found = self._kept.pop(beginning, None)
        while self._kept and len(beginning) + sum(map(len, self._kept)) > self._most_tokens:
            del self._kept[next(iter(self._kept))]  # the least recently used one
        self._kept[beginning] = compute(beginning) if found is None else found
        return self._kept[beginning]

    def begun(self, beginning: Prompt, num_rows: int) -> None:
        """Count rows that have started; after the last one, the prefix's keys and values are dropped."""
        self._num_waiting[beginning] -= num_rows
        if not self._num_waiting[beginning]:
            self._kept.pop(beginning, None)
