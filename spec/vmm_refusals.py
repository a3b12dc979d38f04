"""Which operations of a para-pass-through VMM may be refused, and why: by code, what must have been so before.

What isn't named here is never refused: so a VMM that refused everything would be none.
"""

from collections.abc import Callable
from typing import Any

from capvisor.spec.invariants import implies, not_
from capvisor.spec.vmm import (
    BLOCK_SHIFT,
    DESCRIPTOR_ADDRESS_BITS,
    DESCRIPTOR_COUNT_BITS,
    DESCRIPTOR_COUNT_SHIFT,
    DESCRIPTOR_END,
    LBA_BITS,
    LEVEL_FRAMES,
    MAPPINGS,
    MAX_EXTENSIONS,
    MEMORY_NUMBERS,
    OPCODE_BITS,
    OPERATIONS,
    PORTS,
    SHADOW_BLOCKS,
    START_BIT,
    TO_MEMORY_BIT,
    WINDOW_FRAME_SHIFT,
    WINDOW_SHIFT,
    Actor,
    ChannelState,
    Code,
    Handling,
    Msr,
    OperandKind,
    Phase,
    Register,
    Rule,
    Space,
    Stage,
    Transfer,
)
from capvisor.spec.vmm_words import (
    Step,
    accessed,
    is_denied,
    is_followed,
    is_handled,
    is_mediated,
    is_one_of,
    moves_by,
)

_DMA = (Transfer.DMA_IN, Transfer.DMA_OUT)
_APIC_SHIFT = 12


def refused_for_a_reason(step: Step) -> Any:
    """P19."""
    if step.before is None or step.is_completed or step.name not in OPERATIONS:
        return True
    return REASONS[step.code](step)


def names_nothing(step: Step) -> Any:
    """Whether an operand names what isn't there."""
    system = step.system
    operands = dict(zip((name for name, _kind in OPERATIONS[step.name].operands), step.operands, strict=True))
    found: Any = False
    for name, kind in OPERATIONS[step.name].operands:
        number = operands[name]
        if kind in _LIMITS:
            found = found | _LIMITS[kind](system, number)
        elif kind in (OperandKind.NUMBER, OperandKind.WINDOW):
            shift = WINDOW_SHIFT if kind is OperandKind.WINDOW else 0
            ports = (operands["space"] == Space.PORT) & (number >= PORTS >> shift)
            found = found | ports | (number >= MEMORY_NUMBERS >> shift)
    return found


_LIMITS: dict[OperandKind, Callable[[Any, Any], Any]] = {
    OperandKind.VCPU: lambda system, number: number >= system.vcpu_count,
    OperandKind.SLOT: lambda _system, number: number >= MAPPINGS,
    OperandKind.FRAME: lambda system, number: number >= system.frame_count,
    OperandKind.LEVEL: lambda _system, number: number >= len(LEVEL_FRAMES),
    OperandKind.FLAG: lambda _system, number: number > 1,
    OperandKind.ADDRESS: lambda system, number: number >> BLOCK_SHIFT >= system.frame_count,
    OperandKind.DEVICE: lambda system, number: (number == 0) | (number > system.device_count),
    OperandKind.SPACE: lambda _system, number: number > Space.MEMORY,
    OperandKind.LBA: lambda _system, number: number >= 1 << LBA_BITS,
    OperandKind.EXTENSION: lambda _system, number: (number == 0) | (number > MAX_EXTENSIONS),
}


def beyond_the_page(step: Step) -> Any:
    """Whether a block isn't in a page that is mapped, or not in memory."""
    if step.name not in ("load", "store"):
        return False
    row, offset = step.before.mappings[step.operands[0], step.operands[1]], step.operands[2]  # type: ignore[union-attr]
    beyond: Any = (row.frame << BLOCK_SHIFT) + offset >> BLOCK_SHIFT >= step.system.frame_count
    beyond = beyond | (row.level >= len(LEVEL_FRAMES))
    for level, count in enumerate(LEVEL_FRAMES):
        beyond = beyond | (row.level == level) & (offset >= count << BLOCK_SHIFT)
    return beyond


def _stopped(step: Step) -> Any:
    vmm, row = step.before.vmm[0], OPERATIONS[step.name]  # type: ignore[union-attr]
    held = row.actor in (Actor.GUEST, Actor.EXTENSION) or step.name == "mediate"
    return vmm.is_stopped | (vmm.stage == Stage.HANDED_OVER) | held & (vmm.stage == Stage.STOPPED)


def _panics(step: Step) -> Any:
    system, before = step.system, step.before
    if step.name == "store":
        return before.mappings[step.operands[0], step.operands[1]].is_zero  # type: ignore[union-attr]
    if step.name == "write_msr":
        return (step.operands[1] == Msr.APIC_BASE) & system.in_region(step.operands[2] >> _APIC_SHIFT)
    if step.name == "mediate":
        table, block, _is_short = _named(step)
        return system.in_region(table >> BLOCK_SHIFT) | system.in_region(block >> BLOCK_SHIFT)
    access = accessed(step)
    count, opcode = before.devices[access.hook].count, access.value & (1 << OPCODE_BITS) - 1  # type: ignore[union-attr]
    large = (access.register == Register.COMMAND) & is_one_of(opcode, *_DMA) & (count > SHADOW_BLOCKS)
    early = (access.register == Register.START) & (not system.policy.descriptors_checked_at_use)
    return (access.hook != 0) & (large | early)


def _unmapped(step: Step) -> Any:
    row = step.before.mappings[step.operands[0], step.operands[1]]  # type: ignore[union-attr]
    frame = (row.frame << BLOCK_SHIFT) + step.operands[2] >> BLOCK_SHIFT
    read_only = not_(row.is_writable) if step.name == "store" else False
    return not_(row.is_live) | read_only | (step.system.trapped[frame] != 0)


def _blocked(step: Step) -> Any:
    system = step.system
    if step.name == "move_window":
        _vcpu, _device, space, window = step.operands
        return (space == Space.MEMORY) & system.in_region(window >> WINDOW_FRAME_SHIFT)
    access = accessed(step)
    channel = step.before.channels[access.hook]  # type: ignore[union-attr]
    expects = ChannelState.PIO_OUT if step.name == "output" else ChannelState.PIO_IN
    data = (channel.state != expects) & (channel.state != ChannelState.THROUGH)
    found = (access.register == Register.DATA) & data
    if step.name == "output":
        busy = _is_busy(step, access.hook)
        for register in (Register.COUNT, Register.LBA, Register.COMMAND, Register.DESCRIPTORS):
            found = found | (access.register == register) & busy
        starts, out = access.value & START_BIT != 0, access.value & TO_MEMORY_BIT == 0
        start = implies(starts, (channel.state != ChannelState.DMA_READY) | (out != channel.is_write))
        found = found | (access.register == Register.START) & start & implies(not_(starts), busy)
    return (access.hook != 0) & found


def _is_busy(step: Step, device: Any) -> Any:
    channel, row = step.before.channels[device], step.before.devices[device]  # type: ignore[union-attr]
    return is_followed(channel) | (channel.state == ChannelState.THROUGH) & (row.opcode != 0)


def _failed(step: Step) -> Any:
    system = step.system
    if step.name == "mediate":
        device = step.operands[0]
        table, block, is_short = _named(step)
        lost = _is_lost(system, table) | _is_lost(system, block) | is_short
        beyond = system.shadow_buffer(device) + step.before.channels[device].position  # type: ignore[union-attr]
        return lost | (beyond >> BLOCK_SHIFT >= system.frame_count)
    access = accessed(step)
    row, opcode = step.before.devices[access.hook], access.value & (1 << OPCODE_BITS) - 1  # type: ignore[union-attr]
    known = is_handled(opcode, Handling.MEDIATED, Handling.PASSED, Handling.THROUGH)
    erases = moves_by(opcode, Transfer.ERASE)
    checked = is_handled(opcode, Handling.MEDIATED) | erases
    bad: Any = (row.count == 0) | (row.count > SHADOW_BLOCKS) | (row.lba + row.count > 1 << LBA_BITS)
    for number in range(SHADOW_BLOCKS):
        lba = row.lba + number & (1 << LBA_BITS) - 1
        denied = is_denied(system, access.hook, lba)
        denied = denied | erases & (system.rules[access.hook, lba] == Rule.ENCRYPTED)
        bad = bad | (number < row.count) & denied
    for answer in step.answers:
        bad = bad | answer
    command = (access.hook != 0) & (access.register == Register.COMMAND)
    return command & (not_(known) | checked & bad | _is_busy(step, access.hook))


def _named(step: Step) -> tuple[Any, Any, Any]:
    """Where a guest's descriptor is, what block it names next, and whether its table ends there but not the command."""
    channel = step.before.channels[step.operands[0]]  # type: ignore[union-attr]
    table = channel.descriptors + channel.entry
    word = step.before.memory[table]  # type: ignore[union-attr]
    count = word >> DESCRIPTOR_COUNT_SHIFT & (1 << DESCRIPTOR_COUNT_BITS) - 1
    used = (channel.offset + 1 == count) | (count == 0) & (channel.offset == 0)
    is_short = used & (word & DESCRIPTOR_END != 0) & (channel.position + 1 != channel.length)
    return table, (word & (1 << DESCRIPTOR_ADDRESS_BITS) - 1) + channel.offset, is_short


def _is_lost(system: Any, address: Any) -> Any:
    """Whether nobody's memory is at an address."""
    frame = address >> BLOCK_SHIFT
    return (frame >= system.frame_count) | (system.trapped[frame] != 0)


def _iommu(step: Step) -> Any:
    before, device = step.before, step.operands[0]
    stopped = before.vmm[0].stage == Stage.STOPPED  # type: ignore[union-attr]
    if step.name != "transfer":
        return stopped | not_(_may(step, device, step.operands[1], step.name == "dma_write"))
    row = before.devices[device]  # type: ignore[union-attr]
    table, is_in = row.descriptors + row.entry, moves_by(row.opcode, Transfer.DMA_IN)
    block = (before.memory[table] & (1 << DESCRIPTOR_ADDRESS_BITS) - 1) + row.offset  # type: ignore[union-attr]
    moves = implies(is_in, _may(step, device, block, True)) & implies(not_(is_in), _may(step, device, block, False))
    return stopped | not_(_may(step, device, table, False) & moves)


def _may(step: Step, device: Any, address: Any, is_write: bool) -> Any:
    """Whether a device may access a block: a mediated one its own shadow pages, another all but the VMM's."""
    system, frame = step.system, address >> BLOCK_SHIFT
    mediated = is_mediated(step.before, device)
    own = frame == system.shadow_buffer(device) >> BLOCK_SHIFT
    if not is_write:
        own = own | (frame == system.shadow_descriptor(device) >> BLOCK_SHIFT)
    guests = (frame < system.frame_count) & not_(system.in_region(frame)) & (system.trapped[frame] == 0)
    return mediated & own | not_(mediated) & guests


def _conflicts(step: Step) -> Any:
    _vcpu, device, space, window = step.operands
    there = step.before.decoded[space, window]  # type: ignore[union-attr]
    return (there != 0) & (there != device)


def _nothing(step: Step) -> Any:
    before: Any = step.before
    vmm = before.vmm[0]
    if step.name in _STAGES:
        found: Any = vmm.stage != _STAGES[step.name]
        if step.name == "send":
            found = found | step.system.in_region(step.operands[0])
        if step.name == "send_next":
            found = found | (vmm.next_frame >= step.system.frame_count)
        return found
    device = step.operands[0]
    row, channel, deployment = before.devices[device], before.channels[device], before.deployments[device]
    if step.name == "transfer":
        return not_(row.is_storage & row.is_started & moves_by(row.opcode, *_DMA))
    if step.name == "mediate":
        copies = (channel.state == ChannelState.COPYING_OUT) | (channel.state == ChannelState.COPYING_IN)
        return not_(is_mediated(before, device) & copies)
    found = deployment.phase != Phase.DEPLOY
    if step.name == "deploy":
        found = found | not_(deployment.is_fetched)
    if step.name == "fetch":
        lba = step.operands[1]
        found = found | (lba >= deployment.size) | before.deployed[device, lba] & (lba != deployment.cursor)
    return found


_STAGES = {
    "begin_move": Stage.NONE,
    **dict.fromkeys(("send", "stop"), Stage.ROUNDS),
    **dict.fromkeys(("send_next", "hand_over"), Stage.STOPPED),
}


def _not_yet(step: Step) -> Any:
    before: Any = step.before
    if step.name == "stop":
        return before.some_device(lambda device: _is_busy(step, device))
    if step.name == "hand_over":
        return before.vmm[0].next_frame != step.system.frame_count
    device = step.operands[0]
    row = before.deployments[device]
    return (row.cursor != row.size) | _is_busy(step, device) | (before.devices[device].opcode != 0)


def _confined(step: Step) -> Any:
    system, (number, address) = step.system, step.operands[:2]
    row, frame = system.extensions[number], address >> BLOCK_SHIFT
    outside = (frame < row.first) | (frame >= row.behind) | system.in_region(frame) | (system.trapped[frame] != 0)
    return not_(row.is_live) | outside | (step.name == "extension_write") & not_(row.may_write)


REASONS: dict[Any, Callable[[Step], Any]] = {
    Code.RANGE: lambda step: names_nothing(step) | beyond_the_page(step),
    Code.STOPPED: _stopped,
    Code.PANIC: _panics,
    Code.UNMAPPED: _unmapped,
    Code.GENERAL: lambda step: step.name == "enter_vmx",
    Code.SWALLOWED: lambda step: step.operands[1] == Msr.MICROCODE,
    Code.BLOCKED: _blocked,
    Code.FAILED: _failed,
    Code.IOMMU: _iommu,
    Code.CONFLICT: _conflicts,
    Code.NOTHING: _nothing,
    Code.CONFINED: _confined,
    Code.NOT_YET: _not_yet,
}
"""By how an operation is refused, when it may be."""
