"""A lane of a campaign of translation pass-through as a program: its events replayed, made fewer, and written down."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from capvisor.campaign.programs import OperationPrograms, Written, in_lane, with_operand
from capvisor.campaign.tpt_moves import Deployment
from capvisor.campaign.tpt_states import copy_state
from capvisor.campaign.tpt_systems import Systems
from capvisor.dsl.system_kinds import TPT
from capvisor.dsl.tpt_layout import NAMES
from capvisor.dsl.tpt_runner import outcome_of
from capvisor.dsl.tpt_watch import TptWatch
from capvisor.model.tpt import System
from capvisor.model.tpt_system import perform
from capvisor.spec.paging import FRAME_SHIFT, LEVELS, Entry
from capvisor.spec.tag_policy import TagPolicy
from capvisor.spec.tpt import OPERATIONS, Actor, OperandKind
from capvisor.spec.tpt_invariants import Step


class LaneEvent(NamedTuple):
    """An operation and its operands."""

    name: str
    operands: tuple[int, ...]


class Case(NamedTuple):
    """A system with what is done in it."""

    deployment: Deployment
    events: tuple[LaneEvent, ...]


@lru_cache
def _at_start(deployment: Deployment, policy: TagPolicy) -> System:
    """A system at its start. Raises AssertionError where that is refused."""
    system = System(*deployment.size(), policy)
    for name, operands in deployment.start():
        assert perform(system, name, *operands).is_completed
    return system


class TptPrograms(OperationPrograms[Case]):
    """What may be left out of a system with translation pass-through, and how it is said."""

    kind, watch, perform = TPT, TptWatch, staticmethod(perform)

    def case_of(self, systems: Systems, start: Deployment, lane: int, count: int) -> Case:
        events = (event for event in systems.events[:count] if event.lanes[lane])
        return Case(start, tuple(LaneEvent(event.name, in_lane(event.operands, lane)) for event in events))

    def can_be(self, case: Case) -> bool:
        size = case.deployment.size()
        for name, operands in case.events:
            actor = OPERATIONS[name].actor
            most = {Actor.HOST: 1 << 64, Actor.DEVICE: size.devices}.get(actor, size.vcpus)
            if operands[0] >= most:
                return False
        return True

    def system(self, policy: TagPolicy, case: Case) -> System:
        system = System(*case.deployment.size(), policy)
        copy_state(_at_start(case.deployment, policy), system)
        return system

    def pair(self, policy: TagPolicy, case: Case) -> Systems:
        return Systems(case.deployment.size(), 1, policy, case.deployment.start(), oracles=False)

    def simpler(self, event: LaneEvent) -> Iterable[LaneEvent]:
        """The event with one of its numbers 0 or 1, or with fewer bits."""
        for place, (value, (_name, kind)) in enumerate(zip(event.operands, OPERATIONS[event.name].operands, strict=True)):
            simpler = [number for number in (0, 1) if number < value]
            if kind is OperandKind.WORD and value > 1:
                frame = value >> FRAME_SHIFT << FRAME_SHIFT
                simpler += [each for each in (frame, frame | NAMES["rw"]) if each < value]
            for number in simpler:
                yield event._replace(operands=with_operand(event.operands, place, number))

    def plainer(self, case: Case) -> Iterator[Case]:
        for deployment in _plainer(case.deployment):
            yield case._replace(deployment=deployment)

    def written(self, policy: TagPolicy, case: Case) -> Written:
        watch, violated, lines = TptWatch(), set[str](), []
        layout = case.deployment.layout()
        homes = {
            cpu: (f"vm{at}" + (f"/{count}" if count > 1 else ""), placed.number)
            for at, placed in enumerate(layout.placed.values())
            for count, cpu in enumerate(placed.cpus, 1)
        }
        system = self.system(policy, case)
        for event in case.events:
            if not self.can_be(case._replace(events=(event,))):
                continue
            who = _agent(system, event, homes)
            step = perform(system, event.name, *event.operands)
            violated |= {found.invariant for found in watch.violated(step)}
            lines.append(f"{who}: {text_of(event)}  {_outcome(step)}".rstrip())
        return Written(case.deployment.text(self.policy_items(policy)), lines, violated)


PROGRAMS = TptPrograms()


def _plainer(deployment: Deployment) -> Iterator[Deployment]:
    """Systems with one thing less."""
    guests, devices = deployment.guests, deployment.devices
    if len(guests) > 1:
        yield deployment._replace(guests=guests[:-1])
    for place, guest in enumerate(guests):
        lasts = sorted({guest.first, (guest.first + guest.last) // 2, guest.last - 1})
        others = [guest._replace(last=last) for last in lasts if guest.first <= last < guest.last]
        others += [guest._replace(is_mapped=False)] if guest.is_mapped else []
        others += [guest._replace(is_plain=False)] if guest.is_plain else []
        others += [guest._replace(vcpus=guest.vcpus - 1)] if guest.vcpus > 1 else []
        for other in others:
            if not other.is_mapped or other.last - other.first >= deployment.levels:
                yield deployment._replace(guests=(*guests[:place], other, *guests[place + 1 :]))
    if devices:
        yield deployment._replace(devices=devices - 1)
    if deployment.levels > LEVELS[0]:
        yield deployment._replace(levels=LEVELS[0])


def _agent(system: System, event: LaneEvent, homes: dict[int, tuple[str, int]]) -> str:
    """Who performs an operation: a VM's vCPU, while it runs for that VM."""
    actor, number = OPERATIONS[event.name].actor, event.operands[0]
    if actor is Actor.HOST:
        return "host"
    if actor is Actor.DEVICE:
        return f"device{number}"
    name, home = homes[number]
    return name if system.vcpus[number].vm == home else f"cpu{number}"


def text_of(event: LaneEvent) -> str:
    """An operation with its operands, in the language."""
    row = OPERATIONS[event.name]
    pairs = list(zip(row.operands, event.operands, strict=True))[row.actor is not Actor.HOST :]
    if pairs and pairs[-1][0][1] is OperandKind.USER and pairs[-1][1] == 0:
        pairs.pop()
    return " ".join([event.name, ", ".join(_operand(kind, value) for (_name, kind), value in pairs)]).rstrip()


_BITS = {"rw": NAMES["rw"], "ro": NAMES["ro"], **{bit.name: bit.value for bit in Entry if bit.name}}
_KNOWN = {
    OperandKind.MODE: {NAMES["tpt"]: "tpt", NAMES["nested"]: "nested"},
    OperandKind.ACCESS: {NAMES[name]: name for name in ("read", "write", "fetch")},
    OperandKind.USER: {NAMES["user"]: "user", NAMES["supervisor"]: "supervisor"},
}


def _operand(kind: OperandKind, value: int) -> str:
    if value in _KNOWN.get(kind, {}):
        return _KNOWN[kind][value]
    if kind is OperandKind.WORD and value >> FRAME_SHIFT and value & (1 << FRAME_SHIFT) - 1:
        return _entry(value)
    return hex(value) if kind in (OperandKind.WORD, OperandKind.ADDRESS) or value >> 32 else str(value)


def _entry(value: int) -> str:
    """An entry by its frame and bits, if these have names."""
    frame, rest, words = value >> FRAME_SHIFT & (1 << 40) - 1, value & ~((1 << 52) - (1 << FRAME_SHIFT)), []
    for name, bits in _BITS.items():
        if rest & bits == bits:
            words.append(name)
            rest &= ~bits
    return hex(value) if rest or not words else " | ".join([f"{frame} << {FRAME_SHIFT}", *words])


def _outcome(step: Step) -> str:
    """How an operation ended, as an expectation."""
    text = outcome_of(step)
    return f"!{text}" if step.fault is not None else "" if step.is_completed else f"-> {text}"
