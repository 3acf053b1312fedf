"""Links of the docs lead somewhere, and their commands, options, settings and fields exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from jobs.config.settings import Settings
from jobs.specs.array_spec import parse_submission
from jobs.specs.inference import InferenceSpec, InputSpec
from scheduler.cli import command_line as cli
from scheduler.client.plain_data import parse_document

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "ops" / "benchmarks" / "README.md",
    *sorted((ROOT / "ops" / "docs").glob("*.md")),
]
_SPACE = " "


def name_of(page: Path) -> str:
    """A page's name within the repository."""
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """The code blocks of these languages."""
    for language, block in re.findall(
        r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        if language in languages:
            yield block


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What a link may point at within a page, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(_SPACE, "-") for heading in headings}


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@every_page
def test_every_file_that_is_named_exists(page: Path) -> None:
    for name in re.findall(r"`((?:jobs|scheduler|worker|tests|ops)/[\w/.-]+)`", prose(page)):
        assert (ROOT / name).exists(), name


# -- commands ------------------------------------------------------------------------------------------------------


def commands_of(page: Path) -> Iterator[list[str]]:
    """Every `stoker` command in the shell blocks and the inline code of a page, as words."""
    lines = [line for block in blocks(page, "console", "sh") for line in block.splitlines()]
    shown = [line.removeprefix("$ ") for line in lines if not re.match(r"(ok|job|stoker ready|error:)\b", line)]
    inline = re.findall(r"`(stoker [a-z][^`]*)`", prose(page))
    for line in [*shown, *inline]:
        for part in re.split(r"\$\(|&&|\|(?!\|)|\)$|\)\s", line):
            start = re.match(r"\s*(?:sudo (?:-u \w+ )?)?(?:[\w/.]*/)?stoker (?=[-a-z])", part)
            if start is not None:
                yield shlex.split(part[start.end() :], comments=True)


def check_command(words: list[str]) -> None:
    """Fail where a command or an option does not exist, or an argument is missing where the command is a whole one."""
    command: Any = typer.main.get_command(cli.app)
    path = ["stoker"]
    left = list(words)
    while left:
        word = left.pop(0)
        options = {name: each for each in command.params for name in each.opts if name.startswith("-")}
        if word in (">", "2>", "...", "--help", "-h"):
            return
        if word.startswith("-"):
            name, _, value = word.partition("=")
            assert name in options, f"{' '.join(path)} has no option {name}"
            if not options[name].is_flag and not value and left:
                left.pop(0)
        elif hasattr(command, "commands"):
            assert word in command.commands, f"{' '.join(path)} has no command {word}"
            command = command.commands[word]
            path.append(word)


@every_page
def test_every_command_and_option_exists(page: Path) -> None:
    for words in commands_of(page):
        if words[0] == "COMMAND":
            continue
        check_command(words)


@pytest.mark.parametrize("wrong", ["rum x", "run --modle m", "keys make", "--verbose up"])
def test_a_wrong_command_would_be_found(wrong: str) -> None:
    with pytest.raises(AssertionError):
        check_command(wrong.split())


SHARED = {"--json", "--url", "--data-dir", "--help"}
"""Options that the page explains once for all commands."""


def test_the_commands_page_has_every_command_and_option() -> None:
    text = (ROOT / "ops" / "docs" / "cli.md").read_text(encoding="utf-8")
    sections = {part.splitlines()[0]: part for part in text.split("\n## ")[1:]}

    def check(command: Any, path: str) -> None:
        if hasattr(command, "commands"):
            for name, each in command.commands.items():
                check(each, f"{path} {name}")
            return
        found = [part for title, part in sections.items() if re.fullmatch(rf"{path}( \[?[A-Z]+\]?)*", title)]
        assert len(found) == 1, path
        for option in (name for each in command.params for name in each.opts if name.startswith("--")):
            assert option == "--help" or re.search(rf"`{option}\b", found[0]), f"{path} {option}"
        assert command.help in found[0], path
        for text in (each.help for each in command.params if not SHARED.intersection(each.opts)):
            assert text in found[0] or text.startswith(("Id of", "Priority")), f"{path}: {text}"

    check(typer.main.get_command(cli.app), "stoker")


# -- settings and specs --------------------------------------------------------------------------------------------


@every_page
def test_every_setting_that_is_named_exists(page: Path) -> None:
    known = {f"STOKER_{name.upper()}" for name in Settings.model_fields} | {"STOKER_CONFIG", "STOKER_PYTHON"}
    assert set(re.findall(r"STOKER_[A-Z_]*[A-Z]", page.read_text(encoding="utf-8"))) <= known


@every_page
def test_every_spec_that_is_shown_is_one(page: Path) -> None:
    for block in blocks(page, "yaml"):
        document = parse_document(block.encode(), name=page.name, is_yaml=True)
        if "task" in document or "kind" in document:
            parse_submission(document)
        else:  # a part of one
            assert set(document) <= set(InferenceSpec.model_fields)
            InputSpec.model_validate(document["input"])


@every_page
def test_every_piece_of_python_can_be_compiled(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)


# -- the rooms -----------------------------------------------------------------------------------------------------


def test_the_picture_of_the_rooms_is_the_tree() -> None:
    page = (ROOT / "ops" / "docs" / "architecture.md").read_text(encoding="utf-8")
    pictured: set[str] = set()
    path: list[str] = []
    for line in page.split("\n## The rooms\n")[1].split("```")[1].splitlines():
        name = line.lstrip(" ").split(" ")[0]
        if name.endswith("/"):
            depth = (len(line) - len(line.lstrip(" "))) // 2
            path = [*path[:depth], name.rstrip("/")]
            pictured.add("/".join(path))
    files = (path for package in ("jobs", "scheduler", "worker") for path in (ROOT / package).rglob("*.py"))
    assert pictured == {str(path.parent.relative_to(ROOT)) for path in files}
