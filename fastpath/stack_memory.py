"""The one memory of many machines with all four systems: the fast twin of `model.stack_memory`, and of the views there.

A frame is one row: its words, and behind them the tags of its granules, 64 in a word as the table of tags has them. So
whoever clears or copies rows does so with their tags.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from capvisor.fastpath.machine import Indices
from capvisor.fastpath.memory import MemoryBlock
from capvisor.fastpath.shared import SharedMemory
from capvisor.fastpath.workspace import Flags, Words, Workspace
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.paging import WORDS_PER_FRAME
from capvisor.spec.stack import (
    GRANULES_PER_FRAME,
    TAGS_PER_WORD,
    WORDS_PER_BLOCK,
    WORDS_PER_GRANULE,
    tag_table_frames,
)
from capvisor.spec.vmm import BLOCK_SHIFT

ROW_WORDS = WORDS_PER_FRAME + GRANULES_PER_FRAME // TAGS_PER_WORD
"""Of a frame: words, and words of tags."""

_BLOCK = np.arange(WORDS_PER_BLOCK)
_ROW = np.arange(ROW_WORDS)
_ONE = np.uint64(1)


class FrameRows:
    """The frames of all lanes, uint64[lanes, frames, ROW_WORDS]; what is written to the tables of tags changes these.

    Source: spec/stack.md, 1.
    """

    def __init__(self, lanes: int, frames: int, first_table: int, owners: Words) -> None:
        """`owners` is uint64[lanes, frames]: whose each is."""
        self.array = np.zeros((lanes, frames, ROW_WORDS), np.uint64)
        self.shape, self.ndim = self.array.shape, self.array.ndim
        self.written = np.zeros((lanes, frames), np.bool_)
        """Frames that were written to since monitors' views were brought up to date last."""
        self._first, self._owners = first_table, owners
        self._tag_frames, owner_frames = tag_table_frames(frames)
        self._behind = first_table + self._tag_frames + owner_frames

    def is_table(self, frames: NDArray[Any]) -> Flags:
        """Whether frames are of the tables of tags."""
        found: Flags = (frames >= self._first) & (frames < self._behind)
        return found

    def __getitem__(self, place: Any) -> Words:
        found: Words = self.array[place]
        return found

    def __setitem__(self, place: Any, values: Any) -> None:
        lanes, frames = place[:2]
        self.written[lanes, frames] = True
        if not self.is_table(frames).any():
            self.array[place] = values
            return
        if len(place) == 2:
            lanes, frames, place = lanes[:, None], frames[:, None], (lanes, frames, _ROW)
        flat = [each.ravel() for each in np.broadcast_arrays(lanes, frames, place[2], np.asarray(values, np.uint64))]
        in_table = self.is_table(flat[1])
        lanes, frames, words, values = (each[~in_table] for each in flat)
        self.array[lanes, frames, words] = values
        for row in zip(*(each[in_table].tolist() for each in flat), strict=True):
            self._write_table(*row)

    def _write_table(self, lane: int, frame: int, word: int, value: int) -> None:
        if word >= WORDS_PER_FRAME:
            return
        position = (frame - self._first) * WORDS_PER_FRAME + word
        frames = self.shape[1]
        if frame >= self._first + self._tag_frames:
            owned = position - self._tag_frames * WORDS_PER_FRAME
            if owned < frames:
                self._owners[lane, owned] = value
            return
        tagged, number = divmod(position, ROW_WORDS - WORDS_PER_FRAME)
        if tagged < frames and not self.is_table(np.array([tagged])).any():
            self.array[lane, tagged, WORDS_PER_FRAME + number] = value
            self.written[lane, tagged] = True


def write_word(rows: Any, lanes: Indices, frames: Indices, index: Indices, values: Words, *, keeps_tags: bool) -> None:
    """Write words, whose granules lose their tags unless these are kept."""
    rows[lanes, frames, index] = values
    if not keeps_tags:
        granule = index // WORDS_PER_GRANULE
        at = WORDS_PER_FRAME + granule // TAGS_PER_WORD
        bit = _ONE << (granule % TAGS_PER_WORD).astype(np.uint64)
        rows[lanes, frames, at] = rows[lanes, frames, at] & ~bit


class Blocks:
    """The VMM's view: blocks by lane and address, known by their first words. To write one clears the rest, and tags."""

    def __init__(self, system: Any) -> None:
        """`system` has the rows of frames, `words`, where whoever watches them may have put others."""
        self._system, self.keeps_tags = system, False
        lanes, frames, _words = system.words.shape
        self.shape, self.ndim = (lanes, frames << BLOCK_SHIFT), 2

    def __getitem__(self, place: Any) -> Words:
        if not isinstance(place, tuple):
            rows: Words = self._system.words[place]
            return rows[..., :WORDS_PER_FRAME:WORDS_PER_BLOCK].reshape(*rows.shape[:-2], -1)
        lanes, address = place
        found: Words = self._system.words[lanes, address >> BLOCK_SHIFT, self._first(address)]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Words:
        """All blocks of all lanes: a copy."""
        return np.array(self[:], dtype)

    @staticmethod
    def _first(address: Indices) -> Indices:
        first: Indices = (address & (1 << BLOCK_SHIFT) - 1) * WORDS_PER_BLOCK
        return first

    def __setitem__(self, place: Any, values: Any) -> None:
        lanes, address = place
        if not len(lanes):
            return
        rows, frames, first = self._system.words, address >> BLOCK_SHIFT, self._first(address)
        whole = np.zeros((len(lanes), WORDS_PER_BLOCK), np.uint64)
        whole[:, 0] = values
        rows[lanes[:, None], frames[:, None], first[:, None] + _BLOCK] = whole
        if not self.keeps_tags:
            granule = first // WORDS_PER_GRANULE
            at, low = WORDS_PER_FRAME + granule // TAGS_PER_WORD, granule % TAGS_PER_WORD
            count = WORDS_PER_BLOCK // WORDS_PER_GRANULE
            mask = np.uint64((1 << count) - 1) << low.astype(np.uint64)
            rows[lanes, frames, at] = rows[lanes, frames, at] & ~mask


def unpacked(words: Words) -> Flags:
    """Words of tags, uint64[n, words], as flags, bool[n, granules]."""
    little = np.ascontiguousarray(words).astype("<u8").view(np.uint8)
    return np.unpackbits(little, axis=1, bitorder="little").view(np.bool_)


def packed(flags: Flags) -> Words:
    """The reverse."""
    found: Words = np.packbits(flags, axis=1, bitorder="little").view("<u8").astype(np.uint64)
    return found


# -- a monitor's memory ----------------------------------------------------------------------------------------------------


class PagedMemory(SharedMemory):
    """A monitor's view: what its pages hold, wherever they are. Says what is written, and which pages aren't there."""

    def __init__(self, fmt: CapabilityFormat, base: int, size_bytes: int, lanes: int) -> None:
        super().__init__(fmt, base, size_bytes, lanes)
        self.pages = -(-self.granules // GRANULES_PER_FRAME)
        self.granules_written: list[tuple[Indices, Indices]] = []
        """Lanes and granules that instructions have written."""
        self.absent = np.zeros((lanes, self.pages), np.bool_)
        self.met = np.zeros(lanes, np.int64)
        """The page that wasn't there when it was accessed, counted from 1; 0: none."""

    def selection(self, lanes: NDArray[np.int64]) -> MemoryBlock:
        own = lanes % self._lanes
        first = own.view(np.uint64) * np.uint64(self.tags.shape[1])
        return _PagedBlock(self, self.tags, self.halves, first, own)

    def meet(self, lanes: Indices, address: Words) -> None:
        """Note accesses to pages that aren't there."""
        if not self.absent.any():
            return
        index = (address - np.uint64(self.base) >> np.uint64(self.format.granule_shift)).astype(np.int64)
        page = np.clip(index, 0, self.granules - 1) // GRANULES_PER_FRAME
        first = self.absent[lanes, page] & (self.met[lanes] == 0)
        self.met[lanes[first]] = page[first] + 1


class _PagedBlock(MemoryBlock):
    """The memory of some lanes, which says what is accessed."""

    def __init__(self, memory: PagedMemory, tags: Flags, halves: Words, first: Words, lanes: Indices) -> None:
        super().__init__(memory, tags, halves, first)
        self._memory, self._lanes = memory, lanes

    def read_granule(self, address: Words, ws: Workspace, tag: Flags, upper: Words, lower: Words) -> None:
        self._memory.meet(self._lanes, address)
        super().read_granule(address, ws, tag, upper, lower)

    def read(self, address: Words, size_bytes: int, ws: Workspace, out: Words) -> None:
        self._memory.meet(self._lanes, address)
        super().read(address, size_bytes, ws, out)

    def write_granule(self, address: Words, tag: Flags, upper: Words, lower: Words, ws: Workspace, where: Flags) -> None:
        self._note(address, where)
        super().write_granule(address, tag, upper, lower, ws, where)

    def write(self, address: Words, size_bytes: int, value: Words, ws: Workspace, where: Flags) -> None:
        self._note(address, where)
        self._note(address + np.uint64(size_bytes - 1), where)
        super().write(address, size_bytes, value, ws, where)

    def _note(self, address: Words, where: Flags) -> None:
        which = np.flatnonzero(where)
        lanes, address = self._lanes[which], address[which]
        self._memory.meet(lanes, address)
        index = address - np.uint64(self.base) >> np.uint64(self.format.granule_shift)
        self._memory.granules_written.append((lanes, index.astype(np.int64)))
