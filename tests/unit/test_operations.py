"""Programs in `ops/` that no other test runs use only what there is."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

OPS = Path(__file__).parents[2] / "ops"
PROGRAMS = sorted([*OPS.glob("benchmarks/*.py"), *OPS.glob("examples/*.py"), *OPS.glob("*.py")])


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.relative_to(OPS).as_posix())
def test_what_a_program_imports_from_stoker_is_there(program: Path) -> None:
    missing = []
    for node in ast.walk(ast.parse(program.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in {"jobs", "scheduler", "worker"}:
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if not hasattr(module, alias.name):
                    try:
                        importlib.import_module(f"{node.module}.{alias.name}")
                    except ModuleNotFoundError:
                        missing.append(f"line {node.lineno}: {node.module}.{alias.name}")
    assert missing == []
