"""The `stoker` command: one module for each group of commands, one for each thing that they share."""

from scheduler.cli.app import main

__all__ = ["main"]
