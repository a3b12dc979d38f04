"""The reference's systems of translation pass-through, one a lane, and their states in arrays as the fast path has them.

The reference's tables say what is written to them, and so does the fast path's memory. After every step all tables are
compared whole, and of memory and of the disk every word that either of the two has written: of all others both have what was
equal before. At the end (`misread`) the reference's state is read anew, and memory is compared whole too.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from capvisor.campaign.cvm_mirror import TableMirror
from capvisor.campaign.noted import Log, NotedMemory, NotedTable
from capvisor.campaign.tpt_states import copy_state, tables_of
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.tpt import BatchSystem, mapping_numbers
from capvisor.fastpath.workspace import Flags, Words
from capvisor.model.paging import SparseWords, Walk
from capvisor.model.tags import TagTable
from capvisor.model.tlb import CachedTable, Translation
from capvisor.model.tpt import FrameRow, Mapping, Swap, System, Vcpu, Vm
from capvisor.spec.paging import FREE, Entry
from capvisor.spec.tpt import CACHE_SLOTS, TLB_SLOTS

Columns = dict[str, NDArray[Any]]

_ROWS: dict[str, tuple[Any, int]] = {
    "tags": (FREE, 1),
    "large": (False, 1),
    "frames": (FrameRow(), 1),
    "pending": (0, 1),
    "vms": (Vm(), 1),
    "p2m": (Mapping(), 2),
    "vcpus": (Vcpu(), 1),
    "asids": (0, 2),
    "tlb": (Translation(), 2),
    "caches": (CachedTable(), 2),
    "walks": (Walk(), 1),
    "devices": (0, 1),
    "iotlb": (0, 1),
    "swaps": (Swap(), 1),
}
"""The reference's tables: an empty row, and of how many numbers its key is."""

_SLOTS = {"tlb": TLB_SLOTS, "caches": CACHE_SLOTS}

STORES = ("words", "disk")
PARTS = (*_ROWS, *STORES)
"""What is compared: the tables, memory and what was swapped out."""

Changes = dict[str, tuple[Indices, ...]]
"""By part, the rows that a step of the reference has written: lanes, and keys. `runs` are vCPUs that run for others now."""


class _NotedWords(SparseWords):
    """Frames that say what is written to them: words, and whole frames by where their content is from."""

    lane: int
    name: str
    log: Log
    frame_log: Log

    def set(self, frame: int, index: int, value: int) -> None:
        if frame < self.frames:
            self.words.setdefault(frame, {})[index] = value
            self.log.append((self.lane, frame, index, value))

    def clear(self, frame: int) -> None:
        super().clear(frame)
        self.frame_log.append((self.lane, frame, None, 0))

    def copy(self, target: int, store: SparseWords, source: int) -> None:
        super().copy(target, store, source)
        self.frame_log.append((self.lane, target, cast(_NotedWords, store).name, source))


def _numbers(rows: Iterable[Sequence[Any]], width: int, count: int) -> Words:
    """Numbers of rows, uint64[width, count]."""
    return np.fromiter(itertools.chain.from_iterable(rows), np.uint64, width * count).reshape(count, width).T


def _at(array: NDArray[Any]) -> Indices:
    return array.astype(np.int64)


class Mirror:
    """The systems of all lanes of a batch, and their states: `tables` by part, each its columns by name."""

    def __init__(self, batch: BatchSystem) -> None:
        """New systems, one for each lane of a new batch."""
        self.batch, self.lanes = batch, batch.lanes
        self._start_logs()
        self.models = [self._model(lane) for lane in range(batch.lanes)]
        self.tables: dict[str, Columns] = {name: _zeros(columns) for name, columns in columns_of(batch).items()}
        self.tables["frames"]["is_clean"].fill(True)
        self.p2m = TableMirror(batch.lanes, batch.p2m)
        self.words, self.disk = (np.zeros(array.shape, np.uint64) for array in (batch.words, batch.disk))
        self._watch_memory()

    def _start_logs(self) -> None:
        self._logs: dict[str, Log] = {name: [] for name in _ROWS}
        self._words: dict[str, Log] = {name: [] for name in STORES}
        self._frames: dict[str, Log] = {name: [] for name in STORES}
        self.noted: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
        """What all models touch, retag and handle, one after the other."""
        self.changed = dict.fromkeys(PARTS, 0)
        """How many rows, words and whole frames the reference has written, by part."""

    def _watch_memory(self) -> None:
        self._watched = {name: NotedMemory(getattr(self.batch, name)) for name in STORES}
        for name, watched in self._watched.items():
            setattr(self.batch, name, watched)

    def _model(self, lane: int) -> System:
        batch, logs, vcpus = self.batch, self._logs, range(self.batch.vcpu_count)
        slots = {name: list(itertools.product(vcpus, range(count))) for name, count in _SLOTS.items()}
        stores = {}
        for name, frames in (("words", batch.frame_count), ("disk", batch.disk.shape[1])):
            store = stores[name] = _NotedWords(frames)
            store.lane, store.name, store.log, store.frame_log = lane, name, self._words[name], self._frames[name]
        tags: Any = TagTable(batch.frame_count)
        tags.tags, tags.large = NotedTable(FREE, lane, logs["tags"]), NotedTable(False, lane, logs["large"])

        def make_table(name: str, empty: Any) -> Any:
            table = NotedTable(empty, lane, logs[name])
            # Slots are looked up at every access: none of them is missing.
            dict.update(table, dict.fromkeys(slots.get(name, ()), empty))
            return table

        numbers = batch.frame_count, batch.vcpu_count, batch.device_count
        model = System(*numbers, batch.policy, make_table, stores["words"], stores["disk"], tags)
        model.touches, model.retags, model.handled = self.noted
        return model

    def repeated(self, lanes: int) -> "Mirror":
        """So many systems, each as the first of these is, with the fast path's."""
        batch = self.batch
        for name, watched in self._watched.items():
            setattr(batch, name, watched.array)
        other = object.__new__(Mirror)
        other.batch, other.lanes = batch.repeated(lanes), lanes
        other._start_logs()
        other.models = [other._model(lane) for lane in range(lanes)]
        for model in other.models:
            copy_state(self.models[0], model)
        other.tables = {
            name: {key: np.repeat(column[:1], lanes, axis=0) for key, column in columns.items()}
            for name, columns in self.tables.items()
        }
        other.p2m = TableMirror(lanes, other.batch.p2m)
        for name in ("numbers", "is_used", "lost"):
            setattr(other.p2m, name, np.repeat(getattr(self.p2m, name)[:1], lanes, axis=0))
        other.p2m.columns = {name: np.repeat(each[:1], lanes, axis=0) for name, each in self.p2m.columns.items()}
        for name in STORES:
            held, words = getattr(self, name)[0], np.zeros(getattr(other.batch, name).shape, np.uint64)
            for frame in np.flatnonzero(held.any(axis=1)):
                words[:, frame] = held[frame]
            setattr(other, name, words)
        other._watch_memory()
        return other

    # -- what the reference did --------------------------------------------------------------------------------------------

    def apply(self) -> Changes:
        """Bring the arrays up to date."""
        changes: Changes = {}
        for name, log in self._logs.items():
            if log:
                changes[name] = self._apply(name, log, changes)
                self.changed[name] += len(log)
                log.clear()
        self._apply_words(changes)
        return changes

    def _apply(self, name: str, log: Log, changes: Changes) -> tuple[Indices, ...]:
        empty, key_width = _ROWS[name]
        lanes, keys, rows = zip(*log, strict=True)
        count = len(log)
        lane = np.fromiter(lanes, np.int64, count)
        if key_width == 1:
            key: tuple[Indices, ...] = (np.fromiter(keys, np.int64, count),)
        else:
            key = tuple(_at(each) for each in _numbers(keys, key_width, count))
        if isinstance(empty, tuple):
            columns = dict(zip(empty._fields, _numbers(rows, len(empty), count), strict=True))  # type: ignore[attr-defined]
        else:
            columns = {"": np.fromiter(rows, np.uint64, count)}
        return self._put(name, (lane, *key), columns, changes)

    def _put(
        self, name: str, place: tuple[Indices, ...], columns: dict[str, Words], changes: Changes
    ) -> tuple[Indices, ...]:
        table = self.tables.get(name, {})
        if name == "p2m":
            lane, vm, guest_frame = place
            numbers = mapping_numbers(vm.astype(np.uint64), guest_frame.astype(np.uint64))
            self.p2m.write(self.batch.p2m, list(zip(lane, numbers, *columns.values(), strict=True)))
            return place
        if name in ("pending", "iotlb"):
            bits = table[""].shape[2 if name == "pending" else 1]
            for bit in range(bits):
                at: tuple[Any, ...] = (*place, bit) if name == "pending" else (place[0], bit, place[1])
                table[""][at] = columns[""] >> np.uint64(bit) & np.uint64(1)
            return place
        if "is_executable" in columns:
            columns["rights"] = _rights(columns, "is_user_page" if name == "walks" else "is_user")
        if name == "vcpus":
            was = [table[each][place] for each in ("vm", "asid")]
            other = (was[0] != columns["vm"]) | (was[1] != columns["asid"])
            changes["runs"] = place[0][other], place[1][other]
        for key, column in table.items():
            column[place] = columns[key]
        return place

    def _apply_words(self, changes: Changes) -> None:
        for name, log in self._words.items():
            array: Words = getattr(self, name)
            places = []
            for lane, frame, source, number in self._frames[name]:
                array[lane, frame] = 0 if source is None else getattr(self, source)[lane, number]
                places.append((lane, frame))
            self.changed[name] += len(log) + len(places)
            if log:
                lane, frame, index, value = _numbers(log, 4, len(log))
                array[_at(lane), _at(frame), _at(index)] = value
                self._written(name).append((_at(lane), _at(frame), _at(index)))
                changes[name] = _at(lane), _at(frame)
                log.clear()
            if places:
                lanes, frames = np.array(places, np.int64).T
                self._written(name).append((lanes, frames))
                changes[name] = lanes, frames
                self._frames[name].clear()

    def _written(self, name: str) -> list[tuple[NDArray[Any], ...]]:
        return self._watched[name].written

    # -- comparing ---------------------------------------------------------------------------------------------------------

    def differing(self) -> Flags:
        """The lanes whose state isn't the fast path's: all tables, and every word that one of the two has written."""
        wrong = self.p2m.differs(self.batch.p2m)
        theirs = columns_of(self.batch)
        for name, columns in self.tables.items():
            for key, mine in columns.items():
                if not np.array_equal(mine, theirs[name][key]):
                    wrong |= (mine != theirs[name][key]).reshape(self.lanes, -1).any(axis=1)
        for name, watched in self._watched.items():
            mine = getattr(self, name)
            for place in watched.written:
                other = watched.array[place] != mine[place]
                if other.any():
                    wrong[place[0][other.reshape(len(other), -1).any(axis=1)]] = True
            watched.written.clear()
        return wrong

    def misread(self) -> Flags:
        """The lanes of which the arrays aren't what the reference holds, read anew, or memory isn't the fast path's.

        There are none, unless something is written and not said.
        """
        other = object.__new__(Mirror)
        other.batch, other.lanes = self.batch, self.lanes
        other._start_logs()
        other.tables = {name: _zeros(columns) for name, columns in self.tables.items()}
        other.tables["frames"]["is_clean"].fill(True)
        other.p2m = TableMirror(self.lanes, self.batch.p2m)
        wrong = np.zeros(self.lanes, np.bool_)
        for lane, model in enumerate(self.models):
            for name, table in tables_of(model).items():
                other._logs[name] += [(lane, number, row) for number, row in table.rows.items()]
            for name, store in (("words", model.memory), ("disk", model.disk)):
                array, count = getattr(self, name)[lane], 0
                for frame, index, word in cast(SparseWords, store).written():
                    wrong[lane] |= array[frame, index] != word
                    count += 1
                wrong[lane] |= count != np.count_nonzero(array) or not np.array_equal(array, self._watched[name].array[lane])
        for name, log in other._logs.items():
            if log:
                other._apply(name, log, {})
        for name, columns in self.tables.items():
            for key, mine in columns.items():
                wrong |= (mine != other.tables[name][key]).reshape(self.lanes, -1).any(axis=1)
        for key, mine in self.p2m.columns.items():
            wrong |= (mine != other.p2m.columns[key]).any(axis=1)
        return wrong


def columns_of(batch: BatchSystem) -> dict[str, Columns]:
    """The tables of the fast path but the map, by the names of the reference's parts."""
    slots = {"next_tlb": batch.tlb.next, "next_cache": batch.caches.next}
    return {
        "tags": {"": batch.tags},
        "large": {"": batch.large},
        "frames": batch.frames,
        "pending": {"": batch.pending},
        "vms": batch.vms,
        "vcpus": {**batch.vcpus, **slots},
        "asids": {"": batch.asids},
        "tlb": batch.tlb.columns,
        "caches": batch.caches.columns,
        "walks": batch.walks,
        "devices": {"": batch.devices},
        "iotlb": {"": batch.iotlb},
        "swaps": batch.swaps,
    }


def _zeros(columns: Columns) -> Columns:
    return {name: np.zeros_like(column) for name, column in columns.items()}


def _rights(columns: dict[str, Words], user: str) -> Words:
    """Rights as bits of an entry."""
    bits = {"is_writable": Entry.RW, user: Entry.US, "is_executable": Entry.NX}
    rights: Words = np.zeros(len(columns["is_executable"]), np.uint64)
    for name, bit in bits.items():
        rights |= np.where(columns[name] != 0, np.uint64(bit), np.uint64(0))
    return rights
