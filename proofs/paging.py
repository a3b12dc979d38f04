"""Theorems on whole walks of page tables: how many words they read, and that the modes agree.

They are proved of one step of any walk, on any contents of memory, by the reference's own code; what a whole walk does
follows by induction on its steps. A potential bounds what is left to read: it falls by as much as a step reads.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import z3

from capvisor.model import paging
from capvisor.model.bits import not_, select
from capvisor.model.paging import (
    DONE,
    READ,
    UPDATE,
    Direct,
    Fault,
    Nested,
    Reference,
    Shadow,
    SparseWords,
    Tagged,
    Walk,
)
from capvisor.proofs import symbolic
from capvisor.proofs.incremental import Way, asked_of
from capvisor.proofs.steps import Kept, Proved
from capvisor.proofs.symbolic import SymInt, term_of
from capvisor.proofs.theorem import Given, implies
from capvisor.proofs.tpt_state import FRAME_BITS, VM_BITS, WALK_COLUMNS, AnyWords
from capvisor.spec.paging import (
    FRAME_FIELD,
    FRAME_NUMBERS,
    FRAME_SHIFT,
    LARGEST_LEAF,
    LEVELS,
    RESERVED_PHYSICAL,
    WORDS_PER_FRAME,
    Access,
    Entry,
    Mode,
    address_bits,
    frames_of,
    index_shift,
    walk_lookups,
    walk_references,
)
from capvisor.spec.tpt import FaultKind

BOUND, REACHED = "bound", "reached"
"""What is asked of a count: that no walk makes more, and that one makes as many."""

BOTH = "both"
"""What stands for a variant of the tag check in theorems that know none."""

COUNTS = {"count_native": Mode.NATIVE, "count_tpt": Mode.TPT, "count_nested": Mode.NESTED, "count_shadow": Mode.SHADOW}
"""The theorems on counts, by name."""


def _level_of(number: Any) -> int:
    """Which level a number is."""
    return next((level for level in range(1, LEVELS[-1]) if number == level), LEVELS[-1])


def _any_walk(given: Given, stage: int, name: str = "") -> Walk:
    """Any walk at a stage, at a level from 1 to 5."""
    parts: dict[str, Any] = {
        each.name: given.word(name + each.name, each.width) if each.width else given.flag(name + each.name)
        for each in WALK_COLUMNS
    }
    level = parts["level"]
    given.assume((level >= 1) & (level <= LEVELS[-1]) & (parts["access"] <= Access.FETCH))
    return Walk(**parts)._replace(is_live=True, stage=stage, level=_level_of(level))


def _index(walk: Walk) -> Any:
    return walk.address >> index_shift(walk.level) & WORDS_PER_FRAME - 1


def _any_words(name: str = "memory") -> AnyWords:
    return AnyWords(name, lambda: 1 << FRAME_BITS)


# -- any map of guest frames -----------------------------------------------------------------------------------------------


class AnyTags:
    """Tags, any; whether all frames of a page are one owner's is a function of its first frame."""

    def __init__(self, given: Given) -> None:
        self._given, self._tags = given, _function("tag", VM_BITS)

    def looked_up(self, frame: Any) -> Any:
        """A frame's tag."""
        return self._tags(frame)

    def uniform(self, base: Any, count: int, owner: Any) -> Any:
        """Whether so many frames are one owner's."""
        if count == 1:
            return self.looked_up(base) == owner
        return _function(f"uniform_{count}", 1)(base, owner) == 1


def _function(name: str, bits: int) -> Callable[..., Any]:
    """Any function of numbers."""

    def of(*numbers: Any) -> Any:
        widths = [FRAME_BITS + 4] * len(numbers)
        function = z3.Function(name, *map(z3.BitVecSort, widths), z3.BitVecSort(bits))
        terms = [symbolic.as_int(number).at(width) for number, width in zip(numbers, widths, strict=True)]
        return SymInt(z3.ZeroExt(1, function(*terms)), 0, (1 << bits) - 1)

    return of


@contextmanager
def host_walks(given: Given, located: Callable[[Any], Any], is_mapped: Callable[[Any], Any]) -> Iterator[None]:
    """A contract for the walks of the host's tables within `Nested`: they lead to where a guest frame is, or fail where it
    isn't mapped, and read as many words as `count_native` allows.
    """

    def translate(space: Any, address: Any, access: Any, is_user: Any) -> Walk:
        space.references += [Reference(space.kind, 0, 0, 0)] * walk_references(Mode.NATIVE, space.levels)
        guest_frame = address >> FRAME_SHIFT
        if not_(is_mapped(guest_frame)):
            raise Fault(FaultKind.PAGE)
        level = _function("host_level", 2)(guest_frame)
        given.assume(level >= 1)
        level = SymInt(level.term, 1, LARGEST_LEAF)
        frame, within = located(guest_frame), guest_frame & frames_of(level) - 1
        given.assume(frame & frames_of(level) - 1 == within)
        return Walk(True, address, access, is_user, DONE, leaf_frame=frame - within, leaf_level=level)

    original = paging.translate
    paging.translate = translate
    try:
        yield
    finally:
        paging.translate = original


# -- how many words a walk reads -------------------------------------------------------------------------------------------


def counts(name: str) -> list[Way]:
    """Every way through a step of any walk of a mode: that it reads no more than what is left falls by."""
    mode = COUNTS[name]
    host_levels = LEVELS if mode is Mode.NESTED else LEVELS[:1]
    return [way for stage in (READ, UPDATE) for host in host_levels for way in _counted(mode, stage, host)]


def _counted(mode: Mode, stage: int, host_levels: int) -> list[Way]:
    attempts: list[Given] = []

    def run() -> Any:
        given = Given()
        attempts.append(given)
        walk, memory = _any_walk(given, stage), _any_words()
        located, mapped = _function("located", FRAME_BITS - 4), _function("is_mapped", 1)
        space: Any
        if mode is Mode.TPT:
            space = Tagged(memory, walk.frame, walk.level, AnyTags(given), given.word("vm", VM_BITS))  # type: ignore[arg-type]
        elif mode is Mode.NESTED:
            space = Nested(memory, walk.frame, walk.level, 0, host_levels)  # type: ignore[arg-type]
            walk = walk._replace(frame=walk.frame & (1 << FRAME_BITS - 8) - 1)
        else:
            space = Direct(memory, walk.frame, walk.level)  # type: ignore[arg-type]
        is_nested = mode is Mode.NESTED
        table = located(walk.frame) if is_nested else walk.frame
        there = mapped(walk.frame) == 1 if is_nested else True
        if stage == UPDATE:
            # What an update finds is what the step before has read, where it was: nothing else happens within a walk.
            given.assume((memory.get(table, _index(walk)) == walk.entry) & there)
        with host_walks(given, located, lambda frame: mapped(frame) == 1):
            try:
                after = paging.advance(space, walk)
            except Fault:
                after = walk._replace(stage=DONE)
        of_table = 1 + (host_levels if is_nested else 0)
        of_page = host_levels if is_nested else 0
        holds = len(space.references) + _left(after, of_table, of_page) <= _left(walk, of_table, of_page)
        if mode is Mode.TPT:
            holds = holds & (len(space.lookups) + _left(after, 1, 1) <= _left(walk, 1, 1))
        holds = holds & (_rank(after) < _rank(walk))
        if stage == READ and after.stage == UPDATE:
            holds = holds & (memory.get(table, _index(walk)) == after.entry) & there
        return holds

    paths = symbolic.explore(run, most=500)
    return [_way(path, given, BOUND) for path, given in zip(paths, attempts, strict=True)]


def _way(path: Any, given: Given, name: str) -> Way:
    conditions = (*path.conditions, *map(term_of, given.assumptions))
    return Way(conditions, {name: (term_of(path.result),)}, True, ("",) * len(conditions), frozenset(), frozenset())


def _left(walk: Walk, of_table: int, of_page: int) -> Any:
    """The most that is left to count for a walk, if each table counts so much, and the page."""
    if walk.stage == DONE:
        return 0
    if walk.stage == READ:
        return walk.level * of_table + of_page
    return select(paging.is_leaf(walk.entry, walk.level), 0, (walk.level - 1) * of_table + of_page)


def _rank(walk: Walk) -> int:
    """What falls with each step of a walk, so that it ends."""
    return 0 if walk.stage == DONE else 2 * walk.level + (walk.stage == READ)


# -- walks that read as many -----------------------------------------------------------------------------------------------

_ADDRESS, _FRAMES = 0x123456789000, 64
_RIGHTS = (Entry.P | Entry.RW | Entry.US | Entry.A | Entry.D).value


class _OneOwner:
    """Tags of which all are one VM's."""

    def looked_up(self, _frame: int) -> int:
        """The VM's."""
        return int(Mode.TPT)

    def uniform(self, _base: int, _count: int, owner: int) -> bool:
        """Whether they are this owner's."""
        return owner == int(Mode.TPT)


def reached(name: str) -> bool:
    """Whether the reference makes as many references, and looks up as many tags, in walks of 4 and of 5 levels."""
    return all(_made(COUNTS[name], levels) for levels in LEVELS)


def _made(mode: Mode, levels: int) -> bool:
    memory, taken = SparseWords(_FRAMES), iter(range(1, _FRAMES))

    def take() -> int:
        return next(taken)

    def map_page(root: int, address: int, frame: int) -> None:
        for level in range(levels, 1, -1):
            index = address >> index_shift(level) & WORDS_PER_FRAME - 1
            if not memory.get(root, index):
                memory.set(root, index, take() << FRAME_SHIFT | _RIGHTS)
            root = paging.named_frame(memory.get(root, index))
        memory.set(root, address >> FRAME_SHIFT & WORDS_PER_FRAME - 1, frame << FRAME_SHIFT | _RIGHTS)

    root, page = take(), take()
    map_page(root, _ADDRESS, page)
    address = _ADDRESS & (1 << address_bits(levels)) - 1
    space: Any = Direct(memory, root, levels)
    if mode is Mode.SHADOW:
        shadow = Shadow(memory, space, levels, take)
        shadow.translate(address, Access.READ, True)
        return len(shadow.references) == walk_references(mode, levels) and shadow.exits == 1
    if mode is Mode.TPT:
        space = Tagged(memory, root, levels, _OneOwner(), int(Mode.TPT))
    if mode is Mode.NESTED:
        nested_root, guests = take(), range(1, take())
        for guest_frame in guests:
            map_page(nested_root, guest_frame << FRAME_SHIFT, guest_frame)
        space = Nested(memory, root, levels, nested_root, levels)
    walk = paging.translate(space, address, Access.READ, True)
    made = len(space.references) == walk_references(mode, levels, levels) and paging.addressed_frame(walk) == page
    return made and len(space.lookups) == walk_lookups(mode, levels)


# -- that the modes agree --------------------------------------------------------------------------------------------------

SAME = "same"
"""What is asked of modes: that steps of walks, and what a shadow table gives, are the same."""

REFINEMENTS = ("refines_nested", "refines_native", "refines_shadow")
"""The theorems that modes agree, by name."""


def refinements(name: str) -> list[Way]:
    """Every way through what two modes do."""
    if name == "refines_shadow":
        return [way for levels in LEVELS for way in _shadowed(levels)]
    return [way for stage in (READ, UPDATE) for way in _refined(stage, is_native=name == "refines_native")]


def composed(entry: Any, level: int, located: Callable[[Any], Any]) -> Any:
    """What an honest enlightened guest has in a table of a level where a plain one has an entry: the machine's frame.

    Entries that aren't present, or have reserved bits set, are the same.
    """

    def with_frame(size: int) -> Any:
        low = size - 1
        frame = located(paging.named_frame(entry) & ~low) | paging.named_frame(entry) & low
        return entry & ~FRAME_FIELD.in_place | frame << FRAME_SHIFT

    changed = with_frame(1)
    if 1 < level <= LARGEST_LEAF:
        changed = select(paging.is_leaf(entry, level), with_frame(frames_of(level)), changed)
    return select(_names(entry), changed, entry)


def _names(entry: Any) -> Any:
    """Whether an entry is present and names a frame that there may be."""
    return (entry & Entry.P.value != 0) & (entry & RESERVED_PHYSICAL == 0)


def _refined(stage: int, *, is_native: bool) -> list[Way]:
    """A step of a walk by TPT, and the same step nested or native."""
    attempts: list[Given] = []

    def run() -> Any:
        given = Given()
        attempts.append(given)
        vm, tag = given.word("vm", VM_BITS), _function("tag", VM_BITS)
        place = _function("located", FRAME_NUMBERS.bit_length() - 1)
        tags = AnyTags(given)

        def located(guest_frame: Any) -> Any:
            return guest_frame if is_native else place(guest_frame)

        def is_mapped(guest_frame: Any) -> Any:
            # A guest frame that isn't mapped has a number of the machine's that isn't the VM's.
            return tag(located(guest_frame)) == vm

        walk = _any_walk(given, stage)
        walk = walk._replace(frame=walk.frame & FRAME_NUMBERS - 1, is_cached=False)
        if stage == READ:
            walk = walk._replace(leaf_frame=0, leaf_level=0)
        table, index = located(walk.frame), _index(walk)
        plain, own = _any_words("plain"), _any_words("own")
        # The honest guest: the word that is read is the plain one's, composed.
        first = plain.get(table, index)
        own.set(table, index, composed(first, walk.level, located))
        page = paging.named_frame(first) & ~(frames_of(min(walk.level, LARGEST_LEAF)) - 1)
        if 1 < walk.level <= LARGEST_LEAF:
            # It maps large pages where the machine's frames are in a row and aligned, all of them or none its own.
            size = frames_of(walk.level)
            accessed = page + paging.frame_in_page(walk.address, walk.level)
            in_a_row = (located(page) & size - 1 == 0) & (
                located(accessed) == located(page) + paging.frame_in_page(walk.address, walk.level)
            )
            whole = tags.uniform(located(page), size, vm) == is_mapped(accessed)
            given.assume(implies(paging.is_leaf(first, walk.level), in_a_row & whole))
        if is_native:
            # All frames are one's own.
            given.assume(is_mapped(walk.frame) & is_mapped(page))
            if 1 < walk.level <= LARGEST_LEAF:
                given.assume(is_mapped(accessed))
        other = walk._replace(frame=table, entry=composed(walk.entry, walk.level, located) if stage == UPDATE else 0)
        if stage == UPDATE:
            given.assume((first == walk.entry) & _names(walk.entry) & is_mapped(walk.frame) & _permitted(walk))
        space: Any = Nested(plain, walk.frame, walk.level, 0, LEVELS[0])  # type: ignore[arg-type]
        if is_native:
            space = Direct(plain, walk.frame, walk.level)  # type: ignore[arg-type]
        by_tags = Tagged(own, table, walk.level, tags, vm)  # type: ignore[arg-type]
        with host_walks(given, located, is_mapped):
            one, two = _outcome(space, walk), _outcome(by_tags, other)
        # Memory: the word that was read stays composed, and nothing else changes.
        holds = own.get(table, index) == composed(plain.get(table, index), walk.level, located)
        any_frame, any_index = given.word("any_frame", FRAME_BITS), given.word("any_index", 9)
        here = (any_frame == table) & (any_index == index)
        for words, name in ((plain, "plain"), (own, "own")):
            before = _any_words(name).get(any_frame, any_index)
            holds = holds & (here | (words.get(any_frame, any_index) == before))
        return holds & _same(stage, one, two, located)

    paths = symbolic.explore(run, most=500)
    return [_way(path, given, SAME) for path, given in zip(paths, attempts, strict=True)]


def _outcome(space: Any, walk: Walk) -> Walk | Fault:
    try:
        return paging.advance(space, walk)
    except Fault as fault:
        return fault


def _same(stage: int, plain: Walk | Fault, own: Walk | Fault, located: Callable[[Any], Any]) -> Any:
    """Whether a step has led to the same: a fault of the same cause, or walks that are the same but for frames' numbers."""
    if isinstance(plain, Fault) or isinstance(own, Fault):
        if not (isinstance(plain, Fault) and isinstance(own, Fault)):
            return False
        if plain.kind is FaultKind.PAGE:
            return (own.kind is FaultKind.PAGE) & (plain.code == own.code)
        return plain.kind is FaultKind.NESTED and own.kind is FaultKind.TAG
    if plain.stage != own.stage or plain.level != own.level:
        return False
    holds = _permitted(plain)
    for name in ("address", "access", "is_user", "is_writable", "is_user_page", "is_executable", "is_dirty", "is_global"):
        holds = holds & (getattr(plain, name) == getattr(own, name))
    if plain.stage != DONE:
        holds = holds & (own.frame == located(plain.frame))
    if plain.stage == UPDATE:
        holds = holds & (own.entry == composed(plain.entry, plain.level, located)) & _names(plain.entry)
    if stage == UPDATE:
        # What was found is kept.
        return holds & (plain.leaf_frame == own.leaf_frame) & (plain.leaf_level == own.leaf_level)
    has_page = [not (isinstance(walk.leaf_level, int) and walk.leaf_level == 0) for walk in (plain, own)]
    if any(has_page):
        return all(has_page) and holds & (paging.addressed_frame(plain) == paging.addressed_frame(own))
    return holds


def _permitted(walk: Walk) -> Any:
    """Whether a walk that has found its page permits its access, and if it is done, has set the bits of it."""
    if walk.stage == READ:
        return True
    holds = implies(walk.access == Access.WRITE, walk.is_writable) & implies(walk.is_user, walk.is_user_page)
    holds = holds & implies(walk.access == Access.FETCH, walk.is_executable)
    if walk.stage == UPDATE:
        return implies(paging.is_leaf(walk.entry, walk.level), holds)
    return holds & implies(walk.access == Access.WRITE, walk.is_dirty)


def _shadowed(levels: int) -> list[Way]:
    """An exit of shadow paging after the host has forgotten its pages: what its table then gives is what was found."""
    attempts: list[Given] = []

    def run() -> Any:
        given = Given()
        attempts.append(given)
        found = _any_walk(given, DONE, "found_")
        address = given.word("address", address_bits(levels))
        level = _level_of_page(found)
        page = found.leaf_frame & FRAME_NUMBERS - 1 & ~(frames_of(level) - 1)
        found = found._replace(address=address, leaf_frame=page, leaf_level=level)
        given.assume(_permitted(found))
        memory, guest, taken = _any_words("shadow"), object(), iter(range(1, 2 * levels))
        memory.clear_all()
        whole = paging.translate
        shadow = Shadow(memory, guest, levels, lambda: next(taken))  # type: ignore[arg-type]
        paging.translate = lambda space, *asked: found if space is guest else whole(space, *asked)
        try:
            given_back = shadow.translate(address, found.access, found.is_user)
        finally:
            paging.translate = whole
        same = paging.addressed_frame(given_back) == paging.addressed_frame(found)
        same = same & (given_back.is_user_page == found.is_user_page) & (given_back.is_executable == found.is_executable)
        same = same & (given_back.is_writable == found.is_writable & found.is_dirty)
        return same & (given_back.is_global == found.is_global) & (shadow.exits == 1)

    paths = symbolic.explore(run, most=500, expected=(AssertionError,))
    ways = []
    for path, given in zip(paths, attempts, strict=True):
        conditions = (*path.conditions, *map(term_of, given.assumptions))
        goal = term_of(False if path.exception is not None else path.result)
        ways.append(Way(conditions, {SAME: (goal,)}, True, ("",) * len(conditions), frozenset(), frozenset()))
    return ways


def _level_of_page(walk: Walk) -> int:
    return next((level for level in range(1, LARGEST_LEAF) if walk.leaf_level == level), LARGEST_LEAF)


def steps() -> dict[str, str]:
    """The theorems, by name, with their kind."""
    return {**dict.fromkeys(COUNTS, "count"), **dict.fromkeys(REFINEMENTS, "refinement")}


def prove(name: str, timeout_s: float) -> Proved:
    """What is found of a theorem."""
    if name in REFINEMENTS:
        return asked_of(refinements(name), (SAME,), timeout_s)
    found = asked_of(counts(name), (BOUND,), timeout_s)
    return replace(found, kept=found.kept | {REACHED: Kept("unsat" if reached(name) else "sat")})
