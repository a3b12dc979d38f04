"""The reference's systems of cVMs, one a lane, and their states in arrays as the fast path has them.

The reference's parts say what is written to them, so that the arrays are brought up to date by what a step wrote; compared
is always the whole state of all lanes. `misread` reads the whole state anew, without what was said: at the end of a unit
that must be the same.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from capvisor.campaign.cvm_states import TABLES, THREAD_FIELDS, expected_frame, row_values
from capvisor.fastpath.machine import NUMBERS, SPECIAL_ROWS, Indices
from capvisor.fastpath.monitor import BatchMonitor
from capvisor.fastpath.tables import Table
from capvisor.fastpath.workspace import Flags
from capvisor.model import capability
from capvisor.model.capability import Capability
from capvisor.model.machine import Hart
from capvisor.model.memory import Granule, Memory, SparseStore, Sweep
from capvisor.model.monitor import Monitor, Rows, Thread
from capvisor.spec.formats import Permission
from capvisor.spec.registers import REGISTER_COUNT, SPECIAL_REGISTERS, Privilege

PARTS = ("registers", "special registers", "CSRs", "pc", "memory", "reservation", "threads", "calls", "tables", "host")
"""What is compared. `calls` is what the monitor works with between the two parts of one; `host` its clock and output."""

ROWS = REGISTER_COUNT + len(SPECIAL_ROWS)
_SPECIALS = sorted(SPECIAL_ROWS, key=SPECIAL_ROWS.__getitem__)
_SPECIAL_COUNT = len(_SPECIALS)
_HART_STATE = attrgetter(*_SPECIALS, *NUMBERS, "is_reserved")
_THREAD_STATE = attrgetter(*THREAD_FIELDS)
_CSRS = tuple(name for name in NUMBERS if name != "reservation")

Log = list[tuple[Any, ...]]


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


class _Monitor(Monitor):
    """A monitor that mints each capability once: what comes of it depends on the arguments alone."""

    minted: dict[tuple[int, int, int], tuple[Capability, bool]]

    def mint(self, base: int, size: int, permissions: Permission) -> tuple[Capability, bool]:
        key = base, size, permissions._value_
        found = self.minted.get(key)
        if found is None:
            found = self.minted[key] = super().mint(base, size, permissions)
        return found


class _Store(SparseStore):
    """A memory's granules, which say what is written to them."""

    lane = 0
    log: Log

    def set(self, index: int, granule: Granule) -> None:
        super().set(index, granule)
        self.log.append((self.lane, index, *granule))

    def map(self, function: Sweep) -> None:
        for index, granule in list(self.written()):
            changed = function(index, granule)
            if changed != granule:
                self.set(index, changed)


class _Rows(Rows):
    """A table that says what is written to it."""

    def __init__(self, empty: Any, name: str, lane: int, log: Log) -> None:
        super().__init__(empty)
        self._name, self._lane, self._log = name, lane, log

    def __setitem__(self, number: Any, row: Any) -> None:
        super().__setitem__(number, row)
        self._log.append((self._lane, *row_values(self._name, number, row)))

    def map(self, function: Callable[[Any, Any], Any]) -> None:
        for number, row in list(self.rows.items()):
            changed = function(number, row)
            if changed != row:
                self[number] = changed


class TableMirror:
    """A table of the reference's, its rows where the fast path has those of the same numbers."""

    def __init__(self, lanes: int, table: Table) -> None:
        self.numbers, self.is_used = np.zeros_like(table.numbers), np.zeros_like(table.is_used)
        self.columns = {name: np.zeros_like(column) for name, column in table.columns.items()}
        self.lost = np.zeros(lanes, np.bool_)
        """Lanes with a row that the fast path has not."""

    def write(self, table: Table, rows: Log) -> None:
        """Write rows, each as (lane, number, columns)."""
        more = table.numbers.shape[1] - self.numbers.shape[1]
        if more:
            self.numbers = np.pad(self.numbers, ((0, 0), (0, more)))
            self.is_used = np.pad(self.is_used, ((0, 0), (0, more)))
            self.columns = {name: np.pad(each, ((0, 0), (0, more))) for name, each in self.columns.items()}
        where, numbers, *columns = _columns(rows)
        lanes: Indices = where.astype(np.int64)
        at = table.find(lanes, numbers)
        missing = at == 0
        if missing.any():
            something = np.logical_or.reduce([column != 0 for column in columns])
            self.lost[lanes[missing & something]] = True
            lanes, at, numbers = lanes[~missing], at[~missing], numbers[~missing]
            columns = [column[~missing] for column in columns]
        self.numbers[lanes, at], self.is_used[lanes, at] = numbers, True
        for values, column in zip(columns, self.columns.values(), strict=True):
            column[lanes, at] = values

    def differs(self, table: Table) -> Flags:
        """The lanes in which it isn't the fast path's."""
        wrong = self.lost.copy()
        if self.numbers.shape != table.numbers.shape:
            return np.ones_like(wrong)
        pairs = [(table.numbers * self.is_used, self.numbers)]
        pairs += list(zip(table.columns.values(), self.columns.values(), strict=True))
        for one, other in pairs:
            if not np.array_equal(one, other):
                wrong |= (one != other).any(axis=1)
        return wrong


class Written(NamedTuple):
    """What a step has written, of the reference's state."""

    registers: tuple[Indices, Indices]
    """Rows and harts."""
    granules: tuple[Indices, Indices]
    """Lanes and granules."""
    threads: Indices
    """Harts of threads whose own state changed, or who entered or left the monitor."""
    tables: Indices
    """Lanes in which a table changed."""


_NONE = np.zeros(0, np.int64)


class Mirror:
    """Monitors of the reference, one for each lane of a fast path, and what is known of their states."""

    def __init__(self, batch: BatchMonitor, monitors: list[Monitor] | None = None) -> None:
        """With new monitors, unless some are given that belong to another mirror."""
        self.batch, self.lanes = batch, batch.lanes
        self._registers: Log = []
        self._granules: Log = []
        self._numbers: Log = []
        self._threads: Log = []
        self._frames: Log = []
        self._pcs: tuple[list[int], list[int]] = ([], [])
        self._rows: dict[str, Log] = {name: [] for name in (*TABLES, "slots")}
        self._hosts: Log = []
        self._minted: dict[tuple[int, int, int], tuple[Capability, bool]] = {}
        self.monitors = [self._monitor(lane) for lane in range(self.lanes)] if monitors is None else monitors
        self._last: dict[int, list[Any]] = {}
        self.changed = dict.fromkeys(PARTS, 0)
        """How often the reference has changed each part of the state."""
        self._make_arrays()

    def _monitor(self, lane: int) -> Monitor:
        fmt, store, batch = self.batch.format, _Store(), self.batch
        store.lane, store.log = lane, self._granules

        def make_hart(memory: Memory) -> Hart:
            hart = _Hart(memory)
            registers = _Registers([capability.null(fmt)] * REGISTER_COUNT)
            registers.place = len(cast(list[Thread], monitor.threads)) * self.lanes + lane
            registers.log = self._registers
            hart.registers = registers
            return hart

        def make_table(name: str, empty: Any) -> Rows:
            return _Rows(empty, name, lane, self._rows[name])

        memory = Memory(fmt, batch.memory.base, batch.memory.size_bytes, store)
        monitor = _Monitor(memory, batch.policy, make_table, make_hart=make_hart)
        monitor.minted = self._minted
        return monitor

    def _make_arrays(self) -> None:
        batch, fmt, lanes = self.batch, self.batch.format, self.lanes
        harts = batch.harts.lanes
        self.tags, self.metas, self.addresses = _reset_registers(fmt, harts)
        self.numbers = {name: np.zeros(harts, np.uint64) for name in NUMBERS}
        self.numbers["privilege"].fill(Privilege.MACHINE)
        self.is_reserved, self.pc = np.zeros(harts, np.bool_), np.zeros(harts, np.uint64)
        self.granule_tags = np.zeros((lanes, batch.memory.granules), np.bool_)
        self.halves = np.zeros((lanes, batch.memory.granules, 2), np.uint64)
        self.threads = {name: np.zeros(harts, column.dtype) for name, column in batch.threads.items()}
        self.frames = {name: np.zeros(harts, column.dtype) for name, column in batch.frames.items()}
        self.tables = {name: TableMirror(lanes, getattr(batch, name)) for name in TABLES}
        self.is_slot = np.zeros((lanes, batch.memory.granules), np.bool_)
        self.slot_grant = np.zeros((lanes, batch.memory.granules), np.uint64)
        self.clock, self.printed = np.zeros(lanes, np.uint64), np.zeros(lanes, np.uint64)

    # -- what the reference did --------------------------------------------------------------------------------------------

    def note_hart(self, place: int, hart: Hart) -> None:
        """Note a hart's pc, and its special registers and numbers if they are others."""
        places, pcs = self._pcs
        places.append(place)
        pcs.append(hart.pc)
        now, last = _HART_STATE(hart), self._last[place]
        if now != last[0]:
            before = last[0] or (None,) * len(now)
            for row, (old, new) in enumerate(zip(before[:_SPECIAL_COUNT], now, strict=False), REGISTER_COUNT):
                if old is not new and old != new:
                    self._registers.append((row, place, *new[1:]))
            if now[_SPECIAL_COUNT:] != before[_SPECIAL_COUNT:]:
                self._numbers.append((place, *now[_SPECIAL_COUNT:]))
            last[0] = now

    def note_thread(self, place: int, thread: Thread) -> None:
        """Note what the monitor knows of a thread, if that is something else."""
        last, now = self._last[place], _THREAD_STATE(thread)
        if now != last[1]:
            self._threads.append((place, True, *now))
            last[1] = now
        if thread.frame is not last[2]:
            self._frames.append((place, *expected_frame(thread)))
            last[2] = thread.frame

    def note_lane(self, lane: int) -> None:
        """Note everything of a lane but registers, memory and tables, which say themselves what is written."""
        monitor = self.monitors[lane]
        for number, thread in enumerate(cast(list[Thread], monitor.threads)):
            place = number * self.lanes + lane
            if place not in self._last:
                self._last[place] = [None, None, None]
            self.note_hart(place, thread.hart)
            self.note_thread(place, thread)
        self._hosts.append((lane, monitor.clock, monitor.printed))

    def apply(self) -> Written:
        """Bring the arrays up to date."""
        self._grow()
        changed, limit = self.changed, len(self.pc)
        places, pcs = self._pcs
        if places:
            self._put(self.pc, np.array(places, np.int64), np.array(pcs, np.uint64), limit)
            changed["pc"] += len(places)
            self._pcs = ([], [])
        registers: tuple[Indices, Indices] = (_NONE, _NONE)
        granules: tuple[Indices, Indices] = (_NONE, _NONE)
        if self._registers:
            row, hart, tags, metas, addresses = _taken(self._registers)
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
        if self._granules:
            where, indices, tags, upper, lower = _taken(self._granules)
            granules = (where.astype(np.int64), indices.astype(np.int64))
            self.granule_tags[granules] = tags
            self.halves[(*granules, 0)], self.halves[(*granules, 1)] = lower, upper
            changed["memory"] += len(where)
        if self._numbers:
            which, *columns, reserved = _taken(self._numbers)
            of_harts: Indices = which.astype(np.int64)
            for name, column in zip(NUMBERS, columns, strict=True):
                self._put(self.numbers[name], of_harts, column, limit)
            before = self.is_reserved.copy()
            self._put(self.is_reserved, of_harts, reserved, limit)
            changed["CSRs"] += len(of_harts)
            changed["reservation"] += int(np.count_nonzero(before != self.is_reserved))
        threads = []
        for log, columns_of, part in ((self._threads, self.threads, "threads"), (self._frames, self.frames, "calls")):
            if log:
                which, *columns = _taken(log)
                of_threads: Indices = which.astype(np.int64)
                for name, column in zip(columns_of, columns, strict=True):
                    self._put(columns_of[name], of_threads, column, limit)
                changed[part] += len(of_threads)
                threads.append(of_threads[of_threads < limit])
        return Written(registers, granules, np.unique(np.concatenate(threads)) if threads else _NONE, self._apply_tables())

    def _apply_tables(self) -> Indices:
        lanes = []
        for name, log in self._rows.items():
            if log and name == "slots":
                where, granules, is_slot, grant = _taken(log)
                at = where.astype(np.int64), granules.astype(np.int64)
                self.is_slot[at], self.slot_grant[at] = is_slot, grant
                lanes.append(at[0])
            elif log:
                rows = log.copy()
                log.clear()
                self.tables[name].write(getattr(self.batch, name), rows)
                lanes.append(np.array([row[0] for row in rows], np.int64))
        if self._hosts:
            where, clock, printed = _taken(self._hosts)
            at_lanes = where.astype(np.int64)
            other = (self.clock[at_lanes] != clock) | (self.printed[at_lanes] != printed)
            self.changed["host"] += int(np.count_nonzero(other))
            self.clock[at_lanes], self.printed[at_lanes] = clock, printed
        found = np.unique(np.concatenate(lanes)) if lanes else _NONE
        self.changed["tables"] += len(found)
        return found

    @staticmethod
    def _put(array: NDArray[Any], places: Indices, values: NDArray[Any], limit: int) -> None:
        if len(places) and int(places.max()) >= limit:
            places, values = places[places < limit], values[places < limit]
        array[places] = values

    def _grow(self) -> None:
        """Have room for as many threads as the fast path has."""
        harts, old = self.batch.harts.lanes, len(self.pc)
        if harts == old:
            return
        fresh = _reset_registers(self.batch.format, harts - old)
        kept = (self.tags, self.metas, self.addresses)
        both = [np.concatenate(pair, axis=1) for pair in zip(kept, fresh, strict=True)]
        self.tags, self.metas, self.addresses = both
        for columns in (self.numbers, self.threads, self.frames):
            for name, column in columns.items():
                filler = Privilege.MACHINE if name == "privilege" else 0
                columns[name] = np.concatenate([column, np.full(harts - old, filler, column.dtype)])
        self.is_reserved = np.concatenate([self.is_reserved, np.zeros(harts - old, np.bool_)])
        self.pc = np.concatenate([self.pc, np.zeros(harts - old, np.uint64)])

    # -- comparing ---------------------------------------------------------------------------------------------------------

    def differing(self) -> Flags:
        """The lanes whose whole state isn't the fast path's."""
        batch, lanes = self.batch, self.lanes
        wrong = np.zeros(lanes, np.bool_)
        machine, memory = batch.harts, batch.memory
        for mine, theirs in (
            (self.tags, machine.tags[:ROWS]),
            (self.metas, machine.metas[:ROWS]),
            (self.addresses, machine.addresses[:ROWS]),
        ):
            if not np.array_equal(mine, theirs):
                wrong |= (mine != theirs).any(axis=0).reshape(-1, lanes).any(axis=0)
        reserved, inside = self.is_reserved, self.frames["is_inside"]
        by_hart = [
            (self.pc, machine.pc),
            (reserved, machine.is_reserved),
            (self.numbers["reservation"] * reserved, machine.numbers["reservation"] * reserved),
            *((self.numbers[name], machine.numbers[name]) for name in _CSRS),
            *((self.threads[name], batch.threads[name]) for name in batch.threads),
            (inside, batch.frames["is_inside"]),
            # What was put down of a call that is over means nothing.
            *((self.frames[name] * inside, batch.frames[name] * inside) for name in batch.frames if name != "is_inside"),
        ]
        for mine, theirs in by_hart:
            if not np.array_equal(mine, theirs):
                wrong |= (mine != theirs).reshape(-1, lanes).any(axis=0)
        by_lane: list[tuple[NDArray[Any], NDArray[Any]]] = [
            (self.granule_tags, memory.tags),
            (self.halves.reshape(lanes, -1), memory.halves.reshape(lanes, -1)),
            (self.is_slot, batch.is_slot),
            (self.slot_grant * self.is_slot, batch.slot_grant * self.is_slot),
            (self.clock[:, None], batch.clock[:, None]),
            (self.printed[:, None], batch.printed[:, None]),
        ]
        for mine, theirs in by_lane:
            if not np.array_equal(mine, theirs):
                wrong |= (mine != theirs).any(axis=1)
        for name, table in self.tables.items():
            wrong |= table.differs(getattr(batch, name))
        return wrong

    def misread(self) -> Indices:
        """Lanes of which the arrays aren't what the reference holds, read anew: none, unless what is written isn't said."""
        other = Mirror(self.batch, self.monitors)
        for lane, monitor in enumerate(self.monitors):
            other.note_lane(lane)
            other._granules += [(lane, index, *granule) for index, granule in cast(_Store, monitor.memory.store).written()]
            for name, log in other._rows.items():
                log += [(lane, *row_values(name, number, row)) for number, row in getattr(monitor, name).rows.items()]
            for number, thread in enumerate(cast(list[Thread], monitor.threads)):
                place, registers = number * self.lanes + lane, cast(list[Capability], thread.hart.registers)
                other._registers += [(row, place, *cap[1:]) for row, cap in enumerate(registers)]
        other.apply()
        wrong = np.zeros(self.lanes, np.bool_)
        for mine, theirs in zip(self._by_lane(), other._by_lane(), strict=True):
            wrong |= (mine != theirs).any(axis=1)
        return np.flatnonzero(wrong)

    def _by_lane(self) -> Iterator[NDArray[Any]]:
        """All arrays, as [lanes, ...]."""
        inside = self.frames["is_inside"]
        of_harts = [self.tags, self.metas, self.addresses, self.pc, self.is_reserved, *self.numbers.values()]
        of_harts += [*self.threads.values(), *(column * inside for column in self.frames.values())]
        yield from (array.reshape(-1, self.lanes).T for array in of_harts)
        of_lanes = [self.granule_tags, self.halves, self.is_slot, self.slot_grant, self.clock, self.printed]
        of_lanes += [column for table in self.tables.values() for column in table.columns.values()]
        yield from (array.reshape(self.lanes, -1) for array in of_lanes)


def _reset_registers(fmt: Any, harts: int) -> tuple[Flags, NDArray[np.uint64], NDArray[np.uint64]]:
    """Registers of harts that were just made."""
    tags, metas = np.zeros((ROWS, harts), np.bool_), np.full((ROWS, harts), fmt.null_meta, np.uint64)
    for name, each in SPECIAL_REGISTERS.items():
        if each.resets_to_root:
            tags[SPECIAL_ROWS[name]], metas[SPECIAL_ROWS[name]] = True, fmt.root_meta
    return tags, metas, np.zeros((ROWS, harts), np.uint64)


def _columns(rows: Sequence[Iterable[Any]]) -> list[NDArray[np.uint64]]:
    """The columns of rows of numbers, as arrays. Of two writes to one place the later one counts where they are used."""
    width = len(tuple(rows[0]))
    flat = np.fromiter(itertools.chain.from_iterable(rows), np.uint64, width * len(rows))
    return list(flat.reshape(-1, width).T)


def _taken(log: Log) -> list[NDArray[np.uint64]]:
    """The columns of a log, which is empty then."""
    columns = _columns(log)
    log.clear()
    return columns
