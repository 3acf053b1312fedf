"""Which rows are begun when, and which of them in one forward pass. Pure: depends on the chunk's own rows only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worker.inference.generation.continuations import Continuation, Request
from worker.inference.generation.prefixes import Prompt

_COPIED_PART = 4
"""So many tokens that are copied from a shared beginning count as one that is computed: they cost memory alone."""
_JOIN_PART = 8
"""Prompts wait until they are this part of the rows at work: each forward pass over prompts holds all of those up."""


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


def prefill_groups(
    joining: Sequence[Continuation], shared: Mapping[Prompt, int], *, max_tokens: int
) -> list[list[Continuation]]:
    """Cut those that join into groups with one beginning each, that are computed in one forward pass each.

    Their prompts, padded and equal ones counted once, have at most `max_tokens`. Those of a shared beginning are not
    computed, but are copied, and count for a part of themselves.
    """
    groups: list[list[Continuation]] = []
    prompts: set[Prompt] = set()
    group_beginning: Prompt = ()

    def beginning(one: Continuation) -> Prompt:
        return one.request.prompt[: shared.get(one.request.prompt, 0)]

    for one in sorted(joining, key=beginning) if shared else joining:
        prompts.add(one.request.prompt)
        longest = max(map(len, prompts))
        counted = max(longest - len(group_beginning), longest // _COPIED_PART)
        if not groups or beginning(one) != group_beginning or len(prompts) * counted > max_tokens:
            groups.append([])
            prompts, group_beginning = {one.request.prompt}, beginning(one)
        groups[-1].append(one)
    return groups
