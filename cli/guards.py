"""`capvisor guards`."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from capvisor.cli import programs
from capvisor.cli.options import json_option
from capvisor.cli.output import check_writable, console, progress, table, write_json, write_text
from capvisor.cli.status import InputError, Status
from capvisor.cli.step_proofs import step_proofs
from capvisor.dsl.guards import FALLS, HOLDS, UNKNOWN, Cell, matrix
from capvisor.dsl.system_kinds import SYSTEM_KINDS, SystemKind
from capvisor.files import state_folder
from capvisor.proofs import guards_off
from capvisor.proofs.cache import Cache
from capvisor.spec.formats import FORMATS

DEFAULT_PROOFS = Path("docs/guard_proofs.json")
MARKS = {FALLS: "-", HOLDS: "+", UNKNOWN: "?"}


@click.command()
@click.argument("system", type=click.Choice(list(SYSTEM_KINDS)))
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--programs", "named", is_flag=True, help="Name the program of each cell that falls.")
@click.option(
    "--proofs",
    "proofs_path",
    type=click.Path(path_type=Path),
    help=f"What was proved with a guard off; by default {DEFAULT_PROOFS}, if it exists.",
)
@click.option("--prove", "proves", is_flag=True, help="Prove first what holds with a guard off, and keep it (minutes).")
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(list(FORMATS)),
    help="With --prove: of steps that are proved format by format, those of this one alone; may be given again.",
)
@click.option(
    "--timeout", "timeout_s", default=60.0, type=click.FloatRange(0.1), help="With --prove: seconds for a question."
)
@click.option(
    "--workers",
    default=min(os.cpu_count() or 1, 8),
    type=click.IntRange(min=1),
    help="With --prove: processes. [default: the cores]",
)
@click.option("--state", type=click.Path(path_type=Path), help="With --prove: folder of kept answers.")
@json_option
def guards(
    system: str,
    paths: tuple[Path, ...],
    named: bool,
    proofs_path: Path | None,
    proves: bool,
    formats: tuple[str, ...],
    timeout_s: float,
    workers: int,
    state: Path | None,
    json_path: Path | None,
) -> int:
    """Which guard carries which invariant: every guard off, one at a time.

    An invariant falls where a program makes it fall: those of PATHS (by default the attacks that come along) are run to
    their ends, whatever they expect. It holds where that was proved, and kept in a file. Else it isn't known.
    """
    check_writable(json_path)
    kind = SYSTEM_KINDS[system]
    if not paths and not kind.attacks.is_dir():
        raise InputError(f"there is no {kind.attacks} here: name the programs")
    proved = {} if proves else read_proofs(kind, proofs_path)
    files = [(path, programs.read_any(path)) for path in programs.find(paths or (kind.attacks,))]
    others = [path for path, program in files if program.system is None or program.system.kind != system]
    if others:
        raise InputError(f"{others[0]}: no program of a system {system}, whose guards these are")
    cells, always = matrix(kind, files)
    if proves:
        prove_what_holds(kind, cells, proofs_path or DEFAULT_PROOFS, formats, timeout_s, workers, state)
        proved = read_proofs(kind, proofs_path)
    verdicts = {(each.guard, each.invariant): verdict(each, proved) for each in cells}
    wrong = [cell for cell in cells if cell.program and (cell.guard, cell.invariant) in proved]
    out = console(is_final=True)
    rows = [(guard, *(MARKS[verdicts[guard, name]] for name in kind.invariants)) for guard in kind.guards]
    out.print(table(("guard off", *kind.invariants), rows), soft_wrap=False)
    if named:
        out.print()
        named_rows = [(each.guard, each.invariant, str(each.program)) for each in cells if each.program]
        out.print(table(("guard off", "invariant", "program"), named_rows), soft_wrap=False)
    counts = {kind: sum(each == kind for each in verdicts.values()) for kind in (FALLS, HOLDS, UNKNOWN)}
    out.print(f"\n{len(files)} programs, {len(cells)} cells")
    out.print(f"- {counts[FALLS]} fall, each by a program")
    out.print(f"+ {counts[HOLDS]} hold, by proofs that are kept")
    out.print(f"? {counts[UNKNOWN]} are open: no program makes them fall, and no proof is kept")
    idle = [guard for guard in kind.guards if not any(verdicts[guard, each] == FALLS for each in kind.invariants)]
    if idle:
        out.print(f"nothing falls without {', '.join(idle)}")
    for name, paths_of in always.items():
        out.print(f"{name} falls with every guard on: {paths_of[0]}")
    for cell in wrong:
        out.print(f"{cell.invariant} is kept as proved without {cell.guard}, and falls: {cell.program}")
    by_guard: dict[str, dict[str, Any]] = {guard: {} for guard in kind.guards}
    for cell in cells:
        by_guard[cell.guard][cell.invariant] = {
            "verdict": verdicts[cell.guard, cell.invariant],
            "program": str(cell.program) if cell.program else None,
        }
    result = {
        "system": system,
        "guards": {row.name: row.meaning for row in kind.guards.values()},
        "invariants": {row.name: row.statement for row in kind.invariants.values()},
        "matrix": by_guard,
    }
    write_json(json_path, "guards", result)
    return Status.VIOLATION if always or wrong else Status.OK


def prove_what_holds(
    kind: SystemKind,
    cells: Iterable[Cell],
    path: Path,
    formats: tuple[str, ...],
    timeout_s: float,
    workers: int,
    state: Path | None,
) -> None:
    """Prove what holds with each guard off, and keep it in a file. Raises InputError where that can't be done."""
    tools = step_proofs(kind.name)
    check_writable(path)
    cache = Cache(state or state_folder())
    every = [(step, fmt) for step in tools.steps() for fmt in tools.formats(step)]
    if formats:
        if not any(fmt in FORMATS for _step, fmt in every):
            raise InputError(f"--format: steps of a system {kind.name} are proved in no capability format")
        every = [(step, fmt) for step, fmt in every if fmt not in FORMATS or fmt in formats]
    proved_in = list(dict.fromkeys(fmt for _step, fmt in every))
    with progress("steps and what they lean on", tools.count(every)) as advance:
        known, interrupted = tools.prove(every, kind.intended, timeout_s, workers, cache, lambda: advance(1))
    unproved = [f"{each.step}.{each.format}" for each in known if not each.is_proved]
    if unproved and not interrupted:
        raise InputError(f"not proved with every guard on: {', '.join(unproved)}; see `capvisor prove {kind.name}`")
    fallen = {
        guard: frozenset(each.invariant for each in cells if each.guard == guard and each.program) for guard in kind.guards
    }
    held: list[guards_off.Held] = []
    if not interrupted:
        with progress("steps with a guard off", len(guards_off.to_prove(tools.guarded, known, fallen))) as advance:
            held, interrupted = guards_off.prove(tools.guarded, known, fallen, timeout_s, workers, cache, lambda: advance(1))
    if interrupted:
        raise InputError("ended early: what was proved is kept, the same command goes on")
    kept = json.loads(path.read_text()) if path.is_file() else {}
    kept[kind.name] = {
        each.guard: {
            name: {"verdict": HOLDS, "seconds": round(each.seconds, 1), "in": proved_in}
            for name in each.invariants
            if name in kind.invariants
        }
        for each in held
    }
    write_text(path, json.dumps(kept, indent=1) + "\n")


def verdict(cell: Cell, proved: Mapping[tuple[str, str], float]) -> str:
    """A program outweighs what is said to be proved."""
    if cell.program is not None:
        return FALLS
    return HOLDS if (cell.guard, cell.invariant) in proved else UNKNOWN


def read_proofs(kind: SystemKind, path: Path | None = None) -> dict[tuple[str, str], float]:
    """The cells of a system that a file keeps as proved, with the seconds that it took; none without a file.

    The file is {system: {guard: {invariant: {"verdict": ..., "seconds": ..., "in": [...]}}}}: what "in" names are the
    formats, or variants, of the steps that were proved. Raises InputError where it isn't.
    """
    if path is None and not DEFAULT_PROOFS.is_file():
        return {}
    path = path or DEFAULT_PROOFS
    try:
        known = json.loads(path.read_text())
        kept = known.get(kind.name, {}) if path == DEFAULT_PROOFS else known[kind.name]
        found = {
            (guard, invariant): float(cell["seconds"])
            for guard, row in kept.items()
            for invariant, cell in row.items()
            if cell["verdict"] == HOLDS
        }
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise InputError(f'{path}: no kept proofs, {{"{kind.name}": {{guard: {{invariant: {{...}}}}}}}}') from None
    for guard, invariant in found:
        if guard not in kind.guards or invariant not in kind.invariants:
            raise InputError(f"{path}: {guard}, {invariant}: no such guard or invariant")
    return found
