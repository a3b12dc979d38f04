"""Object reuse with capabilities: objects that tenants share, each loaded by a guest and verified by a small trusted base.

Memory is slots. Tenants run on harts in user mode and may execute any instruction; what they ask the base for is in
`model.object_operations`, as rules over this state. The specification is spec/orc.md.
"""

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Protocol

from capvisor.model import capability
from capvisor.model.bits import not_, select
from capvisor.model.capability import Capability
from capvisor.model.guests import guest_instruction, minted
from capvisor.model.machine import Hart, Trap
from capvisor.model.memory import EMPTY, Granule, Memory
from capvisor.model.object_tables import (
    Identity,
    Mapping,
    Size,
    Slot,
    SlotId,
    Tenant,
    TenantId,
    TenantThread,
    TenantThreads,
    select_row,
)
from capvisor.model.tables import Rows, Table
from capvisor.spec import orc
from capvisor.spec.formats import Permission
from capvisor.spec.object_policy import INTENDED, ObjectPolicy
from capvisor.spec.orc import PRIVATE, SHAPE, Shape, SlotKind
from capvisor.spec.registers import Privilege


class Digest(Protocol):
    """What tells contents apart: that different ones have different identities is an assumption of spec/orc.md."""

    def image(self, memory: Memory, first: int, count: int, sizes: tuple[Size, ...]) -> Identity:
        """The identity of the granules from `first` on, as bytes, with the sizes of segments."""

    def extended(self, identity: Identity, *numbers: int) -> Identity:
        """That of an image with an identity to which numbers are added."""


class Blake2:
    """A digest of 64 bits, of what lies in memory and of numbers as eight bytes each, the lowest first."""

    def image(self, memory: Memory, first: int, count: int, sizes: tuple[Size, ...]) -> Identity:
        half = memory.format.address_width // 8
        found = (memory.store.get(index) for index in range(first, first + count))
        content = b"".join(part.to_bytes(half, "little") for held in found for part in (held.lower, held.upper))
        return digest(content, *sizes)

    def extended(self, identity: Identity, *numbers: int) -> Identity:
        return digest(b"", identity, *numbers)


def digest(content: bytes, *numbers: int) -> Identity:
    """BLAKE2b, with a digest of eight bytes, of some bytes and numbers behind them. Source: RFC 7693."""
    behind = b"".join(number.to_bytes(8, "little") for number in numbers)
    return int.from_bytes(blake2b(content + behind, digest_size=8).digest(), "little")


class ObjectMonitor:
    """The base and all that it guards: memory, slots, objects, tenants and their threads.

    Memory begins at a multiple of a slot's size. Raises ValueError where it doesn't.
    """

    def __init__(
        self,
        memory: Memory,
        policy: ObjectPolicy = INTENDED,
        shape: Shape = SHAPE,
        make_table: Callable[[str, Any], Table] = lambda _name, empty: Rows(empty),
        threads: Any = None,
        make_hart: Callable[[Memory], Hart] = Hart,
        contents: Digest | None = None,
    ) -> None:
        self.memory, self.policy, self.shape, self.format = memory, policy, shape, memory.format
        if memory.base & shape.slot_bytes - 1 != 0:
            raise ValueError(f"memory begins at a multiple of a slot's {shape.slot_bytes} bytes")
        self.threads: Any = TenantThreads() if threads is None else threads
        self.make_hart = make_hart
        self.contents: Digest = Blake2() if contents is None else contents
        self.slots = make_table("slots", Slot())
        self.mappings = make_table("mappings", Mapping())
        """By tenant and object."""
        self.exports = make_table("exports", False)
        """By object and offset: whether it can be entered there."""
        self.tenants = make_table("tenants", Tenant())

    # -- where things are --------------------------------------------------------------------------------------------------

    @property
    def slot_count(self) -> int:
        """How many slots there are."""
        return self.memory.size_bytes >> self.shape.slot_shift

    @property
    def slot_granules(self) -> int:
        """How many granules a slot has."""
        return self.shape.slot_bytes >> self.format.granule_shift

    def slot_base(self, slot: SlotId) -> int:
        """Where a slot begins."""
        return self.memory.base + (slot << self.shape.slot_shift)

    def slot_of(self, address: int) -> SlotId:
        """The slot that an address is in. Source: lsds/intravisor 0.1.0, LocPass: PCC.base >> 28."""
        return address - self.memory.base >> self.shape.slot_shift

    def slot_of_granule(self, index: int) -> SlotId:
        """The slot that a granule is in; an index counts from the start of memory."""
        return index >> self.shape.slot_shift - self.format.granule_shift

    def object_of_granule(self, index: int) -> SlotId:
        """In a slot of TLS arrays: the object that a granule is for."""
        return index & self.shape.objects - 1

    def granule_address(self, index: int) -> int:
        """Where a granule is."""
        return self.memory.base + (index << self.format.granule_shift)

    def granule(self, index: int) -> Capability:
        """The capability that a granule of memory holds."""
        return capability.from_memory(self.format, *self.memory.store.get(index))

    def index_of(self, address: int) -> int:
        """The granule that an address is in."""
        return address - self.memory.base >> self.format.granule_shift

    # -- what it mints -----------------------------------------------------------------------------------------------------

    def slot_capability(self, slot: SlotId, permissions: Permission) -> Capability:
        """A capability to a whole slot, whose bounds are always exact."""
        return minted(self.format, self.slot_base(slot), self.shape.slot_bytes, permissions)[0]

    def data_of(self, slot: SlotId) -> Capability:
        """A tenant's authority over one of its slots of data."""
        return self.slot_capability(slot, orc.DATA_PERMISSIONS)

    def code_of(self, slot: SlotId, offset: int) -> Capability:
        """What a place of an object's code is executed by: the whole object, to be read too."""
        permissions = orc.CODE_PERMISSIONS
        if not self.policy.code_without_store:
            permissions |= orc.STORE_PERMISSIONS
        return capability.set_address(self.slot_capability(slot, permissions), self.slot_base(slot) + offset)

    def entry_pair(self, slot: SlotId, offset: int) -> tuple[Capability, Capability]:
        """The sealed pair by which an object is entered at a place: its code, and what it reads its table by."""
        otype = orc.FIRST_OTYPE + slot if self.policy.distinct_otypes else orc.SHARED_OTYPE
        code, data = self.code_of(slot, offset), self.slot_capability(slot, orc.ENTRY_DATA_PERMISSIONS)
        return capability.set_otype(code, otype), capability.set_otype(data, otype)

    def thread_pointer(self, tls: SlotId, place: int) -> Capability:
        """TP of one of a tenant's threads: its TLS array."""
        size = self.shape.objects << self.format.granule_shift
        permissions = orc.READ_PERMISSIONS if self.policy.tls_read_only else orc.DATA_PERMISSIONS
        return minted(self.format, self.slot_base(tls) + place * size, size, permissions)[0]

    def start_thread(self, tenant: TenantId, entry: int) -> TenantThread:
        """A new thread of a tenant, at a place of its home."""
        row = self.tenants[tenant]
        thread = TenantThread(self.make_hart(self.memory), tenant, row.threads)
        hart, null = thread.hart, capability.null(self.format)
        hart.map_registers(lambda _cap: null)
        hart.privilege, hart.ddc = Privilege.USER, null
        hart.pcc = self.slot_capability(row.home, orc.CODE_PERMISSIONS)
        hart.pc = self.slot_base(row.home) + entry & self.format.address_mask - 1
        hart.write(orc.STACK, self.data_of(row.home))
        hart.write(orc.THREAD_POINTER, self.thread_pointer(row.tls, row.threads))
        hart.write_integer(orc.IDENTITY, tenant)
        self.tenants[tenant] = row._replace(threads=row.threads + 1)
        self.threads.add(thread)
        return thread

    # -- memory ------------------------------------------------------------------------------------------------------------

    def rewrite(self, first: int, count: int, function: Callable[[int, Granule], Granule]) -> None:
        """Replace each of some granules, from `first` on, by what the function makes of its index and it.

        What the function reads of memory is as it was before. Granules behind the end of memory, which an image has only
        where its segments aren't checked, are left out.
        """
        store, end = self.memory.store, self.memory.size_bytes >> self.format.granule_shift
        changed = [(index, function(index, store.get(index))) for index in range(first, min(first + count, end))]
        for index, granule in changed:
            store.set(index, granule)

    def first_granule(self, slot: SlotId) -> int:
        """The index of a slot's first granule."""
        return slot << self.shape.slot_shift - self.format.granule_shift

    def clear(self, slot: SlotId) -> None:
        """Clear a slot."""
        self.rewrite(self.first_granule(slot), self.slot_granules, lambda _index, _held: EMPTY)

    def clear_tags(self, slot: SlotId) -> None:
        """Untag all that is in a slot."""
        self.rewrite(self.first_granule(slot), self.slot_granules, lambda _index, held: held._replace(tag=False))

    def copy_data(self, source: SlotId, target: SlotId) -> None:
        """Copy the data segment of an object, untagged, to the same place of another slot."""
        row, shift, store = self.slots[source], self.format.granule_shift, self.memory.store
        away = self.first_granule(source) - self.first_granule(target)
        first = self.first_granule(target) + (row.code + row.ro >> shift)
        self.rewrite(first, row.data >> shift, lambda index, _held: store.get(index + away)._replace(tag=False))

    def put(self, index: int, cap: Capability) -> None:
        """Store a capability in a granule."""
        self.memory.store.set(index, as_granule(cap))

    def put_in_arrays(self, tls: SlotId, slot: SlotId, cap: Capability) -> None:
        """Store a capability as what each of a tenant's TLS arrays has of an object."""
        entry = as_granule(cap)

        def placed(index: int, held: Granule) -> Granule:
            return select_row(self.object_of_granule(index) == slot, entry, held)

        self.rewrite(self.first_granule(tls), self.slot_granules, placed)

    def take(self, slot: SlotId, kind: SlotKind, owner: TenantId, of_object: SlotId = 0) -> None:
        """Give a slot away."""
        if self.policy.scrub_on_reuse:
            self.clear(slot)
        self.slots[slot] = Slot(kind.value, owner, of_object)

    def purge(self, tenant: TenantId, slot: SlotId) -> None:
        """Untag what a tenant holds to a slot, sealed or not: in the registers of its threads, and in its memory.

        What has no byte in its bounds stays. PCC isn't looked at: no tenant executes what is taken from it (O11).
        """
        start = self.slot_base(slot)

        def without(cap: Capability) -> Capability:
            base, top = cap.bounds
            to_slot = (start <= base) & (base < start + self.shape.slot_bytes) & (base < top)
            return cap.tagged_if(not_(to_slot))

        def forget(thread: TenantThread) -> None:
            if thread.tenant == tenant:
                thread.hart.map_registers(without)
                thread.hart.ddc = without(thread.hart.ddc)

        def swept(index: int, held: Granule) -> Granule:
            own = is_own(self.slots[self.slot_of_granule(index)], tenant)
            kept = without(capability.from_memory(self.format, *held)).tag
            return held._replace(tag=select(own, kept, held.tag))

        if self.policy.purge_registers:
            self.threads.for_each(forget)
        if self.policy.purge_memory:
            self.memory.map_granules(swept)

    # -- guests ------------------------------------------------------------------------------------------------------------

    def step(self, thread: TenantThread, name: str, operands: tuple[Any, ...]) -> Trap | None:
        """One instruction of a thread, of its tenant's code or of an object's. Refused, it is skipped."""
        return guest_instruction(thread.hart, name, operands)

    def executes(self, thread: TenantThread, slot: SlotId) -> bool:
        """Whether a thread executes what is in a slot."""
        return self.slot_of(thread.hart.pcc.base) == slot


def as_granule(cap: Capability) -> Granule:
    """A capability as it lies in memory."""
    return Granule(cap.tag, capability.memory_meta(cap), cap.address)


def is_own(row: Slot, tenant: TenantId) -> bool:
    """Whether a slot is one of those that a tenant, and nobody else, can access."""
    private: Any = False
    for kind in PRIVATE:
        private = private | (row.kind == kind)
    return private & (row.owner == tenant)
