"""The monitors of many lanes as the predicates of `spec.cvm_invariants` see them: one element for each place looked at."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capvisor.campaign.oracles import LaneCapability
from capvisor.campaign.wide import Wide
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.monitor import BatchMonitor
from capvisor.fastpath.tables import PAIR_SHIFT, Table
from capvisor.fastpath.workspace import Flags
from capvisor.spec import cvm
from capvisor.spec.formats import Permission


class HeldCapability(LaneCapability):
    """Capabilities at places, with what is known of them kept where their tags are looked at differently."""

    @property
    def base(self) -> Wide:
        return self.bounds[0]

    def tagged_if(self, condition: Any) -> "HeldCapability":
        other = object.__new__(HeldCapability)
        vars(other).update(vars(self), tag=self.tag & condition)
        return other


class Absent:
    """No capability is looked at."""

    tag = False

    def tagged_if(self, _condition: Any) -> "Absent":
        return self


ABSENT = Absent()


class One:
    """The one thing that is looked at, whatever it is called."""

    def __init__(self, thing: Any) -> None:
        self._thing = thing

    def __getitem__(self, _number: Any) -> Any:
        return self._thing


@dataclass
class LaneHart:
    """Harts, as far as predicates look at them."""

    registers: One
    ddc: Any = ABSENT
    pcc: Any = ABSENT
    pc: Any = None


@dataclass
class LaneThread:
    """Threads that are all in the monitor, with a frame, or all not."""

    is_live: Any
    home: Any
    domain: Any
    hart: Any
    frame: Any
    serves: Any
    portal: Any


@dataclass
class LanePlace:
    """Places of one kind."""

    cvm: Any
    other: Any = None
    thread: Any = None
    register: Any = 0
    granule: Any = None
    grant: Any = field(default_factory=lambda: Wide(np.uint64(0)))  # type: ignore[arg-type]


class KnownRows(Wide):
    """The numbers of rows that are at these places of a table."""

    __slots__ = ("at", "table")

    def __init__(self, table: Table, lanes: Indices, at: Indices) -> None:
        super().__init__(table.numbers[lanes, at])
        self.table, self.at = table, at


class _Row:
    """Rows of a table, one for each element."""

    def __init__(self, table: Table, lanes: Indices, at: Indices) -> None:
        self._table, self._lanes, self._at = table, lanes, at

    def __getattr__(self, name: str) -> Any:
        if name == "top" and "size" in self._table.columns and "base" in self._table.columns:
            value: Any = self.base + self.size
        else:
            column = self._table.columns[name][self._lanes, self._at]
            value = column if column.dtype == np.bool_ else Wide(column)
        setattr(self, name, value)
        return value


class _Rows:
    """A table, asked for rows by arrays of numbers."""

    def __init__(self, table: Table, lanes: Indices) -> None:
        self._table, self._lanes = table, lanes
        self._asked: dict[int, tuple[Any, _Row]] = {}

    def __getitem__(self, number: Any) -> _Row:
        if id(number) not in self._asked:
            at = self.place(number)
            self._asked[id(number)] = number, _Row(self._table, self._lanes, at)
        return self._asked[id(number)][1]

    def place(self, number: Any) -> Indices:
        """Where the rows are."""
        if isinstance(number, KnownRows) and number.table is self._table:
            return number.at
        low = number.low if isinstance(number, Wide) else np.uint64(number)
        return self._table.find(self._lanes, np.broadcast_to(low, self._lanes.shape))


class _Pairs:
    """Which cVMs have probed what."""

    def __init__(self, known: Flags, lanes: Indices, rows: _Rows, regions: _Rows) -> None:
        self._known, self._lanes, self._rows, self._regions = known, lanes, rows, regions

    def __getitem__(self, key: tuple[Any, Any]) -> Flags:
        at, of = self._rows[key[0]], self._regions[key[1]]
        found: Flags = self._known[self._lanes, at._at, of._at]
        return found


class _Slots:
    def __init__(self, batch: BatchMonitor, lanes: Indices) -> None:
        self._batch, self._lanes = batch, lanes

    def __getitem__(self, granule: Wide) -> Any:
        at = granule.low.astype(np.int64)
        return _Slot(self._batch.is_slot[self._lanes, at], Wide(self._batch.slot_grant[self._lanes, at]))


class _Slot(NamedTuple):
    is_slot: Flags
    grant: Wide


class _Memory:
    def __init__(self, base: int, size_bytes: int) -> None:
        self.base, self._size_bytes = base, size_bytes

    def contains(self, address: Wide, size: Wide) -> Flags:
        return (address >= self.base) & (address + size <= self.base + self._size_bytes)


class LaneAccess(NamedTuple):
    """Accesses of monitors to memory, one for each element."""

    domain: Wide
    address: Wide
    size_bytes: Wide


class _Minted(NamedTuple):
    """The unsealed code and data of every row of a table of regions: arrays [lanes, rows]."""

    code: Lanes
    data: Lanes


class Knowledge:
    """What is known of the tables of all lanes, until they change."""

    def __init__(self, batch: BatchMonitor) -> None:
        self._batch = batch

    @cached_property
    def held(self) -> Flags:
        """By lane, row of the table of grants and row of that of regions: whether that cVM has probed the grant."""
        return self._pairs(self._batch.held, self._batch.grants)

    @cached_property
    def probed(self) -> Flags:
        """Likewise, of portals."""
        return self._pairs(self._batch.probed, self._batch.portals)

    def _pairs(self, table: Table, things: Table) -> Flags:
        batch, regions = self._batch, self._batch.regions
        lane, row = np.nonzero(table["holds"])
        numbers = table.numbers[lane, row]
        known = np.zeros((batch.lanes, things.numbers.shape[1], regions.numbers.shape[1]), np.bool_)
        at = things.find(lane, numbers >> np.uint64(PAIR_SHIFT))
        of = regions.find(lane, numbers & np.uint64((1 << PAIR_SHIFT) - 1))
        # What there is no row of is at 0, where nothing is found.
        known[lane, at, of] = (at > 0) & (of > 0)
        return known

    @cached_property
    def minted(self) -> _Minted:
        """What the monitor mints for each region."""
        batch, shape = self._batch, self._batch.regions.numbers.shape
        lanes = np.repeat(np.arange(shape[0]), shape[1])
        numbers = batch.regions.numbers.reshape(-1)
        found = (batch.region_code(lanes, numbers), batch.region_data(lanes, numbers))
        return _Minted(*(mapped(cap, lambda array: array.reshape(shape)) for cap in found))


class LaneMonitor:
    """The monitors of some lanes, one element for each place that is looked at."""

    def __init__(self, batch: BatchMonitor, known: Knowledge, lanes: Indices, cap: Any = None) -> None:
        self._batch, self._known, self._lanes, self._cap = batch, known, lanes, cap
        self.format, self.memory = batch.format, _Memory(batch.memory.base, batch.memory.size_bytes)
        self.regions, self.grants = _Rows(batch.regions, lanes), _Rows(batch.grants, lanes)
        self.portals, self.slots = _Rows(batch.portals, lanes), _Slots(batch, lanes)
        self.accesses: list[LaneAccess] = []
        self.cvm: Any = None

    @cached_property
    def held(self) -> _Pairs:
        return _Pairs(self._known.held, self._lanes, self.grants, self.regions)

    @cached_property
    def probed(self) -> _Pairs:
        return _Pairs(self._known.probed, self._lanes, self.portals, self.regions)

    def granule(self, _index: Any) -> Any:
        return self._cap

    @cached_property
    def _witness(self) -> list[Wide]:
        """For each capability a live grant, probed by the place's cVM, that it is within; any, where there is none."""
        grants, (base, top) = self._batch.grants, self._cap.bounds
        at = self.regions.place(self.cvm)
        start, size, lanes = grants["base"][self._lanes], grants["size"][self._lanes], self._lanes
        low, over = base.low[:, None], top.low - base.low
        within = grants["is_live"][lanes] & self._known.held[lanes, :, at] & (low >= start)
        # Both lengths are below 2**64 where the capability has bytes and its bounds are in order.
        within &= (low - start <= size) & (over[:, None] <= size - (low - start))
        if top.high is not None:
            within &= ~(top.high & (top.low >= base.low))[:, None]
        row = within.argmax(axis=1)
        return [KnownRows(grants, lanes, row)]

    def grants_of(self, _cap: Any) -> list[Wide]:
        """A grant that a capability is within is enough: that is found first."""
        return self._witness

    def mint(self, base: Wide, size: Wide, permissions: Permission) -> tuple[Any, Flags]:
        cap, exact = self._batch.mint(base.low, size.low, int(permissions))
        return HeldCapability(self.format, cap), exact & cap.tag

    def _pick(self, caps: Lanes, cvm_id: Any) -> Lanes:
        at = self.regions[cvm_id]._at
        return mapped(caps, lambda array: array[self._lanes, at])

    def region_code(self, cvm_id: Any) -> Any:
        return HeldCapability(self.format, self._pick(self._known.minted.code, cvm_id))

    def otype(self, cvm_id: Wide) -> Any:
        """The object types of what is sealed for cVMs."""
        return self._batch.otype(cvm_id.low)

    def own_pair(self, cvm_id: Wide) -> tuple[Any, Any]:
        minted, otype = self._known.minted, self._batch.otype(cvm_id.low)
        code, data = (self._batch.sealed(self._pick(each, cvm_id), otype) for each in minted)
        return HeldCapability(self.format, code), HeldCapability(self.format, data)

    def _of_monitor(self, absent: Permission) -> Lanes:
        count = len(self._lanes)
        meta = np.full(count, self._batch.monitor_meta(absent), np.uint64)
        return Lanes(np.ones(count, np.bool_), meta, np.zeros(count, np.uint64))

    def monitor_data(self) -> Any:
        return HeldCapability(self.format, self._of_monitor(Permission.EXECUTE))

    def monitor_pair(self) -> tuple[Any, Any]:
        otype = self._batch.otype(np.full(len(self._lanes), cvm.MONITOR, np.uint64))
        code, data = (self._of_monitor(absent) for absent in (Permission.STORE, Permission.EXECUTE))
        sealed = (self._batch.sealed(each, otype) for each in (code, data))
        one, other = (HeldCapability(self.format, each) for each in sealed)
        return one, other


class LaneFrame(NamedTuple):
    """What monitors work with between the two parts of calls."""

    number: Any
    domain: Any
    caller: Any
    arguments: tuple[Any, ...]


def frame_of(columns: dict[str, NDArray[Any]]) -> LaneFrame:
    """The frames of some threads, by the columns of the fast path's table."""
    words = tuple(Wide(columns[f"argument{place}"]) for place in range(len(cvm.ARGUMENT_REGISTERS)))
    number, domain, caller = (Wide(columns[name]) for name in ("number", "domain", "caller"))
    return LaneFrame(number, domain, caller, words)


def mapped(caps: Lanes, change: Callable[[NDArray[Any]], Any]) -> Lanes:
    """Capabilities whose arrays are changed alike."""
    return Lanes(change(caps.tag), change(caps.meta), change(caps.address))


class LaneRegisters:
    """Registers of harts, by row."""

    def __init__(self, batch: BatchMonitor, harts: Indices) -> None:
        self._batch, self._harts = batch, harts

    def __getitem__(self, row: int) -> HeldCapability:
        machine, harts = self._batch.harts, self._harts
        cap = Lanes(machine.tags[row, harts], machine.metas[row, harts], machine.addresses[row, harts])
        return HeldCapability(self._batch.format, cap)
