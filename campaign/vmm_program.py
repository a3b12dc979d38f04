"""A lane of a campaign of a para-pass-through VMM as a program: its events replayed, made fewer, and written down."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from capvisor.campaign.programs import OperationPrograms, Written, in_lane, with_operand
from capvisor.campaign.vmm_moves import Deployment
from capvisor.campaign.vmm_systems import NAMES, Event, Systems
from capvisor.dsl.operation_runner import code_text
from capvisor.dsl.system_kinds import VMM
from capvisor.dsl.vmm_check import written_operands
from capvisor.dsl.vmm_layout import SPACES
from capvisor.dsl.vmm_watch import VmmWatch
from capvisor.model.vmm import System
from capvisor.model.vmm_system import perform
from capvisor.spec.vmm import (
    COMMANDS,
    DESCRIPTOR_ADDRESS_BITS,
    DESCRIPTOR_COUNT_SHIFT,
    DESCRIPTOR_END,
    OPERATIONS,
    WINDOW_SHIFT,
    Actor,
    OperandKind,
    Register,
    Space,
)
from capvisor.spec.vmm_policy import VmmPolicy


class LaneEvent(NamedTuple):
    """An operation and its operands."""

    name: str
    operands: tuple[int, ...]


def event_of(event: Event, lane: int) -> LaneEvent:
    """What an event was in one lane that took part."""
    name = NAMES[int(event.numbers[lane])]
    return LaneEvent(name, in_lane(event.operands[: len(OPERATIONS[name].operands)], lane))


class Case(NamedTuple):
    """A machine with what is done in it."""

    deployment: Deployment
    events: tuple[LaneEvent, ...]


class VmmPrograms(OperationPrograms[Case]):
    """What may be left out of a machine with a para-pass-through VMM, and how it is said."""

    kind, watch, perform = VMM, VmmWatch, staticmethod(perform)
    most_pairs = 300

    def case_of(self, systems: Systems, start: Deployment, lane: int, count: int) -> Case:
        return Case(start, tuple(event_of(event, lane) for event in systems.events[:count] if event.lanes[lane]))

    def can_be(self, case: Case) -> bool:
        deployment = case.deployment
        ends = {
            Actor.GUEST: range(deployment.vcpus),
            Actor.DEVICE: range(1, deployment.devices + 1),
            Actor.EXTENSION: range(1, len(deployment.extensions) + 1),
        }
        return all(
            OPERATIONS[name].actor is Actor.VMM or operands[0] in ends[OPERATIONS[name].actor]
            for name, operands in case.events
        )

    def system(self, policy: VmmPolicy, case: Case) -> System:
        system = System(*case.deployment.size(), policy)
        case.deployment.start(system)
        return system

    def pair(self, policy: VmmPolicy, case: Case) -> Systems:
        return Systems(case.deployment.size(), 1, policy, case.deployment.start, oracles=False)

    def agent_of(self, event: LaneEvent) -> str:
        """All operations of a name are left out at once."""
        return event.name

    def simpler(self, event: LaneEvent) -> Iterable[LaneEvent]:
        """The event with one of its numbers 0, 1 or 2, or of a few bits."""
        for place, (value, (_name, kind)) in enumerate(zip(event.operands, OPERATIONS[event.name].operands, strict=True)):
            simpler = [number for number in (0, 1, 2) if number < value]
            if kind is OperandKind.WORD and value > 2:
                address = value & (1 << DESCRIPTOR_ADDRESS_BITS) - 1
                one = address | 1 << DESCRIPTOR_COUNT_SHIFT | DESCRIPTOR_END
                simpler += [each for each in (address, value & 0xFF, one) if 2 < each < value]
            for number in simpler:
                yield event._replace(operands=with_operand(event.operands, place, number))

    def plainer(self, case: Case) -> Iterator[Case]:
        return _plainer(case)

    def written(self, policy: VmmPolicy, case: Case) -> Written:
        watch, violated, lines = VmmWatch(), set[str](), []
        system = self.system(policy, case)
        for event in case.events:
            if not self.can_be(case._replace(events=(event,))):
                continue
            step = perform(system, event.name, *event.operands)
            violated |= {found.invariant for found in watch.violated(step)}
            outcome = "" if step.is_completed else f"  -> {code_text(step.code)}"
            lines.append(f"{_agent(case.deployment, event)}: {text_of(case.deployment, event)}{outcome}")
        return Written(case.deployment.text(self.policy_items(policy)), lines, violated)


PROGRAMS = VmmPrograms()


def _plainer(case: Case) -> Iterator[Case]:
    """Cases with one thing less: extensions, devices, an image, rules, vCPUs, registers in memory, slots."""
    deployment = case.deployment
    if deployment.extensions:
        yield case._replace(deployment=deployment._replace(extensions=()))
        yield case._replace(deployment=deployment._replace(extensions=deployment.extensions[:-1]))
    if deployment.devices:
        yield case._replace(deployment=deployment._replace(devices=deployment.devices - 1))
    if deployment.image:
        yield case._replace(deployment=deployment._replace(image=0))
        yield case._replace(deployment=deployment._replace(image=deployment.image - 1))
    if deployment.has_rules:
        yield case._replace(deployment=deployment._replace(has_rules=False))
    if deployment.vcpus > 1:
        fewer = deployment._replace(vcpus=deployment.vcpus - 1)
        yield Case(fewer, tuple(_with(event, OperandKind.VCPU, 0) for event in case.events))
    for events in (
        tuple(_by_port(deployment, event) for event in case.events),
        tuple(_with(event, OperandKind.SLOT, 0) for event in case.events),
    ):
        if events != case.events:
            yield case._replace(events=events)


def _with(event: LaneEvent, kind: OperandKind, value: int) -> LaneEvent:
    """The event with one value of all its operands of some kind."""
    pairs = zip(OPERATIONS[event.name].operands, event.operands, strict=True)
    return event._replace(operands=tuple(value if each is kind else old for (_name, each), old in pairs))


def _by_port(deployment: Deployment, event: LaneEvent) -> LaneEvent:
    """The event at a port, if it is an access to a register in memory, where that is at the start."""
    if event.name in ("input", "output") and event.operands[1] == Space.MEMORY:
        found = _register(deployment, *event.operands[1:3])
        if found is not None:
            number = deployment.layout().devices[found[0]].windows[Space.PORT] << WINDOW_SHIFT | found[1]
            return event._replace(operands=(event.operands[0], int(Space.PORT), number, *event.operands[3:]))
    return event


def _agent(deployment: Deployment, event: LaneEvent) -> str:
    """Who performs an operation."""
    actor = OPERATIONS[event.name].actor
    if actor is Actor.VMM:
        return "vmm"
    number = event.operands[0]
    if actor is Actor.GUEST:
        return "guest" if number == 0 else f"guest/{number + 1}"
    layout = deployment.layout()
    known = layout.devices if actor is Actor.DEVICE else layout.extensions
    return next(name for name, each in known.items() if each.number == number)


def text_of(deployment: Deployment, event: LaneEvent) -> str:
    """An operation with its operands, in the language."""
    row = OPERATIONS[event.name]
    kinds = [kind for _name, kind in row.operands]
    operands = [_operand(deployment, kind, value) for kind, value in zip(kinds, event.operands, strict=True)]
    if event.name in ("input", "output"):
        register = _register(deployment, *event.operands[1:3])
        if register is not None:
            operands[2] = f"{register[0]}{'.mmio' * event.operands[1]}.{register[1].name.lower()}"
            if event.name == "output" and register[1] is Register.COMMAND and event.operands[3] in COMMANDS:
                operands[3] = COMMANDS[event.operands[3]].name
    return " ".join([event.name, ", ".join(operands[len(kinds) - len(written_operands(event.name)) :])]).rstrip()


def _register(deployment: Deployment, space: int, number: int) -> tuple[str, Register] | None:
    """Which storage device's register has a number at the start."""
    for name, placed in deployment.layout().devices.items():
        if placed.is_storage and space <= Space.MEMORY and placed.windows[space] == number >> WINDOW_SHIFT:
            return name, Register(number & (1 << WINDOW_SHIFT) - 1)
    return None


def _operand(deployment: Deployment, kind: OperandKind, value: int) -> str:
    if kind is OperandKind.DEVICE:
        names = (name for name, placed in deployment.layout().devices.items() if placed.number == value)
        return next(names, str(value))
    if kind is OperandKind.SPACE:
        return next((name for name, space in SPACES.items() if space == value), str(value))
    if kind is OperandKind.WORD and value >> DESCRIPTOR_ADDRESS_BITS:
        return _descriptor(value)
    return str(value) if value < 10 else hex(value)


def _descriptor(value: int) -> str:
    """A descriptor by its parts, if it has no others."""
    address = value & (1 << DESCRIPTOR_ADDRESS_BITS) - 1
    count = value >> DESCRIPTOR_COUNT_SHIFT & 0xFF
    end = value & DESCRIPTOR_END
    if value != address | count << DESCRIPTOR_COUNT_SHIFT | end:
        return hex(value)
    return " | ".join([hex(address), *([f"{count} * BLOCKS"] if count else []), *(["END"] if end else [])])
