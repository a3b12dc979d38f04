"""Machines with a para-pass-through VMM in both implementations, step by step: one of the reference for each lane.

After every step the whole states of all lanes are compared, and the step is held against all invariants in every lane.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capvisor.campaign.noted import as_columns
from capvisor.campaign.systems import CRASHES, DIFFERS, MOST_DETAILS, CrashError, Found
from capvisor.campaign.vmm_mirror import Mirror
from capvisor.campaign.vmm_oracles import ACTORS, Oracles, Taken
from capvisor.campaign.vmm_states import differences
from capvisor.fastpath import vmm_operations as _operations  # declares the kernels
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.vmm import BatchVmm, Results
from capvisor.fastpath.workspace import Flags, Words
from capvisor.model.vmm import Move, Refused, System, Touch
from capvisor.model.vmm_operations import OPERATION_RULES
from capvisor.spec.vmm import OPERATIONS, Code
from capvisor.spec.vmm_invariants import VMM_INVARIANTS
from capvisor.spec.vmm_policy import INTENDED, VmmPolicy

assert _operations


class Event(NamedTuple):
    """In some lanes an operation each, by its number. Operands have one number for each lane of the systems."""

    numbers: Indices
    operands: tuple[Words, ...]
    lanes: Flags


class Size(NamedTuple):
    """How many frames machines have, which of them are the VMM's, how many vCPUs and devices there are."""

    frames: int
    region: tuple[int, int]
    vcpus: int = 1
    devices: int = 1


NAMES = tuple(OPERATIONS)
NUMBERS = {name: number for number, name in enumerate(NAMES)}
"""Operations by number, in the order of their table."""

_RULES = [(OPERATION_RULES[name], len(row.operands)) for name, row in OPERATIONS.items()]
_CODE_BITS = 8

Start = Callable[[System], None]
"""Makes of a machine in which nothing is yet what it is at the start."""


@dataclass
class Counts:
    """What was put to the test."""

    steps: int = 0
    compared: int = 0
    executed: Counter[str] = field(default_factory=Counter)
    codes: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Operations, and the codes that they ended with."""


class Ends:
    """How the reference's operations ended, lane by lane, and what they touched and moved."""

    def __init__(self, count: int) -> None:
        self.code, self.value = [0] * count, [0] * count
        self.logs: tuple[list[Any], list[Any]] = ([], [])
        self.until: tuple[list[int], list[int]] = ([], [])
        """How many touches and moves there were after each lane."""


def _nothing(_model: System) -> None:
    """A machine as it is made."""


class Systems:
    """The same machines twice. `found` is what went wrong, in the order in which it did."""

    def __init__(
        self,
        size: Size,
        lanes: int,
        policy: VmmPolicy = INTENDED,
        start: Start = _nothing,
        *,
        oracles: bool = True,
    ) -> None:
        self.size, self.policy, self.lanes = size, policy, lanes
        self.counts = Counts()
        self.events: list[Event] = []
        self.found: list[Found] = []
        self.mirror = Mirror(BatchVmm(lanes, *size, policy), start)
        self.models, self.batch = self.mirror.models, self.mirror.batch
        self.alive = np.ones(lanes, np.bool_)
        """Lanes that don't differ; the others are left out from then on."""
        self.oracles = Oracles(self.mirror) if oracles else None
        self._violated: dict[str, Flags] = {}

    # -- steps -------------------------------------------------------------------------------------------------------------

    def step(self, name: str, operands: tuple[Words, ...] = (), lanes: Flags | None = None) -> None:
        """One operation, in all lanes or some. Operands have one number for each lane."""
        numbers = np.full(self.lanes, NUMBERS[name])
        self.step_each(numbers if lanes is None else np.where(lanes, numbers, -1), operands)

    def step_each(self, numbers: Indices, operands: tuple[Words, ...]) -> None:
        """In each lane an operation, by its number; none where that is less than 0."""
        able = self.alive & (numbers >= 0)
        chosen = np.flatnonzero(able)
        if not len(chosen):
            return
        # Copies: what is drawn may be drawn into again.
        self.events.append(Event(numbers.copy(), tuple(each.copy() for each in operands), able))
        which, own = numbers[chosen], [each[chosen] for each in operands]
        ends = self._on_reference(which, chosen, own)
        results = self._on_fast_path(which, chosen, own)
        self._judge(which, chosen, own, ends, results)

    def _on_reference(self, which: Indices, chosen: Indices, own: list[Words]) -> Ends:
        ends, models = Ends(len(chosen)), self.models
        touches, moves = self.mirror.noted
        touched, moved = ends.until
        value, code = ends.value, ends.code
        rows: Any = zip(*(each.tolist() for each in own), strict=True) if own else [()] * len(chosen)
        lanes = zip(chosen.tolist(), which.tolist(), rows, strict=True)
        for at, (lane, number, operands) in enumerate(lanes):
            rule, count = _RULES[number]
            try:
                value[at] = rule(models[lane], *operands[:count])
            except Refused as refused:
                code[at] = refused.code
            touched.append(len(touches))
            moved.append(len(moves))
        for mine, log in zip(ends.logs, self.mirror.noted, strict=True):
            mine.extend(log)
            log.clear()
        return ends

    def _on_fast_path(self, which: Indices, chosen: Indices, own: list[Words]) -> Results:
        """Raises CrashError where it ends with an error."""
        try:
            return self.batch.step_each(chosen, which, own)
        except (ArithmeticError, IndexError, TypeError, ValueError, LookupError) as error:
            details, name = (f"{type(error).__name__}: {error}",), self.batch.begun
            lane = int(chosen[which == NUMBERS[name]][0])
            self.found.append(Found(CRASHES, lane, details, len(self.events), name))
            self.alive[:] = False
            raise CrashError from error

    # -- judging -----------------------------------------------------------------------------------------------------------

    def _judge(self, which: Indices, chosen: Indices, own: list[Words], ends: Ends, results: Results) -> None:
        """Compare how the step ended and the states of all lanes, and hold it against the invariants."""
        code = np.array(ends.code, np.uint8)
        values: Words = np.array([each or 0 for each in ends.value], np.uint64)
        self._count(which, code)
        differ = (code != results.code) | (values != results.value)
        changes = self.mirror.apply()
        wrong = self.mirror.differing()
        self.counts.compared += len(chosen)
        wrong[chosen[differ]] = True
        wrong &= self.alive
        for lane in np.flatnonzero(wrong).tolist():
            details = differences(self.models[lane], self.batch, lane)
            details += _ended(ends, results, chosen, lane)
            name = self._name(which, chosen, lane)
            self.found.append(Found(DIFFERS, lane, tuple(details[:MOST_DETAILS]), len(self.events), name))
            self.alive[lane] = False
        if self.oracles is None:
            return
        touches = as_columns(Touch, [(_ACTORS[row[0]], *row[1:]) for row in ends.logs[0]], ends.until[0])
        moves = as_columns(Move, ends.logs[1], ends.until[1])
        if moves:
            made = moves["is_made"] != 0
            moves = {name: column[made] for name, column in moves.items()} if made.any() else {}
        taken = Taken(which, chosen, tuple(own), code, values, touches, moves)
        for invariant, lanes in self.oracles.judge(taken, changes):
            known = self._violated.setdefault(invariant, np.zeros(self.lanes, np.bool_))
            says = (VMM_INVARIANTS[invariant].statement,)
            for lane in lanes[~known[lanes] & self.alive[lanes]].tolist():
                self.found.append(Found(invariant, lane, says, len(self.events), self._name(which, chosen, lane)))
            known[lanes] = True

    @staticmethod
    def _name(which: Indices, chosen: Indices, lane: int) -> str:
        """Which operation a lane had."""
        at = int(np.searchsorted(chosen, lane))
        return NAMES[int(which[at])] if at < len(chosen) and chosen[at] == lane else "nothing"

    def _count(self, which: Indices, code: NDArray[np.uint8]) -> None:
        counts = self.counts
        counts.steps += len(code)
        pairs, times = np.unique(which << _CODE_BITS | code, return_counts=True)
        for pair, count in zip(pairs.tolist(), times.tolist(), strict=True):
            name = NAMES[pair >> _CODE_BITS]
            counts.executed[name] += count
            counts.codes[name, pair & (1 << _CODE_BITS) - 1] += count

    def finish(self) -> None:
        """To be called at the end: the reference's state, read anew, must be what was compared, and so must all memory."""
        for lane in np.flatnonzero(self.mirror.misread() & self.alive).tolist():
            raise AssertionError(f"lane {lane}: something was changed that nobody said")


def _ended(ends: Ends, results: Results, chosen: Indices, lane: int) -> list[str]:
    """How the step's ends differ in a lane."""
    at = int(np.searchsorted(chosen, lane))
    if at == len(chosen) or chosen[at] != lane:
        return []
    found = []
    if ends.code[at] != results.code[at]:
        found.append(f"code: reference {Code(ends.code[at]).name}, fast path {Code(int(results.code[at])).name}")
    if (ends.value[at] or 0) != results.value[at]:
        found.append(f"value: reference {ends.value[at] or 0:#x}, fast path {int(results.value[at]):#x}")
    return found


_ACTORS = {actor: number for number, actor in enumerate(ACTORS)}
