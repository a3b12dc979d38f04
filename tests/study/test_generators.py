"""Workloads: reproducible, endless, and what their algorithms should do."""

import numpy as np
import pytest

from capvisor.study import algorithms
from capvisor.study.errors import StudyError
from capvisor.study.generators import WORKLOADS, kronecker_graph, limited, with_churn, workload
from capvisor.study.kernel import MAP, STORE, UNMAP

SIZE = 1 << 18


def first(name, count, seed=3):
    parts = list(limited(workload(name, SIZE, seed), count))
    return np.concatenate([part.addresses for part in parts]), np.concatenate([part.kinds for part in parts])


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_is_the_same_for_the_same_seed_only_and_never_ends(name):
    addresses, kinds = first(name, 300_000)
    assert len(addresses) == len(kinds) == 300_000
    again, kinds_again = first(name, 300_000)
    assert (addresses == again).all() and (kinds == kinds_again).all()
    assert not (addresses == first(name, 300_000, seed=4)[0]).all()
    assert len(np.unique(addresses)) > 1000


@pytest.mark.parametrize("size", [0, 1 << 10, 1 << 40])
def test_a_size_out_of_range_is_refused(size):
    with pytest.raises(StudyError, match="size"):
        workload("gups", size, 0)


def test_a_pointer_chase_visits_each_node_once_a_round():
    addresses, _kinds = first("pointer-chase", SIZE // 64)
    assert len(np.unique(addresses)) == SIZE // 64


def test_gups_stores_where_it_loaded():
    addresses, kinds = first("gups", 1000)
    assert (addresses[::2] == addresses[1::2]).all() and (kinds[1::2] == STORE).all()


def test_a_look_up_in_a_tree_ends_at_its_key():
    leaves = np.arange(0, 3 * 64 * 70, 3)
    levels = [leaves, leaves[::64], leaves[::4096]]
    nodes = [-(-len(level) // 64) for level in levels]
    starts = np.concatenate(([0], np.cumsum(nodes)[:-1]))
    keys = np.full(64 * sum(nodes), np.iinfo(np.int64).max)
    for level, start in zip(levels, starts, strict=True):
        keys[64 * start :][: len(level)] = level
    for wanted in (0, 3, 3 * 64, leaves[-1], leaves[1234]):
        offsets = np.empty(100, np.int64)
        count = algorithms.search_tree(keys, starts, np.array([wanted]), offsets)
        node, place = divmod(int(offsets[count - 1]), algorithms.NODE_BYTES)
        assert keys[64 * node + place // 8 - 64] == wanted
        assert count <= 3 * algorithms.PROBES


def test_a_hash_join_finds_the_partners_that_there_are():
    build = np.random.default_rng(1).permutation(1000)
    heads, links = np.full(1024, -1), np.full(1000, -1)
    addresses, kinds = np.empty(4000, np.uint64), np.empty(4000, np.uint8)
    algorithms.build_table(build, 0, heads, links, np.uint64(0), addresses, kinds)
    reached = 0
    for head in heads:
        number = head
        while number >= 0:
            reached, number = reached + 1, links[number]
    assert reached == 1000
    for key, found in ((int(build[7]), True), (5000, False)):
        touched = np.empty(200, np.uint64)
        count, place = algorithms.probe_table(build, heads, links, np.array([key]), 0, 0, np.uint64(0), touched)
        last = int(touched[count - 1])
        assert place == 1
        assert (last < algorithms.REGION_BYTES and build[last // 16] == key) == found


def test_a_search_of_a_graph_reaches_what_is_connected_by_shortest_paths():
    starts, neighbours = kronecker_graph(7, np.random.default_rng(2))
    root = int(np.flatnonzero(np.diff(starts))[0])
    parents, queue = np.full(128, -1), np.empty(128, np.int64)
    parents[root], queue[0] = root, root
    state, addresses, kinds = np.array([0, 1, starts[root]]), np.empty(100, np.uint64), np.empty(100, np.uint8)
    while state[0] < state[1]:
        assert algorithms.search_graph(starts, neighbours, parents, queue, state, np.uint64(0), addresses, kinds) <= 100
    depth = {root: 0}
    frontier = [root]
    while frontier:
        following = []
        for vertex in frontier:
            for other in neighbours[starts[vertex] : starts[vertex + 1]].tolist():
                if other not in depth:
                    depth[other] = depth[vertex] + 1
                    following.append(other)
        frontier = following
    assert set(np.flatnonzero(parents >= 0).tolist()) == set(depth)
    assert all(depth[v] == depth[int(parents[v])] + 1 for v in depth if v != root)


def test_popular_keys_are_asked_for_by_zipfs_law():
    addresses, _kinds = first("key-value", 400_000)
    values = addresses[addresses >= 0x1000_0000_0000 + 2 * algorithms.REGION_BYTES] // np.uint64(64)
    _lines, times = np.unique(values, return_counts=True)
    times = np.sort(times)[::-1]
    assert 3 < times[0] / times[20] < 30  # two lines a value: the first against the eleventh


def test_churn_unmaps_pages_that_were_touched_and_maps_every_other_again():
    chunks = list(limited(with_churn(workload("gups", SIZE, 1), 100, 5), 50_000))
    addresses, kinds = (np.concatenate([getattr(each, name) for each in chunks]) for name in ("addresses", "kinds"))
    accesses, unmaps, maps = (kinds < MAP).sum(), (kinds == UNMAP).sum(), (kinds == MAP).sum()
    assert abs(unmaps - accesses / 100) <= 1 and abs(maps - unmaps / 2) <= 1
    assert set(addresses[kinds == UNMAP]) <= set(addresses[kinds < MAP])
    after = np.flatnonzero(kinds == MAP)
    assert (kinds[after - 1] == UNMAP).all() and (addresses[after] == addresses[after - 1]).all()
