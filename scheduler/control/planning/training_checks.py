"""The checks of a training before it takes a slot: of its model, its module, its rows and their labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from jobs.access.adapter_targets import check_targets
from jobs.access.model_check import check_model, check_processor, local_model, read_weights, readable
from jobs.access.model_files import read_json
from jobs.access.module_syntax import check_module
from jobs.access.paths import check_code_path
from jobs.config.access_rules import AccessRules
from jobs.config.projects import OPERATOR, sees
from jobs.data.sources import ChunkRange, Source, check_columns, open_source
from jobs.data.sources.training_rows import CHECKED_INPUTS, RowCheck, RowFlaw, naming_data
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import Job
from jobs.errors import InvalidInput, InvalidModel
from jobs.ledger.accounts.uploads import find_upload
from jobs.specs.architectures import read_architectures
from jobs.specs.array_spec import SWEEP
from jobs.specs.fields import InputSpec
from jobs.specs.inference import JOB_PREFIX, TRAINING, JobSpec, TrainingSpec, processor_job, source_job
from jobs.specs.needs import Need
from jobs.specs.training import recipe_name
from scheduler.control.planning.package_checks import needs_of_sound

_STEP_ROWS = 1000  # rows read between two calls of `is_wanted`
_HEAD_ROWS = 20
"""Number of rows of each input that are checked while the client waits; the planner checks the others."""


def check_training(
    spec: TrainingSpec,
    *,
    rules: AccessRules,
    store: Store,
    database: Database,
    project: str = OPERATOR,
    check_input: Callable[..., None] = check_columns,
) -> list[Need]:
    """Make all checks that are cheap enough for a submission; reads the first rows of each input.

    Args:
        check_input: Checks an input's columns: `check_columns`, which may be limited to the first files.

    Returns:
        What the sounds in the first rows need.

    Raises:
        UserError: The model, the module, an input or a column cannot be used; the message names the field.
        ServiceUnavailable: A store or remote file cannot be reached.
    """
    if spec.module is not None and recipe_name(spec.module) is None:
        check_module(check_code_path(spec.module, rules, param="module"), spec.module)
    if spec.task is not None and isinstance(spec.model, str) and not check_source_job(spec, database, project=project):
        check_model(spec.model, spec.task, rules, is_start=True)
        folder = local_model(spec.model, rules)
        if folder is not None:
            config = read_json(folder / "config.json", name=spec.model)
            _check_kind(str(config.get("model_type", "")), spec.task, f"model '{spec.model}'", "model")
            if spec.lora is not None:
                weights = read_weights(folder, name=spec.model)
                check_targets(spec.lora.target_modules, config, weights, spec.model)
    elif spec.task is not None and spec.model is not None and not isinstance(spec.model, str):
        if spec.model.architecture not in read_architectures().known:
            raise InvalidModel(
                f"model.architecture: transformers has no architecture '{spec.model.architecture}'",
                param="model.architecture",
            )
        _check_kind(spec.model.architecture, spec.task, "model.architecture", "model.architecture")
        _check_processor(spec, spec.model.processor, rules=rules, database=database, project=project)
    names: Sequence[str] | None = None
    found: list[Need] = []
    for param, rows in _inputs(spec):
        with naming_data(param):
            source = _open(spec, rows, spec.columns(), rules, store, database, project)
            check_input(source, rows, spec.columns(), optional=spec.optional_inputs)
            first = next(source.index(1))
            if "audio" in spec.columns():
                found.extend(needs_of_sound(source, first, param=param))
            opened = _open_checked(spec, rows, rules, store, database, project, names)
            if opened is not None:
                checked, check = opened
                _classes(checked, next(checked.index(_HEAD_ROWS)), check, param)
                names = check.names
    return found


def check_rows(
    spec: TrainingSpec,
    *,
    rules: AccessRules,
    store: Store,
    database: Database,
    project: str = OPERATOR,
    is_wanted: Callable[[], bool] = lambda: True,
) -> None:
    """Check the texts, words and classes of all rows, so that bad training data is found before a slot is taken.

    Raises:
        InvalidInput: A row cannot be learned from, all rows have the same class, or the eval rows have a class that is
            in no training row.
        InterruptedError: `is_wanted` returned False.
    """
    learned: set[str] = set()
    names: Sequence[str] | None = None
    for param, rows in _inputs(spec):
        with naming_data(param):
            opened = _open_checked(spec, rows, rules, store, database, project, names)
        if opened is None:
            return
        source, check = opened
        with naming_data(param):
            found: set[str] = set()
            for part in source.index(_STEP_ROWS):
                if not is_wanted():
                    raise InterruptedError("this scheduler is no longer the leader")
                found |= _classes(source, part, check, param)
        if check.task.label is None:
            continue
        column = check.columns[check.task.label]
        if param == "data.train":
            learned, names = found, check.names
            if len(found) < 2:
                only = f"all rows have the same {column} {min(found)!r}" if found else f"no row has a {column}"
                raise InvalidInput(
                    f"data.train: {only}; a training needs at least two different ones", param="data.train"
                )
        elif names is not None and check.names != names:
            raise InvalidInput(f"{param}: its class names differ from those of data.train", param=param)
        elif names is None and not found <= learned:
            raise InvalidInput(
                f"{param}: the {column} {min(found - learned)!r} is in no row of data.train", param=param
            )


def check_source_job(spec: JobSpec, database: Database, *, project: str = OPERATOR) -> bool:
    """Reject `model: job:<id>` if the job makes no model or has ended without one.

    Returns:
        Whether the spec's model has that form.

    Raises:
        InvalidModel: The job does not exist or makes no model.
    """
    job_id = source_job(spec)
    if job_id is None:
        return False
    _check_makes_model(job_id, "model", database, project)
    return True


def _check_processor(
    spec: TrainingSpec, processor: str | None, *, rules: AccessRules, database: Database, project: str
) -> None:
    param = "model.processor"
    if processor is None:
        raise InvalidModel(
            f"{param}: is required for a model from scratch: the folder or hub id of a tokenizer or processor",
            param=param,
        )
    job_id = processor_job(spec)
    if job_id is not None:
        job = _check_makes_model(job_id, param, database, project)
        if job.state != JobState.COMPLETED:  # a job can wait for its model, but not for its processor
            name = f"{param} '{processor}'"
            raise InvalidModel(
                f"{name}: that training is {job.state}; submit this job after it has completed", param=param
            )
        return
    folder = local_model(processor, rules, param=param)
    if folder is not None:
        check_processor(folder, name=processor, param=param, may_read=readable(processor, rules))


def _check_makes_model(job_id: str, param: str, database: Database, project: str) -> Job:
    """The job of a `job:<id>` that the project may use; raises InvalidModel if the job makes no model."""
    with database.read() as session:
        job = session.get(Job, job_id)
    name = f"{param} '{JOB_PREFIX}{job_id}'"
    if job is None or not sees(project, job.project):
        raise InvalidModel(f"{name}: there is no such job", param=param)
    if job.kind != TRAINING and not job.spec.get(SWEEP):
        raise InvalidModel(f"{name}: that job is no training or sweep, and has no model", param=param)
    if job.spec.get("trainer") == "torch":
        raise InvalidModel(
            f"{name}: that training used `trainer: torch`, so only its own module can load its weights",
            param=param,
        )
    if job.state.is_terminal and job.state != JobState.COMPLETED:
        raise InvalidModel(f"{name}: that training is {job.state} and has no model", param=param)
    return job


def _open_checked(
    spec: TrainingSpec,
    rows: InputSpec,
    rules: AccessRules,
    store: Store,
    database: Database,
    project: str,
    names: Sequence[str] | None = None,
) -> tuple[Source, RowCheck] | None:
    """The source of an input's columns whose values are checked, and their check; None without such columns.

    Args:
        names: The class names of `data.train`, for an input without its own class names.
    """
    task = spec.task_info
    columns = {name: column for name, column in spec.columns().items() if name in CHECKED_INPUTS}
    if task is None or not columns:
        return None
    source = _open(spec, rows, columns, rules, store, database, project)
    found = None if task.label is None else source.class_names(columns[task.label])
    return source, RowCheck(task, columns, names if found is None else found)


def _classes(source: Source, part: ChunkRange, check: RowCheck, param: str) -> set[str]:
    """The classes of some rows.

    Raises:
        InvalidInput: One of the rows cannot be learned from.
    """
    found: set[str] = set()
    for row in source.read(part.start_row, part.stop_row, part.locator):
        flaw, line = None, row.line
        if row.error is not None:
            flaw, line = row.error.message, row.error.line
        else:
            try:
                found.update(one for one in check.classes(row.values) if one is not None)
            except RowFlaw as error:
                flaw = str(error)
        if flaw is not None:
            where = f"row {row.row_index}" if line is None else f"row {row.row_index}, line {line}"
            raise InvalidInput(f"{param}: {where}: {flaw}", param=param)
    return found


def _check_kind(kind: str, task: str, name: str, param: str) -> None:
    types = read_architectures()
    if kind in types.known and kind not in types.trainable[task]:
        raise InvalidModel(f"{name}: a {kind} has no {task} head", param=param)


def _inputs(spec: TrainingSpec) -> list[tuple[str, InputSpec]]:
    if spec.data is None:
        return []
    eval_input = spec.data.eval_input
    param = "data.eval" if spec.data.eval is not None else "data.eval_split"
    return [("data.train", spec.data.train_input), *([] if eval_input is None else [(param, eval_input)])]


def _open(
    spec: TrainingSpec,
    rows: InputSpec,
    columns: Mapping[str, str],
    rules: AccessRules,
    store: Store,
    database: Database,
    project: str,
) -> Source:
    find = partial(find_upload, database, project=project)
    return open_source(rows, columns, rules=rules, store=store, find_upload=find, optional=spec.optional_inputs)
