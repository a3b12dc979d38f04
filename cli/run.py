"""`capvisor run`."""

import shlex
from pathlib import Path
from typing import Any

import click

from capvisor.cli import programs
from capvisor.cli.options import implementation_option, json_option, parse_settings, paths_argument, seed_option
from capvisor.cli.output import check_writable, console, table, write_json
from capvisor.cli.status import InputError, Status
from capvisor.cli.trace import Tracer
from capvisor.dsl.draw import fix
from capvisor.dsl.runner import Implementation, Verdict
from capvisor.dsl.runner import run as run_program
from capvisor.dsl.syntax import Any as AnyValue


@click.command()
@paths_argument
@implementation_option("both")
@click.option("--set", "settings", multiple=True, metavar="NAME=NUMBER", help="Give an `any` value; may be repeated.")
@seed_option
@click.option("--trace", is_flag=True, help="Show each step: the operation, and what it changed.")
@json_option
def run(
    paths: tuple[Path, ...],
    implementation: str,
    settings: tuple[str, ...],
    seed: int,
    trace: bool,
    json_path: Path | None,
) -> int:
    """Run programs (files, or folders of *.cap), each with one value for every `any`.

    By default on the reference and on the fast path, with whole states compared after every step.
    """
    found = list(programs.find(paths))
    check_writable(json_path, found)
    given = parse_settings(settings)
    files = [programs.read(path) for path in found]
    if given and len(files) > 1:
        raise InputError("--set needs a single program: names mean something else in each")
    out = console()
    verdicts = []
    for program in files:
        watch = Tracer(out.print) if trace else None
        if trace:
            out.print(f"{program.source}")
        verdict = run_program(program, fix(program, given, seed), Implementation(implementation), watch)
        verdicts.append(verdict)
    columns = ("program", "operations", "traps", "assertions", "states compared", "result")
    rows = [_row(verdict) for verdict in verdicts]
    out.print(table(columns, rows, right=(1, 2, 3, 4)), soft_wrap=False)
    for verdict in verdicts:
        if verdict.failure is not None:
            failure = verdict.failure
            out.print(f"\n{verdict.program.source}:{failure.line}: {failure.kind}: {failure.message}")
            if verdict.values:
                shown = [word for name, value in _any_values(verdict).items() for word in ("--set", f"{name}={value:#x}")]
                out.print(f"  again: {shlex.join(['capvisor', 'run', verdict.program.source, *shown])}")
    failed = sum(not verdict.passed for verdict in verdicts)
    if len(verdicts) > 1:
        out.print(f"\n{len(verdicts) - failed} of {len(verdicts)} passed")
    write_json(json_path, "run", {"implementation": implementation, "programs": [_as_json(v) for v in verdicts]})
    return Status.VIOLATION if failed else Status.OK


def _any_values(verdict: Verdict) -> dict[str, int]:
    return {let.name: verdict.values[let.name] for let in verdict.program.lets if isinstance(let.value, AnyValue)}


def _row(verdict: Verdict) -> tuple[object, ...]:
    result = "passed" if verdict.failure is None else f"FAILED: {verdict.failure.kind}, line {verdict.failure.line}"
    return (
        verdict.program.source,
        verdict.operations,
        verdict.traps,
        verdict.assertions,
        verdict.comparisons,
        result,
    )


def _as_json(verdict: Verdict) -> dict[str, Any]:
    failure = verdict.failure
    return {
        "program": verdict.program.source,
        "values": verdict.values,
        "operations": verdict.operations,
        "traps": verdict.traps,
        "assertions": verdict.assertions,
        "states_compared": verdict.comparisons,
        "passed": verdict.passed,
        "failure": None if failure is None else {"line": failure.line, "kind": failure.kind, "message": failure.message},
    }
