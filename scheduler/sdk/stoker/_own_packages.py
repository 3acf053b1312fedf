"""Lets the code of this package import Stoker's packages `jobs`, `scheduler` and `worker` in a user's program.

A user's program may have its own modules with these names. Therefore our packages are loaded there as
`stoker._own.jobs` and so on, beside the user's modules. Our modules get their own `__import__`, through the
`__builtins__` that `exec` allows, and it turns `import jobs.x` into an import of `stoker._own.jobs.x`. The same
statement in the user's code imports the user's module. A process of Stoker, such as a runner, has already loaded our
packages under their plain names. There these are used, so that no class exists twice.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType

_NAMES = ("jobs", "scheduler", "worker")
_OWN = f"{__package__}._own"
_COMMAND = f"{__package__}.__main__"


def _find_home() -> Path:
    """The folder that holds our packages: the parent of an installed `stoker`, further up in a checkout."""
    parents = Path(__file__).resolve().parents
    for folder in parents[1:4]:
        if all((folder / name / "__init__.py").is_file() for name in _NAMES):
            return folder
    raise ImportError(f"Stoker's packages {', '.join(_NAMES)} are not installed beside {parents[0]}")


_HOME = _find_home()


@functools.cache
def uses_plain_names() -> bool:
    """Whether this process has loaded our packages under their plain names. The first result is cached."""
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in _NAMES}
    return any(file is not None and Path(file).resolve().parent == _HOME / name for name, file in files.items())


def claim_plain_names() -> None:
    """Load our packages under their plain names, even if `sys.path` has other modules with these names.

    Called by a process of Stoker before it imports anything else of our packages.
    """
    for name in _NAMES:
        found = PathFinder.find_spec(name, [str(_HOME)])
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module
        found.loader.exec_module(module)


def _import(
    name: str,
    globals: Mapping[str, object] | None = None,  # noqa: A002, the signature of `__import__`
    locals: Mapping[str, object] | None = None,  # noqa: A002
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """The `__import__` of our modules, in which the names of our packages mean ours."""
    package = name.partition(".")[0]
    if level == 0 and package in _NAMES:
        importlib.import_module(f"{_OWN}.{name}")
        if not fromlist:
            return sys.modules[f"{_OWN}.{package}"]
        name = f"{_OWN}.{name}"
    return builtins.__import__(name, globals, locals, fromlist or (), level)


_BUILTINS = {**vars(builtins), "__import__": _import}


class _Loader(SourceFileLoader):
    """Loads a module whose imports go through `_import`."""

    def exec_module(self, module: ModuleType) -> None:
        """See `Loader`."""
        vars(module)["__builtins__"] = _BUILTINS
        super().exec_module(module)


class _Finder(MetaPathFinder):
    """Finds the modules of this package and of `stoker._own`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `MetaPathFinder`."""
        if fullname == _OWN:
            return ModuleSpec(_OWN, loader=None, is_package=True)
        parent, _, name = fullname.rpartition(".")
        is_own = fullname.startswith(f"{_OWN}.")
        if not is_own and (parent != __package__ or fullname == _COMMAND or uses_plain_names()):
            return None
        if parent == _OWN:
            path = [str(_HOME)] if name in _NAMES else []
        found = PathFinder.find_spec(fullname, path, target)
        if found is not None and isinstance(found.loader, SourceFileLoader) and found.origin is not None:
            found.loader = _Loader(fullname, found.origin)
        return found


sys.meta_path.insert(0, _Finder())
