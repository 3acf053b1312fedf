"""Read frames of videos with PyAV (the extra `audio`)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jobs.data.rows import RowError, RowErrorCode
from worker.models.media.ffmpeg_errors import ffmpeg_reason


def read_frames(
    path: str, positions: Sequence[int], *, max_pixels: int, convert: Callable[[Any], Any]
) -> list[Any] | RowError:
    """Read some frames of a video as RGB images. Only one of them is in memory at full size.

    Args:
        path: The file.
        positions: Numbers of the frames, from 0; a shorter video has fewer of them.
        max_pixels: Most pixels of a frame.
        convert: Called with each image, for example to make it smaller.

    Returns:
        What `convert` returned for each frame, at least one, or a RowError.
    """
    av = importlib.import_module("av")
    wanted = frozenset(positions)
    frames: list[Any] = []
    try:
        # A playlist could name other files and URLs; this forbids all of them.
        with Path(path).open("rb") as file, av.open(file, options={"protocol_whitelist": "none"}) as container:
            if not container.streams.video:
                return _unreadable("it contains no pictures")
            stream = container.streams.video[0]
            if stream.width * stream.height > max_pixels:  # before anything is decoded
                return _too_large(max_pixels)
            for number, frame in enumerate(container.decode(stream)):
                if frame.width * frame.height > max_pixels:
                    return _too_large(max_pixels)
                if number in wanted:
                    frames.append(convert(frame.to_image()))
                if number >= max(wanted):
                    break
    except Exception as error:  # noqa: BLE001 - decoders raise many kinds of exceptions for damaged files
        return _unreadable(ffmpeg_reason(error))
    return frames or _unreadable("it contains no pictures")


def _too_large(max_pixels: int) -> RowError:
    message = f"input 'video': its frames have more than {max_pixels} pixels (setting max_image_pixels)"
    return RowError(RowErrorCode.ROW_TOO_LARGE, message)


def _unreadable(reason: str) -> RowError:
    return RowError(RowErrorCode.INVALID_VIDEO, f"input 'video' cannot be read as a video: {reason}")
