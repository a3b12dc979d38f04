"""The sequential part of the fast simulator: one pass over a chunk of a trace, for the four modes at once.

Native, shadow and TPT translation walk one-dimensional page tables of the same shape over the same virtual pages, and a
nested translation is cached in the TLB as one entry a guest page. So the TLBs and the walk caches of virtual addresses hold
the same in all four modes and are simulated once; what a mode does beyond that has structures of its own. The reference
simulator makes no use of this, so that comparing with it shows that it is so.

Every structure is a flat array, a set after the other, the most recently used entry of a set first; 0 is an empty entry.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from capvisor.study.compiled import compiled
from capvisor.study.frames import HOST_LEVEL_FRAMES, HOST_TABLE_FRAMES, TABLE_FRAMES

Words = NDArray[np.int64]

LOAD, STORE, FETCH, MAP, UNMAP = range(5)
KINDS = ("load", "store", "fetch", "map", "unmap")

# Where the parameters stand.
(
    P_LEVELS,
    P_LEAF,
    P_HOST_LEAF,
    P_ACCESS_CYCLES,
    P_L1I_SETS,
    P_L1I_WAYS,
    P_L1D_SETS,
    P_L1D_WAYS,
    P_L2_SETS,
    P_L2_WAYS,
    P_L2_CYCLES,
    P_NESTED_TLB_SETS,
    P_NESTED_TLB_WAYS,
    P_LINE_SETS,
    P_LINE_WAYS,
    P_LINE_HIT,
    P_LINE_MISS,
    P_TAG_SETS,
    P_TAG_WAYS,
    P_TAG_FRAMES,
    P_TAG_HIT,
    P_TAG_MISS,
    P_EXIT_CYCLES,
    P_HYPERCALL_CYCLES,
    P_EXITS_FAULT,
    P_EXITS_UPDATE,
    P_EXITS_INVALIDATION,
    P_UPDATES_PER_HYPERCALL,
    P_UPDATE_CYCLES,
    P_SHOOTDOWN_NATIVE,
    P_SHOOTDOWN_VIRTUAL,
    P_WALK_CACHE,  # the entries of levels 1 to 4 follow, then those of the nested ones
) = range(32)
PARAMETERS = P_WALK_CACHE + 8

COUNTERS = (
    "accesses",
    "l1_misses",
    "walks",
    "faults",
    "maps",
    "unmaps",
    "native_references",
    "native_most",
    "native_line_misses",
    "nested_references",
    "nested_most",
    "nested_line_misses",
    "tag_lookups",
    "tag_most",
    "tag_misses",
    "exits",
    "hypercalls",
    "native_cycles",
    "nested_cycles",
    "shadow_cycles",
    "tpt_cycles",
    "pending_updates",
)
(
    C_ACCESSES,
    C_L1_MISSES,
    C_WALKS,
    C_FAULTS,
    C_MAPS,
    C_UNMAPS,
    C_NATIVE_REFERENCES,
    C_NATIVE_MOST,
    C_NATIVE_LINE_MISSES,
    C_NESTED_REFERENCES,
    C_NESTED_MOST,
    C_NESTED_LINE_MISSES,
    C_TAG_LOOKUPS,
    C_TAG_MOST,
    C_TAG_MISSES,
    C_EXITS,
    C_HYPERCALLS,
    C_NATIVE_CYCLES,
    C_NESTED_CYCLES,
    C_SHADOW_CYCLES,
    C_TPT_CYCLES,
    C_PENDING_UPDATES,
) = range(22)

LOGGED = (
    "level",
    "evicted_l1",
    "evicted_l2",
    "native_references",
    "nested_references",
    "tag_lookups",
    "fault",
    "exits",
    "native_cycles",
    "nested_cycles",
    "shadow_cycles",
    "tpt_cycles",
)
"""What the log says of each access. `level` is 0 for a hit in the first TLB, 1 in the second, 2 for a walk, 3 for no access;
an evicted page is its number plus one, 0 for none."""


@compiled
def hit(table: Words, first: int, ways: int, key: int) -> bool:
    """Whether a set has a key, which then is its most recently used."""
    for place in range(first, first + ways):
        if table[place] == key:
            for other in range(place, first, -1):
                table[other] = table[other - 1]
            table[first] = key
            return True
    return False


@compiled
def insert(table: Words, first: int, ways: int, key: int) -> Any:
    """Put a key that a set hasn't into it; the least recently used, which had to go, or 0."""
    last = first + ways - 1
    evicted = table[last]
    for place in range(last, first, -1):
        table[place] = table[place - 1]
    table[first] = key
    return evicted


@compiled
def remove(table: Words, first: int, ways: int, key: int) -> None:
    """Take a key out of a set, if it is there."""
    last = first + ways - 1
    for place in range(first, last + 1):
        if table[place] == key:
            for other in range(place, last):
                table[other] = table[other + 1]
            table[last] = 0
            return


@compiled
def find(keys: Words, key: int) -> int:
    """The place of a key in an open-addressed table, or the empty one where it belongs. The table is never full."""
    mask = keys.size - 1
    place = (key ^ (key >> 21)) & mask
    while keys[place] != 0 and keys[place] != key:
        place = (place + 1) & mask
    return place


@compiled
def table_frame(keys: Words, frames: Words, used: Words, level: int, prefix: int) -> Any:
    """The frame of the page table of a level for a prefix of virtual addresses, allocated at its first use."""
    key = ((level + 1) << 48) + prefix + 1
    place = find(keys, key)
    if keys[place] == 0:
        keys[place] = key
        frames[place] = TABLE_FRAMES + used[1]
        used[1] += 1
        used[2] += 1
    return frames[place]


@compiled
def page_place(keys: Words, frames: Words, used: Words, page: int, leaf: int) -> int:
    """The place of a page among the frames, allocated at its first use, then not present: -1 - frame."""
    place = find(keys, page + 1)
    if keys[place] == 0:
        keys[place] = page + 1
        frames[place] = -1 - (used[0] << (9 * leaf))
        used[0] += 1
        used[2] += 1
    return place


@compiled
def reference(lines: Words, parameters: Words, frame: int, index: int, tally: Words) -> None:
    """Read entry `index` of the page table in `frame`: add a reference, its cycles and a missed line to `tally`."""
    line = frame * 64 + (index & 511) // 8 + 1
    ways = parameters[P_LINE_WAYS]
    first = (line % parameters[P_LINE_SETS]) * ways
    tally[0] += 1
    if hit(lines, first, ways, line):
        tally[1] += parameters[P_LINE_HIT]
    else:
        insert(lines, first, ways, line)
        tally[1] += parameters[P_LINE_MISS]
        tally[2] += 1


@compiled
def host_walk(parameters: Words, nested_tlb: Words, nested_caches: Words, lines: Words, frame: int, tally: Words) -> None:
    """Translate a guest-physical frame, and add references, cycles and missed lines to `tally`."""
    leaf = parameters[P_HOST_LEAF]
    key = (frame >> (9 * leaf)) + 1
    ways = parameters[P_NESTED_TLB_WAYS]
    first = (key % parameters[P_NESTED_TLB_SETS]) * ways
    if hit(nested_tlb, first, ways, key):
        return
    levels = parameters[P_LEVELS]
    stride = nested_caches.size // 4
    start = levels - 1
    for level in range(leaf + 1, levels):
        if hit(nested_caches, (level - 1) * stride, parameters[P_WALK_CACHE + 3 + level], (frame >> (9 * level)) + 1):
            start = level - 1
            break
    for level in range(start, leaf - 1, -1):
        table = HOST_TABLE_FRAMES + level * HOST_LEVEL_FRAMES + (frame >> (9 * (level + 1)))
        reference(lines, parameters, table, frame >> (9 * level), tally)
        entries = parameters[P_WALK_CACHE + 3 + level]
        if level > leaf and entries > 0:
            insert(nested_caches, (level - 1) * stride, entries, (frame >> (9 * level)) + 1)
    insert(nested_tlb, first, ways, key)


@compiled
def tag_lookup(tags: Words, parameters: Words, frame: int, tally: Words) -> None:
    """Look up the tag of a frame, and add one look-up, its cycles and a miss to `tally`."""
    key = frame // parameters[P_TAG_FRAMES] + 1
    ways = parameters[P_TAG_WAYS]
    first = (key % parameters[P_TAG_SETS]) * ways
    tally[0] += 1
    if hit(tags, first, ways, key):
        tally[1] += parameters[P_TAG_HIT]
    else:
        insert(tags, first, ways, key)
        tally[1] += parameters[P_TAG_MISS]
        tally[2] += 1


@compiled
def update(parameters: Words, counters: Words, tally: Words) -> None:
    """The guest changes an entry of a page table: exits and cycles of shadow paging are added to `tally`."""
    batch = parameters[P_UPDATES_PER_HYPERCALL]
    if batch == 0:
        tally[0] += parameters[P_EXITS_UPDATE]
        tally[1] += parameters[P_EXITS_UPDATE] * parameters[P_EXIT_CYCLES]
        return
    counters[C_PENDING_UPDATES] += 1
    if counters[C_PENDING_UPDATES] == batch:
        counters[C_PENDING_UPDATES] = 0
        counters[C_HYPERCALLS] += 1
        tally[1] += parameters[P_HYPERCALL_CYCLES]


@compiled
def simulate(
    kinds: NDArray[np.uint8],
    addresses: Words,
    parameters: Words,
    l1i: Words,
    l1d: Words,
    l2: Words,
    walk_caches: Words,
    nested_tlb: Words,
    nested_caches: Words,
    native_lines: Words,
    nested_lines: Words,
    tags: Words,
    keys: Words,
    frames: Words,
    used: Words,
    counters: Words,
    log: Words,
) -> None:
    """Translate a chunk of accesses in order; counters and structures change, the log has a row each if it has rows."""
    levels, leaf = parameters[P_LEVELS], parameters[P_LEAF]
    page_shift = 12 + 9 * leaf
    stride = walk_caches.size // 4
    l1_ways, l2_ways = parameters[P_L1D_WAYS], parameters[P_L2_WAYS]
    native = np.zeros(3, np.int64)  # references, cycles, missed lines
    nested = np.zeros(3, np.int64)  # likewise
    tagged = np.zeros(3, np.int64)  # look-ups, cycles, misses
    shadow = np.zeros(3, np.int64)  # exits, cycles
    for index in range(addresses.size):
        address, kind = addresses[index], kinds[index]
        page = address >> page_shift
        key = page + 1
        native[:] = 0
        nested[:] = 0
        tagged[:] = 0
        shadow[:] = 0
        level, evicted_l1, evicted_l2, fault = 0, 0, 0, 0
        common = 0  # cycles that every mode needs
        if kind >= MAP:
            level = 3
            place = page_place(keys, frames, used, page, leaf)
            present = frames[place] >= 0
            if kind == MAP and not present:
                frames[place] = -1 - frames[place]
                counters[C_MAPS] += 1
                update(parameters, counters, shadow)
                tagged[1] += parameters[P_UPDATE_CYCLES]
            elif kind == UNMAP and present:
                frames[place] = -1 - frames[place]
                counters[C_UNMAPS] += 1
                remove(l1i, (key % parameters[P_L1I_SETS]) * parameters[P_L1I_WAYS], parameters[P_L1I_WAYS], key)
                remove(l1d, (key % parameters[P_L1D_SETS]) * l1_ways, l1_ways, key)
                remove(l2, (key % parameters[P_L2_SETS]) * l2_ways, l2_ways, key)
                walk_caches[:] = 0
                update(parameters, counters, shadow)
                shadow[0] += parameters[P_EXITS_INVALIDATION]
                shadow[1] += parameters[P_EXITS_INVALIDATION] * parameters[P_EXIT_CYCLES]
                tagged[1] += parameters[P_UPDATE_CYCLES]
                common = parameters[P_SHOOTDOWN_VIRTUAL]
                native[1] += parameters[P_SHOOTDOWN_NATIVE] - common
                shadow[1] -= native[1]  # its walks are native, its shoot-downs aren't
                tagged[1] -= native[1]
        else:
            counters[C_ACCESSES] += 1
            common = parameters[P_ACCESS_CYCLES]
            if kind == FETCH:
                l1, ways = l1i, parameters[P_L1I_WAYS]
                first = (key % parameters[P_L1I_SETS]) * ways
            else:
                l1, ways = l1d, l1_ways
                first = (key % parameters[P_L1D_SETS]) * ways
            if not hit(l1, first, ways, key):
                counters[C_L1_MISSES] += 1
                level = 1
                second = (key % parameters[P_L2_SETS]) * l2_ways
                evicted_l1 = insert(l1, first, ways, key)
                common += parameters[P_L2_CYCLES]
                if not hit(l2, second, l2_ways, key):
                    level = 2
                    evicted_l2 = insert(l2, second, l2_ways, key)
                    counters[C_WALKS] += 1
                    place = page_place(keys, frames, used, page, leaf)
                    if frames[place] < 0:
                        frames[place] = -1 - frames[place]
                        fault = 1
                        counters[C_FAULTS] += 1
                        update(parameters, counters, shadow)
                        shadow[0] += parameters[P_EXITS_FAULT]
                        shadow[1] += parameters[P_EXITS_FAULT] * parameters[P_EXIT_CYCLES]
                        tagged[1] += parameters[P_UPDATE_CYCLES]
                    page_frame = frames[place]
                    start = levels - 1
                    for above in range(leaf + 1, levels):
                        entries = parameters[P_WALK_CACHE + above - 1]
                        if hit(walk_caches, (above - 1) * stride, entries, (address >> (12 + 9 * above)) + 1):
                            start = above - 1
                            break
                    cached = start < levels - 1
                    for table in range(start, leaf - 1, -1):
                        entry = address >> (12 + 9 * table)
                        frame = table_frame(keys, frames, used, table, entry >> 9)
                        reference(native_lines, parameters, frame, entry, native)
                        if not (cached and table == start):
                            host_walk(parameters, nested_tlb, nested_caches, nested_lines, frame, nested)
                            tag_lookup(tags, parameters, frame, tagged)
                        reference(nested_lines, parameters, frame, entry, nested)
                        entries = parameters[P_WALK_CACHE + table - 1]
                        if table > leaf and entries > 0:
                            insert(walk_caches, (table - 1) * stride, entries, entry + 1)
                    host_walk(parameters, nested_tlb, nested_caches, nested_lines, page_frame, nested)
                    tag_lookup(tags, parameters, page_frame, tagged)
                    counters[C_NATIVE_REFERENCES] += native[0]
                    counters[C_NATIVE_MOST] = max(counters[C_NATIVE_MOST], native[0])
                    counters[C_NATIVE_LINE_MISSES] += native[2]
                    counters[C_NESTED_REFERENCES] += nested[0]
                    counters[C_NESTED_MOST] = max(counters[C_NESTED_MOST], nested[0])
                    counters[C_NESTED_LINE_MISSES] += nested[2]
                    counters[C_TAG_LOOKUPS] += tagged[0]
                    counters[C_TAG_MOST] = max(counters[C_TAG_MOST], tagged[0])
                    counters[C_TAG_MISSES] += tagged[2]
        counters[C_EXITS] += shadow[0]
        counters[C_NATIVE_CYCLES] += common + native[1]
        counters[C_NESTED_CYCLES] += common + nested[1]
        counters[C_SHADOW_CYCLES] += common + native[1] + shadow[1]
        counters[C_TPT_CYCLES] += common + native[1] + tagged[1]
        if log.shape[0] > 0:
            row = log[index]
            row[0], row[1], row[2] = level, evicted_l1, evicted_l2
            row[3], row[4], row[5] = native[0], nested[0], tagged[0]
            row[6], row[7] = fault, shadow[0]
            row[8], row[9] = common + native[1], common + nested[1]
            row[10], row[11] = common + native[1] + shadow[1], common + native[1] + tagged[1]


@compiled
def rehash(keys: Words, frames: Words, larger_keys: Words, larger_frames: Words) -> None:
    """Copy a table of frames into a larger one."""
    for place in range(keys.size):
        if keys[place] != 0:
            target = find(larger_keys, keys[place])
            larger_keys[target] = keys[place]
            larger_frames[target] = frames[place]
