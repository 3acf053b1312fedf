"""Run the `stoker` command as `python -m scheduler.cli`, without installing it."""

import sys

from scheduler.cli.command_line import main

sys.exit(main())
