"""Systems of cVMs in both implementations, step by step: one monitor of the reference for each lane of the fast path.

After every step the whole state of every lane is compared, and in some lanes the step is held against all invariants.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from capvisor.campaign.cvm_states import THREAD_FIELDS, differences, expected_frame, table_differences
from capvisor.dsl.invariant_watch import InvariantWatch
from capvisor.fastpath.machine import NUMBERS, SPECIAL_ROWS
from capvisor.fastpath.monitor import BatchMonitor
from capvisor.fastpath.workspace import Flags, Words
from capvisor.model import isa as _rules  # declares the rules
from capvisor.model import system
from capvisor.model.capability import Capability
from capvisor.model.machine import Hart
from capvisor.model.memory import Granule, Memory, SparseStore, Sweep
from capvisor.model.monitor import Monitor
from capvisor.spec.cvm import CALLS_BY_NUMBER, Code
from capvisor.spec.cvm_invariants import CVM_INVARIANTS, Step
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.operations import OPERATIONS, OperandKind
from capvisor.spec.policy import INTENDED, MonitorPolicy
from capvisor.spec.registers import REGISTER_COUNT

assert _rules

_ROWS = REGISTER_COUNT + len(SPECIAL_ROWS)
_SPECIALS = sorted(SPECIAL_ROWS, key=SPECIAL_ROWS.__getitem__)
_SPECIAL_STATE, _NUMBERS_STATE = attrgetter(*_SPECIALS), attrgetter(*NUMBERS, "is_reserved")
_SCALAR = (OperandKind.SPECIAL_REGISTER, OperandKind.STATUS_REGISTER, OperandKind.QUARTER, OperandKind.MASK)
"""Operands that are one number for all lanes."""


class Event(NamedTuple):
    """What was done in some lanes: an instruction or the second part of a call by a thread, or the deployer's operation."""

    kind: str
    thread: int
    name: str
    operands: tuple[Any, ...]
    """Numbers, or arrays of one number for each lane of the system."""
    lanes: Flags
    outcomes: dict[int, str]
    """By lane: the cause of a trap, or the name of a code."""


class Found(NamedTuple):
    """Something wrong in a lane: a difference, or an invariant that was violated."""

    what: str
    lane: int
    details: tuple[str, ...]
    events: int
    """How many events it took."""


@dataclass
class Counts:
    """What was put to the test."""

    steps: int = 0
    trapped: int = 0
    compared: int = 0
    evaluated: int = 0
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)


class _Registers(list[Capability]):
    """A register file that says what is written to it."""

    place = 0
    log: list[tuple[int, ...]]

    def __setitem__(self, register: int, value: Capability) -> None:  # type: ignore[override]
        super().__setitem__(register, value)
        self.log.append((register, self.place, *value[1:]))


class _Store(SparseStore):
    """A memory's granules, which say what is written to them."""

    lane = 0
    log: list[tuple[int, ...]]

    def set(self, index: int, granule: Granule) -> None:
        super().set(index, granule)
        self.log.append((self.lane, index, *granule))

    def map(self, function: Sweep) -> None:
        for index, granule in list(self.written()):
            changed = function(index, granule)
            if changed != granule:
                self.set(index, changed)


def _columns(log: list[tuple[int, ...]], below: int) -> Any:
    """The columns of a log of writes: where, in two numbers, and what; of two writes to one place the later one alone.

    The second number is below what is given; elsewhere there is nothing to compare with.
    """
    return zip(*{row[:2]: row for row in log if row[1] < below}.values(), strict=True)


class Systems:
    """The same systems twice. `found` is what went wrong, in the order in which it did."""

    def __init__(
        self,
        fmt: CapabilityFormat,
        base: int,
        size_bytes: int,
        lanes: int,
        policy: MonitorPolicy = INTENDED,
        watched: int = 0,
        batch_type: type[BatchMonitor] = BatchMonitor,
    ) -> None:
        """With invariants watched in the first lanes."""
        self.format, self.lanes, self.policy = fmt, lanes, policy
        self.batch = batch_type(fmt, base, size_bytes, lanes, policy)
        self._registers: list[tuple[int, ...]] = []
        self._granules: list[tuple[int, ...]] = []
        self.monitors = [self._monitor(base, size_bytes, lane) for lane in range(lanes)]
        self.watches = [InvariantWatch() for _ in range(watched)]
        self.events: list[Event] = []
        self.found: list[Found] = []
        self.broken: set[int] = set()
        """Lanes that differ, and are left out from then on."""
        self.counts = Counts()
        self._make_expected()
        self._tables = self._table_arrays()

    def _monitor(self, base: int, size_bytes: int, lane: int) -> Monitor:
        store = _Store()
        store.lane, store.log = lane, self._granules

        def make_hart(memory: Memory) -> Hart:
            hart = Hart(memory)
            registers = _Registers(cast(list[Capability], hart.registers))
            registers.place, registers.log = len(monitor.threads) * self.lanes + lane, self._registers  # type: ignore[arg-type]
            hart.registers = registers
            return hart

        monitor = Monitor(Memory(self.format, base, size_bytes, store), self.policy, make_hart=make_hart)
        return monitor

    # -- what may be done --------------------------------------------------------------------------------------------------

    def _state(self, name: str, thread: int) -> NDArray[Any]:
        columns = self.batch.frames if name == "is_inside" else self.batch.threads
        found: NDArray[Any] = columns[name].reshape(-1, self.lanes)[thread]
        return found

    def able(self, thread: int, *, inside: bool = False) -> Flags:
        """The lanes in which a thread can take a step: as a guest, or in the monitor."""
        if thread >= self.batch.slots:
            return np.zeros(self.lanes, np.bool_)
        able: Flags = self._state("is_live", thread) & ~self._state("waits", thread)
        able &= self._state("is_inside", thread) == inside
        able[list(self.broken)] = False
        return able

    # -- steps -------------------------------------------------------------------------------------------------------------

    def instruction(self, thread: int, name: str, operands: tuple[Any, ...], lanes: Flags | None = None) -> None:
        """One instruction of a thread, where it can. Immediates may be arrays of one number for each lane."""
        able = self.able(thread) if lanes is None else lanes & self.able(thread)
        chosen = np.flatnonzero(able)
        if not len(chosen):
            return
        own = tuple(each[chosen] if isinstance(each, np.ndarray) else each for each in operands)
        columns = [each.tolist() if isinstance(each, np.ndarray) else [each] * len(chosen) for each in own]
        rows = list(zip(*columns, strict=True)) or [()] * len(chosen)
        outcomes: dict[int, str] = {}
        self._begin("instruction", thread, name, operands, able, outcomes)
        for lane, numbers in zip(chosen.tolist(), rows, strict=True):
            monitor = self.monitors[lane]
            running = monitor.threads[thread]
            step, trap = system.instruction(monitor, running, name, numbers)
            if trap is not None:
                outcomes[lane] = trap.cause.name
            self._hart_changed(running.hart, thread * self.lanes + lane)
            self._watch(lane, step)
        places = thread * self.lanes + chosen
        causes = self.batch.step(places, name, self._as_fast(name, own, len(chosen)))
        self.counts.steps += len(chosen)
        self.counts.trapped += len(outcomes)
        self.counts.operations[name] += len(chosen)
        if name == "cinvoke":
            for lane in chosen.tolist():
                self._threads_changed(lane, (thread,))
        refused = chosen[causes != 0].tolist()
        self._compare(chosen, set(refused) ^ set(outcomes), tables=False)

    def _as_fast(self, name: str, operands: tuple[Any, ...], count: int) -> tuple[Any, ...]:
        """Operands as the fast path takes them: immediates as arrays, modulo 2**64."""
        found: list[Any] = []
        for kind, value in zip(OPERATIONS[name].operands, operands, strict=True):
            as_it_is = kind in _SCALAR or kind.is_register or isinstance(value, np.ndarray)
            found.append(value if as_it_is else np.full(count, value & (1 << 64) - 1, np.uint64))
        return tuple(found)

    def leave(self, thread: int, lanes: Flags | None = None) -> None:
        """The second part of a call, in the lanes in which the thread is in the monitor."""
        able = self.able(thread, inside=True) if lanes is None else lanes & self.able(thread, inside=True)
        chosen = np.flatnonzero(able)
        if not len(chosen):
            return
        outcomes: dict[int, str] = {}
        self._begin("leave", thread, "", (), able, outcomes)
        codes = []
        for lane in chosen.tolist():
            monitor = self.monitors[lane]
            running = monitor.threads[thread]
            number = running.frame.number if running.frame is not None else -1
            step, code = system.leave(monitor, running)
            codes.append(code.value)
            outcomes[lane] = code.name
            name = CALLS_BY_NUMBER[number].name if number in CALLS_BY_NUMBER else "unknown"
            self.counts.calls[name, code.name] += 1
            self._watch(lane, step)
        actual = self.batch.leave(thread * self.lanes + chosen)
        self._all_changed(chosen)
        self.counts.steps += len(chosen)
        self._compare(chosen, set(chosen[actual != codes].tolist()))

    def create(
        self, cvm_id: int, base: Words, size: int, is_purecap: bool = False, outer: int = 0, lanes: Flags | None = None
    ) -> None:
        """A new cVM, and its first thread."""
        chosen = self._chosen(lanes)
        outcomes: dict[int, str] = {}
        self._begin("create", 0, "", (cvm_id, base, size, is_purecap, outer), self._flags(chosen), outcomes)
        codes = []
        for lane in chosen.tolist():
            arguments = (cvm_id, int(base[lane]), size)
            step, code = system.deploy(self.monitors[lane], "create", *arguments, is_purecap=is_purecap, outer=outer)
            codes.append(code.value)
            outcomes[lane] = code.name
            self._watch(lane, step)
        count = len(chosen)
        whole = [np.full(count, each, np.uint64) for each in (cvm_id, size, outer)]
        actual = self.batch.create(chosen, whole[0], base[chosen], whole[1], np.full(count, is_purecap), whole[2])
        self.counts.steps += count
        self._all_changed(chosen)
        self._compare(chosen, set(chosen[actual != codes].tolist()))
        started = chosen[np.array(codes) == Code.OK.value]
        for lane in started.tolist():
            step, _thread = system.deploy(self.monitors[lane], "start_thread", cvm_id, 0)
            self._watch(lane, step)
        self.batch.start_thread(started, np.full(len(started), cvm_id, np.uint64), np.zeros(len(started), np.uint64))
        self.counts.steps += len(started)
        self._all_changed(started)
        self._compare(started, set())

    def destroy(self, cvm_id: int, lanes: Flags | None = None) -> None:
        """The end of a cVM."""
        chosen = self._chosen(lanes)
        outcomes: dict[int, str] = {}
        self._begin("destroy", 0, "", (cvm_id,), self._flags(chosen), outcomes)
        codes = []
        for lane in chosen.tolist():
            step, code = system.deploy(self.monitors[lane], "destroy", cvm_id)
            codes.append(code.value)
            outcomes[lane] = code.name
            self._watch(lane, step)
        actual = self.batch.destroy(chosen, np.full(len(chosen), cvm_id, np.uint64))
        self.counts.steps += len(chosen)
        self._all_changed(chosen)
        self._compare(chosen, set(chosen[actual != codes].tolist()))

    def _chosen(self, lanes: Flags | None) -> NDArray[np.int64]:
        able = np.ones(self.lanes, np.bool_) if lanes is None else lanes.copy()
        able[list(self.broken)] = False
        return np.flatnonzero(able)

    def _flags(self, chosen: NDArray[np.int64]) -> Flags:
        flags = np.zeros(self.lanes, np.bool_)
        flags[chosen] = True
        return flags

    def _begin(
        self, kind: str, thread: int, name: str, operands: tuple[Any, ...], lanes: Flags, outcomes: dict[int, str]
    ) -> None:
        self.events.append(Event(kind, thread, name, operands, lanes, outcomes))

    def _watch(self, lane: int, step: Step) -> None:
        if lane < len(self.watches):
            self.counts.evaluated += len(CVM_INVARIANTS)
            for found in self.watches[lane].violated(step):
                self.found.append(
                    Found(found.invariant, lane, (CVM_INVARIANTS[found.invariant].statement,), len(self.events))
                )

    # -- what the reference has --------------------------------------------------------------------------------------------

    def _make_expected(self) -> None:
        """Arrays for what the reference writes, in the form of the fast path's; at first they are as its own."""
        machine, memory = self.batch.harts, self.batch.memory
        self._tags, self._metas, self._addresses = (
            array[:_ROWS].copy() for array in (machine.tags, machine.metas, machine.addresses)
        )
        self._numbers = {name: machine.numbers[name].copy() for name in NUMBERS}
        self._is_reserved, self._pc = machine.is_reserved.copy(), machine.pc.copy()
        self._memory_tags, self._halves = memory.tags.copy(), memory.halves.copy()
        self._threads = {name: np.zeros(machine.lanes, column.dtype) for name, column in self.batch.threads.items()}
        self._frames = {name: np.zeros(machine.lanes, column.dtype) for name, column in self.batch.frames.items()}
        self._last: dict[int, Any] = {}

    def _grow(self) -> None:
        """Keep as many threads as the fast path has room for."""
        count = self.batch.harts.lanes
        if self._pc.shape[0] == count:
            return
        fresh = BatchMonitor(self.format, 0, 0, self.lanes, threads=self.batch.slots).harts
        old = self._pc.shape[0]
        for name, array in (("_tags", fresh.tags), ("_metas", fresh.metas), ("_addresses", fresh.addresses)):
            setattr(self, name, np.concatenate([getattr(self, name), array[:_ROWS, old:]], axis=1))
        for name in NUMBERS:
            self._numbers[name] = np.concatenate([self._numbers[name], fresh.numbers[name][old:]])
        self._is_reserved = np.concatenate([self._is_reserved, fresh.is_reserved[old:]])
        self._pc = np.concatenate([self._pc, fresh.pc[old:]])
        for columns in (self._threads, self._frames):
            for name, column in columns.items():
                columns[name] = np.concatenate([column, np.zeros(count - old, column.dtype)])

    def _hart_changed(self, hart: Hart, place: int) -> None:
        """Note a hart's special registers and numbers, if they are others."""
        specials, numbers = _SPECIAL_STATE(hart), _NUMBERS_STATE(hart)
        last_specials, last_numbers = self._last.get(place, (None, None))
        self._pc[place] = hart.pc
        if specials != last_specials:
            for row, cap in enumerate(specials, REGISTER_COUNT):
                self._registers.append((row, place, *cap[1:]))
        if numbers != last_numbers:
            for name, number in zip(NUMBERS, numbers[:-1], strict=True):
                self._numbers[name][place] = number
            self._is_reserved[place] = numbers[-1]
        self._last[place] = specials, numbers

    def _threads_changed(self, lane: int, numbers: Sequence[int]) -> None:
        monitor = self.monitors[lane]
        for number in numbers:
            thread, place = monitor.threads[number], number * self.lanes + lane
            self._threads["exists"][place] = True
            for name in THREAD_FIELDS:
                self._threads[name][place] = getattr(thread, name)
            for name, value in zip(self._frames, expected_frame(thread), strict=True):
                self._frames[name][place] = value

    def _all_changed(self, chosen: NDArray[np.int64]) -> None:
        """Note all threads of some lanes."""
        self._grow()
        for lane in chosen.tolist():
            threads = self.monitors[lane].threads
            # Where the fast path has fewer threads than that, the lane differs.
            numbers = range(min(len(threads), self.batch.slots))
            for number in numbers:
                self._hart_changed(threads[number].hart, number * self.lanes + lane)
            self._threads_changed(lane, numbers)

    # -- comparing ---------------------------------------------------------------------------------------------------------

    def _compare(self, chosen: NDArray[np.int64], differ: set[int], *, tables: bool = True) -> None:
        """Compare the whole state of all lanes; `differ` are those that were answered differently."""
        self._apply()
        self.counts.compared += len(chosen)
        wrong = set(differ)
        if not self._is_same():
            wrong |= {lane for lane in range(self.lanes) if differences(self.monitors[lane], self.batch, lane)}
        if tables:
            counts = self.batch.thread_counts()
            wrong |= {lane for lane in chosen.tolist() if len(self.monitors[lane].threads) != counts[lane]}
            wrong |= {lane for lane in chosen.tolist() if table_differences(self.monitors[lane], self.batch, lane)}
            self._tables = self._table_arrays()
        for lane in sorted(wrong - self.broken):
            details = differences(self.monitors[lane], self.batch, lane) or ["one is refused, the other isn't"]
            self.found.append(Found("differs", lane, tuple(details[:5]), len(self.events)))
        self.broken |= wrong
        if not tables and not all(map(np.array_equal, self._tables, self._table_arrays(copies=False))):
            self.found.append(Found("differs", int(chosen[0]), ("an instruction changed a table",), len(self.events)))

    def _apply(self) -> None:
        """Put what was written into the arrays: of two writes to one place the later one stays."""
        if any(row[1] < self._pc.shape[0] for row in self._registers):
            rows, places, tags, metas, addresses = _columns(self._registers, self._pc.shape[0])
            self._tags[rows, places] = tags
            self._metas[rows, places] = np.array(metas, np.uint64)
            self._addresses[rows, places] = np.array(addresses, np.uint64)
        self._registers.clear()
        if self._granules:
            lanes, indices, tags, uppers, lowers = _columns(self._granules, self._memory_tags.shape[1])
            self._memory_tags[lanes, indices] = tags
            self._halves[lanes, indices, 1] = np.array(uppers, np.uint64)
            self._halves[lanes, indices, 0] = np.array(lowers, np.uint64)
            self._granules.clear()

    def _is_same(self) -> bool:
        """Whether all arrays are the same, in the lanes that aren't broken."""
        if self.broken:
            whole = np.ones(self.lanes, np.bool_)
            whole[list(self.broken)] = False
            places = np.tile(whole, self.batch.slots)
        else:
            whole, places = slice(None), slice(None)  # type: ignore[assignment]
        machine, memory, batch = self.batch.harts, self.batch.memory, self.batch
        pairs = [
            (self._tags[:, places], machine.tags[:_ROWS, places]),
            (self._metas[:, places], machine.metas[:_ROWS, places]),
            (self._addresses[:, places], machine.addresses[:_ROWS, places]),
            (self._memory_tags[whole], memory.tags[whole]),
            (self._halves[whole], memory.halves[whole]),
            (self._pc[places], machine.pc[places]),
            (self._is_reserved[places], machine.is_reserved[places]),
            *((self._numbers[name][places], machine.numbers[name][places]) for name in NUMBERS if name != "reservation"),
            *((self._threads[name][places], batch.threads[name][places]) for name in batch.threads),
        ]
        reserved, inside = self._is_reserved[places], self._frames["is_inside"][places]
        mine, theirs = self._numbers["reservation"][places], machine.numbers["reservation"][places]
        pairs.append((mine * reserved, theirs * reserved))
        for name in batch.frames:
            pairs.append((self._frames[name][places] * inside, batch.frames[name][places] * inside))
        pairs.append((inside, batch.frames["is_inside"][places]))
        return all(np.array_equal(one, other) for one, other in pairs)

    def _table_arrays(self, *, copies: bool = True) -> list[NDArray[Any]]:
        """All tables of the fast path, as arrays."""
        batch, found = self.batch, []
        for table in (batch.regions, batch.grants, batch.portals, batch.held, batch.probed):
            found += [table.numbers, table.is_used, *table.columns.values()]
        found += [batch.is_slot, batch.slot_grant, batch.clock, batch.printed]
        return [array.copy() for array in found] if copies else found
