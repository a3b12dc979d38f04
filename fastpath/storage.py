"""Devices in many machines, storage devices above all: their registers, commands, and the bus master's DMA.

Nothing here asks who accesses a register, guest or VMM. The rules: spec/vmm.md.
"""

from typing import TYPE_CHECKING

import numpy as np

from capvisor.fastpath.machine import Indices
from capvisor.fastpath.vmm import READ, WRITE, Request, copy_numbers, put, sector_numbers
from capvisor.fastpath.workspace import Causes, Flags, Words
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
    Register,
    Transfer,
)

if TYPE_CHECKING:
    from capvisor.fastpath.vmm import BatchVmm

OPCODES = 256
_TRANSFERS = list(Transfer)
NONE, PIO_IN, PIO_OUT, DMA_IN, DMA_OUT, ERASE = range(len(_TRANSFERS))
"""How commands move data, by numbers."""
TRANSFERS = np.zeros(OPCODES, np.uint8)
HAS_OWN_DATA = np.zeros(OPCODES, np.bool_)
for _row in COMMANDS.values():
    TRANSFERS[_row.opcode] = _TRANSFERS.index(_row.transfer)
    HAS_OWN_DATA[_row.opcode] = _row.has_own_data
OWN_DATA = 0
"""What a word of a log, or of identification, is."""

_ONE = np.uint64(1)
_LBA_MASK = np.uint64((1 << LBA_BITS) - 1)


def transfer_of(opcode: Words) -> Causes:
    """How commands move data."""
    found: Causes = TRANSFERS[opcode.astype(np.int64)]
    return found


# -- registers of any device -----------------------------------------------------------------------------------------------


def read_any(system: "BatchVmm", lanes: Indices, device: Indices, register: Words) -> Words:
    """What registers are worth, of devices, or of none: all ones."""
    value = np.full(len(lanes), ALL_ONES, np.uint64)
    is_storage = system.devices["is_storage"][lanes, device]
    other = np.flatnonzero(~is_storage & (device != 0))
    value[other] = system.registers[lanes[other], device[other], register[other].astype(np.int64)]
    who = np.flatnonzero(is_storage)
    if len(who):
        value[who] = read_register(system, lanes[who], device[who], register[who])
    return value


def write_any(system: "BatchVmm", lanes: Indices, device: Indices, register: Words, value: Words) -> None:
    """Write registers of devices, or of none."""
    is_storage = system.devices["is_storage"][lanes, device]
    other = np.flatnonzero(~is_storage & (device != 0))
    system.registers[lanes[other], device[other], register[other].astype(np.int64)] = value[other]
    who = np.flatnonzero(is_storage)
    if len(who):
        write_register(system, lanes[who], device[who], register[who], value[who])


# -- a storage device's registers ------------------------------------------------------------------------------------------


def is_at(system: "BatchVmm", lanes: Indices, device: Indices, *kinds: int) -> Flags:
    """Whether commands of some kinds are under way."""
    kind = transfer_of(system.devices["opcode"][lanes, device])
    found: Flags = kind == kinds[0]
    for other in kinds[1:]:
        found = found | (kind == other)
    return found


def status(system: "BatchVmm", lanes: Indices, device: Indices) -> Words:
    """The status register."""
    failed = system.devices["is_failed"][lanes, device]
    found = np.where(failed, np.uint64(STATUS_ERROR | STATUS_READY), np.uint64(STATUS_READY))
    found[is_at(system, lanes, device, PIO_IN, PIO_OUT)] = STATUS_REQUEST | STATUS_READY
    found[is_at(system, lanes, device, DMA_IN, DMA_OUT)] = STATUS_BUSY
    return found


def read_register(system: "BatchVmm", lanes: Indices, device: Indices, register: Words) -> Words:
    """Read registers of storage devices; DATA moves a word."""
    devices, place = system.devices, (lanes, device)
    value = np.zeros(len(lanes), np.uint64)
    started = devices["is_started"][place].astype(np.uint64)
    direction = devices["to_memory"][place] * np.uint64(TO_MEMORY_BIT)
    for number, held in (
        (Register.COUNT, devices["count"][place]),
        (Register.LBA, devices["lba"][place]),
        (Register.COMMAND, status(system, *place)),
        (Register.DESCRIPTORS, devices["descriptors"][place]),
        (Register.START, started * np.uint64(START_BIT) | direction),
        (Register.MASTER_STATUS, started),
    ):
        np.copyto(value, held, where=register == np.uint64(number))
    data = np.flatnonzero(register == np.uint64(Register.DATA))
    if len(data):
        value[data] = read_data(system, lanes[data], device[data])
    return value


def write_register(system: "BatchVmm", lanes: Indices, device: Indices, register: Words, value: Words) -> None:
    """Write registers of storage devices."""
    for number, act in _WRITES.items():
        who = np.flatnonzero(register == np.uint64(number))
        if len(who):
            act(system, lanes[who], device[who], value[who])


def set_count(system: "BatchVmm", lanes: Indices, device: Indices, value: Words) -> None:
    """How many sectors the next command is about."""
    system.devices["count"][lanes, device] = value & np.uint64((1 << COUNT_BITS) - 1)


def set_lba(system: "BatchVmm", lanes: Indices, device: Indices, value: Words) -> None:
    """The first sector that the next command is about."""
    system.devices["lba"][lanes, device] = value & _LBA_MASK


def set_descriptors(system: "BatchVmm", lanes: Indices, device: Indices, value: Words) -> None:
    """Where the table of descriptors is."""
    system.devices["descriptors"][lanes, device] = value & np.uint64((1 << DESCRIPTOR_ADDRESS_BITS) - 1)


def end_command(system: "BatchVmm", lanes: Indices, device: Indices, *, failed: bool = False) -> None:
    """Let commands end before their last sectors."""
    put(system.devices, (lanes, device), opcode=0, is_started=False, is_failed=failed)


def issue(system: "BatchVmm", lanes: Indices, device: Indices, value: Words) -> None:
    """Commands arrive, in place of any that are under way; those that move nothing by PIO or DMA are done at once."""
    devices, place = system.devices, (lanes, device)
    opcode = value & np.uint64((1 << OPCODE_BITS) - 1)
    kind = transfer_of(opcode)
    first, length = devices["lba"][place], devices["count"][place]
    there = (length != 0) & (first + length <= _LBA_MASK + _ONE)
    fails = (kind != NONE) & ~there
    waits = (kind != NONE) & (kind != ERASE) & there
    put(devices, place, first=first, length=length, position=0, is_started=False, entry=0, offset=0, is_failed=fails)
    devices["opcode"][place] = np.where(waits, opcode, np.uint64(0))
    erases = np.flatnonzero((kind == ERASE) & there)
    for sector in range(SHADOW_BLOCKS):
        erases = erases[length[erases] > np.uint64(sector)]
        if len(erases):
            numbers = sector_numbers(device[erases], first[erases] + np.uint64(sector))
            system.sectors.put(lanes[erases], numbers, word=0, is_known=True, meant=0, is_touched=True)


def _advance(system: "BatchVmm", lanes: Indices, device: Indices) -> None:
    """One more sector has moved; the command ends with its last one, whose address stays in the register."""
    devices, place = system.devices, (lanes, device)
    position = devices["position"][place] + _ONE & np.uint64((1 << COUNT_BITS) - 1)
    devices["position"][place] = position
    done = position == devices["length"][place]
    place = lanes[done], device[done]
    last = devices["first"][place] + devices["length"][place] - _ONE & _LBA_MASK
    put(devices, place, opcode=0, is_started=False, lba=last)


def _sector(system: "BatchVmm", lanes: Indices, device: Indices) -> Words:
    """The numbers of the sectors that commands under way are at."""
    devices, place = system.devices, (lanes, device)
    return sector_numbers(device, devices["first"][place] + devices["position"][place] & _LBA_MASK)


def read_data(system: "BatchVmm", lanes: Indices, device: Indices) -> Words:
    """The next words of what is read by PIO; all ones where nothing is."""
    value = np.full(len(lanes), ALL_ONES, np.uint64)
    opcode = system.devices["opcode"][lanes, device]
    who = np.flatnonzero(transfer_of(opcode) == PIO_IN)
    at = lanes[who], device[who]
    word = system.sectors.get("word", at[0], _sector(system, *at))
    value[who] = np.where(HAS_OWN_DATA[opcode[who].astype(np.int64)], np.uint64(OWN_DATA), word)
    _advance(system, *at)
    return value


def write_data(system: "BatchVmm", lanes: Indices, device: Indices, value: Words, meant: Words | None = None) -> None:
    """Write the next words by PIO, where a command waits for them; for the guest they are `meant`, if they are others."""
    who = np.flatnonzero(is_at(system, lanes, device, PIO_OUT))
    at = lanes[who], device[who]
    meant = value if meant is None else meant
    system.sectors.put(at[0], _sector(system, *at), word=value[who], is_known=True, meant=meant[who], is_touched=True)
    _advance(system, *at)


def start(system: "BatchVmm", lanes: Indices, device: Indices, value: Words) -> None:
    """Start or stop bus masters."""
    devices, place = system.devices, (lanes, device)
    starts = is_at(system, *place, DMA_IN, DMA_OUT) & (value & np.uint64(START_BIT) != 0)
    anew = starts & ~devices["is_started"][place]
    put(devices, place, is_started=starts, to_memory=value & np.uint64(TO_MEMORY_BIT) != 0)
    put(devices, (lanes[anew], device[anew]), entry=0, offset=0)


def control(system: "BatchVmm", lanes: Indices, device: Indices, value: Words) -> None:
    """Reset devices."""
    resets = value & np.uint64(RESET_BIT) != 0
    end_command(system, lanes[resets], device[resets])


_WRITES = {
    Register.DATA: write_data,
    Register.COUNT: set_count,
    Register.LBA: set_lba,
    Register.COMMAND: issue,
    Register.DESCRIPTORS: set_descriptors,
    Register.START: start,
    Register.CONTROL: control,
}


# -- DMA -------------------------------------------------------------------------------------------------------------------


def descriptor(address: Words, count: Words) -> Words:
    """Descriptors that are the last ones of their tables, as words."""
    count = count & np.uint64((1 << DESCRIPTOR_COUNT_BITS) - 1)
    return address | count << np.uint64(DESCRIPTOR_COUNT_SHIFT) | np.uint64(DESCRIPTOR_END)


def address_of(word: Words) -> Words:
    """The addresses of the first blocks that descriptors name."""
    return word & np.uint64((1 << DESCRIPTOR_ADDRESS_BITS) - 1)


def count_of(word: Words) -> Words:
    """How many blocks descriptors name: 0 stands for one."""
    count = word >> np.uint64(DESCRIPTOR_COUNT_SHIFT) & np.uint64((1 << DESCRIPTOR_COUNT_BITS) - 1)
    found: Words = np.maximum(count, _ONE)
    return found


def is_last(word: Words) -> Flags:
    """Whether descriptors are the last ones of their tables."""
    found: Flags = word & np.uint64(DESCRIPTOR_END) != 0
    return found


def transfer(system: "BatchVmm", request: Request, device: Indices) -> None:
    """Move the next blocks of DMA commands under way; the direction is the command's."""
    devices, place = system.devices, (request.lanes, device)
    moves = devices["is_storage"][place] & devices["is_started"][place] & is_at(system, *place, DMA_IN, DMA_OUT)
    request.refuse(~moves, Code.NOTHING)
    who = request.passed
    entry = devices["descriptors"][place] + devices["entry"][place]
    who = _permitted(system, request, who, device, entry, np.full(len(device), READ))
    word = np.zeros(len(device), np.uint64)
    word[who] = system.read(request.lanes[who], entry[who])
    offset = devices["offset"][place]
    address = address_of(word) + offset
    into = is_at(system, *place, DMA_IN)
    who = _permitted(system, request, who, device, address, np.where(into, WRITE, READ))
    lanes, device, word = request.lanes[who], device[who], word[who]
    address, offset, into = address[who], offset[who], into[who]
    numbers = _sector(system, lanes, device)
    held = system.sectors.get("word", lanes[into], numbers[into])
    system.write(lanes[into], address[into], held, tracked=system.policy.track_dma_writes)
    out = ~into
    _write_medium(system, lanes[out], device[out], numbers[out], address[out])
    used = offset + _ONE == count_of(word)
    place = lanes, device
    devices["entry"][place] = devices["entry"][place] + used & np.uint64((1 << COUNT_BITS) - 1)
    devices["offset"][place] = np.where(used, np.uint64(0), offset + _ONE & np.uint64((1 << DESCRIPTOR_COUNT_BITS) - 1))
    _advance(system, lanes, device)
    short = used & is_last(word) & (devices["opcode"][place] != 0)
    end_command(system, lanes[short], device[short], failed=True)


def _permitted(
    system: "BatchVmm", request: Request, who: Indices, device: Indices, address: Words, right: Indices
) -> Indices:
    """Those that the IOMMU lets access blocks; of the others the command ends."""
    lanes, own, place = request.lanes[who], device[who], address[who]
    may = is_permitted(system, lanes, own, place, right[who])
    end_command(system, lanes[~may], own[~may], failed=True)
    request.end(who[~may], Code.IOMMU)
    return system.granted(request, who[may], address, right == WRITE, device)


def is_permitted(system: "BatchVmm", lanes: Indices, device: Indices, address: Words, right: Indices) -> Flags:
    """Whether the IOMMU lets devices access blocks; none that isn't there."""
    frame = address >> np.uint64(BLOCK_SHIFT)
    inside = frame < np.uint64(system.frame_count)
    rights = system.rights(lanes, device, np.where(inside, frame, np.uint64(0)))
    found: Flags = inside & (rights & right != 0)
    return found


def is_own_buffer(system: "BatchVmm", device: Indices, address: Words) -> Flags:
    """Whether blocks are of the shadow buffers of devices."""
    buffer = system.shadow_buffer(device).astype(np.uint64)
    found: Flags = (address >= buffer) & (address < buffer + np.uint64(SHADOW_BLOCKS))
    return found


def _write_medium(system: "BatchVmm", lanes: Indices, device: Indices, numbers: Words, address: Words) -> None:
    """Let blocks go to sectors. What the guest means by one from the shadow buffer is what was copied there."""
    word = system.read(lanes, address)
    shadow = system.is_mediated(lanes, device) & is_own_buffer(system, device, address)
    known = ~(shadow & system.channels["is_tampered"][lanes, device])
    copied = system.copies.get("plain", lanes, copy_numbers(device, system.devices["position"][lanes, device]))
    meant = np.where(known, np.where(shadow, copied, word), np.uint64(0))
    system.sectors.put(lanes, numbers, word=word, is_known=known, meant=meant, is_touched=True)
