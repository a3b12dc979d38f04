"""A lane of a campaign of a para-pass-through VMM as a program: its events replayed, made fewer, and written down."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from capvisor.campaign.steps import StepReduction
from capvisor.campaign.systems import CrashError
from capvisor.campaign.vmm_moves import Deployment
from capvisor.campaign.vmm_systems import NAMES, Event, Systems
from capvisor.dsl.operation_runner import code_text
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
from capvisor.spec.vmm_invariants import VMM_INVARIANTS, Step
from capvisor.spec.vmm_policy import VMM_GUARDS, VMM_POLICIES, VmmPolicy

MOST_REPLAYS, MOST_PAIRS = 800, 300
"""How often a program is tried with something left out: on the reference, and on both implementations, which is slower."""


class LaneEvent(NamedTuple):
    """An operation and its operands."""

    name: str
    operands: tuple[int, ...]


def event_of(event: Event, lane: int) -> LaneEvent:
    """What an event was in one lane that took part."""
    name = NAMES[int(event.numbers[lane])]
    return LaneEvent(name, tuple(int(each[lane]) for each in event.operands[: len(OPERATIONS[name].operands)]))


def events_of(systems: Systems, lane: int, count: int) -> list[LaneEvent]:
    """What the first events of a campaign were in one lane."""
    return [event_of(event, lane) for event in systems.events[:count] if event.lanes[lane]]


# -- replays ---------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A machine with what is done in it."""

    deployment: Deployment
    events: tuple[LaneEvent, ...]


class Failing:
    """Whether programs fail in one way: an invariant that the last step violates, a difference after it, or a crash."""

    def __init__(self, policy: VmmPolicy, what: str) -> None:
        self._policy, self._what = policy, what
        self.is_invariant = what in VMM_INVARIANTS

    def __call__(self, case: Case) -> bool:
        if not case.events or not _can_be(case):
            return False
        if self.is_invariant:
            *_others, last = _steps(case, self._policy)
            return self._what in {found.invariant for found in VmmWatch().violated(last)}
        return self._differs(case)

    def _differs(self, case: Case) -> bool:
        both = Systems(case.deployment.size(), 1, self._policy, case.deployment.start, oracles=False)
        try:
            for event in case.events:
                both.step(event.name, tuple(np.full(1, each, np.uint64) for each in event.operands))
            both.finish()
        except CrashError:
            pass
        return any(found.what == self._what and found.events == len(case.events) for found in both.found)

    def up_to_the_first(self, case: Case) -> Case:
        """The events up to the first that fails."""
        if not self.is_invariant:
            return case
        watch = VmmWatch()
        for count, step in enumerate(_steps(case, self._policy), 1):
            if self._what in {found.invariant for found in watch.violated(step)}:
                return case._replace(events=case.events[:count])
        return case


def _system(deployment: Deployment, policy: VmmPolicy) -> System:
    """A machine at its start."""
    system = System(*deployment.size(), policy)
    deployment.start(system)
    return system


def _steps(case: Case, policy: VmmPolicy) -> Iterator[Step]:
    """The steps of the reference, one after the other."""
    system = _system(case.deployment, policy)
    for event in case.events:
        yield perform(system, event.name, *event.operands)


def _can_be(case: Case) -> bool:
    """Whether a program can name who performs the operations."""
    deployment = case.deployment
    ends = {
        Actor.GUEST: range(deployment.vcpus),
        Actor.DEVICE: range(1, deployment.devices + 1),
        Actor.EXTENSION: range(1, len(deployment.extensions) + 1),
    }
    return all(
        OPERATIONS[name].actor is Actor.VMM or operands[0] in ends[OPERATIONS[name].actor] for name, operands in case.events
    )


# -- small programs --------------------------------------------------------------------------------------------------------


def reduced(policy: VmmPolicy, case: Case, what: str) -> tuple[Case, int] | None:
    """A smaller case that fails in the same way, and how many were tried; None where this one doesn't by itself."""
    fails = Failing(policy, what)
    if not fails(case):
        return None
    small, tried, most = fails.up_to_the_first(case), 0, MOST_REPLAYS if fails.is_invariant else MOST_PAIRS
    before: Case | None = None
    while small != before and tried < most:
        before, deployment = small, small.deployment

        def still_fails(events: Sequence[LaneEvent], deployment: Deployment = deployment) -> bool:
            return fails(Case(deployment, tuple(events)))

        reduction = StepReduction(small.events, still_fails, most - tried, lambda event: event.name, _simpler)
        small = fails.up_to_the_first(Case(deployment, tuple(reduction.run())))
        tried += reduction.tried
        small, count = _with_less(small, fails, most - tried)
        tried += count
    return small, tried


def _simpler(event: LaneEvent) -> Iterable[LaneEvent]:
    """The event with one of its numbers 0, 1 or 2, or of a few bits."""
    for place, (value, (_name, kind)) in enumerate(zip(event.operands, OPERATIONS[event.name].operands, strict=True)):
        simpler = [number for number in (0, 1, 2) if number < value]
        if kind is OperandKind.WORD and value > 2:
            address = value & (1 << DESCRIPTOR_ADDRESS_BITS) - 1
            one = address | 1 << DESCRIPTOR_COUNT_SHIFT | DESCRIPTOR_END
            simpler += [each for each in (address, value & 0xFF, one) if 2 < each < value]
        for number in simpler:
            yield event._replace(operands=(*event.operands[:place], number, *event.operands[place + 1 :]))


def _with_less(case: Case, fails: Failing, most: int) -> tuple[Case, int]:
    """Much the same events in a machine with less in it, and how many were tried."""
    tried, going = 0, True
    while going:
        going = False
        for other in _plainer(case):
            if tried >= most:
                return case, tried
            tried += 1
            if fails(other):
                case, going = other, True
                break
    return case, tried


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


def program(policy: VmmPolicy, case: Case) -> list[str]:
    """The events as the lines of a program, which says what it violates."""
    watch, violated, lines = VmmWatch(), set[str](), []
    system = _system(case.deployment, policy)
    for event in case.events:
        if not _can_be(case._replace(events=(event,))):
            continue
        step = perform(system, event.name, *event.operands)
        violated |= {found.invariant for found in watch.violated(step)}
        outcome = "" if step.is_completed else f"  -> {code_text(step.code)}"
        lines.append(f"{_agent(case.deployment, event)}: {_text(case.deployment, event)}{outcome}")
    names = [name for name in VMM_INVARIANTS if name in violated]
    expected = [f"expect violates {', '.join(names)}"] if names else []
    return [case.deployment.text(_policy(policy)), *expected, *lines]


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


def _text(deployment: Deployment, event: LaneEvent) -> str:
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


def _policy(policy: VmmPolicy) -> list[str]:
    """The policy, as items of a system."""
    for name, preset in VMM_POLICIES.items():
        if preset == policy:
            return [f"policy {name}"] if name != next(iter(VMM_POLICIES)) else []
    return [f"policy without {guard}" for guard in VMM_GUARDS if not getattr(policy, guard)]
