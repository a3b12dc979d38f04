"""Theorems on the Intravisor: each step of the system keeps each invariant of `spec.cvm_invariants`.

A step is any instruction of a guest, the second part of any call of the monitor's, an operation of the deployer, or a change
of memory from below that makes no capability (`proofs.composition`). It is executed once by the reference, from any state
that the invariants allow (`proofs.cvm_state`), along all its ways; then each invariant is asked of any place: the thread
that acts, another one, one that was started, any granule of any cVM's memory.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import z3

from capvisor.model import isa as _rules  # declares the rules
from capvisor.model import system
from capvisor.proofs import contracts, cvm_guest, lazy, symbolic
from capvisor.proofs.composition import OUTSIDE, ChangedBelow
from capvisor.proofs.cvm_state import INDUCTIVE, AnyMonitor, any_frame
from capvisor.proofs.flat import Terms
from capvisor.proofs.solve import Answer
from capvisor.proofs.state import any_operands
from capvisor.proofs.steps import Kept, Proved
from capvisor.proofs.symbolic import term_of
from capvisor.proofs.theorem import Given
from capvisor.proofs.ways import Cases, Way, ask, name_of, parts_of, which
from capvisor.spec.cvm import CALLS, Code
from capvisor.spec.cvm_invariants import CVM_INVARIANTS, SOUND, Place, Step
from capvisor.spec.formats import FORMATS, CapabilityFormat
from capvisor.spec.guest import APART
from capvisor.spec.operations import OPERATIONS
from capvisor.spec.policy import INTENDED, MonitorPolicy

assert _rules

DEPLOYER = ("create", "destroy", "start_thread")


BASE = "start"
"""The base case among the steps: a system without cVMs, and memory that holds anything sound."""


def steps() -> dict[str, str]:
    """The steps that are all of them, by name, with their kind."""
    return {
        BASE: "base",
        cvm_guest.NAME: "instruction",
        APART: "instruction",
        **dict.fromkeys(CALLS, "leave"),
        **dict.fromkeys(DEPLOYER, "deploy"),
        OUTSIDE: "outside",
    }


def all_steps() -> dict[str, str]:
    """Those, and each instruction by itself: what is proved of any guest's step can be proved of it directly."""
    return {**steps(), **dict.fromkeys(OPERATIONS, "instruction")}


KEPT = {**CVM_INVARIANTS, SOUND.name: SOUND}
"""What each step is to keep."""


def take(monitor: AnyMonitor, name: str) -> Iterator[Step]:
    """The step of that name, after the state before it has been kept."""
    given, fmt = monitor.given, monitor.format
    kind = all_steps()[name]
    if kind == "base":
        monitor.without_cvms()
        yield Step(monitor, "deploy", name)
        return
    if kind == "outside":
        monitor.any_thread("other_")
        _inside(monitor)
        monitor.begin()
        monitor.memory.store = ChangedBelow(fmt, monitor.memory.store)
        yield Step(monitor, "outside", name)
        return
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
        if name == cvm_guest.NAME:
            vars(thread.hart)["step"] = cvm_guest.any_step(monitor, thread)
            yield system.instruction(monitor, thread, name, ())[0]
            return
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
    attempts: list[AnyMonitor] = []

    def run() -> tuple[Any, ...]:
        given = Given(is_abstract=True)
        with contracts.in_force(given):
            monitor = AnyMonitor(fmt, given, policy, [each for each in INDUCTIVE if each in invariants])
            attempts.append(monitor)
            any_cvm, other = given.word("any_cvm", 16), given.word("any_other", 16)
            register, granule = given.word("any_register", 5), given.word("any_granule", 64)
            given.assume(granule < monitor.memory.size_bytes >> fmt.granule_shift)
            monitor.any_register, monitor.any_granule = register, granule
            monitor.any_grant = given.word("any_grant", 64)
            (step,) = take(monitor, name)
            seen = frozenset(monitor.guards.seen)
            monitor.guards.seen.clear()
            concerned = [*monitor.regions.written, *monitor.cvms[monitor.cvms_of_threads :]]  # type: ignore[attr-defined]
            if name != BASE:
                monitor.suppose(Place(any_cvm, other, granule=granule, grant=monitor.any_grant))
            threads = [*monitor.threads.looked_at, *monitor.threads.started]  # type: ignore[attr-defined]
            places = [Place(any_cvm, other, granule=granule, grant=monitor.any_grant)]
            places += [Place(each.domain, any_cvm, each, register, grant=monitor.any_grant) for each in threads]
            goals = {}
            for each in invariants:
                asked = places[:1] if each in _OF_TABLES else places
                goals[each] = tuple(KEPT[each].holds(step, place) for place in asked)
            looked_at = tuple(term_of(any_cvm == each) for each in monitor.cvms if each is not any_cvm)
            holders = {"any_cvm": any_cvm} | {
                name_of(each): each for each in map(monitor.domain_at_first, monitor.threads.looked_at)
            }
            parts = parts_of(goals, cvm_guest.PLACES, monitor.about, tuple(holders))
            split = cases(monitor, any_cvm, other, register, granule)
            of_holders = {each: _of_holder(monitor, symbol, concerned) for each, symbol in holders.items()}
            return step.is_completed, parts, split, of_holders, looked_at, seen

    paths = symbolic.explore(run, most=2000)
    found = []
    for path, monitor in zip(paths, attempts, strict=True):
        completed, goals, split, of_holders, looked_at, guards = path.result
        assumptions = monitor.given.assumptions
        supposed = (term_of(condition) for condition in assumptions)
        labels = ("",) * len(path.conditions) + tuple(monitor.labels.get(number, "") for number in range(len(assumptions)))
        conditions, said = (*path.conditions, *supposed), frozenset(monitor.guards.seen)
        found.append(Way(conditions, goals, split, of_holders, looked_at, completed, labels, guards, said))
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
    created: list[Any] = monitor.regions.written  # type: ignore[attr-defined]
    written = (
        ("any_register", register, [each for thread in threads for each in thread.hart.registers.written]),
        ("any_granule", granule, stored),
        ("any_cvm", any_cvm, created),
        ("any_other", other, created),
        ("any_grant", monitor.any_grant, monitor.grants.written),  # type: ignore[attr-defined]
    )
    found = {name: which(symbol, numbers) for name, symbol, numbers in written}
    return found | {name: tuple(map(term_of, conditions)) for name, conditions in monitor.cases.items()}


def _of_holder(monitor: AnyMonitor, holder: Any, concerned: Sequence[Any]) -> tuple[tuple[z3.BoolRef, ...], ...]:
    """Which of the cVMs concerned the holder of a place is, and which one that was written to is its outer one."""
    created: list[Any] = monitor.regions.written  # type: ignore[attr-defined]
    of_outer = which(monitor.outer_at_first(holder), created) if created else ()
    return which(holder, concerned), of_outer


FIRST = "C1"
"""The invariant that is asked first, and then known when the others are: C8 and C14 follow from it."""


def prove(
    name: str,
    fmt: str,
    policy: MonitorPolicy = INTENDED,
    invariants: tuple[str, ...] = tuple(KEPT),
    timeout_s: float = 60,
    asked: tuple[str, ...] = (),
) -> Proved:
    """Whether each invariant is kept in a step, on every way, at any place.

    All of `invariants` are supposed before the step; those in `asked` are asked after it, or all.
    """
    result = dict.fromkeys(asked or invariants, Kept("unsat"))
    guards: frozenset[str] = frozenset()
    said: frozenset[str] = frozenset()
    terms = Terms()
    for way in ways(name, FORMATS[fmt], policy, invariants):
        guards, said = guards | way.guards, said | way.said
        question = lazy.Question(way.conditions, way.labels, terms=terms)
        # Of what is proved on this way, the question and what it leans on: invariants have parts in common.
        proved: dict[int, tuple[z3.BoolRef, frozenset[str]]] = {}
        for each in sorted(result, key=lambda each: each != FIRST):
            for goal in way.goals[each]:
                flat, leant_on = question.flat(goal.condition), question.known(goal.condition)
                if leant_on is None and flat.get_id() in proved:
                    leant_on = proved[flat.get_id()][1]
                if leant_on is not None:
                    answer = Answer("unsat", 0.0)
                else:
                    question.leant_on.clear()
                    answer = ask(way, question, goal, timeout_s, _tiers(each))
                    leant_on = frozenset(question.leant_on)
                    if answer.result == "unsat":
                        proved[flat.get_id()] = flat, leant_on
                        if each == FIRST:
                            question.suppose(goal.condition, _AFTER)
                result[each] = result[each].and_also(answer, _before(leant_on, result.get(FIRST)))
    return Proved(result, guards, said)


_AFTER = "after"
"""The label of what was proved of the first invariant after the step."""


def _before(leant_on: frozenset[str], first: Kept | None) -> frozenset[str]:
    """What is leant on of the state before the step: what the first invariant leans on, where that is leant on after it."""
    return leant_on - {_AFTER} | (first.leans_on if first and _AFTER in leant_on else frozenset())


_BOOKS = ("C2", "C9", "C16", "C19")
"""Invariants of the monitor's tables: what the others rest on."""


def _tiers(name: str) -> Callable[[str], int] | None:
    """In what order hypotheses are used: those that an invariant needn't lean on, last.

    What is authority's concern leans on everything, and finds its proof more quickly without an order.
    """
    if name in _OF_AUTHORITY:
        return None
    return lambda label: 0 if label in ("", name) else 1 if label in _BOOKS else 2


_OF_AUTHORITY = (FIRST, "C5", "C6", "C7", "C8", "C14", "C17", "C18")
