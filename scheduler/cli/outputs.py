"""Write results to a file or to stdout. The file is checked before any work starts, and written atomically."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import orjson
from rich.text import Text

from jobs.errors import InvalidOutput
from jobs.messages import counted
from scheduler.cli.terminal import (
    cell,
    clean,
    make_table,
    short_bytes,
    show_json_lines,
    show_message,
    show_table,
    stdout,
)
from scheduler.client.connection import Json
from scheduler.client.http_client import ResultFormat, StokerClient

_FORMATS: dict[str, ResultFormat] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".csv": "csv"}
_PREVIEW_ROWS = 10
_SHOWN_NUMBERS = 4
_KEY_WIDTH = 24
_SHOWN_CHARACTERS = 1000


def check_output(path: Path) -> ResultFormat:
    """Check that a result file can be written. Returns the format that its suffix names.

    Raises:
        InvalidOutput: The suffix is unknown, or the file cannot be written.
    """
    result_format = _FORMATS.get(path.suffix.lower())
    if result_format is None:
        raise InvalidOutput(f"the output '{path}' must end in .jsonl, .parquet or .csv", param="output")
    folder = path.absolute().parent
    if path.is_dir():
        raise InvalidOutput(f"the output '{path}' is a directory; name a file in it", param="output")
    if path.exists() and not path.is_file():
        raise InvalidOutput(f"the output '{path}' is not a regular file", param="output")
    if not folder.is_dir():
        raise InvalidOutput(f"cannot write the output: '{folder}' is not an existing folder", param="output")
    try:
        with tempfile.TemporaryFile(dir=folder):  # the mode alone does not show quotas, root or odd file systems
            return result_format
    except OSError as error:
        raise InvalidOutput(
            f"cannot write to the output folder '{folder}': {error.strerror}",
            param="output",
        ) from error


def write_results(client: StokerClient, job_id: str, path: Path) -> None:
    """Write a job's results to a file and report it on stderr.

    Raises:
        InvalidOutput: The file cannot be written.
    """
    result_format = check_output(path)
    try:
        num_bytes = client.results(job_id, path, format=result_format)
    except OSError as error:
        raise InvalidOutput(f"cannot write the output '{path}': {error.strerror}", param="output") from error
    show_message(f"results written to {path} ({short_bytes(num_bytes)})")


def show_results(client: StokerClient, job: Json, *, as_lines: bool, limit: int | None = None) -> None:
    """Print results: all of them as JSON lines for programs, or the first few as a table on a terminal.

    Args:
        client: Client of the API.
        job: The job whose results are printed.
        as_lines: Whether to print JSON lines even on a terminal.
        limit: Maximum number of results.
    """
    job_id = str(job["id"])
    if as_lines or not stdout.is_terminal:
        show_json_lines(client.iter_results(job_id, limit=limit))
        return
    num_rows = min(limit or _PREVIEW_ROWS, int(job["counts"]["done"]))
    table = make_table(("row", {"justify": "right"}), ("key", {"max_width": _KEY_WIDTH}), ("output", {"ratio": 1}))
    table.expand = True
    for result in itertools.islice(client.iter_results(job_id, limit=num_rows), num_rows):
        table.add_row(str(result["row_index"]), cell(result["key"] or ""), _output_cell(result))
    show_table(table)
    rest = int(job["counts"]["done"]) - num_rows
    if rest > 0:
        show_message(f"and {counted(rest, 'more row')}: stoker results {job_id} --output FILE.{{jsonl,parquet,csv}}")


def _output_cell(result: Json) -> Text:
    error = result["error"]
    if error is not None:
        text = cell(f"{error.get('code')}: {error.get('message')}")
        text.stylize("red")
        return text
    return cell(_brief(result["output"]))


def _brief(output: object) -> str:
    """An output on one line. A vector is shortened to its first numbers and its length."""
    if isinstance(output, list) and len(output) > _SHOWN_NUMBERS and all(isinstance(x, float | int) for x in output):
        numbers = ", ".join(f"{number:.4f}" for number in output[:_SHOWN_NUMBERS])
        return f"[{numbers}, ...] ({len(output)} numbers)"
    return clean(orjson.dumps(output).decode())[:_SHOWN_CHARACTERS]
