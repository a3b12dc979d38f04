"""What compartments do in a campaign: set-ups, calls with good and bad arguments, and what hostile code tries.

A shape is drawn once for all lanes of a unit; the numbers in it are drawn for each lane.
"""

from collections.abc import Callable, Sequence

import numpy as np

from capvisor.campaign.cvm_systems import Systems
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
from capvisor.spec.operations import OPERATIONS, OperandKind
from capvisor.spec.policy import INTENDED, MonitorPolicy
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


class Mover:
    """Draws and makes the moves of one unit."""

    def __init__(self, rng: np.random.Generator, systems: Systems, hostility: float = 0.6) -> None:
        self.rng, self.systems, self.hostility = rng, systems, hostility
        self.fmt: CapabilityFormat = systems.format
        self.granule, self.lanes = systems.format.capability_bytes, systems.lanes
        self.created: list[tuple[int, int, bool, int]] = []
        """Number, place and kind of the cVMs that were to be created."""

    # -- numbers -----------------------------------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        """Whether something happens."""
        return bool(self.rng.random() < probability)

    def one(self, choices: Sequence[int]) -> int:
        """One of some numbers, for all lanes."""
        return choices[int(self.rng.integers(len(choices)))]

    def each(self, choices: Sequence[int]) -> Words:
        """One of some numbers for each lane; half the time the same one, so that lanes go on together."""
        mask = self.fmt.address_mask
        if self.chance(0.5):
            return np.full(self.lanes, self.one(choices) & mask, np.uint64)
        return np.array([each & mask for each in choices], np.uint64)[self.rng.integers(0, len(choices), self.lanes)]

    def key(self) -> Words:
        """A key, mostly one of few."""
        return self.each([1, 1, 1, 2, 2, 3]) if self.chance(0.95) else self.each([1, 0, KEYS - 1, KEYS, KEYS + 1, -1, 4])

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
        return self.each(bad if self.chance(0.2) else good[kind])

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

    def deploy(self) -> None:
        """The deployer destroys something, creates it again, or creates something else."""
        kind = self.rng.integers(4)
        if kind == 0:
            self.systems.destroy(int(self.rng.integers(1, len(self.created) + 1)))
        elif kind == 1:
            number = int(self.rng.integers(len(self.created)))
            base, size, is_purecap, outer = self.created[number]
            self.systems.create(number + 1, np.full(self.lanes, base, np.uint64), size, is_purecap, outer)
        elif kind == 2:
            self.nest()
        elif len(self.created) < 8:
            base = FIRST_BASE + self.one([0, 0x100, REGION_BYTES, 0x500, 3 * REGION_BYTES - 0x100, -0x200, 0x7F8])
            self.create(base, self.one([INNER_BYTES, 0x200, REGION_BYTES, 64]), self.chance(0.3), self.one([0, 0, 1, 2]))

    # -- threads -----------------------------------------------------------------------------------------------------------

    def thread(self) -> int:
        """A thread, of those that there are in some lane."""
        return int(self.rng.integers(max(1, int(self.systems.batch.thread_counts().max()))))

    def purecap(self, thread: int) -> Flags:
        """The lanes in which a thread runs for pure-capability code."""
        batch = self.systems.batch
        domain = batch.threads["domain"].reshape(-1, self.lanes)[thread]
        return batch.regions.get("is_purecap", np.arange(self.lanes), domain)

    def region(self, thread: int, column: str) -> Words:
        """Of the cVM that a thread runs for."""
        batch = self.systems.batch
        return batch.regions.get(column, np.arange(self.lanes), batch.threads["domain"].reshape(-1, self.lanes)[thread])

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
        self.do(thread, "li", NUMBER_REGISTER, np.full(self.lanes, CALLS[name].number, np.uint64))
        for register, value in zip(ARGUMENT_REGISTERS, arguments, strict=False):
            if value is None:
                self.do(thread, "cmove", register, KEPT)
            elif isinstance(value, int):
                self.do(thread, "li", register, np.full(self.lanes, value, np.uint64))
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

    def any_call(self) -> None:
        """Some call with drawn arguments; its second part at once, or later."""
        thread = self.thread()
        name = list(CALLS)[int(self.rng.integers(len(CALLS)))]
        if name == "thread_exit" and self.chance(0.5):
            name = "file_probe"
        row = CALLS[name]
        arguments: list[Words | None] = []
        for _name, kind in row.arguments:
            by_handle = kind is ArgumentKind.HANDLE and self.chance(0.8)
            arguments.append(None if by_handle else self.key() if kind is ArgumentKind.KEY else self.argument(kind))
        if name == "host_print" and isinstance(arguments[0], np.ndarray):
            self.do(thread, "li", ADDRESS, self.region(thread, "base") + arguments[0])
            self.do(thread, "li", VALUE, self.each([1, 2, 1 << 31, 77]))
            self.do(thread, "sd.ddc" if self.fmt.address_width == 64 else "sw.ddc", VALUE, ADDRESS)
        self.move_stack(thread)
        self.call(thread, name, *arguments)
        self.finish_call(thread)
        if name == "portal_probe":
            self.do(thread, "cmove", KEPT, 11)

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
                self.hostile_step()
            self.systems.leave(thread)

    def leave(self) -> None:
        """The second part of some call that was left open."""
        for thread in range(self.systems.batch.slots):
            self.systems.leave(thread)

    # -- what belongs together ---------------------------------------------------------------------------------------------

    def file(self) -> None:
        """One thread advertises, another one probes and uses, perhaps keeps, and uses once more when it is revoked."""
        alice, bob = self.thread(), self.thread()
        key, offset, location = self.key(), self.argument(ArgumentKind.RANGE), self.argument(ArgumentKind.LOCATION)
        self.call(alice, "file_advertise", key, offset, self.argument(ArgumentKind.SIZE))
        self.finish_call(alice)
        for _ in range(self.one([1, 1, 2])):
            self.call(bob, "file_probe", key, location)
            self.systems.leave(bob)
            address = self.region(bob, "base") + location
            self.load_capability(bob, GRANT, address)
            self.use(bob, GRANT)
            self.keep(bob, GRANT)
            location = self.argument(ArgumentKind.LOCATION)
        revoker = alice if self.chance(0.7) else self.thread()
        if self.chance(0.7):
            self.call(revoker, "file_revoke", key)
            self.finish_call(revoker)
            self.use(bob, self.one([GRANT, OTHER, KEPT]))

    def portal(self) -> None:
        """One thread advertises an entry; another one calls it; the callee fetches, keeps and finishes."""
        alice, bob = self.thread(), self.thread()
        key = self.key()
        self.call(alice, "portal_advertise", key, self.argument(ArgumentKind.ENTRY))
        self.systems.leave(alice)
        if self.chance(0.8):
            self.call(bob, "portal_probe", key)
            self.systems.leave(bob)
            self.do(bob, "cmove", KEPT, 11)
        before = int(self.systems.batch.thread_counts().max())
        by_handle = self.chance(0.8)
        pointer, size = self.argument(ArgumentKind.POINTER), self.argument(ArgumentKind.SIZE)
        self.call(bob, "portal_call", None if by_handle else key, pointer, size)
        self.finish_call(bob)
        if self.chance(0.5):
            self.call(bob, "wait", None if by_handle else key)
            self.systems.leave(bob)
        called = min(before, int(self.systems.batch.thread_counts().max()) - 1)
        location = self.argument(ArgumentKind.LOCATION)
        self.call(called, "portal_fetch", location)
        self.systems.leave(called)
        self.load_capability(called, GRANT, self.region(called, "base") + location)
        self.use(called, GRANT)
        self.keep(called, GRANT)
        if self.chance(0.8):
            self.call(called, "portal_finish" if self.chance(0.8) else "thread_exit")
            self.finish_call(called)
            self.use(called, GRANT)

    def use(self, thread: int, register: int) -> None:
        """Use what is in a register: for data, for capabilities, as it is or narrowed."""
        for name in self.rng.choice(["cld", "csd", "clc", "csc", "cincoffsetimm", "csealentry"], 2):
            match name:
                case "cld":
                    self.do(thread, "cld" if self.fmt.address_width == 64 else "clw", VALUE, 0, register)
                case "csd":
                    self.do(thread, "csd" if self.fmt.address_width == 64 else "csw", VALUE, 8, register)
                case "clc":
                    self.do(thread, "clc", KEPT, 0, register)
                case "csc":
                    self.do(thread, "csc", register, 0, register)
                case "cincoffsetimm":
                    self.do(thread, "cincoffsetimm", KEPT, register, self.one([0, 8, 16, -16, 2047]))
                case _:
                    self.do(thread, "csealentry", KEPT, register)

    def keep(self, thread: int, register: int) -> None:
        """Try to hold on to a capability: in another register, in memory, in a special register."""
        if not self.chance(self.hostility):
            return
        kind = self.rng.integers(4)
        if kind <= 1:
            place = np.uint64(self.one([0, 16, 32, INNER_OFFSET]) * self.granule // 16)
            self.store_capability(thread, register, self.region(thread, "base") + place)
        elif kind == 2:
            self.do(thread, "cmove", KEPT, register)
        else:
            self.do(thread, "cspecialrw", 0, SPECIAL_NUMBERS["ddc"], register)

    # -- hostile code ------------------------------------------------------------------------------------------------------

    def mixed_pair(self) -> None:
        """Invoke code and data that don't belong together, or the own pair, or what was sealed otherwise."""
        thread = self.thread()
        code, data = self.one([0, 2]), self.one([1, 3])
        self.load_capability(thread, KEPT, self.store(thread, STORE_SLOTS[code]))
        self.load_capability(thread, GRANT, self.store(thread, STORE_SLOTS[data]))
        self.do(thread, "cinvoke", KEPT, GRANT)
        self.do(thread, "cspecialrw", 0, SPECIAL_NUMBERS["ddc"], INVOKED_DATA)
        self.use(thread, INVOKED_DATA)

    def overwrite_stack(self) -> None:
        """While a thread is in the monitor, another one writes where its stack is."""
        victim, other = self.thread(), self.thread()
        arguments = [self.argument(kind) for _name, kind in CALLS["file_advertise"].arguments]
        self.call(victim, self.one_call(), *arguments)
        top = self.systems.batch.harts.addresses[STACK_POINTER].reshape(-1, self.lanes)[victim]
        address = top - self.each([4 * self.granule, self.granule, 4 * self.granule - 8, 16])
        if self.chance(0.7):
            self.do(other, "li", VALUE, self.each([0, 1, 2, 0x40, 0x7F8, 1 << 40, -8]))
            self.do(other, "li", ADDRESS, address)
            self.do(other, "sd.ddc" if self.fmt.address_width == 64 else "sw.ddc", VALUE, ADDRESS)
        else:
            self.store_capability(other, self.one(HELD), address)
        self.systems.leave(victim)

    def one_call(self) -> str:
        """A call that takes three arguments or less."""
        names = ("file_advertise", "host_print", "host_time", "file_probe", "file_revoke", "portal_advertise")
        return names[int(self.rng.integers(len(names)))]

    def hostile_step(self) -> None:
        """Some operation of the table, on registers that hold something."""
        thread = self.thread()
        names = _names(self.fmt)
        name = names[int(self.rng.integers(len(names)))]
        operands: list[int] = []
        for kind in OPERATIONS[name].operands:
            if kind.is_destination:
                operands.append(self.one([GRANT, OTHER, VALUE, KEPT, 10, 11]))
            elif kind.is_register:
                operands.append(self.one(HELD) if kind.is_capability else self.one([ADDRESS, VALUE, *HELD]))
            elif kind is OperandKind.VALUE:
                operands.append(self.one([0, 8, 64, MEMORY_BASE, FIRST_BASE, FIRST_BASE + REGION_BYTES]))
            else:
                operands.append(_immediate(kind, self.rng, self.fmt))
        self.do(thread, name, *operands)

    def nested(self) -> None:
        """An inner cVM calls the outer one, which does something and goes back."""
        threads = range(int(self.systems.batch.thread_counts().max()))
        inner = [each for each in threads if ((self.region(each, "outer") != MONITOR) & self.systems.able(each)).any()]
        thread = self.one(inner) if inner else self.thread()
        self.enter_outer(thread)
        if self.chance(0.5):
            self.any_call()
        self.call_directly(thread, "inner_return")

    def call_directly(self, thread: int, name: str) -> None:
        """A call as a cVM that isn't nested makes it."""
        self.do(thread, "li", NUMBER_REGISTER, np.full(self.lanes, CALLS[name].number, np.uint64))
        self.load_capability(thread, CODE, self.store(thread, "call code"))
        self.load_capability(thread, DATA, self.store(thread, "call data"))
        self.do(thread, "cinvoke", CODE, DATA)
        self.systems.leave(thread)

    def move(self) -> None:
        """One move."""
        moves: tuple[tuple[Callable[[], None], float], ...] = (
            (self.file, 4),
            (self.portal, 3),
            (self.any_call, 5),
            (self.leave, 1),
            (self.deploy, 0.6),
            (self.mixed_pair, self.hostility),
            (self.overwrite_stack, 2 * self.hostility),
            (self.hostile_step, 8 * self.hostility),
            (self.nested, 1.5),
        )
        weights = np.array([weight for _move, weight in moves])
        moves[int(self.rng.choice(len(moves), p=weights / weights.sum()))][0]()


def _names(fmt: CapabilityFormat) -> list[str]:
    return [row.name for row in OPERATIONS.values() if row.minimum_xlen <= fmt.address_width]


def _immediate(kind: OperandKind, rng: np.random.Generator, fmt: CapabilityFormat) -> int:
    if kind.names:
        numbers = list(kind.names.values())
        return numbers[int(rng.integers(len(numbers)))]
    if kind is OperandKind.QUARTER:
        return int(rng.integers(4))
    low, high = kind.immediate_range(fmt.address_width)
    choices = [0, 0, 8, 16, 4 if kind.alignment == 2 else 1, low, high // kind.alignment * kind.alignment]
    return min(max(choices[int(rng.integers(len(choices)))], low), high)


def play(
    seed: Sequence[int],
    fmt: CapabilityFormat,
    lanes: int,
    moves: int,
    policy: MonitorPolicy = INTENDED,
    watched: int = 0,
    **options: type,
) -> Systems:
    """Draw and make moves, in all lanes and on both implementations, until there are enough or all lanes differ."""
    rng = np.random.default_rng(seed)
    systems = Systems(fmt, MEMORY_BASE, MEMORY_BYTES, lanes, policy, watched, **options)
    mover = Mover(rng, systems, float(rng.choice([0.1, 0.6, 1.0])))
    mover.set_up()
    for _ in range(moves):
        mover.move()
        if len(systems.broken) == lanes:
            break
    return systems
