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
from capvisor.spec.vmm import KEY_FRAME


class LaneTouch(NamedTuple):
    """Blocks of memory, all read or all written, by actors of one kind."""

    actor: str
    number: Words
    address: Words
    is_write: bool


class LaneMove(NamedTuple):
    """Sectors read or written."""

    device: Words
    lba: Words
    is_write: Any
    is_made: Flags


class LaneBefore(NamedTuple):
    """What was so before a step at the places looked at, whatever it is asked by."""

    memory: Any = None
    media: Any = None
    deployed: Any = None


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


class LaneVmm:
    """The machines of some lanes: `lanes` has, or is broadcast to, one element for each place that is looked at."""

    hooks = ()
    decoded: Any
    hooked: Any
    media: Any
    meant: Any
    images: Any
    deployed: Any

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
        ):
            setattr(self, name, _Found(batch.sectors, sector_numbers, lanes, columns))
        self.rules = _Rules(batch.sectors, sector_numbers, lanes, {"": "rule"})
        self.plain = _Found(batch.copies, copy_numbers, lanes, {"": "plain"})

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
