"""Encodings of text files, limited to those in which rows can be found byte by byte."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from functools import lru_cache

from jobs.errors import InvalidInput

PARAM = "input.encoding"
_NOT_FOR_FILES = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"})
_BMP = "".join(map(chr, [*range(0x80, 0xD800), *range(0xE000, 0x10000)]))


@dataclass(frozen=True, slots=True)
class TextEncoding:
    """An encoding in which every ASCII character is encoded as its own byte."""

    name: str
    """Python's name of the encoding, such as `utf-8` or `iso8859-1`."""
    shared: frozenset[int]
    """ASCII bytes that are also part of other characters, such as the backslash in Shift JIS."""

    @property
    def is_utf8(self) -> bool:
        """Whether this is UTF-8, the default."""
        return self.name == "utf-8"


UTF8 = TextEncoding("utf-8", frozenset())


@lru_cache(maxsize=64)
def text_encoding(name: str) -> TextEncoding:
    """Look up the encoding that a spec names.

    Args:
        name: Any of Python's names for the encoding, such as `latin-1`, `cp1252` or `Shift_JIS`.

    Raises:
        InvalidInput: The encoding does not exist, or rows cannot be found byte by byte in it.
    """
    try:
        found = codecs.lookup(name)
    except (LookupError, ValueError) as error:  # ValueError: the name contains a NUL
        raise _unknown(name) from error
    if found.name in {"utf-8", "utf-8-sig"}:
        return UTF8
    if not found._is_text_encoding or found.name.replace("-", "_") in _NOT_FOR_FILES:
        raise _unknown(name)
    if not _keeps_ascii(found.name):
        raise InvalidInput(
            f"{PARAM}: {name} is not supported; convert the file first: {convert_command(name)}",
            param=PARAM,
        )
    encoded = (character.encode(found.name, "ignore") for character in _BMP)
    shared = frozenset(byte for sequence in encoded if len(sequence) > 1 for byte in sequence if byte < 0x80)
    return TextEncoding(found.name, shared)


def convert_command(name: str, file: str = "FILE") -> str:
    """The shell command that converts a file to UTF-8."""
    return f"iconv -f {name.upper()} -t UTF-8 {file} > utf8-{file}"


def _keeps_ascii(name: str) -> bool:
    try:
        return all(chr(code).encode(name) == bytes([code]) for code in range(0x80)) and all(
            bytes([code]).decode(name) == chr(code) for code in range(0x80)
        )
    except UnicodeError:
        return False


def _unknown(name: str) -> InvalidInput:
    return InvalidInput(
        f"{PARAM}: {name!r} is not the name of a text encoding such as utf-8, latin-1 or cp1252", param=PARAM
    )
