"""What is true of x86-64 paging by definition: fields of entries, levels, page sizes, error codes, modes, tags, counts.

Long mode with 4 or 5 levels, CR0.WP = 1 and EFER.NXE = 1; SMEP, SMAP, protection keys and PCIDs are off, and so are shadow
stacks. Sources: Intel SDM vol. 3A, chapter 4 (tables 4-14 to 4-20 of the 4- and 5-level formats, sections 4.6 to 4.8, 4.10);
AMD APM vol. 2, chapter 5, sections 15.25 (nested paging) and 15.36 (SEV-SNP, the reverse-map table).
"""

from enum import IntEnum, IntFlag

from capvisor.spec.formats import Field

FRAME_SHIFT, WORD_BYTES, WORDS_PER_FRAME = 12, 8, 512
"""A frame is 4 KiB: 512 words of 64 bits, as many as a table has entries."""

PHYSICAL_BITS = 46
"""MAXPHYADDR of the modelled machine; the architecture's limit is 52. Bits 51:46 of an entry are reserved (SDM 4.5)."""

FRAME_NUMBERS = 1 << PHYSICAL_BITS - FRAME_SHIFT
"""Numbers of frames, a guest's too, are less."""


class Entry(IntFlag):
    """Bits of a page-table entry, the same at each level where they have a meaning. Source: Intel SDM vol. 3A, 4.5."""

    P = 1 << 0
    RW = 1 << 1
    US = 1 << 2
    PWT = 1 << 3
    PCD = 1 << 4
    A = 1 << 5
    D = 1 << 6
    PS = 1 << 7
    """In PDPTEs and PDEs: the entry maps a page. Reserved in PML4Es and PML5Es; the PAT bit in PTEs, ignored here."""
    G = 1 << 8
    NX = 1 << 63


FRAME_FIELD = Field(FRAME_SHIFT, 52 - FRAME_SHIFT)
"""Where an entry, and CR3, names a frame: bits 51:12."""

LEVEL_NAMES = {1: "PTE", 2: "PDE", 3: "PDPTE", 4: "PML4E", 5: "PML5E"}
"""The entries of the tables of a level; level 1 is the last one that a walk may reach."""

LEVELS = (4, 5)
INDEX_BITS = 9

PAGE_LEVELS = {"4K": 1, "2M": 2, "1G": 3}
"""The level whose entries map pages of a size."""

LARGEST_LEAF = 3


def index_shift(level: int) -> int:
    """The lowest bit of a virtual address that indexes tables of a level: 12, 21, 30, 39, 48."""
    return FRAME_SHIFT + INDEX_BITS * (level - 1)


def frames_of(level: int) -> int:
    """How many frames a page has that an entry of a level maps: 1, 512 or 262144."""
    return 1 << INDEX_BITS * (level - 1)


def address_bits(levels: int) -> int:
    """How many bits of a virtual address are translated: 48 or 57. The others must be equal to the highest of these."""
    return FRAME_SHIFT + INDEX_BITS * levels


RESERVED_PHYSICAL = (1 << 52) - (1 << PHYSICAL_BITS)
"""Reserved in every present entry. Source: Intel SDM vol. 3A, 4.5."""

RESERVED_CR3 = (1 << 64) - (1 << PHYSICAL_BITS)
"""Reserved in CR3: loading a value that has one set is a general-protection fault. Source: Intel SDM vol. 3A, 4.5, 2.5."""


def reserved(level: int, is_leaf: bool) -> int:
    """The bits that must be zero in a present entry of a level, by whether its PS bit says that it maps a page.

    A large page's base is aligned, but for the PAT bit (12). Source: Intel SDM vol. 3A, tables 4-15 and 4-17.
    """
    if level > LARGEST_LEAF:
        return RESERVED_PHYSICAL | Entry.PS.value
    if level == 1 or not is_leaf:
        return RESERVED_PHYSICAL
    return RESERVED_PHYSICAL | (1 << index_shift(level)) - (1 << FRAME_SHIFT + 1)


class Access(IntEnum):
    """What an access is."""

    READ = 0
    WRITE = 1
    FETCH = 2


class ErrorCode(IntFlag):
    """What the error code of a page fault says. Source: Intel SDM vol. 3A, 4.7."""

    P = 1 << 0
    """The entries were present: a right was missing, or a reserved bit was set."""
    WR = 1 << 1
    US = 1 << 2
    RSVD = 1 << 3
    ID = 1 << 4


class Mode(IntEnum):
    """How a guest's addresses become the machine's."""

    NATIVE = 0
    """No virtual machine: the tables name the machine's frames, and nothing checks them."""
    NESTED = 1
    """The tables name guest frames; the host's nested tables name the machine's."""
    SHADOW = 2
    """The tables name guest frames; the processor walks others, which the host derives."""
    TPT = 3
    """The tables name the machine's frames; each frame that is used is looked up in the tags."""


FREE, HOST, FIRST_VM = 0, 1, 2
"""Tags: owned by nobody, by the host; the VM n has the tag FIRST_VM + n, which is its number in operations too."""


def walk_references(mode: Mode, levels: int, nested_levels: int = 4) -> int:
    """The most page-table words that a walk reads: 4 or 5; nested, 24, or 35 where both have five levels.

    Accessed and dirty bits are set by locked updates of words read before, and aren't counted again.
    Source: each of the guest's tables and the page itself take a nested walk, (n + 1)(m + 1) - 1 (AMD APM vol. 2, 15.25).
    """
    return (levels + 1) * (nested_levels + 1) - 1 if mode is Mode.NESTED else levels


def walk_lookups(mode: Mode, levels: int) -> int:
    """The most tags that a walk looks up for what it reads: one a table and one for the page.

    An update of an accessed or dirty bit looks its table's tag up again.
    """
    return levels + 1 if mode is Mode.TPT else 0
