"""`capvisor conform`."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from capvisor.cli.options import implementation_option, json_option, paths_argument
from capvisor.cli.output import check_writable, console, progress, table, write_json
from capvisor.cli.status import InputError, Status
from capvisor.cli.words import ENCODES_NOTHING, disassembled
from capvisor.conformance import traces
from capvisor.conformance.check import Result, check, decoded
from capvisor.conformance.files import SUFFIXES, VectorFile, describe_name, read
from capvisor.conformance.replay import TraceMismatch, TraceResult, replay
from capvisor.conformance.traces import TRACE_SUFFIXES, TraceFile, format_of_name, is_trace_name
from capvisor.spec.formats import FORMATS
from capvisor.spec.operations import Mode
from capvisor.spec.vectors import VECTOR_OPERATIONS

Write = Callable[[str], None]


@click.command()
@paths_argument
@implementation_option("both")
@click.option("--format", "format_name", type=click.Choice(list(FORMATS)), help="Instead of what the file's name says.")
@click.option(
    "--operation", type=click.Choice(list(VECTOR_OPERATIONS)), help="Of vectors, instead of what the file's name says."
)
@json_option
def conform(
    paths: tuple[Path, ...], implementation: str, format_name: str | None, operation: str | None, json_path: Path | None
) -> int:
    """Hold the implementations against golden vectors and instruction traces.

    Vectors are FORMAT.OPERATION.npz or .csv files, traces rv64... or rv32... files that end in .jsonl.gz or .jsonl; a folder
    may have both.
    """
    check_writable(json_path, paths)
    chosen = ["reference", "fast"] if implementation == "both" else [implementation]
    found = _find(paths, format_name, operation)
    if not found.files:
        raise InputError(
            f"{', '.join(map(str, paths))}: no golden vectors of a known format: FORMAT.OPERATION.npz or .csv; "
            f"nor traces: {' or '.join(traces.MACHINES)}... with {' or '.join(TRACE_SUFFIXES)} at the end"
        )
    results = []
    with progress("files", len(found.files)) as advance:
        for path in found.files:
            golden = _read(path, format_name, operation)
            results += [(path, _hold_against(golden, name)) for name in chosen]
            advance(1)
    out = console(is_final=True)
    columns = ("file", "implementation", "rows", "values compared", "failed", "first failing")
    out.print(table(columns, [_row(result) for _path, result in results], right=(2, 3, 4)), soft_wrap=False)
    for path, why in found.skipped:
        out.print(f"skipped: {path}: {why}")
    for path, result in results:
        if isinstance(result, TraceResult):
            _explain_trace(out.print, path, result)
        else:
            _explain(out.print, path, result)
    out.print()
    _sum_up(out.print, [result for _path, result in results])
    write_json(json_path, "conform", {"results": [_as_json(path, result) for path, result in results]})
    return Status.VIOLATION if any(result.failed for _path, result in results) else Status.OK


class _Found(NamedTuple):
    """The files to check, and those of folders that can't be, with why."""

    files: list[Path]
    skipped: list[tuple[Path, str]]


def _find(paths: tuple[Path, ...], format_name: str | None, operation: str | None) -> _Found:
    found = _Found([], [])
    for path in paths:
        if not path.is_dir():
            found.files.append(path)
            continue
        for inside in sorted(path.rglob("*")):
            if is_trace_name(inside):
                why = None
                if operation is not None:
                    why = "instruction traces, which are of no operation"
                elif format_name is None and format_of_name(inside) is None:
                    why = f"instruction traces of a machine that the name doesn't say: {' or '.join(traces.MACHINES)}"
            elif inside.suffix in SUFFIXES:
                described = describe_name(inside)
                known = described is not None and described[0] in FORMATS and described[1] in VECTOR_OPERATIONS
                named = format_name is not None and operation is not None
                why = None if known or named else "no format and operation that are modelled"
            else:
                continue
            if why is None:
                found.files.append(inside)
            else:
                found.skipped.append((inside, why))
    return found


def _read(path: Path, format_name: str | None, operation: str | None) -> VectorFile | TraceFile:
    if not is_trace_name(path):
        return read(path, format_name, operation)
    if operation is not None:
        raise InputError(f"{path}: --operation {operation} is for golden vectors, and these are instruction traces")
    return traces.read(path, format_name)


def _hold_against(golden: VectorFile | TraceFile, implementation: str) -> Result | TraceResult:
    return check(golden, implementation) if isinstance(golden, VectorFile) else replay(golden, implementation)


def _row(result: Result | TraceResult) -> tuple[object, ...]:
    if isinstance(result, TraceResult):
        rows, first = result.steps, "" if result.first is None else _place(result.first)
    else:
        rows, first = result.rows, "" if result.first is None else str(result.first.row)
    return result.file, result.implementation, rows, result.comparisons, result.failed, first


def _place(first: TraceMismatch) -> str:
    return f"program {first.program}, step {first.step}"


def _sum_up(write: Write, results: list[Result | TraceResult]) -> None:
    answered = [result for result in results if isinstance(result, Result)]
    replayed = [result for result in results if isinstance(result, TraceResult)]
    if answered:
        write(f"{sum(each.rows for each in answered)} rows answered, {sum(each.failed for each in answered)} wrong")
    if replayed:
        programs, steps = sum(each.programs for each in replayed), sum(each.steps for each in replayed)
        write(f"{programs} programs of {steps} steps replayed, {sum(each.failed for each in replayed)} differ")
        compared = sum((Counter(each.compared) for each in replayed), Counter[str]())
        never = [kind for kind in replayed[0].compared if not compared[kind]]
        if never:
            write(f"never compared, because no trace has any: {', '.join(never)}")


def _explain(write: Write, path: Path, result: Result) -> None:
    """The first failing row, if any, with all its columns, and the capabilities in it decoded."""
    first = result.first
    if first is None:
        return
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


def _explain_trace(write: Write, path: Path, result: TraceResult) -> None:
    """The first failing program, if any, up to the step that fails, and what differs there, capabilities decoded."""
    first = result.first
    if first is None:
        return
    write(f"\n{path}: {_place(first)}, {result.implementation}:")
    for number, text in enumerate(_instructions(result.format, first.prefix), start=1):
        write(f"  {number:>4}  {text}" + ("   <- differs" if number == first.step else ""))
    for name, text in first.before.items():
        write(f"  {name} before is {text}")
    for difference in first.differences:
        expected, actual = ("nothing" if text is None else text for text in (difference.expected, difference.actual))
        write(f"  {difference.name:<22}expected {expected}, replayed {actual}")
    for name, text in first.decoded.items():
        write(f"  {name} is {text}")
    write(f"  The shortest prefix of the program that still fails has {first.step} steps.")
    if first.shortest is not None:
        write(f"  The implementations differ from each other already after {len(first.shortest)} of them:")
        for text in _instructions(result.format, first.shortest):
            write(f"        {text}")


def _instructions(format_name: str, steps: tuple[tuple[int | None, Mode], ...]) -> list[str]:
    """Steps as assembler text, with their words."""
    texts = []
    for word, mode in steps:
        if word is None:
            texts.append("(not fetched)")
        else:
            texts.append(f"{word:#010x}  {disassembled(word, FORMATS[format_name].address_width, mode) or ENCODES_NOTHING}")
    return texts


def _as_json(path: Path, result: Result | TraceResult) -> dict[str, Any]:
    about = {"file": str(path), "format": result.format, "implementation": result.implementation, "failed": result.failed}
    if isinstance(result, TraceResult):
        return {
            **about,
            "operation": "trace",
            "rows": result.steps,
            "programs": result.programs,
            "values_compared": result.comparisons,
            "compared": result.compared,
            "first": None if result.first is None else _mismatch_as_json(result.format, result.first),
        }
    first = result.first
    return {
        **about,
        "operation": result.operation,
        "rows": result.rows,
        "values_compared": result.comparisons,
        "first": None
        if first is None
        else {"row": first.row, "inputs": first.inputs, "expected": first.expected, "actual": first.actual},
    }


def _mismatch_as_json(format_name: str, first: TraceMismatch) -> dict[str, Any]:
    return {
        "program": first.program,
        "step": first.step,
        "prefix": _instructions(format_name, first.prefix),
        "shortest": None if first.shortest is None else _instructions(format_name, first.shortest),
        "expected": {each.name: each.expected for each in first.differences},
        "actual": {each.name: each.actual for each in first.differences},
    }
