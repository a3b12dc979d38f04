"""Systems of shared objects in both implementations, step by step: one base of the reference for each lane of the fast path.

After every step the whole state of every lane is compared, and the step is held against all invariants in every lane.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from capvisor.campaign.hart_states import as_fast, rows_of
from capvisor.campaign.orc_mirror import Mirror
from capvisor.campaign.orc_oracles import Oracles, Taken
from capvisor.campaign.orc_states import differences
from capvisor.campaign.systems import CRASHES, DIFFERS, ERRORS, MOST_DETAILS, CrashError, Found
from capvisor.dsl.orc_layout import MEMORY_BASE
from capvisor.fastpath import object_operations as _kernels  # declares the kernels
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.objects import BatchObjects
from capvisor.fastpath.workspace import Causes, Flags, Words
from capvisor.model.object_operations import perform
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.object_policy import INTENDED, ObjectPolicy
from capvisor.spec.orc import NOBODY, SHAPE, Code
from capvisor.spec.orc_invariants import ORC_INVARIANTS
from capvisor.spec.traps import CAUSES_BY_NUMBER

assert _kernels


class Deployment(NamedTuple):
    """A system at the start: how many slots there are, and tenants, each with two slots."""

    slots: int
    tenants: int

    def text(self, fmt: CapabilityFormat, policy: Sequence[str] = ()) -> str:
        """The system, in the language."""
        tenants = ", ".join(name_of(number) for number in range(1, self.tenants + 1))
        return f"system orc {{ {'; '.join([f'format {fmt.name}', f'slots {self.slots}', *policy, f'tenant {tenants}'])} }}"


def name_of(tenant: int) -> str:
    """What programs call a tenant."""
    return f"tenant{tenant}"


class Event(NamedTuple):
    """What was done in some lanes: an instruction or an operation, by threads, or by the base."""

    kind: str
    name: str
    operands: tuple[Any, ...]
    """Numbers, or arrays of one number for each lane of the system."""
    threads: Indices | None
    """By lane."""
    lanes: Flags


@dataclass
class Counts:
    """What was put to the test."""

    steps: int = 0
    compared: int = 0
    executed: Counter[str] = field(default_factory=Counter)
    trapped: Counter[str] = field(default_factory=Counter)
    """Instructions and operations, and how often they were refused."""
    codes: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Operations, and the codes that they ended with."""
    causes: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Instructions, and the causes of their traps; 0: completed."""


class Systems:
    """The same systems twice. `found` is what went wrong, in the order in which it did."""

    def __init__(
        self,
        fmt: CapabilityFormat,
        deployment: Deployment,
        lanes: int,
        policy: ObjectPolicy = INTENDED,
        batch_type: type[BatchObjects] = BatchObjects,
        *,
        oracles: bool = True,
    ) -> None:
        """The tenants are created in all lanes; that is no event. Raises AssertionError where it is refused."""
        self.format, self.deployment, self.lanes, self.policy = fmt, deployment, lanes, policy
        size = deployment.slots << SHAPE.slot_shift
        self.batch = batch_type(fmt, MEMORY_BASE, size, lanes, policy)
        self.mirror = Mirror(self.batch)
        self.monitors = self.mirror.monitors
        self.oracles = Oracles(self.batch) if oracles else None
        self.events: list[Event] = []
        self.found: list[Found] = []
        self.counts = Counts()
        self.alive = np.ones(lanes, np.bool_)
        """Lanes that don't differ; the others are left out from then on."""
        self.completed = np.zeros(lanes, np.bool_)
        """Lanes in which the last step was taken and wasn't refused."""
        self._violated: dict[str, Flags] = {}
        self._everyone = np.arange(lanes)
        with contextlib.suppress(CrashError):
            for place in range(deployment.tenants):
                self.operation(None, "create", (place + 1, 2 * place, 2 * place + 1))
                if (self.alive & ~self.completed).any():
                    raise AssertionError(f"tenant {place + 1} isn't created")
        # What is found at the start is found after no event.
        self.found = [each._replace(events=0) for each in self.found]
        self.counts, self.events = Counts(), []

    # -- who can act -------------------------------------------------------------------------------------------------------

    def thread_of(self, tenant: int, place: int = 0) -> Indices:
        """By lane, the live thread of a tenant that is so many after its first; -1: there is none."""
        threads = self.batch.threads
        meant = threads["is_live"] & (threads["tenant"] == tenant) & (threads["place"] == place)
        by_lane = meant.reshape(-1, self.lanes)
        found: Indices = np.where(by_lane.any(axis=0), by_lane.argmax(axis=0), -1)
        return found

    def harts_of(self, threads: Indices) -> Indices:
        """The harts of threads, one in each lane; any, where there is none."""
        return np.maximum(threads, 0) * self.lanes + self._everyone

    def able(self, threads: Indices | None, lanes: Flags | None) -> Flags:
        """The lanes in which threads can take a step."""
        able: Flags = self.alive.copy() if lanes is None else lanes & self.alive
        if threads is not None:
            able &= (threads >= 0) & self.batch.threads["is_live"][self.harts_of(threads)]
        return able

    # -- steps -------------------------------------------------------------------------------------------------------------

    def instruction(self, threads: Indices, name: str, operands: tuple[Any, ...], lanes: Flags | None = None) -> None:
        """One instruction of a thread in each lane, where it can. Immediates may be arrays of one number for each lane."""
        able = self.able(threads, lanes)
        chosen = np.flatnonzero(able)
        if not len(chosen):
            return
        own = tuple(each[chosen] if isinstance(each, np.ndarray) else each for each in operands)
        rows = rows_of(own, len(chosen))
        self.events.append(Event("instruction", name, operands, threads, able))
        harts, mirror, monitors, causes = self.harts_of(threads)[chosen], self.mirror, self.monitors, []
        lane = -1
        try:
            for lane, place, number, numbers in zip(
                chosen.tolist(), harts.tolist(), threads[chosen].tolist(), rows, strict=True
            ):
                monitor = monitors[lane]
                thread = monitor.threads[number]
                trap = monitor.step(thread, name, numbers)
                causes.append(0 if trap is None else trap.cause.number)
                mirror.note_hart(place, thread.hart)
        except ERRORS as error:
            self._crashed("reference", lane, error)
        found: Causes = self._fast(chosen, self.batch.step, harts, name, as_fast(name, own, len(chosen)))
        expected = np.array(causes, np.uint8)
        self._count(name, self.counts.causes, expected)
        # Of what traps, both have to say why.
        self._judge("instruction", name, chosen, harts, own, expected, found)

    def operation(
        self, threads: Indices | None, name: str, operands: Sequence[Words | int], lanes: Flags | None = None
    ) -> None:
        """An operation in each lane, a tenant's by a thread of it. Operands may be arrays of one number for each lane."""
        able = self.able(threads, lanes)
        chosen = np.flatnonzero(able)
        if not len(chosen):
            return
        # Copies: what is drawn may be drawn into again.
        whole = tuple(np.broadcast_to(np.asarray(each, np.uint64), self.lanes).copy() for each in operands)
        own = [each[chosen] for each in whole]
        self.events.append(Event("operation", name, whole, threads, able))
        numbers = [None] * len(chosen) if threads is None else threads[chosen].tolist()
        codes: list[int] = []
        lane = -1
        try:
            for lane, number, values in zip(
                chosen.tolist(), numbers, zip(*(each.tolist() for each in own), strict=True), strict=True
            ):
                monitor = self.monitors[lane]
                codes.append(perform(monitor, None if number is None else monitor.threads[number], name, *values))
                self.mirror.note_lane(lane)
        except ERRORS as error:
            self._crashed("reference", lane, error)
        harts = None if threads is None else self.harts_of(threads)[chosen]
        found = self._fast(chosen, self.batch.perform, chosen, harts, name, own)
        expected = np.array(codes, np.uint8)
        self._count(name, self.counts.codes, expected)
        self._judge("operation", name, chosen, harts, tuple(own), expected, found)

    def _count(self, name: str, counter: Counter[tuple[str, int]], ends: Causes) -> None:
        self.counts.executed[name] += len(ends)
        self.counts.trapped[name] += int(np.count_nonzero(ends))
        for number, times in enumerate(np.bincount(ends).tolist()):
            if times:
                counter[name, number] += times

    def _fast(self, chosen: Indices, step: Callable[..., Any], *arguments: Any) -> Any:
        """A step of the fast path. Raises CrashError where it ends with an error."""
        try:
            return step(*arguments)
        except ERRORS as error:
            self._crashed("fast path", int(chosen[0]), error)

    def _crashed(self, who: str, lane: int, error: Exception) -> None:
        """Raises CrashError: the end of an implementation is the end of a unit."""
        details = (f"{who} {type(error).__name__}: {error}",)
        self.found.append(Found(CRASHES, lane, details, len(self.events), self.events[-1].name))
        self.alive[:] = False
        raise CrashError from error

    # -- judging -----------------------------------------------------------------------------------------------------------

    def _judge(
        self,
        kind: str,
        name: str,
        chosen: Indices,
        harts: Indices | None,
        operands: tuple[Any, ...],
        expected: Causes,
        found: Causes,
    ) -> None:
        """Compare how the step ended and the states of all lanes, and hold it against the invariants."""
        completed = expected == 0
        self.completed[:] = False
        self.completed[chosen] = completed
        written = self.mirror.apply()
        wrong = self.mirror.differing()
        self.counts.steps += len(chosen)
        self.counts.compared += len(chosen)
        wrong[chosen[expected != found]] = True
        for lane in np.flatnonzero(wrong & self.alive).tolist():
            details = [*differences(self.monitors[lane], self.batch, lane), *_ended(kind, chosen, expected, found, lane)]
            self.found.append(Found(DIFFERS, lane, tuple(details[:MOST_DETAILS]), len(self.events), name))
            self.alive[lane] = False
        if self.oracles is None:
            return
        tenants = np.full(len(chosen), NOBODY, np.uint64) if harts is None else self.batch.threads["tenant"][harts]
        taken = Taken(kind, name, chosen, tenants, harts, operands, completed)
        for invariant, lanes in self.oracles.judge(taken, written):
            known = self._violated.setdefault(invariant, np.zeros(self.lanes, np.bool_))
            for lane in lanes[~known[lanes] & self.alive[lanes]].tolist():
                says = (ORC_INVARIANTS[invariant].statement,)
                self.found.append(Found(invariant, lane, says, len(self.events), name))
            known[lanes] = True

    def finish(self) -> None:
        """To be called at the end: the reference's state, read anew, must be what was compared."""
        for lane in np.flatnonzero(self.mirror.misread() & self.alive).tolist():
            raise AssertionError(f"lane {lane}: the reference has changed what it didn't say")


def _ended(kind: str, chosen: Indices, expected: Causes, found: Causes, lane: int) -> list[str]:
    """How the step's ends differ in a lane."""
    at = int(np.searchsorted(chosen, lane))
    if at == len(chosen) or chosen[at] != lane or expected[at] == found[at]:
        return []
    one, other = (_end(kind, int(each[at])) for each in (expected, found))
    return [f"end: reference {one}, fast path {other}"]


def _end(kind: str, number: int) -> str:
    if kind == "operation":
        return Code(number).name
    return CAUSES_BY_NUMBER[number].name if number else "completed"
