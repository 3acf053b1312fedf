"""Stoker's Python interface: submit inference and training jobs, follow them, and read their results.

    import stoker

    with stoker.Client() as client:
        spec = stoker.InferenceSpec(
            task="embeddings", model="./all-MiniLM-L6-v2", input=stoker.InputSpec(path="texts.jsonl", key="id")
        )
        job = client.submit(spec).wait()
        for result in job.results():
            print(result.key, result.output)

`stoker.training` has the types of a training module. Each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import _own_packages as _own_packages  # lets the imports below find Stoker's packages

if TYPE_CHECKING:
    from . import training as training
    from .client import Client as Client
    from .client import UploadedFile as UploadedFile
    from .errors import ApiError as ApiError
    from .errors import Conflict as Conflict
    from .errors import Forbidden as Forbidden
    from .errors import InvalidInput as InvalidInput
    from .errors import InvalidModel as InvalidModel
    from .errors import InvalidOutput as InvalidOutput
    from .errors import InvalidSpec as InvalidSpec
    from .errors import JobFailed as JobFailed
    from .errors import NotFound as NotFound
    from .errors import ServiceUnavailable as ServiceUnavailable
    from .errors import StokerError as StokerError
    from .errors import UserError as UserError
    from .job import Job as Job
    from .records import Artifact as Artifact
    from .records import Counts as Counts
    from .records import Event as Event
    from .records import JobError as JobError
    from .records import JobInfo as JobInfo
    from .records import JobState as JobState
    from .records import LogLine as LogLine
    from .records import Metric as Metric
    from .records import Result as Result
    from .records import RowError as RowError
    from .specs import ArchitectureSpec as ArchitectureSpec
    from .specs import BatchingSpec as BatchingSpec
    from .specs import CheckpointSpec as CheckpointSpec
    from .specs import DataSpec as DataSpec
    from .specs import InferenceSpec as InferenceSpec
    from .specs import InputSpec as InputSpec
    from .specs import JobSpec as JobSpec
    from .specs import LoraSpec as LoraSpec
    from .specs import OutputSpec as OutputSpec
    from .specs import Priority as Priority
    from .specs import SlotsSpec as SlotsSpec
    from .specs import TrainingSpec as TrainingSpec

_NAMES = {
    "client": ["Client", "UploadedFile"],
    "errors": [
        "ApiError", "Conflict", "Forbidden", "InvalidInput", "InvalidModel", "InvalidOutput", "InvalidSpec",
        "JobFailed", "NotFound", "ServiceUnavailable", "StokerError", "UserError",
    ],
    "job": ["Job"],
    "records": [
        "Artifact", "Counts", "Event", "JobError", "JobInfo", "JobState", "LogLine", "Metric", "Result", "RowError",
    ],
    "specs": [
        "ArchitectureSpec", "BatchingSpec", "CheckpointSpec", "DataSpec", "InferenceSpec", "InputSpec", "JobSpec",
        "LoraSpec", "OutputSpec", "Priority", "SlotsSpec", "TrainingSpec",
    ],
}  # fmt: skip
"""Public names of each module. The imports above repeat them for type checkers; a test compares both."""
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [*_MODULES, "training"]


def __getattr__(name: str) -> Any:
    if name == "training":
        return importlib.import_module(f"{__name__}.training")
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
