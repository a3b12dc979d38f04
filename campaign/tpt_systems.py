"""Systems of translation pass-through in both implementations, step by step: one of the reference for each lane.

After every step the whole states of all lanes are compared, and the step is held against all invariants in every lane.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capvisor.campaign.noted import as_columns
from capvisor.campaign.systems import CRASHES, DIFFERS, MOST_DETAILS, CrashError, Found
from capvisor.campaign.tpt_mirror import Mirror
from capvisor.campaign.tpt_oracles import TOUCH_KINDS, Oracles, Taken
from capvisor.campaign.tpt_states import differences
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.requests import Results
from capvisor.fastpath.tpt import BatchSystem
from capvisor.fastpath.workspace import Flags, Words
from capvisor.model.paging import Fault
from capvisor.model.tpt import Handled, Refused, Retag, Touch
from capvisor.model.tpt_operations import OPERATION_RULES
from capvisor.spec.tag_policy import INTENDED, TagPolicy
from capvisor.spec.tpt import OPERATIONS, Code, FaultKind, OperandKind
from capvisor.spec.tpt_invariants import TPT_INVARIANTS


class Event(NamedTuple):
    """An operation in some lanes. Operands have one number for each lane of the systems."""

    name: str
    operands: tuple[Words, ...]
    lanes: Flags


class Size(NamedTuple):
    """How many frames, vCPUs and devices systems have."""

    frames: int
    vcpus: int
    devices: int


Begun = tuple[str, tuple[int, ...]]
"""An operation and its operands, the same in all lanes."""


@dataclass
class Counts:
    """What was put to the test."""

    steps: int = 0
    compared: int = 0
    executed: Counter[str] = field(default_factory=Counter)
    codes: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Operations, and the codes that they ended with: `Code.OK` where they were done, or met a fault."""
    faults: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Operations, and the faults that they ended with: `FaultKind.NONE` where they were done, or refused."""


_NO_CODES, _NO_WORDS = np.zeros(0, np.uint8), np.zeros(0, np.uint64)
_UNKNOWN: Any = (_NO_CODES, _NO_CODES, _NO_WORDS, _NO_WORDS, {}, {}, {})


class _Ends:
    """How the reference's operations ended, a list for each column; and what they touched, lane by lane."""

    def __init__(self, count: int) -> None:
        self.code, self.fault, self.error, self.frame, self.value = ([0] * count for _ in range(5))
        self.level = [1] * count
        self.logs: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
        self.until: tuple[list[int], list[int], list[int]] = ([], [], [])
        """How many touches, changes of tags and frames handled there were after each lane."""


class Systems:
    """The same systems twice. `found` is what went wrong, in the order in which it did."""

    def __init__(
        self,
        size: Size,
        lanes: int,
        policy: TagPolicy = INTENDED,
        start: Iterable[Begun] = (),
        batch_type: type[BatchSystem] = BatchSystem,
        *,
        oracles: bool = True,
    ) -> None:
        """In all lanes the same operations come first; they are compared once, are no events, and aren't counted.

        Raises AssertionError where one of them is refused.
        """
        self.size, self.policy, self.lanes = size, policy, 1
        self.counts = Counts()
        self.events: list[Event] = []
        self.found: list[Found] = []
        self.mirror = Mirror(batch_type(1, *size, policy))
        self._prepare(oracles=False)
        for name, operands in start:
            self.step(name, tuple(np.full(1, each, np.uint64) for each in operands))
            if self.counts.codes[name, Code.OK] != self.counts.executed[name] or self.found:
                raise AssertionError(f"the start fails at {name} {operands}: {self.found}")
        self.counts, self.events = Counts(), []
        if lanes > 1 or oracles:
            self.mirror, self.lanes = self.mirror.repeated(lanes), lanes
            self._prepare(oracles=oracles)

    def _prepare(self, *, oracles: bool) -> None:
        self.models, self.batch = self.mirror.models, self.mirror.batch
        self.oracles = Oracles(self.batch) if oracles else None
        self.alive = np.ones(self.lanes, np.bool_)
        """Lanes that don't differ; the others are left out from then on."""
        self.faulted = np.zeros(self.lanes, np.bool_)
        """Lanes in which the last operation met a fault."""
        self._violated: dict[str, Flags] = {}

    # -- steps -------------------------------------------------------------------------------------------------------------

    def step(self, name: str, operands: tuple[Words, ...], lanes: Flags | None = None) -> None:
        """One operation, in all lanes or some. Operands have one number for each lane."""
        able = self.alive.copy() if lanes is None else lanes & self.alive
        chosen = np.flatnonzero(able)
        if not len(chosen):
            return
        # Copies: what is drawn may be drawn into again.
        self.events.append(Event(name, tuple(each.copy() for each in operands), able))
        own = [each[chosen] for each in operands]
        vms = self._vms(name, chosen, own)
        ends = self._on_reference(name, chosen, own)
        results = self._on_fast_path(name, chosen, own)
        self._judge(Taken(name, chosen, tuple(own), vms, *_UNKNOWN), ends, results)

    def _vms(self, name: str, chosen: Indices, own: list[Words]) -> Words:
        """The VMs that the vCPUs of guests' operations run for; 0 for others."""
        if OPERATIONS[name].operands[0][1] is not OperandKind.VCPU:
            return np.zeros(len(chosen), np.uint64)
        there = own[0] < self.size.vcpus
        found: Words = self.batch.vcpus["vm"][chosen, np.where(there, own[0], np.uint64(0)).astype(np.int64)] * there
        return found

    def _on_reference(self, name: str, chosen: Indices, own: list[Words]) -> _Ends:
        ends, rule, models = _Ends(len(chosen)), OPERATION_RULES[name], self.models
        touches, retags, handled = self.mirror.noted
        touched, retagged, dealt = ends.until
        value = ends.value
        rows = zip(*(each.tolist() for each in own), strict=True)
        for at, (lane, numbers) in enumerate(zip(chosen.tolist(), rows, strict=True)):
            try:
                value[at] = rule(models[lane], *numbers)
            except Refused as refused:
                ends.code[at] = refused.code
            except Fault as fault:
                ends.fault[at], ends.error[at], ends.frame[at] = fault.kind, fault.code, fault.frame
                ends.level[at] = fault.level
            touched.append(len(touches))
            retagged.append(len(retags))
            dealt.append(len(handled))
        for mine, log in zip(ends.logs, self.mirror.noted, strict=True):
            mine.extend(log)
            log.clear()
        return ends

    def _on_fast_path(self, name: str, chosen: Indices, own: list[Words]) -> Results:
        """Raises CrashError where it ends with an error."""
        try:
            return self.batch.step(chosen, name, own)
        except (ArithmeticError, IndexError, TypeError, ValueError, LookupError) as error:
            details = (f"{type(error).__name__}: {error}",)
            self.found.append(Found(CRASHES, int(chosen[0]), details, len(self.events), name))
            self.alive[:] = False
            raise CrashError from error

    # -- judging -----------------------------------------------------------------------------------------------------------

    def _judge(self, taken: Taken, ends: _Ends, results: Results) -> None:
        """Compare how the step ended and the states of all lanes, and hold it against the invariants."""
        name, chosen, count = taken.name, taken.lanes, len(taken.lanes)
        code, fault = np.array(ends.code, np.uint8), np.array(ends.fault, np.uint8)
        error, frame = (np.array(each, np.uint64) for each in (ends.error, ends.frame))
        values: Words = np.array([each or 0 for each in ends.value], np.uint64)
        self._count(name, code, fault)
        self.faulted[chosen] = fault != FaultKind.NONE
        differ = (code != results.code) | (fault != results.fault) | (error != results.error)
        differ |= (frame != results.frame) | (values != results.value)
        changes = self.mirror.apply()
        wrong = self.mirror.differing()
        self.counts.compared += count
        wrong[chosen[differ]] = True
        wrong &= self.alive
        for lane in np.flatnonzero(wrong).tolist():
            details = differences(self.models[lane], self.batch, lane)
            details += self._ended(ends, results, chosen, lane)
            self.found.append(Found(DIFFERS, lane, tuple(details[:MOST_DETAILS]), len(self.events), name))
            self.alive[lane] = False
        if self.oracles is None:
            return
        taken = taken._replace(code=code, fault=fault, frame=frame, level=np.array(ends.level, np.uint64))
        taken = taken._replace(
            touches=as_columns(Touch, [(_KIND_NUMBERS[row[0]], *row[1:]) for row in ends.logs[0]], ends.until[0]),
            retags=as_columns(Retag, ends.logs[1], ends.until[1]),
            handled=as_columns(Handled, ends.logs[2], ends.until[2]),
        )
        for invariant, lanes in self.oracles.judge(taken, changes):
            known = self._violated.setdefault(invariant, np.zeros(self.lanes, np.bool_))
            for lane in lanes[~known[lanes] & self.alive[lanes]].tolist():
                says = (TPT_INVARIANTS[invariant].statement,)
                self.found.append(Found(invariant, lane, says, len(self.events), name))
            known[lanes] = True

    def _count(self, name: str, code: NDArray[np.uint8], fault: NDArray[np.uint8]) -> None:
        counts = self.counts
        counts.steps += len(code)
        counts.executed[name] += len(code)
        for counter, ended in ((counts.codes, code), (counts.faults, fault)):
            for number, times in enumerate(np.bincount(ended).tolist()):
                if times:
                    counter[name, number] += times

    def _ended(self, ends: _Ends, results: Results, chosen: Indices, lane: int) -> list[str]:
        """How the step's ends differ in a lane."""
        at = int(np.searchsorted(chosen, lane))
        if at == len(chosen) or chosen[at] != lane:
            return []
        found = []
        for what in Results._fields:
            mine, other = int(getattr(ends, what)[at] or 0), int(getattr(results, what)[at])
            if mine != other:
                kind = {"code": Code, "fault": FaultKind}.get(what, int)
                found.append(f"{what}: reference {_text(kind, mine)}, fast path {_text(kind, other)}")
        return found

    def finish(self) -> None:
        """To be called at the end: the reference's state, read anew, must be what was compared, and so must all memory."""
        for lane in np.flatnonzero(self.mirror.misread() & self.alive).tolist():
            raise AssertionError(f"lane {lane}: something was changed that nobody said")


def _text(kind: Any, number: int) -> str:
    return hex(number) if kind is int else str(kind(number).name)


_KIND_NUMBERS = {kind: number for number, kind in enumerate(TOUCH_KINDS)}
