"""What devices do by themselves: registers of a storage device, its commands, DMA. The rules: spec/vmm.md, 4."""

from typing import Any

from capvisor.model.bits import not_, select
from capvisor.model.tlb import either
from capvisor.model.vmm import Address, Device, DeviceId, Frame, Lba, Meant, Move, Refused, System, Word
from capvisor.spec.vmm import (
    ALL_ONES,
    BLOCK_SHIFT,
    COMMANDS,
    COUNT_BITS,
    DESCRIPTOR_ADDRESS_BITS,
    DESCRIPTOR_COUNT_BITS,
    DESCRIPTOR_COUNT_SHIFT,
    DESCRIPTOR_END,
    LBA_BITS,
    OPCODE_BITS,
    RESET_BIT,
    SHADOW_BLOCKS,
    START_BIT,
    STATUS_BUSY,
    STATUS_ERROR,
    STATUS_READY,
    STATUS_REQUEST,
    TO_MEMORY_BIT,
    Code,
    Handling,
    Register,
    Stage,
    Transfer,
)

COUNT_MASK, LBA_MASK, OPCODE_MASK = (1 << COUNT_BITS) - 1, (1 << LBA_BITS) - 1, (1 << OPCODE_BITS) - 1
ADDRESS_MASK, DESCRIPTOR_COUNT_MASK = (1 << DESCRIPTOR_ADDRESS_BITS) - 1, (1 << DESCRIPTOR_COUNT_BITS) - 1
OWN_DATA = 0
"""What a device gives that isn't on its medium."""
READ, WRITE = 1, 2
"""What the IOMMU lets a device do to a frame, bits."""


# -- commands --------------------------------------------------------------------------------------------------------------


def moves_by(opcode: int, *transfers: Transfer) -> Any:
    """Whether a command moves data in one of some ways."""
    return _is_one_of(opcode, [row.opcode for row in COMMANDS.values() if row.transfer in transfers])


def is_handled(opcode: int, handling: Handling) -> Any:
    """Whether the mediator does this with a command."""
    if handling is Handling.UNKNOWN:
        return not_(_is_one_of(opcode, [row.opcode for row in COMMANDS.values() if row.handling is not handling]))
    return _is_one_of(opcode, [row.opcode for row in COMMANDS.values() if row.handling is handling])


def has_own_data(opcode: int) -> Any:
    """Whether what a command moves isn't on the medium."""
    return _is_one_of(opcode, [row.opcode for row in COMMANDS.values() if row.has_own_data])


def _is_one_of(opcode: int, opcodes: list[int]) -> Any:
    found: Any = False
    for each in opcodes:
        found = found | (opcode == each)
    return found


def is_range(first: Lba, length: int) -> Any:
    """Whether there are such sectors."""
    return (length > 0) & (first + length <= 1 << LBA_BITS)


# -- a storage device's registers ------------------------------------------------------------------------------------------


def issue(system: System, device: DeviceId, opcode: int) -> None:
    """A command arrives at the device, in place of any that is under way."""
    row = system.devices[device]
    fails = moves_by(opcode, *_DATA) & not_(is_range(row.lba, row.count))
    waits = moves_by(opcode, *_WAITING) & not_(fails)
    system.devices[device] = row._replace(
        opcode=select(waits, opcode, 0),
        first=row.lba,
        length=row.count,
        position=0,
        is_started=False,
        entry=0,
        offset=0,
        is_failed=fails,
    )
    if moves_by(opcode, Transfer.ERASE) & not_(fails):
        _erase(system, device, row.lba, row.count)


_WAITING = (Transfer.PIO_IN, Transfer.PIO_OUT, Transfer.DMA_IN, Transfer.DMA_OUT)
_DATA = (*_WAITING, Transfer.ERASE)


def _erase(system: System, device: DeviceId, first: Lba, length: int) -> None:
    """Make sectors zeros: no more than `SHADOW_BLOCKS` of them at once."""
    for number in range(SHADOW_BLOCKS):
        lba, erased = first + number & LBA_MASK, number < length
        system.moves.append(Move(device, lba, True, erased))
        system.media[device, lba] = select(erased, 0, system.media[device, lba])
        system.meant[device, lba] = either(erased, Meant(True, 0), system.meant[device, lba])
        system.touched[device, lba] = erased | system.touched[device, lba]


def write_sector(system: System, device: DeviceId, lba: Lba, word: Word, meant: Meant) -> None:
    """A sector is written."""
    system.moves.append(Move(device, lba, True))
    system.media[device, lba] = word
    system.meant[device, lba] = meant
    system.touched[device, lba] = True


def read_sector(system: System, device: DeviceId, lba: Lba) -> Word:
    """A sector is read."""
    system.moves.append(Move(device, lba, False))
    return system.media[device, lba]


def _advanced(row: Device) -> Device:
    """A device after one more sector: at the last one the command ends, and leaves its address in the register."""
    position = row.position + 1 & COUNT_MASK
    ends = position == row.length
    return row._replace(
        position=position,
        opcode=select(ends, 0, row.opcode),
        is_started=row.is_started & not_(ends),
        lba=select(ends, row.first + row.length - 1 & LBA_MASK, row.lba),
    )


def ended(row: Device, is_failed: bool = False) -> Device:
    """A device whose command has come to an end before its last sector."""
    return row._replace(opcode=0, is_started=False, is_failed=is_failed)


def status(row: Device) -> Word:
    """What the status register says."""
    found = select(row.is_failed, STATUS_ERROR | STATUS_READY, STATUS_READY)
    found = select(moves_by(row.opcode, Transfer.PIO_IN, Transfer.PIO_OUT), STATUS_REQUEST | STATUS_READY, found)
    return select(moves_by(row.opcode, Transfer.DMA_IN, Transfer.DMA_OUT), STATUS_BUSY, found)


def input_data(system: System, device: DeviceId) -> Word:
    """The data port is read."""
    row = system.devices[device]
    if not_(moves_by(row.opcode, Transfer.PIO_IN)):
        return ALL_ONES
    system.devices[device] = _advanced(row)
    if has_own_data(row.opcode):
        return OWN_DATA
    return read_sector(system, device, row.first + row.position & LBA_MASK)


def output_data(system: System, device: DeviceId, word: Word, meant: Word) -> None:
    """The data port is written, with a word that for the guest is another one, `meant`."""
    row = system.devices[device]
    if moves_by(row.opcode, Transfer.PIO_OUT):
        system.devices[device] = _advanced(row)
        write_sector(system, device, row.first + row.position & LBA_MASK, word, Meant(True, meant))


def start(system: System, device: DeviceId, value: Word) -> None:
    """The bus master's command is written: it starts if a command for DMA is under way, or stops."""
    row = system.devices[device]
    starts = (value & START_BIT != 0) & moves_by(row.opcode, Transfer.DMA_IN, Transfer.DMA_OUT)
    anew = starts & not_(row.is_started)
    system.devices[device] = row._replace(
        is_started=starts,
        to_memory=value & TO_MEMORY_BIT != 0,
        entry=select(anew, 0, row.entry),
        offset=select(anew, 0, row.offset),
    )


def reset(system: System, device: DeviceId) -> None:
    """The device forgets what it was doing."""
    system.devices[device] = ended(system.devices[device])


def output_register(system: System, device: DeviceId, register: int, value: Word) -> None:
    """A register of a storage device is written."""
    if register == Register.DATA:
        output_data(system, device, value, value)
    elif register == Register.COUNT:
        system.devices[device] = system.devices[device]._replace(count=value & COUNT_MASK)
    elif register == Register.LBA:
        system.devices[device] = system.devices[device]._replace(lba=value & LBA_MASK)
    elif register == Register.COMMAND:
        issue(system, device, value & OPCODE_MASK)
    elif register == Register.DESCRIPTORS:
        system.devices[device] = system.devices[device]._replace(descriptors=value & ADDRESS_MASK)
    elif register == Register.START:
        start(system, device, value)
    elif (register == Register.CONTROL) & (value & RESET_BIT != 0):
        reset(system, device)


def input_register(system: System, device: DeviceId, register: int) -> Word:
    """A register of a storage device is read."""
    if register == Register.DATA:
        return input_data(system, device)
    row = system.devices[device]
    found: Any = 0
    for each, value in (
        (Register.COUNT, row.count),
        (Register.LBA, row.lba),
        (Register.COMMAND, status(row)),
        (Register.DESCRIPTORS, row.descriptors),
        (Register.START, select(row.is_started, START_BIT, 0) | select(row.to_memory, TO_MEMORY_BIT, 0)),
        (Register.MASTER_STATUS, select(row.is_started, 1, 0)),
    ):
        found = select(register == each, value, found)
    return found


# -- DMA -------------------------------------------------------------------------------------------------------------------


def rights(system: System, device: DeviceId, frame: Frame) -> int:
    """What the IOMMU lets a device do to a frame: bits, READ and WRITE; in the last round of moving the guest, nothing."""
    mediated, vmm = system.is_mediated(device), system.vmm[0]
    own = select(is_own_buffer(system, device, frame), READ | WRITE, 0)
    own = select(frame == system.shadow_descriptor(device) >> BLOCK_SHIFT, READ, own)
    own = select(mediated, own, 0)
    hidden = system.in_region(frame) & system.policy.iommu_hides_region | system.is_trapped(frame)
    confined = mediated & system.policy.iommu_confines_mediated
    found = select(vmm.is_iommu_off, READ | WRITE, own | select(hidden | confined, 0, READ | WRITE))
    return select(system.policy.stop_before_last_round & (vmm.stage == Stage.STOPPED), 0, found)


def is_own_buffer(system: System, device: DeviceId, frame: Frame) -> Any:
    """Whether a frame is the shadow buffer of a device."""
    return frame == system.shadow_buffer(device) >> BLOCK_SHIFT


def is_permitted(system: System, device: DeviceId, address: Address, bit: int) -> Any:
    """Whether a device may read or write a block."""
    return system.is_address(address) & (rights(system, device, address >> BLOCK_SHIFT) & bit != 0)


def descriptor(address: Address, count: int) -> Word:
    """A descriptor, the last one of its table."""
    return address & ADDRESS_MASK | (count & DESCRIPTOR_COUNT_MASK) << DESCRIPTOR_COUNT_SHIFT | DESCRIPTOR_END


def described(word: Word) -> tuple[Address, int, Any]:
    """What a descriptor says: the first block, how many (0 says 1), whether it is the last one."""
    count = word >> DESCRIPTOR_COUNT_SHIFT & DESCRIPTOR_COUNT_MASK
    return word & ADDRESS_MASK, select(count == 0, 1, count), word & DESCRIPTOR_END != 0


def move_block(system: System, device: DeviceId) -> None:
    """Move the next block of the command under way between medium and memory. Raises Refused."""
    # CHECKS
    row = system.devices[device]
    is_in = moves_by(row.opcode, Transfer.DMA_IN)
    if not_(row.is_storage & row.is_started & (is_in | moves_by(row.opcode, Transfer.DMA_OUT))):
        raise Refused(Code.NOTHING)
    table = row.descriptors + row.entry
    if not_(is_permitted(system, device, table, READ)):
        _fault(system, device)
    first, count, is_last = described(system.read("device", device, table))
    address, lba = first + row.offset, row.first + row.position & LBA_MASK
    if not_(is_permitted(system, device, address, select(is_in, WRITE, READ))):
        _fault(system, device)
    # EFFECT
    if is_in:
        system.write("device", device, address, read_sector(system, device, lba))
    else:
        word = system.read("device", device, address)
        write_sector(system, device, lba, word, _meant(system, device, row.position, address, word))
    is_used = row.offset + 1 == count
    row = _advanced(row)._replace(
        entry=row.entry + select(is_used, 1, 0) & COUNT_MASK,
        offset=select(is_used, 0, row.offset + 1 & DESCRIPTOR_COUNT_MASK),
    )
    system.devices[device] = either(is_used & is_last & (row.opcode != 0), ended(row, True), row)


def _meant(system: System, device: DeviceId, position: int, address: Address, word: Word) -> Meant:
    """What the guest means by a block that goes to the medium: from the shadow buffer, what was copied there."""
    shadow = system.is_mediated(device) & is_own_buffer(system, device, address >> BLOCK_SHIFT)
    is_known = not_(shadow & system.channels[device].is_tampered)
    return Meant(is_known, select(is_known, select(shadow, system.plain[device, position], word), 0))


def _fault(system: System, device: DeviceId) -> None:
    """The IOMMU refuses, and the command ends. Raises Refused."""
    system.devices[device] = ended(system.devices[device], True)
    raise Refused(Code.IOMMU)
