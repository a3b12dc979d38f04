"""Theorems on whole instructions: every operation of the table, against every invariant of `spec.invariants`, and M11.

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
from dataclasses import dataclass, replace
from typing import Any

import z3

from capvisor.model import isa as _rules  # declares the rules
from capvisor.model.observation import ObservedHart, Step, watch
from capvisor.proofs import contracts, drawn, machine, solve, symbolic
from capvisor.proofs.runner import Outcome, Verdict
from capvisor.proofs.solve import Answer
from capvisor.proofs.state import any_hart, any_operands, any_place
from capvisor.proofs.symbolic import term_of
from capvisor.proofs.theorem import Given, Obligation, Theorem
from capvisor.spec.formats import FORMATS, CapabilityFormat, Permission
from capvisor.spec.guest import GUEST_STEP
from capvisor.spec.invariants import INVARIANTS, Place, authorises
from capvisor.spec.operations import OPERATIONS

assert _rules

FETCH = "fetch"
"""The row of what every step begins with; it is seen before an operation that does nothing."""

_EXECUTED = "fence"
PREFIX = "isa"
KEPT = {**INVARIANTS, GUEST_STEP.name: GUEST_STEP}
"""What every operation is to keep: the invariants, and what proofs about guests rest on."""

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


def executed(row: str) -> str:
    """The operation that a row's step executes."""
    return _EXECUTED if row == FETCH else row


def columns() -> dict[str, str]:
    """The columns of the matrix, with what each says: the invariants, and that the fast path's step is the same."""
    statements = {**{row.name: row.statement for row in KEPT.values()}, machine.NAME: machine.STATEMENT}
    return {name: statements[name] for name in sorted(statements, key=lambda name: int(name[1:]))}


@functools.cache
def cells() -> dict[str, Obligation]:
    """Every cell of the matrix as an obligation, by id: `isa.csetbounds.M1.cc128`."""
    found = {}
    for name, formats in rows().items():
        uses = contracts.lemmas_for([executed(name)])
        for invariant in KEPT.values():
            theorem = Theorem(
                f"{PREFIX}.{name}.{invariant.name}",
                f"{name}: {invariant.statement}",
                invariant.source,
                functools.partial(_no_claim, name),
                mutants=TEETH.get((name, invariant.name), ()),
                uses=uses,
                formats=tuple(fmt.name for fmt in formats),
                scope=_SCOPE,
            )
            found |= {obligation.id: obligation for obligation in (Obligation(theorem, fmt) for fmt in formats)}
        theorem = Theorem(
            f"{PREFIX}.{name}.{machine.NAME}",
            f"{name}: {machine.STATEMENT}",
            machine.SOURCE,
            functools.partial(_no_claim, name),
            mutants=TEETH.get((name, machine.NAME), ()),
            uses=machine.LEMMAS,
            formats=tuple(fmt.name for fmt in formats),
            scope=machine.SCOPE,
        )
        found |= {obligation.id: obligation for obligation in (Obligation(theorem, fmt) for fmt in formats)}
    return found


TEETH: dict[tuple[str, str], tuple[str, ...]] = {
    ("csetbounds", "M1"): ("setbounds-unchecked",),
    ("clw", "M2"): ("load-out-of-bounds",),
    (FETCH, "M2"): ("fetch-anywhere",),
    ("csw", "M3"): ("data-keeps-tags",),
    ("clw", "M4"): ("trap-keeps-reservation", "trap-keeps-pcc"),
    ("clw", "M5"): ("load-by-sealed",),
    ("cinvoke", "M5"): ("invoke-any-type",),
    ("clc", "M6"): ("load-keeps-tag",),
    ("csc", "M6"): ("store-any-capability",),
    ("cmove", "M7"): ("write-to-c0",),
    ("candperm", "M8"): ("andperm-wide",),
    ("csrrw", "M9"): ("system-registers-open",),
    ("add", machine.NAME): ("add-subtracts",),
    ("csetbounds", GUEST_STEP.name): ("setbounds-unchecked",),
    ("csc", GUEST_STEP.name): ("store-any-capability",),
}
"""Changes to the code that must make a cell fall: for every column of the matrix, in one of its rows or more."""


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

    @property
    def is_of_both(self) -> bool:
        """Whether it is about both implementations."""
        return self.invariants == (machine.NAME,)


def tasks(chosen: Iterable[Obligation]) -> Iterator[Task]:
    """Cells by row and format, those of both implementations apart."""
    together: dict[tuple[str, str, bool], list[str]] = {}
    for obligation in chosen:
        row, invariant = obligation.theorem.id.removeprefix(f"{PREFIX}.").rsplit(".", 1)
        together.setdefault((row, obligation.format.name, invariant == machine.NAME), []).append(invariant)
    for (row, fmt, _both), names in together.items():
        yield Task(row, fmt, tuple(names))


# -- one step --------------------------------------------------------------------------------------------------------------


def take(hart: ObservedHart, row: str, operands: tuple[Any, ...]) -> Step:
    """The step of a row."""
    return watch(hart, executed(row), operands)


def holds(row: str, invariant: str, step: Step, place: Place) -> Any:
    """Whether an invariant holds of a row's step; of the fetch, M2 says moreover what it takes to be executed."""
    kept = KEPT[invariant].holds(step, place)
    if row != FETCH or invariant != "M2" or step.trap is not None:
        return kept
    pcc, pc = step.before.special["pcc"], step.before.numbers["pc"]
    second = pc + 2 & step.format.address_mask
    return kept & authorises(pcc, Permission.EXECUTE, pc, 2) & authorises(pcc, Permission.EXECUTE, second, 2)


def no_fetch(_size_bytes: int) -> None:
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
                vars(hart)["check_fetch"] = no_fetch
            place = any_place(fmt, given, hart)
            operands = any_operands(fmt, given, executed(task.row))
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
        answers, completes = (_answers_of_both if task.is_of_both else _answers)(task, timeout_s, rlimit)
        example, fallen = _look(task, completes=completes)
    except Exception as error:
        for outcome in outcomes:
            outcome.verdict, outcome.reason = Verdict.ERROR, f"{type(error).__name__}: {error}"
        return outcomes
    shared = (time.perf_counter() - start - sum(answer.seconds for answer in answers.values())) / len(outcomes)
    for outcome, invariant in zip(outcomes, task.invariants, strict=True):
        answer = answers[invariant]
        outcome.example, outcome.questions, outcome.seconds = example, 1, shared + answer.seconds
        if example is None:
            outcome.verdict, outcome.reason = Verdict.VACUOUS, "no drawn state was found in which it is completed"
        if invariant in fallen:
            outcome.verdict, outcome.reason = Verdict.REFUTED, "a drawn state refutes it"
            outcome.counterexample = fallen[invariant]
        elif answer.result != "unsat":
            outcome.verdict = max(outcome.verdict, Verdict.UNKNOWN)
            outcome.reason = NO_PROOF if answer.result == "sat" else answer.reason
    return outcomes


def _answers(task: Task, timeout_s: float, rlimit: int) -> tuple[dict[str, Answer], bool]:
    """Whether each invariant can fall, by its name, and whether the operation can be completed."""
    found, leant_on = ways(task)
    undeclared = leant_on - set(cells()[task.ids[0]].theorem.uses)
    if undeclared:
        raise ValueError(f"{task.row} leans on {', '.join(sorted(undeclared))} without naming it")
    completes = any(way.is_completed for way in found)
    # All together first, which is much less work than one by one; one by one where that says nothing.
    together = _ask(found, task.invariants, timeout_s, rlimit)
    if together.result == "unsat":
        share = replace(together, seconds=together.seconds / len(task.invariants))
        return dict.fromkeys(task.invariants, share), completes
    return {each: _ask(found, (each,), timeout_s, rlimit) for each in task.invariants}, completes


WAYS_TOGETHER = 12


def _ask(found: list[Way], invariants: tuple[str, ...], timeout_s: float, rlimit: int) -> Answer:
    """Whether one of some invariants can fall on one of the ways: some ways at a time, as many are too much at once."""
    refuted = [z3.And(*way.conditions, z3.Not(z3.And(*(term_of(way.goals[each]) for each in invariants)))) for way in found]
    seconds = 0.0
    for start in range(0, len(refuted), WAYS_TOGETHER):
        answer = solve.ask("z3", (z3.Or(*refuted[start : start + WAYS_TOGETHER]),), {}, timeout_s, rlimit)
        seconds += answer.seconds
        if answer.result != "unsat":
            break
    return replace(answer, seconds=seconds)


def _answers_of_both(task: Task, timeout_s: float, rlimit: int) -> tuple[dict[str, Answer], bool]:
    """Whether the implementations can differ: first with any functions of bounds, then with the real ones."""
    fmt, row = FORMATS[task.format], None if task.row == FETCH else task.row
    for is_abstract in (True, False):
        refuted = [z3.And(*goal) for goal in machine.goals(fmt, row, is_abstract=is_abstract)]
        answer = solve.ask("z3", (z3.Or(*refuted),), {}, timeout_s, rlimit)
        if answer.result == "unsat":
            break
    return {machine.NAME: answer}, row not in ALWAYS_REFUSED


NO_PROOF = "the solver finds a state in which it falls, though with contracts perhaps none that there is"
"""Why a cell is UNKNOWN for which the solver has an answer."""

ALWAYS_REFUSED = ("ecall", "ebreak")
"""Operations that are never completed."""

DRAWS = 24
"""How many drawn states each cell is looked at in, once one has been found in which the operation is completed."""


def _look(task: Task, *, completes: bool) -> tuple[dict[str, int] | None, dict[str, dict[str, int]]]:
    """The first drawn state in which the step is completed, by its number; and for each invariant one in which it falls.

    Of an operation that is always refused, the first state in which that happens.
    """
    example, fallen = None, dict[str, dict[str, int]]()
    for number in range(40 * DRAWS):
        if example is not None and number >= DRAWS:
            break
        is_completed, names = looked_at(task, number)
        if (is_completed or not completes) and example is None:
            example = {"drawn_state": number}
        for name in names:
            fallen.setdefault(name, {"drawn_state": number})
    return example, fallen


def looked_at(task: Task, number: int) -> tuple[bool, list[str]]:
    """A task's step from the drawn state of that number: whether it is completed, and the invariants that don't hold."""
    fmt = FORMATS[task.format]
    state = drawn.State(fmt, f"{task.row} {fmt.name} {number}", together=task.row == "cinvoke")
    name = executed(task.row)
    hart, operands = state.hart(), state.operands(name)
    if task.is_of_both:
        is_completed, found = drawn.differs_on_fast_path(hart, name, operands)
        return is_completed, [machine.NAME] if found else []
    if task.row != FETCH:
        vars(hart)["check_fetch"] = no_fetch
    step = watch(hart, name, operands)
    places = state.places(step)
    fallen = [each for each in task.invariants if not all(bool(holds(task.row, each, step, place)) for place in places)]
    return step.trap is None, fallen
