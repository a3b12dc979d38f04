"""Built-in workloads: each does the real algorithm on real data structures, and records the addresses that it touches.

A workload is an endless stream of chunks, the same for the same size and seed. Instructions aren't recorded.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from capvisor.study import algorithms
from capvisor.study.algorithms import REGION_BYTES, VALUE_BYTES
from capvisor.study.errors import StudyError
from capvisor.study.kernel import LOAD, MAP, STORE, UNMAP
from capvisor.study.simulator import Chunk

Addresses = NDArray[np.uint64]
Random = np.random.Generator

BATCH = 1 << 14
"""Operations that are done between two chunks."""
SMALLEST_BYTES = 1 << 16
LARGEST_BYTES = 1 << 34
ZIPF_EXPONENT = 0.99
"""As the Yahoo! Cloud Serving Benchmark has it (Cooper et al., SoCC 2010)."""
PUT_SHARE = 0.1


class Workload(NamedTuple):
    """A workload by its name: what it does, and its stream for a size in bytes of its data."""

    summary: str
    chunks: Callable[[int, Random], Iterator[Chunk]]


def _base(region: int) -> np.uint64:
    return np.uint64(0x1000_0000_0000 + region * REGION_BYTES)


def _gups(size: int, random: Random) -> Iterator[Chunk]:
    """HPC Challenge RandomAccess: XOR random words of a table."""
    table = np.arange(1 << (size // 8).bit_length() - 1, dtype=np.uint64)
    kinds = np.tile(np.array([LOAD, STORE], np.uint8), BATCH)
    while True:
        values = random.integers(0, 1 << 63, BATCH, dtype=np.uint64)
        words = values & np.uint64(len(table) - 1)
        np.bitwise_xor.at(table, words, values)
        yield Chunk(np.repeat(_base(1) + words * np.uint64(8), 2), kinds)


def _pointer_chase(size: int, random: Random) -> Iterator[Chunk]:
    """Follow a random cycle through nodes of a cache line each."""
    order = random.permutation(max(2, size // 64))
    following = np.empty_like(order)
    following[order] = np.roll(order, -1)
    node, kinds = 0, np.zeros(BATCH, np.uint8)
    while True:
        visited = np.empty(BATCH, np.int64)
        node = algorithms.follow(following, node, visited)
        yield Chunk(_base(1) + visited.astype(np.uint64) * np.uint64(64), kinds)


def _btree(size: int, random: Random) -> Iterator[Chunk]:
    """Look random keys up in a B+-tree, bulk-loaded, with nodes of 64 keys and 64 pointers; a binary search in each."""
    levels = [np.sort(random.integers(0, 1 << 62, max(algorithms.FANOUT, size // 16)))]
    while len(levels[-1]) > algorithms.FANOUT:
        levels.append(levels[-1][:: algorithms.FANOUT])
    starts, nodes = [], 0
    for level in levels:
        starts.append(nodes)
        nodes += -(-len(level) // algorithms.FANOUT)
    keys = np.full(nodes * algorithms.FANOUT, np.iinfo(np.int64).max, np.int64)
    for level, first in zip(levels, starts, strict=True):
        keys[first * algorithms.FANOUT :][: len(level)] = level
    offsets = np.empty(BATCH * len(levels) * algorithms.PROBES, np.int64)
    while True:
        wanted = random.choice(levels[0], BATCH)
        count = algorithms.search_tree(keys, np.array(starts, np.int64), wanted, offsets)
        yield Chunk(_base(1) + offsets[:count].astype(np.uint64), np.zeros(count, np.uint8))


def _hash_join(size: int, random: Random) -> Iterator[Chunk]:
    """Build a bucket-chained hash table over one relation, then probe it with the tuples of another."""
    tuples = max(16, size // 32)  # a tuple of 16 bytes, a link and a bucket of 8 each
    build = random.permutation(tuples).astype(np.int64)
    heads, links = np.full(1 << (tuples - 1).bit_length(), -1, np.int64), np.full(tuples, -1, np.int64)
    for start in range(0, tuples, BATCH):
        part = build[start : start + BATCH]
        addresses, kinds = np.empty(4 * len(part), np.uint64), np.empty(4 * len(part), np.uint8)
        algorithms.build_table(part, start, heads, links, _base(1), addresses, kinds)
        yield Chunk(addresses, kinds)
    probed = 0
    while True:
        wanted = random.integers(0, 2 * tuples, BATCH)  # every other tuple finds its partner
        count, place, addresses = 0, 0, np.empty(0, np.uint64)
        parts = []
        while place < BATCH:
            addresses = np.empty(8 * BATCH, np.uint64)
            count, place = algorithms.probe_table(build, heads, links, wanted, place, probed, _base(1), addresses)
            parts.append(addresses[:count])
        probed += BATCH
        found = np.concatenate(parts)
        yield Chunk(found, np.zeros(len(found), np.uint8))


def _bfs(size: int, random: Random) -> Iterator[Chunk]:
    """Breadth-first searches of a Kronecker graph with the Graph 500 benchmark's parameters, from random vertices."""
    scale = max(6, (size // (2 * 16 * 8)).bit_length() - 1)
    starts, neighbours = kronecker_graph(scale, random)
    vertices = 1 << scale
    degrees = np.flatnonzero(np.diff(starts))
    addresses, kinds = np.empty(1 << 16, np.uint64), np.empty(1 << 16, np.uint8)
    while True:
        parents, queue = np.full(vertices, -1, np.int64), np.empty(vertices, np.int64)
        root = random.choice(degrees)
        parents[root], queue[0] = root, root
        state = np.array([0, 1, starts[root]], np.int64)
        while state[0] < state[1]:
            count = algorithms.search_graph(starts, neighbours, parents, queue, state, _base(1), addresses, kinds)
            yield Chunk(addresses[:count].copy(), kinds[:count].copy())


def kronecker_graph(scale: int, random: Random) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An undirected graph of 2**scale vertices and 16 edges a vertex as compressed sparse rows (Graph 500, section 3)."""
    edges = 16 << scale
    row, column = np.zeros(edges, np.int64), np.zeros(edges, np.int64)
    for bit in range(scale):
        down = random.random(edges) > 0.57 + 0.19
        right = random.random(edges) > np.where(down, 0.19 / (0.19 + 0.05), 0.57 / (0.57 + 0.19))
        row |= down.astype(np.int64) << bit
        column |= right.astype(np.int64) << bit
    labels = random.permutation(1 << scale)
    ends, others = np.concatenate((labels[row], labels[column])), np.concatenate((labels[column], labels[row]))
    order = np.argsort(ends, kind="stable")
    starts = np.concatenate(([0], np.cumsum(np.bincount(ends, minlength=1 << scale))))
    return starts.astype(np.int64), others[order]


def _key_value(size: int, random: Random) -> Iterator[Chunk]:
    """Get and put in an open-addressed hash table with values beside it; keys are drawn by Zipf's law."""
    keys = max(16, size // (VALUE_BYTES + 32))
    slots = np.full(1 << (2 * keys - 1).bit_length(), -1, np.int64)
    algorithms.fill_slots(slots, keys)
    popularity = np.cumsum(1.0 / np.arange(1, keys + 1) ** ZIPF_EXPONENT)
    labels = random.permutation(keys)
    while True:
        wanted = labels[np.searchsorted(popularity, random.random(BATCH) * popularity[-1])]
        puts = (random.random(BATCH) < PUT_SHARE).astype(np.uint8)
        place = 0
        while place < BATCH:
            addresses, kinds = np.empty(8 * BATCH, np.uint64), np.empty(8 * BATCH, np.uint8)
            count, place = algorithms.serve(slots, wanted, puts, place, _base(1), addresses, kinds)
            yield Chunk(addresses[:count], kinds[:count])


WORKLOADS = {
    "gups": Workload("random updates of words in a table (HPC Challenge RandomAccess)", _gups),
    "pointer-chase": Workload("a random cycle of pointers through cache lines", _pointer_chase),
    "btree": Workload("look-ups of random keys in a B+-tree", _btree),
    "hash-join": Workload("a bucket-chained hash join: build, then probe", _hash_join),
    "bfs": Workload("breadth-first search of a Kronecker graph (Graph 500)", _bfs),
    "key-value": Workload("get and put in a hash table, keys by Zipf's law", _key_value),
}


def workload(name: str, size: int, seed: int) -> Iterator[Chunk]:
    """The endless stream of a workload. Raises StudyError for a size out of range."""
    if not SMALLEST_BYTES <= size <= LARGEST_BYTES:
        raise StudyError(f"size {size}: a workload's data has {SMALLEST_BYTES} to {LARGEST_BYTES} bytes")
    return WORKLOADS[name].chunks(size, np.random.default_rng(seed))


def limited(chunks: Iterator[Chunk], most: int | None) -> Iterator[Chunk]:
    """A stream up to so many accesses and events."""
    left = most
    for chunk in chunks:
        if left is None or len(chunk.addresses) <= left:
            yield chunk
        elif left > 0:
            yield Chunk(chunk.addresses[:left], chunk.kinds[:left])
        if left is not None:
            left -= len(chunk.addresses)
            if left <= 0:
                return


def with_churn(chunks: Iterator[Chunk], every: int, seed: int) -> Iterator[Chunk]:
    """A stream with a page unmapped after every so many accesses: one that was touched lately, as free lists would have it.

    Every other time the page is mapped anew at once (as mmap with MAP_POPULATE does), else it faults at its next touch.
    """
    random = np.random.default_rng((seed, every))
    since, events = 0, 0
    for chunk in chunks:
        places = np.arange(every - since, len(chunk.addresses) + 1, every)
        since = (since + len(chunk.addresses)) % every
        victims = chunk.addresses[np.maximum(0, places - 1 - random.integers(0, every, len(places)))]
        again = (events + np.arange(len(places))) % 2 == 1
        events += len(places)
        where = np.concatenate((places, places[again]))
        addresses = np.concatenate((victims, victims[again]))
        kinds = np.concatenate((np.full(len(places), UNMAP, np.uint8), np.full(int(again.sum()), MAP, np.uint8)))
        yield Chunk(np.insert(chunk.addresses, where, addresses), np.insert(chunk.kinds, where, kinds))
