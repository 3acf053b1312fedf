"""Read the unpacked size of each message of an Arrow file or stream from its metadata, without unpacking it.

A message's metadata is a flatbuffer. Each buffer of a compressed message begins with its unpacked size:
https://arrow.apache.org/docs/format/Columnar.html#compression
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

_FILE_MARK = b"ARROW1"
_FILE_HEAD_BYTES = 8
_BUFFER_BYTES = 16  # an offset and a length of 8 bytes each
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Message:
    """A record batch or a dictionary of an Arrow file."""

    is_compressed: bool
    packed_bytes: int
    unpacked_bytes: int


def messages(path: Path) -> Iterator[Message]:
    """Yield the record batches and dictionaries of a local file.

    Raises:
        pyarrow.ArrowException: The file is damaged.
    """
    with pa.memory_map(str(path)) as source:
        if source.read(len(_FILE_MARK)) == _FILE_MARK:
            source.seek(_FILE_HEAD_BYTES)
        else:
            source.seek(0)
        while True:
            try:
                message = pa.ipc.read_message(source)
            except EOFError:
                return
            if message.type in {"record batch", "dictionary"}:
                yield _message(message.metadata.to_pybytes(), message.body, is_dictionary=message.type == "dictionary")


def _message(metadata: bytes, body: pa.Buffer, *, is_dictionary: bool) -> Message:
    batch = _inner(metadata, _number(metadata, 0, 4), 2)  # the message's header
    if is_dictionary:
        batch = _inner(metadata, batch, 1)
    if not _place(metadata, batch, 3):
        return Message(False, body.size, body.size)
    buffers = _inner(metadata, batch, 2)
    num_buffers = min(_number(metadata, buffers, 4), len(metadata) // _BUFFER_BYTES)
    unpacked = 0
    for at in range(buffers + 4, buffers + 4 + num_buffers * _BUFFER_BYTES, _BUFFER_BYTES):
        begin, length = _number(metadata, at, 8), _number(metadata, at + 8, 8)
        if length:
            size = int.from_bytes(body[begin : begin + _LENGTH_BYTES].to_pybytes(), "little", signed=True)
            unpacked += size if size >= 0 else length  # -1: this buffer is not compressed
    return Message(True, body.size, unpacked)


def _place(metadata: bytes, table: int, field: int) -> int:
    """Offset of a field of a flatbuffer table; 0 if the table does not have the field."""
    offsets = table - _number(metadata, table, 4)
    entry = 4 + 2 * field
    offset = _number(metadata, offsets + entry, 2) if entry < _number(metadata, offsets, 2) else 0
    return table + offset if offset else 0


def _inner(metadata: bytes, table: int, field: int) -> int:
    """Offset of the table or vector that a field refers to."""
    place = _place(metadata, table, field)
    return place + _number(metadata, place, 4)


def _number(metadata: bytes, at: int, num_bytes: int) -> int:
    return int.from_bytes(metadata[at : at + num_bytes], "little", signed=num_bytes > 2)
