"""The `stoker` command: `commands` holds the commands, the other modules what they share.

`command_line` collects the commands and turns errors into messages and exit codes, `connect` finds the API, `wait`
waits for a job, `progress`, `outputs` and `terminal` print.
"""

from scheduler.cli.command_line import main

__all__ = ["main"]
