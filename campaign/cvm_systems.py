"""Systems of cVMs in both implementations, step by step: one monitor of the reference for each lane of the fast path.

After every step the whole state of every lane is compared, and the step is held against all invariants in every lane.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capvisor.campaign.cvm_mirror import Mirror
from capvisor.campaign.cvm_oracles import Change, Oracles
from capvisor.campaign.cvm_states import differences
from capvisor.campaign.hart_states import as_fast, rows_of
from capvisor.campaign.systems import CRASHES, DIFFERS, MOST_DETAILS, CrashError, Found
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.machine import DDC
from capvisor.fastpath.monitor import BatchMonitor
from capvisor.fastpath.workspace import Flags, Words
from capvisor.model import isa as _rules  # declares the rules
from capvisor.spec.cvm import CALLS_BY_NUMBER, Code
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.policy import INTENDED, MonitorPolicy

assert _rules


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
    threads: NDArray[np.int64]
    """By lane: how many threads there were before."""


NO_CALL = "no call"
"""What is called by a number that no call has."""


@dataclass
class Counts:
    """What was put to the test."""

    steps: int = 0
    compared: int = 0
    executed: Counter[str] = field(default_factory=Counter)
    """Instructions, by name."""
    trapped: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Calls, by name and answer."""
    deployed: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The deployer's operations, likewise."""
    outcomes: set[tuple[str, str]] = field(default_factory=set)
    """Instructions, and the causes of their traps, "" for none."""


class Systems:
    """The same systems twice. `found` is what went wrong, in the order in which it did."""

    mirror_type: type[Mirror] = Mirror

    def __init__(
        self,
        fmt: CapabilityFormat,
        base: int,
        size_bytes: int,
        lanes: int,
        policy: MonitorPolicy = INTENDED,
        batch_type: type[BatchMonitor] = BatchMonitor,
        *,
        oracles: bool = True,
    ) -> None:
        """With invariants as oracles, or without."""
        self.format, self.lanes, self.policy = fmt, lanes, policy
        self.batch = batch_type(fmt, base, size_bytes, lanes, policy)
        self.mirror = self.mirror_type(self.batch)
        self.monitors = self.mirror.monitors
        self.oracles = Oracles(self.batch) if oracles else None
        self.events: list[Event] = []
        self.found: list[Found] = []
        self.broken: set[int] = set()
        """Lanes that differ, and are left out from then on."""
        self._violated: set[tuple[str, int]] = set()
        self.counts = Counts()

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
        rows = rows_of(own, len(chosen))
        event = self._begin("instruction", thread, name, operands, able)
        mirror, monitors, invokes, harts = self.mirror, self.monitors, name == "cinvoke", thread * self.lanes + chosen
        ddc = self._ddc(harts)
        for lane, place, numbers in zip(chosen.tolist(), harts.tolist(), rows, strict=True):
            monitor = monitors[lane]
            running = monitor.threads[thread]
            if invokes:
                monitor.accesses.clear()
            trap = monitor.step(running, name, numbers)
            if trap is not None:
                event.outcomes[lane] = trap.cause.name
            mirror.note_hart(place, running.hart)
            mirror.note_thread(place, running)
        causes = self._fast(self.batch.step, harts, name, as_fast(name, own, len(chosen)))
        completed = causes == 0
        self.counts.trapped[name] += len(event.outcomes)
        self.counts.causes.update(event.outcomes.values())
        self.counts.executed[name] += len(chosen)
        self.counts.outcomes.update((name, cause) for cause in set(event.outcomes.values()))
        if completed.any():
            self.counts.outcomes.add((name, ""))
        differ = set(chosen[~completed].tolist()) ^ event.outcomes.keys()
        change = Change("instruction", [name], chosen, thread, completed, ddc)
        self._judge(change, differ, accesses=invokes)

    def _ddc(self, harts: NDArray[np.int64]) -> Lanes:
        machine = self.batch.harts
        return Lanes(machine.tags[DDC, harts], machine.metas[DDC, harts], machine.addresses[DDC, harts])

    def leave(self, thread: int, lanes: Flags | None = None) -> None:
        """The second part of a call, in the lanes in which the thread is in the monitor."""
        able = self.able(thread, inside=True) if lanes is None else lanes & self.able(thread, inside=True)
        chosen = np.flatnonzero(able)
        if not len(chosen):
            return
        event = self._begin("leave", thread, "", (), able)
        harts = thread * self.lanes + chosen
        ddc, frames = self._ddc(harts), {name: column[harts] for name, column in self.batch.frames.items()}
        codes, names, used = [], [], []
        for lane in chosen.tolist():
            monitor = self.monitors[lane]
            monitor.accesses.clear()
            running = monitor.threads[thread]
            frame = monitor.reloaded(running)
            code = monitor.leave(running)
            row = CALLS_BY_NUMBER.get(frame.number)
            names.append(NO_CALL if row is None else row.name)
            codes.append(code.value)
            used.append(frame.arguments)
            event.outcomes[lane] = code.name
            self.mirror.note_lane(lane)
        self.counts.calls.update(zip(names, event.outcomes.values(), strict=True))
        actual = self._fast(self.batch.leave, harts)
        words = np.array(used, np.uint64).T
        change = Change("leave", names, chosen, thread, actual == 0, ddc, frames, tuple(words))
        self._judge(change, set(chosen[actual != codes].tolist()), accesses=True)

    def create(
        self, cvm_id: int, base: Words, size: int, is_purecap: bool = False, outer: int = 0, lanes: Flags | None = None
    ) -> None:
        """A new cVM, and its first thread."""
        chosen = self._chosen(lanes)
        event = self._begin("create", 0, "", (cvm_id, base, size, is_purecap, outer), self._flags(chosen))
        codes = []
        for lane in chosen.tolist():
            monitor = self.monitors[lane]
            monitor.accesses.clear()
            code = monitor.create(cvm_id, int(base[lane]), size, is_purecap=is_purecap, outer=outer)
            codes.append(code.value)
            event.outcomes[lane] = code.name
            self.mirror.note_lane(lane)
        count = len(chosen)
        whole = [np.full(count, each, np.uint64) for each in (cvm_id, size, outer)]
        flags = np.full(count, is_purecap)
        actual = self._fast(self.batch.create, chosen, whole[0], base[chosen], whole[1], flags, whole[2])
        self._deployed("create", chosen, codes, actual)
        started = chosen[np.array(codes) == Code.OK.value]
        for lane in started.tolist():
            self.monitors[lane].start_thread(cvm_id, 0)
            self.mirror.note_lane(lane)
        of = np.full(len(started), cvm_id, np.uint64)
        self._fast(self.batch.start_thread, started, of, np.zeros(len(started), np.uint64))
        done = np.zeros(len(started), np.uint8)
        self._deployed("start_thread", started, done.tolist(), done)

    def destroy(self, cvm_id: int, lanes: Flags | None = None) -> None:
        """The end of a cVM."""
        chosen = self._chosen(lanes)
        event = self._begin("destroy", 0, "", (cvm_id,), self._flags(chosen))
        codes = []
        for lane in chosen.tolist():
            monitor = self.monitors[lane]
            monitor.accesses.clear()
            code = monitor.destroy(cvm_id)
            codes.append(code.value)
            event.outcomes[lane] = code.name
            self.mirror.note_lane(lane)
        actual = self._fast(self.batch.destroy, chosen, np.full(len(chosen), cvm_id, np.uint64))
        self._deployed("destroy", chosen, codes, actual)

    def _deployed(self, name: str, chosen: NDArray[np.int64], codes: list[int], actual: NDArray[np.uint8]) -> None:
        self.counts.deployed.update((name, Code(code).name) for code in codes)
        change = Change("deploy", [name], chosen, None, actual == 0)
        self._judge(change, set(chosen[actual != codes].tolist()))

    def _chosen(self, lanes: Flags | None) -> NDArray[np.int64]:
        able = np.ones(self.lanes, np.bool_) if lanes is None else lanes.copy()
        able[list(self.broken)] = False
        return np.flatnonzero(able)

    def _flags(self, chosen: NDArray[np.int64]) -> Flags:
        flags = np.zeros(self.lanes, np.bool_)
        flags[chosen] = True
        return flags

    def _begin(self, kind: str, thread: int, name: str, operands: tuple[Any, ...], lanes: Flags) -> Event:
        self.events.append(Event(kind, thread, name, operands, lanes, {}, self.batch.thread_counts()))
        return self.events[-1]

    def _fast(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """A step of the fast path. Raises CrashError where it ends with an error."""
        try:
            return step(*arguments)
        except (ArithmeticError, IndexError, TypeError, ValueError, LookupError) as error:
            event = self.events[-1]
            lane = int(np.flatnonzero(event.lanes)[0])
            details = (f"{type(error).__name__}: {error}",)
            self.found.append(Found(CRASHES, lane, details, len(self.events), event.name or event.kind))
            self.broken = set(range(self.lanes))
            raise CrashError from error

    # -- judging -----------------------------------------------------------------------------------------------------------

    def _judge(self, change: Change, differ: set[int], *, accesses: bool = False) -> None:
        """Compare the whole state of all lanes, and hold the step against the invariants.

        `differ` are the lanes that were answered differently.
        """
        written = self.mirror.apply()
        self.counts.steps += len(change.lanes)
        wrong = self.mirror.differing()
        self.counts.compared += len(change.lanes)
        for lane in sorted((set(np.flatnonzero(wrong).tolist()) | differ) - self.broken):
            details = differences(self.monitors[lane], self.batch, lane) or ["one is refused, the other isn't"]
            self.found.append(
                Found(DIFFERS, lane, tuple(details[:MOST_DETAILS]), len(self.events), self._name(change, lane))
            )
            self.broken.add(lane)
        if self.oracles is None:
            return
        if accesses:
            change.accesses = [
                (lane, each.domain, each.address, each.size_bytes)
                for lane in change.lanes.tolist()
                for each in self.monitors[lane].accesses
            ]
        change.registers, change.granules, change.threads, change.tables = written
        for name, lanes in self.oracles.judge(change):
            for lane in lanes.tolist():
                if (name, lane) not in self._violated and lane not in self.broken:
                    self._violated.add((name, lane))
                    says = (CVM_INVARIANTS[name].statement,)
                    self.found.append(Found(name, lane, says, len(self.events), self._name(change, lane)))

    @staticmethod
    def _name(change: Change, lane: int) -> str:
        names = change.names
        return names[0] if len(names) == 1 else names[int(np.searchsorted(change.lanes, lane))]

    def finish(self) -> None:
        """To be called at the end: the reference's state, read anew, must be what was compared."""
        for lane in self.mirror.misread().tolist():
            if lane not in self.broken:
                raise AssertionError(f"lane {lane}: the reference has changed what it didn't say")
