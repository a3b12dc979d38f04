"""The workloads' loops. Each does its work on the arrays that it is given and writes down the addresses that it touches."""

import numpy as np
from numpy.typing import NDArray

from capvisor.study.compiled import compiled
from capvisor.study.kernel import LOAD, STORE

FANOUT = 64
PROBES = 8
"""The most that a look-up touches of a node: seven keys in a binary search of 64, and a pointer."""
NODE_BYTES = 16 * FANOUT
REGION_BYTES = 1 << 36
"""Each data structure starts at a multiple of this from the base, as large mappings do."""
VALUE_BYTES = 128

Integers = NDArray[np.int64]
Addresses = NDArray[np.uint64]
Kinds = NDArray[np.uint8]


@compiled
def _at(base: np.uint64, region: int, offset: int) -> np.uint64:
    return base + np.uint64(region * REGION_BYTES + offset)


@compiled
def follow(following: Integers, node: int, visited: Integers) -> int:
    """Follow pointers from a node; the node after the last that was visited."""
    for index in range(visited.size):
        visited[index] = node
        node = following[node]
    return node


@compiled
def search_tree(keys: Integers, starts: Integers, wanted: Integers, offsets: Integers) -> int:
    """Look keys up from the root (the last level) to the leaves; how many offsets were written."""
    count = 0
    for key in wanted:
        node = 0
        for level in range(starts.size - 1, -1, -1):
            first = (starts[level] + node) * FANOUT
            low, high = 0, FANOUT
            while high - low > 1:  # the last key that is no greater is in [low, high)
                middle = (low + high) // 2
                offsets[count] = (starts[level] + node) * NODE_BYTES + 8 * middle
                count += 1
                if keys[first + middle] <= key:
                    low = middle
                else:
                    high = middle
            offsets[count] = (starts[level] + node) * NODE_BYTES + 8 * (FANOUT + low)
            count += 1
            node = node * FANOUT + low
    return count


@compiled
def _bucket(key: int, buckets: int) -> int:
    """Mixed with shifts and sums that stay within 63 bits."""
    mixed = (key ^ (key >> 7)) & 0x3FFFFFFF
    mixed = (mixed * 0x45D9F3B) & 0x3FFFFFFFFFFFFFF
    return (mixed ^ (mixed >> 19)) & (buckets - 1)


@compiled
def build_table(
    part: Integers, start: int, heads: Integers, links: Integers, base: np.uint64, addresses: Addresses, kinds: Kinds
) -> None:
    """Put tuples, whose first is number `start`, into their buckets: four accesses each."""
    for index in range(part.size):
        bucket, number = _bucket(part[index], heads.size), start + index
        links[number] = heads[bucket]
        heads[bucket] = number
        addresses[4 * index], kinds[4 * index] = _at(base, 0, 16 * number), LOAD
        addresses[4 * index + 1], kinds[4 * index + 1] = _at(base, 1, 8 * bucket), LOAD
        addresses[4 * index + 2], kinds[4 * index + 2] = _at(base, 2, 8 * number), STORE
        addresses[4 * index + 3], kinds[4 * index + 3] = _at(base, 1, 8 * bucket), STORE


@compiled
def probe_table(
    build: Integers,
    heads: Integers,
    links: Integers,
    wanted: Integers,
    place: int,
    probed: int,
    base: np.uint64,
    addresses: Addresses,
) -> tuple[int, int]:
    """Probe with keys from a place on until they or the room end: how many addresses there are, and the next place."""
    count = 0
    while place < wanted.size:
        room = addresses.size - count
        chain, number = 2, heads[_bucket(wanted[place], heads.size)]
        while number >= 0 and build[number] != wanted[place]:
            chain, number = chain + 2, links[number]
        if chain + 2 > room:
            break
        bucket = _bucket(wanted[place], heads.size)
        addresses[count] = _at(base, 3, 16 * ((probed + place) % build.size))
        addresses[count + 1] = _at(base, 1, 8 * bucket)
        count += 2
        number = heads[bucket]
        while number >= 0:
            addresses[count] = _at(base, 0, 16 * number)
            count += 1
            if build[number] == wanted[place]:
                break
            addresses[count] = _at(base, 2, 8 * number)
            count += 1
            number = links[number]
        place += 1
    return count, place


@compiled
def search_graph(
    starts: Integers,
    neighbours: Integers,
    parents: Integers,
    queue: Integers,
    state: Integers,
    base: np.uint64,
    addresses: Addresses,
    kinds: Kinds,
) -> int:
    """Go on with a breadth-first search until it or the room ends; `state` is head, tail and the next edge of the head."""
    count, room = 0, addresses.size - 8
    head, tail, edge = state[0], state[1], state[2]
    while head < tail and count < room:
        vertex = queue[head]
        if edge == starts[vertex]:
            addresses[count], kinds[count] = _at(base, 0, 8 * head), LOAD
            addresses[count + 1], kinds[count + 1] = _at(base, 1, 8 * vertex), LOAD
            addresses[count + 2], kinds[count + 2] = _at(base, 1, 8 * vertex + 8), LOAD
            count += 3
        while edge < starts[vertex + 1] and count < room:
            other = neighbours[edge]
            addresses[count], kinds[count] = _at(base, 2, 8 * edge), LOAD
            addresses[count + 1], kinds[count + 1] = _at(base, 3, 8 * other), LOAD
            count += 2
            if parents[other] < 0:
                parents[other] = vertex
                queue[tail] = other
                addresses[count], kinds[count] = _at(base, 3, 8 * other), STORE
                addresses[count + 1], kinds[count + 1] = _at(base, 0, 8 * tail), STORE
                count += 2
                tail += 1
            edge += 1
        if edge == starts[vertex + 1]:
            head += 1
            if head < tail:
                edge = starts[queue[head]]
    state[0], state[1], state[2] = head, tail, edge
    return count


@compiled
def fill_slots(slots: Integers, keys: int) -> None:
    """Put the keys below a number into an open-addressed table."""
    for key in range(keys):
        slot = _bucket(key, slots.size)
        while slots[slot] >= 0:
            slot = (slot + 1) & (slots.size - 1)
        slots[slot] = key


@compiled
def serve(
    slots: Integers, wanted: Integers, puts: Kinds, place: int, base: np.uint64, addresses: Addresses, kinds: Kinds
) -> tuple[int, int]:
    """Get or put keys from a place on until they or the room end: how many accesses there are, and the next place."""
    count = 0
    while place < wanted.size:
        key = wanted[place]
        slot, probes = _bucket(key, slots.size), 1
        while slots[slot] != key:
            slot, probes = (slot + 1) & (slots.size - 1), probes + 1
        lines = VALUE_BYTES // 64
        if count + probes + lines > addresses.size:
            break
        slot = _bucket(key, slots.size)
        for _ in range(probes):
            addresses[count], kinds[count] = _at(base, 0, 16 * slot), LOAD
            count += 1
            slot = (slot + 1) & (slots.size - 1)
        for line in range(lines):
            addresses[count] = _at(base, 1, VALUE_BYTES * key + 64 * line)
            kinds[count] = STORE if puts[place] else LOAD
            count += 1
        place += 1
    return count, place
