"""Tagged memory: granules of a capability's size, each with one tag.

The rules of an access (which granules it touches, what becomes of their tags) are here once; where granules are kept is
the business of a store, so that the same rules run on other stores too.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from capvisor.spec.formats import CapabilityFormat


class Granule(NamedTuple):
    """What a granule holds: its tag and its two halves, as numbers; the lower half lies at the lower address."""

    tag: bool
    upper: int
    lower: int


EMPTY = Granule(False, 0, 0)

Sweep = Callable[[int, Granule], Granule]


class GranuleStore(Protocol):
    """Where granules are kept; an index counts granules from the start of memory."""

    def get(self, index: int) -> Granule: ...

    def set(self, index: int, granule: Granule) -> None: ...

    def map(self, function: Sweep) -> None:
        """Replace every granule by what the function makes of it and its index; an empty one it leaves empty."""


class SparseStore:
    """Granules of one concrete memory; those never written are empty."""

    def __init__(self) -> None:
        self._written: dict[int, Granule] = {}

    def __copy__(self) -> "SparseStore":
        copied = SparseStore()
        copied._written = dict(self._written)
        return copied

    def get(self, index: int) -> Granule:
        return self._written.get(index, EMPTY)

    def set(self, index: int, granule: Granule) -> None:
        self._written[index] = granule

    def map(self, function: Sweep) -> None:
        self._written = {index: function(index, granule) for index, granule in self._written.items()}

    def written(self) -> Iterator[tuple[int, Granule]]:
        """Index and content of every granule that was ever written."""
        return iter(self._written.items())


class Memory:
    """`size_bytes` of memory from address `base`, both multiples of a granule."""

    def __init__(self, fmt: CapabilityFormat, base: int, size_bytes: int, store: GranuleStore | None = None) -> None:
        self.format = fmt
        self.base = base
        self.size_bytes = size_bytes
        self.store: GranuleStore = SparseStore() if store is None else store

    def contains(self, address: int, size_bytes: int) -> bool:
        """Whether all of [address, address + size_bytes) is memory."""
        return (address >= self.base) & (address + size_bytes <= self.base + self.size_bytes)

    def read_granule(self, address: int) -> Granule:
        """The granule at `address`, a multiple of the granule's size."""
        return self.store.get(address - self.base >> self.format.granule_shift)

    def write_granule(self, address: int, granule: Granule) -> None:
        """Replace the granule at `address`, a multiple of the granule's size."""
        self.store.set(address - self.base >> self.format.granule_shift, granule)

    def read(self, address: int, size_bytes: int) -> int:
        """The `size_bytes` (at most half a granule) at `address`, little-endian; they may straddle two granules."""
        index, shift = self._locate(address)
        word = self._word(self.store.get(index))
        if self._straddles(shift, size_bytes):
            word = word | self._word(self.store.get(index + 1)) << 2 * self.format.address_width
        return word >> shift & (1 << 8 * size_bytes) - 1

    def write(self, address: int, size_bytes: int, value: int) -> None:
        """Store the lowest `size_bytes` of `value` at `address`; the tags of all granules touched are cleared."""
        index, shift = self._locate(address)
        granule_bits = 2 * self.format.address_width
        mask = (1 << 8 * size_bytes) - 1
        hole, bits = mask << shift, (value & mask) << shift
        self._rewrite(index, hole, bits)
        if self._straddles(shift, size_bytes):
            self._rewrite(index + 1, hole >> granule_bits, bits >> granule_bits)

    def map_granules(self, function: Sweep) -> None:
        """Replace every granule by what the function makes of its index and it: a sweep. Empty ones stay empty."""
        self.store.map(function)

    def _locate(self, address: int) -> tuple[int, int]:
        """The granule that `address` is in, and how many bits of it stand before `address`."""
        distance = address - self.base
        return distance >> self.format.granule_shift, (distance & self.format.capability_bytes - 1) << 3

    def _straddles(self, shift: int, size_bytes: int) -> bool:
        return shift + 8 * size_bytes > 2 * self.format.address_width

    def _word(self, granule: Granule) -> int:
        return granule.upper << self.format.address_width | granule.lower

    def _rewrite(self, index: int, hole: int, bits: int) -> None:
        word = self._word(self.store.get(index)) & ~hole | bits
        width, mask = self.format.address_width, self.format.address_mask
        self.store.set(index, Granule(False, word >> width & mask, word & mask))
