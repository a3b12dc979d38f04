"""The mediator of storage devices in many machines: the fast twin of `model.mediator`. The rules: spec/vmm.md.

Functions take a request, and of its lanes those that take part: `who`, their places in it, and one device for each of them.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from capvisor.fastpath import storage
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.vmm import Request, copy_numbers, put, sector_numbers
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec.vmm import (
    BLOCK_SHIFT,
    COMMANDS,
    COUNT_BITS,
    DESCRIPTOR_ADDRESS_BITS,
    DESCRIPTOR_COUNT_BITS,
    LBA_BITS,
    OPCODE_BITS,
    RESET_BIT,
    SHADOW_BLOCKS,
    START_BIT,
    STATUS_BUSY,
    STATUS_ERROR,
    STATUS_READY,
    TO_MEMORY_BIT,
    ChannelState,
    Code,
    Handling,
    Phase,
    Register,
    Rule,
    Transfer,
)

if TYPE_CHECKING:
    from capvisor.fastpath.vmm import BatchVmm

_HANDLINGS = list(Handling)
MEDIATED, PASSED, THROUGH, QUEUED, UNKNOWN = range(len(_HANDLINGS))
"""What is done with commands, by numbers."""
HANDLINGS = np.full(storage.OPCODES, UNKNOWN, np.uint8)
for _row in COMMANDS.values():
    HANDLINGS[_row.opcode] = _HANDLINGS.index(_row.handling)

_ONE, _LBA_MASK, _COUNT_MASK = np.uint64(1), np.uint64((1 << LBA_BITS) - 1), np.uint64((1 << COUNT_BITS) - 1)
_FIRST_READING = 4
"""How many descriptors are looked at when the bus master is started, where they aren't checked as they are used."""


def is_busy(system: "BatchVmm", lanes: Indices, device: Indices) -> Flags:
    """Whether mediators have a command under way."""
    state = system.channels["state"][lanes, device]
    through = (state == ChannelState.THROUGH) & (system.devices["opcode"][lanes, device] != 0)
    busy: Flags = (state >= ChannelState.PIO_IN) & (state <= ChannelState.COPYING_IN) | through
    return busy


def _is_moving(state: Any) -> Flags:
    """Whether DMA is under way for the guest."""
    moving: Flags = (state >= ChannelState.COPYING_OUT) & (state <= ChannelState.COPYING_IN)
    return moving


def _rules(system: "BatchVmm", lanes: Indices, device: Indices, lba: Words) -> Any:
    return system.sectors.get("rule", lanes, sector_numbers(device, lba))


def _encrypted(system: "BatchVmm", lanes: Indices, device: Indices, lba: Words, word: Words) -> Words:
    """Words as they go to the medium."""
    if not system.policy.encrypt_writes:
        return word
    secret = _rules(system, lanes, device, lba) == Rule.ENCRYPTED
    return np.where(secret, system.cipher.encrypt(system.key(lanes), lba, word), word)


def _decrypted(system: "BatchVmm", lanes: Indices, device: Indices, lba: Words, word: Words) -> Words:
    """Words as they come from the medium."""
    if not system.policy.decrypt_reads:
        return word
    secret = _rules(system, lanes, device, lba) == Rule.ENCRYPTED
    return np.where(secret, system.cipher.decrypt(system.key(lanes), lba, word), word)


def _at(system: "BatchVmm", lanes: Indices, device: Indices) -> Words:
    """The sectors that mediators are at."""
    channels, place = system.channels, (lanes, device)
    return channels["first"][place] + channels["position"][place] & _LBA_MASK


# -- registers that are read -----------------------------------------------------------------------------------------------


def read(system: "BatchVmm", request: Request, who: Indices, device: Indices, register: Words) -> None:
    """Read registers of mediated devices."""
    lanes = request.lanes[who]
    place = lanes, device
    channels, devices = system.channels, system.devices
    state = channels["state"][place]
    direction = np.where(channels["is_write"][place], np.uint64(0), np.uint64(TO_MEMORY_BIT))
    shown = channels if system.policy.show_own_descriptors else devices
    value = np.zeros(len(who), np.uint64)
    for number, held in (
        (Register.COUNT, devices["count"][place]),
        (Register.LBA, devices["lba"][place]),
        (Register.COMMAND, _status(system, lanes, device)),
        (Register.DESCRIPTORS, shown["descriptors"][place]),
        (Register.START, np.where(_is_moving(state), direction | np.uint64(START_BIT), np.uint64(0))),
    ):
        np.copyto(value, held, where=register == np.uint64(number))
    for number, act in ((Register.MASTER_STATUS, _master_status), (Register.DATA, _read_data)):
        at = np.flatnonzero(register == np.uint64(number))
        if len(at):
            value[at] = act(system, request, who[at], device[at])
    request.results.value[who] = value


def _status(system: "BatchVmm", lanes: Indices, device: Indices) -> Words:
    """The status register."""
    state = system.channels["state"][lanes, device]
    found = storage.status(system, lanes, device)
    found[_is_moving(state)] = STATUS_BUSY
    found[state == ChannelState.ERROR] = STATUS_ERROR | STATUS_READY
    return found


def _master_status(system: "BatchVmm", request: Request, who: Indices, device: Indices) -> Words:
    """The bus master's status; what a device has read is copied to the guest from now on."""
    channels, devices, place = system.channels, system.devices, (request.lanes[who], device)
    state = channels["state"][place]
    ended = (state == ChannelState.MOVING) & ~devices["is_started"][place]
    copies = ~channels["is_write"][place] & system.policy.shadow_descriptors
    after = np.where(copies, ChannelState.COPYING_IN, ChannelState.READY)
    after = np.where(devices["is_failed"][place], ChannelState.ERROR, after)
    state = np.where(ended, after, state)
    channels["state"][place] = state
    return _is_moving(state).astype(np.uint64)


def _read_data(system: "BatchVmm", request: Request, who: Indices, device: Indices) -> Words:
    """Read data ports."""
    lanes = request.lanes[who]
    state = system.channels["state"][lanes, device]
    mine, through = state == ChannelState.PIO_IN, state == ChannelState.THROUGH
    request.end(who[~mine & ~through], Code.BLOCKED)
    passes = np.flatnonzero(mine | through)
    value = np.zeros(len(who), np.uint64)
    value[passes] = storage.read_data(system, lanes[passes], device[passes])
    lanes, device = lanes[mine], device[mine]
    value[mine] = _decrypted(system, lanes, device, _at(system, lanes, device), value[mine])
    _advance(system, lanes, device)
    return value


def _advance(system: "BatchVmm", lanes: Indices, device: Indices) -> None:
    """One more sector has passed by the data port; with the last one the mediator is ready."""
    channels, place = system.channels, (lanes, device)
    position = channels["position"][place] + _ONE & _COUNT_MASK
    channels["position"][place] = position
    done = position == channels["length"][place]
    channels["state"][lanes[done], device[done]] = ChannelState.READY


# -- registers that are written --------------------------------------------------------------------------------------------


def write(system: "BatchVmm", request: Request, who: Indices, device: Indices, register: Words, value: Words) -> None:
    """Write registers of mediated devices."""
    for number, act in _WRITES.items():
        at = np.flatnonzero(register == np.uint64(number))
        if len(at):
            act(system, request, who[at], device[at], value[at])


def _unless_busy(
    system: "BatchVmm", request: Request, who: Indices, device: Indices, value: Words
) -> tuple[Indices, Indices, Words]:
    """Drop what is written while a command is under way; those that go on."""
    if not system.policy.block_while_busy:
        return who, device, value
    busy = is_busy(system, request.lanes[who], device)
    request.end(who[busy], Code.BLOCKED)
    return who[~busy], device[~busy], value[~busy]


def _write_count(system: "BatchVmm", request: Request, who: Indices, device: Indices, value: Words) -> None:
    who, device, value = _unless_busy(system, request, who, device, value)
    place = request.lanes[who], device
    storage.set_count(system, *place, value)
    system.channels["seen_count"][place] = value & _COUNT_MASK


def _write_lba(system: "BatchVmm", request: Request, who: Indices, device: Indices, value: Words) -> None:
    who, device, value = _unless_busy(system, request, who, device, value)
    place = request.lanes[who], device
    storage.set_lba(system, *place, value)
    system.channels["seen_lba"][place] = value & _LBA_MASK


def _write_descriptors(system: "BatchVmm", request: Request, who: Indices, device: Indices, value: Words) -> None:
    """Keep the guest's pointer; the device gets the VMM's."""
    who, device, value = _unless_busy(system, request, who, device, value)
    place = request.lanes[who], device
    system.channels["descriptors"][place] = value & np.uint64((1 << DESCRIPTOR_ADDRESS_BITS) - 1)
    own = system.shadow_descriptor(device).astype(np.uint64)
    storage.set_descriptors(system, *place, own if system.policy.shadow_descriptors else value)


def _write_control(system: "BatchVmm", request: Request, who: Indices, device: Indices, value: Words) -> None:
    """Reset devices, and their mediators."""
    resets = value & np.uint64(RESET_BIT) != 0
    place = request.lanes[who[resets]], device[resets]
    storage.end_command(system, *place)
    if system.policy.reset_follows:
        system.channels["state"][place] = ChannelState.READY


def _write_data(system: "BatchVmm", request: Request, who: Indices, device: Indices, value: Words) -> None:
    """Write data ports."""
    lanes = request.lanes[who]
    state = system.channels["state"][lanes, device]
    mine, through = state == ChannelState.PIO_OUT, state == ChannelState.THROUGH
    request.end(who[~mine & ~through], Code.BLOCKED)
    storage.write_data(system, lanes[through], device[through], value[through])
    lanes, device, value = lanes[mine], device[mine], value[mine]
    word = _encrypted(system, lanes, device, _at(system, lanes, device), value)
    storage.write_data(system, lanes, device, word, value)
    _advance(system, lanes, device)


# -- commands --------------------------------------------------------------------------------------------------------------


def _write_command(system: "BatchVmm", request: Request, who: Indices, device: Indices, value: Words) -> None:
    """Look at commands, and issue those that may be."""
    who, device, value = _unless_busy(system, request, who, device, value)
    opcode = value & np.uint64((1 << OPCODE_BITS) - 1)
    handling = HANDLINGS[opcode.astype(np.int64)]
    for number, act in _HANDLERS.items():
        at = np.flatnonzero(handling == number)
        if len(at):
            act(system, request, who[at], device[at], opcode[at])


def _fail(system: "BatchVmm", request: Request, who: Indices, device: Indices) -> None:
    """Let the status say that commands have failed."""
    system.channels["state"][request.lanes[who], device] = ChannelState.ERROR
    request.end(who, Code.FAILED)


def _range(system: "BatchVmm", lanes: Indices, device: Indices) -> tuple[Words, Words]:
    """The first sectors and counts that commands are checked by."""
    if system.policy.read_back_registers:
        return system.devices["lba"][lanes, device], system.devices["count"][lanes, device]
    return system.channels["seen_lba"][lanes, device], system.channels["seen_count"][lanes, device]


def _check(
    system: "BatchVmm", request: Request, who: Indices, device: Indices, opcode: Words, checked: Flags
) -> tuple[Indices, Indices, Words]:
    """Refuse commands that may not be issued, of those that are checked; the others."""
    policy, lanes, kind = system.policy, request.lanes[who], storage.transfer_of(opcode)
    first, length = _range(system, lanes, device)
    bad = (length == 0) | (first + length > _LBA_MASK + _ONE)
    if policy.count_bounded:
        large = ~bad & (length > np.uint64(SHADOW_BLOCKS))
        stops = checked & large & ((kind == storage.DMA_IN) | (kind == storage.DMA_OUT))
        request.panic(who[stops])
        bad |= large
    for number in range(SHADOW_BLOCKS if policy.check_all_sectors else 1):
        asked = np.flatnonzero(length > np.uint64(number))
        lba = first[asked] + np.uint64(number) & _LBA_MASK
        rule = _rules(system, lanes[asked], device[asked], lba)
        refused = (rule == Rule.FAULTY) | (rule == Rule.ENCRYPTED) & (kind[asked] == storage.ERASE)
        if policy.refuse_denied:
            refused |= rule == Rule.DENIED
        bad[asked] |= refused
    bad &= checked
    fails = bad & (request.results.code[who] == 0)
    _fail(system, request, who[fails], device[fails])
    return who[~bad], device[~bad], opcode[~bad]


def _claim(system: "BatchVmm", lanes: Indices, device: Indices) -> None:
    """Fill in what isn't deployed yet of the sectors that commands are about."""
    if not system.policy.claim_before_command:
        return
    deploying = system.deployments["phase"][lanes, device] == Phase.DEPLOY
    lanes, device = lanes[deploying], device[deploying]
    first, length = _range(system, lanes, device)
    size = system.deployments["size"][lanes, device]
    for number in range(SHADOW_BLOCKS):
        lba = first + np.uint64(number) & _LBA_MASK
        at = np.flatnonzero((length > np.uint64(number)) & (lba < size))
        numbers = sector_numbers(device[at], lba[at])
        new = ~system.sectors.get("is_deployed", lanes[at], numbers)
        at, numbers = at[new], numbers[new]
        image = system.sectors.get("image", lanes[at], numbers)
        system.sectors.put(lanes[at], numbers, word=image, is_known=True, meant=image, is_deployed=True)


def _mediated(system: "BatchVmm", request: Request, who: Indices, device: Indices, opcode: Words) -> None:
    """Reads and writes that are followed."""
    who, device, opcode = _check(system, request, who, device, opcode, np.ones(len(who), np.bool_))
    lanes = request.lanes[who]
    first, length = _range(system, lanes, device)
    _claim(system, lanes, device)
    storage.issue(system, lanes, device, opcode)
    kind = storage.transfer_of(opcode)
    put(
        system.channels,
        (lanes, device),
        state=_STATE_AFTER[kind],
        first=first,
        length=length,
        position=0,
        is_write=(kind == storage.PIO_OUT) | (kind == storage.DMA_OUT),
        entry=0,
        offset=0,
    )


_STATE_AFTER = np.full(len(Transfer), ChannelState.DMA_READY, np.uint8)
_STATE_AFTER[storage.PIO_IN], _STATE_AFTER[storage.PIO_OUT] = ChannelState.PIO_IN, ChannelState.PIO_OUT


def _passed(system: "BatchVmm", request: Request, who: Indices, device: Indices, opcode: Words) -> None:
    """Commands without data."""
    lanes = request.lanes[who]
    storage.issue(system, lanes, device, opcode)
    system.channels["state"][lanes, device] = ChannelState.READY


def _through(system: "BatchVmm", request: Request, who: Indices, device: Indices, opcode: Words) -> None:
    """Commands whose data pass unseen, or that erase sectors."""
    busy = is_busy(system, request.lanes[who], device)
    _fail(system, request, who[busy], device[busy])
    who, device, opcode = who[~busy], device[~busy], opcode[~busy]
    if system.policy.through_harmless:
        erases = storage.transfer_of(opcode) == storage.ERASE
        who, device, opcode = _check(system, request, who, device, opcode, erases)
    lanes, erases = request.lanes[who], storage.transfer_of(opcode) == storage.ERASE
    _claim(system, lanes[erases], device[erases])
    storage.issue(system, lanes, device, opcode)
    system.channels["state"][lanes, device] = ChannelState.THROUGH


def _queued(system: "BatchVmm", request: Request, who: Indices, device: Indices, opcode: Words) -> None:
    """Queued and packet commands."""
    if system.policy.refuse_queued:
        _fail(system, request, who, device)
        return
    lanes = request.lanes[who]
    storage.issue(system, lanes, device, opcode)
    system.channels["state"][lanes, device] = ChannelState.THROUGH


def _unknown(system: "BatchVmm", request: Request, who: Indices, device: Indices, opcode: Words) -> None:
    """Commands that aren't in the table."""
    if not system.policy.refuse_unknown:
        storage.issue(system, request.lanes[who], device, opcode)
    _fail(system, request, who, device)


_HANDLERS = {MEDIATED: _mediated, PASSED: _passed, THROUGH: _through, QUEUED: _queued, UNKNOWN: _unknown}


# -- DMA -------------------------------------------------------------------------------------------------------------------


def _write_start(system: "BatchVmm", request: Request, who: Indices, device: Indices, value: Words) -> None:
    """Start the bus master: of a write, first copy what the guest has."""
    policy, channels = system.policy, system.channels
    stops = value & np.uint64(START_BIT) == 0
    idle, own, given = _unless_busy(system, request, who[stops], device[stops], value[stops])
    storage.start(system, request.lanes[idle], own, given)
    who, device, value = who[~stops], device[~stops], value[~stops]
    early = channels["state"][request.lanes[who], device] != ChannelState.DMA_READY
    if policy.start_gated:
        request.end(who[early], Code.BLOCKED)
    else:
        storage.start(system, request.lanes[who[early]], device[early], value[early])
    who, device, value = who[~early], device[~early], value[~early]
    is_write = value & np.uint64(TO_MEMORY_BIT) == 0
    if policy.direction_checked:
        right = is_write == channels["is_write"][request.lanes[who], device]
        request.end(who[~right], Code.BLOCKED)
        who, device, value, is_write = who[right], device[right], value[right], is_write[right]
    if policy.descriptors_outside_region and not policy.descriptors_checked_at_use:
        names = _name_region(system, request.lanes[who], device)
        request.panic(who[names])
        who, device, value, is_write = who[~names], device[~names], value[~names], is_write[~names]
    lanes = request.lanes[who]
    put(channels, (lanes, device), position=0, entry=0, offset=0, is_tampered=False, is_write=is_write)
    if not policy.shadow_descriptors:
        channels["state"][lanes, device] = ChannelState.MOVING
        storage.start(system, lanes, device, value)
        return
    channels["state"][lanes[is_write], device[is_write]] = ChannelState.COPYING_OUT
    _let_move(system, lanes[~is_write], device[~is_write])


def _name_region(system: "BatchVmm", lanes: Indices, device: Indices) -> Flags:
    """Whether the first descriptors of guests are in the VMM's region or name blocks of it, as they are now."""
    region, behind = (np.uint64(frame << BLOCK_SHIFT) for frame in (system.region_first, system.hidden_behind))
    found, over = np.zeros(len(lanes), np.bool_), np.zeros(len(lanes), np.bool_)
    for number in range(_FIRST_READING):
        table = system.channels["descriptors"][lanes, device] + np.uint64(number)
        there = table >> np.uint64(BLOCK_SHIFT) < np.uint64(system.frame_count)
        word = np.where(there, system.read(lanes, np.where(there, table, np.uint64(0))), np.uint64(0))
        first = storage.address_of(word)
        names = (first < behind) & (region < first + storage.count_of(word))
        found |= ~over & (names | system.is_recognised(table >> np.uint64(BLOCK_SHIFT)))
        over |= storage.is_last(word)
    return found


def _let_move(system: "BatchVmm", lanes: Indices, device: Indices) -> None:
    """Let devices move between the medium and the shadow buffer."""
    channels, place = system.channels, (lanes, device)
    buffer = system.shadow_buffer(device).astype(np.uint64)
    system.memory[lanes, system.shadow_descriptor(device)] = storage.descriptor(buffer, channels["length"][place])
    channels["state"][place] = ChannelState.MOVING
    to_memory = np.where(channels["is_write"][place], np.uint64(0), np.uint64(TO_MEMORY_BIT))
    storage.start(system, lanes, device, to_memory | np.uint64(START_BIT))


def copy_next(system: "BatchVmm", request: Request, device: Indices) -> None:
    """Copy the next blocks between guests' buffers and shadow buffers."""
    channels, place = system.channels, (request.lanes, device)
    state = channels["state"][place]
    copying = (state == ChannelState.COPYING_OUT) | (state == ChannelState.COPYING_IN)
    request.refuse(~(copying & system.is_mediated(*place)), Code.NOTHING)
    table = channels["descriptors"][place] + channels["entry"][place]
    who = _reached(system, request, request.passed, device, table)
    who = system.granted(request, who, table, False, device)
    word = np.zeros(len(device), np.uint64)
    word[who] = system.read(request.lanes[who], table[who])
    address = storage.address_of(word) + channels["offset"][place]
    who = _reached(system, request, who, device, address)
    position, offset = channels["position"][place], channels["offset"][place] + _ONE
    used = offset == storage.count_of(word)
    whole = (position + _ONE & _COUNT_MASK) == channels["length"][place]
    over = used & storage.is_last(word)
    if system.policy.whole_descriptors:
        short = who[(over & ~whole)[who]]
        _give_up(system, request, short, device[short])
        who = request.still(who)
    behind = system.shadow_buffer(device[who]) + position[who].astype(np.int64) >= system.frame_count << BLOCK_SHIFT
    _give_up(system, request, who[behind], device[who[behind]])
    who = who[~behind]
    who = system.granted(request, who, address, state == ChannelState.COPYING_IN, device)
    lanes, device, position, address = request.lanes[who], device[who], position[who], address[who]
    place = lanes, device
    is_out = state[who] == ChannelState.COPYING_OUT
    _copy(system, lanes, device, position, address, is_out)
    ends = (whole | over)[who]
    put(
        channels,
        place,
        position=position + _ONE & _COUNT_MASK,
        entry=channels["entry"][place] + used[who] & _COUNT_MASK,
        offset=np.where(used[who], np.uint64(0), offset[who] & np.uint64((1 << DESCRIPTOR_COUNT_BITS) - 1)),
    )
    channels["state"][lanes[ends], device[ends]] = ChannelState.READY
    _let_move(system, lanes[ends & is_out], device[ends & is_out])


def _copy(system: "BatchVmm", lanes: Indices, device: Indices, position: Words, address: Words, is_out: Flags) -> None:
    """Copy blocks, out to the shadow buffer or in to guests' buffers."""
    buffer, lba = system.shadow_buffer(device).astype(np.uint64) + position, _at(system, lanes, device)
    out, into = np.flatnonzero(is_out), np.flatnonzero(~is_out)
    at = lanes[out], device[out]
    given = system.read(at[0], address[out])
    system.copies.put(at[0], copy_numbers(at[1], position[out]), plain=given)
    system.memory[at[0], buffer[out].astype(np.int64)] = _encrypted(system, *at, lba[out], given)
    at = lanes[into], device[into]
    found = _decrypted(system, *at, lba[into], system.read(at[0], buffer[into]))
    system.write(at[0], address[into], found, tracked=system.policy.track_mediator_writes)


def _give_up(system: "BatchVmm", request: Request, who: Indices, device: Indices) -> None:
    """Commands that were issued fail."""
    storage.end_command(system, request.lanes[who], device)
    _fail(system, request, who, device)


def _reached(system: "BatchVmm", request: Request, who: Indices, device: Indices, address: Words) -> Indices:
    """Those whose addresses the mediator may access for the guest; the others end their commands, or stop their machines."""
    policy, frame = system.policy, address[who] >> np.uint64(BLOCK_SHIFT)
    inside = (frame < np.uint64(system.frame_count)) & ~system.is_trapped(request.lanes[who], frame)
    _give_up(system, request, who[~inside], device[who[~inside]])
    if policy.descriptors_outside_region and policy.descriptors_checked_at_use:
        hidden = inside & system.is_recognised(frame)
        request.panic(who[hidden])
        inside &= ~hidden
    return who[inside]


_WRITES = {
    Register.DATA: _write_data,
    Register.COUNT: _write_count,
    Register.LBA: _write_lba,
    Register.COMMAND: _write_command,
    Register.DESCRIPTORS: _write_descriptors,
    Register.START: _write_start,
    Register.CONTROL: _write_control,
}
