"""Print messages, tables and numbers to stdout or stderr: colours on a terminal, else plain text in 80 columns."""

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


class StdoutClosed(BaseException):
    """Standard output is closed, for example because its reader has ended (`| head`)."""


class WarningsHandler(logging.Handler):
    """Shows log records as lines on stderr, above the progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
        show_message(f"{record.levelname.lower()}: {text}")


def show(text: str) -> None:
    """Write lines to stdout."""
    _write(clean(text, keep_lines=True))


def _write(text: str) -> None:
    with _writing():
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def show_json(value: object) -> None:
    """Write one JSON document to stdout."""
    _write(clean_json(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()))


def show_json_lines(values: Iterable[object]) -> None:
    """Write one line of JSON for each value to stdout, as soon as the value arrives."""
    for value in values:
        line = clean_json(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE).decode())
        with _writing():
            sys.stdout.buffer.write(line.encode())
            sys.stdout.buffer.flush()


@contextmanager
def _writing() -> Iterator[None]:
    if sys.stdout is None:  # closed before the start (`>&-`)
        raise StdoutClosed
    try:
        yield
    except BrokenPipeError as error:
        # Nothing more may be written, not even when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise StdoutClosed from error
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ServiceUnavailable(f"cannot write to standard output: {error.strerror}") from error


def show_message(text: str) -> None:
    """Print a message to stderr."""
    stderr.print(Text(clean(text, keep_lines=True)), soft_wrap=True)


def show_error(text: str) -> None:
    """Print an error message to stderr."""
    stderr.print(Text.assemble(("error: ", "bold red"), clean(text)), soft_wrap=True)


def clean(text: str, *, keep_lines: bool = False) -> str:
    """Make untrusted text harmless: no character moves the cursor, changes a colour or reverses the text."""
    kept = "\t\n" if keep_lines else "\t"
    return UNSHOWABLE.sub(lambda found: found[0] if found[0] in kept else "\N{REPLACEMENT CHARACTER}", text)


def clean_json(text: str) -> str:
    """Escape the characters that `clean` replaces, which leaves the JSON's meaning unchanged."""
    return UNSHOWABLE.sub(lambda found: found[0] if found[0] in "\n" else f"\\u{ord(found[0]):04x}", text)


def make_table(*columns: str | tuple[str, dict[str, Any]]) -> Table:
    """Make a table without lines. A column is a heading, or a heading and Rich's options such as `max_width`."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        heading, options = (column, {}) if isinstance(column, str) else column
        table.add_column(heading, **{"no_wrap": True, "overflow": "ellipsis", **options})
    return table


def table_width() -> int:
    """Maximum width of a table, in characters."""
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
    """An untrusted value as a table's cell."""
    return Text(clean(str(text)))


def state_cell(state: str) -> str:
    """A state as Rich markup in its colour."""
    style, state = _STATE_STYLES.get(state), clean(state)
    return f"[{style}]{escape(state)}[/]" if style else escape(state)


def short_number(value: float) -> str:
    """A number with three digits and a unit, such as `12.3k`."""
    for size, unit in _UNITS:
        if value >= 0.9995 * size:
            scaled = value / size
            return f"{scaled:.0f}{unit}" if scaled >= 99.95 else f"{scaled:.3g}{unit}"
    return f"{value:.0f}" if value >= 9.95 or value == int(value) else f"{value:.1f}"


def short_bytes(value: float) -> str:
    """A number of bytes with a unit, such as `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def short_duration(seconds: float) -> str:
    """A duration such as `4.2s`, `3m12s`, `2h05m` or `3d04h`."""
    if seconds < 59.5:
        return f"{seconds:.1f}s" if seconds < 9.95 else f"{seconds:.0f}s"
    whole = round(seconds)
    for size, unit, smaller, smaller_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // smaller:02d}{smaller_unit}"
    return f"{whole}s"


def age(at: float) -> str:
    """Time since `at` (Unix seconds) as a short duration; 0 if this clock is behind."""
    return short_duration(max(0.0, time.time() - at))


def joined(parts: Sequence[str | None]) -> str:
    """The non-empty parts, separated by commas."""
    return ", ".join(part for part in parts if part)
