"""Whoever reads standard output may stop, as `head` does. The command then ends, as by Ctrl-C, whatever it is at."""

import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


class ReaderGoneError(KeyboardInterrupt):
    """Nobody reads the output any more: what is finished is kept, as where the user interrupts."""


class _Reader:
    """What is known of the reader of this process's output."""

    gone = False
    needed = False
    """Whether the command is at work, and works for the reader."""


_reader = _Reader()


def is_gone() -> bool:
    """Whether nobody reads the output any more."""
    return _reader.gone


def is_not_needed() -> None:
    """Go on without a reader: the work is done, and has a status whoever reads it; or it isn't for standard output."""
    _reader.needed = False


def lost() -> None:
    """Nobody reads the output: what else is written goes nowhere. Raises ReaderGoneError while they are needed."""
    _reader.gone = True
    discard(sys.stdout.fileno())
    if _reader.needed:
        _reader.needed = False
        raise ReaderGoneError


def discard(descriptor: int) -> None:
    """Let what is written to a descriptor go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextmanager
def watched() -> Iterator[None]:
    """Have a reader's going away raise ReaderGoneError in the main thread, also while nothing is written.

    SIGPIPE, which is what this is about and which Python ignores otherwise, brings it there.
    """
    _reader.gone, _reader.needed = False, True
    try:
        if threading.current_thread() is threading.main_thread() and _is_pipe():
            with _watching():
                yield
        else:
            yield
    finally:
        _reader.needed = False


def _is_pipe() -> bool:
    with suppress(OSError, ValueError):  # standard output may be closed, or be none that the system knows
        return stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode)
    return False


@contextmanager
def _watching() -> Iterator[None]:
    """A thread that waits for the reader's end, or for ours."""
    before = signal.signal(signal.SIGPIPE, _on_signal)
    ours, at_our_end = os.pipe()
    thread = threading.Thread(target=_wait, args=(sys.stdout.fileno(), ours), daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(at_our_end)
        thread.join()
        os.close(ours)
        signal.signal(signal.SIGPIPE, before)


def _wait(output: int, ours: int) -> None:
    poll = select.poll()
    poll.register(output, 0)  # errors alone: that the last reader has closed the pipe
    poll.register(ours, 0)
    if output in dict(poll.poll()):
        _reader.gone = True
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGPIPE)


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    """SIGPIPE comes from any pipe or socket; the others' users see an error there."""
    if _reader.gone:
        lost()
