"""Theorems on the Intravisor: each step of the system keeps each invariant of `spec.cvm_invariants`.

A step is any instruction of a guest, the second part of any call of the monitor's, or an operation of the deployer. It is
executed once by the reference, from any state that the invariants allow (`proofs.cvm_state`), along all its ways; then each
invariant is asked of any place: the thread that acts, another one, one that was started, any granule of any cVM's memory.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import z3

from capvisor.model import isa as _rules  # declares the rules
from capvisor.model import system
from capvisor.proofs import contracts, solve, symbolic
from capvisor.proofs.cvm_state import INDUCTIVE, AnyMonitor, any_frame
from capvisor.proofs.state import any_operands
from capvisor.proofs.symbolic import term_of
from capvisor.proofs.theorem import Given
from capvisor.spec.cvm import CALLS
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


@dataclass(frozen=True)
class Way:
    """One way through a step: what holds on it, and the goal of each invariant."""

    conditions: tuple[z3.BoolRef, ...]
    goals: dict[str, tuple[Any, ...]]
    """Of each invariant, one goal a place."""
    cases: tuple[Any, ...]
    """Conditions in whose cases the goals are asked: is the place one that the step writes to?"""
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

    def run() -> tuple[bool, dict[str, Any], tuple[Any, ...]]:
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
                goals[each] = tuple(CVM_INVARIANTS[each].holds(step, place) for place in places)
            return step.is_completed, goals, cases(monitor, register, granule)

    paths = symbolic.explore(run, most=2000)
    found = []
    for path, given in zip(paths, attempts, strict=True):
        completed, goals, split = path.result
        supposed = (term_of(condition) for condition in given.assumptions)
        found.append(Way((*path.conditions, *supposed), goals, split, completed))
    return found


def cases(monitor: AnyMonitor, register: Any, granule: Any) -> tuple[Any, ...]:
    """Whether the register or granule that is looked at is one that was written to."""
    shift = monitor.format.granule_shift
    found = [register == each for thread in monitor.threads.looked_at for each in thread.hart.registers.written]  # type: ignore[attr-defined]
    for access in monitor.memory.accesses:  # type: ignore[attr-defined]
        if access.is_store:
            places = (access.address, access.address + access.size_bytes - 1)
            found += [granule == place - monitor.memory.base >> shift for place in places]
    distinct = {repr(each): each for each in found if not isinstance(each, bool)}
    return tuple(distinct.values())[:3]


def questions(way: Way, invariants: Iterable[str], proved: Iterable[str] = ()) -> Iterator[tuple[z3.BoolRef, ...]]:
    """What would hold where one of some invariants falls, and not those that are proved already; case by case."""
    known, goals = (
        [term_of(goal) for each in names for goal in way.goals[each] if goal is not True] for names in (proved, invariants)
    )
    if not goals:
        return
    refuted = z3.Not(z3.And(*goals))
    for signs in itertools.product((True, False), repeat=len(way.cases)):
        chosen = [term_of(case) if sign else z3.Not(term_of(case)) for case, sign in zip(way.cases, signs, strict=True)]
        yield (*way.conditions, *known, *chosen, refuted)


FIRST = "C1"
"""The invariant that is asked first, and then known when the others are: C8 and C14 follow from it."""


def answers(
    name: str,
    fmt: str,
    policy: MonitorPolicy = INTENDED,
    invariants: tuple[str, ...] = tuple(CVM_INVARIANTS),
    timeout_s: float = 60,
) -> dict[str, solve.Answer]:
    """Whether each invariant can fall in a step: all that is left together, and one by one where that says nothing."""
    result = dict.fromkeys(invariants, solve.Answer("unsat", 0.0))
    for way in ways(name, FORMATS[fmt], policy, invariants):
        first = tuple(each for each in invariants if each == FIRST)
        others = tuple(each for each in invariants if each != FIRST)
        for group, proved in ((first, ()), (others, first)):
            if _ask(way, group, proved, timeout_s, result).result == "unsat":
                continue
            for each in group:
                _ask(way, (each,), tuple(x for x in proved if result[x].result == "unsat"), timeout_s, result, keeps=True)
    return result


def _ask(
    way: Way,
    group: tuple[str, ...],
    proved: tuple[str, ...],
    timeout_s: float,
    result: dict[str, solve.Answer],
    *,
    keeps: bool = False,
) -> solve.Answer:
    """Whether one of some invariants can fall on a way; what isn't unsat is kept, if that is asked for."""
    answer, seconds = solve.Answer("unsat", 0.0), 0.0
    for asked in questions(way, group, proved):
        answer = solve.ask("z3", asked, {}, timeout_s, 0)
        seconds += answer.seconds
        if answer.result != "unsat":
            break
    for each in group:
        known = result[each]
        worst = answer if keeps and answer.result != "unsat" else known
        result[each] = replace(worst, seconds=known.seconds + seconds / len(group))
    return answer
