"""Says in plain words why FFmpeg's libraries could not read a file."""

from __future__ import annotations

import importlib

from worker.models.failures import plain_sentence


def ffmpeg_reason(error: Exception) -> str:
    """The reason why a file cannot be read; call it only where PyAV is installed."""
    av = importlib.import_module("av")
    if isinstance(error, av.error.InvalidDataError):
        return "the file is damaged, or of an unknown kind"
    return plain_sentence(error)
