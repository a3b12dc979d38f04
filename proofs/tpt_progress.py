"""Theorems on progress (T10): every shoot-down ends, what ends enables what comes next, and a walk stops for a cause alone.

A ranking argument. Whom a reclaimed frame waits for is a finite set; no step puts anybody into it while it waits, and an
acknowledgement, which is never refused to one of them, takes that one out (`progress_pending`). So when all have
acknowledged, in any order and with any steps in between, it is empty. Then what the host does with the frame next isn't
refused (`progress_reuse`). And a step of a walk in tables that are the VM's, present and permit the access meets no fault
(`progress_walk`), so that an access to a page that was moved succeeds once the guest has the new number.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from capvisor.model import paging
from capvisor.model.bits import not_, select
from capvisor.proofs import incremental
from capvisor.proofs.incremental import Way, asked_of
from capvisor.proofs.steps import Kept, Proved
from capvisor.proofs.theorem import implies
from capvisor.proofs.tpt_state import AnySystem
from capvisor.spec.paging import (
    FIRST_VM,
    FRAME_NUMBERS,
    FREE,
    WORDS_PER_FRAME,
    Access,
    Entry,
    Mode,
    index_shift,
    reserved,
)
from capvisor.spec.tpt import MAX_VMS, OPERATIONS, SWAP_SLOTS, FaultKind
from capvisor.spec.tpt_invariants import Step

SHRINKS, ENABLED, CAUSED, REACHED = "shrinks", "enabled", "caused", "reached"
"""What is asked: that nobody comes to those whom a frame waits for; that what may be done next isn't refused, and is done;
that a walk's fault has a cause. And that what is supposed for it can be."""

PENDING, REUSE, WALK = "progress_pending", "progress_reuse", "progress_walk"
ASKED = {PENDING: SHRINKS, REUSE: ENABLED, WALK: CAUSED}
"""The theorems, by name, and what each asks."""

WALK_STEPS = ("walk_read", "walk_update")

Goal = Callable[[AnySystem, Step], tuple[Any, Any]]
"""Of a step, when something is asked of it, and what."""
Ways = Callable[[str, Callable[[AnySystem, Step], dict[str, Any]]], list[Way]]
"""Of the name of a step, and of what is asked of it, every way through it."""


def steps() -> dict[str, str]:
    """The theorems, by name, with their kind."""
    return dict.fromkeys(ASKED, "progress")


# -- who has still to acknowledge ------------------------------------------------------------------------------------------


def shrinks(system: AnySystem, step: Step) -> tuple[Any, Any]:
    """That, while a frame waits, nobody comes to those whom it waits for, and one who acknowledges leaves them.

    Reclaiming a frame that waits for nobody is what makes it wait.
    """
    frame = system.place.frame
    before, after = system.first.pending[frame], system.pending[frame]
    begins = False
    if step.name == "reclaim" and step.is_completed:
        begins = (frame == step.operands[0]) & (before == 0)
    holds = begins | (after & ~before == 0)
    if step.name != "acknowledge":
        return before != 0, holds
    vcpu, of = step.operands
    waits = (vcpu < system.vcpu_count) & (of < system.frame_count) & (system.first.pending[of] >> vcpu & 1 != 0)
    leaves = (after == before & ~(1 << vcpu)) & (after < before)
    return waits, holds & implies(waits, step.is_completed) & implies((frame == of) & waits, leaves)


# -- what comes next -------------------------------------------------------------------------------------------------------


def _is_free(first: Any, frame: Any) -> Any:
    """Whether a frame is nobody's, and nobody is waited for."""
    return (frame < first.frame_count) & (first.tags[frame] == FREE) & (first.pending[frame] == 0)


def _may_get(first: Any, frame: Any, vm: Any, guest_frame: Any) -> Any:
    """Whether a clean frame may be given to a VM as a guest frame."""
    known = (vm >= FIRST_VM) & (vm < FIRST_VM + MAX_VMS) & (guest_frame < FRAME_NUMBERS)
    is_ready = _is_free(first, frame) & first.frames[frame].is_clean
    return known & is_ready & first.vms[vm].is_live & not_(first.p2m[vm, guest_frame].is_mapped)


def _is_reclaimed(first: Any, frame: Any) -> Any:
    """Whether a frame is nobody's, and holds what was a VM's."""
    return _is_free(first, frame) & (first.frames[frame].vm >= FIRST_VM)


def _reclaims(first: Any, frame: Any) -> Any:
    return (frame < first.frame_count) & (first.tags[frame] >= FIRST_VM) & not_(first.tags.is_large(frame))


def _migrates(first: Any, source: Any, target: Any) -> Any:
    row = first.frames[source]
    return _is_reclaimed(first, source) & _may_get(first, target, row.vm, row.guest_frame)


def _swaps_out(first: Any, frame: Any, slot: Any) -> Any:
    return _is_reclaimed(first, frame) & (slot < SWAP_SLOTS) & not_(first.swaps[slot].is_live)


def _swaps_in(first: Any, frame: Any, slot: Any) -> Any:
    row = first.swaps[slot]
    return (slot < SWAP_SLOTS) & row.is_live & _may_get(first, frame, row.vm, row.guest_frame)


NEXT: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "split": (
        lambda first, frame: (frame < first.frame_count) & first.tags.is_large(frame),
        lambda system, frame: not_(system.tags.is_large(frame)),
    ),
    "reclaim": (_reclaims, lambda system, frame: system.tags[frame] == FREE),
    "scrub": (
        _is_free,
        lambda system, frame: system.frames[frame].is_clean & (system.memory.get(frame, system.place.word) == 0),
    ),
    "assign": (_may_get, lambda system, frame, vm, _guest_frame: system.tags[frame] == vm),
    "migrate": (_migrates, lambda system, _source, target: system.tags[target] >= FIRST_VM),
    "swap_out": (_swaps_out, lambda system, _frame, slot: system.swaps[slot].is_live),
    "swap_in": (_swaps_in, lambda system, frame, _slot: system.tags[frame] >= FIRST_VM),
}
"""What the host does with a frame, by operation: when that isn't refused, and what it leads to."""


def enabled(system: AnySystem, step: Step) -> tuple[Any, Any]:
    """That an operation of the host's is done where it may be."""
    may_be, leads_to = NEXT[step.name]
    hypothesis = may_be(system.first, *step.operands)
    done = leads_to(system, *step.operands) if step.is_completed else False
    return hypothesis, implies(hypothesis, done)


# -- walks -----------------------------------------------------------------------------------------------------------------


def caused(system: AnySystem, step: Step) -> tuple[Any, Any]:
    """That a fault of a step of a walk has a cause: tables that aren't the VM's, aren't present or don't permit it.

    Of TAG faults T10 says which frame is another's.
    """
    if step.fault is None:
        return True, True
    first, kind, walk = system.first, step.fault.kind, system.stepped
    is_plain = first.vms[step.vm].mode == Mode.NESTED
    if kind is FaultKind.NESTED:
        return True, is_plain & not_(first.p2m[step.vm, step.fault.frame].is_mapped)
    if kind is FaultKind.TAG:
        return True, not_(is_plain)
    table = select(is_plain, first.p2m[step.vm, walk.frame].frame, walk.frame)
    entry = first.memory.get(table, walk.address >> index_shift(walk.level) & WORDS_PER_FRAME - 1)
    is_large = entry & Entry.PS.value != 0
    forbidden = select(is_large, reserved(walk.level, is_leaf=True), reserved(walk.level, is_leaf=False))
    lacks = (walk.access == Access.WRITE) & not_(walk.is_writable & (entry & Entry.RW.value != 0))
    lacks = lacks | (walk.access == Access.FETCH) & not_(walk.is_executable & (entry & Entry.NX.value == 0))
    lacks = lacks | walk.is_user & not_(walk.is_user_page & (entry & Entry.US.value != 0))
    cause = (entry & Entry.P.value == 0) | (entry & forbidden != 0) | paging.is_leaf(entry, walk.level) & lacks
    return True, cause & (kind is FaultKind.PAGE)


# -- theorems --------------------------------------------------------------------------------------------------------------


STEPS: dict[str, tuple[str, ...]] = {PENDING: (*WALK_STEPS, *OPERATIONS), REUSE: tuple(NEXT), WALK: WALK_STEPS}
GOALS: dict[str, Goal] = {PENDING: shrinks, REUSE: enabled, WALK: caused}
"""Of each theorem the steps that it is about, and what it asks of each."""


def prove(name: str, ways: Ways, timeout_s: float) -> Proved:
    """What is found of a theorem."""
    names, goal = STEPS[name], GOALS[name]

    def goals(system: AnySystem, step: Step) -> dict[str, Any]:
        hypothesis, holds = goal(system, step)
        return {ASKED[name]: holds, REACHED: hypothesis}

    by_step = {step: ways(step, goals) for step in names}
    found = asked_of((way for step in names for way in by_step[step]), (ASKED[name],), timeout_s)
    is_reached = all(any(can_be(way, timeout_s) for way in _completed(by_step[step])) for step in names)
    # Of other guards than the variant nothing is said here but under the policy that is asked for.
    known = found.guards & {"tag_check"}
    return replace(found, guards=known, kept=found.kept | {REACHED: Kept("unsat" if is_reached else "sat")})


def _completed(ways: list[Way]) -> list[Way]:
    """The ways on which a step is done; of one that never is, all."""
    return [way for way in ways if way.is_completed] or ways


def can_be(way: Way, timeout_s: float) -> bool:
    """Whether what is supposed of a step can hold on a way."""
    return incremental.can_hold(replace(way, conditions=(*way.conditions, *way.goals[REACHED])), timeout_s)
