"""What identifies the images of a prompt."""

from __future__ import annotations

import torch

from worker.inference.generation.images.prompt_images import PromptImages, image_id, model_tokens


def test_an_id_follows_from_the_content_and_shape_alone() -> None:
    pixels = torch.arange(24, dtype=torch.float32)
    first = image_id({"pixel_values": pixels.reshape(2, 12), "sizes": torch.tensor([[3, 4]])})
    assert first == image_id({"sizes": torch.tensor([[3, 4]]), "pixel_values": pixels.clone().reshape(2, 12)})
    others = [
        {"pixel_values": pixels.reshape(2, 12), "sizes": torch.tensor([[4, 3]])},
        {"pixel_values": pixels.reshape(3, 8), "sizes": torch.tensor([[3, 4]])},
        {"pixel_values": (pixels + 1e-6).reshape(2, 12).bfloat16(), "sizes": torch.tensor([[3, 4]])},
        {"pixel_values": pixels.flip(0).reshape(2, 12), "sizes": torch.tensor([[3, 4]])},
    ]
    ids = {first, *map(image_id, others)}
    assert len(ids) == 5
    assert all(-(2**128) <= one < -(2**48) for one in ids)


def test_the_model_gets_its_own_placeholder() -> None:
    images = PromptImages(placeholder=9, inputs={}, per_token={})
    assert model_tokens((1, -5, -5, 2), images) == (1, 9, 9, 2)
    assert model_tokens((1, 2), None) == (1, 2)
