"""A lane of a campaign of shared objects as a program: its events replayed, made fewer, and written down."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from capvisor.campaign.orc_systems import Deployment, Systems, name_of
from capvisor.campaign.programs import Programs, Written, with_operand
from capvisor.campaign.systems import ERRORS, CrashError
from capvisor.dsl.orc_layout import KINDS, MEMORY_BASE
from capvisor.dsl.orc_watch import OrcWatch, agent_text
from capvisor.dsl.printer import instruction_of, print_instruction
from capvisor.dsl.system_kinds import ORC
from capvisor.model import object_system
from capvisor.model.memory import Memory
from capvisor.model.object_operations import perform
from capvisor.model.object_tables import TenantThread
from capvisor.model.objects import ObjectMonitor
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.object_policy import ObjectPolicy
from capvisor.spec.orc import OPERATIONS, SHAPE, Code, OperandKind
from capvisor.spec.orc_invariants import Step

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


class Case(NamedTuple):
    """A system with what is done in it."""

    format: CapabilityFormat
    deployment: Deployment
    events: tuple[LaneEvent, ...]


# -- replays ---------------------------------------------------------------------------------------------------------------


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


# -- programs --------------------------------------------------------------------------------------------------------------


class OrcPrograms(Programs[Case]):
    """What may be left out of a system of shared objects, and how it is said."""

    kind = ORC
    most_replays = 600

    def case_of(self, systems: Systems, start: Deployment, lane: int, count: int) -> Case:
        found, threads = [], systems.monitors[lane].threads
        for event in systems.events[:count]:
            if event.lanes[lane]:
                operands = tuple(int(each[lane]) if isinstance(each, np.ndarray) else each for each in event.operands)
                agent = None
                if event.threads is not None:
                    thread = threads[int(event.threads[lane])]
                    agent = Agent(thread.tenant, thread.place)
                found.append(LaneEvent(event.kind, agent, event.name, operands))
        return Case(systems.format, start, tuple(found))

    def violated(self, policy: ObjectPolicy, case: Case, *, only_last: bool = False) -> Iterator[set[str]]:
        watch, violated = OrcWatch(), set[str]()

        def look(step: Step) -> None:
            # Of the last event alone, whatever it violates, be it for the first time or not.
            seen = OrcWatch() if only_last else watch
            violated.update(found.invariant for found in seen.violated(step))

        player = OnReference(case, policy, None if only_last and case.events else look)
        replay = Replay(player)
        yield set(violated)
        for left, event in zip(range(len(case.events))[::-1], case.events, strict=True):
            violated.clear()
            player.watch = None if only_last and left else look
            if not replay.execute(event):
                return
            yield set(violated)

    def on_both(self, policy: ObjectPolicy, case: Case) -> Systems | None:
        both = OnBoth(case, policy)
        replay = Replay(both)
        try:
            if not all(replay.execute(event) for event in case.events):
                return None
        except CrashError:
            pass
        return both.systems if len(replay.lines) == len(case.events) else None

    def prepared(self, policy: ObjectPolicy, case: Case) -> Case:
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

    def agent_of(self, event: LaneEvent) -> str:
        return "" if event.agent is None else str(event.agent)

    def simpler(self, event: LaneEvent) -> Iterable[LaneEvent]:
        """The event with one of its numbers 0 or 1."""
        if event.kind == "instruction" and event.name != "li":
            return
        for place, value in enumerate(event.operands):
            if isinstance(value, int) and value > 1 and not (event.name == "li" and place == 0):
                for number in (0, 1):
                    yield event._replace(operands=with_operand(event.operands, place, number))

    def plainer(self, case: Case) -> Iterator[Case]:
        """The same events with a tenant less, if it does nothing."""
        fewer = case.deployment.tenants - 1
        if fewer and all(event.agent is None or event.agent.tenant <= fewer for event in case.events):
            yield case._replace(deployment=case.deployment._replace(tenants=fewer))

    def written(self, policy: ObjectPolicy, case: Case) -> Written:
        watch, violated = OrcWatch(), set[str]()
        player = OnReference(case, policy, lambda step: violated.update(found.invariant for found in watch.violated(step)))
        replay = Replay(player)
        for event in case.events:
            try:
                replay.execute(replay.named(event))
            except ERRORS:
                # The reference ends there, which is what was found.
                break
        return Written(case.deployment.text(case.format, self.policy_items(policy)), replay.lines, violated)


PROGRAMS = OrcPrograms()
