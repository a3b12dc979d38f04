"""The para-pass-through VMM in the fast path against the reference: after each step, the whole state of every lane."""

from typing import Any

import numpy as np
import pytest

from capvisor.campaign.vmm_moves import DISK, Deployment, play
from capvisor.campaign.vmm_systems import Size, Systems
from capvisor.cli.vmm_pair import VmmPair
from capvisor.dsl.parser import parse
from capvisor.dsl.system_runner import SystemVerdict, run_system
from capvisor.fastpath import mediator, storage
from capvisor.fastpath import vmm_operations as _operations
from capvisor.fastpath.vmm import OPERATION_KERNELS, AddedKey, BatchVmm, operation
from capvisor.model.vmm import System
from capvisor.spec.vmm import LEAST_REGION, MAX_FRAMES, OPERATIONS, START_BIT, Code, Register, Space
from capvisor.spec.vmm_policy import INTENDED, VMM_GUARDS, VMM_POLICIES, VmmPolicy, without
from tests.shares import some

assert _operations
POLICIES = {**VMM_POLICIES, **{f"without {guard}": without(guard) for guard in VMM_GUARDS}}
LANES, MOVES = 32, 16
ABOUT_LARGE_REGIONS = ("bitvisor-2009", "bitvisor-2009-without-vtd", "without hide_whole_region")


def found_by(policy: VmmPolicy, number: int, lanes: int = LANES, **options: Any) -> list[Any]:
    """What drawn machines show."""
    return play([number], lanes, MOVES, policy, oracles=False, **options)[0].found


def test_every_operation_has_a_kernel() -> None:
    assert OPERATION_KERNELS.keys() == OPERATIONS.keys()
    with pytest.raises(KeyError):
        operation("teleport")


@pytest.mark.parametrize("policy", some(list(POLICIES.values()), 3), ids=some(list(POLICIES), 3))
def test_whole_states_are_equal_after_every_step(policy: VmmPolicy) -> None:
    assert found_by(policy, list(POLICIES.values()).index(policy)) == []


@pytest.mark.parametrize("name", ABOUT_LARGE_REGIONS)
def test_whole_states_are_equal_with_more_of_a_region_than_4_mib(name: str) -> None:
    assert found_by(POLICIES[name], 0, 8, size="large") == []


def test_whole_states_are_equal_when_the_guest_is_handed_over() -> None:
    systems, _deployment = play([3], LANES, MOVES, oracles=False, size="tiny")
    assert systems.found == [] and systems.counts.codes["hand_over", Code.OK] > 0


NUMBERS = (0, 1, 2, 3, 7, 8, 9, 17, 18, 255, 0xFFFF, 1 << 16, 1 << 20, 1 << 29, 1 << 32, 1 << 48, 1 << 63, (1 << 64) - 1)


@pytest.mark.parametrize(
    "size",
    [Size(18, (0, 18), 1, 0), Size(40, (20, 40), 8, 8), Size(MAX_FRAMES, (1 << 18, (1 << 18) + 2000), 2, 1)],
    ids=str,
)
def test_machines_in_which_nothing_is_yet_are_equal(size: Size) -> None:
    systems = Systems(size, 1, oracles=False)
    for number in NUMBERS:
        for name, row in OPERATIONS.items():
            if name not in ("begin_move", "stop", "hand_over"):
                systems.step(name, tuple(np.full(1, number, np.uint64) for _ in row.operands))
    systems.finish()
    assert systems.found == []
    assert systems.counts.codes["map", Code.RANGE] and systems.counts.codes["output", Code.RANGE]


def storage_devices(system: System) -> None:
    """A disk, and another device that passes through."""
    system.set_key(99)
    system.add_storage(DISK)
    for device, window in ((DISK, 4), (2, 5)):
        for space in Space:
            system.place_window(device, space, window)


def test_a_command_larger_than_the_buffer_ends_alike_where_memory_ends() -> None:
    """The shadow buffer is followed by the rest of the region, and that by the end of memory."""

    def start(system: System) -> None:
        storage_devices(system)
        for block in range(64):
            system.memory[8 + block] = 0x10 | 100 << 48

    systems = Systems(Size(40, (20, 40), 1, 2), 2, without("count_bounded"), start, oracles=False)
    zero = np.zeros(2, np.uint64)
    for register, value in ((Register.DESCRIPTORS, 8), (Register.COUNT, 400), (Register.COMMAND, 0xCA), (Register.START, 1)):
        systems.step("output", (zero, zero, zero + np.uint64(4 << 3 | register), zero + np.uint64(value)))
    for _ in range(200):
        systems.step("mediate", (zero + np.uint64(DISK),))
    systems.finish()
    assert systems.found == [] and systems.counts.codes["mediate", Code.FAILED] == 2


@pytest.mark.parametrize("policy", ["intended", "without block_while_busy", "without start_gated"])
def test_every_register_takes_every_number_in_every_state(policy: str) -> None:
    systems = Systems(Size(64, (30, 50), 1, 2), len(NUMBERS), POLICIES[policy], storage_devices, oracles=False)
    numbers, zero = np.array(NUMBERS, np.uint64), np.zeros(len(NUMBERS), np.uint64)

    def access(name: str, register: int, *value: Any) -> None:
        systems.step(name, (zero, zero, zero + np.uint64(4 << 3 | register), *(zero + np.uint64(each) for each in value)))

    for opcode in (0xE7, 0x20, 0x30, 0xC8, 0xCA, 0xB0, 0x06, 0x60, 0x80):
        for register in Register:
            access("output", Register.CONTROL, 4)
            access("output", Register.COUNT, 2)
            access("output", Register.COMMAND, opcode)
            if register is not Register.CONTROL:
                access("output", Register.START, START_BIT | (8 if opcode == 0xC8 else 0))
            access("output", register, numbers)
            access("input", register)
            for name in ("mediate", "transfer", "mediate"):
                systems.step(name, (zero + np.uint64(DISK),))
            access("input", register)
    systems.finish()
    assert systems.found == []
    states = systems.mirror.changed
    assert states["channels"] > 1000 and states["media"] > 0


def test_each_lane_does_an_operation_of_its_own() -> None:
    deployment = Deployment(40, 10, 31, 2, True, 0, ((0, 3, True),))
    systems = Systems(deployment.size(), len(OPERATIONS), INTENDED, deployment.start)
    one = np.ones(len(OPERATIONS), np.uint64)
    systems.step_each(np.arange(len(OPERATIONS)), (one,) * 5)
    assert systems.found == [] and systems.counts.steps == len(OPERATIONS)
    assert systems.counts.executed == dict.fromkeys(OPERATIONS, 1)


@pytest.mark.parametrize(
    ("frames", "region", "vcpus", "devices"),
    [
        (MAX_FRAMES + 1, (0, 18), 1, 0),
        (17, (0, 17), 1, 0),
        (40, (20, 41), 1, 0),
        (MAX_FRAMES, (0xFEE00 - 2, 0xFEE00 + 40), 1, 0),
        (40, (0, 18), 0, 0),
        (40, (0, 18), 9, 0),
        (40, (0, 18), 1, 9),
    ],
)
def test_limits_are_those_of_the_reference(frames: int, region: tuple[int, int], vcpus: int, devices: int) -> None:
    for kind in (lambda *size: BatchVmm(1, *size), System):
        with pytest.raises(ValueError, match=f"(devices|vCPUs|frames|region).*{LEAST_REGION}|a machine has"):
            kind(frames, region, vcpus, devices)


def test_lanes_that_take_no_part_stay_as_they_are() -> None:
    systems = Systems(Size(40, (20, 40), 2, 2), 3)
    systems.batch.step(np.array([2]), "output", [np.array([number], np.uint64) for number in (0, 0, 8, 1)])
    assert not systems.mirror.differing().any()
    systems.batch.step(np.array([2]), "dma_write", [np.array([number], np.uint64) for number in (1, 8, 1)])
    assert systems.mirror.differing().tolist() == [False, False, True]


# -- programs --------------------------------------------------------------------------------------------------------------

PROGRAM = """system vmm { storage disk { encrypt 0..3 } ; device nic { } }
guest: write_sector disk, 1, 7
guest: poke 0x10, 0x20 | BLOCKS | END
guest: dma disk, write_dma, 2, 1, 0x10
guest: dma disk, read_dma, 2, 1, 0x10
guest: read_sector disk, 1
nic: dma_write 0x40, 1
"""


def followed(text: str) -> tuple[SystemVerdict, VmmPair]:
    """How a program ends that is run on both."""
    program = parse(text)
    pair = VmmPair(program, INTENDED)
    return run_system(program, {}, follower=pair), pair


def test_a_program_runs_on_both() -> None:
    verdict, pair = followed(PROGRAM)
    assert verdict.failure is None and pair.difference() is None
    assert pair.compared > 30


def test_a_program_on_which_they_differ_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AddedKey, "_secret", staticmethod(lambda key, lba: key))
    _verdict, pair = followed(PROGRAM)
    difference = pair.difference()
    assert difference is not None and difference.startswith("output: differs: ") and "fast path" in difference


# -- the comparison notices ------------------------------------------------------------------------------------------------


def _keeps_everything(*_arguments: Any, **_options: Any) -> None:
    pass


def _everything(_self: Any, frame: Any) -> Any:
    return np.zeros(len(frame), np.bool_)


def _never_busy(_system: Any, lanes: Any, _device: Any) -> Any:
    return np.zeros(len(lanes), np.bool_)


MUTANTS = {
    "recognises nothing": (BatchVmm, "is_recognised", _everything),
    "is never busy": (mediator, "is_busy", _never_busy),
    "claims nothing": (mediator, "_claim", _keeps_everything),
    "ends no command": (storage, "end_command", _keeps_everything),
    "moves no cursor": (_operations, "_move_cursor", _keeps_everything),
    "leaves no window": (_operations, "_unhook", _keeps_everything),
    "traps nothing": (BatchVmm, "is_trapped", lambda _self, lanes, _frame: np.zeros(len(lanes), np.bool_)),
    "sends nothing": (_operations, "_send", _keeps_everything),
    "writes no medium": (storage, "_write_medium", _keeps_everything),
    "copies nothing": (mediator, "_copy", _keeps_everything),
    "encrypts nothing": (AddedKey, "encrypt", lambda _self, _key, _lba, word: word),
    "starts nothing": (mediator, "_let_move", _keeps_everything),
}


@pytest.mark.parametrize(("where", "name", "wrong"), MUTANTS.values(), ids=MUTANTS)
def test_a_wrong_fast_path_is_noticed(where: Any, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, name, wrong)
    assert any(found_by(INTENDED, seed, size="tiny") for seed in range(4))
