"""Guards against invariants: with one guard off, which invariants do programs make fall?

A program is run to its end with the guard off, whatever it expects. That an invariant falls is shown by the program; that
none of them makes it fall shows nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from capvisor.dsl.draw import fix
from capvisor.dsl.runner import numbered
from capvisor.dsl.syntax import By, Create, Destroy, Program
from capvisor.dsl.system import constants_of
from capvisor.dsl.system_runner import SystemRun, SystemVerdict
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
from capvisor.spec.policy import GUARDS, INTENDED, MonitorPolicy, without


@dataclass(frozen=True)
class Cell:
    """One guard off, one invariant: the shortest program that makes it fall, or None."""

    guard: str
    invariant: str
    program: Path | None


def violated(program: Program, policy: MonitorPolicy) -> tuple[str, ...]:
    """The invariants that a program of a system makes fall under a policy, in the order of the table."""
    values = fix(program, {}, seed=0)
    verdict = SystemVerdict(program, values)
    run = SystemRun(program, values | constants_of(program), policy, verdict, lambda _step: None)
    run.set_up()
    for line, statement in numbered(program):
        run.line = line
        if isinstance(statement, By | Create | Destroy):
            run.execute(statement)
    return tuple(name for name in CVM_INVARIANTS if name in verdict.violations)


def matrix(programs: Iterable[tuple[Path, Program]]) -> tuple[list[Cell], dict[str, list[Path]]]:
    """A cell for each guard and invariant; and by invariant the programs that make it fall with every guard on."""
    found = sorted(programs, key=lambda each: (len(each[1].lines), each[0]))
    cells, always = [], dict[str, list[Path]]()
    for path, program in found:
        for name in violated(program, INTENDED):
            always.setdefault(name, []).append(path)
    for guard in GUARDS:
        falls: dict[str, Path] = {}
        for path, program in found:
            for name in violated(program, without(guard)):
                falls.setdefault(name, path)
        cells += [Cell(guard, name, falls.get(name)) for name in CVM_INVARIANTS]
    return cells, always
