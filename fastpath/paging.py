"""Walks of x86-64 page tables, many at once: the fast twin of `model.paging`.

Kernels take one level of many walks. A walk that has ended keeps its last entry: reading it again changes nothing, so that
no kernel asks which walks are still under way but to count and to write. All tables, the host's too, lie in one memory of
words; a system's frames are one row of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from capvisor.fastpath import memory
from capvisor.fastpath.workspace import Causes, Flags, Shorts, Words
from capvisor.spec import paging
from capvisor.spec.paging import FRAME_SHIFT, FREE, LARGEST_LEAF, WORDS_PER_FRAME, Entry, ErrorCode, Mode, index_shift
from capvisor.spec.tag_policy import INTENDED, TagPolicy
from capvisor.spec.tpt import FaultKind

BLOCK_WALKS = 1 << 12
"""Walks that are worked on at a time: their scratch stays in a core's second-level cache."""

EVERY_RIGHT = int(Entry.RW | Entry.US | Entry.NX)
"""What entries can take away; NX is turned round, so that a bit that is set permits."""

_WORD_SHIFT = 3
_NX_SHIFT = 63
_FRAME = paging.FRAME_FIELD.in_place
_ADDRESS = (1 << paging.PHYSICAL_BITS) - 1


# -- kernels: one level of many walks -------------------------------------------------------------------------------------


def needed_rights(access: Causes | int, is_user: Flags | int, out: Words) -> None:
    """out = the rights that accesses of these kinds need, as bits of an entry, NX meaning that it is executed."""
    table = np.array([0, Entry.RW, Entry.NX], np.uint64)
    np.bitwise_or(table[access], np.where(is_user, np.uint64(Entry.US), np.uint64(0)), out=out)


def is_canonical(address: Words, levels: int, scratch: Words, out: Flags) -> None:
    """out = whether the bits of each address above those that are translated are equal to the highest of these."""
    bits = paging.address_bits(levels)
    np.add(address, 1 << bits - 1, out=scratch)
    np.right_shift(scratch, bits, out=scratch)
    # 0 for the lower half; for the upper one the sum has wrapped round, to 0 too.
    np.equal(scratch, 0, out=out)


def entry_address(table: Words, address: Words, level: int, out: Words) -> None:
    """out = where the entry lies that an address has in a table, given by its base. `out` must not be `table`."""
    np.right_shift(address, index_shift(level) - _WORD_SHIFT, out=out)
    np.bitwise_and(out, paging.WORDS_PER_FRAME - 1 << _WORD_SHIFT, out=out)
    np.bitwise_or(out, table, out=out)


def is_absent(entry: Words, scratch: Words, out: Flags) -> None:
    """out = whether the entry isn't present."""
    np.bitwise_and(entry, int(Entry.P), out=scratch)
    np.equal(scratch, 0, out=out)


def maps_page(entry: Words, level: int, scratch: Words, out: Flags) -> None:
    """out = whether an entry of this level, if it is present, maps a page."""
    if level == 1 or level > LARGEST_LEAF:
        out.fill(level == 1)
        return
    np.bitwise_and(entry, int(Entry.PS), out=scratch)
    np.not_equal(scratch, 0, out=out)


def has_reserved(entry: Words, level: int, is_leaf: Flags, scratch: Words, large: Words, out: Flags) -> None:
    """out = whether a present entry has a reserved bit set, by whether it maps a page."""
    np.bitwise_and(entry, paging.reserved(level, is_leaf=level == 1), out=scratch)
    if 1 < level <= LARGEST_LEAF:
        np.bitwise_and(entry, paging.reserved(level, is_leaf=True), out=large)
        np.copyto(scratch, large, where=is_leaf)
    np.not_equal(scratch, 0, out=out)


def restrict(entry: Words, scratch: Words, rights: Words) -> None:
    """Take away from `rights` what an entry does."""
    np.bitwise_xor(entry, int(Entry.NX), out=scratch)
    np.bitwise_and(rights, scratch, out=rights)


def lacks_right(rights: Words, needed: Words, scratch: Words, out: Flags) -> None:
    """out = whether a right that is needed has been taken away."""
    np.bitwise_and(rights, needed, out=scratch)
    np.not_equal(scratch, needed, out=out)


def error_code(needed: Words, scratch: Words, out: Words) -> None:
    """out = the bits of a page fault's error code that say what the access was. `out` must not be `needed`."""
    # RW and WR, and the two US, are the same bits.
    np.right_shift(needed, _NX_SHIFT, out=scratch)
    np.left_shift(scratch, int(ErrorCode.ID).bit_length() - 1, out=scratch)
    np.bitwise_and(needed, int(ErrorCode.WR | ErrorCode.US), out=out)
    np.bitwise_or(out, scratch, out=out)


def page_address(entry: Words, address: Words, offset_mask: Words, scratch: Words, out: Words) -> None:
    """out = the physical address that an entry that maps a page gives to an address. `out` must be neither."""
    # Where the mask is set the address's bits, elsewhere the frame's.
    np.bitwise_xor(entry, address, out=scratch)
    np.bitwise_and(scratch, offset_mask, out=scratch)
    np.bitwise_xor(entry, scratch, out=out)
    np.bitwise_and(out, _ADDRESS, out=out)


# -- whole walks -----------------------------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """Memory of systems, a row each: words, uint64[systems, frames * 512], and tags, uint32[systems, frames].

    Words outside of memory are 0, and what lies there is owned by nobody.
    """

    words: Words
    tags: Shorts

    @property
    def frames(self) -> int:
        """How many each system has."""
        return int(self.tags.shape[1])


@dataclass(frozen=True)
class Translation:
    """How addresses are translated: the mode, how many levels the guest's and the host's tables have, the tags' guards.

    A shadow walk takes the shadow tables' root; beyond that it is a native one.
    """

    mode: Mode
    levels: int = 4
    nested_levels: int = 4
    policy: TagPolicy = INTENDED
    sets_bits: bool = False
    """Whether walks set accessed and dirty bits."""


class Outcome(NamedTuple):
    """How walks ended, one element a walk.

    `physical` is the address that was reached (0 where there is a fault), `fault` a `FaultKind`, `detail` the error code of
    a page fault and the frame, or guest frame, of any other; `references` is how many words of tables were read, `lookups`
    how many tags for that, and `level` that of the entry that maps the page, if one was reached.
    """

    physical: Words
    fault: Causes
    detail: Words
    references: Causes
    lookups: Causes
    level: Causes

    def part(self, part: slice) -> "Outcome":
        """Some of them."""
        return Outcome._make(column[part] for column in self)


def outcomes(walks: int) -> Outcome:
    """Room for the outcomes of so many walks."""
    kinds = (np.uint64, np.uint8, np.uint64, np.uint8, np.uint8, np.uint8)
    return Outcome._make(np.zeros(walks, kind) for kind in kinds)


class Way:
    """Scratch of one dimension of a block of walks: where in its tables each of them is, and what it needs there."""

    def __init__(self, walks: int) -> None:
        self.table, self.entry, self.rights, self.offset_mask = (np.empty(walks, np.uint64) for _ in range(4))
        self.at, self.place, self.read, self.needed, self.error = (np.empty(walks, np.uint64) for _ in range(5))
        self.scratch: list[Words] = [np.empty(walks, np.uint64) for _ in range(2)]
        self.level: Causes = np.empty(walks, np.uint8)
        self.tag: Shorts = np.empty(walks, np.uint32)
        self.walking, self.arrived, self.flag, self.leaf, self.updates = (np.empty(walks, np.bool_) for _ in range(5))

    def narrowed(self, walks: int) -> "Way":
        """The same scratch, seen by fewer walks."""
        view = Way(0)
        for name, array in vars(self).items():
            setattr(view, name, [each[:walks] for each in array] if isinstance(array, list) else array[:walks])
        return view


Reach = Callable[[Words, int, Flags], None]
"""Makes addresses, of entries or of pages, those of the machine, in place, and takes those walks that may not read there out
of the walks under way. It is given the level of the entry that is to be read; 0 for a page."""


class Block:
    """A block of walks: the memory that they go through, whose they are, their scratch and their outcomes."""

    def __init__(self, space: Memory, translation: Translation, ways: tuple[Way, Way], out: Outcome) -> None:
        self.words, self.frames = space.words.reshape(-1), space.frames
        self.translation, self.policy = translation, translation.policy
        self.way, self.inner = ways
        self.out = out
        self.owners: dict[int, Shorts] = {}
        self.owner: Shorts | int = FREE
        self.nested_root: Words | int = 0
        self.system: Words | None = None
        """Whose memory is walked, if there are several."""

    def refuse(self, where: Flags, kind: FaultKind, detail: Words | int) -> None:
        """End some walks with a fault."""
        np.copyto(self.out.fault, int(kind), where=where)
        np.copyto(self.out.detail, detail, where=where)

    def word_index(self, way: Way, address: Words) -> Words:
        """Where in the words of all systems an address is, in `way.scratch[0]`. Spoils the other scratch."""
        index, origin = way.scratch
        np.right_shift(address, _WORD_SHIFT, out=index)
        if self.system is not None:
            np.multiply(self.system, self.frames * WORDS_PER_FRAME, out=origin)
            np.add(index, origin, out=index)
        return index

    def read(self, way: Way, address: Words, out: Words) -> None:
        """out = the words of memory at these addresses. `address` and `out` must differ. Spoils `way.flag`."""
        np.greater_equal(address, self.frames << FRAME_SHIFT, out=way.flag)
        memory.gather(self.words, self.word_index(way, address), out)
        np.copyto(out, 0, where=way.flag)

    def set_bit(self, way: Way, address: Words, bit: Entry, where: Flags) -> None:
        """Set a bit of words of memory; several walks may do so in the same word."""
        index = self.word_index(way, address)
        memory.gather(self.words, index, way.scratch[1])
        np.bitwise_or(way.scratch[1], int(bit), out=way.scratch[1])
        memory.scatter(self.words, index, way.scratch[1], where)

    def update(self, way: Way, where: Flags, writes: Flags | None = None) -> None:
        """Set the accessed bit, and of those that write the dirty bit, of the last entries that walks have read.

        `where` loses those that may not. Spoils `way.flag`.
        """
        wanted, scratch, updates = way.read, way.scratch[0], way.updates
        wanted.fill(int(Entry.A))
        if writes is not None:
            np.copyto(wanted, int(Entry.A | Entry.D), where=writes)
        np.bitwise_and(way.entry, wanted, out=scratch)
        np.not_equal(scratch, wanted, out=updates)
        np.logical_and(updates, where, out=updates)
        if not updates.any():
            return
        if way is self.way and self.translation.mode is Mode.TPT and self.policy.check_accessed_dirty_writes:
            np.not_equal(where, updates, out=where)
            self.look_up(way.place, 1, updates, counts=False)
            np.logical_or(where, updates, out=where)
        # One bit in all walks after the other: of two walks of one entry, the second must not take away what the first sets.
        self.set_bit(way, way.place, Entry.A, updates)
        if writes is not None:
            np.logical_and(updates, writes, out=updates)
            self.set_bit(way, way.place, Entry.D, updates)

    def set_leaf_bits(self, way: Way) -> None:
        """Set the accessed and dirty bits of the entries that map the pages that walks have reached."""
        np.bitwise_and(way.needed, int(Entry.RW), out=way.scratch[0])
        np.not_equal(way.scratch[0], 0, out=way.leaf)
        self.update(way, way.arrived, way.leaf)

    def descend(self, way: Way, levels: int, address: Words, reach: Reach | None) -> None:
        """Walk from the tables `way.table` to a page, in the walks `way.walking`; those that get there are `way.arrived`.

        The page is in `way.entry` and `way.offset_mask`. Page faults are refused by their error codes, but those of the
        nested dimension, which are left to the caller.
        """
        walking, flag, leaf, (scratch, other) = way.walking, way.flag, way.leaf, way.scratch
        refuses, sets_bits = way is self.way, self.translation.sets_bits
        way.rights.fill(EVERY_RIGHT)
        way.entry.fill(0)
        way.offset_mask.fill((1 << FRAME_SHIFT) - 1)
        way.arrived.fill(False)
        way.level.fill(0)
        if refuses:
            error_code(way.needed, scratch, way.error)
        for level in range(levels, 0, -1):
            entry_address(way.table, address, level, way.at)
            if reach is not None:
                reach(way.at, level, walking)
            self.read(way, way.at, way.read)
            np.add(self.out.references, walking, out=self.out.references)
            np.copyto(way.entry, way.read, where=walking)
            if sets_bits:
                np.copyto(way.place, way.at, where=walking)

            is_absent(way.entry, scratch, flag)
            np.logical_and(flag, walking, out=flag)
            np.not_equal(walking, flag, out=walking)
            if refuses:
                self.refuse(flag, FaultKind.PAGE, way.error)

            maps_page(way.entry, level, scratch, leaf)
            has_reserved(way.entry, level, leaf, scratch, other, flag)
            np.logical_and(flag, walking, out=flag)
            np.not_equal(walking, flag, out=walking)
            if refuses:
                np.bitwise_or(way.error, int(ErrorCode.P | ErrorCode.RSVD), out=scratch)
                self.refuse(flag, FaultKind.PAGE, scratch)

            restrict(way.entry, scratch, way.rights)
            np.bitwise_and(way.entry, _FRAME, out=way.table)
            np.logical_and(leaf, walking, out=leaf)
            np.logical_or(way.arrived, leaf, out=way.arrived)
            np.not_equal(walking, leaf, out=walking)
            np.copyto(way.offset_mask, (1 << index_shift(level)) - 1, where=leaf)
            np.copyto(way.level, level, where=leaf)
            if sets_bits:
                self.update(way, walking)
            if 1 < level <= LARGEST_LEAF and not walking.any():
                break
        lacks_right(way.rights, way.needed, scratch, flag)
        np.logical_and(flag, way.arrived, out=flag)
        np.not_equal(way.arrived, flag, out=way.arrived)
        if refuses:
            np.bitwise_or(way.error, int(ErrorCode.P), out=scratch)
            self.refuse(flag, FaultKind.PAGE, scratch)

    def nested(self, at: Words, level: int, walking: Flags) -> None:
        """`Reach` by the host's tables, always as a user; a guest's tables as if they were written.

        Source: AMD APM vol. 2, 15.25.6.
        """
        way, inner, lost = self.way, self.inner, self.inner.leaf
        np.copyto(inner.table, self.nested_root)
        np.bitwise_and(inner.table, _FRAME, out=inner.table)
        np.copyto(inner.walking, walking)
        if level:
            inner.needed.fill(int(Entry.US | Entry.RW))
        else:
            np.bitwise_or(way.needed, int(Entry.US), out=inner.needed)
        self.descend(inner, self.translation.nested_levels, at, None)
        if self.translation.sets_bits:
            self.set_leaf_bits(inner)
        np.not_equal(walking, inner.arrived, out=lost)
        np.right_shift(at, FRAME_SHIFT, out=inner.scratch[0])
        self.refuse(lost, FaultKind.NESTED, inner.scratch[0])
        np.copyto(walking, inner.arrived)
        page_address(inner.entry, at, inner.offset_mask, inner.scratch[0], inner.read)
        np.copyto(at, inner.read)

    def tagged(self, at: Words, level: int, walking: Flags) -> None:
        """`Reach` by the tags: the machine's addresses as they are."""
        is_root = level == self.translation.levels
        if self.policy.check_root if is_root else self.policy.check_table_reads:
            self.look_up(at, 1, walking)

    def look_up(self, address: Words, level: int, walking: Flags, counts: bool = True) -> None:
        """Take walks out whose VM doesn't own the frame, or all of the page of that level, at an address."""
        way, owners = self.way, self.owners[level]
        (frame, origin), flag = way.scratch, way.flag
        np.right_shift(address, index_shift(level), out=frame)
        np.minimum(frame, owners.shape[1] - 1, out=frame)
        if self.system is not None:
            np.multiply(self.system, owners.shape[1], out=origin)
            np.add(frame, origin, out=frame)
        memory.gather(owners.reshape(-1), frame, way.tag)
        np.not_equal(way.tag, self.owner, out=flag)
        np.logical_and(flag, walking, out=flag)
        if counts:
            np.add(self.out.lookups, walking, out=self.out.lookups)
        np.not_equal(walking, flag, out=walking)
        # What is refused is named by its first frame.
        np.right_shift(address, index_shift(level), out=frame)
        np.left_shift(frame, index_shift(level) - FRAME_SHIFT, out=frame)
        self.refuse(flag, FaultKind.TAG, frame)

    def look_up_page(self, at: Words) -> None:
        """Take the walks out whose VM doesn't own the page that they have reached."""
        arrived, there = self.way.arrived, self.way.leaf
        for level in range(1, LARGEST_LEAF + 1):
            np.equal(self.out.level, level, out=there)
            np.logical_and(there, arrived, out=there)
            if level == 1 or there.any():
                np.not_equal(arrived, there, out=arrived)
                self.look_up(at, level, there)
                np.logical_or(arrived, there, out=arrived)

    def walk(self, address: Words, root: Words | int) -> None:
        """Translate addresses by the tables whose roots are these."""
        way, out, mode = self.way, self.out, self.translation.mode
        np.copyto(way.table, root)
        np.bitwise_and(way.table, _FRAME, out=way.table)
        is_canonical(address, self.translation.levels, way.scratch[0], way.walking)
        np.logical_not(way.walking, out=way.flag)
        self.refuse(way.flag, FaultKind.GENERAL, 0)
        reach = {Mode.NESTED: self.nested, Mode.TPT: self.tagged}.get(mode)
        self.descend(way, self.translation.levels, address, reach)
        np.copyto(out.level, way.level)
        page_address(way.entry, address, way.offset_mask, way.scratch[0], way.at)
        if mode is Mode.NESTED:
            self.nested(way.at, 0, way.arrived)
            np.minimum(out.level, self.inner.level, out=out.level)
        elif mode is Mode.TPT and self.policy.check_leaf:
            self.look_up_page(way.at)
        if self.translation.sets_bits:
            self.set_leaf_bits(way)
        np.copyto(out.physical, 0)
        np.copyto(out.physical, way.at, where=way.arrived)


def owners_of(tags: Shorts, level: int, is_uniform: bool) -> Shorts:
    """Who owns the pages of a level, uint32[systems, pages + 1]: the owner of all frames, or FREE.

    Unless pages have to be uniform, the owner of the first frame. The last is what is outside of memory.
    """
    systems, frames = tags.shape
    size = paging.frames_of(level)
    pages = -(-frames // size)
    padded = np.full((systems, (pages + 1) * size), FREE, np.uint32)
    padded[:, :frames] = tags
    by_page = padded.reshape(systems, pages + 1, size)
    first = by_page[:, :, 0].copy()
    if is_uniform and level > 1:
        first[(by_page != first[:, :, None]).any(axis=2)] = FREE
    return first


def walk(
    space: Memory,
    translation: Translation,
    address: Words,
    root: Words | int,
    needed: Words,
    owner: Shorts | int = FREE,
    nested_root: Words | int = 0,
    system: Words | None = None,
) -> Outcome:
    """Translate many addresses, uint64[walks].

    Roots are CR3s, one for all or one a walk; so are the owners, tags of the VMs that walk, and the roots of nested tables.
    `needed` is from `needed_rights`; `system` is whose memory each walks in, if there are several. Walks that set bits do
    so as if one came after another; which is the first makes no difference.
    """
    count = len(address)
    out, lanes = outcomes(count), min(count, BLOCK_WALKS)
    ways = Way(lanes), Way(lanes)
    owners = {}
    if translation.mode is Mode.TPT:
        is_uniform = translation.policy.uniform_large_pages
        owners = {level: owners_of(space.tags, level, is_uniform) for level in range(1, LARGEST_LEAF + 1)}
    for start in range(0, count, BLOCK_WALKS):
        part = slice(start, min(start + BLOCK_WALKS, count))
        if part.stop - part.start < lanes:
            ways = ways[0].narrowed(part.stop - part.start), ways[1].narrowed(part.stop - part.start)
        block = Block(space, translation, ways, out.part(part))
        block.owners = owners
        block.owner = owner if isinstance(owner, int) else owner[part]
        block.nested_root = nested_root if isinstance(nested_root, int) else nested_root[part]
        block.system = None if system is None else system[part]
        np.copyto(block.way.needed, needed[part])
        block.walk(address[part], root if isinstance(root, int) else root[part])
    return out
