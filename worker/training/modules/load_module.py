"""Loads a user's module, calls its `build`, and checks what it returns before the first step."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from torch import nn
from torch.optim import Optimizer

from jobs.access.paths import check_code_path
from jobs.config.access_rules import AccessRules
from jobs.errors import InvalidSpec, ModuleFailed, StokerError
from jobs.messages import one_line
from jobs.specs.training import recipe_name
from worker.device import is_out_of_memory
from worker.training.modules.dependencies import KeptLoader, Sources
from worker.training.modules.user_module import Module, Parts, Phase, Setup

logger = logging.getLogger(__name__)

_RECIPES = f"{__package__}.recipes"
_OURS = Path(__file__).parents[1]
_FROM_LOADER = re.compile(r"Caught \w+ in DataLoader worker process \d+\.")
_LONGEST_LINE = 300
_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
"""A model's name becomes the name of a file."""


def load_module(name: str, rules: AccessRules, sources: Sources | None = None) -> Module:
    """Import a module.

    Args:
        name: `recipes.<name>` for one of Stoker's recipes, or the path of a Python file.
        rules: The rules whose `code_roots` must contain the file.
        sources: The files as an earlier attempt imported them; they are used in place of the present files.

    Raises:
        InvalidSpec: The recipe does not exist, or the module has no `build`.
        Forbidden: The file is not in an allowed folder.
        InvalidInput: The path is not a Python file.
        ModuleFailed: The module cannot be imported.
    """
    recipe = recipe_name(name)
    if recipe is not None:
        module = importlib.import_module(f"{_RECIPES}.{recipe}")
    else:
        path = check_code_path(name, rules, param="module")
        # The module gets a unique name, so that a file called `random.py` does not replace another module. Modules
        # beside it are found as with `python FILE`. Worker processes of a data loader find it under that name.
        called = f"stoker_module_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
        loader = KeptLoader(called, str(path), sources or Sources())
        found = importlib.util.spec_from_file_location(called, path, loader=loader)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[called] = module
        sys.path.append(str(path.parent))
        with users_code("importing it"):
            found.loader.exec_module(module)
    if not callable(getattr(module, "build", None)):
        raise InvalidSpec(f"module: '{name}' has no function build(setup)", param="module")
    return cast("Module", module)


def build_parts(module: Module, setup: Setup) -> Parts:
    """Call a module's `build`, check the result, and move its models to the device.

    Raises:
        InvalidSpec: An option is invalid.
        ModuleFailed: `build` failed, or what it returned cannot be trained.
    """
    with users_code("build"):
        try:
            parts = module.build(setup)
        except ValueError as error:
            if not str(error).startswith("options."):
                raise
            raise InvalidSpec(one_line(error).removeprefix("ValueError: "), param="options") from error
    if not isinstance(parts, Parts):
        raise ModuleFailed(f"module: build returned {type(parts).__name__}, not Parts", param="module")
    _check(parts)
    for name, model in parts.models.items():
        with users_code(f"moving the model '{name}' to the device"):
            model.to(setup.device)
    return parts


def _check(parts: Parts) -> None:
    """Raise ModuleFailed if the parts cannot be trained."""
    if not parts.models or not parts.phases:
        raise ModuleFailed("module: build returned no models or no phases", param="module")
    _check_models(parts.models)
    _check_phases(parts)
    for name, rows in (("train", parts.train), ("eval_data", parts.eval_data)):
        if name == "eval_data" and rows is None:
            continue
        with users_code(f"the length of Parts.{name}"):
            num_rows = len(rows)  # type: ignore[arg-type]
        if num_rows == 0:
            raise ModuleFailed(f"module: Parts.{name} is empty", param="module")
    if (parts.eval_data is None) != (parts.evaluate is None):
        raise ModuleFailed("module: Parts.eval_data and Parts.evaluate must be set together", param="module")
    if isinstance(parts.facts, str) or not _are(parts.facts, str):
        raise ModuleFailed("module: Parts.facts must be a list of sentences", param="module")


def _check_models(models: object) -> None:
    if not isinstance(models, Mapping) or not all(isinstance(model, nn.Module) for model in models.values()):
        raise ModuleFailed("module: Parts.models must be a mapping of names to nn.Module", param="module")
    for name, model in models.items():
        if not isinstance(name, str) or not _MODEL_NAME.fullmatch(name):
            raise ModuleFailed(
                f"module: Parts.models: {name!r:.80} cannot name a model: only letters, digits, '_', '-' and '.'",
                param="module",
            )
        with users_code(f"the state of the model '{name}'"):
            other = next((key for key, value in model.state_dict().items() if not hasattr(value, "dtype")), None)
        if other is not None:
            raise ModuleFailed(
                f"module: the model '{name}' keeps '{other}', which is not a tensor, so no checkpoint would contain it",
                param="module",
            )


def _check_phases(parts: Parts) -> None:
    if not _are(parts.phases, Phase):
        raise ModuleFailed("module: Parts.phases must be a list of Phase", param="module")
    names = [phase.name for phase in parts.phases]
    if len(set(names)) < len(names):
        raise ModuleFailed(f"module: two phases have the same name: {', '.join(names)}", param="module")
    known = {id(weight) for model in parts.models.values() for weight in model.parameters()}
    for phase in parts.phases:
        if not isinstance(phase.optimizer, Optimizer):
            raise ModuleFailed(
                f"module: the optimizer of phase '{phase.name}' is not a torch optimizer", param="module"
            )
        if any(id(weight) not in known for group in phase.optimizer.param_groups for weight in group["params"]):
            raise ModuleFailed(
                f"module: the optimizer of phase '{phase.name}' has weights of a model that is not in Parts.models, "
                "so no checkpoint would contain them",
                param="module",
            )


def _are(values: object, kind: type) -> bool:
    return isinstance(values, Sequence) and all(isinstance(value, kind) for value in values)


@contextmanager
def users_code(what: str) -> Iterator[None]:
    """Turn exceptions and exits of the block into ModuleFailed; the traceback goes into the job's log.

    Args:
        what: What the block calls, for the error message.
    """
    try:
        yield
    except StokerError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error) or _is_machines(error):
            raise
        logger.exception("the module failed in %s", what)
        where = _last_frame(error)
        raise ModuleFailed(f"module: {what}: {_in_words(error)}{where}", param="module") from error


def _is_machines(error: BaseException) -> bool:
    """Return whether the error means that a data loader's process was killed, which no user code raises."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    # The socket of a killed process fails before torch notices its end. Errors of rows come from torch's files.
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, OSError | EOFError) and Path(frames[-1].filename).parent.name == "multiprocessing"


def _in_words(error: BaseException) -> str:
    """Return an error's type and message. An error of a loader's process arrives as a traceback, of which this is the
    last line."""
    lines = str(error).strip().splitlines()
    if lines and _FROM_LOADER.match(lines[0]):
        return lines[-1][:_LONGEST_LINE]
    return one_line(error)


def _last_frame(error: BaseException) -> str:
    """Return the last line in the user's own files that a traceback names, for error messages."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not Path(frame.filename).is_relative_to(_OURS) and "site-packages" not in frame.filename
    ]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def source_of(module: Module) -> Path:
    """Return the path of a module's file."""
    return Path(str(getattr(module, "__file__", "")))
