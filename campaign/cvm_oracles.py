"""The invariants of `spec.cvm_invariants` on a step of many systems of cVMs at once.

What a predicate looks at (the monitor's tables, a thread, the capability at a place) is here an array, one element for each
place of one kind: its truth is an array too. As in `dsl.invariant_watch`, a step has only those places looked at again whose
capabilities it changed; all of a thread, if it runs for another cVM now or has entered or left the monitor; and all places
of a lane whose tables changed.

What a predicate reads decides where it is evaluated: what is said of steps alone once a step, what is said of tables at each
pair of cVMs, or at each cVM with each grant, and what is said of capabilities at each of them. `tests/campaign/test_cvm.py`
holds all that against `dsl.invariant_watch`.
"""

import dis
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from capvisor.campaign.cvm_views import (
    ABSENT,
    HeldCapability,
    Knowledge,
    KnownRows,
    LaneAccess,
    LaneHart,
    LaneMonitor,
    LanePlace,
    LaneRegisters,
    LaneThread,
    One,
    frame_of,
    mapped,
)
from capvisor.campaign.wide import Wide
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.machine import DDC, PCC, Indices
from capvisor.fastpath.monitor import BatchMonitor
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec.cvm_invariants import CVM_INVARIANTS, Predicate, Step
from capvisor.spec.registers import REGISTER_COUNT

# -- what a predicate reads ------------------------------------------------------------------------------------------------

_OF_STEP = {"kind", "name", "thread", "is_completed", "ddc", "frame", "used", "accesses"}


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


class Reads(NamedTuple):
    """What a predicate reads: parts of the step, parts of the place; `capabilities` if the place as a whole."""

    step: frozenset[str]
    place: frozenset[str]
    capabilities: bool

    @classmethod
    def of(cls, predicate: Predicate) -> "Reads":
        """By its code."""
        step, place, capabilities = set[str](), set[str](), False
        for code in _codes(predicate.__code__):
            rows = [each for each in dis.get_instructions(code) if each.opname not in ("CACHE", "RESUME")]
            for one, following in itertools.pairwise(rows):
                if not one.opname.startswith(("LOAD_FAST", "LOAD_DEREF")):
                    continue
                attribute = following.argval if following.opname.startswith("LOAD_ATTR") else None
                if one.argval == "place" and attribute is None:
                    capabilities = True
                elif one.argval == "place" and attribute is not None:
                    place.add(attribute)
                elif one.argval == "step" and attribute in _OF_STEP:
                    step.add(attribute)
            if "accesses" in code.co_names:
                step.add("accesses")
        return cls(frozenset(step), frozenset(place), capabilities)


READS = {name: Reads.of(row.holds) for name, row in CVM_INVARIANTS.items()}
OF_STEPS = [name for name, reads in READS.items() if reads.step or not (reads.place or reads.capabilities)]
OF_CAPABILITIES = [name for name, reads in READS.items() if reads.capabilities]
OF_PAIRS = [name for name, reads in READS.items() if not reads.capabilities and "other" in reads.place]
OF_GRANTS = [name for name, reads in READS.items() if not reads.capabilities and reads.place and "other" not in reads.place]

# -- steps -----------------------------------------------------------------------------------------------------------------


@dataclass
class Change:
    """What a step did in some lanes, and what of the state it changed."""

    kind: str
    names: list[str]
    """The instruction, the call, or the deployer's operation: one for all lanes, or one for each."""
    lanes: Indices
    thread: int | None
    completed: Flags
    ddc: Lanes | None = None
    """The thread's DDC before the step, as the other arrays for each of `lanes`."""
    frames: dict[str, NDArray[Any]] | None = None
    """What the monitor had put down before the second part of a call."""
    used: tuple[Words, ...] = ()
    accesses: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Of the monitor: the lane, the cVM that it was made for, address and size."""
    registers: tuple[Indices, Indices] | None = None
    """Rows and harts that were written."""
    granules: tuple[Indices, Indices] | None = None
    """Lanes and granules that were written."""
    threads: Indices | None = None
    """Harts of threads that live, run for another cVM, or are in the monitor as they weren't before."""
    tables: Indices | None = None
    """Lanes in which a table changed."""


class Oracles:
    """Holds steps of systems against all invariants."""

    def __init__(self, batch: BatchMonitor) -> None:
        self._batch = batch
        self._known = Knowledge(batch)
        self.evaluated = dict.fromkeys(CVM_INVARIANTS, 0)
        self.concerned = dict.fromkeys(CVM_INVARIANTS, 0)
        """By invariant: at how many places it was evaluated, and at how many it had something to say."""
        self._violations: dict[str, list[Indices]] = {}

    def judge(self, change: Change) -> list[tuple[str, Indices]]:
        """The invariants that a step violates, in the order of their table, and the lanes."""
        self._violations = {}
        if change.tables is not None and len(change.tables):
            self._known = Knowledge(self._batch)
        self._judge_step(change)
        self._judge_capabilities(change)
        self._judge_tables(change)
        found = []
        for name in CVM_INVARIANTS:
            if name in self._violations:
                found.append((name, np.unique(np.concatenate(self._violations[name]))))
        return found

    def _hold(self, names: list[str], lanes: Indices, step: Any, place: LanePlace) -> None:
        """Evaluate some invariants at places of one kind."""
        for name in names:
            holds: Any = CVM_INVARIANTS[name].holds(step, cast(Any, place))
            self.evaluated[name] += len(lanes)
            if holds is True:
                continue
            self.concerned[name] += len(lanes)
            if not np.all(holds):
                wrong = lanes[~np.broadcast_to(holds, lanes.shape)]
                self._violations.setdefault(name, []).append(wrong)

    def _monitor(self, lanes: Indices, cap: Any = None) -> LaneMonitor:
        return LaneMonitor(self._batch, self._known, lanes, cap)

    # -- of steps ----------------------------------------------------------------------------------------------------------

    def _judge_step(self, change: Change) -> None:
        batch, count = self._batch, len(change.lanes)
        if not count:
            return
        names = np.broadcast_to(np.array(change.names), count)
        harts = change.lanes if change.thread is None else change.thread * batch.lanes + change.lanes
        inside = np.zeros(count, np.bool_) if change.thread is None else batch.frames["is_inside"][harts]
        kinds = inside.astype(np.int64) + 2 * change.completed
        uniform = (names == names[0]).all() and (kinds == kinds[0]).all()
        groups = [np.arange(count)] if uniform else _groups(names, kinds)
        for chosen in groups:
            self._judge_steps_alike(change, str(names[chosen[0]]), chosen, harts[chosen], bool(inside[chosen[0]]))
        if change.accesses:
            lanes, domains, addresses, sizes = (np.array(each, np.uint64) for each in zip(*change.accesses, strict=True))
            at = lanes.astype(np.int64)
            monitor = self._monitor(at)
            monitor.accesses = [LaneAccess(Wide(domains), Wide(addresses), Wide(sizes))]
            reading = [name for name in OF_STEPS if "accesses" in READS[name].step]
            self._hold(reading, at, Step(monitor, change.kind, change.names[0]), LanePlace(Wide(domains)))

    def _judge_steps_alike(self, change: Change, name: str, chosen: Indices, harts: Indices, is_inside: bool) -> None:
        batch, lanes = self._batch, change.lanes[chosen]
        monitor = self._monitor(lanes)
        thread, frame, ddc = None, None, None
        place = LanePlace(Wide(np.zeros(len(lanes), np.uint64)))
        if change.thread is not None:
            registers = LaneRegisters(batch, harts)
            hart = LaneHart(registers, registers[DDC], registers[PCC], Wide(batch.harts.pc[harts]))  # type: ignore[arg-type]
            now = frame_of({key: each[harts] for key, each in batch.frames.items()}) if is_inside else None
            thread = self._thread(harts, hart, now)
            frame = now if change.kind == "instruction" else None
            place = LanePlace(thread.domain, thread.domain, thread)
        if change.frames is not None:
            frame = frame_of({key: each[chosen] for key, each in change.frames.items()})
        if change.ddc is not None:
            ddc = HeldCapability(batch.format, mapped(change.ddc, lambda array: array[chosen]))
        used = tuple(Wide(each[chosen]) for each in change.used)
        step = Step(monitor, change.kind, name, thread, bool(change.completed[chosen[0]]), ddc, frame, used)
        self._hold(OF_STEPS, lanes, step, place)

    def _thread(self, harts: Indices, hart: Any, frame: Any) -> LaneThread:
        return self._thread_of(harts, Wide(self._batch.threads["domain"][harts]), hart, frame)

    def _thread_of(self, harts: Indices, domain: Any, hart: Any, frame: Any) -> LaneThread:
        threads = self._batch.threads
        home, portal = Wide(threads["home"][harts]), Wide(threads["portal"][harts])
        return LaneThread(threads["is_live"][harts], home, domain, hart, frame, threads["serves"][harts], portal)

    # -- of capabilities ---------------------------------------------------------------------------------------------------

    def _judge_capabilities(self, change: Change) -> None:
        batch, machine = self._batch, self._batch.harts
        rows, harts = change.registers or (np.zeros(0, np.int64),) * 2
        lanes, granules = change.granules or (np.zeros(0, np.int64),) * 2
        again = [] if change.threads is None else [change.threads]
        if change.tables is not None and len(change.tables):
            everyone = batch.harts_of(change.tables)
            again.append(everyone)
            where, granule = np.nonzero(batch.memory.tags[change.tables])
            lanes = np.concatenate([lanes, change.tables[where]])
            granules = np.concatenate([granules, granule])
        if again:
            every = np.unique(np.concatenate(again))
            row, which = np.nonzero(machine.tags[:REGISTER_COUNT, every])
            rows = np.concatenate([rows, row, np.full(len(every), DDC), np.full(len(every), PCC)])
            harts = np.concatenate([harts, every[which], every, every])
        kept = (machine.tags[rows, harts]) & batch.threads["is_live"][harts]
        kept &= (rows < REGISTER_COUNT) | (rows == DDC) | (rows == PCC)
        rows, harts = rows[kept], harts[kept]
        inside = batch.frames["is_inside"][harts] if len(harts) else kept[:0]
        for is_inside in (False, True):
            for kind in ("register", "ddc", "pcc"):
                mine = inside == is_inside
                mine &= (rows == DDC) if kind == "ddc" else (rows == PCC) if kind == "pcc" else (rows < REGISTER_COUNT)
                if mine.any() and not (is_inside and kind == "pcc"):
                    self._judge_registers(change, kind, rows[mine], harts[mine], is_inside)
        tagged = batch.memory.tags[lanes, granules]
        if tagged.any():
            self._judge_granules(change, lanes[tagged], granules[tagged])

    def _judge_registers(self, change: Change, kind: str, rows: Indices, harts: Indices, is_inside: bool) -> None:
        batch, machine = self._batch, self._batch.harts
        lanes = harts % batch.lanes
        cap = HeldCapability(
            batch.format, Lanes(machine.tags[rows, harts], machine.metas[rows, harts], machine.addresses[rows, harts])
        )
        hart = LaneHart(
            One(cap if kind == "register" else ABSENT), *(cap if kind == each else ABSENT for each in ("ddc", "pcc"))
        )
        domain = batch.threads["domain"][harts]
        at = batch.regions.find(lanes, domain)
        cvm_id = KnownRows(batch.regions, lanes, at)
        frame = None if not is_inside else frame_of({key: each[harts] for key, each in batch.frames.items()})
        thread = self._thread_of(harts, cvm_id, hart, frame)
        register = Wide(rows.astype(np.uint64)) if kind == "register" else 0
        self._at_capabilities(change, lanes, cap, LanePlace(cvm_id, cvm_id, thread, register))

    def _judge_granules(self, change: Change, lanes: Indices, granules: Indices) -> None:
        batch, regions, memory = self._batch, self._batch.regions, self._batch.memory
        address = granules.astype(np.uint64) << np.uint64(batch.format.granule_shift)
        address += np.uint64(memory.base)
        inside = regions["is_live"][lanes] & (regions["base"][lanes] <= address[:, None])
        inside &= address[:, None] < regions["top"][lanes]
        which, at = np.nonzero(inside)
        lanes, granules = lanes[which], granules[which]
        halves = memory.halves[lanes, granules]
        meta = halves[:, 1] ^ np.uint64(batch.format.null_meta)
        cap = HeldCapability(batch.format, Lanes(memory.tags[lanes, granules], meta, halves[:, 0].copy()))
        cvm_id = KnownRows(regions, lanes, at)
        self._at_capabilities(change, lanes, cap, LanePlace(cvm_id, cvm_id, None, 0, Wide(granules.astype(np.uint64))))

    def _at_capabilities(self, change: Change, lanes: Indices, cap: HeldCapability, place: LanePlace) -> None:
        if not len(lanes):
            return
        monitor = self._monitor(lanes, cap)
        monitor.cvm = place.cvm
        step = Step(monitor, change.kind, "")
        by_grant = [name for name in OF_CAPABILITIES if "grant" in READS[name].place]
        self._hold([name for name in OF_CAPABILITIES if name not in by_grant], lanes, step, place)
        grants = self._batch.grants
        used = grants.is_used[lanes]
        for row in np.flatnonzero(used.any(axis=0)).tolist():
            place.grant = KnownRows(grants, lanes, np.full(len(lanes), row))
            self._hold(by_grant, lanes, step, place)

    # -- of tables ---------------------------------------------------------------------------------------------------------

    def _judge_tables(self, change: Change) -> None:
        batch, regions = self._batch, self._batch.regions
        if change.threads is not None and len(change.threads):
            harts = change.threads[batch.threads["is_live"][change.threads]]
            self._judge_threads(change, harts)
        if change.tables is None or not len(change.tables):
            return
        lane, at = np.nonzero(regions["is_live"][change.tables])
        lanes = change.tables[lane]
        for other in np.flatnonzero(regions["is_live"][change.tables].any(axis=0)).tolist():
            both = regions["is_live"][lanes, other]
            mine, here = lanes[both], at[both]
            one = KnownRows(regions, mine, here)
            two = KnownRows(regions, mine, np.full(len(mine), other))
            self._hold(OF_PAIRS, mine, Step(self._monitor(mine), change.kind, ""), LanePlace(one, two))
        for table in (batch.grants, batch.portals):
            for row in range(table.numbers.shape[1]):
                there = table.is_used[lanes, row]
                if there.any():
                    mine, here = lanes[there], at[there]
                    one = KnownRows(regions, mine, here)
                    grant = KnownRows(table, mine, np.full(len(mine), row))
                    monitor = self._monitor(mine)
                    self._hold(OF_GRANTS, mine, Step(monitor, change.kind, ""), LanePlace(one, one, grant=grant))
        self._judge_threads(change, batch.harts_of(change.tables))

    def _judge_threads(self, change: Change, harts: Indices) -> None:
        """What is said of threads and tables; of grants, one is looked at."""
        batch, inside = self._batch, self._batch.frames["is_inside"]
        harts = harts[batch.threads["is_live"][harts]]
        names = [name for name in OF_GRANTS if "thread" in READS[name].place]
        for is_inside in (False, True):
            mine = harts[inside[harts] == is_inside]
            if not len(mine):
                continue
            frame = None if not is_inside else frame_of({key: each[mine] for key, each in batch.frames.items()})
            thread, lanes = self._thread(mine, LaneHart(One(ABSENT)), frame), mine % batch.lanes
            place = LanePlace(thread.domain, thread.domain, thread)
            self._hold(names, lanes, Step(self._monitor(lanes), change.kind, ""), place)


def _groups(names: NDArray[Any], kinds: NDArray[Any]) -> Iterator[Indices]:
    """The elements that are alike."""
    for name in np.unique(names):
        for kind in np.unique(kinds):
            found = np.flatnonzero((names == name) & (kinds == kind))
            if len(found):
                yield found
