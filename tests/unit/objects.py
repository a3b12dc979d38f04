"""A small system of shared objects: two tenants, and what they do, each step held against all invariants."""

from typing import Any

from capvisor.model.machine import Trap
from capvisor.model.memory import Memory
from capvisor.model.object_system import instruction, perform, violated
from capvisor.model.object_tables import TenantThread
from capvisor.model.objects import ObjectMonitor
from capvisor.spec.formats import CC128, CapabilityFormat
from capvisor.spec.object_policy import INTENDED, ObjectPolicy
from capvisor.spec.orc import Code, Relocation
from capvisor.spec.orc_invariants import Step

BASE, SLOTS = 0x8000_0000, 16
ALICE, BOB = 1, 2
LIB, ALICES, BOBS, SPARE = 4, 5, 6, 7
"""Slots: of the object, of the two shadows, and one that is free."""


class Rig:
    """Alice has slots 0 and 1, bob 2 and 3. An object has 64 bytes of code, a table of 32 bytes, and two words of data."""

    def __init__(self, policy: ObjectPolicy = INTENDED, fmt: CapabilityFormat = CC128) -> None:
        self.monitor = ObjectMonitor(Memory(fmt, BASE, SLOTS << 10), policy)
        self.granule = fmt.capability_bytes
        self.code, self.ro, self.data = 4 * self.granule, 2 * self.granule, self.granule
        self.holds = policy is INTENDED
        self.must(None, "create", ALICE, 0, 1)
        self.must(None, "create", BOB, 2, 3)
        self.alice: TenantThread = self.monitor.threads[0]
        self.bob: TenantThread = self.monitor.threads[1]

    def do(self, thread: TenantThread | None, name: str, *operands: Any) -> Step:
        """An operation."""
        step = perform(self.monitor, thread, name, *operands)
        assert not self.holds or not violated(step), (name, operands, violated(step))
        return step

    def must(self, thread: TenantThread | None, name: str, *operands: Any) -> None:
        """An operation that isn't refused."""
        code = self.do(thread, name, *operands).code
        assert code is Code.OK, (name, operands, code)

    def execute(self, thread: TenantThread, name: str, *operands: Any) -> Trap | None:
        """An instruction; why it was refused."""
        step, trap = instruction(self.monitor, thread, name, operands)
        assert not self.holds or not violated(step), (name, operands, violated(step))
        return trap

    def place(self, thread: TenantThread, slot: int = LIB) -> None:
        """An image, submitted: a global in its table, an export at 0."""
        self.must(thread, "allocate", slot)
        self.put(thread, self.code + self.ro, 5)
        self.must(thread, "submit", slot, self.code, self.ro, self.data)
        self.must(thread, "relocate", slot, Relocation.TLS, self.code, self.code + self.ro, 8)
        self.must(thread, "export", slot, 0)

    def load(self, thread: TenantThread, slot: int = LIB) -> None:
        """An object."""
        self.place(thread, slot)
        self.must(thread, "publish", slot)

    def map(self, thread: TenantThread, shadow: int, slot: int = LIB) -> None:
        """The use of an object, of whatever content."""
        self.must(thread, "map", slot, self.monitor.slots[slot].identity, shadow)

    def enter(self, thread: TenantThread, slot: int = LIB) -> None:
        """Go on in an object."""
        self.must(thread, "bind", slot, 0)
        assert self.execute(thread, "cinvoke", 11, 12) is None

    def put(self, thread: TenantThread, offset: int, value: int) -> None:
        """Store a word where c11 leads."""
        assert self.execute(thread, "li", 6, value) is None
        assert self.execute(thread, "cincoffsetimm", 7, 11, offset) is None
        assert self.execute(thread, "sw.cap", 6, 7) is None

    def word(self, slot: int, offset: int) -> int:
        """What memory has at a place of a slot."""
        return self.monitor.memory.read(self.monitor.slot_base(slot) + offset, 4)

    def entry(self, tenant: int, place: int = 0, slot: int = LIB) -> Any:
        """What a thread's TLS array has of an object."""
        monitor = self.monitor
        first = monitor.first_granule(monitor.tenants[tenant].tls)
        return monitor.granule(first + place * monitor.shape.objects + slot)
