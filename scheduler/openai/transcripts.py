"""Write the transcript of a sound as a response body: JSON, plain text or subtitles. Pure: no database, no files."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from scheduler.openai.responses import Body, LineResult

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
"""The values of `response_format`."""
TIMED_FORMATS = frozenset({"srt", "vtt", "verbose_json"})
"""Formats that need the times of segments or words."""
_UNKNOWN_LANGUAGE = "unknown"
_LAST_CUE_SECONDS = 2.0
"""How long a subtitle is shown if the model did not find its end and no other follows."""


class _Cue(NamedTuple):
    """A subtitle with its times in seconds."""

    start: float
    end: float
    text: str


def write_transcript(result: LineResult) -> Body | str:
    """The response body of `/v1/audio/transcriptions` and `/v1/audio/translations`; subtitles and texts are strings."""
    text = result.output["text"].strip()
    if result.form == "text":
        return str(text)
    if result.form == "srt":
        return _srt(_cues(result.output["chunks"]))
    if result.form == "vtt":
        return _vtt(_cues(result.output["chunks"]))
    if result.form == "verbose_json":
        return _verbose(result, text)
    return {"text": text}


def _verbose(result: LineResult, text: str) -> Body:
    """Write the body of `verbose_json` from what the model reported.

    It has no probabilities, and a time that the model did not find is null.
    """
    task = result.parameters.get("task") or "transcribe"
    known = result.output.get("language") or result.parameters.get("language") or _UNKNOWN_LANGUAGE
    duration = result.output.get("duration")  # a result from before an upgrade may lack it
    body = {
        "task": task,
        "language": "english" if task == "translate" else known,
        "duration": duration,
        "text": text,
        "usage": {"type": "duration", "seconds": duration},
    }
    segments = result.output["chunks"]
    if result.parameters.get("return_timestamps") == "word":
        body["words"] = [{"word": chunk["text"].strip(), **_times(chunk)} for chunk in segments]
        segments = result.output.get("segments")
    if segments is not None:
        body["segments"] = [
            {"id": number, **_times(chunk), "text": chunk["text"]} for number, chunk in enumerate(segments)
        ]
    return body


def _times(chunk: Body) -> Body:
    return dict(zip(("start", "end"), chunk["timestamp"], strict=True))


def _cues(chunks: Sequence[Any]) -> list[_Cue]:
    """Make subtitles of a transcript's segments.

    Segments without a text get none, since players read an empty line as the end of a subtitle. A segment without a
    start begins at the end of the one before; one without an end lasts until the next one begins.
    """
    cues: list[_Cue] = []
    for chunk, following in itertools.zip_longest(chunks, chunks[1:]):
        start, end = chunk["timestamp"]
        if start is None:
            start = cues[-1].end if cues else 0.0
        if end is None:
            end = following and following["timestamp"][0]
        if end is None or end < start:
            end = start + _LAST_CUE_SECONDS
        cues.append(_Cue(start, end, " ".join(chunk["text"].split())))
    return [cue for cue in cues if cue.text]


def _srt(cues: Sequence[_Cue]) -> str:
    blocks = [
        f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{cue.text.replace('-->', '->')}\n"
        for number, cue in enumerate(cues, start=1)
    ]
    return "\n".join(blocks)


def _vtt(cues: Sequence[_Cue]) -> str:
    blocks = [
        f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{html.escape(cue.text, quote=False)}\n" for cue in cues
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def _time(seconds: float, point: str) -> str:
    """`hours:minutes:seconds` with milliseconds after `point`."""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"
