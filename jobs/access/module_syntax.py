"""Check a user's Python module without running it: its syntax, and what it defines and imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from jobs.errors import InvalidSpec
from jobs.messages import first_line, short

_LARGEST_BYTES = 100_000
"""Maximum size of a file that is checked here: to parse 1 MB may take ten seconds and 600 MB of memory."""
_ENTRY = "build"
_DYNAMIC = frozenset({"__dict__", "__getattr__", "eval", "exec", "globals", "locals", "modules", "setattr", "vars"})
"""Names with which a module may create a function that its source does not define."""
_OUR_PACKAGES = frozenset({"jobs", "scheduler", "worker"})
"""Stoker's packages. Where a module runs, these names are imported from Stoker and not from the module's folder."""


def check_module(path: Path, name: str) -> None:
    """Check that a module is valid Python, and that it can be used by a training.

    It is invalid if it certainly has no function `build`, or if it imports a file beside it that has the name of one
    of Stoker's packages.

    Args:
        path: The module's file.
        name: The module's name in the spec, for the message.

    Raises:
        InvalidSpec: The module cannot be used; the message says why.
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
    except (ValueError, RecursionError, MemoryError) as error:  # a zero byte, or code that is nested too deeply
        raise _invalid(name, f"is not valid Python: {short(first_line(error))}") from error
    names = set(_names(tree))
    if _ENTRY not in names and "*" not in names and not names & _DYNAMIC:
        raise _invalid(name, f"has no function {_ENTRY}(setup)")
    for imported in sorted(_OUR_PACKAGES.intersection(_imports(tree))):
        for neighbour in (path.with_name(f"{imported}.py"), path.with_name(imported)):
            if neighbour.exists():
                raise _invalid(
                    name,
                    f"imports '{imported}', which is also the name of a package of Stoker's and would load that one; "
                    f"rename '{neighbour.name}'",
                )


def _imports(tree: ast.AST) -> Iterator[str]:
    """Top-level names of the modules that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module.partition(".")[0]


def _names(tree: ast.AST) -> Iterator[str]:
    """All names that a module defines, imports or uses."""
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
