"""Streaming parser for multipart uploads: the file's bytes are passed on and never kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from jobs.errors import UserError
from jobs.messages import UNSHOWABLE

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MOST_FIELDS = 20
_LONGEST_FIELD_BYTES = 4096
_LONGEST_FILENAME = 255
_LONGEST_BOUNDARY_BYTES = 200
_LONGEST_HEADERS_BYTES = 16 * 2**10
"""Most bytes of header names and values in one part."""
_LONGEST_END_BYTES = 64 * 2**10
"""Most bytes after the last part, where data has no meaning."""


@dataclass(slots=True)
class Part:
    """One part of a multipart body."""

    name: str
    filename: str | None
    """None for a plain field. The last component of the path, printable, at most 255 characters."""
    content: Iterator[bytes] = field(default_factory=lambda: iter(()))
    """The part's bytes; read them before requesting the next part."""


def boundary_of(content_type: str) -> bytes:
    """Return the boundary of a multipart content type.

    Raises:
        UserError: The content type is another one, or has no boundary.
    """
    media_type, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if media_type != b"multipart/form-data" or not 0 < len(boundary) <= _LONGEST_BOUNDARY_BYTES:
        raise UserError("an upload must be multipart/form-data with the parts 'purpose' and 'file'", param="file")
    return boundary


def read_parts(blocks: Iterator[bytes], boundary: bytes) -> Iterator[Part]:
    """Yield the parts of a body in order, holding at most one block in memory.

    Raises:
        UserError: The body is malformed, ends early, or has too many or too long fields.
    """
    events = _parse(blocks, boundary)
    for number, (kind, value) in enumerate(events):  # `content` consumes the events inside a part
        if number >= _MOST_FIELDS or kind != "headers":
            raise UserError("the multipart body is malformed")
        part = _make_part(value)
        part.content = _content(events)
        yield part
        for _rest in part.content:  # skip what the caller did not read
            pass


def read_field(part: Part) -> str:
    """Return the text of a plain field.

    Raises:
        UserError: The field is too long or not UTF-8.
    """
    content = bytearray()
    for block in part.content:
        content += block
        if len(content) > _LONGEST_FIELD_BYTES:
            raise UserError(f"{part.name}: must have at most {_LONGEST_FIELD_BYTES} bytes", param=part.name)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{part.name}: must be UTF-8 text", param=part.name) from error


_Event = tuple[str, bytes]


def _parse(blocks: Iterator[bytes], boundary: bytes) -> Iterator[_Event]:
    """Yield parser events: (`headers`, value of Content-Disposition), (`data`, bytes) ..., (`end`, nothing)."""
    found: deque[_Event] = deque()
    name, value, disposition = bytearray(), bytearray(), bytearray()
    num_header_bytes = num_end_bytes = 0

    def keep(target: bytearray) -> Callable[[bytes, int, int], None]:
        def append(data: bytes, start: int, end: int) -> None:
            nonlocal num_header_bytes
            num_header_bytes += end - start + 1  # empty headers count too
            if num_header_bytes > _LONGEST_HEADERS_BYTES:
                raise UserError(
                    f"the headers of a part of the multipart body are longer than {_LONGEST_HEADERS_BYTES} bytes"
                )
            target.extend(data[start:end])

        return append

    def end_header() -> None:
        if name.lower() == b"content-disposition":
            disposition[:] = value
        name.clear()
        value.clear()

    def end_headers() -> None:
        nonlocal num_header_bytes
        found.append(("headers", bytes(disposition)))
        disposition.clear()
        num_header_bytes = 0

    finished = False

    def finish() -> None:
        nonlocal finished
        finished = True

    callbacks: MultipartCallbacks = {
        "on_header_field": keep(name),
        "on_header_value": keep(value),
        "on_header_end": end_header,
        "on_headers_finished": end_headers,
        "on_part_data": lambda data, start, end: found.append(("data", data[start:end])),
        "on_part_end": lambda: found.append(("end", b"")),
        "on_end": finish,
    }
    try:
        parser = MultipartParser(boundary, callbacks)
        for block in blocks:
            num_end_bytes += len(block) if finished else 0
            if num_end_bytes > _LONGEST_END_BYTES:
                raise UserError("the multipart body continues after its end")
            parser.write(block)
            while found:
                yield found.popleft()
    except FormParserError as error:
        raise UserError("the multipart body is malformed") from error
    if not finished:
        raise UserError("the multipart body is incomplete")


def _content(events: Iterator[_Event]) -> Iterator[bytes]:
    for kind, value in events:
        if kind == "end":
            return
        yield value
    raise UserError("the multipart body is incomplete")


def _make_part(disposition: bytes) -> Part:
    kind, options = parse_options_header(disposition)
    name = options.get(b"name", b"").decode("utf-8", "replace")
    if kind != b"form-data" or not name:
        raise UserError("a part of the multipart body has no name")
    if b"filename" not in options:
        return Part(name[:100], None)
    filename = options[b"filename"].decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    return Part(name[:100], UNSHOWABLE.sub("", filename)[-_LONGEST_FILENAME:].strip() or "upload")
