"""Page tables of x86-64 in long mode: entries, levels, page sizes, canonical addresses, error codes of page faults.

Source: Intel SDM vol. 3A (2023), chapter 4; AMD APM vol. 2 (rev. 3.40), sections 5.3 to 5.6. The prose is in spec/tpt.md.
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag

PAGE_SHIFT, INDEX_BITS, ENTRY_BYTES = 12, 9, 8
ENTRIES = 1 << INDEX_BITS
"""A frame is 4 KiB; a table is a frame of 512 entries of eight bytes. Source: SDM 4.5.4."""

PHYSICAL_BITS = 46
"""How wide physical addresses are (MAXPHYADDR, SDM 4.1.4): a modelling choice, as processors differ. At most 52."""

FRAME_BITS = PHYSICAL_BITS - PAGE_SHIFT
FRAMES = 1 << FRAME_BITS
WORDS = FRAMES * ENTRIES
"""How many frames, and words of eight bytes, a physical address can name."""


class Level(IntEnum):
    """The kinds of tables, by how many levels there are from there downwards. Source: SDM 4.5.4, tables 4-15 to 4-20."""

    PT = 1
    PD = 2
    PDPT = 3
    PML4 = 4
    PML5 = 5


LEVELS = (4, 5)
"""With how many levels translation works: CR4.LA57 clear or set. Source: SDM 4.5."""

PAGE_SIZES: dict[int, str] = {1: "4K", 2: "2M", 3: "1G"}
"""The levels whose entries may map a page, and the page's size."""


class Entry(IntFlag):
    """Bits of an entry. Source: SDM 4.5.4, tables 4-15 to 4-20; APM 5.4.1."""

    PRESENT = 1 << 0
    WRITABLE = 1 << 1
    USER = 1 << 2
    ACCESSED = 1 << 5
    DIRTY = 1 << 6
    PAGE_SIZE = 1 << 7
    """The entry maps a page, in a page directory or a page-directory-pointer table; PAT in a page table; reserved above."""
    GLOBAL = 1 << 8
    NO_EXECUTE = 1 << 63


class ErrorCode(IntFlag):
    """The error code of a page fault. Source: SDM 4.7, figure 4-12; APM 8.4.2."""

    PRESENT = 1 << 0
    """Clear where an entry isn't present; set where rights are missing or a reserved bit is set."""
    WRITE = 1 << 1
    USER = 1 << 2
    RESERVED = 1 << 3
    FETCH = 1 << 4


FRAME_FIELD = FRAMES - 1 << PAGE_SHIFT
"""Where an entry has the frame that it names."""

_ABOVE = (1 << 52) - (1 << PHYSICAL_BITS)
"""Bits 51:MAXPHYADDR are reserved. Bits 62:52 are ignored, as protection keys are off. Source: SDM 4.5.4."""


@dataclass(frozen=True)
class LevelRow:
    """What is particular to the entries of one level."""

    name: str
    may_map: bool
    """Whether an entry with PAGE_SIZE maps a page."""
    reserved: int
    """Bits that must be clear in an entry that refers to a table."""
    reserved_in_page: int
    """Bits that must be clear in an entry that maps a page."""


ENTRIES_OF: dict[int, LevelRow] = {
    Level.PT: LevelRow("PTE", True, _ABOVE, _ABOVE),
    Level.PD: LevelRow("PDE", True, _ABOVE, _ABOVE | (1 << 21) - (1 << 13)),
    Level.PDPT: LevelRow("PDPTE", True, _ABOVE, _ABOVE | (1 << 30) - (1 << 13)),
    Level.PML4: LevelRow("PML4E", False, _ABOVE | Entry.PAGE_SIZE, _ABOVE),
    Level.PML5: LevelRow("PML5E", False, _ABOVE | Entry.PAGE_SIZE, _ABOVE),
}
"""By level. Bit 12 of an entry that maps 2 MiB or 1 GiB is PAT; those above it, below the frame, are reserved."""


def page_shift(level: int) -> int:
    """How many bits of an address lie within what an entry of a level maps."""
    return PAGE_SHIFT + INDEX_BITS * (level - 1)


def page_frames(level: int) -> int:
    """How many frames a page has that an entry of a level maps: 1, 512 or 262144."""
    return 1 << INDEX_BITS * (level - 1)


def address_bits(levels: int) -> int:
    """How wide virtual addresses are: 48 or 57. Those above repeat the highest. Source: SDM vol. 1, 3.3.7.1."""
    return page_shift(levels + 1)


# -- how many references a walk makes --------------------------------------------------------------------------------------


def most_references(levels: int, *, is_nested: bool) -> int:
    """The most entries that a walk reads: 4 and 5; in two dimensions 24 and 35.

    In two dimensions each of the guest's tables, and the page itself, is found by a walk of the host's.
    Source: Bhargava et al., "Accelerating two-dimensional page walks for virtualized systems", ASPLOS 2008, section 2.
    """
    return (levels + 1) * (levels + 1) - 1 if is_nested else levels


def most_tag_lookups(levels: int) -> int:
    """The most tags that a walk under TPT looks up: of each table, and of the page. A modelling choice: spec/tpt.md."""
    return levels + 1
