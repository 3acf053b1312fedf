"""Code that all text formats share: where rows begin, how they are decoded, and errors of long rows."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import BinaryIO

from jobs.data.rows import RowError, RowErrorCode
from jobs.data.sources import open_file
from jobs.data.sources.formats import block_scan
from jobs.data.sources.formats.encodings import PARAM, TextEncoding, convert_command
from jobs.data.sources.reader import InputFile
from jobs.errors import InvalidInput

_HEAD_BYTES = 2**20
_LOOK_BYTES = 4096
_UTF8_MARK = b"\xef\xbb\xbf"
_MARKS = (
    (b"\xff\xfe\0\0", "utf-32le"),
    (b"\0\0\xfe\xff", "utf-32be"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_WRONG_BEGINNINGS = (
    (b"\x1f\x8b", "is compressed with gzip; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd; unpack it first"),
    (b"BZh", "is compressed with bzip2; unpack it first"),
    (b"\xfd7zXZ\0", "is compressed with xz; unpack it first"),
    (b"PK\x03\x04", "is a zip archive; unpack it first"),
    (b"PAR1", "is a Parquet file; name it .parquet or set input.format to parquet"),
)
_NULS_SHARE = 4  # in any file with lines and columns, at least a quarter of the characters are ASCII


def data_start(handle: BinaryIO, file: InputFile) -> int:
    """The byte offset after a UTF-8 byte order mark; 0 if there is none.

    Raises:
        InvalidInput: The file begins like another format, or is UTF-16 or UTF-32.
    """
    handle.seek(0)
    head = handle.read(_LOOK_BYTES)
    for mark, name in _MARKS:
        if head.startswith(mark):
            raise _convert(file, name)
    for beginning, reason in _WRONG_BEGINNINGS:
        if head.startswith(beginning) and (beginning != b"BZh" or head[4:10] == b"1AY&SY"):
            raise InvalidInput(f"{open_file.PARAM}: '{file.name}' {reason}", param=open_file.PARAM)
    low, high = head[0::2], head[1::2]
    for name, zeros, others in (("utf-16le", high, low), ("utf-16be", low, high)):
        if zeros.count(0) > 1 and zeros.count(0) * _NULS_SHARE > len(zeros) and not others.count(0):
            raise _convert(file, name)
    return len(_UTF8_MARK) if head.startswith(_UTF8_MARK) else 0


def too_large(line: int, max_row_bytes: int) -> RowError:
    """The row error for a row that is longer than the limit."""
    return RowError(
        RowErrorCode.ROW_TOO_LARGE, f"the row is longer than {max_row_bytes} bytes (setting max_row_bytes)", line
    )


def row_text(data: bytes, line: int, encoding: TextEncoding) -> str | RowError:
    """Decode a row; returns a row error if its bytes are invalid in the encoding."""
    try:
        return data.decode(encoding.name)
    except UnicodeDecodeError as error:
        where = f"at its byte {error.start + 1}"
    if encoding.is_utf8:
        advice = "if the whole file has another encoding, set input.encoding"
        return RowError(RowErrorCode.INVALID_UTF8, f"the row is not valid UTF-8 {where}; {advice}", line)
    return RowError(
        RowErrorCode.INVALID_ENCODING, f"the row is not valid {encoding.name} {where} (input.encoding)", line
    )


def check_encoding(texts: Iterable[block_scan.Text], file: InputFile, encoding: TextEncoding) -> None:
    """Reject a file whose first megabyte has another encoding.

    A single invalid row is a row error. The file has another encoding if several rows are invalid before any valid row
    with non-ASCII characters.

    Raises:
        InvalidInput: The file has another encoding.
    """
    wrong: list[block_scan.Text] = []
    for text in texts:
        if text.offset > _HEAD_BYTES:
            break
        if text.data is None or text.data.isascii():
            continue
        if not isinstance(row_text(text.data, text.line, encoding), RowError):
            return
        wrong.append(text)
    if len(wrong) > 1:
        raise wrong_encoding(file, encoding, wrong[0].line)


def wrong_encoding(file: InputFile, encoding: TextEncoding, line: int) -> InvalidInput:
    """The error for a file that does not have the encoding; `line` is an example."""
    name = "UTF-8" if encoding.is_utf8 else encoding.name
    message = f"line {line} of '{file.name}' is not {name}; set the file's encoding, such as latin-1 or cp1252"
    return InvalidInput(f"{PARAM}: {message}", param=PARAM)


def _convert(file: InputFile, name: str) -> InvalidInput:
    command = convert_command(name, shlex.quote(PurePosixPath(file.name).name))
    return InvalidInput(
        f"{open_file.PARAM}: '{file.name}' is {name.upper()}; convert it to UTF-8 first: {command}",
        param=open_file.PARAM,
    )
