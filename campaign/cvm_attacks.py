"""Moves of a campaign of cVMs: what belongs together, and what hostile compartments try with it.

Every kind of move is made in every unit, in an order that is drawn, and some of them again.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from capvisor.campaign.cvm_moves import (
    ADDRESS,
    FIRST_BASE,
    GRANT,
    HELD,
    INNER_BYTES,
    INNER_OFFSET,
    INVOKED_DATA,
    KEPT,
    MEMORY_BASE,
    MEMORY_BYTES,
    OTHER,
    REGION_BYTES,
    VALUE,
    Mover,
)
from capvisor.campaign.cvm_systems import Systems
from capvisor.campaign.draw import make
from capvisor.campaign.systems import exercise
from capvisor.fastpath.workspace import Words
from capvisor.spec.cvm import CALLS, MONITOR, STACK_POINTER, STORE_SLOTS, ArgumentKind
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.policy import INTENDED, MonitorPolicy
from capvisor.spec.registers import SPECIAL_NUMBERS

MOST_CVMS = 8
"""How many different cVMs a unit has."""


class Attacker(Mover):
    """Makes moves, good ones and hostile ones."""

    # -- calls and deployment ----------------------------------------------------------------------------------------------

    def any_call(self) -> None:
        """Some call with drawn arguments; its second part at once, or later."""
        thread = self.thread()
        name = list(CALLS)[self.turn("call") % len(CALLS)]
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

    def leave(self) -> None:
        """The second part of some call that was left open."""
        for thread in range(self.systems.batch.slots):
            self.systems.leave(thread)

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
        elif len(self.created) < MOST_CVMS:
            base = FIRST_BASE + self.one([0, 0x100, REGION_BYTES, 0x500, 3 * REGION_BYTES - 0x100, -0x200, 0x7F8])
            self.create(base, self.one([INNER_BYTES, 0x200, REGION_BYTES, 64]), self.chance(0.3), self.one([0, 0, 1, 2]))

    def overlap(self) -> None:
        """The deployer creates a cVM over another one, or partly; in another cVM, or not."""
        number = int(self.rng.integers(len(self.created)))
        base, size, _is_purecap, _outer = self.created[number]
        if len(self.created) >= MOST_CVMS:
            self.systems.destroy(len(self.created))
            self.created.pop()
        shift = self.one([0, 0x80, size // 2, -0x80])
        outer = self.one([MONITOR, MONITOR, 1, 2])
        self.create(base + shift, self.one([0x80, INNER_BYTES, size]), self.chance(0.4), outer)

    def left_behind(self) -> None:
        """A cVM leaves what it was granted where another one is created in it, or where one was."""
        place = np.uint64(INNER_OFFSET + self.one([0, 1, 2, 3]) * self.granule)
        alice, bob = self.thread(), self.thread_of(1)
        inner = next((each + 1 for each, row in enumerate(self.created) if row[3] == 1), None)
        if inner is not None:
            self.systems.destroy(inner)
        key = self.fresh_key()
        self.call(alice, "file_advertise", key, self.argument(ArgumentKind.RANGE), self.argument(ArgumentKind.SIZE))
        self.systems.leave(alice)
        self.call(bob, "file_probe", key, np.full(self.lanes, place, np.uint64))
        self.systems.leave(bob)
        if inner is not None:
            base, size, is_purecap, outer = self.created[inner - 1]
            self.systems.create(inner, np.full(self.lanes, base, np.uint64), size, is_purecap, outer)
        elif len(self.created) < MOST_CVMS:
            self.create(FIRST_BASE + INNER_OFFSET, INNER_BYTES, False, 1)

    # -- what belongs together ---------------------------------------------------------------------------------------------

    def file(self) -> None:
        """One thread advertises, another one probes and uses, perhaps keeps, and uses once more when it is revoked."""
        alice, bob = self.thread(), self.thread()
        key, offset, location = self.key(), self.argument(ArgumentKind.RANGE), self.argument(ArgumentKind.LOCATION)
        self.call(alice, "file_advertise", key, offset, self.argument(ArgumentKind.SIZE))
        self.finish_call(alice)
        for _ in range(self.one([1, 2, 2])):
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
        has_probed = self.chance(0.8)
        if has_probed:
            self.call(bob, "portal_probe", key)
            self.systems.leave(bob)
            self.do(bob, "cmove", KEPT, 11)
        before = int(self.systems.batch.thread_counts().max())
        by_handle = has_probed and self.chance(0.9)
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
        code, data = ((0, 3), (2, 1), (0, 1), (2, 3))[self.turn("pair") % 4]
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

    def nested(self) -> None:
        """An inner cVM calls the outer one, which does something and goes back."""
        threads = range(int(self.systems.batch.thread_counts().max()))
        inner = [each for each in threads if ((self.region(each, "outer") != MONITOR) & self.systems.able(each)).any()]
        thread = self.one(inner) if inner else self.thread()
        self.enter_outer(thread)
        if self.chance(0.5):
            self.any_call()
        self.call_directly(thread, "inner_return")

    # -- which -------------------------------------------------------------------------------------------------------------

    def moves(self) -> list[tuple[Callable[[], None], float]]:
        """All kinds of moves, and how often each is made beyond once a unit."""
        return [
            (self.file, 4),
            (self.portal, 3),
            (self.any_call, 5),
            (self.leave, 1),
            (self.deploy, 0.6),
            (self.nested, 1.5),
            (self.overlap, 0.3),
            (self.left_behind, 0.5),
            (self.mixed_pair, self.hostility),
            (self.overwrite_stack, 2 * self.hostility),
            (self.instruction, 8 * self.hostility),
        ]

    def make(self, count: int) -> None:
        """Make so many moves, or as many as it takes until all lanes differ."""
        make(self.order(self.moves(), count), lambda: len(self.systems.broken) < self.lanes)


def play(
    seed: Sequence[int],
    fmt: CapabilityFormat,
    lanes: int,
    moves: int,
    policy: MonitorPolicy = INTENDED,
    turn: int = 0,
    systems_type: type[Systems] = Systems,
    **options: Any,
) -> Systems:
    """Draw and make moves, in all lanes and on both implementations, or as that type of systems has it."""
    rng = np.random.default_rng(seed)
    systems = systems_type(fmt, MEMORY_BASE, MEMORY_BYTES, lanes, policy, **options)
    attacker = Attacker(rng, systems, float(rng.choice([0.1, 0.6, 1.0])), turn)

    def all_moves() -> None:
        attacker.set_up()
        attacker.make(moves)

    exercise(systems, all_moves)
    return systems
