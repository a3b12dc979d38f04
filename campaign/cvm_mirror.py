"""The reference's systems of cVMs, one a lane, and their states in arrays as the fast path has them.

The reference's parts say what is written to them, so that the arrays are brought up to date by what a step wrote; compared
is always the whole state of all lanes. `misread` reads the whole state anew, without what was said: at the end of a unit
that must be the same.
"""

from collections.abc import Iterator
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from capvisor.campaign.cvm_states import TABLES, THREAD_FIELDS, expected_frame, row_values
from capvisor.campaign.hart_mirror import NONE, HartMirror, columns_of, put, taken
from capvisor.campaign.hart_mirror import PARTS as OF_HARTS
from capvisor.campaign.noted import Log, NotedRows
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.monitor import BatchMonitor
from capvisor.fastpath.tables import Table
from capvisor.fastpath.workspace import Flags
from capvisor.model.capability import Capability
from capvisor.model.monitor import Monitor, Rows, Thread
from capvisor.spec.formats import Permission

PARTS = (*OF_HARTS, "threads", "calls", "tables", "host")
"""What is compared. `calls` is what the monitor works with between the two parts of one; `host` its clock and output."""

_THREAD_STATE = attrgetter(*THREAD_FIELDS)


class _Monitor(Monitor):
    """A monitor that mints each capability once: what comes of it depends on the arguments alone."""

    minted: dict[tuple[int, int, int], tuple[Capability, bool]]

    def mint(self, base: int, size: int, permissions: Permission) -> tuple[Capability, bool]:
        key = base, size, permissions._value_
        found = self.minted.get(key)
        if found is None:
            found = self.minted[key] = super().mint(base, size, permissions)
        return found


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
        where, numbers, *columns = columns_of(rows)
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


class Mirror(HartMirror):
    """Monitors of the reference, one for each lane of a fast path, and what is known of their states."""

    parts = PARTS

    def __init__(self, batch: BatchMonitor, monitors: list[Monitor] | None = None) -> None:
        """With new monitors, unless some are given that belong to another mirror."""
        super().__init__(batch)
        self._threads: Log = []
        self._frames: Log = []
        self._rows: dict[str, Log] = {name: [] for name in (*TABLES, "slots")}
        self._hosts: Log = []
        self._minted: dict[tuple[int, int, int], tuple[Capability, bool]] = {}
        self._thread_states: dict[int, tuple[tuple[Any, ...], Any]] = {}
        self.monitors = [self._monitor(lane) for lane in range(self.lanes)] if monitors is None else monitors

    def make_arrays(self) -> None:
        super().make_arrays()
        batch = self.batch
        self.threads = {name: np.zeros_like(column) for name, column in batch.threads.items()}
        self.frames = {name: np.zeros_like(column) for name, column in batch.frames.items()}
        self.tables = {name: TableMirror(self.lanes, getattr(batch, name)) for name in TABLES}
        self.is_slot = np.zeros((self.lanes, batch.memory.granules), np.bool_)
        self.slot_grant = np.zeros((self.lanes, batch.memory.granules), np.uint64)
        self.clock, self.printed = np.zeros(self.lanes, np.uint64), np.zeros(self.lanes, np.uint64)

    def _monitor(self, lane: int) -> Monitor:
        def make_table(name: str, empty: Any) -> Rows:
            return NotedRows(empty, lane, self._rows[name], partial(row_values, name))

        make_hart = self.hart_maker(lane, lambda: len(cast(list[Thread], monitor.threads)))
        monitor = _Monitor(self.memory(lane), self.batch.policy, make_table, make_hart=make_hart)
        monitor.minted = self._minted
        return monitor

    # -- what the reference did --------------------------------------------------------------------------------------------

    def note_thread(self, place: int, thread: Thread) -> None:
        """Note what the monitor knows of a thread, if that is something else."""
        state, frame = self._thread_states.get(place, (None, None))
        now = _THREAD_STATE(thread)
        if now != state:
            self._threads.append((place, True, *now))
        if thread.frame is not frame:
            self._frames.append((place, *expected_frame(thread)))
        self._thread_states[place] = now, thread.frame

    def note_lane(self, lane: int) -> None:
        """Note everything of a lane but registers, memory and tables, which say themselves what is written."""
        monitor = self.monitors[lane]
        for number, thread in enumerate(cast(list[Thread], monitor.threads)):
            place = number * self.lanes + lane
            self.note_hart(place, thread.hart)
            self.note_thread(place, thread)
        self._hosts.append((lane, monitor.clock, monitor.printed))

    def apply(self) -> Written:
        """Bring the arrays up to date."""
        registers, granules = self.apply_harts()
        limit, threads = len(self.pc), []
        for log, columns_of_part, part in ((self._threads, self.threads, "threads"), (self._frames, self.frames, "calls")):
            if log:
                which, *columns = taken(log)
                of_threads: Indices = which.astype(np.int64)
                for name, column in zip(columns_of_part, columns, strict=True):
                    put(columns_of_part[name], of_threads, column, limit)
                self.changed[part] += len(of_threads)
                threads.append(of_threads[of_threads < limit])
        found = np.unique(np.concatenate(threads)) if threads else NONE
        return Written(registers, (granules.lanes, granules.indices), found, self._apply_tables())

    def _apply_tables(self) -> Indices:
        lanes = []
        for name, log in self._rows.items():
            if log and name == "slots":
                where, granules, is_slot, grant = taken(log)
                at = where.astype(np.int64), granules.astype(np.int64)
                self.is_slot[at], self.slot_grant[at] = is_slot, grant
                lanes.append(at[0])
            elif log:
                rows = log.copy()
                log.clear()
                self.tables[name].write(getattr(self.batch, name), rows)
                lanes.append(np.array([row[0] for row in rows], np.int64))
        if self._hosts:
            where, clock, printed = taken(self._hosts)
            at_lanes = where.astype(np.int64)
            other = (self.clock[at_lanes] != clock) | (self.printed[at_lanes] != printed)
            self.changed["host"] += int(np.count_nonzero(other))
            self.clock[at_lanes], self.printed[at_lanes] = clock, printed
        found = np.unique(np.concatenate(lanes)) if lanes else NONE
        self.changed["tables"] += len(found)
        return found

    def grow(self) -> int:
        more = super().grow()
        if more:
            for columns in (self.threads, self.frames):
                for name, column in columns.items():
                    columns[name] = np.concatenate([column, np.zeros(more, column.dtype)])
        return more

    # -- comparing ---------------------------------------------------------------------------------------------------------

    def differing(self) -> Flags:
        """The lanes whose whole state isn't the fast path's."""
        batch, lanes = self.batch, self.lanes
        wrong, inside = self.differing_harts(), self.frames["is_inside"]
        by_hart = [
            *((self.threads[name], batch.threads[name]) for name in batch.threads),
            (inside, batch.frames["is_inside"]),
            # What was put down of a call that is over means nothing.
            *((self.frames[name] * inside, batch.frames[name] * inside) for name in batch.frames if name != "is_inside"),
        ]
        for mine, theirs in by_hart:
            if not np.array_equal(mine, theirs):
                wrong |= (mine != theirs).reshape(-1, lanes).any(axis=0)
        by_lane: list[tuple[NDArray[Any], NDArray[Any]]] = [
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
            other.read_anew(lane, monitor.memory.store, [thread.hart for thread in cast(list[Thread], monitor.threads)])
            for name, log in other._rows.items():
                log += [(lane, *row_values(name, number, row)) for number, row in getattr(monitor, name).rows.items()]
        other.apply()
        wrong = np.zeros(self.lanes, np.bool_)
        for mine, theirs in zip(self.arrays_by_lane(), other.arrays_by_lane(), strict=True):
            wrong |= (mine != theirs).any(axis=1)
        return np.flatnonzero(wrong)

    def arrays_by_lane(self) -> Iterator[NDArray[Any]]:
        """All arrays, as [lanes, ...]."""
        yield from super().arrays_by_lane()
        inside = self.frames["is_inside"]
        of_threads = [*self.threads.values(), *(column * inside for column in self.frames.values())]
        yield from (array.reshape(-1, self.lanes).T for array in of_threads)
        of_lanes = [self.is_slot, self.slot_grant, self.clock, self.printed]
        of_lanes += [column for table in self.tables.values() for column in table.columns.values()]
        yield from (array.reshape(self.lanes, -1) for array in of_lanes)
