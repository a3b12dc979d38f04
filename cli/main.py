"""The entry of the command. It imports little, so that a Ctrl-C is answered well while all the rest is still imported."""

import os
import signal
import sys
from importlib import import_module
from types import FrameType

INTERRUPTED = 2
"""`Status.INCONCLUSIVE`, which can't be imported yet."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit with its status."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    import_module("capvisor.cli.verbs")
    signal.signal(signal.SIGINT, before)
    sys.exit(status_of(arguments))


def status_of(arguments: list[str] | None = None) -> int:
    """Run the command; its exit status. Messages about what went wrong go to standard error."""
    status: int = import_module("capvisor.cli.verbs").status_of(arguments)
    return status


def _leave(_number: int, _frame: FrameType | None) -> None:
    """Nothing has begun. No exception: a module in the middle of its import would get it, and might make something of it."""
    os.write(2, b"capvisor: interrupted; nothing was finished\n")
    os._exit(INTERRUPTED)
