"""Walks of x86-64 page tables, a state that advances one reference to the tables at a time.

One engine walks for all modes; a *space* says where tables and pages are and who may use them: the machine's frames as they
are (`Direct`), through the host's nested tables (`Nested`), or by the tags (`Tagged`). The host's shadow table (`Shadow`) is
walked like any other. Source: Intel SDM vol. 3A, 4.5 to 4.8; AMD APM vol. 2, 15.25. The rules in prose: spec/tpt.md, 2.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from capvisor.model.bits import not_, select
from capvisor.spec.paging import (
    FRAME_FIELD,
    FRAME_SHIFT,
    INDEX_BITS,
    LARGEST_LEAF,
    WORD_BYTES,
    WORDS_PER_FRAME,
    Access,
    Entry,
    ErrorCode,
    address_bits,
    frames_of,
    index_shift,
    reserved,
)
from capvisor.spec.tpt import FaultKind

Frame = int
Word = int

P, RW, US, A, D, PS, G, NX = (
    each.value for each in (Entry.P, Entry.RW, Entry.US, Entry.A, Entry.D, Entry.PS, Entry.G, Entry.NX)
)


READ_ACCESS, WRITE, FETCH = Access.READ.value, Access.WRITE.value, Access.FETCH.value


class Fault(Exception):  # noqa: N818 - the architecture's word
    """An access that doesn't complete: what kind, a page fault's error code, and the frame that a host's exit names.

    The frame is the first of a page of that level whose tags were looked up.
    """

    def __init__(self, kind: FaultKind, code: int = 0, frame: Frame = 0, level: int = 1) -> None:
        super().__init__(kind, code, frame)
        self.kind, self.code, self.frame, self.level = kind, code, frame, level


class WordStore(Protocol):
    """Frames of 512 words. Where there is no frame, words are zero and stay so."""

    def get(self, frame: Frame, index: int) -> Word: ...

    def set(self, frame: Frame, index: int, value: Word) -> None: ...

    def clear(self, frame: Frame) -> None: ...

    def copy(self, target: Frame, store: Any, source: Frame) -> None:
        """Replace a frame by one of a store of the same kind."""


class SparseWords:
    """The words of one concrete memory; those never written are zero."""

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.words: dict[Frame, dict[int, Word]] = {}

    def get(self, frame: Frame, index: int) -> Word:
        return self.words.get(frame, {}).get(index, 0)

    def set(self, frame: Frame, index: int, value: Word) -> None:
        if frame < self.frames:
            self.words.setdefault(frame, {})[index] = value

    def clear(self, frame: Frame) -> None:
        self.words.pop(frame, None)

    def copy(self, target: Frame, store: "SparseWords", source: Frame) -> None:
        self.words[target] = dict(store.words.get(source, {}))

    def written(self) -> Iterator[tuple[Frame, int, Word]]:
        """Frame, index and value of every word that isn't zero."""
        return ((frame, index, word) for frame, row in self.words.items() for index, word in row.items() if word)


class Owners(Protocol):
    """Who owns frames, as the hardware looks it up."""

    def looked_up(self, frame: Frame) -> int: ...

    def uniform(self, base: Frame, count: int, owner: int) -> bool:
        """Whether so many frames from a base are all there and all one owner's."""


READ, UPDATE, DONE = 0, 1, 2
"""What a walk does next: read a table's entry, set bits in one, nothing."""


class Walk(NamedTuple):
    """A walk under way. Addresses are cut to the bits that are translated."""

    is_live: bool = False
    address: int = 0
    access: int = 0
    is_user: bool = False
    stage: int = READ
    level: int = 0
    frame: Frame = 0
    """The table, as the tables name it."""
    is_cached: bool = False
    """Whether a page-walk cache says so, and not an entry read by this walk or CR3."""
    is_writable: bool = False
    is_user_page: bool = False
    is_executable: bool = False
    entry: Word = 0
    """The entry to update, as it was read; 0 in other stages."""
    leaf_frame: Frame = 0
    """The page's first frame, the machine's."""
    leaf_level: int = 0
    is_dirty: bool = False
    is_global: bool = False


class Space(Protocol):
    """Where tables and pages are, and who may use them. What may not be used raises Fault."""

    def start(self, walk: Walk) -> Walk:
        """Where a walk begins: at the root, or wherever a page-walk cache says."""

    def table(self, walk: Walk) -> Frame:
        """The machine's frame of the table that is about to be read."""

    def table_again(self, walk: Walk) -> Frame:
        """The same, when a bit is about to be set in it."""

    def page(self, walk: Walk, base: Frame, level: int) -> tuple[Frame, int]:
        """The machine's first frame, and the level, of a page that an entry of a level maps."""

    def read(self, walk: Walk, table: Frame, index: int) -> Word: ...

    def again(self, table: Frame, index: int) -> Word:
        """The word that an update finds."""

    def write(self, walk: Walk, table: Frame, index: int, value: Word) -> None: ...


# -- addresses -------------------------------------------------------------------------------------------------------------


def is_canonical(address: int, levels: int) -> bool:
    """Whether the bits that aren't translated repeat the highest that is. Source: Intel SDM vol. 1, 3.3.7.1."""
    bits = address_bits(levels)
    above = address >> bits - 1
    return (above == 0) | (above == (1 << 65 - bits) - 1)


def cut(address: int, levels: int) -> int:
    """The bits of an address that are translated."""
    return address & (1 << address_bits(levels)) - 1


def frame_in_page(address: int, level: int) -> Frame:
    """Which of the frames of its page an address is in."""
    return address >> FRAME_SHIFT & frames_of(level) - 1


def named_frame(entry: Word) -> Frame:
    """The frame that an entry, or CR3, names."""
    return entry >> FRAME_SHIFT & FRAME_FIELD.mask


# -- the engine ------------------------------------------------------------------------------------------------------------


def begin(space: Space, address: int, access: int, is_user: bool) -> Walk:
    """A walk for an address, cut."""
    return space.start(Walk(True, address, access, is_user, is_writable=True, is_user_page=True, is_executable=True))


def page_fault(walk: Walk, code: int) -> Fault:
    """A page fault of a walk's access. Source: Intel SDM vol. 3A, 4.7."""
    code = code | select(walk.access == WRITE, ErrorCode.WR.value, 0) | select(walk.is_user, ErrorCode.US.value, 0)
    return Fault(FaultKind.PAGE, code | select(walk.access == FETCH, ErrorCode.ID.value, 0))


def is_leaf(entry: Word, level: int) -> bool:
    """Whether an entry of a level maps a page."""
    return (level == 1) | (level <= LARGEST_LEAF) & (entry & PS != 0)


def advance(space: Space, walk: Walk) -> Walk:
    """The next reference of a walk that isn't done. Raises Fault."""
    return read_entry(space, walk) if walk.stage == READ else update_entry(space, walk)


def read_entry(space: Space, walk: Walk) -> Walk:
    """Read an entry, and find what it permits and where it leads."""
    # CHECKS
    level = walk.level
    table = space.table(walk)
    entry = space.read(walk, table, walk.address >> index_shift(level) & WORDS_PER_FRAME - 1)
    if entry & P == 0:
        raise page_fault(walk, 0)
    forbidden = select(entry & PS != 0, reserved(level, True), reserved(level, False))
    if entry & forbidden != 0:
        raise page_fault(walk, ErrorCode.P.value | ErrorCode.RSVD.value)
    # EFFECT
    walk = walk._replace(
        entry=entry,
        is_writable=walk.is_writable & (entry & RW != 0),
        is_user_page=walk.is_user_page & (entry & US != 0),
        is_executable=walk.is_executable & (entry & NX == 0),
    )
    if is_leaf(entry, level):
        return read_leaf(space, walk)
    if entry & A == 0:
        return walk._replace(stage=UPDATE)
    return descend(walk)


def descend(walk: Walk) -> Walk:
    """Go on at the table that the entry names."""
    return walk._replace(stage=READ, level=walk.level - 1, frame=named_frame(walk.entry), is_cached=False, entry=0)


def needed_bits(access: int) -> int:
    """What a page's own entry has set once it was used. Source: Intel SDM vol. 3A, 4.8."""
    return A | select(access == WRITE, D, 0)


def read_leaf(space: Space, walk: Walk) -> Walk:
    """An entry that maps a page: the rights, then the page."""
    # CHECKS
    lacks_write = (walk.access == WRITE) & not_(walk.is_writable)
    lacks_fetch = (walk.access == FETCH) & not_(walk.is_executable)
    if lacks_write | lacks_fetch | walk.is_user & not_(walk.is_user_page):
        raise page_fault(walk, ErrorCode.P.value)
    base = named_frame(walk.entry) >> INDEX_BITS * (walk.level - 1) << INDEX_BITS * (walk.level - 1)
    frame, level = space.page(walk, base, walk.level)
    # EFFECT
    walk = walk._replace(leaf_frame=frame, leaf_level=level, is_global=walk.entry & G != 0)
    needs = needed_bits(walk.access)
    if walk.entry & needs != needs:
        return walk._replace(stage=UPDATE)
    return walk._replace(stage=DONE, is_dirty=walk.entry & D != 0, entry=0)


def update_entry(space: Space, walk: Walk) -> Walk:
    """Set the accessed bit, and the dirty bit of a page written to, by a locked update; a changed entry makes it begin anew.

    Source: Intel SDM vol. 3A, 4.8 and 9.1.2.1.
    """
    # CHECKS
    table, index = space.table_again(walk), walk.address >> index_shift(walk.level) & WORDS_PER_FRAME - 1
    if space.again(table, index) != walk.entry:
        return begin(space, walk.address, walk.access, walk.is_user)
    # EFFECT
    if is_leaf(walk.entry, walk.level):
        entry = walk.entry | needed_bits(walk.access)
        space.write(walk, table, index, entry)
        return walk._replace(stage=DONE, is_dirty=entry & D != 0, entry=0)
    space.write(walk, table, index, walk.entry | A)
    return descend(walk)


def translate(space: Space, address: int, access: int, is_user: bool) -> Walk:
    """A whole walk, done. Raises Fault."""
    walk = begin(space, address, access, is_user)
    while walk.stage != DONE:
        walk = advance(space, walk)
    return walk


def addressed_frame(walk: Walk) -> Frame:
    """The frame that the address of a walk that is done is in."""
    return walk.leaf_frame + frame_in_page(walk.address, walk.leaf_level)


# -- spaces outside a system -----------------------------------------------------------------------------------------------


class Reference(NamedTuple):
    """A word of a table that a walk has read, or written an accessed or dirty bit of."""

    kind: str
    """"table", or "nested" for a table of the host's."""
    frame: Frame
    word: int
    level: int

    @property
    def address(self) -> int:
        return (self.frame << FRAME_SHIFT) + self.word * WORD_BYTES


class Direct:
    """The machine's frames as they are: native mode. What was read, looked up and updated is kept in order."""

    kind = "table"

    def __init__(self, memory: WordStore, root: Frame, levels: int) -> None:
        self.memory, self.root, self.levels = memory, root, levels
        self.references: list[Reference] = []
        self.updates: list[Reference] = []
        self.lookups: list[Frame] = []
        """Frames whose tags were looked up before reading, and for pages."""
        self.update_lookups: list[Frame] = []

    def start(self, walk: Walk) -> Walk:
        return walk._replace(level=self.levels, frame=self.root)

    def table(self, walk: Walk) -> Frame:
        return walk.frame

    def table_again(self, walk: Walk) -> Frame:
        return walk.frame

    def page(self, _walk: Walk, base: Frame, level: int) -> tuple[Frame, int]:
        return base, level

    def read(self, walk: Walk, table: Frame, index: int) -> Word:
        self.references.append(Reference(self.kind, table, index, walk.level))
        return self.memory.get(table, index)

    def again(self, table: Frame, index: int) -> Word:
        return self.memory.get(table, index)

    def write(self, walk: Walk, table: Frame, index: int, value: Word) -> None:
        self.updates.append(Reference(self.kind, table, index, walk.level))
        self.memory.set(table, index, value)


class _HostTables(Direct):
    kind = "nested"


class Tagged(Direct):
    """TPT: the machine's frames, each table and page looked up in the tags, for one VM."""

    def __init__(self, memory: WordStore, root: Frame, levels: int, tags: Owners, vm: int) -> None:
        super().__init__(memory, root, levels)
        self.tags, self.vm = tags, vm

    def table(self, walk: Walk) -> Frame:
        self.lookups.append(walk.frame)
        return self._owned(walk.frame)

    def table_again(self, walk: Walk) -> Frame:
        self.update_lookups.append(walk.frame)
        return self._owned(walk.frame)

    def _owned(self, frame: Frame) -> Frame:
        if self.tags.looked_up(frame) != self.vm:
            raise Fault(FaultKind.TAG, frame=frame)
        return frame

    def page(self, _walk: Walk, base: Frame, level: int) -> tuple[Frame, int]:
        self.lookups.append(base)
        if not_(self.tags.uniform(base, frames_of(level), self.vm)):
            raise Fault(FaultKind.TAG, frame=base, level=level)
        return base, level


class Nested(Direct):
    """Nested paging: the guest's tables name guest frames, which the host's tables map to the machine's.

    The walker's accesses to guest tables are user-mode writes there. Source: AMD APM vol. 2, 15.25.5 and 15.25.6.
    """

    def __init__(self, memory: WordStore, root: Frame, levels: int, nested_root: Frame, nested_levels: int) -> None:
        super().__init__(memory, root, levels)
        self.nested_root, self.nested_levels = nested_root, nested_levels

    def _located(self, guest_frame: Frame, access: int) -> tuple[Walk, Direct]:
        host = _HostTables(self.memory, self.nested_root, self.nested_levels)
        try:
            return translate(host, cut(guest_frame << FRAME_SHIFT, self.nested_levels), access, True), host
        except Fault as fault:
            self.references += host.references
            raise Fault(FaultKind.NESTED, frame=guest_frame) from fault
        finally:
            self.updates += host.updates

    def table(self, walk: Walk) -> Frame:
        found, host = self._located(walk.frame, WRITE)
        self.references += host.references
        return addressed_frame(found)

    def table_again(self, walk: Walk) -> Frame:
        # No more references: the processor has had the frame since the step before.
        return addressed_frame(self._located(walk.frame, WRITE)[0])

    def page(self, walk: Walk, base: Frame, level: int) -> tuple[Frame, int]:
        found, host = self._located(base + frame_in_page(walk.address, level), walk.access)
        self.references += host.references
        if found.leaf_level <= level:
            return found.leaf_frame, found.leaf_level
        within = addressed_frame(found)
        return within >> INDEX_BITS * (level - 1) << INDEX_BITS * (level - 1), level


class Shadow:
    """Shadow paging: a table of the host's, filled page by page from the guest's and the host's map of guest frames.

    The walker sees the host's table alone; what it lacks is an exit, in which the host walks the guest's tables, sets their
    accessed and dirty bits as the processor would, and maps one 4 KiB page. A page whose dirty bit is clear is mapped to be
    read only. The host intercepts updates of the guest's tables and then forgets pages (`forget`).
    """

    def __init__(self, memory: WordStore, guest: Space, levels: int, take_frame: Callable[[], Frame]) -> None:
        self.memory, self.guest, self.levels, self.take_frame = memory, guest, levels, take_frame
        self.root = take_frame()
        self.exits = 0
        self.references: list[Reference] = []

    def translate(self, address: int, access: int, is_user: bool) -> Walk:
        """A whole walk of the shadow table, after an exit where it lacks the page. Raises the guest's Fault."""
        walk = self._walked(address, access, is_user)
        if walk is None:
            self.exits += 1
            self._map(translate(self.guest, address, access, is_user))
            walk = self._walked(address, access, is_user)
            assert walk is not None
        return walk

    def _walked(self, address: int, access: int, is_user: bool) -> Walk | None:
        space = Direct(self.memory, self.root, self.levels)
        try:
            return translate(space, address, access, is_user)
        except Fault:
            return None
        finally:
            self.references = space.references

    def _map(self, found: Walk) -> None:
        table = self.root
        for level in range(self.levels, 1, -1):
            index = found.address >> index_shift(level) & WORDS_PER_FRAME - 1
            if self.memory.get(table, index) & P == 0:
                self.memory.set(table, index, self.take_frame() << FRAME_SHIFT | P | RW | US)
            table = named_frame(self.memory.get(table, index))
        rights = select(found.is_writable & found.is_dirty, RW, 0) | select(found.is_user_page, US, 0)
        rights = rights | select(found.is_executable, 0, NX) | select(found.is_global, G, 0)
        entry = addressed_frame(found) << FRAME_SHIFT | P | rights
        self.memory.set(table, found.address >> FRAME_SHIFT & WORDS_PER_FRAME - 1, entry)

    def forget(self) -> None:
        """Drop all pages: what an intercepted update of the guest's tables may have changed."""
        self.memory.clear(self.root)
