"""The pydantic description of a job: versioned, unknown keys refused, each error naming its field."""

from __future__ import annotations

import difflib
import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from jobs.errors import InvalidSpec
from jobs.parameters import check_parameters
from jobs.tasks import ALIASES, TASKS, Task, find_task
from jobs.wording import first_fault

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_UNIT_SECONDS = (86400, 3600, 60, 1)
_LONGEST_SECONDS = 3650 * 86400
_LARGEST_INTEGER = 2**31 - 1  # what a database column and a tensor's size surely hold


def parse_duration(value: object) -> object:
    """Seconds from `90`, `"90s"`, `"2h"`, `"1h30m"` or `"1d"`; anything else is left for pydantic to refuse."""
    if not isinstance(value, str):
        return value
    if value.isdigit():
        return int(value)
    match = _DURATION.fullmatch(value)
    if not value or match is None:
        raise ValueError("must be a duration such as 90, '90s', '2h' or '1h30m'")
    return sum(int(part or 0) * unit for part, unit in zip(match.groups(), _UNIT_SECONDS, strict=True))


Duration = Annotated[int, BeforeValidator(parse_duration), Field(gt=0, le=_LONGEST_SECONDS)]
"""A positive number of seconds up to ten years, also written `2h` or `1h30m`."""


class Priority(StrEnum):
    """A job's class: higher ones are served first, and one that has waited for a day counts one class up."""

    HIGH = "high"  # before everything else; takes slots back from lower classes at chunk boundaries
    NORMAL = "normal"  # the default
    LOW = "low"  # fills what others leave

    @property
    def rank(self) -> int:
        """0 is served first."""
        return list(Priority).index(self)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=False)


class InputSpec(_Strict):
    """Where the rows come from and which columns the task reads."""

    path: str | list[str] = Field(min_length=1)
    """A file, a glob, several of them, `file:<id>` of an upload, a data set folder, or `hf://datasets/<name>`."""
    format: Literal["auto", "jsonl", "parquet", "csv", "dataset"] = "auto"
    """`auto` goes by the file name's ending; `dataset` reads a Hugging Face data set (hub name or folder)."""
    columns: dict[str, str] = Field(default_factory=dict)
    """The task's input name -> the user's column; an input not named here is read from the column of its own name."""
    key: str | None = None
    """The column that identifies a row to the user; copied into each result as text."""
    split: str = "train"
    """Which split of a data set."""
    config: str | None = None
    """Which configuration of a hub data set."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Of a CSV file; found out from the header line when absent."""

    @property
    def paths(self) -> list[str]:
        """`path` as a list."""
        return [self.path] if isinstance(self.path, str) else list(self.path)


class OutputSpec(_Strict):
    """Where the results go."""

    to: Literal["database", "jsonl", "parquet"] = "database"
    path: str | None = None
    """The file that is written when the job completes; absent, a file sink's result is an artifact of the job only."""

    @model_validator(mode="after")
    def _path_needs_file(self) -> OutputSpec:
        if self.to == "database" and self.path is not None:
            raise ValueError("output.path goes with output.to: jsonl or parquet")
        return self


class BatchingSpec(_Strict):
    """How rows are packed into batches; `auto` fits the device."""

    max_tokens: Literal["auto"] | Annotated[int, Field(ge=1, le=_LARGEST_INTEGER)] = "auto"
    """Padded tokens in one forward pass."""
    max_rows: Literal["auto"] | Annotated[int, Field(ge=1, le=_LARGEST_INTEGER)] = "auto"
    """Rows in one forward pass."""
    chunk_rows: Literal["auto"] | Annotated[int, Field(ge=1, le=1_000_000)] = "auto"
    """Rows in one chunk, the unit of claim, commit and retry."""


class SlotsSpec(_Strict):
    """How many slots the job may hold at once."""

    max: Annotated[int, Field(ge=1, le=_LARGEST_INTEGER)] | None = None
    """No limit when absent."""


class InferenceSpec(_Strict):
    """A bulk-inference job."""

    version: Literal[1] = 1
    kind: Literal["inference"] = "inference"
    name: str | None = Field(default=None, max_length=200)
    """A label for people."""
    task: str
    """transformers' pipeline name, or `embeddings`."""
    model: str = Field(min_length=1)
    """A folder or a hub id, `org/name[@revision]`."""
    input: InputSpec
    parameters: dict[str, Any] = Field(default_factory=dict)
    """The task's parameters by transformers' own names (`top_k`, `aggregation_strategy`, ...)."""
    output: OutputSpec = OutputSpec()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: float32 on a CPU; on a GPU bfloat16 where it has it, else float32."""
    batching: BatchingSpec = BatchingSpec()
    slots: SlotsSpec = SlotsSpec()
    priority: Priority = Priority.NORMAL
    time_limit: Duration | None = None
    """Seconds from submission after which the job is ended as `expired`; also written `2h`."""

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str) -> str:
        if find_task(value) is None:
            near = difflib.get_close_matches(value, [*TASKS, *ALIASES], n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known tasks: {', '.join(TASKS)}"
            raise ValueError(f"unknown task '{value}'{hint}")
        return ALIASES.get(value, value)

    @model_validator(mode="after")
    def _known_columns(self) -> InferenceSpec:
        known = (*self.task_info.inputs, *self.task_info.optional)
        for name in self.input.columns:
            if name not in known:
                raise ValueError(
                    f"input.columns.{name}: task '{self.task}' has no input '{name}', only {', '.join(known)}"
                )
        return self

    @model_validator(mode="after")
    def _known_parameters(self) -> InferenceSpec:
        check_parameters(self.task, self.parameters)
        labels = "candidate_labels"
        has_labels = labels in self.input.columns or self.parameters.get(labels) is not None
        if labels in self.task_info.optional and not has_labels:
            raise InvalidSpec(
                f"parameters.{labels}: task '{self.task}' needs labels, here or in a column that input.columns names",
                param=f"parameters.{labels}",
            )
        return self

    @property
    def task_info(self) -> Task:
        """The task's inputs and kind of output."""
        return TASKS[self.task]

    @property
    def vector_output(self) -> bool:
        """Whether each output is one float32 vector; rows of several inputs (`inputs: any`) have several."""
        return self.task_info.vector_output and self.parameters.get("inputs") != "any"

    def columns(self) -> dict[str, str]:
        """The task's input name -> the user's column, for each required input and each optional one that was mapped."""
        mapped = {name: self.input.columns.get(name, name) for name in self.task_info.inputs}
        return {**mapped, **{name: column for name, column in self.input.columns.items() if name not in mapped}}


JobSpec = InferenceSpec
"""What can be submitted. Each further kind joins as a member of a union discriminated by `kind`."""


def model_key(spec: InferenceSpec) -> str:
    """What a runner holds loaded after this job; equal keys can share one loaded model."""
    return f"{spec.task}|{spec.model}|{spec.dtype}"


KINDS = ("inference",)
"""The values of `kind` that this version runs."""


def parse_spec(document: object) -> JobSpec:
    """Validate a submitted document.

    Raises:
        InvalidSpec: the document is not a valid spec; the message and `param` name the first field at fault.
    """
    if not isinstance(document, dict):
        raise InvalidSpec("the spec must be a mapping of fields to values")
    kind = document.get("kind", "inference")
    if kind not in KINDS:
        raise InvalidSpec(
            f"kind: '{kind}' is not a kind of job that this version runs ({', '.join(KINDS)})", param="kind"
        )
    try:
        return InferenceSpec.model_validate(document)
    except ValidationError as error:
        raise _invalid_spec(error) from error


def _invalid_spec(error: ValidationError) -> InvalidSpec:
    field, message = first_fault(error.errors())
    if message.startswith(("input.", "output.")):
        return InvalidSpec(message, param=message.split(":")[0].split(" ")[0])
    return InvalidSpec(f"{field}: {message}" if field else message, param=field or None)
