"""A process that is killed while it is inside a transaction."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from jobs import process
from jobs.db.database import Database

_PROGRAM = """
import sys, threading
from jobs.db.database import Database
{imports}
database = Database(sys.argv[1])
inner = {function}
calls = 0
def blocked(*arguments, **options):
    global calls
    calls += 1
    found = inner(*arguments, **options)
    if calls == {call}:
        arguments[0].flush()
        print("inside", flush=True)
        threading.Event().wait()
    return found
{function} = blocked
{body}
"""


def kill_inside(database: Database, imports: str, function: str, body: str, *, call: int = 1) -> None:
    """Run a program in a process, and kill -9 it right after a function has changed something in its transaction.

    Args:
        imports: Imports of the program.
        function: Dotted name of the function, whose first argument is the transaction.
        body: The program; it has `database`.
        call: The call of the function at which the process is killed, from 1.
    """
    program = _PROGRAM.format(imports=imports, function=function, body=body, call=call)
    url = database.url.render_as_string(hide_password=False)
    child = process.spawn([sys.executable, "-c", program, url], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"inside\n", "the program ended before it was inside"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
