"""`stoker status`, `watch`, `logs` and `slots`: the commands that only read."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from jobs.messages import counted
from jobs.specs.inference import TRAINING
from scheduler.cli.connect import DataDir, JobId, Json, Url, reach
from scheduler.cli.interrupts import interruptible
from scheduler.cli.terminal import (
    age,
    cell,
    clean,
    make_table,
    say,
    short_duration,
    short_number,
    show,
    show_json,
    show_json_lines,
    show_table,
    state_cell,
    stdout,
    table_width,
)
from scheduler.cli.wait import check_completed, wait_for
from scheduler.client import connection

_LEAST_TASK_WIDTH = 12
_DEVICE_WIDTH = 24
_FOLDED = {"no_wrap": False, "overflow": "fold"}
_RIGHT = {"justify": "right"}


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("status")(status)
    app.command("watch")(watch)
    app.command("logs")(logs)
    app.command("slots")(slots)


def status(
    context: typer.Context,
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="The job's id; absent, the latest jobs.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many of the latest jobs.")] = 20,
    as_json: Json = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Show one job, or the latest ones."""
    with interruptible(), reach(context, url, data_dir) as client:
        if job is not None:
            found = client.job(job)
            if as_json:
                show_json(found)
                return
            _show_job(found)
            if found["kind"] == TRAINING:
                _show_attempts(client.attempts(job))
            return
        page = client.jobs_page(limit=limit)
    if as_json:
        show_json(page)
        return
    _show_jobs(page["data"])


def watch(context: typer.Context, job: JobId, as_json: Json = False, url: Url = None, data_dir: DataDir = None) -> None:
    """Show a job's progress until it has ended.

    Exit code 0 when it has completed, else 1.
    """
    with interruptible(), reach(context, url, data_dir, waits=True) as client:
        if not as_json:
            check_completed(wait_for(client, job), blame_user=False)
            return
        last: connection.Json | None = None
        for last in client.watch(job):
            show_json_lines([last])
    if last is None or last["state"] != "completed":
        raise typer.Exit(1)


def logs(
    context: typer.Context,
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    as_json: Json = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Show what the job's runners logged."""
    with interruptible(), reach(context, url, data_dir, waits=follow) as client:
        lines = client.logs(job, follow=follow)
        if as_json:
            show_json_lines(lines)
            return
        for line in lines:
            at = datetime.fromtimestamp(line["at"]).strftime("%Y-%m-%d %H:%M:%S")
            origin = f"attempt {line['attempt']} {line['slot_id']}"
            show(clean(f"{at} {origin} | {line['line']}"))


def slots(context: typer.Context, as_json: Json = False, url: Url = None, data_dir: DataDir = None) -> None:
    """Show the slots: what each is and what it does."""
    with interruptible(), reach(context, url, data_dir) as client:
        found = client.slots()
    if as_json:
        show_json(found)
        return
    table = make_table("slot", "state", ("device", {"max_width": _DEVICE_WIDTH}), ("works on", _FOLDED))
    for slot in found:
        unseen = "another project's job" if slot["lease_id"] else "idle" if slot["state"] == "online" else ""
        doing = slot["job_id"] or slot["reason"] or unseen
        if slot["activity"]:
            doing = f"{doing}: {slot['activity']} for {age(slot['activity_at'])}"
        table.add_row(cell(slot["id"]), state_cell(slot["state"]), cell(slot["name"]), cell(doing))
    _show_list(table, len(found), "no slots yet: `stoker up` or `stoker worker` brings them")


def _show_jobs(jobs: list[connection.Json]) -> None:
    rows = [
        (
            str(job["id"]),
            str(job["state"]),
            clean(str(job["name"] or _task(job))),
            f"{short_number(job['counts']['done'])}/{short_number(job['counts']['total'])}",
            age(job["created_at"]),
        )
        for job in jobs
    ]
    others_width = sum(max((len(row[place]) for row in rows), default=0) + 2 for place in (0, 1, 3, 4))
    task_width = max(_LEAST_TASK_WIDTH, table_width() - others_width)
    table = make_table("job", "state", ("task", {"max_width": task_width}), ("rows", {"justify": "right"}), "age")
    for job_id, state, task, counts, old in rows:
        table.add_row(cell(job_id), state_cell(state), cell(task), counts, old)
    _show_list(table, len(rows), "no jobs yet")


def _show_list(table: Table, num_entries: int, otherwise: str) -> None:
    if num_entries:
        show_table(table)
    else:
        say(otherwise)


def _show_job(job: connection.Json) -> None:
    spec, counts = job["spec"], job["counts"]
    left = counts["total"] - counts["done"]
    noun = "step" if job["kind"] == TRAINING else "row"
    facts: list[tuple[str, str | Text]] = [
        ("job", cell(job["id"])),
        ("name", cell(job["name"] or "")),
        ("state", state_cell(job["state"])),
        ("task", cell(_task(job))),
        ("model", cell(_model(spec))),
        (f"{noun}s", f"{counts['done']:,} of {counts['total']:,}" if left else counted(counts["total"], noun)),
        ("row errors", f"{counts['failed']:,}" if counts["failed"] else ""),
        ("priority", job["priority"] if job["priority"] != "normal" else ""),
        ("slots", str(job["slots_held"]) if job["slots_held"] else ""),
        ("doing", cell(_doing(job))),
        ("waits for", cell(job["waiting_reason"] or "")),
        ("notice", cell("; ".join(notice["message"] for notice in job["notices"]))),
        ("submitted", f"{age(job['created_at'])} ago"),
        ("took", _took(job)),
        ("retry of", cell(job["retry_of"] or "")),
        ("metrics", cell(", ".join(f"{name} {value:.4g}" for name, value in job["metrics"].items()))),
        ("error", cell(job["error"]["message"] if job["error"] else "")),
    ]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold" if stdout.is_terminal else "")
    table.add_column(overflow="fold")
    for label, value in facts:
        if str(value):
            table.add_row(label, value)
    show_table(table)


def _show_attempts(attempts: list[connection.Json]) -> None:
    if not attempts:
        return
    halved = any(each["num_halvings"] for each in attempts)
    columns = [("halvings", _RIGHT)] if halved else []
    table = make_table(
        "attempt", ("slots", _FOLDED), *columns, ("from step", _RIGHT), ("to step", _RIGHT), "end", ("why", _FOLDED)
    )
    for each in attempts:
        numbers = [str(each["num_halvings"])] if halved else []
        numbers += [str(each["resumed_step"]), str(each["last_step"])]
        end = each["end"] or "running"
        why = "" if end == "completed" else each["reason"] or ""  # a completed attempt needs no reason
        table.add_row(str(each["number"]), cell(", ".join(each["slots"])), *numbers, end, cell(why))
    show_table(table)


def _doing(job: connection.Json) -> str:
    """What a job's slots do and for how long; slots with the same activity are counted together."""
    longest: dict[str, list[float]] = {}
    for each in job["doing"]:
        longest.setdefault(each["activity"], []).append(each["since"])
    return ", ".join(
        f"{what} for {age(min(since))}" + (f" ({len(since)} slots)" if len(since) > 1 else "")
        for what, since in longest.items()
    )


def _task(job: connection.Json) -> str:
    """A job's task in a word or two."""
    spec = job["spec"]
    if job["kind"] != TRAINING:
        return str(spec.get("task", job["kind"]))
    return f"training: {spec.get('task') or spec.get('module')}"


def _model(spec: connection.Json) -> str:
    model = spec.get("model") or ""
    return str(model["architecture"]) if isinstance(model, dict) else str(model)


def _took(job: connection.Json) -> str:
    if job["ended_at"] is None or job["started_at"] is None:
        return ""
    return short_duration(job["ended_at"] - job["started_at"])
