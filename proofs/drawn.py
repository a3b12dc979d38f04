"""Theorems on drawn values: what falls for many inputs falls at once, without a solver, and the same on every machine."""

import random
from collections.abc import Iterator

from capvisor.dsl.states import differences, machine_in_state
from capvisor.model import capability
from capvisor.model.capability import Capability
from capvisor.model.machine import Hart
from capvisor.model.memory import Granule
from capvisor.model.observation import ObservedHart, ObservedMemory, Step
from capvisor.proofs.theorem import Given, Obligation
from capvisor.spec.formats import CapabilityFormat, Permission
from capvisor.spec.invariants import Place
from capvisor.spec.operations import OPERATIONS, OperandKind
from capvisor.spec.registers import MPP_SHIFT, SPECIAL_REGISTERS, Privilege

DRAWS = 400
"""How many drawn inputs a theorem gets before the solver is asked."""


class Drawn(Given):
    """Gives values drawn at random, most of them near the edges where rules change."""

    def __init__(self, seed: str) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._given: dict[str, int] = {"": 0}
        self.values: dict[str, int] = {}
        """What was given, by name."""

    def word(self, name: str, bits: int) -> int:
        """A number of so many bits."""
        self.values[name] = self._number(name, bits)
        return self.values[name]

    def _number(self, name: str, bits: int) -> int:
        """Any number, a short one, one with a run of ones, or one near another that was given."""
        draw, mask = self._random, (1 << bits) - 1
        number = draw.getrandbits(draw.randint(1, bits))
        kind = draw.randrange(6)
        if kind == 0:
            number = mask ^ number
        elif kind == 1:
            number = (1 << draw.randint(0, bits)) - draw.randrange(3)
        elif kind == 2:
            number = draw.choice(list(self._given.values())) + draw.choice((-1, 0, 0, 1, 8, number >> bits // 2))
        elif kind == 3:
            number = number << draw.randrange(bits)
        self._given[name] = number & mask
        return number & mask

    def flag(self, name: str) -> bool:
        """A truth value, more often true: tags are what matters."""
        self._given[name] = self.values[name] = self._random.random() < 0.8
        return bool(self._given[name])

    def capability(self, fmt: CapabilityFormat, name: str) -> Capability:
        """Any bits, or what a few derivations make of the root."""
        if self._random.random() < 0.2:
            return super().capability(fmt, name)
        width, draw = fmt.address_width, self._random
        cap, _exact = capability.set_bounds(capability.root(fmt, self._number(name, width)), self._number(name, width))
        if draw.random() < 0.7:
            cap = capability.increment_address(cap, self._number(name, width))
        if draw.random() < 0.4:
            cap = capability.and_permissions(cap, self._number(name, width))
        if draw.random() < 0.3:
            types = (fmt.otype_sentry, fmt.max_otype, draw.randrange(fmt.max_otype), cap.address)
            cap = capability.set_otype(cap, draw.choice(types))
        self._given |= {f"{name}_otype": cap.otype, f"{name}_base": cap.base}
        cap = cap.with_tag(self.flag(f"{name}_tag"))
        self.values |= {f"{name}_meta": cap.meta, f"{name}_address": cap.address}
        return cap


def counterexamples(obligation: Obligation) -> Iterator[dict[str, int]]:
    """Of the values that are drawn for an obligation, those that satisfy its assumptions and not its goal."""
    for number in range(DRAWS):
        given = Drawn(f"{obligation.id} {number}")
        if not obligation.theorem.claim(obligation.format, given) and all(given.assumptions):
            yield given.values


# -- states of a hart ------------------------------------------------------------------------------------------------------

MEMORY_BASE, MEMORY_GRANULES = 0x8000_0000, 32
_REGISTERS = 6
"""How many registers hold something: few, so that operands often coincide."""


_WATCHED = (
    *(Permission.GLOBAL, Permission.EXECUTE, Permission.ACCESS_SYSTEM_REGISTERS),
    *(Permission.STORE_CAPABILITY, Permission.STORE_LOCAL_CAPABILITY, Permission.LOAD_CAPABILITY),
)
"""Permissions that are more often missing than others."""


class State:
    """A drawn state of a hart, with operands and places: capabilities worth attacking, over memory or sealed alike."""

    def __init__(self, fmt: CapabilityFormat, seed: str, *, together: bool = False) -> None:
        """With pairs of code and data that are sealed together, where that is asked for."""
        self._together = together
        self._format, self._random = fmt, random.Random(seed)
        self._memory_bytes = MEMORY_GRANULES * fmt.capability_bytes
        self._otypes = (1, fmt.otype_sentry)

    def hart(self) -> ObservedHart:
        """A hart in that state."""
        draw, fmt = self._random, self._format
        hart = ObservedHart(ObservedMemory(fmt, MEMORY_BASE, self._memory_bytes), 2 * draw.randrange(1 << 30))
        for register in range(1, _REGISTERS):
            hart.write(register, self._capability())
        if self._together and draw.random() < 0.3:
            self._seal_pair(hart)
        for name in (each for each in SPECIAL_REGISTERS if each != "pcc"):
            setattr(hart, name, self._capability())
        hart.pcc = capability.root(fmt) if draw.random() < 0.5 else self._capability()
        if draw.random() < 0.5:
            hart.pc = hart.pcc.address & fmt.address_mask - 1
        hart.mstatus = draw.getrandbits(MPP_SHIFT) | draw.choice(tuple(Privilege)) << MPP_SHIFT
        hart.privilege = draw.choice((*Privilege, Privilege.MACHINE, Privilege.MACHINE))
        hart.mscratch, hart.sscratch = draw.getrandbits(fmt.address_width), draw.getrandbits(fmt.address_width)
        hart.is_reserved, hart.reservation = draw.random() < 0.7, hart.integer(draw.randrange(1, _REGISTERS))
        for index in range(MEMORY_GRANULES):
            if draw.random() < 0.5:
                held = self._capability()
                hart.memory.store.set(index, Granule(held.tag, capability.memory_meta(held), held.address))
        return hart

    def _seal_pair(self, hart: ObservedHart) -> None:
        """Seal code and data together, in two registers."""
        draw, fmt = self._random, self._format
        registers, otype = draw.sample(range(1, _REGISTERS), 2), draw.choice((1, 2))
        for register, kept in zip(
            registers, (fmt.permissions_mask, fmt.permissions_mask & ~Permission.EXECUTE), strict=True
        ):
            cap = capability.and_permissions(capability.root(fmt, MEMORY_BASE + draw.randrange(8)), kept)
            hart.write(register, capability.set_otype(cap, otype))

    def _capability(self) -> Capability:
        """Mostly one over memory, with most permissions; some are sealed, some numbers, some point at object types."""
        draw, fmt = self._random, self._format
        kind = draw.random()
        if kind < 0.1:
            return capability.null(fmt, draw.getrandbits(draw.randint(1, fmt.address_width)))
        if kind < 0.25:
            cap, _exact = capability.set_bounds(
                capability.root(fmt, draw.choice(self._otypes) & fmt.address_mask), draw.randrange(4)
            )
        else:
            address = MEMORY_BASE + draw.randrange(MEMORY_GRANULES) * fmt.capability_bytes
            length = draw.choice((1, 2, 8, 16, 64, self._memory_bytes))
            cap, _exact = capability.set_bounds(capability.root(fmt, address), length)
            if draw.random() < 0.3:
                cap = capability.root(fmt, address)
            if draw.random() < 0.3:
                cap = capability.increment_address(cap, draw.randrange(-4, 20) & fmt.address_mask)
        if draw.random() < 0.5:
            missing = draw.choice((1 << draw.randrange(11), *_WATCHED))
            cap = capability.and_permissions(cap, fmt.permissions_mask & ~missing)
        if draw.random() < 0.3:
            cap = capability.set_otype(cap, draw.choice(self._otypes))
        cap = cap.with_tag(draw.random() < 0.9)
        return cap if cap.is_sound else cap.with_tag(False)

    def operands(self, name: str) -> tuple[int, ...]:
        """Operands for an operation."""
        return tuple(self._operand(kind) for kind in OPERATIONS[name].operands)

    def _operand(self, kind: OperandKind) -> int:
        draw = self._random
        if kind.is_register:
            return draw.randrange(_REGISTERS)
        if kind is OperandKind.VALUE:
            return draw.getrandbits(self._format.address_width)
        if kind.names and draw.random() < 0.9:
            return draw.choice(list(kind.names.values()))
        low, high = kind.immediate_range(self._format.address_width)
        number = draw.choice((0, 0, draw.randint(low, high), draw.randint(max(low, -32), min(high, 32))))
        return number - number % kind.alignment

    def places(self, step: Step) -> list[Place]:
        """The places where a step may have changed something, and others."""
        draw, granules, bytes_ = self._random, [self._random.randrange(MEMORY_GRANULES)], [MEMORY_BASE]
        registers = [*step.register_operands, 31, draw.randrange(32)]
        for access in step.accesses:
            first, last = access.address - MEMORY_BASE, access.address + access.size_bytes - 1 - MEMORY_BASE
            granules += [each >> self._format.granule_shift for each in (first, last)]
            bytes_ += [access.address - 1, access.address, access.address + access.size_bytes]
        count = max(len(registers), len(granules), len(bytes_))
        return [
            Place(registers[n % len(registers)], granules[n % len(granules)], bytes_[n % len(bytes_)]) for n in range(count)
        ]


def differs_on_fast_path(hart: Hart, name: str, operands: tuple[int, ...]) -> tuple[bool, list[str]]:
    """Execute one operation on a hart and on a lane that starts in its state: is it completed, and what differs then."""
    lane = machine_in_state(hart)
    trap = hart.step(name, operands)
    lane.step(name, operands)
    found = differences(hart, lane, 0, whole_memory=True)
    number, trap_value = int(lane.cause[0]), int(lane.trap_value[0])
    expected = 0 if trap is None else trap.cause.number
    if number != expected or (trap is not None and trap_value != trap.value):
        found.append(f"cause: reference {expected}, fast path {number}")
    return trap is None, found
