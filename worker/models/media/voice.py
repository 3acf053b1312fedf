"""Find the speech in a sound with Silero's model for voice activity (the extra `vad`), and join it without the pauses.

The package ships its model as TorchScript, which is code, and as ONNX, but weights for 16 kHz as safetensors too. These
are loaded here, and many windows are computed at once. They are of another release than the other files, so that the
probabilities differ from those of `load_silero_vad`.

Shapes: N windows, C channels, W samples of a window.
"""

from __future__ import annotations

import bisect
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from jobs.specs.packages import SILERO, PackageNeed
from worker.models.media.resampling import resample

_RATE = 16_000  # the only sampling rate that the weights are for
_WINDOW, _CONTEXT = 512, 64  # samples of a window, and of the one before it that the model sees too
_AT_ONCE = 2048
"""Windows that are computed together, about a minute of sound."""
_PAUSE_SECONDS = 2.0
"""Shortest pause that is left out. As in faster-whisper; shorter ones help Whisper to end its sentences."""
_MARGIN_SECONDS = 0.4
"""Time before and after speech that is kept."""


@dataclass(frozen=True, slots=True)
class Voice:
    """The parts of a sound in which somebody speaks."""

    parts: Sequence[tuple[int, int]]
    """First sample of each part and the one after its last, in order."""
    rate: int
    """Samples per second."""

    def joined(self, samples: np.ndarray) -> np.ndarray:
        """The sound without its pauses; the last axis is time."""
        parts = [samples[..., start:stop] for start, stop in self.parts]
        return np.concatenate([samples[..., :0], *parts], axis=-1)

    def shift_seconds(self, seconds: float, *, is_end: bool = False) -> float:
        """How much later a moment of the joined sound is in the whole sound.

        Args:
            seconds: Time in the joined sound.
            is_end: Whether something ends then. Where two parts meet, this is the end of the first one.
        """
        begins = list(accumulate((stop - start for start, stop in self.parts), initial=0))[:-1]
        search = bisect.bisect_left if is_end else bisect.bisect_right
        part = max(0, search(begins, round(seconds * self.rate)) - 1)
        return (self.parts[part][0] - begins[part]) / self.rate


class VoiceDetector:
    """Silero's model, and how its probabilities become parts of speech. Several threads may use it."""

    def __init__(self, param: str) -> None:
        """
        Args:
            param: The job's parameter that asks for it.

        Raises:
            InvalidSpec: This host lacks the package.
        """
        found = importlib.util.find_spec(SILERO.module)
        if found is None or not found.submodule_search_locations:
            raise PackageNeed(SILERO, param, "it").missing_package_error("this worker lacks")
        self._find_parts: Callable[..., Any] = _import_silero().get_speech_timestamps_from_probs
        self._model = _model(Path(found.submodule_search_locations[0]) / "data" / "silero_vad_16k.safetensors")

    def find(self, samples: np.ndarray, rate: int) -> Voice:
        """The parts of a sound that are speech; none if nobody speaks.

        Args:
            samples: Float32, as one row or one for each channel.
            rate: Samples per second.
        """
        mono = samples if samples.ndim == 1 else samples.mean(axis=0)
        resampled = resample(mono, rate, _RATE)
        assert isinstance(resampled, np.ndarray), resampled  # `open_sound` has refused impossible rates
        found = self._find_parts(
            self._model.probabilities(resampled),
            sampling_rate=_RATE,
            min_silence_duration_ms=_PAUSE_SECONDS * 1000,
            speech_pad_ms=_MARGIN_SECONDS * 1000,
            audio_length_samples=resampled.size,
        )
        scale, length = rate / _RATE, samples.shape[-1]
        places = [(round(part["start"] * scale), min(length, round(part["end"] * scale))) for part in found]
        return Voice(places, rate)


@lru_cache(maxsize=1)
def _import_silero() -> Any:
    """Import the package, which sets torch to one thread, and undo that."""
    num_threads = torch.get_num_threads()
    try:
        return importlib.import_module(SILERO.module)
    finally:
        torch.set_num_threads(num_threads)


@lru_cache(maxsize=1)
def _model(path: Path) -> _Silero:
    model = _Silero()
    model.load_state_dict(load_file(path))
    return model.eval().requires_grad_(False)


class _Silero(nn.Module):
    """Silero's model for 16 kHz, as `silero_vad.tinygrad_model` describes it."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    @torch.inference_mode()
    def probabilities(self, samples: np.ndarray) -> list[float]:
        """The probability of speech in each window of 512 samples at 16 kHz; the last one is filled with silence."""
        wave = torch.from_numpy(np.ascontiguousarray(samples, np.float32))
        wave = functional.pad(wave, (_CONTEXT, -wave.numel() % _WINDOW))
        windows_NW = wave.unfold(0, _CONTEXT + _WINDOW, _WINDOW)
        found: list[float] = []
        state = None
        for some_NW in torch.split(windows_NW, _AT_ONCE):
            hidden = []
            for features in self._features(some_NW):
                state = self.lstm_cell(features, state)
                hidden.append(state[0])
            logits = self.final_conv(torch.stack(hidden).relu().unsqueeze(-1))
            found += logits.sigmoid().flatten().tolist()
        return found

    def _features(self, windows_NW: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(windows_NW, (0, _CONTEXT), "reflect").unsqueeze(1)
        real, imaginary = self.stft_conv(padded).chunk(2, dim=1)
        found_NCW: torch.Tensor = (real**2 + imaginary**2).sqrt()
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            found_NCW = convolution(found_NCW).relu()
        return found_NCW.squeeze(-1)
