"""Read a batch's input file once: report every invalid line, and split the lines into one input per job."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import orjson

from jobs.access.pins import Pins
from jobs.config.catalogue import CatalogueModel
from jobs.data.drafts import Draft
from jobs.data.store import Store
from jobs.data.store_keys import batch_prefix
from jobs.db.ids import new_id
from jobs.db.tables import StoredFile
from jobs.errors import NotFound, UserError
from jobs.ledger.groups.batches import BatchPart, BatchPlan
from jobs.messages import short, short_message, shown
from jobs.specs.bounds import LONGEST_PATH_BYTES
from jobs.specs.inference import JobSpec, parse_spec
from scheduler.openai.line_error import LineError
from scheduler.openai.requests import ENDPOINTS, TASK_DEFAULTS, TASK_PARAMETERS, LineRequest

MOST_ERRORS = 1000
"""Most invalid lines that are reported."""
MOST_PARTS = 64
"""Most jobs of one batch: its models times the job parameters in which its lines differ."""
LONGEST_CUSTOM_ID_CHARACTERS = 512
"""Longest `custom_id` of a line, in characters."""
MOST_INLINED_BYTES = 20 * 2**30
"""Most bytes of uploaded files that are copied into the rows of one batch."""
_DATA_URL = "data:application/octet-stream;base64,"
_BLOCK_BYTES = 2**20
_CHECK_LINES = 1000  # between two calls of `is_wanted`


class BadBatch(Exception):
    """The batch is invalid."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        """
        Args:
            errors: One `{code, message, line, param}` per error, in line order.
        """
        super().__init__(f"{len(errors)} errors")
        self.errors = errors


class _InvalidLine(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


@dataclass(slots=True)
class _Part:
    """One job's input while it is being written."""

    model: CatalogueModel
    parameters: Mapping[str, Any]
    draft: Draft
    num_rows: int = 0
    file_id: str = field(default_factory=lambda: new_id("file"))


class Intake:
    """Reads one batch's input."""

    def __init__(
        self,
        store: Store,
        batch_id: str,
        endpoint: str,
        *,
        find_model: Callable[[str, str], CatalogueModel],
        find_file: Callable[[str], StoredFile],
        stamp: Callable[[JobSpec], Pins],
        max_lines: int,
        max_line_bytes: int,
        max_rows: int | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """
        Args:
            store: The store to write the jobs' inputs to.
            batch_id: The batch.
            endpoint: The endpoint that every line must name.
            find_model: Returns the model that a client's model name means for a task; raises `UserError`.
            find_file: Returns the upload of an id, if the batch's project may read it; raises `NotFound`.
            stamp: Returns the pins of a job's spec as its files are now; raises `UserError`.
            max_lines: Most lines of a batch.
            max_line_bytes: Longest line in bytes, without its newline.
            max_rows: Most lines to run, not counting lines whose responses are reused; None for no limit.
            is_wanted: Called now and then; when it returns False, `InterruptedError` is raised.
        """
        self._store, self._batch_id, self._endpoint = store, batch_id, endpoint
        self._translation = ENDPOINTS[endpoint]
        self._find_model, self._find_file, self._stamp = find_model, find_file, stamp
        self._max_lines, self._max_line_bytes, self._max_rows = max_lines, max_line_bytes, max_rows
        self._is_wanted = is_wanted
        self._folder = f"{batch_prefix(batch_id)}{new_id('intake')}/"
        self._errors: list[dict[str, Any]] = []
        self._models: dict[str, CatalogueModel | None] = {}
        self._parts: dict[tuple[str, bytes], _Part] = {}
        self._seen: set[bytes] = set()
        self._num_inlined_bytes = 0
        self._drafts = ExitStack()

    @property
    def folder(self) -> str:
        """Prefix of the store keys of everything written."""
        return self._folder

    def read(self, file: BinaryIO, earlier_output: Iterator[Mapping[str, Any]]) -> BatchPlan:
        """Validate and split the lines.

        Args:
            file: The uploaded file, positioned at its start.
            earlier_output: Output lines of another batch over the same file, in order, whose responses are reused.

        Raises:
            BadBatch: A line is invalid; nothing is left in the store.
            InterruptedError: `is_wanted` returned False.
            ServiceUnavailable: The store cannot be reached.
        """
        with self._drafts:
            num_lines, carried = self._read_lines(file, earlier_output)
            if self._errors:
                raise BadBatch(self._errors)
        # Every draft is stored now that its block has ended.
        names = {name for name, _ in self._parts}
        parts = [self._finished(part) for part in self._parts.values()]
        num_carried, draft = carried
        return BatchPlan(
            num_lines,
            names.pop() if len(names) == 1 else None,
            parts,
            num_carried,
            draft.stored if draft is not None else None,
        )

    def _read_lines(
        self, file: BinaryIO, earlier_output: Iterator[Mapping[str, Any]]
    ) -> tuple[int, tuple[int, Draft | None]]:
        num_lines = num_carried = 0
        draft: Draft | None = None
        earlier = next(earlier_output, None)
        for number, line in numbered_lines(file, self._max_line_bytes):
            num_lines += 1
            if num_lines > self._max_lines:
                message = f"the file has more than {self._max_lines} requests"
                raise BadBatch([_error("too_many_tasks", message, None)])
            if num_lines % _CHECK_LINES == 0 and not self._is_wanted():
                raise InterruptedError("this scheduler is no longer the leader")
            try:
                request = self._checked(line)
                if earlier is None or earlier["custom_id"] != request["custom_id"]:
                    self._place(number, request)
                    self._check_room(num_lines - num_carried)
                    continue
            except _InvalidLine as invalid:
                self._note(number, invalid)
                continue
            if draft is None:
                draft = self._drafts.enter_context(self._store.create(f"{self._folder}carried.jsonl"))
            draft.write(orjson.dumps({"line": number, "answer": earlier}) + b"\n")
            num_carried += 1
            earlier = next(earlier_output, None)
        if not num_lines:
            self._errors.append(_error("empty_file", "the file has no requests", None))
        return num_lines, (num_carried, draft)

    def _check_room(self, num_rows: int) -> None:
        if self._max_rows is not None and num_rows > self._max_rows:
            message = f"the file has more than {self._max_rows} requests to run, the limit of the project (queued_rows)"
            raise BadBatch([_error("too_many_tasks", message, None)])

    # -- one line

    def _checked(self, line: bytes | None) -> dict[str, Any]:
        """Parse the line's request; raises `_InvalidLine`."""
        if line is None:
            raise _InvalidLine("line_too_long", f"must have at most {self._max_line_bytes} bytes")
        try:
            request = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise _InvalidLine("invalid_json_line", f"must be valid JSON: {error}") from error
        if not isinstance(request, dict):
            raise _InvalidLine("invalid_json_line", "must be a JSON object")
        custom_id = request.get("custom_id")
        if not isinstance(custom_id, str) or not custom_id:
            raise _InvalidLine("missing_required_parameter", "custom_id: must be a text that is not empty", "custom_id")
        if len(custom_id) > LONGEST_CUSTOM_ID_CHARACTERS:
            message = f"custom_id: must have at most {LONGEST_CUSTOM_ID_CHARACTERS} characters"
            raise _InvalidLine("invalid_value", message, "custom_id")
        digest = hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
        if digest in self._seen:
            raise _InvalidLine(
                "duplicate_custom_id", f"custom_id: {shown(custom_id, 80)} is used by an earlier line", "custom_id"
            )
        self._seen.add(digest)
        if request.get("method") != "POST":
            raise _InvalidLine("invalid_method", "method: must be POST", "method")
        if request.get("url") != self._endpoint:
            message = f"url: must be {self._endpoint}, the endpoint of the batch, not {shown(request.get('url'), 80)}"
            raise _InvalidLine("url_mismatch", message, "url")
        body = request.get("body")
        if not isinstance(body, dict):
            raise _InvalidLine("missing_required_parameter", "body: must be an object", "body")
        if not isinstance(body.get("model"), str) or not body["model"]:
            raise _InvalidLine(
                "missing_required_parameter", "body.model: must be a text that is not empty", "body.model"
            )
        if len(body["model"]) > LONGEST_PATH_BYTES:
            raise _InvalidLine(
                "invalid_value", f"body.model: must have at most {LONGEST_PATH_BYTES} characters", "body.model"
            )
        return request

    # -- where it goes

    def _place(self, number: int, request: Mapping[str, Any]) -> None:
        """Write a request into its job's input; a rejected request becomes an empty row there."""
        body = request["body"]
        model = self._model(body["model"])
        if model is None or self._errors:
            return  # the batch is invalid already, so nothing will be run
        row = {"custom_id": request["custom_id"], "line": number, "model": body["model"]}
        try:
            row_request = self._translation.read(body)
            row.update(row_request.values)
            if row_request.form is not None:
                row["form"] = row_request.form
            if row_request.file_id is not None:
                [column] = self._translation.columns
                row[column] = self._inlined(row_request.file_id, len(orjson.dumps(row)))
        except LineError as error:
            row_request = LineRequest(dict.fromkeys(self._translation.columns))
            row.update(row_request.values)
            row["refusal"] = {"message": error.message, "code": error.code, "param": error.param}
        part = self._part(body["model"], model, row_request.parameters)
        part.draft.write(orjson.dumps(row) + b"\n")
        part.num_rows += 1

    def _inlined(self, file_id: str, num_row_bytes: int) -> str:
        """The bytes of an upload as a data URL, for a row that has `num_row_bytes` without them.

        A row never names a file of the store, because a job's own rows could then name the files of other projects.
        """
        param, limit = self._translation.prompt, self._max_line_bytes
        if not self._is_wanted():
            raise InterruptedError("this scheduler is no longer the leader")
        try:
            file = self._find_file(file_id)
            if file.purpose != "input":
                message = f"{param}: the uploaded file must have the purpose 'input', not '{file.purpose}'"
                raise LineError(message, code="invalid_value", param=param)
            if num_row_bytes + len(_DATA_URL) + -(-file.num_bytes // 3) * 4 > limit:
                message = (
                    f"{param}: the {file.num_bytes} bytes of the uploaded file make a row of more than {limit} bytes"
                )
                raise LineError(f"{message} in base64 (setting max_row_bytes)", code="invalid_value", param=param)
            self._num_inlined_bytes += file.num_bytes
            if self._num_inlined_bytes > MOST_INLINED_BYTES:
                message = (
                    f"the uploaded files that the requests name have more than {MOST_INLINED_BYTES} bytes together"
                )
                raise BadBatch([_error("files_too_large", message, None)])
            with self._store.open(file.key) as content:
                return _DATA_URL + base64.b64encode(content.read()).decode()
        except NotFound as error:
            message = f"{param}: there is no uploaded file {shown(file_id)}"
            raise LineError(message, code="invalid_value", param=param) from error

    def _model(self, name: str) -> CatalogueModel | None:
        """The model that a name means; None if an earlier line reported the name as invalid."""
        if name not in self._models:
            self._models[name] = None
            try:
                self._models[name] = self._find_model(name, self._translation.task)
            except UserError as error:
                raise _InvalidLine(error.code, f"body.model: {error.message}", "body.model") from error
        return self._models[name]

    def _part(self, name: str, model: CatalogueModel, parameters: Mapping[str, Any]) -> _Part:
        which = name, orjson.dumps(parameters, option=orjson.OPT_SORT_KEYS)
        part = self._parts.get(which)
        if part is None:
            if len(self._parts) == MOST_PARTS:
                raise _InvalidLine(
                    "too_many_models", f"the batch has more than {MOST_PARTS} different models or sets of parameters"
                )
            key = f"{self._folder}rows-{len(self._parts):03d}.jsonl"
            draft = self._drafts.enter_context(self._store.create(key))
            part = self._parts[which] = _Part(model, parameters, draft)
        return part

    def _note(self, number: int, invalid: _InvalidLine) -> None:
        if len(self._errors) < MOST_ERRORS:
            message = short_message(f"line {number}: {invalid.message}")
            self._errors.append(_error(invalid.code, message, number, invalid.param and short(invalid.param)))

    def _finished(self, part: _Part) -> BatchPart:
        task = self._translation.task
        document = {
            "kind": "inference",
            "name": self._batch_id,
            "task": task,
            "model": part.model.model,
            "input": {
                "path": f"file:{part.file_id}",
                "format": "jsonl",
                "key": "custom_id",
                "columns": {name: name for name in self._translation.columns},
            },
            "parameters": {
                **TASK_DEFAULTS.get(task, {}),
                **part.model.parameters,
                **TASK_PARAMETERS[task],
                **part.parameters,
            },
            "dtype": part.model.dtype,
            "engine": part.model.engine_of(task),
        }
        spec = parse_spec(document)
        return BatchPart(spec, part.file_id, part.draft.stored, part.num_rows, self._stamp(spec))


def numbered_lines(file: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield the non-blank lines with their 1-based numbers; None in place of a line that is too long."""
    number = 0
    while line := file.readline(max_bytes + 2):
        number += 1
        text = line.rstrip(b"\r\n")
        if len(text) > max_bytes:
            while line and not line.endswith(b"\n"):
                line = file.readline(_BLOCK_BYTES)
            yield number, None
        elif text.strip():
            yield number, text.removeprefix(b"\xef\xbb\xbf") if number == 1 else text


def _error(code: str, message: str, line: int | None, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": param}
