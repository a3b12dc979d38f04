"""Systems of translation pass-through in many lanes as the predicates of `spec.tpt_invariants` see them.

What a predicate reads is an array, one element for each place looked at. Where a place has no such part (`NOWHERE`), it
reads the zeros of an empty row.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capvisor.fastpath.machine import Indices
from capvisor.fastpath.tpt import BatchSystem
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec.paging import INDEX_BITS
from capvisor.spec.tpt import FaultKind

NOWHERE = -1
"""The number of no frame, slot, vCPU, device or word."""


class LaneTouch(NamedTuple):
    """Words that were accessed, all in one way."""

    kind: str
    vm: Words
    frame: Words
    word: Words
    is_write: Flags
    tag: Words
    is_pending: Flags


class LaneRetag(NamedTuple):
    """Changes of tags."""

    frame: Words
    old: Words
    new: Words


class LaneHandled(NamedTuple):
    """Frames that hosts have cleared, copied or given away, and who had still to acknowledge."""

    frame: Words
    pending: Words


class LaneFault(NamedTuple):
    """Faults of one kind."""

    kind: FaultKind
    frame: Words
    level: Words


class _Empty:
    """A row of zeros."""

    def __getattr__(self, _name: str) -> Any:
        return 0

    is_live = is_clean = is_leaving = is_mapped = is_cached = False


_EMPTY = _Empty()


class _Row:
    """Rows of a table, one for each element; zeros where there is none."""

    def __init__(self, columns: dict[str, NDArray[Any]], place: tuple[Any, ...], inside: Flags | None) -> None:
        self._columns, self._place, self._inside = columns, place, inside

    def __getattr__(self, name: str) -> Any:
        value = self._columns[name][self._place]
        if self._inside is not None:
            value = value * self._inside
        setattr(self, name, value)
        return value


class _Rows:
    """A table by one or two numbers."""

    def __init__(self, columns: dict[str, NDArray[Any]], lanes: Indices) -> None:
        self._columns, self._lanes = columns, lanes
        self._limits = next(iter(columns.values())).shape[1:]

    def __getitem__(self, numbers: Any) -> Any:
        keys = numbers if isinstance(numbers, tuple) else (numbers,)
        places: list[Any] = [self._lanes]
        inside: Flags | None = None
        for key, limit in zip(keys, self._limits, strict=False):
            number = key
            if isinstance(number, int):
                if not 0 <= number < limit:
                    return _EMPTY
                places.append(number)
                continue
            there = number < limit
            if not there.all():
                inside = there if inside is None else inside & there
                number = np.where(there, number, 0)
            places.append(number.astype(np.int64) if number.dtype != np.int64 else number)
        return _Row(self._columns, tuple(places), inside)


class _Numbers(_Rows):
    """A table whose rows are numbers."""

    def __init__(self, column: NDArray[Any], lanes: Indices) -> None:
        super().__init__({"number": column}, lanes)

    def __getitem__(self, numbers: Any) -> Any:
        found = super().__getitem__(numbers)
        return 0 if found is _EMPTY else found.number


class _Tags(_Numbers):
    """Own tags of frames."""

    def __init__(self, batch: BatchSystem, lanes: Indices) -> None:
        super().__init__(batch.tags, lanes)
        self._batch, self._large = batch, _Numbers(batch.large, lanes)

    def is_large(self, frame: Any) -> Any:
        found = self._large[frame >> INDEX_BITS]
        return False if isinstance(found, int) else found & (frame < self._batch.frame_count)

    def owned(self, base: Words, count: Words, owner: Words) -> Flags:
        """Whether the own tags of so many frames from a base are one owner's; all arrays of one length."""
        owned: Flags = self[base] == owner
        for at in np.flatnonzero(count > 1):
            first, size = int(base[at]), int(count[at])
            inside = first + size <= self._batch.frame_count
            owned[at] = inside and bool((self._batch.tags[self._lanes[at], first : first + size] == owner[at]).all())
        return owned


class _Map:
    """The host's map of guest frames."""

    def __init__(self, batch: BatchSystem, lanes: Indices) -> None:
        self._batch, self._lanes = batch, lanes

    def __getitem__(self, numbers: tuple[Any, Any]) -> Any:
        vm, guest_frame = numbers
        if isinstance(guest_frame, int):
            return _EMPTY
        return _Mapping(*self._batch.mapped(self._lanes, vm, guest_frame))


class _Mapping(NamedTuple):
    is_mapped: Flags
    frame: Words


class _Memory:
    def __init__(self, words: Any, lanes: Indices) -> None:
        self._words, self._lanes = words, lanes

    def get(self, frame: Any, word: Any) -> Any:
        if isinstance(frame, int) or isinstance(word, int):
            return 0
        inside = frame < self._words.shape[1]
        found = self._words[self._lanes, np.where(inside, frame, 0).astype(np.int64), word.astype(np.int64)]
        return found if inside.all() else found * inside


class _Tlb:
    def __init__(self, batch: BatchSystem, lanes: Indices) -> None:
        self.translations, self.tables = _Rows(batch.tlb.columns, lanes), _Rows(batch.caches.columns, lanes)


class LaneSystem:
    """The systems of some lanes: `lanes` has, or is broadcast to, one element for each place that is looked at."""

    def __init__(self, batch: BatchSystem, lanes: Indices) -> None:
        self._batch, self._lanes = batch, lanes
        self.policy = batch.policy
        self.frame_count, self.vcpu_count, self.device_count = batch.frame_count, batch.vcpu_count, batch.device_count
        self.tlb, self.tags = _Tlb(batch, lanes), _Tags(batch, lanes)
        self.frames, self.vms = _Rows(batch.frames, lanes), _Rows(batch.vms, lanes)
        self.vcpus = _Rows({**batch.vcpus, "next_tlb": batch.tlb.next, "next_cache": batch.caches.next}, lanes)
        self.walks, self.swaps = _Rows(batch.walks, lanes), _Rows(batch.swaps, lanes)
        self.asids, self.devices = _Numbers(batch.asids, lanes), _Numbers(batch.devices, lanes)
        self.p2m = _Map(batch, lanes)
        self.memory, self.disk = _Memory(batch.words, lanes), _Memory(batch.disk, lanes)
        self._by_vcpu = _Numbers(batch.pending, lanes)
        self.pending, self.iotlb = _Bits(self._by_vcpu, batch.vcpu_count), _Devices(batch.iotlb, lanes)

    def is_pending(self, frame: Any, vcpu: Any) -> Any:
        found = self._by_vcpu[frame, vcpu]
        return False if isinstance(found, int) else found


class _Bits:
    """A number of a bit for each vCPU."""

    def __init__(self, table: _Numbers, count: int) -> None:
        self._table, self._count = table, count

    def __getitem__(self, frame: Any) -> Any:
        if isinstance(frame, int):
            return 0
        return sum(self._table[frame, bit].astype(np.uint64) << np.uint64(bit) for bit in range(self._count))


class _Devices:
    """By frame, a number of a bit for each device; looked at shifted by one device's number."""

    def __init__(self, iotlb: Flags, lanes: Indices) -> None:
        self._iotlb, self._lanes = iotlb, lanes

    def __getitem__(self, frame: Any) -> "_Checked":
        return _Checked(_Numbers(self._iotlb, self._lanes), frame)


class _Checked:
    def __init__(self, table: _Numbers, frame: Any) -> None:
        self._table, self._frame = table, frame

    def __rshift__(self, device: Any) -> Any:
        found = self._table[device, self._frame]
        return 0 if isinstance(found, int) else found.astype(np.uint64)
