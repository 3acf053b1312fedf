"""Decode sounds to samples: plain WAV files and arrays here, all other files with PyAV (the extra `audio`).

The samples equal those of transformers' pipelines: files are decoded as by `ffmpeg`, arrays resampled with torchaudio's
formula.
"""

from __future__ import annotations

import importlib
import io
import itertools
import math
import struct
from typing import Any

import numpy as np
import torch

from jobs.data.rows import RowError, RowErrorCode
from jobs.errors import InvalidInput
from worker.models.failures import plain_sentence

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE  # formats of a WAV file
_LARGEST_KERNEL = 2**24  # numbers; rates without a common divisor would need gigabytes
_LOWPASS_WIDTH = 6  # zero crossings of the kernel on each side
_ROLLOFF = 0.99  # cut-off as a share of the lower Nyquist frequency
_HIGHEST_RATE = 1_000_000  # samples a second
_BEGINNINGS = (
    b"RIFF",
    b"ID3",
    b"fLaC",
    b"OggS",
    b"\x1aE\xdf\xa3",
    b"FORM",
    b"caff",
    b".snd",
    b"#!AMR",
    b"RF64",
    b"0&\xb2u",
)


def decode_sound(data: bytes, rate: int, *, max_seconds: float) -> np.ndarray | RowError:
    """Decode a file to samples, mixed to one channel, at a given rate.

    Args:
        data: The file's bytes.
        rate: Sampling rate of the result, in samples per second.
        max_seconds: Length of the longest sound that is accepted.

    Returns:
        Float32 from -1 to 1, or a row error.

    Raises:
        InvalidInput: This host lacks the package that decodes such files.
    """
    found = plain_wav(data)
    if found is not None and found[1] == rate:
        samples = found[0]
    else:
        try:
            av = importlib.import_module("av")
        except ImportError as error:
            if found is None and not may_be_sound(data):
                return _unreadable("no known kind of sound file")
            kind = f"a WAV file of {found[1]} samples a second" if found else "no plain WAV file"
            raise InvalidInput(
                f"input 'audio': a sound is {kind}, not of the {rate} that the model hears; to read it, install the"
                " package av on the workers' hosts: pip install 'stoker[audio]'",
                param="input.columns.audio",
            ) from error
        decoded = _by_ffmpeg(av, data, rate, max_seconds)
        if isinstance(decoded, RowError):
            return decoded
        samples = decoded
    return too_long(samples, rate, max_seconds) or samples


def impossible_rate(rate: int) -> RowError | None:
    """The row error for an impossible sampling rate, else None."""
    if 0 < rate <= _HIGHEST_RATE:
        return None
    return RowError(RowErrorCode.WRONG_TYPE, f"input 'audio': a sampling rate of {rate} is not possible")


def too_long(samples: np.ndarray, rate: int, max_seconds: float) -> RowError | None:
    """The row error for a sound that is longer than allowed, else None."""
    if samples.shape[-1] <= max_seconds * rate:
        return None
    return RowError(
        RowErrorCode.ROW_TOO_LARGE, f"the sound is longer than {max_seconds:g} seconds (setting max_audio_seconds)"
    )


def plain_wav(data: bytes) -> tuple[np.ndarray, int] | None:
    """Samples and rate of a WAV file with one or two channels of floats or of integers of 8 to 32 bits.

    Two channels are mixed as in FFmpeg. Returns None for all other files.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
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
            if channels not in (1, 2) or not 0 < rate <= _HIGHEST_RATE:
                return None
            samples = _samples(data[body : body + size], kind, bits)
            if samples is None:
                return None
            if channels == 2:
                left, right = samples[: samples.size // 2 * 2].reshape(-1, 2).T * np.float32(math.sqrt(0.5))
                samples = left + right
            return samples, rate
        place = body + size + size % 2
    return None


def _samples(body: bytes, kind: int, bits: int) -> np.ndarray | None:
    """Samples as floats, scaled as in FFmpeg; None for other encodings."""
    width = bits // 8
    if not width or bits % 8 or len(body) < width:
        return None
    body = body[: len(body) // width * width]
    if kind == _FLOAT and bits in (32, 64):
        return np.frombuffer(body, f"<f{width}").astype(np.float32)
    if kind != _PCM:
        return None
    if bits == 8:
        return (np.frombuffer(body, np.uint8).astype(np.float32) - 128) / 128
    if bits in (16, 32):
        return (np.frombuffer(body, f"<i{width}") / 2.0 ** (bits - 1)).astype(np.float32)
    if bits == 24:
        low, middle, high = np.frombuffer(body, np.uint8).reshape(-1, 3).T.astype(np.int32)
        return ((low << 8 | middle << 16 | high << 24) / 2.0**31).astype(np.float32)
    return None


def _by_ffmpeg(av: Any, data: bytes, rate: int, max_seconds: float) -> np.ndarray | RowError:
    pieces: list[np.ndarray] = []
    num_samples = 0
    try:
        # A playlist could name other files and URLs; this forbids all of them.
        with av.open(io.BytesIO(data), options={"protocol_whitelist": "none"}) as container:
            if not container.streams.audio:
                return _unreadable("it has no sound in it")
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
            for frame in itertools.chain(container.decode(audio=0), (None,)):
                for piece in resampler.resample(frame):
                    pieces.append(piece.to_ndarray().reshape(-1))
                    num_samples += pieces[-1].size
                if num_samples > max_seconds * rate:
                    break
    except Exception as error:  # noqa: BLE001 - decoders raise many kinds of exceptions for damaged files
        if not pieces:
            return _unreadable(plain_sentence(error))
    if not num_samples:
        return _unreadable("there are no samples in it")
    return np.concatenate(pieces)


def _unreadable(reason: str) -> RowError:
    return RowError(RowErrorCode.INVALID_AUDIO, f"input 'audio' is not a sound that can be read: {reason}")


def may_be_sound(data: bytes) -> bool:
    """Whether bytes begin like a sound file, or like a video that may contain sound."""
    return data.startswith(_BEGINNINGS) or data[4:8] == b"ftyp" or (data[:1] == b"\xff" and data[1:2] >= b"\xe0")


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray | RowError:
    """Resample with the formula of torchaudio's `resample`: a windowed sinc, computed in float32.

    Args:
        samples: Float32; the last axis is time.
        rate: Their sampling rate, in samples per second.
        wanted: Sampling rate of the result.
    """
    if rate == wanted:
        return samples
    impossible = impossible_rate(rate)
    if impossible is not None:
        return impossible
    divisor = math.gcd(rate, wanted)
    old, new = rate // divisor, wanted // divisor
    lower = min(old, new) * _ROLLOFF
    width = math.ceil(_LOWPASS_WIDTH * old / lower)
    if new * (2 * width + old) > _LARGEST_KERNEL:
        message = f"input 'audio': {rate} samples a second cannot be made {wanted}; save it with a usual rate"
        return RowError(RowErrorCode.WRONG_TYPE, message)
    steps = torch.arange(-width, width + old, dtype=torch.float32)[None, None] / old
    times = torch.arange(0, -new, -1, dtype=torch.float32)[:, None, None] / new + steps
    times = (times * lower).clamp_(-_LOWPASS_WIDTH, _LOWPASS_WIDTH)
    window = torch.cos(times * math.pi / _LOWPASS_WIDTH / 2) ** 2
    times *= math.pi
    kernels = torch.where(times == 0, torch.tensor(1.0), times.sin() / times) * (window * (lower / old))
    waves = torch.from_numpy(np.ascontiguousarray(samples, np.float32)).reshape(-1, 1, samples.shape[-1])
    padded = torch.nn.functional.pad(waves, (width, width + old))
    found = torch.nn.functional.conv1d(padded, kernels, stride=old).transpose(1, 2).reshape(waves.shape[0], -1)
    length = math.ceil(new * samples.shape[-1] / old)
    return found[:, :length].reshape(*samples.shape[:-1], length).numpy()
