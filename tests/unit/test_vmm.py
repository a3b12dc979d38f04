"""A para-pass-through VMM: each operation's rule, what mediators and extensions do, and the invariants over random runs."""

import random
from collections import Counter

import pytest

from capvisor.model.extensions import Hooks
from capvisor.model.vmm import Extension, Mapping, System
from capvisor.model.vmm_devices import descriptor
from capvisor.model.vmm_operations import OPERATION_RULES
from capvisor.model.vmm_system import perform, violated
from capvisor.spec.vmm import (
    ALL_ONES,
    COMMANDS,
    LEAST_REGION,
    MAX_FRAMES,
    OPERATIONS,
    STATUS_BUSY,
    STATUS_ERROR,
    STATUS_READY,
    STATUS_REQUEST,
    ChannelState,
    Code,
    Msr,
    OperandKind,
    Phase,
    Register,
    Space,
    Stage,
)
from capvisor.spec.vmm_policy import INTENDED, VMM_GUARDS, VMM_POLICIES, without
from tests.shares import some
from tests.unit.vmm import (
    BEHIND,
    BUFFER,
    DENIED,
    DEPLOYED,
    DISK,
    ENCRYPTED,
    FAULTY,
    FIRST,
    FRAMES,
    KEY,
    NETWORK,
    PLAIN,
    READ_DMA,
    READ_SECTORS,
    SECRET,
    TABLE,
    TO_GUEST,
    TO_MEDIUM,
    WRITE_DMA,
    WRITE_SECTORS,
    Rig,
    cipher_text,
    window,
)
from tests.unit.vmm_broken import BROKEN, break_in


@pytest.fixture
def rig():
    made = Rig()
    yield made
    assert made.violated == set()


def test_every_operation_has_a_rule():
    assert OPERATION_RULES.keys() == OPERATIONS.keys()


def test_presets_lack_what_they_say():
    assert {name: {each for each in VMM_GUARDS if not getattr(policy, each)} for name, policy in VMM_POLICIES.items()} == {
        "intended": set(),
        "bitvisor-2009": {"hide_whole_region", "refuse_unknown"},
        "bitvisor-2009-without-vtd": {
            *("hide_whole_region", "refuse_unknown", "iommu_hides_region", "iommu_confines_mediated")
        },
    }
    with pytest.raises(KeyError):
        without("speed")


@pytest.mark.parametrize(
    "sizes",
    [
        (MAX_FRAMES + 1, (0, 100), 1, 1),
        (100, (90, 90 + LEAST_REGION), 1, 1),
        (100, (50, 50 + LEAST_REGION - 1), 1, 1),
        (MAX_FRAMES, (0xFEE00 - 10, 0xFEE00 + 50), 1, 1),
        (100, (0, 50), 0, 1),
        (100, (0, 50), 9, 1),
        (100, (0, 50), 1, 9),
    ],
)
def test_a_machine_of_impossible_size_is_refused(sizes):
    with pytest.raises(ValueError, match="a machine has"):
        System(*sizes)


# -- memory ----------------------------------------------------------------------------------------------------------------


def test_a_store_is_loaded_again(rig):
    rig.must("map", 0, 0, 1200, 1, 1)
    assert rig.system.mappings[0, 0] == Mapping(True, 1200, 0, True)  # the page of 2 MiB overlaps the region
    rig.must("map", 0, 1, 1200, 0, 1)
    rig.must("store", 0, 1, 5, 42)
    assert rig.must("load", 0, 1, 5) == rig.system.memory[(1200 << 3) + 5] == 42
    assert rig.do("load", 0, 1, 8).code is Code.RANGE
    assert rig.do("load", 0, 2, 0).code is Code.UNMAPPED
    rig.must("map", 0, 1, 1200, 0, 0)
    assert rig.do("store", 0, 1, 5, 42).code is Code.UNMAPPED


def test_a_large_page_beside_the_region_stays_large():
    rig = Rig()
    rig.must("map", 0, 0, 1279, 1, 1)
    assert rig.system.mappings[0, 0].level == 0
    system = System(2048, (0, 100))
    assert perform(system, "map", 0, 0, 700, 1, 1).is_completed
    assert system.mappings[0, 0] == Mapping(True, 512, 1, True)
    assert perform(system, "store", 0, 0, 188 * 8 + 3, 7).is_completed
    assert system.memory[700 * 8 + 3] == 7


def test_a_large_page_that_ends_or_begins_at_the_region_stays_large():
    system = System(2048, (512, 1024))
    for frame in (7, 1030):
        assert perform(system, "map", 0, 0, frame, 1, 1).is_completed
        assert system.mappings[0, 0] == Mapping(True, frame >> 9 << 9, 1, True)


def test_the_region_reads_as_zeros_and_a_write_stops_the_machine(rig):
    rig.must("map", 0, 0, FIRST, 0, 1)
    assert rig.must("load", 0, 0, 0) == 0
    assert rig.do("store", 0, 0, 0, 1).code is Code.PANIC
    for name, row in OPERATIONS.items():
        operands = [1 if kind in (OperandKind.DEVICE, OperandKind.EXTENSION) else 0 for _name, kind in row.operands]
        assert rig.do(name, *operands).code is Code.STOPPED, name


def test_what_could_end_interception_is_refused(rig):
    assert rig.do("write_msr", 0, Msr.MICROCODE, 1).code is Code.SWALLOWED
    assert rig.do("enter_vmx", 0).code is Code.GENERAL
    rig.must("write_msr", 0, Msr.APIC_BASE, 0x500000)
    assert rig.system.vcpus[0].apic_frame == 0x500
    rig.must("write_msr", 0, 0x10, 1)
    rig.must("map", 0, 0, 1, 0, 1)
    rig.must("map", 1, 0, 1, 0, 1)
    rig.must("init", 0)
    assert [rig.system.mappings[vcpu, 0].is_live for vcpu in (0, 1)] == [False, True]
    rig.must("sleep", 0)
    assert not rig.system.mappings[1, 0].is_live
    assert rig.do("write_msr", 0, Msr.APIC_BASE, (BEHIND - 1) << 12).code is Code.PANIC


# -- registers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", Space)
def test_registers_that_are_not_mediated_pass_through(rig, space):
    rig.output(Register.START, 77, NETWORK, space)
    assert rig.input(Register.START, NETWORK, Space.PORT) == 77
    assert rig.must("input", 0, space, 0x7000) == ALL_ONES
    rig.must("output", 0, space, 0x7000, 1)
    assert rig.do("input", 0, Space.PORT, 1 << 16).code is Code.RANGE
    assert rig.do("input", 0, 2, 0).code is Code.RANGE


def test_registers_move_and_hooks_go_with_them(rig):
    old, new = window(DISK, Space.MEMORY), 1241 << 6
    assert rig.do("move_window", 0, DISK, Space.MEMORY, window(NETWORK, Space.MEMORY)).code is Code.CONFLICT
    assert rig.do("move_window", 0, DISK, Space.MEMORY, FIRST << 6).code is Code.BLOCKED
    rig.must("move_window", 0, DISK, Space.MEMORY, new)
    system = rig.system
    assert (system.decoded[1, old], system.hooked[1, old], system.decoded[1, new], system.hooked[1, new]) == (0, 0, 1, 1)
    rig.must("move_window", 0, DISK, Space.MEMORY, new)
    rig.must("move_window", 0, NETWORK, Space.MEMORY, old)
    assert (system.decoded[1, old], system.hooked[1, old]) == (NETWORK, 0)


# -- storage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [PLAIN, ENCRYPTED])
@pytest.mark.parametrize("writes", ["write_port", "write_dma"])
@pytest.mark.parametrize("reads", ["read_port", "read_dma"])
def test_the_guest_reads_what_it_wrote(rig, first, writes, reads):
    words = [SECRET, 7, 8]
    getattr(rig, writes)(first, *words)
    assert getattr(rig, reads)(first, 3) == words
    on_medium = [rig.system.media[DISK, first + number] for number in range(3)]
    expected = [cipher_text(first + number, word) for number, word in enumerate(words)]
    assert on_medium == (words if first == PLAIN else expected)


def test_buffers_are_scattered_over_memory_as_descriptors_say(rig):
    rig.write_port(PLAIN, *range(1, 7))
    rig.describe((BUFFER, 1), (BUFFER + 20, 2), (BUFFER + 40, 3))
    rig.command(READ_DMA, PLAIN, 6)
    assert rig.output(Register.START, TO_GUEST) is Code.OK
    assert rig.input(Register.COMMAND) == STATUS_BUSY
    rig.finish()
    places = (0, 20, 21, 40, 41, 42)
    assert [rig.get(BUFFER + each) for each in places] == [1, 2, 3, 4, 5, 6]
    assert rig.input(Register.COMMAND) == STATUS_READY


def test_a_descriptor_of_no_blocks_is_one_of_one(rig):
    rig.write_port(PLAIN, 1, 2)
    rig.describe((BUFFER, 0), (BUFFER + 4, 1))
    rig.command(READ_DMA, PLAIN, 2)
    rig.output(Register.START, TO_GUEST)
    rig.finish()
    assert (rig.get(BUFFER), rig.get(BUFFER + 1), rig.get(BUFFER + 4)) == (1, 0, 2)


def test_a_device_that_fails_lets_the_status_say_so():
    rig = Rig(without("shadow_descriptors"))
    rig.describe((BUFFER, 1))
    rig.command(READ_DMA, PLAIN)
    rig.output(Register.START, TO_GUEST)
    assert rig.do("transfer", DISK).code is Code.IOMMU
    assert (rig.input(Register.MASTER_STATUS), rig.input(Register.COMMAND)) == (0, STATUS_ERROR | STATUS_READY)
    assert rig.system.channels[DISK].state == ChannelState.ERROR


def test_a_mediated_read_goes_through_its_states(rig):
    state = lambda: rig.system.channels[DISK].state  # noqa: E731
    rig.describe((BUFFER, 1))
    rig.command(READ_DMA, PLAIN)
    assert state() == ChannelState.DMA_READY
    assert rig.output(Register.START, TO_MEDIUM) is Code.BLOCKED
    rig.output(Register.START, TO_GUEST)
    assert (state(), rig.input(Register.START)) == (ChannelState.MOVING, TO_GUEST)
    assert rig.output(Register.START, TO_GUEST) is Code.BLOCKED
    assert rig.output(Register.START, 0) is Code.BLOCKED
    for register in (Register.COUNT, Register.LBA, Register.COMMAND, Register.DESCRIPTORS, Register.DATA):
        assert rig.output(register, 1) is Code.BLOCKED
    assert rig.input(Register.MASTER_STATUS) == 1
    assert rig.do("mediate", DISK).code is Code.NOTHING
    rig.must("transfer", DISK)
    assert rig.do("transfer", DISK).code is Code.NOTHING
    assert (rig.input(Register.MASTER_STATUS), state()) == (1, ChannelState.COPYING_IN)
    rig.must("mediate", DISK)
    assert (rig.input(Register.MASTER_STATUS), state()) == (0, ChannelState.READY)


def test_the_port_is_asked_for_as_many_words_as_the_command_has(rig):
    rig.command(READ_SECTORS, PLAIN, 2)
    assert rig.input(Register.COMMAND) == STATUS_REQUEST | STATUS_READY
    assert [rig.input(Register.DATA) for _ in range(2)] == [0, 0]
    assert rig.do("input", 0, Space.PORT, window(DISK, Space.PORT) << 3).code is Code.BLOCKED
    assert (rig.input(Register.COUNT), rig.input(Register.LBA)) == (2, PLAIN + 1)


@pytest.mark.parametrize("lba", [DENIED, DENIED - 1, FAULTY])
@pytest.mark.parametrize("opcode", [READ_SECTORS, WRITE_SECTORS, READ_DMA, WRITE_DMA, 0x06])
def test_a_command_to_a_sector_that_is_denied_or_faulty_fails(rig, lba, opcode):
    assert rig.command(opcode, lba, 2) is Code.FAILED
    assert rig.input(Register.COMMAND) == STATUS_ERROR | STATUS_READY
    assert rig.system.devices[DISK].opcode == 0
    assert rig.command(READ_SECTORS, PLAIN) is Code.OK


@pytest.mark.parametrize(
    ("opcode", "lba", "count", "code"),
    [
        (READ_SECTORS, PLAIN, 0, Code.FAILED),
        (READ_SECTORS, PLAIN, 9, Code.FAILED),
        (READ_SECTORS, (1 << 48) - 1, 2, Code.FAILED),
        (READ_SECTORS, (1 << 48) - 1, 1, Code.OK),
        (0x06, ENCRYPTED, 1, Code.FAILED),
        (0x06, PLAIN, 8, Code.OK),
        (0x06, PLAIN, 9, Code.FAILED),
        (0x60, PLAIN, 1, Code.FAILED),
        (0x80, PLAIN, 1, Code.FAILED),
        (0xFF, PLAIN, 1, Code.FAILED),
        (0xE7, PLAIN, 0, Code.OK),
        (READ_DMA, PLAIN, 9, Code.PANIC),
    ],
)
def test_commands_that_are_issued_and_that_are_not(rig, opcode, lba, count, code):
    assert rig.command(opcode, lba, count) is code


def test_logs_pass_through_unseen(rig):
    rig.command(0xB0, DENIED)
    assert rig.input(Register.COMMAND) == STATUS_REQUEST | STATUS_READY
    assert rig.output(Register.COMMAND, 0xE7) is Code.BLOCKED
    assert rig.input(Register.DATA) == 0
    assert rig.output(Register.COMMAND, 0xE7) is Code.OK


def test_erased_sectors_read_as_zeros(rig):
    rig.write_port(PLAIN, 1, 2, 3)
    rig.command(0x06, PLAIN, 2)
    assert rig.read_port(PLAIN, 3) == [0, 0, 3]


def test_descriptors_that_do_not_do_end_the_command(rig):
    rig.describe((BUFFER, 1))
    rig.command(WRITE_DMA, PLAIN, 2)
    rig.output(Register.START, TO_MEDIUM)
    assert rig.do("mediate", DISK).code is Code.FAILED
    assert rig.input(Register.COMMAND) == STATUS_ERROR | STATUS_READY
    rig.describe((FRAMES << 3, 1))
    rig.command(WRITE_DMA, PLAIN)
    rig.output(Register.START, TO_MEDIUM)
    assert rig.do("mediate", DISK).code is Code.FAILED
    rig.output(Register.DESCRIPTORS, FIRST << 3)
    rig.command(WRITE_DMA, PLAIN)
    rig.output(Register.START, TO_MEDIUM)
    assert rig.do("mediate", DISK).code is Code.PANIC


def test_a_device_that_tampers_with_its_buffer_harms_its_medium_only(rig):
    rig.put(BUFFER, SECRET)
    rig.describe((BUFFER, 1))
    rig.command(WRITE_DMA, ENCRYPTED)
    rig.output(Register.START, TO_MEDIUM)
    rig.must("mediate", DISK)
    buffer = rig.system.shadow_buffer(DISK)
    assert rig.must("dma_read", DISK, buffer) == cipher_text(ENCRYPTED, SECRET)
    rig.must("dma_write", DISK, buffer, 3)
    assert rig.do("dma_write", DISK, rig.system.shadow_descriptor(DISK), 3).code is Code.IOMMU
    assert rig.do("dma_write", DISK, BUFFER, 3).code is Code.IOMMU
    assert rig.do("dma_read", NETWORK, buffer).code is Code.IOMMU
    rig.must("transfer", DISK)
    assert rig.system.media[DISK, ENCRYPTED] == 3
    assert not rig.system.meant[DISK, ENCRYPTED].is_known


def test_a_reset_ends_what_is_under_way(rig):
    rig.put(BUFFER, SECRET)
    rig.describe((BUFFER, 1))
    for steps in ((), ("mediate",), ("mediate", "transfer")):
        rig.command(WRITE_DMA, PLAIN)
        rig.output(Register.START, TO_MEDIUM)
        for name in steps:
            rig.must(name, DISK)
        rig.output(Register.CONTROL, 4)
        assert rig.system.channels[DISK].state == ChannelState.READY
        assert rig.do("transfer", DISK).code is Code.NOTHING


def test_a_command_of_48_bit_addresses_is_followed_like_the_others(rig):
    far = (1 << 48) - 2
    rig.command(0x34, far, 2)
    for word in (7, 8):
        rig.output(Register.DATA, word)
    rig.describe((BUFFER, 2))
    rig.command(0x25, far, 2)
    rig.output(Register.START, TO_GUEST)
    rig.finish()
    assert [rig.get(BUFFER), rig.get(BUFFER + 1)] == [7, 8]
    assert rig.command(0x35, DENIED) is rig.command(0x24, FAULTY) is Code.FAILED


def test_a_page_with_a_mediated_devices_registers_is_no_memory(rig):
    frame = window(DISK, Space.MEMORY) >> 6
    rig.must("map", 0, 0, frame, 0, 1)
    assert rig.do("store", 0, 0, 0, 1).code is rig.do("load", 0, 0, 0).code is Code.UNMAPPED
    assert rig.do("dma_write", NETWORK, frame << 3, 1).code is Code.IOMMU
    rig.describe((frame << 3, 1))
    rig.command(READ_DMA, PLAIN)
    rig.output(Register.START, TO_GUEST)
    rig.must("transfer", DISK)
    assert rig.input(Register.MASTER_STATUS) == 1
    assert rig.do("mediate", DISK).code is Code.FAILED
    for device in (DISK, DEPLOYED):
        rig.must("move_window", 0, device, Space.MEMORY, (1250 << 6) + device)
    rig.must("store", 0, 0, 0, 1)


def test_a_machine_that_wakes_up_has_its_iommu_and_devices_that_know_nothing(rig):
    rig.output(Register.START, 9, NETWORK)
    rig.command(READ_DMA, PLAIN, 2)
    rig.must("sleep", 0)
    assert rig.input(Register.COUNT) == rig.input(Register.LBA) == rig.input(Register.DESCRIPTORS) == 0
    assert rig.input(Register.START, NETWORK) == 0 and rig.input(Register.COMMAND) == STATUS_READY
    assert rig.system.devices[DISK].descriptors == rig.system.shadow_descriptor(DISK)
    assert rig.do("dma_read", NETWORK, FIRST << 3).code is Code.IOMMU
    assert rig.read_dma(PLAIN) == [0]


def test_the_guest_is_stopped_when_no_command_is_under_way(rig):
    rig.command(READ_SECTORS, PLAIN)
    rig.must("begin_move")
    assert rig.do("stop").code is Code.NOT_YET
    rig.input(Register.DATA)
    rig.must("stop")


def test_a_command_larger_than_the_buffer_fails_where_memory_ends():
    rig = Rig(without("count_bounded"))
    rig.watches = False
    rig.describe((BUFFER, 255), (BUFFER, 255), *[(BUFFER, 255)] * 6)
    rig.output(Register.DESCRIPTORS, TABLE)
    rig.command(WRITE_DMA, PLAIN, 0xFFFF)
    rig.output(Register.START, TO_MEDIUM)
    while (code := rig.do("mediate", DISK).code) is Code.OK:
        pass
    assert code is Code.FAILED


# -- deployment ------------------------------------------------------------------------------------------------------------


def test_an_image_is_deployed_while_the_guest_writes_and_the_vmm_leaves(rig):
    system = rig.system
    rig.write_port(1, SECRET, device=DEPLOYED)
    assert rig.read_port(0, 3, device=DEPLOYED) == [0xD0, SECRET, 0xD2]
    assert rig.do("leave", DEPLOYED).code is Code.NOT_YET
    assert rig.do("deploy", DEPLOYED).code is Code.NOTHING
    assert rig.do("fetch", DEPLOYED, 1).code is Code.NOTHING
    for lba in range(3):
        rig.must("fetch", DEPLOYED, lba)
    rig.must("fetch", DEPLOYED, 3)
    rig.must("deploy", DEPLOYED)
    rig.command(READ_SECTORS, 0, device=DEPLOYED)
    assert rig.do("leave", DEPLOYED).code is Code.NOT_YET
    assert rig.input(Register.DATA, DEPLOYED) == 0xD0
    rig.must("leave", DEPLOYED)
    assert [system.media[DEPLOYED, lba] for lba in range(4)] == [0xD0, SECRET, 0xD2, 0xD3]
    assert all(hook != DEPLOYED for _window, hook in system.hooked)
    assert rig.do("dma_read", DEPLOYED, system.shadow_buffer(DEPLOYED)).code is Code.IOMMU
    rig.write_dma(2, 5, device=DEPLOYED)
    assert rig.system.media[DEPLOYED, 2] == 5
    assert rig.read_port(2, device=DEPLOYED) == [5]
    assert rig.do("fetch", DEPLOYED, 0).code is Code.NOTHING


def test_sectors_behind_the_image_are_not_filled_in(rig):
    rig.system.media[DEPLOYED, 4] = 9
    assert rig.read_port(3, 2, device=DEPLOYED) == [0xD3, 9]


def test_a_device_that_was_left_fails_by_itself(rig):
    for lba in range(4):
        rig.must("fetch", DEPLOYED, lba)
        rig.must("deploy", DEPLOYED)
    rig.must("leave", DEPLOYED)
    assert rig.command(READ_SECTORS, 0, 0, DEPLOYED) is Code.OK
    assert rig.input(Register.COMMAND, DEPLOYED) == STATUS_ERROR | STATUS_READY
    rig.describe((BUFFER, 1), device=DEPLOYED)
    rig.command(READ_DMA, 0, 2, DEPLOYED)
    assert rig.input(Register.COMMAND, DEPLOYED) == STATUS_BUSY
    rig.output(Register.START, TO_GUEST, DEPLOYED)
    assert rig.input(Register.START, DEPLOYED) == TO_GUEST
    rig.must("transfer", DEPLOYED)
    assert rig.do("transfer", DEPLOYED).code is Code.NOTHING
    assert rig.input(Register.COMMAND, DEPLOYED) == STATUS_ERROR | STATUS_READY
    assert rig.get(BUFFER) == 0xD0


def test_a_device_that_was_left_faults_where_the_region_is(rig):
    for lba in range(4):
        rig.must("fetch", DEPLOYED, lba)
        rig.must("deploy", DEPLOYED)
    rig.must("leave", DEPLOYED)
    rig.describe((FIRST << 3, 1), device=DEPLOYED)
    rig.command(WRITE_DMA, 0, device=DEPLOYED)
    rig.output(Register.START, TO_MEDIUM, DEPLOYED)
    assert rig.do("transfer", DEPLOYED).code is Code.IOMMU
    assert rig.input(Register.COMMAND, DEPLOYED) == STATUS_ERROR | STATUS_READY


# -- moving ----------------------------------------------------------------------------------------------------------------


def test_the_guests_memory_arrives_as_it_was(rig):
    rig.watches = False
    rig.put(BUFFER, 1)
    assert rig.do("send", 5).code is rig.do("stop").code is Code.NOTHING
    rig.must("begin_move")
    assert rig.do("begin_move").code is Code.NOTHING
    rig.must("send", BUFFER >> 3)
    assert rig.do("send", FIRST).code is Code.NOTHING
    rig.put(BUFFER, SECRET)
    rig.must("stop")
    assert rig.do("load", 1, 7, 0).code is rig.do("mediate", DISK).code is Code.STOPPED
    assert rig.do("extension_write", 1, 40 << 3, 1).code is Code.STOPPED
    assert rig.do("dma_write", NETWORK, 0, 1).code is rig.do("dma_read", NETWORK, 0).code is Code.IOMMU
    assert rig.do("hand_over").code is Code.NOT_YET
    for _ in range(FRAMES):
        rig.must("send_next")
    assert rig.do("send_next").code is Code.NOTHING
    rig.watches = True
    rig.must("hand_over")
    assert rig.do("load", 1, 7, 0).code is Code.STOPPED
    assert rig.system.remote[BUFFER] == SECRET
    assert KEY not in [word for _address, word in rig.system.remote]


# -- extensions ------------------------------------------------------------------------------------------------------------


def test_extensions_touch_what_their_policy_says(rig):
    rig.must("extension_write", 1, 40 << 3, SECRET)
    assert rig.must("extension_read", 2, 40 << 3) == SECRET
    assert rig.do("extension_write", 2, 40 << 3, 1).code is Code.CONFINED
    assert rig.do("extension_read", 1, 44 << 3).code is rig.do("extension_read", 3, 40 << 3).code is Code.CONFINED
    assert rig.do("extension_read", 5, 0).code is rig.do("extension_read", 0, 0).code is Code.RANGE


def test_a_policy_that_names_the_region_permits_nothing_there(rig):
    rig.system.extensions[3] = Extension(True, 0, FRAMES, True)
    assert rig.do("extension_read", 3, FIRST << 3).code is Code.CONFINED
    rig.must("extension_write", 3, 0, 1)


# -- what the invariants notice ---------------------------------------------------------------------------------------------


def reading(rig: Rig) -> System:
    """Two sectors are read: the first is in the shadow buffer, the second is under way."""
    rig.write_port(PLAIN, 1, 2)
    rig.describe((BUFFER, 2))
    rig.command(READ_DMA, PLAIN, 2)
    rig.output(Register.START, TO_GUEST)
    rig.must("transfer", DISK)
    return rig.system


def writing(rig: Rig) -> System:
    """Two sectors are written: the first is in the shadow buffer."""
    rig.put(BUFFER, 7)
    rig.describe((BUFFER, 2))
    rig.command(WRITE_DMA, ENCRYPTED, 2)
    rig.output(Register.START, TO_MEDIUM)
    rig.must("mediate", DISK)
    return rig.system


def sending(rig: Rig) -> System:
    """Moving: a frame was sent, and the last round has begun."""
    rig.put(BUFFER, 7)
    rig.must("begin_move")
    rig.must("send", BUFFER >> 3)
    rig.must("stop")
    rig.must("send_next")
    return rig.system


def fetching(rig: Rig) -> System:
    """A sector is deployed, the next one fetched."""
    rig.must("fetch", DEPLOYED, 0)
    rig.must("deploy", DEPLOYED)
    rig.must("fetch", DEPLOYED, 1)
    return rig.system


def changed(table: str, number, **parts) -> object:
    """A sabotage: columns of a row are others, or, if none is named, its word."""

    def sabotage(system: System) -> None:
        rows, key = getattr(system, table), number(system) if callable(number) else number
        rows[key] = rows[key]._replace(**parts) if parts else rows[key] ^ 1

    return sabotage


SABOTAGES = {
    "a word in the page of zeros": (reading, changed("memory", lambda system: system.zero_frame << 3), {"P1", "P17"}),
    "a translation to the region": (reading, changed("mappings", (1, 7), frame=FIRST), {"P1"}),
    "a level that isn't": (reading, changed("mappings", (1, 7), level=3), {"P16"}),
    "another word on the medium": (reading, changed("media", (DISK, PLAIN)), {"P3", "P5", "P17"}),
    "another word in the buffer of a write": (writing, changed("memory", lambda system: system.shadow_buffer(DISK)), {"P3"}),
    "another word in the buffer of a read": (reading, changed("memory", lambda system: system.shadow_buffer(DISK)), {"P5"}),
    "another pointer": (reading, changed("devices", DISK, descriptors=TABLE), {"P4"}),
    "another descriptor": (reading, changed("memory", lambda system: system.shadow_descriptor(DISK)), {"P4"}),
    "a longer command": (reading, changed("devices", DISK, length=3), {"P6"}),
    "another sector": (reading, changed("devices", DISK, first=PLAIN + 1), {"P6"}),
    "a sector denied under way": (reading, lambda system: system.rules.__setitem__((DISK, PLAIN + 1), 2), {"P14"}),
    "a processor outside": (reading, changed("vcpus", 0, is_outside=True), {"P8"}),
    "an APIC over the region": (reading, changed("vcpus", 1, apic_frame=BEHIND - 1), {"P8"}),
    "new microcode": (reading, changed("vmm", 0, has_microcode=True), {"P8"}),
    "a hook that is gone": (reading, lambda system: system.hooked.__setitem__((0, 0x21), 0), {"P8"}),
    "a hook without a device": (reading, lambda system: system.hooked.__setitem__((0, 0x77), DISK), {"P16"}),
    "a window elsewhere": (reading, lambda system: system.windows.__setitem__((NETWORK, 0), 5), {"P16"}),
    "a window over the region": (
        reading,
        lambda system: system.place_window(NETWORK, Space.MEMORY, FIRST << 6),
        {"P8", "P16"},
    ),
    "another key": (reading, changed("memory", lambda system: system.key_address), {"P9", "P17"}),
    "a key that was sent": (sending, changed("remote", lambda system: system.key_address), {"P9"}),
    "another word that was sent": (sending, changed("remote", BUFFER), {"P13"}),
    "a frame that isn't clean behind the last round": (sending, lambda system: system.clean.__setitem__(0, False), {"P13"}),
    "a frame that is no more": (sending, changed("vmm", 0, next_frame=FRAMES + 1), {"P13"}),
    "a sector before the cursor": (fetching, changed("deployed", (DEPLOYED, 0)), {"P12"}),
    "a cursor behind the image": (fetching, changed("deployments", DEPLOYED, cursor=5), {"P12"}),
    "another word than the image's": (fetching, changed("deployments", DEPLOYED, word=1), {"P12"}),
    "left too early": (fetching, changed("deployments", DEPLOYED, phase=Phase.GONE), {"P12", "P16"}),
    "a rule of a medium that will be left": (fetching, changed("rules", (DEPLOYED, 1)), {"P12"}),
    "a command of no state": (reading, changed("channels", DISK, state=ChannelState.READY), {"P16"}),
    "a mediator behind its device": (reading, changed("channels", DISK, is_write=True), {"P16"}),
    "a device ahead of its mediator": (writing, changed("devices", DISK, is_started=True), {"P16"}),
}
"""By name: what is done first, what is changed behind the machine's back, and what must notice it."""


@pytest.mark.parametrize("name", SABOTAGES)
def test_what_is_changed_behind_the_machines_back_is_noticed(name):
    scene, sabotage, expected = SABOTAGES[name]
    rig = Rig()
    system = scene(rig)
    assert rig.violated == set()
    step = perform(system, "write_msr", 9, 0, 0)
    sabotage(system)
    assert violated(step) >= expected


@pytest.mark.parametrize(("name", "value"), [("output", None), ("input", 5)])
def test_a_register_that_does_not_pass_through_is_noticed(name, value, monkeypatch):
    rig = Rig()
    monkeypatch.setitem(OPERATION_RULES, name, lambda *_operands: value)
    for device in (NETWORK, 0):
        number = (window(device, Space.PORT) if device else 0x700) << 3
        step = rig.do(name, 0, Space.PORT, number, *([8] if name == "output" else []))
        assert ("P10" in violated(step)) is (device == NETWORK or name == "input")


@pytest.mark.parametrize("name", BROKEN)
def test_a_machine_that_is_wrong_is_noticed_by_a_run(name, monkeypatch):
    broken = BROKEN[name]
    rig = Rig()
    break_in(broken, monkeypatch)
    broken.scene(rig)
    assert broken.invariant in rig.violated


# -- hooks that don't keep to what they promise ----------------------------------------------------------------------------


def raises(*_arguments):
    raise ZeroDivisionError("no answer")


@pytest.mark.parametrize("name", ["refuses", "prepares"])
def test_a_hook_that_raises_refuses_the_command(name):
    rig = Rig(hooks=(Hooks("broken", **{name: raises}),))
    assert rig.command(WRITE_SECTORS, PLAIN) is Code.FAILED
    assert rig.input(Register.COMMAND) == STATUS_ERROR | STATUS_READY
    assert rig.system.faults == [f"broken: {name}: ZeroDivisionError: no answer"] and rig.violated == set()


@pytest.mark.parametrize("answer", [raises, lambda *_arguments: None, lambda *_arguments: "word"])
def test_a_hook_without_a_word_for_an_answer_gives_0(answer):
    rig = Rig(hooks=(Hooks("broken", outgoing=answer, incoming=answer),))
    rig.system.media[DISK, PLAIN] = 7
    rig.write_port(PLAIN + 1, 5)
    assert rig.read_port(PLAIN) == [0] and rig.system.media[DISK, PLAIN + 1] == 0
    assert len(rig.system.faults) == 2 and rig.violated == set()


def test_of_what_a_hook_answers_64_bits_count():
    rig = Rig(hooks=(Hooks("large", outgoing=lambda *each: each[-1] + (1 << 64), incoming=lambda *each: -each[-1]),))
    rig.write_port(PLAIN, 5)
    assert rig.system.media[DISK, PLAIN] == 5 and rig.read_port(PLAIN) == [(1 << 64) - 5]
    assert rig.violated == set()


def test_hooks_are_asked_of_each_sector_of_a_command_and_of_no_others():
    asked = []
    hooks = Hooks("asks", refuses=lambda *each: asked.append(each[2]), prepares=lambda *each: asked.append(each[2]))
    rig = Rig(hooks=(hooks,))
    assert rig.command(READ_SECTORS, PLAIN + 2, 3) is Code.OK
    assert asked == [PLAIN + 2, PLAIN + 3, PLAIN + 4] * 2


# -- random runs -----------------------------------------------------------------------------------------------------------

STATE_TABLES = (
    *("vmm", "memory", "vcpus", "mappings", "devices", "decoded", "hooked", "windows", "registers", "channels", "media"),
    *("meant", "plain", "touched", "deployments", "deployed", "clean", "remote", "trapped"),
)


def state(system: System) -> dict[str, object]:
    """All of a concrete system that operations change."""
    return {name: dict(getattr(system, name).rows) for name in STATE_TABLES}


FIRSTS = (0, 1, 2, 3, 14, 15, 16, 17, 18, 19, 30, 31, 47, 63)
OFTEN = (*(READ_DMA, WRITE_DMA, READ_SECTORS, WRITE_SECTORS) * 4, *COMMANDS)


class Player:
    """Operations drawn so that most of them do something."""

    def __init__(self, seed: int, policy=INTENDED) -> None:
        self.rng = random.Random(seed)
        self.rig = Rig(policy)
        self.rig.watches = False
        self.system = self.rig.system
        self.moves = seed % 4 == 0
        for device in (DISK, DEPLOYED):
            self.rig.describe((BUFFER, 3), (BUFFER + 8, 9), device=device)

    def drive(self) -> tuple[str, tuple[int, ...]]:
        """What gets a command of a storage device on."""
        rng, system = self.rng, self.system
        device, space = rng.choice((DISK, DISK, DEPLOYED)), rng.randrange(2)
        row, channel = system.devices[device], system.channels[device]
        if channel.state in (ChannelState.COPYING_OUT, ChannelState.COPYING_IN):
            return "mediate", (device,)
        if channel.state == ChannelState.MOVING and row.is_started:
            return "transfer", (device,)
        drawn = rng.choice((Register.COMMAND, Register.COMMAND, Register.COUNT, Register.LBA))
        value = {
            Register.COMMAND: rng.choice(OFTEN),
            Register.COUNT: rng.choice((1, 1, 2, 3)),
            Register.LBA: rng.choice(FIRSTS),
        }
        following = {
            ChannelState.PIO_IN: (Register.DATA, None),
            ChannelState.PIO_OUT: (Register.DATA, rng.getrandbits(16)),
            ChannelState.THROUGH: (Register.DATA, None) if row.opcode else (drawn, value[drawn]),
            ChannelState.DMA_READY: (Register.START, TO_MEDIUM if channel.is_write else TO_GUEST),
            ChannelState.MOVING: (Register.MASTER_STATUS, None),
        }
        register, word = following.get(ChannelState(channel.state), (drawn, value[drawn]))
        number = system.windows[device, space] << 3 | register
        return ("input", (0, space, number)) if word is None else ("output", (0, space, number, word))

    def draw(self) -> tuple[str, tuple[int, ...]]:
        rng, system = self.rng, self.system
        if rng.random() < 0.5:
            return self.drive()
        chances = dict.fromkeys(OPERATIONS, 0.5) | {"output": 14, "input": 6, "mediate": 1, "transfer": 1, "store": 3}
        chances |= {"map": 3, "load": 2, "fetch": 6, "deploy": 5, "leave": 1, "move_window": 1, "sleep": 0.2, "init": 0.4}
        chances |= {"hand_over": 0.2, "send_next": 0.5, "dma_write": 1, "extension_write": 3}
        row = system.deployments[DEPLOYED]
        if row.is_fetched:
            chances |= {"deploy": 30}
        if row.cursor == row.size:
            chances |= {"leave": 20}
        if not self.moves:
            chances |= {"begin_move": 0}
        elif system.vmm[0].stage == Stage.ROUNDS:
            chances |= {"send": 20, "stop": 3}
        elif system.vmm[0].stage == Stage.STOPPED:
            chances |= {"send_next": 100}
        name = rng.choices(list(chances), list(chances.values()))[0]
        operands = [self.operand(kind) for _name, kind in OPERATIONS[name].operands]
        if name in ("input", "output"):
            self.access(operands)
        if name == "map" and rng.random() < 0.7:
            operands[3] = 0
        if name in ("fetch", "deploy", "leave") and rng.random() < 0.7:
            operands[0] = DEPLOYED
        if name == "move_window" and rng.random() < 0.2:
            operands[3] = system.windows[NETWORK, operands[2]]
        if name == "extension_write" and rng.random() < 0.5:
            operands[:2] = 1, 40 << 3 | rng.randrange(32)
        if name == "write_msr" and operands[1] == Msr.APIC_BASE:
            operands[2] = rng.choice((0x500, 0xFEE00)) << 12
        if name in ("store", "load") and rng.random() < 0.8:
            live = [slot for (vcpu, slot), row in system.mappings if vcpu == operands[0] and row.is_live]
            operands[1] = rng.choice(live or [0])
            if name == "store" and system.mappings[operands[0], operands[1]].is_zero and rng.random() < 0.98:
                return "load", tuple(operands[:3])
        return name, tuple(operands)

    def access(self, operands: list[int]) -> None:
        """A register of a device, and what makes sense there."""
        rng, system = self.rng, self.system
        device = rng.choice((DISK, DISK, DEPLOYED, DEPLOYED, NETWORK))
        space = rng.randrange(2)
        row, channel = system.devices[device], system.channels[device]
        register = rng.choice(list(Register))
        if channel.state in (ChannelState.PIO_IN, ChannelState.PIO_OUT, ChannelState.THROUGH) and rng.random() < 0.7:
            register = Register.DATA
        elif channel.state == ChannelState.DMA_READY and rng.random() < 0.7:
            register = Register.START
        elif channel.state == ChannelState.MOVING and not row.is_started:
            register = Register.MASTER_STATUS
        operands[1:3] = space, system.windows[device, space] << 3 | register
        if len(operands) == 4:
            direction = TO_MEDIUM if channel.is_write else TO_GUEST
            values = {
                Register.COUNT: rng.choice((0, 1, 1, 2, 3, 4, 4, 8)),
                Register.LBA: rng.choice(FIRSTS),
                Register.COMMAND: rng.choice(list(COMMANDS)),
                Register.DESCRIPTORS: rng.choice((TABLE, TABLE, TABLE + 1, BUFFER)),
                Register.START: rng.choice((direction, direction, direction, 0, TO_GUEST, TO_MEDIUM)),
                Register.CONTROL: rng.choice((0, 0, 0, 4)),
            }
            operands[3] = values.get(register, rng.getrandbits(16))

    def operand(self, kind: OperandKind) -> int:
        rng, system = self.rng, self.system
        shadows = [system.shadow_buffer(device) + rng.randrange(2) for device in (DISK, DEPLOYED)]
        address = rng.choice((TABLE, BUFFER, BUFFER + 1, FIRST << 3, BEHIND - 1 << 3, 40 << 3, 44 << 3, *shadows))
        frame = rng.choice((4, 5, 6, 40, 1150, 1150, FIRST, FIRST + 1, BEHIND - 1, BEHIND, FRAMES - 1))
        drawn = {
            OperandKind.VCPU: rng.randrange(2),
            OperandKind.SLOT: rng.randrange(3),
            OperandKind.FRAME: frame,
            OperandKind.LEVEL: rng.randrange(3),
            OperandKind.FLAG: rng.randrange(2),
            OperandKind.OFFSET: rng.choice((0, 0, 1, 2, 9, 100)),
            OperandKind.ADDRESS: address,
            OperandKind.WORD: rng.choice((rng.getrandbits(16), descriptor(BUFFER + rng.randrange(8), rng.randrange(5)))),
            OperandKind.DEVICE: rng.choice((DISK, DISK, DEPLOYED, DEPLOYED, NETWORK)),
            OperandKind.SPACE: rng.randrange(2),
            OperandKind.NUMBER: rng.randrange(1 << 16),
            OperandKind.WINDOW: rng.choice((0x21, 0x22, 0x30, 0x31, 1240 << 6, FIRST << 6, BEHIND - 1 << 6)),
            OperandKind.MSR: rng.choice((0x10, Msr.APIC_BASE, Msr.MICROCODE)),
            OperandKind.LBA: rng.choice((*[system.deployments[DEPLOYED].cursor] * 3, rng.randrange(4))),
            OperandKind.EXTENSION: rng.choice((1, 2)),
        }
        return int(drawn[kind])

    def play(self, steps: int) -> tuple[set[str], Counter]:
        """What was violated, and how operations ended."""
        ends: Counter = Counter()
        changes = {Code.PANIC, Code.FAILED, Code.IOMMU}
        for _ in range(steps):
            name, operands = self.draw()
            before = state(self.system) if ends[name, "refused"] < 3 else None
            step = perform(self.system, name, *operands)
            if step.code is not Code.OK:
                assert step.code in OPERATIONS[name].refusals, step
                if before is not None and step.code not in changes:
                    assert state(self.system) == before, step
            ends[name, "done" if step.is_completed else "refused"] += 1
            ends[step.code] += 1
            found = violated(step)
            if found:
                return found, ends
            if self.system.vmm[0].is_stopped:
                break
        return set(), ends


def test_the_invariants_hold_over_random_runs():
    ends: Counter = Counter()
    for seed in some(range(20), 2):
        found, ended = Player(seed).play(160)
        assert found == set(), (seed, ended)
        ends += ended
    done = {name for name, end in (each for each in ends if isinstance(each, tuple)) if end == "done"}
    assert done >= OPERATIONS.keys() - {"enter_vmx", "hand_over"}
    assert set(ends) >= set(Code) - {Code.STOPPED, Code.PANIC}


SOON = (
    *("filter_mappings", "iommu_hides_region", "iommu_confines_mediated", "claim_before_command", "confine_extensions"),
    *("refuse_queued", "refuse_unknown"),
)
"""What random runs of this kind find soon; tests/unit/test_vmm_attacks.py has an attack for each guard."""


@pytest.mark.parametrize("guard", SOON)
def test_random_runs_find_a_missing_guard(guard):
    assert any(Player(seed, without(guard)).play(160)[0] for seed in range(60))
