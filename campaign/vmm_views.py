"""Machines with a para-pass-through VMM in many lanes as the predicates of `spec.vmm_invariants` see them.

What a predicate reads is an array, one element for each place looked at.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capvisor.fastpath.machine import Indices
from capvisor.fastpath.tables import Table
from capvisor.fastpath.vmm import BatchVmm, copy_numbers, sector_numbers, window_numbers
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec.vmm import BLOCK_SHIFT, KEY_FRAME


class LaneTouch(NamedTuple):
    """Blocks of memory, read or written by actors of one kind."""

    actor: str
    number: Words
    address: Words
    is_write: Any


class LaneMove(NamedTuple):
    """Sectors read or written."""

    device: Words
    lba: Words
    is_write: Any
    is_made: Flags


class Known:
    """One answer to all questions."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __getitem__(self, _number: Any) -> Any:
        return self._answer


class _Choosing(np.ndarray):
    """Truth values that data are chosen by."""

    def select(self, when_true: Any, when_false: Any) -> Any:
        return np.where(self, when_true, when_false)


class _Row:
    """Rows of a table, one for each element."""

    def __init__(self, columns: dict[str, NDArray[Any]], place: tuple[Any, ...]) -> None:
        self._columns, self._place = columns, place

    def __getattr__(self, name: str) -> Any:
        value = self._columns[name][self._place]
        setattr(self, name, value)
        return value


def _index(number: Any) -> Any:
    return number.astype(np.int64) if isinstance(number, np.ndarray) and number.dtype != np.int64 else number


class _Rows:
    """A table by one or two numbers."""

    def __init__(self, columns: dict[str, NDArray[Any]], lanes: Indices) -> None:
        self._columns, self._lanes = columns, lanes

    def _place(self, numbers: Any) -> tuple[Any, ...]:
        keys = numbers if isinstance(numbers, tuple) else (numbers,)
        return (self._lanes, *(_index(key) for key in keys))

    def __getitem__(self, numbers: Any) -> Any:
        return _Row(self._columns, self._place(numbers))


class _Words(_Rows):
    """A table whose rows are numbers."""

    def __init__(self, column: Any, lanes: Indices) -> None:
        super().__init__({"": column}, lanes)

    def __getitem__(self, numbers: Any) -> Any:
        return self._columns[""][self._place(numbers)]


class _OneRow:
    """Of what there is one, whatever it is asked by."""

    def __init__(self, columns: dict[str, NDArray[Any]], lanes: Indices) -> None:
        self._row = _Row(columns, (lanes,))

    def __getitem__(self, _number: Any) -> Any:
        return self._row


class _Found:
    """Columns of one of the fast path's tables by numbers, each under the name that it has in the reference."""

    def __init__(self, table: Table, numbers: Any, lanes: Indices, names: dict[str, str]) -> None:
        self._table, self._numbers, self._lanes, self._names = table, numbers, lanes, names

    def _at(self, key: tuple[Any, Any]) -> tuple[Any, ...]:
        lanes, one, two = self._lanes, *map(np.asarray, key)
        if not lanes.shape == one.shape == two.shape:
            lanes, one, two = np.broadcast_arrays(lanes, one, two)
        found = self._table.find(lanes.ravel(), self._numbers(one.ravel(), two.ravel().astype(np.uint64)))
        return lanes, found.reshape(lanes.shape)

    def __getitem__(self, key: tuple[Any, Any]) -> Any:
        place = self._at(key)
        columns = {name: self._table.columns[column] for name, column in self._names.items()}
        return columns[""][place] if "" in columns else _Row(columns, place)


class _Rules(_Found):
    """Rules of sectors, by which something may be chosen."""

    def __getitem__(self, key: tuple[Any, Any]) -> Any:
        return super().__getitem__(key).view(_Choosing)


class _Traps:
    """Which windows are intercepted, by frame."""

    def __init__(self, table: Table, lanes: Indices) -> None:
        self._table, self._lanes = table, lanes

    def __getitem__(self, frame: Any) -> Any:
        lanes, frames = np.broadcast_arrays(self._lanes, np.asarray(frame).astype(np.uint64))
        return self._table.get("trapped", lanes.ravel(), frames.ravel()).reshape(frames.shape)


class LaneVmm:
    """The machines of some lanes: `lanes` has, or is broadcast to, one element for each place that is looked at."""

    hooks = ()
    decoded: Any
    hooked: Any
    media: Any
    meant: Any
    images: Any
    deployed: Any
    touched: Any

    def __init__(self, batch: BatchVmm, lanes: Indices) -> None:
        self._batch = batch
        self.policy, self.cipher = batch.policy, batch.cipher
        self.frame_count, self.vcpu_count, self.device_count = batch.frame_count, batch.vcpu_count, batch.device_count
        self.region_first, self.region_behind, self.zero_frame = batch.region_first, batch.region_behind, batch.zero_frame
        self.in_region = batch.in_region
        self.vmm, self.keys = _OneRow(batch.vmm, lanes), Known(batch.keys[lanes])
        self.vcpus, self.mappings = _Rows(batch.vcpus, lanes), _Rows(batch.mappings, lanes)
        self.devices, self.channels = _Rows(batch.devices, lanes), _Rows(batch.channels, lanes)
        self.deployments, self.extensions = _Rows(batch.deployments, lanes), _Rows(batch.extensions, lanes)
        self.memory, self.remote = _Words(batch.memory, lanes), _Words(batch.remote, lanes)
        self.clean, self.windows = _Words(batch.clean, lanes), _Words(batch.windows, lanes)
        self.registers = _Words(batch.registers, lanes)
        for name in ("decoded", "hooked"):
            setattr(self, name, _Found(batch.decoding, window_numbers, lanes, {"": name}))
        for name, columns in (
            ("media", {"": "word"}),
            ("meant", {"is_known": "is_known", "word": "meant"}),
            ("images", {"": "image"}),
            ("deployed", {"": "is_deployed"}),
            ("touched", {"": "is_touched"}),
        ):
            setattr(self, name, _Found(batch.sectors, sector_numbers, lanes, columns))
        self.rules = _Rules(batch.sectors, sector_numbers, lanes, {"": "rule"})
        self.plain = _Found(batch.copies, copy_numbers, lanes, {"": "plain"})
        self.trapped = _Traps(batch.traps, lanes)

    @property
    def key_address(self) -> Any:
        """Where the key is."""
        return np.array(self.region_first + KEY_FRAME << 3)

    def shadow_descriptor(self, device: Any) -> Any:
        """Where the VMM has its descriptors for storage devices."""
        return self._batch.shadow_descriptor(device).astype(np.uint64)

    def shadow_buffer(self, device: Any) -> Any:
        """Where the VMM has its buffers for storage devices."""
        return self._batch.shadow_buffer(device).astype(np.uint64)


class Earlier:
    """What was so before a step in all lanes: tables that are arrays, whole, and of others the rows that it has written."""

    def __init__(self, batch: BatchVmm) -> None:
        self._batch = batch
        self.tables = {name: _copied(getattr(batch, name)) for name in _ARRAYS}
        self.written: dict[str, tuple[Words, tuple[Words, ...]]] = {}
        """By table, the rows as numbers that go up, and what their columns were."""

    def note(self, changes: dict[str, tuple[Indices, ...]], before: dict[str, tuple[Words, ...]]) -> None:
        """What the last step has written, and what was there."""
        self.written = {}
        for name in changes.keys() & _WRITTEN:
            numbers = _row_numbers(*changes[name])
            order = np.argsort(numbers, kind="stable")
            self.written[name] = numbers[order], tuple(column[order] for column in before[name])

    def go_on(self) -> None:
        """The next step begins."""
        for name, kept in self.tables.items():
            table = getattr(self._batch, name)
            for key, column in kept.items():
                np.copyto(column, table[key] if isinstance(table, dict) else table)


_ARRAYS = ("vmm", "mappings", "devices", "channels", "deployments", "registers", "windows")
_WRITTEN = {"memory", "media", "meant", "deployed", "touched", "plain", "decoded", "hooked"}
_LANE_SHIFT, _FIRST_SHIFT = np.uint64(52), np.uint64(48)


def _copied(table: Any) -> dict[str, NDArray[Any]]:
    return {name: column.copy() for name, column in (table if isinstance(table, dict) else {"": table}).items()}


def _row_numbers(lanes: Any, *keys: Any) -> Words:
    """Rows as numbers: by lane, and one or two numbers, the last of which has 48 bits."""
    found: Words = np.asarray(lanes).astype(np.uint64) << _LANE_SHIFT
    if len(keys) > 1:
        found = found | np.asarray(keys[0]).astype(np.uint64) << _FIRST_SHIFT
    return found | np.asarray(keys[-1]).astype(np.uint64)


class _Was:
    """A table as it was before a step: as it is now, but for the rows that the step has written."""

    def __init__(self, now: Any, lanes: Indices, written: Any, columns: tuple[str, ...], limit: int) -> None:
        self._now, self._lanes, self._written = now, lanes, written
        self._names, self._limit = columns, np.uint64(limit)

    def __getitem__(self, key: Any) -> Any:
        keys = tuple(np.asarray(each).astype(np.uint64) for each in (key if isinstance(key, tuple) else (key,)))
        there = keys[-1] < self._limit
        keys = (*keys[:-1], np.where(there, keys[-1], np.uint64(0)))
        row = self._now[keys if len(keys) > 1 else keys[0]]
        columns = {name: self._column(getattr(row, name) if name else row, at, keys) for at, name in enumerate(self._names)}
        return np.where(there, columns[""], 0) if "" in columns else _Row(columns, ())

    def _column(self, now: Any, at: int, keys: tuple[Any, ...]) -> Any:
        found = np.array(now)
        if self._written is not None:
            numbers, before = self._written
            wanted = np.broadcast_to(_row_numbers(self._lanes, *keys), found.shape)
            place = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
            hit = numbers[place] == wanted
            found[hit] = before[at][place[hit]]
        return found


class LaneBefore:
    """The machines of some lanes as they were before a step, as far as it is asked."""

    def __init__(self, batch: BatchVmm, lanes: Indices, earlier: Earlier) -> None:
        self._now, self._lanes, self._earlier = LaneVmm(batch, lanes), lanes, earlier
        self._blocks, self._devices = batch.frame_count << BLOCK_SHIFT, batch.device_count

    def __getattr__(self, name: str) -> Any:
        earlier = self._earlier
        if name in earlier.tables:
            columns = earlier.tables[name]
            kind: Any = _Words if "" in columns else _OneRow if name == "vmm" else _Rows
            found: Any = kind(columns.get("", columns), self._lanes)
        elif name in _WRITTEN:
            names = ("is_known", "word") if name == "meant" else ("",)
            limit = self._blocks if name == "memory" else 1 << 48
            found = _Was(getattr(self._now, name), self._lanes, earlier.written.get(name), names, limit)
        else:
            raise AttributeError(name)
        setattr(self, name, found)
        return found

    def some_device(self, holds: Any) -> Any:
        """Whether something holds of a device."""
        found: Any = False
        for device in range(1, self._devices + 1):
            found = found | holds(np.full(len(self._lanes), device))
        return found
