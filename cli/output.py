"""How the command writes: tables and messages, progress, and files."""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from capvisor import __version__
from capvisor.cli import reader
from capvisor.cli.status import InputError
from capvisor.files import write_whole

PLAIN_WIDTH = 1000
"""Columns where standard output is no terminal: no cell is ever broken there."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read our output has stopped, which ends the command; nobody has to read standard error."""
        if self.stderr:
            reader.discard(sys.stderr.fileno())
        else:
            reader.lost()


PLAIN_PROGRESS_S = 10.0
"""Seconds between lines of progress where standard error is no terminal."""


def console(*, stderr: bool = False, is_final: bool = False) -> Console:
    """Where to print: text as it is, without markup, and not wrapped at 80 columns when it goes to a file.

    `is_final` says that the work is done: from here on its status stands, whether anybody reads the output or not.
    """
    if is_final:
        reader.is_not_needed()
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return _Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=width, soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> Table:
    """A table; `right` are the columns of numbers."""
    result = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        result.add_column(name, justify="right" if index in right else "left", no_wrap=index in right, overflow="fold")
    for row in rows:
        result.add_row(*(str(cell) for cell in row))
    return result


class _PlainProgress:
    """Says on standard error how far the work is, every so many seconds."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._next = time.monotonic() + PLAIN_PROGRESS_S

    def __call__(self, done: int) -> None:
        self._done += done
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_PROGRESS_S
            console(stderr=True).print(f"{self._what}: {self._done} of {self._total}")


@contextmanager
def progress(what: str, total: int) -> Iterator[Any]:
    """A bar on a terminal, now and then a plain line elsewhere. Gives a function to call with how much has been done."""
    if not sys.stderr.isatty():
        yield _PlainProgress(what, total)
        return
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def write_text(path: Path | None, text: str) -> None:
    """Write a file whole or not at all, if a path is given. Raises InputError where that isn't possible."""
    if path is None:
        return
    try:
        write_whole(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror or error}") from None


def check_writable(path: Path | None, inputs: Iterable[Path] = ()) -> None:
    """Raises InputError, before any work is done, where a file can't be written or is one of the inputs."""
    if path is None:
        return
    if path.exists() and any(each.exists() and each.samefile(path) for each in inputs):
        raise InputError(f"can't write {path}: it is an input")
    folder = path.resolve().parent if path.is_symlink() else path.parent
    if path.is_dir():
        raise InputError(f"can't write {path}: it is a folder")
    if not folder.is_dir():
        raise InputError(f"can't write {path}: there is no folder {folder}")
    if not os.access(path if path.exists() and not path.is_file() else folder, os.W_OK):
        raise InputError(f"can't write {path}: permission denied")


def write_json(path: Path | None, kind: str, content: dict[str, Any]) -> None:
    """Write a result as JSON, with what it is and which version made it, if a path is given."""
    document = {"kind": kind, "version": __version__, **content}
    write_text(path, json.dumps(document, indent=2) + "\n")
