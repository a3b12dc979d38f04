"""Theorems on shared objects: each step of the system keeps each invariant of `spec.orc_invariants`.

A step is any instruction of a guest, in its tenant's code or in an object's, or an operation. It is executed once by the
reference, from any state that the invariants allow (`proofs.orc_state`), along all its ways; then each invariant is asked of
any place: the thread that acts, another one, one that was started, any granule, slot, mapping and tenant.
"""

import time
from dataclasses import replace
from typing import Any

import z3

from capvisor.model import isa as _rules  # declares the rules
from capvisor.model import object_operations
from capvisor.proofs import contracts, lazy, orc_guest, symbolic
from capvisor.proofs.orc_state import IDENTITY_BITS, INDUCTIVE, TENANT_BITS, AnyObjects, minting
from capvisor.proofs.solve import Answer
from capvisor.proofs.state import any_operands
from capvisor.proofs.steps import Kept, Proved
from capvisor.proofs.symbolic import term_of
from capvisor.proofs.theorem import Given
from capvisor.proofs.ways import Cases, Goal, Way, ask, parts_of, which
from capvisor.spec.formats import FORMATS, CapabilityFormat
from capvisor.spec.guest import APART
from capvisor.spec.object_policy import INTENDED, ObjectPolicy
from capvisor.spec.orc import NOBODY, OPERATIONS, Actor, Code, OperandKind
from capvisor.spec.orc_invariants import ORC_INVARIANTS, SOUND, Place, Step

assert _rules

BASE = "initial"
"""The base case among the steps: a system without tenants, and memory that holds anything sound."""

KEPT = {**ORC_INVARIANTS, SOUND.name: SOUND}
"""What each step is to keep."""


def steps() -> dict[str, str]:
    """The steps that are all of them, by name, with their kind."""
    return {
        BASE: "base",
        orc_guest.NAME: "instruction",
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
    threads = [*monitor.threads.looked_at, *monitor.threads.started]
    places = [
        any_one,
        *(any_one._replace(tenant=each.tenant, thread=each, register=register, granule=None) for each in threads),
    ]
    goals = {each: tuple(KEPT[each].holds(step, place) for place in places) for each in invariants}
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
        ("any_tenant", place.tenant, tenants),
    )
    found = {name: which(symbol, numbers) for name, symbol, numbers in written}
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
    result = dict.fromkeys(asked or invariants, Kept("unsat"))
    guards: frozenset[str] = frozenset()
    said: frozenset[str] = frozenset()
    for way in ways(name, FORMATS[fmt], policy, invariants):
        guards, said = guards | way.guards, said | way.said
        question = lazy.Question(way.conditions, way.labels)
        for each in result:
            if result[each].result != "unsat":
                continue
            for goal in way.goals[each]:
                answer, leant_on = _asked(way, question, goal, timeout_s)
                result[each] = result[each].and_also(answer, leant_on)
                if answer.result != "unsat":
                    break
    return Proved(result, guards, said)


_BRIEFLY_S = 3.0
"""How long a goal is asked lazily, and then of a solver that knows all hypotheses, before it is asked case by case."""


def _asked(way: Way, question: lazy.Question, goal: Goal, timeout_s: float) -> tuple[Answer, set[str]]:
    """Whether a goal can fall, and what that leans on. Values that make it fall are found with all hypotheses at once."""
    question.leant_on.clear()
    answer = question.ask(goal.condition, min(_BRIEFLY_S, timeout_s))
    if answer.result == "unknown":
        start, solver = time.perf_counter(), z3.SolverFor("QF_AUFBV")
        solver.set("timeout", int(1000 * min(3 * _BRIEFLY_S, timeout_s)))
        solver.add(*way.conditions, z3.Not(goal.condition))
        found = str(solver.check())
        seconds = answer.seconds + time.perf_counter() - start
        if found != "unknown":
            return Answer(found, seconds), set(way.labels) - {""}
        answer = ask(way, question, goal, timeout_s, lambda _label: 0)
        answer = replace(answer, seconds=answer.seconds + seconds)
    return answer, set(question.leant_on)
