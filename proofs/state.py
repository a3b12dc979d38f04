"""Any state of a hart: registers, special registers, CSRs and memory hold anything that the invariant allows.

Registers and memory are the solver's arrays, and the numbers of registers are symbols too, so that one execution stands for
every choice of registers: distinct, equal, or c0. The invariant of tagged capabilities is supposed of what the step reads,
as it was at first, and of nothing else.
"""

import copy
from typing import Any

import z3

from capvisor.model import capability
from capvisor.model.bits import sign_extend
from capvisor.model.capability import Capability
from capvisor.model.memory import Granule
from capvisor.model.observation import ObservedHart, ObservedMemory
from capvisor.proofs.memory import ArrayStore
from capvisor.proofs.symbolic import SymBool, SymInt, as_int, term_of
from capvisor.proofs.theorem import Given, implies
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.invariants import Place, has_modes
from capvisor.spec.operations import OPERATIONS, OperandKind
from capvisor.spec.registers import SPECIAL_REGISTERS, STATE_NUMBERS

_NUMBER_BITS = 5


class ArrayRegisters:
    """A register file of the solver's arrays, which holds anything at first but NULL in c0."""

    def __init__(self, fmt: CapabilityFormat, given: Given, name: str = "") -> None:
        number, word = z3.BitVecSort(_NUMBER_BITS), z3.BitVecSort(fmt.address_width)
        self._format, self._given = fmt, given
        self._first = (
            z3.Array(f"{name}tags", number, z3.BoolSort()),
            z3.Array(f"{name}metas", number, word),
            z3.Array(f"{name}addresses", number, word),
        )
        self._now = self._first
        zero = self._in(self._first, 0)
        given.assume((zero.tag ^ True) & (zero.meta == fmt.null_meta) & (zero.address == 0))

    def _in(self, arrays: Any, register: Any) -> Capability:
        at = as_int(register).at(_NUMBER_BITS)
        tags, metas, addresses = arrays
        mask = self._format.address_mask
        meta, address = (SymInt(z3.ZeroExt(1, array[at]), 0, mask) for array in (metas, addresses))
        return Capability(self._format, SymBool(tags[at]), meta, address)  # type: ignore[arg-type]

    def __getitem__(self, register: Any) -> Capability:
        first = self._in(self._first, register)
        self._given.assume(implies(first.tag, first.is_sound))
        return self._in(self._now, register)

    def __setitem__(self, register: Any, value: Capability) -> None:
        at, width = as_int(register).at(_NUMBER_BITS), self._format.address_width
        terms = (term_of(value.tag), as_int(value.meta).at(width), as_int(value.address).at(width))
        self._now = tuple(z3.Store(array, at, term) for array, term in zip(self._now, terms, strict=True))


class AnyStore(ArrayStore):
    """Granules of the solver's arrays, which hold anything at first."""

    def __init__(self, fmt: CapabilityFormat, given: Given, name: str = "memory") -> None:
        super().__init__(fmt.address_width, name)
        self._format, self._given, self._first = fmt, given, None
        self._first = copy.copy(self)

    def get(self, index: Any) -> Granule:
        """The granule at an index."""
        if self._first is not None:
            tag, upper, lower = ArrayStore.get(self._first, index)
            held = capability.from_memory(self._format, tag, upper, lower)
            self._given.assume(implies(held.tag, held.is_sound))
        return super().get(index)


def any_extent(fmt: CapabilityFormat, given: Given) -> tuple[Any, Any]:
    """Base and size of any memory of whole granules, anywhere in the address space."""
    base, size = given.word("memory_base", fmt.address_width), given.word("memory_bytes", fmt.address_width)
    granule = fmt.capability_bytes - 1
    given.assume((base & granule == 0) & (size & granule == 0) & (base + size <= fmt.address_space))
    return base, size


def any_memory(fmt: CapabilityFormat, given: Given) -> ObservedMemory:
    """Any memory of whole granules, with any content."""
    return ObservedMemory(fmt, *any_extent(fmt, given), AnyStore(fmt, given))


def any_capability(fmt: CapabilityFormat, given: Given, name: str) -> Capability:
    """Any capability that satisfies the invariant if it is tagged."""
    cap = given.capability(fmt, name)
    given.assume(implies(cap.tag, cap.is_sound))
    return cap


def any_hart(
    fmt: CapabilityFormat, given: Given, memory: ObservedMemory | None = None, registers: Any = None, name: str = ""
) -> ObservedHart:
    """Any state of a hart; pc is even, and the mode one that there is, as every step leaves them.

    `name` goes before the names of its symbols.
    """
    width = fmt.address_width
    memory = any_memory(fmt, given) if memory is None else memory
    registers = ArrayRegisters(fmt, given, name) if registers is None else registers
    hart = ObservedHart(memory, given.word(f"{name}pc", width), registers)
    given.assume(hart.pc & 1 == 0)
    for each in SPECIAL_REGISTERS:
        setattr(hart, each, any_capability(fmt, given, f"{name}{each}"))
    for each in STATE_NUMBERS:
        setattr(hart, each, given.word(f"{name}{each}", 2 if each == "privilege" else width))
    given.assume(has_modes({each: vars(hart)[each] for each in STATE_NUMBERS}))
    hart.is_reserved, hart.reservation = given.flag(f"{name}is_reserved"), given.word(f"{name}reservation", width)
    return hart


def any_place(fmt: CapabilityFormat, given: Given, hart: ObservedHart) -> Place:
    """Any register, granule and byte of memory."""
    place = Place(
        given.word("any_register", _NUMBER_BITS),
        given.word("any_granule", fmt.address_width),
        given.word("any_byte", fmt.address_width),
    )
    given.assume(place.granule < hart.memory.size_bytes >> fmt.granule_shift)
    return place


def any_operands(fmt: CapabilityFormat, given: Given, name: str) -> tuple[Any, ...]:
    """Any operands that an operation's encoding can hold."""
    return tuple(any_number(fmt, given, kind) for kind in OPERATIONS[name].operands)


def any_number(fmt: CapabilityFormat, given: Given, kind: OperandKind) -> Any:
    """Any number that an operand of a kind can be."""
    if kind.is_register:
        return given.word(kind.value, _NUMBER_BITS)
    if kind is OperandKind.VALUE:
        return given.word(kind.value, fmt.address_width)
    low, high = kind.immediate_range(fmt.address_width)
    bits = (high - low).bit_length()
    number = given.word(kind.value, bits)
    if kind.alignment > 1:
        given.assume(number & kind.alignment - 1 == 0)
    return sign_extend(number, bits) if low < 0 else number
