"""Change the sampling rate of sounds with torchaudio's formula."""

from __future__ import annotations

import math

import numpy as np
import torch

from jobs.data.rows import RowError, RowErrorCode

HIGHEST_RATE = 1_000_000
"""Highest sampling rate that is accepted, in samples per second."""
_LARGEST_KERNEL = 2**24  # numbers; rates without a common divisor would need gigabytes
_LOWPASS_WIDTH = 6  # zero crossings of the kernel on each side
_ROLLOFF = 0.99  # cut-off as a share of the lower Nyquist frequency


def impossible_rate(rate: int) -> RowError | None:
    """The row error for an impossible sampling rate, else None."""
    if 0 < rate <= HIGHEST_RATE:
        return None
    return RowError(RowErrorCode.WRONG_TYPE, f"input 'audio': the sampling rate {rate} is impossible")


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
        message = (
            f"input 'audio': {rate} samples per second cannot be converted to {wanted}; save the sound with a common "
            "rate"
        )
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
