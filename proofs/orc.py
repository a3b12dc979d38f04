"""Theorems on shared objects: each step of the system keeps each invariant of `spec.orc_invariants`.

A step is any instruction of a guest, in its tenant's code or in an object's, or an operation. It is executed once by the
reference, from any state that the invariants allow (`proofs.orc_state`), along all its ways; then each invariant is asked of
any place: the thread that acts, another one, one that was started, any granule, slot, mapping and tenant.
"""

import functools
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import z3

from capvisor.model import isa as _rules  # declares the rules
from capvisor.model import object_operations
from capvisor.proofs import contracts, lazy, orc_guest, symbolic
from capvisor.proofs.flat import Terms
from capvisor.proofs.orc_state import IDENTITY_BITS, INDUCTIVE, TENANT_BITS, AnyObjects, minting
from capvisor.proofs.solve import Answer
from capvisor.proofs.state import any_operands
from capvisor.proofs.steps import Kept, Proved
from capvisor.proofs.symbolic import term_of
from capvisor.proofs.theorem import Given
from capvisor.proofs.ways import Cases, Goal, Way, parts_of, which
from capvisor.spec.formats import FORMATS, CapabilityFormat
from capvisor.spec.guest import APART
from capvisor.spec.object_policy import INTENDED, ObjectPolicy
from capvisor.spec.orc import NOBODY, OPERATIONS, Actor, Code, OperandKind
from capvisor.spec.orc_invariants import FLOWS, ORC_INVARIANTS, SOUND, Place, Step

assert _rules

BASE = "initial"
"""The base case among the steps: a system without tenants, and memory that holds anything sound."""

KEPT = {**ORC_INVARIANTS, SOUND.name: SOUND, **FLOWS}
"""What each step is to keep: the invariants, and what non-interference is made of."""

_OF_TABLES = ("O3", "O8")
"""Invariants that look at no thread: what holds at any place needn't be asked again at a thread's."""

_OF_READS = "sees"
"""What follows from the invariants of any state, and so is asked of no step but of what is loaded."""


def steps() -> dict[str, str]:
    """The steps that are all of them, by name, with their kind."""
    return {
        BASE: "base",
        orc_guest.NAME: "instruction",
        orc_guest.LOADED: "instruction",
        APART: "instruction",
        **dict.fromkeys(OPERATIONS, "operation"),
    }


def take(monitor: AnyObjects, name: str) -> Step:
    """The step of that name, after the state before it has been kept."""
    given, fmt, kind = monitor.given, monitor.format, steps()[name]
    if kind == "base":
        monitor.without_tenants()
        monitor.begin()
        return Step(monitor, monitor.before(), "operation", name)
    by_base = kind == "operation" and OPERATIONS[name].actor is Actor.BASE
    thread = None if by_base else monitor.any_thread("")
    if thread is not None:
        given.assume(thread.is_live)
    if kind == "instruction":
        assert thread is not None
        vars(thread.hart)["check_fetch"] = lambda _size_bytes: None
        monitor.begin()
        if name == orc_guest.LOADED:
            holder = monitor.holding(thread, orc_guest.any_loaded(monitor, thread))
            return Step(monitor, monitor.before(), kind, name, thread.tenant, holder)
        operands = any_operands(fmt, given, name) if name == APART else ()
        if name == orc_guest.NAME:
            vars(thread.hart)["step"] = orc_guest.any_step(monitor, thread)
        trap = monitor.step(thread, name, operands)
        return Step(monitor, monitor.before(), kind, name, thread.tenant, thread, operands, Code.OK, trap is None)
    monitor.any_thread("other_")
    monitor.begin()
    operands = tuple(_operand(monitor, *each) for each in OPERATIONS[name].operands)
    code = object_operations.perform(monitor, thread, name, *operands)
    tenant = NOBODY if thread is None else thread.tenant
    return Step(monitor, monitor.before(), kind, name, tenant, thread, operands, code, code is Code.OK)


def _operand(monitor: AnyObjects, name: str, kind: OperandKind) -> Any:
    bits = {OperandKind.TENANT: TENANT_BITS, OperandKind.RELOCATION: 3, OperandKind.IDENTITY: IDENTITY_BITS}
    return monitor.given.word(f"operand_{name}", bits.get(kind, monitor.format.address_width))


def ways(name: str, fmt: CapabilityFormat, policy: ObjectPolicy, invariants: tuple[str, ...]) -> list[Way]:
    """Every way through a step, with the goals of some invariants."""
    attempts: list[AnyObjects] = []

    def run() -> tuple[Any, ...]:
        given = Given(is_abstract=True)
        with contracts.in_force(given):
            monitor = AnyObjects(fmt, given, policy, [each for each in INDUCTIVE if each in invariants])
            attempts.append(monitor)
            with minting(monitor):
                return _run(monitor, name, invariants)

    paths = symbolic.explore(run, most=2000)
    found = []
    for path, monitor in zip(paths, attempts, strict=True):
        completed, goals, cases, guards = path.result
        assumptions = monitor.given.assumptions
        supposed = (term_of(condition) for condition in assumptions)
        labels = ("",) * len(path.conditions) + tuple(monitor.labels.get(number, "") for number in range(len(assumptions)))
        said = frozenset(monitor.guards.seen)
        found.append(Way((*path.conditions, *supposed), goals, cases, {}, (), completed, labels, guards, said))
    return found


def _run(monitor: AnyObjects, name: str, invariants: tuple[str, ...]) -> tuple[Any, ...]:
    """Take a step: whether it is completed, the goals at all places, the cases of these, the guards looked at."""
    given, fmt = monitor.given, monitor.format
    width = fmt.address_width
    any_one = Place(
        given.word("any_tenant", TENANT_BITS),
        given.word("any_slot", width),
        given.word("any_other", TENANT_BITS),
        given.word("any_other_slot", width),
        given.word("any_entry", width),
        granule=given.word("any_granule", width),
    )
    register = given.word("any_register", 5)
    given.assume(any_one.granule < monitor.memory.size_bytes >> fmt.granule_shift)
    monitor.any_register, monitor.any_granule = register, any_one.granule
    step = take(monitor, name)
    seen = frozenset(monitor.guards.seen)
    monitor.guards.seen.clear()
    if name != BASE:
        monitor.reads_granule(any_one.granule)
        monitor.suppose(any_one)
        monitor.looks_at("slots", any_one.slot)
        monitor.looks_at("tenants", any_one.tenant)
        monitor.looks_at("mappings", (any_one.tenant, any_one.slot))
        monitor.looks_at("mappings", (any_one.other, any_one.other_slot))
        monitor.looks_at("exports", (any_one.slot, any_one.entry))
    reading: list[Place] = []
    if name == orc_guest.LOADED:
        places = [Place(step.tenant, thread=step.thread, register=1)]
        reading = [Place(step.tenant, thread=monitor.reader, register=1, byte=given.word("any_byte", width))]
    else:
        threads = [*monitor.threads.looked_at, *monitor.threads.started]
        places = [any_one, *(Place(each.tenant, thread=each, register=register) for each in threads)]
    goals = {}
    for each in (each for each in invariants if each != _OF_READS or reading):
        asked = reading if each == _OF_READS else places[:1] if each in _OF_TABLES else places
        goals[each] = tuple(KEPT[each].holds(step, place) for place in asked)
    parts = parts_of(goals, orc_guest.PLACES, monitor.about, ())
    return step.is_completed, parts, _cases(monitor, any_one, register), seen


def _cases(monitor: AnyObjects, place: Place, register: Any) -> Cases:
    """Of the symbols of a place, the conditions on which each is one that was written to."""
    threads = (*monitor.threads.looked_at, *monitor.threads.started)
    slots, mappings, tenants = (getattr(monitor, name).written for name in ("slots", "mappings", "tenants"))
    store: Any = monitor.memory.store
    written = (
        ("any_register", register, [each for thread in threads for each in thread.hart.registers.written]),
        ("any_granule", place.granule, store.written),
        ("any_slot", place.slot, [*slots, *(slot for _tenant, slot in mappings)]),
        ("any_other_slot", place.other_slot, [slot for _tenant, slot in mappings]),
        ("any_tenant", place.tenant, [*tenants, *(tenant for tenant, _slot in mappings)]),
        ("any_other", place.other, [tenant for tenant, _slot in mappings]),
    )
    found = {name: which(symbol, numbers) for name, symbol, numbers in written}
    found["any_granule"] += tuple(monitor.rewritten(place.granule))
    return found | {name: tuple(map(term_of, conditions)) for name, conditions in monitor.cases.items()}


def prove(
    name: str,
    fmt: str,
    policy: ObjectPolicy = INTENDED,
    invariants: tuple[str, ...] = tuple(KEPT),
    timeout_s: float = 60,
    asked: tuple[str, ...] = (),
) -> Proved:
    """Whether each invariant is kept in a step, on every way, at any place.

    All of `invariants` are supposed before the step; those in `asked` are asked after it, or all.
    """
    wanted = (each for each in asked or invariants if each != _OF_READS or name == orc_guest.LOADED)
    result = dict.fromkeys(wanted, Kept("unsat"))
    guards: frozenset[str] = frozenset()
    said: frozenset[str] = frozenset()
    terms = Terms()
    for way in ways(name, FORMATS[fmt], policy, invariants):
        guards, said = guards | way.guards, said | way.said
        question = functools.cache(functools.partial(lazy.Question, way.conditions, way.labels, terms=terms))
        supposed = _supposed(way)
        for each in result:
            if result[each].result != "unsat":
                continue
            for goal in way.goals[each]:
                answer, leant_on = _at_sight(goal, supposed) or _asked(way, question(), goal, timeout_s)
                result[each] = result[each].and_also(answer, leant_on)
                if answer.result != "unsat":
                    break
    return Proved(result, guards, said)


def _supposed(way: Way) -> dict[int, str]:
    """The labels of what is supposed on a way, part by part, by the numbers of the terms."""
    labelled = zip(way.conditions, way.labels, strict=True)
    return {part.get_id(): label for condition, label in labelled for part in lazy.conjuncts(condition)}


def _at_sight(goal: Goal, supposed: dict[int, str]) -> tuple[Answer, set[str]] | None:
    """That a goal is proved, where one sees it: what hasn't been touched is as it was, and equal to itself."""
    label = supposed.get(goal.condition.get_id())
    if label is None and not z3.is_true(z3.simplify(goal.condition)):
        return None
    return Answer("unsat", 0.0), {label} if label else set()


_BRIEFLY_S = (12.0, 12.0)
"""How long a goal is asked in cases, and in cases and parts, before what gave no answer is asked to the end."""


def _asked(way: Way, question: lazy.Question, goal: Goal, timeout_s: float) -> tuple[Answer, set[str]]:
    """Whether a goal can fall, and what that leans on.

    It is asked in cases; then also in parts, at last with all hypotheses at once.
    """
    question.leant_on.clear()
    seconds = 0.0
    pending = [(goal.condition, case) for case in cases_of(way, goal)]
    for step, limit in enumerate((*_BRIEFLY_S, timeout_s)):
        if step == 1:
            pending = [(each, case) for part, case in pending for each in clauses(z3.simplify(part))]
        still_open = []
        for part, case in pending:
            answer = question.ask(part, min(limit, timeout_s), case, grows=step < len(_BRIEFLY_S))
            seconds += answer.seconds
            if answer.result == "unknown" and step == len(_BRIEFLY_S):
                answer = _at_once(way, part, case, timeout_s)
                seconds += answer.seconds
                question.leant_on |= set(way.labels) - {""}
            if answer.result == "sat" or (answer.result == "unknown" and step == len(_BRIEFLY_S)):
                return replace(answer, seconds=seconds), set(question.leant_on)
            if answer.result == "unknown":
                still_open.append((part, case))
        pending = still_open
        if not pending:
            break
    return Answer("unsat", seconds), set(question.leant_on)


def cases_of(way: Way, goal: Goal) -> Iterator[tuple[z3.BoolRef, ...]]:
    """The cases in which a goal is asked: each symbol of its place is one that was written to, the first such, or none."""
    names = lazy.symbols(goal.condition)
    concerned = (each for name, each in way.cases.items() if name in names and (name != "any_granule" or _HELD in names))
    for chosen in itertools.product(*map(_one_of, concerned)):
        yield tuple(itertools.chain.from_iterable(chosen))


_HELD = "memory_tags"
"""The symbol of what granules hold."""


def _one_of(conditions: tuple[z3.BoolRef, ...]) -> list[tuple[z3.BoolRef, ...]]:
    """That the first of some conditions holds; the second, but not the first; and so on; that none does."""
    none = [z3.Not(each) for each in conditions]
    return [(*none[:place], each) for place, each in enumerate(conditions)] + [tuple(none)]


def clauses(goal: z3.BoolRef) -> Iterator[z3.BoolRef]:
    """Goals without conjunctions that together are a goal: conjunctions within disjunctions are taken apart, all of them."""
    if z3.is_and(goal):
        for each in goal.children():
            yield from clauses(each)
        return
    parts = list(_disjuncts(goal))
    place = next((number for number, each in enumerate(parts) if z3.is_and(each)), None)
    if place is None:
        yield goal
        return
    others = parts[:place] + parts[place + 1 :]
    for each in parts[place].children():
        yield from clauses(z3.Or(*others, each))


def _disjuncts(goal: z3.BoolRef) -> Iterator[z3.BoolRef]:
    """The parts of a disjunction."""
    if not z3.is_or(goal):
        yield goal
        return
    for each in goal.children():
        yield from _disjuncts(each)


def _at_once(way: Way, part: z3.BoolRef, case: tuple[z3.BoolRef, ...], timeout_s: float) -> Answer:
    """Whether a part of a goal can fall in a case, by a solver that knows all hypotheses."""
    start, solver = time.perf_counter(), z3.SolverFor("QF_AUFBV")
    solver.set("timeout", int(1000 * timeout_s))
    solver.add(*way.conditions, *case, z3.Not(part))
    found = solver.check()
    return Answer(str(found), time.perf_counter() - start, reason=solver.reason_unknown() if found == z3.unknown else "")
