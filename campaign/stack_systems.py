"""Machines with all four systems in both implementations, step by step: one of the reference for each lane.

After every step the whole states of all lanes are compared, and the step is held against all invariants in every lane.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from capvisor.campaign.cvm_oracles import Change as CvmChange
from capvisor.campaign.cvm_states import differences as cvm_differences
from capvisor.campaign.hart_mirror import NONE
from capvisor.campaign.orc_states import differences as orc_differences
from capvisor.campaign.stack_copies import copy_machine
from capvisor.campaign.stack_mirror import LaneStack, Mirror
from capvisor.campaign.stack_oracles import INVARIANTS, Oracles, Taken
from capvisor.campaign.stack_start import DEPLOY, INSTRUCTION, LEAVE, OPERATION, Deployment, LaneEvent
from capvisor.campaign.systems import CRASHES, DIFFERS, ERRORS, MOST_DETAILS, CrashError, Found
from capvisor.campaign.tpt_states import rows as tpt_rows
from capvisor.campaign.vmm_states import differences as vmm_differences
from capvisor.dsl.vmm_layout import place
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.machine import DDC, Indices
from capvisor.fastpath.stack import CVM, ORC, BatchStack, Ended
from capvisor.fastpath.stack_layers import HostedMonitor, HostedObjects
from capvisor.fastpath.workspace import Flags, Words
from capvisor.model.object_operations import perform as perform_orc
from capvisor.model.paging import Fault
from capvisor.model.stack import TPT_LAYER, VMM_LAYER
from capvisor.model.stack_system import NotTaken, entered, perform_tpt, perform_vmm
from capvisor.model.tpt import Refused as TptRefused
from capvisor.model.tpt_operations import OPERATION_RULES as TPT_RULES
from capvisor.model.vmm import Refused as VmmRefused
from capvisor.model.vmm_operations import OPERATION_RULES as VMM_RULES
from capvisor.spec import cvm as cvm_spec
from capvisor.spec import orc as orc_spec
from capvisor.spec import tpt as tpt_spec
from capvisor.spec import vmm as vmm_spec
from capvisor.spec.operations import OPERATIONS as INSTRUCTIONS
from capvisor.spec.operations import OperandKind
from capvisor.spec.stack import FORMAT, Code, Who
from capvisor.spec.stack_policy import INTENDED, StackPolicy
from capvisor.spec.traps import CAUSES_BY_NUMBER

_SCALAR = (OperandKind.SPECIAL_REGISTER, OperandKind.STATUS_REGISTER, OperandKind.QUARTER, OperandKind.MASK)
"""Operands that are one number for all lanes."""


class Event(NamedTuple):
    """What was done in some lanes: an operation of a layer's, an instruction or a call's second part by a thread."""

    layer: str
    kind: str
    name: str
    operands: tuple[Any, ...]
    """Numbers, or arrays of one number for each lane."""
    thread: int | None
    lanes: Flags

    @property
    def label(self) -> str:
        """What counters call it."""
        return f"{self.layer} {self.name or self.kind}"


@dataclass
class Counts:
    """What was put to the test."""

    steps: int = 0
    compared: int = 0
    executed: Counter[str] = field(default_factory=Counter)
    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    """What was done, and how it ended."""


class Inner(NamedTuple):
    """How a layer's own operation ended."""

    code: int
    fault: Any
    value: int

    @property
    def is_completed(self) -> bool:
        """Whether it was done."""
        return self.code == 0 and self.fault is None


def _vmm_step(system: Any, name: str, *operands: int) -> Inner:
    try:
        return Inner(0, None, VMM_RULES[name](system, *operands) or 0)
    except VmmRefused as refused:
        return Inner(refused.code, None, 0)


def _tpt_step(system: Any, name: str, *operands: int) -> Inner:
    try:
        return Inner(0, None, TPT_RULES[name](system, *operands) or 0)
    except TptRefused as refused:
        return Inner(refused.code, None, 0)
    except Fault as fault:
        return Inner(0, fault, 0)


Row = tuple[int, int, int, int, int, int]
"""How a step ended, as `fastpath.stack.Ended` has it."""


def _row(step: Any, inner: int = 0, value: int = 0) -> Row:
    fault = step.fault
    if step.inner is not None:
        inner, fault, value = step.inner
    if fault is None:
        return int(step.code), 0, 0, 0, inner, value
    return int(step.code), int(fault.kind), fault.code, fault.frame, inner, value


class Systems:
    """The same machines twice. `found` is what went wrong, in the order in which it did."""

    def __init__(
        self,
        lanes: int,
        policy: StackPolicy = INTENDED,
        deployment: Deployment | None = None,
        batch_type: type[BatchStack] = BatchStack,
        *,
        oracles: bool = True,
        sets_up: bool = True,
    ) -> None:
        """With what there is at the start, unless somebody else sees to that (`set_up`)."""
        self.lanes, self.policy, self.deployment = lanes, policy, deployment or Deployment()
        layout = self.deployment.layout()
        first, last = layout.vmm.region
        numbers = (layout.vmm.frames, (first, last + 1), layout.tpt.cpu_count, len(layout.vmm.devices))
        self.batch = batch_type(lanes, *numbers, policy)
        vms = {layer: layout.tpt.placed[layout.mapped[layer].vm].number for layer in layout.mapped}
        memory = {layer: layout.memory(layer) for layer in (CVM, ORC)}
        self.cvms, self.objects = (
            HostedMonitor(FORMAT, *memory[CVM], lanes, threads=2),
            HostedObjects(FORMAT, *memory[ORC], lanes, threads=1),
        )
        self.batch.host(CVM, self.cvms, vms[CVM])
        self.batch.host(ORC, self.objects, vms[ORC])
        given = dict(zip(("frames", "region", "vcpus", "devices"), numbers, strict=True), policy=policy)
        self.mirror = Mirror(self.batch, lambda system: place(system, layout.vmm), vms, given)
        self.stacks: list[LaneStack] = self.mirror.stacks
        self.counts = Counts()
        self.events: list[Event] = []
        self.found: list[Found] = []
        self.alive = np.ones(lanes, np.bool_)
        """Lanes that don't differ; the others are left out from then on."""
        self.completed = np.zeros(lanes, np.bool_)
        """Lanes in which the last step was completed."""
        self.value = np.zeros(lanes, np.uint64)
        self.oracles: Oracles | None = None
        self._violated: dict[str, Flags] = {}
        self._has_oracles = oracles
        self._is_starting = False
        self._ends: list[Row] = []
        """How the steps of the start have ended, on the reference."""
        self._start: _Start | None = None
        """While many lanes are set up: the start of one."""
        if sets_up:
            self.set_up()

    def set_up(self) -> None:
        """Make what there is at the start, by steps of both that are compared; they are no events, and aren't counted.

        Of many lanes, all are the same: the reference's machines are copied from one that was set up so, step by step. The
        fast path takes the steps in all lanes, which end as they did there; then whole states are compared.
        Raises AssertionError where one of them is refused.
        """
        self._start, self._is_starting = start_of(self.policy, self.deployment) if self.lanes > 1 else None, True
        for event in self.deployment.start():
            self.take(event)
            if not self.completed.all() or self.found:
                raise AssertionError(f"the start fails at {event}: {self.found}")
        if self._start is not None:
            for stack in self.stacks:
                copy_machine(self._start.stack, stack, self.mirror)
            self._start = None
            self.mirror.apply()
            different = np.flatnonzero(self.mirror.differing())
            if len(different):
                raise AssertionError(f"the start differs: {list(self._differences(int(different[0])))}")
        self.counts, self.events, self._is_starting = Counts(), [], False
        self.oracles = Oracles(self.mirror) if self._has_oracles else None

    def take(self, event: LaneEvent) -> None:
        """An event, the same in all lanes."""
        layer, kind, name, operands, thread = event
        if kind == DEPLOY:
            self.deploy(name, *operands)
        elif kind == OPERATION:
            self.operation(thread, name, operands)
        elif thread is None:
            self.step(layer, name, tuple(np.full(self.lanes, each, np.uint64) for each in operands))
        elif kind == LEAVE:
            self.leave(thread)
        else:
            self.instruction(layer, thread, name, operands)

    # -- who can act -------------------------------------------------------------------------------------------------------

    def able(self, layer: str, thread: int, lanes: Flags | None = None, *, inside: bool = False) -> Flags:
        """The lanes in which a thread can take a step: as a guest, or in the Intravisor."""
        monitor = self.batch.pages[layer].monitor
        able: Flags = self.alive if lanes is None else lanes & self.alive
        able = able & monitor.threads["is_live"].reshape(-1, self.lanes)[thread]
        if layer == CVM:
            able &= ~monitor.threads["waits"].reshape(-1, self.lanes)[thread]
            able &= monitor.frames["is_inside"].reshape(-1, self.lanes)[thread] == inside
        return able

    # -- steps -------------------------------------------------------------------------------------------------------------

    def step(self, layer: str, name: str, operands: tuple[Words, ...], lanes: Flags | None = None) -> None:
        """An operation of the VMM's or of translation pass-through's. Operands have one number for each lane."""
        able = self.alive.copy() if lanes is None else lanes & self.alive
        chosen = np.flatnonzero(able)
        if not len(chosen):
            return
        # Copies: what is drawn may be drawn into again.
        event = self._begin(layer, layer, name, tuple(each.copy() for each in operands), None, able)
        own = tuple(each[chosen] for each in operands)
        perform, inner = (perform_vmm, _vmm_step) if layer == VMM_LAYER else (perform_tpt, _tpt_step)
        stacks = self.stacks

        def take(lane: int, row: tuple[int, ...]) -> Row:
            return _row(perform(stacks[lane], name, *row, perform=inner))

        was_stopped, issuer = self._before(layer, chosen, own)
        rows, at = self._on_reference(event, chosen, own, take)
        fast = self.batch.step_vmm if layer == VMM_LAYER else self.batch.step_tpt
        ended = self._on_fast_path(fast, chosen, name, own)
        self._judge(event, chosen, own, rows, ended, at, was_stopped, issuer)

    def _before(self, layer: str, chosen: Indices, own: tuple[Any, ...]) -> tuple[Flags, Words]:
        """Whether machines are stopped before a step, and which VMs vCPUs run for."""
        by_vcpu = layer == VMM_LAYER and len(own)
        issuer = self.batch.running(chosen, own[0]) if by_vcpu else np.zeros(len(chosen), np.uint64)
        return self.batch.is_stopped(chosen), issuer

    def instruction(self, layer: str, thread: int, name: str, operands: tuple[Any, ...], lanes: Flags | None = None) -> None:
        """One instruction of a thread, where it can. Immediates may be arrays of one number for each lane."""
        able = self.able(layer, thread, lanes)
        chosen = np.flatnonzero(able)
        if not len(chosen):
            return
        event = self._begin(layer, INSTRUCTION, name, operands, thread, able)
        own = tuple(each[chosen] if isinstance(each, np.ndarray) else each for each in operands)
        harts = thread * self.lanes + chosen
        monitors, mirror = getattr(self.mirror, layer).monitors, getattr(self.mirror, layer)
        who, column = (Who.CVM, "domain") if layer == CVM else (Who.TENANT, "tenant")
        numbers = self.batch.pages[layer].monitor.threads[column][harts].tolist()
        principal = dict(zip(chosen.tolist(), numbers, strict=True))

        def take(lane: int, row: tuple[int, ...]) -> Row:
            monitor = monitors[lane]
            running = monitor.threads[thread]
            if layer == CVM:
                monitor.accesses.clear()
            try:
                with entered(self.stacks[lane], layer, name, who, principal[lane]) as whole:
                    trap = monitor.step(running, name, row)
                    step = whole(None)
            except NotTaken as stopped:
                return _row(stopped.step)
            place = thread * self.lanes + lane
            mirror.note_hart(place, running.hart)
            if layer == CVM:
                mirror.note_thread(place, running)
            return _row(step, 0 if trap is None else trap.cause.number)

        was_stopped, issuer = self.batch.is_stopped(chosen), np.array(numbers, np.uint64)
        change = self._change(INSTRUCTION, [name], chosen, thread) if layer == CVM else None
        rows, at = self._on_reference(event, chosen, own, take)
        ended = self._on_fast_path(self.batch.instruction, layer, harts, name, self._as_fast(name, own, len(chosen)))
        self._judge(event, chosen, own, rows, ended, at, was_stopped, issuer, change)

    def _change(self, kind: str, names: list[str], chosen: Indices, thread: int) -> Any:
        """A step of cVMs as their oracles have it, with what was before."""
        machine, harts = self.cvms.harts, thread * self.lanes + chosen
        ddc = Lanes(machine.tags[DDC, harts], machine.metas[DDC, harts], machine.addresses[DDC, harts])
        return CvmChange(kind, names, chosen, thread, np.ones(len(chosen), np.bool_), ddc)

    def _as_fast(self, name: str, operands: tuple[Any, ...], count: int) -> tuple[Any, ...]:
        """Operands as the fast path takes them: immediates as arrays, modulo 2**64."""
        found: list[Any] = []
        for kind, value in zip(INSTRUCTIONS[name].operands, operands, strict=True):
            as_it_is = kind in _SCALAR or kind.is_register or isinstance(value, np.ndarray)
            found.append(value if as_it_is else np.full(count, value & (1 << 64) - 1, np.uint64))
        return tuple(found)

    def leave(self, thread: int, lanes: Flags | None = None) -> None:
        """The second part of a call of a cVM's, in the lanes in which the thread is in the Intravisor."""
        able = self.able(CVM, thread, lanes, inside=True)
        chosen = np.flatnonzero(able)
        if not len(chosen):
            return
        event = self._begin(CVM, LEAVE, "", (), thread, able)
        harts, monitors, mirror = thread * self.lanes + chosen, self.mirror.cvm.monitors, self.mirror.cvm

        def take(lane: int, _row_of: tuple[int, ...]) -> Row:
            monitor = monitors[lane]
            monitor.accesses.clear()
            running: Any = monitor.threads[thread]
            try:
                with entered(self.stacks[lane], CVM, LEAVE, Who.MONITOR) as whole:
                    code = monitor.leave(running)
                    step = whole(None)
            except NotTaken as stopped:
                mirror.note_lane(lane)
                return _row(stopped.step)
            mirror.note_lane(lane)
            return _row(step, int(code.value))

        frames = {name: column[harts] for name, column in self.cvms.frames.items()}
        names = [_CALLS.get(number, "no call") for number in frames["number"].tolist()]
        change = self._change(LEAVE, names, chosen, thread)
        change.frames = frames
        change.used = tuple(frames[f"argument{place}"] for place in range(len(cvm_spec.ARGUMENT_REGISTERS)))
        was_stopped = self.batch.is_stopped(chosen)
        rows, at = self._on_reference(event, chosen, (), take)
        ended = self._on_fast_path(self.batch.leave, harts)
        self._judge(event, chosen, (), rows, ended, at, was_stopped, np.zeros(len(chosen), np.uint64), change)

    def operation(self, thread: int | None, name: str, operands: Sequence[Words | int], lanes: Flags | None = None) -> None:
        """An operation of the base of shared objects, a tenant's by a thread of it."""
        able = self.alive.copy() if lanes is None else lanes & self.alive
        if thread is not None:
            able = self.able(ORC, thread, able)
        chosen = np.flatnonzero(able)
        if not len(chosen):
            return
        whole = tuple(np.broadcast_to(np.asarray(each, np.uint64), self.lanes).copy() for each in operands)
        event = self._begin(ORC, OPERATION, name, whole, thread, able)
        own = tuple(each[chosen] for each in whole)
        monitors, mirror = self.mirror.orc.monitors, self.mirror.orc

        def take(lane: int, row: tuple[int, ...]) -> Row:
            monitor = monitors[lane]
            running = None if thread is None else monitor.threads[thread]
            try:
                with entered(self.stacks[lane], ORC, name, Who.MONITOR) as finish:
                    code = perform_orc(monitor, running, name, *row)
                    step = finish(None)
            except NotTaken as stopped:
                return _row(stopped.step)
            mirror.note_lane(lane)
            return _row(step, int(code))

        was_stopped = self.batch.is_stopped(chosen)
        rows, at = self._on_reference(event, chosen, own, take)
        harts = None if thread is None else thread * self.lanes + chosen
        ended = self._on_fast_path(self.batch.operation, chosen, harts, name, own)
        self._judge(event, chosen, own, rows, ended, at, was_stopped, np.zeros(len(chosen), np.uint64))

    def deploy(self, name: str, *arguments: int) -> None:
        """What the deployer of cVMs does at the start, in all lanes."""
        event = self._begin(CVM, DEPLOY, name, arguments, None, self.alive.copy())
        everyone, mirror = np.arange(self.lanes), self.mirror.cvm

        def take(lane: int, _row_of: tuple[int, ...]) -> Row:
            with entered(self.stacks[lane], CVM, name, Who.MONITOR) as whole:
                result = getattr(mirror.monitors[lane], name)(*arguments)
                step = whole(None)
            mirror.note_lane(lane)
            return _row(step, result.value if isinstance(result, cvm_spec.Code) else 0)

        def fast(going: Indices) -> Any:
            lanes = everyone[going]
            words: Any = [np.full(len(lanes), each, np.uint64) for each in arguments]
            if name == "create":
                cvm_id, base, size = words
                no_flags, zeros = np.zeros(len(lanes), np.bool_), np.zeros(len(lanes), np.uint64)
                return self.cvms.create(lanes, cvm_id, base, size, no_flags, zeros)
            self.cvms.start_thread(lanes, *words)
            return np.zeros(len(lanes), np.uint8)

        rows, at = self._on_reference(event, everyone, (), take)
        ended = self._on_fast_path(self.batch.swept, CVM, everyone, fast)
        zeros = np.zeros(self.lanes, np.uint64)
        self._judge(event, everyone, (), rows, ended, at, zeros != 0, zeros)

    def _begin(self, layer: str, kind: str, name: str, operands: tuple[Any, ...], thread: int | None, lanes: Flags) -> Event:
        self.events.append(Event(layer, kind, name, operands, thread, lanes))
        return self.events[-1]

    # -- both implementations ----------------------------------------------------------------------------------------------

    def _on_reference(
        self, event: Event, chosen: Indices, own: tuple[Any, ...], take: Callable[[int, tuple[int, ...]], Row]
    ) -> tuple[list[Row], Indices]:
        """How the reference's steps ended, and of each access in which of the lanes it was."""
        if self._start is not None:
            return [self._start.ends[len(self.events) - 1]] * len(chosen), NONE
        columns = [each.tolist() if isinstance(each, np.ndarray) else [each] * len(chosen) for each in own]
        operands: Any = zip(*columns, strict=True) if columns else [()] * len(chosen)
        rows, until, accesses, lane = list[Row](), list[int](), self.mirror.logs.accesses, -1
        retags = self.mirror.tpt.noted[1]
        self._retags: list[tuple[int, int]] = []
        try:
            for lane, values in zip(chosen.tolist(), operands, strict=True):
                rows.append(take(lane, values))
                until.append(len(accesses))
                if retags:
                    self._retags += [(lane, each.frame) for each in retags]
                    retags.clear()
        except ERRORS as error:
            self._crashed("reference", event, lane, error)
        for log in (*self.mirror.tpt.noted, *self.mirror.vmm.noted):
            log.clear()
        return rows, np.repeat(np.arange(len(until)), np.diff(until, prepend=0))

    def _on_fast_path(self, step: Callable[..., Any], *arguments: Any) -> Ended:
        """A step of the fast path. Raises CrashError where it ends with an error."""
        try:
            found: Ended = step(*arguments)
        except ERRORS as error:
            event = self.events[-1]
            self._crashed("fast path", event, int(np.flatnonzero(event.lanes)[0]), error)
        return found

    def _crashed(self, who: str, event: Event, lane: int, error: Exception) -> None:
        details = (f"{who} {type(error).__name__}: {error}",)
        self.found.append(Found(CRASHES, lane, details, len(self.events), event.label))
        self.alive[:] = False
        raise CrashError from error

    # -- judging -----------------------------------------------------------------------------------------------------------

    def _judge(
        self,
        event: Event,
        chosen: Indices,
        own: tuple[Any, ...],
        rows: list[Row],
        ended: Ended,
        at: Indices,
        was_stopped: Flags,
        issuer: Words,
        change: Any = None,
    ) -> None:
        """Compare how the step ended and the states of all lanes, and hold it against the invariants."""
        ends = np.array(rows, np.uint64)
        differ = np.zeros(len(chosen), np.bool_)
        for column, theirs in zip(ends.T, ended, strict=True):
            differ |= column != theirs
        code, fault, _error, _frame, inner, value = ends.T
        taken_up = (code == 0) & (fault == 0)
        self.completed[:] = False
        # Of what a guest's instruction asks, a trap is an answer: the step was taken.
        is_answer = event.kind in (INSTRUCTION, LEAVE, OPERATION)
        self.completed[chosen] = taken_up & ((inner == 0) | is_answer)
        self.value[chosen] = value
        self._count(event, code, fault, inner)
        if self._is_starting:
            self._ends.append(rows[0])
        if self._start is not None:
            if differ.any():
                raise AssertionError(f"the start ends otherwise: {_ended(chosen, ends, ended, int(chosen[differ][0]))}")
            return
        changes = self.mirror.apply()
        wrong = self.mirror.differing()
        self.counts.compared += len(chosen)
        wrong[chosen[differ]] = True
        for lane in np.flatnonzero(wrong & self.alive).tolist():
            details = [*self._differences(lane), *_ended(chosen, ends, ended, lane)]
            self.found.append(Found(DIFFERS, lane, tuple(details[:MOST_DETAILS]), len(self.events), event.label))
            self.alive[lane] = False
        accesses = list(self.mirror.logs.accesses)
        self.mirror.logs.accesses.clear()
        if self.oracles is None:
            return
        if change is not None:
            change = self._taken_up(change, taken_up, inner == 0)
        taken = Taken(
            *(event.layer, event.name, chosen, own, self.completed[chosen], was_stopped, issuer),
            *(accesses, at, self._retags, change),
        )
        for invariant, lanes in self.oracles.judge(taken, changes):
            known = self._violated.setdefault(invariant, np.zeros(self.lanes, np.bool_))
            for lane in lanes[~known[lanes] & self.alive[lanes]].tolist():
                says = (INVARIANTS[invariant].statement,)
                self.found.append(Found(invariant, lane, says, len(self.events), event.label))
            known[lanes] = True

    def _taken_up(self, change: Any, taken_up: Flags, completed: Flags) -> Any:
        """A step of cVMs, in those lanes in which it was one."""
        if not taken_up.any():
            return None
        change.completed = completed[taken_up]
        if change.names and len(change.names) == len(change.lanes) > 1:
            change.names = [name for name, mine in zip(change.names, taken_up, strict=True) if mine]
        change.lanes = change.lanes[taken_up]
        change.ddc = Lanes(*(each[taken_up] for each in change.ddc))
        change.used = tuple(each[taken_up] for each in change.used)
        if change.frames is not None:
            change.frames = {name: column[taken_up] for name, column in change.frames.items()}
        monitors = self.mirror.cvm.monitors
        change.accesses = [
            (lane, each.domain, each.address, each.size_bytes)
            for lane in change.lanes.tolist()
            for each in monitors[lane].accesses
        ]
        return change

    def _count(self, event: Event, code: Words, fault: Words, inner: Words) -> None:
        counts, label = self.counts, event.label
        counts.steps += len(code)
        counts.executed[label] += len(code)
        keys = code << np.uint64(16) | fault << np.uint64(8) | inner
        for key, times in zip(*np.unique(keys, return_counts=True), strict=True):
            counts.ends[label, _end(event, int(key) >> 16, int(key) >> 8 & 0xFF, int(key) & 0xFF)] += int(times)

    def _differences(self, lane: int) -> Iterator[str]:
        """What differs between the reference's machine and a lane."""
        stack, batch = self.stacks[lane], self.batch
        for name, mine, theirs in self.mirror.own():
            for place_of in np.argwhere(mine[lane] != theirs[lane]).tolist():
                at = tuple(place_of)
                yield f"{name} {place_of}: reference {int(mine[lane][at]):#x}, fast path {int(theirs[lane][at]):#x}"
        mine, theirs = self.mirror.tpt.words[lane], batch.tpt.rows.array[lane]
        for frame, word in np.argwhere(mine != theirs).tolist():
            one, other = (int(each[frame, word]) for each in (mine, theirs))
            yield f"frame {frame} word {word}: reference {one:#x}, fast path {other:#x}"
        yield from (f"vmm {each}" for each in vmm_differences(stack.vmm, batch.vmm, lane) if not each.startswith("memory"))
        for what, one, other in tpt_rows(stack.tpt, batch.tpt, lane):
            if one != other and not what.startswith(("word", "memory")):
                yield f"tpt {what}: reference {one}, fast path {other}"
        yield from (f"cvm {each}" for each in cvm_differences(stack.monitors[CVM], self.cvms, lane))
        yield from (f"orc {each}" for each in orc_differences(stack.monitors[ORC], self.objects, lane))

    def finish(self) -> None:
        """To be called at the end: the reference's state, read anew, must be what was compared, and so must all memory."""
        for lane in np.flatnonzero(self.mirror.misread() & self.alive).tolist():
            raise AssertionError(f"lane {lane}: something was changed that nobody said")


class _Start(NamedTuple):
    """A machine that was set up, and how the steps to it have ended."""

    stack: LaneStack
    ends: list[Row]


_STARTS: dict[tuple[StackPolicy, Deployment], _Start] = {}


def start_of(policy: StackPolicy, deployment: Deployment) -> _Start | None:
    """The start of one lane, all steps to it compared; None where there is something wrong with it."""
    key = policy, deployment
    if key not in _STARTS:
        try:
            systems = Systems(1, policy, deployment, oracles=False)
        except (AssertionError, CrashError):
            return None
        _STARTS[key] = _Start(systems.stacks[0], systems._ends)
    return _STARTS[key]


_CALLS = {row.number: row.name for row in cvm_spec.CALLS.values()}
_CODES: dict[str, Any] = {VMM_LAYER: vmm_spec.Code, TPT_LAYER: tpt_spec.Code, OPERATION: orc_spec.Code, LEAVE: cvm_spec.Code}


def _end(event: Event, code: int, fault: int, inner: int) -> str:
    """How a step ended, in a word; "" where it was done."""
    if code:
        return Code(code).name
    if fault:
        return f"fault {tpt_spec.FaultKind(fault).name}"
    if not inner:
        return ""
    if event.kind == INSTRUCTION:
        return CAUSES_BY_NUMBER[inner].name
    return str(_CODES.get(event.kind, cvm_spec.Code)(inner).name)


def _ended(chosen: Indices, ends: Words, ended: Ended, lane: int) -> list[str]:
    """How the step's ends differ in a lane."""
    at = int(np.searchsorted(chosen, lane))
    if at == len(chosen) or chosen[at] != lane:
        return []
    pairs = zip(Ended._fields, ends[at].tolist(), (int(each[at]) for each in ended), strict=True)
    return [f"{what}: reference {one:#x}, fast path {other:#x}" for what, one, other in pairs if one != other]
