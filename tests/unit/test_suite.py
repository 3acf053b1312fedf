"""Rules for the tests themselves: short names, and shared code in `tests/support/` only."""

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
            case ast.Import(names=names):
                imported = [alias.name for alias in names]
                found += [(node.lineno, f"imports {name}") for name in imported if is_a_test_file(name)]
            case ast.ImportFrom(module=str(module), names=names):
                imported = [f"{module}.{alias.name}" for alias in names]
                found += [(node.lineno, f"imports {name}") for name in imported if is_a_test_file(name)]
    return [fault for _, fault in sorted(found)]


def is_a_test_file(name: str) -> bool:
    """Whether an imported name is a test file, or comes from one."""
    root, *rest = name.split(".")
    return root == "tests" and any(part.startswith("test_") for part in rest)


def test_each_test_file_keeps_the_rules() -> None:
    found = {str(path.relative_to(TESTS)): faults(path.read_text("utf-8")) for path in TESTS.rglob("*.py")}
    assert len(found) > 100
    assert {path: broken for path, broken in found.items() if broken} == {}


def test_each_broken_rule_is_found() -> None:
    name = "test_" + "x" * 66
    imports = "from tests.unit.test_a import one\nfrom tests.unit import test_b\nimport tests.unit.test_c\n"
    assert faults(f"{imports}from tests.support.tiny import two\ndef {name}():\n    '''Lost: a line.'''\n") == [
        "imports tests.unit.test_a.one",
        "imports tests.unit.test_b",
        "imports tests.unit.test_c",
        f"{name} has 71 characters",
        f"{name} says what would be lost, not what is promised",
    ]
