"""`capvisor prove`."""

import fnmatch
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from capvisor.cli import programs as files
from capvisor.cli.junit import Case, junit_xml
from capvisor.cli.options import json_option
from capvisor.cli.output import check_writable, console, progress, table, write_json, write_text
from capvisor.cli.prove_stack import NAME as STACK
from capvisor.cli.prove_stack import list_suppositions, prove_stack
from capvisor.cli.prove_system import list_steps, prove_system
from capvisor.cli.status import InputError, Status
from capvisor.cli.step_proofs import STEP_PROOFS
from capvisor.cli.sweep import sweep_parts
from capvisor.dsl.printer import print_program
from capvisor.dsl.runner import with_values
from capvisor.dsl.system_kinds import SYSTEM_KINDS
from capvisor.files import state_folder
from capvisor.proofs import flows, programs, solve
from capvisor.proofs.cache import Cache
from capvisor.proofs.isa import PREFIX, cells, is_cell
from capvisor.proofs.isa import columns as statements_of_columns
from capvisor.proofs.matrix import prove as prove_cells
from capvisor.proofs.matrix import table_of
from capvisor.proofs.programs import obligation_of
from capvisor.proofs.runner import Outcome, Settings, Verdict, interrupted_once, with_lemmas
from capvisor.proofs.runner import prove as prove_obligations
from capvisor.proofs.sweep import SWEEPS
from capvisor.proofs.teeth import bites
from capvisor.proofs.theorem import Obligation, obligations
from capvisor.proofs.witness import any_program_of
from capvisor.spec.formats import FORMATS


@click.command()
@click.argument("names", nargs=-1, metavar="[ID, GLOB or FILE.cap]...")
@click.option("--all", "everything", is_flag=True, help="Every obligation but the matrix.")
@click.option("--matrix", is_flag=True, help="Every operation against every invariant of the machine, with a table.")
@click.option(
    "--list", "listing", is_flag=True, help="List the obligations chosen, with their statements, and prove nothing."
)
@click.option("--dependencies", is_flag=True, help="Show which obligations lean on which, and prove nothing.")
@click.option("--teeth", is_flag=True, help="Apply each theorem's mutants, one at a time, and show the counterexamples.")
@click.option(
    "--sweep",
    type=click.Choice([*SWEEPS, "all"]),
    help="Negate every comparison and drop every guard of a part of the code, and see each noticed (minutes).",
)
@click.option(
    "--solver", default="z3", show_default=True, help="One or several of z3, bitwuzla, with commas: all must agree."
)
@click.option(
    "--timeout", default=120.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds a question may take."
)
@click.option("--rlimit", default=0, type=click.IntRange(min=0), help="Steps of Z3 a question may take; 0 for any number.")
@click.option(
    "--workers", default=min(os.cpu_count() or 1, 8), type=click.IntRange(min=1), help="Processes. [default: the cores]"
)
@click.option("--policy", default="intended", show_default=True, metavar="NAME", help="Of steps of a system: the policy.")
@click.option("--no-cache", is_flag=True, help="Ask everything anew, and keep nothing.")
@click.option(
    "--state", type=click.Path(path_type=Path), help="Folder of kept answers. [default: in the user's state directory]"
)
@click.option("--dump-smt", type=click.Path(path_type=Path), help="Write every question as SMT-LIB 2 into this folder.")
@click.option("--save", type=click.Path(path_type=Path), help="Write each counterexample as a program into this folder.")
@click.option("--junit", "junit_path", type=click.Path(path_type=Path), help="Write the results as JUnit XML to this file.")
@json_option
def prove(
    names: tuple[str, ...],
    everything: bool,
    matrix: bool,
    listing: bool,
    dependencies: bool,
    teeth: bool,
    sweep: str | None,
    solver: str,
    timeout: float,
    rlimit: int,
    workers: int,
    policy: str,
    no_cache: bool,
    state: Path | None,
    dump_smt: Path | None,
    save: Path | None,
    junit_path: Path | None,
    json_path: Path | None,
) -> int:
    """Prove theorems about the reference, by executing its own code on symbolic values with Z3.

    An obligation is a theorem for one capability format: `bounds.set.covers.cc128`. Names may be patterns: `bounds.*`,
    `*.cc64`. A program is a theorem too: whatever values its `any`s have, it passes. A cell of the matrix says that an
    operation keeps an invariant: `isa.csetbounds.M1.cc128`. What may flow between cVMs is `flows.*`, of each operation and
    call: `flows.file_probe.cc64`.

    `capvisor prove cvm [STEP]...` proves that steps of the Intravisor's system keep its invariants: instructions of guests,
    calls, operations of the deployer; all of them, or those that patterns choose. So do the others' names.
    `capvisor prove stack` says how the systems stand on each other: what each supposes, and what gives it that.
    """
    click.get_current_context().with_resource(interrupted_once())
    _check_options(click.get_current_context(), system=names[0] if names and names[0] in (*SYSTEM_KINDS, STACK) else None)
    check_writable(json_path)
    check_writable(junit_path)
    if names == (STACK,):
        kept = _cache(no_cache, state)
        return list_suppositions() if listing else prove_stack(timeout, workers, kept, json_path, junit_path)
    if names and names[0] in SYSTEM_KINDS:
        if listing:
            return list_steps(names[0], names[1:])
        kept = _cache(no_cache, state)
        return prove_system(names[0], names[1:], policy, timeout, workers, kept, json_path, junit_path)
    if sweep is not None:
        return sweep_parts([*SWEEPS] if sweep == "all" else [sweep], timeout, workers)
    chosen = _choose(names, everything or (listing and not names and not matrix), matrix)
    if listing:
        rows = [(each.id, each.theorem.statement) for each in chosen]
        console(is_final=True).print(table(("obligation", "statement"), rows), soft_wrap=False)
        return Status.OK
    if dependencies:
        rows = [(each.id, ", ".join(each.uses)) for each in with_lemmas(chosen) if each.uses]
        console(is_final=True).print(table(("obligation", "leans on"), rows), soft_wrap=False)
        return Status.OK
    if teeth:
        return _show_teeth(chosen, timeout)
    solvers = tuple(dict.fromkeys(part.strip() for part in solver.split(",")))
    unknown = [name for name in solvers if name not in solve.SOLVERS]
    if unknown:
        raise InputError(f"unknown solver `{unknown[0]}`: there are {', '.join(solve.SOLVERS)}")
    for folder in (dump_smt, save):
        if folder is not None:
            _make_folder(folder)
    settings = Settings(solvers, timeout, rlimit, workers, _cache(no_cache, state), dump_smt)
    start = time.perf_counter()
    try:
        with progress("obligations", len(with_lemmas(chosen))) as advance:
            outcomes, interrupted = _prove(chosen, settings, lambda _outcome: advance(1))
    except solve.SolverMissing as error:
        raise InputError(str(error)) from None
    elapsed_s = time.perf_counter() - start
    write_json(json_path, "prove", {"seconds": elapsed_s, "obligations": [_as_json(outcome) for outcome in outcomes]})
    write_text(junit_path, junit_xml("prove", [_as_case(outcome) for outcome in outcomes]))
    out = console(is_final=True)
    if matrix:
        (columns, marks), statements = table_of(outcomes), statements_of_columns()
        out.print(table(("operation", *columns), marks), soft_wrap=False)
        out.print(
            f"a mark for each of {', '.join(FORMATS)}: + proved, ? unknown, X refuted, v vacuous, . no such operation\n"
        )
        for column in columns:
            out.print(f"{column:<4} {statements[column]}")
    return _report(chosen, outcomes, interrupted, elapsed_s, save, quiet=matrix)


_PROVE_SYSTEM = " or ".join(f"`capvisor prove {name}`" for name in STEP_PROOFS)
_OF_SYSTEMS = ("names", "listing", "timeout", "workers", "policy", "no_cache", "state", "junit_path", "json_path")
"""The parameters that steps of a system are proved with."""


def _check_options(context: click.Context, system: str | None) -> None:
    """Options that would be ignored. Raises InputError."""
    for parameter in context.command.params:
        taken = parameter.name != "policy" if system is None else parameter.name in _OF_SYSTEMS
        if taken or context.get_parameter_source(parameter.name or "") is ParameterSource.DEFAULT:
            continue
        if system is None:
            raise InputError(f"{parameter.opts[0]} is for steps of a system alone: {_PROVE_SYSTEM}")
        raise InputError(f"{parameter.opts[0]} isn't for steps of a system: `capvisor prove {system}` goes without it")


def _cache(no_cache: bool, state: Path | None) -> Cache | None:
    """Where answers are kept, if they are."""
    try:
        return None if no_cache else Cache(state or state_folder())
    except OSError as error:
        raise InputError(f"can't keep answers in {error.filename}: {error.strerror} (or use --no-cache)") from None


def _prove(chosen: list[Obligation], settings: Settings, finished: Callable[[Outcome], None]) -> tuple[list[Outcome], bool]:
    """Prove obligations, cells, and what is said of flows; what these lean on is proved with them."""
    theorems = [each for each in chosen if not is_cell(each) and not flows.is_cell(each)]
    outcomes, interrupted = prove_obligations(theorems, settings, finished)
    for prove_family, belongs in ((prove_cells, is_cell), (flows.prove_all, flows.is_cell)):
        members = [each for each in chosen if belongs(each)]
        if interrupted or not members:
            continue
        others, interrupted = prove_family(members, settings, finished)
        known = {outcome.obligation.id for outcome in outcomes}
        outcomes += (each for each in others if each.obligation.id not in known)
    return outcomes, interrupted


def _show_teeth(chosen: list[Obligation], timeout_s: float) -> int:
    """Every mutant of the theorems chosen, with what it breaks."""
    theorems = list(dict.fromkeys(each.theorem for each in chosen))
    rows, survivors = [], 0
    with progress("theorems", len(theorems)) as advance:
        for theorem in theorems:
            for bite in bites(theorem, timeout_s):
                survivors += bite.fallen is None
                values = " ".join(f"{name}={value:#x}" for name, value in (bite.values or {}).items())
                fallen = "SURVIVES" if bite.fallen is None else f"breaks {bite.fallen.id}"
                rows.append((theorem.id, bite.mutant.name, fallen, values))
            advance(1)
    out = console(is_final=True)
    out.print(table(("theorem", "mutant", "outcome", "counterexample"), rows), soft_wrap=False)
    out.print(f"\n{len(rows) - survivors} of {len(rows)} mutants noticed")
    return Status.VIOLATION if survivors else Status.OK


def _choose(names: tuple[str, ...], everything: bool, matrix: bool = False) -> list[Obligation]:
    known = obligations()
    if everything or matrix:
        return [*(known.values() if everything else ()), *(cells().values() if matrix else ())]
    if not names:
        raise InputError(
            "say what to prove: an id, a pattern such as `bounds.*`, or --all (`capvisor prove --list` shows them)"
        )
    if any(name.startswith(f"{PREFIX}.") for name in names):
        known = known | cells()
    if any(name.startswith(f"{flows.PREFIX}.") for name in names):
        known = known | flows.cells()
    chosen: dict[str, Obligation] = {}
    for name in names:
        if name.endswith(programs.SUFFIX):
            for path in files.find((Path(name),)):
                program = files.read_any(path)
                if program.system is not None:
                    is_proved = program.system.kind in STEP_PROOFS
                    instead = f"; `capvisor prove {program.system.kind}` proves its every step" if is_proved else ""
                    raise InputError(f"{path}: programs of a system can't be proved{instead}")
                obligation = obligation_of(program)
                chosen[obligation.id] = obligation
            continue
        found = [each for each in known if fnmatch.fnmatchcase(each, name) or each.rsplit(".", 1)[0] == name]
        if not found:
            raise InputError(f"no obligation is called or matched by `{name}`: `capvisor prove --list` shows them")
        chosen |= {each: known[each] for each in found}
    chosen |= {each.id: each for each in flows.leant_on(chosen.values())}
    return list(chosen.values())


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"can't write to {folder}: {error.strerror}") from None


def _report(
    chosen: list[Obligation],
    outcomes: list[Outcome],
    interrupted: bool,
    elapsed_s: float,
    save: Path | None,
    *,
    quiet: bool = False,
) -> int:
    """Say what came out, obligation by obligation unless quiet; the exit status."""
    out = console(is_final=True)
    rows = [_row(outcome) for outcome in outcomes]
    if not quiet:
        out.print(
            table(("obligation", "verdict", "questions", "cached", "solver s"), rows, right=(2, 3, 4)), soft_wrap=False
        )
    for outcome in outcomes:
        if not outcome.as_expected:
            _explain(out.print, outcome)
        if save is not None and (program := _program(outcome)):
            write_text(save / f"{Path(outcome.obligation.id).name}.cap", program)
    wanted = len(with_lemmas(chosen))
    expected = sum(outcome.as_expected for outcome in outcomes)
    out.print(f"\n{expected} of {wanted} as expected, {elapsed_s:.1f} s")
    if interrupted:
        out.print("interrupted: what was answered is kept; the same command goes on from there")
    if any(outcome.verdict is Verdict.ERROR for outcome in outcomes):
        return Status.INTERNAL
    if any(not outcome.as_expected and outcome.verdict is not Verdict.UNKNOWN for outcome in outcomes):
        return Status.VIOLATION
    return Status.OK if expected == wanted else Status.INCONCLUSIVE


def _row(outcome: Outcome) -> tuple[object, ...]:
    verdict = outcome.verdict.name
    if outcome.as_expected and outcome.verdict is Verdict.REFUTED:
        verdict += " (as stated)"
    return outcome.obligation.id, verdict, outcome.questions, outcome.cached, f"{outcome.seconds:.2f}"


def _explain(write: Any, outcome: Outcome) -> None:
    theorem = outcome.obligation.theorem
    write(f"\n{outcome.obligation.id}: {outcome.verdict.name} {outcome.reason}")
    write(f"  {theorem.statement}")
    if outcome.counterexample is not None:
        write("  counterexample, replayed on the reference:")
        for name, value in outcome.counterexample.items():
            write(f"    {name:<20}{value:#x}")
    program = _program(outcome)
    if program is not None:
        write("  as a program, which fails in the same way:\n")
        for line in program.splitlines():
            write(f"    {line}")


def _program(outcome: Outcome) -> str | None:
    """A counterexample as a program that `capvisor run` fails on, where there is one."""
    if outcome.counterexample is None:
        return None
    if outcome.obligation.theorem.id.endswith(programs.SUFFIX):
        return print_program(with_values(files.read(Path(outcome.obligation.theorem.id)), outcome.counterexample))
    return any_program_of(outcome.obligation, outcome.counterexample)


def _as_case(outcome: Outcome) -> Case:
    """An outcome as a JUnit test case: what isn't as expected is a failure, what nobody knows an error."""
    group, name = outcome.obligation.id.split(".", 1)
    message = "" if outcome.as_expected else f"{outcome.verdict.name} {outcome.reason}".strip()
    return Case(f"capvisor.{group}", name, outcome.seconds, message, outcome.verdict in (Verdict.UNKNOWN, Verdict.ERROR))


def _as_json(outcome: Outcome) -> dict[str, Any]:
    theorem = outcome.obligation.theorem
    return {
        "id": outcome.obligation.id,
        "statement": theorem.statement,
        "source": theorem.source,
        "scope": theorem.scope,
        "holds": theorem.holds,
        "verdict": outcome.verdict.name,
        "as_expected": outcome.as_expected,
        "seconds": outcome.seconds,
        "questions": outcome.questions,
        "cached": outcome.cached,
        "solver": ", ".join(outcome.solvers),
        "assumptions": list(outcome.obligation.uses),
        "mutants": list(theorem.mutants),
        "example": outcome.example,
        "counterexample": outcome.counterexample,
        "reason": outcome.reason,
    }
