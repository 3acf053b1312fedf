"""The pydantic model of an inference job's spec, and `parse_spec` for specs of both kinds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Literal, TypeGuard, get_args

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator, model_validator

from jobs.errors import InvalidSpec
from jobs.messages import did_you_mean, first_fault, shown
from jobs.specs.bounds import PathText, Values
from jobs.specs.fields import (
    LARGEST_INTEGER,
    Duration,
    InputSpec,
    Priority,
    RowErrorLimit,
    Strict,
    parse_duration,
    read_columns,
    unread_input,
)
from jobs.specs.parameters import read_parameters
from jobs.specs.parameters.task_parameters import LabelParameters, TaskParameters
from jobs.specs.parameters.text_tasks import EmbeddingsParameters
from jobs.specs.tasks import ALIASES, TASKS, Task, find_task, unknown_task
from jobs.specs.training import TrainingSpec

__all__ = [
    "JOB_PREFIX", "KINDS", "TRAINING", "BatchingSpec", "InferenceSpec", "InputSpec", "JobSpec", "OutputSpec",
    "Priority", "SlotsSpec", "TrainingSpec", "model_key", "parse_duration", "parse_spec",
    "processor_job", "source_job",
]  # fmt: skip


class OutputSpec(Strict):
    """Where the results go."""

    to: Literal["database", "jsonl", "parquet"] = "database"
    path: PathText | None = None
    """The file that is written when the job completes; absent, a file sink's result is an artifact of the job only."""

    @model_validator(mode="after")
    def _path_needs_file(self) -> OutputSpec:
        if self.to == "database" and self.path is not None:
            raise ValueError("output.path goes with output.to: jsonl or parquet")
        return self


class BatchingSpec(Strict):
    """How rows are packed into batches; `auto` fits the device."""

    max_tokens: Literal["auto"] | Annotated[int, Field(ge=1, le=LARGEST_INTEGER)] = "auto"
    """Padded tokens in one forward pass."""
    max_rows: Literal["auto"] | Annotated[int, Field(ge=1, le=LARGEST_INTEGER)] = "auto"
    """Rows in one forward pass."""
    chunk_rows: Literal["auto"] | Annotated[int, Field(ge=1, le=1_000_000)] = "auto"
    """Rows in one chunk, the unit of claim, commit and retry."""


class SlotsSpec(Strict):
    """How many slots the job may hold at once."""

    max: Annotated[int, Field(ge=1, le=LARGEST_INTEGER)] | None = None
    """No limit when absent."""


class InferenceSpec(Strict):
    """A bulk-inference job."""

    version: Literal[1] = 1
    kind: Literal["inference"] = "inference"
    name: str | None = Field(default=None, max_length=200)
    """A label for people."""
    task: str = Field(max_length=100, json_schema_extra={"enum": [*TASKS, *ALIASES]})
    """transformers' pipeline name, or `embeddings`."""
    model: PathText = Field(min_length=1)
    """A folder, a hub id `org/name[@revision]`, or `job:<id>`: what a training job made, once it has completed."""
    input: InputSpec
    parameters: Values = Field(default_factory=dict)
    """The task's parameters by transformers' own names (`top_k`, `aggregation_strategy`, ...)."""
    output: OutputSpec = OutputSpec()
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """What generates text: `auto` is `transformers`; `vllm` where the workers have it installed."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: float32 on a CPU; on a GPU bfloat16 where it has it, else float32."""
    batching: BatchingSpec = BatchingSpec()
    slots: SlotsSpec = SlotsSpec()
    max_row_errors: RowErrorLimit | None = None
    """How many rows may fail, as a number or a share (`5%`); more fail the job. Absent, it fails when its first 1,000
    rows, or all of fewer, hold nothing but one and the same error."""
    priority: Priority = Priority.NORMAL
    time_limit: Duration | None = None
    """Seconds from submission after which the job is ended as `expired`; also written `2h`."""
    _task_parameters: TaskParameters = PrivateAttr()

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str) -> str:
        if find_task(value) is None:
            raise ValueError(unknown_task(value))
        return ALIASES.get(value, value)

    @model_validator(mode="after")
    def _known_engine(self) -> InferenceSpec:
        if self.engine == "vllm" and self.task != "text-generation":
            raise ValueError(f"engine: vllm generates text, and does no {self.task}")
        return self

    @model_validator(mode="after")
    def _known_columns(self) -> InferenceSpec:
        known = (*self.task_info.inputs, *self.task_info.optional)
        for name in self.input.columns:
            if name not in known:
                raise InvalidSpec(
                    f"input.columns.{name}: task '{self.task}' has no input '{name}', only {', '.join(known)}",
                    param=f"input.columns.{name}",
                )
        unread = unread_input(self.task_info.inputs, self.input.columns)
        if unread is not None:
            raise InvalidSpec(
                f"input.columns.{unread}: must name a column; task '{self.task}' needs it",
                param=f"input.columns.{unread}",
            )
        return self

    @model_validator(mode="after")
    def _known_parameters(self) -> InferenceSpec:
        self._task_parameters = read_parameters(self.task, self.parameters)
        if _LABELS in self.task_info.optional and not self.has_labels and self.input.columns.get(_LABELS, "") is None:
            raise self.no_labels()
        return self

    @property
    def task_info(self) -> Task:
        """Description of the task."""
        return TASKS[self.task]

    @property
    def task_parameters(self) -> TaskParameters:
        """`parameters` as the task's parameter model, with defaults."""
        return self._task_parameters

    @property
    def vector_output(self) -> bool:
        """Whether each output is one float32 vector. Rows with several inputs (`inputs: any`) have several vectors."""
        parameters = self.task_parameters
        return isinstance(parameters, EmbeddingsParameters) and parameters.inputs == "text"

    @property
    def has_labels(self) -> bool:
        """Whether the spec sets candidate labels, so that rows may omit them."""
        parameters = self.task_parameters
        return isinstance(parameters, LabelParameters) and parameters.candidate_labels is not None

    @property
    def optional_inputs(self) -> frozenset[str]:
        """Inputs that a row may omit."""
        return frozenset(name for name in self.task_info.optional if name != _LABELS or self.has_labels)

    def columns(self) -> dict[str, str]:
        """Return name of the task's input -> the user's column, for all required and optional inputs that are read."""
        return read_columns((*self.task_info.inputs, *self.task_info.optional), self.input.columns)

    def no_labels(self) -> InvalidSpec:
        """Make the error for labels that neither the spec nor a row gives."""
        return InvalidSpec(
            f"parameters.{_LABELS}: task '{self.task}' needs labels, here, in a column {_LABELS}, "
            "or in one that input.columns names",
            param=f"parameters.{_LABELS}",
        )


_LABELS = "candidate_labels"
JobSpec = InferenceSpec | TrainingSpec
"""A spec of either kind, distinguished by `kind`."""
TRAINING = "training"
"""The `kind` of a training job."""
_MODELS: dict[str, type[InferenceSpec] | type[TrainingSpec]] = {"inference": InferenceSpec, TRAINING: TrainingSpec}
JOB_PREFIX = "job:"
"""Prefix of a `model` that another job trained."""
KINDS = tuple(_MODELS)
"""The values of `kind`."""


def model_key(spec: JobSpec) -> str:
    """Return the key of the model that a runner has loaded after this job; empty for a training, which leaves none.

    Jobs with equal keys can share one loaded model.
    """
    if not isinstance(spec, InferenceSpec):
        return ""
    engine = "" if spec.engine != "vllm" else f"|{spec.engine}"
    return f"{spec.task}|{spec.model}|{spec.dtype}{engine}"


def source_job(spec: JobSpec) -> str | None:
    """Return the id of the training job whose model the spec uses (`job:<id>`), or None."""
    return _job_in(spec.model)


def processor_job(spec: JobSpec) -> str | None:
    """Return the id of the training job whose tokenizer or processor the spec uses (`job:<id>`), or None."""
    return None if spec.model is None or isinstance(spec.model, str) else _job_in(spec.model.processor)


def _job_in(name: object) -> str | None:
    return name.removeprefix(JOB_PREFIX) if isinstance(name, str) and name.startswith(JOB_PREFIX) else None


def parse_spec(document: object) -> JobSpec:
    """Validate a submitted document.

    Raises:
        InvalidSpec: The document is not a valid spec; the message and `param` name the first invalid field.
    """
    if not isinstance(document, dict):
        raise InvalidSpec("the spec must be a mapping of fields to values")
    kind = document.get("kind", "inference")
    model = _MODELS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise InvalidSpec(f"kind: {shown(kind)} is not a kind of job; there are {', '.join(KINDS)}", param="kind")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise _invalid_spec(error, model) from error


def _invalid_spec(error: ValidationError, model: type[JobSpec]) -> InvalidSpec:
    errors = error.errors()
    field, message = first_fault(errors)
    if errors[0]["type"] == "extra_forbidden":
        *place, name = map(str, errors[0]["loc"])
        message += did_you_mean(name, _fields_at(model, place))
    begins_with = message.split(":")[0].split(" ")[0]  # errors about combinations of fields name the field themselves
    head, dot, _ = begins_with.partition(".")
    if (dot and head == field) or (not field and head in model.model_fields):
        return InvalidSpec(message, param=begins_with)
    return InvalidSpec(f"{field}: {message}" if field else message, param=field or None)


def _fields_at(model: type[BaseModel], place: Sequence[str]) -> Collection[str]:
    """Return the names of the fields of a nested part of a spec; empty if there is no such part."""
    for name in place:
        annotation = model.model_fields[name].annotation if name in model.model_fields else None
        parts = [part for part in (annotation, *get_args(annotation)) if _is_part(part)]
        if not parts:
            return ()
        model = parts[0]
    return model.model_fields


def _is_part(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
