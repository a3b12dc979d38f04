"""The reference's machines with a para-pass-through VMM, one a lane, and their states in arrays as the fast path has them.

The reference's tables say what is written to them, and so does the fast path's memory. After every step all tables are
compared whole, and of both machines' memory every block that either implementation has written: of all others both have what
was equal before. At the end (`misread`) the reference's state is read anew, and memory is compared whole too.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capvisor.campaign.noted import Log, NotedMemory, NotedTable
from capvisor.campaign.vmm_states import DENSE, KEYED, NUMBERS, PARTS, STORES, columns_of, load, tables_of
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.tables import Table
from capvisor.fastpath.vmm import BatchVmm
from capvisor.fastpath.workspace import Flags, Words
from capvisor.model.vmm import System

Columns = dict[str, NDArray[Any]]
Changes = dict[str, tuple[Indices, ...]]
"""By part, the rows that a step of the reference has written: lanes, and keys."""


class _KeyedMirror:
    """What the reference has in tables that are one of the fast path's: rows where that has those of the same numbers."""

    def __init__(self, lanes: int, table: Table) -> None:
        self.columns = {name: np.zeros_like(column) for name, column in table.columns.items()}
        self.lost = np.zeros(lanes, np.bool_)
        """Lanes with something in a row that the fast path has not."""

    def write(self, table: Table, lanes: Indices, numbers: Words, columns: dict[str, Words]) -> tuple[Words, ...]:
        """Write some columns of rows; what they were before."""
        self._grow(table)
        at = table.find(lanes, numbers)
        before = tuple(self.columns[name][lanes, at] for name in columns)
        missing = at == 0
        if missing.any():
            something = np.logical_or.reduce([column != 0 for column in columns.values()])
            self.lost[lanes[missing & something]] = True
            there = ~missing
            lanes, at = lanes[there], at[there]
            columns = {name: column[there] for name, column in columns.items()}
        for name, values in columns.items():
            self.columns[name][lanes, at] = values
        return before

    def _grow(self, table: Table) -> None:
        for name, column in self.columns.items():
            more = table.columns[name].shape[1] - column.shape[1]
            if more:
                self.columns[name] = np.pad(column, ((0, 0), (0, more)))

    def differs(self, table: Table) -> Flags:
        """The lanes in which it isn't the fast path's."""
        self._grow(table)
        wrong = self.lost.copy()
        for name, mine in self.columns.items():
            theirs = table.columns[name]
            if not np.array_equal(mine, theirs):
                wrong |= (mine != theirs).any(axis=1)
        return wrong


class Mirror:
    """The machines of all lanes of a batch, and their states: `tables` by part, each its columns by name."""

    def __init__(self, batch: BatchVmm, start: Callable[[System], None]) -> None:
        """New machines, one for each lane of a new batch, all as `start` makes them."""
        self.batch, self.lanes = batch, batch.lanes
        self._start_logs()
        self.models = [self._model(lane) for lane in range(batch.lanes)]
        self._blank = _copies(columns_of(batch))
        self._empty()
        self._watch_memory()
        for model in self.models:
            start(model)
        load(self.models[0], batch, np.arange(batch.lanes))
        self.apply()
        self.changed = dict.fromkeys(PARTS, 0)

    def _empty(self) -> None:
        self.tables: dict[str, Columns] = _copies(self._blank)
        self._keyed = {name: _KeyedMirror(self.lanes, getattr(self.batch, name)) for name in NUMBERS}
        self._stores: dict[str, Words] = {name: np.zeros(getattr(self.batch, name).shape, np.uint64) for name in STORES}

    def _start_logs(self) -> None:
        self._logs: dict[str, Log] = {name: [] for name in PARTS}
        self.noted: tuple[list[Any], list[Any]] = ([], [])
        """What all models touch, and what sectors their devices move, one after the other."""
        self.before: dict[str, tuple[Words, ...]] = {}
        """What rows that the last step has written were before it, of memory and of what is by numbers in the fast path, by
        columns.
        """
        self.changed = dict.fromkeys(PARTS, 0)
        """How many rows and blocks the reference has written, by part."""

    def _watch_memory(self) -> None:
        self._watched = {name: NotedMemory(getattr(self.batch, name)) for name in STORES}
        for name, watched in self._watched.items():
            setattr(self.batch, name, watched)

    def _model(self, lane: int) -> System:
        batch, logs = self.batch, self._logs

        def make_table(name: str, empty: Any) -> Any:
            return NotedTable(empty, lane, logs[name])

        region = batch.region_first, batch.region_behind
        model = System(batch.frame_count, region, batch.vcpu_count, batch.device_count, batch.policy, table=make_table)
        model.touches, model.moves = self.noted
        return model

    # -- what the reference did --------------------------------------------------------------------------------------------

    def apply(self) -> Changes:
        """Bring the arrays up to date."""
        changes: Changes = {}
        for name, log in self._logs.items():
            if log:
                changes[name] = self._apply(name, log)
                self.changed[name] += len(log)
                log.clear()
        return changes

    def _apply(self, name: str, log: Log) -> tuple[Indices, ...]:
        count = len(log)
        lanes, keys, rows = zip(*log, strict=True)
        lane = np.fromiter(lanes, np.int64, count)
        key = _columns(keys, count)
        columns = _columns(rows, count)
        if name in KEYED:
            part = KEYED[name]
            table = getattr(self.batch, part.table)
            numbers = NUMBERS[part.table](*key)
            written = dict(zip(part.columns, columns, strict=True))
            self.before[name] = self._keyed[part.table].write(table, lane, numbers, written)
        elif name in STORES:
            at = key[0].astype(np.int64)
            self.before[name] = (self._stores[name][lane, at],)
            self._stores[name][lane, at] = columns[0]
            self._watched[name].written.append((lane, at))
        else:
            place = (lane, *(each.astype(np.int64) for each in key[: DENSE[name]]))
            for column, values in zip(self.tables[name].values(), columns, strict=True):
                column[place] = values
        return lane, *(each.astype(np.int64) for each in key)

    # -- comparing ---------------------------------------------------------------------------------------------------------

    def differing(self) -> Flags:
        """The lanes whose state isn't the fast path's: all tables, and every block that one of the two has written."""
        wrong = np.zeros(self.lanes, np.bool_)
        theirs = columns_of(self.batch)
        for name, columns in self.tables.items():
            for key, mine in columns.items():
                if not np.array_equal(mine, theirs[name][key]):
                    wrong |= (mine != theirs[name][key]).reshape(self.lanes, -1).any(axis=1)
        for name, keyed in self._keyed.items():
            wrong |= keyed.differs(getattr(self.batch, name))
        for name, watched in self._watched.items():
            mine = self._stores[name]
            for place in watched.written:
                other = watched.array[place] != mine[place]
                if other.any():
                    wrong[place[0][other]] = True
            watched.written.clear()
        return wrong

    def misread(self) -> Flags:
        """The lanes of which the arrays aren't what the reference holds, read anew, or memory isn't the fast path's.

        There are none, unless something is written and not said.
        """
        other = object.__new__(Mirror)
        other.batch, other.lanes, other._blank = self.batch, self.lanes, self._blank
        other._start_logs()
        other._empty()
        other._watched = {name: NotedMemory(watched.array) for name, watched in self._watched.items()}
        for lane, model in enumerate(self.models):
            for name, rows in tables_of(model).items():
                other._logs[name] += [(lane, number, row) for number, row in rows.items()]
        other.apply()
        wrong = np.zeros(self.lanes, np.bool_)
        for name, columns in other.tables.items():
            for key, anew in columns.items():
                wrong |= (anew != self.tables[name][key]).reshape(self.lanes, -1).any(axis=1)
        for name, keyed in other._keyed.items():
            wrong |= keyed.differs(getattr(self.batch, name))
        for name, anew in other._stores.items():
            for mine in (self._stores[name], self._watched[name].array):
                if not np.array_equal(anew, mine):
                    wrong |= (anew != mine).any(axis=1)
        return wrong


def _copies(tables: dict[str, Columns]) -> dict[str, Columns]:
    return {name: {key: column.copy() for key, column in columns.items()} for name, columns in tables.items()}


def _columns(rows: Iterable[Any], count: int) -> list[NDArray[Any]]:
    """Rows, which are numbers or tuples of numbers, as columns."""
    rows = tuple(rows)
    if isinstance(rows[0], tuple):
        return list(np.array(rows, np.uint64).T)
    return [np.fromiter(rows, np.uint64, count)]
