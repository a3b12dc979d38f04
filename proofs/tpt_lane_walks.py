"""Walks on both implementations of translation pass-through: one step of any walk, and what stands for a whole one.

A step of a walk is executed by both (`stepped_step_walk` and its parts, by stage and level), and is asked to lead both to
the same state and walk, or fault, and to change nothing but memory, page-walk caches and which slot of these is filled next.
By induction on its steps a whole walk that begins alike (`lanes_begin_walk`) then does so too: `by_steps` lets both end in
any such state, the same in both, and `stepped_load`, `stepped_store` and `stepped_fetch` go on from there.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import z3

from capvisor.fastpath import hosts, tpt, walks
from capvisor.fastpath.walks import WALK, Walks
from capvisor.model import paging
from capvisor.model.bits import not_
from capvisor.model.paging import DONE, UPDATE, Fault, Walk
from capvisor.proofs import shaped
from capvisor.proofs.afresh import suppose
from capvisor.proofs.shaped import Shaped, any_of
from capvisor.proofs.symbolic import SymBool, SymInt
from capvisor.proofs.theorem import implies
from capvisor.proofs.tpt_state import FRAME_BITS, AnyTags
from capvisor.spec.paging import LARGEST_LEAF, LEVELS, Access, Entry, frames_of
from capvisor.spec.tpt import FaultKind

RUNS = tuple(frames_of(level) for level in range(2, LARGEST_LEAF + 1))
"""How many frames there are in runs of which it is asked whether all have one owner."""

ERROR_BITS = 5
WALK_FAULTS = (FaultKind.PAGE, FaultKind.TAG, FaultKind.NESTED)


def one_of(number: Any, values: Sequence[int]) -> int:
    """Which of some values a number is, each a way of its own; where it's none of those before, the last one."""
    return next((value for value in values[:-1] if number == value), values[-1])


def walk_in_range(walk: Walk) -> Any:
    """Whether a walk is one that there is, if it is live."""
    at_page = (walk.level == 1) | (walk.level <= LARGEST_LEAF) & (walk.entry & Entry.PS.value != 0)
    has_page = (walk.stage == DONE) | (walk.stage == UPDATE) & at_page
    in_range = (walk.level >= 1) & (walk.level <= LEVELS[-1]) & (walk.access <= Access.FETCH) & (walk.stage <= DONE)
    in_range = in_range & ((walk.leaf_level >= 1) == has_page) & (walk.leaf_level <= LARGEST_LEAF)
    return implies(walk.is_live, in_range)


# -- runs of frames --------------------------------------------------------------------------------------------------------


class RunTags(AnyTags):
    """The reference's tags: that all frames of a run are one owner's is any truth value, which `any_of_runs` is about."""

    def owned(self, base: Any, count: int, owner: Any) -> Any:
        """As TagTable.owned."""
        return self._of_run(base, count, lambda frame: self._system.first.tags.tags[frame] == owner)

    def uniform(self, base: Any, count: int, owner: Any) -> Any:
        """As TagTable.uniform."""
        return self._of_run(base, count, lambda frame: self._system.first.tags.looked_up(frame) == owner)

    def _of_run(self, base: Any, count: int, holds: Callable[[Any], Any]) -> Any:
        system: Any = self._system
        assert count in RUNS and system.run is None
        system.run = base, count, holds
        return (base + count <= self.frames) & not_(system.is_mixed)


@contextmanager
def any_of_runs(system: Any, lane: Any) -> Iterator[None]:
    """Let a kernel look at any one frame of a run, instead of at each, and compare it with what the reference asks of it.

    Where all frames compare alike, both find alike whether there is one that differs: that is then the same truth value.
    """
    numbers = {size: system.given.word(f"any_of_{size}", size.bit_length() - 1) for size in RUNS}
    looked_at: list[int] = []

    class Run(shaped.Numpy):
        @staticmethod
        def arange(size: int, dtype: Any = np.int64) -> Shaped:
            looked_at.append(size)
            return any_of(numbers[size]).astype(dtype)

        class logical_or:  # noqa: N801 - numpy's name
            @staticmethod
            def reduce(others: Any, axis: int) -> Any:
                if not looked_at:
                    return np.logical_or.reduce(others, axis=axis)
                size = looked_at.pop()
                if not len(others):
                    return Shaped(np.empty(0, object), np.bool_)
                assert others.shape == (1, 1) and axis == 1
                if system.run is not None:
                    base, count, holds = system.run
                    assert count == size
                    lane.within.append(SymBool(others.cells[0, 0]) == not_(holds(base + numbers[size])))
                return Shaped([system.is_mixed.term], np.bool_)

    before = {module: vars(module)["np"] for module in (hosts, tpt)}
    for module in before:
        vars(module)["np"] = Run()
    try:
        yield
    finally:
        for module, own in before.items():
            vars(module)["np"] = own


# -- one step of a walk ----------------------------------------------------------------------------------------------------


@contextmanager
def one_step(system: Any, stage: int, level: int) -> Iterator[None]:
    """Let the reference step a walk of a stage and level, as the one under way is supposed to be, and note what changes."""
    original = paging.advance

    def advance(space: Any, walk: Walk) -> Walk:
        walk = walk._replace(stage=stage, level=level)
        system.apart = False
        try:
            after = original(space, walk)
        except Fault:
            system.apart = system.is_apart(space.vcpu)
            raise
        same = (after.address == walk.address) & (after.access == walk.access) & (after.is_user == walk.is_user)
        system.apart = system.is_apart(space.vcpu) & same & after.is_live
        return after

    paging.advance = advance
    try:
        yield
    finally:
        paging.advance = original


# -- whole walks -----------------------------------------------------------------------------------------------------------


class Walked:
    """A walk that the reference has made, by steps: of what, and how it has ended."""

    def __init__(self) -> None:
        self.asked: tuple[Any, ...] | None = None
        self.end: Walk | Fault | None = None


@contextmanager
def by_steps(system: Any, walked: Walked) -> Iterator[None]:
    """Let the reference's walks lead to any state, and to any walk that is done or any fault."""

    def translate(space: Any, address: Any, access: Any, is_user: Any) -> Walk:
        assert walked.asked is None
        walked.asked = space.vcpu, address, access, is_user
        system.forget_walked()
        if system.fresh_flag("faults"):
            kind = WALK_FAULTS[one_of(system.fresh("fault", 2), range(len(WALK_FAULTS)))]
            walked.end = Fault(kind, system.fresh("error", ERROR_BITS), system.fresh("fault_frame", FRAME_BITS))
            raise walked.end
        found = system.any_walk("walk")._replace(is_live=True, address=address, access=access, is_user=is_user, stage=DONE)
        suppose(walk_in_range(found))
        walked.end = found._replace(leaf_level=one_of(found.leaf_level, range(1, LARGEST_LEAF + 1)))
        return walked.end

    original = paging.translate
    paging.translate = translate
    try:
        yield
    finally:
        paging.translate = original


@contextmanager
def ended_alike(
    lane: Any, walked: Walked, lane_after: Callable[[], Any], columns_of: Callable[[Walk], Any]
) -> Iterator[None]:
    """Let the fast path's walks lead where the reference's have: both must be of the same vCPU, address and access.

    What a fault makes one forget is forgotten by the fast path's own code.
    """

    def begun(who: Any, address: Any, access: Any, is_user: Any) -> Walks:
        made = Walks(who, {name: shaped._filled(len(who.lanes), 0, kind) for name, kind in WALK.items()})
        made["address"][:], made["access"][:], made["is_user"][:] = address, access, is_user
        return made

    def run(self: Walks) -> Any:
        nobody, everybody = shaped.made_of(np.arange(0)), shaped.made_of(np.arange(1))
        if not len(self.who.lanes):
            return nobody
        if walked.asked is None:
            # The reference has walked on every such way.
            lane.within.append(False)
            return nobody
        own = (self.who.vcpus, self["address"], self["access"], self["is_user"])
        for one, other in zip(own, walked.asked, strict=True):
            lane.within.append(_only(one) == other)
        after = lane_after()
        lane.words, lane.caches = after.words, after.caches
        if isinstance(walked.end, Fault):
            fault = walked.end
            self.refuse(everybody, fault.kind, any_of(fault.frame), any_of(fault.code))  # type: ignore[arg-type]
            return nobody
        self.put(everybody, **columns_of(walked.end))  # type: ignore[arg-type]
        return everybody

    originals = {name: vars(Walks)[name] for name in ("begun", "run")}
    walks.Walks.begun, walks.Walks.run = staticmethod(begun), run  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(walks.Walks, name, original)


def _only(array: Any) -> Any:
    (term,) = array.cells
    return SymBool(term) if array.dtype == np.bool_ else SymInt(z3.ZeroExt(1, term), 0, (1 << term.size()) - 1)
