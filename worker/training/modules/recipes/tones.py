"""Speech that needs no download: utterances of "letters", each a tone of its own pitch, with pauses and noise.

A row depends only on its index. S: samples, T: frames, F: frequencies, N: letters of an utterance.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

LETTERS = "abcdefgh"
SAMPLE_RATE = 8000
"""Samples per second."""
NUM_FREQUENCIES = 129
"""Number of frequencies of a frame, up to half the sample rate."""
BLANK = 0
"""The label that stands for no letter; the labels of letters start at 1."""
_LOWEST_HERTZ, _HIGHEST_HERTZ = 400.0, 2400.0
_LETTER_SECONDS = (0.06, 0.14)
_PAUSE_SECONDS = (0.04, 0.10)
_DETUNING = (0.98, 1.02)
"""Range of the random factor of a letter's pitch, each time it sounds."""
_LOUDNESS = (0.7, 1.3)
_FLOOR = 1e-3
"""Added to each power, so that silence has a logarithm."""
_WINDOW, _HOP = 256, 128
"""Length and distance of frames in samples: 32 and 16 milliseconds."""

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Features (B, T, F), padded with zeros; lengths in frames (B,); labels (B, N); lengths in letters (B,)."""


class Tones:
    """Rows of (features, labels): float32 (T, F) and int64 (N,)."""

    def __init__(self, num_rows: int, *, num_letters: tuple[int, int], noise: float, part: int) -> None:
        """
        Args:
            num_rows: Number of rows.
            num_letters: The least and the greatest number of letters of an utterance.
            noise: Standard deviation of the noise; the amplitude of tones is about 1.
            part: Number of the data set; each number has different rows.
        """
        self._num_rows, self._num_letters, self._noise, self._part = num_rows, num_letters, noise, part

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, index: int, /) -> tuple[torch.Tensor, torch.Tensor]:
        chance = np.random.default_rng((self._part, index))
        fewest, most = self._num_letters
        labels_N = chance.integers(1, len(LETTERS) + 1, size=chance.integers(fewest, most + 1))
        samples_S = utterance(labels_N, chance, noise=self._noise)
        return torch.from_numpy(log_spectrogram(samples_S)), torch.from_numpy(labels_N)


def utterance(labels_N: np.ndarray, chance: np.random.Generator, *, noise: float) -> np.ndarray:
    """Return the samples of an utterance of some letters."""
    pieces = [_pause(chance)]
    for label in labels_N:
        pitch = (label - 1) / (len(LETTERS) - 1)
        hertz = _LOWEST_HERTZ * (_HIGHEST_HERTZ / _LOWEST_HERTZ) ** pitch * chance.uniform(*_DETUNING)
        times_S = np.arange(int(chance.uniform(*_LETTER_SECONDS) * SAMPLE_RATE)) / SAMPLE_RATE
        tone_S = np.sin(2 * np.pi * (hertz * times_S + chance.uniform()))
        pieces += [tone_S * np.hanning(len(tone_S)) ** 0.5 * chance.uniform(*_LOUDNESS), _pause(chance)]
    samples_S = np.concatenate(pieces)
    return samples_S + noise * chance.standard_normal(len(samples_S))


def log_spectrogram(samples_S: np.ndarray) -> np.ndarray:
    """Return the log power of a sound by frame and frequency, float32 (T, F), scaled to mean 0 and deviation 1."""
    frames_TS = np.lib.stride_tricks.sliding_window_view(samples_S, _WINDOW)[::_HOP] * np.hanning(_WINDOW)
    power_TF = np.log(np.abs(np.fft.rfft(frames_TS)) ** 2 + _FLOOR)
    scaled_TF: np.ndarray = ((power_TF - power_TF.mean()) / power_TF.std()).astype(np.float32)
    return scaled_TF


def collate(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> Batch:
    """Make a batch of rows, padded to the longest of them."""
    features, labels = zip(*rows, strict=True)
    return (
        pad_sequence(list(features), batch_first=True),
        torch.tensor([len(each) for each in features]),
        pad_sequence(list(labels), batch_first=True, padding_value=BLANK),
        torch.tensor([len(each) for each in labels]),
    )


def _pause(chance: np.random.Generator) -> np.ndarray:
    return np.zeros(int(chance.uniform(*_PAUSE_SECONDS) * SAMPLE_RATE))
