"""Projects: each job, file and batch belongs to one, which determines who may see it."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import StringConstraints

from jobs.errors import InvalidSpec

OPERATOR = "default"
"""The operator's project, which may see jobs, files and batches of all projects."""

_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"

ProjectName = Annotated[str, StringConstraints(pattern=_PATTERN)]
"""A valid name of a project."""


def sees(project: str, owner: str) -> bool:
    """Whether keys and jobs of `project` may see what belongs to the project `owner`."""
    return project in (OPERATOR, owner)


def check_name(project: str) -> None:
    """Check that a project may have this name.

    Raises:
        InvalidSpec: The name is too long, or has characters other than letters, digits, `.`, `_` and `-`.
    """
    if not re.fullmatch(_PATTERN, project):
        raise InvalidSpec(
            f"project: {project[:100]!r} is not a valid name; use up to 100 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit",
            param="project",
        )
