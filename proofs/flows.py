"""Non-interference as obligations: `flows.STEP.FORMAT`, of every operation of the machine and every step of the system.

An operation is executed twice by the reference, on two harts in the same state, whatever that is, and on two memories of
which nothing is known but what `spec.flows` supposes: they agree where the authority of the access permits to load. What is
proved of it supposes no invariant. Functions of bounds are any functions (`proofs.contracts`). The steps of the system are
those of `proofs.flows_system`.

That hypotheses can be satisfied, and theorems fall where they should, is shown by drawn states and concrete systems.
"""

import functools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import z3

from capvisor.model import isa as _rules  # declares the rules
from capvisor.model.memory import Granule
from capvisor.model.observation import ObservedHart, ObservedMemory, Step, watch
from capvisor.proofs import contracts, drawn, flows_system, flows_witness, lazy, matrix, solve, symbolic
from capvisor.proofs.isa import NO_PROOF, no_fetch
from capvisor.proofs.memory import ArrayStore
from capvisor.proofs.runner import Outcome, Settings, Verdict
from capvisor.proofs.solve import Answer
from capvisor.proofs.state import any_extent, any_hart, any_operands, any_place
from capvisor.proofs.symbolic import term_of
from capvisor.proofs.theorem import Given, Obligation, Theorem
from capvisor.spec import flows
from capvisor.spec.formats import FORMATS, CapabilityFormat, Permission
from capvisor.spec.invariants import authorises, authority
from capvisor.spec.operations import OPERATIONS

assert _rules

PREFIX, BYTES = "flows", "bytes"
SIZES_BYTES = (1, 2, 4, 8)

_OF_OPERATION = (
    "What it leaves in registers and memory, where it goes on and how it is refused follows from the state of the hart and "
    "from what its authority permits to load; it stores only by authority to store."
)
_OF_STEP = (
    "It changes nothing that others see but by the rows of the tables that it names; what it answers, and what it leaves of "
    "what any cVM sees, follows from what its caller sees, what that cVM sees, and those rows."
)
STATEMENTS = {
    BYTES: "Two memories that agree on every byte of an access agree on what it reads.",
    flows_system.GUEST: "What a cVM's thread has in a register or DDC authorises to load what the cVM sees, and to store "
    "there; with tags, in its own region.",
    flows_system.ENTER: "Invoking a pair changes no memory and no table; what it leaves of what any cVM sees follows from "
    "what that cVM and the one that invokes it see.",
}
TEETH: dict[str, tuple[str, ...]] = {
    "clw": ("load-out-of-bounds", "load-by-sealed"),
    "clc": ("load-keeps-tag",),
    "csw": ("load-out-of-bounds",),
    "csc": ("store-any-capability",),
}
"""Changes to the code that must make an operation's theorem fall."""

_SCOPES = {
    BYTES: "memories with any content",
    flows_system.GUEST: "any state that the invariants allow; any thread, register and DDC, any byte and granule",
}
_SCOPE_OF_OPERATION = (
    "any state of a hart, any operands, any two memories that agree where the authority permits to load; one step"
)
_SCOPE_OF_STEP = (
    "any state that the invariants allow, any other cVM, register, granule, byte and row; the intended policy; one step"
)


def steps() -> dict[str, tuple[str, ...]]:
    """What is proved, by name, with the formats in which it is there."""
    formats = tuple(FORMATS)
    operations = {
        name: tuple(fmt.name for fmt in FORMATS.values() if fmt.address_width >= row.minimum_xlen)
        for name, row in OPERATIONS.items()
    }
    return {BYTES: formats, **operations, **dict.fromkeys(flows_system.STEPS, formats)}


@functools.cache
def cells() -> dict[str, Obligation]:
    """Every obligation, by id."""
    found = {}
    for name, formats in steps().items():
        is_operation = name in OPERATIONS
        said = STATEMENTS.get(name, _OF_OPERATION if is_operation else _OF_STEP)
        theorem = Theorem(
            f"{PREFIX}.{name}",
            said if name in STATEMENTS else f"{name}: {said}",
            flows.SOURCE,
            functools.partial(_no_claim, name),
            mutants=TEETH.get(name, ()),
            uses=() if name == BYTES else contracts.BOUNDS_LEMMAS if is_operation else flows_system.LEMMAS,
            formats=formats,
            scope=_SCOPES.get(name, _SCOPE_OF_OPERATION if is_operation else _SCOPE_OF_STEP),
        )
        found |= {each.id: each for each in (Obligation(theorem, FORMATS[fmt]) for fmt in formats)}
    return found


def _no_claim(name: str, _fmt: CapabilityFormat, _given: Given) -> Any:
    raise NotImplementedError(f"what is said of {name} is proved by `prove`")


def is_cell(obligation: Obligation) -> bool:
    """Whether an obligation is one of these."""
    return obligation.theorem.id.startswith(f"{PREFIX}.")


def leant_on(chosen: Iterable[Obligation]) -> list[Obligation]:
    """What obligations lean on beyond theorems: that of a guest's step, on those of every operation."""
    formats = {each.format.name for each in chosen if each.theorem.id == f"{PREFIX}.{flows_system.GUEST}"}
    names = (f"{PREFIX}.{name}.{fmt}" for fmt in sorted(formats) for name in (BYTES, *OPERATIONS))
    return [cells()[name] for name in names if name in cells()]


@dataclass(frozen=True)
class Task:
    """One obligation."""

    step: str
    format: str

    @property
    def ids(self) -> tuple[str, ...]:
        return (f"{PREFIX}.{self.step}.{self.format}",)


def tasks(chosen: Iterable[Obligation]) -> Iterator[Task]:
    """The obligations, one by one."""
    for each in chosen:
        yield Task(each.theorem.id.removeprefix(f"{PREFIX}."), each.format.name)


# -- operations ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One way through a step that is taken twice: what holds on it, and the goal."""

    conditions: tuple[z3.BoolRef, ...]
    goal: z3.BoolRef


def ways(task: Task) -> list[Way]:
    """Every way through an operation on two harts, or through the reads of the lemma on bytes."""
    fmt, attempts = FORMATS[task.format], list[Given]()

    def run() -> Any:
        attempts.append(Given(is_abstract=True))
        with contracts.any_bounds():
            return (_bytes if task.step == BYTES else functools.partial(_twice, task.step))(fmt, attempts[-1])

    return [
        Way((*path.conditions, *(term_of(each) for each in given.assumptions)), term_of(path.result))
        for path, given in zip(symbolic.explore(run, most=500), attempts, strict=True)
    ]


def _twice(name: str, fmt: CapabilityFormat, given: Given) -> Any:
    steps = []
    for memory in ("memory", "other_memory"):
        store = ArrayStore(fmt.address_width, memory)
        hart = any_hart(fmt, given, ObservedMemory(fmt, *any_extent(fmt, given), store))
        vars(hart)["check_fetch"] = no_fetch
        steps.append(watch(hart, name, any_operands(fmt, given, name)))
    return flows.follows_from_what_it_may_read(*steps, any_place(fmt, given, hart))


def _bytes(fmt: CapabilityFormat, given: Given) -> Any:
    """Of accesses of every size, and of granules, which are aligned."""
    extent, address = any_extent(fmt, given), given.word("address", fmt.address_width)
    one, other = (ObservedMemory(fmt, *extent, ArrayStore(fmt.address_width, name)) for name in ("memory", "other_memory"))
    holds: Any = True
    sizes = [each for each in SIZES_BYTES if 8 * each <= fmt.address_width]
    for size_bytes in (*sizes, fmt.capability_bytes):
        is_granule = size_bytes == fmt.capability_bytes
        alike: Any = one.contains(address, size_bytes)
        alike = alike & (address & size_bytes - 1 == 0) if is_granule else alike
        for offset in range(size_bytes):
            alike = alike & (one.read(address + offset, 1) == other.read(address + offset, 1))
        if is_granule:
            mine, its = one.read_granule(address), other.read_granule(address)
            same = (mine.upper == its.upper) & (mine.lower == its.lower)
        else:
            same = one.read(address, size_bytes) == other.read(address, size_bytes)
        holds = holds & flows.implies(alike, same)
    return holds


def _asked(task: Task, timeout_s: float, rlimit: int) -> Answer:
    """Whether the goal can fall on one of the ways, one part after the other."""
    seconds = 0.0
    for way in ways(task):
        for part in lazy.conjuncts(way.goal):
            answer = solve.ask("z3", (*way.conditions, z3.Not(part)), {}, timeout_s, rlimit)
            seconds += answer.seconds
            if answer.result != "unsat":
                return Answer(answer.result, seconds, reason=answer.reason)
    return Answer("unsat", seconds)


def looked_at(task: Task, number: int) -> tuple[bool, list[str]]:
    """A step in a drawn state, or pair of systems: whether it is completed, and its name if its theorem falls there."""
    fmt = FORMATS[task.format]
    if task.step not in OPERATIONS:
        completed, fallen = flows_witness.looked_at(task.step, fmt, number) if task.step != BYTES else (True, [])
        return completed, [task.step] if fallen else []
    steps: list[Step] = []
    for _each in range(2):
        state = drawn.State(fmt, f"{task.step} {fmt.name} {number}", together=task.step == "cinvoke")
        hart, operands = state.hart(), state.operands(task.step)
        if steps:
            _differ(hart, steps[0])
        vars(hart)["check_fetch"] = no_fetch
        steps.append(watch(hart, task.step, operands))
    one, other = steps
    falls = not all(flows.follows_from_what_it_may_read(one, other, place) for place in state.places(one))
    return one.trap is None, [task.step] if falls else []


def _differ(hart: ObservedHart, step: Step) -> None:
    """Change every byte and tag of a memory that a step's authority doesn't permit to load."""
    memory, by, fmt = hart.memory, authority(step), hart.format
    shift, needed = fmt.granule_shift, Permission.LOAD | Permission.LOAD_CAPABILITY
    for index in range(memory.size_bytes >> shift):
        tag, *halves = memory.store.get(index)
        address = memory.base + (index << shift)
        for place in range(fmt.capability_bytes):
            if not authorises(by, Permission.LOAD, address + place, 1):
                halves[1 - place // (fmt.capability_bytes // 2)] ^= 0xFF << 8 * (place % (fmt.capability_bytes // 2))
        may_load_tag = authorises(by, needed, address, fmt.capability_bytes)
        memory.store.set(index, Granule(tag if may_load_tag else not tag, *halves))


# -- proving ---------------------------------------------------------------------------------------------------------------

_SYSTEMS = 3
"""How many pairs of systems a step of the system is looked at in."""

DRAWS = 24
"""How many drawn states an operation is looked at in, once one has been found in which it is completed."""


def prove(task: Task, timeout_s: float, rlimit: int = 0) -> list[Outcome]:
    """The outcome of one obligation."""
    start = time.perf_counter()
    outcome = Outcome(cells()[task.ids[0]], Verdict.PROVED, questions=1, solvers=(solve.version("z3"),))
    try:
        completes = task.step not in ("ecall", "ebreak")
        example, fallen = _look(task, completes=completes)
        if fallen is None:
            answer, which = (
                flows_system.prove(task.step, FORMATS[task.format], timeout_s)
                if task.step in flows_system.STEPS
                else (_asked(task, timeout_s, rlimit), "")
            )
    except Exception as error:
        outcome.verdict, outcome.reason = Verdict.ERROR, f"{type(error).__name__}: {error}"
        return [outcome]
    outcome.seconds, outcome.example = time.perf_counter() - start, example
    if example is None:
        outcome.verdict, outcome.reason = Verdict.VACUOUS, "no state was found in which it is completed"
    if fallen is not None:
        outcome.verdict, outcome.reason, outcome.counterexample = Verdict.REFUTED, "a drawn state refutes it", fallen
    elif answer.result != "unsat":
        outcome.verdict = max(outcome.verdict, Verdict.UNKNOWN)
        outcome.reason = ": ".join(filter(None, (which, NO_PROOF if answer.result == "sat" else answer.reason)))
    return [outcome]


def _look(task: Task, *, completes: bool) -> tuple[dict[str, int] | None, dict[str, int] | None]:
    """The first state in which a step is completed, or which always is refused, and the first in which its theorem falls."""
    example, fallen = None, None
    for number in range(40 * DRAWS if task.step in OPERATIONS else _SYSTEMS):
        if example is not None and number >= DRAWS:
            break
        is_completed, names = looked_at(task, number)
        if example is None and (is_completed or not completes):
            example = {"drawn_state": number}
        if fallen is None and names:
            fallen = {"drawn_state": number}
    return example, fallen


def prove_all(
    chosen: list[Obligation], settings: Settings, finished: Callable[[Outcome], None] = lambda outcome: None
) -> tuple[list[Outcome], bool]:
    """Prove obligations, and theorems that they lean on; that of a guest's step isn't proved unless all operations are."""
    outcomes, interrupted = matrix.prove(chosen, settings, finished, sys.modules[__name__])
    proved = {each.obligation.id for each in outcomes if each.verdict is Verdict.PROVED}
    for outcome in outcomes:
        missing = [each.id for each in leant_on([outcome.obligation]) if each.id not in proved]
        if missing and outcome.verdict is Verdict.PROVED:
            outcome.verdict, outcome.reason = Verdict.UNKNOWN, f"leans on what isn't proved: {', '.join(missing[:3])}"
    return outcomes, interrupted
