"""Walks of page tables, many at once, against the reference, one by one: how they end, what they read, what they leave."""

from typing import Any

import numpy as np
import pytest

from capvisor.campaign.tpt_states import present, written
from capvisor.fastpath import paging as fast
from capvisor.model import paging
from capvisor.model.tags import TagTable
from capvisor.spec.paging import FIRST_VM, FRAME_SHIFT, WORDS_PER_FRAME, Access, Entry, Mode, walk_lookups, walk_references
from capvisor.spec.tpt import FaultKind

FRAMES, SYSTEMS, WALKS = 1100, 6, 40
ROOT, NESTED_ROOT = 3, 9

FLAGS = (0x67, 0x67, 0x67, 0x27, 0x07, 0x07, 0x03, 0x05, 0x163, 0x167, 0x127)
"""Of drawn entries: present, writable, user, accessed, dirty, global."""

INDICES = (0, 1, 2, 511)
"""Of tables' entries that are drawn."""


class Draw:
    """Draws entries of tables and addresses, in a memory of so many frames."""

    def __init__(self, seed: int, frames: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.frames = frames

    def one_of(self, values: Any) -> int:
        return int(values[self.rng.integers(len(values))])

    def chance(self, one_in: int) -> bool:
        return bool(self.rng.integers(one_in) == 0)

    def frame(self) -> int:
        """One of few, now and then of any, or none."""
        if self.chance(40):
            return self.one_of((self.frames, self.frames + 1, 1 << 33, 1 << 34, (1 << 64) - 1))
        if self.chance(3):
            return int(self.rng.integers(self.frames))
        return int(self.rng.integers(min(12, self.frames)))

    def entry(self) -> int:
        """A page-table entry."""
        if self.chance(30):
            return int(self.rng.integers(1 << 63)) * 2 + self.one_of((0, 1))
        frame = self.frame() if self.chance(4) else int(self.rng.integers(min(9, self.frames)))
        entry = (frame & (1 << 34) - 1) << 12 | self.one_of(FLAGS)
        for one_in, bits in ((12, 0x80), (30, 1 << 63), (60, 1 << 50), (60, 0x1000), (40, 1)):
            if self.chance(one_in):
                entry ^= bits
        if self.chance(12):
            entry = entry & ~0x3FFFF000 & ~0x1FF000 | self.one_of((0, 0, 0x200000, 0x1000)) | 0x80
        return entry

    def address(self) -> int:
        """A virtual address, by few indices, canonical but for one in forty."""
        address = self.one_of((0, 0, 8, 0xFF8, 4))
        levels = self.one_of((4, 5))
        for level in range(levels):
            address |= self.one_of(INDICES if level < 3 else (0, 0, 511)) << 12 + 9 * level
        if address >> 11 + 9 * levels + 0 & 1 and levels == 4:
            address |= 0xFFFF << 48
        if levels == 5 and address >> 56 & 1:
            address |= 0x7F << 57
        if self.chance(40):
            address ^= 1 << self.one_of((47, 48, 56, 63))
        return address


def drawn_memory(seed: int) -> fast.Memory:
    """Guests' tables in frames 0 to 8, the host's in 9 to 13: those mostly map a guest frame to itself or nearby."""
    rng, draw = np.random.default_rng(seed), Draw(seed, FRAMES)
    words = np.zeros((SYSTEMS, FRAMES * WORDS_PER_FRAME), np.uint64)
    tags = np.full((SYSTEMS, FRAMES), FIRST_VM, np.uint32)
    tags[rng.random(tags.shape) < 0.0005] = FIRST_VM + 1
    for system in range(SYSTEMS):
        for frame in range(9):
            for index in (0, 1, 2, 511):
                words[system, frame * WORDS_PER_FRAME + index] = draw.entry()
        for depth in range(4):
            frame = NESTED_ROOT + depth
            words[system, frame * WORDS_PER_FRAME] = frame + 1 << FRAME_SHIFT | draw.one_of((7, 0x67, 0x27))
        if draw.chance(2):
            words[system, (NESTED_ROOT + 3) * WORDS_PER_FRAME] = draw.one_of((0x87, 0xE7, 0x85))
        last = (NESTED_ROOT + 4) * WORDS_PER_FRAME
        own = np.arange(WORDS_PER_FRAME, dtype=np.uint64) << np.uint64(FRAME_SHIFT) | np.uint64(7)
        own[rng.random(len(own)) < 0.03] &= np.uint64(~2 & (1 << 64) - 1)
        words[system, last : last + WORDS_PER_FRAME] = own
        # Four levels begin one table later.
        words[system, last : last + 2] |= np.uint64(int(Entry.A))
    return fast.Memory(words, tags)


class Reference:
    """One system of the reference that begins as a row of `Memory`."""

    def __init__(self, space: fast.Memory, system: int) -> None:
        self.memory, self.tags = paging.SparseWords(FRAMES), TagTable(FRAMES)
        for place, word in present(space.words[system]).items():
            self.memory.set(*divmod(place, WORDS_PER_FRAME), word)
        for frame, tag in enumerate(space.tags[system].tolist()):
            self.tags[frame] = tag

    def space(self, mode: Mode, levels: int, nested_levels: int) -> Any:
        if mode is Mode.TPT:
            return paging.Tagged(self.memory, ROOT, levels, self.tags, FIRST_VM)
        if mode is Mode.NESTED:
            return paging.Nested(self.memory, ROOT, levels, nested_root(nested_levels), nested_levels)
        return paging.Direct(self.memory, ROOT, levels)

    def walk(self, mode: Mode, levels: int, nested_levels: int, address: int, access: int, is_user: bool) -> dict[str, int]:
        """How a walk ends, by the names of `fast.Outcome`."""
        space = self.space(mode, levels, nested_levels)
        ended = dict.fromkeys(fast.Outcome._fields, 0)
        try:
            if not paging.is_canonical(address, levels):
                raise paging.Fault(FaultKind.GENERAL)
            found = paging.translate(space, paging.cut(address, levels), access, is_user)
            ended["physical"] = paging.addressed_frame(found) << FRAME_SHIFT | address & 0xFFF
            ended["level"] = found.leaf_level
        except paging.Fault as fault:
            ended["fault"] = int(fault.kind)
            ended["detail"] = fault.code if fault.kind is FaultKind.PAGE else fault.frame
        ended["references"], ended["lookups"] = len(space.references), len(space.lookups)
        return ended


def nested_root(nested_levels: int) -> int:
    return NESTED_ROOT + 5 - nested_levels


KINDS = [(mode, levels, nested) for mode in (Mode.NATIVE, Mode.TPT) for levels in (4, 5) for nested in (4,)]
KINDS += [(Mode.NESTED, levels, nested) for levels in (4, 5) for nested in (4, 5)]


@pytest.mark.parametrize(("mode", "levels", "nested_levels"), KINDS)
def test_walks_end_as_those_of_the_reference_and_leave_the_same_memory(mode: Mode, levels: int, nested_levels: int) -> None:
    kinds = set()
    for seed in range(6):
        space, draw = drawn_memory(seed), Draw(seed, FRAMES)
        references = [Reference(space, system) for system in range(SYSTEMS)]
        translation = fast.Translation(mode, levels, nested_levels, sets_bits=True)
        for _ in range(WALKS):
            addresses = [draw.address() for _ in range(SYSTEMS)]
            accesses, users = (np.array([draw.one_of(range(n)) for _ in range(SYSTEMS)], np.uint8) for n in (3, 2))
            needed = np.empty(SYSTEMS, np.uint64)
            fast.needed_rights(accesses, users.astype(np.bool_), needed)
            address = np.array(addresses, np.uint64)
            systems = np.arange(SYSTEMS, dtype=np.uint64)
            out = fast.walk(
                space, translation, address, ROOT << 12, needed, FIRST_VM, nested_root(nested_levels) << 12, systems
            )
            for system, reference in enumerate(references):
                access, is_user = int(accesses[system]), bool(users[system])
                expected = reference.walk(mode, levels, nested_levels, addresses[system], access, is_user)
                ended = {name: int(column[system]) for name, column in out._asdict().items()}
                if expected["fault"]:
                    ended["level"] = 0
                assert ended == expected, (seed, system, hex(addresses[system]), access, is_user)
                kinds.add((expected["fault"], expected["level"]))
        for system, reference in enumerate(references):
            assert present(space.words[system]) == written(reference.memory)
    faults = {FaultKind.NONE, FaultKind.PAGE, FaultKind.GENERAL}
    faults |= {Mode.TPT: {FaultKind.TAG}, Mode.NESTED: {FaultKind.NESTED}}.get(mode, set())
    assert {fault for fault, _level in kinds} == faults
    assert {level for fault, level in kinds if not fault} >= {1, 2}


def chain(levels: int, nested_levels: int) -> fast.Memory:
    """Tables in which page 0 is reached through all levels of both dimensions."""
    words = np.zeros((1, 64 * WORDS_PER_FRAME), np.uint64)
    for depth in range(levels):
        words[0, (ROOT + depth) * WORDS_PER_FRAME] = ROOT + depth + 1 << FRAME_SHIFT | 7
    first, last = 20, 20 + nested_levels - 1
    for frame in range(first, last):
        words[0, frame * WORDS_PER_FRAME] = frame + 1 << FRAME_SHIFT | 7
    for frame in range(64):
        words[0, last * WORDS_PER_FRAME + frame] = frame << FRAME_SHIFT | 7
    return fast.Memory(words, np.full((1, 64), FIRST_VM, np.uint32))


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("nested_levels", [4, 5])
@pytest.mark.parametrize("mode", Mode)
def test_a_walk_reads_and_looks_up_as_much_as_it_may(mode: Mode, levels: int, nested_levels: int) -> None:
    needed = np.full(1, int(Entry.US), np.uint64)
    translation = fast.Translation(mode, levels, nested_levels)
    space, address = chain(levels, nested_levels), np.array([0x123], np.uint64)
    out = fast.walk(space, translation, address, ROOT << FRAME_SHIFT, needed, FIRST_VM, 20 << FRAME_SHIFT)
    assert (out.fault[0], out.physical[0]) == (FaultKind.NONE, ROOT + levels << FRAME_SHIFT | 0x123)
    assert (out.references[0], out.lookups[0]) == (walk_references(mode, levels, nested_levels), walk_lookups(mode, levels))


def test_walks_of_several_blocks_in_one_memory_end_as_each_alone() -> None:
    space, draw, count = drawn_memory(1), Draw(1, FRAMES), fast.BLOCK_WALKS + 100
    one = fast.Memory(space.words[:1], space.tags[:1])
    pool = np.array([draw.address() for _ in range(200)], np.uint64)
    picked = np.random.default_rng(1).integers(len(pool), size=count)
    for mode in (Mode.NATIVE, Mode.NESTED, Mode.TPT):
        translation, needed = fast.Translation(mode), np.full(count, int(Entry.US), np.uint64)
        root, nested = ROOT << FRAME_SHIFT, nested_root(4) << FRAME_SHIFT
        together = fast.walk(one, translation, pool[picked], root, needed, FIRST_VM, nested)
        alone = fast.walk(one, translation, pool, root, needed[: len(pool)], FIRST_VM, nested)
        for column, expected in zip(together, alone, strict=True):
            assert (column == expected[picked]).all()


def test_two_walks_of_one_entry_in_a_block_leave_both_bits_set() -> None:
    for accesses in ((Access.READ, Access.WRITE), (Access.WRITE, Access.READ)):
        space, needed = chain(4, 4), np.empty(2, np.uint64)
        fast.needed_rights(np.array(accesses, np.uint8), 1, needed)
        fast.walk(space, fast.Translation(Mode.NATIVE, sets_bits=True), np.zeros(2, np.uint64), ROOT << FRAME_SHIFT, needed)
        assert space.words[0, (ROOT + 3) * WORDS_PER_FRAME] & 0x60 == 0x60
        assert space.words[0, ROOT * WORDS_PER_FRAME] & 0x60 == 0x20
