"""Theorems on the Intravisor: each step of the system keeps each invariant of `spec.cvm_invariants`.

A step is any instruction of a guest, the second part of any call of the monitor's, or an operation of the deployer. It is
executed once by the reference, from any state that the invariants allow (`proofs.cvm_state`), along all its ways; then each
invariant is asked of any place: the thread that acts, another one, one that was started, any granule of any cVM's memory.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import z3

from capvisor.model import isa as _rules  # declares the rules
from capvisor.model import system
from capvisor.proofs import contracts, lazy, solve, symbolic
from capvisor.proofs.cvm_state import INDUCTIVE, AnyMonitor, any_frame
from capvisor.proofs.state import any_operands
from capvisor.proofs.symbolic import term_of
from capvisor.proofs.theorem import Given
from capvisor.spec.cvm import CALLS, Code
from capvisor.spec.cvm_invariants import CVM_INVARIANTS, Place, Step
from capvisor.spec.formats import FORMATS, CapabilityFormat
from capvisor.spec.operations import OPERATIONS
from capvisor.spec.policy import INTENDED, MonitorPolicy

assert _rules

DEPLOYER = ("create", "destroy", "start_thread")


def steps() -> dict[str, str]:
    """All steps, by name, with their kind."""
    return {
        **dict.fromkeys(OPERATIONS, "instruction"),
        **dict.fromkeys(CALLS, "leave"),
        **dict.fromkeys(DEPLOYER, "deploy"),
    }


Cases = dict[str, tuple[z3.BoolRef, ...]]


@dataclass(frozen=True)
class Way:
    """One way through a step: what holds on it, and the goal of each invariant."""

    conditions: tuple[z3.BoolRef, ...]
    goals: dict[str, tuple[z3.BoolRef, ...]]
    """Of each invariant what is to be shown, part by part: of each capability at each place."""
    cases: Cases
    """Of each symbol of a place, the conditions on which it is one that the step wrote to."""
    looked_at: tuple[z3.BoolRef, ...]
    """The conditions on which the cVM of a place is one that the step looked at."""
    is_completed: bool


def take(monitor: AnyMonitor, name: str) -> Iterator[Step]:
    """The step of that name, after the state before it has been kept."""
    given, fmt = monitor.given, monitor.format
    kind = steps()[name]
    if kind == "deploy":
        monitor.any_thread("other_")
        _inside(monitor)
        monitor.begin()
        number = given.word("cvm", 16)
        given.assume(number != 0)
        match name:
            case "create":
                base, size = given.word("base", fmt.address_width), given.word("size", fmt.address_width)
                outer, is_purecap = given.word("outer", 16), given.flag("purecap")
                yield system.deploy(monitor, name, number, base, size, is_purecap=is_purecap, outer=outer)[0]
            case "destroy":
                yield system.deploy(monitor, name, number)[0]
            case _:
                given.assume(monitor.regions[number].is_live)
                entry = given.word("entry", fmt.address_width)
                yield system.deploy(monitor, name, number, entry)[0]
        return
    thread = monitor.any_thread("")
    given.assume(thread.is_live)
    if kind == "instruction":
        vars(thread.hart)["check_fetch"] = lambda _size_bytes: None
        # What a call's arguments name is checked as the call is entered; how it is refused is a matter of its second part.
        vars(monitor)["refusal"] = lambda _number, _caller, _words: Code.OK
        monitor.begin()
        yield system.instruction(monitor, thread, name, any_operands(fmt, given, name))[0]
        return
    thread.frame = any_frame(monitor, thread, CALLS[name].number)
    monitor.any_thread("other_")
    _inside(monitor)
    monitor.begin()
    refusal = monitor.refusal(thread.frame.number, thread.domain, thread.frame.arguments)
    thread.frame = thread.frame._replace(refusal=refusal)
    yield system.leave(monitor, thread)[0]


def _inside(monitor: AnyMonitor) -> None:
    """Another thread, which is in the monitor at the moment."""
    thread = monitor.any_thread("inside_")
    thread.frame = any_frame(monitor, thread, 0, "inside_")


def ways(name: str, fmt: CapabilityFormat, policy: MonitorPolicy, invariants: tuple[str, ...]) -> list[Way]:
    """Every way through a step, with the goals of some invariants."""
    attempts: list[Given] = []

    def run() -> tuple[bool, dict[str, Any], Cases, tuple[z3.BoolRef, ...]]:
        given = Given(is_abstract=True)
        attempts.append(given)
        with contracts.in_force(given):
            monitor = AnyMonitor(fmt, given, policy, [each for each in INDUCTIVE if each in invariants])
            any_cvm, other = given.word("any_cvm", 16), given.word("any_other", 16)
            register, granule = given.word("any_register", 5), given.word("any_granule", 64)
            given.assume(granule < monitor.memory.size_bytes >> fmt.granule_shift)
            monitor.any_grant = given.word("any_grant", 64)
            (step,) = take(monitor, name)
            monitor.suppose(Place(any_cvm, other, granule=granule, grant=monitor.any_grant))
            threads = [*monitor.threads.looked_at, *monitor.threads.started]  # type: ignore[attr-defined]
            places = [Place(any_cvm, other, granule=granule, grant=monitor.any_grant)]
            places += [Place(each.domain, any_cvm, each, register, grant=monitor.any_grant) for each in threads]
            goals = {}
            for each in invariants:
                asked = places[:1] if each in _OF_TABLES else places
                goals[each] = tuple(CVM_INVARIANTS[each].holds(step, place) for place in asked)
            looked_at = tuple(term_of(any_cvm == each) for each in monitor.cvms if each is not any_cvm)
            return step.is_completed, goals, cases(monitor, any_cvm, other, register, granule), looked_at

    paths = symbolic.explore(run, most=2000)
    found = []
    for path, given in zip(paths, attempts, strict=True):
        completed, goals, split, looked_at = path.result
        supposed = (term_of(condition) for condition in given.assumptions)
        found.append(Way((*path.conditions, *supposed), _parts(goals), split, looked_at, completed))
    return found


_OF_TABLES = ("C2", "C9", "C16")
"""Invariants that look at no thread: what holds at any cVM needn't be asked again at a thread's."""


def cases(monitor: AnyMonitor, any_cvm: Any, other: Any, register: Any, granule: Any) -> Cases:
    """Of the symbols of a place, the conditions on which each is one that was written to."""
    shift, base = monitor.format.granule_shift, monitor.memory.base
    threads = (*monitor.threads.looked_at, *monitor.threads.started)  # type: ignore[attr-defined]
    stored: list[Any] = []
    for access in monitor.memory.accesses:  # type: ignore[attr-defined]
        if access.is_store:
            ends = (access.address, access.address + access.size_bytes - 1)
            stored += [place - base >> shift for place in ends[: 1 if access.is_capability else 2]]
    written = (
        ("any_register", register, [each for thread in threads for each in thread.hart.registers.written]),
        ("any_granule", granule, stored),
        ("any_cvm", any_cvm, monitor.regions.written),  # type: ignore[attr-defined]
        ("any_other", other, monitor.regions.written),  # type: ignore[attr-defined]
        ("any_grant", monitor.any_grant, monitor.grants.written),  # type: ignore[attr-defined]
    )
    found = {}
    for name, symbol, numbers in written:
        terms = [z3.simplify(term_of(symbol == number)) for number in numbers]
        found[name] = tuple({term.get_id(): term for term in terms if not z3.is_false(term)}.values())
    return found


def _split(way: Way, goal: z3.BoolRef, depth: int) -> Iterator[tuple[z3.BoolRef, ...]]:
    """The cases in which a goal is asked.

    At depth 0 there is one; at 1, each symbol of its place is one that was written to, the first such, or none; at 2, the
    place's cVM is moreover one that the step looked at, or none.
    """
    names = lazy.symbols(goal)
    concerned = {name for name in way.cases if name in names and (name != "any_granule" or "memory_tags" in names)}
    ways_to_be = [_one_of(conditions) for name, conditions in way.cases.items() if name in concerned and depth]
    if depth > 1 and "any_cvm" in names:
        ways_to_be.append(_one_of(way.looked_at))
    for chosen in itertools.product(*ways_to_be):
        yield tuple(itertools.chain.from_iterable(chosen))


def _one_of(conditions: tuple[z3.BoolRef, ...]) -> list[tuple[z3.BoolRef, ...]]:
    """That the first of some conditions holds; the second, but not the first; and so on; that none does."""
    none = [z3.Not(each) for each in conditions]
    return [(*none[:place], each) for place, each in enumerate(conditions)] + [tuple(none)]


def _parts(goals: dict[str, tuple[Any, ...]]) -> dict[str, tuple[z3.BoolRef, ...]]:
    """The parts of goals, none twice."""
    seen: set[int] = set()
    found: dict[str, tuple[z3.BoolRef, ...]] = {}
    for name, places in goals.items():
        parts = [part for place in places for part in lazy.conjuncts(term_of(place))]
        found[name] = tuple(part for part in parts if part.get_id() not in seen and not seen.add(part.get_id()))
    return found


FIRST = "C1"
"""The invariant that is asked first, and then known when the others are: C8 and C14 follow from it."""


def answers(
    name: str,
    fmt: str,
    policy: MonitorPolicy = INTENDED,
    invariants: tuple[str, ...] = tuple(CVM_INVARIANTS),
    timeout_s: float = 60,
    asked: tuple[str, ...] = (),
) -> dict[str, solve.Answer]:
    """Whether each invariant can fall in a step: "unsat" if not on any way, at any place.

    All of `invariants` are supposed before the step; those in `asked` are asked after it, or all.
    """
    result = dict.fromkeys(asked or invariants, solve.Answer("unsat", 0.0))
    for way in ways(name, FORMATS[fmt], policy, invariants):
        question = lazy.Question(way.conditions)
        for each in sorted(result, key=lambda each: each != FIRST):
            for goal in way.goals[each]:
                answer = _ask(way, question, goal, timeout_s)
                known = result[each]
                worst = known if answer.result == "unsat" or known.result == "sat" else answer
                result[each] = replace(worst, seconds=known.seconds + answer.seconds)
                if each == FIRST and answer.result == "unsat":
                    question.suppose(goal)
    return result


_BRIEFLY_S = (1.0, 5.0)
"""How long a goal is asked without cases, and in few, before it is split further."""


def _ask(way: Way, question: lazy.Question, goal: z3.BoolRef, timeout_s: float) -> solve.Answer:
    """Whether a goal can fall: asked at once, then in ever more cases, where that gives no answer."""
    seconds = 0.0
    for depth, limit in enumerate((*_BRIEFLY_S, timeout_s)):
        for case in _split(way, goal, depth):
            answer = question.ask(goal, min(limit, timeout_s), case)
            seconds += answer.seconds
            if answer.result != "unsat":
                break
        if answer.result != "unknown":
            break
    return replace(answer, seconds=seconds)
