"""An image, sound or video in a table's cell becomes a value that workers accept."""

from __future__ import annotations

import base64

from jobs.data.rows import RowError
from jobs.data.sources.media import media_value


def test_paths_urls_and_sounds_pass_as_they_are() -> None:
    assert media_value("image", "https://example.org/a.png") == "https://example.org/a.png"
    assert media_value("image", {"bytes": None, "path": "a.png"}) == "a.png"
    assert media_value("audio", {"bytes": b"RIFF", "path": "a.wav"}) == b"RIFF"
    assert media_value("audio", {"array": [0.0], "sampling_rate": 8000}) == {"array": [0.0], "sampling_rate": 8000}


def test_encoded_media_become_bytes() -> None:
    text = base64.b64encode(b"\x89PNG").decode()
    assert media_value("image", {"bytes": b"\x89PNG", "path": "a.png"}) == b"\x89PNG"
    assert media_value("image", {"bytes": text}) == b"\x89PNG"
    assert media_value("audio", {"bytes": text, "path": None}) == b"\x89PNG"


def test_cells_without_data_are_row_errors() -> None:
    for value, code in (
        ({"bytes": None, "path": None}, "null_value"),
        ({"bytes": "/a.png"}, "invalid_value"),
        ({}, "null_value"),
    ):
        found = media_value("image", value)
        assert isinstance(found, RowError)
        assert found.code == code
