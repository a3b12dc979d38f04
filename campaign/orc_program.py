"""A lane of a campaign of shared objects as a program: its events replayed, made fewer, and written down."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from capvisor.campaign.orc_systems import ERRORS, Deployment, Systems, name_of
from capvisor.campaign.steps import StepReduction
from capvisor.campaign.systems import CrashError
from capvisor.dsl.orc_layout import KINDS, MEMORY_BASE
from capvisor.dsl.orc_watch import OrcWatch, agent_text
from capvisor.dsl.printer import instruction_of, print_instruction
from capvisor.model import object_system
from capvisor.model.memory import Memory
from capvisor.model.object_operations import perform
from capvisor.model.object_tables import TenantThread
from capvisor.model.objects import ObjectMonitor
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.object_policy import INTENDED, OBJECT_GUARDS, OBJECT_POLICIES, ObjectPolicy
from capvisor.spec.orc import OPERATIONS, SHAPE, Code, OperandKind
from capvisor.spec.orc_invariants import ORC_INVARIANTS, Step

MOST_REPLAYS, MOST_PAIRS = 600, 200
"""How often a program is tried with something left out: on the reference, and on both implementations, which is slower."""

BASE = "base"
IDENTITY = "identity"
"""An operand of a replay: the identity of the object that is named before it, whatever that is then."""


class Agent(NamedTuple):
    """A thread, as programs name it."""

    tenant: int
    place: int


class LaneEvent(NamedTuple):
    """What a thread did, or the base (None): an instruction or an operation."""

    kind: str
    agent: Agent | None
    name: str
    operands: tuple[Any, ...]


def events_of(systems: Systems, lane: int, count: int) -> list[LaneEvent]:
    """What the first events of a campaign were in one lane."""
    found, threads = [], systems.monitors[lane].threads
    for event in systems.events[:count]:
        if event.lanes[lane]:
            operands = tuple(int(each[lane]) if isinstance(each, np.ndarray) else each for each in event.operands)
            agent = None
            if event.threads is not None:
                thread = threads[int(event.threads[lane])]
                agent = Agent(thread.tenant, thread.place)
            found.append(LaneEvent(event.kind, agent, event.name, operands))
    return found


# -- replays ---------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A system with what is done in it."""

    format: CapabilityFormat
    deployment: Deployment
    events: tuple[LaneEvent, ...]


class Player(Protocol):
    """Who takes steps, on the reference alone or on both implementations."""

    monitor: ObjectMonitor

    def instruction(self, thread: TenantThread, name: str, operands: tuple[Any, ...]) -> str:
        """An instruction; the cause for which it was refused, or nothing."""

    def operation(self, thread: TenantThread | None, name: str, operands: tuple[int, ...]) -> str:
        """An operation; its code."""


Watching = Callable[[Step], None]


class OnReference:
    """Steps of the reference, each given to whoever watches, those of the start too."""

    def __init__(self, case: Case, policy: ObjectPolicy, watch: Watching | None = None) -> None:
        memory = Memory(case.format, MEMORY_BASE, case.deployment.slots << SHAPE.slot_shift)
        self.monitor, self.watch = ObjectMonitor(memory, policy), watch
        for place in range(case.deployment.tenants):
            self.operation(None, "create", (place + 1, 2 * place, 2 * place + 1))

    def instruction(self, thread: TenantThread, name: str, operands: tuple[Any, ...]) -> str:
        if self.watch is None:
            trap = self.monitor.step(thread, name, operands)
        else:
            step, trap = object_system.instruction(self.monitor, thread, name, operands)
            self.watch(step)
        return "" if trap is None else trap.cause.name

    def operation(self, thread: TenantThread | None, name: str, operands: tuple[int, ...]) -> str:
        if self.watch is None:
            return perform(self.monitor, thread, name, *operands).name
        step = object_system.perform(self.monitor, thread, name, *operands)
        self.watch(step)
        return str(step.code.name)


class OnBoth:
    """Steps of both implementations in one lane. `systems.found` says where they differ."""

    def __init__(self, case: Case, policy: ObjectPolicy) -> None:
        self.systems = Systems(case.format, case.deployment, 1, policy, oracles=False)
        self.monitor = self.systems.monitors[0]

    def instruction(self, thread: TenantThread, name: str, operands: tuple[Any, ...]) -> str:
        self.systems.instruction(np.array([thread.number]), name, operands)
        return "" if self.systems.completed[0] else "trap"

    def operation(self, thread: TenantThread | None, name: str, operands: tuple[int, ...]) -> str:
        self.systems.operation(None if thread is None else np.array([thread.number]), name, operands)
        return Code.OK.name if self.systems.completed[0] else "refused"


class Replay:
    """Events taken by a player, and as lines of a program; those that can't be are left out."""

    def __init__(self, player: Player) -> None:
        self.player, self.monitor = player, player.monitor
        self.lines: list[str] = []

    def thread(self, agent: Agent) -> TenantThread | None:
        """The live thread that goes by this name."""
        alike = (each for each in self.monitor.threads if each.is_live and (each.tenant, each.place) == agent)
        return next(alike, None)

    def named(self, event: LaneEvent) -> LaneEvent:
        """The event with what stands for the identity that it names, if that is the object's."""
        if event.name != "map" or event.operands[1] != self.monitor.slots[event.operands[0]].identity:
            return event
        return event._replace(operands=(event.operands[0], IDENTITY, *event.operands[2:]))

    def execute(self, event: LaneEvent) -> bool:
        """Take an event's step; whether it could be."""
        thread = None if event.agent is None else self.thread(event.agent)
        if (thread is None) != (event.agent is None):
            return False
        who = BASE if event.agent is None else agent_text(name_of(event.agent.tenant), event.agent.place)
        if event.kind == "instruction":
            assert thread is not None
            text = " ".join(print_instruction(instruction_of(event.name, event.operands)).split())
            self.lines.append(f"{who}: {text}")
            cause = self.player.instruction(thread, event.name, event.operands)
            self.lines[-1] += f"  !trap {cause}" if cause else ""
            return True
        self.lines.append(f"{who}: {_text(event)}")
        numbers = [self.monitor.slots[event.operands[0]].identity if each is IDENTITY else each for each in event.operands]
        code = self.player.operation(thread, event.name, tuple(numbers))
        self.lines[-1] += "" if code == Code.OK.name else f"  -> refused {code}"
        return True


def _text(event: LaneEvent) -> str:
    """An operation with its operands, in the language."""
    kinds = (kind for _name, kind in OPERATIONS[event.name].operands)
    return f"{event.name} {', '.join(_operand(event, *each) for each in zip(kinds, event.operands, strict=True))}"


_RELOCATIONS = {number: name for name, number in KINDS.items()}


def _operand(event: LaneEvent, kind: OperandKind, value: Any) -> str:
    if value is IDENTITY:
        return f"identity[{event.operands[0]}]"
    if kind is OperandKind.RELOCATION and value in _RELOCATIONS:
        return _RELOCATIONS[value]
    return hex(value) if kind is OperandKind.IDENTITY or value >> 32 else str(value)


# -- failing programs ------------------------------------------------------------------------------------------------------


class Failing:
    """Whether programs fail in one way: an invariant that the last step violates, a difference after it, or a crash."""

    def __init__(self, policy: ObjectPolicy, what: str) -> None:
        self._policy, self._what = policy, what
        self.is_invariant = what in ORC_INVARIANTS

    def __call__(self, case: Case) -> bool:
        return self._violates(case) if self.is_invariant else self._differs(case)

    def _violates(self, case: Case) -> bool:
        """Whatever the last step violates, be it for the first time or not."""
        violated = set[str]()

        def look(step: Step) -> None:
            violated.update(found.invariant for found in OrcWatch().violated(step))

        player = OnReference(case, self._policy, None if case.events else look)
        replay = Replay(player)
        if not all(replay.execute(event) for event in case.events[:-1]):
            return False
        player.watch = look
        return all(replay.execute(event) for event in case.events[-1:]) and self._what in violated

    def _differs(self, case: Case) -> bool:
        both = OnBoth(case, self._policy)
        replay = Replay(both)
        try:
            if not all(replay.execute(event) for event in case.events):
                return False
        except CrashError:
            pass
        found, last = both.systems.found, len(both.systems.events)
        return len(replay.lines) == len(case.events) and any(
            each.what == self._what and each.events == last for each in found
        )

    def up_to_the_first(self, case: Case) -> Case:
        """The events up to the first that fails."""
        if not self.is_invariant:
            return case
        watch, violated = OrcWatch(), set[str]()
        player = OnReference(
            case, self._policy, lambda step: violated.update(found.invariant for found in watch.violated(step))
        )
        replay = Replay(player)
        for count, event in enumerate(case.events):
            if self._what in violated:
                return case._replace(events=case.events[:count])
            replay.execute(event)
        return case


# -- small programs --------------------------------------------------------------------------------------------------------


def reduced(policy: ObjectPolicy, case: Case, what: str) -> tuple[Case, int] | None:
    """A smaller case that fails in the same way, and how many were tried; None where this one doesn't by itself."""
    fails = Failing(policy, what)
    case = _named(policy, case)
    if not fails(case):
        return None
    small, tried, most = case, 0, MOST_REPLAYS if fails.is_invariant else MOST_PAIRS
    before: Case | None = None
    while small != before and tried < most:
        before = small

        def still_fails(events: Sequence[LaneEvent], whole: Case = small) -> bool:
            return fails(whole._replace(events=tuple(events)))

        reduction = StepReduction(small.events, still_fails, most - tried, _dropped_with, _simpler)
        small = fails.up_to_the_first(small._replace(events=tuple(reduction.run())))
        tried += reduction.tried
        small, count = _with_less(small, fails, most - tried)
        tried += count
    return small, tried


def _named(policy: ObjectPolicy, case: Case) -> Case:
    """The same case with what stands for identities, where they are the objects' own."""
    replay, events = Replay(OnReference(case, policy)), []
    for event in case.events:
        events.append(replay.named(event))
        try:
            replay.execute(event)
        except ERRORS:
            # The reference ends there, which is what was found.
            break
    return case._replace(events=(*events, *case.events[len(events) :]))


def _dropped_with(event: LaneEvent) -> str:
    return "" if event.agent is None else str(event.agent)


def _simpler(event: LaneEvent) -> Iterable[LaneEvent]:
    """The event with one of its numbers 0 or 1."""
    if event.kind == "instruction" and event.name != "li":
        return
    for place, value in enumerate(event.operands):
        if isinstance(value, int) and value > 1 and not (event.name == "li" and place == 0):
            for number in (0, 1):
                yield event._replace(operands=(*event.operands[:place], number, *event.operands[place + 1 :]))


def _with_less(case: Case, fails: Failing, most: int) -> tuple[Case, int]:
    """The same events in a system with fewer tenants, and how many were tried."""
    tried = 0
    while case.deployment.tenants > 1 and tried < most:
        other = case._replace(deployment=case.deployment._replace(tenants=case.deployment.tenants - 1))
        tried += 1
        if not all(
            event.agent is None or event.agent.tenant <= other.deployment.tenants for event in case.events
        ) or not fails(other):
            break
        case = other
    return case, tried


def program(policy: ObjectPolicy, case: Case) -> list[str]:
    """The events as the lines of a program, which says what it violates."""
    watch, violated = OrcWatch(), set[str]()
    player = OnReference(case, policy, lambda step: violated.update(found.invariant for found in watch.violated(step)))
    replay = Replay(player)
    for event in case.events:
        try:
            replay.execute(replay.named(event))
        except ERRORS:
            # The reference ends there, which is what was found.
            break
    names = [name for name in ORC_INVARIANTS if name in violated]
    expected = [f"expect violates {', '.join(names)}"] if names else []
    return [case.deployment.text(case.format, _policy(policy)), *expected, *replay.lines]


def _policy(policy: ObjectPolicy) -> list[str]:
    """The policy, as items of a system."""
    for name, preset in OBJECT_POLICIES.items():
        if preset == policy:
            return [] if policy == INTENDED else [f"policy {name}"]
    return [f"policy without {guard}" for guard in OBJECT_GUARDS if not getattr(policy, guard)]
