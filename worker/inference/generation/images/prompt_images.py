"""The images of a prompt: what identifies them, and the tensors that a model takes for them.

A processor replaces each image of a chat by many equal placeholder tokens, so that prompts about different images of
one size have the same tokens. Here the placeholders of a prompt get a negative id of their own instead, which follows
from the content of all its images: equal prompts have equal images, and what compares or shares prompts needs to know
nothing else. The model's own placeholder token is put back when tensors are made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Prompt = tuple[int, ...]
"""Token ids; the placeholders of images are negative."""

PER_TOKEN = frozenset({"token_type_ids", "mm_token_type_ids"})
"""Outputs of processors that have an entry for each token of the prompt."""
_ID_BYTES = 16
"""So many that nobody finds two images with one id, even on purpose."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptImages:
    """The images of one prompt. Shapes: T tokens of the prompt."""

    placeholder: int
    """The model's own token for a part of an image."""
    inputs: Mapping[str, torch.Tensor]
    """The processor's outputs for the images, on the CPU; those of several prompts are joined along the first axis."""
    per_token: Mapping[str, torch.Tensor]
    """The processor's outputs for each token, (T,) int64."""
    positions: torch.Tensor | None = None
    """Position of each token in time, height and width, (3, T), for models that have such positions."""
    shift: int = 0
    """What is added to the number of a token after the prompt to get its position."""
    opened: tuple[Any, ...] = ()
    """The images themselves, for engines that prepare them on their own."""
    unexpanded: Prompt = ()
    """The prompt with one placeholder for each image, for such engines."""

    @property
    def num_bytes(self) -> int:
        """Memory that the images take on the host."""
        num_pixels: int = sum(image.width * image.height for image in self.opened)
        return sum(tensor.nbytes for tensor in self.inputs.values()) + 3 * num_pixels

    @property
    def shape(self) -> Hashable:
        """Only images of equal shape can be joined."""
        return tuple(sorted((name, tuple(tensor.shape[1:])) for name, tensor in self.inputs.items()))


def image_id(inputs: Mapping[str, torch.Tensor]) -> int:
    """The negative id that stands for these images in a prompt."""
    digest = hashlib.blake2b(digest_size=_ID_BYTES)
    for name in sorted(inputs):
        tensor = inputs[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data if tensor.ndim else str(tensor.item()).encode())
    return -1 - int.from_bytes(digest.digest())


def model_tokens(prompt: Prompt, images: PromptImages | None) -> Prompt:
    """A prompt's tokens as the model knows them."""
    return prompt if images is None else tuple(token if token >= 0 else images.placeholder for token in prompt)


def num_tokens_after_images(tokens: Prompt) -> int:
    """Number of tokens after the last image; all of them if there is no image."""
    if min(tokens, default=0) >= 0:
        return len(tokens)
    return next(place for place, token in enumerate(reversed(tokens)) if token < 0)


def common_length(one: Prompt, other: Prompt, length: int) -> int:
    """How much of the common prefix of two prompts can be computed for both at once.

    Args:
        one: A prompt.
        other: A prompt with the same first tokens.
        length: Number of equal tokens at the beginning.

    Returns:
        `length`, if the prefix contains either no image or all images of both prompts; otherwise, the number of tokens
        before the first image.
    """
    if min(one[:length], default=0) >= 0 or min((*one[length:], *other[length:]), default=0) >= 0:
        return length
    return next(place for place, token in enumerate(one) if token < 0)


def joined(images: Sequence[PromptImages]) -> dict[str, torch.Tensor]:
    """The images of several prompts, in the order of the prompts."""
    names = images[0].inputs if images else ()
    return {name: torch.cat([one.inputs[name] for one in images]) for name in names}
