"""Theorems on whole walks of page tables: what they touch, how many words they read, and that the modes agree.

The reference's own walker is executed, on any contents of memory: a word is drawn where it is first read, and so are a
frame's tag and its place in the host's map of guest frames. Nothing rests on a capability format; each is asked once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import z3

from capvisor.model import paging
from capvisor.model.bits import select
from capvisor.model.paging import Direct, Fault, Nested, Space, Tagged, Walk, WordStore
from capvisor.model.tables import Rows
from capvisor.model.tpt import System, TaggedSpace, Vcpu, Vm
from capvisor.proofs.symbolic import SymInt
from capvisor.proofs.theorem import Given, implies, theorem
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.paging import (
    FRAME_FIELD,
    FRAME_SHIFT,
    LEVELS,
    PAGE_LEVELS,
    PHYSICAL_BITS,
    RESERVED_PHYSICAL,
    Access,
    Entry,
    Mode,
    address_bits,
    frames_of,
    walk_lookups,
    walk_references,
)
from capvisor.spec.tpt import MAX_FRAMES

VM_BITS, FRAME_BITS, WORD_BITS = 16, PHYSICAL_BITS - FRAME_SHIFT, 64
P, A, D, PS = Entry.P.value, Entry.A.value, Entry.D.value, Entry.PS.value
RIGHTS = Entry.RW.value | Entry.US.value

_WHATEVER = (
    "all memories, roots, addresses, accesses and VMs; every frame number has a frame, and no page-walk cache is filled"
)
_NO_FORMAT = "; asked once, as it knows no capability format"
_ACCEPTED = "; where all frames of a page are found uniform, what is supposed is that any one of them is the VM's"


# -- any tables ------------------------------------------------------------------------------------------------------------


class Drawn:
    """Any function of numbers: a result is drawn where it is asked for, and equal arguments give equal results."""

    def __init__(self, given: Given, name: str, bits: int, most: int) -> None:
        # Drawn beforehand, so that all paths have the same symbols.
        self._left = [given.word(f"{name}_{number}", bits) for number in reversed(range(most))]
        self._known: list[tuple[tuple[Any, ...], Any]] = []

    def __getitem__(self, key: Any) -> Any:
        arguments = tuple(map(_simplified, key if isinstance(key, tuple) else (key,)))
        value = self._left.pop()
        for known, result in self._known:
            if all(_is_one_term(*pair) for pair in zip(arguments, known, strict=True)):
                return result
            value = select(_same(arguments, known), result, value)
        self._known.append((arguments, value))
        return value


def _simplified(number: Any) -> Any:
    return SymInt(z3.simplify(number.term), number.low, number.high) if isinstance(number, SymInt) else number


def _is_one_term(one: Any, two: Any) -> bool:
    if isinstance(one, SymInt) and isinstance(two, SymInt):
        return one.term.eq(two.term)
    return isinstance(one, int) and isinstance(two, int) and one == two


def _same(one: tuple[Any, ...], two: tuple[Any, ...]) -> Any:
    same: Any = True
    for a, b in zip(one, two, strict=True):
        same = same & (a == b)
    return same


class Write(NamedTuple):
    """A word of memory that was replaced."""

    frame: Any
    index: Any
    old: Any
    new: Any


class AnyWords:
    """A memory of any contents; `first` says of each word what it held at first."""

    def __init__(self, first: Callable[[Any, Any], Any]) -> None:
        self._first = first
        self.writes: list[Write] = []

    def get(self, frame: Any, index: Any) -> Any:
        """The word that a frame holds at an index."""
        word = self._first(frame, index)
        for write in self.writes:
            word = select(_same((frame, index), (write.frame, write.index)), write.new, word)
        return word

    def set(self, frame: Any, index: Any, value: Any) -> None:
        """Replace a word."""
        self.writes.append(Write(frame, index, self.get(frame, index), value))


class AnyTags:
    """The tags of all frames as they are looked up, any; by T7 a frame's own tag is the one that is looked up."""

    def __init__(self, given: Given, most: int) -> None:
        self._tags = Drawn(given, "tag", VM_BITS, most)
        self._number = given.word("frame_in_page", FRAME_BITS)
        self._uniform = given.flag("is_uniform")
        self.supposed: Any = True

    def __getitem__(self, frame: Any) -> Any:
        return self._tags[frame]

    def looked_up(self, frame: Any) -> Any:
        """A frame's tag."""
        return self._tags[frame]

    def in_page(self, base: Any, level: int) -> Any:
        """Any one frame of a page."""
        return base + (self._number & frames_of(level) - 1)

    def uniform(self, base: Any, count: int, owner: Any) -> Any:
        """A contract: where it says so, the tag of any one of the frames is the owner's."""
        one = base + (self._number & count - 1)
        self.supposed = self.supposed & implies(self._uniform, self.looked_up(one) == owner)
        return self._uniform


class _OneOwner:
    """Tags of which all are one VM's."""

    def __init__(self, vm: Any) -> None:
        self._vm = vm

    def __getitem__(self, _frame: Any) -> Any:
        return self._vm

    def looked_up(self, _frame: Any) -> Any:
        """The VM's."""
        return self._vm

    def uniform(self, _base: Any, _count: int, owner: Any) -> Any:
        """Whether they are this owner's."""
        return owner == self._vm


class Asked(NamedTuple):
    """An access that is to be translated, and what the walk starts from."""

    address: Any
    access: Any
    is_user: Any
    vm: Any
    root: Any


def _asked(given: Given, levels: int) -> Asked:
    access = given.word("access", 2)
    given.assume(access <= Access.FETCH)
    vm, root = given.word("vm", VM_BITS), given.word("root", FRAME_BITS)
    return Asked(given.word("address", address_bits(levels)), access, given.flag("is_user"), vm, root)


def _most(levels: int) -> int:
    """More than enough draws for a walk: a level has at most four look-ups, and as many reads of a word."""
    return 4 * levels + 8


def _words(given: Given, levels: int) -> Callable[[Any, Any], Any]:
    drawn = Drawn(given, "word", WORD_BITS, _most(levels))
    return lambda frame, index: drawn[frame, index]


def _system(given: Given, levels: int, memory: AnyWords, tags: Any) -> System:
    """A system, under the intended policy, of which the tables that a walk looks at by frame are any."""
    pending = Drawn(given, "pending", 1, _most(levels))

    def make_table(name: str, empty: Any) -> Any:
        return pending if name == "pending" else Rows(empty)

    return System(MAX_FRAMES, 1, make_table=make_table, memory=cast(WordStore, memory), tags=tags)


def _vcpu(system: System, levels: int, mode: Mode, vm: Any, root: Any) -> tuple[System, int, Vcpu, Vm]:
    """What a guest's space is made of: its first vCPU, on which its VM runs."""
    row = Vcpu(vm, 1, root << FRAME_SHIFT)
    system.vcpus[0] = row
    return system, 0, row, Vm(True, mode, levels)


def _walked(space: Space, asked: Asked) -> Walk | Fault:
    try:
        return paging.translate(space, asked.address, asked.access, asked.is_user)
    except Fault as fault:
        return fault


# -- what a walk touches ---------------------------------------------------------------------------------------------------


def tagged(levels: int, given: Given) -> Any:
    """Of a whole walk by an enlightened guest."""
    asked, tags, memory = _asked(given, levels), AnyTags(given, _most(levels)), AnyWords(_words(given, levels))
    system = _system(given, levels, memory, tags)
    outcome = _walked(TaggedSpace(*_vcpu(system, levels, Mode.TPT, asked.vm, asked.root)), asked)
    holds: Any = True
    for touch in system.touches:
        holds = holds & (touch.tag == asked.vm)
    for write in memory.writes:
        may_set = A | select(asked.access == Access.WRITE, D, 0)
        holds = holds & (write.old & write.new == write.old) & ((write.old ^ write.new) & ~may_set == 0)
    if isinstance(outcome, Walk):
        holds = holds & (tags[tags.in_page(outcome.leaf_frame, outcome.leaf_level)] == asked.vm)
    return implies(tags.supposed, holds)


def fails(level: int, given: Given) -> Any:
    """That no walk ends with a page of a level."""
    asked, tags = _asked(given, LEVELS[0]), AnyTags(given, _most(LEVELS[0]))
    system = _system(given, LEVELS[0], AnyWords(_words(given, LEVELS[0])), tags)
    outcome = _walked(TaggedSpace(*_vcpu(system, LEVELS[0], Mode.TPT, asked.vm, asked.root)), asked)
    return implies(tags.supposed, isinstance(outcome, Fault) or outcome.leaf_level != level)


def updated(given: Given) -> Any:
    """Of a step that sets bits, from any walk under way: the host may have done anything since the step before."""
    vm, root, level = given.word("vm", VM_BITS), given.word("root", FRAME_BITS), given.word("level", 3)
    given.assume((level >= 1) & (level <= LEVELS[-1]))
    tags, memory = AnyTags(given, 8), AnyWords(_words(given, 1))
    space = TaggedSpace(*_vcpu(_system(given, 1, memory, tags), LEVELS[0], Mode.TPT, vm, root))
    begun = Walk(True, given.word("address", address_bits(LEVELS[-1])), given.word("access", 2), given.flag("is_user"))
    walk = begun._replace(
        stage=paging.UPDATE,
        level=level,
        frame=given.word("table", FRAME_BITS),
        is_cached=given.flag("is_cached"),
        entry=given.word("entry", WORD_BITS),
    )
    try:
        paging.advance(space, walk)
    except Fault:
        return not memory.writes
    holds: Any = True
    for write in memory.writes:
        holds = holds & (tags.looked_up(write.frame) == vm) & (write.old == walk.entry)
    return holds


# -- how many words a walk reads -------------------------------------------------------------------------------------------


def counted(levels: int, given: Given) -> Any:
    """Of native walks."""
    asked, memory = _asked(given, levels), AnyWords(_words(given, levels))
    space = Direct(cast(WordStore, memory), asked.root, levels)
    _walked(space, asked)
    return len(space.references) <= walk_references(Mode.NATIVE, levels)


def counted_tagged(levels: int, given: Given) -> Any:
    """Of an enlightened guest's."""
    asked, memory, tags = _asked(given, levels), AnyWords(_words(given, levels)), AnyTags(given, _most(levels))
    space = Tagged(cast(WordStore, memory), asked.root, levels, tags, asked.vm)
    _walked(space, asked)
    references = len(space.references) <= walk_references(Mode.TPT, levels)
    # A look-up again may fail, and then nothing is set.
    again = len(space.update_lookups) - len(space.updates) in (0, 1)
    return references & (len(space.lookups) <= walk_lookups(Mode.TPT, levels)) & again


def _ready(given: Given, most: int) -> WordStore:
    """A memory whose words all name a table or page of 4 KiB, permit every access, and have A and D set."""
    drawn = Drawn(given, "word", WORD_BITS, most)
    kept = FRAME_FIELD.in_place & ~RESERVED_PHYSICAL
    return cast(WordStore, AnyWords(lambda frame, index: drawn[frame, index] & kept | P | RIGHTS | A | D))


def reached(levels: int, given: Given) -> Any:
    """Of walks in each mode over entries that have nothing more to be done to them."""
    asked = _asked(given, levels)
    root, nested_root, most = (
        asked.root,
        given.word("nested_root", FRAME_BITS),
        2 * walk_references(Mode.NESTED, levels, levels),
    )
    spaces = {
        Mode.NATIVE: Direct(_ready(given, most), root, levels),
        Mode.TPT: Tagged(_ready(given, most), root, levels, _OneOwner(asked.vm), asked.vm),
        Mode.NESTED: Nested(_ready(given, most), root, levels, nested_root, levels),
    }
    holds = True
    for mode, space in spaces.items():
        is_done = isinstance(_walked(space, asked), Walk)
        holds = holds and is_done and len(space.references) == walk_references(mode, levels, levels)
        holds = holds and (mode is not Mode.TPT or len(space.lookups) == walk_lookups(mode, levels))
    return holds


# -- that the modes agree --------------------------------------------------------------------------------------------------


def _same_outcome(one: Walk | Fault, two: Walk | Fault) -> Any:
    """Whether walks lead to the same frame with the same rights, or to the same fault."""
    if isinstance(one, Walk) and isinstance(two, Walk):
        same: Any = paging.addressed_frame(one) == paging.addressed_frame(two)
        for field in ("is_writable", "is_user_page", "is_executable", "is_dirty", "is_global"):
            same = same & (getattr(one, field) == getattr(two, field))
        return same
    if isinstance(one, Fault) and isinstance(two, Fault):
        return (one.code == two.code) & (one.kind is two.kind)
    return False


def identical(levels: int, given: Given) -> Any:
    """The same memory, walked by a guest that owns all of it, and natively."""
    asked, first = _asked(given, levels), _words(given, 2 * levels)
    own, memory = AnyWords(first), AnyWords(first)
    system, native = _system(given, levels, memory, _OneOwner(asked.vm)), Direct(cast(WordStore, own), asked.root, levels)
    outcomes = (
        _walked(TaggedSpace(*_vcpu(system, levels, Mode.TPT, asked.vm, asked.root)), asked),
        _walked(native, asked),
    )
    if len(memory.writes) != len(own.writes) or len(system.touches) != len(native.references) + len(native.updates):
        return False
    same = _same_outcome(*outcomes)
    for one, two in zip(memory.writes, own.writes, strict=True):
        same = same & _same(one, two)
    return same


# -- what is said ----------------------------------------------------------------------------------------------------------


def _declare(
    name: str, statement: str, source: str, claim: Callable[[Given], Any], scope: str = _WHATEVER, **said: Any
) -> None:
    def of_no_format(_fmt: CapabilityFormat, given: Given) -> Any:
        return claim(given)

    theorem(name, statement, source, scope=scope + _NO_FORMAT, formats=("cc64",), **said)(of_no_format)


_declare(
    "walk.tagged",
    "Whatever is in memory, each table that an enlightened guest's walk of 4 levels reads, or sets a bit in, is in a frame "
    "tagged with its VM; so is each frame of the page that the walk ends with. It changes nothing but to set A, and D for a "
    "write.",
    "TPT abstract (ATC 2023); spec/tpt.md, T1, T2, T6, T7",
    partial(tagged, 4),
    _WHATEVER + _ACCEPTED,
    mutants=("walk-any-page", "walk-any-root", "walk-any-table", "walk-first-frame"),
)
_declare(
    "walk.update",
    "A step of an enlightened guest's walk that sets A or D does so in a frame that is tagged with the VM at that moment, "
    "and in the entry that was read, whatever the host has done since the step before.",
    "ours: spec/tpt.md, T2",
    updated,
    "all walks under way, memories, roots, addresses, accesses and VMs; every number has a frame",
    mutants=("walk-any-update",),
)
for _size in ("2M", "1G"):
    _declare(
        f"walk.completes.{_size}",
        f"FALSE: no walk of 4 levels by an enlightened guest completes with a page of {_size}. (So what is said of walks "
        "that complete is said of some.)",
        "ours: spec/tpt.md, 2",
        partial(fails, PAGE_LEVELS[_size]),
        _WHATEVER + _ACCEPTED,
        holds=False,
    )
_declare(
    "walk.counts.native",
    f"A native walk of 4 levels reads at most {walk_references(Mode.NATIVE, 4)} words.",
    "Intel SDM vol. 3A, 4.5",
    partial(counted, 4),
    mutants=("walk-reads-twice",),
)
_declare(
    "walk.counts.tpt",
    f"A walk of 4 levels by TPT reads at most {walk_references(Mode.TPT, 4)} words, and looks up at most "
    f"{walk_lookups(Mode.TPT, 4)} tags, and one for each A or D that it sets.",
    "ours: spec/tpt.md, 2",
    partial(counted_tagged, 4),
    mutants=("walk-reads-twice",),
)
_declare(
    "walk.counts.reached",
    "Where entries permit all and are accessed and dirty, all pages are of 4 KiB, and all frames are the VM's, walks of 4 "
    f"levels complete and read exactly 4 words, natively and by TPT, and exactly {walk_references(Mode.NESTED, 4, 4)} "
    f"nested; by TPT they look up exactly {walk_lookups(Mode.TPT, 4)} tags.",
    "ours: spec/tpt.md, 2",
    partial(reached, 4),
    mutants=("walk-reads-twice",),
)
_declare(
    "walk.native",
    "Where all frames are the VM's, TPT's walk of 4 levels is the native one at every address: the same frame, rights and "
    "page fault, and the same bits set.",
    "ours: spec/tpt.md, T11",
    partial(identical, 4),
    mutants=("walk-tag-of-others",),
)
