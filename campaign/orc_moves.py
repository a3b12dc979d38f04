"""What tenants and the base do in a campaign of shared objects: good programs, and hostile ones.

A move is a few steps, the same in all lanes but for their numbers; now and then a lane leaves one out. Every kind of move is
made in every unit, in an order that is drawn, and most of them again.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from capvisor.campaign.cvm_moves import draw_immediate, instructions_of
from capvisor.campaign.draw import Draws, make
from capvisor.campaign.orc_systems import Deployment, Systems
from capvisor.campaign.systems import exercise
from capvisor.fastpath.machine import PCC, Indices
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec import orc
from capvisor.spec.formats import CapabilityFormat, Permission
from capvisor.spec.object_policy import INTENDED, ObjectPolicy
from capvisor.spec.operations import OPERATIONS as INSTRUCTIONS
from capvisor.spec.operations import Group
from capvisor.spec.operations import OperandKind as Kind
from capvisor.spec.orc import MAX_TENANTS, OPERATIONS, Actor, OperandKind, Relocation, SlotKind
from capvisor.spec.registers import SPECIAL_NUMBERS

RETURN, SHARED, NUMBER, PLACE, VALUE, KEPT, OTHER, LOADED, SECOND = 1, 5, 6, 7, 8, 9, 13, 14, 15
"""Registers: where a tenant's own code goes on, what was found in a TLS array, a number, an address, a value, and what is
held on to."""

CODE, DATA = orc.RESULTS
HELD = (orc.STACK, orc.THREAD_POINTER, SHARED, PLACE, KEPT, CODE, DATA, OTHER, LOADED, SECOND, orc.INVOKED_DATA)
"""Registers whose contents are worth attacking with."""

ODD = (0, 1, 2, 3, 8, 15, 63, 1023, 1024, 1025, 1 << 14, 1 << 31, 1 << 32, (1 << 64) - 1)
"""What an operand is now and then, whatever it is."""

SLOTS = 12
"""How many slots a system has. Fewer would often all be taken."""

NEAR_THE_END = 64
"""So many bytes before the end of what it executes a thread goes back to where it began."""


class Mover(Draws):
    """Draws and makes what moves of one unit consist of."""

    def __init__(self, rng: np.random.Generator, systems: Systems, hostility: float = 0.6, turn: int = 0) -> None:
        """What comes in turn begins at that turn."""
        super().__init__(rng, systems.lanes, hostility, turn)
        self.systems = systems
        self.fmt: CapabilityFormat = systems.format
        self.granule, self.batch = systems.format.capability_bytes, systems.batch
        self.word = self.granule // 2
        self.store, self.load = ("csd", "cld") if self.fmt.address_width == 64 else ("csw", "clw")
        self._slots = np.arange(self.batch.slot_count, dtype=np.uint64)

    # -- drawing -----------------------------------------------------------------------------------------------------------

    def slot(self, *kinds: SlotKind, owner: int | None = None, odd: float = 0.04) -> Words:
        """A slot of some kinds in each lane, a tenant's if one is named; any where there is none, and now and then."""
        slots = self.batch.slots
        wanted = np.isin(slots["kind"], kinds)
        if owner is not None:
            wanted = wanted & (slots["owner"] == owner)
        any_slot = self.each(range(self.batch.slot_count))
        found = self.mixed(self.among(wanted, any_slot), any_slot, odd)
        return self.mixed(found, self.each([self.batch.slot_count, *ODD]), odd / 4)

    def mapped(self, tenant: int) -> Words:
        """An object that a tenant has mapped."""
        return self.among(self.batch.mappings["is_live"][:, tenant], self.slot(SlotKind.OBJECT))

    def of_slot(self, name: str, slot: Words) -> Words:
        """What the base knows of slots."""
        at = np.minimum(slot, np.uint64(self.batch.slot_count - 1)).astype(np.int64)
        found: Words = self.batch.slots[name][self._everyone, at]
        return found

    def exported(self, slot: Words) -> Words:
        """A place at which an object can be entered; 0, where there is none."""
        at = np.minimum(slot, np.uint64(self.batch.slot_count - 1)).astype(np.int64)
        half: Words = self.batch.exports[self._everyone, at].argmax(axis=1).astype(np.uint64)
        return half << np.uint64(1)

    def tenant(self) -> int:
        """A tenant of those that there were at the start."""
        return 1 + int(self.rng.integers(self.systems.deployment.tenants))

    def thread(self, tenant: int | None = None) -> Indices:
        """A thread in each lane, of a tenant, most often its first; one that there is somewhere."""
        of = self.tenant() if tenant is None else tenant
        threads = self.batch.threads
        there = np.unique(threads["place"][threads["is_live"] & (threads["tenant"] == of)]).tolist()
        return self.systems.thread_of(of, self.one([0, 0, *there]))

    def base_of(self, slot: Words) -> Words:
        """Where slots begin."""
        return self.batch.slot_base(slot)

    # -- doing -------------------------------------------------------------------------------------------------------------

    def do(self, thread: Indices, name: str, *operands: int | Words, lanes: Flags | None = None) -> None:
        """One instruction; before it, threads that are about to run out of code go back."""
        self._go_back(thread)
        self.systems.instruction(thread, name, operands, lanes)

    def _go_back(self, thread: Indices) -> None:
        machine, harts = self.batch.harts, self.systems.harts_of(thread)
        late = machine.pc[harts] & np.uint64(self.batch.shape.slot_bytes - 1) >= self.batch.shape.slot_bytes - NEAR_THE_END
        if late.any():
            self.systems.instruction(thread, "cjalr", (0, 0, RETURN), late)

    def ask(self, thread: Indices | None, name: str, *operands: int | Words, share: float = 1.0) -> None:
        """An operation, in so many of the lanes."""
        self.systems.operation(thread, name, operands, None if share == 1.0 else self.some(share))

    def leave(self, thread: Indices) -> None:
        """A thread goes on in its tenant's own code."""
        self.systems.instruction(thread, "cjalr", (0, 0, RETURN))

    def begin(self, thread: Indices) -> None:
        """What a thread's code begins with: it keeps where it is."""
        self.systems.instruction(thread, "auipcc", (RETURN, 0))

    def begin_anew(self, thread: Indices) -> None:
        """Threads that have nothing to go back to begin."""
        fresh = ~self.batch.harts.tags[RETURN, self.systems.harts_of(thread)]
        self.systems.instruction(thread, "auipcc", (RETURN, 0), fresh)

    def set_up(self) -> None:
        """All tenants begin; the first one loads an object, which most of them map."""
        for tenant in range(1, self.systems.deployment.tenants + 1):
            self.begin(self.systems.thread_of(tenant))
        self.load_object(1, is_hostile=False)
        for tenant in range(1, self.systems.deployment.tenants + 1):
            self.map_object(tenant)

    # -- good programs -----------------------------------------------------------------------------------------------------

    def work(self) -> None:
        """A program that computes, and loads and stores where it may."""
        thread = self.thread()
        source = self.one((orc.STACK, orc.STACK, SHARED, KEPT, CODE))
        self.do(thread, "cincoffsetimm", PLACE, source, self.each([0, 16, 64, 96, 160, 512, 1008]))
        self.do(thread, "li", VALUE, self.each([1, 5, 1 << 20, (1 << 63) + 3]))
        for _ in range(int(self.rng.integers(8, 24))):
            match int(self.rng.integers(6)):
                case 0:
                    self.do(thread, self.store, VALUE, self.one((0, self.word, 2 * self.word)), PLACE)
                case 1:
                    self.do(thread, self.load, NUMBER, self.one((0, self.word, 2 * self.word)), PLACE)
                case 2:
                    self.do(
                        thread,
                        self.one(("addi", "xori", "andi")),
                        VALUE,
                        self.one((VALUE, NUMBER)),
                        self.one((1, 7, -1, 100)),
                    )
                case 3:
                    self.do(thread, self.one(("add", "sub", "xor", "or")), NUMBER, VALUE, NUMBER)
                case 4:
                    self.do(thread, "cincoffsetimm", PLACE, PLACE, self.one((self.granule, -self.granule, self.word)))
                case _:
                    self.do(thread, self.one(("beq", "bne", "bltu")), NUMBER, VALUE, self.one((8, 16, -16)))

    def load_object(self, tenant: int | None = None, is_hostile: bool | None = None) -> None:
        """A tenant makes an object: memory, its content, its verification, relocations, exports."""
        of = self.tenant() if tenant is None else tenant
        thread, hostile = self.thread(of), self.chance(self.hostility) if is_hostile is None else is_hostile
        slot = self.slot(SlotKind.FREE, odd=0.04 if hostile else 0.01)
        self.ask(thread, "allocate", slot)
        code, ro, data = (self.granule * np.array(self.one(((4, 2, 1), (1, 1, 2), (8, 4, 4))), np.uint64)).tolist()
        self.do(thread, "li", VALUE, self.each([5, 7, 1 << 30]))
        self.do(thread, self.store, VALUE, code + ro, CODE)
        if hostile:
            self.hold_on(thread)
            if self.chance(0.8):
                self.do(thread, "csc", self.one(HELD), self.each([0, code, code + self.granule, code + ro]), CODE)
        sizes = [np.full(self.lanes, size, np.uint64) for size in (code, ro, data)]
        if hostile and self.chance(0.3):
            at = int(self.rng.integers(3))
            wrong = [0, self.word, self.granule // 2 + code, 1024, 1024 - code, 1025, 960]
            sizes[at] = self.mixed(sizes[at], self.each(wrong), 0.3)
        self.ask(thread, "submit", slot, *sizes)
        if hostile:
            self.use(thread, KEPT)
        self.relocations(thread, slot, code, ro, data, hostile)
        for place in (0, self.one((2, code - 2, code))):
            self.ask(
                thread,
                "export",
                slot,
                self.mixed(np.full(self.lanes, place, np.uint64), self.each([0, 1, code, *ODD]), 0.1 * hostile),
                share=0.9,
            )
        if hostile and self.chance(0.5):
            self.ask(thread, "withdraw", slot, share=0.5)
            self.use(thread, CODE)
            self.do(thread, "clc", LOADED, code, CODE)
        if hostile and self.chance(0.2):
            # It is mapped before it is published.
            self.ask(self.thread(), "map", slot, self.of_slot("identity", slot), self.slot(SlotKind.FREE))
        self.ask(thread, "publish", slot, share=0.95)
        if hostile:
            self.use(thread, KEPT)

    def relocations(self, thread: Indices, slot: Words, code: int, ro: int, data: int, hostile: bool) -> None:
        """Entries of a table, good ones first."""
        word, target = self.word, code
        for kind, address, size in (
            (Relocation.TLS, code + ro, word),
            (Relocation.CONST, self.one((0, code, code + ro - word)), word),
            (Relocation.FUNC, 0, 0),
            (Relocation.OBJ, code + ro, word),
        ):
            if (kind is Relocation.OBJ and not hostile) or target >= code + ro or self.chance(0.3):
                continue
            numbers = [np.full(self.lanes, number, np.uint64) for number in (kind, target, address, size)]
            if hostile:
                wrong: tuple[Sequence[int], ...] = (
                    (0, 1, 2, 3, 4, 5),
                    (0, code - self.granule, code + ro, code + 2, 1024, 4096, *ODD),
                    (0, code - 1, code + ro - 1, code + ro + data, 1024, 1 << 12, *ODD),
                    (0, 1, word, 1023, 1024, 2048, 1 << 13, *ODD),
                )
                numbers = [self.mixed(number, self.each(other), 0.15) for number, other in zip(numbers, wrong, strict=True)]
            self.ask(thread, "relocate", slot, *numbers)
            target += self.granule

    def map_object(self, tenant: int | None = None) -> None:
        """A tenant maps an object, of the content that it expects."""
        of = self.tenant() if tenant is None else tenant
        objects = (self.batch.slots["kind"] == SlotKind.OBJECT) & ~self.batch.mappings["is_live"][:, of]
        slot = self.mixed(self.among(objects, self.slot(SlotKind.OBJECT)), self.slot(*SlotKind), 0.08 * self.hostility)
        identity = self.of_slot("identity", slot)
        identity = np.where(self.some(0.1 * self.hostility), identity ^ np.uint64(1), identity)
        self.ask(self.thread(of), "map", slot, identity, self.slot(SlotKind.FREE, odd=0.04 * self.hostility))

    def enter(self, thread: Indices, slot: Words, entry: Words | None = None) -> None:
        """Bind an entry, and invoke it."""
        at = self.exported(slot) if entry is None else entry
        self.ask(thread, "bind", slot, at)
        self.do(thread, "cinvoke", CODE, DATA)

    def call(self) -> None:
        """A thread enters an object, which works on the tenant's shadow, and goes back, or stays."""
        of = self.tenant()
        thread, slot = self.thread(of), self.mapped(of)
        self.enter(thread, slot)
        code, ro = self.of_slot("code", slot), self.of_slot("ro", slot)
        self.shadow(thread, slot)
        self.do(thread, "clc", LOADED, code & np.uint64(1023), orc.INVOKED_DATA)
        self.do(thread, "cgetaddr", NUMBER, LOADED)
        self.do(thread, "cincoffset", PLACE, SHARED, NUMBER)
        self.do(thread, self.store, VALUE, 0, PLACE)
        self.do(thread, self.load, VALUE, (code + ro) & np.uint64(1023), SHARED)
        if self.chance(self.hostility):
            for register in (orc.INVOKED_DATA, LOADED, SHARED):
                self.use(thread, register)
            self.do(thread, "auipcc", KEPT, 0)
            self.use(thread, KEPT)
        if self.chance(0.4):
            self.ask(thread, "unmap", slot)
        if self.chance(0.85):
            self.leave(thread)

    def shadow(self, thread: Indices, slot: Words) -> None:
        """What the thread's TLS array has of an object."""
        self.do(thread, "clc", SHARED, slot * np.uint64(self.granule) & np.uint64(1023), orc.THREAD_POINTER)

    def start(self) -> None:
        """A tenant starts another thread."""
        thread = self.thread()
        self.ask(thread, "start", self.mixed(self.each([0, 4, 16]), self.each(ODD), 0.1))
        for tenant in range(1, self.systems.deployment.tenants + 1):
            for place in (1, 2, 3):
                self.begin_anew(self.systems.thread_of(tenant, place))

    # -- holding on --------------------------------------------------------------------------------------------------------

    def hold_on(self, thread: Indices) -> None:
        """Keep what c11 has: in another register, sealed, in the home's memory, in what another thread holds, in DDC."""
        self.do(thread, "cmove", KEPT, CODE)
        kind = self.turn("hold") % 5
        if kind == 0:
            self.do(thread, "csealentry", OTHER, CODE)
        elif kind == 1:
            self.do(thread, "csetboundsimm", OTHER, CODE, self.one((0, 8)))
        elif kind == 2:
            self.do(thread, "cspecialrw", 0, SPECIAL_NUMBERS["ddc"], CODE)
        else:
            self.do(thread, "csc", CODE, self.one((0, 1, 2, 30)) * self.granule, orc.STACK)

    def pass_on(self) -> None:
        """A thread stores something, another one of the tenant's loads it."""
        of = self.tenant()
        one, other = self.systems.thread_of(of, 0), self.systems.thread_of(of, self.one((0, 1, 2)))
        place = self.one((0, 1, 2, 3)) * self.granule
        self.do(one, "csc", self.one(HELD), place, self.one((orc.STACK, orc.STACK, SHARED, KEPT)))
        self.do(other, "clc", self.one((KEPT, OTHER, LOADED, SHARED)), place, orc.STACK)
        self.use(other, self.one((KEPT, OTHER, LOADED, SHARED)))

    def use(self, thread: Indices, register: int) -> None:
        """Use what is in a register: for data, for capabilities, as it is or narrowed."""
        for name in self.rng.choice([self.load, self.store, "clc", "csc", "cincoffsetimm", "csealentry", "cgettag"], 2):
            match name:
                case "clc":
                    self.do(thread, "clc", self.one((SECOND, LOADED, KEPT)), self.one((0, 1, 4)) * self.granule, register)
                case "csc":
                    self.do(thread, "csc", self.one(HELD), self.one((0, 1, 4)) * self.granule, register)
                case "cincoffsetimm":
                    self.do(thread, "cincoffsetimm", SECOND, register, self.one((0, 8, 16, -16, 2047)))
                case "csealentry":
                    self.do(thread, "csealentry", SECOND, register)
                case "cgettag":
                    self.do(thread, "cgettag", NUMBER, register)
                case _:
                    self.do(thread, str(name), VALUE, self.one((0, 8, 64)), register)

    # -- the end of things -------------------------------------------------------------------------------------------------

    def unmap(self) -> None:
        """A tenant keeps what leads to an object and to its shadow, is done with it, and uses what it kept."""
        of = self.tenant()
        thread, slot = self.thread(of), self.mapped(of)
        self.shadow(thread, slot)
        self.ask(thread, "bind", slot, self.exported(slot))
        self.do(thread, "csc", self.one((SHARED, CODE, DATA)), self.one((0, 1, 2)) * self.granule, orc.STACK)
        self.do(thread, "cmove", KEPT, self.one((SHARED, CODE, DATA)))
        if self.chance(0.4):
            # Another thread of the tenant's is in the object then.
            self.enter(self.systems.thread_of(of, self.one((0, 1, 2))), slot)
        self.ask(thread, "unmap", slot)
        self.use(thread, self.one((SHARED, KEPT)))
        self.do(thread, "cinvoke", CODE, DATA)
        self.leave(thread)
        if self.chance(0.5):
            self.ask(self.thread(), "allocate", self.slot(SlotKind.FREE))

    def deploy(self) -> None:
        """The base ends a tenant, and makes it anew, or another one; it frees objects."""
        kind = int(self.rng.integers(4))
        if kind == 0:
            tenant = self.each(range(1, self.systems.deployment.tenants + 2))
            self.ask(None, "destroy", tenant, share=0.7)
            self.ask(None, "collect", self.slot(SlotKind.OBJECT))
            self.ask(None, "create", tenant, self.slot(SlotKind.FREE), self.slot(SlotKind.FREE), share=0.95)
            for number in range(1, self.systems.deployment.tenants + 1):
                self.begin_anew(self.systems.thread_of(number))
        elif kind == 1:
            self.ask(
                None, "create", self.each([1, 2, 3, 4, 8]), self.slot(SlotKind.FREE), self.slot(SlotKind.FREE), share=0.3
            )
        else:
            self.ask(None, "collect", self.slot(SlotKind.OBJECT))

    def reborn(self) -> None:
        """A tenant ends while a thread of it is in an object, is made anew, uses the object again, and is done with it."""
        of = self.tenant()
        slot = self.mapped(of)
        self.enter(self.systems.thread_of(of), slot)
        homes, arrays = (self.batch.tenants[name][:, of].copy() for name in ("home", "tls"))
        self.ask(None, "destroy", of, share=0.5)
        self.ask(None, "create", of, homes, arrays)
        thread = self.systems.thread_of(of)
        self.begin_anew(thread)
        self.ask(thread, "map", slot, self.of_slot("identity", slot), self.slot(SlotKind.FREE))
        self.ask(thread, "unmap", slot, share=0.7)

    # -- hostile programs --------------------------------------------------------------------------------------------------

    def as_another(self) -> None:
        """A thread says that it is another tenant's, and asks for something."""
        thread = self.thread()
        self.do(thread, "li", orc.IDENTITY, self.each([1, 2, 3, 0, MAX_TENANTS + 1]))
        if self.chance(0.5):
            self.ask(thread, "allocate", self.slot(SlotKind.FREE))
        else:
            self.any_operation(thread)

    def elsewhere(self) -> None:
        """A thread lets TP point elsewhere before it maps an object, and writes to the array."""
        of = self.tenant()
        thread = self.systems.thread_of(of)
        kept = self.chance(0.5)
        self.do(thread, "cmove", OTHER, orc.THREAD_POINTER)
        if self.chance(0.5):
            self.do(thread, "csc", self.one(HELD), self.one((0, 4, 6)) * self.granule, orc.THREAD_POINTER)
        place = self.base_of(self.each(range(self.batch.slot_count))) + self.each([0, self.granule, 8, 64])
        self.do(thread, "li", orc.THREAD_POINTER, place & np.uint64(self.fmt.address_mask))
        self.map_object(of)
        if kept:
            self.do(thread, "cmove", orc.THREAD_POINTER, OTHER)

    def mixed_pair(self) -> None:
        """Halves of entries of different objects, or of different places, or changed, are invoked together."""
        of = self.tenant()
        thread, one, other = self.thread(of), self.mapped(of), self.mapped(of)
        self.ask(thread, "bind", one, self.exported(one))
        self.do(thread, "cmove", KEPT, CODE)
        self.do(thread, "cmove", OTHER, DATA)
        self.ask(thread, "bind", other, self.mixed(self.exported(other), self.each([0, 2, 4, 62, 64, 1]), 0.4))
        code, data = self.one(((KEPT, DATA), (CODE, OTHER), (KEPT, OTHER), (OTHER, KEPT)))
        self.do(thread, "cinvoke", code, data)
        self.use(thread, orc.INVOKED_DATA)
        self.leave(thread)

    def forged(self) -> None:
        """What isn't mapped, exported or published is bound or mapped."""
        thread = self.thread()
        self.ask(thread, "bind", self.slot(*SlotKind), self.each([0, 0, 2, 4, 1022, 1]))
        self.do(thread, "cinvoke", CODE, DATA)
        self.ask(thread, "submit", self.slot(*SlotKind, odd=0.2), self.granule, self.granule, 0)
        slot = self.slot(SlotKind.SUBMITTED, SlotKind.OWN, SlotKind.FREE)
        self.ask(thread, "map", slot, self.of_slot("identity", slot), self.slot(SlotKind.FREE, odd=0.1))
        self.ask(thread, "allocate", self.slot(*SlotKind))
        self.leave(thread)

    def any_operation(self, thread: Indices | None = None) -> None:
        """Some operation, each in turn, with drawn operands; one of them now and then odd."""
        name = list(OPERATIONS)[self.turn("operation") % len(OPERATIONS)]
        row = OPERATIONS[name]
        operands = [self.operand(name, kind) for _name, kind in row.operands]
        if name == "map":
            operands[1] = self.mixed(self.of_slot("identity", operands[0]), operands[1], 0.2)
        if self.chance(0.3):
            place = int(self.rng.integers(len(operands)))
            operands[place] = self.mixed(operands[place], self.each(ODD), 0.3)
        who = None if row.actor is Actor.BASE else self.thread() if thread is None else thread
        self.ask(who, name, *operands, share=0.4 if name == "destroy" else 1.0)

    def operand(self, name: str, kind: OperandKind) -> Words:
        """An operand of some kind, most often one that is there."""
        kinds = {
            "allocate": (SlotKind.FREE,),
            "create": (SlotKind.FREE,),
            "submit": (SlotKind.OWN,),
            **dict.fromkeys(("relocate", "export", "publish", "withdraw"), (SlotKind.SUBMITTED,)),
        }
        draw: dict[OperandKind, Callable[[], Words]] = {
            OperandKind.TENANT: lambda: self.each([1, 2, 3, 4, 0, MAX_TENANTS + 1]),
            OperandKind.SLOT: lambda: self.slot(*kinds.get(name, (SlotKind.OBJECT,)), odd=0.2),
            OperandKind.SIZE: lambda: self.each([0, 1, 2, 4, 4, 8]) * np.uint64(self.granule),
            OperandKind.OFFSET: lambda: self.each([0, 1, 2, 4, 5, 6]) * np.uint64(self.granule),
            OperandKind.RELOCATION: lambda: self.each([0, 1, 2, 3, 3, 4, 5]),
            OperandKind.IDENTITY: lambda: self.each([0, 1, 5]),
        }
        return draw[kind]()

    # -- instructions ------------------------------------------------------------------------------------------------------

    def instruction(self) -> None:
        """Some instructions of the table, each of a group in turn, on registers that hold something."""
        for _ in range(4):
            groups = list(Group)
            group = groups[self.turn("group") % len(groups)]
            names = [row.name for row in instructions_of(self.fmt) if row.group is group]
            if names:
                self.execute(self.thread(), names[self.turn(group.value) % len(names)])

    def execute(self, thread: Indices, name: str) -> None:
        """An instruction with drawn operands."""
        operands: list[int] = []
        for kind in INSTRUCTIONS[name].operands:
            if kind.is_destination:
                operands.append(self.one([SHARED, NUMBER, VALUE, KEPT, OTHER, LOADED, SECOND]))
            elif kind.is_register:
                operands.append(self.one(HELD) if kind.is_capability else self.one([NUMBER, VALUE, *HELD]))
            elif kind is Kind.VALUE:
                operands.append(self.one([0, 8, 64, 0x8000_0000, 0x8000_1000, int(Permission.LOAD)]))
            else:
                operands.append(draw_immediate(kind, self.rng, self.fmt))
        self.do(thread, name, *operands)
        pcc = self.batch.harts.tags[PCC, self.systems.harts_of(thread)]
        if INSTRUCTIONS[name].group is Group.CONTROL and pcc.any() and self.chance(0.7):
            self.leave(thread)

    # -- which -------------------------------------------------------------------------------------------------------------

    def moves(self) -> list[tuple[Callable[[], None], float]]:
        """All kinds of moves, and how often each is made beyond once a unit."""
        return [
            (self.work, 16),
            (self.instruction, 4 + 6 * self.hostility),
            (self.call, 5),
            (self.pass_on, 3),
            (self.load_object, 1.5),
            (self.map_object, 1),
            (self.unmap, 1),
            (self.start, 0.4),
            (self.deploy, 0.5),
            (self.reborn, 0.3),
            (self.as_another, 0.5 + self.hostility),
            (self.elsewhere, 0.5 + self.hostility),
            (self.mixed_pair, 0.5 + self.hostility),
            (self.forged, self.hostility),
            (self.any_operation, 1 + 2 * self.hostility),
        ]

    def make(self, count: int) -> None:
        """Make so many moves, or as many as it takes until all lanes differ."""
        make(self.order(self.moves(), count), self.systems.alive.any)


def play(
    seed: Sequence[int],
    fmt: CapabilityFormat,
    lanes: int,
    moves: int,
    policy: ObjectPolicy = INTENDED,
    turn: int = 0,
    **options: Any,
) -> Systems:
    """Draw and make moves, in all lanes and on both implementations."""
    rng = np.random.default_rng(seed)
    systems = Systems(fmt, Deployment(SLOTS, int(rng.choice([2, 2, 3]))), lanes, policy, **options)
    mover = Mover(rng, systems, float(rng.choice([0.1, 0.6, 1.0])), turn)

    def all_moves() -> None:
        mover.set_up()
        mover.make(moves)

    exercise(systems, all_moves)
    return systems
