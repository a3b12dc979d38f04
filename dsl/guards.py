"""Guards against invariants: with one guard off, which invariants do programs make fall?

A program is run to its end with the guard off, whatever it expects. That an invariant falls is shown by the program; that
none of them makes it fall shows nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from capvisor.dsl.draw import fix
from capvisor.dsl.errors import ProgramError
from capvisor.dsl.runner import numbered
from capvisor.dsl.syntax import By, Create, Destroy, Measured, Program
from capvisor.dsl.system_kinds import SystemKind, kind_of
from capvisor.dsl.system_runner import SystemVerdict, Watch, run_of

FALLS, HOLDS, UNKNOWN = "falls", "holds", "unknown"
"""What can be said of an invariant without a guard."""


@dataclass(frozen=True)
class Cell:
    """One guard off, one invariant: the program that makes it fall, or None."""

    guard: str
    invariant: str
    program: Path | None


def violated(program: Program, policy: Any, invariants: Watch | None = None) -> tuple[str, ...]:
    """The invariants that a program of a system makes fall under a policy, in the order of the table."""
    kind, values = kind_of(program), fix(program, {}, seed=0)
    verdict = SystemVerdict(program, values)
    run = run_of(program, values, policy, verdict, None, invariants)
    run.set_up()
    for line, statement in numbered(program):
        run.line = line
        if isinstance(statement, By | Create | Destroy | Measured):
            run.execute(statement)
    return tuple(name for name in kind.invariants if name in verdict.violations)


def falling(programs: Iterable[tuple[Path, Program]], policy: Any) -> dict[str, Path]:
    """The invariants that programs make fall under a policy, each with the shortest such program."""
    found: dict[str, tuple[int, Path]] = {}
    for path, program in programs:
        try:
            names = violated(program, policy)
        except ProgramError:  # what it deploys is refused at the start
            continue
        for name in names:
            found[name] = min(found.get(name, (length(program), path)), (length(program), path))
    return {name: path for name, (_length, path) in sorted(found.items(), key=lambda each: int(each[0][1:]))}


def length(program: Program) -> int:
    """How many lines of its text aren't blank or comments."""
    lines = (line.strip() for line in program.text.splitlines())
    return sum(bool(line) and not line.startswith("#") for line in lines)


def matrix(kind: SystemKind, programs: Iterable[tuple[Path, Program]]) -> tuple[list[Cell], dict[str, list[Path]]]:
    """A cell for each guard and invariant of a kind; and by invariant the programs that make it fall with every guard on.

    A program that is written for one guard off is run with that one off, another with each. A cell's program is one that is
    written for its guard, if there is any; of several, the shortest.
    """
    new_watch: type[Watch] = resolve_name(kind.watch)
    falls: dict[tuple[str, str], list[tuple[bool, int, Path]]] = {}
    always: dict[str, list[Path]] = {}
    for path, program in programs:
        assert program.system is not None
        harmless = new_watch()
        try:
            broken = violated(program, kind.intended, harmless)
        except ProgramError:  # the guard stops it at the start: what it deploys is refused
            if not program.system.without:
                raise
            broken, harmless = (), new_watch()
        for name in broken:
            always.setdefault(name, []).append(path)
        off = program.system.without
        for guard in off or kind.guards:
            watch = new_watch(() if broken else harmless.taken)
            for name in violated(program, kind.switched_off(kind.intended, (guard,)), watch):
                falls.setdefault((guard, name), []).append((off != (guard,), length(program), path))
    every = [(guard, name) for guard in kind.guards for name in kind.invariants]
    return [Cell(*each, min(falls[each])[-1] if each in falls else None) for each in every], always
