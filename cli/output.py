"""How the command writes: tables and messages, progress, and files."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from capvisor import __version__
from capvisor.cli.status import InputError

PLAIN_WIDTH = 160
"""Columns where standard output is no terminal."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with status 1; `cli.main` knows what to do


def console(*, stderr: bool = False) -> Console:
    """Where to print: text as it is, without markup, and not wrapped at 80 columns when it goes to a file."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return _Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=width, soft_wrap=True)


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> Table:
    """A table; `right` are the columns of numbers."""
    result = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        result.add_column(name, justify="right" if index in right else "left", no_wrap=index in right, overflow="fold")
    for row in rows:
        result.add_row(*(str(cell) for cell in row))
    return result


@contextmanager
def progress(what: str, total: int) -> Iterator[Any]:
    """A bar on a terminal, nothing elsewhere. Gives a function to call with how much has been done."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises InputError where that isn't possible."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(path)
    except OSError as error:
        with_cleanup(temporary)
        raise InputError(f"can't write {path}: {error.strerror or error}") from None


def with_cleanup(path: Path) -> None:
    """Remove what a failed write left."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def check_writable(path: Path | None) -> None:
    """Raises InputError, before any work is done, where a file can't be written."""
    if path is None:
        return
    folder = path.parent
    if path.is_dir():
        raise InputError(f"can't write {path}: it is a folder")
    if not folder.is_dir():
        raise InputError(f"can't write {path}: there is no folder {folder}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise InputError(f"can't write {path}: permission denied")


def write_json(path: Path | None, kind: str, content: dict[str, Any]) -> None:
    """Write a result as JSON, with what it is and which version made it, if a path is given."""
    if path is None:
        return
    document = {"kind": kind, "version": __version__, **content}
    write_text(path, json.dumps(document, indent=2) + "\n")
