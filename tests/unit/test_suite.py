"""Rules for the tests themselves: names that say what is promised, and shared code in `tests/support/` only."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
LONGEST_NAME = 70


def faults(source: str) -> list[str]:
    """What is against the rules in a test file, in the order of its lines."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if name.startswith("test_"):
                if len(name) > LONGEST_NAME:
                    found.append((node.lineno, f"{name} has {len(name)} characters"))
                if (ast.get_docstring(node) or "").startswith("Lost"):
                    found.append((node.lineno, f"{name} says what would be lost, not what is promised"))
    return [fault for _, fault in sorted(found)]


def test_each_test_file_keeps_the_rules() -> None:
    found = {str(path.relative_to(TESTS)): faults(path.read_text("utf-8")) for path in TESTS.rglob("*.py")}
    assert len(found) > 100
    assert {path: broken for path, broken in found.items() if broken} == {}


def test_each_broken_rule_is_found() -> None:
    name = "test_" + "x" * 66
    assert faults(f"def {name}():\n    '''Lost: a line.'''\n") == [
        f"{name} has 71 characters",
        f"{name} says what would be lost, not what is promised",
    ]
