"""Theorems on translation pass-through: each step of the system keeps each invariant of `spec.tpt_invariants`.

A step is any operation, or one step of a walk within one. It is executed once by the reference, from any state that the
invariants allow (`proofs.tpt_state`), along all its ways; then each invariant is asked of any place.

A walk is taken step by step: one step of any walk (`walk_read`, `walk_update`) keeps the invariants and what they say of the
walk. By induction so do as many steps as there are; the operations that walk start from whatever that leads to.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import z3

from capvisor.model import paging
from capvisor.model.bits import not_
from capvisor.model.paging import DONE, READ, UPDATE, Fault, Walk
from capvisor.model.tpt import Refused
from capvisor.model.tpt_system import perform
from capvisor.proofs import lazy, paging_lanes, symbolic, tpt_lanes, tpt_progress
from capvisor.proofs import paging as walks
from capvisor.proofs.incremental import Way, asked_of
from capvisor.proofs.steps import Proved
from capvisor.proofs.symbolic import term_of
from capvisor.proofs.theorem import Given, implies
from capvisor.proofs.tpt_state import FRAME_BITS, OPERAND_BITS, VCPU_BITS, AnySystem, Known, stays
from capvisor.spec.paging import FREE, LARGEST_LEAF, LEVELS, frames_of
from capvisor.spec.tag_policy import INTENDED, TagCheck, TagPolicy
from capvisor.spec.tpt import OPERATIONS, Code, FaultKind
from capvisor.spec.tpt_invariants import TPT_INVARIANTS, Step, walk_in_range, walk_is_left

BASE = "start"
"""The base case among the steps: the system as it is made."""

WALK_STEPS = {"walk_read": READ, "walk_update": UPDATE}
"""One step of a walk within an operation: what it does."""

TOUCHED, APART = "touched", "apart"
KEPT = (*TPT_INVARIANTS, TOUCHED, APART)
"""What is asked of steps: the invariants; that no word of memory changes but those that the step says it touches; and, of a
step of a walk, that it changes nothing but memory, page-walk caches and which slot of these is filled next."""

LEANS_ON = {
    **dict.fromkeys(("load", "store", "fetch"), ("begin_walk", *WALK_STEPS)),
    "step_walk": tuple(WALK_STEPS),
    tpt_progress.PENDING: ("begin_walk", *WALK_STEPS),
    **tpt_lanes.LEANS_ON,
}
"""What a step leans on: the steps of the walks that it makes."""


def steps() -> dict[str, str]:
    """The steps, by name, with their kind; and the theorems on whole walks."""
    kinds = {name: row.actor.value for name, row in OPERATIONS.items()}
    return {BASE: "base", **dict.fromkeys(WALK_STEPS, "walk"), **kinds, **walks.steps(), **tpt_progress.steps()}


def all_steps() -> dict[str, str]:
    """Those, and that operations and walks of the fast path are the reference's."""
    return {**steps(), **tpt_lanes.steps(), **paging_lanes.steps()}


def variants(name: str) -> tuple[str, ...]:
    """The variants of the tag check that a step is proved in."""
    return (walks.BOTH,) if name in (*walks.steps(), *paging_lanes.steps()) else get_args(TagCheck)


# -- walks -----------------------------------------------------------------------------------------------------------------


@contextmanager
def by_steps(system: AnySystem) -> Iterator[None]:
    """Let what is proved of one step of a walk stand for walks: they lead to any state that it allows, or to a fault."""

    def ended(space: Any, walk: Walk, *, is_whole: bool) -> Walk:
        system.forget_walked()
        if system.fresh_flag("faults"):
            raise _any_fault(system, space.row.vm)
        found = system.any_walk("walk")._replace(
            is_live=True, address=walk.address, access=walk.access, is_user=walk.is_user
        )
        if not is_whole:
            system.suppose_walk(space.vcpu, found, is_whole=False)
            return found
        found = found._replace(stage=DONE)
        system.suppose_walk(space.vcpu, found, is_whole=True)
        return found._replace(leaf_level=system.narrow(found.leaf_level, 1, LARGEST_LEAF))

    def translate(space: Any, address: int, access: int, is_user: bool) -> Walk:
        return ended(space, Walk(True, address, access, is_user), is_whole=True)

    def advance(space: Any, walk: Walk) -> Walk:
        return ended(space, walk, is_whole=False)

    originals = {name: getattr(paging, name) for name in ("translate", "advance")}
    vars(paging).update(translate=translate, advance=advance)
    try:
        yield
    finally:
        vars(paging).update(originals)


def _any_fault(system: AnySystem, vm: Any) -> Fault:
    """Any fault of a walk: of a tag fault, what T10 says."""
    if not system.fresh_flag("faults_on_tag"):
        return Fault(FaultKind.PAGE)
    level = _one_of(system.fresh("fault_level", 2), range(1, LARGEST_LEAF + 1))
    frame = system.fresh("fault_frame", FRAME_BITS)
    system.given.assume(not_(system.tags.owned(frame, frames_of(level), vm)))
    return Fault(FaultKind.TAG, frame=frame, level=level)


def _one_of(number: Any, values: range) -> int:
    """Which of some values a number is; where it's none of those before, the last one."""
    return next((value for value in values[:-1] if number == value), values[-1])


def _step_of_walk(system: AnySystem, stage: int) -> tuple[Step, dict[str, Any]]:
    """A step of any walk, and what is to be shown beside the invariants."""
    vcpu, walk = system.given.word("vcpu", VCPU_BITS), system.any_walk("walk")
    system.given.assume((vcpu < system.vcpu_count) & walk.is_live & (walk.stage == stage))
    system.begin()
    system.suppose_walk(vcpu, walk, is_whole=False)
    system.given.assume(system.vcpus[vcpu].vm != FREE)
    try:
        row, _vm = system.running(vcpu)
    except Refused:
        return Step(system, "step_walk", (vcpu,), Code.NO_VM), {APART: False}
    levels = range(1, LEVELS[-1] + 1)
    level = system.narrow(walk.level, levels[0], levels[-1])
    walk = system.stepped = walk._replace(is_live=True, stage=stage, level=_one_of(level, levels))
    fault, after = None, None
    try:
        after = paging.advance(system.space(vcpu), walk)
    except Fault as raised:
        fault = raised
    beside: dict[str, Any] = {APART: system.is_apart(vcpu)}
    if after is not None:
        beside["T3"] = walk_is_left(system, vcpu, after, system.place.frame)
        beside["T13"] = walk_in_range(system, vcpu, after)
        beside["T1"] = implies(stays(system, vcpu, walk, system.place.frame), stays(system, vcpu, after, system.place.frame))
        same = (after.address == walk.address) & (after.access == walk.access)
        beside[APART] = beside[APART] & same & (after.is_user == walk.is_user) & after.is_live
    logs = tuple(system.touches), tuple(system.retags), tuple(system.handled)
    return Step(system, "step_walk", (vcpu,), Code.OK, fault, None, row.vm, *logs), beside


# -- steps -----------------------------------------------------------------------------------------------------------------


def _take(system: AnySystem, name: str) -> tuple[Step, dict[str, Any]]:
    """The step of that name, and what is to be shown of it beside the invariants."""
    if name == BASE:
        system.make_new()
        return Step(system, BASE), {}
    if name in WALK_STEPS:
        return _step_of_walk(system, WALK_STEPS[name])
    operands = [system.given.word(each, OPERAND_BITS[kind]) for each, kind in OPERATIONS[name].operands]
    system.begin()
    if name not in LEANS_ON:
        return perform(system, name, *operands), {}
    with by_steps(system):
        return perform(system, name, *operands), {}


def touched(system: AnySystem, step: Step) -> Any:
    """Whether a word of memory is as it was, or one that the step says it has touched or handled."""
    frame, word = system.place.frame, system.place.word
    holds = system.memory.get(frame, word) == system.first.memory.get(frame, word)
    for touch in step.touches:
        if touch.is_write is not False:
            holds = holds | touch.is_write & (touch.frame == frame) & (touch.word == word)
    for handled in step.handled:
        holds = holds | (handled.frame == frame)
    return holds


def ways(
    name: str,
    policy: TagPolicy = INTENDED,
    invariants: tuple[str, ...] = KEPT,
    progress: Callable[[AnySystem, Step], dict[str, Any]] | None = None,
) -> list[Way]:
    """Every way through a step, with the goals of some of what is asked of steps, or else of what is asked of progress."""
    attempts: list[AnySystem] = []
    known = Known()

    def run() -> tuple[bool, dict[str, tuple[z3.BoolRef, ...]], frozenset[str]]:
        system = AnySystem(Given(), policy, invariants, known)
        attempts.append(system)
        step, beside = _take(system, name)
        seen = frozenset(system.guards.seen)
        system.guards.seen.clear()
        if progress is not None:
            goals = {each: [goal] for each, goal in progress(system, step).items()}
        else:
            goals = _asked(system, name, step, invariants, beside)
        if name != BASE:
            system.suppose()
        parts = {each: tuple(part for goal in of for part in lazy.conjuncts(term_of(goal))) for each, of in goals.items()}
        return step.is_completed, parts, seen

    paths = symbolic.explore(run, most=2000)
    found = []
    for path, system in zip(paths, attempts, strict=True):
        completed, goals, guards = path.result
        supposed = system.given.assumptions
        labels = ("",) * len(path.conditions) + tuple(system.labels.get(number, "") for number in range(len(supposed)))
        conditions = (*path.conditions, *map(term_of, supposed))
        found.append(Way(conditions, goals, completed, labels, guards, frozenset(system.guards.seen)))
    return found


def _asked(
    system: AnySystem, name: str, step: Step, invariants: tuple[str, ...], beside: dict[str, Any]
) -> dict[str, list[Any]]:
    """The goals of a step."""
    goals = {each: [TPT_INVARIANTS[each].holds(step, system.place)] for each in invariants if each in TPT_INVARIANTS}
    if name != BASE and TOUCHED in invariants:
        goals[TOUCHED] = [touched(system, step)]
    for each, goal in beside.items():
        if each in invariants:
            goals.setdefault(each, []).append(goal)
    if "T13" in invariants:
        goals["T13"] = [*system.narrowed, *goals["T13"]]
    return goals


def prove(
    name: str,
    policy: TagPolicy = INTENDED,
    invariants: tuple[str, ...] = KEPT,
    timeout_s: float = 60,
    asked: tuple[str, ...] = (),
) -> Proved:
    """Whether each invariant is kept in a step, on every way, at any place.

    All of `invariants` are supposed before the step; those in `asked` are asked after it, or all.
    """
    if name in walks.steps():
        return walks.prove(name, timeout_s)
    if name in tpt_lanes.steps():
        return tpt_lanes.prove(name, policy, timeout_s)
    if name in paging_lanes.steps():
        return paging_lanes.prove(name, timeout_s)
    if name in tpt_progress.steps():
        return tpt_progress.prove(name, lambda step, goals: ways(step, policy, invariants, goals), timeout_s)
    return asked_of(ways(name, policy, invariants), asked or invariants, timeout_s)
