"""Shared objects: what the base refuses and what it does, step by step; and that its invariants hold whatever is done."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from capvisor.model import capability
from capvisor.model.memory import Memory
from capvisor.model.object_operations import OPERATION_RULES
from capvisor.model.object_system import instruction, perform, violated
from capvisor.model.object_tables import TenantThread
from capvisor.model.objects import ObjectMonitor
from capvisor.spec.formats import CC64, CC128
from capvisor.spec.object_policy import INTENDED, OBJECT_GUARDS, OBJECT_POLICIES, without
from capvisor.spec.orc import MAX_TENANTS, MAX_THREADS, OPERATIONS, SHAPE, Actor, Code, Relocation, SlotKind
from capvisor.spec.orc_invariants import ORC_INVARIANTS
from tests.unit.objects import ALICE, ALICES, BASE, BOB, BOBS, LIB, SLOTS, SPARE, Rig

CONST, OBJ, TLS, FUNC = Relocation.CONST, Relocation.OBJ, Relocation.TLS, Relocation.FUNC
FORMATS = pytest.mark.parametrize("fmt", [CC128, CC64], ids=lambda fmt: fmt.name)


def kind(rig: Rig, slot: int) -> SlotKind:
    return SlotKind(rig.monitor.slots[slot].kind)


# -- what is refused -------------------------------------------------------------------------------------------------------


def placed(rig: Rig) -> None:
    rig.place(rig.alice)


def loaded(rig: Rig) -> None:
    rig.load(rig.alice)


def mapped(rig: Rig) -> None:
    rig.load(rig.alice)
    rig.map(rig.alice, ALICES)


def entered(rig: Rig) -> None:
    mapped(rig)
    rig.enter(rig.alice)


def owned(rig: Rig) -> None:
    rig.must(rig.alice, "allocate", LIB)


def nothing(_rig: Rig) -> None:
    pass


def threads(rig: Rig) -> None:
    for _number in range(MAX_THREADS - 1):
        rig.must(rig.alice, "start", 0)


def many_objects(rig: Rig) -> None:
    """A slot behind those that TLS arrays have entries for."""
    rig.monitor = ObjectMonitor(Memory(CC128, BASE, 2 * SLOTS << 10))
    rig.must(None, "create", ALICE, 0, 1)
    rig.alice = rig.monitor.threads[0]
    rig.must(rig.alice, "allocate", SLOTS)


def identity(rig: Rig) -> int:
    return rig.monitor.slots[LIB].identity


Given = Callable[[Rig], None]
REFUSED: list[tuple[Given, str, tuple[Any, ...], Code]] = [
    (nothing, "allocate", (SLOTS,), Code.RANGE),
    (nothing, "allocate", (2,), Code.NOT_FREE),
    (owned, "allocate", (LIB,), Code.NOT_FREE),
    (owned, "submit", (SLOTS, 64, 0, 0), Code.RANGE),
    (owned, "submit", (LIB, 1025, 0, 0), Code.RANGE),
    (owned, "submit", (LIB, 64, 1025, 0), Code.RANGE),
    (owned, "submit", (LIB, 64, 0, 1025), Code.RANGE),
    (owned, "submit", (SPARE, 64, 0, 0), Code.NOT_OWNED),
    (owned, "submit", (0, 64, 0, 0), Code.NOT_OWNED),
    (owned, "submit", (2, 64, 0, 0), Code.NOT_OWNED),
    (placed, "submit", (LIB, 64, 0, 0), Code.NOT_OWNED),
    (loaded, "submit", (LIB, 64, 0, 0), Code.NOT_OWNED),
    (mapped, "submit", (ALICES, 64, 0, 0), Code.NOT_OWNED),
    (many_objects, "submit", (SLOTS, 64, 0, 0), Code.FULL),
    (owned, "submit", (LIB, 0, 16, 0), Code.SEGMENTS),
    (owned, "submit", (LIB, 68, 0, 0), Code.SEGMENTS),
    (owned, "submit", (LIB, 64, 8, 0), Code.SEGMENTS),
    (owned, "submit", (LIB, 64, 0, 8), Code.SEGMENTS),
    (owned, "submit", (LIB, 64, 512, 464), Code.SEGMENTS),
    (placed, "relocate", (SLOTS, TLS, 64, 96, 8), Code.RANGE),
    (owned, "relocate", (LIB, TLS, 64, 96, 8), Code.NOT_SUBMITTED),
    (loaded, "relocate", (LIB, TLS, 64, 96, 8), Code.NOT_SUBMITTED),
    (placed, "relocate", (LIB, 0, 64, 96, 8), Code.KIND),
    (placed, "relocate", (LIB, 5, 64, 96, 8), Code.KIND),
    (placed, "relocate", (LIB, TLS, 72, 96, 8), Code.RANGE),
    (placed, "relocate", (LIB, TLS, SLOTS << 10, 96, 8), Code.RANGE),
    (placed, "relocate", (LIB, TLS, 64, SLOTS << 10, 8), Code.RANGE),
    (placed, "relocate", (LIB, CONST, 64, 1, 1 << 13), Code.RANGE),
    (placed, "relocate", (LIB, TLS, 48, 96, 8), Code.TARGET),
    (placed, "relocate", (LIB, TLS, 96, 96, 8), Code.TARGET),
    (placed, "relocate", (LIB, FUNC, 64, 64, 0), Code.SOURCE),
    (placed, "relocate", (LIB, CONST, 64, 95, 2), Code.SOURCE),
    (placed, "relocate", (LIB, CONST, 64, 64, 0), Code.SOURCE),
    (placed, "relocate", (LIB, TLS, 64, 95, 8), Code.SOURCE),
    (placed, "relocate", (LIB, TLS, 64, 111, 2), Code.SOURCE),
    (placed, "relocate", (LIB, OBJ, 64, 96, 0), Code.SOURCE),
    (placed, "relocate", (LIB, OBJ, 64, 96, 8), Code.SHARED),
    (placed, "export", (SLOTS, 0), Code.RANGE),
    (placed, "export", (LIB, 1024), Code.RANGE),
    (placed, "export", (LIB, 3), Code.RANGE),
    (owned, "export", (LIB, 0), Code.NOT_SUBMITTED),
    (placed, "export", (LIB, 64), Code.ENTRY),
    (owned, "publish", (SLOTS,), Code.RANGE),
    (owned, "publish", (LIB,), Code.NOT_SUBMITTED),
    (loaded, "publish", (LIB,), Code.NOT_SUBMITTED),
    (owned, "withdraw", (SLOTS,), Code.RANGE),
    (loaded, "withdraw", (LIB,), Code.NOT_SUBMITTED),
    (loaded, "map", (SLOTS, identity, ALICES), Code.RANGE),
    (loaded, "map", (LIB, identity, SLOTS), Code.RANGE),
    (many_objects, "map", (SLOTS, 0, ALICES), Code.RANGE),
    (placed, "map", (LIB, identity, ALICES), Code.NO_OBJECT),
    (nothing, "map", (LIB, 0, ALICES), Code.NO_OBJECT),
    (mapped, "map", (LIB, identity, SPARE), Code.TAKEN),
    (loaded, "map", (LIB, lambda rig: identity(rig) ^ 1, ALICES), Code.IDENTITY),
    (loaded, "map", (LIB, identity, LIB), Code.NOT_FREE),
    (loaded, "map", (LIB, identity, 0), Code.NOT_FREE),
    (mapped, "bind", (SLOTS, 0), Code.RANGE),
    (mapped, "bind", (LIB, 1024), Code.RANGE),
    (mapped, "bind", (LIB, 1), Code.RANGE),
    (loaded, "bind", (LIB, 0), Code.NOT_MAPPED),
    (mapped, "bind", (LIB, 2), Code.ENTRY),
    (mapped, "unmap", (SLOTS,), Code.RANGE),
    (loaded, "unmap", (LIB,), Code.NOT_MAPPED),
    (entered, "unmap", (LIB,), Code.BUSY),
    (nothing, "start", (1024,), Code.RANGE),
    (nothing, "start", (1,), Code.RANGE),
    (threads, "start", (0,), Code.FULL),
    (nothing, "create", (3, SLOTS, 5), Code.RANGE),
    (nothing, "create", (3, 4, SLOTS), Code.RANGE),
    (nothing, "create", (3, 4, 4), Code.RANGE),
    (nothing, "create", (0, 4, 5), Code.RANGE),
    (nothing, "create", (MAX_TENANTS + 1, 4, 5), Code.RANGE),
    (nothing, "create", (ALICE, 4, 5), Code.TAKEN),
    (owned, "create", (3, LIB, 5), Code.NOT_FREE),
    (owned, "create", (3, 5, LIB), Code.NOT_FREE),
    (nothing, "destroy", (3,), Code.NO_TENANT),
    (nothing, "collect", (SLOTS,), Code.RANGE),
    (placed, "collect", (LIB,), Code.NO_OBJECT),
    (mapped, "collect", (LIB,), Code.BUSY),
]


@pytest.mark.parametrize(("given", "name", "operands", "code"), REFUSED)
def test_an_operation_is_refused_and_changes_nothing(given: Given, name: str, operands: Any, code: Code) -> None:
    rig = Rig()
    given(rig)
    numbers = [operand(rig) if callable(operand) else operand for operand in operands]
    thread = rig.alice if OPERATIONS[name].actor is Actor.TENANT else None
    registers = list(rig.alice.hart.registers)
    assert rig.do(thread, name, *numbers).code is code
    assert list(rig.alice.hart.registers) == registers


def test_the_table_says_what_each_operation_is_refused_for() -> None:
    found = {(name, code) for _given, name, _operands, code in REFUSED}
    said = {(row.name, code) for row in OPERATIONS.values() for code in row.refusals}
    # Who has a thread is a tenant, as long as the thread says whose it is.
    no_tenant = {(row.name, Code.NO_TENANT) for row in OPERATIONS.values() if row.actor is Actor.TENANT}
    assert found | no_tenant == said


def test_whoever_names_nobody_is_refused_where_the_callers_number_counts() -> None:
    rig = Rig(without("caller_from_thread"))
    placed(rig)
    rig.execute(rig.alice, "li", 10, 7)
    for name, operands in (
        ("allocate", (SPARE,)),
        *(("submit", (LIB, 64, 0, 0)), ("relocate", (LIB, TLS, 64, 96, 8)), ("export", (LIB, 0)), ("publish", (LIB,))),
        *(("withdraw", (LIB,)), ("map", (LIB, 0, SPARE)), ("bind", (LIB, 0)), ("unmap", (LIB,)), ("start", (0,))),
    ):
        assert rig.do(rig.alice, name, *operands).code is Code.NO_TENANT


@pytest.mark.parametrize("base", [BASE + 16, BASE + SHAPE.slot_bytes // 2])
def test_memory_begins_with_a_slot(base: int) -> None:
    with pytest.raises(ValueError, match="a multiple of a slot's 1024 bytes"):
        ObjectMonitor(Memory(CC128, base, 1 << 14))


# -- what is done ----------------------------------------------------------------------------------------------------------


def test_every_operation_has_a_rule_and_every_rule_an_operation() -> None:
    assert OPERATION_RULES.keys() == OPERATIONS.keys()
    with pytest.raises(KeyError):
        perform(Rig().monitor, None, "free")


@FORMATS
def test_a_tenant_starts_with_its_home_its_array_and_its_number(fmt) -> None:
    rig = Rig(fmt=fmt)
    monitor, hart = rig.monitor, rig.bob.hart
    assert hart.registers[2].bounds == (monitor.slot_base(2), monitor.slot_base(3))
    assert hart.registers[4].bounds == (monitor.slot_base(3), monitor.slot_base(3) + 16 * rig.granule)
    assert hart.registers[10].address == BOB and not hart.ddc.tag
    assert sum(cap.tag for cap in hart.registers) == 2
    assert (kind(rig, 2), kind(rig, 3)) == (SlotKind.HOME, SlotKind.TLS)


@FORMATS
def test_two_tenants_have_a_global_each_and_read_one_constant(fmt) -> None:
    rig = Rig(fmt=fmt)
    rig.place(rig.alice)
    rig.must(rig.alice, "relocate", LIB, CONST, rig.code + rig.granule, 0, rig.granule)
    rig.must(rig.alice, "publish", LIB)
    rig.map(rig.alice, ALICES)
    rig.map(rig.bob, BOBS)
    place = rig.code + rig.ro
    assert [rig.word(slot, place) for slot in (LIB, ALICES, BOBS)] == [5, 5, 5]
    assert rig.execute(rig.alice, "clc", 11, LIB * rig.granule, 4) is None
    rig.put(rig.alice, place, 9)
    assert [rig.word(slot, place) for slot in (LIB, ALICES, BOBS)] == [5, 9, 5]
    for thread in (rig.alice, rig.bob):
        rig.enter(thread)
        assert rig.monitor.executes(thread, LIB) and thread.hart.pc == rig.monitor.slot_base(LIB)
        assert rig.execute(thread, "clc", 5, rig.code + rig.granule, 31) is None
        assert thread.hart.registers[5].bounds == (rig.monitor.slot_base(LIB), rig.monitor.slot_base(LIB) + rig.granule)
        assert rig.execute(thread, "sw.cap", 0, 5) is not None


def test_each_thread_finds_the_shadow_also_one_that_is_started_later() -> None:
    rig = Rig()
    rig.must(rig.alice, "start", 0)
    mapped(rig)
    rig.must(rig.alice, "start", 4)
    threads_of_alice = [thread for thread in rig.monitor.threads if thread.tenant == ALICE]
    assert [thread.place for thread in threads_of_alice] == [0, 1, 2]
    assert rig.alice.hart.registers[11].address == 3 and threads_of_alice[2].hart.pc == BASE + 4
    for thread in threads_of_alice:
        assert rig.execute(thread, "clc", 5, LIB * 16, 4) is None
        assert thread.hart.registers[5].base == rig.monitor.slot_base(ALICES)
    assert not rig.entry(BOB).tag


def test_submitting_takes_all_that_leads_to_the_slot_from_all_threads_and_from_memory() -> None:
    rig = Rig()
    rig.must(rig.alice, "start", 0)
    other = rig.monitor.threads[2]
    owned(rig)
    assert rig.execute(rig.alice, "csc", 11, 0, 2) is None
    assert rig.execute(other, "clc", 5, 0, 2) is None
    assert rig.execute(other, "csealentry", 6, 5) is None
    assert rig.execute(rig.alice, "csc", 2, 16, 11) is None
    rig.must(rig.alice, "submit", LIB, 64, 0, 0)
    assert not any(cap.tag and rig.monitor.slot_of(cap.base) == LIB for cap in other.hart.registers)
    assert not rig.alice.hart.registers[11].tag and rig.alice.hart.registers[2].tag
    assert not rig.monitor.granule(0).tag and not rig.monitor.granule(rig.monitor.first_granule(LIB) + 1).tag


def test_a_withdrawn_image_is_the_tenants_again_without_what_was_minted() -> None:
    rig = Rig()
    placed(rig)
    rig.must(rig.alice, "relocate", LIB, FUNC, 64, 0, 0)
    assert rig.monitor.granule(rig.monitor.first_granule(LIB) + 4).tag
    rig.must(rig.alice, "withdraw", LIB)
    assert kind(rig, LIB) is SlotKind.OWN and rig.alice.hart.registers[11].base == rig.monitor.slot_base(LIB)
    assert not rig.monitor.granule(rig.monitor.first_granule(LIB) + 4).tag
    rig.must(rig.alice, "submit", LIB, 64, 32, 16)
    rig.must(rig.alice, "publish", LIB)
    rig.map(rig.alice, ALICES)
    assert rig.do(rig.alice, "bind", LIB, 0).code is Code.ENTRY  # what it exported before counts no more


def test_unmapping_leaves_nothing_and_the_slot_can_be_given_away() -> None:
    rig = Rig()
    mapped(rig)
    rig.map(rig.bob, BOBS)
    rig.must(rig.alice, "bind", LIB, 0)
    assert rig.execute(rig.alice, "clc", 5, LIB * 16, 4) is None
    assert rig.execute(rig.alice, "csc", 5, 0, 2) is None
    assert rig.execute(rig.alice, "csc", 11, 16, 2) is None
    rig.must(rig.alice, "unmap", LIB)
    held = [*rig.alice.hart.registers, *(rig.monitor.granule(index) for index in range(2 * 64))]
    assert {rig.monitor.slot_of(cap.base) for cap in held if cap.tag} == {0, 1}
    assert not rig.entry(ALICE).tag and rig.entry(BOB).tag
    assert kind(rig, ALICES) is SlotKind.FREE and kind(rig, LIB) is SlotKind.OBJECT
    rig.must(rig.bob, "allocate", ALICES)
    assert rig.word(ALICES, rig.code + rig.ro) == 0


def test_the_end_of_a_tenant_frees_all_its_slots_and_objects_that_nobody_else_uses() -> None:
    rig = Rig()
    mapped(rig)
    rig.must(rig.alice, "allocate", SPARE)
    rig.place(rig.alice, 8)
    rig.must(None, "destroy", ALICE)
    assert {slot: kind(rig, slot) for slot in range(9) if kind(rig, slot) is not SlotKind.FREE} == {
        2: SlotKind.HOME,
        3: SlotKind.TLS,
        LIB: SlotKind.OBJECT,
    }
    assert not rig.alice.is_live
    rig.must(None, "collect", LIB)
    rig.must(None, "create", ALICE, LIB, 0)
    assert rig.monitor.threads[-1].place == 0


def test_an_entry_is_sealed_for_its_object_alone() -> None:
    rig = Rig()
    mapped(rig)
    rig.load(rig.alice, 8)
    rig.map(rig.alice, 9, 8)
    rig.must(rig.alice, "bind", LIB, 0)
    code, data = rig.alice.hart.registers[11:13]
    rig.must(rig.alice, "bind", 8, 0)
    assert code.otype == data.otype != rig.alice.hart.registers[11].otype
    assert capability.equal(data, rig.monitor.entry_pair(LIB, 0)[1])


def test_the_identity_is_that_of_bytes_segments_relocations_and_exports_in_their_order() -> None:
    def made(*asked: tuple[Any, ...], word: int = 5, data: int = 16, slot: int = LIB) -> int:
        rig = Rig()
        rig.must(rig.alice, "allocate", slot)
        rig.put(rig.alice, 96, word)
        rig.must(rig.alice, "submit", slot, 64, 32, data)
        for name, *operands in asked:
            rig.must(rig.alice, name, slot, *operands)
        rig.must(rig.alice, "publish", slot)
        return rig.monitor.slots[slot].identity

    first, second, place = ("relocate", TLS, 64, 96, 8), ("relocate", TLS, 80, 96, 8), ("export", 0)
    different = [
        made(),
        made(word=6),
        made(data=0),
        made(first),
        made(second),
        made(first, second),
        made(second, first),
        made(place),
        made(("export", 2)),
        made(("relocate", FUNC, 64, 96 - 96, 8)),
        made(first, place),
    ]
    assert len(set(different)) == len(different)
    assert made(first, place, slot=SPARE) == made(first, place)


def test_guards_and_presets_are_named() -> None:
    assert {name for name, policy in OBJECT_POLICIES.items() if policy is INTENDED} == {"intended"}
    assert all(getattr(INTENDED, name) for name in OBJECT_GUARDS)
    assert not without("tags_cleared").tags_cleared
    with pytest.raises(KeyError):
        without("tag_cleared")


# -- whatever is done ------------------------------------------------------------------------------------------------------


class Walk:
    """Steps drawn at random, most of them such as have a chance; every one is held against all invariants."""

    def __init__(self, seed: int, fmt: Any) -> None:
        self.random, self.rig = random.Random(seed), Rig(fmt=fmt)
        self.monitor, self.granule = self.rig.monitor, fmt.capability_bytes
        self.done: Counter[str] = Counter()

    def slot(self, *kinds: SlotKind) -> int:
        """A slot of a kind, mostly."""
        fitting = [slot for slot in range(SLOTS) if self.monitor.slots[slot].kind in kinds]
        return self.random.choice(fitting) if fitting and self.random.random() < 0.9 else self.random.randrange(SLOTS + 1)

    def offset(self) -> int:
        return self.random.choice([*(self.granule * number for number in range(9)), 2, 8, self.random.randrange(1100)])

    def operands(self, name: str) -> tuple[int, ...]:
        draw, image, free = self.random, self.slot(SlotKind.SUBMITTED), self.slot(SlotKind.FREE)
        target = self.slot(SlotKind.OBJECT)
        match name:
            case "allocate":
                return (free,)
            case "submit":
                sizes = (4 * self.granule, 2 * self.granule, self.granule)
                return (self.slot(SlotKind.OWN), *(size if draw.random() < 0.9 else self.offset() for size in sizes))
            case "relocate":
                table = self.granule * draw.choice((4, 4, 5, 6))
                kind = draw.choice((CONST, TLS, FUNC, OBJ, 0))
                address = 6 * self.granule if kind in (TLS, OBJ) and draw.random() < 0.8 else self.offset()
                return image, int(kind), table, address, draw.choice((8, self.granule, 0))
            case "export":
                return image, draw.choice((0, 0, 2, self.offset()))
            case "publish" | "withdraw":
                return (image,)
            case "map":
                expected = self.monitor.slots[target].identity if target < SLOTS else 0
                return target, expected ^ (draw.random() < 0.1), free
            case "bind":
                return target, draw.choice((0, 0, 2, self.offset()))
            case "unmap" | "collect":
                return (target,)
            case "start":
                return (self.offset(),)
            case "create":
                return draw.randrange(4), free, self.slot(SlotKind.FREE)
        return (draw.randrange(4),)

    def instruction(self, thread: TenantThread) -> tuple[str, tuple[int, ...]]:
        draw = self.random
        tagged = [number for number in range(32) if thread.hart.registers[number].tag] or [4]

        def cap() -> int:
            return draw.choice(tagged) if draw.random() < 0.9 else draw.randrange(32)

        to, place = draw.choice((4, 5, 6, 7, 8, 31)), self.granule * draw.randrange(64)
        return draw.choice(
            [
                *(("clc", (to, place, cap())), ("csc", (cap(), place, cap())), ("sw.cap", (cap(), cap()))),
                *(("csetaddr", (to, cap(), cap())), ("csetbounds", (to, cap(), cap())), ("candperm", (to, cap(), cap()))),
                *(("cincoffsetimm", (to, cap(), place)), ("csealentry", (to, cap())), ("cspecialrw", (to, 1, cap()))),
                *(("auipcc", (to, 0)), ("cjalr", (to, 0, cap())), ("cinvoke", (11, 12)), ("cinvoke", (cap(), cap()))),
                *(("li", (to, draw.randrange(1 << 10))), ("csetboundsimm", (to, cap(), draw.randrange(64)))),
            ]
        )

    def step(self) -> None:
        draw, threads_now = self.random, [thread for thread in self.monitor.threads if thread.is_live]
        if not threads_now or draw.random() < 0.04:
            name = draw.choice(("create", "create", "destroy", "collect", "collect"))
            step = perform(self.monitor, None, name, *self.operands(name))
        else:
            thread = draw.choice(threads_now)
            if draw.random() < 0.5:
                name = draw.choice([row.name for row in OPERATIONS.values() if row.actor is Actor.TENANT])
                step = perform(self.monitor, thread, name, *self.operands(name))
            else:
                name, operands = self.instruction(thread)
                step, _trap = instruction(self.monitor, thread, name, operands)
        self.done[step.name] += step.is_completed
        assert not violated(step), (step.name, step.operands, step.code, violated(step))


@FORMATS
def test_every_invariant_holds_after_every_step_whatever_is_done(fmt) -> None:
    walk = Walk(40, fmt)
    mapped(walk.rig)
    walk.rig.place(walk.rig.bob, SPARE)
    for _number in range(160):
        walk.step()
    completed = {name for name, count in walk.done.items() if count}
    said = {"allocate", "submit", "export", "publish", "withdraw", "map", "bind", "unmap", "start", "destroy"}
    assert said | {"clc", "csc", "cinvoke", "csetbounds", "cspecialrw"} <= completed, completed


@pytest.mark.parametrize("name", ORC_INVARIANTS)
def test_an_invariant_holds_of_a_refused_step_of_an_empty_system(name: str) -> None:
    monitor = ObjectMonitor(Memory(CC128, BASE, SLOTS << 10))
    assert name not in violated(perform(monitor, None, "destroy", ALICE))
