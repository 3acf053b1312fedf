"""Turn Ctrl-C, SIGTERM and SIGHUP into one exception, raised in the main thread."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """The command got a signal to end. Not a KeyboardInterrupt, since Typer turns those into exit code 130."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


@contextmanager
def interruptible(on_signal: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Raise `Interrupted` on SIGINT, SIGTERM and SIGHUP inside the `with`. Ignored signals (nohup) stay ignored.

    Args:
        on_signal: Called in the handler at each signal; if it returns True, nothing is raised.
    """

    def handle(signum: int, _frame: FrameType | None) -> None:
        if not on_signal():
            raise Interrupted(signum)

    caught = [signum for signum in _SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, handle) for signum in caught}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
