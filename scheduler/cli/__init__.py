"""The `stoker` command: one module for each group of commands, one for each thing that they share."""

from scheduler.cli.command_line import main

__all__ = ["main"]
