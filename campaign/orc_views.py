"""Systems of shared objects in many lanes as the predicates of `spec.orc_invariants` see them: an element for each place."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capvisor.campaign.cvm_views import HeldCapability
from capvisor.campaign.orc_mirror import Tables, tables_of
from capvisor.campaign.wide import Wide
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.objects import BatchObjects
from capvisor.fastpath.workspace import Flags, Words


class _Row:
    """Rows of a table, one for each element; zeros where there is none."""

    def __init__(self, columns: dict[str, NDArray[Any]], place: tuple[Any, ...], inside: Flags | None) -> None:
        self._columns, self._place, self._inside = columns, place, inside

    def __getattr__(self, name: str) -> Any:
        column = self._columns[name][self._place]
        if self._inside is not None:
            column = column * self._inside
        value: Any = column if column.dtype == np.bool_ else Wide(column.astype(np.uint64))
        setattr(self, name, value)
        return value

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, name) for name in self._columns)


class _Rows:
    """A table by one or two numbers."""

    def __init__(self, columns: dict[str, NDArray[Any]], lanes: Indices) -> None:
        self._columns, self._lanes = columns, lanes
        self._limits = next(iter(columns.values())).shape[1:]
        self._asked: dict[Any, tuple[Any, Any]] = {}

    def __getitem__(self, numbers: Any) -> Any:
        keys = numbers if isinstance(numbers, tuple) else (numbers,)
        known = tuple(map(id, keys))
        if known not in self._asked:
            # What was asked by is kept, so that nothing else gets to be called so.
            self._asked[known] = keys, self._found(keys)
        return self._asked[known][1]

    def _found(self, keys: tuple[Any, ...]) -> Any:
        places, inside = _places(keys, self._limits)
        return _Row(self._columns, (self._lanes, *places), inside)


class _Exports(_Rows):
    """Whether slots can be entered at places."""

    def _found(self, keys: tuple[Any, ...]) -> Any:
        slot, entry = keys
        half = entry >> 1
        places, inside = _places((slot, half), self._limits)
        found: Flags = self._columns[""][(self._lanes, *places)] & (entry & 1 == 0)
        return found if inside is None else found & inside


def _places(keys: tuple[Any, ...], limits: tuple[int, ...]) -> tuple[list[Any], Flags | None]:
    """Where the rows of these numbers are, and which of them are there at all, if not all are."""
    places, inside = [], None
    for key, limit in zip(keys, limits, strict=True):
        number = key.low if isinstance(key, Wide) else np.asarray(key, np.uint64)
        there = number < np.uint64(limit)
        if not there.all():
            inside = there if inside is None else inside & there
            number = np.where(there, number, np.uint64(0))
        places.append(number.astype(np.int64))
    return places, inside


class LaneTables:
    """The base's tables before a step, and what a granule held then that is looked at: whatever it is called by."""

    def __init__(self, tables: Tables, lanes: Indices, cap: Any = None) -> None:
        self.slots, self.mappings, self.tenants = (_Rows(tables[name], lanes) for name in ("slots", "mappings", "tenants"))
        self.exports = _Exports(tables["exports"], lanes)
        self._cap = cap

    def granule(self, _index: Any) -> Any:
        return self._cap


class LaneObjects(LaneTables):
    """The bases of some lanes: `lanes` has, or is broadcast to, one element for each place that is looked at.

    `cap` is what the granule holds that is looked at, if one is.
    """

    def __init__(self, batch: BatchObjects, lanes: Indices, index: Any = None, cap: Any = None) -> None:
        super().__init__(tables_of(batch), lanes, cap)
        self._batch, self._lanes, self._index = batch, lanes, index
        self.format, self.shape, self.policy = batch.format, batch.shape, batch.policy
        self.slot_count, self.slot_granules = batch.slot_count, batch.slot_granules

    def slot_base(self, slot: Wide) -> Wide:
        return (slot << self.shape.slot_shift) + self._batch.memory.base

    def slot_of(self, address: Wide) -> Wide:
        return address - self._batch.memory.base >> self.shape.slot_shift

    def slot_of_granule(self, index: Wide) -> Wide:
        return index >> self.shape.slot_shift - self.format.granule_shift

    def object_of_granule(self, index: Wide) -> Wide:
        return index & self.shape.objects - 1

    def granule_address(self, index: Wide) -> Wide:
        return (index << self.format.granule_shift) + self._batch.memory.base

    def granule(self, index: Wide) -> Any:
        return self._cap if index is self._index else granules_at(self._batch, self._lanes, index)

    def entry_pair(self, slot: Wide, offset: Wide) -> tuple[Any, Any]:
        """The sealed pairs of entries; of some slot, where there is none of that number."""
        batch = self._batch
        number = np.minimum(slot.low, np.uint64(self.slot_count - 1))
        code, data = batch.entry_pair(number, offset.low)
        return HeldCapability(self.format, code), HeldCapability(self.format, data)


def granules_at(batch: BatchObjects, lanes: Indices, index: Wide) -> HeldCapability:
    """What granules hold, of whatever number; nothing outside of memory."""
    (at,), inside = _places((index,), (batch.memory.granules,))
    tags, halves = batch.memory.tags[lanes, at], batch.memory.halves[lanes, at]
    if inside is not None:
        tags, halves = tags & inside, halves * inside[..., None]
    return held_as(batch, tags, halves)


def held_as(batch: BatchObjects, tags: Flags, halves: Words) -> HeldCapability:
    """Granules as capabilities."""
    meta = halves[..., 1] ^ np.uint64(batch.format.null_meta)
    return HeldCapability(batch.format, Lanes(tags, meta, halves[..., 0].copy()))


class LaneThread(NamedTuple):
    """Threads of tenants."""

    is_live: Flags
    tenant: Wide
    hart: Any
