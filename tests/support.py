"""Pieces that several tests share: drawing states that are worth running operations on, and comparing implementations."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from capvisor.dsl.states import differences
from capvisor.fastpath.machine import NUMBERS, SPECIAL_ROWS, BatchMachine
from capvisor.model import capability as reference_capability
from capvisor.model.capability import Capability
from capvisor.model.machine import Hart, Trap
from capvisor.model.memory import Granule, Memory
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.operations import OPERATIONS, OperandKind

MEMORY_BASE = 0x8000_0000
MEMORY_BYTES = 1024


def edge_numbers(rng: np.random.Generator, fmt: CapabilityFormat, count: int) -> list[int]:
    """Addresses and lengths with a bias to what breaks things: powers of two and their neighbours, the memory's edges."""
    mask = fmt.address_mask
    numbers = []
    for _ in range(count):
        kind = rng.integers(0, 8)
        small = int(rng.integers(-20, 20))
        if kind == 0:
            number = int(rng.integers(0, 2**63)) * 2 + int(rng.integers(0, 2))
        elif kind == 1:
            number = (1 << int(rng.integers(0, fmt.address_width))) + small
        elif kind == 2:
            number = -(1 << int(rng.integers(0, fmt.address_width))) + small
        elif kind == 3:
            number = small
        elif kind == 4:
            number = int(rng.integers(0, 2**63)) >> int(rng.integers(0, 63))
        else:
            number = MEMORY_BASE + int(rng.integers(-64, MEMORY_BYTES + 64))
        numbers.append(number & mask)
    return numbers


def derived_capability(rng: np.random.Generator, fmt: CapabilityFormat) -> Capability:
    """A capability that software could have made from the root, mostly tagged; now and then sealed or without a tag."""
    cap = reference_capability.root(fmt)
    for _ in range(int(rng.integers(1, 4))):
        address, length = edge_numbers(rng, fmt, 2)
        if rng.integers(0, 2):
            address = MEMORY_BASE + int(rng.integers(0, MEMORY_BYTES))
        moved = reference_capability.set_address(cap, address)
        narrowed, _exact = reference_capability.set_bounds(moved, length >> int(rng.integers(0, fmt.address_width)))
        cap = narrowed if narrowed.tag else moved if moved.tag else cap
    if rng.integers(0, 2):
        cap = reference_capability.and_permissions(cap, int(rng.integers(0, 1 << 19)) | int(rng.integers(0, 1 << 19)))
    if rng.integers(0, 4) == 0:
        otype = int(rng.integers(0, 4)) if rng.integers(0, 2) else int(rng.integers(0, fmt.max_otype + 1))
        cap = reference_capability.set_otype(cap, otype)
    if rng.integers(0, 8) == 0:
        cap = reference_capability.seal_entry(cap)
    if rng.integers(0, 4) == 0:
        cap = reference_capability.increment_address(cap, edge_numbers(rng, fmt, 1)[0])
    if rng.integers(0, 10) == 0:
        cap = cap.with_tag(False)
    return cap


def memory_capability(rng: np.random.Generator, fmt: CapabilityFormat) -> Capability:
    """A capability over some of the memory, mostly pointing at a granule; sometimes short of a permission, or beyond it."""
    if rng.integers(0, 12) == 0:
        return reference_capability.root(fmt, MEMORY_BASE + MEMORY_BYTES)
    granules = MEMORY_BYTES // fmt.capability_bytes
    start, size = int(rng.integers(0, granules)), int(rng.integers(1, 9))
    address = MEMORY_BASE + start * fmt.capability_bytes
    cap, _exact = reference_capability.set_bounds(reference_capability.root(fmt, address), size * fmt.capability_bytes)
    if rng.integers(0, 2):
        cap = reference_capability.and_permissions(cap, fmt.permissions_mask ^ 1 << int(rng.integers(0, 7)))
    if rng.integers(0, 3) == 0:
        cap = reference_capability.increment_address(cap, int(rng.integers(0, 64)))
    return cap


def code_capability(rng: np.random.Generator, fmt: CapabilityFormat) -> Capability:
    """A capability for PCC: executable, at an even address, mostly with much in bounds, in either mode."""
    cap = reference_capability.root(fmt, MEMORY_BASE + 4 * int(rng.integers(0, 64)))
    if rng.integers(0, 4) == 0:
        cap, _exact = reference_capability.set_bounds(cap, int(rng.choice([1, 2, 3, 4, 6, 8, 64])))
    if rng.integers(0, 6) == 0:
        cap = reference_capability.and_permissions(cap, fmt.permissions_mask & ~(1 << 10))
    if rng.integers(0, 12) == 0:
        cap = reference_capability.root(fmt, fmt.address_mask - int(rng.choice([1, 3, 5])))
    return reference_capability.set_flags(cap, int(rng.integers(0, 2)))


def any_capability(rng: np.random.Generator, fmt: CapabilityFormat) -> Capability:
    """A derived capability, one over memory, an integer, an authority over object types, or untagged bits of any kind."""
    kind = rng.integers(0, 8)
    if kind >= 5:
        return memory_capability(rng, fmt)
    (number,) = edge_numbers(rng, fmt, 1)
    if kind == 0:
        return reference_capability.null(fmt, number)
    if kind == 1:
        return Capability(fmt, False, int(rng.integers(0, 2**63)) * 2 + int(rng.integers(0, 2)) & fmt.address_mask, number)
    if kind == 2:
        # An authority over object types, few of them so that they match, now and then without its tag.
        otype = int(rng.integers(0, 4)) if rng.integers(0, 2) else number & fmt.otype.mask
        return reference_capability.root(fmt, otype).with_tag(bool(rng.integers(0, 4)))
    return derived_capability(rng, fmt)


@dataclass
class Pair:
    """The same states in both implementations: one hart of the reference for each lane of the batch machine."""

    harts: list[Hart]
    machine: BatchMachine

    @classmethod
    def with_random_state(
        cls,
        rng: np.random.Generator,
        fmt: CapabilityFormat,
        lanes: int,
        block_lanes: int,
        registers: range = range(1, 8),
    ) -> "Pair":
        machine = BatchMachine(fmt, MEMORY_BASE, MEMORY_BYTES, lanes, block_lanes)
        harts = [Hart(Memory(fmt, MEMORY_BASE, MEMORY_BYTES)) for _ in range(lanes)]
        for lane, hart in enumerate(harts):
            for register in registers:
                cap = any_capability(rng, fmt)
                hart.write(register, cap)
                put_register(machine, lane, register, cap)
            # DDC mostly reaches memory, so that accesses by it are made and refused for every reason.
            hart.ddc = (memory_capability if rng.integers(0, 4) else any_capability)(rng, fmt)
            # PCC is mostly usable, and MTCC too, so that most operations are executed.
            for name in ("pcc", "mtcc"):
                setattr(hart, name, (code_capability if rng.integers(0, 8) else any_capability)(rng, fmt))
            for name in sorted(SPECIAL_ROWS.keys() - {"pcc", "ddc", "mtcc"}):
                setattr(hart, name, any_capability(rng, fmt))
            for name, row in SPECIAL_ROWS.items():
                put_register(machine, lane, row, getattr(hart, name))
            hart.pc = hart.pcc.address & fmt.address_mask - 1
            hart.mstatus = (
                int(rng.choice([0, 8, 0x80, 0x88])) | int(rng.choice([0, 2, 0x20, 0x100])) | int(rng.choice([0, 1, 3])) << 11
            )
            hart.privilege = int(rng.choice([0, 1, 3, 3]))
            hart.mscratch, hart.sscratch = int(rng.integers(0, 2**31)), int(rng.integers(0, 2**31))
            hart.is_reserved = bool(rng.integers(0, 2))
            hart.reservation = hart.integer(int(rng.choice(registers)))
            for name in NUMBERS:
                machine.numbers[name][lane] = getattr(hart, name)
            machine.is_reserved[lane], machine.pc[lane] = hart.is_reserved, hart.pc
            for _ in range(machine.memory.granules // 2):
                cap, index = derived_capability(rng, fmt), int(rng.integers(0, machine.memory.granules))
                granule = Granule(cap.tag, reference_capability.memory_meta(cap), cap.address)
                hart.memory.store.set(index, granule)
                machine.memory.tags[lane, index] = granule.tag
                machine.memory.halves[lane, index] = granule.lower, granule.upper
        machine.pcc_changed(np.arange(lanes))
        return cls(harts, machine)

    def reserve(self, register: int) -> None:
        """Let each lane have reserved the address in a register."""
        for lane, hart in enumerate(self.harts):
            hart.is_reserved, hart.reservation = True, hart.integer(register)
            self.machine.is_reserved[lane], self.machine.numbers["reservation"][lane] = True, hart.reservation

    def seal_pair(self, rng: np.random.Generator, code: int, data: int) -> None:
        """Put what CInvoke takes, or nearly so, in two registers of each lane."""
        for lane, hart in enumerate(self.harts):
            fmt, otype = hart.format, int(rng.integers(0, 4))
            entry = reference_capability.set_otype(code_capability(rng, fmt), otype)
            held = reference_capability.and_permissions(memory_capability(rng, fmt), fmt.permissions_mask & ~2)
            other = otype if rng.integers(0, 6) else otype + 1
            for register, wanted in ((code, entry), (data, reference_capability.set_otype(held, other))):
                flipped = 0 if rng.integers(0, 5) else 1 << int(rng.choice([1, 8]))
                cap = reference_capability.set_permissions(wanted, wanted.permissions ^ flipped)
                if register:
                    hart.write(register, cap)
                    put_register(self.machine, lane, register, cap)

    def renew_code(self, rng: np.random.Generator) -> None:
        """Give those lanes whose PCC has become useless one that mostly isn't."""
        renewed = []
        for lane, hart in enumerate(self.harts):
            try:
                hart.check_fetch()
            except Trap:
                hart.pcc = code_capability(rng, hart.format)
                hart.pc = hart.pcc.address & hart.format.address_mask - 1
                put_register(self.machine, lane, SPECIAL_ROWS["pcc"], hart.pcc)
                self.machine.pc[lane] = hart.pc
                renewed.append(lane)
        self.machine.pcc_changed(np.array(renewed, np.int64))

    def step(self, name: str, operands: tuple[Any, ...]) -> list[str | None]:
        """Execute one operation on both; the causes that the reference gave. Fails where traps differ."""
        self.machine.step(name, operands)
        causes: list[str | None] = []
        for lane, hart in enumerate(self.harts):
            causes.append(self._agree(lane, hart.step(name, operands), f"{name} {operands}"))
        return causes

    def step_divergent(self, programs: list[tuple[str, tuple[int, ...]]]) -> list[str | None]:
        """Execute in each lane its own operation, on both; the causes that the reference gave."""
        names = list(dict.fromkeys(name for name, _operands in programs))
        columns = np.zeros((len(programs), 3), np.int64)
        for lane, (_name, operands) in enumerate(programs):
            columns[lane, : len(operands)] = np.array(operands, np.uint64 if min(operands, default=0) >= 0 else np.int64)
        self.machine.step_divergent(names, np.array([names.index(name) for name, _operands in programs]), columns)
        return [
            self._agree(lane, hart.step(*program), f"{program}, divergent")
            for lane, (hart, program) in enumerate(zip(self.harts, programs, strict=True))
        ]

    def step_words(self, words: list[int]) -> list[str | None]:
        """Execute in each lane the instruction that its word encodes."""
        self.machine.step_words(np.array(words, np.uint32))
        return [
            self._agree(lane, hart.step_word(word), f"{word:#010x}")
            for lane, (hart, word) in enumerate(zip(self.harts, words, strict=True))
        ]

    def _agree(self, lane: int, trap: Trap | None, context: str) -> str | None:
        """The name of the cause that the reference gave; fails where the fast path didn't do the same."""
        actual = int(self.machine.cause[lane]), int(self.machine.trap_value[lane])
        if trap is None:
            assert actual[0] == 0, f"{context}, lane {lane}: the fast path refuses, number {actual[0]}"
            return None
        expected = trap.cause.number, trap.value
        assert actual == expected, f"{context}, lane {lane}: trap {actual}, expected {expected} ({trap.cause.name})"
        return trap.cause.name

    def compare(self, context: str) -> None:
        """Whole states are equal: registers, the special ones and the CSRs, program counters and all of memory."""
        for lane, hart in enumerate(self.harts):
            assert not differences(hart, self.machine, lane, whole_memory=True), f"{context}, lane {lane}"


def put_register(machine: BatchMachine, lane: int, register: int, cap: Capability) -> None:
    machine.tags[register, lane] = cap.tag
    machine.metas[register, lane] = cap.meta
    machine.addresses[register, lane] = cap.address


def random_operands(rng: np.random.Generator, fmt: CapabilityFormat, name: str, registers: int = 8) -> tuple[int, ...]:
    """Operands for an operation: few registers, so that they often coincide; immediates with a bias to edges."""
    operands = []
    for kind in OPERATIONS[name].operands:
        if kind.is_register:
            operands.append(int(rng.integers(0, registers)))
        elif kind is OperandKind.VALUE:
            operands.append(edge_numbers(rng, fmt, 1)[0])
        else:
            low, high = kind.immediate_range(fmt.address_width)
            near = int(rng.integers(low, high + 1)) >> int(rng.integers(0, 12))
            number = int(rng.choice([low, high, 0, 0, near, near & ~15]))
            if kind.names and rng.integers(0, 8):
                number = int(rng.choice(list(kind.names.values())))
            operands.append(number - number % kind.alignment)
    return tuple(operands)
