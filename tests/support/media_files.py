"""Real image and sound files of varied shapes, made by the tests."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.support.tiny_media import write_wav

RATE = 16_000


def write_jpegs(folder: Path, num_images: int) -> list[dict[str, Any]]:
    """Write JPEG files of many shapes, each with other content. Returns a row for each."""
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = []
    for number in range(num_images):
        width, height = (int(side) for side in random.integers(100, 600, 2))
        colors = Image.fromarray(random.integers(0, 255, (5, 5, 3), dtype=np.uint8))
        path = folder / f"{number}.jpg"
        colors.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
        rows.append({"id": f"r{number}", "image": str(path)})
    return rows


def write_sounds(folder: Path, num_sounds: int) -> list[dict[str, Any]]:
    """Write WAV and FLAC files of three lengths, each with other content. Returns a row for each."""
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = []
    for number in range(num_sounds):
        samples = random.standard_normal(int(random.choice([16_000, 24_000, 32_000]))) * 0.1
        path = folder / f"{number}.{'flac' if number % 2 else 'wav'}"
        rows.append({"id": f"r{number}", "audio": str(path)})
        if path.suffix == ".flac":
            write_flac(path, samples, RATE)
        else:
            write_wav(path, samples, RATE)
    return rows


def write_flac(path: Path, samples: np.ndarray, rate: int) -> Path:
    """A FLAC file of one channel with 16-bit samples."""
    av = importlib.import_module("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=rate, layout="mono")
        whole = (samples[None] * 2**15).round().astype(np.int16)
        frame = av.AudioFrame.from_ndarray(whole, format="s16", layout="mono")
        frame.rate = rate
        resampler = av.AudioResampler(stream.format, "mono", rate, frame_size=stream.codec_context.frame_size or None)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path
