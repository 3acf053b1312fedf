"""What can be said of a training before it takes a slot: its model, its module, its rows and their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from jobs.architectures import KNOWN, TRAINABLE
from jobs.database import Database
from jobs.errors import InvalidInput, InvalidModel, InvalidSpec
from jobs.model_files import read_json
from jobs.modelcheck import check_model, check_processor, local_model, readable_roots
from jobs.paths import check_code_path
from jobs.projects import OPERATOR, sees
from jobs.settings import Settings
from jobs.sources import Source, check_columns, open_source
from jobs.spec_fields import InputSpec
from jobs.specs import JOB_PREFIX, TRAINING, JobSpec, TrainingSpec, processor_job, source_job
from jobs.states import JobState
from jobs.store import Store
from jobs.tables import Job
from jobs.training_spec import recipe_name
from jobs.uploads import find_upload

_LOOK_ROWS = 1000  # between two questions whether it is wanted yet


def check_training(
    spec: TrainingSpec, *, settings: Settings, store: Store, database: Database, project: str = OPERATOR
) -> None:
    """Say all that can be said at once and cheaply; reads the head of each input.

    Raises:
        UserError: the model, the module, an input or a column cannot be used; the message names the field.
        ServiceUnavailable: a store or remote file cannot be reached.
    """
    if spec.module is not None and recipe_name(spec.module) is None:
        check_code_path(spec.module, settings, param="module")
    if spec.task is not None and isinstance(spec.model, str) and not check_source_job(spec, database, project=project):
        check_model(spec.model, spec.task, settings, is_start=True)
        folder = local_model(spec.model, settings)
        if folder is not None:
            kind = str(read_json(folder / "config.json", name=spec.model).get("model_type", ""))
            _check_kind(kind, spec.task, f"model '{spec.model}'", "model")
    elif spec.task is not None and spec.model is not None and not isinstance(spec.model, str):
        if spec.model.architecture not in KNOWN:
            raise InvalidModel(
                f"model.architecture: transformers has no '{spec.model.architecture}'", param="model.architecture"
            )
        _check_kind(spec.model.architecture, spec.task, "model.architecture", "model.architecture")
        _check_processor(spec, spec.model.processor, settings=settings, database=database, project=project)
    for param, rows in _inputs(spec):
        with _naming(param):
            source = _open(rows, spec.columns(), settings, store, database, project)
            check_columns(source, rows, spec.columns())
            next(source.index(1))


def check_labels(
    spec: TrainingSpec,
    *,
    settings: Settings,
    store: Store,
    database: Database,
    project: str = OPERATOR,
    is_wanted: Callable[[], bool] = lambda: True,
) -> None:
    """Read the classes of all rows, so that labels that cannot be learned are said before any slot is taken.

    Raises:
        InvalidInput: a row has no label, all have the same, or one to judge by has a label that is not learned.
        InterruptedError: it is not wanted any more.
    """
    task = spec.task_info
    if task is None or task.label is None:
        return
    column = spec.columns()[task.label]
    learned: set[str] = set()
    for param, rows in _inputs(spec):
        with _naming(param):
            found = _classes(
                _open(rows, {task.label: column}, settings, store, database, project), column, param, is_wanted
            )
        if param == "data.train":
            learned = found
            if len(found) < 2:
                raise InvalidInput(
                    f"data.train: all rows have the same {column}, {min(found)!r}: there is nothing to learn",
                    param="data.train",
                )
        elif not found <= learned:
            raise InvalidInput(
                f"{param}: the {column} {min(found - learned)!r} is in no row of data.train", param=param
            )


def check_source_job(spec: JobSpec, database: Database, *, project: str = OPERATOR) -> bool:
    """Refuse `model: job:<id>` of a job that cannot make a model any more, or never could.

    Returns:
        Whether the spec's model is of that form at all.

    Raises:
        InvalidModel: there is no such job, or it makes no model.
    """
    job_id = source_job(spec)
    if job_id is None:
        return False
    _check_makes_model(job_id, "model", database, project)
    return True


def _check_processor(
    spec: TrainingSpec, processor: str | None, *, settings: Settings, database: Database, project: str
) -> None:
    if processor is None:
        return
    param = "model.processor"
    job_id = processor_job(spec)
    if job_id is not None:
        job = _check_makes_model(job_id, param, database, project)
        if job.state != JobState.COMPLETED:  # a job waits for its model only
            name = f"{param} '{processor}'"
            raise InvalidModel(
                f"{name}: that training is {job.state}; submit this one once it has completed", param=param
            )
        return
    folder = local_model(processor, settings, param=param)
    if folder is not None:
        check_processor(folder, name=processor, param=param, roots=readable_roots(processor, settings))


def _check_makes_model(job_id: str, param: str, database: Database, project: str) -> Job:
    """The job of a `job:<id>` that the project may use; raises InvalidModel where it makes no model."""
    with database.read() as session:
        job = session.get(Job, job_id)
    name = f"{param} '{JOB_PREFIX}{job_id}'"
    if job is None or not sees(project, job.project):
        raise InvalidModel(f"{name}: there is no such job", param=param)
    if job.kind != TRAINING:
        raise InvalidModel(f"{name}: that job is no training, and makes no model", param=param)
    if job.spec.get("trainer") == "torch":
        raise InvalidModel(
            f"{name}: that training is of trainer: torch: its weights fit its own module alone, kept beside them",
            param=param,
        )
    if job.state.is_terminal and job.state != JobState.COMPLETED:
        raise InvalidModel(f"{name}: that training is {job.state}, and made no model", param=param)
    return job


def _classes(source: Source, column: str, param: str, is_wanted: Callable[[], bool]) -> set[str]:
    found: set[str] = set()
    for part in source.index(_LOOK_ROWS):
        if not is_wanted():
            raise InterruptedError("this scheduler does not lead any more")
        for row in source.read(part.start_row, part.stop_row, part.locator):
            if row.error is not None:
                line = "" if row.error.line is None else f", line {row.error.line}"
                raise InvalidInput(f"{param}: row {row.row_index}{line}: {row.error.message}", param=param)
            (value,) = row.values.values()
            for label in value if isinstance(value, list) else [value]:
                if label is None or isinstance(label, list | dict | float) or label == "":
                    raise InvalidInput(f"{param}: row {row.row_index} has no {column}", param=param)
                found.add(str(label))
    return found


def _check_kind(kind: str, task: str, name: str, param: str) -> None:
    if kind in KNOWN and kind not in TRAINABLE[task]:
        raise InvalidModel(f"{name}: a {kind} has no {task} head", param=param)


def _inputs(spec: TrainingSpec) -> list[tuple[str, InputSpec]]:
    if spec.data is None:
        return []
    judged = spec.data.eval_input
    param = "data.eval" if spec.data.eval is not None else "data.eval_split"
    return [("data.train", spec.data.train_input), *([] if judged is None else [(param, judged)])]


def _open(
    rows: InputSpec, columns: Mapping[str, str], settings: Settings, store: Store, database: Database, project: str
) -> Source:
    find = partial(find_upload, database, project=project)
    return open_source(rows, columns, settings=settings, store=store, find_upload=find)


@contextmanager
def _naming(param: str) -> Iterator[None]:
    """While inside, what is said of an input names the training's own field."""
    try:
        yield
    except (InvalidInput, InvalidSpec) as error:
        told = error.param or ""
        if not told.startswith("input."):
            raise
        renamed = {"input.columns.": "data.columns.", "input.path": param, "input.": "data."}
        message = error.message
        for old, new in renamed.items():
            message, told = message.replace(old, new), told.replace(old, new)
        raise type(error)(message, param=told) from error
