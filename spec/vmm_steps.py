"""What the invariants of a para-pass-through VMM say of changes: what a step does to commands under way, and to registers.

A storage device's registers are those of `spec.vmm.Register`; `passes` says what hardware does when one is accessed.
"""

from typing import Any

from capvisor.spec.invariants import implies, not_
from capvisor.spec.vmm import (
    ALL_ONES,
    COUNT_BITS,
    DESCRIPTOR_ADDRESS_BITS,
    DESCRIPTOR_COUNT_BITS,
    DESCRIPTOR_COUNT_SHIFT,
    DESCRIPTOR_END,
    LBA_BITS,
    OPCODE_BITS,
    RESET_BIT,
    START_BIT,
    STATUS_BUSY,
    STATUS_ERROR,
    STATUS_READY,
    STATUS_REQUEST,
    TO_MEMORY_BIT,
    ChannelState,
    Code,
    Handling,
    Register,
    Transfer,
)
from capvisor.spec.vmm_words import (
    Access,
    Place,
    Step,
    accessed,
    is_followed,
    is_handled,
    is_mediated,
    is_one_of,
    is_own_data,
    moves_by,
)

COUNT_MASK, LBA_MASK = (1 << COUNT_BITS) - 1, (1 << LBA_BITS) - 1
ADDRESS_MASK, DESCRIPTOR_COUNT_MASK = (1 << DESCRIPTOR_ADDRESS_BITS) - 1, (1 << DESCRIPTOR_COUNT_BITS) - 1
_DATA = (Transfer.PIO_IN, Transfer.PIO_OUT, Transfer.DMA_IN, Transfer.DMA_OUT)
_DMA = (Transfer.DMA_IN, Transfer.DMA_OUT)
NOT_THERE = (Code.RANGE, Code.STOPPED)
"""How operations end that reach nothing."""

_ENDED = ("opcode", "is_started", "is_failed")
_ADVANCED = ("position", "opcode", "is_started", "lba")
_TABLE = ("entry", "offset")
CHANGES: dict[tuple[str, Register | None], tuple[tuple[str, ...], tuple[str, ...]]] = {
    ("output", Register.DATA): (_ADVANCED, ("position", "state")),
    ("output", Register.COUNT): (("count",), ("seen_count",)),
    ("output", Register.LBA): (("lba",), ("seen_lba",)),
    ("output", Register.COMMAND): (
        (*_ENDED, "first", "length", "position", *_TABLE),
        ("state", "first", "length", "position", "is_write", *_TABLE),
    ),
    ("output", Register.DESCRIPTORS): (("descriptors",), ("descriptors",)),
    ("output", Register.START): (
        ("is_started", "to_memory", *_TABLE),
        ("state", "position", "is_write", "is_tampered", *_TABLE),
    ),
    ("output", Register.CONTROL): (_ENDED, ("state",)),
    ("input", Register.DATA): (_ADVANCED, ("position", "state")),
    ("input", Register.MASTER_STATUS): ((), ("state",)),
    ("transfer", None): ((*_ADVANCED, "is_failed", *_TABLE), ()),
    ("mediate", None): (("to_memory", *_ENDED, *_TABLE), ("state", "position", *_TABLE)),
    ("dma_write", None): ((), ("is_tampered",)),
    ("leave", None): (("descriptors",), ("state",)),
}
"""By operation, and register where it accesses one: what of the device that it is about may change, of the device itself
and of what its mediator knows. Of all other devices nothing does. `sleep` is about all of all.
"""
_CHANGERS = {
    (name, which, field): tuple(each for (other, each), named in CHANGES.items() if other == name and field in named[which])
    for (name, _register), changing in CHANGES.items()
    for which, fields in enumerate(changing)
    for field in fields
}
"""By operation, table and field: the registers by whose access that changes; None where it accesses none."""
DEVICE_FIELDS = (
    *("is_storage", "count", "lba", "descriptors", "opcode", "first", "length", "position", "is_started", "to_memory"),
    *("entry", "offset", "is_failed"),
)
CHANNEL_FIELDS = (
    *("state", "first", "length", "position", "is_write", "seen_count", "seen_lba", "descriptors", "entry", "offset"),
    "is_tampered",
)


# -- words -----------------------------------------------------------------------------------------------------------------


def moves_one(step: Step, device: Any, lba: Any, is_write: Any) -> Any:
    """Whether a step moves one sector, and which."""
    holds: Any = moves_made(step) == 1
    for move in step.moves:
        same = (move.device == device) & (move.lba == lba) & (move.is_write == is_write)
        holds = holds & implies(move.is_made, same)
    return holds


def moves_made(step: Step) -> Any:
    """How many sectors a step moves."""
    found: Any = 0
    for move in step.moves:
        found = found + move.is_made
    return found


def _erases(step: Step, device: Any, first: Any, count: Any) -> Any:
    """Whether a step writes so many sectors, from the first on, and no others."""
    holds: Any = moves_made(step) == count
    for number, move in enumerate(step.moves):
        same = (move.device == device) & (move.lba == first + number & LBA_MASK) & (move.is_write == True)  # noqa: E712
        holds = holds & implies(move.is_made, same)
    return holds


def _chosen(holds: Any, found: Any, when_true: Any, when_false: Any) -> Any:
    """Whether something is one or the other of two values."""
    return implies(holds, found == when_true) & implies(not_(holds), found == when_false)


def _has_bit(value: Any, bit: int) -> Any:
    return value & bit != 0


# -- commands under way: P18 -----------------------------------------------------------------------------------------------


def followed_to_its_end(step: Step, place: Place) -> Any:
    """What P18 says of a mediator that follows a command before a step, or after it."""
    if step.before is None or step.name == "sleep":
        return True
    system, before, device = step.system, step.before, place.device
    was, now, row = before.channels[device], system.channels[device], system.devices[device]
    resets: Any = False
    if step.name == "output" and step.is_completed:
        access = accessed(step)
        resets = (access.hook == device) & (access.register == Register.CONTROL) & _has_bit(access.value, RESET_BIT)
    under_way = is_mediated(before, device) & is_followed(was)
    moved = row.position == was.length
    done = (was.state <= ChannelState.PIO_OUT) & (now.position == was.length) & moved
    done = done | (was.state == ChannelState.MOVING) & was.is_write & moved & not_(row.is_failed)
    done = done | (was.state == ChannelState.COPYING_IN) & (now.position == was.length)
    ends = not_(is_followed(now)) & (now.state != ChannelState.ERROR)
    goes_on = (now.first == was.first) & (now.length == was.length) & (now.is_write == was.is_write)
    stays = now.state == was.state
    stays = stays | (was.state == ChannelState.DMA_READY) & (now.state == ChannelState.COPYING_OUT) & was.is_write
    stays = stays | (was.state == ChannelState.DMA_READY) & (now.state == ChannelState.MOVING) & not_(was.is_write)
    copied = (now.position == was.length) & was.is_write
    stays = stays | (was.state == ChannelState.COPYING_OUT) & (now.state == ChannelState.MOVING) & copied
    read = moved & not_(was.is_write) & not_(row.is_failed)
    stays = stays | (was.state == ChannelState.MOVING) & (now.state == ChannelState.COPYING_IN) & read
    holds = implies(under_way & not_(resets) & ends, done)
    holds = holds & implies(under_way & is_followed(now), goes_on & stays)
    begins = is_mediated(system, device) & not_(is_followed(was)) & is_followed(now)
    return holds & implies(begins, _begins_at(step, device))


def _begins_at(step: Step, device: Any) -> Any:
    """Whether a step is the command by which a device comes to be under way."""
    if step.name != "output" or not step.is_completed:
        return False
    access = accessed(step)
    return (access.hook == device) & (access.register == Register.COMMAND)


def moves_on(step: Step) -> Any:
    """What P18 says of what a step moves."""
    if step.before is None or not step.is_completed:
        return True
    if step.name in ("input", "output"):
        return _accesses(step, accessed(step))
    if step.name == "transfer":
        return _transfers(step, step.operands[0])
    if step.name == "mediate":
        return _mediates(step, step.operands[0]) & (moves_made(step) == 0)
    return moves_made(step) == 0


def _accesses(step: Step, access: Access) -> Any:
    """An access to a register that is mediated: data move by the data port, one sector at a time, and by nothing else."""
    was, now = step.before.channels[access.hook], step.system.channels[access.hook]  # type: ignore[union-attr]
    state = ChannelState.PIO_OUT if step.name == "output" else ChannelState.PIO_IN
    data = (access.register == Register.DATA) & (was.state == state)
    lba, position = was.first + was.position & LBA_MASK, was.position + 1 & COUNT_MASK
    next_one = (now.position == position) & _chosen(position == was.length, now.state, ChannelState.READY, was.state)
    holds = implies(data, moves_one(step, access.hook, lba, step.name == "output") & next_one)
    if step.name == "input":
        holds = holds & implies(not_(data), moves_made(step) == 0)
    else:
        command, starts = access.register == Register.COMMAND, access.register == Register.START
        holds = holds & implies(not_(data | command), moves_made(step) == 0)
        holds = holds & implies(command, _issues(step, access))
        holds = holds & implies(starts & _has_bit(access.value, START_BIT), _starts(step, access))
    return implies(access.hook != 0, holds)


def _issues(step: Step, access: Access) -> Any:
    """A command that is issued is about the sectors that the registers say."""
    row, now = step.before.devices[access.hook], step.system.channels[access.hook]  # type: ignore[union-attr]
    device, opcode = step.system.devices[access.hook], access.value & (1 << OPCODE_BITS) - 1
    pio_in, pio_out = is_one_of(opcode, Transfer.PIO_IN), is_one_of(opcode, Transfer.PIO_OUT)
    dma, out = is_one_of(opcode, *_DMA), is_one_of(opcode, Transfer.PIO_OUT, Transfer.DMA_OUT)
    same = (now.first == row.lba) & (now.length == row.count) & (now.position == 0) & (now.is_write == out)
    same = same & (device.opcode == opcode) & (device.first == row.lba) & (device.length == row.count)
    holds = implies(pio_in | pio_out | dma, same & (device.position == 0))
    for kind, state in (
        (pio_in, ChannelState.PIO_IN),
        (pio_out, ChannelState.PIO_OUT),
        (dma, ChannelState.DMA_READY),
        (is_handled(opcode, Handling.PASSED), ChannelState.READY),
        (is_handled(opcode, Handling.THROUGH), ChannelState.THROUGH),
    ):
        holds = holds & implies(kind, now.state == state)
    erases = moves_by(opcode, Transfer.ERASE)
    own = is_handled(opcode, Handling.THROUGH) & not_(erases)
    own_data = not_(device.is_failed) & (device.opcode == opcode) | device.is_failed & (device.opcode == 0)
    holds = holds & implies(own, own_data) & implies(erases, _erases(step, access.hook, row.lba, row.count))
    return holds & implies(not_(erases), moves_made(step) == 0)


def _starts(step: Step, access: Access) -> Any:
    """The bus master begins with the command that was issued, and with none of it moved."""
    was, now = step.before.channels[access.hook], step.system.channels[access.hook]  # type: ignore[union-attr]
    starts = (was.state == ChannelState.DMA_READY) & (now.position == 0) & (now.entry == 0) & (now.offset == 0)
    starts = starts & (now.is_write == not_(_has_bit(access.value, TO_MEMORY_BIT))) & (now.is_write == was.is_write)
    return starts & _chosen(now.is_write, now.state, ChannelState.COPYING_OUT, ChannelState.MOVING)


def _transfers(step: Step, device: Any) -> Any:
    """A device moves the next sector of its command; one that is mediated, from and to its place in the shadow buffer."""
    system, was, now = step.system, step.before.devices[device], step.system.devices[device]  # type: ignore[union-attr]
    lba, is_write = was.first + was.position & LBA_MASK, moves_by(was.opcode, Transfer.DMA_OUT)
    holds = moves_one(step, device, lba, is_write) & (now.position == was.position + 1 & COUNT_MASK)
    own = (step.touches[-1].address == system.shadow_buffer(device) + was.position) & not_(now.is_failed)
    return holds & implies(is_mediated(system, device), own)


def _mediates(step: Step, device: Any) -> Any:
    """A mediator copies the next block, from or to where the guest's descriptor says."""
    system, before = step.system, step.before
    was, now = before.channels[device], system.channels[device]  # type: ignore[union-attr]
    table, is_out = was.descriptors + was.entry, was.state == ChannelState.COPYING_OUT
    word = before.memory[table]  # type: ignore[union-attr]
    count, is_last = word >> DESCRIPTOR_COUNT_SHIFT & DESCRIPTOR_COUNT_MASK, word & DESCRIPTOR_END != 0
    used = (was.offset + 1 == count) | (count == 0) & (was.offset == 0)
    touches = [each for each in step.touches if each.actor == "mediator"]
    if len(touches) != 2:
        return False
    described, block = touches
    holds = (described.address == table) & (described.is_write == False)  # noqa: E712 - also of many at once
    holds = holds & (block.address == (word & ADDRESS_MASK) + was.offset) & (block.is_write == not_(is_out))
    plain = system.plain[device, was.position]
    holds = holds & implies(is_out & (not system.hooks), plain == before.memory[block.address])  # type: ignore[union-attr]
    position = was.position + 1 & COUNT_MASK
    ends = position == was.length
    holds = holds & (now.position == position) & implies(used & is_last, ends)
    holds = holds & _chosen(used, now.entry, was.entry + 1 & COUNT_MASK, was.entry)
    holds = holds & _chosen(used, now.offset, 0, was.offset + 1 & DESCRIPTOR_COUNT_MASK)
    after = implies(ends & is_out, now.state == ChannelState.MOVING)
    after = after & implies(ends & not_(is_out), now.state == ChannelState.READY)
    return holds & after & implies(not_(ends), now.state == was.state)


# -- what isn't changed: P17 -----------------------------------------------------------------------------------------------


def rows_are_kept(step: Step, place: Place) -> Any:
    """What P17 says of a device, and of what its mediator knows."""
    if step.before is None or (step.name == "sleep" and step.is_completed):
        return True
    device = place.device
    about, register = _about(step, device)
    pairs = (
        (DEVICE_FIELDS, step.system.devices[device], step.before.devices[device]),
        (CHANNEL_FIELDS, step.system.channels[device], step.before.channels[device]),
    )
    holds: Any = True
    for which, (fields, now, was) in enumerate(pairs):
        for field in fields:
            changes: Any = False
            for each in _CHANGERS.get((step.name, which, field), ()):
                changes = changes | (True if each is None else register == each)
            holds = holds & (about & changes | (getattr(now, field) == getattr(was, field)))
    now, was = pairs[0][1:]
    last = (now.opcode == 0) & (now.lba == was.first + was.length - 1 & LBA_MASK)
    written = register == Register.LBA if step.name == "output" else False
    return holds & (written | last | (now.lba == was.lba))


def _about(step: Step, device: Any) -> tuple[Any, Any]:
    """Whether a step is about a device, and which register it accesses."""
    if not step.is_completed and step.code not in (Code.FAILED, Code.IOMMU):
        return False, 0  # what is refused otherwise changes nothing, or stops the machine
    if step.name in ("input", "output"):
        access = accessed(step)
        return (access.hook == device) | (access.device == device), access.register
    if step.name in ("transfer", "mediate", "dma_write", "leave"):
        return step.operands[0] == device, 0
    return False, 0


def registers_are_kept(step: Step, place: Place) -> Any:
    """What P17 says of the registers of a device that isn't a storage device."""
    if step.before is None or (step.name == "sleep" and step.is_completed):
        return True
    holds: Any = True
    about, register = _about(step, place.device)
    for each in Register:
        written = about & (register == each) if step.name == "output" else False
        same = step.system.registers[place.device, int(each)] == step.before.registers[place.device, int(each)]
        holds = holds & (written | same)
    return holds


def windows_are_kept(step: Step, place: Place) -> Any:
    """What P17 says of a window."""
    moves = step.name == "move_window" and step.is_completed
    if step.before is None or moves or step.name == "place_window":
        return True
    window, before = (place.space, place.window), step.before
    holds = step.system.decoded[window] == before.decoded[window]
    leaves = step.name == "leave" and step.is_completed
    return holds & (leaves or step.system.hooked[window] == before.hooked[window])


def ghosts_are_kept(step: Step, place: Place) -> Any:
    """What P17 says of what is meant by a sector, and whether a command has written it: both are set by commands, or the
    first when the sector is deployed.
    """
    if step.before is None:
        return True
    system, before, sector = step.system, step.before, (place.device, place.lba)
    written: Any = False
    for move in step.moves:
        written = written | move.is_made & (move.is_write == True) & (move.device == sector[0]) & (move.lba == sector[1])  # noqa: E712
    deployed = system.deployed[sector] & not_(before.deployed[sector])
    meant, was = system.meant[sector], before.meant[sector]
    same = (meant.is_known == was.is_known) & (meant.word == was.word)
    touched = _chosen(written, system.touched[sector], True, before.touched[sector])
    return touched & (written | deployed | same)


def copies_are_kept(step: Step, place: Place) -> Any:
    """What P17 says of what was copied of the guest's words: only the block that `mediate` copies is another."""
    if step.before is None:
        return True
    block = place.device, place.position
    copied: Any = False
    if step.name == "mediate" and step.is_completed:
        position = step.before.channels[step.operands[0]].position
        copied = (step.operands[0] == place.device) & (position == place.position)
    return copied | (step.system.plain[block] == step.before.plain[block])


# -- what passes through: P10, and what is shown of what doesn't: P5 -------------------------------------------------------


def passes(step: Step, access: Access) -> Any:
    """What P10 says of an access to a device that isn't mediated: what its hardware does, and nothing else."""
    if step.before is None:
        return True
    is_storage = step.system.devices[access.device].is_storage
    there = access.device != 0
    effect = _written if step.name == "output" else _read
    registers = step.system.registers[access.device, access.register] == access.value
    holds = implies(there & not_(is_storage), registers & (moves_made(step) == 0))
    holds = holds & implies(there & is_storage, effect(step, access))
    nothing = moves_made(step) == 0
    if step.name == "input":
        nothing = nothing & (access.value == ALL_ONES)
    return holds & implies(not_(there), nothing)


def _next_sector(step: Step, device: Any, is_write: bool) -> Any:
    """One more sector has moved by the data port; after the last one the command is over."""
    was, now = step.before.devices[device], step.system.devices[device]  # type: ignore[union-attr]
    position, lba = was.position + 1 & COUNT_MASK, was.first + was.position & LBA_MASK
    ends, last = position == was.length, was.first + was.length - 1 & LBA_MASK
    holds = (now.position == position) & _chosen(ends, now.opcode, 0, was.opcode) & _chosen(ends, now.lba, last, was.lba)
    holds = holds & (now.is_started == was.is_started & not_(ends))
    own = is_own_data(was.opcode)
    return holds & implies(own, moves_made(step) == 0) & implies(not_(own), moves_one(step, device, lba, is_write))


def _unchanged(step: Step, device: Any) -> Any:
    was, now = step.before.devices[device], step.system.devices[device]  # type: ignore[union-attr]
    holds: Any = moves_made(step) == 0
    for field in DEVICE_FIELDS:
        holds = holds & (getattr(now, field) == getattr(was, field))
    return holds


def _written(step: Step, access: Access) -> Any:
    """What a storage device does when one of its registers is written."""
    system, device, value = step.system, access.device, access.value
    was, now = step.before.devices[device], system.devices[device]  # type: ignore[union-attr]
    by = {each: access.register == each for each in Register}
    holds = implies(by[Register.COUNT], now.count == value & COUNT_MASK)
    holds = holds & implies(by[Register.LBA], now.lba == value & LBA_MASK)
    holds = holds & implies(by[Register.DESCRIPTORS], now.descriptors == value & ADDRESS_MASK)
    takes = moves_by(was.opcode, Transfer.PIO_OUT)
    stored = system.media[device, was.first + was.position & LBA_MASK] == value
    data = implies(takes, _next_sector(step, device, True) & stored) & implies(not_(takes), _unchanged(step, device))
    holds = holds & implies(by[Register.DATA], data) & implies(by[Register.COMMAND], _commanded(step, access))
    starts = _has_bit(value, START_BIT) & moves_by(was.opcode, *_DMA)
    anew = starts & not_(was.is_started)
    started = (now.is_started == starts) & (now.to_memory == _has_bit(value, TO_MEMORY_BIT))
    started = started & _chosen(anew, now.entry, 0, was.entry) & _chosen(anew, now.offset, 0, was.offset)
    holds = holds & implies(by[Register.START], started)
    reset = (now.opcode == 0) & not_(now.is_started | now.is_failed)
    resets = _has_bit(value, RESET_BIT)
    control = implies(resets, reset) & implies(not_(resets), _unchanged(step, device))
    none = not_(by[Register.DATA] | by[Register.COMMAND])
    holds = holds & implies(by[Register.CONTROL], control) & implies(none, moves_made(step) == 0)
    return holds & implies(by[Register.MASTER_STATUS], _unchanged(step, device))


def _commanded(step: Step, access: Access) -> Any:
    """What a storage device does when a command comes."""
    device, opcode = access.device, access.value & (1 << OPCODE_BITS) - 1
    was, now = step.before.devices[device], step.system.devices[device]  # type: ignore[union-attr]
    there = (was.count > 0) & (was.lba + was.count <= 1 << LBA_BITS)
    erases = moves_by(opcode, Transfer.ERASE)
    waits = moves_by(opcode, *_DATA) & there
    holds = (now.first == was.lba) & (now.length == was.count) & (now.position == 0) & not_(now.is_started)
    holds = holds & (now.entry == 0) & (now.offset == 0) & _chosen(waits, now.opcode, opcode, 0)
    holds = holds & (now.is_failed == (moves_by(opcode, *_DATA, Transfer.ERASE) & not_(there)))
    erased = moves_made(step) >= 1
    for number, move in enumerate(step.moves):
        same = (move.device == device) & (move.lba == was.lba + number & LBA_MASK) & (move.is_write == True)  # noqa: E712
        erased = erased & implies(move.is_made, same & (number < was.count))
    return holds & implies(erases & there, erased) & implies(not_(erases & there), moves_made(step) == 0)


def _read(step: Step, access: Access) -> Any:
    """What a storage device does when one of its registers is read."""
    system, device, value = step.system, access.device, access.value
    was = step.before.devices[device]  # type: ignore[union-attr]
    data, gives = access.register == Register.DATA, moves_by(was.opcode, Transfer.PIO_IN)
    own, word = is_own_data(was.opcode), system.media[device, was.first + was.position & LBA_MASK]
    given = implies(own, value == 0) & implies(not_(own), value == word)
    moves = implies(gives, _next_sector(step, device, False) & given)
    holds = implies(data, moves & implies(not_(gives), _unchanged(step, device) & (value == ALL_ONES)))
    holds = holds & implies(not_(data), _unchanged(step, device))
    for register, shown in (
        (Register.COUNT, value == was.count),
        (Register.LBA, value == was.lba),
        (Register.DESCRIPTORS, value == was.descriptors),
        (Register.COMMAND, _status(was, value)),
        (Register.START, (_has_bit(value, START_BIT) == was.is_started) & (_has_bit(value, TO_MEMORY_BIT) == was.to_memory)),
        (Register.MASTER_STATUS, _chosen(was.is_started, value, 1, 0)),
        (Register.CONTROL, value == 0),
    ):
        holds = holds & implies(access.register == register, shown)
    return holds


def _status(row: Any, value: Any) -> Any:
    """Whether a status is that of a device."""
    dma, pio = moves_by(row.opcode, *_DMA), moves_by(row.opcode, Transfer.PIO_IN, Transfer.PIO_OUT)
    holds = implies(dma, value == STATUS_BUSY) & implies(pio, value == STATUS_REQUEST | STATUS_READY)
    return holds & implies(not_(dma | pio), _chosen(row.is_failed, value, STATUS_ERROR | STATUS_READY, STATUS_READY))


def tells_what_is_so(step: Step, access: Access) -> Any:
    """What P5 says of the status: it is busy, waits for data, or says error exactly where the mediator does."""
    if step.name != "input":
        return True
    channel, value = step.system.channels[access.hook], access.value
    busy = (channel.state >= ChannelState.DMA_READY) & (channel.state <= ChannelState.COPYING_IN)
    moving = busy & (channel.state != ChannelState.DMA_READY)
    port = (channel.state == ChannelState.PIO_IN) | (channel.state == ChannelState.PIO_OUT)
    failed = channel.state == ChannelState.ERROR
    status = implies(busy, value == STATUS_BUSY) & implies(port, value == STATUS_REQUEST | STATUS_READY)
    status = status & implies(failed, value == STATUS_ERROR | STATUS_READY)
    status = status & implies(not_(busy), value & STATUS_BUSY == 0)
    status = implies(access.register == Register.COMMAND, status)
    master = implies(access.register == Register.MASTER_STATUS, _chosen(moving, value, 1, 0))
    return implies(access.hook != 0, status & master)
