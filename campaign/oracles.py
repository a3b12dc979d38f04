"""The invariants of `spec.invariants` on a step of the fast path, in every lane at once.

What a predicate looks at (states before and after, accesses, the trap) is here for many lanes: its truth is an array.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from capvisor.campaign.wide import Wide
from capvisor.fastpath import bounds as fast_bounds
from capvisor.fastpath import capability as fast_capability
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.machine import NUMBERS, SPECIAL_ROWS, BatchMachine, Indices
from capvisor.fastpath.memory import Memory, MemoryBlock
from capvisor.fastpath.workspace import Flags, Words, Workspace
from capvisor.spec.formats import CapabilityFormat, Permission
from capvisor.spec.invariants import INVARIANTS, Place
from capvisor.spec.operations import OPERATIONS, OperandKind, Operation
from capvisor.spec.registers import REGISTER_COUNT, SPECIAL_REGISTERS, STATUS_REGISTERS
from capvisor.spec.traps import CAUSES_BY_NUMBER, TrapCause

# -- accesses --------------------------------------------------------------------------------------------------------------


class _Logged(NamedTuple):
    """One access of a kernel to memory: in the lanes of `where`, of all those that it works on."""

    lanes: Indices
    is_store: bool
    is_capability: bool
    address: Words
    size_bytes: int
    where: Flags | None


class _ObservedBlock(MemoryBlock):
    """Memory of some lanes that says how it is accessed."""

    lanes: Indices
    log: list[list[_Logged]]

    def observe(self, lanes: Indices, log: list[list[_Logged]]) -> "_ObservedBlock":
        self.lanes, self.log = lanes, log
        self._mine: list[_Logged] = []
        return self

    def _record(self, is_store: bool, is_capability: bool, address: Words, size_bytes: int, where: Flags | None) -> None:
        if not any(each is self._mine for each in self.log):
            self._mine = []
            self.log.append(self._mine)
        kept = None if where is None else where.copy()
        self._mine.append(_Logged(self.lanes, is_store, is_capability, address.copy(), size_bytes, kept))

    def read_granule(self, address: Words, ws: Workspace, tag: Flags, upper: Words, lower: Words) -> None:
        self._record(False, True, address, self.format.capability_bytes, None)
        super().read_granule(address, ws, tag, upper, lower)

    def write_granule(self, address: Words, tag: Flags, upper: Words, lower: Words, ws: Workspace, where: Flags) -> None:
        self._record(True, True, address, self.format.capability_bytes, where)
        super().write_granule(address, tag, upper, lower, ws, where)

    def read(self, address: Words, size_bytes: int, ws: Workspace, out: Words) -> None:
        self._record(False, False, address, size_bytes, None)
        super().read(address, size_bytes, ws, out)

    def write(self, address: Words, size_bytes: int, value: Words, ws: Workspace, where: Flags) -> None:
        self._record(True, False, address, size_bytes, where)
        super().write(address, size_bytes, value, ws, where)


class ObservedMemory(Memory):
    """Memory that says how it is accessed: `log` has a list for each run of lanes, and it the accesses of that run."""

    def __init__(self, fmt: CapabilityFormat, base: int, size_bytes: int, lanes: int) -> None:
        super().__init__(fmt, base, size_bytes, lanes)
        self.log: list[list[_Logged]] = []

    def block(self, start: int, stop: int) -> MemoryBlock:
        first = np.arange(stop - start, dtype=np.uint64) * np.uint64(self.tags.shape[1])
        block = _ObservedBlock(self, self.tags[start:stop], self.halves[start:stop], first)
        return block.observe(np.arange(start, stop), self.log)

    def selection(self, lanes: Indices) -> MemoryBlock:
        first = lanes.view(np.uint64) * np.uint64(self.tags.shape[1])
        return _ObservedBlock(self, self.tags, self.halves, first).observe(lanes, self.log)


@lru_cache(maxsize=32)
def _scratch(lanes: int) -> Workspace:
    return Workspace(lanes)


# -- states ----------------------------------------------------------------------------------------------------------------


class LaneCapability:
    """A capability a lane, with the properties of `model.capability.Capability`."""

    def __init__(self, fmt: CapabilityFormat, lanes: Lanes) -> None:
        self.format, self._lanes = fmt, lanes
        self.tag, self.meta = lanes.tag, lanes.meta
        self.address = Wide(lanes.address)
        self._permits: dict[int, Flags] = {}

    @classmethod
    def of(cls, fmt: CapabilityFormat, arrays: Iterable[Any]) -> "LaneCapability":
        """Of tags, metas and addresses."""
        return cls(fmt, Lanes(*arrays))

    @property
    def arrays(self) -> Lanes:
        """Tags, metas and addresses."""
        return self._lanes

    @cached_property
    def bounds(self) -> tuple[Wide, Wide]:
        count, width = len(self.tag), self.format.address_width
        base, top, high = np.empty(count, np.uint64), np.empty(count, np.uint64), np.empty(count, np.bool_)
        fast_bounds.decode_bounds(self.format, self.meta, self._lanes.address, _scratch(count), base, top, high)
        if width < 64:
            return Wide(base), Wide(top | high.astype(np.uint64) << np.uint64(width))
        return Wide(base), Wide(top, high)

    @cached_property
    def permissions(self) -> Words:
        out = np.empty(len(self.tag), np.uint64)
        fast_capability.get_permissions(self.format, self.meta, _scratch(len(out)), out)
        return out

    def permits(self, permission: Permission) -> Flags:
        """Whether every bit of `permission` is held."""
        if permission not in self._permits:
            wanted = np.uint64(int(permission) << self.format.permissions.low)
            self._permits[permission] = np.equal(self.meta & wanted, wanted)
        return self._permits[permission]

    @cached_property
    def otype(self) -> Wide:
        return Wide(self.meta >> np.uint64(self.format.otype.low) & np.uint64(self.format.otype.mask))

    @cached_property
    def is_sealed(self) -> Flags:
        return self.otype != self.format.otype_unsealed

    @cached_property
    def has_reserved_otype(self) -> Flags:
        return self.otype > self.format.max_otype

    @cached_property
    def is_sound(self) -> Flags:
        """The invariant of a tagged capability."""
        base, top = self.bounds
        valid: Any = np.empty(len(self.tag), np.bool_)
        fast_bounds.bounds_are_valid(self.format, self.meta, _scratch(len(valid)), valid)
        reserved = self.meta >> np.uint64(self.format.reserved.low) & np.uint64(self.format.reserved.mask)
        sound: Flags = valid & (base <= top) & (top <= self.format.address_space) & (reserved == 0)
        return sound


def _alike(a: LaneCapability, b: LaneCapability) -> bool:
    """Whether two are the same in every lane."""
    return all(np.array_equal(one, other) for one, other in zip(a.arrays, b.arrays, strict=True))


class _LaneMemory:
    """Memory of the lanes that are looked at: before or after a step."""

    def __init__(self, memory: Memory, tags: Flags, halves: Words, lanes: Indices, rows: Any) -> None:
        self.base, self.size_bytes = memory.base, memory.size_bytes
        self.format, self._lanes, self._rows = memory.format, lanes, rows
        self._tags, self._halves = tags, halves
        self._granules: dict[int, LaneCapability] = {}
        self._bytes: dict[int, tuple[Wide, Wide]] = {}

    def contains(self, address: Wide, size_bytes: int) -> Flags:
        """Whether all of an access is memory."""
        return (address >= self.base) & (address + size_bytes <= self.base + self.size_bytes)

    def read(self, address: Wide, size_bytes: int) -> Wide:
        """The byte at an address; any, where that isn't memory. The address is a Wide or, in all lanes alike, an int."""
        assert size_bytes == 1
        if id(address) not in self._bytes:
            self._bytes[id(address)] = address, self._byte(address)
        return self._bytes[id(address)][1]

    def _byte(self, address: Wide) -> Wide:
        half, granules = self.format.capability_bytes // 2, self._halves.reshape(len(self._halves), -1)
        inside = np.minimum((address - self.base).low, np.uint64(self.size_bytes - 1)).view(np.int64)
        word = granules[self._lanes, inside // half]
        return Wide(word >> (inside % half * 8).view(np.uint64) & np.uint64(0xFF))

    def granule(self, index: Any) -> LaneCapability:
        """The capability that a granule holds; an index is a Wide or, in all lanes alike, an int."""
        if isinstance(index, Wide):
            return self._at(self._lanes, np.minimum(index.low, np.uint64(self._tags.shape[1] - 1)).view(np.int64))
        if index not in self._granules:
            self._granules[index] = self._at(self._rows, index)
        return self._granules[index]

    def _at(self, rows: Any, place: Any) -> LaneCapability:
        halves = self._halves[rows, place]
        meta = halves[:, 1] ^ np.uint64(self.format.null_meta)
        return LaneCapability(self.format, Lanes(self._tags[rows, place], meta, halves[:, 0]))


class _State:
    """The states of some lanes before or after a step: what predicates may look at."""

    def __init__(
        self,
        registers: dict[int, LaneCapability],
        special: dict[str, LaneCapability],
        numbers: dict[str, Any],
        memory: _LaneMemory,
    ) -> None:
        self.registers, self.special, self.numbers, self.memory = registers, special, numbers, memory

    def granule(self, index: Any) -> LaneCapability:
        """The capability that a granule of memory holds."""
        return self.memory.granule(index)


class _LaneAccess(NamedTuple):
    is_store: bool
    is_capability: bool
    address: Wide
    size_bytes: int


class _LaneTrap(NamedTuple):
    cause: TrapCause
    value: Wide


class _LaneStep:
    """A step in lanes that it went alike in: completed with the same accesses, or refused for one cause."""

    def __init__(
        self,
        fmt: CapabilityFormat,
        row: Operation,
        operands: dict[OperandKind, Any],
        before: _State,
        after: _State,
        trap: _LaneTrap | None,
        accesses: tuple[_LaneAccess, ...],
        touched: frozenset[str],
    ) -> None:
        self.format, self.row, self.operands = fmt, row, operands
        self.before, self.after, self.trap = before, after, trap
        self.accesses, self.touched = accesses, touched

    @property
    def register_operands(self) -> Iterator[Any]:
        """The numbers of the registers that the operation names."""
        return (value for kind, value in self.operands.items() if kind.is_register)


_SPECIALS = sorted(SPECIAL_ROWS, key=SPECIAL_ROWS.__getitem__)
_ALL_NUMBERS = ("pc", *NUMBERS)
_OF_SYSTEM = [each for each in SPECIAL_REGISTERS.values() if each.needs_system_access]


class Violation(NamedTuple):
    """An invariant that a step broke, and where."""

    invariant: str
    lanes: Indices


class Oracles:
    """Watches a machine whose lanes execute the same operation, and holds every step against every invariant.

    At each step, the places looked at are the registers that the operation names or may write and another one, the granules
    and bytes of its accesses, their neighbours, and another granule.
    """

    def __init__(self, machine: BatchMachine, lanes: slice | None = None) -> None:
        assert isinstance(machine.memory, ObservedMemory)
        self._machine, self._memory = machine, machine.memory
        self._slice = lanes or slice(0, machine.lanes)
        self.count = len(range(*self._slice.indices(machine.lanes)))
        self._first = self._slice.start
        self.evaluated = dict.fromkeys(INVARIANTS, 0)
        self.concerned = dict.fromkeys(INVARIANTS, 0)
        """By invariant: in how many lanes and steps it was looked at, and in how many it had something to say."""
        part = self._slice
        self._special = self._copy_special()
        self._numbers = {name: self._number(name).copy() for name in (*_ALL_NUMBERS, "is_reserved")}
        self._tags, self._halves = self._memory.tags[part].copy(), self._memory.halves[part].copy()
        self._held: dict[int, LaneCapability] = {}
        self._kept: dict[int, LaneCapability] = {}
        self._kept_special: dict[str, LaneCapability] = {}
        self._step = 0
        self._stored = False
        self._changes = self._changed_special()

    def _number(self, name: str) -> Any:
        machine = self._machine
        array = machine.pc if name == "pc" else machine.is_reserved if name == "is_reserved" else machine.numbers[name]
        return array[self._slice]

    def _row(self, row: int) -> Lanes:
        machine = self._machine
        return Lanes(machine.tags[row, self._slice], machine.metas[row, self._slice], machine.addresses[row, self._slice])

    def _copy_special(self) -> Lanes:
        rows = slice(REGISTER_COUNT, REGISTER_COUNT + len(_SPECIALS))
        machine, part = self._machine, self._slice
        tags, metas, addresses = (each[rows, part].copy() for each in (machine.tags, machine.metas, machine.addresses))
        return Lanes(tags, metas, addresses)  # type: ignore[arg-type]

    def before(self, name: str, operands: Sequence[Any]) -> None:
        """To be called before a step: what will be looked at is kept."""
        row = OPERATIONS[name]
        self._row_of = row
        self._operands = dict(zip(row.operands, operands, strict=True))
        named = [value for kind, value in self._operands.items() if kind.is_register]
        if name == "cinvoke":
            named.append(31)
        if name == "cclear":
            quarter, mask = operands
            named += [8 * quarter + place for place in range(8) if mask >> place & 1]
        self._step += 1
        fmt, looked_at = self._machine.format, dict.fromkeys([*named, 7 * self._step % REGISTER_COUNT, 0])
        self._held = {each: self._keep(fmt, each) for each in looked_at}
        self._memory.log.clear()

    def _keep(self, fmt: CapabilityFormat, register: int) -> LaneCapability:
        """A copy of what a register holds: the one made before, with what is known of it, if it still holds that."""
        now, kept = LaneCapability(fmt, self._row(register)), self._kept.get(register)
        if kept is None or not _alike(now, kept):
            kept = self._kept[register] = LaneCapability.of(fmt, [array.copy() for array in now.arrays])
        return kept

    def after(self) -> list[Violation]:
        """To be called after a step: the invariants that it broke."""
        machine = self._machine
        cause = machine.cause[self._slice]
        accesses = self._merged(cause)
        self._changes = self._changed_special()
        self._stored = any(each.is_store for pieces in self._memory.log for each in pieces)
        # Lanes in which it went alike: by cause, and by which accesses were made.
        kinds = cause.astype(np.int64)
        for _access, present in accesses:
            kinds = kinds * 2 + present
        violations: list[Violation] = []
        first = int(kinds[0])
        if (kinds == first).all():
            violations += self._judge(None, int(cause[0]), [each for each, present in accesses if present[0]])
        else:
            for kind in np.unique(kinds).tolist():
                lanes = np.flatnonzero(kinds == kind)
                mine = [each for each, present in accesses if present[lanes[0]]]
                violations += self._judge(lanes, int(cause[lanes[0]]), mine)
        self._advance()
        return violations

    def _merged(self, cause: Any) -> list[tuple[_LaneAccess, Flags]]:
        """The accesses of a step, each with the lanes in which it was made."""
        merged = []
        completed = cause == 0
        depth = max((len(pieces) for pieces in self._memory.log), default=0)
        for place in range(depth):
            address, present = np.zeros(self.count, np.uint64), np.zeros(self.count, np.bool_)
            example = None
            for pieces in self._memory.log:
                if place >= len(pieces):
                    continue
                each = pieces[place]
                mine = (each.lanes >= self._first) & (each.lanes < self._first + self.count)
                if not mine.any():
                    continue
                example = each
                where = each.lanes[mine] - self._first
                address[where] = each.address[mine]
                present[where] = True if each.where is None else each.where[mine]
            if example is not None:
                access = _LaneAccess(example.is_store, example.is_capability, Wide(address), example.size_bytes)
                merged.append((access, present & completed))
        return merged

    def _judge(self, chosen: Indices | None, cause: int, accesses: list[_LaneAccess]) -> list[Violation]:
        """Hold a step against the invariants in some lanes, in which it went alike."""
        fmt, machine, row = self._machine.format, self._machine, self._row_of
        lanes = np.arange(self.count) if chosen is None else chosen

        def pick(array: Any) -> Any:
            return array if chosen is None else array[chosen]

        def picked(caps: Lanes) -> LaneCapability:
            return LaneCapability.of(fmt, map(pick, caps))

        def held(register: int) -> LaneCapability:
            kept = self._held[register]
            return kept if chosen is None else LaneCapability.of(fmt, map(pick, kept.arrays))

        before_registers = {register: held(register) for register in self._held}
        after_registers = {register: picked(self._row(register)) for register in self._held}
        for register, before_it in before_registers.items():
            if _alike(before_it, after_registers[register]):
                after_registers[register] = before_it
        before_special, after_special = {}, {}
        changes = self._changes if chosen is None else self._changes[:, chosen]
        changed: Any = changes.any(axis=1)
        for place, name in enumerate(_SPECIALS):
            whole = self._kept_special.get(name)
            if whole is None:
                whole = self._kept_special[name] = LaneCapability.of(fmt, [array[place] for array in self._special])
            old = whole if chosen is None else picked(whole.arrays)
            before_special[name] = old
            after_special[name] = picked(self._row(SPECIAL_ROWS[name])) if changed[place] else old
        trap = None
        if cause:
            trap = _LaneTrap(CAUSES_BY_NUMBER[cause], Wide(pick(machine.trap_value[self._slice])))
        before_numbers: dict[str, Any] = {name: Wide(pick(self._numbers[name])) for name in _ALL_NUMBERS}
        after_numbers: dict[str, Any] = {name: Wide(pick(self._number(name))) for name in _ALL_NUMBERS}
        before_numbers["is_reserved"] = pick(self._numbers["is_reserved"])
        after_numbers["is_reserved"] = pick(self._number("is_reserved"))
        memory, rows = self._memory, slice(None) if chosen is None else lanes
        before = _State(
            before_registers, before_special, before_numbers, _LaneMemory(memory, self._tags, self._halves, lanes, rows)
        )
        held_now = before.memory
        if self._stored:
            # Kernels reach memory through blocks alone, which say what is stored: else it is as it was.
            held_now = _LaneMemory(memory, memory.tags[self._slice], memory.halves[self._slice], lanes, rows)
        after = _State(after_registers, after_special, after_numbers, held_now)
        mine = tuple(access._replace(address=Wide(pick(access.address.low))) for access in accesses)
        step = _LaneStep(fmt, row, self._operands, before, after, trap, mine, self._touched())
        violations, places = [], self._places(step)
        for name, invariant in INVARIANTS.items():
            holds: Any = True
            for where in places:
                holds = holds & invariant.holds(step, where)
            self.evaluated[name] += len(lanes)
            self.concerned[name] += int(np.count_nonzero(np.broadcast_to(invariant.concerns(step), len(lanes))))
            if not np.all(holds):
                violations.append(Violation(name, lanes[np.flatnonzero(~np.broadcast_to(holds, len(lanes)))] + self._first))
        return violations

    def _changed_special(self) -> Flags:
        """Which special registers a step has changed: bool[registers, lanes]."""
        rows, machine = slice(REGISTER_COUNT, REGISTER_COUNT + len(_SPECIALS)), self._machine
        changed: Flags = machine.tags[rows, self._slice] != self._special.tag
        changed |= machine.metas[rows, self._slice] != self._special.meta
        changed |= machine.addresses[rows, self._slice] != self._special.address
        return changed

    def _touched(self) -> frozenset[str]:
        """The registers of the system that the operation says it reads or writes, or that have changed."""
        row, touched = self._row_of, set()
        for kind, value in self._operands.items():
            if kind is OperandKind.SPECIAL_REGISTER:
                touched |= {
                    name for name, each in SPECIAL_REGISTERS.items() if each.number == value and each.needs_system_access
                }
            if kind is OperandKind.STATUS_REGISTER:
                touched |= {each.part_of or each.name for each in STATUS_REGISTERS.values() if each.number == value}
        if row.name in ("mret", "sret"):
            touched |= {"mstatus", "mepcc" if row.name == "mret" else "sepcc"}
        return frozenset(touched)

    def _places(self, step: _LaneStep) -> list[Place]:
        """The places that are looked at, as many as the longest of the three lists has."""
        granules = self._tags.shape[1]
        before, after = step.before.registers, step.after.registers
        registers = [each for each in self._held if after[each] is not before[each]] or [0]
        places_of_granules: list[Any] = [self._step * 5 % granules]
        places_of_bytes: list[Any] = []
        for access in step.accesses:
            shift, base = self._machine.format.granule_shift, self._memory.base
            first = (access.address - base) >> shift
            last = (access.address + (access.size_bytes - 1) - base) >> shift
            places_of_granules += [first] if access.is_capability else [first, last]
            places_of_bytes += [access.address - 1, access.address + access.size_bytes]
        if not step.accesses:
            # Nothing was accessed: any byte, the same for all.
            places_of_bytes.append(Wide(np.full(len(step.before.registers[0].tag), self._memory.base, np.uint64)))
        count = max(len(registers), len(places_of_granules), len(places_of_bytes))
        columns: tuple[list[Any], ...] = (registers, places_of_granules, places_of_bytes)
        return [Place(*(column[number % len(column)] for column in columns)) for number in range(count)]

    def _advance(self) -> None:
        """What is now is what was before the next step."""
        part, machine = self._slice, self._machine
        rows = slice(REGISTER_COUNT, REGISTER_COUNT + len(_SPECIALS))
        changed: Any = self._changes.any(axis=1)
        if changed.any():
            for array, now in zip(self._special, (machine.tags, machine.metas, machine.addresses), strict=True):
                np.copyto(array, now[rows, part])
            for name in np.array(_SPECIALS)[changed].tolist():
                self._kept_special.pop(name, None)
        for name, array in self._numbers.items():
            np.copyto(array, self._number(name))
        if self._stored:
            np.copyto(self._tags, self._memory.tags[part])
            np.copyto(self._halves, self._memory.halves[part])
