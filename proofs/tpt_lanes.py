"""Theorems on the fast path of translation pass-through: an operation of its kernels is the reference's, in any state.

The reference's rule and the fast path's kernel are executed on the same symbols, and everything that an operation can change
is compared at any place. Supposed of the state is only what both can represent (`_ranges`): numbers of VMs, slots and levels
are those that there are. No invariant is supposed, and no guard need be on, so that the two are equal under every policy.

One system is looked at, with any numbers of frames, vCPUs and devices that there may be. That others in a batch do the same
beside it, each with places of its own, is tested.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import z3

from capvisor.fastpath import guests, hosts, refusals, requests, tlb, tpt, walks
from capvisor.fastpath import paging as fast_paging
from capvisor.fastpath.requests import OPERATION_KERNELS, Request
from capvisor.fastpath.tpt import BatchSystem
from capvisor.fastpath.walks import WALK
from capvisor.model.bits import not_, select
from capvisor.model.paging import DONE, READ, UPDATE, Walk
from capvisor.model.tpt_system import perform
from capvisor.proofs import shaped, tpt_lane_walks
from capvisor.proofs.afresh import asked_of, explore, suppose
from capvisor.proofs.incremental import Way
from capvisor.proofs.shaped import Decided, Grid, Shaped, any_of, constant, symbolic_numpy
from capvisor.proofs.steps import Proved
from capvisor.proofs.symbolic import SymBool, SymInt, as_int, term_of
from capvisor.proofs.theorem import Given, implies
from capvisor.proofs.tpt_lane_walks import RunTags, Walked, one_of, walk_in_range
from capvisor.proofs.tpt_state import INDEX_BITS as INDEX_ROWS_BITS
from capvisor.proofs.tpt_state import OPERAND_BITS, VM_BITS, AnySystem, AnyTlb, Table, key_of
from capvisor.spec import tpt as limits
from capvisor.spec.paging import (
    FIRST_VM,
    FRAME_NUMBERS,
    FREE,
    INDEX_BITS,
    LARGEST_LEAF,
    LEVELS,
    WORDS_PER_FRAME,
    Entry,
    Mode,
)
from capvisor.spec.tag_policy import INTENDED, TagPolicy
from capvisor.spec.tpt import ASIDS, CACHE_SLOTS, OPERATIONS, SWAP_SLOTS, TLB_SLOTS, Code, FaultKind
from capvisor.spec.tpt_invariants import Step

PREFIX = "lanes_"
SAME, RANGES = "same", "ranges"
"""What is asked of an operation: that both give the same, and that what is supposed of states is kept, and no kernel looks
beyond a table's end."""

KERNEL_MODULES = (guests, hosts, refusals, requests, tlb, tpt, walks, fast_paging)

PARTS: dict[str, tuple[str, int, int]] = {
    f"step_walk_{name}_{level}": ("step_walk", stage, level)
    for name, stage in (("read", READ), ("update", UPDATE))
    for level in range(1, LEVELS[-1] + 1)
}
"""Theorems on parts of an operation: of which, and at which stage and level a walk is. Its own theorem is about the rest."""

STEPPED = ("load", "store", "fetch", "step_walk", *PARTS)
"""Operations, and parts of one, that step walks: theorems of their own, which take far longer than all others together."""

NAMES = {
    **{PREFIX + name: name for name in OPERATIONS if name not in STEPPED},
    **{f"stepped_{name}": name for name in STEPPED},
}
"""The theorems, by name, and which operation or part each is about."""

LEANS_ON = {
    f"stepped_{name}": (f"{PREFIX}begin_walk", *(f"stepped_{each}" for each in ("step_walk", *PARTS)))
    for name in ("load", "store", "fetch")
}
"""Theorems on operations that make walks, and those that are about the steps of these."""


def steps() -> dict[str, str]:
    """The theorems, by name, with their kind."""
    return dict.fromkeys(NAMES, "fast path")


# -- the reference's state -------------------------------------------------------------------------------------------------


class _SlotTable(Table):
    """Rows of slots: which one is looked at is decided, each a way of its own."""

    def __getitem__(self, number: Any) -> Any:
        vcpu, slot = number
        most = TLB_SLOTS if self._name == "tlb" else CACHE_SLOTS
        if isinstance(slot, SymInt):
            slot = one_of(slot, range(most))
        return super().__getitem__((vcpu, slot))


class LaneSystem(AnySystem):
    """The reference's system in any state that the fast path can represent."""

    def __init__(self, given: Given, policy: TagPolicy) -> None:
        self._seen: set[Any] = set()
        self._kept: list[Any] = []
        self._is_begun = False
        super().__init__(given, policy, ())
        self.tags = RunTags(self)
        self.tlb = AnyTlb(lambda name, _empty: _SlotTable(self, name))  # type: ignore[arg-type, return-value]
        place = self.place
        suppose((place.vm < requests.VM_NUMBERS) & (place.guest_frame < FRAME_NUMBERS) & (place.word < WORDS_PER_FRAME))
        suppose((place.vcpu < self.vcpu_count) & (place.slot < TLB_SLOTS) & (place.cache_slot < CACHE_SLOTS))
        suppose(place.swap_slot < SWAP_SLOTS)
        self.any_asid = given.word("any_asid", 4)
        self.is_mixed, self.run = given.flag("is_mixed"), None
        self.apart: Any = True
        """Whether a step of a walk has changed nothing but what it may."""

    def _between(self, name: str, bits: int, low: int, high: int) -> Any:
        most = {"frame_count": limits.MAX_FRAMES, "vcpu_count": limits.MAX_VCPUS, "device_count": limits.MAX_DEVICES}
        high, number = min(high, most[name]), self.given.word(name, bits)
        suppose((low <= number) & (number <= high))
        return SymInt(number.term, low, high)

    def begin(self) -> None:
        """Keep the state as it is now; from now on rows are in range wherever one looks."""
        super().begin()
        self._is_begun = True

    def looks_at(self, table: str, number: Any) -> None:
        """A row is looked at: suppose that it is in range in the first state."""
        if not self._is_begun:
            return
        numbers = number if isinstance(number, tuple) else (number,)
        if table == "owners":
            self.suppose_row("tags", number)
            self.suppose_row("large", number >> INDEX_BITS)
            return
        self.suppose_row(table, *numbers)

    def suppose_row(self, table: str, *numbers: Any, state: Any = None) -> None:
        """Suppose that a row of a state that was begun with, or else of the last such, is in range."""
        state = self.first if state is None else state
        key = (id(state), table, *map(key_of, numbers))
        if key in self._seen or table not in _RANGES:
            return
        self._seen.add(key)
        self._kept.append((state, numbers))
        suppose(_RANGES[table](state, *numbers))

    def running(self, vcpu: Any) -> Any:
        """As System.running."""
        row = self.vcpus[vcpu]
        self.suppose_row("vms", row.vm)
        return super().running(vcpu)

    def fill(self, vcpu: Any, walk: Walk) -> None:
        """As System.fill, a page of each level on a way of its own."""
        super().fill(vcpu, walk._replace(leaf_level=one_of(walk.leaf_level, range(1, LARGEST_LEAF + 1))))


# -- what both can represent -----------------------------------------------------------------------------------------------


def _is_vm(system: Any, vm: Any) -> Any:
    return (vm >= FIRST_VM) & (vm < requests.VM_NUMBERS) & system.vms[vm].is_live & _vm_in_range(system, vm)


def _vm_in_range(system: Any, vm: Any) -> Any:
    row = system.vms[vm]
    known = ((row.mode == Mode.TPT) | (row.mode == Mode.NESTED)) & ((row.levels == LEVELS[0]) | (row.levels == LEVELS[1]))
    return implies(row.is_live, (vm >= FIRST_VM) & (vm < requests.VM_NUMBERS) & known)


def _vcpu_in_range(system: Any, vcpu: Any) -> Any:
    row = system.vcpus[vcpu]
    in_range = (row.asid < ASIDS) & (row.next_tlb < TLB_SLOTS) & (row.next_cache < CACHE_SLOTS)
    return in_range & ((row.vm == FREE) | _is_vm(system, row.vm))


def _frame_in_range(system: Any, frame: Any) -> Any:
    row = system.frames[frame]
    return (row.vm < requests.VM_NUMBERS) & (row.guest_frame < FRAME_NUMBERS)


def _mapping_in_range(system: Any, vm: Any, guest_frame: Any) -> Any:
    return implies(system.p2m[vm, guest_frame].is_mapped, (vm < requests.VM_NUMBERS) & (guest_frame < FRAME_NUMBERS))


def _swap_in_range(system: Any, slot: Any) -> Any:
    row = system.swaps[slot]
    return (row.vm < requests.VM_NUMBERS) & (row.guest_frame < FRAME_NUMBERS)


def _device_in_range(system: Any, device: Any) -> Any:
    vm = system.devices[device]
    return (vm == FREE) | _is_vm(system, vm)


def _pending_in_range(system: Any, frame: Any) -> Any:
    pending = system.pending[frame]
    return (pending < 1 << system.vcpu_count) & implies(frame >= system.frame_count, pending == 0)


def _large_in_range(system: Any, region: Any) -> Any:
    return implies(system.tags.large[region], (region + 1 << INDEX_BITS) <= system.frame_count)


def _slot_in_range(levels: int) -> Callable[..., Any]:
    def in_range(system: Any, vcpu: Any, slot: Any) -> Any:
        row = (system.tlb.translations if levels == LARGEST_LEAF else system.tlb.tables)[vcpu, slot]
        return implies(row.is_live, (row.level >= 1) & (row.level <= levels))

    return in_range


_RANGES: dict[str, Callable[..., Any]] = {
    "vms": _vm_in_range,
    "vcpus": _vcpu_in_range,
    "frames": _frame_in_range,
    "p2m": _mapping_in_range,
    "swaps": _swap_in_range,
    "devices": _device_in_range,
    "pending": _pending_in_range,
    "iotlb": lambda system, frame: implies(frame >= system.frame_count, system.iotlb[frame] == 0),
    "tags": lambda system, frame: implies(frame >= system.frame_count, system.tags.tags[frame] == FREE),
    "large": _large_in_range,
    "walks": lambda system, vcpu: walk_in_range(system.walks.get(vcpu)),
    "tlb": _slot_in_range(LARGEST_LEAF),
    "caches": _slot_in_range(LEVELS[-1] - 1),
}
"""Of each table, whether a row is one that both can represent, by the numbers that it is found by."""


def _all_in_range(system: LaneSystem) -> list[Any]:
    """Whether rows at any place are in range."""
    place = system.place
    found = [_RANGES[table](system, *(getattr(place, name) for name in numbers)) for table, numbers in _PLACES.items()]
    found += [_RANGES["tlb"](system, place.vcpu, slot) for slot in range(TLB_SLOTS)]
    found += [_RANGES["caches"](system, place.vcpu, slot) for slot in range(CACHE_SLOTS)]
    return [*found, _large_in_range(system, place.frame >> INDEX_BITS)]


_PLACES = {
    **{"vms": ("vm",), "vcpus": ("vcpu",), "frames": ("frame",), "p2m": ("vm", "guest_frame"), "swaps": ("swap_slot",)},
    **{"devices": ("device",), "pending": ("frame",), "iotlb": ("frame",), "tags": ("frame",), "walks": ("vcpu",)},
}


# -- a lane in the same state ----------------------------------------------------------------------------------------------


def rights_of(row: Any) -> Any:
    """The rights of a row of the reference's, as the fast path has them."""
    is_user = row.is_user_page if isinstance(row, Walk) else row.is_user
    return (
        select(row.is_writable, Entry.RW.value, 0)
        | select(is_user, Entry.US.value, 0)
        | select(row.is_executable, Entry.NX.value, 0)
    )


def _number(term: Any, bits: int) -> Any:
    """A place in a table as a number of the reference's; it is known to have no more bits."""
    return SymInt(z3.simplify(z3.ZeroExt(1, z3.Extract(bits - 1, 0, term))), 0, (1 << bits) - 1)


class _LaneMap:
    """What stands for the fast path's map of numbers to rows: where a row is, is its number."""

    def __init__(self, columns: dict[str, Grid]) -> None:
        self._columns = columns

    def __getitem__(self, name: str) -> Grid:
        return self._columns[name]

    def find(self, _lanes: Any, numbers: Shaped) -> Shaped:
        """As Table.find."""
        return numbers

    def put(self, lanes: Any, numbers: Shaped, **values: Any) -> None:
        """As Table.put, of all columns."""
        assert set(values) == set(self._columns)
        for name, column in values.items():
            self._columns[name][lanes, numbers] = column


class _LaneSlots(tlb.Slots):
    """What stands for a vCPU's slots: the fast path's, but for emptying some, which stands as what it is to do."""

    def __init__(self, count: int, columns: dict[str, Grid], following: Grid) -> None:
        self.count, self.next = count, following  # type: ignore[assignment]
        self.columns = columns  # type: ignore[assignment]

    def drop(self, lanes: Any, vcpus: Any, which: Any) -> None:
        """As Slots.drop."""
        emptied(self.columns, lanes, vcpus, which)


def emptied(columns: dict[str, Any], lanes: Any, vcpus: Any, which: Any) -> None:
    """Empty some slots of each of some vCPUs."""
    for column in columns.values():
        zero = shaped.made_of([0], column.dtype) if column.dtype == np.bool_ else constant(0, column.dtype)
        zero = Shaped(np.array(zero.cells[0] if isinstance(zero, Shaped) else zero, object), column.dtype)
        column[lanes, vcpus] = shaped._where(which, zero, column[lanes, vcpus])


class Lane(BatchSystem):
    """One system of the fast path, in the state that a system of the reference is in now."""

    def __init__(self, system: LaneSystem) -> None:
        self.reference = system
        self.within: list[Any] = []
        """Whether no kernel has looked beyond a table's end."""
        self.lanes, self.policy = 1, system.guards  # type: ignore[assignment]
        self.frame_count, self.vcpu_count, self.device_count = system.frame_count, system.vcpu_count, system.device_count
        self._state = first = system.first
        frames = system.frame_count
        vcpu = (self.vcpu_count, limits.MAX_VCPUS)
        self.words = self._grid(np.uint64, (frames, WORDS_PER_FRAME), first.memory.get)  # type: ignore[assignment]
        self.disk = self._grid(np.uint64, (SWAP_SLOTS, WORDS_PER_FRAME), first.disk.get)  # type: ignore[assignment]
        self.tags = self._grid(np.uint64, (frames,), lambda at: first.tags.tags[at], "tags")  # type: ignore[assignment]
        # A last region, that isn't whole, has no large tag.
        self.large = self._grid(np.bool_, ((frames >> INDEX_BITS) + 1,), lambda at: first.tags.large[at], "large")  # type: ignore[assignment]
        self.frames = self._table(tpt.FRAME, (frames,), "frames", first.frames)  # type: ignore[assignment]
        self.pending = self._grid(  # type: ignore[assignment]
            np.bool_, (frames, vcpu), lambda frame, number: first.pending[frame] >> number & 1 != 0
        )
        self.vms = self._table(tpt.VM, (requests.VM_NUMBERS,), "vms", first.vms)  # type: ignore[assignment]
        self.vcpus = self._table(tpt.VCPU, (vcpu[0],), "vcpus", first.vcpus)  # type: ignore[assignment]
        self.asids = self._grid(np.uint64, (vcpu[0], ASIDS), lambda *at: first.asids[at])  # type: ignore[assignment]
        self.walks = self._table(WALK, (vcpu[0],), "walks", first.walks)  # type: ignore[assignment]
        # There is a device at least, for what is looked at in refused lanes.
        devices = select(self.device_count < 1, 1, self.device_count)
        self.devices = self._grid(np.uint64, (devices,), lambda at: first.devices[at], "devices")  # type: ignore[assignment]
        self.iotlb = self._grid(
            np.bool_, ((devices, limits.MAX_DEVICES), frames), lambda device, at: first.iotlb[at] >> device & 1 != 0
        )  # type: ignore[assignment]
        self.swaps = self._table(tpt.SWAP, (SWAP_SLOTS,), "swaps", first.swaps)  # type: ignore[assignment]
        self.tlb = self._slots("tlb", TLB_SLOTS, tlb.TRANSLATION, "next_tlb")
        self.caches = self._slots("caches", CACHE_SLOTS, tlb.CACHED_TABLE, "next_cache")
        self.p2m = _LaneMap({name: self._mapping(name, kind) for name, kind in tpt.MAPPING.items()})  # type: ignore[assignment]

    def _within(self, condition: Any) -> None:
        self.within.append(condition)

    def _grid(self, dtype: Any, sizes: tuple[Any, ...], get: Callable[..., Any], table: str = "") -> Grid:
        """A table that holds what a function says of numbers; of the reference's table of that name, it is in range."""
        bits = [_bits_of(each) for each in sizes]

        def read(*at: Any) -> Any:
            numbers = [_number(term, width) for term, width in zip(at, bits, strict=True)]
            if table:
                self.reference.suppose_row(table, *numbers, state=self._state)
            return _term(get(*numbers), dtype)

        return Grid(dtype, sizes, read, self._within)

    def _table(self, columns: dict[str, Any], sizes: tuple[Any, ...], table: str, rows: Any) -> dict[str, Grid]:
        return {
            name: self._grid(kind, sizes, lambda at, name=name: _column(rows[at], name), table)
            for name, kind in columns.items()
        }

    def _slots(self, table: str, count: int, columns: dict[str, Any], following: str) -> _LaneSlots:
        first = self._state
        rows = first.tlb.translations if table == "tlb" else first.tlb.tables
        sizes = (self.vcpu_count, Decided(count))
        grids = {
            name: self._grid(kind, sizes, lambda *at, name=name: _column(rows[at], name), table)
            for name, kind in columns.items()
        }
        turn = self._grid(np.int64, sizes[:1], lambda at: getattr(first.vcpus[at], following), "vcpus")
        return _LaneSlots(count, grids, turn)

    def _mapping(self, name: str, kind: Any) -> Grid:
        rows, bits = self.reference.first.p2m, FRAME_NUMBERS.bit_length() - 1

        def read(at: Any) -> Any:
            key = _number(z3.LShR(at, bits), VM_BITS), _number(at, bits)
            self.reference.suppose_row("p2m", *key, state=self._state)
            row = rows[key]
            return _term(row.is_mapped if name == "is_mapped" else select(row.is_mapped, row.frame, 0), kind)

        return Grid(kind, (None,), read, self._within)


_PLACE_BITS = INDEX_ROWS_BITS - 1


def _bits_of(size: Any) -> int:
    """How many bits of a place are looked at: of tables whose rows are bits of a number, as many as numbers of those have.

    What is at a place beyond the table's end is looked at nowhere.
    """
    return (size[1] - 1).bit_length() if isinstance(size, tuple) else _PLACE_BITS


def _column(row: Any, name: str) -> Any:
    return rights_of(row) if name == "rights" else getattr(row, name)


def _term(held: Any, dtype: Any) -> Any:
    """A value of the reference's as an element."""
    if np.dtype(dtype) == np.bool_:
        return term_of(held)
    return as_int(held).at(8 if np.dtype(dtype) == np.uint8 else 64)


def _held(grid: Grid, *at: Any) -> Any:
    """What a table has at a place, as a value of the reference's kind."""
    term = grid.read(*(as_int(number).at(64) for number in at))
    if grid.dtype == np.bool_:
        return SymBool(term)
    return SymInt(z3.ZeroExt(1, term), 0, (1 << term.size()) - 1)


# -- what is compared ------------------------------------------------------------------------------------------------------


def _same_row(row: Any, columns: Any, *at: Any) -> Any:
    """Whether columns have a row of the reference's at a place."""
    holds: Any = True
    for name, column in columns.items():
        holds = holds & (_held(column, *at) == _column(row, name))
    return holds


def same_state(system: LaneSystem, lane: Lane) -> dict[str, Any]:
    """Whether a lane holds what the reference does, at any place, table by table."""
    place = system.place
    in_memory, has_device = place.frame < system.frame_count, place.device < system.device_count
    mapping = system.p2m[place.vm, place.guest_frame]
    number = place.vm << FRAME_NUMBERS.bit_length() - 1 | place.guest_frame
    is_mapped = _held(lane.p2m["is_mapped"], number)  # type: ignore[arg-type]
    found = {
        "memory": implies(
            in_memory,
            _held(lane.words, place.frame, place.word) == system.memory.get(place.frame, place.word),  # type: ignore[arg-type]
        ),
        "disk": _held(lane.disk, place.swap_slot, place.word) == system.disk.get(place.swap_slot, place.word),  # type: ignore[arg-type]
        "tags": implies(in_memory, _held(lane.tags, place.frame) == system.tags.tags[place.frame]),  # type: ignore[arg-type]
        "large": implies(
            in_memory, _held(lane.large, place.frame >> INDEX_BITS) == system.tags.large[place.frame >> INDEX_BITS]
        ),  # type: ignore[arg-type]
        "frames": implies(in_memory, _same_row(system.frames[place.frame], lane.frames, place.frame)),
        "pending": implies(
            in_memory,
            _held(lane.pending, place.frame, place.vcpu) == system.is_pending(place.frame, place.vcpu),  # type: ignore[arg-type]
        ),
        "vms": _same_row(system.vms[place.vm], lane.vms, place.vm),
        "p2m": (is_mapped == mapping.is_mapped)
        & implies(mapping.is_mapped, _held(lane.p2m["frame"], number) == mapping.frame),  # type: ignore[arg-type]
        "vcpus": _same_row(system.vcpus[place.vcpu], lane.vcpus, place.vcpu),
        "asids": _held(lane.asids, place.vcpu, system.any_asid) == system.asids[place.vcpu, system.any_asid],  # type: ignore[arg-type]
        "walks": _same_row(system.walks.get(place.vcpu), lane.walks, place.vcpu),
        "devices": implies(has_device, _held(lane.devices, place.device) == system.devices[place.device]),  # type: ignore[arg-type]
        "iotlb": implies(
            in_memory & has_device,
            _held(lane.iotlb, place.device, place.frame) == (system.iotlb[place.frame] >> place.device & 1 != 0),  # type: ignore[arg-type]
        ),
        "swaps": _same_row(system.swaps[place.swap_slot], lane.swaps, place.swap_slot),
    }
    # Slots one by one: each has its own condition for being emptied.
    for name, slots, rows in (("tlb", lane.tlb, system.tlb.translations), ("caches", lane.caches, system.tlb.tables)):
        for slot in range(slots.count):
            found[f"{name} {slot}"] = _same_row(rows[place.vcpu, slot], slots.columns, place.vcpu, slot)
    row = system.vcpus[place.vcpu]
    found["turns"] = (_held(lane.tlb.next, place.vcpu) == row.next_tlb) & (
        _held(lane.caches.next, place.vcpu) == row.next_cache
    )  # type: ignore[arg-type]
    return found


def same_results(step: Step, request: Request) -> Any:
    """Whether both ended alike."""
    code, fault, error, frame, value = (_only(each) for each in request.results)
    if step.fault is None:
        holds = (code == int(step.code)) & (fault == int(FaultKind.NONE)) & (error == 0) & (frame == 0)
        return holds & (value == (0 if step.value is None else step.value))
    holds = (code == int(Code.OK)) & (fault == int(step.fault.kind)) & (value == 0)
    return holds & (error == step.fault.code) & (frame == step.fault.frame)


def _only(array: Any) -> Any:
    (term,) = array.cells
    return SymInt(z3.ZeroExt(1, term), 0, (1 << term.size()) - 1)


# -- what isn't executed as it stands --------------------------------------------------------------------------------------


@contextmanager
def _tabulated(lane: Lane) -> Iterator[None]:
    """Let what levels stand for be looked up in tables, which kernels have made: so no shift is by a computed distance."""
    names = "index_shifts", "frames_of"
    originals = [getattr(tlb, name) for name in names]
    for name, function in zip(names, originals, strict=True):
        within = shaped.tabulated(function, _MOST_LEVEL, lambda holds: lane.within.append(SymBool(holds)))
        setattr(tlb, name, within)
    try:
        yield
    finally:
        for name, function in zip(names, originals, strict=True):
            setattr(tlb, name, function)


_MOST_LEVEL = 8
"""One more than a column of levels holds."""


# -- theorems --------------------------------------------------------------------------------------------------------------


def ways(name: str, policy: TagPolicy = INTENDED) -> list[Way]:
    """Every way through an operation on both, or a part of one, with what is to be shown."""
    operation, stage, level = PARTS.get(name, (name, DONE, 0))

    def run() -> tuple[bool, dict[str, tuple[z3.BoolRef, ...]], frozenset[str]]:
        given = Given()
        system = LaneSystem(given, policy)
        for condition in given.assumptions:
            suppose(condition)
        given.assumptions.clear()
        system.begin()
        lane, walked = Lane(system), Walked()
        operands = [given.word(each, OPERAND_BITS[kind]) for each, kind in OPERATIONS[operation].operands]
        if operation == "step_walk":
            walk = system.walks[operands[0]]
            is_part = walk.is_live & (walk.stage != DONE)
            suppose(is_part & (walk.stage == stage) & (walk.level == level) if name in PARTS else not_(is_part))
        with tpt_lane_walks.one_step(system, stage, level), tpt_lane_walks.by_steps(system, walked):
            step = perform(system, operation, *operands)

        def lane_after() -> Lane:
            after = Lane(system)
            after.within = lane.within
            return after

        with ExitStack() as stack:
            stack.enter_context(_tabulated(lane))
            stack.enter_context(symbolic_numpy(*KERNEL_MODULES))
            stack.enter_context(tpt_lane_walks.any_of_runs(system, lane))
            if operation in ("load", "store", "fetch"):
                stack.enter_context(tpt_lane_walks.ended_alike(lane, walked, lane_after, _walk_columns))
            request = Request(lane, shaped.made_of(np.arange(1)))  # type: ignore[arg-type]
            OPERATION_KERNELS[operation](lane, request, *map(any_of, operands))
            goals = same_state(system, lane)
        same = [same_results(step, request), *goals.values()]
        ranges = [*_all_in_range(system), *lane.within, *system.narrowed, system.apart]
        found = {SAME: tuple(map(term_of, same)), RANGES: tuple(map(term_of, ranges))}
        return step.is_completed, found, frozenset(system.guards.seen)

    found = []
    for path in explore(run):
        completed, goals, guards = path.result
        found.append(Way(path.conditions, goals, completed, ("",) * len(path.conditions), guards, frozenset()))
    return found


def _walk_columns(walk: Walk) -> dict[str, Shaped]:
    """A walk of the reference's as the fast path has it."""
    return {name: any_of(_column(walk, name)) for name in WALK}


def prove(name: str, policy: TagPolicy, timeout_s: float) -> Proved:
    """Whether an operation does the same on both."""
    return asked_of(ways(NAMES[name], policy), (SAME, RANGES), timeout_s)
