"""The invariants of object reuse with capabilities, O1 to O17, predicates on a step of the system, each said once.

A predicate is a function of a step (`Step`) and of a place: any tenant and slot, another tenant and slot, a place in the
first slot, any thread of the first tenant, a register and a granule. It holds if it holds at every place. It is checked
while running, and proved.

A tenant's *own* slots are those of the kinds `PRIVATE` that it is the owner of: what lies in them is its memory. What a
tenant *holds* is in a register of a live thread of it, in that thread's DDC, or in its memory.
"""

# ruff: noqa: ARG001 - a predicate takes a place, whether it looks at it or not

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from capvisor.spec import orc
from capvisor.spec.cvm_invariants import POWERS, is_empty, lacks, sound_harts
from capvisor.spec.formats import Permission
from capvisor.spec.invariants import authorises, implies, not_, same, same_bits
from capvisor.spec.orc import NOBODY, PERMITTED, PRIVATE, Code, SlotKind

Monitor = Any
Cap = Any

_ALL = Permission(0xFFF)


class Before(NamedTuple):
    """The state before a step: the tables, and how a granule is looked up by its index."""

    slots: Any
    mappings: Any
    tenants: Any
    exports: Any
    granule: Callable[[Any], Cap]
    thread: Callable[[Any], Any] = lambda _thread: None
    """A thread as it was; None where that isn't known."""


class Step(NamedTuple):
    """A step of the system: the instruction or operation, for whom, how it ended, and the states before and after it."""

    monitor: Monitor
    """The base, after the step."""
    before: Before
    kind: str
    """"instruction" or "operation"."""
    name: str
    tenant: Any = NOBODY
    """Whose thread took the step; NOBODY: the base."""
    thread: Any = None
    operands: tuple[Any, ...] = ()
    code: Any = Code.OK
    is_completed: bool = True


class Place(NamedTuple):
    """Anywhere; `entry` is an offset within the slot. Without a thread, a granule or a byte, none is looked at."""

    tenant: Any = 1
    slot: Any = 0
    other: Any = 1
    other_slot: Any = 0
    entry: Any = 0
    thread: Any = None
    register: Any = 0
    granule: Any = None
    byte: Any = None
    """An address."""


# -- where things are ------------------------------------------------------------------------------------------------------


def is_in_slot(monitor: Monitor, cap: Cap, slot: Any) -> Any:
    """Whether the bounds are within a slot."""
    base, top = cap.bounds
    first = monitor.slot_base(slot)
    return (first <= base) & (top <= first + monitor.shape.slot_bytes)


def slot_of(monitor: Monitor, cap: Cap) -> Any:
    """The slot that a capability's base is in."""
    return monitor.slot_of(cap.base)


def is_own(row: Any, tenant: Any) -> Any:
    """Whether a slot is a tenant's own."""
    holds: Any = False
    for kind in PRIVATE:
        holds = holds | (row.kind == kind)
    return holds & (row.owner == tenant) & (tenant != NOBODY)


def is_image(row: Any) -> Any:
    """Whether a slot holds an object, or what may become one."""
    return (row.kind == SlotKind.SUBMITTED) | (row.kind == SlotKind.OBJECT)


def may_use(step: Step, tenant: Any, slot: Any) -> Any:
    """Whether a tenant may use what is in a slot: its own, or an object that it has mapped."""
    row = step.monitor.slots[slot]
    mapped = (row.kind == SlotKind.OBJECT) & step.monitor.mappings[tenant, slot].is_live
    return is_own(row, tenant) | mapped


def is_authorised(step: Step, tenant: Any, cap: Cap) -> Any:
    """Whether a tenant may hold a capability: within a slot that it may use, with what is permitted there; or to nothing."""
    slot = slot_of(step.monitor, cap)
    row = step.monitor.slots[slot]
    fits: Any = is_in_slot(step.monitor, cap, slot) & may_use(step, tenant, slot)
    for kind, permitted in PERMITTED.items():
        fits = fits & implies(row.kind == kind, lacks(cap, _ALL & ~permitted))
    return lacks(cap, POWERS) & (is_empty(cap) | fits)


def in_registers(step: Step, place: Place) -> Iterator[Cap]:
    """What a tenant holds in a register of a thread, and in its DDC."""
    thread = place.thread
    if thread is not None:
        runs = thread.is_live & (thread.tenant == place.tenant)
        yield thread.hart.registers[place.register].tagged_if(runs)
        yield thread.hart.ddc.tagged_if(runs)


def in_memory(step: Step, place: Place) -> Iterator[Cap]:
    """What a tenant holds in a granule."""
    if place.granule is not None:
        row = step.monitor.slots[step.monitor.slot_of_granule(place.granule)]
        yield step.monitor.granule(place.granule).tagged_if(is_own(row, place.tenant))


def every(caps: Iterator[Cap], holds: Callable[[Cap], Any]) -> Any:
    """Whether something holds of all capabilities that are tagged."""
    result: Any = True
    for cap in caps:
        if cap.tag is not False:
            result = result & implies(cap.tag, holds(cap))
    return result


def held(step: Step, place: Place) -> Iterator[Cap]:
    """What a tenant holds at a place."""
    yield from in_registers(step, place)
    yield from in_memory(step, place)


def same_rows(one: Any, other: Any) -> Any:
    """Whether two rows are the same in each part."""
    holds: Any = True
    for left, right in zip(one, other, strict=True):
        holds = holds & (left == right)
    return holds


def is_unchanged(step: Step, granule: Any) -> Any:
    """Whether a granule is as it was."""
    return same(step.before.granule(granule), step.monitor.granule(granule))


# -- the invariants --------------------------------------------------------------------------------------------------------


def frozen(step: Step, place: Place) -> Any:
    """O1."""
    if place.granule is None:
        return True
    slot = step.monitor.slot_of_granule(place.granule)
    was, now = step.before.slots[slot], step.monitor.slots[slot]
    still = (was.kind == SlotKind.OBJECT) & (now.kind == SlotKind.OBJECT)
    return implies(still, is_unchanged(step, place.granule))


def no_store(step: Step, place: Place) -> Any:
    """O2."""

    def only_reads(cap: Cap) -> Any:
        row = step.monitor.slots[slot_of(step.monitor, cap)]
        return implies(is_image(row) & not_(is_empty(cap)), lacks(cap, orc.STORE_PERMISSIONS))

    return every(held(step, place), only_reads)


def shadows_apart(step: Step, place: Place) -> Any:
    """O3."""
    monitor = step.monitor
    one, other = monitor.mappings[place.tenant, place.slot], monitor.mappings[place.other, place.other_slot]
    row = monitor.slots[one.shadow]
    is_shadow = (row.kind == SlotKind.SHADOW) & (row.owner == place.tenant) & (row.object == place.slot)
    differ = (place.tenant != place.other) | (place.slot != place.other_slot)
    return implies(one.is_live, is_shadow) & implies(one.is_live & other.is_live & differ, one.shadow != other.shadow)


def thread_local(step: Step, place: Place) -> Any:
    """O4."""
    monitor = step.monitor

    def only_reads(cap: Cap) -> Any:
        row = monitor.slots[slot_of(monitor, cap)]
        return implies((row.kind == SlotKind.TLS) & not_(is_empty(cap)), lacks(cap, orc.STORE_PERMISSIONS))

    holds = every(held(step, place), only_reads)
    if place.granule is None:
        return holds
    slot = monitor.slot_of_granule(place.granule)
    row, entry = monitor.slots[slot], monitor.granule(place.granule)
    mapping = monitor.mappings[row.owner, monitor.object_of_granule(place.granule)]
    is_theirs = mapping.is_live & is_in_slot(monitor, entry, mapping.shadow) & not_(is_empty(entry))
    return holds & implies((row.kind == SlotKind.TLS) & entry.tag, is_theirs)


def registers(step: Step, place: Place) -> Any:
    """O5."""
    return every(in_registers(step, place), lambda cap: is_authorised(step, place.tenant, cap))


def memory(step: Step, place: Place) -> Any:
    """O6."""
    return every(in_memory(step, place), lambda cap: is_authorised(step, place.tenant, cap))


def refused_changes_nothing(step: Step, place: Place) -> Any:
    """O7."""
    if step.kind != "operation" or step.code is Code.OK:
        return True
    monitor, before, key = step.monitor, step.before, (place.tenant, place.slot)
    holds = same_rows(before.slots[place.slot], monitor.slots[place.slot])
    holds = holds & same_rows(before.mappings[key], monitor.mappings[key])
    holds = holds & same_rows(before.tenants[place.tenant], monitor.tenants[place.tenant])
    holds = holds & (before.exports[place.slot, place.entry] == monitor.exports[place.slot, place.entry])
    if place.granule is not None:
        holds = holds & is_unchanged(step, place.granule)
    return holds


def identity(step: Step, place: Place) -> Any:
    """O8."""
    row, mapping = step.monitor.slots[place.slot], step.monitor.mappings[place.tenant, place.slot]
    return implies(mapping.is_live, (row.kind == SlotKind.OBJECT) & (row.identity == mapping.identity))


def verified_after_last_write(step: Step, place: Place) -> Any:
    """O9."""
    if place.granule is None:
        return True
    slot = step.monitor.slot_of_granule(place.granule)
    was, now = step.before.slots[slot], step.monitor.slots[slot]
    still = (was.kind == SlotKind.SUBMITTED) & is_image(now)
    by_base = (step.kind == "operation") & (step.name == "relocate")
    return implies(still, is_unchanged(step, place.granule) | by_base)


def nothing_freed(step: Step, place: Place) -> Any:
    """O10."""

    def is_not_freed(cap: Cap) -> Any:
        return is_empty(cap) | (step.monitor.slots[slot_of(step.monitor, cap)].kind != SlotKind.FREE)

    return every(held(step, place), is_not_freed)


def one_object(step: Step, place: Place) -> Any:
    """O11."""
    thread, monitor = place.thread, step.monitor
    if thread is None:
        return True
    pcc = thread.hart.pcc
    slot = slot_of(monitor, pcc)
    row = monitor.slots[slot]
    runs = (row.kind == SlotKind.HOME) | (row.kind == SlotKind.OBJECT)
    in_one = is_in_slot(monitor, pcc, slot) & runs & may_use(step, thread.tenant, slot)
    in_one = in_one & implies(row.kind == SlotKind.OBJECT, lacks(pcc, orc.STORE_PERMISSIONS))
    in_one = (
        in_one
        & not_(is_empty(pcc))
        & not_(pcc.is_sealed)
        & lacks(pcc, _ALL & ~(orc.DATA_PERMISSIONS | orc.CODE_PERMISSIONS))
    )
    return implies(thread.is_live & (thread.tenant == place.tenant) & pcc.tag, in_one)


def others_memory(step: Step, place: Place) -> Any:
    """O12."""
    if place.granule is None:
        return True
    was = step.before.slots[step.monitor.slot_of_granule(place.granule)]
    theirs = (was.owner == step.tenant) & (step.tenant != NOBODY) | (was.kind == SlotKind.FREE)
    return theirs | is_unchanged(step, place.granule)


def entered_at_exports(step: Step, place: Place) -> Any:
    """O13."""
    if step.name != "cinvoke" or not step.is_completed:
        return True
    monitor, hart = step.monitor, step.thread.hart
    slot, data = slot_of(monitor, hart.pcc), hart.registers[orc.INVOKED_DATA]
    row, entry = monitor.slots[slot], hart.pc - monitor.slot_base(slot)
    at_export = monitor.exports[slot, entry] & (entry < row.code)
    mapped = (row.kind == SlotKind.OBJECT) & monitor.mappings[step.thread.tenant, slot].is_live
    return at_export & mapped & (slot_of(monitor, data) == slot)


def sealed_as_made(step: Step, place: Place) -> Any:
    """O14."""
    monitor = step.monitor

    def is_made(cap: Cap) -> Any:
        slot = slot_of(monitor, cap)
        row, entry = monitor.slots[slot], cap.address - monitor.slot_base(slot)
        code, data = monitor.entry_pair(slot, entry)
        exported = monitor.exports[slot, entry] & (entry < row.code)
        known = (row.kind == SlotKind.OBJECT) & monitor.mappings[place.tenant, slot].is_live
        # The type that tells objects apart, whatever the policy seals with.
        own_type = cap.otype == orc.FIRST_OTYPE + slot
        as_made = same_bits(cap, code) & exported | same_bits(cap, data)
        return cap.has_reserved_otype | known & own_type & as_made

    return every(held(step, place), is_made)


def images(step: Step, place: Place) -> Any:
    """O15."""
    if place.granule is None:
        return True
    monitor = step.monitor
    slot = monitor.slot_of_granule(place.granule)
    row, cap = monitor.slots[slot], monitor.granule(place.granule)
    offset = monitor.granule_address(place.granule) - monitor.slot_base(slot)
    in_table = (row.code <= offset) & (offset < row.code + row.ro)
    reads = lacks(cap, _ALL & ~PERMITTED[SlotKind.OBJECT]) & not_(cap.is_sealed)
    return implies(is_image(row) & cap.tag, is_in_slot(monitor, cap, slot) & reads & in_table)


def fresh(step: Step, place: Place) -> Any:
    """O16."""
    if place.granule is None:
        return True
    monitor = step.monitor
    slot = monitor.slot_of_granule(place.granule)
    was, now, found = step.before.slots[slot], monitor.slots[slot], monitor.granule(place.granule)
    given = (was.kind == SlotKind.FREE) & (now.kind != SlotKind.FREE)
    row = monitor.slots[now.object]
    offset = monitor.granule_address(place.granule) - monitor.slot_base(slot)
    in_data = (row.code + row.ro <= offset) & (offset < row.code + row.ro + row.data)
    source = monitor.granule(place.granule + (now.object - slot) * monitor.slot_granules)
    is_copy = (now.kind == SlotKind.SHADOW) & in_data & not_(found.tag) & same_bits(found, source)
    is_clear = not_(found.tag) & (found.meta == found.format.null_meta) & (found.address == 0)
    return implies(given, is_copy | is_clear)


def books(step: Step, place: Place) -> Any:
    """O17."""
    monitor, slot = step.monitor, place.slot
    row, tenant = monitor.slots[slot], monitor.tenants[place.tenant]
    home, tls = monitor.slots[tenant.home], monitor.slots[tenant.tls]
    has_home = (home.kind == SlotKind.HOME) & (home.owner == place.tenant)
    has_tls = (tls.kind == SlotKind.TLS) & (tls.owner == place.tenant)
    holds = implies(tenant.is_live, has_home & has_tls & (place.tenant != NOBODY))
    owner = monitor.tenants[row.owner]
    owned: Any = row.kind == SlotKind.SUBMITTED
    for kind in PRIVATE:
        owned = owned | (row.kind == kind)
    holds = holds & implies(owned, owner.is_live & (row.owner != NOBODY)) & implies(not_(owned), row.owner == NOBODY)
    holds = (
        holds & implies(row.kind == SlotKind.HOME, owner.home == slot) & implies(row.kind == SlotKind.TLS, owner.tls == slot)
    )
    mapping = monitor.mappings[row.owner, row.object]
    holds = holds & implies(row.kind == SlotKind.SHADOW, mapping.is_live & (mapping.shadow == slot))
    granule = monitor.format.capability_bytes - 1
    aligned = (row.code & granule == 0) & (row.ro & granule == 0) & (row.data & granule == 0)
    fits = (row.code > 0) & (row.code + row.ro + row.data <= monitor.shape.slot_bytes)
    numbered = orc.FIRST_OTYPE + slot <= monitor.format.max_otype
    holds = holds & implies(is_image(row), aligned & fits & numbered)
    in_code = (place.entry < row.code) & (place.entry & 1 == 0)
    holds = holds & implies(is_image(row) & monitor.exports[slot, place.entry], in_code)
    holds = holds & implies(row.kind != SlotKind.FREE, slot < monitor.slot_count)
    holds = holds & implies(monitor.mappings[place.tenant, slot].is_live, monitor.tenants[place.tenant].is_live)
    if place.thread is not None:
        holds = holds & implies(place.thread.is_live, monitor.tenants[place.thread.tenant].is_live)
    return holds


Predicate = Callable[[Step, Place], Any]


@dataclass(frozen=True)
class Invariant:
    """One invariant: its name and title, what it says, where it is from, and the predicate."""

    name: str
    title: str
    statement: str
    source: str
    holds: Predicate
    is_of_state: bool = True
    """Whether it speaks of the state after the step alone, and so can be supposed of the state before one."""


_OURS = "ours, after the ORC abstract (OSDI 2023) and lsds/intravisor 0.1.0"

ORC_INVARIANTS: dict[str, Invariant] = {
    row.name: row
    for row in (
        Invariant("O1", "frozen objects", "What is in an object never changes.", _OURS, frozen, False),
        Invariant(
            "O2",
            "no stores to objects",
            "Nothing that a tenant holds permits to store to an object, or to what may become one.",
            _OURS,
            no_store,
        ),
        Invariant(
            "O3",
            "shadows apart",
            "Each tenant's use of an object has a slot of its own, which is that tenant's shadow of that object.",
            _OURS,
            shadows_apart,
        ),
        Invariant(
            "O4",
            "thread-local storage",
            "What a TLS array has of an object is to the tenant's own shadow of it, and not empty; nothing that a tenant "
            "holds permits to store to one.",
            _OURS,
            thread_local,
        ),
        Invariant(
            "O5",
            "authority in registers",
            "What is in registers of a tenant's threads, also while they execute an object, is to one of the tenant's own "
            "slots or to an object that it has mapped, with no more than what is permitted there.",
            _OURS,
            registers,
        ),
        Invariant(
            "O6",
            "authority in memory",
            "No other capabilities are where a tenant can load them: what is in its memory is as O5 says of registers.",
            _OURS,
            memory,
        ),
        Invariant(
            "O7",
            "refusals",
            "A refused operation changes nothing.",
            _OURS,
            refused_changes_nothing,
            False,
        ),
        Invariant(
            "O8",
            "identity",
            "An object that a tenant has mapped has the content that the tenant expects.",
            _OURS,
            identity,
        ),
        Invariant(
            "O9",
            "verified after the last write",
            "From when an image is verified on, nothing in it changes but by relocations, which the base checks.",
            _OURS,
            verified_after_last_write,
            False,
        ),
        Invariant(
            "O10",
            "nothing to what was freed",
            "Nothing that a tenant holds is to a slot that is nobody's.",
            _OURS,
            nothing_freed,
        ),
        Invariant(
            "O11",
            "one object at a time",
            "A thread's PCC is unsealed, not empty, and lies in one slot: its tenant's home, or an object that the tenant "
            "has mapped, without stores; so PCC.base says which.",
            _OURS,
            one_object,
        ),
        Invariant(
            "O12",
            "others' memory",
            "A step changes memory only in slots that were the acting tenant's, or nobody's.",
            "ours: the write half of non-interference",
            others_memory,
            False,
        ),
        Invariant(
            "O13",
            "entries",
            "A completed CInvoke arrives at an export of an object that the tenant has mapped, with that object's data.",
            _OURS,
            entered_at_exports,
            False,
        ),
        Invariant(
            "O14",
            "sealed as made",
            "What a tenant holds sealed with an ordinary object type is half of an entry of an object that it has mapped, "
            "as the base makes it.",
            "ours: what O13 rests on",
            sealed_as_made,
        ),
        Invariant(
            "O15",
            "images",
            "A capability in an object, or in what may become one, is in its read-only segment, to the object itself, "
            "unsealed, and permits no store.",
            _OURS,
            images,
        ),
        Invariant(
            "O16",
            "fresh slots",
            "A slot that is given away is clear, but for what a shadow has of the object's initial data, and untagged.",
            _OURS,
            fresh,
            False,
        ),
        Invariant(
            "O17",
            "the base's books",
            "Owners of slots are live tenants, each with a home and a slot of TLS arrays; a shadow is that of a live "
            "mapping, a mapping a live tenant's; images fit into their slot and have an object type; their exports are in "
            "their code.",
            "ours: what the others rest on",
            books,
        ),
    )
}


def sound(step: Any, place: Any) -> Any:
    """M7 to M9, as of systems of cVMs."""
    return sound_harts(step, place)


SOUND = Invariant(
    "M8",
    "sound harts",
    "Every tagged capability in a thread's registers, DDC, PCC or in memory is sound; c0 is NULL, pc is even, and threads "
    "are in user mode.",
    "M7 to M9 of spec/invariants.py, for the base's steps too: what proofs about systems suppose of every state",
    sound,
)


# -- non-interference ------------------------------------------------------------------------------------------------------


def concerned(step: Step) -> Any:
    """The tenant that a step is of: whose thread takes it, or whom the base makes or ends."""
    return step.operands[0] if step.name in ("create", "destroy") else step.tenant


def others_state(step: Step, place: Place) -> Any:
    """Local respect: what another tenant has, and what it has mapped, is as it was."""
    before, after, tenant, slot = step.before, step.monitor, place.tenant, place.slot

    def is_theirs(number: Any) -> Any:
        row = before.slots[number]
        mapped = (row.kind == SlotKind.OBJECT) & before.mappings[tenant, number].is_live
        return (row.kind != SlotKind.FREE) & (row.owner == tenant) & (row.kind != SlotKind.OBJECT) | mapped

    key = (tenant, slot)
    row_kept = same_rows(before.slots[slot], after.slots[slot])
    row_kept = row_kept & (before.exports[slot, place.entry] == after.exports[slot, place.entry])
    holds = same_rows(before.tenants[tenant], after.tenants[tenant]) & implies(is_theirs(slot), row_kept)
    holds = holds & same_rows(before.mappings[key], after.mappings[key])
    if place.granule is not None:
        holds = holds & implies(is_theirs(after.slot_of_granule(place.granule)), is_unchanged(step, place.granule))
    was = None if place.thread is None or place.thread is step.thread else before.thread(place.thread)
    if was is not None:
        was_in, now_in = was.hart, place.thread.hart
        kept = same(was_in.registers[place.register], now_in.registers[place.register])
        kept = kept & same(was_in.ddc, now_in.ddc) & same(was_in.pcc, now_in.pcc) & (was_in.pc == now_in.pc)
        holds = holds & implies(was.is_live, kept & place.thread.is_live)
    return implies((tenant != concerned(step)) & (tenant != NOBODY), holds)


def sees(step: Step, place: Place) -> Any:
    """What a tenant's thread can load is of the tenant's own slots, or of an object that it has mapped."""
    if place.byte is None:
        return True
    is_memory = step.monitor.memory.contains(place.byte, 1)
    is_seen = implies(is_memory, may_use(step, place.tenant, step.monitor.slot_of(place.byte)))
    return every(in_registers(step, place), lambda cap: implies(authorises(cap, Permission.LOAD, place.byte, 1), is_seen))


FLOWS: dict[str, Invariant] = {
    row.name: row
    for row in (
        Invariant(
            "others",
            "local respect",
            "A step of one tenant, or of the base for one, leaves what any other has as it was: its registers, slots and "
            "mappings, and the objects that it has mapped.",
            "Rushby, Noninterference, Transitivity, and Channel-Control Security Policies (1992), local respect",
            others_state,
            False,
        ),
        Invariant(
            "sees",
            "what is seen",
            "What a thread has in a register or DDC authorises to load from its tenant's own slots and from objects that "
            "the tenant has mapped; from nowhere else in memory.",
            "ours: what a step's outcome can follow from",
            sees,
        ),
    )
}
"""Non-interference through shared objects: what is proved of steps beside the invariants."""
