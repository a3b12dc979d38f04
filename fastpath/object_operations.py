"""What tenants ask the base of shared objects for in many systems: the kernels of the rows of spec/orc.py."""

import numpy as np

from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.objects import Asked, BatchObjects, digest, operation
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec import orc
from capvisor.spec.orc import MAX_TENANTS, MAX_THREADS, Code, Relocation, SlotKind


def _is_kind(system: BatchObjects, asked: Asked, slot: Indices, kind: SlotKind) -> Flags:
    found: Flags = system.slots["kind"][asked.lanes, slot] == kind
    return found


def _must_be_submitted(system: BatchObjects, asked: Asked, slot: Indices) -> None:
    owned = system.slots["owner"][asked.lanes, slot] == asked.caller.astype(np.uint64)
    asked.refuse(~(_is_kind(system, asked, slot, SlotKind.SUBMITTED) & owned), Code.NOT_SUBMITTED)


def _must_be_free(system: BatchObjects, asked: Asked, slot: Indices) -> None:
    if system.policy.free_slots_only:
        asked.refuse(~_is_kind(system, asked, slot, SlotKind.FREE), Code.NOT_FREE)


def _must_be_entry(system: BatchObjects, asked: Asked, entry: Words) -> Words:
    """Refuse places that nothing could be entered at."""
    asked.refuse((entry >= np.uint64(system.shape.slot_bytes)) | (entry & np.uint64(1) != 0), Code.RANGE)
    return np.minimum(entry, np.uint64(system.shape.slot_bytes - 1))


@operation("allocate")
def allocate(system: BatchObjects, asked: Asked, slot: Words) -> None:
    """Give tenants free slots."""
    slots = asked.slot(slot)
    asked.live()
    _must_be_free(system, asked, slots)
    ok = asked.is_passed
    system.take(asked.lanes[ok], slots[ok], SlotKind.OWN, asked.caller[ok])
    system.write(orc.RESULTS[0], asked.harts[ok], system.data_of(slots[ok]))


@operation("submit")
def submit(system: BatchObjects, asked: Asked, slot: Words, code: Words, ro: Words, data: Words) -> None:
    """Take slots from their tenants and verify what is there."""
    slots, policy, granule = asked.slot(slot), system.policy, np.uint64(system.format.capability_bytes - 1)
    asked.live()
    most = np.uint64(system.shape.slot_bytes)
    asked.refuse((code > most) | (ro > most) | (data > most), Code.RANGE)
    if policy.own_slots_only:
        owned = system.slots["owner"][asked.lanes, slots] == asked.caller.astype(np.uint64)
        asked.refuse(~(_is_kind(system, asked, slots, SlotKind.OWN) & owned), Code.NOT_OWNED)
    asked.refuse((slots + orc.FIRST_OTYPE > system.format.max_otype) | (slots >= system.shape.objects), Code.FULL)
    if policy.segments_checked:
        fits = np.where(asked.is_passed, code + ro + data, np.uint64(0)) <= most
        asked.refuse(~(((code | ro | data) & granule == 0) & (code > 0) & fits), Code.SEGMENTS)
    ok = asked.is_passed
    lanes, slots, caller = asked.lanes[ok], slots[ok], asked.caller[ok]
    if policy.revoke_before_verify:
        system.purge(lanes, caller, slots)
    if policy.tags_cleared:
        system.clear_tags(lanes, slots)
    system.exports[lanes, slots] = False
    sizes = [each[ok] for each in (code, ro, data)]
    half = np.dtype(f"<u{system.format.address_width // 8}")
    halves = system.memory.halves[lanes[:, None], system.granules_of(slots)].astype(half)
    found = [digest(halves[at].tobytes(), *(int(size[at]) for size in sizes)) for at in range(len(lanes))]
    row = dict(zip(("code", "ro", "data"), sizes, strict=True))
    system.set_slot(lanes, slots, kind=SlotKind.SUBMITTED, owner=caller, identity=np.array(found, np.uint64), **row)


@operation("relocate")
def relocate(
    system: BatchObjects, asked: Asked, slot: Words, kind: Words, target: Words, address: Words, size: Words
) -> None:
    """Put what relocations ask for at places of submitted images."""
    slots, policy = asked.slot(slot), system.policy
    granule = np.uint64(system.format.capability_bytes)
    asked.live()
    _must_be_submitted(system, asked, slots)
    asked.refuse((kind < Relocation.CONST) | (kind > Relocation.FUNC), Code.KIND)
    code, ro, data = (system.slots[name][asked.lanes, slots] for name in ("code", "ro", "data"))
    room = np.uint64(system.memory.size_bytes) - (slots.astype(np.uint64) << np.uint64(system.shape.slot_shift))
    inside = (target <= room - granule) & (size <= room)
    inside &= address <= room - np.minimum(size, room)
    asked.refuse(~((target & granule - np.uint64(1) == 0) & inside), Code.RANGE)
    ok = asked.is_passed
    zero = np.uint64(0)
    target, address, size = (np.where(ok, each, zero) for each in (target, address, size))
    is_func, is_tls, is_const = (kind == each for each in (Relocation.FUNC, Relocation.TLS, Relocation.CONST))
    reads = is_const if policy.const_without_store else np.zeros_like(is_const)
    wanted = np.where(reads, np.uint64(orc.READ_PERMISSIONS), np.uint64(orc.DATA_PERMISSIONS))
    bounded, exact = system.mint(system.slot_base(slots) + address, size, wanted)
    asked.refuse(~(exact | is_func | is_tls), Code.RANGE)
    read_only = code + ro
    if policy.targets_checked:
        asked.refuse(~((code <= target) & (target + granule <= read_only)), Code.TARGET)
    if policy.sources_checked:
        const = (size > 0) & (address + size <= read_only)
        other = (size > 0) & (read_only <= address) & (address + size <= read_only + data)
        asked.refuse(~np.where(is_func, address < code, np.where(is_const, const, other)), Code.SOURCE)
    if policy.no_shared_globals:
        asked.refuse(kind == Relocation.OBJ, Code.SHARED)
    ok = asked.is_passed
    entry, null = system.code_of(slots, address), np.uint64(system.format.null_meta)
    tag = np.where(is_func, entry.tag, bounded.tag & ~is_tls)
    meta = np.where(is_func, entry.meta, np.where(is_tls, null, bounded.meta))
    value = np.where(is_func, entry.address, np.where(is_tls, address, bounded.address))
    index = slots * system.slot_granules + (target // granule).astype(np.int64)
    system.put(asked.lanes[ok], index[ok], Lanes(tag[ok], meta[ok], value[ok]))
    system.extend(asked.lanes[ok], slots[ok], kind[ok], target[ok], address[ok], size[ok])


@operation("export")
def export(system: BatchObjects, asked: Asked, slot: Words, entry: Words) -> None:
    """Let submitted images be entered at places."""
    slots = asked.slot(slot)
    asked.live()
    _must_be_submitted(system, asked, slots)
    entry = _must_be_entry(system, asked, entry)
    if system.policy.exports_in_code:
        asked.refuse(entry >= system.slots["code"][asked.lanes, slots], Code.ENTRY)
    ok = asked.is_passed
    system.exports[asked.lanes[ok], slots[ok], (entry[ok] >> np.uint64(1)).astype(np.int64)] = True
    system.extend(asked.lanes[ok], slots[ok], entry[ok])


@operation("publish")
def publish(system: BatchObjects, asked: Asked, slot: Words) -> None:
    """Make submitted images objects."""
    slots = asked.slot(slot)
    asked.live()
    _must_be_submitted(system, asked, slots)
    ok = asked.is_passed
    lanes, slots = asked.lanes[ok], slots[ok]
    if not system.policy.revoke_before_verify:
        system.purge(lanes, asked.caller[ok], slots)
    system.slots["kind"][lanes, slots], system.slots["owner"][lanes, slots] = SlotKind.OBJECT, orc.NOBODY


@operation("withdraw")
def withdraw(system: BatchObjects, asked: Asked, slot: Words) -> None:
    """Give the memory of submitted images back."""
    slots = asked.slot(slot)
    asked.live()
    _must_be_submitted(system, asked, slots)
    ok = asked.is_passed
    lanes, slots = asked.lanes[ok], slots[ok]
    if system.policy.minted_dropped:
        system.clear_tags(lanes, slots)
    system.set_slot(lanes, slots, kind=SlotKind.OWN, owner=asked.caller[ok])
    system.write(orc.RESULTS[0], asked.harts[ok], system.data_of(slots))


@operation("map")
def map_object(system: BatchObjects, asked: Asked, slot: Words, identity: Words, shadow: Words) -> None:
    """Let tenants use objects of the content that they expect."""
    slots, shadows, policy, fmt = asked.slot(slot), asked.slot(shadow), system.policy, system.format
    asked.live()
    asked.refuse(slots >= system.shape.objects, Code.RANGE)
    if policy.published_only:
        asked.refuse(~_is_kind(system, asked, slots, SlotKind.OBJECT), Code.NO_OBJECT)
    asked.refuse(system.mappings["is_live"][asked.lanes, asked.caller, slots], Code.TAKEN)
    if policy.identity_checked:
        asked.refuse(system.slots["identity"][asked.lanes, slots] != identity, Code.IDENTITY)
    _must_be_free(system, asked, shadows)
    granule = np.uint64(fmt.capability_bytes)
    pointer = system.harts.addresses[orc.THREAD_POINTER, asked.harts]
    start, away = np.uint64(system.memory.base), slots.astype(np.uint64) * granule
    place = pointer + away
    if not policy.tls_from_table:
        inside = (place >= pointer) & (place >= start) & (place - start <= np.uint64(system.memory.size_bytes) - granule)
        asked.refuse(~((place & granule - np.uint64(1) == 0) & inside), Code.RANGE)
    ok = asked.is_passed
    lanes, slots, shadows, caller = asked.lanes[ok], slots[ok], shadows[ok], asked.caller[ok]
    system.take(lanes, shadows, SlotKind.SHADOW, caller, slots)
    system.copy_data(lanes, slots, shadows)
    for name, values in {"is_live": True, "shadow": shadows, "identity": identity[ok]}.items():
        system.mappings[name][lanes, caller, slots] = values
    cap = system.data_of(shadows)
    if not policy.tls_from_table:
        system.put(lanes, (place[ok] - start >> np.uint64(fmt.granule_shift)).astype(np.int64), cap)
        return
    where = system.granules_of(system.tenants["tls"][lanes, caller].astype(np.int64))
    which, column = np.nonzero(where & system.shape.objects - 1 == slots[:, None])
    system.put(lanes[which], where[which, column], Lanes(cap.tag[which], cap.meta[which], cap.address[which]))


@operation("bind")
def bind(system: BatchObjects, asked: Asked, slot: Words, entry: Words) -> None:
    """Give tenants the sealed pairs of entries."""
    slots = asked.slot(slot)
    asked.live()
    entry = _must_be_entry(system, asked, entry)
    if system.policy.mapped_only:
        asked.refuse(~system.mappings["is_live"][asked.lanes, asked.caller, slots], Code.NOT_MAPPED)
    if system.policy.entries_exported:
        asked.refuse(~system.exports[asked.lanes, slots, (entry >> np.uint64(1)).astype(np.int64)], Code.ENTRY)
    ok = asked.is_passed
    for register, cap in zip(orc.RESULTS, system.entry_pair(slots[ok], entry[ok]), strict=True):
        system.write(register, asked.harts[ok], cap)


@operation("unmap")
def unmap(system: BatchObjects, asked: Asked, slot: Words) -> None:
    """End tenants' use of objects."""
    slots = asked.slot(slot)
    asked.live()
    asked.refuse(~system.mappings["is_live"][asked.lanes, asked.caller, slots], Code.NOT_MAPPED)
    if system.policy.unmap_not_running:
        asked.refuse(system.is_executed(asked.lanes, asked.caller, slots), Code.BUSY)
    ok = asked.is_passed
    lanes, slots, caller = asked.lanes[ok], slots[ok], asked.caller[ok]
    shadows = system.mappings["shadow"][lanes, caller, slots].astype(np.int64)
    system.purge(lanes, caller, slots)
    system.purge(lanes, caller, shadows)
    for column in system.mappings.values():
        column[lanes, caller, slots] = 0
    system.set_slot(lanes, shadows)


@operation("start")
def start(system: BatchObjects, asked: Asked, entry: Words) -> None:
    """Start other threads of tenants."""
    asked.live()
    entry = _must_be_entry(system, asked, entry)
    asked.refuse(system.tenants["threads"][asked.lanes, asked.caller] >= MAX_THREADS, Code.FULL)
    ok = asked.is_passed
    place = system.start_thread(asked.lanes[ok], asked.caller[ok], entry[ok])
    system.write_integer(orc.RESULTS[0], asked.harts[ok], place + np.uint64(1))


@operation("create")
def create(system: BatchObjects, asked: Asked, tenant: Words, home: Words, tls: Words) -> None:
    """Make tenants of two free slots each."""
    homes, arrays = asked.slot(home), asked.slot(tls)
    asked.refuse((home == tls) | (tenant < 1) | (tenant > MAX_TENANTS), Code.RANGE)
    tenants = np.minimum(tenant, np.uint64(MAX_TENANTS)).astype(np.int64)
    asked.refuse(system.tenants["is_live"][asked.lanes, tenants], Code.TAKEN)
    for slots in (homes, arrays):
        _must_be_free(system, asked, slots)
    ok = asked.is_passed
    lanes, tenants, homes, arrays = asked.lanes[ok], tenants[ok], homes[ok], arrays[ok]
    system.take(lanes, homes, SlotKind.HOME, tenants)
    system.take(lanes, arrays, SlotKind.TLS, tenants)
    for name, values in {"is_live": True, "home": homes, "tls": arrays, "threads": 0}.items():
        system.tenants[name][lanes, tenants] = values
    system.start_thread(lanes, tenants, np.zeros(len(lanes), np.uint64))


@operation("destroy")
def destroy(system: BatchObjects, asked: Asked, tenant: Words) -> None:
    """End tenants."""
    tenants = np.where(tenant <= MAX_TENANTS, tenant, np.uint64(0)).astype(np.int64)
    asked.refuse(~system.tenants["is_live"][asked.lanes, tenants], Code.NO_TENANT)
    ok = asked.is_passed
    lanes, tenants = asked.lanes[ok], tenants[ok]
    whose = np.full(system.lanes, -1, np.int64)
    whose[lanes] = tenants
    every = np.arange(system.harts.lanes) % system.lanes
    system.threads["is_live"] &= system.threads["tenant"].astype(np.int64) != whose[every]
    system.mappings["is_live"][lanes, tenants] = False
    which, slots = np.nonzero(system.slots["owner"][lanes] == tenants[:, None].astype(np.uint64))
    system.set_slot(lanes[which], slots)
    for column in system.tenants.values():
        column[lanes, tenants] = 0


@operation("collect")
def collect(system: BatchObjects, asked: Asked, slot: Words) -> None:
    """Free objects that nobody has mapped."""
    slots = asked.slot(slot)
    asked.refuse(~_is_kind(system, asked, slots, SlotKind.OBJECT), Code.NO_OBJECT)
    if system.policy.mapped_not_collected:
        asked.refuse(np.logical_or.reduce(system.mappings["is_live"][asked.lanes, :, slots], axis=1), Code.BUSY)
    ok = asked.is_passed
    system.set_slot(asked.lanes[ok], slots[ok])
