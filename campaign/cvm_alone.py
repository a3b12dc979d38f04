"""The reference's systems of cVMs by themselves, held against all invariants in many lanes at once; and the first thing
that is wrong in a campaign, of the reference alone or of both implementations.

The fast path takes no step here: its arrays are where the reference's state is written to, for the oracles to look at. So
what a changed reference breaks is seen by the invariants, whatever the fast path would have done.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from capvisor.campaign.cvm_attacks import play
from capvisor.campaign.cvm_drill import Drill, drill
from capvisor.campaign.cvm_mirror import Mirror, TableMirror, Written
from capvisor.campaign.cvm_moves import MEMORY_BYTES, REGION_BYTES
from capvisor.campaign.cvm_states import TABLES
from capvisor.campaign.cvm_systems import Systems
from capvisor.campaign.hart_mirror import ROWS
from capvisor.campaign.noted import Log
from capvisor.campaign.systems import CRASHES, CrashError, exercise
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.tables import Table
from capvisor.fastpath.workspace import Flags
from capvisor.spec.cvm import Code
from capvisor.spec.formats import CC64, CC128, CapabilityFormat
from capvisor.spec.policy import MonitorPolicy


class _OwnTable(TableMirror):
    """A table of the reference's, in the fast path's place."""

    def write(self, table: Table, rows: Log) -> None:
        """Write rows, each as (lane, number, columns); of two of one number the later."""
        pending = list({row[:2]: row for row in rows}.values())
        while pending:
            # A table takes one row of each lane at a time.
            first = {row[0]: row for row in reversed(pending)}
            pending = [row for row in pending if first[row[0]] is not row]
            lanes, numbers, *columns = (np.array(each, np.uint64) for each in zip(*first.values(), strict=True))
            values = dict(zip(table.columns, columns, strict=True))
            table.put(lanes.astype(np.int64), numbers, **values)


class _OwnMirror(Mirror):
    """What is known of the reference's states, kept in the arrays of a fast path that takes no step."""

    def make_arrays(self) -> None:
        batch, machine = self.batch, self.batch.harts
        self.tags, self.metas, self.addresses = machine.tags[:ROWS], machine.metas[:ROWS], machine.addresses[:ROWS]
        self.numbers, self.is_reserved, self.pc = machine.numbers, machine.is_reserved, machine.pc
        self.granule_tags, self.halves = batch.memory.tags, batch.memory.halves
        self.threads, self.frames = batch.threads, batch.frames
        self.tables = {name: _OwnTable(self.lanes, getattr(batch, name)) for name in TABLES}
        self.is_slot, self.slot_grant = batch.is_slot, batch.slot_grant
        self.clock, self.printed = batch.clock, batch.printed

    def grow(self) -> int:
        most = max(len(monitor.threads) for monitor in self.monitors)  # type: ignore[arg-type]
        while self.batch.slots < most:
            self.batch.add_slots()
            self.make_arrays()
        return 0

    def apply(self) -> Written:
        """Bring the arrays up to date; there is none for what a changed reference writes beside memory."""
        self._granules[:] = [row for row in self._granules if row[1] < self.batch.memory.granules]
        return super().apply()

    def differing(self) -> Flags:
        """Nothing differs from itself."""
        return np.zeros(self.lanes, np.bool_)

    def misread(self) -> Indices:
        """Nothing is held against anything."""
        return np.zeros(0, np.int64)


class FoundError(CrashError):
    """Something wrong was found, which is enough."""


class UpToTheFirst(Systems):
    """Systems in both implementations, up to the first step that differs."""

    def __init__(self, *arguments: Any, oracles: bool = False) -> None:
        super().__init__(*arguments, oracles=oracles)

    def _judge(self, *arguments: Any, **options: Any) -> None:
        super()._judge(*arguments, **options)
        if self.found:
            raise FoundError


class Alone(UpToTheFirst):
    """Systems of the reference alone, up to the first step that violates an invariant."""

    mirror_type = _OwnMirror

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, oracles=True)

    def _fast(self, _step: Callable[..., Any], *_arguments: Any) -> Any:
        """What the reference has answered."""
        event = self.events[-1]
        lanes = np.flatnonzero(event.lanes).tolist()
        if event.kind == "instruction":
            return np.array([lane in event.outcomes for lane in lanes], np.uint8)
        return np.array([Code[event.outcomes[lane]].value for lane in lanes], np.uint8)


LANES, MOVES = 48, 20
"""Programs of a unit, and how many moves each makes."""

Run = Callable[[MonitorPolicy, type[Systems]], Systems]


def _drill(fmt: CapabilityFormat, part: Callable[[Drill], None]) -> Run:
    def run(policy: MonitorPolicy, systems_type: type[Systems]) -> Systems:
        return drill(fmt, 1, policy, part, systems_type)

    return run


def _unit(fmt: CapabilityFormat, number: int) -> Run:
    def run(policy: MonitorPolicy, systems_type: type[Systems]) -> Systems:
        return play([1, number], fmt, LANES, MOVES, policy, number, systems_type)

    return run


def _at_address_0(policy: MonitorPolicy, systems_type: type[Systems]) -> Systems:
    """Memory that begins where the monitor is entered, of which no cVM gets the first byte."""
    systems = systems_type(CC64, 0, MEMORY_BYTES, 1, policy)
    exercise(systems, lambda: systems.create(1, np.zeros(1, np.uint64), REGION_BYTES))
    return systems


RUNS: tuple[Run, ...] = (
    _at_address_0,
    _drill(CC64, Drill.run_purecap),
    _drill(CC64, Drill.run_otherwise),
    _drill(CC64, Drill.run_calls),
    _unit(CC64, 0),
)
"""A bounded campaign: what shows most in little time first."""

COMPARED: tuple[Run, ...] = (_drill(CC128, Drill.run_tables), _unit(CC128, 1))
"""What is compared besides: full tables, on whose limits no invariant rests (spec/cvm.md, section 9); another format."""


class First(NamedTuple):
    """The first thing that is wrong in a campaign: what, after which step, and in which run."""

    what: str
    step: str
    run: int


_ENDS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""Errors that a changed implementation may end with."""


def first_found(policy: MonitorPolicy, systems_type: type[UpToTheFirst], start: int = 0) -> First | None:
    """The first thing that is wrong, in the runs from one on."""
    runs = RUNS if issubclass(systems_type, Alone) else (*RUNS, *COMPARED)
    for number, run in enumerate(runs[start:], start):
        try:
            found = run(policy, systems_type).found
        except _ENDS as error:
            return First(CRASHES, type(error).__name__, number)
        if found:
            return First(found[0].what, found[0].step, number)
    return None
