"""The invariants of translation pass-through on many lanes at once, against the same invariants looked at one by one."""

import numpy as np
import pytest

from capvisor.campaign.tpt_drill import DEPLOYMENT, drill
from capvisor.campaign.tpt_moves import Deployment, GuestOf, play
from capvisor.campaign.tpt_systems import Size, Systems
from capvisor.dsl.tpt_watch import TptWatch
from capvisor.model.tpt import System
from capvisor.model.tpt_system import perform
from capvisor.spec.tag_policy import INTENDED, TAG_POLICIES, TagPolicy, without
from capvisor.spec.tpt_invariants import TPT_INVARIANTS
from tests.shares import some

POLICIES = {
    **TAG_POLICIES,
    **{
        guard: without(guard)
        for guard in (
            *("check_leaf", "check_table_reads", "retag_before_shootdown", "abort_walks_on_acknowledge"),
            *("scrub_on_reuse", "free_frames_only", "flush_iotlb", "flush_on_asid_reuse", "unmap_on_reclaim"),
        )
    },
}
OF_LARGE_PAGES = ("uniform_large_pages", "shootdown_covers_large_pages", "split_before_retag", "merge_one_owner")


def one_at_a_time(systems: Systems, deployment: Deployment, lane: int) -> dict[str, int]:
    """The invariants that are violated in a lane, and after how many events they first are."""
    system, watch, first = System(*deployment.size(), systems.policy), TptWatch(), dict[str, int]()
    for name, operands in deployment.start():
        perform(system, name, *operands)
    for events, event in enumerate(systems.events, 1):
        if event.lanes[lane]:
            step = perform(system, event.name, *(int(each[lane]) for each in event.operands))
            first |= {found.invariant: events for found in watch.violated(step)}
    return first


def agrees(policy: TagPolicy, seed: int, lanes: int = 4, **options: bool) -> int:
    """Hold what falls in some lanes against what falls there one by one; how much that is."""
    systems, deployment = play([seed], lanes, 14, policy, **options)
    fallen = 0
    for lane in range(systems.lanes):
        mine = {found.what: found.events for found in systems.found if found.lane == lane}
        assert mine == one_at_a_time(systems, deployment, lane)
        fallen += len(mine)
    return fallen


@pytest.mark.parametrize("policy", some(list(POLICIES.values()), 2), ids=some(list(POLICIES), 2))
def test_the_same_invariants_fall_at_the_same_steps(policy: TagPolicy) -> None:
    seeds = range(3 if policy in TAG_POLICIES.values() else 20)
    fallen = next((count for seed in seeds if (count := agrees(policy, seed))), 0)
    assert (fallen > 0) == (policy not in TAG_POLICIES.values())


@pytest.mark.parametrize("guard", OF_LARGE_PAGES)
def test_the_same_invariants_fall_at_the_same_steps_of_large_systems(guard: str) -> None:
    agrees(without(guard), 1, 1, is_large=True)


def test_a_drill_ends_every_operation_in_every_way_and_nothing_falls() -> None:
    systems = drill(2)
    assert systems.found == [] and systems.oracles is not None
    assert all(systems.oracles.concerned.values())
    assert systems.oracles.concerned.keys() == TPT_INVARIANTS.keys()


# -- what is compared ------------------------------------------------------------------------------------------------------


@pytest.fixture
def systems() -> Systems:
    deployment = Deployment(8, 4, 2, (GuestOf(0, 5, 2, False, True),))
    return Systems(deployment.size(), 4, INTENDED, deployment.start())


def test_what_the_fast_path_alone_holds_is_a_difference_wherever_it_is(systems: Systems) -> None:
    batch, lane = systems.batch, 2
    places = [
        (batch.tags, (lane, 7)),
        (batch.large, (lane, 0)),
        (batch.pending, (lane, 3, 1)),
        (batch.p2m["frame"], (lane, 1)),
        (batch.p2m.numbers, (lane, 1)),
        (batch.asids, (lane, 1, 15)),
        (batch.tlb.next, (lane, 1)),
        (batch.caches.next, (lane, 0)),
        (batch.devices, (lane, 1)),
        (batch.iotlb, (lane, 1, 7)),
        *((column, (lane, 7)) for column in batch.frames.values()),
        *((column, (lane, 9)) for column in batch.vms.values()),
        *((column, (lane, 1)) for column in (*batch.vcpus.values(), *batch.walks.values())),
        *((column, (lane, 1, 7)) for column in batch.tlb.columns.values()),
        *((column, (lane, 1, 3)) for column in batch.caches.columns.values()),
        *((column, (lane, 3)) for column in batch.swaps.values()),
    ]
    for array, place in places:
        kept = array[place]
        array[place] = kept ^ np.asarray(1, array.dtype)
        assert np.flatnonzero(systems.mirror.differing()).tolist() == [lane], place
        array[place] = kept
    assert not systems.mirror.differing().any()


@pytest.mark.parametrize("name", ["words", "disk"])
def test_a_word_that_the_fast_path_alone_writes_is_a_difference(systems: Systems, name: str) -> None:
    words = getattr(systems.batch, name)
    words[np.array([1, 3]), np.array([2, 2]), np.array([9, 511])] = np.array([0, 1], np.uint64)
    assert systems.mirror.differing().tolist() == [False, False, False, True]
    with pytest.raises(TypeError, match="arrays of lanes and places"):
        words[2, 1] = 0
    words.array[1, 3, 7] = 5  # unsaid
    assert not systems.mirror.differing()[1]
    assert systems.mirror.misread()[1]


def test_what_the_reference_writes_unsaid_is_noticed_at_the_end(systems: Systems) -> None:
    systems.finish()
    dict.__setitem__(systems.models[1].devices, 1, 2)  # type: ignore[arg-type]
    assert np.flatnonzero(systems.mirror.misread()).tolist() == [1]
    with pytest.raises(AssertionError, match="lane 1"):
        systems.finish()


def test_a_start_that_is_refused_is_no_start() -> None:
    with pytest.raises(AssertionError, match="the start fails at create"):
        Systems(Size(4, 1, 0), 1, INTENDED, [("create", (1, 3, 4))])
    assert DEPLOYMENT.layout().frames == DEPLOYMENT.frames
