"""Pieces that several tests share: drawing states that are worth running operations on, and comparing implementations."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from capvisor.fastpath.machine import DDC, BatchMachine
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
    """A capability over some of the memory, mostly pointing at a granule; sometimes short of a permission."""
    granules = MEMORY_BYTES // fmt.capability_bytes
    start, size = int(rng.integers(0, granules)), int(rng.integers(1, 9))
    address = MEMORY_BASE + start * fmt.capability_bytes
    cap, _exact = reference_capability.set_bounds(reference_capability.root(fmt, address), size * fmt.capability_bytes)
    if rng.integers(0, 2):
        cap = reference_capability.and_permissions(cap, fmt.permissions_mask ^ 1 << int(rng.integers(0, 7)))
    if rng.integers(0, 3) == 0:
        cap = reference_capability.increment_address(cap, int(rng.integers(0, 64)))
    return cap


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
            put_register(machine, lane, DDC, hart.ddc)
            for _ in range(machine.memory.granules // 2):
                cap, index = derived_capability(rng, fmt), int(rng.integers(0, machine.memory.granules))
                granule = Granule(cap.tag, reference_capability.memory_meta(cap), cap.address)
                hart.memory.store.set(index, granule)
                machine.memory.tags[lane, index] = granule.tag
                machine.memory.halves[lane, index] = granule.lower, granule.upper
        return cls(harts, machine)

    def step(self, name: str, operands: tuple[Any, ...]) -> list[str | None]:
        """Execute one operation on both; the causes that the reference gave. Fails where traps differ."""
        self.machine.step(name, operands)
        causes: list[str | None] = []
        for lane, hart in enumerate(self.harts):
            expected, cause = (0, 0), None
            try:
                hart.step(name, operands)
            except Trap as trap:
                expected, cause = (trap.cause.number, trap.value), trap.cause.name
            actual = int(self.machine.cause[lane]), int(self.machine.trap_value[lane])
            if expected[0] == 0:
                assert actual[0] == 0, f"{name} {operands}, lane {lane}: the fast path refuses, number {actual[0]}"
            else:
                assert actual == expected, f"{name} {operands}, lane {lane}: trap {actual}, expected {expected} ({cause})"
            causes.append(cause)
        return causes

    def compare(self, context: str) -> None:
        """Whole states are equal: registers, DDC, program counters and all of memory."""
        machine = self.machine
        for lane, hart in enumerate(self.harts):
            assert int(machine.pc[lane]) == hart.pc, f"{context}, lane {lane}: pc"
            for register in range(32):
                expected = tuple(hart.capability(register)[1:])
                assert get_register(machine, lane, register) == expected, f"{context}, lane {lane}: c{register}"
            assert get_register(machine, lane, DDC) == tuple(hart.ddc[1:]), f"{context}, lane {lane}: ddc"
            for index in range(machine.memory.granules):
                lower, upper = machine.memory.halves[lane, index].tolist()
                actual = Granule(bool(machine.memory.tags[lane, index]), upper, lower)
                assert actual == hart.memory.store.get(index), f"{context}, lane {lane}: granule {index}"


def put_register(machine: BatchMachine, lane: int, register: int, cap: Capability) -> None:
    machine.tags[register, lane] = cap.tag
    machine.metas[register, lane] = cap.meta
    machine.addresses[register, lane] = cap.address


def get_register(machine: BatchMachine, lane: int, register: int) -> tuple[bool, int, int]:
    return (
        bool(machine.tags[register, lane]),
        int(machine.metas[register, lane]),
        int(machine.addresses[register, lane]),
    )


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
            operands.append(int(rng.choice([low, high, 0, 0, near, near & ~15])))
    return tuple(operands)
