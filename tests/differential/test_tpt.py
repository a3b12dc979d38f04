"""Translation pass-through in the fast path against the reference: after each step, the whole state of every lane."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from capvisor.campaign.tpt_moves import play
from capvisor.campaign.tpt_systems import Size, Systems
from capvisor.fastpath import tlb
from capvisor.fastpath.requests import OPERATION_KERNELS, operation
from capvisor.fastpath.tpt import BatchSystem
from capvisor.fastpath.walks import Runners, Walks
from capvisor.spec.paging import FIRST_VM, Mode
from capvisor.spec.tag_policy import INTENDED, TAG_GUARDS, TAG_POLICIES, TagPolicy, without
from capvisor.spec.tpt import MAX_FRAMES, OPERATIONS, Code, FaultKind
from tests.shares import some

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
LANES, MOVES = 48, 14
ABOUT_LARGE_TAGS = (
    "intended",
    *(name for name in POLICIES if any(word in name for word in ("split", "merge", "uniform", "large"))),
)


def found_by(policy: TagPolicy, number: int, lanes: int = LANES, **options: Any) -> list[Any]:
    """What drawn systems show."""
    return play([number], lanes, MOVES, policy, oracles=False, **options)[0].found


def test_every_operation_has_a_kernel() -> None:
    assert OPERATION_KERNELS.keys() == OPERATIONS.keys()
    with pytest.raises(KeyError):
        operation("teleport")


@pytest.mark.parametrize("policy", some(list(POLICIES.values()), 3), ids=some(list(POLICIES), 3))
def test_whole_states_are_equal_after_every_step(policy: TagPolicy) -> None:
    assert found_by(policy, list(POLICIES.values()).index(policy)) == []


@pytest.mark.parametrize("name", ABOUT_LARGE_TAGS)
def test_whole_states_are_equal_with_large_tags(name: str) -> None:
    assert found_by(POLICIES[name], 0, 4, is_large=True) == []


@pytest.mark.parametrize("size", [Size(1, 1, 0), Size(9, 2, 2), Size(600, 8, 4)], ids=str)
def test_systems_in_which_nothing_is_yet_are_equal(size: Size) -> None:
    systems = Systems(size, 1, oracles=False)
    for number in (0, 1, 2, 7, 511, 512, 600, 1 << 33, 1 << 34, (1 << 64) - 1):
        for name, row in OPERATIONS.items():
            systems.step(name, tuple(np.full(1, number, np.uint64) for _ in row.operands))
    systems.finish()
    assert systems.found == []
    codes = {(name, number) for name, number in systems.counts.codes if number}
    assert {("load", Code.RANGE), ("merge", Code.RANGE), ("attach", Code.RANGE)} <= codes
    runs = {name for name, row in OPERATIONS.items() if Code.NO_VM in row.refusals and row.operands[0][0] == "vcpu"}
    assert {(name, Code.NO_VM) for name in runs - {"run", "set_tag", "write_pte"}} <= codes
    if size.devices:
        assert ("dma_read", FaultKind.IOMMU) in systems.counts.faults


@pytest.mark.parametrize(
    ("frames", "vcpus", "devices"), [(0, 1, 0), (MAX_FRAMES + 1, 1, 0), (1, 0, 0), (1, 9, 0), (1, 1, 5)]
)
def test_limits_are_said(frames: int, vcpus: int, devices: int) -> None:
    with pytest.raises(ValueError, match=r"(frames|vCPUs|devices): a system has [01] to "):
        BatchSystem(1, frames, vcpus, devices)


def test_lanes_that_take_no_part_stay_as_they_are() -> None:
    systems = Systems(Size(4, 2, 2), 3)
    systems.batch.step(np.array([2]), "create", [np.array([number], np.uint64) for number in (FIRST_VM, Mode.TPT, 4)])
    assert systems.mirror.differing().tolist() == [False, False, True]


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
    assert any(found_by(INTENDED, seed) for seed in range(4))
