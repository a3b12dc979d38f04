"""`capvisor guards`."""

from pathlib import Path

import click

from capvisor.cli import programs
from capvisor.cli.options import json_option
from capvisor.cli.output import check_writable, console, table, write_json
from capvisor.cli.status import InputError, Status
from capvisor.dsl.guards import Cell, matrix
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
from capvisor.spec.policy import GUARDS

DEFAULT_PROGRAMS = Path("programs/attacks/cvm")


@click.command()
@click.argument("system", type=click.Choice(["cvm"]))
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--programs", "named", is_flag=True, help="Name the program of each cell.")
@json_option
def guards(system: str, paths: tuple[Path, ...], named: bool, json_path: Path | None) -> int:
    """Which guard carries which invariant: every guard off, one at a time, and the invariants that programs make fall then.

    Programs are those of PATHS (by default of programs/attacks/cvm), run to their ends whatever they expect. An invariant
    that no program makes fall isn't thereby shown to hold.
    """
    check_writable(json_path)
    if not paths and not DEFAULT_PROGRAMS.is_dir():
        raise InputError(f"there is no {DEFAULT_PROGRAMS} here: name the programs")
    files = [(path, programs.read_any(path)) for path in programs.find(paths or (DEFAULT_PROGRAMS,))]
    machines = [path for path, program in files if program.system is None]
    if machines:
        raise InputError(f"{machines[0]}: a program of a machine; guards are a system's")
    cells, always = matrix(files)
    by_guard: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        by_guard.setdefault(cell.guard, {})[cell.invariant] = cell
    shown = [name for name in CVM_INVARIANTS if any(cell.program for cell in cells if cell.invariant == name)]
    rows = [(guard, *("falls" if row[name].program else "" for name in shown)) for guard, row in by_guard.items()]
    out = console()
    out.print(table(("guard off", *shown), rows), soft_wrap=False)
    if named:
        out.print()
        named_rows = [(each.guard, each.invariant, str(each.program)) for each in cells if each.program]
        out.print(table(("guard off", "invariant", "program"), named_rows), soft_wrap=False)
    carrying = [guard for guard, row in by_guard.items() if any(cell.program for cell in row.values())]
    out.print(f"\n{len(files)} programs; with {len(carrying)} of {len(GUARDS)} guards off, one makes an invariant fall")
    for name in [guard for guard in GUARDS if guard not in carrying]:
        out.print(f"none here needs {name}: {GUARDS[name].meaning}")
    for name, paths_of in always.items():
        out.print(f"{name} falls with every guard on: {paths_of[0]}")
    result = {
        "system": system,
        "guards": {row.name: row.meaning for row in GUARDS.values()},
        "invariants": {row.name: row.statement for row in CVM_INVARIANTS.values()},
        "matrix": {guard: {name: _as_json(cell) for name, cell in row.items()} for guard, row in by_guard.items()},
    }
    write_json(json_path, "guards", result)
    return Status.VIOLATION if always else Status.OK


def _as_json(cell: Cell) -> dict[str, str | None]:
    return {"verdict": "falls" if cell.program else "not shown", "program": str(cell.program) if cell.program else None}
