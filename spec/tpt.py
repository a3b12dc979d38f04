"""What is true of translation pass-through by definition: its operations, how they refuse, faults, limits.

The exact rule of each operation is in spec/tpt.md. The invariants, T1 to T11 and T13, are in `spec.tpt_invariants`.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum

MAX_FRAMES, MAX_VMS, MAX_VCPUS, MAX_DEVICES = 1 << 20, 8, 8, 4
"""How large a system may be; a system has as many frames, vCPUs and devices as it is made with."""

FIRST_ASID, ASIDS = 1, 16
"""ASIDs of guests are from 1 and less than 16: 0 is the host's. Source: AMD APM vol. 2, 15.16; the limit is ours."""

TLB_SLOTS, CACHE_SLOTS = 8, 4
"""How many translations, and entries of page-walk caches, a vCPU holds; slots are used in turn. A modelling choice."""

SWAP_SLOTS = 4


class Code(IntEnum):
    """Why an operation is refused; 0: it isn't. A refused operation changes nothing."""

    OK = 0
    RANGE = 1
    """There is no such frame, guest frame, word, vCPU, ASID, slot or device."""
    NO_VM = 2
    """The VM doesn't exist, or the vCPU runs for none."""
    TAKEN = 3
    """The VM, guest frame or swap slot is in use, the region is merged already."""
    NOT_FREE = 4
    NOT_OWNED = 5
    """The frame isn't a VM's (`release`: not the host's)."""
    NOT_RECLAIMED = 6
    """The frame holds no content of a VM from which it was reclaimed."""
    PENDING = 7
    """A vCPU hasn't acknowledged yet."""
    UNCLEAN = 8
    LARGE = 9
    """The frame is under a large tag."""
    NOT_UNIFORM = 10
    HOST_ONLY = 11
    NOTHING = 12
    """There is nothing to acknowledge, step, split or swap in."""


class FaultKind(IntEnum):
    """Why an access doesn't complete."""

    NONE = 0
    PAGE = 1
    """#PF, delivered to the guest, with an error code."""
    TAG = 2
    """A tag isn't the VM's: an exit to the host, which learns the frame."""
    NESTED = 3
    """A guest frame isn't mapped, or not for this: an exit to the host, which learns the guest frame."""
    GENERAL = 4
    """#GP: an address that isn't canonical, a reserved bit in CR3."""
    ALIGNMENT = 5
    """#AC: the model's accesses are of aligned words."""
    IOMMU = 6
    """A device may not access a frame."""


class Actor(Enum):
    """Who performs an operation."""

    HOST = "host"
    GUEST = "guest"
    PROCESSOR = "processor"
    """Of its own accord: what hardware may do at any time."""
    DEVICE = "device"


class OperandKind(Enum):
    """What an operand is; it bounds what may be drawn."""

    VCPU = "vcpu"
    VM = "vm"
    FRAME = "frame"
    """A frame of the machine; of a plain VM's guest and its devices, a guest frame."""
    GUEST_FRAME = "guest frame"
    INDEX = "index"
    """A word of a frame, or an entry of a table: less than 512."""
    WORD = "word"
    ADDRESS = "address"
    ACCESS = "access"
    USER = "user"
    """1: a user-mode access."""
    ASID = "asid"
    SLOT = "slot"
    SWAP_SLOT = "swap slot"
    DEVICE = "device"
    MODE = "mode"
    """TPT, for an enlightened guest, or NESTED, for a plain one."""
    LEVELS = "levels"


@dataclass(frozen=True)
class Operation:
    """One operation of the system: who performs it, what it takes, how it may end other than well."""

    name: str
    actor: Actor
    operands: tuple[tuple[str, OperandKind], ...]
    summary: str
    source: str
    refusals: tuple[Code, ...] = ()
    faults: tuple[FaultKind, ...] = ()


_VCPU, _VM, _FRAME = ("vcpu", OperandKind.VCPU), ("vm", OperandKind.VM), ("frame", OperandKind.FRAME)
_ADDRESS, _USER, _VALUE = ("address", OperandKind.ADDRESS), ("user", OperandKind.USER), ("value", OperandKind.WORD)
_INDEX, _GUEST_FRAME, _DEVICE = (
    ("index", OperandKind.INDEX),
    ("guest_frame", OperandKind.GUEST_FRAME),
    ("device", OperandKind.DEVICE),
)
_SWAP = ("swap_slot", OperandKind.SWAP_SLOT)
_WALK = (FaultKind.PAGE, FaultKind.TAG, FaultKind.NESTED)
_ACCESS = (FaultKind.GENERAL, FaultKind.ALIGNMENT, *_WALK)
_ADMISSION = (Code.NOT_FREE, Code.PENDING, Code.UNCLEAN, Code.LARGE, Code.TAKEN)
_SDM, _APM, _MODEL = "Intel SDM vol. 3A", "AMD APM vol. 2", "the model's: spec/tpt.md"

OPERATIONS: dict[str, Operation] = {
    row.name: row
    for row in (
        # -- guests
        Operation(
            "load",
            Actor.GUEST,
            (_VCPU, _ADDRESS, _USER),
            "read the word at a virtual address",
            f"{_SDM}, 4.6",
            (Code.RANGE, Code.NO_VM),
            _ACCESS,
        ),
        Operation(
            "store",
            Actor.GUEST,
            (_VCPU, _ADDRESS, _VALUE, _USER),
            "write the word at a virtual address",
            f"{_SDM}, 4.6",
            (Code.RANGE, Code.NO_VM),
            _ACCESS,
        ),
        Operation(
            "fetch",
            Actor.GUEST,
            (_VCPU, _ADDRESS, _USER),
            "read the word at a virtual address as an instruction",
            f"{_SDM}, 4.6",
            (Code.RANGE, Code.NO_VM),
            _ACCESS,
        ),
        Operation(
            "write_pte",
            Actor.GUEST,
            (_VCPU, _FRAME, _INDEX, _VALUE),
            "write a word of a frame as if through a mapping of the guest's own: a table's entry, or anything",
            "TPT abstract: the guest controls its tables; as an operation, the model's",
            (Code.RANGE, Code.NO_VM),
            (FaultKind.TAG, FaultKind.NESTED),
        ),
        Operation(
            "set_cr3",
            Actor.GUEST,
            (_VCPU, _VALUE),
            "load CR3: another root, and what isn't global is forgotten",
            f"{_SDM}, 4.10.4.1",
            (Code.RANGE, Code.NO_VM),
            (FaultKind.GENERAL,),
        ),
        Operation(
            "invlpg",
            Actor.GUEST,
            (_VCPU, _ADDRESS),
            "forget the translations of an address, and all of the page-walk caches",
            f"{_SDM}, 4.10.4.1",
            (Code.RANGE, Code.NO_VM),
        ),
        Operation(
            "flush",
            Actor.GUEST,
            (_VCPU,),
            "forget everything, global translations too (CR4.PGE toggled)",
            f"{_SDM}, 4.10.4.1",
            (Code.RANGE, Code.NO_VM),
        ),
        Operation(
            "set_tag",
            Actor.GUEST,
            (_VCPU, _FRAME),
            "try to make a frame one's own",
            f"{_APM}, 15.36: RMPUPDATE is the host's",
            (Code.RANGE, Code.NO_VM, Code.HOST_ONLY),
        ),
        # -- processors
        Operation(
            "begin_walk",
            Actor.PROCESSOR,
            (_VCPU, _ADDRESS, ("access", OperandKind.ACCESS), _USER),
            "start to translate an address, for a later access or in vain",
            f"{_SDM}, 4.10.2.3: translations may be cached ahead",
            (Code.RANGE, Code.NO_VM),
            (FaultKind.GENERAL,),
        ),
        Operation(
            "step_walk",
            Actor.PROCESSOR,
            (_VCPU,),
            "one memory reference of the walk under way, or caching its result",
            _MODEL,
            (Code.RANGE, Code.NO_VM, Code.NOTHING),
            _WALK,
        ),
        Operation(
            "evict",
            Actor.PROCESSOR,
            (_VCPU, ("slot", OperandKind.SLOT)),
            "forget what is in a slot of the TLB, or, behind those, of the page-walk caches",
            f"{_SDM}, 4.10.2.3: entries may be evicted at any time",
            (Code.RANGE,),
        ),
        # -- the host
        Operation(
            "create",
            Actor.HOST,
            (_VM, ("mode", OperandKind.MODE), ("levels", OperandKind.LEVELS)),
            "make a VM that owns nothing yet",
            _MODEL,
            (Code.RANGE, Code.TAKEN),
        ),
        Operation(
            "run",
            Actor.HOST,
            (_VCPU, _VM, ("asid", OperandKind.ASID), ("cr3", OperandKind.WORD)),
            "let a vCPU run for a VM, under an ASID, with a CR3",
            f"{_APM}, 15.5 and 15.16",
            (Code.RANGE, Code.NO_VM),
        ),
        Operation(
            "assign",
            Actor.HOST,
            (_FRAME, _VM, _GUEST_FRAME),
            "give a frame to a VM, as one of its guest frames",
            "TPT abstract: the host enforces isolation",
            (Code.RANGE, Code.NO_VM, *_ADMISSION),
        ),
        Operation(
            "reclaim",
            Actor.HOST,
            (_FRAME,),
            "take a frame from its VM, and ask all vCPUs to forget it",
            _MODEL,
            (Code.RANGE, Code.NOT_OWNED, Code.PENDING, Code.LARGE),
        ),
        Operation(
            "acknowledge",
            Actor.HOST,
            (_VCPU, _FRAME),
            "a vCPU, made to exit, forgets a reclaimed frame and says so",
            _MODEL,
            (Code.RANGE, Code.NOTHING),
        ),
        Operation("scrub", Actor.HOST, (_FRAME,), "clear a frame", _MODEL, (Code.RANGE, Code.NOT_FREE, Code.PENDING)),
        Operation(
            "claim",
            Actor.HOST,
            (_FRAME,),
            "take a free frame for the host",
            _MODEL,
            (Code.RANGE, Code.NOT_FREE, Code.PENDING, Code.LARGE),
        ),
        Operation(
            "release", Actor.HOST, (_FRAME,), "let go of one of the host's frames", _MODEL, (Code.RANGE, Code.NOT_OWNED)
        ),
        Operation(
            "migrate",
            Actor.HOST,
            (("source", OperandKind.FRAME), ("target", OperandKind.FRAME)),
            "put the content of a reclaimed frame into another one, which becomes its VM's",
            _MODEL,
            (Code.RANGE, Code.NOT_RECLAIMED, *_ADMISSION),
        ),
        Operation(
            "swap_out",
            Actor.HOST,
            (_FRAME, _SWAP),
            "put the content of a reclaimed frame away",
            _MODEL,
            (Code.RANGE, Code.NOT_RECLAIMED, Code.PENDING, Code.TAKEN),
        ),
        Operation(
            "swap_in",
            Actor.HOST,
            (_FRAME, _SWAP),
            "bring content back, in a frame that becomes its VM's",
            _MODEL,
            (Code.RANGE, Code.NOTHING, *_ADMISSION),
        ),
        Operation(
            "split",
            Actor.HOST,
            (_FRAME,),
            "give each frame under a large tag its own",
            f"{_APM}, 15.36, PSMASH",
            (Code.RANGE, Code.NOTHING),
        ),
        Operation(
            "merge",
            Actor.HOST,
            (_FRAME,),
            "let one tag, that of the first, stand for 512 aligned frames",
            f"{_APM}, 15.36: entries of 2 MiB",
            (Code.RANGE, Code.NOT_OWNED, Code.TAKEN, Code.NOT_UNIFORM),
        ),
        Operation("attach", Actor.HOST, (_DEVICE, _VM), "give a device to a VM", _MODEL, (Code.RANGE, Code.NO_VM)),
        # -- devices
        Operation(
            "dma_read",
            Actor.DEVICE,
            (_DEVICE, _FRAME, _INDEX),
            "read a word of a frame",
            f"{_APM}, 15.36: the IOMMU obeys the tags",
            (Code.RANGE,),
            (FaultKind.IOMMU,),
        ),
        Operation(
            "dma_write",
            Actor.DEVICE,
            (_DEVICE, _FRAME, _INDEX, _VALUE),
            "write a word of a frame",
            f"{_APM}, 15.36: the IOMMU obeys the tags",
            (Code.RANGE,),
            (FaultKind.IOMMU,),
        ),
    )
}
