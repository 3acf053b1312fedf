"""Decode sounds to samples: plain WAV files and arrays here, all other files with PyAV (the extra `audio`).

The samples equal those of transformers' pipelines: files are decoded as by `ffmpeg`, arrays resampled with torchaudio's
formula.
"""

from __future__ import annotations

import importlib
import io
import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from jobs.config.access_rules import AccessRules
from jobs.data.rows import RowError, RowErrorCode
from jobs.data.sources.media import may_be_sound
from jobs.errors import InvalidInput
from jobs.specs.packages import AV
from worker.models.media.ffmpeg_errors import ffmpeg_reason
from worker.models.media.resampling import impossible_rate, resample
from worker.models.media.wav import is_wav, plain_wav

_WAV_OPTIONS = {"probesize": "65536", "max_size": "262144"}
"""Bytes that FFmpeg reads to find out what a WAV file has, which its header says, and bytes of one packet. With the
defaults of 5 MB and 4 KiB, opening takes longer than decoding, and threads wait for Python's lock at each packet."""
_NOT_FINITE = RowError(RowErrorCode.INVALID_AUDIO, "input 'audio': a sample is null or not a finite number")
"""Speech recognition would return an empty text for such a sound."""


def open_sound(value: Any, rules: AccessRules, rate: int | None) -> Any:
    """Convert a sound of a row to samples.

    Args:
        value: The bytes of a file, samples, or an object with `array` and `sampling_rate`.
        rules: Their `max_audio_seconds` limits the length.
        rate: Sampling rate of the model in samples per second; None if it takes no sounds.

    Returns:
        Float32 samples at `rate`, or a RowError.

    Raises:
        InvalidInput: This host lacks the package that decodes the sound.
    """
    if rate is None:
        return RowError(RowErrorCode.WRONG_TYPE, "input 'audio': this model does not accept sounds")
    if isinstance(value, bytes):
        decoded = decode_sound(value, rate, max_seconds=rules.max_audio_seconds)
        return decoded if isinstance(decoded, RowError) or np.isfinite(decoded).all() else _NOT_FINITE
    found = rate
    if isinstance(value, Mapping):
        array, own_rate = value.get("array", value.get("raw")), value.get("sampling_rate")
        if isinstance(own_rate, float) and own_rate.is_integer():  # as data frames write whole numbers
            own_rate = int(own_rate)
        if array is None or not isinstance(own_rate, int) or isinstance(own_rate, bool):
            message = "input 'audio' must be a path, bytes, samples, or an object with 'array' and 'sampling_rate'"
            return RowError(RowErrorCode.WRONG_TYPE, message)
        value, found = array, own_rate
    try:
        samples = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        return RowError(RowErrorCode.WRONG_TYPE, "input 'audio': its samples are not numbers")
    if not samples.size or samples.ndim not in (1, 2):
        return RowError(RowErrorCode.WRONG_TYPE, "input 'audio' must be one list of samples, or one for each channel")
    if not np.isfinite(samples).all():
        return _NOT_FINITE
    resampled = impossible_rate(found) or too_long(samples, found, rules.max_audio_seconds)
    return resampled or resample(samples, found, rate)


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
    if not data:
        return _unreadable("it is empty")
    found = plain_wav(data)
    if found is not None and found.rate == rate:
        samples = found.samples()
    else:
        try:
            av = importlib.import_module("av")
        except ImportError as error:
            if found is None and not may_be_sound(data):
                return _unreadable("the kind of file is unknown")
            kind = f"a WAV file of {found.rate} samples per second" if found else "not a plain WAV file"
            raise InvalidInput(
                f"input 'audio': a sound is {kind}, but the model needs {rate} samples per second; to convert it, "
                f"install the package av on the workers' hosts: {AV.install}",
                param="input.columns.audio",
            ) from error
        frames = found.frames(av) if found is not None else None
        decoded = _by_ffmpeg(av, data if frames is None else frames, rate, max_seconds)
        if isinstance(decoded, RowError):
            return decoded
        samples = decoded
    return too_long(samples, rate, max_seconds) or samples


def too_long(samples: np.ndarray, rate: int, max_seconds: float) -> RowError | None:
    """The row error for a sound that is longer than allowed, else None."""
    if samples.shape[-1] <= max_seconds * rate:
        return None
    return RowError(
        RowErrorCode.ROW_TOO_LARGE, f"the sound is longer than {max_seconds:g} seconds (setting max_audio_seconds)"
    )


def _by_ffmpeg(av: Any, source: bytes | Iterator[Any], rate: int, max_seconds: float) -> np.ndarray | RowError:
    """Mix and resample a file's bytes, or the frames of a sound."""
    pieces: list[np.ndarray] = []
    num_samples = 0
    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
    try:
        with ExitStack() as stack:
            frames = source
            if isinstance(source, bytes):
                container = stack.enter_context(av.open(io.BytesIO(source), options=_options(source)))
                if not container.streams.audio:
                    return _unreadable("it contains no sound")
                frames = container.decode(audio=0)
            for frame in itertools.chain(frames, (None,)):
                for piece in resampler.resample(frame):
                    pieces.append(piece.to_ndarray().reshape(-1))
                    num_samples += pieces[-1].size
                if num_samples > max_seconds * rate:
                    break
    except Exception as error:  # noqa: BLE001 - decoders raise many kinds of exceptions for damaged files
        if not pieces:
            return _unreadable(ffmpeg_reason(error))
    if not num_samples:
        return _unreadable("it contains no samples")
    return np.concatenate(pieces)


def _options(data: bytes) -> dict[str, str]:
    """Options of FFmpeg for a file."""
    options = {"protocol_whitelist": "none"}  # a playlist could name other files and URLs; this forbids all of them
    return options | _WAV_OPTIONS if is_wav(data) else options


def _unreadable(reason: str) -> RowError:
    return RowError(RowErrorCode.INVALID_AUDIO, f"input 'audio' cannot be read as a sound: {reason}")
