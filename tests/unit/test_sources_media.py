"""Encoded images become pictures where Pillow is there; without it the user is told what is missing."""

from __future__ import annotations

import importlib.util
import io

import pytest

from jobs.errors import InvalidInput
from jobs.rows import RowError
from jobs.sources.media import media_value


def test_paths_urls_and_sounds_pass_as_they_are() -> None:
    assert media_value("image", "https://example.org/a.png") == "https://example.org/a.png"
    assert media_value("image", {"bytes": None, "path": "a.png"}) == "a.png"
    assert media_value("audio", {"bytes": b"RIFF", "path": "a.wav"}) == b"RIFF"
    assert media_value("audio", {"array": [0.0], "sampling_rate": 8000}) == {"array": [0.0], "sampling_rate": 8000}


@pytest.mark.skipif(importlib.util.find_spec("PIL") is not None, reason="Pillow is installed")
def test_encoded_images_without_pillow_are_one_clear_sentence() -> None:
    with pytest.raises(InvalidInput, match="Pillow"):
        media_value("image", b"\x89PNG")


def test_encoded_images_become_pictures_and_broken_ones_row_errors() -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    encoded = io.BytesIO()
    image.new("RGB", (3, 2), "red").save(encoded, "PNG")
    picture = media_value("image", {"bytes": encoded.getvalue(), "path": None})
    assert picture.size == (3, 2)
    broken = media_value("image", b"not an image")
    assert isinstance(broken, RowError)
    assert broken.code == "invalid_image"
