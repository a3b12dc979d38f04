"""The Intravisor on many lanes: the fast twin of `model.monitor`. The specification is spec/cvm.md.

Every lane is a system of its own: memory, cVMs, threads and the monitor's tables. The threads of all lanes are harts of one
batch machine: thread t of lane n is hart t * lanes + n. A step is taken by one thread in each of some lanes.

Arguments called `lanes`, `harts`, and what belongs to them, are arrays of one length, one element for each lane that takes
part; no lane is named twice.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from capvisor.fastpath import bounds, capability
from capvisor.fastpath import isa as _kernels  # declares the kernels
from capvisor.fastpath.calls import CALL_KERNELS, WORD_BYTES, Callers, Codes
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.machine import DDC, INSTRUCTION_BYTES, PCC, Indices
from capvisor.fastpath.shared import Harts, SharedMemory
from capvisor.fastpath.tables import FRAME, GRANT, PAIR_SHIFT, PORTAL, REGION, THREAD, Table, pair
from capvisor.fastpath.workspace import Causes, Flags, Words, Workspace
from capvisor.spec import cvm
from capvisor.spec.cvm import CALLS, ArgumentKind, Call, Code
from capvisor.spec.formats import CapabilityFormat, Permission
from capvisor.spec.policy import INTENDED, MonitorPolicy
from capvisor.spec.registers import REGISTER_COUNT, Privilege

assert _kernels

INVOKED_DATA = 31
"""Where CInvoke leaves the data capability."""


class BatchMonitor:
    """`lanes` monitors, and all that they guard."""

    memory_type: type[SharedMemory] = SharedMemory

    def __init__(
        self,
        fmt: CapabilityFormat,
        memory_base: int,
        memory_bytes: int,
        lanes: int,
        policy: MonitorPolicy = INTENDED,
        threads: int = 4,
    ) -> None:
        """With room for so many threads in each lane; more is made when it is needed."""
        self.format, self.lanes, self.policy = fmt, lanes, policy
        self.memory = self.memory_type(fmt, memory_base, memory_bytes, lanes)
        self.harts = Harts(self.memory, threads * lanes)
        self.threads: dict[str, NDArray[Any]] = {name: np.zeros(threads * lanes, kind) for name, kind in THREAD.items()}
        self.frames: dict[str, NDArray[Any]] = {name: np.zeros(threads * lanes, kind) for name, kind in FRAME.items()}
        self.regions, self.grants, self.portals = (Table(lanes, columns) for columns in (REGION, GRANT, PORTAL))
        self.held, self.probed = (Table(lanes, {"holds": np.bool_}) for _ in range(2))
        self.is_slot = np.zeros((lanes, self.memory.granules), np.bool_)
        self.slot_grant = np.zeros((lanes, self.memory.granules), np.uint64)
        self.clock, self.printed = np.zeros(lanes, np.uint64), np.zeros(lanes, np.uint64)

    # -- threads -----------------------------------------------------------------------------------------------------------

    @property
    def slots(self) -> int:
        """How many threads there is room for in each lane."""
        return self.harts.lanes // self.lanes

    def thread_counts(self) -> Indices:
        """How many threads were ever started, by lane."""
        counts: Indices = self.threads["exists"].reshape(self.slots, self.lanes).sum(axis=0)
        return counts

    def live_counts(self, lanes: Indices) -> Indices:
        """How many threads are live."""
        counts: Indices = self.threads["is_live"].reshape(self.slots, self.lanes)[:, lanes].sum(axis=0)
        return counts

    def harts_of(self, lanes: Indices) -> Indices:
        """The harts of all threads of some lanes, live or not."""
        harts = (np.arange(self.slots)[:, None] * self.lanes + lanes).reshape(-1)
        found: Indices = harts[self.threads["exists"][harts]]
        return found

    def start_thread(self, lanes: Indices, cvm_id: Words, entry: Words, argument: Words | int = 0) -> Indices:
        """A new thread of a cVM in each of some lanes, at an entry of it; their harts."""
        numbers = self.thread_counts()[lanes]
        while len(numbers) and numbers.max() >= self.slots:
            self.add_slots()
        harts: Indices = numbers * self.lanes + lanes
        for name, column in self.threads.items():
            column[harts] = {"exists": True, "is_live": True, "home": cvm_id}.get(name, 0)
        self.frames["is_inside"][harts] = False
        self.resume(harts, cvm_id, entry)
        self.write_integer(cvm.RESULT_REGISTERS[0], harts, argument)
        return harts

    def add_slots(self) -> None:
        """Make room for twice as many threads."""
        harts = Harts(self.memory, 2 * self.harts.lanes)
        harts.copy_of(self.harts)
        self.harts = harts
        for columns in (self.threads, self.frames):
            for name, column in columns.items():
                columns[name] = np.concatenate([column, np.zeros_like(column)])

    def resume(self, harts: Indices, cvm_id: Words, entry: Words) -> None:
        """Let threads go on for a cVM at an entry, with empty registers."""
        machine, lanes = self.harts, harts % self.lanes
        at = self.regions.find(lanes, cvm_id)
        base, top, is_purecap = (self.regions[name][lanes, at] for name in ("base", "top", "is_purecap"))
        self.threads["domain"][harts] = cvm_id
        if self.policy.registers_cleared:
            for register in range(1, REGISTER_COUNT):
                self.write_integer(register, harts, 0)
        machine.numbers["privilege"][harts] = Privilege.USER
        machine.is_reserved[harts] = False
        self.write(PCC, harts, self.region_code(lanes, cvm_id))
        machine.pc[harts] = base + entry & np.uint64(self.format.address_mask - 1)
        machine.pcc_changed(harts)
        data, stack = self.region_data(lanes, cvm_id), top - np.uint64(self.store_bytes)
        null_meta, zero = np.uint64(self.format.null_meta), np.uint64(0)
        ddc_meta, ddc_address = np.where(is_purecap, null_meta, data.meta), np.where(is_purecap, zero, data.address)
        self.write(DDC, harts, Lanes(data.tag & ~is_purecap, ddc_meta, ddc_address))
        moved = Lanes(np.empty_like(data.tag), np.empty_like(data.meta), np.empty_like(data.address))
        capability.set_address(self.format, data, stack, Workspace(len(harts)), moved)
        pointer = Lanes(moved.tag & is_purecap, np.where(is_purecap, moved.meta, null_meta), stack)
        self.write(cvm.STACK_POINTER, harts, pointer)

    def write(self, row: int, harts: Indices, cap: Lanes) -> None:
        """Put capabilities in a register, which isn't c0, or in a special one."""
        machine = self.harts
        machine.tags[row, harts], machine.metas[row, harts], machine.addresses[row, harts] = cap

    def write_integer(self, register: int, harts: Indices, values: Words | int) -> None:
        """Put integers, modulo 2**XLEN, in a register, which isn't c0."""
        machine = self.harts
        machine.tags[register, harts], machine.metas[register, harts] = False, self.format.null_meta
        machine.addresses[register, harts] = values & np.uint64(self.format.address_mask)

    # -- what it mints -----------------------------------------------------------------------------------------------------

    @property
    def store_bytes(self) -> int:
        """The size of a capability store."""
        return len(cvm.STORE_SLOTS) * self.format.capability_bytes

    def fits(self, base: Words, size: Words) -> Flags:
        """Whether [base, base + size) ends in the address space."""
        most = np.uint64(self.format.address_mask)
        # size <= 2**A - base, without 2**A.
        fit: Flags = (base <= most) & ((size == 0) | (size - np.uint64(1) <= most - base))
        return fit

    def mint(self, base: Words, size: Words, permissions: Words | int) -> tuple[Lanes, Flags]:
        """Capabilities to [base, base + size), and whether bounds can say that exactly."""
        fmt, count = self.format, len(base)
        ws, exact = Workspace(count), np.empty(count, np.bool_)
        bounded, meta = np.empty(count, np.uint64), np.empty(count, np.uint64)
        root, length = np.full(count, fmt.root_meta, np.uint64), size & np.uint64(fmt.address_mask)
        bounds.set_bounds(fmt, root, base, length, ws, bounded, exact)
        wanted = permissions if isinstance(permissions, np.ndarray) else np.full(count, permissions, np.uint64)
        capability.set_permissions(fmt, bounded, wanted, ws, meta)
        return Lanes(self.fits(base, size), meta, base.copy()), exact

    def region_code(self, lanes: Indices, cvm_id: Words) -> Lanes:
        """What cVMs' instructions are fetched by."""
        at = self.regions.find(lanes, cvm_id)
        base, top = self.regions["base"][lanes, at], self.regions["top"][lanes, at]
        return self.mint(base, top - base, int(cvm.CODE_PERMISSIONS))[0]

    def region_data(self, lanes: Indices, cvm_id: Words) -> Lanes:
        """CVMs' data."""
        hybrid, purecap = cvm.HYBRID_DATA, cvm.PURECAP_DATA
        if not self.policy.ddc_without_store_capability:
            hybrid |= Permission.STORE_CAPABILITY | Permission.STORE_LOCAL_CAPABILITY
        if not self.policy.purecap_without_store_local:
            purecap |= Permission.STORE_LOCAL_CAPABILITY
        at = self.regions.find(lanes, cvm_id)
        base, top, is_purecap = (self.regions[name][lanes, at] for name in ("base", "top", "is_purecap"))
        return self.mint(base, top - base, np.where(is_purecap, np.uint64(purecap), np.uint64(hybrid)))[0]

    def grant_permissions(self) -> int:
        """What a granted capability permits."""
        permissions = cvm.GRANT_PERMISSIONS
        if not self.policy.local_grants:
            permissions |= Permission.GLOBAL
        if not self.policy.grants_without_load_capability:
            permissions |= Permission.LOAD_CAPABILITY
        if not self.policy.grants_without_store_capability:
            permissions |= Permission.STORE_CAPABILITY | Permission.STORE_LOCAL_CAPABILITY
        return int(permissions)

    def otype(self, cvm_id: Words) -> Words:
        """The object types of what is sealed for cVMs, or for the monitor."""
        if not self.policy.distinct_otypes:
            return np.full(len(cvm_id), cvm.SHARED_OTYPE, np.uint64)
        return cvm_id + np.uint64(cvm.FIRST_OTYPE)

    def sealed(self, cap: Lanes, otype: Words) -> Lanes:
        """Capabilities with these object types."""
        field = self.format.otype
        meta = cap.meta & np.uint64(self.format.address_mask & ~field.in_place) | otype << np.uint64(field.low)
        return Lanes(cap.tag, meta, cap.address)

    def monitor_meta(self, absent: Permission) -> int:
        """The upper half of the monitor's code or data capability, unsealed, which lacks a permission."""
        fmt = self.format
        others = fmt.root_meta & ~(fmt.permissions.in_place | fmt.software_permissions.in_place)
        return others | int(cvm.MONITOR_PERMISSIONS & ~absent) << fmt.permissions.low

    def own_pair(self, lanes: Indices, cvm_id: Words) -> tuple[Lanes, Lanes]:
        """The sealed pairs by which cVMs are entered."""
        otype = self.otype(cvm_id)
        return self.sealed(self.region_code(lanes, cvm_id), otype), self.sealed(self.region_data(lanes, cvm_id), otype)

    def call_pair(self, lanes: Indices, outer: Words) -> tuple[Lanes, Lanes]:
        """The sealed pairs by which cVMs call: those of the cVMs that they are nested in, or the monitor's."""
        by_monitor = outer == cvm.MONITOR
        nowhere, pairs = np.zeros(len(lanes), np.uint64), []
        for absent, cap in zip((Permission.STORE, Permission.EXECUTE), self.own_pair(lanes, outer), strict=True):
            whole = Lanes(by_monitor, np.full(len(lanes), self.monitor_meta(absent), np.uint64), nowhere)
            theirs = self.sealed(whole, self.otype(nowhere))
            meta, address = (np.where(by_monitor, one, other) for one, other in zip(theirs[1:], cap[1:], strict=True))
            pairs.append(Lanes(np.where(by_monitor, True, cap.tag), meta, address))
        return pairs[0], pairs[1]

    # -- memory ------------------------------------------------------------------------------------------------------------

    def contains(self, address: Words, size_bytes: int) -> Flags:
        """Whether all of [address, address + size_bytes) is memory."""
        memory = self.memory
        if size_bytes > memory.size_bytes:
            return np.zeros(len(address), np.bool_)
        return (address >= memory.base) & (address - np.uint64(memory.base) <= np.uint64(memory.size_bytes - size_bytes))

    def is_there(self, _lanes: Indices, _address: Words, where: Flags) -> Flags:
        """Of some places, those whose memory is there: here all is."""
        return where

    def put(self, lanes: Indices, address: Words, cap: Lanes) -> None:
        """Store capabilities."""
        upper = cap.meta ^ np.uint64(self.format.null_meta)
        everywhere = np.ones(len(lanes), np.bool_)
        block, ws = self.memory.selection(lanes), Workspace(len(lanes))
        block.write_granule(address, cap.tag, upper, cap.address, ws, everywhere)

    def get(self, lanes: Indices, address: Words) -> Lanes:
        """Load capabilities."""
        count = len(lanes)
        tag, upper, lower = np.empty(count, np.bool_), np.empty(count, np.uint64), np.empty(count, np.uint64)
        self.memory.selection(lanes).read_granule(address, Workspace(count), tag, upper, lower)
        return Lanes(tag, upper ^ np.uint64(self.format.null_meta), lower)

    @property
    def _half_bytes(self) -> int:
        """How much of a word memory accesses at a time."""
        return min(WORD_BYTES, self.format.capability_bytes // 2)

    def store_word(self, lanes: Indices, address: Words, word: Words) -> None:
        """Store words."""
        block, ws, everywhere = self.memory.selection(lanes), Workspace(len(lanes)), np.ones(len(lanes), np.bool_)
        for place in range(0, WORD_BYTES, self._half_bytes):
            part = word >> np.uint64(8 * place)
            block.write(address + np.uint64(place), self._half_bytes, part, ws, everywhere)

    def load_word(self, lanes: Indices, address: Words) -> Words:
        """Load words."""
        block, ws, count = self.memory.selection(lanes), Workspace(len(lanes)), len(lanes)
        word, part = np.zeros(count, np.uint64), np.empty(count, np.uint64)
        for place in range(0, WORD_BYTES, self._half_bytes):
            block.read(address + np.uint64(place), self._half_bytes, ws, part)
            word |= part << np.uint64(8 * place)
        return word

    def scrub(self, lanes: Indices, base: Words, top: Words) -> None:
        """Clear memory, of whole granules."""
        at = self.granules_in(lanes, base, top)
        self.memory.tags[at], self.memory.halves[at] = False, 0

    def forget_slots(self, lanes: Indices, base: Words, top: Words) -> None:
        """That no grant has been put where memory gets another owner, or none."""
        self.is_slot[self.granules_in(lanes, base, top)] = False

    def granules_in(self, lanes: Indices, base: Words, top: Words) -> tuple[Indices, Indices]:
        """The granules that begin in [base, top): lanes and numbers."""
        address = np.arange(self.memory.granules, dtype=np.uint64) << np.uint64(self.format.granule_shift)
        address += np.uint64(self.memory.base)
        which, granule = np.nonzero((base[:, None] <= address) & (address < top[:, None]))
        return lanes[which], granule

    # -- the deployer's operations -----------------------------------------------------------------------------------------

    def create(self, lanes: Indices, cvm_id: Words, base: Words, size: Words, is_purecap: Flags, outer: Words) -> Codes:
        """New cVMs in [base, base + size), perhaps nested in other ones; the codes."""
        # CHECKS
        codes = np.zeros(len(lanes), np.uint8)

        def refuse(where: Flags, code: Code) -> None:
            np.copyto(codes, code.value, where=where & (codes == 0))

        regions, memory, granule = self.regions, self.memory, np.uint64(self.format.capability_bytes - 1)
        refuse(regions.get("is_live", lanes, cvm_id), Code.EXISTS)
        refuse(regions.count(lanes) >= cvm.MAX_CVMS, Code.FULL)
        refuse(self.otype(cvm_id) > self.format.max_otype, Code.FULL)
        _cap, exact = self.mint(base, size, int(cvm.CODE_PERMISSIONS))
        inside = (size <= memory.size_bytes) & (base >= memory.base)
        inside &= base - np.uint64(memory.base) <= np.uint64(memory.size_bytes) - size
        aligned = (base & granule == 0) & (size & granule == 0)
        refuse(~(aligned & exact & (size > self.store_bytes) & (base > 0) & inside), Code.RANGE)
        top, nested = base + size, outer != cvm.MONITOR
        at = regions.find(lanes, outer)
        around = {name: regions[name][lanes, at] for name in REGION}
        refuse(nested & ~(around["is_live"] & (around["outer"] == cvm.MONITOR)), Code.NOT_FOUND)
        if self.policy.outer_is_hybrid:
            refuse(nested & (around["is_purecap"] | is_purecap), Code.RANGE)
        if self.policy.regions_disjoint:
            within = (around["base"] <= base) & (top <= around["top"] - np.uint64(self.store_bytes))
            refuse(nested & ~within, Code.RANGE)
            apart = (top[:, None] <= regions["base"][lanes]) | (regions["top"][lanes] <= base[:, None])
            apart |= ~regions["is_live"][lanes] | (regions.numbers[lanes] == outer[:, None])
            refuse(np.asarray(~apart.all(axis=1)), Code.RANGE)
        # EFFECT
        done = codes == 0
        lanes, cvm_id, base, top, outer, is_purecap = (each[done] for each in (lanes, cvm_id, base, top, outer, is_purecap))
        if self.policy.scrub_on_create:
            self.scrub(lanes, base, top)
        self.forget_slots(lanes, base, top)
        regions.put(lanes, cvm_id, is_live=True, base=base, top=top, outer=outer, is_purecap=is_purecap)
        store = top - np.uint64(self.store_bytes)
        for place, cap in enumerate((*self.own_pair(lanes, cvm_id), *self.call_pair(lanes, outer))):
            self.put(lanes, store + np.uint64(place * self.format.capability_bytes), cap)
        return codes

    def destroy(self, lanes: Indices, cvm_id: Words) -> Codes:
        """End cVMs: their threads, their grants and portals; their memory is cleared; the codes."""
        # CHECKS
        regions, grants, portals = self.regions, self.grants, self.portals
        codes = np.where(regions.get("is_live", lanes, cvm_id), np.uint8(0), np.uint8(Code.NOT_FOUND.value))
        is_outer = (regions["is_live"][lanes] & (regions["outer"][lanes] == cvm_id[:, None])).any(axis=1)
        np.copyto(codes, Code.BUSY.value, where=is_outer & (codes == 0))
        # EFFECT
        lanes, cvm_id = lanes[codes == 0], cvm_id[codes == 0]
        by_lane = np.zeros(self.lanes, np.uint64)
        by_lane[lanes] = cvm_id
        harts = self.harts_of(lanes)
        self.threads["is_live"][harts] &= self.threads["home"][harts] != by_lane[harts % self.lanes]
        at = regions.find(lanes, cvm_id)
        base, top = regions["base"][lanes, at], regions["top"][lanes, at]
        ends = np.zeros((len(lanes), grants.numbers.shape[1]), np.bool_)
        for row in range(1, grants.numbers.shape[1]):
            numbers = grants.numbers[lanes, row]
            served = portals.get("owner", lanes, numbers - np.uint64(cvm.KEYS) & np.uint64(cvm.KEYS - 1)) == cvm_id
            ends[:, row] = (grants["owner"][lanes, row] == cvm_id) | (numbers >= cvm.KEYS) & served
            ends[:, row] &= grants.is_used[lanes, row]
        self._purge_slots(lanes, ends)
        self._purge_registers(lanes, base, top - base)
        grants["is_live"][lanes] &= ~ends
        low = np.uint64((1 << PAIR_SHIFT) - 1)
        for table in (self.held, self.probed):
            table["holds"][lanes] &= table.numbers[lanes] & low != cvm_id[:, None]
        portals["is_live"][lanes] &= portals["owner"][lanes] != cvm_id[:, None]
        self.threads["waits"][harts] &= portals.get("is_live", harts % self.lanes, self.threads["waits_for"][harts])
        self.scrub(lanes, base, top)
        self.forget_slots(lanes, base, top)
        regions["is_live"][lanes, at] = False
        return codes

    # -- grants ------------------------------------------------------------------------------------------------------------

    def offer(self, lanes: Indices, number: Words, owner: Words, base: Words, size: Words) -> Flags:
        """New grants of [base, base + size), and where they are made: elsewhere the range is refused."""
        _cap, exact = self.mint(base, size, int(cvm.GRANT_PERMISSIONS))
        made = exact & (size > 0) & self.fits(base, size)
        lanes, number = lanes[made], number[made]
        self.grants.put(lanes, number, is_live=True, owner=owner[made], base=base[made], size=size[made], last_slot=0)
        self.forget(self.held, lanes, number)
        self.is_slot[lanes] &= self.slot_grant[lanes] != number[:, None]
        return made

    def forget(self, table: Table, lanes: Indices, number: Words) -> None:
        """That no cVM has probed something any more."""
        table["holds"][lanes] &= table.numbers[lanes] >> np.uint64(PAIR_SHIFT) != number[:, None]

    def put_grant(self, lanes: Indices, caller: Words, address: Words, number: Words) -> Flags:
        """Store granted capabilities at a place in the caller's memory, where that may be: elsewhere it is refused."""
        regions, bytes_ = self.regions, self.format.capability_bytes
        placed = (address & np.uint64(bytes_ - 1) == 0) & self.contains(address, bytes_)
        if self.policy.probe_location_checked:
            inner = regions["is_live"][lanes] & (regions["outer"][lanes] == caller[:, None])
            apart = (address + np.uint64(bytes_))[:, None] <= regions["base"][lanes]
            apart |= regions["top"][lanes] <= address[:, None]
            placed &= ~(inner & ~apart).any(axis=1)
        placed = self.is_there(lanes, address, placed)
        lanes, caller, address, number = lanes[placed], caller[placed], address[placed], number[placed]
        at = self.grants.find(lanes, number)
        base, size = self.grants["base"][lanes, at], self.grants["size"][lanes, at]
        self.put(lanes, address, self.mint(base, size, self.grant_permissions())[0])
        index = address - np.uint64(self.memory.base) >> np.uint64(self.format.granule_shift)
        self.is_slot[lanes, index.astype(np.int64)] = True
        self.slot_grant[lanes, index.astype(np.int64)] = number
        self.grants.put(lanes, number, last_slot=index)
        self.note(self.held, lanes, number, caller)
        found: Flags = placed
        return found

    def note(self, table: Table, lanes: Indices, number: Words, caller: Words) -> None:
        """That cVMs have probed something, and with them those that they are nested in."""
        table.put(lanes, pair(number, caller), holds=True)
        outer = self.regions.get("outer", lanes, caller)
        nested = outer != cvm.MONITOR
        table.put(lanes[nested], pair(number[nested], outer[nested]), holds=True)

    def revoke(self, lanes: Indices, number: Words) -> None:
        """Take grants back: out of memory, if they haven't been already, and out of registers."""
        at = self.grants.find(lanes, number)
        base, size, last = (self.grants[name][lanes, at] for name in ("base", "size", "last_slot"))
        meant = self.grants["is_live"][lanes] & (self.grants.numbers[lanes] == number[:, None])
        self.withdraw(lanes, number)
        self._purge_slots(lanes, meant, last)
        self._purge_registers(lanes, base, size)

    def withdraw(self, lanes: Indices, number: Words) -> None:
        """End grants, so that no one gets them any more."""
        self.grants.put(lanes, number, is_live=False)

    def _purge_slots(self, lanes: Indices, meant: Flags, last: Words | None = None) -> None:
        """Untag the slots of some rows of the table of grants; `meant` is [lanes, rows]."""
        if not self.policy.purge_slots:
            return
        purged = np.zeros((len(lanes), self.memory.granules), np.bool_)
        for row in np.flatnonzero(meant.any(axis=0)):
            purged |= (self.slot_grant[lanes] == self.grants.numbers[lanes, row][:, None]) & meant[:, row, None]
        purged &= self.is_slot[lanes]
        if last is not None and not self.policy.purge_all_probers:
            purged &= np.arange(self.memory.granules, dtype=np.uint64) == last[:, None]
        which, granule = np.nonzero(purged)
        self.memory.tags[lanes[which], granule] = False

    def _purge_registers(self, lanes: Indices, base: Words, size: Words) -> None:
        """Untag what overlaps [base, base + size), isn't the thread's own and isn't sealed, in registers and in DDC."""
        if not self.policy.purge_registers:
            return
        machine, harts = self.harts, self.harts_of(lanes)
        rows = np.array([*range(1, REGISTER_COUNT), DDC])
        row, which = np.nonzero(machine.tags[np.ix_(rows, harts)])
        row, hart = rows[row], harts[which]
        count, lane = len(row), hart % self.lanes
        from_base, over = np.zeros(self.lanes, np.uint64), np.zeros(self.lanes, np.uint64)
        from_base[lanes], over[lanes] = base, size
        start, length = from_base[lane], over[lane]
        at = self.regions.find(lane, self.threads["domain"][hart])
        own_base, own_top = self.regions["base"][lane, at], self.regions["top"][lane, at]
        meta, ws = machine.metas[row, hart], Workspace(count)
        low, high, beyond = np.empty(count, np.uint64), np.empty(count, np.uint64), np.empty(count, np.bool_)
        bounds.decode_bounds(self.format, meta, machine.addresses[row, hart], ws, low, high, beyond)
        kept = (own_base <= low) & (high <= own_top) & ~beyond
        kept |= (low >= start) & (low - start >= length) | (high <= start) & ~beyond
        ordinary = np.empty(count, np.bool_)
        capability.has_ordinary_otype(self.format, meta, ws, ordinary)
        lost = ~(kept | ordinary)
        machine.tags[row[lost], hart[lost]] = False

    def finish(self, harts: Indices) -> None:
        """The calls that threads serve are over: their grants end, and whoever waits goes on."""
        lanes, portal = harts % self.lanes, self.threads["portal"][harts]
        number = portal + np.uint64(cvm.KEYS)
        if self.policy.purge_fetched:
            self.revoke(lanes, number)
        else:
            self.withdraw(lanes, number)
        self.portals.put(lanes, portal, is_busy=False)
        self.threads["serves"][harts] = False
        by_lane = np.zeros(self.lanes, np.uint64)
        by_lane[lanes] = portal
        others = self.harts_of(lanes)
        self.threads["waits"][others] &= self.threads["waits_for"][others] != by_lane[others % self.lanes]

    # -- guests ------------------------------------------------------------------------------------------------------------

    def step(self, harts: Indices, name: str, operands: tuple[Any, ...]) -> Causes:
        """One instruction of a thread in each of some lanes; why it was refused, by number, 0 where it was completed.

        Refused, it is skipped by the kernel below, and the thread goes on behind it. An operand may be an array: registers
        as int64, immediates as uint64.
        """
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
        if name == "cinvoke":
            self.invoked(harts[~refused])
        return causes

    def invoked(self, harts: Indices) -> None:
        """Pairs were invoked: whom do the threads run for now?"""
        machine, lanes, domain = self.harts, harts % self.lanes, self.threads["domain"][harts]
        meta, address = machine.metas[PCC, harts], machine.addresses[PCC, harts]
        enters = (meta == self.monitor_meta(Permission.STORE)) & (address == 0)
        outer = self.regions.get("outer", lanes, domain)
        code = self.region_code(lanes, outer)
        leaves = ~enters & (outer != cvm.MONITOR) & (meta == code.meta) & (address == code.address)
        self.threads["domain"][harts[leaves]] = outer[leaves]
        self.enter(harts[enters])

    # -- calls -------------------------------------------------------------------------------------------------------------

    def caller_of(self, lanes: Indices, domain: Words, stack: Words) -> Words:
        """Whom calls are made for."""
        if self.policy.identity_from_hardware:
            return domain
        regions, at = self.regions, stack[:, None]
        named = regions["is_live"][lanes] & (regions["base"][lanes] <= at) & (at < regions["top"][lanes])
        found: Words = np.where(named, regions.numbers[lanes], np.uint64(0)).max(axis=1)
        return found

    def enter(self, harts: Indices) -> None:
        """The first part of a call: the context is saved, the arguments are checked."""
        machine, lanes, frames = self.harts, harts % self.lanes, self.frames
        words = [machine.addresses[register, harts] for register in cvm.ARGUMENT_REGISTERS]
        number, stack = machine.addresses[cvm.NUMBER_REGISTER, harts], machine.addresses[cvm.STACK_POINTER, harts]
        domain = self.threads["domain"][harts]
        caller, handle, otype = self.caller_of(lanes, domain, stack), cvm.ARGUMENT_REGISTERS[0], self.format.otype
        is_handle = machine.metas[handle, harts] & np.uint64(otype.in_place) == cvm.HANDLE_OTYPE << otype.low
        has_handle = machine.tags[handle, harts] & is_handle
        found = (True, number, domain, caller, has_handle, self.refusal(lanes, number, caller, words), stack, *words)
        for name, values in zip(FRAME, found, strict=True):
            frames[name][harts] = values
        words_at, saved_at = self.stack_frame(stack)
        on_stack = self.is_on_stack(stack)
        if not self.policy.monitor_stack:
            for place, word in enumerate(words):
                self.store_word(lanes[on_stack], words_at[on_stack] + np.uint64(place * WORD_BYTES), word[on_stack])
        if not self.policy.saved_context_private:
            kept = harts[on_stack]
            ddc = Lanes(machine.tags[DDC, kept], machine.metas[DDC, kept], machine.addresses[DDC, kept])
            self.put(lanes[on_stack], saved_at[on_stack], ddc)

    def stack_frame(self, stack: Words) -> tuple[Words, Words]:
        """Where the monitor puts arguments and the caller's DDC, if it uses a guest's stack."""
        granule = self.format.capability_bytes
        below = stack & np.uint64(self.format.address_mask - (granule - 1))
        return below - np.uint64(4 * granule), below - np.uint64(granule)

    def is_on_stack(self, stack: Words) -> Flags:
        """Whether there is memory for that."""
        return self.contains(self.stack_frame(stack)[0], 4 * self.format.capability_bytes)

    def refusal(self, lanes: Indices, number: Words, caller: Words, words: list[Words]) -> Codes:
        """Whether what calls' arguments name lies in the caller's region."""
        codes = np.full(len(lanes), Code.NO_SUCH_CALL.value, np.uint8)
        at = self.regions.find(lanes, caller)
        size = self.regions["top"][lanes, at] - self.regions["base"][lanes, at]
        for row in CALLS.values():
            mine = number == row.number
            if not mine.any():
                continue
            beyond = np.zeros(len(lanes), np.bool_)
            for place, (_name, kind) in enumerate(row.arguments):
                if self.is_checked(kind):
                    needed = self.needed_bytes(row, place, words)
                    beyond |= (needed > size) | (words[place] > size - needed)
            codes[mine] = np.where(beyond[mine], Code.RANGE.value, Code.OK.value)
        return codes

    def is_checked(self, kind: ArgumentKind) -> bool:
        """Whether the policy has arguments of a kind checked."""
        guards = {
            ArgumentKind.POINTER: self.policy.pointers_checked,
            ArgumentKind.RANGE: self.policy.advertised_range_checked,
            ArgumentKind.LOCATION: self.policy.probe_location_checked,
            ArgumentKind.ENTRY: True,
        }
        return guards.get(kind, False)

    def needed_bytes(self, row: Call, place: int, words: list[Words]) -> Words:
        """How much memory is meant by an argument."""
        following = row.arguments[place + 1 : place + 2]
        if following and following[0][1] is ArgumentKind.SIZE:
            return words[place + 1]
        is_location = row.arguments[place][1] is ArgumentKind.LOCATION
        return np.full(len(words[0]), self.format.capability_bytes if is_location else WORD_BYTES, np.uint64)

    def leave(self, harts: Indices) -> Codes:
        """The second part of calls: what was asked for is done, and the callers go on; the codes."""
        frames, lanes = self.frames, harts % self.lanes
        words = [frames[f"argument{place}"][harts] for place in range(len(cvm.ARGUMENT_REGISTERS))]
        stack, number, codes = frames["stack"][harts], frames["number"][harts], frames["refusal"][harts]
        if not self.policy.monitor_stack:
            on_stack, (words_at, _saved_at) = self.is_on_stack(stack), self.stack_frame(stack)
            for place, word in enumerate(words):
                word[on_stack] = self.load_word(lanes[on_stack], words_at[on_stack] + np.uint64(place * WORD_BYTES))
        allowed = codes == 0
        for name, row in CALLS.items():
            mine = allowed & (number == row.number)
            if mine.any():
                who = Callers(self, harts[mine])
                CALL_KERNELS[name](self, who, *(word[mine] for word in words[: len(row.arguments)]))
                codes[mine] = who.code
        back = self.frames["is_inside"][harts]
        self.frames["is_inside"][harts] = False
        self._go_back(harts[back], stack[back], codes[back])
        return codes

    def _go_back(self, harts: Indices, stack: Words, codes: Codes) -> None:
        """Let callers go on at their return entries, with their own authority and the codes."""
        lanes, domain, machine = harts % self.lanes, self.threads["domain"][harts], self.harts
        self.write(PCC, harts, self.region_code(lanes, domain))
        machine.pc[harts] = self.regions.get("base", lanes, domain)
        machine.pcc_changed(harts)
        if not self.policy.saved_context_private:
            on_stack, (_words_at, saved_at) = self.is_on_stack(stack), self.stack_frame(stack)
            self.write(DDC, harts[on_stack], self.get(lanes[on_stack], saved_at[on_stack]))
        self.write_integer(INVOKED_DATA, harts, 0)
        self.write_integer(cvm.RESULT_REGISTERS[0], harts, codes.astype(np.uint64))

    def address(self, lanes: Indices, caller: Words, pointer: Words) -> Words:
        """The addresses that pointers of cVMs mean."""
        return self.regions.get("base", lanes, caller) + pointer & np.uint64(self.format.address_mask)

    def answer(self, harts: Indices, values: Words) -> None:
        """Give a second result."""
        self.write_integer(cvm.RESULT_REGISTERS[1], harts, values)
