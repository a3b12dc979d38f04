"""What is true of a para-pass-through VMM by definition: its operations, how they refuse, registers, commands, limits.

The exact rule of each operation is in spec/vmm.md. The invariants are in `spec.vmm_invariants`.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum

BLOCKS_PER_FRAME, BLOCK_SHIFT = 8, 3
"""A block is 512 bytes, what a sector is: memory and media are made of them, and a block's content is one word of 64
bits. A modelling choice: all bytes of a block move together. An address is a block's number, frame << 3 | block.
"""
MAX_FRAMES = 1 << 20
"""4 GiB. Source: BitVisor (2009), drivers/iommu.c: the frames that the first domain maps."""
MAX_VCPUS, MAX_DEVICES, MAX_EXTENSIONS, MAPPINGS = 8, 8, 4, 8
"""How large a machine may be, and how many translations a vCPU holds. Devices and extensions are numbered from 1."""
HIDDEN_FRAMES = 1024
"""4 MiB: what the check of 2009 compares. Source: BitVisor (2009), cpu_mmu_spt.c, phys_in_vmm, mask FFC00000."""

KEY_FRAME, ZERO_FRAME, FIRST_SHADOW_FRAME = 0, 1, 2
"""Where things are in the region, by frame: the key in the first block of its first frame, the page of zeros, and then
of each device its shadow descriptor and its shadow buffer.
"""
LEAST_REGION = FIRST_SHADOW_FRAME + 2 * MAX_DEVICES
SHADOW_BLOCKS = BLOCKS_PER_FRAME
"""What a shadow buffer holds, and the most sectors of a command."""

LEVEL_FRAMES = (1, 512, 1 << 18)
"""How many frames a page of each size has: 4 KiB, 2 MiB, 1 GiB."""
COUNT_BITS, LBA_BITS, OPCODE_BITS, WORD_BITS = 16, 48, 8, 64
"""What registers of a storage device keep of what is written to them, and a word's width. Source: ATA/ATAPI-6, 6.20, for
48-bit addresses with 16-bit counts.
"""

DESCRIPTOR_ADDRESS_BITS, DESCRIPTOR_COUNT_SHIFT, DESCRIPTOR_COUNT_BITS, DESCRIPTOR_END = 48, 48, 8, 1 << 63
"""A descriptor is a word of memory: the address of the first block, how many, and whether it is the last one of its
table, whose descriptors are consecutive words. Source: SFF-8038i, physical region descriptors; its layout is the model's.
"""


class Code(IntEnum):
    """How an operation ends; what isn't OK is refused, and moves no data."""

    OK = 0
    RANGE = 1
    """There is no such frame, vCPU, slot, level, offset, device, extension, sector, register or window."""
    STOPPED = 2
    """The VMM has stopped the machine, or the guest doesn't run here: it is handed over, or all vCPUs are stopped."""
    PANIC = 3
    """The VMM stops the machine. An end, and a safe one."""
    UNMAPPED = 4
    """Nothing is mapped there, or not for writing: a page fault, the guest's."""
    GENERAL = 5
    """#GP or #UD: the guest doesn't have this."""
    SWALLOWED = 6
    """The write is dropped and the guest isn't told."""
    BLOCKED = 7
    """An access to a register of a mediated device is dropped: writes vanish, reads return all ones."""
    FAILED = 8
    """A command isn't issued: the device's status says error."""
    IOMMU = 9
    """A device may not access a frame."""
    CONFLICT = 10
    """Another device's registers are there."""
    NOTHING = 11
    """There is nothing to move, deploy, send or resume."""
    CONFINED = 12
    """An extension's policy doesn't permit it."""
    NOT_YET = 13
    """Not all is deployed, sent or stopped."""


class Space(IntEnum):
    """Where registers are."""

    PORT = 0
    MEMORY = 1


class Register(IntEnum):
    """The registers of a device, from the start of its window; of a storage device they mean this."""

    DATA = 0
    COUNT = 1
    LBA = 2
    COMMAND = 3
    """Read: the status."""
    DESCRIPTORS = 4
    """Where the table of descriptors is."""
    START = 5
    """Bus master's command: 1 starts, 8 says that the device writes to memory. Source: SFF-8038i."""
    MASTER_STATUS = 6
    CONTROL = 7
    """4: reset. Source: ATA/ATAPI-6, 7.9, SRST."""


WINDOW_SHIFT, WINDOW_FRAME_SHIFT = 3, 6
"""A window has eight registers, and lies at a multiple of eight: it is a number >> 3. In memory a register has 8 bytes, so
that 64 windows lie in a frame: window >> 6.
"""
PORTS, MEMORY_NUMBERS = 1 << 16, MAX_FRAMES << WINDOW_SHIFT + WINDOW_FRAME_SHIFT
"""How many numbers of registers there are in each space."""
FIRST_APIC_FRAME = 0xFEE00
"""Where the local APIC is at first, which no region may contain. Source: Intel SDM vol. 3A, 11.4.1."""
START_BIT, TO_MEMORY_BIT, RESET_BIT = 1, 8, 4
STATUS_ERROR, STATUS_REQUEST, STATUS_READY, STATUS_BUSY = 1, 8, 0x40, 0x80
"""Bits of the status. Source: ATA/ATAPI-6, 7.15. MASTER_STATUS: 1 while DMA is under way."""
ALL_ONES = (1 << WORD_BITS) - 1


class Transfer(Enum):
    """How a device's command moves data."""

    NONE = "none"
    PIO_IN = "PIO in"
    PIO_OUT = "PIO out"
    DMA_IN = "DMA in"
    DMA_OUT = "DMA out"
    ERASE = "erase"
    """The sectors become zeros."""


class Handling(Enum):
    """What the mediator does with a command."""

    MEDIATED = "mediated"
    PASSED = "passed"
    """No data: it is issued, and that's all."""
    THROUGH = "through"
    """It is issued, if the device isn't busy, and its data pass unseen."""
    QUEUED = "queued"
    """It isn't issued: what it moves can't be followed."""
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Command:
    """One command of a storage device."""

    opcode: int
    name: str
    transfer: Transfer
    handling: Handling
    has_own_data: bool = False
    """Whether what it moves by PIO isn't on the medium: logs, identification."""


COMMANDS: dict[int, Command] = {
    row.opcode: row
    for row in (
        Command(0x20, "read_sectors", Transfer.PIO_IN, Handling.MEDIATED),
        Command(0x30, "write_sectors", Transfer.PIO_OUT, Handling.MEDIATED),
        Command(0xC8, "read_dma", Transfer.DMA_IN, Handling.MEDIATED),
        Command(0xCA, "write_dma", Transfer.DMA_OUT, Handling.MEDIATED),
        Command(0x24, "read_sectors_ext", Transfer.PIO_IN, Handling.MEDIATED),
        Command(0x34, "write_sectors_ext", Transfer.PIO_OUT, Handling.MEDIATED),
        Command(0x25, "read_dma_ext", Transfer.DMA_IN, Handling.MEDIATED),
        Command(0x35, "write_dma_ext", Transfer.DMA_OUT, Handling.MEDIATED),
        Command(0xE7, "flush_cache", Transfer.NONE, Handling.PASSED),
        Command(0xEF, "set_features", Transfer.NONE, Handling.PASSED),
        Command(0xB0, "smart", Transfer.PIO_IN, Handling.THROUGH, has_own_data=True),
        Command(0x2F, "read_log", Transfer.PIO_IN, Handling.THROUGH, has_own_data=True),
        Command(0x06, "trim", Transfer.ERASE, Handling.THROUGH),
        Command(0x60, "read_queued", Transfer.DMA_IN, Handling.QUEUED),
        Command(0x61, "write_queued", Transfer.DMA_OUT, Handling.QUEUED),
        Command(0xA0, "packet", Transfer.PIO_OUT, Handling.QUEUED),
        Command(0x80, "vendor_write", Transfer.PIO_OUT, Handling.UNKNOWN),
        Command(0x81, "vendor_erase", Transfer.ERASE, Handling.UNKNOWN),
        Command(0x82, "vendor_dma", Transfer.DMA_OUT, Handling.UNKNOWN),
    )
}
"""What the device does, and the mediator. Source: ATA/ATAPI-6 for the opcodes; SYSTEMS 4.2 for the handling. Vendor's
commands stand for what the mediator's table lacks. Any other opcode does nothing at the device, and is UNKNOWN too.
"""


class Rule(IntEnum):
    """What the policy of a medium says of a sector."""

    PLAIN = 0
    ENCRYPTED = 1
    DENIED = 2
    FAULTY = 3
    """Fault injection: a command to it fails."""


class ChannelState(IntEnum):
    """What the mediator of a storage device expects. Source: BitVisor, drivers/ata."""

    READY = 0
    PIO_IN = 1
    PIO_OUT = 2
    DMA_READY = 3
    """A command for DMA was issued; the bus master isn't started."""
    COPYING_OUT = 4
    """Before a write: from the guest's buffers to the shadow buffer."""
    MOVING = 5
    """The device moves data from or to the shadow buffer."""
    COPYING_IN = 6
    """After a read: from the shadow buffer to the guest's buffers."""
    THROUGH = 7
    ERROR = 8


class Phase(IntEnum):
    """Of a medium's deployment."""

    NONE = 0
    DEPLOY = 1
    GONE = 2
    """All is deployed, and the VMM has left the device to the guest."""


class Stage(IntEnum):
    """Of moving the running guest to another machine."""

    NONE = 0
    ROUNDS = 1
    """Frames are sent while the guest runs."""
    STOPPED = 2
    """The last round."""
    HANDED_OVER = 3
    """The guest runs there."""


class Msr(IntEnum):
    """The model-specific registers that the VMM looks at. Source: Intel SDM vol. 4, table 2-2."""

    APIC_BASE = 0x1B
    MICROCODE = 0x79


class Actor(Enum):
    """Who performs an operation."""

    GUEST = "guest"
    DEVICE = "device"
    VMM = "vmm"
    EXTENSION = "extension"


class OperandKind(Enum):
    """What an operand is; it bounds what may be drawn."""

    VCPU = "vcpu"
    SLOT = "slot"
    FRAME = "frame"
    LEVEL = "level"
    FLAG = "flag"
    OFFSET = "offset"
    """Of a block in a page."""
    ADDRESS = "address"
    WORD = "word"
    DEVICE = "device"
    SPACE = "space"
    NUMBER = "number"
    """Of a port, or of a register in memory."""
    WINDOW = "window"
    MSR = "msr"
    LBA = "lba"
    EXTENSION = "extension"


@dataclass(frozen=True)
class Operation:
    """One operation of the machine: who performs it, what it takes, how it may end other than well."""

    name: str
    actor: Actor
    operands: tuple[tuple[str, OperandKind], ...]
    summary: str
    source: str
    refusals: tuple[Code, ...] = ()


_VCPU, _SLOT, _OFFSET = ("vcpu", OperandKind.VCPU), ("slot", OperandKind.SLOT), ("offset", OperandKind.OFFSET)
_SPACE, _NUMBER, _VALUE = ("space", OperandKind.SPACE), ("number", OperandKind.NUMBER), ("value", OperandKind.WORD)
_DEVICE, _ADDRESS, _LBA = ("device", OperandKind.DEVICE), ("address", OperandKind.ADDRESS), ("lba", OperandKind.LBA)
_FRAME, _EXTENSION = ("frame", OperandKind.FRAME), ("extension", OperandKind.EXTENSION)
_BITVISOR, _MODEL, _BMCAST = "BitVisor, public code", "the model's: spec/vmm.md", "BMcast abstract (ASPLOS 2015)"
_ENDED = (Code.RANGE, Code.STOPPED)

OPERATIONS: dict[str, Operation] = {
    row.name: row
    for row in (
        # -- the guest
        Operation(
            "map",
            Actor.GUEST,
            (_VCPU, _SLOT, _FRAME, ("level", OperandKind.LEVEL), ("writable", OperandKind.FLAG)),
            "use a translation to a page, of 4 KiB, 2 MiB or 1 GiB, which the VMM fills in",
            f"{_BITVISOR}, cpu_mmu_spt.c",
            _ENDED,
        ),
        Operation("load", Actor.GUEST, (_VCPU, _SLOT, _OFFSET), "read a block", _MODEL, (*_ENDED, Code.UNMAPPED)),
        Operation(
            "store",
            Actor.GUEST,
            (_VCPU, _SLOT, _OFFSET, _VALUE),
            "write a block",
            _MODEL,
            (*_ENDED, Code.UNMAPPED, Code.PANIC),
        ),
        Operation(
            "input",
            Actor.GUEST,
            (_VCPU, _SPACE, _NUMBER),
            "read a register",
            f"{_BITVISOR}, io_iopass.c",
            (*_ENDED, Code.BLOCKED),
        ),
        Operation(
            "output",
            Actor.GUEST,
            (_VCPU, _SPACE, _NUMBER, _VALUE),
            "write a register",
            f"{_BITVISOR}, io_iopass.c, drivers/ata",
            (*_ENDED, Code.BLOCKED, Code.FAILED, Code.PANIC),
        ),
        Operation(
            "move_window",
            Actor.GUEST,
            (_VCPU, _DEVICE, _SPACE, ("window", OperandKind.WINDOW)),
            "move a device's registers (PCI configuration, BAR)",
            "BitVisor, driver guide",
            (*_ENDED, Code.CONFLICT, Code.BLOCKED),
        ),
        Operation(
            "write_msr",
            Actor.GUEST,
            (_VCPU, ("msr", OperandKind.MSR), _VALUE),
            "write a model-specific register",
            f"{_BITVISOR}, msr_pass.c",
            (*_ENDED, Code.SWALLOWED, Code.PANIC),
        ),
        Operation("enter_vmx", Actor.GUEST, (_VCPU,), "become a hypervisor oneself", _BITVISOR, (*_ENDED, Code.GENERAL)),
        Operation("init", Actor.GUEST, (_VCPU,), "start a processor anew (INIT, SIPI)", _BITVISOR, _ENDED),
        Operation("sleep", Actor.GUEST, (_VCPU,), "sleep (ACPI S3), and wake", _BITVISOR, _ENDED),
        # -- devices
        Operation("dma_read", Actor.DEVICE, (_DEVICE, _ADDRESS), "read a block of memory", _MODEL, (*_ENDED, Code.IOMMU)),
        Operation(
            "dma_write", Actor.DEVICE, (_DEVICE, _ADDRESS, _VALUE), "write a block of memory", _MODEL, (*_ENDED, Code.IOMMU)
        ),
        Operation(
            "transfer",
            Actor.DEVICE,
            (_DEVICE,),
            "move the next block of the DMA command under way between medium and memory",
            "SFF-8038i",
            (*_ENDED, Code.NOTHING, Code.IOMMU),
        ),
        # -- the VMM
        Operation(
            "mediate",
            Actor.VMM,
            (_DEVICE,),
            "copy the next block between the guest's buffers and the shadow buffer",
            f"{_BITVISOR}, drivers/ata",
            (*_ENDED, Code.NOTHING, Code.FAILED, Code.PANIC),
        ),
        Operation("fetch", Actor.VMM, (_DEVICE, _LBA), "fetch a sector of the image", _BMCAST, (*_ENDED, Code.NOTHING)),
        Operation("deploy", Actor.VMM, (_DEVICE,), "write the sector that was fetched", _BMCAST, (*_ENDED, Code.NOTHING)),
        Operation(
            "leave",
            Actor.VMM,
            (_DEVICE,),
            "when all is deployed, leave the device to the guest",
            _BMCAST,
            (*_ENDED, Code.NOTHING, Code.NOT_YET),
        ),
        Operation("begin_move", Actor.VMM, (), "begin to send the guest's memory", _MODEL, (*_ENDED, Code.NOTHING)),
        Operation("send", Actor.VMM, (_FRAME,), "send a frame", _MODEL, (*_ENDED, Code.NOTHING)),
        Operation(
            "stop",
            Actor.VMM,
            (),
            "stop the guest and its devices, for the last round",
            _MODEL,
            (*_ENDED, Code.NOTHING, Code.NOT_YET),
        ),
        Operation(
            "send_next",
            Actor.VMM,
            (),
            "in the last round, send the next frame, unless it is clean",
            _MODEL,
            (*_ENDED, Code.NOTHING),
        ),
        Operation("hand_over", Actor.VMM, (), "let the guest run there", _MODEL, (*_ENDED, Code.NOTHING, Code.NOT_YET)),
        # -- extensions
        Operation(
            "extension_read",
            Actor.EXTENSION,
            (_EXTENSION, _ADDRESS),
            "read a block of memory",
            _MODEL,
            (*_ENDED, Code.CONFINED),
        ),
        Operation(
            "extension_write",
            Actor.EXTENSION,
            (_EXTENSION, _ADDRESS, _VALUE),
            "write a block of memory",
            _MODEL,
            (*_ENDED, Code.CONFINED),
        ),
    )
}
