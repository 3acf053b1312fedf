"""The `stoker` command: `*_command(s)` hold the commands, the other modules what they share."""

from scheduler.cli.command_line import main

__all__ = ["main"]
