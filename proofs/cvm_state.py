"""Any state of a system of cVMs that its invariants allow: the monitor's tables are the solver's arrays.

The invariants are supposed of the state before the step: of the cVMs, grants and places that the step and the goal look at,
and of nothing else. What is supposed is what `spec.cvm_invariants` says, evaluated on that state.
"""

import copy
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import z3

from capvisor.model import capability
from capvisor.model.capability import Capability
from capvisor.model.memory import Memory
from capvisor.model.monitor import Frame, Grant, Monitor, Portal, Region, Slot, Thread
from capvisor.model.observation import ObservedMemory
from capvisor.proofs import contracts
from capvisor.proofs.contracts import any_function
from capvisor.proofs.state import AnyStore, ArrayRegisters, any_extent, any_hart
from capvisor.proofs.symbolic import SymBool, SymInt, as_int, select
from capvisor.proofs.tables import ArrayRows, Column
from capvisor.proofs.theorem import Given, implies
from capvisor.spec import cvm
from capvisor.spec.cvm import Code
from capvisor.spec.cvm_invariants import CVM_INVARIANTS, Place, Step
from capvisor.spec.formats import CapabilityFormat, Permission
from capvisor.spec.policy import MonitorPolicy
from capvisor.spec.registers import Privilege

INDUCTIVE = ("C1", "C2", "C4", "C6", "C7", "C8", "C9", "C16", "C17", "C18", "C19")
"""Invariants of a state: what is supposed before a step, and proved after it."""

ID_BITS, INDEX_BITS = 16, 64


def columns_of(fmt: CapabilityFormat) -> dict[str, tuple[Callable[..., Any], tuple[Column, ...], int]]:
    """What each table's rows are made of: constructor, columns, and by how many numbers they are found."""
    address = fmt.address_width + 1
    flag = (lambda value: value, (Column("row", 0),))
    return {
        "regions": (
            Region,
            (
                *(Column("is_live", 0), Column("base", address), Column("top", address)),
                *(Column("outer", ID_BITS), Column("is_purecap", 0)),
            ),
            1,
        ),
        "grants": (
            Grant,
            (
                *(Column("is_live", 0), Column("owner", ID_BITS), Column("base", address), Column("top", address)),
                Column("last_slot", INDEX_BITS),
            ),
            1,
        ),
        "slots": (Slot, (Column("is_slot", 0), Column("grant", INDEX_BITS)), 1),
        "held": (*flag, 2),
        "probed": (*flag, 2),
        "portals": (
            Portal,
            (
                *(Column("is_live", 0), Column("owner", ID_BITS), Column("entry", fmt.address_width)),
                *(Column("is_busy", 0), Column("caller", ID_BITS), Column("size", fmt.address_width)),
            ),
            1,
        ),
    }


class Table(ArrayRows):
    """A symbolic table of the monitor's."""

    def __init__(self, system: "AnyMonitor", name: str) -> None:
        make, columns, indices = columns_of(system.format)[name]
        super().__init__(make, columns, INDEX_BITS, name, indices)
        self._system, self._name = system, name

    def __getitem__(self, number: Any) -> Any:
        self._system.looks_at(self._name, number)
        return self.get(number)

    def __setitem__(self, number: Any, row: Any) -> None:
        self.set(number, row)

    def count(self) -> Any:
        """How many rows are live: any number, as nothing rests on it."""
        return self._system.fresh(f"count_{self._name}", ID_BITS)

    def all(self, holds: Callable[[Any, Any], Any]) -> bool:
        """Whether something holds of every row: if so, it is known of those that are looked at; else of one it doesn't."""
        system = self._system
        if system.fresh_flag(f"all_{self._name}"):
            system.promise(self._name, lambda number: holds(number, self.get(number)))
            return True
        number = system.fresh(f"not_{self._name}", INDEX_BITS)
        system.given.assume(holds(number, self.get(number)) ^ True)
        return False

    def find(self, holds: Callable[[Any, Any], Any]) -> Any:
        """A row in which something holds, or 0."""
        number = self._system.fresh(f"found_{self._name}", ID_BITS)
        self._system.given.assume((number == 0) | holds(number, self.get(number)))
        return number


class GuestRegisters(ArrayRegisters):
    """A thread's registers, of which the invariants are supposed as they were at first; with sweeps."""

    def __init__(self, fmt: CapabilityFormat, given: Given, name: str) -> None:
        super().__init__(fmt, given, name)
        self.on_read: Callable[[Any], None] = lambda _register: None
        self.written: list[Any] = []
        self._none = self._written = z3.K(z3.BitVecSort(5), z3.BoolVal(False))
        self._swept: tuple[Callable[[Capability], Capability], GuestRegisters] | None = None

    def first(self, register: Any) -> Capability:
        """What a register held at first."""
        return self._in(self._first, register)

    def __getitem__(self, register: Any) -> Capability:
        self.on_read(register)
        now = super().__getitem__(register)
        if self._swept is None:
            return now
        function, before = self._swept
        was = function(before[register])
        written = SymBool(self._written[as_int(register).at(5)])
        parts = (select(written, new, old) for new, old in zip(now[1:], was[1:], strict=True))
        return Capability(now.format, *parts)

    def __setitem__(self, register: Any, value: Capability) -> None:
        super().__setitem__(register, value)
        self._written = z3.Store(self._written, as_int(register).at(5), z3.BoolVal(True))
        self.written.append(register)

    def map(self, function: Callable[[Capability], Capability]) -> None:
        """Replace every register's content but c0's by what the function makes of it."""

        self._swept = function, copy.copy(self)
        self._written = self._none
        self[0] = self.first(0)


class GuestStore(AnyStore):
    """Memory, of which the invariants are supposed as it was at first where it is read."""

    def __init__(self, fmt: CapabilityFormat, given: Given) -> None:
        self.on_read: Callable[[Any], None] = lambda _index: None
        super().__init__(fmt, given)

    def get(self, index: Any) -> Any:
        """The granule at an index."""
        self.on_read(index)
        return super().get(index)


class SymbolicThreads:
    """The threads that are looked at: the one that acts, another one, and those that are started."""

    def __init__(self, system: "AnyMonitor") -> None:
        self._system = system
        self.looked_at: list[Thread] = []
        self.started: list[Thread] = []

    def __getitem__(self, number: int) -> Thread:
        return self.looked_at[number]

    def add(self, thread: Thread) -> None:
        """One more thread."""
        thread.number = self._system.fresh("thread", ID_BITS)
        self.started.append(thread)

    def count(self) -> Any:
        """How many there are: any number."""
        return self._system.fresh("count_threads", ID_BITS)

    def for_each(self, action: Callable[[Thread], None]) -> None:
        """Do something to each thread that is looked at."""
        for thread in (*self.looked_at, *self.started):
            action(thread)


class Guards:
    """A policy that records which of its guards are looked at."""

    def __init__(self, policy: MonitorPolicy) -> None:
        self.policy = policy
        self.seen: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.seen.add(name)
        return getattr(self.policy, name)


class AnyMonitor(Monitor):
    """The reference's monitor in any state that the invariants allow."""

    def __init__(self, fmt: CapabilityFormat, given: Given, policy: MonitorPolicy, invariants: Iterable[str]) -> None:
        self.given, self.supposed = given, tuple(invariants)
        self.format = fmt
        self._count = 0
        self.cases = {}
        self.labels: dict[int, str] = {}
        """Which invariant an assumption is, by its number among all."""
        self.cvms: list[Any] = []
        """The cVMs whose regions are looked at."""
        self.cvms_of_threads = 0
        """How many of them threads belong to: the first ones."""
        self._grants: list[Any] = []
        self._portals: list[Any] = []
        self._witnesses: list[Any] = []
        self._promises: list[tuple[str, Callable[[Any], Any]]] = []
        self._minted: dict[Any, tuple[Capability, Any]] = {}
        self._supposed_at: set[tuple[Any, ...]] = set()
        self._first: Any = None
        self._first_threads: dict[int, Any] = {}
        self.guards = Guards(policy)
        super().__init__(
            ObservedMemory(fmt, *any_extent(fmt, given), GuestStore(fmt, given)),
            self.guards,  # type: ignore[arg-type]
            lambda name, _empty: Table(self, name),
            SymbolicThreads(self),
            make_hart=self.new_hart,
        )
        given.assume(self.memory.base + self.memory.size_bytes <= fmt.address_space)
        for cap in self.monitor_pair():
            given.assume(contracts.of_known(cap))

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
        name = f"new{self._count}_"
        hart = any_hart(self.format, self.given, memory, GuestRegisters(self.format, self.given, name), name)
        return _with_sweeps(hart)

    def any_thread(self, name: str) -> Thread:
        """Any thread: its cVM, whom it runs for, its registers."""
        registers = GuestRegisters(self.format, self.given, name)
        hart = _with_sweeps(any_hart(self.format, self.given, self.memory, registers, name))
        self.given.assume(hart.privilege == int(Privilege.USER))
        thread = Thread(hart, self.given.word(f"{name}home", ID_BITS))
        thread.domain = self.given.word(f"{name}domain", ID_BITS)
        thread.is_live = self.given.flag(f"{name}is_live")
        thread.serves, thread.portal = self.given.flag(f"{name}serves"), self.given.word(f"{name}portal", 16)
        thread.waits, thread.waits_for = self.given.flag(f"{name}waits"), self.given.word(f"{name}waits_for", 16)
        self.threads.looked_at.append(thread)  # type: ignore[attr-defined]
        return thread

    def without_cvms(self) -> None:
        """The system before anything has been created: all tables are empty."""
        empty = {
            "regions": Region(),
            "grants": Grant(),
            "slots": Slot(),
            "held": False,
            "portals": Portal(),
            "probed": False,
        }
        for name, row in empty.items():
            setattr(self, name, _Empty(row))

    # -- hypotheses --------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Keep the state as it is now: the hypotheses are about it."""
        first: Any = copy.copy(self)
        for name in columns_of(self.format):
            setattr(first, name, _Plain(copy.copy(getattr(self, name))))
        memory = self.memory
        first.memory = Memory(memory.format, memory.base, memory.size_bytes, copy.copy(memory.store))
        first.accesses, first.policy = [], self.guards.policy
        first.grants_of = self._any_grant
        self._first = first
        for thread in self.threads.looked_at:  # type: ignore[attr-defined]
            kept = copy.copy(thread)
            hart = vars(thread.hart)
            registers = _First(thread.hart.registers)
            kept.hart = SimpleNamespace(registers=registers, ddc=hart["ddc"], pcc=hart["pcc"])
            self._first_threads[id(thread)] = kept
            null = capability.null(self.format)
            of_register = copy.copy(kept)
            of_register.hart = SimpleNamespace(registers=registers, ddc=null, pcc=null)
            self._first_threads[id(of_register)] = of_register
            thread.hart.registers.on_read = lambda register, thread=of_register: self.suppose(
                Place(thread.domain, thread=thread, register=register, grant=self.any_grant)
            )
            self.looks_at("regions", thread.home)
            self.looks_at("portals", thread.portal)
            self.suppose(Place(thread.domain, thread=thread, grant=self.any_grant))
        self.memory.store.on_read = self._read_granule  # type: ignore[attr-defined]
        self.guards.seen.clear()
        self.cvms_of_threads = len(self.cvms)

    def _read_granule(self, index: Any) -> None:
        for thread in self.threads.looked_at:  # type: ignore[attr-defined]
            self.suppose(Place(self._first_threads[id(thread)].domain, granule=index, grant=self.any_grant))

    any_grant: Any = 0
    any_register: Any = 0
    any_granule: Any = 0
    """The place that a goal is about."""
    about: str = ""
    """The symbol of what goals are about on this way, where that is only one of several places that the step wrote to."""
    cases: dict[str, tuple[Any, ...]]
    """Of symbols, the conditions in each of which a goal on it may be asked."""

    def grant_of(self, cap: Capability, holder: Any) -> Any:
        """In a hypothesis: the grant that a capability of a cVM's is within, a function of the two."""
        (witness,) = any_function("grant_of", self.format, (cap.meta, cap.address, holder), (INDEX_BITS,))
        return witness

    def _any_grant(self, cap: Capability) -> Iterable[Any]:
        witness = self.grant_of(cap, self._holder)
        if not any(_is_same(witness, each) for each in self._witnesses):
            self._witnesses.append(witness)
        return (witness,)

    def grants_of(self, _cap: Capability) -> Iterable[Any]:
        """In a goal: all grants that are known of, those that the step looked at among them."""
        others = (each for each in self._grants if not any(_is_same(each, known) for known in self._witnesses))
        return (*self._witnesses, *others)

    _holder: Any = 0
    """The cVM that hypotheses are about at the moment."""

    @property
    def first(self) -> Any:
        """The state at first, which the hypotheses are about."""
        return self._first

    def domain_at_first(self, thread: Thread) -> Any:
        """Which cVM a thread ran for."""
        return self._first_threads[id(thread)].domain

    def outer_at_first(self, cvm_id: Any) -> Any:
        """The cVM that a cVM was nested in."""
        return self._first.regions[cvm_id].outer

    def suppose(self, place: Place) -> None:
        """Suppose the invariants at a place, of the state at first."""
        thread = None if place.thread is None else self._first_threads.get(id(place.thread))
        if place.thread is not None and thread is None:
            return
        key = tuple(key_of(part) for part in place)
        if key in self._supposed_at:
            return
        self._supposed_at.add(key)
        known, self._holder = len(self._witnesses), place.cvm
        step = Step(self._first, "instruction", "")
        self._assume(self.supposed, step, place._replace(thread=thread))
        self.looks_at("regions", place.cvm)
        if place.granule is not None:
            self._witnesses.append(self._first.slots[place.granule].grant)
        for witness in self._witnesses[known:]:
            self._assume(_OF_GRANTS, step, Place(place.cvm, grant=witness))
            # The portal of that number, if it is a call's.
            self._assume(("C19",), step, Place(place.cvm, grant=witness - cvm.KEYS & cvm.KEYS - 1))
            self.looks_at("grants", witness)

    def looks_at(self, table: str, number: Any) -> None:
        """A row is looked at: what is known of every row is known of it."""
        seen = {"regions": self.cvms, "grants": self._grants, "portals": self._portals}.get(table)
        if self._first is None or seen is None or any(_is_same(number, each) for each in seen):
            return
        seen.append(number)
        for name, holds in self._promises:
            if name == table:
                self.given.assume(holds(number))
        step = Step(self._first, "instruction", "")
        if table == "regions":
            for other in self.cvms:
                self._assume(("C2",), step, Place(number, other))
            self._assume(("C19",), step, Place(number, grant=self.any_grant))
        elif table == "portals":
            self._assume(("C19",), step, Place(self._holder, grant=number))
        else:
            self._assume(_OF_GRANTS, step, Place(self._holder, grant=number))

    def _assume(self, names: Iterable[str], step: Step, place: Place) -> None:
        for name in names:
            if name in self.supposed:
                supposed = CVM_INVARIANTS[name].holds(step, place)
                self.labels[len(self.given.assumptions)] = name
                self.given.assume(supposed)

    def promise(self, table: str, holds: Callable[[Any], Any]) -> None:
        """Something holds of every row of a table."""
        self._promises.append((table, holds))
        for number in {"regions": self.cvms, "grants": self._grants}.get(table, []):
            self.given.assume(holds(number))

    # -- contracts ---------------------------------------------------------------------------------------------------------

    def mint(self, base: Any, size: Any, permissions: Permission) -> tuple[Capability, Any]:
        """As Monitor.mint, by its theorem: where bounds are exact, they are what was asked for."""
        fmt = self.format
        if isinstance(base, int) and isinstance(size, int):
            return super().mint(base, size, permissions)
        key = (key_of(base), key_of(size), int(permissions))
        if key in self._minted:
            return self._minted[key]
        (exact,) = any_function("mint_exact", fmt, (base, size), (0,))
        (meta,) = any_function(f"mint_{int(permissions)}", fmt, (base, size), (fmt.address_width,))
        cap = Capability(fmt, exact, meta, base & fmt.address_mask)
        low, high = cap.bounds
        said = (low == base) & (high == base + size) & (cap.permissions == int(permissions)) & cap.is_sound
        covered = exact & (base <= fmt.address_mask) & (size <= fmt.length_mask)
        self.given.assume(implies(covered, said & (cap.otype == fmt.otype_unsealed) & (cap.flags == 0)))
        self._minted[key] = cap, exact
        return cap, exact


_OF_GRANTS = ("C9", "C16", "C19")


class _Empty:
    """A table of which no row has been written."""

    def __init__(self, row: Any) -> None:
        self._row = row
        self.written: tuple[Any, ...] = ()

    def __getitem__(self, _number: Any) -> Any:
        return self._row


class _Plain:
    """A table's rows as they were at first."""

    def __init__(self, rows: Table) -> None:
        self._rows = rows
        self._known: dict[Any, Any] = {}

    def __getitem__(self, number: Any) -> Any:
        key = tuple(map(key_of, number)) if isinstance(number, tuple) else key_of(number)
        if key not in self._known:
            self._known[key] = self._rows.get(number)
        return self._known[key]


class _First:
    """A thread's registers as they were at first."""

    def __init__(self, registers: GuestRegisters) -> None:
        self._registers = registers

    def __getitem__(self, register: Any) -> Capability:
        return self._registers.first(register)


def _with_sweeps(hart: Any) -> Any:
    vars(hart)["map_registers"] = hart.registers.map
    return hart


def key_of(part: Any) -> Any:
    """What tells parts of a place apart: a term, an object, a number."""
    if isinstance(part, SymInt):
        return part.at(INDEX_BITS + 2)
    return part if part is None or isinstance(part, int) else id(part)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two numbers are the same term."""
    if isinstance(one, int) and isinstance(other, int):
        return one == other
    return as_int(one).at(INDEX_BITS).eq(as_int(other).at(INDEX_BITS))


def any_frame(system: AnyMonitor, thread: Thread, number: int, name: str = "") -> Frame:
    """What the monitor works with in a call, as `enter` leaves it; all arguments are checked."""
    width = system.format.address_width
    words = tuple(system.given.word(f"{name}argument{place}", width) for place in range(len(cvm.ARGUMENT_REGISTERS)))
    has_handle = system.given.flag(f"{name}has_handle")
    stack = system.given.word(f"{name}stack", width)
    refusal: Any = Code.OK
    return Frame(number, thread.domain, thread.domain, words, has_handle, refusal, stack)
