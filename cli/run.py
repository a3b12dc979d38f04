"""`capvisor run`."""

import shlex
from collections.abc import Callable
from dataclasses import asdict, astuple, fields
from pathlib import Path
from textwrap import wrap
from typing import Any

import click

from capvisor.cli import programs
from capvisor.cli.options import implementation_option, json_option, parse_settings, paths_argument, seed_option
from capvisor.cli.output import check_writable, console, table, write_json
from capvisor.cli.status import InputError, Status
from capvisor.cli.systems import SYSTEM_TOOLS
from capvisor.cli.trace import Tracer
from capvisor.dsl.draw import fix
from capvisor.dsl.runner import Implementation, Verdict
from capvisor.dsl.runner import run as run_program
from capvisor.dsl.syntax import Any as AnyValue
from capvisor.dsl.syntax import Program
from capvisor.dsl.system import policy_named, policy_of
from capvisor.dsl.system_kinds import SYSTEM_KINDS, kind_of
from capvisor.dsl.system_runner import SystemVerdict, run_system

_POLICIES = dict.fromkeys(name for kind in SYSTEM_KINDS.values() for name in kind.policies)
RULE_COLUMNS = 120
"""How long the lines of an invariant's statement are."""


@click.command()
@paths_argument
@implementation_option("both")
@click.option("--set", "settings", multiple=True, metavar="NAME=NUMBER", help="Give an `any` value; may be repeated.")
@seed_option
@click.option("--trace", is_flag=True, help="Show each step: the operation, and what it changed.")
@click.option("--cost", is_flag=True, help="Of systems: count calls, crossings, operations on capabilities and copies.")
@click.option(
    "--policy",
    "policy_name",
    metavar="NAME",
    help=f"Of systems: the monitor's policy, instead of the program's: {', '.join(_POLICIES)}, or without:GUARD,...",
)
@json_option
def run(
    paths: tuple[Path, ...],
    implementation: str,
    settings: tuple[str, ...],
    seed: int,
    trace: bool,
    cost: bool,
    policy_name: str | None,
    json_path: Path | None,
) -> int:
    """Run programs (files, or folders of *.cap), each with one value for every `any`.

    By default on the reference and on the fast path, with whole states compared after every step. Every step of a program
    of a system is held against the system's invariants too.
    """
    found = list(programs.find(paths))
    check_writable(json_path, found)
    given = parse_settings(settings)
    files = [programs.read_any(path) for path in found]
    if given and len(files) > 1:
        raise InputError("--set needs a single program: names mean something else in each")
    systems = [program for program in files if program.system is not None]
    _check_options(systems, files, policy_name, cost, implementation)
    policies = {each.source: _policy(each, policy_name) for each in systems}
    out = console()
    verdicts: list[Verdict] = []
    for program in files:
        if trace:
            out.print(f"{program.source}")
        values = fix(program, given, seed)
        if program.system is None:
            watch = Tracer(out.print) if trace else None
            verdicts.append(run_program(program, values, Implementation(implementation), watch))
        else:
            tools, chosen = SYSTEM_TOOLS[program.system.kind], policies[program.source]
            is_both = implementation == Implementation.BOTH.value
            pair = tools.pair(program, chosen[1]) if tools.pair is not None and is_both else None
            verdicts.append(run_system(program, values, chosen, tools.tracer(out.print) if trace else None, pair))
    out = console(is_final=True)
    of_machines = [each for each in verdicts if not isinstance(each, SystemVerdict)]
    of_systems = [each for each in verdicts if isinstance(each, SystemVerdict)]
    if of_machines:
        columns = ("program", "operations", "traps", "assertions", "states compared", "result")
        out.print(table(columns, [_row(each) for each in of_machines], right=(1, 2, 3, 4)), soft_wrap=False)
    if of_systems:
        rows = [_system_row(each) for each in of_systems]
        out.print(table(_SYSTEM_COLUMNS, rows, right=(2, 3, 4, 5, 6)), soft_wrap=False)
    for each in of_systems if cost else ():
        out.print(f"\n{each.program.source}")
        if not each.costs:
            out.print(f"no costs are counted of a system {kind_of(each.program).name}")
            continue
        headings, costs = _cost_table(each)
        out.print(table(headings, costs, right=range(1, len(headings))), soft_wrap=False)
    for verdict in verdicts:
        if verdict.failure is not None:
            _report(out.print, verdict, policy_name)
    failed = sum(not verdict.passed for verdict in verdicts)
    if len(verdicts) > 1:
        out.print(f"\n{len(verdicts) - failed} of {len(verdicts)} passed")
    write_json(json_path, "run", {"implementation": implementation, "programs": [_as_json(v) for v in verdicts]})
    return Status.VIOLATION if failed else Status.OK


def _policy(program: Program, name: str | None) -> tuple[str, Any]:
    """The policy of a program's run, the one named or else its own."""
    assert program.system is not None
    if name is None:
        return policy_of(program.system)
    try:
        return policy_named(name, kind_of(program))
    except LookupError as error:
        raise InputError(f"--policy {name}: {error.args[0]}; or `without:GUARD,...`") from None


def _check_options(
    systems: list[Program], files: list[Program], policy_name: str | None, cost: bool, implementation: str
) -> None:
    """Options that the programs can't be run with. Raises InputError."""
    if systems and implementation == Implementation.FAST.value:
        raise InputError(f"{systems[0].source}: a program of a system runs on the reference, or on both")
    if (policy_name is not None or cost) and len(systems) < len(files):
        other = next(program for program in files if program.system is None)
        option = "--cost" if policy_name is None else "--policy"
        raise InputError(f"{option} is for programs of a system: {other.source} has none")


def _report(write: Callable[[str], None], verdict: Verdict, policy_name: str | None) -> None:
    """What went wrong, and how to see it again."""
    failure = verdict.failure
    assert failure is not None
    write(f"\n{verdict.program.source}:{failure.line}: {failure.kind}: {failure.message}")
    for line in wrap(failure.rule, RULE_COLUMNS):
        write(f"  {line}")
    if verdict.values or policy_name is not None:
        words = [] if policy_name is None else ["--policy", policy_name]
        words += [word for name, value in _any_values(verdict).items() for word in ("--set", f"{name}={value:#x}")]
        write(f"  again: {shlex.join(['capvisor', 'run', verdict.program.source, *words])}")


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


_SYSTEM_COLUMNS = (*("program", "policy", "operations", "traps", "calls", "refused", "assertions", "violated", "result"),)


def _system_row(verdict: SystemVerdict) -> tuple[object, ...]:
    *_counts, result = _row(verdict)
    return (
        verdict.program.source,
        verdict.policy,
        verdict.operations,
        verdict.traps,
        verdict.calls,
        verdict.refusals,
        verdict.assertions,
        ", ".join(verdict.violations) or "none",
        result,
    )


def _cost_table(verdict: SystemVerdict) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """The columns and rows of what a run cost, by mechanism and in all."""
    counted = {name: astuple(cost) for name, cost in verdict.costs.items()}
    names = list(dict.fromkeys(each.name for cost in verdict.costs.values() for each in fields(cost)))
    rows = [(name, *counts) for name, counts in counted.items() if any(counts)]
    every = zip(*counted.values(), strict=True)
    return ("mechanism", *(name.replace("_", " ") for name in names)), [*rows, ("all", *map(sum, every))]


def _system_json(verdict: SystemVerdict) -> dict[str, Any]:
    return {
        "policy": verdict.policy,
        "calls": verdict.calls,
        "refusals": verdict.refusals,
        "violations": {name: asdict(violation) for name, violation in verdict.violations.items()},
        "costs": {name: asdict(cost) for name, cost in verdict.costs.items()},
    }


def _as_json(verdict: Verdict) -> dict[str, Any]:
    failure = verdict.failure
    of_system = {"system": _system_json(verdict)} if isinstance(verdict, SystemVerdict) else {}
    return of_system | {
        "program": verdict.program.source,
        "values": verdict.values,
        "operations": verdict.operations,
        "traps": verdict.traps,
        "assertions": verdict.assertions,
        "states_compared": verdict.comparisons,
        "passed": verdict.passed,
        "failure": None if failure is None else {"line": failure.line, "kind": failure.kind, "message": failure.text},
    }
