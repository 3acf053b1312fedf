"""What others wrote is shown without a character that a terminal obeys; programs read the same JSON as before."""

from __future__ import annotations

import json

import pytest

from scheduler.cli.terminal import cell, clean, clean_json, show, show_json, show_json_lines, show_message, state_cell

BAD = "\x1b[31m \x07 \x7f \x9b31m \x85 \u202e \u2066 \u2069 \u200e \u200f \u061c \u2028"
TEXT = f"a{BAD}b é 中 \U0001f600"


def is_harmless(text: str) -> bool:
    return not set(text) & set(BAD.replace(" ", "").replace("[31m", "").replace("31m", ""))


def test_texts_of_others_are_harmless() -> None:
    for shown in (clean(TEXT), cell(TEXT).plain, state_cell(TEXT), clean(f"{TEXT}\n", keep_lines=True)):
        assert is_harmless(shown)
    assert clean("é 中 \U0001f600\ta") == "é 中 \U0001f600\ta"
    assert clean("a\nb", keep_lines=True) == "a\nb"
    assert clean("a\nb") == "a\N{REPLACEMENT CHARACTER}b"


def test_json_means_the_same_and_is_harmless(capfd: pytest.CaptureFixture[str]) -> None:
    value = {"name": TEXT, TEXT: [TEXT, 1]}
    show_json(value)
    show_json_lines([value, value])
    out = capfd.readouterr().out
    assert is_harmless(out)
    first, rest = out.split("}\n", 1)
    assert json.loads(first + "}") == value
    assert [json.loads(line) for line in rest.splitlines()] == [value, value]
    assert clean_json('{\n  "a": "b"\n}') == '{\n  "a": "b"\n}'


def test_lines_and_sentences_are_harmless(capfd: pytest.CaptureFixture[str]) -> None:
    show(TEXT)
    show_message(TEXT)
    shown = capfd.readouterr()
    assert is_harmless(shown.out)
    assert is_harmless(shown.err)
