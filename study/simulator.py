"""The fast simulator: four modes of translation in one pass, chunk by chunk."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capvisor.study import kernel
from capvisor.study.configuration import Configuration, Structure
from capvisor.study.errors import StudyError
from capvisor.study.kernel import COUNTERS, LOGGED, PARAMETERS, Words

PIECE = 1 << 16
"""Accesses that are simulated at once: the table of frames has room for what they can add."""


@dataclass(frozen=True)
class Chunk:
    """A part of a trace: `addresses` uint64[n], virtual, in bytes, and `kinds` uint8[n], indices of kernel.KINDS.

    The address of a `map` or `unmap` event is any in the page whose page-table entry the guest writes or clears.
    """

    addresses: NDArray[np.uint64]
    kinds: NDArray[np.uint8]


class Simulator:
    """The state of all structures of a configuration, at first empty."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self._parameters = parameters_of(configuration)
        self.counters: Words = np.zeros(len(COUNTERS), np.int64)
        tlb, nested = configuration.tlb, configuration.nested
        lines = configuration.table_lines.entries
        widest = max(1, *self._parameters[kernel.P_WALK_CACHE :].tolist())
        sizes = (tlb.l1i.entries, tlb.l1d.entries, tlb.l2.entries, 4 * widest, nested.tlb.entries, 4 * widest, lines, lines)
        self._structures = [np.zeros(size, np.int64) for size in (*sizes, configuration.tags.entries)]
        self._keys: Words = np.zeros(1 << 12, np.int64)
        self._frames: Words = np.zeros(1 << 12, np.int64)
        self._used: Words = np.zeros(3, np.int64)

    def feed(self, chunk: Chunk, log: bool = False) -> Words:
        """Translate a chunk; the log, int64[n or 0, len(LOGGED)]. Raises StudyError for an address that isn't canonical."""
        addresses = canonical(chunk, self.configuration, int(self.counters[0]))
        rows: Words = np.zeros((len(addresses) if log else 0, len(LOGGED)), np.int64)
        for start in range(0, len(addresses), PIECE):
            piece = slice(start, start + PIECE)
            self._make_room(min(PIECE, len(addresses) - start))
            tables = (self._keys, self._frames, self._used, self.counters, rows[piece])
            arguments: tuple[Any, ...] = (chunk.kinds[piece], addresses[piece], self._parameters, *self._structures, *tables)
            kernel.simulate(*arguments)
        return rows

    def counts(self) -> dict[str, int]:
        """Every counter by its name."""
        return dict(zip(COUNTERS, self.counters.tolist(), strict=True))

    @property
    def pages(self) -> int:
        """How many pages have been used."""
        return int(self._used[0])

    def _make_room(self, accesses: int) -> None:
        most = int(self._used[2]) + accesses * (self.configuration.levels + 1)
        if 2 * most <= self._keys.size:
            return
        keys, frames = self._keys, self._frames
        size = 1 << (2 * most - 1).bit_length()
        self._keys, self._frames = np.zeros(size, np.int64), np.zeros(size, np.int64)
        kernel.rehash(keys, frames, self._keys, self._frames)


def canonical(chunk: Chunk, configuration: Configuration, before: int) -> Words:
    """The addresses without the copies of their sign bit, int64[n]. Raises StudyError where those aren't copies."""
    bits = configuration.address_bits
    upper = chunk.addresses >> np.uint64(bits - 1)
    wrong = (upper != 0) & (upper != np.uint64((1 << (65 - bits)) - 1))
    if wrong.any():
        index = int(wrong.argmax())
        raise StudyError(
            f"access {before + index + 1}: {int(chunk.addresses[index]):#x} is no canonical address of "
            f"{configuration.levels}-level page tables"
        )
    masked: Words = (chunk.addresses & np.uint64((1 << bits) - 1)).astype(np.int64)
    return masked


def parameters_of(configuration: Configuration) -> Words:
    """The numbers that the kernel needs, in its order."""
    tlb, nested, lines, tags = configuration.tlb, configuration.nested, configuration.table_lines, configuration.tags
    shadow, host = configuration.shadow, configuration.host

    def shape(structure: Structure) -> tuple[int, int]:
        return structure.sets, structure.ways

    values = (
        *(configuration.levels, configuration.leaf_level, configuration.host_leaf_level, configuration.access_cycles),
        *(*shape(tlb.l1i), *shape(tlb.l1d), *shape(tlb.l2), tlb.l2_hit_cycles),
        *shape(nested.tlb),
        *(lines.sets, lines.ways, lines.hit_cycles, lines.miss_cycles),
        *(tags.sets, tags.ways, tags.frames_per_line, tags.hit_cycles, tags.miss_cycles),
        *(host.exit_cycles, host.hypercall_cycles),
        *(shadow.exits_per_fault, shadow.exits_per_update, shadow.exits_per_invalidation, shadow.updates_per_hypercall),
        configuration.tpt.update_cycles,
        *(configuration.shootdown.native_cycles, configuration.shootdown.virtual_cycles),
        *(configuration.walk_caches.entries(level) for level in range(1, 5)),
        *(nested.walk_caches.entries(level) for level in range(1, 5)),
    )
    assert len(values) == PARAMETERS
    return np.array(values, np.int64)
