"""The invariants of `spec.orc_invariants` on a step of many systems of shared objects at once.

What a predicate looks at is here an array, one element for each place of one kind: its truth is an array too. As in
`dsl.orc_watch`, a step has only those registers and granules looked at again that it has written, but everything in lanes
whose tables changed. `tests/campaign/test_orc_oracles.py` holds all that against `dsl.orc_watch`.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capvisor.campaign.cvm_views import ABSENT, HeldCapability, LaneHart, LaneRegisters, One, mapped
from capvisor.campaign.hart_mirror import NONE, Granules
from capvisor.campaign.orc_mirror import Written
from capvisor.campaign.orc_views import LaneObjects, LaneTables, LaneThread, held_as
from capvisor.campaign.wide import Wide
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.machine import DDC, PCC, Indices
from capvisor.fastpath.objects import BatchObjects
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec.orc import NOBODY, OPERATIONS, Code, OperandKind, SlotKind
from capvisor.spec.orc_invariants import ORC_INVARIANTS, Place, Step
from capvisor.spec.registers import REGISTER_COUNT

OF_REGISTERS = ("O2", "O4", "O5", "O10")
OF_GRANULES = ("O2", "O4", "O6", "O10", "O15")
"""What is said of a capability that a tenant holds."""

OF_SEALED = ("O14",)
"""What is said of one with an ordinary object type."""

OF_PCC = ("O11",)
OF_WRITTEN = ("O1", "O9", "O12")
"""What is said of a granule that was written."""

OF_GIVEN = ("O16",)
"""What is said of all granules of a slot that was given away."""

OF_PAIRS, OF_MAPPINGS, OF_ROWS = ("O3",), ("O8", "O17"), ("O17",)
OF_REFUSALS, OF_ENTRIES = ("O7",), ("O13",)


class Taken(NamedTuple):
    """A step in some lanes; the other arrays have an element for each of them."""

    kind: str
    """`instruction` or `operation`."""
    name: str
    lanes: Indices
    tenants: Words
    """Whose threads took it; `NOBODY`: the base."""
    harts: Indices | None
    operands: tuple[Any, ...]
    completed: Flags


class Oracles:
    """Holds steps of systems against all invariants."""

    def __init__(self, batch: BatchObjects) -> None:
        self._batch = batch
        self.evaluated = dict.fromkeys(ORC_INVARIANTS, 0)
        self.concerned = dict.fromkeys(ORC_INVARIANTS, 0)
        """By invariant: at how many places it was evaluated, and at how many it had something to say."""
        self._violations: dict[str, list[Indices]] = {}
        self._taken: Taken
        self._written: Written

    def judge(self, taken: Taken, written: Written) -> list[tuple[str, Indices]]:
        """The invariants that a step violates, in the order of their table, and the lanes."""
        self._violations, self._taken, self._written = {}, taken, written
        changed = [place[0] for place in written.tables.values()]
        lanes = np.unique(np.concatenate(changed)) if changed else NONE
        self._judge_step()
        self._judge_written(written.granules)
        self._judge_registers(lanes)
        self._judge_granules(lanes)
        if len(lanes):
            self._judge_tables(lanes)
        found = []
        for name in ORC_INVARIANTS:
            if name in self._violations:
                found.append((name, np.unique(np.concatenate(self._violations[name]))))
        return found

    def _hold(self, names: tuple[str, ...], lanes: Indices, step: Step, place: Place) -> None:
        """Evaluate some invariants at places of one kind."""
        for name in names:
            holds: Any = ORC_INVARIANTS[name].holds(step, place)
            self.evaluated[name] += len(lanes)
            if holds is True:
                continue
            self.concerned[name] += len(lanes)
            if not np.all(holds):
                self._violations.setdefault(name, []).append(lanes[~np.broadcast_to(holds, lanes.shape)])

    def _step(self, lanes: Indices, index: Any = None, cap: Any = None, was: Any = None, **parts: Any) -> Step:
        """The step as what is said of a state looks at it, at one place in each of some lanes."""
        monitor = LaneObjects(self._batch, lanes, index, cap)
        before: Any = LaneTables(self._written.before, lanes, was)
        return Step(monitor, before, self._taken.kind, self._taken.name, **parts)

    # -- steps -------------------------------------------------------------------------------------------------------------

    def _judge_step(self) -> None:
        taken, batch = self._taken, self._batch
        if taken.kind == "operation":
            refused = ~taken.completed
            if refused.any():
                lanes, tenant = taken.lanes[refused], Wide(taken.tenants[refused])
                first = [
                    operand
                    for operand, (_name, kind) in zip(taken.operands, OPERATIONS[taken.name].operands, strict=True)
                    if kind is OperandKind.SLOT
                ]
                slot = Wide(first[0][refused]) if first else 0
                self._hold(OF_REFUSALS, lanes, self._refused(lanes), Place(tenant, slot))
                self._judge_refused_rows(lanes)
        elif taken.name == "cinvoke" and taken.completed.any():
            assert taken.harts is not None
            lanes, harts = taken.lanes[taken.completed], taken.harts[taken.completed]
            held = LaneRegisters(batch, harts)  # type: ignore[arg-type]
            hart = LaneHart(held, pcc=held[PCC], pc=Wide(batch.harts.pc[harts]))  # type: ignore[arg-type]
            thread = LaneThread(batch.threads["is_live"][harts], Wide(taken.tenants[taken.completed]), hart)
            self._hold(OF_ENTRIES, lanes, self._step(lanes, thread=thread), Place())

    def _refused(self, lanes: Indices, **parts: Any) -> Step:
        return self._step(lanes, code=Code.RANGE, is_completed=False, **parts)

    def _judge_refused_rows(self, refused: Indices) -> None:
        """Rows that were written where a step was refused: there are none, unless something is wrong."""
        for name, place in self._written.tables.items():
            mine = np.isin(place[0], refused)
            if mine.any():
                lanes, *keys = (each[mine] for each in place)
                numbers = [Wide(key.astype(np.uint64)) for key in keys]
                parts = {
                    "slots": ("slot",),
                    "mappings": ("tenant", "slot"),
                    "exports": ("slot", "entry"),
                    "tenants": ("tenant",),
                }
                at = Place()._replace(**dict(zip(parts[name], numbers, strict=True)))
                self._hold(OF_REFUSALS, lanes, self._refused(lanes), at)

    def _judge_written(self, granules: Granules) -> None:
        """What is said of granules that were written, before and after."""
        taken, lanes = self._taken, granules.lanes
        if not len(lanes):
            return
        at = np.searchsorted(taken.lanes, lanes)
        step, place = self._at_written(granules, tenant=Wide(taken.tenants[at]))
        self._hold(OF_WRITTEN, lanes, step, place)
        refused = ~taken.completed[at]
        if taken.kind == "operation" and refused.any():
            tags, halves = granules.tags[refused], granules.halves[refused]
            theirs = Granules(lanes[refused], granules.indices[refused], tags, halves)
            step, place = self._at_written(theirs, code=Code.RANGE, is_completed=False)
            self._hold(OF_REFUSALS, theirs.lanes, step, place)

    def _at_written(self, granules: Granules, **parts: Any) -> tuple[Step, Place]:
        batch, lanes, indices = self._batch, granules.lanes, granules.indices
        index = Wide(indices.astype(np.uint64))
        now = held_as(batch, batch.memory.tags[lanes, indices], batch.memory.halves[lanes, indices])
        was = held_as(batch, granules.tags, granules.halves)
        return self._step(lanes, index, now, was, **parts), Place(granule=index)

    # -- capabilities ------------------------------------------------------------------------------------------------------

    def _judge_registers(self, changed: Indices) -> None:
        """Registers, DDC and PCC that were written, or all in lanes whose tables changed."""
        batch, machine = self._batch, self._batch.harts
        rows, harts = self._written.registers
        if len(self._written.threads) or len(changed):
            everyone = (np.arange(machine.lanes // batch.lanes)[:, None] * batch.lanes + changed).reshape(-1)
            every = np.union1d(everyone, self._written.threads)
            row, which = np.nonzero(machine.tags[: PCC + 1, every])
            rows, harts = np.concatenate([rows, row]), np.concatenate([harts, every[which]])
        if not len(rows):
            return
        places = np.unique(rows * machine.lanes + harts)
        rows, harts = places // machine.lanes, places % machine.lanes
        kept = machine.tags[rows, harts] & batch.threads["is_live"][harts]
        for names, mine in ((OF_REGISTERS, (rows < REGISTER_COUNT) | (rows == DDC)), (OF_PCC, rows == PCC)):
            chosen = np.flatnonzero(kept & mine)
            if len(chosen):
                self._judge_held(names, rows[chosen], harts[chosen])

    def _judge_held(self, names: tuple[str, ...], rows: Indices, harts: Indices) -> None:
        machine = self._batch.harts
        caps = Lanes(machine.tags[rows, harts], machine.metas[rows, harts], machine.addresses[rows, harts])
        self._at_registers(names, harts, caps)
        if names is OF_REGISTERS:
            ordinary = np.flatnonzero(self._is_ordinary(caps.meta))
            if len(ordinary):
                self._at_registers(OF_SEALED, harts[ordinary], mapped(caps, lambda array: array[ordinary]))

    def _at_registers(self, names: tuple[str, ...], harts: Indices, caps: Lanes) -> None:
        """What is said of registers is said of DDC in the same way."""
        batch, lanes = self._batch, harts % self._batch.lanes
        cap, tenant = HeldCapability(batch.format, caps), Wide(batch.threads["tenant"][harts])
        hart = LaneHart(One(cap), ABSENT, cap)
        thread = LaneThread(batch.threads["is_live"][harts], tenant, hart)
        self._hold(names, lanes, self._step(lanes), Place(tenant, thread=thread, register=1))

    def _is_ordinary(self, meta: Words) -> Flags:
        otype = self._batch.format.otype
        found: Flags = meta >> np.uint64(otype.low) & np.uint64(otype.mask) <= np.uint64(self._batch.format.max_otype)
        return found

    def _judge_granules(self, changed: Indices) -> None:
        """Granules that were written, or all in lanes whose tables changed, that have a capability."""
        batch, granules = self._batch, self._written.granules
        memory = batch.memory
        lanes, indices = granules.lanes, granules.indices
        if len(changed):
            where, index = np.nonzero(memory.tags[changed])
            lanes, indices = np.concatenate([lanes, changed[where]]), np.concatenate([indices, index])
        tagged = memory.tags[lanes, indices]
        if not tagged.any():
            return
        places = np.unique(lanes[tagged] * memory.granules + indices[tagged])
        lanes, indices = places // memory.granules, places % memory.granules
        self._at_granules(OF_GRANULES, lanes, indices)
        ordinary = np.flatnonzero(self._is_ordinary(memory.halves[lanes, indices, 1] ^ np.uint64(batch.format.null_meta)))
        if len(ordinary):
            self._at_granules(OF_SEALED, lanes[ordinary], indices[ordinary])

    def _at_granules(self, names: tuple[str, ...], lanes: Indices, indices: Indices) -> None:
        batch, memory = self._batch, self._batch.memory
        index, slot = Wide(indices.astype(np.uint64)), indices // batch.slot_granules
        cap = held_as(batch, memory.tags[lanes, indices], memory.halves[lanes, indices])
        owner = Wide(batch.slots["owner"][lanes, slot])
        self._hold(names, lanes, self._step(lanes, index, cap), Place(owner, granule=index))

    # -- tables ------------------------------------------------------------------------------------------------------------

    def _judge_tables(self, changed: Indices) -> None:
        batch = self._batch
        self._judge_given(changed)
        for count, part in ((batch.slot_count, "slot"), (batch.tenants["is_live"].shape[1], "tenant")):
            lanes, numbers = np.repeat(changed, count), np.tile(np.arange(count, dtype=np.uint64), len(changed))
            self._at_rows(OF_ROWS, lanes, **{part: Wide(numbers)})
        which, tenant, slot = (each.astype(np.uint64) for each in np.nonzero(batch.mappings["is_live"][changed]))
        if len(which):
            lanes = changed[which.astype(np.int64)]
            self._at_rows(OF_MAPPINGS, lanes, tenant=Wide(tenant), slot=Wide(slot))
            one, other = _pairs(lanes)
            two = {"other": Wide(tenant[other]), "other_slot": Wide(slot[other])}
            self._at_rows(OF_PAIRS, lanes[one], tenant=Wide(tenant[one]), slot=Wide(slot[one]), **two)
        which, slot, half = (each.astype(np.uint64) for each in np.nonzero(batch.exports[changed]))
        if len(which):
            self._at_rows(OF_ROWS, changed[which.astype(np.int64)], slot=Wide(slot), entry=Wide(half << np.uint64(1)))
        harts = (np.arange(batch.harts.lanes // batch.lanes)[:, None] * batch.lanes + changed).reshape(-1)
        harts = harts[batch.threads["is_live"][harts]]
        if len(harts):
            tenant = batch.threads["tenant"][harts]
            thread = LaneThread(batch.threads["is_live"][harts], Wide(tenant), None)
            self._at_rows(OF_ROWS, harts % batch.lanes, tenant=Wide(tenant), thread=thread)

    def _at_rows(self, names: tuple[str, ...], lanes: Indices, **place: Any) -> None:
        # Of nobody's: a place without a tenant says nothing of one.
        self._hold(names, lanes, self._step(lanes), Place(**{"tenant": NOBODY, **place}))

    def _judge_given(self, changed: Indices) -> None:
        batch = self._batch
        free = np.uint8(SlotKind.FREE)
        was, now = self._written.before["slots"]["kind"][changed], batch.slots["kind"][changed]
        which, slot = np.nonzero((was == free) & (now != free))
        if not len(which):
            return
        lanes = np.repeat(changed[which], batch.slot_granules)
        index = Wide(batch.granules_of(slot).reshape(-1).astype(np.uint64))
        self._hold(OF_GIVEN, lanes, self._step(lanes), Place(granule=index))


def _pairs(lanes: Indices) -> tuple[Indices, Indices]:
    """All pairs of places in the same lane, of places that are in the order of their lanes."""
    _each, first, counts = np.unique(lanes, return_index=True, return_counts=True)
    size = np.repeat(counts, counts)
    one: NDArray[np.int64] = np.repeat(np.arange(len(lanes)), size)
    start = np.repeat(np.repeat(first, counts), size)
    within = np.arange(len(one)) - np.repeat(np.cumsum(size) - size, size)
    return one, start + within
