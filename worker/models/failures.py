"""Turn a library's exception into a short sentence for a result, without addresses and without user data."""

from __future__ import annotations

import re

from jobs.messages import one_line, short

_OBJECT = re.compile(r"<(?:\w+\.)*(\w+)[^<>]* at 0x[0-9a-fA-F]+>")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_LONG_WORD = re.compile(r"\S{201,}")
_SHOWN_OF_A_WORD = 40  # characters
_LONGEST_SENTENCE = 300  # characters


def plain_sentence(error: BaseException) -> str:
    """The kind of an error and the first line of its message, without addresses of objects and without data that the
    message repeats."""
    text = _ADDRESS.sub("", _OBJECT.sub(r"a \1", one_line(error, longest=10_000)))
    return short(_LONG_WORD.sub(lambda word: short(word[0], _SHOWN_OF_A_WORD), text), _LONGEST_SENTENCE)
