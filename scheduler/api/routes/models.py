"""Routes of the models that clients may name, in OpenAI's format."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, Field

from jobs.errors import UnknownModel
from scheduler.api.access.auth import require_key
from scheduler.api.context import InContext
from scheduler.api.errors import error_responses
from scheduler.api.views.lists import Page, page

router = APIRouter(
    prefix="/v1/models", tags=["models"], dependencies=[Depends(require_key)], responses=error_responses()
)


class ModelView(BaseModel):
    """A model of the catalogue."""

    id: str = Field(description="Name of the model in requests.")
    object: Literal["model"] = "model"
    created: int = Field(default=0, description="Always 0, since the time is not known.")
    owned_by: str = "operator"
    task: str | None = Field(description="The only task of this model, if the operator restricted it. An extension.")


@router.get("")
def list_models(context: InContext) -> Page[ModelView]:
    """The operator's catalogue, sorted by name. With `any_model`, folders and hub ids are valid names too."""
    entries = sorted(context.settings.models.items())
    return page([ModelView(id=name, task=entry.task) for name, entry in entries])


@router.get("/{name:path}", responses=error_responses(400, 404))
def get_model(
    context: InContext, name: Annotated[str, Path(pattern=r"^[^\x00]{1,500}$", description="Name of the model.")]
) -> ModelView:
    """One model of the catalogue."""
    entry = context.settings.models.get(name)
    if entry is None:
        raise UnknownModel(f"there is no model '{name}' in the catalogue")
    return ModelView(id=name, task=entry.task)
