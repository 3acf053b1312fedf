"""In which order rows start, and which of them share a forward pass: pure functions of the rows of the chunk."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from worker.inference.generation.continuations import Continuation, Request
from worker.inference.generation.images.prompt_images import Prompt, num_tokens_after_images

_COPIED_PART = 4
"""Number of copied tokens of a shared prefix that count as one computed token, since they cost only memory."""
_UNLIMITED = 2**63
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
    joining: Sequence[Continuation],
    shared: Mapping[Prompt, int],
    *,
    max_tokens: int,
    max_image_bytes: int = _UNLIMITED,
) -> list[list[Continuation]]:
    """Split joining continuations into groups with one shared prefix each; a group is computed in one forward pass.

    The prompts of a group have at most `max_tokens` with padding; equal prompts count once. The tokens of a shared
    prefix are copied, not computed, so that only a part of them counts.

    The images that a group computes have equal shapes and at most `max_image_bytes`. Where a shared prefix has images,
    the prompts of a group have similar lengths: a prompt with padding computes the last tokens of the prefix again, and
    these must not be those of an image.
    """
    groups: list[_Group] = []

    def beginning(one: Continuation) -> Prompt:
        return one.request.prompt[: shared.get(one.request.prompt, 0)]

    def place(one: Continuation) -> tuple[Prompt, int]:
        return beginning(one), len(one.request.prompt) if one.request.images is not None else 0

    for one in sorted(joining, key=place) if shared else joining:
        group = groups[-1] if groups else None
        if group is None or not group.takes(one, beginning(one), max_tokens, max_image_bytes):
            group = _Group(beginning(one))
            groups.append(group)
        group.add(one)
    return [group.members for group in groups]


class _Group:
    """Continuations whose prompts are computed in one forward pass."""

    def __init__(self, beginning: Prompt) -> None:
        self.members: list[Continuation] = []
        self._beginning = beginning
        self._most_padding = num_tokens_after_images(beginning)
        self._has_kept_images = self._most_padding < len(beginning)
        self._prompts: set[Prompt] = set()
        self._longest, self._shortest = 0, _UNLIMITED
        self._image_bytes = 0
        self._image_shape: Hashable = None

    def takes(self, one: Continuation, beginning: Prompt, max_tokens: int, max_image_bytes: int) -> bool:
        """Whether another continuation can join."""
        if beginning != self._beginning:
            return False
        prompt, images = one.request.prompt, one.request.images
        if prompt in self._prompts:
            return True
        longest, shortest = max(self._longest, len(prompt)), min(self._shortest, len(prompt))
        counted = max(longest - len(beginning), longest // _COPIED_PART)
        if (len(self._prompts) + 1) * counted > max_tokens:
            return False
        if self._has_kept_images:
            return longest - shortest <= self._most_padding
        if images is None or self._image_shape is None:
            return True
        return images.shape == self._image_shape and self._image_bytes + images.num_bytes <= max_image_bytes

    def add(self, one: Continuation) -> None:
        """Add a continuation."""
        prompt, images = one.request.prompt, one.request.images
        if images is not None and prompt not in self._prompts:
            self._image_shape, self._image_bytes = images.shape, self._image_bytes + images.num_bytes
        self._prompts.add(prompt)
        self._longest, self._shortest = max(self._longest, len(prompt)), min(self._shortest, len(prompt))
        self.members.append(one)
