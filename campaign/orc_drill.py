"""A drill of shared objects: every operation is done, and refused for each of its reasons, and every instruction executed.

So a short campaign is conclusive too. What can't be is in `NEVER`.
"""

from collections.abc import Callable

import numpy as np

from capvisor.campaign.cvm_moves import instructions_of
from capvisor.campaign.orc_moves import CODE, DATA, HELD, KEPT, PLACE, RETURN, VALUE, Mover
from capvisor.campaign.orc_systems import Deployment, Systems
from capvisor.campaign.systems import exercise
from capvisor.dsl.orc_layout import MEMORY_BASE
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.workspace import Words
from capvisor.spec import orc
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.object_policy import INTENDED, ObjectPolicy
from capvisor.spec.orc import MAX_TENANTS, MAX_THREADS, OPERATIONS, SHAPE, Actor, Code, Relocation
from capvisor.spec.registers import SPECIAL_NUMBERS

SLOTS = 18
"""More than TLS arrays have entries for, and than there are object types in cc64."""

NEVER = {(row.name, Code.NO_TENANT) for row in OPERATIONS.values() if row.actor is Actor.TENANT}
"""What can't be under the intended policy: a live thread's tenant is one."""

ALICE, BOB, CAROL = 1, 2, 3
LIB, SPARE, FIRST_SHADOW = 4, 6, 7
BEYOND, ODD_SIZE = SLOTS, SHAPE.slot_bytes + 1


class Drill(Mover):
    """Does everything, one after the other, in all lanes alike."""

    def as_alice(self, name: str, *operands: int | Words) -> None:
        """An operation of the first tenant's first thread."""
        self.ask(self.systems.thread_of(ALICE), name, *operands)

    def run(self) -> None:
        """Everything; instructions, which may leave threads unable to go on, last."""
        self.run_operations()
        self.instructions()

    def run_operations(self) -> None:
        """Operations, with what makes a difference to them."""
        self.code, self.ro, self.data = (self.granule * count for count in (4, 2, 1))
        for tenant in (ALICE, BOB):
            self.begin(self.systems.thread_of(tenant))
        self.images()
        self.relocations_of_all_kinds()
        self.objects()
        self.calls()
        self.threads()
        self.base()

    def images(self) -> None:
        """Memory is given, and submitted as an image."""
        for slot in (BEYOND, 2, LIB, LIB):
            self.as_alice("allocate", slot)
        self.do(self.systems.thread_of(ALICE), "li", VALUE, 5)
        self.do(self.systems.thread_of(ALICE), self.store, VALUE, self.code + self.ro, CODE)
        self.do(self.systems.thread_of(ALICE), "csc", orc.STACK, self.code, CODE)
        good = (self.code, self.ro, self.data)
        for slot, sizes in (
            (BEYOND, good),
            (SPARE, good),
            (2, good),
            *((LIB, sizes) for sizes in ((ODD_SIZE, 0, 0), (self.code, ODD_SIZE, 0), (self.code, 0, ODD_SIZE))),
            *((LIB, sizes) for sizes in ((0, self.ro, 0), (self.word, 0, 0), (self.code, 512, 512))),
        ):
            self.as_alice("submit", slot, *sizes)
        self.as_alice("allocate", SLOTS - 1)
        self.as_alice("submit", SLOTS - 1, *good)
        for name in ("publish", "withdraw"):
            self.as_alice(name, BEYOND)
            self.as_alice(name, LIB)
        self.as_alice("export", LIB, 0)
        self.as_alice("relocate", LIB, Relocation.TLS, self.code, 0, 8)
        self.as_alice("submit", LIB, *good)
        self.as_alice("relocate", LIB, Relocation.FUNC, self.code, 0, 0)
        self.as_alice("withdraw", LIB)
        # What is empty leads nowhere; what is in DDC leads to the image as what is in registers does.
        self.do(self.systems.thread_of(ALICE), "csetboundsimm", PLACE, CODE, 0)
        self.do(self.systems.thread_of(ALICE), "cspecialrw", 0, SPECIAL_NUMBERS["ddc"], CODE)
        self.as_alice("submit", LIB, *good)
        self.do(self.systems.thread_of(ALICE), self.store, VALUE, 0, CODE)

    def relocations_of_all_kinds(self) -> None:
        """Entries of a table are made, and refused."""
        table, at, word = self.code, self.code + self.ro, self.word
        for slot, *operands in (
            (BEYOND, Relocation.TLS, table, at, word),
            (LIB, 0, table, at, word),
            (LIB, 5, table, at, word),
            (LIB, Relocation.TLS, table + 2, at, word),
            (LIB, Relocation.TLS, SLOTS << SHAPE.slot_shift, at, word),
            (LIB, Relocation.CONST, table, 1, 1 << 13),
            (LIB, Relocation.FUNC, 0, 0, 0),
            (LIB, Relocation.FUNC, SHAPE.slot_bytes, 0, 0),
            (LIB, Relocation.FUNC, table, self.code, 0),
            (LIB, Relocation.CONST, table, at, word),
            (LIB, Relocation.CONST, table, SHAPE.slot_bytes, word),
            (LIB, Relocation.TLS, table, 0, word),
            (LIB, Relocation.OBJ, table, at, word),
            (LIB, Relocation.TLS, table, at, word),
            (LIB, Relocation.CONST, table, table, word),
            (LIB, Relocation.FUNC, table + self.granule, 0, 0),
        ):
            self.as_alice("relocate", slot, *operands)
        for slot, entry in ((BEYOND, 0), (SPARE, 0), (LIB, 1), (LIB, SHAPE.slot_bytes), (LIB, self.code), (LIB, 0)):
            self.as_alice("export", slot, entry)

    def objects(self) -> None:
        """An object is mapped, and refused to be."""
        self.as_alice("map", LIB, self.of_slot("identity", self._every(LIB)), FIRST_SHADOW)
        self.as_alice("publish", LIB)
        identity = self.of_slot("identity", self._every(LIB))
        for slot, expected, shadow in (
            (BEYOND, identity, FIRST_SHADOW),
            (SLOTS - 1, identity, FIRST_SHADOW),
            (LIB, identity, BEYOND),
            (LIB, identity + np.uint64(1), FIRST_SHADOW),
            (LIB, identity, LIB),
            (LIB, identity, FIRST_SHADOW),
            (LIB, identity, SPARE),
        ):
            self.as_alice("map", slot, expected, shadow)

    def _every(self, number: int) -> Words:
        return np.full(self.lanes, number, np.uint64)

    def calls(self) -> None:
        """An object is entered, and left; a thread in it keeps it from being unmapped."""
        alice, bob = self.systems.thread_of(ALICE), self.systems.thread_of(BOB)
        for slot, entry in ((BEYOND, 0), (LIB, 1), (LIB, SHAPE.slot_bytes), (LIB, 2), (LIB, 0)):
            self.ask(alice, "bind", slot, entry)
        self.ask(bob, "bind", LIB, 0)
        self.do(alice, "cmove", KEPT, CODE)
        self.do(alice, "csc", CODE, 0, orc.STACK)
        self.do(alice, "cinvoke", CODE, DATA)
        self.do(alice, "auipcc", PLACE, 0)
        self.do(alice, self.store, VALUE, 0, PLACE)
        self.as_alice("unmap", LIB)
        self.shadow(alice, self._every(LIB))
        self.leave(alice)
        for slot in (BEYOND, SPARE, LIB, LIB):
            self.as_alice("unmap", slot)
        # What was kept leads nowhere any more.
        self.do(alice, "clc", CODE, 0, orc.STACK)
        self.do(alice, "cinvoke", CODE, DATA)

    def threads(self) -> None:
        """More threads, until there are as many as there can be; one of them uses another object."""
        for entry in (1, SHAPE.slot_bytes, *(0,) * MAX_THREADS):
            self.as_alice("start", entry)
        bob = self.systems.thread_of(BOB)
        # Bob asks as if he were alice, and where TP points there is memory of hers.
        self.do(bob, "li", orc.IDENTITY, ALICE)
        self.ask(bob, "allocate", SPARE)
        self.do(bob, "li", orc.IDENTITY, BOB)
        self.do(bob, "li", orc.THREAD_POINTER, MEMORY_BASE)
        for place in range(1, MAX_THREADS):
            self.systems.instruction(self.systems.thread_of(ALICE, place), "auipcc", (RETURN, 0))
        self.ask(bob, "map", LIB, self.of_slot("identity", self._every(LIB)), FIRST_SHADOW)
        for shadow in (FIRST_SHADOW, FIRST_SHADOW + 1):
            self.as_alice("map", LIB, self.of_slot("identity", self._every(LIB)), shadow)

    def base(self) -> None:
        """Tenants come and go; an object is freed when nobody has it."""
        first, second = 10, 11
        for tenant, home, tls in (
            (CAROL, BEYOND, first),
            (CAROL, first, BEYOND),
            (CAROL, first, first),
            (0, first, second),
            (MAX_TENANTS + 1, first, second),
            (ALICE, first, second),
            (CAROL, LIB, first),
            (CAROL, first, LIB),
            (CAROL, first, second),
        ):
            self.ask(None, "create", tenant, home, tls)
        for slot in (BEYOND, SPARE, LIB):
            self.ask(None, "collect", slot)
        for tenant in (CAROL, CAROL, BOB):
            self.ask(None, "destroy", tenant)
        self.as_alice("unmap", LIB)
        self.ask(None, "collect", LIB)
        self.ask(None, "create", BOB, LIB, FIRST_SHADOW)
        self.begin(self.systems.thread_of(BOB))

    def instructions(self) -> None:
        """Every instruction of the table once, on what registers hold."""
        for row in instructions_of(self.fmt):
            self.execute(self._someone(), row.name)
        for register in HELD:
            self.use(self._someone(), register)

    def _someone(self) -> Indices:
        return self.systems.thread_of(self.one((ALICE, BOB)))


def drill(
    fmt: CapabilityFormat, lanes: int, policy: ObjectPolicy = INTENDED, run: Callable[[Drill], None] = Drill.run
) -> Systems:
    """A drill, or a part of it, in some lanes, alike in all of them but for what instructions hold."""
    systems = Systems(fmt, Deployment(SLOTS, 2), lanes, policy)
    made = Drill(np.random.default_rng(0), systems)
    exercise(systems, lambda: run(made))
    return systems
