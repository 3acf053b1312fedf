"""Rows of the tasks that run through their pipelines: several shapes, and twins of one shape with other content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from tests.support.tiny import SENTENCES

Values = Mapping[str, Any]
_random = np.random.default_rng(0)


def _image(width: int, height: int) -> Image.Image:
    # Blocks rather than noise, so that the order of two scores does not depend on the last bit.
    blocks = _random.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width])


def _sound(num_samples: int) -> np.ndarray:
    return (_random.standard_normal(num_samples) * 0.1).astype(np.float32)


IMAGES = [_image(40, 30), _image(64, 80), _image(33, 32), _image(40, 30), _image(64, 80)]
SOUNDS = [_sound(size) for size in (4000, 6000, 4000, 5000, 6000)]
LABELS = {"candidate_labels": ["a quick fox", "code that raises"]}
"""A tiny CLIP takes the vector of the token with the largest id, which must not be in its template, as with 'a fox'."""
TWIN = SENTENCES[0].replace("fox", "dog").replace("dog.", "fox.")  # other words, the same number of tokens
TEXTS = [SENTENCES[0], SENTENCES[1], TWIN, "x", SENTENCES[5]]
WORDS = [SENTENCES[0].split(), SENTENCES[1].split(), TWIN.split(), (SENTENCES[7] * 6).split()]


def _of(name: str, values: Sequence[Any]) -> list[Values]:
    return [{name: value} for value in values]


IMAGE_ROWS = _of("image", IMAGES)
SOUND_ROWS = _of("audio", SOUNDS)
TEXT_ROWS = _of("text", TEXTS)
SPOKEN_ROWS = _of("audio", [_sound(size) for size in (16_000, 30_000, 16_000)])
LONG_ROWS = [*SPOKEN_ROWS, *_of("audio", [_sound(60_000), _sound(70_000)])]
LABELLED_IMAGES = [*IMAGE_ROWS, {"image": IMAGES[0], "candidate_labels": ["one", "two", "three"]}]
LABELLED_SOUNDS = [*SOUND_ROWS, {"audio": SOUNDS[0], "candidate_labels": ["one", "two", "three"]}]
DOCUMENTS = [
    {
        "image": IMAGES[0],
        "question": question,
        "word_boxes": [[word, [i, i, i + 9, i + 9]] for i, word in enumerate(words)],
    }
    for question, words in zip(("who?", "what is it", "who?", "where"), WORDS, strict=True)
]
TABLES = [
    {"table": {"name": ["ada", "bob"], "age": ["1", "2"]}, "query": "how old"},
    {"table": {"name": ["ada", "bob"], "age": ["1", "2"]}, "query": "name it"},
    {"table": {"name": ["bob", "ada"], "age": ["3", "4"]}, "query": "how old"},
    {"table": {"a": ["x", "y", "z"]}, "query": "the sum"},
]
PAIRS = [{"image": IMAGES[one], "image_pair": IMAGES[other]} for one, other in ((0, 1), (2, 3), (1, 4), (3, 0))]
CAPTIONS = [
    {"image": image, "text": text}
    for image, text in zip(
        IMAGES, ("<image> a fox", "<image> a dog", "<image> the lazy dog", "<image> a fox", "x <image>"), strict=True
    )
]
CHATS = [
    {"image": image, "text": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]}
    for image, text in zip(IMAGES, ("what?", "what?", "a longer question", "who?", "what?"), strict=True)
]
BEGUN_CHATS = [
    {**row, "text": [*row["text"], {"role": "assistant", "content": [{"type": "text", "text": "It is"}]}]}
    for row in CHATS
]
SPOKEN_TEXTS = _of("text", ["hello there", "hi", "hallo there"])
_CHOICE = {"type": "choice", "instructions": "How is it?", "criteria": {"good": "happy", "bad": "angry"}}
DECISIONS = [{"state": text, "questions": {"mood": _CHOICE}} for text in ("charged twice", "all is well")]
