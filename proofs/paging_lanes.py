"""Theorems on the fast path's walker: a whole walk, level by level, is the reference's, on any contents of memory.

The reference walks step by step, the fast path a level of many walks at a time; both are executed on the same symbols. Of a
block one walk is looked at, and of the others nothing is known. Memory is a table that holds anything. These walks set no
bits: of the reference, in a memory whose entries have their accessed and dirty bits, which the fast path doesn't look at.

What isn't executed is tested: look-ups of tags, walks that set bits, how dimensions of nested walks are put together, how
walks are cut into blocks, and how one system's part is found in the memory of several.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import z3

from capvisor.fastpath import memory as fast_memory
from capvisor.fastpath import paging as fast
from capvisor.model import paging
from capvisor.model.bits import not_, select
from capvisor.model.paging import DONE, Direct, Fault, Walk
from capvisor.proofs.afresh import asked_of, explore, suppose
from capvisor.proofs.incremental import Way
from capvisor.proofs.shaped import Shaped, any_of, symbolic_numpy
from capvisor.proofs.steps import Proved
from capvisor.proofs.symarray import lane
from capvisor.proofs.symbolic import SymBool, SymInt, as_int, term_of
from capvisor.proofs.theorem import Given, implies
from capvisor.proofs.tpt_state import AnyWords
from capvisor.spec.paging import (
    FRAME_SHIFT,
    INDEX_BITS,
    LEVELS,
    WORDS_PER_FRAME,
    Access,
    Entry,
    Mode,
)
from capvisor.spec.tpt import MAX_FRAMES, FaultKind

SAME = "same"
"""What is asked: that walks end alike, have read as many words, and leave the same memory."""

WALKS = ("lanes_walk_native", "lanes_walk_host")
"""The theorems, by name: native walks, and those of the host's tables within nested ones."""


def steps() -> dict[str, str]:
    """The theorems, by name, with their kind."""
    return dict.fromkeys(WALKS, "fast path")


# -- memory of both --------------------------------------------------------------------------------------------------------


class _UsedWords(AnyWords):
    """Memory in which all entries have been used, and all pages written to, so that walks set no bits."""

    def get(self, frame: Any, index: Any) -> Any:
        """The word of a frame, with its accessed and dirty bits."""
        return super().get(frame, index) | Entry.A.value | Entry.D.value


class _Words:
    """The fast path's memory of one system, which holds what the reference's does: its words in a row."""

    def __init__(self, words: AnyWords, frames: Any) -> None:
        self._words, self._frames = words, frames

    def reshape(self, _shape: int) -> "_Words":
        """It is in a row."""
        return self

    def _is_inside(self, index: Any) -> Any:
        return index < self._frames << INDEX_BITS

    def read(self, index: Any) -> Any:
        """A word; of an index beyond the last, any."""
        word = self._words.get(index >> INDEX_BITS, index & WORDS_PER_FRAME - 1)
        other = SymInt(z3.ZeroExt(1, z3.FreshConst(z3.BitVecSort(64), "another")), 0, (1 << 64) - 1)
        return select(self._is_inside(index), word, other)

    def write(self, index: Any, value: Any, where: Any) -> None:
        """Replace a word; beyond the last one nothing is written."""
        frame, word = index >> INDEX_BITS, index & WORDS_PER_FRAME - 1
        self.is_inside = self.is_inside & implies(where, self._is_inside(index))
        self._words.set(frame, word, select(where, value, self._words.get(frame, word)))

    is_inside: Any = True

    def get(self, frame: Any, index: Any) -> Any:
        """The word of a frame."""
        return self._words.get(frame, index)


def _number(array: Shaped) -> Any:
    (term,) = array.cells
    if array.dtype == np.bool_:
        return SymBool(term)
    return SymInt(z3.ZeroExt(1, term), 0, (1 << term.size()) - 1)


def _put(array: Shaped, value: Any) -> None:
    array.cells[0] = term_of(value) if array.dtype == np.bool_ else as_int(value).at(array.cells[0].size())


@contextmanager
def _tables() -> Iterator[None]:
    """Let kernels read and write tables that are functions."""

    def gather(table: Any, index: Shaped, out: Shaped) -> None:
        _put(out, table.read(_number(index)))

    def scatter(table: Any, index: Shaped, values: Shaped, where: Shaped) -> None:
        table.write(_number(index), _number(values), _number(where))

    originals = fast_memory.gather, fast_memory.scatter
    fast_memory.gather, fast_memory.scatter = gather, scatter  # type: ignore[assignment]
    try:
        with symbolic_numpy(fast):
            yield
    finally:
        fast_memory.gather, fast_memory.scatter = originals


# -- a walk on both --------------------------------------------------------------------------------------------------------


class _Asked:
    """What a walk is asked: any address, root and access, in any memory."""

    def __init__(self, given: Given) -> None:
        self.address, self.root = given.word("address", 64), given.word("root", 64)
        self.access, self.is_user = given.word("access", 2), given.flag("is_user")
        frames = given.word("frames", 21)
        given.assume((self.access <= Access.FETCH) & (frames >= 1) & (frames <= MAX_FRAMES))
        self.frames = SymInt(frames.term, 1, MAX_FRAMES)
        self.place = given.word("any_frame", 40), given.word("any_index", 9)
        given.assume(self.place[0] < self.frames)
        self.memory = _UsedWords("memory", lambda: self.frames)
        self.words = _Words(AnyWords("memory", lambda: self.frames), self.frames)

    def block(self, translation: fast.Translation) -> fast.Block:
        """A block of the fast path's with this walk."""
        space = fast.Memory(self.words, np.zeros((1, 1), np.uint32))  # type: ignore[arg-type]
        block = fast.Block(space, translation, (fast.Way(1), fast.Way(1)), fast.outcomes(1))
        block.frames = self.frames
        access = Shaped([z3.Extract(7, 0, lane(self.access).term)], np.uint8)
        fast.needed_rights(access, any_of(self.is_user), block.way.needed)  # type: ignore[arg-type]
        return block

    def same_memory(self) -> Any:
        """Whether both have the same word at any place."""
        bits = Entry.A.value | Entry.D.value
        return (self.words.get(*self.place) | bits == self.memory.get(*self.place)) & self.words.is_inside


def _walked(space: Any, asked: _Asked, levels: int) -> Walk | Fault:
    """The reference's walk."""
    try:
        if not paging.is_canonical(asked.address, levels):
            return Fault(FaultKind.GENERAL)
        walk = paging.begin(space, paging.cut(asked.address, levels), asked.access, asked.is_user)
        while walk.stage != DONE:
            walk = paging.advance(space, walk)
    except Fault as fault:
        return fault
    return walk


def _same_end(ended: Walk | Fault, space: Any, asked: _Asked, out: fast.Outcome) -> Any:
    physical, fault, detail, references, lookups, level = (_number(column) for column in out)  # type: ignore[arg-type]
    holds = (references == len(space.references)) & (lookups == 0)
    if isinstance(ended, Fault):
        expected = ended.code if ended.kind is FaultKind.PAGE else ended.frame
        return holds & (fault == int(ended.kind)) & (detail == expected) & (physical == 0)
    reached = paging.addressed_frame(ended) << FRAME_SHIFT | asked.address & (1 << FRAME_SHIFT) - 1
    return holds & (fault == int(FaultKind.NONE)) & (detail == 0) & (physical == reached) & (level == ended.leaf_level)


def _native(asked: _Asked, translation: fast.Translation) -> Any:
    """A native walk."""
    levels = translation.levels
    space = Direct(asked.memory, paging.named_frame(asked.root), levels)
    ended = _walked(space, asked, levels)
    with _tables():
        block = asked.block(translation)
        block.walk(any_of(asked.address), any_of(asked.root))  # type: ignore[arg-type]
    return _same_end(ended, space, asked, block.out) & asked.same_memory()


def _host(asked: _Asked, translation: fast.Translation) -> Any:
    """A walk of the host's tables, as `Block.nested` makes it: one of a user."""
    levels = translation.levels
    space = paging._HostTables(asked.memory, paging.named_frame(asked.root), levels)
    ended: Walk | Fault
    try:
        ended = paging.translate(space, paging.cut(asked.address, levels), asked.access, True)
    except Fault as fault:
        ended = fault
    with _tables():
        block = asked.block(translation)
        way, inner = block.way, block.inner
        np.bitwise_and(any_of(asked.root), fast._FRAME, out=inner.table)  # type: ignore[call-overload]
        np.bitwise_or(way.needed, fast.Entry.US.value, out=inner.needed)  # type: ignore[call-overload]
        inner.walking.fill(True)
        block.descend(inner, levels, any_of(asked.address), None)  # type: ignore[arg-type]
        found = block.way.read
        fast.page_address(inner.entry, any_of(asked.address), inner.offset_mask, inner.scratch[0], found)  # type: ignore[arg-type]
    holds = (_number(block.out.references) == len(space.references)) & asked.same_memory()  # type: ignore[arg-type]
    # Page faults of this dimension are the caller's.
    holds = holds & (_number(block.out.fault) == int(FaultKind.NONE)) & (_number(block.out.lookups) == 0)  # type: ignore[arg-type]
    if isinstance(ended, Fault):
        return holds & not_(_number(inner.arrived))  # type: ignore[arg-type]
    reached = paging.addressed_frame(ended) << FRAME_SHIFT | asked.address & (1 << FRAME_SHIFT) - 1
    holds = holds & _number(inner.arrived) & (_number(inner.level) == ended.leaf_level)  # type: ignore[arg-type]
    return holds & (_number(found) == reached)  # type: ignore[arg-type]


# -- theorems --------------------------------------------------------------------------------------------------------------


def ways(name: str, levels: int) -> list[Way]:
    """Every way through a walk on both, of so many levels."""
    translation = fast.Translation(Mode.NATIVE, levels)

    def run() -> Any:
        given = _Supposing()
        asked = _Asked(given)
        return (_native if name == WALKS[0] else _host)(asked, translation)

    return [_way(path) for path in explore(run)]


class _Supposing(Given):
    """Supposes on the way that is being executed: others aren't taken."""

    def assume(self, condition: Any) -> None:
        """Suppose it from now on."""
        suppose(condition)


def _way(path: Any) -> Way:
    labels = ("",) * len(path.conditions)
    return Way(path.conditions, {SAME: (term_of(path.result),)}, True, labels, frozenset(), frozenset())


def prove(name: str, timeout_s: float) -> Proved:
    """What is found of a theorem."""
    return asked_of((way for levels in LEVELS for way in ways(name, levels)), (SAME,), timeout_s)
