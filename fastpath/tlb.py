"""TLBs and page-walk caches of the vCPUs of many systems: the fast twin of `model.tlb`.

`lanes`, `vcpus` and what belongs to them are arrays of one length, one element for each vCPU that takes part, no two of one
system. What is said of slots is bool[vCPUs, slots].
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from capvisor.fastpath.machine import Indices
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec.paging import FRAME_SHIFT, INDEX_BITS

_FLAG, _WORD = np.bool_, np.uint64
TRANSLATION = {
    "is_live": _FLAG,
    "asid": _WORD,
    "level": _WORD,
    "page": _WORD,
    "frame": _WORD,
    "rights": _WORD,
    "is_dirty": _FLAG,
    "is_global": _FLAG,
}
"""A translation of a page of a level: its first frame, and the rights as bits of an entry (`paging.EVERY_RIGHT`)."""
CACHED_TABLE = {"is_live": _FLAG, "asid": _WORD, "level": _WORD, "prefix": _WORD, "frame": _WORD, "rights": _WORD}
"""An entry of a page-walk cache: the table of a level for the addresses that begin so."""


def index_shifts(level: Words) -> Words:
    """The lowest bit of a virtual address that indexes tables of these levels."""
    shifts: Words = np.uint64(FRAME_SHIFT - INDEX_BITS) + np.uint64(INDEX_BITS) * level
    return shifts


def frames_of(level: Words) -> Words:
    """How many frames pages of these levels have."""
    frames: Words = np.uint64(1) << np.uint64(INDEX_BITS) * (level - np.uint64(1))
    return frames


class Slots:
    """A number of slots in each vCPU, used in turn; columns by name, [lanes, vCPUs, slots]. An empty slot is all zeros."""

    def __init__(self, lanes: int, vcpus: int, slots: int, columns: dict[str, Any]) -> None:
        self.count = slots
        self.columns: dict[str, NDArray[Any]] = {
            name: np.zeros((lanes, vcpus, slots), kind) for name, kind in columns.items()
        }
        self.next: Indices = np.zeros((lanes, vcpus), np.int64)

    def rows(self, name: str, lanes: Indices, vcpus: Indices) -> NDArray[Any]:
        """One column of all slots of some vCPUs, [vCPUs, slots]."""
        return self.columns[name][lanes, vcpus]

    def at(self, name: str, lanes: Indices, vcpus: Indices, slots: Indices) -> NDArray[Any]:
        """One column of one slot each."""
        return self.columns[name][lanes, vcpus, slots]

    def live(self, lanes: Indices, vcpus: Indices, asid: Words) -> Flags:
        """The slots in use under an ASID."""
        found: Flags = self.rows("is_live", lanes, vcpus) & (self.rows("asid", lanes, vcpus) == asid[:, None])
        return found

    def drop(self, lanes: Indices, vcpus: Indices, which: Flags) -> None:
        """Empty some slots."""
        who, slots = np.nonzero(which)
        if len(who):
            for column in self.columns.values():
                column[lanes[who], vcpus[who], slots] = 0

    def fill(self, lanes: Indices, vcpus: Indices, **values: Any) -> None:
        """Put something in the slots whose turn it is."""
        slots = self.next[lanes, vcpus]
        for name, column in values.items():
            self.columns[name][lanes, vcpus, slots] = column
        self.columns["is_live"][lanes, vcpus, slots] = True
        self.next[lanes, vcpus] = (slots + 1) % self.count


def matching(slots: Slots, lanes: Indices, vcpus: Indices, asid: Words, address: Words) -> Flags:
    """The translations of addresses, or the tables that walks of them could begin at."""
    level = slots.rows("level", lanes, vcpus)
    if "page" in slots.columns:
        named = slots.rows("page", lanes, vcpus) == address[:, None] >> index_shifts(level)
    else:
        named = slots.rows("prefix", lanes, vcpus) == address[:, None] >> index_shifts(level + np.uint64(1))
    found: Flags = slots.live(lanes, vcpus, asid) & named
    return found


def covering(tlb: Slots, lanes: Indices, vcpus: Indices, frame: Words, by_page: bool) -> Flags:
    """The translations, under any ASID, of pages that contain a frame, or else of pages that begin with it."""
    first = tlb.rows("frame", lanes, vcpus)
    # Frames before the page's first wrap round to large numbers. Dead slots have level 0.
    sizes = frames_of(np.maximum(tlb.rows("level", lanes, vcpus), np.uint64(1))) if by_page else np.uint64(1)
    found: Flags = tlb.rows("is_live", lanes, vcpus) & (frame[:, None] - first < sizes)
    return found


def deepest(caches: Slots, lanes: Indices, vcpus: Indices, found: Flags) -> Indices:
    """Of some slots, the one whose table is of the lowest level, the first of several."""
    level = caches.rows("level", lanes, vcpus)
    slots: Indices = np.where(found, level, np.uint64(255)).argmin(axis=1)
    return slots
