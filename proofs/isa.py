"""Theorems on whole instructions: every operation of the table, against every invariant of `spec.invariants`.

A cell of that matrix says that an operation keeps an invariant: it is executed once, by the reference, from any state with
any operands (`proofs.state`), along all its ways; the invariant is asked of each. Contracts stand for the algebra of bounds
(`proofs.contracts`), so that a cell leans on the theorems about it. The fetch is a row of its own: in the others it is not
looked at, whatever PCC is.

The hypothesis is shown to be satisfiable by drawn states in which the operation is completed; a cell that doesn't hold in
one of them is refuted by it.
"""

import functools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import z3

from capvisor.model import isa as _rules  # declares the rules
from capvisor.model.observation import ObservedHart, Step, watch
from capvisor.proofs import contracts, drawn, solve, symbolic
from capvisor.proofs.runner import Outcome, Verdict
from capvisor.proofs.state import any_hart, any_operands, any_place
from capvisor.proofs.symbolic import term_of
from capvisor.proofs.theorem import Given, Obligation, Theorem
from capvisor.spec.formats import FORMATS, CapabilityFormat, Permission
from capvisor.spec.invariants import INVARIANTS, Place, authorises
from capvisor.spec.operations import OPERATIONS

assert _rules

FETCH = "fetch"
"""The row of what every step begins with; it is seen before an operation that does nothing."""

_EXECUTED = "fence"
PREFIX = "isa"
_SCOPE = (
    "any state that the invariant of tagged capabilities allows, any registers (equal ones and c0 included), "
    "any immediates, any memory of whole granules; pc even; one step"
)


def rows() -> dict[str, tuple[CapabilityFormat, ...]]:
    """The rows of the matrix, and the formats of machines that have them."""
    formats = tuple(FORMATS.values())
    operations = {
        name: tuple(fmt for fmt in formats if fmt.address_width >= row.minimum_xlen) for name, row in OPERATIONS.items()
    }
    return {FETCH: formats, **operations}


def columns() -> tuple[str, ...]:
    """The columns of the matrix."""
    return tuple(INVARIANTS)


@functools.cache
def cells() -> dict[str, Obligation]:
    """Every cell of the matrix as an obligation, by id: `isa.csetbounds.M1.cc128`."""
    found = {}
    for name, formats in rows().items():
        uses = contracts.lemmas_for([_EXECUTED if name == FETCH else name])
        for invariant in INVARIANTS.values():
            theorem = Theorem(
                f"{PREFIX}.{name}.{invariant.name}",
                f"{name}: {invariant.statement}",
                invariant.source,
                functools.partial(_no_claim, name),
                uses=uses,
                formats=tuple(fmt.name for fmt in formats),
                scope=_SCOPE,
            )
            found |= {obligation.id: obligation for obligation in (Obligation(theorem, fmt) for fmt in formats)}
    return found


def is_cell(obligation: Obligation) -> bool:
    """Whether an obligation is a cell of the matrix."""
    return obligation.theorem.id.startswith(f"{PREFIX}.")


def _no_claim(name: str, _fmt: CapabilityFormat, _given: Given) -> Any:
    raise NotImplementedError(f"cells of {name} are proved together, by `prove`")


@dataclass(frozen=True)
class Task:
    """Some cells of one row and format, which are proved with one execution."""

    row: str
    format: str
    invariants: tuple[str, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(f"{PREFIX}.{self.row}.{name}.{self.format}" for name in self.invariants)


def tasks(chosen: Iterable[Obligation]) -> Iterator[Task]:
    """Cells by row and format."""
    together: dict[tuple[str, str], list[str]] = {}
    for obligation in chosen:
        row, invariant = obligation.theorem.id.removeprefix(f"{PREFIX}.").rsplit(".", 1)
        together.setdefault((row, obligation.format.name), []).append(invariant)
    for (row, fmt), names in together.items():
        yield Task(row, fmt, tuple(names))


# -- one step --------------------------------------------------------------------------------------------------------------


def take(hart: ObservedHart, row: str, operands: tuple[Any, ...]) -> Step:
    """The step of a row."""
    return watch(hart, _EXECUTED if row == FETCH else row, operands)


def holds(row: str, invariant: str, step: Step, place: Place) -> Any:
    """Whether an invariant holds of a row's step; of the fetch, M2 says moreover what it takes to be executed."""
    kept = INVARIANTS[invariant].holds(step, place)
    if row != FETCH or invariant != "M2" or step.trap is not None:
        return kept
    pcc, pc = step.before.special["pcc"], step.before.numbers["pc"]
    second = pc + 2 & step.format.address_mask
    return kept & authorises(pcc, Permission.EXECUTE, pc, 2) & authorises(pcc, Permission.EXECUTE, second, 2)


def _no_fetch() -> None:
    """The fetch check in rows that aren't about it: it refuses nothing."""


@dataclass(frozen=True)
class Way:
    """One way through a row's step: what holds on it, and the goal of each cell."""

    conditions: tuple[z3.BoolRef, ...]
    goals: dict[str, Any]
    is_completed: bool


def ways(task: Task) -> tuple[list[Way], set[str]]:
    """Every way through the step of a task, and the theorems that were leant on."""
    fmt, attempts = FORMATS[task.format], list[Given]()

    def run() -> tuple[bool, dict[str, Any]]:
        given = Given(is_abstract=True)
        attempts.append(given)
        with contracts.in_force(given):
            hart = any_hart(fmt, given)
            if task.row != FETCH:
                vars(hart)["check_fetch"] = _no_fetch
            place = any_place(fmt, given, hart)
            operands = any_operands(fmt, given, _EXECUTED if task.row == FETCH else task.row)
            step = take(hart, task.row, operands)
            return step.trap is None, {name: holds(task.row, name, step, place) for name in task.invariants}

    paths = symbolic.explore(run, most=500)
    found = []
    for path, given in zip(paths, attempts, strict=True):
        completed, goals = path.result
        supposed = (term_of(condition) for condition in given.assumptions)
        found.append(Way((*path.conditions, *supposed), goals, completed))
    return found, set().union(*(given.leant_on for given in attempts))


# -- proving ---------------------------------------------------------------------------------------------------------------


def prove(task: Task, timeout_s: float, rlimit: int = 0) -> list[Outcome]:
    """The outcomes of a task's cells."""
    start = time.perf_counter()
    obligations = [cells()[each] for each in task.ids]
    outcomes = [Outcome(each, Verdict.PROVED, solvers=(solve.version("z3"),)) for each in obligations]
    try:
        found, leant_on = ways(task)
        undeclared = leant_on - set(obligations[0].theorem.uses)
        if undeclared:
            raise ValueError(f"{task.row} leans on {', '.join(sorted(undeclared))} without naming it")
    except Exception as error:
        for outcome in outcomes:
            outcome.verdict, outcome.reason = Verdict.ERROR, f"{type(error).__name__}: {error}"
        return outcomes
    shared = (time.perf_counter() - start) / len(outcomes)
    example, fallen = _look(task, completes=any(way.is_completed for way in found))
    for outcome, invariant in zip(outcomes, task.invariants, strict=True):
        outcome.example = example
        outcome.seconds = shared
        refuted = [z3.And(*way.conditions, z3.Not(term_of(way.goals[invariant]))) for way in found]
        answer = solve.ask("z3", (z3.Or(*refuted),), {}, timeout_s, rlimit)
        outcome.questions = 1
        outcome.seconds += answer.seconds
        if example is None:
            outcome.verdict, outcome.reason = Verdict.VACUOUS, "no drawn state was found in which it is completed"
        if invariant in fallen:
            outcome.verdict, outcome.reason = Verdict.REFUTED, "a drawn state refutes it"
            outcome.counterexample = fallen[invariant]
        elif answer.result != "unsat":
            outcome.verdict = max(outcome.verdict, Verdict.UNKNOWN)
            outcome.reason = "no proof with contracts" if answer.result == "sat" else answer.reason
    return outcomes


DRAWS = 24
"""How many drawn states each cell is looked at in, once one has been found in which the operation is completed."""


def _look(task: Task, *, completes: bool) -> tuple[dict[str, int] | None, dict[str, dict[str, int]]]:
    """The first drawn state in which the step is completed, by its number; and for each invariant one in which it falls.

    Of an operation that is always refused, the first state in which that happens.
    """
    example, fallen = None, dict[str, dict[str, int]]()
    fmt = FORMATS[task.format]
    for number in range(20 * DRAWS):
        if example is not None and number >= DRAWS:
            break
        step, places = drawn_step(task.row, fmt, number)
        if (step.trap is None or not completes) and example is None:
            example = {"drawn_state": number}
        for name in falls(task, step, places):
            fallen.setdefault(name, {"drawn_state": number})
    return example, fallen


def falls(task: Task, step: Step, places: list[Place]) -> Iterator[str]:
    """The invariants of a task that don't hold of a step on plain ints."""
    for name in task.invariants:
        if not all(bool(holds(task.row, name, step, place)) for place in places):
            yield name


def drawn_step(row: str, fmt: CapabilityFormat, number: int) -> tuple[Step, list[Place]]:
    """The step of a row from a drawn state, and the places worth looking at."""
    state = drawn.State(fmt, f"{row} {fmt.name} {number}")
    hart = state.hart()
    if row != FETCH:
        vars(hart)["check_fetch"] = _no_fetch
    step = take(hart, row, state.operands(_EXECUTED if row == FETCH else row))
    return step, state.places(step)
