"""`capvisor fmt`."""

from pathlib import Path

import click

from capvisor.cli import programs
from capvisor.cli.options import paths_argument
from capvisor.cli.output import console, write_text
from capvisor.cli.status import Status
from capvisor.dsl.parser import parse
from capvisor.dsl.printer import print_program


@click.command()
@paths_argument
@click.option("--check", is_flag=True, help="Change nothing; exit with status 1 if a file isn't formatted.")
def fmt(paths: tuple[Path, ...], check: bool) -> int:
    """Format programs in place, in the one form that the printer gives. Comments stay."""
    out = console()
    unformatted = 0
    for path in programs.find(paths):
        text = programs.read_text(path)
        formatted = print_program(parse(text, str(path)))
        if formatted == text:
            continue
        unformatted += 1
        if check:
            out.print(f"{path}: not formatted")
        else:
            write_text(path, formatted)
            out.print(f"{path}: formatted")
    return Status.VIOLATION if check and unformatted else Status.OK
