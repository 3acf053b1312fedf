"""Write every docstring of Python's standard library as JSON lines: a real corpus without a download."""

from __future__ import annotations

import argparse
import ast
import json
import sysconfig
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"})
"""Folders with packages of others, or with texts that are not useful here."""


def write_docstrings(path: Path, *, limit: int | None = None) -> int:
    """Write one line `{"id": "json.dumps", "text": "...", "package": "json"}` for each docstring.

    Args:
        path: The JSONL file to write.
        limit: Maximum number of lines.

    Returns:
        Number of lines written.
    """
    num_rows = 0
    with path.open("w", encoding="utf-8") as out:
        for record in islice(standard_library(), limit):
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
            num_rows += 1
    return num_rows


def standard_library() -> Iterator[dict[str, str]]:
    """Yield all docstrings of this Python's standard library, sorted by file name."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(inside.parts):
            yield from docstrings(path, ".".join(inside.with_suffix("").parts).removesuffix(".__init__"))


def docstrings(path: Path, module: str) -> Iterator[dict[str, str]]:
    """Yield the docstrings of one file: that of the module, then those of its classes and functions.

    Args:
        path: Python source. A file that cannot be parsed, such as a template, has no docstrings.
        module: The dotted name of the module.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # invalid escapes in the library do not matter here
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    package = module.split(".")[0]
    pending: list[tuple[str, ast.AST]] = [(module, tree)]
    while pending:
        name, node = pending.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = (ast.get_docstring(node) or "").strip()
            if text:
                yield {"id": name, "text": text, "package": package}
        inner = [(_name_inside(name, child), child) for child in ast.iter_child_nodes(node)]
        pending += reversed(inner)


def _name_inside(name: str, node: ast.AST) -> str:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return f"{name}.{node.name}"
    return name


def main() -> None:
    """Write them to the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--limit", type=int, default=None)
    arguments = parser.parse_args()
    print(f"{write_docstrings(arguments.output, limit=arguments.limit):,} docstrings in {arguments.output}")


if __name__ == "__main__":
    main()
