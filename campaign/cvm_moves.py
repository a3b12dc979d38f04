"""What compartments do in a campaign: set-ups, instructions, calls with good and bad arguments.

A shape is drawn once for all lanes of a unit; the numbers in it are drawn for each lane.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capvisor.campaign.cvm_systems import Systems
from capvisor.campaign.draw import Draws
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec.cvm import (
    ARGUMENT_REGISTERS,
    CALLS,
    KEYS,
    MONITOR,
    NUMBER_REGISTER,
    STACK_POINTER,
    STORE_SLOTS,
    ArgumentKind,
)
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.operations import OPERATIONS, Group, OperandKind, Operation
from capvisor.spec.registers import SPECIAL_NUMBERS

MEMORY_BASE, MEMORY_BYTES, REGION_BYTES, INNER_BYTES = 0x8000_0000, 0x1000, 0x400, 0x100
FIRST_BASE = MEMORY_BASE + 0x400
"""Below the first region there is memory of nobody's."""

INNER_OFFSET = REGION_BYTES // 2
CODE, DATA, INVOKED_DATA = 28, 29, 31
"""Registers into which a library loads the pair that it calls by, and where CInvoke leaves the data capability."""

ADDRESS, GRANT, OTHER, VALUE, KEPT = 6, 5, 7, 8, 9
"""Registers that hostile code uses: an address, what was granted, another capability, a number, what it holds on to."""

HELD = (GRANT, OTHER, KEPT, 10, 11, CODE, DATA, INVOKED_DATA, STACK_POINTER)
"""Registers whose contents are worth attacking with."""


class Mover(Draws):
    """Draws and makes what moves of one unit consist of."""

    def __init__(self, rng: np.random.Generator, systems: Systems, hostility: float = 0.6, turn: int = 0) -> None:
        """What comes in turn begins at that turn."""
        super().__init__(rng, systems.lanes, hostility, turn)
        self.systems = systems
        self.fmt: CapabilityFormat = systems.format
        self.granule = systems.format.capability_bytes
        self.created: list[tuple[int, int, bool, int]] = []
        """Number, place and kind of the cVMs that were to be created."""

    # -- numbers -----------------------------------------------------------------------------------------------------------

    def each(self, choices: Sequence[int]) -> Words:
        """One of some numbers for each lane; half the time the same one, so that lanes go on together."""
        mask = self.fmt.address_mask
        if self.chance(0.5):
            return np.full(self.lanes, self.one(choices) & mask, np.uint64)
        return np.array([each & mask for each in choices], np.uint64)[self.rng.integers(0, len(choices), self.lanes)]

    def key(self) -> Words:
        """A key, mostly one of few."""
        return self.each([1, 1, 1, 2, 2, 3]) if self.chance(0.95) else self.each([1, 0, KEYS - 1, KEYS, KEYS + 1, -1, 4])

    def fresh_key(self) -> Words:
        """A key that nothing has been advertised under yet."""
        return np.full(self.lanes, 0x100 + self.turn("key") - self._first, np.uint64)

    def argument(self, kind: ArgumentKind) -> Words:
        """A number for an argument: mostly good, now and then not."""
        size, granule = REGION_BYTES, self.granule
        good = {
            ArgumentKind.KEY: [1, 1, 2, 3],
            ArgumentKind.HANDLE: [1, 2, 3],
            ArgumentKind.POINTER: [0, 0x40, 0x100, 0x180, 0x1F0],
            ArgumentKind.RANGE: [0x40, 0x100, 0x140, 0x180],
            ArgumentKind.LOCATION: [place * granule for place in (2, 3, 4, 16, 20)],
            ArgumentKind.SIZE: [8, 16, 64, 128],
            ArgumentKind.ENTRY: [0, 0, 4, 0x20],
        }
        bad = [0, 1, size - granule, size - 8, size, size + granule, -REGION_BYTES, -granule, -1, size - 64, 5]
        bad += [INNER_OFFSET, INNER_OFFSET + granule, INNER_OFFSET + INNER_BYTES - granule, 1 << 40, REGION_BYTES + 0x80]
        if kind is ArgumentKind.LOCATION:
            # Where a capability can be put, but mustn't.
            bad = [size, size + granule, size + 0x80, INNER_OFFSET, INNER_OFFSET + granule, -0x100, *bad[:4]]
        return self.each(bad if self.chance(0.25) else good[kind])

    # -- set-ups -----------------------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Two or three cVMs, perhaps of pure-capability code, perhaps one nested."""
        kinds = [self.chance(0.25), self.chance(0.4), self.chance(0.25)]
        for place in range(3 if self.chance(0.7) else 2):
            self.create(FIRST_BASE + place * REGION_BYTES, REGION_BYTES, kinds[place], MONITOR)
        if self.chance(0.5):
            self.nest()

    def nest(self) -> None:
        """A cVM within the first one."""
        self.create(FIRST_BASE + INNER_OFFSET, INNER_BYTES, self.chance(0.2), 1)

    def create(self, base: int, size: int, is_purecap: bool, outer: int) -> None:
        """A new cVM."""
        number = len(self.created) + 1
        self.created.append((base, size, is_purecap, outer))
        self.systems.create(number, np.full(self.lanes, base, np.uint64), size, is_purecap, outer)

    # -- threads -----------------------------------------------------------------------------------------------------------

    def thread(self) -> int:
        """A thread, of those that there are in some lane."""
        return int(self.rng.integers(max(1, int(self.systems.batch.thread_counts().max()))))

    def thread_of(self, cvm_id: int) -> int:
        """A live thread that runs for a cVM in some lane; any, where there is none."""
        batch = self.systems.batch
        mine = batch.threads["is_live"] & (batch.threads["domain"] == cvm_id)
        numbers = np.flatnonzero(mine.reshape(-1, self.lanes).any(axis=1)).tolist()
        return self.one(numbers) if numbers else self.thread()

    def purecap(self, thread: int) -> Flags:
        """The lanes in which a thread runs for pure-capability code."""
        return self.region(thread, "is_purecap")

    def region(self, thread: int, column: str) -> NDArray[Any]:
        """Of the cVM that a thread runs for, if there is that thread."""
        batch = self.systems.batch
        domains = batch.threads["domain"].reshape(-1, self.lanes)
        domain = domains[thread] if thread < len(domains) else np.zeros(self.lanes, np.uint64)
        return batch.regions.get(column, np.arange(self.lanes), domain)

    def do(self, thread: int, name: str, *operands: int | Words, lanes: Flags | None = None) -> None:
        """One instruction."""
        self.systems.instruction(thread, name, operands, lanes)

    def load_capability(self, thread: int, register: int, address: Words) -> None:
        """Load a capability from memory, as the kind of code does it."""
        purecap = self.purecap(thread)
        self.do(thread, "li", ADDRESS, address)
        self.do(thread, "lc.ddc", register, ADDRESS, lanes=~purecap)
        self.do(thread, "csetaddr", OTHER, STACK_POINTER, ADDRESS, lanes=purecap)
        self.do(thread, "clc", register, 0, OTHER, lanes=purecap)

    def store_capability(self, thread: int, register: int, address: Words) -> None:
        """Store a capability, as the kind of code does it."""
        purecap = self.purecap(thread)
        self.do(thread, "li", ADDRESS, address)
        self.do(thread, "sc.ddc", register, ADDRESS, lanes=~purecap)
        self.do(thread, "csetaddr", OTHER, STACK_POINTER, ADDRESS, lanes=purecap)
        self.do(thread, "csc", register, 0, OTHER, lanes=purecap)

    def store(self, thread: int, slot: str) -> Words:
        """Where a slot of the thread's capability store is."""
        back = (len(STORE_SLOTS) - STORE_SLOTS.index(slot)) * self.granule
        return self.region(thread, "top") - np.uint64(back)

    # -- calls -------------------------------------------------------------------------------------------------------------

    def invoke(self, thread: int) -> None:
        """Load the pair that a cVM calls by, unless it is there still, and invoke it."""
        machine = self.systems.batch.harts
        able = self.systems.able(thread)
        places = thread * self.lanes + np.flatnonzero(able)
        if not machine.tags[np.ix_(np.array([CODE, DATA]), places)].all() or self.chance(0.2):
            self.load_capability(thread, CODE, self.store(thread, "call code"))
            self.load_capability(thread, DATA, self.store(thread, "call data"))
        self.do(thread, "cinvoke", CODE, DATA)

    def call(self, thread: int, name: str, *arguments: Words | int | None) -> None:
        """A call with given arguments, None for what is kept as a handle. A nested cVM goes by way of the outer."""
        nested = self.region(thread, "outer") != MONITOR
        if (nested & self.systems.able(thread)).any():
            self.enter_outer(thread)
        self.do(thread, "li", NUMBER_REGISTER, self.same(CALLS[name].number))
        for register, value in zip(ARGUMENT_REGISTERS, arguments, strict=False):
            if value is None:
                self.do(thread, "cmove", register, KEPT)
            elif isinstance(value, int):
                self.do(thread, "li", register, self.same(value))
            else:
                self.do(thread, "li", register, value)
        self.invoke(thread)

    def enter_outer(self, thread: int) -> None:
        """A nested cVM invokes the pair of the one around it, whose first instruction installs its data."""
        self.load_capability(thread, CODE, self.store(thread, "call code"))
        self.load_capability(thread, DATA, self.store(thread, "call data"))
        self.do(thread, "cinvoke", CODE, DATA)
        if self.chance(0.8):
            self.do(thread, "cspecialrw", 0, SPECIAL_NUMBERS["ddc"], INVOKED_DATA)
        self.do(thread, "ccleartag", CODE, CODE)

    def call_directly(self, thread: int, name: str) -> None:
        """A call as a cVM that isn't nested makes it."""
        self.do(thread, "li", NUMBER_REGISTER, self.same(CALLS[name].number))
        self.load_capability(thread, CODE, self.store(thread, "call code"))
        self.load_capability(thread, DATA, self.store(thread, "call data"))
        self.do(thread, "cinvoke", CODE, DATA)
        self.systems.leave(thread)

    def move_stack(self, thread: int) -> None:
        """Sometimes, let the stack pointer of hybrid code be elsewhere."""
        if self.chance(0.15 * self.hostility):
            place = self.each([FIRST_BASE + each for each in (0x80, 0x280, 0x3C0, 0x480, 0x7F0, 0x900, -0x100, -0x4000)])
            self.do(thread, "li", STACK_POINTER, place, lanes=~self.purecap(thread))

    def finish_call(self, thread: int) -> None:
        """The second part, mostly at once; else other threads run before it."""
        if self.chance(0.85):
            self.systems.leave(thread)
        elif self.chance(0.7):
            for _ in range(2):
                self.instruction()
            self.systems.leave(thread)

    # -- instructions ------------------------------------------------------------------------------------------------------

    def instruction(self) -> None:
        """Some operation of the table, each of a group in turn, on registers that hold something."""
        groups = list(Group)
        group = groups[self.turn("group") % len(groups)]
        names = [row.name for row in instructions_of(self.fmt) if row.group is group]
        if names:
            self.operation(self.thread(), names[self.turn(group.value) % len(names)])

    def instructions(self) -> None:
        """Every operation of the table once."""
        for row in instructions_of(self.fmt):
            self.operation(self.thread(), row.name)

    def operation(self, thread: int, name: str) -> None:
        """An operation with drawn operands."""
        operands: list[int] = []
        for kind in OPERATIONS[name].operands:
            if kind.is_destination:
                operands.append(self.one([GRANT, OTHER, VALUE, KEPT, 10, 11]))
            elif kind.is_register:
                operands.append(self.one(HELD) if kind.is_capability else self.one([ADDRESS, VALUE, *HELD]))
            elif kind is OperandKind.VALUE:
                operands.append(self.one([0, 8, 64, MEMORY_BASE, FIRST_BASE, FIRST_BASE + REGION_BYTES]))
            else:
                operands.append(draw_immediate(kind, self.rng, self.fmt))
        self.do(thread, name, *operands)


def instructions_of(fmt: CapabilityFormat) -> list[Operation]:
    """The operations of the table that a format has."""
    return [row for row in OPERATIONS.values() if row.minimum_xlen <= fmt.address_width]


def draw_immediate(kind: OperandKind, rng: np.random.Generator, fmt: CapabilityFormat) -> int:
    """An immediate of a kind, most often a small one."""
    if kind.names:
        numbers = list(kind.names.values())
        return numbers[int(rng.integers(len(numbers)))]
    if kind is OperandKind.QUARTER:
        return int(rng.integers(4))
    low, high = kind.immediate_range(fmt.address_width)
    choices = [0, 0, 8, 16, 4 if kind.alignment == 2 else 1, low, high // kind.alignment * kind.alignment]
    return min(max(choices[int(rng.integers(len(choices)))], low), high)
