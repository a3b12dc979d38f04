"""Walks in all modes: references counted, rights, accessed and dirty bits, faults, and that the modes agree."""

import itertools
import random

import pytest

from capvisor.model.paging import (
    Direct,
    Fault,
    Nested,
    Shadow,
    Space,
    SparseWords,
    Tagged,
    addressed_frame,
    advance,
    begin,
    is_canonical,
    translate,
)
from capvisor.model.tags import TagTable
from capvisor.spec.paging import (
    FRAME_SHIFT,
    LARGEST_LEAF,
    LEVEL_NAMES,
    LEVELS,
    PAGE_LEVELS,
    PHYSICAL_BITS,
    Access,
    Entry,
    ErrorCode,
    Mode,
    address_bits,
    frames_of,
    index_shift,
    reserved,
    walk_lookups,
    walk_references,
)
from capvisor.spec.tpt import FaultKind

P, RW, US, A, D, PS, G, NX = (
    int(each) for each in (Entry.P, Entry.RW, Entry.US, Entry.A, Entry.D, Entry.PS, Entry.G, Entry.NX)
)
VM = 2
FRAMES = 1 << 20


class Tables:
    """Page tables under construction: frames for tables are taken from a number upwards."""

    def __init__(self, memory: SparseWords, levels: int, first: int) -> None:
        self.memory, self.levels, self.root, self.next = memory, levels, first, first + 1

    def take(self) -> int:
        self.next += 1
        return self.next - 1

    def place(self, address: int, level: int, flags: int = P | RW | US) -> tuple[int, int]:
        """Where the entry of a level for an address is; tables above it are made."""
        table = self.root
        for above in range(self.levels, level, -1):
            index = address >> index_shift(above) & 511
            if not self.memory.get(table, index):
                self.memory.set(table, index, self.take() << FRAME_SHIFT | flags)
            table = self.memory.get(table, index) >> FRAME_SHIFT & (1 << 40) - 1
        return table, address >> index_shift(level) & 511

    def map(self, address: int, frame: int, level: int = 1, flags: int = P | RW | US) -> None:
        large = PS if level > 1 else 0
        self.memory.set(*self.place(address, level), frame << FRAME_SHIFT | flags | large)


def outcome(space: Space, address: int, access: int = Access.READ, is_user: bool = False) -> object:
    """The frame and rights of a walk, or the fault."""
    try:
        walk = translate(space, address, access, is_user)
    except Fault as fault:
        return fault.kind, fault.code
    return addressed_frame(walk), walk.is_writable, walk.is_user_page, walk.is_executable


@pytest.fixture
def memory() -> SparseWords:
    return SparseWords(FRAMES)


ADDRESS = 0x1234_5678_9000


def identity(memory: SparseWords, levels: int, first: int, frames: int) -> int:
    """Nested tables that map guest frames to themselves, 4 KiB each; their root."""
    tables = Tables(memory, levels, first)
    for frame in range(frames):
        tables.map(frame << FRAME_SHIFT, frame)
    return tables.root


# -- counts ----------------------------------------------------------------------------------------------------------------


def test_the_maxima_are_the_textbooks():
    assert [walk_references(mode, levels, levels) for mode in Mode for levels in LEVELS] == [4, 5, 24, 35, 4, 5, 4, 5]
    assert [walk_lookups(Mode.TPT, levels) for levels in LEVELS] == [5, 6]


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("size", PAGE_LEVELS)
def test_a_native_walk_reads_one_entry_a_level(memory, levels, size):
    tables = Tables(memory, levels, 1)
    tables.map(ADDRESS, 1 << 18, PAGE_LEVELS[size])
    space = Direct(memory, tables.root, levels)
    translate(space, ADDRESS, Access.READ, False)
    assert [each.level for each in space.references] == list(range(levels, PAGE_LEVELS[size] - 1, -1))
    assert len(space.references) == walk_references(Mode.NATIVE, levels) - PAGE_LEVELS[size] + 1


@pytest.mark.parametrize(("levels", "nested_levels"), list(itertools.product(LEVELS, LEVELS)))
@pytest.mark.parametrize("size", PAGE_LEVELS)
def test_a_nested_walk_reads_in_two_dimensions(memory, levels, nested_levels, size):
    guest = Tables(memory, levels, 1)
    guest.map(ADDRESS, 0, PAGE_LEVELS[size])
    root = identity(memory, nested_levels, 4096, 16)
    Tables(memory, nested_levels, root).map(0, 0)
    nested = Tables(memory, nested_levels, root)
    nested.next = 8192
    frame = ADDRESS >> FRAME_SHIFT & frames_of(PAGE_LEVELS[size]) - 1
    nested.map(frame << FRAME_SHIFT, frame)
    space = Nested(memory, guest.root, levels, root, nested_levels)
    translate(space, ADDRESS, Access.READ, False)
    guest_levels = levels - PAGE_LEVELS[size] + 1
    assert len(space.references) == (guest_levels + 1) * (nested_levels + 1) - 1
    if size == "4K":
        assert len(space.references) == walk_references(Mode.NESTED, levels, nested_levels)
    kinds = [each.kind for each in space.references]
    assert kinds == (["nested"] * nested_levels + ["table"]) * guest_levels + ["nested"] * nested_levels


@pytest.mark.parametrize("levels", LEVELS)
def test_a_tpt_walk_reads_as_many_as_native_and_looks_up_one_tag_each_and_the_pages(memory, levels):
    tables, tags = Tables(memory, levels, 1), TagTable(FRAMES)
    tables.map(ADDRESS, 99)
    for frame in (*range(1, 16), 99):
        tags[frame] = VM
    space = Tagged(memory, tables.root, levels, tags, VM)
    translate(space, ADDRESS, Access.READ, False)
    assert len(space.references) == walk_references(Mode.TPT, levels)
    assert len(space.lookups) == walk_lookups(Mode.TPT, levels)
    assert space.lookups == [each.frame for each in space.references] + [99]
    assert space.update_lookups == [each.frame for each in space.updates]


@pytest.mark.parametrize("levels", LEVELS)
def test_a_shadow_walk_reads_as_many_as_native(memory, levels):
    guest = Tables(memory, levels, 1)
    guest.map(ADDRESS, 7)
    root = identity(memory, 4, 4096, 16)
    supply = itertools.count(8192)
    shadow = Shadow(memory, Nested(memory, guest.root, levels, root, 4), levels, lambda: next(supply))
    assert addressed_frame(shadow.translate(ADDRESS, Access.READ, False)) == 7
    assert (shadow.exits, len(shadow.references)) == (1, walk_references(Mode.SHADOW, levels))
    shadow.translate(ADDRESS, Access.READ, False)
    assert shadow.exits == 1
    shadow.translate(ADDRESS, Access.WRITE, False)
    assert shadow.exits == 2  # the dirty bit
    guest.map(ADDRESS, 8)
    shadow.forget()
    assert addressed_frame(shadow.translate(ADDRESS, Access.READ, False)) == 8


@pytest.mark.parametrize("seed", range(200))
def test_no_walk_of_random_tables_exceeds_the_maximum(memory, seed):
    rng = random.Random(seed)
    levels, nested_levels = rng.choice(LEVELS), rng.choice(LEVELS)
    for frame in range(4):
        for index in (0, 1, 511):
            memory.set(frame, index, random_entry(rng))
    root = identity(memory, nested_levels, 4096, 4)
    address = sum(rng.choice((0, 1, 511)) << index_shift(level) for level in range(1, levels + 1))
    for mode, space in (
        (Mode.NATIVE, Direct(memory, 0, levels)),
        (Mode.NESTED, Nested(memory, 0, levels, root, nested_levels)),
    ):
        outcome(space, address, rng.choice(list(Access)), rng.random() < 0.5)
        assert 1 <= len(space.references) <= walk_references(mode, levels, nested_levels)


def random_entry(rng: random.Random) -> int:
    flags = P if rng.random() < 0.9 else 0
    for bit, chance in ((RW, 0.8), (US, 0.8), (A, 0.5), (D, 0.5), (PS, 0.15), (G, 0.3), (NX, 0.2)):
        flags |= bit if rng.random() < chance else 0
    return rng.randrange(4) << FRAME_SHIFT | flags


# -- pages, rights and bits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "levels"), list(itertools.product(PAGE_LEVELS, LEVELS)))
def test_a_page_of_every_size_translates_its_offset(memory, size, levels):
    level = PAGE_LEVELS[size]
    tables = Tables(memory, levels, 1)
    base = 3 << 18
    tables.map(ADDRESS, base, level, P | RW)
    walk = translate(Direct(memory, tables.root, levels), ADDRESS | 0xABC, Access.READ, False)
    assert (walk.leaf_frame, walk.leaf_level) == (base, level)
    assert addressed_frame(walk) == base + (ADDRESS >> FRAME_SHIFT) % frames_of(level)


@pytest.mark.parametrize("access", Access)
def test_accessed_bits_are_set_in_every_entry_and_the_dirty_bit_in_a_written_pages(memory, access):
    tables = Tables(memory, 4, 1)
    tables.map(ADDRESS, 99)
    translate(Direct(memory, tables.root, 4), ADDRESS, access, False)
    entries = [memory.get(*tables.place(ADDRESS, level)) & (A | D) for level in range(4, 0, -1)]
    assert entries == [A, A, A, A | (D if access == Access.WRITE else 0)]


def test_a_walk_writes_nothing_where_the_bits_are_set(memory):
    tables = Tables(memory, 4, 1)
    tables.map(ADDRESS, 99)
    translate(Direct(memory, tables.root, 4), ADDRESS, Access.WRITE, False)
    space = Direct(memory, tables.root, 4)
    assert translate(space, ADDRESS, Access.WRITE, False).is_dirty
    assert space.updates == []


def test_a_refused_access_sets_no_bit_in_the_pages_own_entry(memory):
    tables = Tables(memory, 4, 1)
    tables.map(ADDRESS, 99, flags=P)
    assert outcome(Direct(memory, tables.root, 4), ADDRESS, Access.WRITE) == (FaultKind.PAGE, ErrorCode.P | ErrorCode.WR)
    assert memory.get(*tables.place(ADDRESS, 1)) & (A | D) == 0
    assert memory.get(*tables.place(ADDRESS, 2)) & A


@pytest.mark.parametrize("level", range(1, 5))
@pytest.mark.parametrize(
    ("bit", "access", "is_user", "code"),
    [
        (RW, Access.WRITE, False, ErrorCode.P | ErrorCode.WR),
        (US, Access.READ, True, ErrorCode.P | ErrorCode.US),
        (NX, Access.FETCH, False, ErrorCode.P | ErrorCode.ID),
        (P, Access.READ, False, 0),
    ],
)
def test_a_right_must_be_given_at_every_level(memory, level, bit, access, is_user, code):
    tables = Tables(memory, 4, 1)
    tables.map(ADDRESS, 99)
    assert outcome(Direct(memory, tables.root, 4), ADDRESS, access, is_user)[0] == 99
    place = tables.place(ADDRESS, level)
    memory.set(*place, memory.get(*place) ^ bit)
    assert outcome(Direct(memory, tables.root, 4), ADDRESS, access, is_user) == (FaultKind.PAGE, code)
    other = Access.READ if access != Access.READ or bit == US else Access.WRITE
    allowed = outcome(Direct(memory, tables.root, 4), ADDRESS, other, False)
    assert (allowed[0] == 99) is (bit != P)


@pytest.mark.parametrize("levels", LEVELS)
def test_reserved_bits_fault_at_every_level_and_only_in_present_entries(memory, levels):
    tables = Tables(memory, levels, 1)
    tables.map(ADDRESS, 99)
    for level in range(1, levels + 1):
        place = tables.place(ADDRESS, level)
        entry = memory.get(*place)
        forbidden = [1 << bit for bit in range(PHYSICAL_BITS, 52)] + ([PS] if level > LARGEST_LEAF else [])
        for bit in forbidden:
            memory.set(*place, entry | bit)
            assert outcome(Direct(memory, tables.root, levels), ADDRESS) == (FaultKind.PAGE, ErrorCode.P | ErrorCode.RSVD)
            memory.set(*place, (entry | bit) & ~P)
            assert outcome(Direct(memory, tables.root, levels), ADDRESS) == (FaultKind.PAGE, 0)
        for bit in (*range(9, 12), *range(52, 63)):
            memory.set(*place, entry | 1 << bit)
            assert outcome(Direct(memory, tables.root, levels), ADDRESS)[0] == 99
        memory.set(*place, entry)


@pytest.mark.parametrize(("level", "bits"), [(2, range(13, 21)), (3, range(13, 30))])
def test_a_large_pages_base_is_aligned_but_for_the_pat_bit(memory, level, bits):
    assert reserved(level, True) & (1 << PHYSICAL_BITS) - 1 == sum(1 << bit for bit in bits)
    tables = Tables(memory, 4, 1)
    for bit in (12, *bits):
        tables.map(ADDRESS, 1 << bit - FRAME_SHIFT, level)
        found = outcome(Direct(memory, tables.root, 4), ADDRESS)
        inside = (ADDRESS >> FRAME_SHIFT) % frames_of(level)
        assert found == ((inside, True, True, True) if bit == 12 else (FaultKind.PAGE, ErrorCode.P | ErrorCode.RSVD))


@pytest.mark.parametrize("levels", LEVELS)
def test_canonical_addresses_repeat_the_highest_translated_bit(levels):
    half = 1 << address_bits(levels) - 1
    assert all(is_canonical(each, levels) for each in (0, half - 1, (1 << 64) - half, (1 << 64) - 1))
    assert not any(is_canonical(each, levels) for each in (half, (1 << 64) - half - 1, 1 << 63))


def test_an_entry_changed_under_the_walk_is_read_again(memory):
    tables = Tables(memory, 4, 1)
    tables.map(ADDRESS, 99)
    space = Direct(memory, tables.root, 4)
    walk = begin(space, ADDRESS, Access.READ, False)
    for _ in range(7):
        walk = advance(space, walk)
    tables.map(ADDRESS, 98)
    walk = advance(space, walk)
    assert (walk.level, walk.leaf_level) == (4, 0)
    assert memory.get(*tables.place(ADDRESS, 1)) & A == 0
    while not walk.leaf_level:
        walk = advance(space, walk)
    assert walk.leaf_frame == 98


def test_levels_have_the_manuals_names():
    assert list(LEVEL_NAMES.values()) == ["PTE", "PDE", "PDPTE", "PML4E", "PML5E"]


# -- nested rights and faults ----------------------------------------------------------------------------------------------


def test_what_the_hosts_tables_lack_is_the_hosts_fault(memory):
    guest = Tables(memory, 4, 1)
    guest.map(ADDRESS, 99)
    root = identity(memory, 4, 4096, 8)
    with pytest.raises(Fault) as raised:
        translate(Nested(memory, guest.root, 4, root, 4), ADDRESS, Access.READ, False)
    assert (raised.value.kind, raised.value.frame) == (FaultKind.NESTED, 99)


def test_guest_tables_must_be_writable_and_for_users_in_the_hosts_tables(memory):
    guest = Tables(memory, 4, 1)
    guest.map(ADDRESS, 7)
    root = identity(memory, 4, 4096, 16)
    host = Tables(memory, 4, root)
    for flags in (P | US, P | RW):
        host.map(guest.root << FRAME_SHIFT, guest.root, flags=flags)
        with pytest.raises(Fault) as raised:
            translate(Nested(memory, guest.root, 4, root, 4), ADDRESS, Access.READ, False)
        assert (raised.value.kind, raised.value.frame) == (FaultKind.NESTED, guest.root)


@pytest.mark.parametrize(("guest_level", "host_level"), list(itertools.product((1, 2, 3), repeat=2)))
def test_a_nested_page_is_as_large_as_the_smaller_of_the_two(memory, guest_level, host_level):
    guest, host = Tables(memory, 4, 1), Tables(memory, 4, 4096)
    guest_base, host_base = 1 << 18, 2 << 18
    guest.map(ADDRESS, guest_base, guest_level)
    inside = guest_base + (ADDRESS >> FRAME_SHIFT) % frames_of(guest_level)
    aligned = inside // frames_of(host_level) * frames_of(host_level)
    host.map(inside << FRAME_SHIFT, host_base, host_level)
    for frame in range(1, 8):
        host.map(frame << FRAME_SHIFT, frame)
    walk = translate(Nested(memory, guest.root, 4, host.root, 4), ADDRESS, Access.READ, False)
    assert walk.leaf_level == min(guest_level, host_level)
    assert addressed_frame(walk) == host_base + inside - aligned
    assert walk.leaf_frame % frames_of(walk.leaf_level) == 0


# -- the modes agree -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(150))
def test_an_honest_guest_sees_the_same_through_tpt_nested_and_shadow_tables(seed):
    """T11: the enlightened guest's tables are the plain guest's with each frame replaced by where the host has put it."""
    rng = random.Random(seed)
    levels, count = rng.choice(LEVELS), 8
    places = dict(zip(range(count), rng.sample(range(64, 128), count), strict=True))
    indices = (0, 1, 511)
    plain = {(frame, index): random_entry(rng) & ~PS for frame in range(count) for index in indices}
    for place, entry in plain.items():  # frames of all eight, and some that the guest hasn't got
        plain[place] = (
            entry & ~(0xFF << FRAME_SHIFT) | rng.randrange(count + (1 if rng.random() < 0.1 else 0)) << FRAME_SHIFT
        )

    def machine(enlightened: bool) -> SparseWords:
        memory = SparseWords(FRAMES)
        for (frame, index), entry in plain.items():
            named = entry >> FRAME_SHIFT & 0xFF
            where = places.get(named, 255) if enlightened else named
            memory.set(places[frame], index, entry & ~(0xFF << FRAME_SHIFT) | where << FRAME_SHIFT)
        return memory

    through_tags, through_tables, through_shadow = machine(True), machine(False), machine(False)
    tags = TagTable(FRAMES)
    for frame in places.values():
        tags[frame] = VM
    roots = []
    for memory in (through_tables, through_shadow):
        host = Tables(memory, 4, 4096)
        for guest_frame, frame in places.items():
            host.map(guest_frame << FRAME_SHIFT, frame)
        roots.append(host.root)
    supply = itertools.count(8192)
    shadow = Shadow(through_shadow, Nested(through_shadow, 0, levels, roots[1], 4), levels, lambda: next(supply))
    for _ in range(60):
        address = sum(rng.choice(indices) << index_shift(level) for level in range(1, levels + 1))
        access, is_user = rng.choice(list(Access)), rng.random() < 0.5
        tagged = outcome(Tagged(through_tags, places[0], levels, tags, VM), address, access, is_user)
        nested = outcome(Nested(through_tables, 0, levels, roots[0], 4), address, access, is_user)
        try:
            shadowed = addressed_frame(shadow.translate(address, access, is_user))
        except Fault as fault:
            shadowed = fault.kind, fault.code
        if tagged[0] is FaultKind.TAG:
            assert nested == shadowed == (FaultKind.NESTED, 0)
        else:
            assert tagged == nested
            assert shadowed == (nested if isinstance(nested[0], FaultKind) else nested[0])
    for frame, place in places.items():
        for index in indices:
            ours, theirs = through_tags.get(place, index), through_tables.get(place, index)
            assert ours & (A | D) == theirs & (A | D), (frame, index)


@pytest.mark.parametrize("seed", range(50))
def test_native_is_tpt_with_all_frames_ones_own(seed):
    rng = random.Random(seed)
    one, other = SparseWords(4), SparseWords(4)
    tags = TagTable(4)
    for frame in range(4):
        tags[frame] = VM
        for index in (0, 1):
            entry = random_entry(rng) & ~PS
            one.set(frame, index, entry)
            other.set(frame, index, entry)
    for _ in range(40):
        address = sum(rng.randrange(2) << index_shift(level) for level in range(1, 5))
        access, is_user = rng.choice(list(Access)), rng.random() < 0.5
        found = outcome(Direct(one, 0, 4), address, access, is_user)
        assert outcome(Tagged(other, 0, 4, tags, VM), address, access, is_user) == found
    assert sorted(one.written()) == sorted(other.written())


def test_tables_outside_memory_are_empty_and_nobodys():
    memory, tags = SparseWords(8), TagTable(8)
    tags[1] = VM
    assert outcome(Direct(memory, 99, 4), 0) == (FaultKind.PAGE, 0)
    assert outcome(Tagged(memory, 99, 4, tags, VM), 0) == (FaultKind.TAG, 0)
