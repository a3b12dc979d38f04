"""`capvisor vectors`."""

from pathlib import Path

import click

from capvisor.cli.options import seed_option
from capvisor.cli.output import check_writable, console, progress
from capvisor.cli.status import InputError, Status
from capvisor.conformance.files import SUFFIXES, write
from capvisor.conformance.generate import generate
from capvisor.spec.formats import FORMATS
from capvisor.spec.vectors import VECTOR_OPERATIONS


@click.command()
@click.option("--format", "format_name", required=True, type=click.Choice(list(FORMATS)))
@click.option("--operation", required=True, type=click.Choice(list(VECTOR_OPERATIONS)))
@click.option("-n", "--rows", default=1000, show_default=True, type=click.IntRange(min=1), help="How many rows.")
@seed_option
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="A .npz or .csv file.")
def vectors(format_name: str, operation: str, rows: int, seed: int, output: Path) -> int:
    """Make golden vectors from the reference, to test other implementations with.

    Inputs are drawn with a bias to edges. `capvisor conform` reads what this writes.
    """
    if output.suffix not in SUFFIXES:
        raise InputError(f"{output}: expected a name that ends in {' or '.join(SUFFIXES)}")
    check_writable(output)
    with progress("rows", rows) as advance:
        columns = generate(FORMATS[format_name], operation, rows, seed, advance)
    try:
        write(output, columns)
    except OSError as error:
        raise InputError(f"can't write {output}: {error.strerror or error}") from None
    console().print(f"{output}: {rows} rows of {operation} for {format_name}, seed {seed}")
    return Status.OK
