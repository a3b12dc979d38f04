"""A drill of a para-pass-through VMM: every operation is done, and refused for each reason that it has.

So a short campaign is conclusive too. What can't be is in `NEVER`. Each lane has a script of its own, as some stop the
machine.
"""

from collections.abc import Iterator

import numpy as np

from capvisor.campaign.systems import exercise
from capvisor.campaign.vmm_moves import DISK, MIRRORED, NIC, PLACED, TINY_FRAMES, TINY_REGION, Deployment, Turn
from capvisor.campaign.vmm_program import LaneEvent
from capvisor.campaign.vmm_systems import Systems
from capvisor.spec.vmm import (
    BLOCK_SHIFT,
    DESCRIPTOR_COUNT_SHIFT,
    DESCRIPTOR_END,
    MEMORY_NUMBERS,
    OPERATIONS,
    PORTS,
    RESET_BIT,
    SHADOW_BLOCKS,
    START_BIT,
    TO_MEMORY_BIT,
    WINDOW_FRAME_SHIFT,
    WINDOW_SHIFT,
    Actor,
    Code,
    Msr,
    OperandKind,
    Register,
    Space,
)
from capvisor.spec.vmm_policy import INTENDED, VmmPolicy

IMAGE = 2
DEPLOYMENT = Deployment(TINY_FRAMES, *TINY_REGION, 1, True, IMAGE, ((1, 2, True), (22, 23, False)))

_ALONE = {
    name
    for name, row in OPERATIONS.items()
    if not any(kind is not OperandKind.WORD and kind is not OperandKind.MSR for _name, kind in row.operands[1:])
    and (row.actor is not Actor.VMM or not row.operands)
}
NEVER = {("enter_vmx", Code.OK), *((name, Code.RANGE) for name in _ALONE)}
"""What can't be under the intended policy: a guest isn't a hypervisor; and in a program all who act are there, so that
nothing is out of range where they are all that is named.
"""

PLAIN, ENCRYPTED, DENIED, FAULTY = 0, 4, 8, 12
"""Sectors of the disk, one of each rule."""

FIRST, LAST = TINY_REGION
TABLE, BUFFER, HIDDEN, BEYOND = 1 << BLOCK_SHIFT, 2 << BLOCK_SHIFT, FIRST + 1 << BLOCK_SHIFT, TINY_FRAMES << BLOCK_SHIFT
"""Blocks: of the guest, where it has descriptors and data; of the region; none."""

FLUSH, READ, WRITE, READ_DMA, WRITE_DMA, SMART, TRIM, QUEUED, VENDOR = 0xE7, 0x20, 0x30, 0xC8, 0xCA, 0xB0, 0x06, 0x60, 0x80

Script = Iterator[tuple[str, tuple[int, ...]]]


def _number(device: int, register: int) -> int:
    return PLACED[device][Space.PORT] | register


def _out(register: int, value: int, device: int = DISK) -> tuple[str, tuple[int, ...]]:
    return "output", (0, Space.PORT, _number(device, register), value)


def _in(register: int, device: int = DISK) -> tuple[str, tuple[int, ...]]:
    return "input", (0, Space.PORT, _number(device, register))


def _command(opcode: int, lba: int, count: int = 1, device: int = DISK) -> Script:
    yield _out(Register.COUNT, count, device)
    yield _out(Register.LBA, lba, device)
    yield _out(Register.COMMAND, opcode, device)


def _described(address: int, count: int) -> Script:
    """A table of one descriptor."""
    yield "dma_write", (NIC, TABLE, address | count << DESCRIPTOR_COUNT_SHIFT | DESCRIPTOR_END)
    yield _out(Register.DESCRIPTORS, TABLE)


def _dma(opcode: int, lba: int, count: int, buffer: int = BUFFER) -> Script:
    """A command for DMA, from its beginning to its end."""
    yield from _described(buffer, count)
    yield from _command(opcode, lba, count)
    yield _out(Register.START, START_BIT | (TO_MEMORY_BIT if opcode == READ_DMA else 0))
    for name in ("mediate", "transfer"):
        yield from [(name, (DISK,))] * count
    yield _in(Register.MASTER_STATUS)
    yield from [("mediate", (DISK,))] * count


def processors() -> Script:
    """Pages, and what could end interception; at last a store into the region."""
    for frame, writable in ((1, 1), (1 << 30, 1), (FIRST + 5, 1)):
        yield "map", (0, 0, frame, 0, writable)
        yield "load", (0, 0, 0)
    yield "map", (0, 1, 2, 0, 1)
    yield "store", (0, 1, 0, 5)
    for offset, slot in ((SHADOW_BLOCKS, 1), (0, 3)):
        yield "load", (0, slot, offset)
        yield "store", (0, slot, offset, 1)
    yield "map", (0, 2, 1, 1, 1)
    yield from (("write_msr", (0, msr, 0x1000)) for msr in (Msr.APIC_BASE, Msr.MICROCODE, 0x10))
    yield from (("enter_vmx", (0,)), ("init", (0,)), ("sleep", (0,)))
    yield "map", (0, 0, FIRST, 0, 1)
    yield "store", (0, 0, 0, 5)


def registers() -> Script:
    """All kinds of commands, and registers that are moved; at last a command that is too large."""
    for lba in (PLAIN, ENCRYPTED):
        yield from _command(WRITE, lba)
        yield _out(Register.COUNT, 1)
        yield _out(Register.DATA, 77)
        yield from _command(READ, lba)
        yield _in(Register.DATA)
    yield _in(Register.DATA)
    yield _out(Register.DATA, 1)
    for space, number in _ODD:
        yield "input", (0, space, number)
        yield "output", (0, space, number, 1)
    for opcode, lba in ((FLUSH, 0), (SMART, 0), (TRIM, PLAIN), (TRIM, ENCRYPTED), (QUEUED, 0), (VENDOR, 0)):
        yield from _command(opcode, lba)
        yield _in(Register.DATA)
    yield from (each for lba in (DENIED, FAULTY) for each in _command(WRITE, lba))
    yield from _dma(WRITE_DMA, ENCRYPTED, 2)
    yield from _dma(READ_DMA, ENCRYPTED, 2)
    yield "mediate", (NIC,)
    yield "mediate", (9,)
    yield from (("output", (0, Space.PORT, _number(NIC, 3), 6)), ("input", (0, Space.PORT, _number(NIC, 3))))
    over = FIRST << WINDOW_FRAME_SHIFT
    for device, space, window in (
        *((DISK, Space.PORT, 5), (DISK, Space.PORT, PLACED[NIC][0] >> WINDOW_SHIFT), (DISK, Space.MEMORY, over)),
        *((DISK, Space.PORT, PORTS), (9, Space.PORT, 5), (DISK, Space.PORT, PLACED[DISK][0] >> WINDOW_SHIFT)),
    ):
        yield "move_window", (0, device, space, window)
    yield from _command(WRITE_DMA, PLAIN, SHADOW_BLOCKS + 1)


_ODD = ((Space.PORT, PORTS), (Space.MEMORY, MEMORY_NUMBERS), (2, 0), (Space.PORT, 0))


def mediation() -> Script:
    """Descriptors that aren't there, that are too few, and that name the region."""
    yield "transfer", (DISK,)
    for table, count in ((BEYOND, 2), (TABLE, 1)):
        yield from _described(BUFFER, count)
        yield _out(Register.DESCRIPTORS, table)
        yield from _command(WRITE_DMA, PLAIN, 2)
        yield _out(Register.START, START_BIT)
        yield "mediate", (DISK,)
        yield _out(Register.CONTROL, RESET_BIT)
    yield from _dma(WRITE_DMA, PLAIN, 1, HIDDEN)


def deployment() -> Script:
    """An image is deployed, and the VMM leaves; what is left is a device that passes through."""
    yield from (("fetch", (device, lba)) for device, lba in ((9, 0), (MIRRORED, 1 << 50), (DISK, 0), (MIRRORED, IMAGE)))
    yield from (("deploy", (device,)) for device in (9, DISK, MIRRORED))
    yield from (("leave", (device,)) for device in (9, DISK, MIRRORED))
    yield from _command(WRITE, 1, 1, MIRRORED)
    yield _out(Register.DATA, 5, MIRRORED)
    for lba in range(IMAGE):
        yield from (("fetch", (MIRRORED, lba)), ("deploy", (MIRRORED,)))
    yield "leave", (MIRRORED,)
    yield "dma_write", (NIC, TABLE, HIDDEN | 1 << DESCRIPTOR_COUNT_SHIFT | DESCRIPTOR_END)
    yield _out(Register.DESCRIPTORS, TABLE, MIRRORED)
    yield from _command(READ_DMA, 0, 1, MIRRORED)
    yield _out(Register.START, START_BIT | TO_MEMORY_BIT, MIRRORED)
    yield "transfer", (MIRRORED,)


def moving() -> Script:
    """The guest's memory is sent, and it is handed over."""
    yield from (("send", (1,)), ("stop", ()), ("send_next", ()), ("hand_over", ()))
    yield from (("begin_move", ()), ("begin_move", ()))
    yield from (("send", (frame,)) for frame in (1, FIRST, 1 << 30))
    yield "dma_write", (NIC, TABLE, 9)
    yield from (*_command(READ, PLAIN), ("stop", ()), _in(Register.DATA))
    yield from (("stop", ()), ("dma_write", (NIC, TABLE, 8)), ("hand_over", ()))
    yield from [("send_next", ())] * (TINY_FRAMES + 1)
    yield "hand_over", ()


def others() -> Script:
    """Devices and extensions access memory; at last the APIC is moved into the region."""
    for name, value in (("dma_read", ()), ("dma_write", (1,))):
        for device, address in ((NIC, TABLE), (NIC, HIDDEN), (DISK, TABLE), (NIC, BEYOND)):
            yield name, (device, address, *value)
    for name, value in (("extension_read", ()), ("extension_write", (1,))):
        for address in (TABLE, HIDDEN, BEYOND):
            yield name, (1, address, *value)
    yield "write_msr", (0, Msr.APIC_BASE, FIRST << 12)


SCRIPTS = (processors, registers, mediation, deployment, moving, others)


def events_of_script(number: int) -> list[LaneEvent]:
    """What is done in a lane of the drill: its script, and then every operation once more."""
    script = SCRIPTS[number % len(SCRIPTS)]()
    last = ((name, tuple(0 if kind in _NOUGHT else 1 for _name, kind in row.operands)) for name, row in _ALL)
    return [LaneEvent(name, tuple(map(int, operands))) for name, operands in (*script, *last)]


_ALL = tuple(OPERATIONS.items())
_NOUGHT = (OperandKind.VCPU, OperandKind.OFFSET)


def drill(lanes: int, policy: VmmPolicy = INTENDED) -> Systems:
    """A drill, in each lane one of the scripts."""
    systems = Systems(DEPLOYMENT.size(), lanes, policy, DEPLOYMENT.start)
    scripts = [events_of_script(lane) for lane in range(lanes)]

    def all_operations() -> None:
        for count in range(max(map(len, scripts))):
            turn = Turn(lanes)
            for lane, script in enumerate(scripts):
                if count < len(script):
                    name, operands = script[count]
                    turn.let(np.arange(lanes) == lane, name, *(np.full(lanes, each, np.uint64) for each in operands))
            systems.step_each(turn.numbers, turn.operands)

    exercise(systems, all_operations)
    return systems
