"""The operator's catalogue: model names for clients, and the folders or hub ids that they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, field_validator, model_validator

from jobs.errors import InvalidModel, InvalidSpec, UnknownModel
from jobs.messages import did_you_mean
from jobs.specs.parameters import read_parameters
from jobs.specs.tasks import TASKS, find_task

if TYPE_CHECKING:
    from jobs.specs.inference import JobSpec

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,199}$")]
"""A model name that clients may use."""


class CatalogueModel(BaseModel):
    """One entry of the catalogue."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    """A folder, or a hub id `org/name[@revision]`."""
    task: str | None = None
    """The only task that the model may be used for; None for all tasks that it supports."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """Default engine for text generation with this model. Other tasks have only one engine."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Default parameters of the task; a job may override each."""

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str | None) -> str | None:
        task = None if value is None else find_task(value)
        if value is not None and task is None:
            raise ValueError(f"unknown task '{value}'; known tasks: {', '.join(TASKS)}")
        return None if task is None else task.name

    @model_validator(mode="after")
    def _known_parameters(self) -> CatalogueModel:
        if self.task is not None:
            try:
                read_parameters(self.task, self.parameters)
            except InvalidSpec as error:
                raise ValueError(error.message) from error
        return self

    def engine_of(self, task: str) -> str:
        """The engine for a job of this task."""
        return self.engine if task == "text-generation" else "auto"


def _of_short_form(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


Catalogue = dict[ModelName, Annotated[CatalogueModel, BeforeValidator(_of_short_form)]]
"""Model name -> entry. A string stands for an entry in which only `model` is set."""


def resolve(name: str, models: Catalogue, *, task: str, any_model: bool = False) -> CatalogueModel:
    """Find the model for the name that a client sent.

    Args:
        name: The model name in the request.
        models: The catalogue.
        task: The task of the request.
        any_model: Whether the name may also be a folder or a hub id `org/name`, as in the embedded stack.

    Raises:
        UnknownModel: There is no model of this name.
        InvalidModel: The model is for another task.
    """
    entry = models.get(name)
    if entry is None and any_model and ("/" in name or Path(name).exists()):
        entry = CatalogueModel(model=name)
    if entry is None:
        raise UnknownModel(f"there is no model '{name}'{did_you_mean(name, models)}")
    if entry.task not in (None, task):
        raise InvalidModel(f"model '{name}' is for {entry.task}, not for {task}", param="model")
    return entry


def with_catalogue(spec: JobSpec, models: Catalogue) -> JobSpec:
    """Replace a catalogue name in `spec.model` by its model and defaults. Other specs are returned unchanged.

    Raises:
        InvalidModel: The model is for another task.
    """
    if not isinstance(spec.model, str) or spec.model not in models or spec.task is None:
        return spec
    entry = resolve(spec.model, models, task=spec.task)
    if spec.kind == "training":
        return spec.model_copy(update={"model": entry.model})
    dtype = entry.dtype if spec.dtype == "auto" else spec.dtype
    engine = entry.engine_of(spec.task) if spec.engine == "auto" else spec.engine
    parameters = {**entry.parameters, **spec.parameters}
    changed = {"model": entry.model, "dtype": dtype, "engine": engine, "parameters": parameters}
    return type(spec).model_validate({**spec.model_dump(), **changed})
