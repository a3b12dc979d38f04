"""All four systems in the fast path against the reference: after each step, the whole state of every lane."""

from enum import Enum
from typing import Any

import numpy as np
import pytest

from capvisor.campaign import stack_mirror, stack_systems
from capvisor.campaign.stack_copies import copy_machine
from capvisor.campaign.stack_moves import play
from capvisor.campaign.stack_start import Deployment, LaneEvent
from capvisor.campaign.stack_systems import Systems
from capvisor.fastpath.stack import CVM, BatchStack
from capvisor.fastpath.stack_layers import HostedMonitor
from capvisor.fastpath.stack_memory import packed, unpacked
from capvisor.model.memory import Granule
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
    from capvisor.fastpath import stack_layers as stack

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


# -- the reference, made quick ---------------------------------------------------------------------------------------------


def _state(machine: Any) -> Any:
    """All that a machine of the reference holds, without where it says what is written, and what is looked up again."""
    left_out = {
        "lane",
        "logs",
        "log",
        "place",
        "said",
        "make_hart",
        "_log",
        "_lane",
        "_flat",
        "_settled",
        "_stage",
        "minted",
    }
    left_out |= {"minted", "accesses", "touches", "retags", "handled", "moves", "found", "_authorised", "_window", "touch"}
    known: set[int] = set()

    def of(held: Any) -> Any:
        if isinstance(held, (bool, int, str, bytes, type(None), range, Enum)):
            return held
        if isinstance(held, tuple | list | set):
            found: Any = [of(each) for each in held]
        elif isinstance(held, dict):
            found = {repr(key): of(each) for key, each in held.items()}
        else:
            found = type(held).__name__
        if hasattr(held, "__dict__") and not callable(held) and id(held) not in known:
            known.add(id(held))
            found = found, {name: of(each) for name, each in vars(held).items() if name not in left_out}
        return found

    return of(machine)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_machine_that_is_copied_holds_what_one_holds_that_was_set_up(policy: StackPolicy) -> None:
    one, copied = Systems(1, policy, oracles=False), Systems(2, policy, oracles=False)
    expected = _state(one.stacks[0])
    assert len(str(expected)) > 10_000
    assert [_state(stack) == expected for stack in copied.stacks] == [True, True]
    copied.finish()


def test_what_was_copied_of_a_start_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(source: Any, target: Any, mirror: Any) -> None:
        copy_machine(source, target, mirror)
        if target.lane == 1:
            target.memory.set(3, 0, Granule(False, 0, 1))

    monkeypatch.setattr(stack_systems, "copy_machine", copy)
    with pytest.raises(AssertionError, match=r"the start differs: .*frame 3 word 0: reference 0x1, fast path 0x0"):
        Systems(2, oracles=False)


def test_where_pages_are_is_found_anew_once_the_tlb_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_mirror, "_TRANSLATES", {*stack_mirror._TRANSLATES} - {"tlb"})
    assert any(found.what == "differs" for found in play([1], LANES, 100, oracles=False).found)
