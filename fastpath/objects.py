"""Shared objects in many systems: the fast twin of `model.objects`. The specification is spec/orc.md.

Every lane is a system of its own: memory, slots, objects, tenants and threads. Thread t of lane n is hart t * lanes + n of
one batch machine. Arguments called `lanes`, `harts`, and what belongs to them, are arrays of one length, one element for
each lane that takes part; no lane is named twice.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capvisor.fastpath import bounds, capability
from capvisor.fastpath import isa as _kernels  # declares the kernels
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.machine import DDC, INSTRUCTION_BYTES, PCC, Indices
from capvisor.fastpath.refusals import Refusals, declaring
from capvisor.fastpath.shared import Harts, SharedMemory
from capvisor.fastpath.workspace import Causes, Flags, Words, Workspace
from capvisor.spec import orc
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.object_policy import INTENDED, ObjectPolicy
from capvisor.spec.orc import MAX_TENANTS, OPERATIONS, PRIVATE, SHAPE, Code, Shape, SlotKind
from capvisor.spec.registers import REGISTER_COUNT, Privilege

assert _kernels

_FLAG, _WORD, _SMALL = np.bool_, np.uint64, np.uint8
SLOT = {"kind": _SMALL, "owner": _WORD, "object": _WORD, "code": _WORD, "ro": _WORD, "data": _WORD, "identity": _WORD}
MAPPING = {"is_live": _FLAG, "shadow": _WORD, "identity": _WORD}
TENANT = {"is_live": _FLAG, "home": _WORD, "tls": _WORD, "threads": _WORD}
THREAD = {"exists": _FLAG, "is_live": _FLAG, "tenant": _WORD, "place": _WORD}


def digest(content: bytes, *numbers: int) -> int:
    """BLAKE2b, with a digest of eight bytes. Source: RFC 7693."""
    behind = b"".join(int(number).to_bytes(8, "little") for number in numbers)
    return int.from_bytes(blake2b(content + behind, digest_size=8).digest(), "little")


class Asked(Refusals):
    """An operation in some lanes while it is checked; of a tenant's, `harts` are the threads that ask."""

    def __init__(self, system: "BatchObjects", lanes: Indices, harts: Indices | None) -> None:
        self.system, self.lanes = system, lanes
        super().__init__(np.zeros(len(lanes), np.uint8), Code.RANGE)
        self.harts: Indices = lanes if harts is None else harts
        self.caller: Indices = np.zeros(len(lanes), np.int64)

    def slot(self, numbers: Words) -> Indices:
        """Slots that there are; others are refused."""
        count = self.system.slot_count
        self.refuse(numbers >= np.uint64(count), Code.RANGE)
        return np.minimum(numbers, np.uint64(count - 1)).astype(np.int64)

    def live(self) -> None:
        """Whom it is done for; who is no tenant is refused."""
        system = self.system
        if system.policy.caller_from_thread:
            found = system.threads["tenant"][self.harts]
        else:
            found = system.harts.addresses[orc.IDENTITY, self.harts]
        inside = found <= np.uint64(MAX_TENANTS)
        self.caller = np.where(inside, found, np.uint64(0)).astype(np.int64)
        self.refuse(~system.tenants["is_live"][self.lanes, self.caller], Code.NO_TENANT)

    @property
    def is_passed(self) -> Flags:
        """Where nothing has refused it."""
        found: Flags = self.code == 0
        return found


OPERATION_KERNELS: dict[str, Callable[..., None]] = {}
operation = declaring(OPERATION_KERNELS, OPERATIONS)
"""Declares the kernel of the operation of a name."""


class BatchObjects:
    """`lanes` bases, and all that they guard. Raises ValueError where memory doesn't begin with a slot."""

    memory_type: type[SharedMemory] = SharedMemory

    def __init__(
        self,
        fmt: CapabilityFormat,
        memory_base: int,
        memory_bytes: int,
        lanes: int,
        policy: ObjectPolicy = INTENDED,
        shape: Shape = SHAPE,
        threads: int = 4,
    ) -> None:
        if memory_base & shape.slot_bytes - 1 != 0:
            raise ValueError(f"memory begins at a multiple of a slot's {shape.slot_bytes} bytes")
        self.format, self.lanes, self.policy, self.shape = fmt, lanes, policy, shape
        self.memory = self.memory_type(fmt, memory_base, memory_bytes, lanes)
        self.harts = Harts(self.memory, threads * lanes)
        self.slot_count = count = memory_bytes >> shape.slot_shift
        self.slot_granules = shape.slot_bytes >> fmt.granule_shift
        self.threads = _rows(THREAD, threads * lanes)
        self.slots, self.tenants = _rows(SLOT, lanes, count), _rows(TENANT, lanes, MAX_TENANTS + 1)
        self.mappings = _rows(MAPPING, lanes, MAX_TENANTS + 1, count)
        self.exports = np.zeros((lanes, count, shape.slot_bytes >> 1), np.bool_)

    # -- threads -----------------------------------------------------------------------------------------------------------

    def start_thread(self, lanes: Indices, tenant: Indices, entry: Words) -> Words:
        """A new thread of a tenant in each of some lanes, at a place of its home; which of the tenant's it is."""
        room = self.harts.lanes // self.lanes
        numbers: Indices = self.threads["exists"].reshape(room, self.lanes).sum(axis=0)[lanes]
        if len(numbers) and numbers.max() >= room:
            harts = Harts(self.memory, 2 * self.harts.lanes)
            harts.copy_of(self.harts)
            self.harts = harts
            self.threads = {name: np.concatenate([each, np.zeros_like(each)]) for name, each in self.threads.items()}
        harts_now, machine = numbers * self.lanes + lanes, self.harts
        home, tls, place = (self.tenants[name][lanes, tenant] for name in ("home", "tls", "threads"))
        for name, values in {"exists": True, "is_live": True, "tenant": tenant, "place": place}.items():
            self.threads[name][harts_now] = values
        for register in (*range(1, REGISTER_COUNT), DDC):
            self.write_integer(register, harts_now, 0)
        machine.numbers["privilege"][harts_now] = Privilege.USER
        self.write(PCC, harts_now, self.slot_capability(home, int(orc.CODE_PERMISSIONS)))
        machine.pc[harts_now] = self.slot_base(home) + entry & np.uint64(self.format.address_mask - 1)
        machine.pcc_changed(harts_now)
        self.write(orc.STACK, harts_now, self.data_of(home))
        size = np.uint64(self.shape.objects << self.format.granule_shift)
        permissions = orc.READ_PERMISSIONS if self.policy.tls_read_only else orc.DATA_PERMISSIONS
        array = self.mint(
            self.slot_base(tls) + (place * size).astype(np.uint64), np.full(len(lanes), size), int(permissions)
        )[0]
        self.write(orc.THREAD_POINTER, harts_now, array)
        self.write_integer(orc.IDENTITY, harts_now, tenant.astype(np.uint64))
        self.tenants["threads"][lanes, tenant] += np.uint64(1)
        return place

    def write(self, row: int, harts: Indices, cap: Lanes) -> None:
        """Put capabilities in a register, which isn't c0, or in a special one."""
        machine = self.harts
        machine.tags[row, harts], machine.metas[row, harts], machine.addresses[row, harts] = cap

    def write_integer(self, register: int, harts: Indices, values: Words | int) -> None:
        """Put integers, modulo 2**XLEN, in a register, which isn't c0."""
        machine = self.harts
        machine.tags[register, harts], machine.metas[register, harts] = False, self.format.null_meta
        machine.addresses[register, harts] = values & np.uint64(self.format.address_mask)

    def step(self, harts: Indices, name: str, operands: tuple[Any, ...]) -> Causes:
        """One instruction of a thread in each of some lanes; why it was refused, else 0. Refused, it is skipped."""
        machine = self.harts
        saved = Lanes(machine.tags[PCC, harts], machine.metas[PCC, harts], machine.addresses[PCC, harts])
        pc, kept = machine.pc[harts], {key: machine.numbers[key][harts] for key in ("mstatus", "privilege")}
        causes = machine.step_some(harts, name, operands)
        refused = causes != 0
        if refused.any():
            back = harts[refused]
            self.write(PCC, back, Lanes(*(each[refused] for each in saved)))
            machine.pc[back] = pc[refused] + np.uint64(INSTRUCTION_BYTES) & np.uint64(self.format.address_mask)
            for key, numbers in kept.items():
                machine.numbers[key][back] = numbers[refused]
            machine.pcc_changed(back)
        return causes

    def perform(self, lanes: Indices, harts: Indices | None, name: str, operands: Sequence[Words]) -> NDArray[np.uint8]:
        """An operation in each of some lanes, a tenant's by threads of it; the codes."""
        asked = Asked(self, lanes, harts)
        OPERATION_KERNELS[name](self, asked, *operands)
        return asked.code

    # -- what it mints -----------------------------------------------------------------------------------------------------

    def slot_base(self, slot: NDArray[Any]) -> Words:
        """Where slots begin."""
        base: Words = (slot.astype(np.uint64) << np.uint64(self.shape.slot_shift)) + np.uint64(self.memory.base)
        return base

    def mint(self, base: Words, size: Words, permissions: Words | int) -> tuple[Lanes, Flags]:
        """Capabilities to [base, base + size), which are in memory, and whether bounds can say that exactly."""
        fmt, count = self.format, len(base)
        ws, exact = Workspace(count), np.empty(count, np.bool_)
        bounded, meta = np.empty(count, np.uint64), np.empty(count, np.uint64)
        bounds.set_bounds(fmt, np.full(count, fmt.root_meta, np.uint64), base, size, ws, bounded, exact)
        wanted = permissions if isinstance(permissions, np.ndarray) else np.full(count, permissions, np.uint64)
        capability.set_permissions(fmt, bounded, wanted, ws, meta)
        return Lanes(np.ones(count, np.bool_), meta, base.copy()), exact

    def slot_capability(self, slot: NDArray[Any], permissions: int) -> Lanes:
        """Capabilities to whole slots."""
        return self.mint(self.slot_base(slot), np.full(len(slot), self.shape.slot_bytes, np.uint64), permissions)[0]

    def data_of(self, slot: NDArray[Any]) -> Lanes:
        """Tenants' authority over their slots of data."""
        return self.slot_capability(slot, int(orc.DATA_PERMISSIONS))

    def code_of(self, slot: NDArray[Any], offset: Words) -> Lanes:
        """What places of objects' code are executed by."""
        permissions = orc.CODE_PERMISSIONS
        if not self.policy.code_without_store:
            permissions |= orc.STORE_PERMISSIONS
        whole, count = self.slot_capability(slot, int(permissions)), len(slot)
        out = Lanes(np.empty(count, np.bool_), np.empty(count, np.uint64), np.empty(count, np.uint64))
        address = self.slot_base(slot) + offset & np.uint64(self.format.address_mask)
        capability.set_address(self.format, whole, address, Workspace(count), out)
        return out

    def sealed(self, cap: Lanes, otype: Words) -> Lanes:
        """Capabilities with these object types."""
        field = self.format.otype
        placed = (otype & np.uint64(field.mask)) << np.uint64(field.low)
        return Lanes(cap.tag, cap.meta & np.uint64(self.format.address_mask & ~field.in_place) | placed, cap.address)

    def entry_pair(self, slot: NDArray[Any], offset: Words) -> tuple[Lanes, Lanes]:
        """The sealed pairs by which objects are entered at places."""
        otype = slot.astype(np.uint64) + np.uint64(orc.FIRST_OTYPE)
        if not self.policy.distinct_otypes:
            otype = np.full(len(slot), orc.SHARED_OTYPE, np.uint64)
        code, data = self.code_of(slot, offset), self.slot_capability(slot, int(orc.ENTRY_DATA_PERMISSIONS))
        return self.sealed(code, otype), self.sealed(data, otype)

    # -- memory ------------------------------------------------------------------------------------------------------------

    def granules_of(self, slot: Indices) -> Indices:
        """The granules of slots: [lanes, granules of a slot]."""
        found: Indices = slot[:, None] * self.slot_granules + np.arange(self.slot_granules)
        return found

    def put(self, lanes: Indices, index: Indices, cap: Lanes) -> None:
        """Put capabilities in granules."""
        self.memory.tags[lanes, index] = cap.tag
        self.memory.halves[lanes, index, 0] = cap.address
        self.memory.halves[lanes, index, 1] = cap.meta ^ np.uint64(self.format.null_meta)

    def clear_tags(self, lanes: Indices, slot: Indices) -> None:
        """Untag all that is in slots."""
        self.memory.tags[lanes[:, None], self.granules_of(slot)] = False

    def set_slot(self, lanes: Indices, slot: Indices, **values: Any) -> None:
        """Write rows of slots; what isn't named is zero."""
        for name, column in self.slots.items():
            column[lanes, slot] = values.get(name, 0)

    def take(self, lanes: Indices, slot: Indices, kind: SlotKind, owner: Indices, of_object: Any = 0) -> None:
        """Give slots away."""
        if self.policy.scrub_on_reuse:
            where = self.granules_of(slot)
            self.memory.tags[lanes[:, None], where] = False
            self.memory.halves[lanes[:, None], where] = 0
        self.set_slot(lanes, slot, kind=kind, owner=owner, object=of_object)

    def copy_data(self, lanes: Indices, source: Indices, target: Indices) -> None:
        """Copy the data segments of objects, untagged; what lies outside of memory is empty."""
        shift = np.uint64(self.format.granule_shift)
        code, ro, data = (self.slots[name][lanes, source] for name in ("code", "ro", "data"))
        first, count = (code + ro >> shift).astype(np.int64), (data >> shift).astype(np.int64)
        if not len(lanes) or not count.any():
            return
        step = np.arange(count.max())
        at = target[:, None] * self.slot_granules + first[:, None] + step
        origin = source[:, None] * self.slot_granules + first[:, None] + step
        meant = (step < count[:, None]) & (at < self.memory.granules)
        held = self.memory.halves[lanes[:, None], np.minimum(origin, self.memory.granules - 1)]
        held[origin >= self.memory.granules] = 0
        which, column = np.nonzero(meant)
        self.memory.tags[lanes[which], at[which, column]] = False
        self.memory.halves[lanes[which], at[which, column]] = held[which, column]

    def _leads_to(self, meta: Words, address: Words, start: Words) -> Flags:
        """Whether capabilities have a base in the slot at `start`, and a byte."""
        count = len(meta)
        low, high, beyond = np.empty(count, np.uint64), np.empty(count, np.uint64), np.empty(count, np.bool_)
        bounds.decode_bounds(self.format, meta, address, Workspace(count), low, high, beyond)
        inside: Flags = (start <= low) & (low - start < np.uint64(self.shape.slot_bytes)) & ((low < high) | beyond)
        return inside

    def purge(self, lanes: Indices, tenant: Indices, slot: NDArray[Any]) -> None:
        """Untag what tenants hold to slots, sealed or not: in the registers of their threads, and in their memory."""
        whose, start = np.full(self.lanes, -1, np.int64), np.zeros(self.lanes, np.uint64)
        whose[lanes], start[lanes] = tenant, self.slot_base(slot)
        if self.policy.purge_registers:
            machine, every = self.harts, np.arange(self.harts.lanes)
            is_meant = self.threads["exists"] & (self.threads["tenant"].astype(np.int64) == whose[every % self.lanes])
            harts, rows = np.flatnonzero(is_meant), np.array([*range(1, REGISTER_COUNT), DDC])
            row, which = np.nonzero(machine.tags[np.ix_(rows, harts)])
            row, hart = rows[row], harts[which]
            lost = self._leads_to(machine.metas[row, hart], machine.addresses[row, hart], start[hart % self.lanes])
            machine.tags[row[lost], hart[lost]] = False
        if self.policy.purge_memory:
            own = np.isin(self.slots["kind"][lanes], PRIVATE) & (
                self.slots["owner"][lanes] == tenant[:, None].astype(np.uint64)
            )
            which, index = np.nonzero(self.memory.tags[lanes])
            at = index // self.slot_granules
            mine = (at < self.slot_count) & own[which, np.minimum(at, self.slot_count - 1)]
            lane, index = lanes[which[mine]], index[mine]
            halves = self.memory.halves[lane, index]
            lost = self._leads_to(halves[:, 1] ^ np.uint64(self.format.null_meta), halves[:, 0].copy(), start[lane])
            self.memory.tags[lane[lost], index[lost]] = False

    def is_executed(self, lanes: Indices, tenant: Indices, slot: Indices) -> Flags:
        """Whether a live thread of tenants executes what is in slots."""
        whose, start = np.full(self.lanes, -1, np.int64), np.zeros(self.lanes, np.uint64)
        whose[lanes], start[lanes] = tenant, self.slot_base(slot)
        lane, machine = np.arange(self.harts.lanes) % self.lanes, self.harts
        low, high, beyond = np.empty(len(lane), np.uint64), np.empty(len(lane), np.uint64), np.empty(len(lane), np.bool_)
        pcc = machine.capability(PCC)
        bounds.decode_bounds(self.format, pcc.meta, pcc.address, Workspace(len(lane)), low, high, beyond)
        there = self.threads["is_live"] & (self.threads["tenant"].astype(np.int64) == whose[lane])
        there &= low - start[lane] < np.uint64(self.shape.slot_bytes)
        found: Flags = there.reshape(-1, self.lanes).any(axis=0)[lanes]
        return found

    def extend(self, lanes: Indices, slot: Indices, *numbers: Words) -> None:
        """Add numbers to the identities of images."""
        identity = self.slots["identity"]
        for at, (lane, each) in enumerate(zip(lanes, slot, strict=True)):
            identity[lane, each] = digest(b"", int(identity[lane, each]), *(int(number[at]) for number in numbers))


def _rows(columns: dict[str, Any], *shape: int) -> dict[str, NDArray[Any]]:
    return {name: np.zeros(shape, kind) for name, kind in columns.items()}
