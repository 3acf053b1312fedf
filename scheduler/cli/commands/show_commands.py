"""`stoker status`, `watch`, `logs` and `slots`: the commands that only read."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from jobs.errors import UserError
from jobs.messages import counted
from jobs.specs.array_spec import ARRAY, SWEEP
from jobs.specs.inference import TRAINING
from jobs.specs.needs import in_gigabytes
from scheduler.cli.connect import DataDir, JobId, Json, Url, connect
from scheduler.cli.forecast_text import clock, forecast_text
from scheduler.cli.interrupts import interruptible
from scheduler.cli.progress import noun_of
from scheduler.cli.terminal import (
    age,
    cell,
    clean,
    make_table,
    short_duration,
    short_number,
    show,
    show_json,
    show_json_lines,
    show_message,
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
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="Id of the job; if absent, the latest jobs.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Number of jobs to list.")] = 20,
    children: Annotated[bool, typer.Option("--children", help="List the latest children of the array JOB.")] = False,
    as_json: Json = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Show one job, or list the latest jobs."""
    with interruptible(), connect(context, url, data_dir) as client:
        if job == "":
            raise UserError("JOB: is empty; name a job, or leave it out for a list")
        if children and job is None:
            raise UserError("--children: name an array, as in `stoker status JOB --children`")
        if job is not None and not children:
            found = client.job(job)
            if as_json:
                show_json(found)
                return
            _show_job(found)
            if found["kind"] == TRAINING:
                _show_attempts(client.attempts(job))
            return
        page = client.jobs_page(limit=limit, parent=job)
    if as_json:
        show_json(page)
        return
    _show_jobs(page["data"])


def watch(context: typer.Context, job: JobId, as_json: Json = False, url: Url = None, data_dir: DataDir = None) -> None:
    """Show a job's progress until it has ended.

    The exit code is 0 if the job completed, else 1.
    """
    with interruptible(), connect(context, url, data_dir, waits=True) as client:
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
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the job has ended.")] = False,
    as_json: Json = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Show the log lines of a job's runners."""
    with interruptible(), connect(context, url, data_dir, waits=follow) as client:
        lines = client.logs(job, follow=follow)
        if as_json:
            show_json_lines(lines)
            return
        for line in lines:
            at = datetime.fromtimestamp(line["at"]).strftime("%Y-%m-%d %H:%M:%S")
            origin = f"attempt {line['attempt']} {line['slot_id']}"
            show(clean(f"{at} {origin} | {line['line']}"))


class SlotOrder(StrEnum):
    """What `stoker slots` lists."""

    SLOT = "slot"
    PROJECT = "project"


def slots(
    context: typer.Context,
    by: Annotated[SlotOrder, typer.Option(help="List each slot, or each project's share of them.")] = SlotOrder.SLOT,
    as_json: Json = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """List the slots with device, memory, labels, state and work, or the projects with their shares and use."""
    with interruptible(), connect(context, url, data_dir) as client:
        found = client.slots() if by is SlotOrder.SLOT else client.shares()
    if as_json:
        show_json(found)
    elif by is SlotOrder.PROJECT:
        _show_shares(found)
    else:
        _show_slots(found)


def _show_shares(shares: list[connection.Json]) -> None:
    numbers = ("weight", "guaranteed", "holds", "held lately", "GPU hours", "of")
    table = make_table("project", *((name, _RIGHT) for name in numbers))
    for share in shares:
        guaranteed, hours = share["slots"], share["gpu_hours"]
        table.add_row(
            cell(share["project"]),
            f"{share['weight']:g}",
            "" if guaranteed is None else str(guaranteed),
            str(share["slots_held"]),
            f"{share['slots_lately']:.1f}",
            f"{hours['used']:.1f}",
            "" if hours["limit"] is None else f"{hours['limit']:g}",
        )
    _show_list(table, len(shares), "no project has used a slot yet")


def _show_slots(found: list[connection.Json]) -> None:
    has_labels = any(slot["labels"] for slot in found)
    table = make_table(
        "slot", "state", ("device", {"max_width": _DEVICE_WIDTH}), ("memory", _RIGHT),
        *([("labels", _FOLDED)] if has_labels else []), ("works on", _FOLDED),
    )  # fmt: skip
    for slot in found:
        unseen = "another project's job" if slot["lease_id"] else "idle" if slot["state"] == "online" else ""
        doing = slot["job_id"] or slot["reason"] or unseen
        if slot["activity"]:
            doing = f"{doing}: {slot['activity']} for {age(slot['activity_at'])}"
        labels = [cell(", ".join(slot["labels"]))] if has_labels else []
        device = cell(f"{slot['device']} {slot['name']}")
        memory = in_gigabytes(slot["memory_bytes"])
        table.add_row(cell(slot["id"]), state_cell(slot["state"]), device, memory, *labels, cell(doing))
    _show_list(table, len(found), "no slots yet; start them with `stoker up` or `stoker worker`")


def _show_jobs(jobs: list[connection.Json]) -> None:
    rows = [
        (
            str(job["id"]),
            str(job["state"]),
            clean(str(job["name"] or _values(job["trial_values"]) or _task(job))),
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
        show_message(otherwise)


def _show_job(job: connection.Json) -> None:
    spec, counts = job["spec"], job["counts"]
    left = counts["total"] - counts["done"]
    noun = noun_of(job)
    facts: list[tuple[str, str | Text]] = [
        ("job", cell(job["id"])),
        ("name", cell(job["name"] or "")),
        ("state", state_cell(job["state"])),
        ("task", cell(_task(job))),
        ("model", cell(_model(spec))),
        (noun[1], f"{counts['done']:,} of {counts['total']:,}" if left else counted(counts["total"], *noun)),
        ("", ", ".join(f"{number:,} {state}" for state, number in (job["children"] or {}).items())),
        ("best trial", cell(_best_trial(job["sweep"]))),
        ("ended early", _ended_early(job)),
        ("values", cell(_values(job["trial_values"]))),
        ("not completed" if job["children"] else "row errors", f"{counts['failed']:,}" if counts["failed"] else ""),
        ("priority", job["priority"] if job["priority"] != "normal" else ""),
        ("slots", str(job["slots_held"]) if job["slots_held"] else ""),
        ("activity", cell(_doing(job))),
        ("waiting", cell(job["waiting_reason"] or "")),
        ("promised", f"done by {clock(job['promise_at'])}" if job["promise_at"] else ""),
        ("starts", forecast_text((job["forecast"] or {}).get("start"))),
        ("ends", forecast_text((job["forecast"] or {}).get("end"))),
        ("notice", cell("; ".join(notice["message"] for notice in job["notices"]))),
        ("submitted", f"{age(job['created_at'])} ago"),
        ("took", _took(job)),
        ("retry of", cell(job["retry_of"] or "")),
        ("child of", cell(f"{job['parent_id']}, number {job['child_index']}" if job["parent_id"] else "")),
        ("device", cell(_device_use(job["stages"]))),
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


def _values(values: connection.Json | None) -> str:
    """What was searched, as `lr=0.001, layers=2`."""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in (values or {}).items()}
    return ", ".join(f"{name}={value}" for name, value in shown.items())


def _best_trial(sweep: connection.Json | None) -> str:
    best = sweep and sweep["best"]
    if not sweep or not best:
        return ""
    return f"{best['job_id']}: {sweep['metric']} {best['value']:.4g}, {_values(best['values'])}"


def _ended_early(job: connection.Json) -> str:
    if job["pruned_step"] is not None:
        return f"by its sweep, at step {job['pruned_step']}"
    num_pruned = (job["sweep"] or {}).get("num_pruned")
    return counted(num_pruned, "trial") if num_pruned else ""


def _device_use(stages: connection.Json | None) -> str:
    if stages is None or stages["device_busy"] is None:
        return ""
    padding = f", {stages['padding']:.0%} padding" if stages["padding"] else ""
    return (
        f"busy {stages['device_busy']:.0%} of the time{padding}; limited by {stages['limited_by']}: {stages['advice']}"
    )


def _show_attempts(attempts: list[connection.Json]) -> None:
    if not attempts:
        return
    halved = any(each["num_halvings"] for each in attempts)
    columns = [("halvings", _RIGHT)] if halved else []
    table = make_table(
        "attempt", ("slots", _FOLDED), *columns, ("from step", _RIGHT), ("to step", _RIGHT), "end", ("reason", _FOLDED)
    )
    for each in attempts:
        numbers = [str(each["num_halvings"])] if halved else []
        numbers += [str(each["resumed_step"]), str(each["last_step"])]
        end = each["end"] or "running"
        reason = "" if end == "completed" else each["reason"] or ""  # a completed attempt needs no reason
        table.add_row(str(each["number"]), cell(", ".join(each["slots"])), *numbers, end, cell(reason))
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
    what = str(spec.get("task") or spec.get("module") or job["kind"])
    if job["kind"] == ARRAY:
        return f"{SWEEP if spec.get(SWEEP) else ARRAY}: {what}"
    return f"training: {what}" if job["kind"] == TRAINING else what


def _model(spec: connection.Json) -> str:
    model = spec.get("model") or ""
    return str(model["architecture"]) if isinstance(model, dict) else str(model)


def _took(job: connection.Json) -> str:
    if job["ended_at"] is None or job["started_at"] is None:
        return ""
    return short_duration(job["ended_at"] - job["started_at"])
