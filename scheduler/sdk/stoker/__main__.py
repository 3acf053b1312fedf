"""The `stoker` command: `stoker ...` or `python -m stoker ...`."""

from __future__ import annotations

import sys

from ._own_packages import claim_plain_names


def main() -> int:
    """Run the command line of this process."""
    claim_plain_names()  # otherwise a user's `jobs.py` on PYTHONPATH would be imported instead of ours
    from scheduler.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
