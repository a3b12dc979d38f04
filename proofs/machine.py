"""M10: a step of the fast path is the reference's step, for every operation and any state.

The reference's rule and the fast path's kernel are executed on the same symbols, and everything that a step can change is
compared. Kernels of bounds and of memory, whose theorems say that they give what the reference gives, are not executed
again: the reference's answers stand for them (`kernels.*`). Functions of bounds are any functions of their arguments.

Numbers of registers are plain here, as a kernel's are: every way in which the operands can coincide, with c0 and with each
other, is executed. That stands for all numbers, because neither side does anything with a register's number but look up
the register, tell c0 (and cinvoke c31) from others, and put it into a trap value at one place.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import numpy as np
import z3

from capvisor.fastpath import capability as fast_capability
from capvisor.fastpath import isa as _kernels  # declares the kernels
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.isa.control import INVOKED_DATA
from capvisor.fastpath.machine import (
    KERNELS,
    NUMBERS,
    PCC,
    ROWS,
    SPECIAL_ROWS,
    Block,
    Window,
    advance,
    authorise,
    check_fetch,
    enter_trap,
    may_jump,
)
from capvisor.model import capability
from capvisor.model.bits import not_, select
from capvisor.model.capability import Capability
from capvisor.model.machine import Hart, Trap
from capvisor.model.memory import Granule, Memory
from capvisor.proofs import contracts, kernels, lane_memory, symbolic
from capvisor.proofs.kernels import Run
from capvisor.proofs.state import any_capability, any_extent, any_number
from capvisor.proofs.symarray import SymArray, lane, put, value
from capvisor.proofs.symbolic import Unfaithful
from capvisor.proofs.theorem import THEOREMS, Given, implies
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.invariants import has_modes
from capvisor.spec.operations import OPERATIONS, OperandKind
from capvisor.spec.registers import PCC_INDEX, REGISTER_COUNT, STATUS_NUMBERS
from capvisor.spec.traps import CAUSES

assert _kernels

NAME = "M10"
STATEMENT = (
    "The fast path's step is the reference's: the same registers, special registers, CSRs, program counter, reservation and "
    "memory, and where it is refused the same cause and trap value."
)
SOURCE = "ours: fastpath/ is an implementation independent of model/"
SCOPE = (
    "any state that the invariant of tagged capabilities allows; operands coinciding in every way; any immediates; one lane "
    "in lock step: cutting lanes into blocks and grouping divergent ones is tested, not proved"
)
LEMMAS = (
    *kernels.CONTRACTS,
    *(f"kernels.{name}" for name in ("floor_log2", "build")),
    *lane_memory.LEMMAS,
    *contracts.BOUNDS_LEMMAS,
)

_FIRST_REGISTER = 5
_UNKNOWN_STATUS_REGISTER = 0xFFF


# -- operands --------------------------------------------------------------------------------------------------------------


def coincidences(count: int, fixed: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Numbers for so many registers: some of the fixed ones, others equal to each other or not, in every way."""
    if count == 0:
        yield ()
        return
    for before in coincidences(count - 1, fixed):
        others = sorted(set(before) - set(fixed))
        for number in (*fixed, *others, _FIRST_REGISTER + len(others)):
            yield (*before, number)


_SHAPES: dict[OperandKind, tuple[int, ...]] = {
    OperandKind.SPECIAL_REGISTER: tuple(range(32)),
    OperandKind.STATUS_REGISTER: (*STATUS_NUMBERS.values(), _UNKNOWN_STATUS_REGISTER),
    OperandKind.QUARTER: tuple(range(4)),
    OperandKind.MASK: tuple(range(256)),
}
"""Operands that aren't registers but plain numbers to a kernel: all of them; of CSRs that don't exist, one."""


def shapes(name: str) -> Iterator[tuple[int | None, ...]]:
    """The operands that are plain numbers, in every combination; None for those that are symbols."""
    kinds = OPERATIONS[name].operands
    registers = [place for place, kind in enumerate(kinds) if kind.is_register]
    plain = [place for place, kind in enumerate(kinds) if kind in _SHAPES]
    fixed = (0, INVOKED_DATA) if name == "cinvoke" else (0,)
    for numbers in coincidences(len(registers), fixed):
        for others in itertools.product(*(_SHAPES[kinds[place]] for place in plain)):
            chosen = dict(zip((*registers, *plain), (*numbers, *others), strict=True))
            yield tuple(chosen.get(place) for place in range(len(kinds)))


# -- a hart and a lane in the same state -----------------------------------------------------------------------------------


class _Registers:
    """The reference's registers: any capability that the invariant allows, NULL in c0."""

    def __init__(self, fmt: CapabilityFormat, given: Given) -> None:
        self._format, self._given = fmt, given
        self._first: dict[int, Capability] = {0: capability.null(fmt)}
        self._now: dict[int, Capability] = {}

    def initial(self, register: int) -> Capability:
        """What a register held at first."""
        if register not in self._first:
            self._first[register] = any_capability(self._format, self._given, f"c{register}")
        return self._first[register]

    def known(self) -> list[int]:
        """The registers that either side has looked at or changed; the others are as they were."""
        return sorted(self._first.keys() | self._now.keys())

    def __getitem__(self, register: int) -> Capability:
        return self._now.get(register) or self.initial(register)

    def __setitem__(self, register: int, value: Capability) -> None:
        self._now[register] = value


class _Rows:
    """The lane's rows: arrays that hold at first what the hart's registers do, and anything in the row without meaning."""

    def __init__(self, fmt: CapabilityFormat, hart: Hart, ws: Any) -> None:
        self._hart, self._ws, self._format = hart, ws, fmt
        self._special = {row: getattr(hart, name) for name, row in SPECIAL_ROWS.items()}
        self._made: dict[int, Lanes] = {}

    def __getitem__(self, row: int) -> Lanes:
        if row not in self._made:
            if row == ROWS - 1:
                self._made[row] = Lanes(self._ws.fresh(np.bool_), self._ws.fresh(np.uint64), self._ws.fresh(np.uint64))
            else:
                registers: Any = self._hart.registers
                cap = registers.initial(row) if row < REGISTER_COUNT else self._special[row]
                self._made[row] = Lanes(_array(cap.tag), _array(cap.meta), _array(cap.address))
        return self._made[row]


def _array(held: Any) -> SymArray:
    """A symbolic array that holds a value, plain ones included."""
    if isinstance(held, bool):
        return SymArray(z3.BoolVal(held), np.bool_)
    if isinstance(held, int):
        return SymArray(z3.BitVecVal(held, 64), np.uint64)
    array: SymArray = lane(held)
    return array


class _Write(NamedTuple):
    """Something that was written to memory: of data, its lowest bytes; of a granule, its tag and halves."""

    address: Any
    size_bytes: int
    values: tuple[Any, ...]
    where: Any

    def same(self, other: "_Write") -> Any:
        """Whether the same is written at the same place."""
        if (self.size_bytes, len(self.values)) != (other.size_bytes, len(other.values)):
            return False
        holds = self.address == other.address
        for mine, its in zip(self.values, other.values, strict=True):
            holds = holds & (mine == its)
        return holds


class _AnyMemory(Memory):
    """The reference's memory as a step sees it: what is read is any function of the address, what is written is recorded.

    That is all that matters where two steps from the same memory are compared: with the same writes it stays the same.
    """

    def __init__(self, fmt: CapabilityFormat, base: Any, size_bytes: Any) -> None:
        super().__init__(fmt, base, size_bytes)
        self.writes: list[_Write] = []

    def _any(self, what: str, address: Any, widths: tuple[int, ...]) -> tuple[Any, ...]:
        if self.writes:
            raise Unfaithful("memory that is read after it was written in one step")
        return contracts.any_function(f"memory_{what}", self.format, (address,), widths)

    def read_granule(self, address: int) -> Granule:
        """Any granule, the same for the same address."""
        width = self.format.address_width
        return Granule(*self._any("granule", address, (0, width, width)))

    def read(self, address: int, size_bytes: int) -> int:
        """Any bytes, the same for the same address."""
        (number,) = self._any(f"bytes_{size_bytes}", address, (8 * size_bytes,))
        held: int = number
        return held

    def write_granule(self, address: int, granule: Granule, where: Any = True) -> None:
        """Record what is written, and where it is."""
        self.writes.append(_Write(address, self.format.capability_bytes, tuple(granule), where))

    def write(self, address: int, size_bytes: int, value: int, where: Any = True) -> None:
        """Record what is written, and where it is."""
        self.writes.append(_Write(address, size_bytes, (value & (1 << 8 * size_bytes) - 1,), where))

    def same_writes(self, lane: "_AnyMemory") -> Any:
        """Whether a lane's memory is written as this one is; in the lane, each write has a condition."""
        if not self.writes:
            holds: Any = True
            for write in lane.writes:
                holds = holds & not_(write.where)
            return holds
        holds = len(self.writes) == len(lane.writes)
        for mine, its in zip(self.writes, lane.writes, strict=False):
            holds = holds & its.where & mine.same(its)
        return holds


class _LaneMemory:
    """What stands for the fast path's memory: the reference's, wherever the theorems `kernels.memory.*` say so.

    They are about addresses of the format's width. What is read elsewhere, or where it isn't in memory, is anything.
    """

    def __init__(self, memory: _AnyMemory, run: Run) -> None:
        self.reference, self._run = memory, run

    def _leans_on(self, what: str, size_bytes: int) -> None:
        """Only where there is a theorem."""
        assert self.reference.format.name in THEOREMS[f"kernels.memory.{what}_{size_bytes}"].formats

    def _supposed(self, condition: Any) -> None:
        self._run.met = self._run.met & condition

    def _address(self, address: SymArray, size_bytes: int) -> tuple[Any, Any]:
        """An address, and whether an access there is in memory."""
        fmt, number = self.reference.format, value(address)
        self._run.ws.forget_bounds()
        at = number & fmt.address_mask
        return at, (number <= fmt.address_mask) & self.reference.contains(at, size_bytes)

    def contains(self, address: SymArray, size_bytes: int, _ws: Any, out: SymArray) -> None:
        """As MemoryBlock.contains."""
        self._leans_on("contains", size_bytes)
        self._supposed(value(address) <= self.reference.format.address_mask)
        put(out, self._address(address, size_bytes)[1])

    def read_granule(self, address: SymArray, ws: Any, tag: SymArray, upper: SymArray, lower: SymArray) -> None:
        """As MemoryBlock.read_granule."""
        size_bytes = self.reference.format.capability_bytes
        at, known = self._address(address, size_bytes)
        known = known & (at & size_bytes - 1 == 0)
        for out, held in zip((tag, upper, lower), self.reference.read_granule(at), strict=True):
            put(out, select(known, held, value(ws.fresh(out.dtype))))

    def read(self, address: SymArray, size_bytes: int, ws: Any, out: SymArray) -> None:
        """As MemoryBlock.read."""
        self._leans_on("read", size_bytes)
        at, known = self._address(address, size_bytes)
        put(out, select(known, self.reference.read(at, size_bytes), value(ws.fresh(out.dtype))))

    def write_granule(
        self, address: SymArray, tag: SymArray, upper: SymArray, lower: SymArray, _ws: Any, where: SymArray
    ) -> None:
        """As MemoryBlock.write_granule."""
        stored, condition, fmt = Granule(*(value(part) for part in (tag, upper, lower))), value(where), self.reference.format
        at, known = self._address(address, fmt.capability_bytes)
        self._supposed(implies(condition, known & (at & fmt.capability_bytes - 1 == 0)))
        self._supposed((stored.upper <= fmt.address_mask) & (stored.lower <= fmt.address_mask))
        self.reference.write_granule(at, stored, condition)

    def write(self, address: SymArray, size_bytes: int, stored: SymArray, _ws: Any, where: SymArray) -> None:
        """As MemoryBlock.write."""
        self._leans_on("write", size_bytes)
        number, condition = value(stored), value(where)
        at, known = self._address(address, size_bytes)
        self._supposed(implies(condition, known) & (number <= self.reference.format.address_mask))
        self.reference.write(at, size_bytes, number, condition)


class OneLane(Block):
    """A block of the batch machine of which one lane is looked at, in the same state as a hart."""

    def __init__(self, hart: Hart, run: Run) -> None:
        fmt = self.format = hart.format
        self.start, self.stop, self.ws = 0, 1, run.ws
        memory = hart.memory
        self.memory = _LaneMemory(_AnyMemory(fmt, memory.base, memory.size_bytes), run)  # type: ignore[assignment]
        self.pc, self.next_pc = _array(hart.pc), run.words()  # type: ignore[assignment]
        self.cause, self.trap_value = SymArray(z3.BitVecVal(0, 8), np.uint8), run.words()  # type: ignore[assignment]
        self.is_reserved = _array(hart.is_reserved)  # type: ignore[assignment]
        self._numbers = {name: _array(getattr(hart, name)) for name in NUMBERS}  # type: ignore[misc]
        self._rows = _Rows(fmt, hart, run.ws)  # type: ignore[assignment]


def any_pair(fmt: CapabilityFormat, given: Given) -> tuple[Hart, OneLane, Run]:
    """A hart in any state that the invariant allows, a lane in the same state, and what executes kernels on it."""
    width = fmt.address_width
    hart = Hart(_AnyMemory(fmt, *any_extent(fmt, given)), given.word("pc", width), _Registers(fmt, given))  # type: ignore[arg-type]
    given.assume(hart.pc & 1 == 0)
    for name in SPECIAL_ROWS:
        setattr(hart, name, any_capability(fmt, given, name))
    for name in NUMBERS:
        setattr(hart, name, given.word(name, width))
    given.assume(has_modes(vars(hart)))
    hart.is_reserved = given.flag("is_reserved")
    run = Run(hart.pc, contracts=True)
    return hart, OneLane(hart, run), run


@contextmanager
def _build_stands_in(run: Run) -> Iterator[None]:
    """Let the theorem about it stand for the kernel `build`."""

    def build(fmt: CapabilityFormat, authority: Lanes, requested: Lanes, ws: Any, out: Lanes) -> None:
        by, wanted = (Capability(fmt, *(value(part) for part in lanes)) for lanes in (authority, requested))
        for cap in (by, wanted):
            run.met = run.met & (cap.meta <= fmt.address_mask) & (cap.address <= fmt.address_mask)
        run.met = run.met & implies(by.tag, by.is_sound)
        by, wanted = (
            Capability(fmt, cap.tag, cap.meta & fmt.address_mask, cap.address & fmt.address_mask) for cap in (by, wanted)
        )
        ws.forget_capability()
        for array, part in zip(out, capability.build(by, wanted)[1:], strict=True):
            put(array, part)

    original = fast_capability.build
    fast_capability.build = build
    try:
        yield
    finally:
        fast_capability.build = original


# -- what is compared ------------------------------------------------------------------------------------------------------


def _holds(lanes: Lanes, cap: Capability) -> Any:
    return (value(lanes.tag) == cap.tag) & (value(lanes.meta) == cap.meta) & (value(lanes.address) == cap.address)


def same_state(hart: Hart, block: OneLane) -> Any:
    """Whether a lane holds what the hart does; but for pc, which a block doesn't change itself."""
    registers: Any = hart.registers
    holds: Any = True
    for register in registers.known():
        holds = holds & _holds(block.capability(register), registers[register])
    for name, row in SPECIAL_ROWS.items():
        holds = holds & _holds(block.special(row), getattr(hart, name))
    for name in NUMBERS:
        holds = holds & (value(block.number(name)) == getattr(hart, name))
    holds = holds & (value(block.is_reserved) == hart.is_reserved)
    mine, its = cast(_AnyMemory, hart.memory), cast(_LaneMemory, block.memory)
    return holds & mine.same_writes(its.reference)


# -- one step --------------------------------------------------------------------------------------------------------------


def same_step(fmt: CapabilityFormat, given: Given, name: str, shape: tuple[int | None, ...]) -> Any:
    """Whether an operation does the same to a hart and a lane in any state, with operands of one shape."""
    hart, block, run = any_pair(fmt, given)
    operands, own = [], []
    for kind, number in zip(OPERATIONS[name].operands, shape, strict=True):
        operand = any_number(fmt, given, kind) if number is None else number
        operands.append(operand)
        own.append(lane(operand & (1 << 64) - 1) if number is None else number)
    vars(hart)["check_fetch"] = lambda _size_bytes: None
    trap = None
    try:
        hart.execute(name, tuple(operands))
    except Trap as refusal:
        trap = refusal
    if may_jump(name):
        advance(fmt, block.pc, block.next_pc)
    with _build_stands_in(run):
        run(KERNELS[name], block, *own)
    if not may_jump(name):
        advance(fmt, block.pc, block.next_pc)
    holds = same_state(hart, block) & run.met
    if trap is None:
        return holds & (value(block.cause) == 0) & (value(block.next_pc) == hart.pc)
    return holds & (value(block.cause) == trap.cause.number) & (value(block.trap_value) == trap.value)


def same_fetch(fmt: CapabilityFormat, given: Given) -> Any:
    """Whether the instruction at pc is fetched or refused alike."""
    hart, block, run = any_pair(fmt, given)
    window: Any = Window(run.ws.fresh(np.uint8), run.words(), run.words())  # type: ignore[arg-type]
    trap = None
    try:
        hart.check_fetch()
    except Trap as refusal:
        trap = refusal
    run(authorise, fmt, block.special(PCC), run.ws, window)
    run(check_fetch, block.pc, window, run.ws, block.cause)
    fetched = value(block.cause) == (0 if trap is None else trap.cause.number)
    return fetched & run.met & (trap is None or trap.value == PCC_INDEX << 5 | trap.cause.capability_cause)


def same_trap(fmt: CapabilityFormat, given: Given, cause: str) -> Any:
    """Whether the handler is entered alike, for a cause by any register or with any value."""
    hart, block, run = any_pair(fmt, given)
    trap = Trap(cause, address=given.word("address", fmt.address_width))
    if trap.cause.capability_cause:
        trap = Trap(cause, register=given.word("register", 6))
    block.cause.fill(trap.cause.number)
    put(block.trap_value, trap.value)
    hart.enter_trap(trap)
    run(enter_trap, block)
    return same_state(hart, block) & (value(block.next_pc) == hart.pc) & run.met


def goals(fmt: CapabilityFormat, name: str | None, *, is_abstract: bool) -> Iterator[tuple[z3.BoolRef, ...]]:
    """For each shape of an operation's operands (None: the fetch, and traps), what would hold where the two differ.

    Functions of bounds are any functions, if it is to be abstract.
    """
    if name is not None:
        claims = [(lambda given, shape=shape: same_step(fmt, given, name, shape)) for shape in shapes(name)]
    else:
        claims = [lambda given: same_fetch(fmt, given)]
        claims += [(lambda given, cause=row.name: same_trap(fmt, given, cause)) for row in CAUSES]
    for claim in claims:
        attempts: list[Given] = []

        def run(claim: Any = claim, attempts: list[Given] = attempts) -> Any:
            attempts.append(Given(is_abstract=is_abstract))
            with contracts.any_bounds() if is_abstract else nullcontext():
                return claim(attempts[-1])

        for path, given in zip(symbolic.explore(run, most=500), attempts, strict=True):
            supposed = [symbolic.term_of(condition) for condition in given.assumptions]
            yield (*path.conditions, *supposed, z3.Not(symbolic.term_of(path.result)))
