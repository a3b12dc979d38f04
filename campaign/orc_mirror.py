"""The reference's systems of shared objects, one a lane, and their states in arrays as the fast path has them."""

from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capvisor.campaign.hart_mirror import NONE, Granules, HartMirror, put, taken
from capvisor.campaign.hart_mirror import PARTS as OF_HARTS
from capvisor.campaign.noted import Log, NotedRows
from capvisor.campaign.orc_states import THREAD_FIELDS
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.objects import BatchObjects
from capvisor.fastpath.workspace import Flags
from capvisor.model.capability import Capability
from capvisor.model.object_tables import SlotId, TenantThread
from capvisor.model.objects import ObjectMonitor
from capvisor.model.tables import Rows
from capvisor.spec.formats import Permission

TABLES = {"slots": 1, "mappings": 2, "exports": 2, "tenants": 1}
"""The base's tables, each by so many numbers."""

PARTS = (*OF_HARTS, "threads", *TABLES)
"""What is compared."""

Columns = dict[str, NDArray[Any]]
Tables = dict[str, Columns]
_THREAD_STATE = attrgetter(*THREAD_FIELDS)


def _flat(number: Any, row: Any) -> tuple[int, ...]:
    keys = number if isinstance(number, tuple) else (number,)
    return (*keys, *row) if isinstance(row, tuple) else (*keys, row)


class _Monitor(ObjectMonitor):
    """A base that mints each capability to a whole slot once: what comes of it depends on the arguments alone."""

    minted: dict[tuple[SlotId, int], Capability]

    def slot_capability(self, slot: SlotId, permissions: Permission) -> Capability:
        key = slot, permissions._value_
        found = self.minted.get(key)
        if found is None:
            found = self.minted[key] = super().slot_capability(slot, permissions)
        return found


class Written(NamedTuple):
    """What a step has written, of the reference's state."""

    registers: tuple[Indices, Indices]
    """Rows and harts."""
    granules: Granules
    threads: Indices
    """Harts of threads that are new, or that have ended."""
    tables: dict[str, tuple[Indices, ...]]
    """By table, the rows: lanes, and keys."""
    before: Tables
    """The tables as they were before the step."""


class Mirror(HartMirror):
    """Bases of the reference, one for each lane of a fast path, and their states."""

    parts = PARTS

    def __init__(self, batch: BatchObjects, monitors: list[ObjectMonitor] | None = None) -> None:
        """With new bases, unless some are given that belong to another mirror."""
        super().__init__(batch)
        self._threads: Log = []
        self._thread_states: dict[int, tuple[Any, ...]] = {}
        self._rows: dict[str, Log] = {name: [] for name in TABLES}
        self._minted: dict[tuple[SlotId, int], Capability] = {}
        self.monitors = [self._monitor(lane) for lane in range(self.lanes)] if monitors is None else monitors

    def make_arrays(self) -> None:
        super().make_arrays()
        self.tables: Tables = {
            name: {key: np.zeros_like(each) for key, each in columns.items()}
            for name, columns in tables_of(self.batch).items()
        }
        self.threads = {name: np.zeros_like(column) for name, column in self.batch.threads.items()}

    def _monitor(self, lane: int) -> ObjectMonitor:
        def make_table(name: str, empty: Any) -> Rows:
            return NotedRows(empty, lane, self._rows[name], _flat)

        batch: BatchObjects = self.batch
        monitor = _Monitor(
            self.memory(lane),
            batch.policy,
            batch.shape,
            make_table,
            make_hart=self.hart_maker(lane, lambda: len(monitor.threads)),
        )
        monitor.minted = self._minted
        return monitor

    # -- what the reference did --------------------------------------------------------------------------------------------

    def note_lane(self, lane: int) -> None:
        """Note all threads of a lane, after an operation: it may have changed any of them."""
        for number, thread in enumerate(self.monitors[lane].threads):
            place = number * self.lanes + lane
            self.note_hart(place, thread.hart)
            self._note_thread(place, thread)

    def _note_thread(self, place: int, thread: TenantThread) -> None:
        now = _THREAD_STATE(thread)
        if now != self._thread_states.get(place):
            self._threads.append((place, True, *now))
            self._thread_states[place] = now

    def apply(self) -> Written:
        """Bring the arrays up to date."""
        registers, granules = self.apply_harts()
        limit, threads = len(self.pc), NONE
        if self._threads:
            which, *columns = taken(self._threads)
            places = which.astype(np.int64)
            for name, column in zip(self.threads, columns, strict=True):
                put(self.threads[name], places, column, limit)
            self.changed["threads"] += len(places)
            threads = np.unique(places[places < limit])
        before, written = dict(self.tables), {}
        for name, log in self._rows.items():
            if log:
                before[name] = {key: column.copy() for key, column in self.tables[name].items()}
                self.changed[name] += len(log)
                written[name] = self._apply_table(name, log)
        return Written(registers, granules, threads, written, before)

    def _apply_table(self, name: str, log: Log) -> tuple[Indices, ...]:
        numbers, width = taken(log), 1 + TABLES[name]
        place = tuple(each.astype(np.int64) for each in numbers[:width])
        at = (*place[:-1], place[-1] >> 1) if name == "exports" else place
        for column, values in zip(self.tables[name].values(), numbers[width:], strict=True):
            column[at] = values
        return place

    def grow(self) -> int:
        more = super().grow()
        if more:
            self.threads = {name: np.concatenate([each, np.zeros(more, each.dtype)]) for name, each in self.threads.items()}
        return more

    # -- comparing ---------------------------------------------------------------------------------------------------------

    def differing(self) -> Flags:
        """The lanes whose whole state isn't the fast path's."""
        lanes, wrong = self.lanes, self.differing_harts()
        for name, mine in self.threads.items():
            theirs = self.batch.threads[name]
            if not np.array_equal(mine, theirs):
                wrong |= (mine != theirs).reshape(-1, lanes).any(axis=0)
        theirs_of = tables_of(self.batch)
        for name, columns in self.tables.items():
            for key, mine in columns.items():
                if not np.array_equal(mine, theirs_of[name][key]):
                    wrong |= (mine != theirs_of[name][key]).reshape(lanes, -1).any(axis=1)
        return wrong

    def misread(self) -> Flags:
        """Lanes of which the arrays aren't what the reference holds, read anew: none, unless what is written isn't said."""
        other = Mirror(self.batch, self.monitors)
        for lane, monitor in enumerate(self.monitors):
            other.note_lane(lane)
            other.read_anew(lane, monitor.memory.store, [thread.hart for thread in monitor.threads])
            for name, log in other._rows.items():
                log += [(lane, *_flat(number, row)) for number, row in getattr(monitor, name).rows.items()]
        other.apply()
        wrong = np.zeros(self.lanes, np.bool_)
        for mine, theirs in zip(self.arrays_by_lane(), other.arrays_by_lane(), strict=True):
            wrong |= (mine != theirs).any(axis=1)
        for name, column in self.threads.items():
            wrong |= (column != other.threads[name]).reshape(-1, self.lanes).any(axis=0)
        for name, columns in self.tables.items():
            for key, column in columns.items():
                wrong |= (column != other.tables[name][key]).reshape(self.lanes, -1).any(axis=1)
        return wrong


def tables_of(batch: BatchObjects) -> Tables:
    """The base's tables of the fast path."""
    return {"slots": batch.slots, "mappings": batch.mappings, "exports": {"": batch.exports}, "tenants": batch.tenants}
