"""The spec's fields and the words that programs read are frozen, and the reference documents each of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from jobs.data.rows import RowError, RowErrorCode
from jobs.db.states import AttemptEnd, BatchState, DeliveryState, JobState, SlotState
from jobs.errors import StokerError
from jobs.ledger.records.webhooks import EVENT_TYPES, TEST_EVENT
from jobs.specs.array_spec import ArrayField
from jobs.specs.inference import InferenceSpec, TrainingSpec
from jobs.specs.parameters import PARAMETERS
from jobs.specs.sweep_spec import EarlyStoppingField, SweepField
from jobs.specs.tasks import ALIASES, TASKS
from jobs.specs.training import DataSpec
from jobs.specs.training_options.training_arguments import TorchArguments, TrainingArguments
from jobs.specs.training_options.training_tasks import TRAINING_TASKS
from tests.support.reference import section

ROOT = Path(__file__).parents[2]
FIELDS: dict[str, Any] = {
    "version": 1,
    "kind": "inference",
    "name": None,
    "task": ...,
    "model": ...,
    "input.path": ...,
    "input.format": "auto",
    "input.columns": {},
    "input.key": None,
    "input.split": "train",
    "input.config": None,
    "input.delimiter": None,
    "input.quoting": "auto",
    "input.quotechar": '"',
    "input.escapechar": None,
    "input.encoding": "utf-8",
    "parameters": {},
    "engine": "auto",
    "output.to": "database",
    "output.path": None,
    "dtype": "auto",
    "batching.max_tokens": "auto",
    "batching.max_rows": "auto",
    "batching.chunk_rows": "auto",
    "slots.max": None,
    "needs.memory": None,
    "needs.device": None,
    "needs.labels": [],
    "max_row_errors": None,
    "priority": "normal",
    "after": [],
    "start_at": None,
    "time_limit": None,
    "promise": None,
}
"""Every field with its default; `...` where one is required."""
TRAINING_FIELDS: dict[str, Any] = {
    "version": 1,
    "kind": ...,
    "name": None,
    "trainer": "transformers",
    "task": None,
    "model": None,
    "module": None,
    "options": {},
    "data": None,
    "arguments": {},
    "lora": None,
    "dtype": "auto",
    "slots": 1,
    "needs.memory": None,
    "needs.device": None,
    "needs.labels": [],
    "checkpoint.every_steps": 500,
    "checkpoint.keep": 2,
    "checkpoint.best": None,
    "checkpoint.mode": None,
    "on_out_of_memory": "fail",
    "priority": "normal",
    "after": [],
    "start_at": None,
    "time_limit": None,
    "promise": None,
}
"""The same of a training's."""
ARRAY_FIELDS = {
    "array.values": None,
    "array.grid": None,
    "array.file": None,
    "array.format": "auto",
    "array.max_parallel": 64,
    "sweep.parameters": ...,
    "sweep.trials": ...,
    "sweep.metric": ...,
    "sweep.mode": None,
    "sweep.search": "random",
    "sweep.early_stopping": None,
    "sweep.early_stopping.method": ...,
    "sweep.early_stopping.min_steps": ...,
    "sweep.early_stopping.reduction_factor": 3,
    "sweep.seed": 0,
    "sweep.max_parallel": 64,
}
"""The fields of an array or a sweep."""
CHOICES = {
    "input.format": {"auto", "jsonl", "json", "csv", "text", "parquet", "dataset"},
    "input.quoting": {"auto", "minimal", "none"},
    "output.to": {"database", "jsonl", "parquet"},
    "dtype": {"auto", "float32", "bfloat16", "float16"},
    "engine": {"auto", "transformers", "vllm"},
}
ROW_ERRORS = {
    "empty_input",
    "empty_row",
    "forbidden_path",
    "invalid_audio",
    "invalid_csv_row",
    "invalid_encoding",
    "invalid_image",
    "invalid_json_line",
    "invalid_key",
    "invalid_messages",
    "invalid_parameter",
    "invalid_text",
    "invalid_utf8",
    "invalid_value",
    "invalid_video",
    "missing_column",
    "missing_file",
    "no_chat_template",
    "no_mask",
    "no_output",
    "not_a_number",
    "not_an_object",
    "null_value",
    "out_of_memory",
    "poison_row",
    "row_failed",
    "row_too_large",
    "row_too_long",
    "too_many_inputs",
    "unknown_token",
    "url_not_allowed",
    "wrong_type",
}
INNER_ERRORS = {"lost_lease"}
"""Codes that no user sees."""


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a spec, dotted, with its default and its annotation."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields_of(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def default_of(field: Any) -> Any:
    """A field's default, or `...`."""
    return ... if field.is_required() else field.get_default(call_default_factory=True)


def literal_row_errors() -> list[str]:
    """Where a `RowError` is made with a code that is no member of the enum."""
    return [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for package in ("jobs", "scheduler", "worker")
        for path in (ROOT / package).rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "RowError"
        if any(isinstance(argument, ast.Constant) for argument in call.args[:1])
    ]


def all_errors(tree: type[StokerError] = StokerError) -> Iterator[type[StokerError]]:
    """The tree of errors."""
    yield tree
    for branch in tree.__subclasses__():
        if branch.__module__ == "jobs.errors":
            yield from all_errors(branch)


def test_the_fields_and_their_defaults_are_these() -> None:
    found = dict(fields_of(InferenceSpec))
    assert {name: default_of(field) for name, field in found.items()} == FIELDS
    assert {name: set(get_args(found[name].annotation)) for name in CHOICES} == CHOICES


def test_the_fields_of_a_training_and_their_defaults_are_these() -> None:
    assert {name: default_of(field) for name, field in fields_of(TrainingSpec)} == TRAINING_FIELDS
    for name in (*TRAINING_FIELDS, *(f"data.{field}" for field in DataSpec.model_fields)):
        if name != "data":
            assert f"\n| `{name}` | " in section("Training"), name
    for task in TRAINING_TASKS.values():
        assert f"\n| `{task.name}` | {', '.join(f'`{name}`' for name in task.inputs)} |" in section("Training")
    for name in TrainingArguments.names():
        star = " *" if name in TorchArguments.names() else ""
        assert f"\n| `{name}` | {TrainingArguments.expected(name)}{star} |" in section("Training"), name


def test_the_fields_of_an_array_and_their_defaults_are_these() -> None:
    found = [*fields_of(ArrayField, "array."), *fields_of(SweepField, "sweep.")]
    found += fields_of(EarlyStoppingField, "sweep.early_stopping.")
    assert {name: default_of(field) for name, field in found} == ARRAY_FIELDS
    for name in ARRAY_FIELDS:
        assert f"\n| `{name}` | " in section("Spec"), name


@pytest.mark.parametrize("name", FIELDS)
def test_the_reference_has_each_field(name: str) -> None:
    row = next((line for line in section("Spec").splitlines() if line.startswith(f"| `{name}` |")), None)
    assert row is not None
    values = row.split(" | ")[1]
    default = FIELDS[name]
    if default is ...:
        assert values.startswith("required")
    elif default not in (None, {}, []):
        assert f"**`{default}`**" in values or f"**{default}**" in values
    for choice in CHOICES.get(name, ()):
        assert f"`{choice}`" in values


def test_the_reference_has_each_task_and_parameter() -> None:
    for task in TASKS.values():
        inputs, optional = (", ".join(f"`{name}`" for name in names) for names in (task.inputs, task.optional))
        inputs += f", or `{task.alternative}`" if task.alternative else ""
        assert f"| `{task.name}` | {inputs} | {optional} |" in section("Spec")
    for alias, name in ALIASES.items():
        assert f"`{alias}`" in section("Spec"), name
    for task_name, parameters in PARAMETERS.items():
        for parameter in parameters.names():
            assert f"`{parameter}`" in section("Spec"), f"{task_name}: {parameter}"


def test_the_codes_of_row_errors_are_these_and_in_the_reference() -> None:
    assert set(RowErrorCode) == ROW_ERRORS
    assert literal_row_errors() == []
    for code in ROW_ERRORS:
        assert f"\n| `{code}` | " in section("Row errors"), code


@pytest.mark.parametrize(
    ("code", "is_clients"),
    [(RowErrorCode.NULL_VALUE, True), ("null_value", True), ("row_failed", False), ("service_unavailable", False)],
)
def test_a_row_error_says_whether_the_client_can_fix_it(code: str, is_clients: bool) -> None:
    assert RowError(code, "why").is_clients is is_clients


def test_the_reference_has_each_error_code_with_its_status() -> None:
    codes = [error.code for error in all_errors() if "code" in vars(error)]
    assert len(codes) == len(set(codes)), "two errors share a code"
    for error in all_errors():
        if error.code not in INNER_ERRORS:
            rows = [line for line in section("Error codes").splitlines() if f"`{error.code}`" in line.split(" | ")[0]]
            assert len(rows) == 1, error.code
            assert f" | {error.http_status} | " in rows[0], error.code


def test_the_reference_has_each_state() -> None:
    for state in (*JobState, *SlotState, *BatchState, *DeliveryState, *AttemptEnd):
        assert f"\n| `{state}` | " in section("States"), state


def test_the_reference_has_each_event_of_a_webhook() -> None:
    for event_type in (*EVENT_TYPES, TEST_EVENT):
        assert f"`{event_type}`" in section("Webhooks"), event_type
