"""Any state of a system of shared objects that its invariants allow: the base's tables are the solver's arrays.

The invariants are supposed of the state before the step: of the slots, mappings, tenants and places that the step and the
goal look at, and of nothing else. What is supposed is what `spec.orc_invariants` says, evaluated on that state.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import z3

from capvisor.model import capability, object_operations, objects
from capvisor.model.capability import Capability
from capvisor.model.memory import Granule, Memory
from capvisor.model.object_tables import Mapping, Slot, Tenant, TenantThread, select_row
from capvisor.model.objects import ObjectMonitor
from capvisor.model.observation import ObservedMemory
from capvisor.proofs.contracts import any_function
from capvisor.proofs.cvm_state import Guards, GuestRegisters, GuestStore, SymbolicThreads, key_of
from capvisor.proofs.orc_mint import SHAPE, as_asked, whole_sizes
from capvisor.proofs.state import any_capability, any_extent, any_hart
from capvisor.proofs.symbolic import term_of
from capvisor.proofs.tables import ArrayRows, Column, EmptyRows, KeptRows
from capvisor.proofs.theorem import Given, implies
from capvisor.spec.formats import CapabilityFormat, Permission
from capvisor.spec.object_policy import ObjectPolicy
from capvisor.spec.orc_invariants import ORC_INVARIANTS, Before, Place, Step
from capvisor.spec.registers import Privilege

INDUCTIVE = tuple(name for name, row in ORC_INVARIANTS.items() if row.is_of_state)
"""Invariants of a state: what is supposed before a step, and proved after it."""

TENANT_BITS, THREAD_BITS, IDENTITY_BITS = 16, 4, 64


def columns_of(fmt: CapabilityFormat) -> dict[str, tuple[Callable[..., Any], tuple[Column, ...], int]]:
    """What each table's rows are made of: constructor, columns, and by how many numbers they are found.

    Numbers of slots have as many bits as an address, as an operand has that names one.
    """
    size = fmt.address_width
    return {
        "slots": (
            Slot,
            (
                *(Column("kind", 3), Column("owner", TENANT_BITS), Column("object", size)),
                *(Column("code", size), Column("ro", size), Column("data", size), Column("identity", IDENTITY_BITS)),
            ),
            1,
        ),
        "mappings": (Mapping, (Column("is_live", 0), Column("shadow", size), Column("identity", IDENTITY_BITS)), 2),
        "exports": (lambda value: value, (Column("row", 0),), 2),
        "tenants": (
            Tenant,
            (Column("is_live", 0), Column("home", size), Column("tls", size), Column("threads", THREAD_BITS)),
            1,
        ),
    }


TABLES = ("slots", "mappings", "exports", "tenants")


class Table(ArrayRows):
    """A symbolic table of the base's."""

    def __init__(self, system: "AnyObjects", name: str) -> None:
        make, columns, self._indices = columns_of(system.format)[name]
        super().__init__(make, columns, system.format.address_width, name, self._indices)
        self._system, self._name = system, name

    def __getitem__(self, number: Any) -> Any:
        self._system.looks_at(self._name, number)
        return self.get(number)

    def __setitem__(self, number: Any, row: Any) -> None:
        self.set(number, row)

    def all(self, holds: Callable[[Any, Any], Any]) -> bool:
        """Whether something holds of every row: if so, it is known of those that are looked at; else of one it doesn't."""
        system, rows = self._system, copy.copy(self)
        if system.fresh_flag(f"all_{self._name}"):
            system.promise(self._name, lambda number: holds(number, rows.get(number)))
            return True
        number: Any = tuple(system.fresh(f"not_{self._name}", system.format.address_width) for _each in range(self._indices))
        number = number if self._indices > 1 else number[0]
        system.given.assume(holds(number, rows.get(number)) ^ True)
        return False


class AnyThreads(SymbolicThreads):
    """The threads that are looked at: the one that acts, another one, and those that are started."""

    def __init__(self, system: Any) -> None:
        super().__init__(system)
        self._of = system

    def all(self, holds: Callable[[Any], Any]) -> bool:
        """Whether something holds of every thread: if so, of those that are looked at; else of another."""
        if not self._of.fresh_flag("all_threads"):
            return False
        for each in self.looked_at:
            self._of.given.assume(holds(each))
        return True


class AnyContents:
    """Identities of contents: any numbers."""

    def __init__(self, system: "AnyObjects") -> None:
        self._system = system

    def image(self, _memory: Any, _first: Any, _count: Any, _sizes: Any) -> Any:
        """The identity of an image."""
        return self._system.fresh("identity", IDENTITY_BITS)

    def extended(self, _identity: Any, *_numbers: Any) -> Any:
        """That of an image to which something is added."""
        return self._system.fresh("identity", IDENTITY_BITS)


class AnyObjects(ObjectMonitor):
    """The reference's base in any state that the invariants allow."""

    def __init__(self, fmt: CapabilityFormat, given: Given, policy: ObjectPolicy, invariants: Iterable[str]) -> None:
        self.given, self.supposed = given, tuple(invariants)
        self.format = fmt
        self._count = 0
        self.cases: dict[str, tuple[Any, ...]] = {}
        """Of symbols, the conditions in each of which a goal on it may be asked."""
        self.about = ""
        """The symbol of what goals are about on this way, where that is only one of several places."""
        self.labels: dict[int, str] = {}
        """Which invariant an assumption is, by its number among all."""
        self.looked_at: dict[str, list[Any]] = {name: [] for name in TABLES}
        self._promises: list[tuple[str, Callable[[Any], Any]]] = []
        self._minted: dict[Any, tuple[Capability, Any]] = {}
        self._first_granules: dict[int, tuple[Any, Any]] = {}
        self._rewritten: list[Callable[[Any], Any]] = []
        self._supposed_at: set[tuple[Any, ...]] = set()
        self._first: Any = None
        self._first_threads: dict[int, Any] = {}
        self.reader: Any = None
        """Of what is loaded: a thread that holds what authorises it."""
        self.any_register: Any = 0
        self.any_granule: Any = 0
        self.guards = Guards(policy)  # type: ignore[arg-type]
        _base, size = any_extent(fmt, given)
        base = given.word("memory_slot", fmt.address_width - SHAPE.slot_shift) << SHAPE.slot_shift
        given.assume(base + size <= fmt.address_space)
        super().__init__(
            ObservedMemory(fmt, base, size, GuestStore(fmt, given)),
            self.guards,  # type: ignore[arg-type]
            SHAPE,
            lambda name, _empty: Table(self, name),
            AnyThreads(self),
            self.new_hart,
            AnyContents(self),
        )

    # -- symbols -----------------------------------------------------------------------------------------------------------

    def fresh(self, name: str, bits: int) -> Any:
        """Any number, different from all others."""
        self._count += 1
        return self.given.word(f"{name}_{self._count}", bits)

    def fresh_flag(self, name: str) -> Any:
        """Any truth value."""
        self._count += 1
        return self.given.flag(f"{name}_{self._count}")

    def new_hart(self, memory: Any) -> Any:
        """A hart that hasn't run yet."""
        self._count += 1
        return self._hart(f"new{self._count}_", memory)

    def _hart(self, name: str, memory: Any) -> Any:
        hart: Any = any_hart(self.format, self.given, memory, GuestRegisters(self.format, self.given, name), name)
        vars(hart)["map_registers"] = hart.registers.map
        return hart

    def any_thread(self, name: str) -> TenantThread:
        """Any thread: its tenant, its registers."""
        hart = self._hart(name, self.memory)
        self.given.assume(hart.privilege == int(Privilege.USER))
        thread = TenantThread(
            hart, self.given.word(f"{name}tenant", TENANT_BITS), self.given.word(f"{name}place", THREAD_BITS)
        )
        thread.is_live = self.given.flag(f"{name}is_live")
        self.threads.looked_at.append(thread)
        return thread

    def any_held(self, name: str, thread: TenantThread) -> Capability:
        """Any capability that a thread's tenant may hold, as what is in its registers is."""
        cap = any_capability(self.format, self.given, name)
        self._reads(1, self.holding(thread, cap), cap)
        return cap

    def holding(self, thread: TenantThread, cap: Capability) -> TenantThread:
        """A thread as it was at first, of the same tenant, that holds one capability in all of its registers but c0."""
        holder: TenantThread = copy.copy(self._first_threads[id(thread)])
        null = capability.null(self.format)
        modes = {"pc": 0, "privilege": int(Privilege.USER), "mstatus": 0}
        holder.hart = SimpleNamespace(registers=_Holding(cap), ddc=null, pcc=null, **modes)  # type: ignore[assignment]
        self._first_threads[id(holder)] = holder
        return holder

    def without_tenants(self) -> None:
        """The system before anything has been created: all tables are empty."""
        for name, row in {"slots": Slot(), "mappings": Mapping(), "exports": False, "tenants": Tenant()}.items():
            setattr(self, name, EmptyRows(row))

    # -- hypotheses --------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Keep the state as it is now: the hypotheses are about it."""
        first: Any = copy.copy(self)
        for name in TABLES:
            setattr(first, name, KeptRows(getattr(self, name)))
        memory = self.memory
        first.memory = Memory(memory.format, memory.base, memory.size_bytes, copy.copy(memory.store))
        first.policy = self.guards.policy
        self._first = first
        for thread in self.threads.looked_at:
            kept, hart = copy.copy(thread), vars(thread.hart)
            registers = SimpleNamespace(first=thread.hart.registers.first)
            kept.hart = SimpleNamespace(registers=_First(registers), ddc=hart["ddc"], pcc=hart["pcc"], pc=hart["pc"])
            self._first_threads[id(thread)] = kept
            thread.hart.registers.on_read = lambda register, kept=kept, thread=thread: self._reads_register(
                register, kept, thread
            )
            self.suppose(Place(thread.tenant, thread=thread))
            self.looks_at("tenants", thread.tenant)
        self.memory.store.on_read = self.reads_granule  # type: ignore[attr-defined]
        self.guards.seen.clear()

    def before(self) -> Before:
        """The state at first, as invariants of steps look at it."""
        first = self._first
        threads = self._first_threads
        was = (first.slots, first.mappings, first.tenants, first.exports, first.granule)
        return Before(*was, lambda thread: threads.get(id(thread)))

    def _reads_register(self, register: Any, kept: Any, thread: TenantThread) -> None:
        """Suppose the invariants of a register, and what is known of the slot, and the entry, that is in it."""
        self._reads(register, thread, kept.hart.registers[register])

    def _reads(self, register: Any, thread: TenantThread, cap: Capability) -> None:
        self.suppose(Place(thread.tenant, thread=thread, register=register))
        key = ("register", id(thread), key_of(register))
        if key not in self._supposed_at:
            self._supposed_at.add(key)
            slot = self.slot_of(cap.base)
            self.looks_at("slots", slot)
            self.looks_at("exports", (slot, cap.address - self.slot_base(slot)))

    def reads_granule(self, index: Any) -> None:
        """Suppose the invariants of a granule: of its owner's memory."""
        row = self._first.slots[self.slot_of_granule(index)]
        self.looks_at("slots", self.slot_of_granule(index))
        self.suppose(Place(row.owner, granule=index))
        self.looks_at("mappings", (row.owner, self.object_of_granule(index)))

    def suppose(self, place: Place, *names: str) -> None:
        """Suppose the invariants at a place, of the state at first: all, or some."""
        thread = None if place.thread is None else self._first_threads.get(id(place.thread))
        if self._first is None or (place.thread is not None and thread is None):
            return
        key = (names, *(key_of(part) for part in place))
        if key in self._supposed_at:
            return
        self._supposed_at.add(key)
        step = Step(self._first, self.before(), "instruction", "")
        for name in (each for each in self.supposed if not names or each in names):
            supposed = ORC_INVARIANTS[name].holds(step, place._replace(thread=thread))
            if supposed is not True:
                self.labels[len(self.given.assumptions)] = name
                self.given.assume(supposed)

    def looks_at(self, table: str, number: Any) -> None:
        """A row is looked at: what is known of every row is known of it."""
        if self._first is None:
            return
        mask = self.format.address_mask
        number = tuple(part & mask for part in number) if isinstance(number, tuple) else number & mask
        parts = number if isinstance(number, tuple) else (number,)
        key = (table, *map(key_of, parts))
        if key in self._supposed_at:
            return
        self._supposed_at.add(key)
        self.looked_at[table].append(number)
        for name, holds in self._promises:
            if name == table:
                self.given.assume(holds(number))
        first = self._first
        match table:
            case "slots":
                row = first.slots[number]
                self.suppose(Place(row.owner, number), "O17")
                self.looks_at("mappings", (row.owner, row.object))
            case "mappings":
                # That two mappings' shadows differ follows: a shadow's row says whose it is, and of what.
                self.suppose(Place(*number, *number), "O3")
                self.suppose(Place(*number), "O8", "O17")
                self.looks_at("tenants", number[0])
            case "exports":
                self.suppose(Place(first.slots[number[0]].owner, number[0], entry=number[1]), "O17")
            case _:
                self.suppose(Place(number), "O17")

    def promise(self, table: str, holds: Callable[[Any], Any]) -> None:
        """Something holds of every row of a table."""
        self._promises.append((table, holds))
        for number in self.looked_at[table]:
            self.given.assume(holds(number))

    # -- what is done to all at once --------------------------------------------------------------------------------------

    def first_granule(self, slot: Any) -> Any:
        """The index of a slot's first granule; whose it is is kept."""
        first = super().first_granule(slot)
        if not isinstance(first, int):
            self._first_granules[id(first)] = first, slot
        return first

    def rewrite(self, first: Any, count: Any, function: Callable[[Any, Granule], Granule]) -> None:
        """As ObjectMonitor.rewrite, where one looks: what the function reads is memory as it is now."""
        is_whole = isinstance(count, int) and count == self.slot_granules
        whole = self._first_granules[id(first)][1] if is_whole and id(first) in self._first_granules else None

        def is_inside(index: Any) -> Any:
            if whole is None:
                return (first <= index) & (index < first + count)
            return self.slot_of_granule(index) == whole

        def changed(index: Any, held: Granule) -> Granule:
            changed_to: Granule = select_row(is_inside(index), function(index, held), held)
            return changed_to

        self._rewritten.append(is_inside)

        store: Any = copy.copy(self.memory.store)
        store.map(changed)
        self.memory.store = store

    def rewritten(self, index: Any) -> Iterator[z3.BoolRef]:
        """The conditions on which a granule is one of those that were rewritten together, the last ones first."""
        for is_inside in reversed(self._rewritten):
            yield term_of(is_inside(index))

    def purge(self, tenant: Any, slot: Any) -> None:
        """As ObjectMonitor.purge, of the tables as they are now: it is carried out where one looks."""
        frozen = copy.copy(self)
        for name in TABLES:
            setattr(frozen, name, copy.copy(getattr(self, name)))
        ObjectMonitor.purge(frozen, tenant, slot)

    def granule_in(self, store: Any, index: Any) -> Capability:
        """What a granule holds in a store."""
        return capability.from_memory(self.format, *store.get(index))

    # -- contracts ---------------------------------------------------------------------------------------------------------

    def minted(self, fmt: CapabilityFormat, base: Any, size: Any, permissions: Permission) -> tuple[Capability, Any]:
        """As guests.minted, by the theorems `orc.mint` and `orc.whole`."""
        key = (key_of(base), key_of(size), int(permissions))
        if key in self._minted:
            return self._minted[key]
        (exact,) = any_function("mint_exact", fmt, (base, size), (0,))
        (meta,) = any_function(f"mint_{int(permissions)}", fmt, (base, size), (fmt.address_width,))
        cap = Capability(fmt, exact, meta, base & fmt.address_mask)
        in_space = (base >= 0) & (base <= fmt.address_mask) & (size <= fmt.length_mask)
        self.given.assume(implies(exact & in_space, as_asked(cap, base, size, permissions)))
        if isinstance(size, int) and size in whole_sizes(fmt):
            self.given.assume(implies(in_space & (base & size - 1 == 0), exact))
        self._minted[key] = cap, exact
        return cap, exact

    def code_of(self, slot: Any, offset: Any) -> Capability:
        """As ObjectMonitor.code_of, with the theorem `orc.whole`."""
        cap, base, size = super().code_of(slot, offset), self.slot_base(slot), self.shape.slot_bytes
        low, high = cap.bounds
        in_space = (base >= 0) & (base <= self.format.address_mask) & (offset >= 0) & (offset < size)
        self.given.assume(implies(in_space, cap.tag & (low == base) & (high == base + size)))
        return cap


@contextmanager
def minting(system: AnyObjects) -> Iterator[None]:
    """Let what is minted be what the theorems say."""
    original = objects.minted
    for module in (objects, object_operations):
        vars(module)["minted"] = system.minted
    try:
        yield
    finally:
        for module in (objects, object_operations):
            vars(module)["minted"] = original


class _First:
    """A thread's registers as they were at first."""

    def __init__(self, registers: Any) -> None:
        self._registers = registers

    def __getitem__(self, register: Any) -> Capability:
        cap: Capability = self._registers.first(register)
        return cap


class _Holding:
    """Registers that all hold the same, but for c0."""

    def __init__(self, cap: Capability) -> None:
        self._cap = cap

    def __getitem__(self, register: int) -> Capability:
        return self._cap if register else capability.null(self._cap.format)
