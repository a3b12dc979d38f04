"""`capvisor vectors`."""

from pathlib import Path

import click

from capvisor.cli.options import seed_option
from capvisor.cli.output import check_writable, console, progress
from capvisor.cli.status import InputError, Status
from capvisor.conformance import traces as trace_files
from capvisor.conformance.files import SUFFIXES, write
from capvisor.conformance.generate import generate
from capvisor.conformance.generate_traces import generate_traces
from capvisor.conformance.traces import TRACE_SUFFIXES, is_trace_name
from capvisor.spec.formats import FORMATS
from capvisor.spec.vectors import VECTOR_OPERATIONS


@click.command()
@click.option("--format", "format_name", required=True, type=click.Choice(list(FORMATS)))
@click.option("--operation", type=click.Choice(list(VECTOR_OPERATIONS)), help="Vectors of this operation.")
@click.option("--traces", is_flag=True, help="Instruction traces instead of vectors of an operation.")
@click.option(
    "-n", "--rows", default=1000, show_default=True, type=click.IntRange(min=1), help="How many rows, or programs of traces."
)
@seed_option
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="A .npz or .csv file; for traces a .jsonl.gz or .jsonl file.",
)
def vectors(format_name: str, operation: str | None, traces: bool, rows: int, seed: int, output: Path) -> int:
    """Make golden vectors or instruction traces from the reference, to test other implementations with.

    Inputs and programs are drawn with a bias to edges. `capvisor conform` reads what this writes.
    """
    if traces and operation is not None:
        raise InputError(f"--traces and --operation {operation} exclude each other: traces are of whole programs")
    if not traces and operation is None:
        raise InputError(f"what is to be made? Say --operation ({', '.join(VECTOR_OPERATIONS)}) or --traces")
    suffixes = TRACE_SUFFIXES if traces else SUFFIXES
    if not (is_trace_name(output) if traces else output.suffix in SUFFIXES):
        raise InputError(f"{output}: expected a name that ends in {' or '.join(suffixes)}")
    check_writable(output)
    fmt = FORMATS[format_name]
    try:
        if operation is None:
            with progress("programs", rows) as advance:
                programs = list(generate_traces(fmt, rows, seed, advance))
            trace_files.write(output, fmt, programs)
            what = f"{sum(map(len, programs))} steps of {rows} programs"
        else:
            with progress("rows", rows) as advance:
                columns = generate(fmt, operation, rows, seed, advance)
            write(output, columns)
            what = f"{rows} rows of {operation}"
    except OSError as error:
        raise InputError(f"can't write {output}: {error.strerror or error}") from None
    console(is_final=True).print(f"{output}: {what} for {format_name}, seed {seed}")
    return Status.OK
