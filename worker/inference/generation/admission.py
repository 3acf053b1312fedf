"""In which order rows start, and which of them share a forward pass: pure functions of the rows of the chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worker.inference.generation.continuations import Continuation, Request
from worker.inference.generation.prefixes import Prompt

_COPIED_PART = 4
"""Number of copied tokens of a shared prefix that count as one computed token, since they cost only memory."""
_JOIN_PART = 8
"""Prompts wait until there is one per this number of running rows, since each prefill delays all running rows."""


def admission_order(requests: Sequence[Request]) -> list[int]:
    """The order in which requests start: long ones first, and requests of similar length sorted by prompt.

    The longest row sets how many columns all rows attend to, and a long row that starts last would finish alone.
    Lengths are compared by powers of two. Sorting by prompt puts equal prompts and shared prefixes side by side.
    """

    def rank(position: int) -> tuple[int, tuple[int, ...], int]:
        one = requests[position]
        return -one.num_tokens.bit_length(), one.prompt, position

    return sorted(range(len(requests)), key=rank)


def next_to_join(
    waiting: Sequence[Continuation], live: Sequence[Continuation], *, max_tokens: int, max_rows: int
) -> list[Continuation]:
    """The first waiting continuations that join now.

    As many join as fit beside the running ones, each counted with the most tokens that it may reach. None join while
    they are too few to be worth the delay of the running ones.

    Args:
        waiting: Continuations in the order in which they start.
        live: Running continuations.
        max_tokens: Most tokens of all rows, each counted as the longest of them.
        max_rows: Most rows.
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
    """Split joining continuations into groups with one shared prefix each; a group is computed in one forward pass.

    The prompts of a group have at most `max_tokens` with padding; equal prompts count once. The tokens of a shared
    prefix are copied, not computed, so that only a part of them counts.
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
