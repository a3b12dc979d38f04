"""Attacks on a para-pass-through VMM: each is stopped or harmless as intended, and works with one guard off."""

from collections.abc import Callable

import pytest

from capvisor.model.vmm_devices import descriptor
from capvisor.spec.vmm import Msr, Register, Space
from capvisor.spec.vmm_invariants import VMM_INVARIANTS
from capvisor.spec.vmm_policy import INTENDED, VMM_GUARDS, VmmPolicy, without
from tests.unit.vmm import (
    BEHIND,
    BUFFER,
    DENIED,
    DEPLOYED,
    DISK,
    ENCRYPTED,
    FIRST,
    KEY,
    NETWORK,
    PLAIN,
    READ_DMA,
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

Attack = Callable[[VmmPolicy], tuple[Rig, bool]]
"""Carries an attack out as far as it goes under a policy; whether it has worked."""


def load_of(rig: Rig, frame: int, level: int = 0, offset: int = 0) -> object:
    rig.must("map", 0, 0, frame, level, 1)
    return rig.do("load", 0, 0, offset).value


def the_key_by_a_mapping(policy: VmmPolicy) -> tuple[Rig, bool]:
    """E1: the guest maps the frame that has the key."""
    rig = Rig(policy)
    return rig, load_of(rig, FIRST) == KEY


def behind_the_first_four_mebibytes(policy: VmmPolicy) -> tuple[Rig, bool]:
    """E12: the guest maps a frame of the region that isn't compared."""
    rig = Rig(policy)
    rig.system.memory[BEHIND - 1 << 3] = SECRET
    return rig, load_of(rig, BEHIND - 1) == SECRET


def the_key_by_a_large_page(policy: VmmPolicy) -> tuple[Rig, bool]:
    """E1: the region lies in a page of 2 MiB."""
    rig = Rig(policy)
    return rig, load_of(rig, 0, 1, FIRST << 3) == KEY


def a_page_of_zeros_that_is_written(policy: VmmPolicy) -> tuple[Rig, bool]:
    """E1: the guest writes to the page that stands for the region."""
    rig = Rig(policy)
    rig.must("map", 0, 0, FIRST, 0, 1)
    rig.do("store", 0, 0, 3, SECRET)
    return rig, rig.system.memory[(rig.system.zero_frame << 3) + 3] == SECRET


def an_apic_over_the_region(policy: VmmPolicy) -> tuple[Rig, bool]:
    """The guest moves the local APIC to where the VMM is."""
    rig = Rig(policy)
    rig.do("write_msr", 0, Msr.APIC_BASE, FIRST << 12 | 0x900)
    return rig, rig.system.vcpus[0].apic_frame == FIRST


def new_microcode(policy: VmmPolicy) -> tuple[Rig, bool]:
    """The guest updates the microcode."""
    rig = Rig(policy)
    return rig, rig.do("write_msr", 0, Msr.MICROCODE, 1).is_completed


def outside_by(name: str) -> Attack:
    def attack(policy: VmmPolicy) -> tuple[Rig, bool]:
        """E9: the guest gets a processor out of the VMM's control, and reads the key."""
        rig = Rig(policy)
        rig.do(name, 0)
        return rig, load_of(rig, FIRST) == KEY

    return attack


def registers_that_move_away(policy: VmmPolicy) -> tuple[Rig, bool]:
    """E6: the guest moves the disk's registers, and writes to an encrypted sector by them."""
    rig = Rig(policy)
    rig.must("move_window", 0, DISK, Space.PORT, 0x99)
    for register, value in ((Register.COUNT, 1), (Register.LBA, ENCRYPTED), (Register.COMMAND, WRITE_SECTORS)):
        rig.do("output", 0, Space.PORT, 0x99 << 3 | register, value)
    rig.do("output", 0, Space.PORT, 0x99 << 3, SECRET)
    return rig, rig.system.media[DISK, ENCRYPTED] == SECRET


def registers_over_the_region(policy: VmmPolicy) -> tuple[Rig, bool]:
    """E6: the guest moves a device's registers to where the VMM's key is."""
    rig = Rig(policy)
    rig.do("move_window", 0, NETWORK, Space.MEMORY, FIRST << 6)
    return rig, rig.system.decoded[Space.MEMORY, FIRST << 6] == NETWORK


def the_key_by_dma(policy: VmmPolicy) -> tuple[Rig, bool]:
    """E2, E10: a device that passes through reads the key."""
    rig = Rig(policy)
    return rig, rig.do("dma_read", NETWORK, FIRST << 3).value == KEY


def dma_of_a_mediated_device(policy: VmmPolicy) -> tuple[Rig, bool]:
    """The disk, which the guest could have programmed, writes to the guest's memory by itself."""
    rig = Rig(policy)
    rig.do("dma_write", DISK, BUFFER, SECRET)
    return rig, rig.system.memory[BUFFER] == SECRET


def an_address_that_changes_by_itself(policy: VmmPolicy) -> tuple[Rig, bool]:
    """E4: after a command the device's address is that of its last sector; the next command goes there."""
    rig = Rig(policy)
    rig.write_port(ENCRYPTED - 2, *range(3))
    rig.output(Register.COUNT, 1)
    rig.output(Register.COMMAND, WRITE_SECTORS)
    rig.output(Register.DATA, SECRET)
    return rig, rig.system.media[DISK, ENCRYPTED] == SECRET


def more_than_the_buffer_holds(policy: VmmPolicy) -> tuple[Rig, bool]:
    """E11: a command of more sectors than are checked reaches one that is denied."""
    rig = Rig(policy)
    rig.write_port(DENIED - 8, *[SECRET] * 9)
    return rig, rig.system.media[DISK, DENIED] == SECRET


def the_second_sector_is_denied(policy: VmmPolicy) -> tuple[Rig, bool]:
    """A command begins with a sector that isn't denied."""
    rig = Rig(policy)
    rig.write_port(DENIED - 1, 1, SECRET)
    return rig, rig.system.media[DISK, DENIED] == SECRET


def a_denied_sector(policy: VmmPolicy) -> tuple[Rig, bool]:
    """The guest writes where it may not."""
    rig = Rig(policy)
    rig.write_port(DENIED, SECRET)
    return rig, rig.system.media[DISK, DENIED] == SECRET


def a_command_of_the_vendors(policy: VmmPolicy) -> tuple[Rig, bool]:
    """E3: a command that the mediator doesn't know erases sectors: it fails, but is done."""
    rig = Rig(policy)
    rig.write_port(ENCRYPTED, SECRET)
    rig.command(0x81, ENCRYPTED)
    return rig, rig.system.media[DISK, ENCRYPTED] == 0


def a_packet(policy: VmmPolicy) -> tuple[Rig, bool]:
    """E3: a packet command moves data that the mediator doesn't follow."""
    rig = Rig(policy)
    rig.command(0xA0, ENCRYPTED)
    rig.output(Register.DATA, SECRET)
    return rig, rig.system.media[DISK, ENCRYPTED] == SECRET


def trimming(policy: VmmPolicy) -> tuple[Rig, bool]:
    """E3: a command that is let through erases an encrypted sector."""
    rig = Rig(policy)
    rig.write_port(ENCRYPTED, SECRET)
    rig.command(0x06, ENCRYPTED)
    return rig, rig.system.media[DISK, ENCRYPTED] == 0


def dma_before_all_is_copied(policy: VmmPolicy) -> tuple[Rig, bool]:
    """E7: the bus master is started while the mediator still copies, and the buffer has an earlier command's words."""
    rig = Rig(policy)
    rig.write_dma(PLAIN, SECRET)
    rig.command(WRITE_DMA, ENCRYPTED)
    rig.output(Register.START, TO_MEDIUM)
    rig.output(Register.START, TO_MEDIUM)
    rig.do("transfer", DISK)
    return rig, rig.system.media[DISK, ENCRYPTED] == SECRET


def a_write_that_is_started_as_a_read(policy: VmmPolicy) -> tuple[Rig, bool]:
    """The bus master is started in the other direction: the mediator copies nothing, and the device writes what it finds."""
    rig = Rig(policy)
    rig.write_dma(PLAIN, SECRET)
    rig.command(WRITE_DMA, ENCRYPTED)
    rig.output(Register.START, TO_GUEST)
    rig.do("transfer", DISK)
    return rig, rig.system.media[DISK, ENCRYPTED] == SECRET


def descriptors_of_the_guests(policy: VmmPolicy) -> tuple[Rig, bool]:
    """The device gets the guest's own descriptors."""
    rig = Rig(policy)
    rig.describe((BUFFER, 1))
    return rig, rig.system.devices[DISK].descriptors == TABLE


def a_pointer_that_isnt_ones_own(policy: VmmPolicy) -> tuple[Rig, bool]:
    """The guest learns where the VMM's descriptors are, and that there is a VMM."""
    rig = Rig(policy)
    rig.describe((BUFFER, 1))
    return rig, rig.input(Register.DESCRIPTORS) != TABLE


def write_the_key(rig: Rig, changes: bool) -> bool:
    """Write to a plain sector from where the key is, by a descriptor that says so from the start, or later."""
    key = descriptor(FIRST << 3, 1)
    rig.describe((BUFFER, 1))
    if not changes:
        rig.put(TABLE, key)
    rig.command(WRITE_DMA, PLAIN)
    rig.output(Register.START, TO_MEDIUM)
    if changes:
        rig.put(TABLE, key)
    rig.do("mediate", DISK)
    rig.do("transfer", DISK)
    return rig.system.media[DISK, PLAIN] == KEY


def a_descriptor_that_changes(policy: VmmPolicy) -> tuple[Rig, bool]:
    """E5: the guest changes a descriptor between its check and its use."""
    rig = Rig(policy)
    return rig, write_the_key(rig, True)


def a_descriptor_of_the_key(policy: VmmPolicy) -> tuple[Rig, bool]:
    """E1 by the mediator: a descriptor names the region."""
    rig = Rig(policy)
    return rig, write_the_key(rig, False)


def descriptors_that_end_too_early(policy: VmmPolicy) -> tuple[Rig, bool]:
    """The rest of the shadow buffer has an earlier command's words."""
    rig = Rig(policy)
    rig.write_dma(PLAIN, 1, SECRET)
    rig.describe((BUFFER, 1))
    rig.command(WRITE_DMA, ENCRYPTED, 2)
    rig.output(Register.START, TO_MEDIUM)
    rig.finish()
    return rig, rig.system.media[DISK, ENCRYPTED + 1] == SECRET


def a_word_in_the_clear(policy: VmmPolicy) -> tuple[Rig, bool]:
    """The guest writes to an encrypted sector."""
    rig = Rig(policy)
    rig.write_port(ENCRYPTED, SECRET)
    return rig, rig.system.media[DISK, ENCRYPTED] == SECRET


def a_word_in_cipher(policy: VmmPolicy) -> tuple[Rig, bool]:
    """The guest reads what it has written to an encrypted sector."""
    rig = Rig(policy)
    rig.write_port(ENCRYPTED, SECRET)
    return rig, rig.read_port(ENCRYPTED) == [cipher_text(ENCRYPTED, SECRET)]


def a_read_that_is_stopped(policy: VmmPolicy) -> tuple[Rig, bool]:
    """The guest stops the bus master before the device has read: it gets an earlier command's words."""
    rig = Rig(policy)
    rig.write_port(PLAIN + 1, 2)
    rig.write_dma(PLAIN, SECRET)
    rig.command(READ_DMA, PLAIN + 1)
    rig.output(Register.START, TO_GUEST)
    rig.output(Register.START, 0)
    rig.put(BUFFER, 0)
    rig.input(Register.MASTER_STATUS)
    rig.do("mediate", DISK)
    return rig, rig.get(BUFFER) == SECRET


def a_read_across_a_reset(policy: VmmPolicy) -> tuple[Rig, bool]:
    """The guest resets the device before it has read: the mediator believes that it has."""
    rig = Rig(policy)
    rig.write_port(PLAIN + 1, 2)
    rig.write_dma(PLAIN, SECRET)
    rig.command(READ_DMA, PLAIN + 1)
    rig.output(Register.START, TO_GUEST)
    rig.output(Register.CONTROL, 4)
    rig.put(BUFFER, 0)
    rig.input(Register.MASTER_STATUS)
    rig.do("mediate", DISK)
    return rig, rig.get(BUFFER) == SECRET


def an_extension_that_reads_the_key(policy: VmmPolicy) -> tuple[Rig, bool]:
    """An extension goes beyond its policy."""
    rig = Rig(policy)
    return rig, rig.do("extension_read", 2, FIRST << 3).value == KEY


def reading_before_deployment(policy: VmmPolicy) -> tuple[Rig, bool]:
    """The guest reads a sector that isn't deployed yet."""
    rig = Rig(policy)
    return rig, rig.read_port(1, device=DEPLOYED) != [0xD1]


def a_write_that_the_copy_overwrites(policy: VmmPolicy) -> tuple[Rig, bool]:
    """The guest writes a sector between the background copy's fetching and writing it."""
    rig = Rig(policy)
    rig.must("fetch", DEPLOYED, 1)
    rig.write_port(1, SECRET, device=DEPLOYED)
    rig.do("deploy", DEPLOYED)
    return rig, rig.system.media[DEPLOYED, 1] == 0xD1


def leaving_too_early(policy: VmmPolicy) -> tuple[Rig, bool]:
    """The VMM leaves before all is deployed."""
    rig = Rig(policy)
    return rig, rig.do("leave", DEPLOYED).is_completed


def move_on(rig: Rig) -> bool:
    """Send the rest and hand over; whether the other machine has something else at BUFFER."""
    rig.do("stop")
    while rig.do("send_next").is_completed:
        pass
    rig.do("hand_over")
    system = rig.system
    return system.vmm[0].stage == 3 and system.remote[BUFFER] != system.memory[BUFFER]


def a_store_while_moving(policy: VmmPolicy) -> tuple[Rig, bool]:
    """A frame that was sent is written to by a processor."""
    rig = Rig(policy)
    rig.must("begin_move")
    rig.must("send", BUFFER >> 3)
    rig.put(BUFFER, SECRET)
    rig.watches = False
    return rig, move_on(rig)


def dma_while_moving(policy: VmmPolicy) -> tuple[Rig, bool]:
    """A frame that was sent is written to by a device."""
    rig = Rig(policy)
    rig.must("begin_move")
    rig.must("send", BUFFER >> 3)
    rig.must("dma_write", NETWORK, BUFFER, SECRET)
    rig.watches = False
    return rig, move_on(rig)


def mediation_while_moving(policy: VmmPolicy) -> tuple[Rig, bool]:
    """A frame that was sent is written to by a mediator."""
    rig = Rig(policy)
    rig.write_port(PLAIN, SECRET)
    rig.must("begin_move")
    rig.must("send", BUFFER >> 3)
    rig.read_dma(PLAIN)
    rig.watches = False
    return rig, move_on(rig)


def a_store_in_the_last_round(policy: VmmPolicy) -> tuple[Rig, bool]:
    """The guest runs on while the last frames are sent."""
    rig = Rig(policy)
    rig.must("map", 0, 0, BUFFER >> 3, 0, 1)
    rig.must("begin_move")
    rig.must("stop")
    for _ in range(10):
        rig.must("send_next")
    rig.do("store", 0, 0, 0, SECRET)
    rig.watches = False
    return rig, move_on(rig)


def handed_over_before_all_is_sent(policy: VmmPolicy) -> tuple[Rig, bool]:
    """The last round is cut short."""
    rig = Rig(policy)
    rig.put(BUFFER, SECRET)
    rig.must("begin_move")
    rig.must("stop")
    rig.do("hand_over")
    return rig, rig.system.remote[BUFFER] != SECRET and rig.system.vmm[0].stage == 3


def registers_as_memory(policy: VmmPolicy) -> tuple[Rig, bool]:
    """E6: a page with the disk's registers is reached as memory."""
    rig = Rig(policy)
    frame = window(DISK, Space.MEMORY) >> 6
    rig.must("map", 0, 0, frame, 0, 1)
    rig.do("store", 0, 0, 2, SECRET)
    return rig, rig.system.memory[(frame << 3) + 2] == SECRET


ATTACKS: dict[str, tuple[Attack, str]] = {
    "filter_mappings": (the_key_by_a_mapping, "P1"),
    "hide_whole_region": (behind_the_first_four_mebibytes, "P1"),
    "split_large_mappings": (the_key_by_a_large_page, "P1"),
    "panic_on_region_write": (a_page_of_zeros_that_is_written, "P1"),
    "apic_outside_region": (an_apic_over_the_region, "P8"),
    "swallow_microcode": (new_microcode, "P8"),
    "hide_virtualisation": (outside_by("enter_vmx"), "P8"),
    "keep_on_init": (outside_by("init"), "P8"),
    "keep_on_resume": (outside_by("sleep"), "P8"),
    "follow_window_moves": (registers_that_move_away, "P8"),
    "unmap_registers": (registers_as_memory, "P8"),
    "windows_outside_region": (registers_over_the_region, "P8"),
    "iommu_hides_region": (the_key_by_dma, "P2"),
    "iommu_confines_mediated": (dma_of_a_mediated_device, "P7"),
    "read_back_registers": (an_address_that_changes_by_itself, "P6"),
    "count_bounded": (more_than_the_buffer_holds, "P14"),
    "check_all_sectors": (the_second_sector_is_denied, "P14"),
    "refuse_denied": (a_denied_sector, "P14"),
    "refuse_unknown": (a_command_of_the_vendors, "P11"),
    "refuse_queued": (a_packet, "P3"),
    "through_harmless": (trimming, "P3"),
    "start_gated": (dma_before_all_is_copied, "P3"),
    "direction_checked": (a_write_that_is_started_as_a_read, "P3"),
    "shadow_descriptors": (descriptors_of_the_guests, "P4"),
    "show_own_descriptors": (a_pointer_that_isnt_ones_own, "P5"),
    "descriptors_checked_at_use": (a_descriptor_that_changes, "P9"),
    "descriptors_outside_region": (a_descriptor_of_the_key, "P9"),
    "whole_descriptors": (descriptors_that_end_too_early, "P3"),
    "encrypt_writes": (a_word_in_the_clear, "P3"),
    "decrypt_reads": (a_word_in_cipher, "P5"),
    "block_while_busy": (a_read_that_is_stopped, "P5"),
    "reset_follows": (a_read_across_a_reset, "P5"),
    "confine_extensions": (an_extension_that_reads_the_key, "P15"),
    "claim_before_command": (reading_before_deployment, "P12"),
    "recheck_before_write": (a_write_that_the_copy_overwrites, "P3"),
    "leave_when_deployed": (leaving_too_early, "P12"),
    "track_cpu_writes": (a_store_while_moving, "P13"),
    "track_dma_writes": (dma_while_moving, "P13"),
    "track_mediator_writes": (mediation_while_moving, "P13"),
    "stop_before_last_round": (a_store_in_the_last_round, "P13"),
    "whole_last_round": (handed_over_before_all_is_sent, "P13"),
}
"""By guard, an attack that it stops, and an invariant that the attack violates without it."""


def test_every_guard_has_an_attack():
    assert ATTACKS.keys() == VMM_GUARDS.keys()


@pytest.mark.parametrize("guard", ATTACKS)
def test_an_attack_is_stopped_as_intended(guard):
    attack, _name = ATTACKS[guard]
    rig, worked = attack(INTENDED)
    assert (worked, rig.violated) == (False, set())


@pytest.mark.parametrize("guard", ATTACKS)
def test_an_attack_works_without_its_guard(guard):
    attack, name = ATTACKS[guard]
    rig, worked = attack(without(guard))
    assert worked
    assert name in rig.violated


def test_every_invariant_but_what_others_rest_on_falls():
    fallen = set()
    for guard, (attack, _name) in ATTACKS.items():
        fallen |= attack(without(guard))[0].violated
    assert fallen >= VMM_INVARIANTS.keys() - {"P10", "P19"}
