"""The fast path's Intravisor against the reference: after each step of a system, the whole state of every lane."""

from typing import Any

import numpy as np
import pytest

from capvisor.campaign.cvm_attacks import play
from capvisor.campaign.cvm_drill import drill
from capvisor.campaign.cvm_moves import FIRST_BASE, MEMORY_BASE, MEMORY_BYTES, REGION_BYTES, Mover
from capvisor.campaign.cvm_states import differences, expected_rows
from capvisor.campaign.cvm_systems import NO_CALL, Systems
from capvisor.fastpath.calls import CALL_KERNELS, Callers, call
from capvisor.fastpath.monitor import BatchMonitor
from capvisor.model.monitor import CALL_RULES
from capvisor.spec.cvm import CALLS, MAX_GRANTS, MAX_PORTALS, MAX_THREADS, STACK_POINTER, Code
from capvisor.spec.formats import CC64, CC128, CapabilityFormat
from capvisor.spec.policy import GUARDS, INTENDED, PROTOTYPE_0_0_1, PROTOTYPE_0_0_2, MonitorPolicy, without
from tests.shares import some

POLICIES = {
    "intended": INTENDED,
    "prototype-0.0.1": PROTOTYPE_0_0_1,
    "prototype-0.0.2": PROTOTYPE_0_0_2,
    **{f"without {guard}": without(guard) for guard in GUARDS},
}
LANES, MOVES = 8, 15


def problems(systems: Systems) -> list[str]:
    """What went wrong while systems ran, and what differs in the end, looked at without what `Systems` keeps."""
    found = [f"{each.what} in lane {each.lane}: {each.details}" for each in systems.found]
    for lane, monitor in enumerate(systems.monitors):
        found += [f"at the end, in lane {lane}: {each}" for each in differences(monitor, systems.batch, lane)]
    return found


@pytest.fixture
def systems() -> Systems:
    """Two cVMs of hybrid code in each of four lanes, each with a thread."""
    found = Systems(CC128, MEMORY_BASE, MEMORY_BYTES, 4, oracles=False)
    for number in (1, 2):
        base = np.full(4, FIRST_BASE + (number - 1) * REGION_BYTES, np.uint64)
        found.create(number, base, REGION_BYTES)
    return found


def mover(systems: Systems) -> Mover:
    return Mover(np.random.default_rng(0), systems)


def answers(systems: Systems, thread: int, name: str, *arguments: Any) -> set[str]:
    """What a call is answered, in all lanes."""
    mover(systems).call(thread, name, *arguments)
    systems.leave(thread)
    return set(systems.events[-1].outcomes.values())


def test_every_call_has_a_kernel() -> None:
    assert CALL_KERNELS.keys() == CALLS.keys() == CALL_RULES.keys()


@pytest.mark.parametrize("fmt", [CC128, CC64], ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("policy", some(list(POLICIES.values()), 3), ids=some(list(POLICIES), 3))
def test_whole_states_are_equal_after_every_step(policy: MonitorPolicy, fmt: CapabilityFormat) -> None:
    for seed in range(2):
        systems = play([seed, fmt.address_width], fmt, LANES, MOVES, policy, oracles=False)
        assert problems(systems) == []
        assert systems.counts.compared == systems.counts.steps > LANES * MOVES


def test_drawn_systems_make_every_call() -> None:
    drawn = {pair for seed in range(8) for pair in play([seed], CC128, 16, 40, turn=seed, oracles=False).counts.calls}
    assert {name for name, code in drawn if code == "OK"} == CALLS.keys()
    assert len({name for name, code in drawn if code != "OK"}) > len(CALLS) / 2


def test_a_drill_has_every_call_answered_in_every_way() -> None:
    systems = drill(CC128, 2)
    assert problems(systems) == []
    expected = {(name, code.name) for name, row in CALLS.items() for code in (Code.OK, *row.all_refusals)}
    assert systems.counts.calls.keys() == expected | {(NO_CALL, "NO_SUCH_CALL")}


def test_numbers_may_differ_by_lane(systems: Systems) -> None:
    sizes, keys = np.array([8, 16, 0x1000, 64], np.uint64), np.array([1, 2, 3, 1 << 20], np.uint64)
    mover(systems).call(0, "file_advertise", keys, 0x40, sizes)
    systems.leave(0)
    assert systems.events[-1].outcomes == {0: "OK", 1: "OK", 2: "RANGE", 3: "RANGE"}
    mover(systems).call(1, "file_probe", 1, 0x40)
    systems.leave(1)
    assert systems.events[-1].outcomes == {0: "OK", 1: "NOT_FOUND", 2: "NOT_FOUND", 3: "NOT_FOUND"}
    assert problems(systems) == []


def test_full_tables_refuse(systems: Systems) -> None:
    for key in range(1, MAX_GRANTS + 1):
        assert answers(systems, 0, "file_advertise", key, 0, 16) == {"OK"}
    assert answers(systems, 0, "file_advertise", 99, 0, 16) == {"FULL"}
    for key in range(1, MAX_PORTALS + 1):
        assert answers(systems, 0, "portal_advertise", key, 0) == {"OK"}
    assert answers(systems, 0, "portal_advertise", 99, 0) == {"FULL"}
    for _ in range(MAX_THREADS - 2):
        assert answers(systems, 1, "thread_create", 0) == {"OK"}
    assert answers(systems, 1, "thread_create", 0) == {"FULL"}
    assert problems(systems) == []


def test_a_guests_trap_goes_on_behind_the_instruction(systems: Systems) -> None:
    before = systems.batch.harts.pc[:4].copy()
    systems.instruction(0, "cld", (7, 0, 5))
    assert set(systems.events[-1].outcomes.values()) == {"TagViolation"}
    assert (systems.batch.harts.pc[:4] == before + np.uint64(4)).all()
    assert problems(systems) == []


def test_what_is_granted_at_the_end_of_the_address_space() -> None:
    systems = Systems(CC128, MEMORY_BASE, MEMORY_BYTES, 2, without("advertised_range_checked"), oracles=False)
    systems.create(1, np.full(2, FIRST_BASE, np.uint64), REGION_BYTES)
    sizes = np.array([256, 512], np.uint64)
    mover(systems).call(0, "file_advertise", 1, np.full(2, (1 << 64) - 256 - FIRST_BASE, np.uint64), sizes)
    systems.leave(0)
    assert systems.events[-1].outcomes == {0: "OK", 1: "RANGE"}
    mover(systems).call(0, "file_probe", 1, 0x40)
    systems.leave(0)
    mover(systems).call(0, "file_revoke", 1)
    systems.leave(0)
    assert problems(systems) == []


def test_what_an_inner_cvm_has_probed_its_outer_one_has_too() -> None:
    systems = Systems(CC128, MEMORY_BASE, MEMORY_BYTES, 2, without("identity_from_hardware"), oracles=False)
    systems.create(1, np.full(2, FIRST_BASE, np.uint64), REGION_BYTES)
    systems.create(2, np.full(2, FIRST_BASE + 0x200, np.uint64), 0x100, outer=1)
    assert answers(systems, 0, "file_advertise", 1, 0x40, 16) == {"OK"}
    systems.instruction(0, "li", (STACK_POINTER, FIRST_BASE + 0x280))
    assert answers(systems, 0, "file_probe", 1, 0x40) == {"OK"}
    assert expected_rows(systems.monitors[0], "held") == {(1, 1): (1,), (1, 2): (1,)}
    assert problems(systems) == []


# -- the comparison notices ------------------------------------------------------------------------------------------------


class _PurgesNoRegisters(BatchMonitor):
    def _purge_registers(self, lanes: Any, base: Any, size: Any) -> None:
        pass


class _PurgesNoSlots(BatchMonitor):
    def _purge_slots(self, lanes: Any, meant: Any, last: Any = None) -> None:
        pass


class _ChecksNoPointers(BatchMonitor):
    def is_checked(self, _kind: Any) -> bool:
        return False


class _ForgetsTheResultRegister(BatchMonitor):
    def answer(self, harts: Any, values: Any) -> None:
        pass


class _LeavesTheStackPointer(BatchMonitor):
    def resume(self, harts: Any, cvm_id: Any, entry: Any) -> None:
        super().resume(harts, cvm_id, entry)
        self.write_integer(STACK_POINTER, harts, 0)


MUTANTS = (
    *(_PurgesNoRegisters, _PurgesNoSlots),
    *(_ChecksNoPointers, _ForgetsTheResultRegister, _LeavesTheStackPointer),
)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_monitor_that_leaves_something_out_is_noticed(mutant: type[BatchMonitor]) -> None:
    assert any(play([seed], CC128, LANES, 25, batch_type=mutant, oracles=False).broken for seed in range(8))


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_does_nothing_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_monitor: BatchMonitor, _who: Callers, *_arguments: Any) -> None:
        pass

    monkeypatch.setitem(CALL_KERNELS, name, nothing)
    assert any(play([seed], CC128, LANES, 25, oracles=False).broken for seed in range(12))


def test_a_changed_table_is_noticed_after_an_instruction(systems: Systems) -> None:
    systems.batch.grants.put(np.arange(4), np.full(4, 5, np.uint64), size=8)
    systems.instruction(0, "addi", (5, 5, 0))
    assert [each.what for each in systems.found] == ["differs"] * 4


def test_a_kernel_needs_a_row() -> None:
    with pytest.raises(KeyError):
        call("make_coffee")
