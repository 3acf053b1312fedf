"""Decode plain WAV files, with the samples that `ffmpeg` gives."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from worker.models.media.resampling import HIGHEST_RATE

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE  # formats of a WAV file
_BITS = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64)}
"""Format -> bits of a sample that can be decoded here."""
_FFMPEG_FORMATS = {
    (_PCM, 8): ("u8", "u1"), (_PCM, 16): ("s16", "<i2"), (_PCM, 32): ("s32", "<i4"),
    (_FLOAT, 32): ("flt", "<f4"), (_FLOAT, 64): ("dbl", "<f8"),
}  # fmt: skip
"""Format and bits of a sample -> FFmpeg's name, and numpy's, for samples that FFmpeg decodes to what is stored."""
_FRAME_SAMPLES = 65_536
"""Samples of each channel in one frame for FFmpeg's resampler. Of smaller and larger ones, it takes longer."""


@dataclass(frozen=True, slots=True)
class PlainWav:
    """A WAV file with one or two channels of floats or of integers of 8 to 32 bits."""

    rate: int
    """Samples per second."""
    channels: int
    kind: int
    bits: int
    body: memoryview
    """The samples as they are stored."""

    def samples(self) -> np.ndarray:
        """The samples as float32; two channels are mixed as in FFmpeg."""
        samples = _samples(self.body, self.kind, self.bits)
        if self.channels == 1:
            return samples
        left, right = samples[: samples.size // 2 * 2].reshape(-1, 2).T * np.float32(math.sqrt(0.5))
        mixed: np.ndarray = left + right
        return mixed

    def frames(self, av: Any) -> Iterator[Any] | None:
        """The file as frames of the package PyAV. That takes half as long as letting FFmpeg open the file.

        Returns:
            The frames; None if FFmpeg must decode the samples.
        """
        names = _FFMPEG_FORMATS.get((self.kind, self.bits))
        return None if names is None else self._frames(av, *names)

    def _frames(self, av: Any, sample_format: str, dtype: str) -> Iterator[Any]:
        stored = np.frombuffer(self.body, dtype)
        stored = stored[: stored.size // self.channels * self.channels].reshape(1, -1)
        layout = "mono" if self.channels == 1 else "stereo"
        for start in range(0, stored.size, _FRAME_SAMPLES * self.channels):
            part = stored[:, start : start + _FRAME_SAMPLES * self.channels]
            frame = av.AudioFrame.from_ndarray(part, format=sample_format, layout=layout)
            frame.sample_rate = self.rate
            yield frame


def plain_wav(data: bytes) -> PlainWav | None:
    """Read the header of a plain WAV file. Returns None for all other files."""
    if not is_wav(data):
        return None
    kind = channels = rate = bits = 0
    place = 12
    while place + 8 <= len(data):
        name, size = data[place : place + 4], struct.unpack_from("<I", data, place + 4)[0]
        body = place + 8
        if name == b"fmt " and body + 16 <= len(data):
            kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", data, body)
            if kind == _EXTENSIBLE and size >= 26 and body + 26 <= len(data):
                kind = struct.unpack_from("<H", data, body + 24)[0]
        if name == b"data":
            width = bits // 8
            stored = memoryview(data)[body : body + size]
            is_plain = channels in (1, 2) and 0 < rate <= HIGHEST_RATE and bits in _BITS.get(kind, ())
            if not is_plain or len(stored) < width:
                return None
            return PlainWav(rate, channels, kind, bits, stored[: len(stored) // width * width])
        place = body + size + size % 2
    return None


def is_wav(data: bytes) -> bool:
    """Whether bytes begin as a WAV file, plain or not."""
    return data[:4] == b"RIFF" and data[8:12] == b"WAVE"


def _samples(body: memoryview, kind: int, bits: int) -> np.ndarray:
    """Samples as floats, scaled as in FFmpeg."""
    if kind == _FLOAT:
        return np.frombuffer(body, f"<f{bits // 8}").astype(np.float32)
    if bits == 8:
        return (np.frombuffer(body, np.uint8).astype(np.float32) - 128) / 128
    if bits == 24:
        low, middle, high = np.frombuffer(body, np.uint8).reshape(-1, 3).T.astype(np.int32)
        return ((low << 8 | middle << 16 | high << 24) / 2.0**31).astype(np.float32)
    return (np.frombuffer(body, f"<i{bits // 8}") / 2.0 ** (bits - 1)).astype(np.float32)
