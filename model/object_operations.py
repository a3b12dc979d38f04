"""The rules of what tenants ask the base for, and of what the base does of its own accord: `spec.orc.OPERATIONS`.

A rule's checks come first, then its effect. A refused operation changes nothing.
"""

from collections.abc import Callable
from typing import Any

from capvisor.model import capability
from capvisor.model.bits import not_
from capvisor.model.capability import Capability
from capvisor.model.guests import minted
from capvisor.model.object_tables import (
    Identity,
    Mapping,
    Size,
    Slot,
    SlotId,
    Tenant,
    TenantId,
    TenantThread,
    select_row,
)
from capvisor.model.objects import ObjectMonitor
from capvisor.spec import orc
from capvisor.spec.formats import Permission
from capvisor.spec.orc import OPERATIONS, Code, Relocation, SlotKind

Rule = Callable[..., Code]
OPERATION_RULES: dict[str, Rule] = {}
"""The rule of each operation, by name: a tenant's takes the base, the thread and the operands, the base's no thread."""


def operation(name: str) -> Callable[[Rule], Rule]:
    """Declare a function to be the rule of the operation of that name. Raises KeyError if it has no row in spec/orc.py."""
    row = OPERATIONS[name]

    def register(rule: Rule) -> Rule:
        OPERATION_RULES[row.name] = rule
        return rule

    return register


def caller_of(monitor: ObjectMonitor, thread: TenantThread) -> TenantId:
    """Whom an operation is done for."""
    return thread.tenant if monitor.policy.caller_from_thread else thread.hart.integer(orc.IDENTITY)


def refused_at_once(monitor: ObjectMonitor, thread: TenantThread, *slots: SlotId) -> Code:
    """What is refused whatever a tenant asks for: slots that aren't, and callers that aren't."""
    for slot in slots:
        if slot >= monitor.slot_count:
            return Code.RANGE
    if not_(monitor.tenants[caller_of(monitor, thread)].is_live):
        return Code.NO_TENANT
    return Code.OK


def is_submitted(monitor: ObjectMonitor, tenant: TenantId, slot: SlotId) -> bool:
    """Whether a slot is an image that a tenant has submitted."""
    row = monitor.slots[slot]
    return (row.kind == SlotKind.SUBMITTED) & (row.owner == tenant)


def is_entry(monitor: ObjectMonitor, offset: int) -> bool:
    """Whether an object of any size could be entered at a place."""
    return (offset < monitor.shape.slot_bytes) & (offset & 1 == 0)


# -- making an object ------------------------------------------------------------------------------------------------------


@operation("allocate")
def allocate(monitor: ObjectMonitor, thread: TenantThread, slot: SlotId) -> Code:
    """Give a tenant a free slot."""
    # CHECKS
    code = refused_at_once(monitor, thread, slot)
    if code is not Code.OK:
        return code
    if monitor.policy.free_slots_only and monitor.slots[slot].kind != SlotKind.FREE:
        return Code.NOT_FREE
    # EFFECT
    monitor.take(slot, SlotKind.OWN, caller_of(monitor, thread))
    thread.hart.write(orc.RESULTS[0], monitor.data_of(slot))
    return Code.OK


@operation("submit")
def submit(monitor: ObjectMonitor, thread: TenantThread, slot: SlotId, code_size: Size, ro: Size, data: Size) -> Code:
    """Take a slot from its tenant and verify what is there: V1, V4 and V6 of spec/orc.md."""
    # CHECKS
    code = refused_at_once(monitor, thread, slot)
    if code is not Code.OK:
        return code
    size, granule = monitor.shape.slot_bytes, monitor.format.capability_bytes - 1
    if (code_size > size) | (ro > size) | (data > size):
        return Code.RANGE
    caller, row = caller_of(monitor, thread), monitor.slots[slot]
    if monitor.policy.own_slots_only and not_((row.kind == SlotKind.OWN) & (row.owner == caller)):
        return Code.NOT_OWNED
    if (orc.FIRST_OTYPE + slot > monitor.format.max_otype) | (slot >= monitor.shape.objects):
        return Code.FULL
    aligned = (code_size & granule == 0) & (ro & granule == 0) & (data & granule == 0)
    if monitor.policy.segments_checked and not_(aligned & (code_size > 0) & (code_size + ro + data <= size)):
        return Code.SEGMENTS
    # EFFECT
    if monitor.policy.revoke_before_verify:
        monitor.purge(caller, slot)
    if monitor.policy.tags_cleared:
        monitor.clear_tags(slot)
    monitor.exports.map(lambda key, exported: exported & (key[0] != slot))
    first, sizes = monitor.first_granule(slot), (code_size, ro, data)
    identity = monitor.contents.image(monitor.memory, first, monitor.slot_granules, sizes)
    monitor.slots[slot] = Slot(SlotKind.SUBMITTED.value, caller, 0, *sizes, identity)
    return Code.OK


@operation("relocate")
def relocate(
    monitor: ObjectMonitor, thread: TenantThread, slot: SlotId, kind: int, target: int, address: int, size: Size
) -> Code:
    """Put what a relocation asks for at a place of a submitted image: V2 and V3 of spec/orc.md."""
    # CHECKS
    code = refused_at_once(monitor, thread, slot)
    if code is not Code.OK:
        return code
    if not_(is_submitted(monitor, caller_of(monitor, thread), slot)):
        return Code.NOT_SUBMITTED
    if (kind < Relocation.CONST) | (kind > Relocation.FUNC):
        return Code.KIND
    row, granule, base = monitor.slots[slot], monitor.format.capability_bytes, monitor.slot_base(slot)
    in_memory = monitor.memory.contains(base + target, granule) & monitor.memory.contains(base + address, size)
    if not_((target & granule - 1 == 0) & in_memory):
        return Code.RANGE
    cap, exact = relocated(monitor, slot, kind, address, size)
    if not_(exact):
        return Code.RANGE
    read_only = row.code + row.ro
    in_table = (row.code <= target) & (target + granule <= read_only)
    if monitor.policy.targets_checked and not_(in_table):
        return Code.TARGET
    if monitor.policy.sources_checked and not_(is_source(row, kind, address, size)):
        return Code.SOURCE
    if monitor.policy.no_shared_globals and kind == Relocation.OBJ:
        return Code.SHARED
    # EFFECT
    monitor.put(monitor.index_of(base + target), cap)
    identity = monitor.contents.extended(row.identity, kind, target, address, size)
    monitor.slots[slot] = row._replace(identity=identity)
    return Code.OK


def relocated(monitor: ObjectMonitor, slot: SlotId, kind: int, address: int, size: Size) -> tuple[Capability, bool]:
    """What a relocation asks for, and whether its bounds are exact."""
    if kind == Relocation.FUNC:
        return monitor.code_of(slot, address), True
    if kind == Relocation.TLS:
        return capability.null(monitor.format, address), True
    permissions = orc.DATA_PERMISSIONS
    if kind == Relocation.CONST and monitor.policy.const_without_store:
        permissions = orc.READ_PERMISSIONS
    return minted(monitor.format, monitor.slot_base(slot) + address, size, Permission(permissions))


def is_source(row: Slot, kind: int, address: int, size: Size) -> bool:
    """Whether what a relocation points at lies in the segment that its kind wants: code, what is read only, or data."""
    read_only = row.code + row.ro
    if kind == Relocation.FUNC:
        return address < row.code
    if kind == Relocation.CONST:
        return (size > 0) & (address + size <= read_only)
    return (size > 0) & (read_only <= address) & (address + size <= read_only + row.data)


@operation("export")
def export(monitor: ObjectMonitor, thread: TenantThread, slot: SlotId, entry: int) -> Code:
    """Let a submitted image be entered at a place: V7 of spec/orc.md."""
    # CHECKS
    code = refused_at_once(monitor, thread, slot)
    if code is not Code.OK:
        return code
    if not_(is_submitted(monitor, caller_of(monitor, thread), slot)):
        return Code.NOT_SUBMITTED
    if not_(is_entry(monitor, entry)):
        return Code.RANGE
    row = monitor.slots[slot]
    if monitor.policy.exports_in_code and entry >= row.code:
        return Code.ENTRY
    # EFFECT
    monitor.exports[slot, entry] = True
    monitor.slots[slot] = row._replace(identity=monitor.contents.extended(row.identity, entry))
    return Code.OK


@operation("publish")
def publish(monitor: ObjectMonitor, thread: TenantThread, slot: SlotId) -> Code:
    """Make a submitted image an object."""
    # CHECKS
    code = refused_at_once(monitor, thread, slot)
    if code is not Code.OK:
        return code
    caller = caller_of(monitor, thread)
    if not_(is_submitted(monitor, caller, slot)):
        return Code.NOT_SUBMITTED
    # EFFECT
    if not monitor.policy.revoke_before_verify:
        monitor.purge(caller, slot)
    monitor.slots[slot] = monitor.slots[slot]._replace(kind=SlotKind.OBJECT.value, owner=orc.NOBODY)
    return Code.OK


@operation("withdraw")
def withdraw(monitor: ObjectMonitor, thread: TenantThread, slot: SlotId) -> Code:
    """Give a submitted image's memory back."""
    # CHECKS
    code = refused_at_once(monitor, thread, slot)
    if code is not Code.OK:
        return code
    caller = caller_of(monitor, thread)
    if not_(is_submitted(monitor, caller, slot)):
        return Code.NOT_SUBMITTED
    # EFFECT
    if monitor.policy.minted_dropped:
        monitor.clear_tags(slot)
    monitor.slots[slot] = Slot(SlotKind.OWN.value, caller)
    thread.hart.write(orc.RESULTS[0], monitor.data_of(slot))
    return Code.OK


# -- using it --------------------------------------------------------------------------------------------------------------


@operation("map")
def map_object(monitor: ObjectMonitor, thread: TenantThread, slot: SlotId, identity: Identity, shadow: SlotId) -> Code:
    """Let a tenant use an object of the content that it expects: V5 of spec/orc.md."""
    # CHECKS
    code = refused_at_once(monitor, thread, slot, shadow)
    if code is not Code.OK:
        return code
    if slot >= monitor.shape.objects:
        return Code.RANGE
    caller, row, granule = caller_of(monitor, thread), monitor.slots[slot], monitor.format.capability_bytes
    if monitor.policy.published_only and row.kind != SlotKind.OBJECT:
        return Code.NO_OBJECT
    if monitor.mappings[caller, slot].is_live:
        return Code.TAKEN
    if monitor.policy.identity_checked and row.identity != identity:
        return Code.IDENTITY
    if monitor.policy.free_slots_only and monitor.slots[shadow].kind != SlotKind.FREE:
        return Code.NOT_FREE
    place = thread.hart.integer(orc.THREAD_POINTER) + slot * granule
    is_place = (place & granule - 1 == 0) & monitor.memory.contains(place, granule)
    if not monitor.policy.tls_from_table and not_(is_place):
        return Code.RANGE
    # EFFECT
    monitor.take(shadow, SlotKind.SHADOW, caller, slot)
    monitor.copy_data(slot, shadow)
    monitor.mappings[caller, slot] = Mapping(True, shadow, identity)
    if monitor.policy.tls_from_table:
        monitor.put_in_arrays(monitor.tenants[caller].tls, slot, monitor.data_of(shadow))
    else:
        monitor.put(monitor.index_of(place), monitor.data_of(shadow))
    return Code.OK


@operation("bind")
def bind(monitor: ObjectMonitor, thread: TenantThread, slot: SlotId, entry: int) -> Code:
    """Give a tenant the sealed pair of an entry."""
    # CHECKS
    code = refused_at_once(monitor, thread, slot)
    if code is not Code.OK:
        return code
    if not_(is_entry(monitor, entry)):
        return Code.RANGE
    if monitor.policy.mapped_only and not_(monitor.mappings[caller_of(monitor, thread), slot].is_live):
        return Code.NOT_MAPPED
    if monitor.policy.entries_exported and not_(monitor.exports[slot, entry]):
        return Code.ENTRY
    # EFFECT
    for register, half in zip(orc.RESULTS, monitor.entry_pair(slot, entry), strict=True):
        thread.hart.write(register, half)
    return Code.OK


@operation("unmap")
def unmap(monitor: ObjectMonitor, thread: TenantThread, slot: SlotId) -> Code:
    """End a tenant's use of an object; nothing that it holds leads to the object or to its shadow any more."""
    # CHECKS
    code = refused_at_once(monitor, thread, slot)
    if code is not Code.OK:
        return code
    caller = caller_of(monitor, thread)
    mapping = monitor.mappings[caller, slot]
    if not_(mapping.is_live):
        return Code.NOT_MAPPED
    if monitor.policy.unmap_not_running and not monitor.threads.all(
        lambda each: not_(each.is_live & (each.tenant == caller) & monitor.executes(each, slot))
    ):
        return Code.BUSY
    # EFFECT
    monitor.purge(caller, slot)
    monitor.purge(caller, mapping.shadow)
    monitor.mappings[caller, slot] = Mapping()
    monitor.slots[mapping.shadow] = Slot()
    return Code.OK


@operation("start")
def start(monitor: ObjectMonitor, thread: TenantThread, entry: int) -> Code:
    """Start another thread of a tenant. Its TLS array has all shadows already."""
    # CHECKS
    code = refused_at_once(monitor, thread)
    if code is not Code.OK:
        return code
    if not_(is_entry(monitor, entry)):
        return Code.RANGE
    caller = caller_of(monitor, thread)
    if monitor.tenants[caller].threads >= orc.MAX_THREADS:
        return Code.FULL
    # EFFECT
    started = monitor.start_thread(caller, entry)
    thread.hart.write_integer(orc.RESULTS[0], started.place + 1)
    return Code.OK


# -- the base --------------------------------------------------------------------------------------------------------------


@operation("create")
def create(monitor: ObjectMonitor, tenant: TenantId, home: SlotId, tls: SlotId) -> Code:
    """Make a tenant of two free slots."""
    # CHECKS
    placed = (home < monitor.slot_count) & (tls < monitor.slot_count) & (home != tls)
    if not_(placed & (tenant > orc.NOBODY) & (tenant <= orc.MAX_TENANTS)):
        return Code.RANGE
    if monitor.tenants[tenant].is_live:
        return Code.TAKEN
    both_free = (monitor.slots[home].kind == SlotKind.FREE) & (monitor.slots[tls].kind == SlotKind.FREE)
    if monitor.policy.free_slots_only and not_(both_free):
        return Code.NOT_FREE
    # EFFECT
    monitor.take(home, SlotKind.HOME, tenant)
    monitor.take(tls, SlotKind.TLS, tenant)
    monitor.tenants[tenant] = Tenant(True, home, tls)
    monitor.start_thread(tenant, 0)
    return Code.OK


@operation("destroy")
def destroy(monitor: ObjectMonitor, tenant: TenantId) -> Code:
    """End a tenant. No sweep is needed: nobody else holds anything to its slots (O5, O6)."""
    # CHECKS
    if not_(monitor.tenants[tenant].is_live):
        return Code.NO_TENANT

    # EFFECT
    def end(thread: TenantThread) -> None:
        thread.is_live = thread.is_live & (thread.tenant != tenant)

    monitor.threads.for_each(end)
    monitor.mappings.map(lambda key, mapping: mapping._replace(is_live=mapping.is_live & (key[0] != tenant)))
    monitor.slots.map(lambda _slot, row: select_row(row.owner == tenant, Slot(), row))
    monitor.tenants[tenant] = Tenant()
    return Code.OK


@operation("collect")
def collect(monitor: ObjectMonitor, slot: SlotId) -> Code:
    """Free an object that nobody has mapped. No sweep is needed: then nobody holds anything to it (O5, O6)."""
    # CHECKS
    if slot >= monitor.slot_count:
        return Code.RANGE
    if monitor.slots[slot].kind != SlotKind.OBJECT:
        return Code.NO_OBJECT
    if monitor.policy.mapped_not_collected and not monitor.mappings.all(
        lambda key, mapping: not_(mapping.is_live & (key[1] == slot))
    ):
        return Code.BUSY
    # EFFECT
    monitor.slots[slot] = Slot()
    return Code.OK


def perform(monitor: ObjectMonitor, thread: TenantThread | None, name: str, *operands: Any) -> Code:
    """Perform an operation: a tenant's by one of its threads. Raises KeyError for a name that is none."""
    rule = OPERATION_RULES[name]
    return rule(monitor, *operands) if thread is None else rule(monitor, thread, *operands)
