"""What a person reads: sentences, tables and figures on the right stream, in 80 columns, plain off a terminal."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from jobs.errors import ServiceUnavailable
from jobs.messages import UNSHOWABLE

_PLAIN_COLUMNS = 80
_UNITS = ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k"))
_STATE_STYLES = {
    **dict.fromkeys(("completed", "online", "ok", "delivered"), "green"),
    **dict.fromkeys(("failed", "broken", "fail"), "red"),
    **dict.fromkeys(("cancelled", "cancelling", "expired", "offline", "unheard", "warn"), "yellow"),
    **dict.fromkeys(("running", "finalizing"), "cyan"),
}

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


class ReaderGone(BaseException):
    """Nobody reads standard output any more (`| head`)."""


class WarningsHandler(logging.Handler):
    """Our own warnings as sentences on stderr, above a progress bar where one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
        say(f"{record.levelname.lower()}: {text}")


def show(text: str) -> None:
    """Write lines to stdout."""
    _write(clean(text, keep_lines=True))


def _write(text: str) -> None:
    with _reader():
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def show_json(value: object) -> None:
    """Write one JSON document to stdout."""
    _write(clean_json(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()))


def show_json_lines(values: Iterable[object]) -> None:
    """Write one line of JSON for each value to stdout, each as soon as it is there."""
    for value in values:
        line = clean_json(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE).decode())
        with _reader():
            sys.stdout.buffer.write(line.encode())
            sys.stdout.buffer.flush()


@contextmanager
def _reader() -> Iterator[None]:
    if sys.stdout is None:  # it was closed before the start (`>&-`)
        raise ReaderGone
    try:
        yield
    except BrokenPipeError as error:
        # Nothing more may be written, not even when Python flushes at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ReaderGone from error
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ServiceUnavailable(f"standard output cannot be written: {error.strerror}") from error


def say(text: str) -> None:
    """Tell a person something on stderr, beside the output."""
    stderr.print(Text(clean(text, keep_lines=True)), soft_wrap=True)


def complain(text: str) -> None:
    """Say on stderr what went wrong."""
    stderr.print(Text.assemble(("error: ", "bold red"), clean(text)), soft_wrap=True)


def clean(text: str, *, keep_lines: bool = False) -> str:
    """Text of others made harmless: no character of it moves the cursor, changes a colour or turns text around."""
    kept = "\t\n" if keep_lines else "\t"
    return UNSHOWABLE.sub(lambda found: found[0] if found[0] in kept else "\N{REPLACEMENT CHARACTER}", text)


def clean_json(text: str) -> str:
    """JSON whose texts hold such characters as escapes, which mean the same to every program."""
    return UNSHOWABLE.sub(lambda found: found[0] if found[0] in "\n" else f"\\u{ord(found[0]):04x}", text)


def make_table(*columns: str | tuple[str, dict[str, Any]]) -> Table:
    """A table without lines. A column is a heading, or one with Rich's options; give the long ones a `max_width`."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        heading, options = (column, {}) if isinstance(column, str) else column
        table.add_column(heading, **{"no_wrap": True, "overflow": "ellipsis", **options})
    return table


def table_width() -> int:
    """How wide a table may be, in characters."""
    return stdout.width if stdout.is_terminal else _PLAIN_COLUMNS


def show_table(table: Table) -> None:
    """Print a table to stdout."""
    if stdout.is_terminal:
        stdout.print(table)
        return
    with stdout.capture() as capture:
        stdout.print(table, width=table_width())
    show("\n".join(line.rstrip() for line in capture.get().splitlines()))


def cell(text: object) -> Text:
    """A value of others as a table's cell."""
    return Text(clean(str(text)))


def state_cell(state: str) -> str:
    """A state in its colour."""
    style, state = _STATE_STYLES.get(state), clean(state)
    return f"[{style}]{escape(state)}[/]" if style else escape(state)


def short_number(value: float) -> str:
    """`12.3k`: three figures and a unit."""
    for size, unit in _UNITS:
        if value >= 0.9995 * size:
            scaled = value / size
            return f"{scaled:.0f}{unit}" if scaled >= 99.95 else f"{scaled:.3g}{unit}"
    return f"{value:.0f}" if value >= 9.95 or value == int(value) else f"{value:.1f}"


def short_bytes(value: float) -> str:
    """`1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def short_duration(seconds: float) -> str:
    """`4.2s`, `3m12s`, `2h05m`, `3d04h`."""
    if seconds < 59.5:
        return f"{seconds:.1f}s" if seconds < 9.95 else f"{seconds:.0f}s"
    whole = round(seconds)
    for size, unit, smaller, smaller_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // smaller:02d}{smaller_unit}"
    return f"{whole}s"


def age(at: float) -> str:
    """How long ago a time was, for a person; a clock that is behind shows 0."""
    return short_duration(max(0.0, time.time() - at))


def joined(parts: Sequence[str | None]) -> str:
    """The parts that are there, with commas."""
    return ", ".join(part for part in parts if part)
