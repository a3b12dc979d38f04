"""All four systems in the fast path against the reference: after each step, the whole state of every lane."""

from typing import Any

import numpy as np
import pytest

from capvisor.campaign.stack_moves import play
from capvisor.campaign.stack_systems import Deployment, LaneEvent, Systems
from capvisor.fastpath.stack import CVM, BatchStack, HostedMonitor
from capvisor.fastpath.stack_memory import packed, unpacked
from capvisor.model.stack import TPT_LAYER, VMM_LAYER, Stack
from capvisor.spec.stack_policy import INTENDED, STACK_GUARDS, StackPolicy, without
from tests.shares import some

POLICIES = {"intended": INTENDED, **{f"without {guard}": without(guard) for guard in STACK_GUARDS}}
LANES, MOVES = 16, 24


@pytest.mark.parametrize("policy", some(list(POLICIES.values()), 2), ids=some(list(POLICIES), 2))
def test_whole_states_are_equal_after_every_step(policy: StackPolicy) -> None:
    systems = play([list(POLICIES.values()).index(policy)], LANES, MOVES, policy, oracles=False)
    assert systems.found == []
    assert systems.counts.compared == systems.counts.steps > 1_500


def words(*numbers: int) -> tuple[Any, ...]:
    return tuple(np.full(1, number, np.uint64) for number in numbers)


NUMBERS = (0, 1, 2, 3, 7, 8, 24, 26, 45, 46, 511, 512, 1 << 16, 1 << 40, 1 << 63, (1 << 64) - 1)


@pytest.mark.parametrize("policy", ["intended", "without region_untagged", "without host_claims_first"])
def test_operations_of_every_number_are_equal(policy: str) -> None:
    from capvisor.spec import tpt, vmm

    systems = Systems(1, POLICIES[policy], oracles=False)
    for number in NUMBERS:
        for layer, rows in ((TPT_LAYER, tpt.OPERATIONS), (VMM_LAYER, vmm.OPERATIONS)):
            for name, row in rows.items():
                if name not in ("begin_move", "stop", "hand_over", "create"):
                    systems.step(layer, name, words(*[number] * len(row.operands)))
                    assert systems.found == [], name
    systems.finish()


@pytest.mark.parametrize("frame", [24, 25])
def test_a_store_to_a_table_of_tags_changes_the_same_tags(frame: int) -> None:
    """Of capability tags, and of owners: the tables lie before the region where nothing keeps them in it."""
    systems = Systems(1, without("tables_in_region"), oracles=False)
    systems.take(LaneEvent(TPT_LAYER, TPT_LAYER, "assign", (frame, 3, 20)))
    for index, value in ((12 * 4, 1 << 16 | 5), (12 * 4 + 1, (1 << 64) - 1), (12, 3), (12 * 4, 0)):
        systems.take(LaneEvent(TPT_LAYER, TPT_LAYER, "write_pte", (1, frame, index, value)))
        systems.take(LaneEvent(TPT_LAYER, TPT_LAYER, "load", (0, 0x4000_0000, 0)))
    for name in ("reclaim", "scrub"):
        systems.take(LaneEvent(TPT_LAYER, TPT_LAYER, name, (frame,)))
    systems.finish()
    assert systems.found == []
    assert systems.mirror.changed["memory"] > 0


def test_a_difference_is_seen_wherever_it_is() -> None:
    """Memory, tags, contents, where pages are bound, for whom a device was started: each of one lane alone."""
    for change in (
        lambda batch: batch.contents.__setitem__((1, 5), 77),
        lambda batch: batch.pages[CVM].bound.__setitem__((1, 0), 77),
        lambda batch: batch.started.__setitem__((1, 1), 3),
        lambda batch: batch.vmm.channels["length"].__setitem__((1, 1), 3),
        lambda batch: batch.tpt.frames["vm"].__setitem__((1, 5), 3),
    ):
        systems = Systems(2, oracles=False)
        change(systems.batch)
        assert systems.mirror.differing().tolist() == [False, True]
    systems = Systems(2, oracles=False)
    systems.batch.tpt.rows.array[1, 12, 512] ^= np.uint64(1)
    assert not systems.mirror.differing().any()  # nobody has said that it was written
    assert systems.mirror.misread().tolist() == [False, True]


def test_a_tag_that_the_fast_path_keeps_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    from capvisor.fastpath import stack

    keeps = stack.write_word
    monkeypatch.setattr(stack, "write_word", lambda *given, **_named: keeps(*given, keeps_tags=True))
    systems = Systems(1, oracles=False)
    systems.take(LaneEvent(TPT_LAYER, TPT_LAYER, "write_pte", (0, 12, 510, 5)))
    (found,) = systems.found
    assert found.what == "differs" and found.details[0].startswith("frame 12 word 515: ")


def test_the_start_is_that_of_the_program() -> None:
    stack = Systems(1).stacks[0]
    layout = Deployment().layout()
    assert stack.pages[CVM].bound == [stack.content_of(frame) for frame in layout.mapped[CVM].frames]
    assert [row.is_live for row in stack.monitors[CVM].regions.rows.values()] == [True, True]


def test_limits_are_those_of_the_reference() -> None:
    for make in (lambda region: Stack(46, region), lambda region: BatchStack(1, 46, region)):
        with pytest.raises(ValueError, match="2 frames are the tables of tags"):
            make((27, 46))


def test_tags_are_packed_as_the_table_has_them() -> None:
    flags = np.zeros((2, 256), np.bool_)
    flags[1, [0, 63, 64, 255]] = True
    found = packed(flags)
    assert found[1].tolist() == [1 | 1 << 63, 1, 0, 1 << 63] and not found[0].any()
    assert np.array_equal(unpacked(found), flags)


def test_an_intravisor_of_its_own_has_all_of_its_memory() -> None:
    from capvisor.spec.stack import FORMAT

    monitor = HostedMonitor(FORMAT, 0x4000_0000, 0x1000, 2)
    here = np.ones(2, np.bool_)
    assert monitor.is_there(np.arange(2), np.full(2, 0x4000_0000, np.uint64), here).all()
    monitor.memory.absent[1, 0] = True
    assert monitor.is_there(np.arange(2), np.full(2, 0x4000_0000, np.uint64), here).tolist() == [True, False]
