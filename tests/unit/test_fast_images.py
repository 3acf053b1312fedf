"""Faster ways to prepare images are used only where they give the processor's own values, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image

from jobs.data.rows import Row
from tests.support.task_kit import CPU, load, outputs, same
from tests.support.tiny import tiny_image_classifier
from tests.support.tiny_media import tiny_clip, tiny_owl
from worker.inference.pipelines import open_pipeline
from worker.inference.tasks import joint_embeddings
from worker.models.media.fast_images import PIXELS, OncePerImage, find_fast_images

_random = np.random.default_rng(0)
IMAGES = [
    Image.fromarray(_random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    for height, width in ((1, 1), (1, 90), (64, 48), (20, 333), (700, 301), (31, 32))
]
SQUARE: dict[str, Any] = {"size": {"height": 32, "width": 24}}
EDGE: dict[str, Any] = {"size": {"shortest_edge": 40}, "crop_size": {"height": 36, "width": 36}}


@pytest.mark.parametrize("bytes_to_device", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ViT", SQUARE),
        ("ViT", {**SQUARE, "do_normalize": False, "resample": 0}),
        ("ViT", {**SQUARE, "do_rescale": False, "image_mean": [0.1, 0.2, 0.3]}),
        ("CLIP", EDGE),
        ("CLIP", {**EDGE, "do_center_crop": False}),
        ("Siglip", SQUARE),
        ("Beit", SQUARE),
        ("Segformer", SQUARE),
        ("MobileViT", EDGE),
        ("RTDetr", SQUARE),
        ("DPT", SQUARE),
    ],
)
def test_values_are_the_processors_own(name: str, options: dict[str, Any], *, bytes_to_device: bool) -> None:
    processor = getattr(tf, f"{name}ImageProcessorPil")(**options)
    fast = find_fast_images(processor, CPU, torch.float32, bytes_to_device=bytes_to_device)
    assert fast is not None
    prepare = fast.processor(processor)
    for image in IMAGES:
        expected = processor(images=image, return_tensors="pt")
        for given in (image, [image]):
            found = prepare(images=given, return_tensors="pt")
            assert (found[PIXELS].dtype == torch.uint8) is bytes_to_device
            fast.replace_bytes(found)
            assert found.keys() == expected.keys()
            assert torch.equal(found[PIXELS], expected[PIXELS])
    assert np.array_equal(prepare(IMAGES[0])[PIXELS][0], processor(IMAGES[0])[PIXELS][0])


@pytest.mark.parametrize(
    "processor",
    [
        None,
        tf.WhisperFeatureExtractor(),
        tf.ViTImageProcessorPil(do_resize=False),
        tf.ConvNextImageProcessorPil(size={"shortest_edge": 32}),
        tf.DetrImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64}),
        tf.DPTImageProcessorPil(**SQUARE, keep_aspect_ratio=True),
        tf.DonutImageProcessorPil(**SQUARE),
        tf.PerceiverImageProcessorPil(**SQUARE),
        tf.SuperGlueImageProcessorPil(**SQUARE),
        tf.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_other_processors_are_left_alone(processor: Any) -> None:
    assert find_fast_images(processor, CPU, torch.float32) is None


def test_a_processor_with_another_scale_keeps_its_own_numbers() -> None:
    """EfficientNet moves values after rescaling, which the table of bytes does not know."""
    fast = find_fast_images(tf.EfficientNetImageProcessorPil(**SQUARE), CPU, torch.float32, bytes_to_device=True)
    assert fast is not None
    assert fast.values is None


@pytest.mark.parametrize(
    ("task", "build", "parameters"),
    [
        ("image-classification", tiny_image_classifier, {}),
        ("zero-shot-image-classification", tiny_clip, {"candidate_labels": ["a fox", "code"]}),
        ("zero-shot-object-detection", tiny_owl, {"candidate_labels": ["a fox", "code"], "threshold": 0.0}),
        ("embeddings", tiny_clip, {}),
    ],
)
def test_outputs_are_the_same_with_bytes(
    task: str, build: Callable[[Path], Path], parameters: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    folder = build(tmp_path / "model")
    rows = [Row(index, None, {"image": image}) for index, image in enumerate(IMAGES)]
    expected = outputs(load(task, folder, parameters), rows)
    for module in (open_pipeline, joint_embeddings):
        monkeypatch.setattr(module, "find_fast_images", partial(find_fast_images, bytes_to_device=True))
    task_model = load(task, folder, parameters)
    encoded = task_model.encode(rows)
    features = encoded[0].features
    [first, *_] = features if task == "embeddings" else features.items
    assert first[PIXELS].dtype == torch.uint8
    assert [one.num_tokens for one in encoded] == [
        one.num_tokens for one in load(task, folder, parameters).encode(rows)
    ]
    for found, other in zip(outputs(task_model, rows), expected, strict=True):
        assert np.array_equal(found, other) if task == "embeddings" else same(found, other, tolerance=1e-6)


def test_an_image_is_prepared_once_for_all_its_labels() -> None:
    calls = []
    processor = tf.ViTImageProcessorPil(**SQUARE)
    prepare = OncePerImage(lambda image, **options: calls.append(image) or processor(image, **options))
    for image in (IMAGES[0], IMAGES[1]):
        expected = processor(image, return_tensors="pt")[PIXELS]
        for _ in range(3):
            found = prepare(image, return_tensors="pt").to(torch.float64)
            assert torch.equal(found.pop(PIXELS), expected.double())
    assert calls == [IMAGES[0], IMAGES[1]]
