"""The Intravisor: a monitor of capability VMs (cVMs) that live in one address space. The specification is spec/cvm.md.

Guests run on harts in user mode and may execute any instruction. A guest enters the monitor by invoking the sealed pair that
it was given; what the monitor does then is a call in two parts, so that other threads may run in between: `enter` saves the
caller's context and checks the arguments, `leave` does what was asked for (`model.calls`) and goes back.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from capvisor.model import capability
from capvisor.model.bits import not_, select
from capvisor.model.calls import CALL_RULES, WORD_BYTES
from capvisor.model.capability import Capability
from capvisor.model.isa.control import INVOKED_DATA
from capvisor.model.machine import INSTRUCTION_BYTES, Hart, Trap
from capvisor.model.memory import EMPTY, Granule, Memory
from capvisor.model.tables import (
    CvmId,
    Frame,
    Grant,
    Portal,
    Region,
    Rows,
    Size,
    Slot,
    Table,
    Thread,
    ThreadList,
    Threads,
    Word,
)
from capvisor.spec import cvm
from capvisor.spec.cvm import CALLS, ArgumentKind, Call, Code
from capvisor.spec.formats import Permission
from capvisor.spec.policy import INTENDED, MonitorPolicy
from capvisor.spec.registers import Privilege

__all__ = [
    "CALL_RULES",
    "Frame",
    "Grant",
    "Monitor",
    "MonitorAccess",
    "Portal",
    "Region",
    "Rows",
    "Slot",
    "Table",
    "Thread",
    "ThreadList",
    "Threads",
    "is_same_place",
]


class MonitorAccess(NamedTuple):
    """An access of the monitor to memory, made for a cVM."""

    domain: CvmId
    address: int
    size_bytes: int
    is_store: bool


class Monitor:
    """The monitor and all that it guards: memory, cVMs, threads, grants and portals."""

    def __init__(
        self,
        memory: Memory,
        policy: MonitorPolicy = INTENDED,
        make_table: Callable[[str, Any], Table] = lambda _name, empty: Rows(empty),
        threads: Threads | None = None,
        make_hart: Callable[[Memory], Hart] = Hart,
    ) -> None:
        self.memory, self.policy, self.format = memory, policy, memory.format
        self.threads: Threads = ThreadList() if threads is None else threads
        self.make_hart = make_hart
        self.regions = make_table("regions", Region())
        self.grants = make_table("grants", Grant())
        self.slots = make_table("slots", Slot())
        self.held = make_table("held", False)
        """By grant and cVM: whether that cVM, or one inside it, has probed the grant."""
        self.portals = make_table("portals", Portal())
        self.probed = make_table("probed", False)
        """By portal and cVM: whether that cVM has probed the portal."""
        self.clock, self.printed = 0, 0
        self.accesses: list[MonitorAccess] = []

    # -- what there is -----------------------------------------------------------------------------------------------------

    def granule(self, index: int) -> Capability:
        """The capability that a granule of memory holds; an index counts from the start of memory."""
        return capability.from_memory(self.format, *self.memory.store.get(index))

    def grants_of(self, _cap: Capability) -> Iterable[int]:
        """The grants that a capability may be derived from: all."""
        assert isinstance(self.grants, Rows)
        return tuple(self.grants.rows)

    # -- what it mints -----------------------------------------------------------------------------------------------------

    def mint(self, base: int, size: Size, permissions: Permission) -> tuple[Capability, bool]:
        """A capability to [base, base + size), and whether bounds can say that exactly."""
        whole = capability.set_address(capability.root(self.format), base)
        cap, exact = capability.set_bounds(whole, size)
        return capability.and_permissions(cap, int(permissions)), exact & cap.tag

    def region_code(self, cvm_id: CvmId) -> Capability:
        """What a cVM's instructions are fetched by: its region, to be executed and read."""
        row = self.regions[cvm_id]
        return self.mint(row.base, row.top - row.base, cvm.CODE_PERMISSIONS)[0]

    def region_data(self, cvm_id: CvmId) -> Capability:
        """A cVM's data: DDC of hybrid code, the capability that pure-capability code starts with."""
        row = self.regions[cvm_id]
        hybrid, purecap = (self.mint(row.base, row.top - row.base, each)[0] for each in self.data_permissions())
        return capability.select_capability(row.is_purecap, purecap, hybrid)

    def data_permissions(self) -> tuple[Permission, Permission]:
        """What a region's data capability permits: of hybrid code, of pure-capability code."""
        hybrid, purecap = cvm.HYBRID_DATA, cvm.PURECAP_DATA
        if not self.policy.ddc_without_store_capability:
            hybrid |= Permission.STORE_CAPABILITY | Permission.STORE_LOCAL_CAPABILITY
        if not self.policy.purecap_without_store_local:
            purecap |= Permission.STORE_LOCAL_CAPABILITY
        return hybrid, purecap

    def grant_permissions(self) -> Permission:
        """What a granted capability permits."""
        permissions = cvm.GRANT_PERMISSIONS
        if not self.policy.local_grants:
            permissions |= Permission.GLOBAL
        if not self.policy.grants_without_load_capability:
            permissions |= Permission.LOAD_CAPABILITY
        if not self.policy.grants_without_store_capability:
            permissions |= Permission.STORE_CAPABILITY | Permission.STORE_LOCAL_CAPABILITY
        return permissions

    def otype(self, cvm_id: CvmId) -> int:
        """The object type of what is sealed for a cVM, or for the monitor."""
        if not self.policy.distinct_otypes:
            return cvm.SHARED_OTYPE
        return cvm.FIRST_OTYPE + cvm_id

    def monitor_code(self) -> Capability:
        """The monitor's entry, unsealed."""
        return capability.set_permissions(capability.root(self.format), int(cvm.MONITOR_PERMISSIONS & ~Permission.STORE))

    def monitor_data(self) -> Capability:
        """The monitor's data, unsealed: everything."""
        return capability.set_permissions(capability.root(self.format), int(cvm.MONITOR_PERMISSIONS & ~Permission.EXECUTE))

    def call_pair(self, cvm_id: CvmId) -> tuple[Capability, Capability]:
        """The sealed pair by which a cVM calls: the outer cVM's, or the monitor's."""
        outer = self.regions[cvm_id].outer
        return self.monitor_pair() if outer == cvm.MONITOR else self.own_pair(outer)

    def monitor_pair(self) -> tuple[Capability, Capability]:
        """The sealed pair by which the monitor is called."""
        otype = self.otype(cvm.MONITOR)
        return capability.set_otype(self.monitor_code(), otype), capability.set_otype(self.monitor_data(), otype)

    def own_pair(self, cvm_id: CvmId) -> tuple[Capability, Capability]:
        """The sealed pair by which a cVM is entered."""
        otype = self.otype(cvm_id)
        code, data = self.region_code(cvm_id), self.region_data(cvm_id)
        return capability.set_otype(code, otype), capability.set_otype(data, otype)

    # -- the deployer's operations -----------------------------------------------------------------------------------------

    def create(self, cvm_id: CvmId, base: int, size: Size, *, is_purecap: bool = False, outer: CvmId = 0) -> Code:
        """A new cVM in [base, base + size), perhaps nested in another one."""
        # CHECKS
        if self.regions[cvm_id].is_live:
            return Code.EXISTS
        if (self.regions.count() >= cvm.MAX_CVMS) | (self.otype(cvm_id) > self.format.max_otype):
            return Code.FULL
        granule = self.format.capability_bytes
        _cap, exact = self.mint(base, size, cvm.CODE_PERMISSIONS)
        store_bytes = len(cvm.STORE_SLOTS) * granule
        aligned = (base & granule - 1 == 0) & (size & granule - 1 == 0)
        # Address 0 is the monitor's, so that no cVM's code can be where the monitor is entered.
        if not_(aligned & exact & (size > store_bytes) & (base > 0) & self.memory.contains(base, size)):
            return Code.RANGE
        if outer != cvm.MONITOR:
            around = self.regions[outer]
            if not_(around.is_live & (around.outer == cvm.MONITOR)):
                return Code.NOT_FOUND
            if self.policy.outer_is_hybrid and around.is_purecap | is_purecap:
                return Code.RANGE
            if self.policy.regions_disjoint and not_((around.base <= base) & (base + size <= around.top - store_bytes)):
                return Code.RANGE
        if self.policy.regions_disjoint and not self.regions.all(
            lambda number, row: not_(row.is_live) | (number == outer) | (base + size <= row.base) | (row.top <= base)
        ):
            return Code.RANGE
        # EFFECT
        if self.policy.scrub_on_create:
            self.scrub(base, base + size)
        self.forget_slots(base, base + size)
        self.regions[cvm_id] = Region(True, base, base + size, outer, is_purecap)
        for place, cap in enumerate((*self.own_pair(cvm_id), *self.call_pair(cvm_id))):
            self.put(base + size - store_bytes + place * granule, cap)
        return Code.OK

    def scrub(self, base: int, top: int) -> None:
        """Clear memory, of whole granules."""
        shift, start = self.format.granule_shift, self.memory.base

        def cleared(index: int, granule: Granule) -> Granule:
            address = start + (index << shift)
            inside = (base <= address) & (address < top)
            return Granule(*(select(inside, empty, held) for empty, held in zip(EMPTY, granule, strict=True)))

        self.memory.map_granules(cleared)

    def forget_slots(self, base: int, top: int) -> None:
        """Memory gets another owner, or none: no grant has been put there."""
        shift, start = self.format.granule_shift, self.memory.base

        def forgotten(index: int, slot: Slot) -> Slot:
            address = start + (index << shift)
            return slot._replace(is_slot=slot.is_slot & not_((base <= address) & (address < top)))

        self.slots.map(forgotten)

    def destroy(self, cvm_id: CvmId) -> Code:
        """End a cVM: its threads, its grants and portals; its memory is cleared."""
        # CHECKS
        row = self.regions[cvm_id]
        if not_(row.is_live):
            return Code.NOT_FOUND
        if not self.regions.all(lambda _number, other: not_(other.is_live) | (other.outer != cvm_id)):
            return Code.BUSY
        # EFFECT

        def end(thread: Thread) -> None:
            thread.is_live = thread.is_live & (thread.home != cvm_id)

        self.threads.for_each(end)

        # Its grants, and those of calls that it serves.
        def ends(number: int, grant: Grant) -> bool:
            served = (number >= cvm.KEYS) & (self.portals[number - cvm.KEYS & cvm.KEYS - 1].owner == cvm_id)
            return (grant.owner == cvm_id) | served

        self.take_back(ends, row.base, row.top)
        self.grants.map(lambda number, grant: grant._replace(is_live=grant.is_live & not_(ends(number, grant))))
        self.held.map(lambda key, held: held & (key[1] != cvm_id))
        self.probed.map(lambda key, probed: probed & (key[1] != cvm_id))
        self.portals.map(lambda _number, portal: portal._replace(is_live=portal.is_live & (portal.owner != cvm_id)))

        def wake(thread: Thread) -> None:
            thread.waits = thread.waits & self.portals[thread.waits_for].is_live

        self.threads.for_each(wake)
        self.scrub(row.base, row.top)
        self.forget_slots(row.base, row.top)
        self.regions[cvm_id] = row._replace(is_live=False)
        return Code.OK

    def start_thread(self, cvm_id: CvmId, entry: int, argument: int = 0) -> Thread:
        """A new thread of a cVM, at an entry of it."""
        thread = Thread(self.make_hart(self.memory), cvm_id)
        self.resume(thread, cvm_id, entry)
        thread.hart.write_integer(cvm.RESULT_REGISTERS[0], argument)
        self.threads.add(thread)
        return thread

    def resume(self, thread: Thread, cvm_id: CvmId, entry: int) -> None:
        """Let a thread go on for a cVM at an entry, with empty registers."""
        hart, row = thread.hart, self.regions[cvm_id]
        thread.domain = cvm_id
        if self.policy.registers_cleared:
            hart.map_registers(lambda _cap: capability.null(self.format))
        hart.privilege, hart.is_reserved = Privilege.USER, False
        hart.pcc = capability.set_address(self.region_code(cvm_id), row.base)
        hart.pc = row.base + entry & self.format.address_mask - 1
        data, null = self.region_data(cvm_id), capability.null(self.format)
        stack = row.top - len(cvm.STORE_SLOTS) * self.format.capability_bytes
        hart.ddc = capability.select_capability(row.is_purecap, null, data)
        by_capability = capability.set_address(data, stack)
        by_number = capability.null(self.format, stack)
        hart.write(cvm.STACK_POINTER, capability.select_capability(row.is_purecap, by_capability, by_number))

    # -- memory on behalf of a cVM -----------------------------------------------------------------------------------------

    def put(self, address: int, cap: Capability) -> None:
        """Store a capability."""
        self.memory.write_granule(address, Granule(cap.tag, capability.memory_meta(cap), cap.address))

    def offer(self, number: int, owner: CvmId, base: int, size: Size) -> Code:
        """A new grant of [base, base + size)."""
        _cap, exact = self.mint(base, size, cvm.GRANT_PERMISSIONS)
        if not_(exact & (size > 0) & (base + size <= self.format.address_space)):
            return Code.RANGE
        self.grants[number] = Grant(True, owner, base, base + size)
        self.held.map(lambda key, held: held & (key[0] != number))
        # Where another grant of that number was put, this one wasn't: revoking it takes nothing there.
        self.slots.map(lambda _index, slot: slot._replace(is_slot=slot.is_slot & (slot.grant != number)))
        return Code.OK

    def put_grant(self, caller: CvmId, address: int, number: int) -> Code:
        """Store a granted capability at a place in the caller's memory, and remember it."""
        row, granule = self.grants[number], self.format.capability_bytes
        if not_((address & granule - 1 == 0) & self.memory.contains(address, granule)):
            return Code.RANGE
        # What is put into a nested cVM's memory is that cVM's.
        if self.policy.probe_location_checked and not self.regions.all(
            lambda _number, inner: (
                not_(inner.is_live) | (inner.outer != caller) | (address + granule <= inner.base) | (inner.top <= address)
            )
        ):
            return Code.RANGE
        cap, _exact = self.mint(row.base, row.top - row.base, self.grant_permissions())
        self.accesses.append(MonitorAccess(caller, address, granule, True))
        self.put(address, cap)
        index = address - self.memory.base >> self.format.granule_shift
        self.slots[index] = Slot(True, number)
        self.grants[number] = row._replace(last_slot=index)
        self.held[number, caller] = True
        outer = self.regions[caller].outer
        if outer != cvm.MONITOR:
            self.held[number, outer] = True
        return Code.OK

    def revoke(self, number: int) -> None:
        """Take a grant back: out of memory, if it hasn't been already, and out of registers."""
        row = self.grants[number]
        self.withdraw(number)
        self.take_back(lambda each, _grant: row.is_live & (each == number), row.base, row.top, row.last_slot)

    def withdraw(self, number: int) -> None:
        """End a grant, so that no one gets it any more."""
        self.grants[number] = self.grants[number]._replace(is_live=False)

    def take_back(self, is_meant: Callable[[int, Grant], bool], base: int, top: int, last_slot: int | None = None) -> None:
        """Untag granted capabilities: in the slots of some grants, and in registers what overlaps a range and isn't own."""

        def purged(index: int, granule: Granule) -> Granule:
            slot = self.slots[index]
            is_one = slot.is_slot & is_meant(slot.grant, self.grants[slot.grant])
            if last_slot is not None and not self.policy.purge_all_probers:
                is_one = is_one & (index == last_slot)
            return granule._replace(tag=granule.tag & not_(is_one))

        def forget(thread: Thread) -> None:
            own = self.regions[thread.domain]

            def without(cap: Capability) -> Capability:
                low, high = cap.bounds
                kept = (own.base <= low) & (high <= own.top) | (top <= low) | (high <= base)
                return cap.tagged_if(kept | not_(cap.has_reserved_otype))

            thread.hart.map_registers(without)
            thread.hart.ddc = without(thread.hart.ddc)

        if self.policy.purge_slots:
            self.memory.map_granules(purged)
        if self.policy.purge_registers:
            self.threads.for_each(forget)

    def finish(self, thread: Thread) -> None:
        """The call that a thread serves is over: its grant ends, and whoever waits goes on."""
        number, portal = cvm.KEYS + thread.portal, thread.portal
        if self.policy.purge_fetched:
            self.revoke(number)
        else:
            self.withdraw(number)
        self.portals[portal] = self.portals[portal]._replace(is_busy=False)
        thread.serves = False

        def wake(other: Thread) -> None:
            other.waits = other.waits & (other.waits_for != portal)

        self.threads.for_each(wake)

    # -- guests ------------------------------------------------------------------------------------------------------------

    def step(self, thread: Thread, name: str, operands: tuple[Any, ...]) -> Trap | None:
        """One instruction of a thread. Refused, it is skipped by the kernel below; the thread goes on behind it."""
        hart = thread.hart
        pcc, pc, status, privilege = hart.pcc, hart.pc, hart.mstatus, hart.privilege
        trap = hart.step(name, operands)
        if trap is not None:
            hart.pcc, hart.pc = pcc, pc + INSTRUCTION_BYTES & self.format.address_mask
            hart.mstatus, hart.privilege = status, privilege
            return trap
        if name == "cinvoke":
            self.invoked(thread)
        return None

    def invoked(self, thread: Thread) -> None:
        """A pair was invoked: whom does the thread run for now? An outer cVM that enters an inner one stays who it is."""
        entry, outer = self.monitor_code(), self.regions[thread.domain].outer
        if is_same_place(thread.hart.pcc, entry):
            self.enter(thread)
        elif outer != cvm.MONITOR and is_same_place(thread.hart.pcc, self.region_code(outer)):
            thread.domain = outer

    # -- calls -------------------------------------------------------------------------------------------------------------

    def caller_of(self, thread: Thread) -> CvmId:
        """Whom a call is made for."""
        if self.policy.identity_from_hardware:
            return thread.domain
        stack = thread.hart.integer(cvm.STACK_POINTER)
        return self.regions.find(lambda _number, row: row.is_live & (row.base <= stack) & (stack < row.top))

    def enter(self, thread: Thread) -> None:
        """The first part of a call: the context is saved, the arguments are checked."""
        hart, caller = thread.hart, self.caller_of(thread)
        words = tuple(hart.integer(register) for register in cvm.ARGUMENT_REGISTERS)
        handle, number = hart.capability(cvm.ARGUMENT_REGISTERS[0]), hart.integer(cvm.NUMBER_REGISTER)
        stack = hart.integer(cvm.STACK_POINTER)
        has_handle = handle.tag & (handle.otype == cvm.HANDLE_OTYPE)
        thread.frame = Frame(number, thread.domain, caller, words, has_handle, self.refusal(number, caller, words), stack)
        words_at, saved_at = self.stack_frame(stack)
        if not self.policy.monitor_stack and self.is_on_stack(stack):
            for place, word in enumerate(words):
                self.store_for(caller, words_at + place * WORD_BYTES, word)
        if not self.policy.saved_context_private and self.is_on_stack(stack):
            self.accesses.append(MonitorAccess(caller, saved_at, self.format.capability_bytes, True))
            self.put(saved_at, hart.ddc)

    def stack_frame(self, stack: int) -> tuple[int, int]:
        """Where the monitor puts arguments and the caller's DDC, if it uses a guest's stack."""
        granule = self.format.capability_bytes
        below = stack & self.format.address_mask - (granule - 1)
        return below - 4 * granule, below - granule

    def is_on_stack(self, stack: int) -> bool:
        """Whether there is memory for that."""
        return self.memory.contains(self.stack_frame(stack)[0], 4 * self.format.capability_bytes)

    def refusal(self, number: int, caller: CvmId, words: tuple[Word, ...]) -> Code:
        """Whether what a call's arguments name lies in the caller's region."""
        row = next((each for each in CALLS.values() if each.number == number), None)
        if row is None:
            return Code.NO_SUCH_CALL
        region = self.regions[caller]
        for place, (_name, kind) in enumerate(row.arguments):
            if self.is_checked(kind) and words[place] + self.needed_bytes(row, place, words) > region.top - region.base:
                return Code.RANGE
        return Code.OK

    def is_checked(self, kind: ArgumentKind) -> bool:
        """Whether the policy has arguments of a kind checked."""
        match kind:
            case ArgumentKind.POINTER:
                return self.policy.pointers_checked
            case ArgumentKind.RANGE:
                return self.policy.advertised_range_checked
            case ArgumentKind.LOCATION:
                return self.policy.probe_location_checked
        return kind is ArgumentKind.ENTRY

    def needed_bytes(self, row: Call, place: int, words: tuple[Word, ...]) -> Size:
        """How much memory is meant by an argument."""
        following = row.arguments[place + 1 : place + 2]
        if row.arguments[place][1] is ArgumentKind.LOCATION:
            return self.format.capability_bytes
        return words[place + 1] if following and following[0][1] is ArgumentKind.SIZE else WORD_BYTES

    def leave(self, thread: Thread) -> Code:
        """The second part of a call: what was asked for is done, and the caller goes on."""
        frame = self.reloaded(thread)
        code = frame.refusal
        if code is Code.OK:
            row = next(each for each in CALLS.values() if each.number == frame.number)
            code = CALL_RULES[row.name](self, thread, frame, *frame.arguments[: len(row.arguments)])
        if thread.frame is not None:
            thread.frame = None
            self.go_back(thread, frame, code)
        return code

    def reloaded(self, thread: Thread) -> Frame:
        """What the monitor goes on with: what it had put down, where that was."""
        frame = thread.frame
        assert frame is not None
        if not self.policy.monitor_stack and self.is_on_stack(frame.stack):
            words_at, _saved_at = self.stack_frame(frame.stack)
            places = (words_at + WORD_BYTES * number for number in range(len(frame.arguments)))
            frame = frame._replace(arguments=tuple(self.memory.read(place, WORD_BYTES) for place in places))
        return frame

    def go_back(self, thread: Thread, frame: Frame, code: Code) -> None:
        """Let the caller go on at its return entry, with its own authority and the code."""
        hart = thread.hart
        hart.pcc, hart.pc = self.region_code(thread.domain), self.regions[thread.domain].base
        if not self.policy.saved_context_private and self.is_on_stack(frame.stack):
            _words_at, saved_at = self.stack_frame(frame.stack)
            hart.ddc = capability.from_memory(self.format, *self.memory.read_granule(saved_at))
        hart.write(INVOKED_DATA, capability.null(self.format))
        hart.write_integer(cvm.RESULT_REGISTERS[0], code.value)

    # -- memory, for the rules of calls ------------------------------------------------------------------------------------

    def address(self, caller: CvmId, pointer: Word) -> int:
        """The address that a pointer of a cVM's means. Source: lsds/intravisor, utils.c, comp_to_mon."""
        return self.regions[caller].base + pointer & self.format.address_mask

    def store_for(self, caller: CvmId, address: int, word: Word) -> None:
        """Store a word for a cVM."""
        self.accesses.append(MonitorAccess(caller, address, WORD_BYTES, True))
        self.memory.write(address, WORD_BYTES, word)

    def load_for(self, caller: CvmId, address: int) -> Word:
        """Load a word for a cVM."""
        self.accesses.append(MonitorAccess(caller, address, WORD_BYTES, False))
        return self.memory.read(address, WORD_BYTES)

    def answer(self, thread: Thread, value: Word) -> None:
        """Give a second result."""
        thread.hart.write_integer(cvm.RESULT_REGISTERS[1], value)


def is_same_place(pcc: Capability, code: Capability) -> bool:
    """Whether PCC is the one that entering by some code capability installs."""
    return (pcc.meta == code.meta) & (pcc.address == code.address)
