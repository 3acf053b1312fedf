"""Images of unusual kinds are opened as transformers opens them; broken and huge ones are row errors."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from transformers.image_utils import load_image

from jobs.config.settings import Settings
from jobs.data.rows import RowError
from worker.models.media.open_media import open_media

_random = np.random.default_rng(0)
COLORS = Image.fromarray(_random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
OTHER = Image.fromarray(_random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
ALPHA = Image.fromarray(_random.integers(0, 256, (24, 32, 4), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def turned(orientation: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(COLORS, kind, exif=exif)


def opened(data: bytes, **settings: Any) -> Any:
    return open_media("image", data, Settings(input_roots=["/"], **settings))


@pytest.mark.parametrize(
    "data",
    [
        *(pytest.param(turned(orientation), id=f"turned-{orientation}") for orientation in range(1, 9)),
        pytest.param(turned(6, "PNG"), id="turned-png"),
        pytest.param(encoded(COLORS.convert("CMYK"), "JPEG"), id="cmyk"),
        pytest.param(encoded(COLORS.convert("CMYK"), "TIFF"), id="cmyk-tiff"),
        pytest.param(encoded(COLORS.convert("YCbCr"), "TIFF"), id="ycbcr"),
        pytest.param(encoded(COLORS.convert("LAB"), "TIFF"), id="lab"),
        pytest.param(encoded(COLORS.quantize(16)), id="palette"),
        pytest.param(encoded(COLORS.quantize(16), transparency=3), id="palette-transparent"),
        pytest.param(encoded(COLORS.convert("L")), id="grey"),
        pytest.param(encoded(ALPHA.convert("LA")), id="grey-alpha"),
        pytest.param(encoded(COLORS.convert("1")), id="1-bit"),
        pytest.param(encoded(ALPHA), id="alpha"),
        pytest.param(encoded(ALPHA, "WEBP", lossless=True), id="alpha-webp"),
        pytest.param(encoded(COLORS, transparency=(1, 2, 3)), id="transparent-color"),
        pytest.param(encoded(COLORS, "GIF", save_all=True, append_images=[OTHER]), id="animation-gif"),
        pytest.param(encoded(COLORS, "PNG", save_all=True, append_images=[OTHER]), id="animation-png"),
        pytest.param(encoded(COLORS, "WEBP", save_all=True, append_images=[OTHER], lossless=True), id="animation-webp"),
        pytest.param(encoded(COLORS, "JPEG", progressive=True), id="progressive"),
        pytest.param(encoded(COLORS, "BMP"), id="bmp"),
    ],
)
def test_unusual_images_are_those_of_transformers(data: bytes) -> None:
    found, expected = opened(data), load_image(Image.open(io.BytesIO(data)))
    assert found.mode == expected.mode == "RGB"
    assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_an_image_that_a_row_holds_is_not_changed() -> None:
    given = Image.open(io.BytesIO(turned(6)))
    assert opened(given).size == (24, 32)
    assert given.size == (32, 24)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_images_of_16_bits_are_scaled(kind: str) -> None:
    ramp = np.arange(0, 65_536, 257, dtype=np.uint16).reshape(16, 16)
    assert np.array_equal(np.asarray(opened(encoded(Image.fromarray(ramp), kind)))[..., 0].reshape(-1), np.arange(256))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_images_of_32_bits_are_refused(mode: str) -> None:
    found = opened(encoded(Image.new(mode, (4, 4)), "TIFF"))
    assert (found.code, "32 bits" in found.message) == ("invalid_image", True)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_cut_images_are_refused(kind: str) -> None:
    data = encoded(COLORS, kind)
    for length in (len(data) // 2, 20, 0):
        found = opened(data[:length])
        assert isinstance(found, RowError)
        assert found.code == "invalid_image"


def _header_of_a_png(width: int, height: int) -> bytes:
    """A PNG that claims a size, and contains no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + data + PngImagePlugin.o32(0) + b"IDAT" + PngImagePlugin.o32(zlib.crc32(b"IDAT"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_size_is_checked_before_the_pixels_are_decoded() -> None:
    """At 90 megapixels Pillow only warns, and from 179 on it raises."""
    for side in (9_500, 14_000, 60_000):
        assert opened(_header_of_a_png(side, side)).code == "row_too_large"
    assert opened(_header_of_a_png(40, 30)).code == "invalid_image"


def test_the_setting_counts_and_not_the_limit_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encoded(COLORS)
    assert opened(data, max_image_pixels=24 * 32).size == (32, 24)
    assert opened(data, max_image_pixels=24 * 32 - 1).code == "row_too_large"


def test_files_that_pillow_would_run_are_refused() -> None:
    found = opened(encoded(COLORS, "EPS"))
    assert (found.code, "EPS" in found.message) == ("invalid_image", True)


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "it is empty"), (b"a text", "the file is damaged, or of an unknown kind")]
)
def test_a_file_that_is_no_image_is_refused_in_plain_words(data: bytes, reason: str) -> None:
    error = opened(data)
    assert isinstance(error, RowError)
    assert error.message == f"input 'image' is not an image: {reason}"


def test_a_damaged_image_is_refused_in_plain_words() -> None:
    whole = {kind: encoded(COLORS, kind) for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP")}
    cut = [data[:length] for data in whole.values() for length in (len(data) // 2, len(data) - len(data) // 8)]
    spoiled = [data[: len(data) // 2] + b"\xff" * 99 + data[len(data) // 2 + 99 :] for data in whole.values()]
    reasons = ("the file ends too early", "the file is damaged")
    plain = {f"input 'image' cannot be read as an image: {reason}" for reason in reasons}
    plain.add("input 'image' is not an image: the file is damaged, or of an unknown kind")
    errors = [found.message for found in map(opened, [*cut, *spoiled]) if isinstance(found, RowError)]
    assert len(errors) >= len(cut) // 2
    assert set(errors) <= plain
    assert opened(encoded(COLORS, "JPEG")[:-40]).message.endswith("the file ends too early")
