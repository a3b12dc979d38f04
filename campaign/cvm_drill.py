"""A drill: every call and every operation of the deployer, answered in each way that there is, and every instruction.

What is drawn at random reaches most of this within seconds; full tables and what depends on them it reaches late or never.
"""

import numpy as np

from capvisor.campaign.cvm_moves import (
    ADDRESS,
    FIRST_BASE,
    GRANT,
    INVOKED_DATA,
    KEPT,
    MEMORY_BASE,
    MEMORY_BYTES,
    REGION_BYTES,
    VALUE,
    Mover,
)
from capvisor.campaign.cvm_systems import Systems, exercise
from capvisor.spec.cvm import KEYS, MAX_CVMS, MAX_GRANTS, MAX_PORTALS, MAX_THREADS, MONITOR, NUMBER_REGISTER
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
        for place, is_purecap in enumerate((False, False, True)):
            self.create(FIRST_BASE + place * REGION_BYTES, REGION_BYTES, is_purecap, MONITOR)
        self.nest()
        self.host()
        self.files()
        self.portals()
        self.nesting()
        self.deployer()
        self.full_tables()
        self.do(BOB, "li", ADDRESS, self.region(BOB, "base"))
        self.do(BOB, "lr.w.ddc", VALUE, ADDRESS)
        self.instructions()

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
        self.asks(BOB, "file_probe", 7, 0x40)
        self.asks(CAROL, "file_probe", 7, 0x40)
        self.asks(BOB, "file_probe", 7, BEYOND)
        self.asks(BOB, "file_revoke", 7)
        self.asks(ALICE, "file_revoke", 7)
        self.asks(ALICE, "file_revoke", 7)

    def portals(self) -> None:
        """CP_Call."""
        self.asks(BOB, "portal_probe", 7)
        self.asks(ALICE, "portal_advertise", 7, BEYOND)
        self.asks(ALICE, "portal_advertise", 7, 0)
        self.asks(ALICE, "portal_advertise", 7, 0)
        self.asks(BOB, "portal_call", 7, 0x40, 0x40)
        self.asks(BOB, "wait", 7)
        self.handle(BOB, 7)
        self.asks(BOB, "portal_call", None, BEYOND, 0x40)
        self.asks(BOB, "portal_call", None, 0x40, 0x40)
        callee = int(self.systems.batch.thread_counts().max()) - 1
        self.asks(BOB, "portal_call", None, 0x40, 0x40)
        self.asks(BOB, "wait", None)
        for location in (0x40, BEYOND):
            self.asks(callee, "portal_fetch", location)
        self.asks(callee, "portal_finish")
        self.asks(callee, "portal_finish")
        self.asks(callee, "portal_fetch", 0x40)
        self.asks(callee, "thread_exit")
        self.asks(ALICE, "thread_create", 0)
        self.asks(ALICE, "thread_create", BEYOND)

    def nesting(self) -> None:
        """A nested cVM calls the one around it, which goes back."""
        self.enter_outer(INNER)
        self.do(INNER, "cspecialrw", 0, SPECIAL_NUMBERS["ddc"], INVOKED_DATA)
        self.call_directly(INNER, "inner_return")
        self.asks(BOB, "inner_return")

    def deployer(self) -> None:
        """What is refused, and what is done."""
        base = np.full(self.lanes, MEMORY_BASE + 0x80, np.uint64)
        for cvm_id, outer, size in ((1, MONITOR, 0x80), (9, 9, 0x80), (9, MONITOR, 8)):
            self.systems.create(cvm_id, base, size, outer=outer)
        self.systems.destroy(9)
        self.systems.destroy(1)
        self.systems.destroy(4)

    def full_tables(self) -> None:
        """Nothing more fits."""
        for key in range(MAX_GRANTS + 1):
            self.asks(ALICE, "file_advertise", 20 + key, 0x100, 0x40)
        for key in range(MAX_PORTALS + 1):
            self.asks(ALICE, "portal_advertise", 20 + key, 0)
        self.handle(BOB, 20)
        self.asks(BOB, "portal_call", None, 0x40, 0x40)
        for place in range(MAX_CVMS):
            base = np.full(self.lanes, MEMORY_BASE + 0x80 * (1 + place % 7), np.uint64)
            self.systems.create(10 + place, base, 0x80)
        for _ in range(MAX_THREADS):
            self.asks(BOB, "thread_create", 0)


def drill(fmt: CapabilityFormat, lanes: int, policy: MonitorPolicy = INTENDED, *, is_purecap: bool = False) -> Systems:
    """A drill in some lanes, alike in all of them but for what instructions hold."""
    systems = Systems(fmt, MEMORY_BASE, MEMORY_BYTES, lanes, policy)
    made = Drill(np.random.default_rng(0), systems)
    exercise(systems, made.run_purecap if is_purecap else made.run)
    return systems
