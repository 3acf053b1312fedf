"""`python -m scheduler.cli` is the `stoker` command where it is not installed."""

import sys

from scheduler.cli.command_line import main

sys.exit(main())
