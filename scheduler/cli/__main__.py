"""`python -m scheduler.cli` is the `stoker` command where it is not installed."""

import sys

from scheduler.cli.app import main

sys.exit(main())
