"""Tagged memory of many lanes: the fast twin of `model.memory`.

Each lane has its own granules. A granule's two halves lie next to each other, lower half first, so that a data access is a
matter of one half or two neighbouring ones.
"""

import numpy as np
from numpy.typing import NDArray

from capvisor.fastpath.workspace import Flags, Words, Workspace
from capvisor.spec.formats import CapabilityFormat

BYTES_PER_GRANULE = 2 * 8 + 1
"""What a granule of one lane takes on this machine: two uint64 and one bool, for every format."""


def gather(table: NDArray[np.generic], index: Words, out: NDArray[np.generic]) -> None:
    """out = table[index], element by element; an index outside the table gives some element of it."""
    np.take(table, index.view(np.int64), out=out, mode="clip")


def scatter(table: NDArray[np.generic], index: Words, values: NDArray[np.generic] | bool, where: Flags) -> None:
    """table[index] = values, element by element, in the lanes where `where` holds; those indices are all different."""
    if where.all():
        table[index.view(np.int64)] = values
        return
    lanes = np.flatnonzero(where)
    table[index.view(np.int64)[lanes]] = values if isinstance(values, bool) else values[lanes]


class Memory:
    """`size_bytes` of memory from address `base` in each of `lanes` lanes, all empty.

    `tags` is bool[lanes, granules]; `halves` is uint64[lanes, granules, 2].
    """

    def __init__(self, fmt: CapabilityFormat, base: int, size_bytes: int, lanes: int) -> None:
        granules = size_bytes // fmt.capability_bytes
        self.format = fmt
        self.base = base
        self.size_bytes = size_bytes
        self.granules = granules
        # One granule at least, never reached: what is gathered in refused lanes has to come from somewhere.
        self.tags = np.zeros((lanes, max(granules, 1)), np.bool_)
        self.halves = np.zeros((lanes, max(granules, 1), 2), np.uint64)

    def block(self, start: int, stop: int) -> "MemoryBlock":
        """The memory of neighbouring lanes."""
        first = np.arange(stop - start, dtype=np.uint64) * np.uint64(self.tags.shape[1])
        return MemoryBlock(self, self.tags[start:stop], self.halves[start:stop], first)

    def selection(self, lanes: NDArray[np.int64]) -> "MemoryBlock":
        """The memory of some lanes, anywhere."""
        return MemoryBlock(self, self.tags, self.halves, lanes.view(np.uint64) * np.uint64(self.tags.shape[1]))


class MemoryBlock:
    """The memory of one block of lanes; addresses, values and flags are arrays of the block's length.

    Accesses go to the lanes that `where` names, whose addresses must be in memory, and nowhere else.
    """

    def __init__(self, memory: Memory, tags: Flags, halves: Words, first_granule: Words) -> None:
        """Of tables of tags and halves, and where in them each lane's granules begin."""
        self.format = memory.format
        self.base = memory.base
        self.size_bytes = memory.size_bytes
        self._tags = tags.reshape(-1)
        self._halves = halves.reshape(-1)
        self._first_granule = first_granule
        self._half_shift = memory.format.granule_shift - 1

    def contains(self, address: Words, size_bytes: int, ws: Workspace, out: Flags) -> None:
        """out = whether all of [address, address + size_bytes) is memory."""
        if size_bytes > self.size_bytes:
            out.fill(False)
            return
        np.subtract(address, self.base, out=ws.bounds[0])
        np.less_equal(ws.bounds[0], self.size_bytes - size_bytes, out=out)

    def _granule(self, address: Words, out: Words) -> None:
        np.subtract(address, self.base, out=out)
        np.right_shift(out, self.format.granule_shift, out=out)
        np.add(out, self._first_granule, out=out)

    def read_granule(self, address: Words, ws: Workspace, tag: Flags, upper: Words, lower: Words) -> None:
        """The granules at aligned addresses; in lanes whose address isn't in memory, anything."""
        index = ws.bounds[0]
        self._granule(address, index)
        gather(self._tags, index, tag)
        np.left_shift(index, 1, out=index)
        gather(self._halves, index, lower)
        np.bitwise_or(index, 1, out=index)
        gather(self._halves, index, upper)

    def write_granule(self, address: Words, tag: Flags, upper: Words, lower: Words, ws: Workspace, where: Flags) -> None:
        """Replace the granules at aligned addresses."""
        index = ws.bounds[0]
        self._granule(address, index)
        scatter(self._tags, index, tag, where)
        np.left_shift(index, 1, out=index)
        scatter(self._halves, index, lower, where)
        np.bitwise_or(index, 1, out=index)
        scatter(self._halves, index, upper, where)

    def _half(self, address: Words, index: Words, shift: Words) -> None:
        """The half that each address is in, and how many of its bits stand before the address."""
        np.subtract(address, self.base, out=index)
        np.bitwise_and(index, self.format.capability_bytes // 2 - 1, out=shift)
        np.left_shift(shift, 3, out=shift)
        np.right_shift(index, self._half_shift, out=index)
        np.add(index, self._first_granule, out=index)
        np.add(index, self._first_granule, out=index)

    def read(self, address: Words, size_bytes: int, ws: Workspace, out: Words) -> None:
        """The `size_bytes` at each address, little-endian; in lanes whose address isn't in memory, anything."""
        index, shift, high = ws.bounds[:3]
        self._half(address, index, shift)
        gather(self._halves, index, out)
        np.right_shift(out, shift, out=out)
        np.add(index, 1, out=index)
        gather(self._halves, index, high)
        np.subtract(self.format.address_width, shift, out=shift)
        np.left_shift(high, shift, out=high)
        np.bitwise_or(out, high, out=out)
        np.bitwise_and(out, (1 << 8 * size_bytes) - 1, out=out)

    def write(self, address: Words, size_bytes: int, value: Words, ws: Workspace, where: Flags) -> None:
        """Store the lowest `size_bytes` of each value; the tags of all granules touched are cleared."""
        index, shift, bits, placed, hole, half = ws.bounds[:6]
        width, mask = self.format.address_width, (1 << 8 * size_bytes) - 1
        self._granule(address, index)
        scatter(self._tags, index, False, where)
        np.add(address, size_bytes - 1, out=index)
        self._granule(index, index)
        scatter(self._tags, index, False, where)

        self._half(address, index, shift)
        np.bitwise_and(value, mask, out=bits)
        np.left_shift(np.uint64(mask), shift, out=hole)
        np.left_shift(bits, shift, out=placed)
        self._merge(index, placed, hole, half, where)
        straddles = ws.bounds_flags[0]
        np.greater(shift, width - 8 * size_bytes, out=straddles)
        np.logical_and(straddles, where, out=straddles)
        if straddles.any():
            np.subtract(width, shift, out=shift)
            np.right_shift(np.uint64(mask), shift, out=hole)
            np.right_shift(bits, shift, out=placed)
            np.add(index, 1, out=index)
            self._merge(index, placed, hole, half, straddles)

    def _merge(self, index: Words, bits: Words, hole: Words, half: Words, where: Flags) -> None:
        """Replace the bits of `hole` by those of `bits` in the halves at `index`."""
        gather(self._halves, index, half)
        np.invert(hole, out=hole)
        np.bitwise_and(half, hole, out=half)
        np.bitwise_or(half, bits, out=half)
        if self.format.address_width < 64:
            np.bitwise_and(half, self.format.address_mask, out=half)
        scatter(self._halves, index, half, where)
