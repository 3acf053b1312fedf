"""Read a batch's input file once: report every invalid line, and split the lines into one input per job."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import orjson

from jobs.access.pins import Pins
from jobs.config.catalogue import CatalogueModel
from jobs.data.store import Draft, Store, batch_prefix
from jobs.db.ids import new_id
from jobs.errors import UserError
from jobs.ledger.batches import BatchPart, BatchPlan
from jobs.messages import short, short_message, shown
from jobs.specs.bounds import LONGEST_PATH_BYTES
from jobs.specs.inference import JobSpec, parse_spec
from scheduler.openai.requests import ENDPOINTS, TASK_DEFAULTS, TASK_PARAMETERS, LineError, LineRequest

MOST_ERRORS = 1000
"""Most invalid lines that are reported."""
MOST_PARTS = 64
"""Most jobs of one batch: its models times the job parameters in which its lines differ."""
LONGEST_CUSTOM_ID_CHARACTERS = 512
"""Longest `custom_id` of a line, in characters."""
_BLOCK_BYTES = 2**20
_LOOK_LINES = 1000  # between two calls of `is_wanted`


class BadBatch(Exception):
    """The batch is invalid."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        """
        Args:
            errors: One `{code, message, line, param}` per error, in line order.
        """
        super().__init__(f"{len(errors)} errors")
        self.errors = errors


class _WrongLine(Exception):
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
            stamp: Returns the pins of a job's spec as its files are now; raises `UserError`.
            max_lines: Most lines of a batch.
            max_line_bytes: Longest line in bytes, without its newline.
            max_rows: Most lines to run, not counting lines whose answers are reused; None for no limit.
            is_wanted: Called now and then; when it returns False, `InterruptedError` is raised.
        """
        self._store, self._batch_id, self._endpoint = store, batch_id, endpoint
        self._translation = ENDPOINTS[endpoint]
        self._find_model, self._stamp = find_model, stamp
        self._max_lines, self._max_line_bytes, self._max_rows = max_lines, max_line_bytes, max_rows
        self._is_wanted = is_wanted
        self._folder = f"{batch_prefix(batch_id)}{new_id('intake')}/"
        self._errors: list[dict[str, Any]] = []
        self._models: dict[str, CatalogueModel | None] = {}
        self._parts: dict[tuple[str, bytes], _Part] = {}
        self._seen: set[bytes] = set()
        self._drafts = ExitStack()

    @property
    def folder(self) -> str:
        """Prefix of the store keys of everything written."""
        return self._folder

    def read(self, file: BinaryIO, answered: Iterator[Mapping[str, Any]]) -> BatchPlan:
        """Validate and split the lines.

        Args:
            file: The uploaded file, positioned at its start.
            answered: Output lines of another batch over the same file, in order, whose answers are reused.

        Raises:
            BadBatch: A line is invalid; nothing is left in the store.
            InterruptedError: `is_wanted` returned False.
            ServiceUnavailable: The store cannot be reached.
        """
        with self._drafts:
            num_lines, carried = self._read_lines(file, answered)
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
        self, file: BinaryIO, answered: Iterator[Mapping[str, Any]]
    ) -> tuple[int, tuple[int, Draft | None]]:
        num_lines = num_carried = 0
        draft: Draft | None = None
        answer = next(answered, None)
        for number, line in numbered_lines(file, self._max_line_bytes):
            num_lines += 1
            if num_lines > self._max_lines:
                message = f"the file has more than {self._max_lines} requests"
                raise BadBatch([_error("too_many_tasks", message, None)])
            if num_lines % _LOOK_LINES == 0 and not self._is_wanted():
                raise InterruptedError("this scheduler is no longer the leader")
            try:
                request = self._checked(line)
                if answer is None or answer["custom_id"] != request["custom_id"]:
                    self._place(number, request)
                    self._check_room(num_lines - num_carried)
                    continue
            except _WrongLine as wrong:
                self._note(number, wrong)
                continue
            if draft is None:
                draft = self._drafts.enter_context(self._store.create(f"{self._folder}carried.jsonl"))
            draft.write(orjson.dumps({"line": number, "answer": answer}) + b"\n")
            num_carried += 1
            answer = next(answered, None)
        if not num_lines:
            self._errors.append(_error("empty_file", "the file has no requests", None))
        return num_lines, (num_carried, draft)

    def _check_room(self, num_rows: int) -> None:
        if self._max_rows is not None and num_rows > self._max_rows:
            message = f"more than {self._max_rows} requests to run, the limit of the project (queued_rows)"
            raise BadBatch([_error("too_many_tasks", message, None)])

    # -- one line

    def _checked(self, line: bytes | None) -> dict[str, Any]:
        """Parse the line's request; raises `_WrongLine`."""
        if line is None:
            raise _WrongLine("line_too_long", f"is longer than {self._max_line_bytes} bytes")
        try:
            request = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise _WrongLine("invalid_json_line", f"is not JSON: {error}") from error
        if not isinstance(request, dict):
            raise _WrongLine("invalid_json_line", "is not a JSON object")
        custom_id = request.get("custom_id")
        if not isinstance(custom_id, str) or not custom_id:
            raise _WrongLine("missing_required_parameter", "custom_id: must be a text", "custom_id")
        if len(custom_id) > LONGEST_CUSTOM_ID_CHARACTERS:
            message = f"custom_id: has more than {LONGEST_CUSTOM_ID_CHARACTERS} characters"
            raise _WrongLine("invalid_value", message, "custom_id")
        digest = hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
        if digest in self._seen:
            raise _WrongLine("duplicate_custom_id", f"custom_id: {shown(custom_id, 80)} is taken", "custom_id")
        self._seen.add(digest)
        if request.get("method") != "POST":
            raise _WrongLine("invalid_method", "method: must be POST", "method")
        if request.get("url") != self._endpoint:
            message = f"url: is {shown(request.get('url'), 80)}, but the batch is for {self._endpoint}"
            raise _WrongLine("url_mismatch", message, "url")
        body = request.get("body")
        if not isinstance(body, dict):
            raise _WrongLine("missing_required_parameter", "body: must be an object", "body")
        if not isinstance(body.get("model"), str) or not body["model"]:
            raise _WrongLine("missing_required_parameter", "body.model: must be a text", "body.model")
        if len(body["model"]) > LONGEST_PATH_BYTES:
            raise _WrongLine(
                "invalid_value", f"body.model: has more than {LONGEST_PATH_BYTES} characters", "body.model"
            )
        return request

    # -- where it goes

    def _place(self, number: int, request: Mapping[str, Any]) -> None:
        """Write a request into its job's input; a rejected request becomes an empty row there."""
        body = request["body"]
        model = self._model(body["model"])
        if model is None or self._errors:
            return  # the batch is invalid already, so nothing will be run
        refusal: LineError | None = None
        try:
            asked = self._translation.read(body)
        except LineError as error:
            asked, refusal = LineRequest(dict.fromkeys(self._translation.columns)), error
        row = {"custom_id": request["custom_id"], "line": number, "model": body["model"], **asked.values}
        if asked.form is not None:
            row["form"] = asked.form
        if refusal is not None:
            row["refusal"] = {"message": refusal.message, "code": refusal.code, "param": refusal.param}
        part = self._part(body["model"], model, asked.parameters)
        part.draft.write(orjson.dumps(row) + b"\n")
        part.num_rows += 1

    def _model(self, name: str) -> CatalogueModel | None:
        """The model that a name means; None if an earlier line reported the name as invalid."""
        if name not in self._models:
            self._models[name] = None
            try:
                self._models[name] = self._find_model(name, self._translation.task)
            except UserError as error:
                raise _WrongLine(error.code, f"body.model: {error.message}", "body.model") from error
        return self._models[name]

    def _part(self, name: str, model: CatalogueModel, parameters: Mapping[str, Any]) -> _Part:
        which = name, orjson.dumps(parameters, option=orjson.OPT_SORT_KEYS)
        part = self._parts.get(which)
        if part is None:
            if len(self._parts) == MOST_PARTS:
                raise _WrongLine("too_many_models", f"needs more than {MOST_PARTS} models or settings")
            key = f"{self._folder}rows-{len(self._parts):03d}.jsonl"
            draft = self._drafts.enter_context(self._store.create(key))
            part = self._parts[which] = _Part(model, parameters, draft)
        return part

    def _note(self, number: int, wrong: _WrongLine) -> None:
        if len(self._errors) < MOST_ERRORS:
            message = short_message(f"line {number}: {wrong.message}")
            self._errors.append(_error(wrong.code, message, number, wrong.param and short(wrong.param)))

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
