"""The mediator of a storage device: what stands between the guest and the device's registers, buffers and data.

It follows the commands that the guest issues, checks them, and lets data pass through the VMM's own buffer. The rules:
spec/vmm.md, 5. Source: SYSTEMS 4.2, after BitVisor's drivers/ata.
"""

from typing import Any

from capvisor.model import extensions
from capvisor.model import vmm_devices as hardware
from capvisor.model.bits import not_, select
from capvisor.model.vmm import Address, Channel, Device, DeviceId, Lba, Refused, System, Word
from capvisor.model.vmm_devices import (
    ADDRESS_MASK,
    COUNT_MASK,
    DESCRIPTOR_COUNT_MASK,
    LBA_MASK,
    described,
    is_handled,
    moves_by,
)
from capvisor.spec.vmm import (
    BLOCK_SHIFT,
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
    Register,
    Transfer,
)

_FIRST_READING = 4
"""How many descriptors are looked at when the bus master is started, where they aren't checked as they are used."""


def is_busy(channel: Channel, row: Device) -> Any:
    """Whether a command is under way, as the mediator sees it."""
    follows = (channel.state >= ChannelState.PIO_IN) & (channel.state <= ChannelState.COPYING_IN)
    return follows | (channel.state == ChannelState.THROUGH) & (row.opcode != 0)


def is_moving(state: int) -> Any:
    """Whether DMA is under way, as the guest sees it."""
    return (state >= ChannelState.COPYING_OUT) & (state <= ChannelState.COPYING_IN)


def _set_state(system: System, device: DeviceId, state: int) -> None:
    system.channels[device] = system.channels[device]._replace(state=state)


def _fail(system: System, device: DeviceId) -> None:
    """Let the device's status say that the command has failed. Raises Refused."""
    _set_state(system, device, ChannelState.ERROR)
    raise Refused(Code.FAILED)


def _block_while_busy(system: System, device: DeviceId) -> None:
    if system.policy.block_while_busy & is_busy(system.channels[device], system.devices[device]):
        raise Refused(Code.BLOCKED)


# -- registers that are written --------------------------------------------------------------------------------------------


def output_register(system: System, device: DeviceId, register: int, value: Word) -> None:
    """The guest writes a register of a mediated device. Raises Refused."""
    if register == Register.DATA:
        output_data(system, device, value)
    elif register == Register.COUNT:
        output_count(system, device, value)
    elif register == Register.LBA:
        output_lba(system, device, value)
    elif register == Register.COMMAND:
        command(system, device, value & hardware.OPCODE_MASK)
    elif register == Register.DESCRIPTORS:
        output_descriptors(system, device, value)
    elif register == Register.START:
        start(system, device, value)
    elif register == Register.CONTROL:
        control(system, device, value)


def output_data(system: System, device: DeviceId, value: Word) -> None:
    """The data port: a word of a write that is followed, or of a command let through."""
    channel = system.channels[device]
    if channel.state == ChannelState.PIO_OUT:
        lba = channel.first + channel.position & LBA_MASK
        meant, word = extensions.outgoing(system, device, lba, value)
        _advance(system, device, channel)
        hardware.output_data(system, device, word, meant)
    elif channel.state == ChannelState.THROUGH:
        hardware.output_data(system, device, value, value)
    else:
        raise Refused(Code.BLOCKED)


def _advance(system: System, device: DeviceId, channel: Channel) -> None:
    """One more sector by the data port."""
    position = channel.position + 1 & COUNT_MASK
    state = select(position == channel.length, ChannelState.READY, channel.state)
    system.channels[device] = channel._replace(position=position, state=state)


def output_count(system: System, device: DeviceId, value: Word) -> None:
    """How many sectors the next command is about."""
    _block_while_busy(system, device)
    hardware.output_register(system, device, Register.COUNT, value)
    system.channels[device] = system.channels[device]._replace(seen_count=value & COUNT_MASK)


def output_lba(system: System, device: DeviceId, value: Word) -> None:
    """The first sector that the next command is about."""
    _block_while_busy(system, device)
    hardware.output_register(system, device, Register.LBA, value)
    system.channels[device] = system.channels[device]._replace(seen_lba=value & LBA_MASK)


def output_descriptors(system: System, device: DeviceId, value: Word) -> None:
    """Where the guest has its descriptors: the device gets the VMM's."""
    _block_while_busy(system, device)
    system.channels[device] = system.channels[device]._replace(descriptors=value & ADDRESS_MASK)
    shadow = system.shadow_descriptor(device)
    given = shadow if system.policy.shadow_descriptors else value
    hardware.output_register(system, device, Register.DESCRIPTORS, given)


def control(system: System, device: DeviceId, value: Word) -> None:
    """A reset ends the command under way, of the device and of the mediator."""
    if value & RESET_BIT != 0:
        hardware.reset(system, device)
        if system.policy.reset_follows:
            _set_state(system, device, ChannelState.READY)


# -- commands --------------------------------------------------------------------------------------------------------------


def command(system: System, device: DeviceId, opcode: int) -> None:
    """A command: checked, and issued if it may be. Raises Refused."""
    _block_while_busy(system, device)
    policy = system.policy
    if is_handled(opcode, Handling.MEDIATED):
        _mediated(system, device, opcode)
    elif is_handled(opcode, Handling.PASSED):
        hardware.issue(system, device, opcode)
        _set_state(system, device, ChannelState.READY)
    elif is_handled(opcode, Handling.THROUGH):
        _through(system, device, opcode)
    elif is_handled(opcode, Handling.QUEUED):
        if policy.refuse_queued:
            _fail(system, device)
        hardware.issue(system, device, opcode)
        _set_state(system, device, ChannelState.THROUGH)
    else:
        if not_(policy.refuse_unknown):
            hardware.issue(system, device, opcode)
        _fail(system, device)


def _mediated(system: System, device: DeviceId, opcode: int) -> None:
    """A command whose data the mediator follows."""
    is_write = moves_by(opcode, Transfer.PIO_OUT, Transfer.DMA_OUT)
    first, length = _range(system, device)
    _check(system, device, first, length, is_write, False, moves_by(opcode, Transfer.DMA_IN, Transfer.DMA_OUT))
    _prepare(system, device, first, length)
    hardware.issue(system, device, opcode)
    state = select(moves_by(opcode, Transfer.PIO_IN), ChannelState.PIO_IN, ChannelState.DMA_READY)
    state = select(moves_by(opcode, Transfer.PIO_OUT), ChannelState.PIO_OUT, state)
    system.channels[device] = system.channels[device]._replace(
        state=state, first=first, length=length, position=0, is_write=is_write, entry=0, offset=0
    )


def _through(system: System, device: DeviceId, opcode: int) -> None:
    """A command whose data pass unseen, or that erases sectors."""
    if is_busy(system.channels[device], system.devices[device]):
        _fail(system, device)
    if moves_by(opcode, Transfer.ERASE):
        first, length = _range(system, device)
        if system.policy.through_harmless:
            _check(system, device, first, length, True, True, False)
        _prepare(system, device, first, length)
    hardware.issue(system, device, opcode)
    _set_state(system, device, ChannelState.THROUGH)


def _range(system: System, device: DeviceId) -> tuple[Lba, int]:
    """The sectors that a command is about: what the device will take, or what has gone by."""
    row, channel = system.devices[device], system.channels[device]
    if system.policy.read_back_registers:
        return row.lba, row.count
    return channel.seen_lba, channel.seen_count


def _check(system: System, device: DeviceId, first: Lba, length: int, is_write: Any, is_erase: Any, is_dma: Any) -> None:
    """Whether a command may be issued. Raises Refused."""
    if not_(hardware.is_range(first, length)):
        _fail(system, device)
    if system.policy.count_bounded & (length > SHADOW_BLOCKS):
        if is_dma:
            system.panic()
        _fail(system, device)
    refused: Any = False
    for number in range(SHADOW_BLOCKS if system.policy.check_all_sectors else 1):
        lba, applies = first + number & LBA_MASK, number < length
        if applies is not False:
            refused = refused | extensions.refuses(system, device, lba, is_write, is_erase, applies)
    if refused:
        _fail(system, device)


def _prepare(system: System, device: DeviceId, first: Lba, length: int) -> None:
    """Let hooks do what is to be done before a command is issued. Raises Refused."""
    failed = False
    for number in range(SHADOW_BLOCKS):
        applies = number < length
        if applies is not False:
            failed = extensions.prepare(system, device, first + number & LBA_MASK, applies) | failed
    if failed:
        _fail(system, device)


# -- DMA -------------------------------------------------------------------------------------------------------------------


def start(system: System, device: DeviceId, value: Word) -> None:
    """The bus master is started: for a write what is to be written is copied first. Raises Refused."""
    policy, channel = system.policy, system.channels[device]
    if value & START_BIT == 0:
        _block_while_busy(system, device)
        hardware.start(system, device, value)
        return
    if channel.state != ChannelState.DMA_READY:
        if policy.start_gated:
            raise Refused(Code.BLOCKED)
        hardware.start(system, device, value)
        return
    is_write = value & TO_MEMORY_BIT == 0
    if policy.direction_checked & (is_write ^ channel.is_write):
        raise Refused(Code.BLOCKED)
    if policy.descriptors_outside_region & not_(policy.descriptors_checked_at_use):
        _check_first_reading(system, channel)
    channel = channel._replace(position=0, entry=0, offset=0, is_tampered=False, is_write=is_write)
    if not_(policy.shadow_descriptors):
        system.channels[device] = channel._replace(state=ChannelState.MOVING)
        hardware.start(system, device, value)
    elif is_write:
        system.channels[device] = channel._replace(state=ChannelState.COPYING_OUT)
    else:
        system.channels[device] = channel
        _let_move(system, device)


def _let_move(system: System, device: DeviceId) -> None:
    """Let the device move data between the medium and the shadow buffer."""
    channel = system.channels[device]
    buffer = hardware.descriptor(system.shadow_buffer(device), channel.length)
    system.memory[system.shadow_descriptor(device)] = buffer
    system.channels[device] = channel._replace(state=ChannelState.MOVING)
    hardware.start(system, device, START_BIT | select(channel.is_write, 0, TO_MEMORY_BIT))


def mediate(system: System, device: DeviceId) -> None:
    """Copy the next block between the guest's buffers and the shadow buffer. Raises Refused."""
    # CHECKS
    channel = system.channels[device]
    is_out = channel.state == ChannelState.COPYING_OUT
    if not_(system.is_mediated(device) & (is_out | (channel.state == ChannelState.COPYING_IN))):
        raise Refused(Code.NOTHING)
    table = channel.descriptors + channel.entry
    _check_buffer(system, device, table)
    first, count, is_last = described(system.read("mediator", device, table))
    address = first + channel.offset
    _check_buffer(system, device, address)
    position, is_used = channel.position + 1 & COUNT_MASK, channel.offset + 1 == count
    is_whole, is_over = position == channel.length, is_used & is_last
    if system.policy.whole_descriptors & is_over & not_(is_whole):
        _abort(system, device)
    buffer, lba = system.shadow_buffer(device) + channel.position, channel.first + channel.position & LBA_MASK
    if not_(system.is_address(buffer)):
        _abort(system, device)
    # EFFECT
    if is_out:
        word = system.read("mediator", device, address)
        system.plain[device, channel.position], system.memory[buffer] = extensions.outgoing(system, device, lba, word)
    else:
        word = extensions.incoming(system, device, lba, system.memory[buffer])
        system.write("mediator", device, address, word)
    ends = is_whole | is_over
    system.channels[device] = channel._replace(
        position=position,
        entry=channel.entry + select(is_used, 1, 0) & COUNT_MASK,
        offset=select(is_used, 0, channel.offset + 1 & DESCRIPTOR_COUNT_MASK),
        state=select(ends, ChannelState.READY, channel.state),
    )
    if is_out & ends:
        _let_move(system, device)


def _check_buffer(system: System, device: DeviceId, address: Address) -> None:
    """Whether the guest may have a buffer, or a descriptor, at an address. Raises Refused."""
    policy = system.policy
    if not_(system.is_address(address)) | system.is_trapped(address >> BLOCK_SHIFT):
        _abort(system, device)
    checks = policy.descriptors_outside_region & policy.descriptors_checked_at_use
    if checks & system.is_recognised(address >> BLOCK_SHIFT):
        system.panic()


def _check_first_reading(system: System, channel: Channel) -> None:
    """What descriptors say when the bus master is started, and maybe not later. Raises Refused."""
    first_block, behind = system.region_first << BLOCK_SHIFT, system.recognised_behind << BLOCK_SHIFT
    names, is_over = False, False
    for number in range(_FIRST_READING):
        table = channel.descriptors + number
        first, count, is_last = described(system.memory[table])
        inside = (first < behind) & (first_block < first + count) | system.is_recognised(table >> BLOCK_SHIFT)
        names = names | not_(is_over) & inside
        is_over = is_over | is_last
    if names:
        system.panic()


def _abort(system: System, device: DeviceId) -> None:
    """Give a command up that was issued. Raises Refused."""
    hardware.reset(system, device)
    _fail(system, device)


# -- registers that are read -----------------------------------------------------------------------------------------------


def input_register(system: System, device: DeviceId, register: int) -> Word:
    """The guest reads a register of a mediated device. Raises Refused."""
    if register == Register.DATA:
        return input_data(system, device)
    if register == Register.MASTER_STATUS:
        return master_status(system, device)
    row, channel = system.devices[device], system.channels[device]
    moving = is_moving(channel.state)
    own = system.policy.show_own_descriptors
    found: Any = 0
    for each, value in (
        (Register.COUNT, row.count),
        (Register.LBA, row.lba),
        (Register.COMMAND, status(channel, row)),
        (Register.DESCRIPTORS, channel.descriptors if own else row.descriptors),
        (Register.START, select(moving, START_BIT | select(channel.is_write, 0, TO_MEMORY_BIT), 0)),
    ):
        found = select(register == each, value, found)
    return found


def status(channel: Channel, row: Device) -> Word:
    """What the status register says to the guest."""
    found = select(is_moving(channel.state), STATUS_BUSY, hardware.status(row))
    return select(channel.state == ChannelState.ERROR, STATUS_ERROR | STATUS_READY, found)


def input_data(system: System, device: DeviceId) -> Word:
    """The data port: a word of a read that is followed, or of a command let through. Raises Refused."""
    channel = system.channels[device]
    if channel.state == ChannelState.PIO_IN:
        lba = channel.first + channel.position & LBA_MASK
        _advance(system, device, channel)
        return extensions.incoming(system, device, lba, hardware.input_data(system, device))
    if channel.state == ChannelState.THROUGH:
        return hardware.input_data(system, device)
    raise Refused(Code.BLOCKED)


def master_status(system: System, device: DeviceId) -> Word:
    """Whether DMA is under way: when the device has finished a read, what it has read is copied first."""
    row, channel = system.devices[device], system.channels[device]
    state = channel.state
    if (state == ChannelState.MOVING) & not_(row.is_started):
        copies = not_(channel.is_write) & system.policy.shadow_descriptors
        state = select(copies, ChannelState.COPYING_IN, ChannelState.READY)
        state = select(row.is_failed, ChannelState.ERROR, state)
        system.channels[device] = channel._replace(state=state)
    return select(is_moving(state), 1, 0)
