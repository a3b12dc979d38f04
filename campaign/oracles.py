"""The invariants of `spec.invariants` on a step of the fast path, in every lane at once.

What a predicate looks at (states before and after, accesses, the trap) is here for many lanes: its truth is an array.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
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


_COMPARED: dict[tuple[int, int], tuple[Wide, Wide, Flags]] = {}
"""The ends of bounds that have been compared while one step is judged, by identity, with what came of it."""


class _End(Wide):
    """An end of bounds: several invariants compare the same ones."""

    __slots__ = ()

    def __le__(self, other: Any) -> Flags:
        if not isinstance(other, _End):
            return super().__le__(other)
        known = _COMPARED.get((id(self), id(other)))
        if known is None:
            known = _COMPARED[id(self), id(other)] = self, other, super().__le__(other)
        return known[2]


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

    def copied(self) -> "LaneCapability":
        """A copy, with what is known of it."""
        copy = LaneCapability.of(self.format, [array.copy() for array in self._lanes])
        vars(copy).update({name: value for name, value in vars(self).items() if name in _DERIVED})
        return copy

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
            return _End(base), _End(top | high.astype(np.uint64) << np.uint64(width))
        return _End(base), _End(top, high)

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


_DERIVED = ("bounds", "permissions", "_permits", "otype", "is_sealed", "has_reserved_otype", "is_sound")


def _alike(a: LaneCapability, b: LaneCapability) -> bool:
    """Whether two are the same in every lane."""
    return a is b or all(
        bool((one == other).all()) for one, other in zip(reversed(a.arrays), reversed(b.arrays), strict=True)
    )


_ANY_BYTE = Wide(np.zeros(1, np.uint64))


class _LaneMemory:
    """Memory of the lanes that are looked at: before or after a step."""

    def __init__(self, memory: Memory, tags: Flags, halves: Words, lanes: Indices, rows: Any, *, stored: bool) -> None:
        self.base, self.size_bytes = memory.base, memory.size_bytes
        self.format, self._lanes, self._rows = memory.format, lanes, rows
        self._tags, self._halves, self._stored = tags, halves, stored
        self._granules: dict[int, tuple[Any, LaneCapability]] = {}
        self._bytes: dict[int, tuple[Wide, Wide]] = {}

    def contains(self, address: Wide, size_bytes: int) -> Flags:
        """Whether all of an access is memory."""
        return (address >= self.base) & (address + size_bytes <= self.base + self.size_bytes)

    def read(self, address: Wide, size_bytes: int) -> Wide:
        """The byte at an address; any, where that isn't memory. The address is a Wide or, in all lanes alike, an int."""
        assert size_bytes == 1
        if not self._stored:
            # Bytes are looked at to be compared with what they become: these are the same, whatever they are.
            return _ANY_BYTE
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
        key = id(index) if isinstance(index, Wide) else -1 - index
        if key not in self._granules:
            if isinstance(index, Wide):
                place = np.minimum(index.low, np.uint64(self._tags.shape[1] - 1)).view(np.int64)
                self._granules[key] = index, self._at(self._lanes, place)
            else:
                self._granules[key] = index, self._at(self._rows, index)
        return self._granules[key][1]

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


class _LaneNumbers(dict[str, Any]):
    """The numbers of a state in some lanes, each taken from all lanes' when it is first looked at."""

    def __init__(self, take: Callable[[str], Any]) -> None:
        super().__init__()
        self._take = take

    def __missing__(self, name: str) -> Any:
        taken = self._take(name)
        self[name] = taken if name == "is_reserved" else Wide(taken)
        return self[name]


_SPECIALS = sorted(SPECIAL_ROWS, key=SPECIAL_ROWS.__getitem__)
_ALL_NUMBERS = ("pc", *NUMBERS)
_OF_SYSTEM = [each for each in SPECIAL_REGISTERS.values() if each.needs_system_access]


class Violation(NamedTuple):
    """An invariant that a step broke, and where."""

    invariant: str
    lanes: Indices


_OF_REGISTERS_AND_GRANULES = ("M1", "M3", "M4", "M5", "M6", "M8")
_OF_BYTES = ("M2",)
"""The invariants that say something of every place; the others are of the step as a whole."""


class _Places:
    """The places at which a step is held against each invariant, none of them where it holds by what a step is."""

    def __init__(self, oracles: "Oracles", step: _LaneStep) -> None:
        before, after = step.before, step.after
        changed = [each for each, cap in after.registers.items() if cap is not before.registers[each]]
        self._step, self._stored = step, before.memory is not after.memory
        self._has_tags = any(after.registers[each].tag.any() for each in changed)
        others = [name for name in after.special if step.trap is None or name not in ("pcc", "mepcc")]  # those are M4's
        self._has_special = any(after.special[name] is not before.special[name] for name in others)
        if step.trap is None:
            # Of a completed step, the invariants are of tagged capabilities: what isn't one in any lane needs no look.
            changed = [each for each in changed if after.registers[each].tag.any()]
        memory, shift = before.memory, step.format.granule_shift
        granules: list[Any] = [oracles.granule]
        self._bytes: list[Any] = []
        for access in step.accesses:
            first = (access.address - memory.base) >> shift
            last = (access.address + (access.size_bytes - 1) - memory.base) >> shift
            granules += [first] if access.is_capability else [first, last]
            self._bytes += [access.address - 1, access.address + access.size_bytes]
        if not step.accesses:
            # Nothing was accessed: any byte, the same for all.
            self._bytes.append(Wide(np.full(len(step.before.registers[0].tag), memory.base, np.uint64)))
        # Where nothing was stored, each granule is what it was: one stands for all.
        columns = changed or [0], granules if self._stored else granules[:1]
        count = max(map(len, columns))
        self._pairs = [
            (columns[0][number % len(columns[0])], columns[1][number % len(columns[1])]) for number in range(count)
        ]

    def of(self, name: str) -> list[Place]:
        """The places of one invariant."""
        if self._is_granted(name):
            return []
        register, granule = self._pairs[0]
        if name in _OF_BYTES:
            return [Place(register, granule, byte) for byte in self._bytes]
        pairs = self._pairs if name in _OF_REGISTERS_AND_GRANULES else self._pairs[:1]
        return [Place(register, granule, self._bytes[0]) for register, granule in pairs]

    def _is_granted(self, name: str) -> bool:
        """Whether an invariant holds because the step did nothing that it is about."""
        step = self._step
        puts_tags = self._has_tags or self._has_special or self._stored
        match name:
            case "M1":  # nothing was put anywhere but integers in registers
                return not puts_tags
            case "M2":  # no access, and no byte was stored
                return not step.accesses and not self._stored
            case "M3":  # no granule was stored, and no register has a new tag
                return not self._stored and not self._has_tags
            case "M4":
                return step.trap is None
            case "M5":  # as M1, and nothing was dereferenced
                return not puts_tags and not step.accesses
            case "M6":
                return not any(access.is_capability for access in step.accesses)
        return False


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
        self._seen: dict[int, LaneCapability] = {}
        """What the last step left in the registers that were looked at, if it went alike in all lanes."""
        self._kept_special: dict[str, LaneCapability] = {}
        self._step = 0
        self._stored = False
        self._changes, self._other_changes = (np.zeros((len(_SPECIALS), self.count), np.bool_) for _ in range(2))

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
        self._seen = {}
        self._memory.log.clear()

    def _keep(self, fmt: CapabilityFormat, register: int) -> LaneCapability:
        """A copy of what a register holds: the one made before, with what is known of it, if it still holds that."""
        kept, now = self._kept.get(register), self._seen.get(register)
        if now is None:
            now = LaneCapability(fmt, self._row(register))
            if kept is not None and _alike(now, kept):
                return kept
        if now is not kept:
            kept = self._kept[register] = now.copied()
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
        _COMPARED.clear()
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
        if chosen is None:
            self._seen = after_registers
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
        before_numbers = _LaneNumbers(lambda name: pick(self._numbers[name]))
        after_numbers = _LaneNumbers(lambda name: pick(self._number(name)))
        memory, rows = self._memory, slice(None) if chosen is None else lanes
        before = _State(
            before_registers,
            before_special,
            before_numbers,
            _LaneMemory(memory, self._tags, self._halves, lanes, rows, stored=self._stored),
        )
        held_now = before.memory
        if self._stored:
            # Kernels reach memory through blocks alone, which say what is stored: else it is as it was.
            held_now = _LaneMemory(memory, memory.tags[self._slice], memory.halves[self._slice], lanes, rows, stored=True)
        after = _State(after_registers, after_special, after_numbers, held_now)
        mine = tuple(access._replace(address=Wide(pick(access.address.low))) for access in accesses)
        step = _LaneStep(fmt, row, self._operands, before, after, trap, mine, self._touched())
        violations, places = [], _Places(self, step)
        concerned: dict[Any, int] = {}
        for name, invariant in INVARIANTS.items():
            holds: Any = True
            for where in places.of(name):
                holds = holds & invariant.holds(step, where)
            self.evaluated[name] += len(lanes)
            if invariant.concerns not in concerned:
                said = invariant.concerns(step)
                everywhere = len(lanes) if isinstance(said, bool) else 1
                concerned[invariant.concerns] = int(np.count_nonzero(said)) * everywhere
            self.concerned[name] += concerned[invariant.concerns]
            if not np.all(holds):
                violations.append(Violation(name, lanes[np.flatnonzero(~np.broadcast_to(holds, len(lanes)))] + self._first))
        return violations

    @property
    def granule(self) -> int:
        """A granule to be looked at, another one in each step."""
        return self._step * 5 % int(self._tags.shape[1])

    def _changed_special(self) -> Flags:
        """Which special registers a step has changed: bool[registers, lanes]."""
        rows, machine = slice(REGISTER_COUNT, REGISTER_COUNT + len(_SPECIALS)), self._machine
        changed, other = self._changes, self._other_changes
        np.not_equal(machine.tags[rows, self._slice], self._special.tag, out=changed)
        for now, before in ((machine.metas, self._special.meta), (machine.addresses, self._special.address)):
            np.not_equal(now[rows, self._slice], before, out=other)
            np.logical_or(changed, other, out=changed)
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
