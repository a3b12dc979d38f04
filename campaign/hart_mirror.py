"""What mirrors of the reference's systems on harts have in common: registers, numbers and memory, in the fast path's arrays.

The reference's parts say what is written to them, so that the arrays are brought up to date by what a step wrote; compared
is always the whole state of all lanes. Thread t of lane n is hart t * lanes + n.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from capvisor.campaign.noted import Log
from capvisor.fastpath.machine import NUMBERS, SPECIAL_ROWS, Indices
from capvisor.fastpath.workspace import Flags, Words
from capvisor.model import capability
from capvisor.model.capability import Capability
from capvisor.model.machine import Hart
from capvisor.model.memory import EMPTY, Granule, Memory, SparseStore, Sweep
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.registers import REGISTER_COUNT, SPECIAL_REGISTERS, Privilege

PARTS = ("registers", "special registers", "CSRs", "pc", "memory", "reservation")
"""What is compared of every system on harts."""

ROWS = REGISTER_COUNT + len(SPECIAL_ROWS)
_SPECIALS = sorted(SPECIAL_ROWS, key=SPECIAL_ROWS.__getitem__)
_SPECIAL_COUNT = len(_SPECIALS)
_HART_STATE = attrgetter(*_SPECIALS, *NUMBERS, "is_reserved")
_CSRS = tuple(name for name in NUMBERS if name != "reservation")

NONE = np.zeros(0, np.int64)


class _Registers(list[Capability]):
    """A register file that says what is written to it."""

    place = 0
    log: Log

    def __setitem__(self, register: int, value: Capability) -> None:  # type: ignore[override]
        list.__setitem__(self, register, value)
        self.log.append((register, self.place, *value[1:]))


class _Hart(Hart):
    """A hart that asks once for what becomes of registers that hold one and the same thing, and writes what is another."""

    def map_registers(self, function: Callable[[Capability], Capability]) -> None:
        registers, known = self.registers, dict[int, Capability]()
        for register in range(1, REGISTER_COUNT):
            held = registers[register]
            made = known.get(id(held))
            if made is None:
                made = known[id(held)] = function(held)
            if made != held:
                registers[register] = made


class _Store(SparseStore):
    """A memory's granules, which say what is written to them; empty ones are kept as if they had never been written."""

    lane = 0
    log: Log

    def set(self, index: int, granule: Granule) -> None:
        held = self._written.get(index, EMPTY)
        if held is granule or held == granule:
            return
        if granule == EMPTY:
            del self._written[index]
        else:
            self._written[index] = granule
        self.log.append((self.lane, index, *granule))

    def map(self, function: Sweep) -> None:
        for index, granule in list(self._written.items()):
            self.set(index, function(index, granule))


class Granules(NamedTuple):
    """Granules that were written: lanes and indices, and what they held before."""

    lanes: Indices
    indices: Indices
    tags: Flags
    halves: Words


class HartMirror:
    """The harts and memories of the reference's systems, one system for each lane of a fast path."""

    parts: tuple[str, ...] = PARTS

    def __init__(self, batch: Any) -> None:
        self.batch, self.lanes = batch, batch.lanes
        self._registers: Log = []
        self._granules: Log = []
        self._numbers: Log = []
        self._pcs: tuple[list[int], list[int]] = ([], [])
        self._hart_states: dict[int, tuple[Any, ...]] = {}
        self.changed = dict.fromkeys(self.parts, 0)
        """How often the reference has changed each part of the state."""
        self.make_arrays()

    def make_arrays(self) -> None:
        """Make the arrays, of harts that were just made and of empty memory."""
        batch, lanes = self.batch, self.lanes
        fmt, harts = batch.format, batch.harts.lanes
        self.tags, self.metas, self.addresses = _reset_registers(fmt, harts)
        self.numbers = {name: np.zeros(harts, np.uint64) for name in NUMBERS}
        self.numbers["privilege"].fill(Privilege.MACHINE)
        self.is_reserved, self.pc = np.zeros(harts, np.bool_), np.zeros(harts, np.uint64)
        self.granule_tags = np.zeros((lanes, batch.memory.granules), np.bool_)
        self.halves = np.zeros((lanes, batch.memory.granules, 2), np.uint64)

    def memory(self, lane: int) -> Memory:
        """A lane's memory in the reference."""
        batch, store = self.batch, _Store()
        store.lane, store.log = lane, self._granules
        return Memory(batch.format, batch.memory.base, batch.memory.size_bytes, store)

    def hart_maker(self, lane: int, threads: Callable[[], int]) -> Callable[[Memory], Hart]:
        """What makes a lane's harts, each of a thread whose number is that of the threads so far."""
        null = capability.null(self.batch.format)

        def make_hart(memory: Memory) -> Hart:
            hart = _Hart(memory)
            registers = _Registers([null] * REGISTER_COUNT)
            registers.place, registers.log = threads() * self.lanes + lane, self._registers
            hart.registers = registers
            return hart

        return make_hart

    # -- what the reference did --------------------------------------------------------------------------------------------

    def note_hart(self, place: int, hart: Hart) -> None:
        """Note a hart's pc, and its special registers and numbers if they are others."""
        places, pcs = self._pcs
        places.append(place)
        pcs.append(hart.pc)
        now, last = _HART_STATE(hart), self._hart_states.get(place)
        if now != last:
            before = last or (None,) * len(now)
            for row, (old, new) in enumerate(zip(before[:_SPECIAL_COUNT], now, strict=False), REGISTER_COUNT):
                if old is not new and old != new:
                    self._registers.append((row, place, *new[1:]))
            if now[_SPECIAL_COUNT:] != before[_SPECIAL_COUNT:]:
                self._numbers.append((place, *now[_SPECIAL_COUNT:]))
            self._hart_states[place] = now

    def apply_harts(self) -> tuple[tuple[Indices, Indices], Granules]:
        """Bring the arrays up to date; the registers, by row and hart, and the granules that were written."""
        self.grow()
        changed, limit = self.changed, len(self.pc)
        places, pcs = self._pcs
        if places:
            put(self.pc, np.array(places, np.int64), np.array(pcs, np.uint64), limit)
            changed["pc"] += len(places)
            self._pcs = ([], [])
        registers: tuple[Indices, Indices] = (NONE, NONE)
        if self._registers:
            row, hart, tags, metas, addresses = taken(self._registers)
            rows: Indices = row.astype(np.int64)
            harts: Indices = hart.astype(np.int64)
            if len(harts) and int(harts.max()) >= limit:
                # Where the fast path has fewer threads, the lane differs.
                kept = harts < limit
                rows, harts, tags, metas, addresses = rows[kept], harts[kept], tags[kept], metas[kept], addresses[kept]
            self.tags[rows, harts], self.metas[rows, harts], self.addresses[rows, harts] = tags, metas, addresses
            merged = int(np.count_nonzero(rows < REGISTER_COUNT))
            changed["registers"] += merged
            changed["special registers"] += len(rows) - merged
            registers = rows, harts
        if self._numbers:
            which, *columns, reserved = taken(self._numbers)
            of_harts: Indices = which.astype(np.int64)
            for name, column in zip(NUMBERS, columns, strict=True):
                put(self.numbers[name], of_harts, column, limit)
            before = self.is_reserved.copy()
            put(self.is_reserved, of_harts, reserved, limit)
            changed["CSRs"] += len(of_harts)
            changed["reservation"] += int(np.count_nonzero(before != self.is_reserved))
        return registers, self._apply_granules()

    def _apply_granules(self) -> Granules:
        if not self._granules:
            return Granules(NONE, NONE, np.zeros(0, np.bool_), np.zeros((0, 2), np.uint64))
        where, indices, tags, upper, lower = taken(self._granules)
        at = where.astype(np.int64), indices.astype(np.int64)
        found = Granules(*at, self.granule_tags[at], self.halves[at])
        self.granule_tags[at] = tags
        self.halves[(*at, 0)], self.halves[(*at, 1)] = lower, upper
        self.changed["memory"] += len(where)
        return found

    def grow(self) -> int:
        """Have room for as many harts as the fast path has; how many more these are."""
        old = len(self.pc)
        more: int = self.batch.harts.lanes - old
        if more:
            kept = (self.tags, self.metas, self.addresses)
            fresh = _reset_registers(self.batch.format, more)
            both = [np.concatenate(pair, axis=1) for pair in zip(kept, fresh, strict=True)]
            self.tags, self.metas, self.addresses = both
            for name, column in self.numbers.items():
                filler = Privilege.MACHINE if name == "privilege" else 0
                self.numbers[name] = np.concatenate([column, np.full(more, filler, column.dtype)])
            self.is_reserved = np.concatenate([self.is_reserved, np.zeros(more, np.bool_)])
            self.pc = np.concatenate([self.pc, np.zeros(more, np.uint64)])
        return more

    # -- comparing ---------------------------------------------------------------------------------------------------------

    def differing_harts(self) -> Flags:
        """The lanes whose harts or memory aren't the fast path's."""
        lanes, machine = self.lanes, self.batch.harts
        reserved = self.is_reserved
        pairs = [
            *((self.tags, machine.tags[:ROWS]), (self.metas, machine.metas[:ROWS])),
            (self.addresses, machine.addresses[:ROWS]),
            *((self.pc[None], machine.pc[None]), (reserved[None], machine.is_reserved[None])),
            (self.numbers["reservation"][None] * reserved, machine.numbers["reservation"][None] * reserved),
            *((self.numbers[name][None], machine.numbers[name][None]) for name in _CSRS),
        ]
        wrong = np.zeros(lanes, np.bool_)
        for mine, theirs in pairs:
            if not np.array_equal(mine, theirs):
                wrong |= (mine != theirs).any(axis=0).reshape(-1, lanes).any(axis=0)
        return wrong | self.differing_memory()

    def differing_memory(self) -> Flags:
        """The lanes whose memory isn't the fast path's."""
        lanes, memory = self.lanes, self.batch.memory
        wrong = np.zeros(lanes, np.bool_)
        for mine, theirs in ((self.granule_tags, memory.tags), (self.halves, memory.halves)):
            if not np.array_equal(mine, theirs):
                wrong |= (mine != theirs).reshape(lanes, -1).any(axis=1)
        return wrong

    def read_anew(self, lane: int, store: Any, harts: Iterable[Hart]) -> None:
        """Note all that a lane of another mirror holds."""
        self._granules += [(lane, index, *granule) for index, granule in cast(SparseStore, store).written()]
        for number, hart in enumerate(harts):
            place, registers = number * self.lanes + lane, cast(list[Capability], hart.registers)
            self.note_hart(place, hart)
            self._registers += [(row, place, *cap[1:]) for row, cap in enumerate(registers)]

    def arrays_by_lane(self) -> Iterator[NDArray[Any]]:
        """All arrays, as [lanes, ...]."""
        of_harts = [self.tags, self.metas, self.addresses, self.pc, self.is_reserved, *self.numbers.values()]
        yield from (array.reshape(-1, self.lanes).T for array in of_harts)
        yield from (array.reshape(self.lanes, -1) for array in (self.granule_tags, self.halves))


def put(array: NDArray[Any], places: Indices, values: NDArray[Any], limit: int) -> None:
    """Write to an array where there is room for it."""
    if len(places) and int(places.max()) >= limit:
        places, values = places[places < limit], values[places < limit]
    array[places] = values


def _reset_registers(fmt: CapabilityFormat, harts: int) -> tuple[Flags, Words, Words]:
    """Registers of harts that were just made."""
    tags, metas = np.zeros((ROWS, harts), np.bool_), np.full((ROWS, harts), fmt.null_meta, np.uint64)
    for name, each in SPECIAL_REGISTERS.items():
        if each.resets_to_root:
            tags[SPECIAL_ROWS[name]], metas[SPECIAL_ROWS[name]] = True, fmt.root_meta
    return tags, metas, np.zeros((ROWS, harts), np.uint64)


def columns_of(rows: Sequence[Iterable[Any]]) -> list[Words]:
    """The columns of rows of numbers, as arrays. Of two writes to one place the later one counts where they are used."""
    width = len(tuple(rows[0]))
    flat = np.fromiter(itertools.chain.from_iterable(rows), np.uint64, width * len(rows))
    return list(flat.reshape(-1, width).T)


def taken(log: Log) -> list[Words]:
    """The columns of a log, which is empty then."""
    found = columns_of(log)
    log.clear()
    return found
