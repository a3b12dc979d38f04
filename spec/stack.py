"""What is true of the four systems together by definition: the layers, where each is, and what one owes the other.

A para-pass-through VMM has the machine. Its guest's kernel is the host of translation pass-through, whose VMs run on the
same processors. In a VM are the memory of an Intravisor and that of shared objects, in that VM's virtual memory. There is
one physical memory, of which each layer has a view. The exact rules are in spec/stack.md, what guards are in
`spec.stack_policy`, the invariants across layers in `spec.stack_invariants`.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum

from capvisor.spec.formats import FORMATS
from capvisor.spec.paging import FRAME_SHIFT, WORDS_PER_FRAME
from capvisor.spec.vmm import BLOCKS_PER_FRAME

FORMAT = FORMATS["cc128"]
"""A granule is two words of 64 bits, as tables of pages have them: so there is one memory."""

GRANULE_BITS = FRAME_SHIFT - FORMAT.granule_shift
GRANULES_PER_FRAME = 1 << GRANULE_BITS
WORDS_PER_GRANULE = WORDS_PER_FRAME // GRANULES_PER_FRAME
WORDS_PER_BLOCK = WORDS_PER_FRAME // BLOCKS_PER_FRAME

TAGS_PER_WORD = 64
"""A word of the table of capability tags has those of so many granules, the first one's in its lowest bit."""


def tag_table_frames(frames: int) -> tuple[int, int]:
    """How many frames the tables take: that of capability tags, a bit a granule, and that of owners, a word a frame."""
    tags = -(-frames * GRANULES_PER_FRAME // (TAGS_PER_WORD * WORDS_PER_FRAME))
    return tags, -(-frames // WORDS_PER_FRAME)


class Code(IntEnum):
    """Why the layers below don't let a step of a layer begin; the layer itself then has changed nothing."""

    OK = 0
    STOPPED = 1
    """The VMM has stopped the machine, or the guest runs elsewhere."""
    REGION = 2
    """The frame is the VMM's."""
    NOT_HOST = 3
    """A VM runs on the vCPU, and only the host does this."""
    NOT_OWNER = 4
    """The device whose register that is belongs to another."""
    BUSY = 5
    """A command of the device is under way."""
    NO_VCPU = 6
    """No vCPU runs for the VM that the monitor is in."""
    KEPT = 7
    """The frame holds memory of shared objects, which their base and its tenants alone write to."""
    MOVED = 8
    """A page of the monitor's memory isn't what it was: another content is there, or one that another page has."""


class Who(Enum):
    """For whom memory is accessed."""

    HOST = "host"
    """The kernel of the VMM's guest, its devices, and extensions."""
    BOOKS = "books"
    """The same kernel, in an operation of the host's: clearing and copying frames."""
    VM = "vm"
    """A VM's kernel, the walker on its vCPU, its devices."""
    CVM = "cvm"
    """A thread's instruction, for the cVM that it runs for."""
    TENANT = "tenant"
    """A thread's instruction, for its tenant."""
    MONITOR = "monitor"
    """The Intravisor or the base of shared objects."""


class Via(Enum):
    """By what memory is accessed; the first four as the VMM calls them."""

    CPU = "cpu"
    DEVICE = "device"
    MEDIATOR = "mediator"
    EXTENSION = "extension"
    BOOKS = "books"
    HART = "hart"


class LayerName(Enum):
    """The layers, from the machine up; the last two are side by side."""

    VMM = "vmm"
    TPT = "tpt"
    CVM = "cvm"
    ORC = "orc"


@dataclass(frozen=True)
class View:
    """How a layer is here, and how it sees the machine's memory."""

    layer: LayerName
    is_here: str
    sees: str


VIEWS: dict[str, View] = {
    row.layer.value: row
    for row in (
        View(
            LayerName.VMM,
            "below everything, with a region of frames of its own; its guest's kernel is the host of the next layer",
            "blocks of 64 words by the frame's number, known by its first word; to write one clears the others and tags",
        ),
        View(
            LayerName.TPT,
            "the host has all frames but the VMM's; the VMs run on the same processors, and their devices are the VMM's",
            "words by frame; to write one clears the tag of its granule",
        ),
        View(
            LayerName.CVM,
            "an Intravisor in the virtual memory of a VM, on that VM's vCPU",
            "granules by virtual address, each page of which the vCPU translates by the VM's own tables",
        ),
        View(
            LayerName.ORC,
            "the base of shared objects in the virtual memory of a VM, beside the Intravisor or elsewhere",
            "as the Intravisor does, at other addresses",
        ),
    )
}
"""What the layers are for themselves is in `spec.composition`."""


@dataclass(frozen=True)
class Coupling:
    """What a layer's own specification takes for granted, and only a guard of the stack gives it here."""

    guard: str
    layer: LayerName
    """Whose supposition it is."""
    supposes: str
    carries: tuple[str, ...]
    """Invariants that fall without the guard, all others on."""


COUPLINGS: dict[str, Coupling] = {
    row.guard: row
    for row in (
        Coupling(
            "region_untagged",
            LayerName.VMM,
            "All that its guest's processors do to memory goes through translations that it has filled in. VMs of "
            "translation pass-through fill in their own: what keeps them out of the region is that no tag on it is theirs.",
            ("S1", "P9"),
        ),
        Coupling(
            "tables_in_region",
            LayerName.TPT,
            "Tags change by the host's operations only; and of capabilities, by stores of capabilities only. The tables of "
            "both kinds are memory.",
            ("S3", "S8", "T6", "C1", "C6", "C7", "C17"),
        ),
        Coupling(
            "host_claims_first",
            LayerName.TPT,
            "A frame that is nobody's is written by nobody, so that a clean one stays clean. The VMM's guest, whose kernel "
            "the host is, and its devices may touch all frames.",
            ("S2", "T5"),
        ),
        Coupling(
            "mediator_checks_tags",
            LayerName.TPT,
            "All that a VM's device does to memory is looked up. Of a mediated one the VMM copies, whose specification "
            "knows one guest, to whom all buffers belong.",
            ("S2",),
        ),
        Coupling(
            "extensions_check_tags",
            LayerName.TPT,
            "The same, of extensions of the VMM, whose policy names frames, and not whose they are.",
            ("S2",),
        ),
        Coupling(
            "registers_by_owner",
            LayerName.VMM,
            "A mediated device has one user. Where VMs share the machine, another one could command it.",
            ("S7",),
        ),
        Coupling(
            "attach_idle",
            LayerName.VMM,
            "A mediated device has one user, also in time: a command goes on for whom it was started.",
            ("S7",),
        ),
        Coupling(
            "stop_reaches_all",
            LayerName.VMM,
            "Nothing of its guest runs once it has stopped it: what the guest hosts, too.",
            ("S9",),
        ),
        Coupling(
            "track_all_writes",
            LayerName.VMM,
            "While the machine's memory is moved, all writes of processors are seen. Those of VMs, cVMs and tenants don't "
            "go through the VMM's translations.",
            ("P13",),
        ),
        Coupling(
            "dma_clears_tags",
            LayerName.CVM,
            "What lies below makes no capability. Devices know no tags of granules.",
            ("S3", "C18"),
        ),
        Coupling(
            "pages_bound",
            LayerName.CVM,
            "No two addresses are one memory, and what is at an address is what was stored there. The VM's kernel maps "
            "pages, and the host moves what is in them.",
            ("S4", "S5", "S6", "C18"),
        ),
        Coupling(
            "resident_first",
            LayerName.CVM,
            "A sweep over memory meets every granule. What is put away isn't there to be swept, and comes back.",
            ("C1", "C6", "C8"),
        ),
        Coupling(
            "base_memory_kept",
            LayerName.ORC,
            "Nobody else writes to its memory: what was verified stays so. A VM's kernel and devices may write to all of "
            "the VM's frames.",
            ("O12",),
        ),
    )
}
"""A row for each guard of `spec.stack_policy`."""
