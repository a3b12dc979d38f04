"""A lane of a campaign of all four systems as a program: its events replayed, made fewer, and written down."""

import pickle
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from capvisor.campaign import tpt_program, vmm_program
from capvisor.campaign.programs import Failing, Programs, Written, with_operand
from capvisor.campaign.stack_start import DEPLOY, INSTRUCTION, LEAVE, OPERATION, Deployment, LaneEvent
from capvisor.campaign.stack_systems import Systems
from capvisor.campaign.systems import CrashError
from capvisor.dsl.printer import instruction_of, print_instruction
from capvisor.dsl.stack_watch import StackWatch
from capvisor.dsl.system_kinds import STACK
from capvisor.dsl.tpt_runner import outcome_of
from capvisor.dsl.vmm_layout import Layout as VmmLayout
from capvisor.dsl.vmm_layout import place
from capvisor.fastpath.stack import CVM, ORC
from capvisor.model import stack_system
from capvisor.model.memory import Memory
from capvisor.model.monitor import Monitor
from capvisor.model.objects import ObjectMonitor
from capvisor.model.stack import TPT_LAYER, VMM_LAYER, Stack
from capvisor.spec import tpt as tpt_spec
from capvisor.spec import vmm as vmm_spec
from capvisor.spec.cvm import ARGUMENT_REGISTERS, CALLS, CALLS_BY_NUMBER, NUMBER_REGISTER, STORE_SLOTS
from capvisor.spec.cvm import Code as CvmCode
from capvisor.spec.stack import FORMAT
from capvisor.spec.stack_invariants import Step
from capvisor.spec.stack_policy import StackPolicy
from capvisor.spec.tpt_invariants import Step as TptStep

ENTER = "enter"
"""Instead of the instruction that invokes the Intravisor: what a library does for a call, from its beginning."""

CODE, DATA = 28, 29
"""Registers into which a library loads the pair that it calls by."""

NAMES = {CVM: ("alice", "bob"), ORC: ("tom",)}
"""What programs call the threads of each layer."""

GUEST = "guest"


class Case(NamedTuple):
    """A machine with what is done in it."""

    deployment: Deployment
    events: tuple[LaneEvent, ...]


class Player:
    """A machine of the reference from its start on. Raises KeyError for what a program can't say."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    @classmethod
    def at_start(cls, policy: StackPolicy, deployment: Deployment) -> "Player":
        """A machine as a program begins with it."""
        player: Player = pickle.loads(_at_start(policy, deployment))
        return player

    def take(self, event: LaneEvent) -> Iterator[tuple[Step, Any]]:
        """The steps of an event with their traps or codes; none where whoever it is of can't take it."""
        machine = self.stack
        if event.layer in (VMM_LAYER, TPT_LAYER):
            perform = stack_system.perform_vmm if event.layer == VMM_LAYER else stack_system.perform_tpt
            yield perform(machine, event.name, *event.operands), None
            return
        if event.kind == DEPLOY:
            yield stack_system.deploy(machine, event.name, *event.operands)
            return
        threads = machine.monitors[event.layer].threads
        thread = None if event.thread is None else threads[event.thread]
        if event.kind == OPERATION:
            yield stack_system.operation(machine, thread, event.name, *event.operands)
            return
        assert thread is not None
        is_inside = event.layer == CVM and thread.frame is not None
        if not thread.is_live or is_inside != (event.kind == LEAVE):
            return
        if event.kind == LEAVE:
            yield stack_system.leave(machine, thread)
        elif event.kind == ENTER:
            yield from self._enter(thread, event)
        else:
            yield stack_system.instruction(machine, thread, event.name, event.operands)

    def _enter(self, thread: Any, event: LaneEvent) -> Iterator[tuple[Step, Any]]:
        top = self.stack.monitors[CVM].regions[thread.domain].top
        work = [("li", (register, each)) for register, each in zip(ARGUMENT_REGISTERS, event.operands, strict=False)]
        work.append(("li", (NUMBER_REGISTER, CALLS[event.name].number)))
        for register, slot in ((CODE, "call code"), (DATA, "call data")):
            back = (len(STORE_SLOTS) - STORE_SLOTS.index(slot)) * FORMAT.capability_bytes
            work += [("li", (register, top - back)), ("lc.ddc", (register, register))]
        for name, operands in (*work, ("cinvoke", (CODE, DATA))):
            step, trap = stack_system.instruction(self.stack, thread, name, operands)
            yield step, None
            if trap is not None or not step.is_completed:
                raise KeyError(event.name)
        if thread.frame is None:
            raise KeyError(event.name)


@lru_cache
def _at_start(policy: StackPolicy, deployment: Deployment) -> bytes:
    layout = deployment.layout()
    first, last = layout.vmm.region
    count = len(layout.vmm.devices)
    stack = Stack(layout.vmm.frames, (first, last + 1), layout.tpt.cpu_count, count, policy)
    place(stack.vmm, layout.vmm)
    for layer, make in ((CVM, Monitor), (ORC, ObjectMonitor)):
        monitor: Any = make(Memory(FORMAT, *layout.memory(layer)))
        stack.host(layer, monitor, layout.tpt.placed[layout.mapped[layer].vm].number)
    player = Player(stack)
    for event in deployment.start():
        list(player.take(event))
    return pickle.dumps(player)


class StackPrograms(Programs[Case]):
    """What may be left out of a machine with all four systems, and how it is said."""

    kind = STACK
    most_replays, most_pairs = 400, 60

    def case_of(self, systems: Systems, start: Deployment, lane: int, count: int) -> Case:
        return Case(start, tuple(self._event(event, lane) for event in systems.events[:count] if event.lanes[lane]))

    def prepared(self, _policy: StackPolicy, case: Case) -> Case:
        """Without what no program can say: it was refused, and has changed nothing."""
        return case._replace(events=tuple(event for event in case.events if _can_be(case.deployment, event)))

    @staticmethod
    def _event(event: Any, lane: int) -> LaneEvent:
        operands = tuple(int(each[lane]) if isinstance(each, np.ndarray) else each for each in event.operands)
        return LaneEvent(event.layer, event.kind, event.name, operands, event.thread)

    def violated(self, policy: StackPolicy, case: Case, *, only_last: bool = False) -> Iterator[set[str]]:
        player, watch = Player.at_start(policy, case.deployment), StackWatch()
        yield set()
        for left, event in zip(range(len(case.events))[::-1], case.events, strict=True):
            found = set[str]()
            if not _can_be(case.deployment, event):
                return
            try:
                for step, _result in player.take(event):
                    _can_end(policy, event, step)
                    if not (only_last and left):
                        found |= {each.invariant for each in watch.violated(step)}
            except KeyError:
                return
            yield found

    def on_both(self, policy: StackPolicy, case: Case) -> Systems | None:
        both = Systems(1, policy, case.deployment, oracles=False)
        with suppress(CrashError):
            for event in case.events:
                if event.kind == ENTER or not _can_be(case.deployment, event):
                    return None
                both.take(event)
            both.finish()
        return both

    def agent_of(self, event: LaneEvent) -> str:
        """All events of a name are left out at once."""
        return f"{event.layer} {event.name}"

    def simpler(self, event: LaneEvent) -> Iterable[LaneEvent]:
        """The event with one of its numbers 0, 1 or 2."""
        if event.kind == INSTRUCTION and event.name != "li":
            return
        for at, value in enumerate(event.operands):
            if not (event.kind == INSTRUCTION and at == 0):
                for number in (0, 1, 2):
                    if number < value:
                        yield event._replace(operands=with_operand(event.operands, at, number))

    def plainer(self, case: Case) -> Iterable[Case]:
        deployment = case.deployment
        if deployment.has_probe:
            yield case._replace(deployment=deployment._replace(has_probe=False))
        if deployment.devices:
            yield case._replace(deployment=deployment._replace(devices=deployment.devices - 1))

    def rearranged(self, fails: Failing[Case], case: Case, most: int) -> tuple[Case, int]:
        """Invocations of the Intravisor as the calls that they are, and less at the start."""
        tried = 0
        for at, instead in reversed(list(_calls(fails.policy, case))):
            other = case._replace(events=(*case.events[:at], instead, *case.events[at + 1 :]))
            tried += 1
            if fails(other):
                case = other
        case, count = super().rearranged(fails, case, most - tried)
        return case, tried + count

    def written(self, policy: StackPolicy, case: Case) -> Written:
        player, watch, violated, lines = Player.at_start(policy, case.deployment), StackWatch(), set[str](), list[str]()
        for event in case.events:
            last: tuple[Step, Any] | None = None
            if not _can_be(case.deployment, event):
                continue
            with suppress(KeyError):
                for last in player.take(event):
                    step = last[0]
                    violated |= {found.invariant for found in watch.violated(step)}
                    _can_end(policy, event, step)
                if last is not None:
                    lines.append(_line(case.deployment, event, *last))
        return Written(case.deployment.text(self.policy_items(policy)), lines, violated)


PROGRAMS = StackPrograms()


def _calls(policy: StackPolicy, case: Case) -> Iterator[tuple[int, LaneEvent]]:
    """The invocations of the Intravisor, by their places, as calls."""
    player = Player.at_start(policy, case.deployment)
    for at, event in enumerate(case.events):
        with suppress(KeyError):
            list(player.take(event))
        if event.name == "cinvoke" and event.layer == CVM:
            frame = player.stack.monitors[CVM].threads[event.thread].frame
            row = None if frame is None else CALLS_BY_NUMBER.get(frame.number)
            if row is not None:
                operands = frame.arguments[: len(row.arguments)]
                yield at, LaneEvent(CVM, ENTER, row.name, operands, event.thread)


# -- lines -----------------------------------------------------------------------------------------------------------------


def _can_be(deployment: Deployment, event: LaneEvent) -> bool:
    """Whether a program can say who does something."""
    layout = deployment.layout()
    if event.layer == VMM_LAYER:
        actor = vmm_spec.OPERATIONS[event.name].actor
        most = {vmm_spec.Actor.DEVICE: len(layout.vmm.devices), vmm_spec.Actor.EXTENSION: len(layout.vmm.extensions)}
        cpus = layout.tpt.cpu_count
        if actor is vmm_spec.Actor.GUEST:
            # By a VM's kernel, what both layers have is translation pass-through's.
            return event.operands[0] == cpus or (event.operands[0] < cpus and event.name not in tpt_spec.OPERATIONS)
        return actor not in most or 1 <= event.operands[0] <= most[actor]
    if event.layer == TPT_LAYER:
        actor_of = tpt_spec.OPERATIONS[event.name].actor
        limits = {tpt_spec.Actor.HOST: 1 << 64, tpt_spec.Actor.DEVICE: layout.tpt.devices}
        return bool(event.operands[0] < limits.get(actor_of, layout.tpt.cpu_count))
    return True


def _can_end(policy: StackPolicy, event: LaneEvent, step: Step) -> None:
    """Raises KeyError where a program can't say how something ended."""
    if event.kind == INSTRUCTION and step.fault is not None and not policy.resident_first:
        raise KeyError(event.name)


class _OfVmm(NamedTuple):
    """What has the VMM's layout."""

    vmm: VmmLayout

    def layout(self) -> VmmLayout:
        """What names stand for."""
        return self.vmm


def _line(deployment: Deployment, event: LaneEvent, step: Step, result: Any) -> str:
    """An event as a line of a program, with how it ended."""
    layout = deployment.layout()
    own: Any = event
    if event.layer == VMM_LAYER:
        text = vmm_program.text_of(_OfVmm(layout.vmm), own)  # type: ignore[arg-type]
    elif event.layer == TPT_LAYER:
        text = tpt_program.text_of(own)
    elif event.kind == INSTRUCTION and not step.is_completed:
        text = "resume"
    elif event.kind == INSTRUCTION:
        text = " ".join(print_instruction(instruction_of(event.name, event.operands)).split())
    else:
        name = LEAVE if event.kind == LEAVE else f"{ENTER} {event.name}" if event.kind == ENTER else event.name
        text = " ".join([name, ", ".join(map(hex, event.operands))]).rstrip()
    return f"{_agent(deployment, event)}: {text}  {_outcome(event, step, result)}".rstrip()


def _agent(deployment: Deployment, event: LaneEvent) -> str:
    """Who does something."""
    layout = deployment.layout()
    if event.layer in NAMES:
        return "base" if event.thread is None else NAMES[event.layer][event.thread]
    number = event.operands[0] if event.operands else 0
    vms = {cpu: name for name, placed in layout.tpt.placed.items() for cpu in placed.cpus}
    if event.layer == TPT_LAYER:
        actor = tpt_spec.OPERATIONS[event.name].actor
        if actor is tpt_spec.Actor.HOST:
            return "host"
        return f"device{number}" if actor is tpt_spec.Actor.DEVICE else vms[number]
    of_vmm = vmm_spec.OPERATIONS[event.name].actor
    if of_vmm is vmm_spec.Actor.GUEST:
        return vms.get(number, GUEST)
    if of_vmm is vmm_spec.Actor.VMM:
        return "vmm"
    known = layout.vmm.devices if of_vmm is vmm_spec.Actor.DEVICE else layout.vmm.extensions
    return next(name for name, each in known.items() if each.number == number)


def _outcome(event: LaneEvent, step: Step, result: Any) -> str:
    """How something ended, as an expectation."""
    if step.fault is not None:
        return f"!{outcome_of(TptStep(None, step.name, fault=step.fault))}"
    if step.code:
        return f"-> refused {step.code.name}"
    inner: Any = step.inner
    if event.layer == VMM_LAYER:
        return "" if inner.is_completed else f"-> refused {inner.code.name}"
    if event.layer == TPT_LAYER:
        text = outcome_of(inner)
        return f"!{text}" if inner.fault is not None else "" if inner.is_completed else f"-> {text}"
    if event.kind == INSTRUCTION:
        return "" if result is None else f"!trap {result.cause.name}"
    return "" if event.kind == ENTER or result.name == CvmCode.OK.name else f"-> refused {result.name}"
