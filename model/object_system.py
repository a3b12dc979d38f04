"""Steps of a system of shared objects: a guest's instruction, or an operation, as what happened.

What `spec.orc_invariants` says is said of such a step.
"""

import copy
from collections.abc import Iterator
from typing import Any

from capvisor.model import capability, object_operations
from capvisor.model.machine import Trap
from capvisor.model.memory import EMPTY, SparseStore
from capvisor.model.object_tables import TenantThread
from capvisor.model.objects import ObjectMonitor
from capvisor.spec.orc import NOBODY, Code, SlotKind
from capvisor.spec.orc_invariants import ORC_INVARIANTS, Before, Place, Step
from capvisor.spec.registers import REGISTER_COUNT


def before(monitor: ObjectMonitor) -> Before:
    """What there is before a step of a concrete system: a copy."""
    store: Any = copy.copy(monitor.memory.store)
    return Before(
        _copied(monitor.slots),
        _copied(monitor.mappings),
        _copied(monitor.tenants),
        _copied(monitor.exports),
        lambda index: capability.from_memory(monitor.format, *store.get(index)),
    )


def _copied(table: Any) -> Any:
    copied = copy.copy(table)
    copied.rows = dict(table.rows)
    return copied


def instruction(
    monitor: ObjectMonitor, thread: TenantThread, name: str, operands: tuple[Any, ...]
) -> tuple[Step, Trap | None]:
    """One instruction of a thread."""
    was = before(monitor)
    trap = monitor.step(thread, name, operands)
    return Step(monitor, was, "instruction", name, thread.tenant, thread, operands, Code.OK, trap is None), trap


def perform(monitor: ObjectMonitor, thread: TenantThread | None, name: str, *operands: Any) -> Step:
    """An operation: a tenant's by one of its threads, or the base's. Raises KeyError for a name that is none."""
    was = before(monitor)
    code = object_operations.perform(monitor, thread, name, *operands)
    tenant = NOBODY if thread is None else thread.tenant
    return Step(monitor, was, "operation", name, tenant, thread, operands, code, code is Code.OK)


def places(step: Step) -> Iterator[Place]:
    """The places of a step of a concrete system at which an invariant may fail: those that its tables have a row for.

    One place stands for several where what is said of one part of it says nothing of the others.
    """
    monitor = step.monitor
    store: SparseStore = monitor.memory.store
    pairs = [*monitor.mappings.rows] or [(1, 0)]
    for one in pairs:
        yield from (Place(*one, *other) for other in pairs)
    slots = [*monitor.slots.rows] or [0]
    for tenant in [*monitor.tenants.rows] or [1]:
        yield from (Place(tenant, slot) for slot in slots)
    yield from (Place(slot=slot, entry=entry) for slot, entry in [*monitor.exports.rows])
    given = {slot for slot in slots if step.before.slots[slot].kind != monitor.slots[slot].kind}
    for index, held in [*store.written()]:
        slot = monitor.slot_of_granule(index)
        if held.tag or (slot in given and held != EMPTY) or step.before.granule(index) != monitor.granule(index):
            yield Place(monitor.slots[slot].owner, granule=index)
    yield from (place for thread in monitor.threads if thread.is_live for place in _of_thread(thread))


def _of_thread(thread: TenantThread) -> Iterator[Place]:
    """Registers that hold something; the first one also for PCC and DDC."""
    for number in range(REGISTER_COUNT):
        if number == 0 or thread.hart.registers[number].tag:
            yield Place(thread.tenant, thread=thread, register=number)


def violated(step: Step) -> set[str]:
    """The names of the invariants that don't hold of a step of a concrete system."""
    found: set[str] = set()
    for place in places(step):
        found |= {name for name, row in ORC_INVARIANTS.items() if name not in found and not row.holds(step, place)}
    return found


def kind_of(monitor: ObjectMonitor, slot: int) -> SlotKind:
    """What a slot of a concrete system is."""
    return SlotKind(monitor.slots[slot].kind)
