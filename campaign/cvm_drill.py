"""A drill: every call and every operation of the deployer, answered in each way that there is, and every instruction.

What is drawn at random reaches most of this within seconds; full tables and what depends on them it reaches late or never.
"""

from collections.abc import Callable

import numpy as np

from capvisor.campaign.cvm_moves import (
    ADDRESS,
    CODE,
    DATA,
    FIRST_BASE,
    GRANT,
    INNER_BYTES,
    INNER_OFFSET,
    INVOKED_DATA,
    KEPT,
    MEMORY_BASE,
    MEMORY_BYTES,
    REGION_BYTES,
    VALUE,
    Mover,
)
from capvisor.campaign.cvm_systems import Systems
from capvisor.campaign.systems import exercise
from capvisor.spec.cvm import KEYS, MAX_CVMS, MAX_GRANTS, MAX_PORTALS, MAX_THREADS, MONITOR, NUMBER_REGISTER, STACK_POINTER
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.policy import INTENDED, MonitorPolicy
from capvisor.spec.registers import SPECIAL_NUMBERS

ALICE, BOB, CAROL, INNER = range(4)
"""Threads of two cVMs of hybrid code, one of pure-capability code, and one nested in the first."""

BEYOND = 1 << 20
"""More than a region has."""


class Drill(Mover):
    """Makes the calls one after the other."""

    def asks(self, thread: int, name: str, *arguments: int | None) -> None:
        """A call, both parts; None is what is kept as a handle."""
        self.call(thread, name, *arguments)
        self.systems.leave(thread)

    def handle(self, thread: int, key: int) -> None:
        """Get a handle, and keep it."""
        self.asks(thread, "portal_probe", key)
        self.do(thread, "cmove", KEPT, 11)

    def run(self) -> None:
        """Everything; instructions, which may leave threads unable to call, last."""
        self.run_calls()
        self.full_tables()
        self.do(BOB, "li", ADDRESS, self.region(BOB, "base"))
        self.do(BOB, "lr.w.ddc", VALUE, ADDRESS)
        self.instructions()

    def run_calls(self) -> None:
        """Calls and the deployer's operations, while tables have room."""
        self.compartments()
        self.host()
        self.files()
        self.neighbours()
        self.portals()
        self.nesting()
        self.destruction()
        self.deployer()

    def run_otherwise(self) -> None:
        """What depends on what a policy leaves to guests, before anything else stands in its way."""
        self.compartments()
        self.stacks()
        for key in (12, 13):
            self.asks(ALICE, "file_advertise", key, 0x80, 0x40)
            self.asks(BOB, "file_probe", key, 0x80)
        self.asks(ALICE, "file_revoke", 12)
        self.asks(BOB, "file_advertise", 9, 0x80, 0x40)
        self.around()
        self.systems.destroy(4)
        # Where the stack pointer says who calls, only live cVMs count.
        self.do(ALICE, "li", STACK_POINTER, np.full(self.lanes, FIRST_BASE + INNER_OFFSET + 0x80, np.uint64))
        self.asks(ALICE, "host_time", 0x40)

    def run_tables(self) -> None:
        """Full tables alone."""
        self.compartments()
        self.full_tables()

    def compartments(self) -> None:
        """Those that the threads are of."""
        for place, is_purecap in enumerate((False, False, True)):
            self.create(FIRST_BASE + place * REGION_BYTES, REGION_BYTES, is_purecap, MONITOR)
        self.nest()

    def run_purecap(self) -> None:
        """Files and portals among pure-capability code alone: what hybrid code lets fall doesn't hide what they do."""
        for place in range(3):
            self.create(FIRST_BASE + place * REGION_BYTES, REGION_BYTES, True, MONITOR)
        self.files()
        self.portals()

    def host(self) -> None:
        """Calls that reach the host, and one that isn't there."""
        for thread in (ALICE, CAROL):
            for name in ("host_print", "host_time"):
                self.asks(thread, name, 0x40)
                self.asks(thread, name, BEYOND)
        self.do(ALICE, "li", NUMBER_REGISTER, np.full(self.lanes, 999, np.uint64))
        self.invoke(ALICE)
        self.systems.leave(ALICE)

    def files(self) -> None:
        """CP_File: what is kept in a register, and then what is kept in two places of memory."""
        self.asks(ALICE, "file_advertise", 5, 0x100, 0x40)
        self.asks(BOB, "file_probe", 5, 0x40)
        self.load_capability(BOB, GRANT, self.region(BOB, "base") + np.uint64(0x40))
        self.asks(ALICE, "file_revoke", 5)
        self.asks(BOB, "file_probe", 7, 0x40)
        self.asks(ALICE, "file_advertise", 7, 0x100, 0x40)
        self.asks(ALICE, "file_advertise", 7, 0x100, 0x40)
        self.asks(ALICE, "file_advertise", KEYS, 0x100, 0x40)
        self.asks(ALICE, "file_advertise", 6, 0x100, 0)
        # With capabilities of 64 bits, bounds can't say that.
        self.asks(ALICE, "file_advertise", 6, 0x101, 0x1F1)
        self.asks(ALICE, "file_revoke", 6)
        self.asks(BOB, "file_probe", 7, 0x40)
        self.asks(CAROL, "file_probe", 7, 0x40)
        self.asks(BOB, "file_probe", 7, BEYOND)
        self.asks(BOB, "file_probe", 7, 0x40 + self.granule // 2)
        self.asks(ALICE, "file_advertise", 7, 0x200, 0x40)
        self.asks(BOB, "file_revoke", 7)
        self.asks(ALICE, "file_revoke", 7)
        self.asks(ALICE, "file_revoke", 7)

    def neighbours(self) -> None:
        """Of three files that lie side by side the middle one is revoked: the others remain in registers."""
        registers, keys = (GRANT, KEPT, VALUE), (11, 12, 13)
        for place, (register, key) in enumerate(zip(registers, keys, strict=True)):
            self.asks(ALICE, "file_advertise", key, 0x80 + 0x40 * place, 0x40)
            self.asks(BOB, "file_probe", key, 0x80 + 0x10 * place)
            self.load_capability(BOB, register, self.region(BOB, "base") + np.uint64(0x80 + 0x10 * place))
        # One more thread has it as its data, which it can't call with any more.
        self.asks(BOB, "thread_create", 0)
        other = int(self.systems.batch.thread_counts().max()) - 1
        self.load_capability(other, GRANT, self.region(other, "base") + np.uint64(0x90))
        self.do(other, "cspecialrw", 0, SPECIAL_NUMBERS["ddc"], GRANT)
        for key in (12, 11, 13):
            self.asks(ALICE, "file_revoke", key)

    def portals(self) -> None:
        """CP_Call."""
        self.asks(BOB, "portal_probe", 7)
        self.asks(ALICE, "portal_advertise", 7, BEYOND)
        self.asks(ALICE, "portal_advertise", KEYS, 0)
        self.asks(ALICE, "portal_advertise", 7, 0)
        self.asks(ALICE, "portal_advertise", 7, 0)
        self.asks(BOB, "portal_call", 7, 0x40, 0x40)
        self.asks(BOB, "wait", 7)
        self.handle(BOB, 7)
        self.asks(BOB, "portal_call", 7, 0x40, 0x40)
        self.asks(BOB, "wait", 7)
        self.asks(BOB, "portal_call", None, BEYOND, 0x40)
        self.asks(BOB, "portal_call", None, 0x40, 0)
        self.asks(BOB, "portal_call", None, 0x40, 0x40)
        callee = int(self.systems.batch.thread_counts().max()) - 1
        self.asks(BOB, "portal_call", None, 0x40, 0x40)
        self.asks(BOB, "wait", None)
        for location in (0x40, BEYOND):
            self.asks(callee, "portal_fetch", location)
        self.asks(callee, "portal_finish")
        self.asks(callee, "portal_finish")
        self.asks(BOB, "portal_call", None, 0x40, 0x40)
        self.asks(callee, "portal_fetch", 0x40)
        self.asks(callee, "thread_exit")
        self.asks(callee + 1, "thread_exit")
        self.asks(ALICE, "thread_create", 0)
        self.asks(ALICE, "thread_create", BEYOND)

    def nesting(self) -> None:
        """A nested cVM calls the one around it, which goes back."""
        for thread in (ALICE, INNER):
            self.load_capability(thread, CODE, self.store(thread, "own code"))
            self.load_capability(thread, DATA, self.store(thread, "own data"))
            self.do(thread, "cinvoke", CODE, DATA)
        self.do(INNER, "li", ADDRESS, self.region(INNER, "base"))
        self.do(INNER, "lr.w.ddc", VALUE, ADDRESS)
        # Where the stack pointer says who calls, it has to name the outer cVM; it does so the first time.
        self.do(INNER, "li", STACK_POINTER, self.region(ALICE, "base") + np.uint64(0x100))
        for _ in range(2):
            self.enter_outer(INNER)
            self.do(INNER, "cspecialrw", 0, SPECIAL_NUMBERS["ddc"], INVOKED_DATA)
            self.do(INNER, "li", 11, np.full(self.lanes, 77, np.uint64))
            self.call_directly(INNER, "inner_return")
        self.asks(BOB, "inner_return")
        self.asks(BOB, "file_advertise", 9, 0x80, 0x40)
        self.around()

    def around(self) -> None:
        """The outer cVM has a file put before the inner's memory, into it, and behind it."""
        for offset in (INNER_OFFSET - 0x40, INNER_OFFSET + 0x40, INNER_OFFSET + INNER_BYTES + 0x40):
            self.asks(ALICE, "file_probe", 9, offset)

    def deployer(self) -> None:
        """What is refused, and what is done."""
        free, part, inner = MEMORY_BASE + 0x80, self.granule // 2, FIRST_BASE + INNER_OFFSET
        small = 5 * self.granule
        for cvm_id, outer, base, size in (
            (1, MONITOR, free, 0x80),
            (9, 9, free, 0x80),
            (9, MONITOR, free, 8),
            (9, MONITOR, free + part, small),
            (9, MONITOR, free, small + part),
            (9, MONITOR, MEMORY_BASE + MEMORY_BYTES - 0x40, 0x80),
            # With capabilities of 64 bits, bounds can't say that.
            (9, MONITOR, free + 8, 0x3F0 - 0x80),
            (9, 1, FIRST_BASE - 0x40, 0x80),
            (9, 1, FIRST_BASE + REGION_BYTES - 0x80, 0x80),
            (9, MONITOR, FIRST_BASE + 0x80, 0x80),
            (9, 4, inner, 0x80),
            (9, 3, inner + 2 * REGION_BYTES, 0x80),
            # Nor is there an object type for so many.
            (100, MONITOR, free, 0x80),
        ):
            self.systems.create(cvm_id, np.full(self.lanes, base, np.uint64), size, outer=outer)
        self.systems.destroy(100)
        self.systems.destroy(9)
        self.systems.destroy(1)
        self.systems.destroy(4)
        self.around()
        # What was put there meanwhile isn't left to it.
        self.systems.create(4, np.full(self.lanes, inner, np.uint64), INNER_BYTES, outer=1)
        self.nested_in_nothing()

    def destruction(self) -> None:
        """A cVM ends that has advertised, probed and called, and that serves a call; another one comes in its place."""
        dave = int(self.systems.batch.thread_counts().max())
        number, base, size = len(self.created) + 1, MEMORY_BASE + 0x200, 0x200
        self.create(base, size, False, MONITOR)
        for place, (owner, holder, key) in enumerate(((dave, BOB, 8), (ALICE, dave, 0), (CAROL, BOB, 10))):
            self.asks(owner, "file_advertise", key, 0x80, 0x40)
            self.asks(holder, "file_probe", key, 0x100 + 0x10 * place)
            self.asks(owner, "portal_advertise", key, 0)
            self.handle(holder, key)
            self.asks(holder, "portal_call", None, 0xC0, 0x20)
            self.asks(int(self.systems.batch.thread_counts().max()) - 1, "portal_fetch", 0x140)
            # A buffer is no file, and is for the callee alone.
            self.asks(CAROL, "file_probe", KEYS + key, 0x180)
            self.asks(holder, "file_revoke", KEYS + key)
            self.asks(CAROL, "portal_fetch", 0x1A0)
        # The monitor's own code, which is at address 0, is no handle of portal 0; nor is what was one.
        self.load_capability(dave, KEPT, self.store(dave, "call code"))
        self.asks(dave, "wait", None)
        self.do(BOB, "ccleartag", KEPT, KEPT)
        self.asks(BOB, "wait", None)
        # A file and a portal of one number have nothing to do with each other.
        self.asks(ALICE, "file_advertise", 14, 0x80, 0x40)
        self.asks(dave, "portal_advertise", 14, 0)
        self.load_capability(BOB, GRANT, self.region(BOB, "base") + np.uint64(0x100))
        self.handle(ALICE, 10)
        self.asks(ALICE, "wait", None)
        self.handle(BOB, 8)
        self.asks(BOB, "wait", None)
        self.systems.destroy(number)
        self.asks(BOB, "file_probe", 8, 0x100)
        self.asks(BOB, "portal_call", None, 0xC0, 0x20)
        self.asks(BOB, "wait", None)
        self.asks(dave + 2, "portal_fetch", 0x140)
        after = int(self.systems.batch.thread_counts().max())
        self.systems.create(number, np.full(self.lanes, base, np.uint64), size)
        self.asks(after, "file_advertise", 8, 0x80, 0x40)
        self.asks(after, "portal_advertise", 8, 0)
        self.asks(BOB, "portal_call", None, 0xC0, 0x20)
        self.asks(BOB, "wait", None)
        self.systems.destroy(number)
        # Whoever waits for another's call goes on when that is over.
        self.asks(dave + 3, "portal_finish")
        self.asks(ALICE, "file_revoke", 0)

    def stacks(self) -> None:
        """Threads call with stack pointers to where there is no memory, and to what the call itself overwrites."""
        for stack in (0x200, MEMORY_BASE, MEMORY_BASE + MEMORY_BYTES + 0x200):
            self.asks(BOB, "thread_create", 0)
            thread = int(self.systems.batch.thread_counts().max()) - 1
            self.do(thread, "li", STACK_POINTER, np.full(self.lanes, stack, np.uint64))
            self.asks(thread, "host_time", 0x40)
            self.asks(thread, "file_advertise", 5, 0x40, 0x40)
        self.asks(BOB, "thread_create", 0)
        thread = int(self.systems.batch.thread_counts().max()) - 1
        self.do(thread, "li", STACK_POINTER, self.region(BOB, "base") + np.uint64(0x200))
        self.asks(thread, "host_time", 0x200 - self.granule)

    def nested_in_nothing(self) -> None:
        """What would be nested in a cVM that was destroyed isn't made; if it were, it would call that one."""
        base = np.full(self.lanes, MEMORY_BASE + 0x80, np.uint64)
        self.systems.create(8, base, 0x100)
        self.systems.destroy(8)
        before = int(self.systems.batch.thread_counts().max())
        self.systems.create(9, base, 0x80, outer=8)
        self.enter_outer(before)
        self.systems.create(8, base, 0x100)
        self.systems.create(9, base, 0x80, outer=8)
        self.systems.destroy(9)
        self.systems.destroy(8)

    def full_tables(self) -> None:
        """Nothing more fits."""
        for key in range(MAX_GRANTS + 1):
            self.asks(ALICE, "file_advertise", 20 + key, 0x100, 0x40)
        for key in range(MAX_PORTALS + 1):
            self.asks(ALICE, "portal_advertise", 20 + key, 0)
        self.asks(BOB, "file_probe", 20, REGION_BYTES - self.granule // 2)
        self.handle(BOB, 20)
        self.asks(BOB, "portal_call", None, 0x40, 0x40)
        for place in range(MAX_CVMS):
            base = np.full(self.lanes, MEMORY_BASE + 0x80 * (1 + place % 7), np.uint64)
            self.systems.create(10 + place, base, 0x80)
        for _ in range(MAX_THREADS):
            self.asks(BOB, "thread_create", 0)
        self.asks(ALICE, "file_revoke", 20)
        self.asks(BOB, "portal_call", None, 0x40, 0x40)


def drill(
    fmt: CapabilityFormat,
    lanes: int,
    policy: MonitorPolicy = INTENDED,
    run: Callable[[Drill], None] = Drill.run,
    systems_type: type[Systems] = Systems,
) -> Systems:
    """A drill, or a part of it, in some lanes, alike in all of them but for what instructions hold."""
    systems = systems_type(fmt, MEMORY_BASE, MEMORY_BYTES, lanes, policy)
    made = Drill(np.random.default_rng(0), systems)
    exercise(systems, lambda: run(made))
    return systems
