"""What can be said of a user's Python module without running it: whether it is Python, what it defines and imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from jobs.errors import InvalidSpec
from jobs.messages import first_line, short

_LARGEST_BYTES = 100_000
"""Larger files are left to the worker: one of 1 MB may take ten seconds and 600 MB of memory to parse."""
_ENTRY = "build"
_DYNAMIC = frozenset({"__dict__", "__getattr__", "eval", "exec", "globals", "locals", "modules", "setattr", "vars"})
"""Names by which a module may come to a function that its text does not define."""
_OUR_PACKAGES = frozenset({"jobs", "scheduler", "worker"})
"""Names that mean Stoker's own packages where a module is run, whatever lies beside the module."""


def check_module(path: Path, name: str) -> None:
    """Refuse a module that is not valid Python, that certainly has no function `build`, or that would import one of our
    packages in place of its own neighbour.

    Args:
        path: The module's file.
        name: What the spec calls it, for the message.

    Raises:
        InvalidSpec: It cannot be imported or used; the message names the line.
    """
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            return
        tree = ast.parse(path.read_bytes())
    except OSError as error:
        raise _invalid(name, f"cannot be read: {error.strerror}") from error
    except SyntaxError as error:
        where = "" if error.lineno is None else f"line {error.lineno}: "
        raise _invalid(name, f"is not valid Python: {where}{short(str(error.msg))}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # a zero byte; nested too deeply
        raise _invalid(name, f"is not valid Python: {short(first_line(error))}") from error
    names = set(_names(tree))
    if _ENTRY not in names and "*" not in names and not names & _DYNAMIC:
        raise _invalid(name, f"has no function {_ENTRY}(setup)")
    for imported in sorted(_OUR_PACKAGES.intersection(_imports(tree))):
        for neighbour in (path.with_name(f"{imported}.py"), path.with_name(imported)):
            if neighbour.exists():
                raise _invalid(
                    name,
                    f"imports '{imported}', which is a package of Stoker's where it runs, and not '{neighbour.name}' "
                    "beside it; give that another name",
                )


def _imports(tree: ast.AST) -> Iterator[str]:
    """The first names of the modules that a module's text imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module.partition(".")[0]


def _names(tree: ast.AST) -> Iterator[str]:
    """Every name that a module's text defines, imports or uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.asname or node.name
            yield node.name
        elif isinstance(node, ast.MatchAs | ast.MatchStar) and node.name is not None:
            yield node.name


def _invalid(name: str, reason: str) -> InvalidSpec:
    return InvalidSpec(f"module: '{name}' {reason}", param="module")
