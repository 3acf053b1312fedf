"""`stoker run`: run one task over one input to the end. Starts a temporary stack if none is running."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.access.paths import check_replaces_no_input
from jobs.config.settings import ApiAddress, Settings
from jobs.errors import InvalidSpec, ServiceUnavailable
from jobs.specs.inference import Priority, parse_spec
from scheduler.cli.connect import DataDir, Json, Url, load_settings, open_client
from scheduler.cli.interrupts import interruptible
from scheduler.cli.outputs import check_output, show_results, write_results
from scheduler.cli.spec_documents import parse_pairs, parse_parameters
from scheduler.cli.task_help import TaskCommand
from scheduler.cli.terminal import say, short_bytes, stderr
from scheduler.cli.wait import check_completed, wait_or_cancel
from scheduler.client.http_client import StokerClient
from scheduler.client.inference_paths import bring, check_local_inputs
from scheduler.embedded.api_address import find_key, find_url
from scheduler.embedded.data_dir import AlreadyRunning, Use

_LARGE_UPLOAD_BYTES = 10 * 2**20
_OTHERS_START_SECONDS = 120.0
_LOOK_SECONDS = 0.1


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("run", cls=TaskCommand)(run)


def run(
    context: typer.Context,
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="Such as embeddings; `stoker run TASK --help` lists its parameters.")
    ],
    model: Annotated[str, typer.Option(help="A model's folder or hub id.")],
    input_path: Annotated[
        list[str], typer.Option("--input", help="JSONL, JSON, CSV, text or Parquet file, glob or data set.")
    ],
    text_column: Annotated[str | None, typer.Option(help="The input's column with the text.")] = None,
    column: Annotated[list[str] | None, typer.Option(metavar="NAME=COL", help="A column for the task's NAME.")] = None,
    key: Annotated[str | None, typer.Option(help="The column that identifies a row.")] = None,
    output: Annotated[Path | None, typer.Option(help="Result file: .jsonl, .parquet or .csv.")] = None,
    param: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="A parameter of the task; V may be JSON.")
    ] = None,
    input_format: Annotated[
        str, typer.Option("--format", help="auto, jsonl, json, csv, text, parquet or dataset.")
    ] = "auto",
    input_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Another field of the input, such as encoding=latin-1."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    slots: Annotated[int | None, typer.Option(min=1, help="The most slots to use.")] = None,
    priority: Annotated[Priority, typer.Option(help="Class of the job.")] = Priority.NORMAL,
    chunk_rows: Annotated[int | None, typer.Option(min=1, help="Rows committed at once.")] = None,
    max_row_errors: Annotated[
        str | None, typer.Option(metavar="N|N%", help="Rows that may fail; more fail the job.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="A label for people.")] = None,
    as_json: Json = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Run a task over a file and wait for the results.

    With --output they go to that file. Without, they go to standard output as JSON lines, or, on a terminal, the first
    ones as a table.
    """
    settings = load_settings(context, url=url, data_dir=data_dir)
    columns = parse_pairs(column or [], "--column") | ({} if text_column is None else {"text": text_column})
    document: dict[str, Any] = {
        "task": task,
        "model": model,
        "input": {
            "path": input_path[0] if len(input_path) == 1 else input_path,
            "format": input_format,
            "columns": columns,
            "key": key,
            **_other_fields(input_option or []),
        },
        "parameters": parse_parameters(param or []),
        "dtype": dtype,
        "slots": {"max": slots},
        "batching": {"chunk_rows": "auto" if chunk_rows is None else chunk_rows},
        "max_row_errors": _number_or_share(max_row_errors),
        "priority": priority.value,
        "name": name,
    }
    parse_spec(document)
    if output is not None:
        check_output(output)
        check_replaces_no_input(output, input_path, param="--output")
    with _reached_or_started(settings, document, slots) as client:
        job_id = str(client.submit(bring(document, client, on_upload=_say_upload))["id"])
        say(f"job {job_id}")
        job = wait_or_cancel(client, job_id)
        check_completed(job, blame_user=True)
        if output is not None:
            write_results(client, job_id, output)
        else:
            show_results(client, job, as_lines=as_json)


def _other_fields(pairs: list[str]) -> dict[str, str]:
    """Parse the input's fields that have no dedicated option.

    Raises:
        InvalidSpec: A field has a dedicated option.
    """
    fields = parse_pairs(pairs, "--input-option")
    own = {"path": "--input", "format": "--format", "columns": "--column", "key": "--key"}
    for name in fields:
        if name in own:
            raise InvalidSpec(f"--input-option: '{name}' has an option of its own, {own[name]}")
    return dict(fields)


def _number_or_share(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdecimal() and len(text) < 20 else text


@contextmanager
def _reached_or_started(settings: Settings, document: dict[str, Any], slots: int | None) -> Iterator[StokerClient]:
    """Open a client of the running API, or of a stack that is started for this command."""
    if settings.url:  # if an API is named, never start another one
        with interruptible(), open_client(settings, waits=True) as client:
            yield client
        return
    use = Use(settings.data_dir)
    with ExitStack() as cleanup:
        cleanup.callback(use.close)
        cleanup.enter_context(interruptible())
        use.begin()
        if not _answers(settings):
            check_local_inputs(document)
            settings = _start(settings, slots, use, cleanup)
        yield cleanup.enter_context(open_client(settings, waits=True))


def _start(settings: Settings, slots: int | None, use: Use, cleanup: ExitStack) -> Settings:
    """Start a stack that ends with `cleanup`, or wait for the one that another command is starting."""
    from scheduler.embedded.stack import Stack  # imports the database and the API

    stack = Stack(settings.model_copy(update={"port": 0, **({} if slots is None else {"slots": slots})}))
    try:
        with ExitStack() as starting, stderr.status("starting Redis, API and workers ..."):
            starting.enter_context(interruptible(stack.hurry))
            starting.enter_context(stack)
            cleanup.enter_context(starting.pop_all())
    except AlreadyRunning:
        _await_others(settings)
        return settings
    cleanup.callback(_leave_to_others, use)
    return stack.settings.model_copy(update={"url": stack.url})


def _leave_to_others(use: Use) -> None:
    if not use.try_end_all():
        say("another command still uses the stack; it is stopped when that one is done")
        use.end_all()


def _await_others(api: ApiAddress) -> None:
    give_up_at = time.monotonic() + _OTHERS_START_SECONDS
    while not _answers(api):
        if time.monotonic() > give_up_at:
            raise ServiceUnavailable(
                f"a stack holds {api.data_dir}, but no API answers at {find_url(api)} (see `stoker doctor`)"
            )
        time.sleep(_LOOK_SECONDS)  # the command that starts it sends no signal


def _answers(api: ApiAddress) -> bool:
    url = find_url(api)
    with StokerClient(url, find_key(api, url), retry_seconds=0) as client:
        try:
            client.health()
        except ServiceUnavailable:
            return False
        return True


def _say_upload(name: str, sent_bytes: int, num_bytes: int) -> None:
    if sent_bytes == num_bytes and num_bytes >= _LARGE_UPLOAD_BYTES:
        say(f"uploaded {name} ({short_bytes(num_bytes)})")
