"""The pydantic model of an inference job's spec, and `parse_spec` for specs of both kinds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Literal, Protocol, TypeGuard, get_args

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator, model_validator

from jobs.errors import InvalidSpec
from jobs.messages import did_you_mean, first_fault, shown
from jobs.specs.bounds import PathText, Values
from jobs.specs.fields import (
    JOB_PREFIX,
    LARGEST_INTEGER,
    After,
    Duration,
    InputSpec,
    JobAfter,
    Priority,
    PromiseTime,
    RowErrorLimit,
    StartAt,
    Strict,
    parse_duration,
    read_columns,
    unread_input,
)
from jobs.specs.needs import NeedsSpec
from jobs.specs.parameters import read_parameters
from jobs.specs.parameters.task_parameters import LabelParameters, TaskParameters
from jobs.specs.parameters.text_tasks import EmbeddingsParameters
from jobs.specs.tasks import ALIASES, TASKS, Task, find_task, unknown_task
from jobs.specs.training import TrainingSpec

__all__ = [
    "INFERENCE", "JOB_PREFIX", "KINDS", "TRAINING", "BatchingSpec", "InferenceSpec", "InputSpec", "JobSpec",
    "OutputSpec", "Priority", "SlotsSpec", "TrainingSpec", "dependencies", "model_key", "parse_duration", "parse_spec",
    "processor_job", "source_job",
]  # fmt: skip


class OutputSpec(Strict):
    """Where the results are written."""

    to: Literal["database", "jsonl", "parquet"] = "database"
    path: PathText | None = None
    """The file to write when the job completes. If absent, `jsonl` and `parquet` results are only artifacts."""

    @model_validator(mode="after")
    def _path_needs_file(self) -> OutputSpec:
        if self.to == "database" and self.path is not None:
            raise ValueError("output.path: can only be used with output.to: jsonl or parquet")
        return self


class BatchingSpec(Strict):
    """How rows are divided into batches. `auto` chooses values that fit the device."""

    max_tokens: Literal["auto"] | Annotated[int, Field(ge=1, le=LARGEST_INTEGER)] = "auto"
    """Maximum number of tokens in one forward pass, padding included."""
    max_rows: Literal["auto"] | Annotated[int, Field(ge=1, le=LARGEST_INTEGER)] = "auto"
    """Maximum number of rows in one forward pass."""
    chunk_rows: Literal["auto"] | Annotated[int, Field(ge=1, le=1_000_000)] = "auto"
    """Number of rows in one chunk, the unit of claim, commit and retry."""


class SlotsSpec(Strict):
    """Limit of the slots that a job may use."""

    max: Annotated[int, Field(ge=1, le=LARGEST_INTEGER)] | None = None
    """Maximum number of slots that the job may hold at once; no limit when absent."""


class InferenceSpec(Strict):
    """A bulk-inference job."""

    version: Literal[1] = 1
    kind: Literal["inference"] = "inference"
    name: str | None = Field(default=None, max_length=200)
    """A label for people."""
    task: str = Field(max_length=100, json_schema_extra={"enum": [*TASKS, *ALIASES]})
    """The name of a transformers pipeline, or `embeddings`."""
    model: PathText = Field(min_length=1)
    """A folder, a hub id `org/name[@revision]`, or `job:<id>` for the model of a training job."""
    input: InputSpec
    parameters: Values = Field(default_factory=dict)
    """The task's parameters, with the names that transformers uses (`top_k`, `aggregation_strategy`, ...)."""
    output: OutputSpec = OutputSpec()
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """The engine that generates text. `auto` means `transformers`; `vllm` must be installed where the workers run."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The dtype of the computation. `auto`: bfloat16 on a GPU that supports it, otherwise float32."""
    batching: BatchingSpec = BatchingSpec()
    slots: SlotsSpec = SlotsSpec()
    needs: NeedsSpec = NeedsSpec()
    """What each of the job's slots must have."""
    max_row_errors: RowErrorLimit | None = None
    """How many rows may fail, as a number or a share (`5%`). If more fail, the job fails. When absent, the job fails
    only if its first 1,000 rows (or all rows, if it has fewer) all fail with the same error."""
    priority: Priority = Priority.NORMAL
    after: After = Field(default_factory=list)
    """Jobs that must end before this one begins: `job:<id>`, or `{job: job:<id>, when: any}`."""
    start_at: StartAt | None = None
    """The job begins at this time, or later. A time with a time zone, such as `2027-01-31T07:00:00Z`."""
    time_limit: Duration | None = None
    """Seconds after the job is ready when it ends as `expired`; can be written as `2h`. A job is ready when it is
    submitted, or later: at `start_at`, and when the jobs that it comes after have ended."""
    promise: PromiseTime | None = None
    """When the job must be done. It is refused if that cannot be kept beside earlier promises. It does not end then."""
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
            raise ValueError(f"engine: vllm supports only task: text-generation, not {self.task}")
        return self

    @model_validator(mode="after")
    def _known_columns(self) -> InferenceSpec:
        task = self.task_info
        known = (*task.inputs, *task.optional, *([] if task.alternative is None else [task.alternative]))
        for name in self.input.columns:
            if name not in known:
                raise InvalidSpec(
                    f"input.columns.{name}: task '{self.task}' has no input '{name}'; it has {', '.join(known)}",
                    param=f"input.columns.{name}",
                )
        unread = unread_input(self.task_info.inputs, self.input.columns)
        if unread is not None and not self.has_alternative:
            raise InvalidSpec(
                f"input.columns.{unread}: must name a column, because task '{self.task}' requires this input",
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
    def has_alternative(self) -> bool:
        """Whether rows may have the task's alternative input instead of the usual ones: an image instead of a text."""
        return self.input.columns.get(self.task_info.alternative or "") is not None

    @property
    def optional_inputs(self) -> frozenset[str]:
        """Inputs that a row may omit."""
        optional = {name for name in self.task_info.optional if name != _LABELS or self.has_labels}
        return frozenset(optional.union(self._alternatives))

    def columns(self) -> dict[str, str]:
        """Return input name of the task -> the user's column, for all required and optional inputs that are read."""
        names = dict.fromkeys((*self.task_info.inputs, *self.task_info.optional, *self._alternatives))
        return read_columns(names, self.input.columns)

    @property
    def _alternatives(self) -> tuple[str, ...]:
        """The inputs of which a row has either some or the others; empty if the alternative is not read."""
        other = self.task_info.alternative
        return () if other is None or not self.has_alternative else (*self.task_info.inputs, other)

    def no_labels(self) -> InvalidSpec:
        """Make the error for labels that neither the spec nor a row gives."""
        return InvalidSpec(
            f"parameters.{_LABELS}: task '{self.task}' needs labels; set them here, or provide them in a column "
            f"'{_LABELS}' or in the column that input.columns.{_LABELS} names",
            param=f"parameters.{_LABELS}",
        )


_LABELS = "candidate_labels"
JobSpec = InferenceSpec | TrainingSpec
"""A spec of either kind, distinguished by `kind`."""
INFERENCE = "inference"
"""The `kind` of an inference job."""
TRAINING = "training"
"""The `kind` of a training job."""
_MODELS: dict[str, type[InferenceSpec] | type[TrainingSpec]] = {INFERENCE: InferenceSpec, TRAINING: TrainingSpec}
KINDS = tuple(_MODELS)
"""The values of `kind`."""


class Waiting(Protocol):
    """A spec that may have to wait for other jobs."""

    @property
    def after(self) -> Sequence[JobAfter]:
        """The jobs that it names."""

    @property
    def model(self) -> object:
        """The name of the job's model, which may be that of a training job."""


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


def dependencies(spec: Waiting) -> dict[str, tuple[str, str]]:
    """Return id of each job that must end before this one begins -> the field that names it, and `ok` or `any`."""
    in_order = sorted(spec.after, key=lambda one: one.when == "ok")  # a job that is named twice must complete
    found = {one.job.removeprefix(JOB_PREFIX): ("after", str(one.when)) for one in in_order}
    source = _job_in(spec.model)
    return found if source is None else {**found, source: ("model", "ok")}


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
        raise InvalidSpec(f"kind: {shown(kind)} is not a kind of job; use {' or '.join(KINDS)}", param="kind")
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
