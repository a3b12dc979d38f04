"""A lane of a campaign of translation pass-through as a program: its events replayed, made fewer, and written down."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from capvisor.campaign.steps import StepReduction
from capvisor.campaign.systems import CrashError
from capvisor.campaign.tpt_moves import Deployment
from capvisor.campaign.tpt_states import copy_state
from capvisor.campaign.tpt_systems import Systems
from capvisor.dsl.tpt_layout import NAMES
from capvisor.dsl.tpt_runner import outcome_of
from capvisor.dsl.tpt_watch import TptWatch
from capvisor.model.tpt import System
from capvisor.model.tpt_system import perform
from capvisor.spec.paging import FRAME_SHIFT, LEVELS, Entry
from capvisor.spec.tag_policy import TAG_GUARDS, TAG_POLICIES, TagPolicy
from capvisor.spec.tpt import OPERATIONS, Actor, OperandKind
from capvisor.spec.tpt_invariants import TPT_INVARIANTS, Step

MOST_REPLAYS, MOST_PAIRS = 800, 200
"""How often a program is tried with something left out: on the reference, and on both implementations, which is slower."""


class LaneEvent(NamedTuple):
    """An operation and its operands."""

    name: str
    operands: tuple[int, ...]


def events_of(systems: Systems, lane: int, count: int) -> list[LaneEvent]:
    """What the first events of a campaign were in one lane."""
    return [
        LaneEvent(event.name, tuple(int(each[lane]) for each in event.operands))
        for event in systems.events[:count]
        if event.lanes[lane]
    ]


# -- replays ---------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A system with what is done in it."""

    deployment: Deployment
    events: tuple[LaneEvent, ...]


class Failing:
    """Whether programs fail in one way: an invariant that the last step violates, a difference after it, or a crash."""

    def __init__(self, policy: TagPolicy, what: str) -> None:
        self._policy, self._what = policy, what
        self.is_invariant = what in TPT_INVARIANTS

    def __call__(self, case: Case) -> bool:
        if not case.events or not _can_be(case):
            return False
        try:
            if self.is_invariant:
                *_others, last = _steps(case, self._policy)
                return self._what in {found.invariant for found in TptWatch().violated(last)}
            return self._differs(case)
        except AssertionError:
            # The system can't be set up like that.
            return False

    def _differs(self, case: Case) -> bool:
        both = Systems(case.deployment.size(), 1, self._policy, case.deployment.start(), oracles=False)
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
        watch = TptWatch()
        for count, step in enumerate(_steps(case, self._policy), 1):
            if self._what in {found.invariant for found in watch.violated(step)}:
                return case._replace(events=case.events[:count])
        return case


def _system(deployment: Deployment, policy: TagPolicy) -> System:
    """A system at its start. Raises AssertionError where that is refused."""
    system = System(*deployment.size(), policy)
    copy_state(_at_start(deployment, policy), system)
    return system


@lru_cache
def _at_start(deployment: Deployment, policy: TagPolicy) -> System:
    system = System(*deployment.size(), policy)
    for name, operands in deployment.start():
        assert perform(system, name, *operands).is_completed
    return system


def _steps(case: Case, policy: TagPolicy) -> Iterator[Step]:
    """The steps of the reference, one after the other."""
    system = _system(case.deployment, policy)
    for event in case.events:
        yield perform(system, event.name, *event.operands)


def _can_be(case: Case) -> bool:
    """Whether a program can name who performs the operations."""
    size = case.deployment.size()
    for name, operands in case.events:
        actor = OPERATIONS[name].actor
        most = {Actor.HOST: 1 << 64, Actor.DEVICE: size.devices}.get(actor, size.vcpus)
        if operands[0] >= most:
            return False
    return True


# -- small programs --------------------------------------------------------------------------------------------------------


def reduced(policy: TagPolicy, case: Case, what: str) -> tuple[Case, int] | None:
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

        reduction = StepReduction(small.events, still_fails, most - tried, lambda _event: "", _simpler)
        small = fails.up_to_the_first(Case(deployment, tuple(reduction.run())))
        tried += reduction.tried
        small, count = _with_less(small, fails, most - tried)
        tried += count
    return small, tried


def _simpler(event: LaneEvent) -> Iterable[LaneEvent]:
    """The event with one of its numbers 0 or 1, or with fewer bits."""
    for place, (value, (_name, kind)) in enumerate(zip(event.operands, OPERATIONS[event.name].operands, strict=True)):
        simpler = [number for number in (0, 1) if number < value]
        if kind is OperandKind.WORD and value > 1:
            frame = value >> FRAME_SHIFT << FRAME_SHIFT
            simpler += [each for each in (frame, frame | NAMES["rw"]) if each < value]
        for number in simpler:
            yield event._replace(operands=(*event.operands[:place], number, *event.operands[place + 1 :]))


def _with_less(case: Case, fails: Failing, most: int) -> tuple[Case, int]:
    """The same events in a system with less in it, and how many were tried."""
    tried, going = 0, True
    while going:
        going = False
        for deployment in _plainer(case.deployment):
            if tried >= most:
                return case, tried
            tried += 1
            other = case._replace(deployment=deployment)
            if fails(other):
                case, going = other, True
                break
    return case, tried


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


def program(policy: TagPolicy, case: Case) -> list[str]:
    """The events as the lines of a program, which says what it violates."""
    watch, violated, lines = TptWatch(), set[str](), []
    layout = case.deployment.layout()
    homes = {
        cpu: (f"vm{at}" + (f"/{count}" if count > 1 else ""), placed.number)
        for at, placed in enumerate(layout.placed.values())
        for count, cpu in enumerate(placed.cpus, 1)
    }
    system = _system(case.deployment, policy)
    for event in case.events:
        if not _can_be(case._replace(events=(event,))):
            continue
        who = _agent(system, event, homes)
        step = perform(system, event.name, *event.operands)
        violated |= {found.invariant for found in watch.violated(step)}
        lines.append(f"{who}: {_text(event)}  {_outcome(step)}".rstrip())
    names = [name for name in TPT_INVARIANTS if name in violated]
    expected = [f"expect violates {', '.join(names)}"] if names else []
    return [case.deployment.text(_policy(policy)), *expected, *lines]


def _agent(system: System, event: LaneEvent, homes: dict[int, tuple[str, int]]) -> str:
    """Who performs an operation: a VM's vCPU, while it runs for that VM."""
    actor, number = OPERATIONS[event.name].actor, event.operands[0]
    if actor is Actor.HOST:
        return "host"
    if actor is Actor.DEVICE:
        return f"device{number}"
    name, home = homes[number]
    return name if system.vcpus[number].vm == home else f"cpu{number}"


def _text(event: LaneEvent) -> str:
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


def _policy(policy: TagPolicy) -> list[str]:
    """The policy, as items of a system."""
    for name, preset in TAG_POLICIES.items():
        if preset == policy:
            return [f"policy {name}"] if name != next(iter(TAG_POLICIES)) else []
    off = [f"policy without {guard}" for guard in TAG_GUARDS if not getattr(policy, guard)]
    return [*(["policy intended-access"] if policy.tag_check == "access" else []), *off]
