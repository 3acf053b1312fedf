"""The commands and their options are frozen: a change of this list breaks scripts, and needs a changelog line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from scheduler.cli import command_line as cli

EVERYWHERE = {"--data-dir", "--url", "--debug", "--version"}
COMMANDS = {
    "up": {"--host", "--port", "--api-processes", "--slots", "--label", "--data-dir"},
    "serve": {"--host", "--port", "--api-processes", "--data-dir"},
    "worker": {"--slots", "--label", "--data-dir"},
    "run": {
        "task",
        "--model",
        "--input",
        "--text-column",
        "--column",
        "--key",
        "--output",
        "--param",
        "--format",
        "--input-option",
        "--dtype",
        "--slots",
        "--needs",
        "--priority",
        "--chunk-rows",
        "--max-row-errors",
        "--name",
        "--json",
        "--url",
        "--data-dir",
    },
    "submit": {"spec", "--wait", "--url", "--data-dir"},
    "plan": {"spec", "--json", "--url", "--data-dir"},
    "status": {"job", "--limit", "--children", "--json", "--url", "--data-dir"},
    "watch": {"job", "--json", "--url", "--data-dir"},
    "logs": {"job", "--follow", "-f", "--json", "--url", "--data-dir"},
    "slots": {"--by", "--json", "--url", "--data-dir"},
    "results": {"job", "--output", "--limit", "--json", "--url", "--data-dir"},
    "artifacts": {"job", "--output", "--json", "--url", "--data-dir"},
    "cancel": {"job", "--wait", "--json", "--url", "--data-dir"},
    "retry": {"job", "--wait", "--url", "--data-dir"},
    "cron add": {"name", "schedule", "spec", "--timezone", "--json", "--url", "--data-dir"},
    "cron list": {"--json", "--url", "--data-dir"},
    "cron remove": {"entry", "--url", "--data-dir"},
    "webhooks create": {"target", "--event", "--json", "--url", "--data-dir"},
    "webhooks list": {"--json", "--url", "--data-dir"},
    "webhooks delete": {"webhook_id", "--url", "--data-dir"},
    "webhooks test": {"webhook_id", "--json", "--url", "--data-dir"},
    "webhooks log": {"webhook_id", "--limit", "--json", "--url", "--data-dir"},
    "doctor": {"--json", "--url", "--data-dir"},
    "keys create": {"name", "--project", "--json", "--data-dir"},
    "keys list": {"--json", "--data-dir"},
    "keys revoke": {"key_id", "--data-dir"},
    "db upgrade": {"--data-dir"},
    "db current": {"--json", "--data-dir"},
}


def leaves(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that is not a group, by its path."""
    for name, each in command.commands.items():
        whole = f"{path} {name}".strip()
        if hasattr(each, "commands"):
            yield from leaves(each, whole)
        else:
            yield whole, each


def names_of(command: Any) -> set[str]:
    """Options and arguments of a command."""
    return {name for parameter in command.params for name in parameter.opts} - {"--help", "-h"}


def test_commands_and_their_options_stay_as_scripts_know_them() -> None:
    """A renamed command or option would break every script that uses it."""
    root = typer.main.get_command(cli.app)
    assert names_of(root) == EVERYWHERE
    assert {path: names_of(command) for path, command in leaves(root)} == COMMANDS


@pytest.mark.parametrize("path", ["", *COMMANDS])
def test_every_command_explains_itself(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a help text a user would have to read the code."""
    assert cli.main([*path.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: stoker {path}".rstrip())
    assert max(map(len, out.splitlines())) <= 80


def test_exit_codes_stay_as_scripts_know_them() -> None:
    """Scripts distinguish bad usage from a failed job by these."""
    assert (cli.DONE, cli.FAILED, cli.USAGE) == (0, 1, 2)
