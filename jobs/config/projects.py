"""Projects: whose a job, file or batch is, and who may see it."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import StringConstraints

from jobs.errors import InvalidSpec

OPERATOR = "default"
"""The operator's own project, which sees the things of all others."""

_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"

ProjectName = Annotated[str, StringConstraints(pattern=_PATTERN)]
"""What a project may be called."""


def sees(project: str, owner: str) -> bool:
    """Whether what belongs to `owner` is visible to the keys and jobs of `project`."""
    return project in (OPERATOR, owner)


def check_name(project: str) -> None:
    """Refuse a name that no project can have.

    Raises:
        InvalidSpec: letters, digits, `.`, `_` and `-` are all that it may consist of.
    """
    if not re.fullmatch(_PATTERN, project):
        raise InvalidSpec(
            f"project: {project[:100]!r} is not a name of letters, digits, '.', '_' and '-', up to 100 of them",
            param="project",
        )
