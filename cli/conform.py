"""`capvisor conform`."""

from pathlib import Path
from typing import Any

import click

from capvisor.cli.options import implementation_option, json_option, paths_argument
from capvisor.cli.output import check_writable, console, progress, table, write_json
from capvisor.cli.status import InputError, Status
from capvisor.conformance.check import Result, check, decoded
from capvisor.conformance.files import SUFFIXES, describe_name, read
from capvisor.spec.formats import FORMATS
from capvisor.spec.vectors import VECTOR_OPERATIONS


@click.command()
@paths_argument
@implementation_option("both")
@click.option("--format", "format_name", type=click.Choice(list(FORMATS)), help="Instead of what the file's name says.")
@click.option("--operation", type=click.Choice(list(VECTOR_OPERATIONS)), help="Instead of what the file's name says.")
@json_option
def conform(
    paths: tuple[Path, ...], implementation: str, format_name: str | None, operation: str | None, json_path: Path | None
) -> int:
    """Hold the implementations against golden vectors: FORMAT.OPERATION.npz or .csv files, or folders of them."""
    check_writable(json_path, paths)
    chosen = ["reference", "fast"] if implementation == "both" else [implementation]
    files, skipped = _find(paths, format_name is not None and operation is not None)
    if not files:
        raise InputError(f"{', '.join(map(str, paths))}: no golden vectors of a known format: FORMAT.OPERATION.npz or .csv")
    out, results = console(), []
    with progress("files", len(files)) as advance:
        for path in files:
            vectors = read(path, format_name, operation)
            results += [(path, check(vectors, name)) for name in chosen]
            advance(1)
    columns = ("file", "implementation", "rows", "values compared", "failed", "first failing row")
    out.print(table(columns, [_row(result) for _path, result in results], right=(2, 3, 4)), soft_wrap=False)
    for path in skipped:
        out.print(f"skipped: {path}: no format and operation that are modelled")
    for path, result in results:
        if result.first is not None:
            _explain(out.print, path, result)
    failed = [result for _path, result in results if result.failed]
    rows = sum(result.rows for _path, result in results)
    out.print(f"\n{rows} rows answered, {sum(result.failed for result in failed)} wrong")
    write_json(json_path, "conform", {"results": [_as_json(path, result) for path, result in results]})
    return Status.VIOLATION if failed else Status.OK


def _find(paths: tuple[Path, ...], named: bool) -> tuple[list[Path], list[Path]]:
    """The files to check, and those of folders whose names say no format and operation that are modelled."""
    files: list[Path] = []
    skipped: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        for found in sorted(path.rglob("*")):
            if found.suffix not in SUFFIXES:
                continue
            described = describe_name(found)
            known = described is not None and described[0] in FORMATS and described[1] in VECTOR_OPERATIONS
            (files if known or named else skipped).append(found)
    return files, skipped


def _row(result: Result) -> tuple[object, ...]:
    first = "" if result.first is None else result.first.row
    return result.file, result.implementation, result.rows, result.comparisons, result.failed, first


def _explain(write: Any, path: Path, result: Result) -> None:
    """The first failing row with all its columns, and the capabilities in it decoded."""
    first = result.first
    assert first is not None
    write(f"\n{path}: row {first.row}, {result.implementation}:")
    for name, value in first.inputs.items():
        write(f"  {name:<22}{value:#x}")
    for name, expected in first.expected.items():
        actual = first.actual[name]
        mark = "" if expected == actual else "   <- differs"
        write(f"  {name:<22}expected {expected:#x}, answered {actual:#x}{mark}")
    fmt = FORMATS[result.format]
    for name, text in decoded(fmt, first.inputs).items():
        write(f"  {name} is {text}")
    for who, columns in (("expected", first.expected), ("answered", first.actual)):
        for name, text in decoded(fmt, first.inputs | columns).items():
            if name in columns:
                write(f"  {name} {who} is {text}")


def _as_json(path: Path, result: Result) -> dict[str, Any]:
    first = result.first
    return {
        "file": str(path),
        "format": result.format,
        "operation": result.operation,
        "implementation": result.implementation,
        "rows": result.rows,
        "values_compared": result.comparisons,
        "failed": result.failed,
        "first": None
        if first is None
        else {"row": first.row, "inputs": first.inputs, "expected": first.expected, "actual": first.actual},
    }
