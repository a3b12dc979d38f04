"""Translation pass-through in the fast path against the reference: after each step, the whole state of every lane."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from capvisor.fastpath import tlb
from capvisor.fastpath.requests import OPERATION_KERNELS, operation
from capvisor.fastpath.tpt import BatchSystem
from capvisor.fastpath.walks import Runners, Walks
from capvisor.spec.paging import FIRST_VM, Mode
from capvisor.spec.tag_policy import INTENDED, TAG_GUARDS, TAG_POLICIES, TagPolicy, without
from capvisor.spec.tpt import MAX_FRAMES, OPERATIONS, Code
from tests.differential.tpt_states import Pair, differences, play

POLICIES = {
    **TAG_POLICIES,
    **{
        f"without {guard}, tags checked at {when}": without(guard, policy)
        for guard in TAG_GUARDS
        for when, policy in (
            ("fill", INTENDED),
            ("access", replace(INTENDED, tag_check="access")),
        )
    },
}
LANES, MOVES = 8, 60
LARGE_FRAMES = 544
ABOUT_LARGE_TAGS = (
    "intended",
    *(name for name in POLICIES if any(word in name for word in ("split", "merge", "uniform", "large"))),
)


def test_every_operation_has_a_kernel() -> None:
    assert OPERATION_KERNELS.keys() == OPERATIONS.keys()
    with pytest.raises(KeyError):
        operation("teleport")


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_whole_states_are_equal_after_every_step(policy: TagPolicy) -> None:
    assert play(hash_of(policy), LANES, MOVES, policy=policy).problems == []


@pytest.mark.parametrize("name", ABOUT_LARGE_TAGS)
def test_whole_states_are_equal_with_large_tags(name: str) -> None:
    assert play(hash_of(POLICIES[name]), 2, 60, LARGE_FRAMES, POLICIES[name]).problems == []


def hash_of(policy: TagPolicy) -> int:
    """A seed of the policy's own."""
    return list(POLICIES.values()).index(policy)


def test_drawn_systems_have_operations_end_in_every_way() -> None:
    ended = set()
    for seed in range(6):
        ended |= play(1000 + seed, 16, 120, compares=False).ended
    for seed in range(3):
        ended |= play(seed, 4, 120, LARGE_FRAMES, compares=False).ended
    ended |= play(1, 8, 100, policy=without("host_only_tags"), compares=False).ended
    completed = {name for name, code, fault in ended if code == fault == 0}
    assert completed == OPERATIONS.keys()
    possible = {(name, int(code), 0) for name, row in OPERATIONS.items() for code in (Code.OK, *row.refusals)}
    possible |= {(name, 0, int(fault)) for name, row in OPERATIONS.items() for fault in row.faults}
    assert ended <= possible
    assert len(ended) > 0.8 * len(possible)


def test_the_smallest_systems_have_one_frame_and_no_device() -> None:
    pair = Pair(1, 1, 1, 0)
    for values in ((0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2)):
        for name, row in OPERATIONS.items():
            pair.step([(name, values[: len(row.operands)])])
    assert pair.problems == []
    assert {code for name, code, _fault in pair.ended if name in ("attach", "dma_read", "merge")} == {Code.RANGE}


@pytest.mark.parametrize(
    ("frames", "vcpus", "devices"), [(0, 1, 0), (MAX_FRAMES + 1, 1, 0), (1, 0, 0), (1, 9, 0), (1, 1, 5)]
)
def test_limits_are_said(frames: int, vcpus: int, devices: int) -> None:
    with pytest.raises(ValueError, match=r"(frames|vCPUs|devices): a system has [01] to "):
        BatchSystem(1, frames, vcpus, devices)


def test_lanes_that_take_no_part_stay_as_they_are() -> None:
    pair = Pair(3, 4)
    pair.batch.step(np.array([2]), "create", [np.array([number], np.uint64) for number in (FIRST_VM, Mode.TPT, 4)])
    assert [differences(model, pair.batch, lane) == [] for lane, model in enumerate(pair.models)] == [True, True, False]


# -- the comparison notices ------------------------------------------------------------------------------------------------


def _keeps_everything(*_arguments: Any) -> None:
    pass


def _owns_all(_self: Runners, who: Any, _frame: Any) -> Any:
    return np.ones(len(who), np.bool_)


def _by_first_frame(slots: tlb.Slots, lanes: Any, vcpus: Any, frame: Any, _by_page: bool) -> Any:
    return slots.rows("is_live", lanes, vcpus) & (slots.rows("frame", lanes, vcpus) == frame[:, None]) & False


def _first_of_all(_caches: tlb.Slots, _lanes: Any, _vcpus: Any, found: Any) -> Any:
    return found.argmax(axis=1)


def _needs_no_dirty_bit(_self: Walks, at: Any) -> Any:
    return np.full(len(at), 0x20, np.uint64)


MUTANTS = {
    "drops nothing": (tlb.Slots, "drop", _keeps_everything),
    "checks no tag": (Runners, "owns", _owns_all),
    "acknowledges and forgets nothing": (tlb, "covering", _by_first_frame),
    "begins at any cached table": (tlb, "deepest", _first_of_all),
    "sets no dirty bit": (Walks, "_leaf_needs", _needs_no_dirty_bit),
    "keeps what a fault should drop": (Runners, "forget_address", _keeps_everything),
    "keeps walks": (BatchSystem, "drop_walks", _keeps_everything),
    "unmaps nothing": (BatchSystem, "unmap", _keeps_everything),
}


@pytest.mark.parametrize(("where", "name", "wrong"), MUTANTS.values(), ids=MUTANTS)
def test_a_wrong_fast_path_is_noticed(where: Any, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, name, wrong)
    assert any(play(seed, LANES, 100).problems for seed in range(4))
