"""The output lines of a batch in input order, for its output files and for reads before its end."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from jobs.access.paths import upload_id
from jobs.data.rows import Result, RowError
from jobs.data.sinks.database_sink import read_records
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import BatchState, JobState
from jobs.db.tables import Batch, Job
from jobs.ledger.accounts.uploads import find_upload
from scheduler.openai.requests import ENDPOINTS, of_line
from scheduler.openai.responses import LineResult

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
_JOB_ERRORS_OF_CLIENTS = frozenset({"invalid_spec", "invalid_model", "invalid_input", "invalid_request"})
"""Job error codes that are reported per line."""


@dataclass(frozen=True, slots=True)
class OutputLine:
    """One line of a batch's output or error file."""

    line: int
    """1-based line number in the input file."""
    text: bytes
    """The output line, including its newline."""
    succeeded: bool
    ran: bool
    """Whether the line was run; False if the batch ended first."""
    input_tokens: int = 0
    output_tokens: int = 0


def output_lines(
    db: Database, store: Store, batch: Batch, jobs: list[Job], *, unfinished: bool
) -> Iterator[OutputLine]:
    """Yield the output lines of a batch in input order, reading lazily.

    The result is the same at each call: ids and times in it derive from the batch and the line.

    Args:
        jobs: The jobs of the batch.
        unfinished: Also yield lines without a result, because the batch has ended and they will get none.
    """
    streams = [_of_job(db, store, batch, job, unfinished=unfinished) for job in jobs]
    if batch.carried_key is not None:
        streams.append(_carried(store, batch.carried_key))
    return heapq.merge(*streams, key=lambda output: output.line)


def _carried(store: Store, key: str) -> Iterator[OutputLine]:
    with store.open(key) as file:
        for line in file:
            carried = orjson.loads(line)
            body = carried["answer"]["response"]["body"]
            yield OutputLine(
                carried["line"], orjson.dumps(carried["answer"], option=_OPTIONS), True, True, *_tokens(body)
            )


def _of_job(db: Database, store: Store, batch: Batch, job: Job, *, unfinished: bool) -> Iterator[OutputLine]:
    spec_path = job.spec["input"]["path"]
    rows = find_upload(db, upload_id(spec_path) or "")
    results = read_records(db, job.id)
    result = next(results, None)
    write = _writer(batch)
    with store.open(rows.key) as file:
        for row_index, text in enumerate(file):
            while result is not None and result.row_index < row_index:
                result = next(results, None)
            recorded = result if result is not None and result.row_index == row_index else None
            if recorded is not None or unfinished:
                yield write(orjson.loads(text), recorded, job)


def _writer(batch: Batch) -> Callable[[Mapping[str, Any], Result | None, Job], OutputLine]:
    endpoint = ENDPOINTS[batch.endpoint]

    def write(row: Mapping[str, Any], result: Result | None, job: Job) -> OutputLine:
        line = row["line"]
        digest = hashlib.blake2b(f"{batch.id}/{line}".encode(), digest_size=12).hexdigest()
        document: dict[str, Any] = {"id": f"batch_req_{digest}", "custom_id": row["custom_id"]}
        if result is None and not (job.state == JobState.FAILED and job.error_code in _JOB_ERRORS_OF_CLIENTS):
            document.update(response=None, error=_not_run(batch, job))
            return OutputLine(line, orjson.dumps(document, option=_OPTIONS), succeeded=False, ran=False)
        if result is not None and result.error is None:
            status = 200
            name = batch.model or row["model"]
            created_at = int(job.started_at or job.created_at)
            parameters = job.spec["parameters"]
            body = endpoint.write(
                LineResult(result.output, result.num_tokens, name, row.get("form"), digest, created_at, parameters)
            )
        else:
            status, body = _error_response(row, None if result is None else result.error, job, endpoint.prompt)
        document["response"] = {"status_code": status, "request_id": f"req_{digest}", "body": body}
        document["error"] = None
        tokens = _tokens(body) if status == 200 else (0, 0)
        return OutputLine(line, orjson.dumps(document, option=_OPTIONS), status == 200, True, *tokens)

    return write


def _error_response(
    row: Mapping[str, Any], error: RowError | None, job: Job, prompt: str
) -> tuple[int, dict[str, Any]]:
    """HTTP status and body of a line without output; `prompt` is the body's key that row errors refer to."""
    invalid = row.get("refusal")
    if invalid is not None:
        return 400, _error_body(invalid["message"], invalid["code"], invalid["param"])
    if error is None:
        message, param = of_line(job.error_message or "")
        return 400, _error_body(message, job.error_code or "", param)
    if error.is_clients:
        return 400, _error_body(error.message, error.code, prompt)
    return 500, _error_body(error.message, error.code, None, kind="server_error")


def _error_body(message: str, code: str, param: str | None, *, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _not_run(batch: Batch, job: Job) -> dict[str, Any]:
    if job.state == JobState.EXPIRED:
        return {"code": "batch_expired", "message": "the batch's completion window ended before this request was run"}
    if job.state == JobState.FAILED and batch.state != BatchState.CANCELLING:
        return {"code": job.error_code, "message": job.error_message}
    return {"code": "batch_cancelled", "message": "the batch was cancelled before this request was run"}


def _tokens(body: Mapping[str, Any] | str) -> tuple[int, int]:
    """Input and output tokens of a response body; none for transcripts, whose sounds are not counted in tokens."""
    usage = None if isinstance(body, str) else body.get("usage")
    if usage is None or "prompt_tokens" not in usage:
        return 0, 0
    return usage["prompt_tokens"], usage["total_tokens"] - usage["prompt_tokens"]
