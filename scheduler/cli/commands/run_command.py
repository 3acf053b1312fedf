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
from scheduler.cli.spec_documents import parse_needs, parse_pairs, parse_parameters
from scheduler.cli.task_help import TaskCommand
from scheduler.cli.terminal import short_bytes, show_message, stderr
from scheduler.cli.wait import check_completed, wait_or_cancel
from scheduler.client.http_client import StokerClient
from scheduler.client.inference_paths import adapt_inference, check_local_inputs
from scheduler.embedded.api_address import find_key, find_url
from scheduler.embedded.data_dir import AlreadyRunning, StackUseLock

_LARGE_UPLOAD_BYTES = 10 * 2**20
_OTHER_STACK_SECONDS = 120.0
_POLL_SECONDS = 0.1


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("run", cls=TaskCommand)(run)


def run(
    context: typer.Context,
    task: Annotated[
        str,
        typer.Argument(metavar="TASK", help="Task, such as embeddings. `stoker run TASK --help` lists its parameters."),
    ],
    model: Annotated[str, typer.Option(help="Folder or hub id of the model.")],
    input_path: Annotated[list[str], typer.Option("--input", help="Input file, glob or dataset. May be repeated.")],
    text_column: Annotated[str | None, typer.Option(help="Input column that holds the text.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COL", help="Input column COL holds the task's input NAME. May be repeated."),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Input column that identifies a row.")] = None,
    output: Annotated[Path | None, typer.Option(help="Result file that ends in .jsonl, .parquet or .csv.")] = None,
    param: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Parameter of the task; V may be JSON. May be repeated.")
    ] = None,
    input_format: Annotated[
        str, typer.Option("--format", help="Input format: auto, jsonl, json, csv, text, parquet or dataset.")
    ] = "auto",
    input_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Another input field, such as encoding=latin-1. May be repeated."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Number format: auto, float32, bfloat16 or float16.")] = "auto",
    slots: Annotated[int | None, typer.Option(min=1, help="Maximum number of slots.")] = None,
    needs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="What each slot must have: memory=40GB, device=cuda or labels=a100. May be repeated.",
        ),
    ] = None,
    priority: Annotated[Priority, typer.Option(help="Priority of the job.")] = Priority.NORMAL,
    chunk_rows: Annotated[int | None, typer.Option(min=1, help="Rows of a chunk. Default: chosen by Stoker.")] = None,
    max_row_errors: Annotated[
        str | None, typer.Option(metavar="N|N%", help="Rows that may fail before the job fails.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the job, shown in lists.")] = None,
    as_json: Json = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Run a task over an input file and wait for the results.

    With --output, the results go to that file. Without it, they go to standard output: as JSON lines, or on a terminal
    as a table of the first rows.
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
        **({"needs": parse_needs(needs)} if needs else {}),
        "batching": {"chunk_rows": "auto" if chunk_rows is None else chunk_rows},
        "max_row_errors": _number_or_share(max_row_errors),
        "priority": priority.value,
        "name": name,
    }
    parse_spec(document)
    if output is not None:
        check_output(output)
        check_replaces_no_input(output, input_path, param="--output")
    with _connect_or_start(settings, document, slots) as client:
        job_id = str(client.submit(adapt_inference(document, client, on_upload=_show_upload))["id"])
        show_message(f"job {job_id}")
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
            raise InvalidSpec(f"--input-option: set '{name}' with {own[name]} instead")
    return dict(fields)


def _number_or_share(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdecimal() and len(text) < 20 else text


@contextmanager
def _connect_or_start(settings: Settings, document: dict[str, Any], slots: int | None) -> Iterator[StokerClient]:
    """Open a client of the running API, or of a stack that is started for this command."""
    if settings.url:  # if an API is named, never start another one
        with interruptible(), open_client(settings, waits=True) as client:
            yield client
        return
    use = StackUseLock(settings.data_dir)
    with ExitStack() as cleanup:
        cleanup.callback(use.close)
        cleanup.enter_context(interruptible())
        use.share()
        if not _responds(settings):
            check_local_inputs(document)
            settings = _start(settings, slots, use, cleanup)
        yield cleanup.enter_context(open_client(settings, waits=True))


def _start(settings: Settings, slots: int | None, use: StackUseLock, cleanup: ExitStack) -> Settings:
    """Start a stack that ends with `cleanup`, or wait for the one that another command is starting."""
    from scheduler.embedded.stack import Stack  # imports the database and the API

    stack = Stack(settings.model_copy(update={"port": 0, **({} if slots is None else {"slots": slots})}))
    try:
        with ExitStack() as starting, stderr.status("starting Redis, the API and the workers ..."):
            starting.enter_context(interruptible(stack.kill_if_stopping))
            starting.enter_context(stack)
            cleanup.enter_context(starting.pop_all())
    except AlreadyRunning:
        _wait_for_other_stack(settings)
        return settings
    cleanup.callback(_wait_for_other_users, use)
    return stack.settings.model_copy(update={"url": stack.url})


def _wait_for_other_users(use: StackUseLock) -> None:
    if not use.try_take():
        show_message("another command still uses the stack; waiting for it before stopping the stack")
        use.take()


def _wait_for_other_stack(api: ApiAddress) -> None:
    give_up_at = time.monotonic() + _OTHER_STACK_SECONDS
    while not _responds(api):
        if time.monotonic() > give_up_at:
            raise ServiceUnavailable(
                f"a stack is running on {api.data_dir}, but its API at {find_url(api)} does not respond; "
                "run `stoker doctor`"
            )
        time.sleep(_POLL_SECONDS)  # the command that starts it sends no signal


def _responds(api: ApiAddress) -> bool:
    url = find_url(api)
    with StokerClient(url, find_key(api, url), retry_seconds=0) as client:
        try:
            client.health()
        except ServiceUnavailable:
            return False
        return True


def _show_upload(name: str, sent_bytes: int, num_bytes: int) -> None:
    if sent_bytes == num_bytes and num_bytes >= _LARGE_UPLOAD_BYTES:
        show_message(f"uploaded {name} ({short_bytes(num_bytes)})")
