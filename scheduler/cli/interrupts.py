"""Ctrl-C, SIGTERM and the terminal's end as one exception, raised where the main thread is."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A person or the system asked the command to end. Not a KeyboardInterrupt: Typer turns that into exit code 130."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


@contextmanager
def interruptible(hurry: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Raise `Interrupted` on SIGINT, SIGTERM and SIGHUP inside the `with`; one that is ignored (nohup) stays so.

    Args:
        hurry: called at each signal in the handler; True where that dealt with it and nothing is to be raised.
    """

    def handle(signum: int, _frame: FrameType | None) -> None:
        if not hurry():
            raise Interrupted(signum)

    heard = [signum for signum in _SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, handle) for signum in heard}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
