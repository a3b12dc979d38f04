"""A lane of a campaign of cVMs as a program: its events replayed on the reference alone, made fewer, and written down."""

import itertools
from typing import Any, NamedTuple

import numpy as np

from capvisor.campaign.cvm_moves import MEMORY_BASE, MEMORY_BYTES
from capvisor.campaign.cvm_systems import Systems
from capvisor.dsl.invariant_watch import InvariantWatch
from capvisor.dsl.printer import instruction_of, print_instruction
from capvisor.model import system
from capvisor.model.memory import Memory
from capvisor.model.monitor import Monitor
from capvisor.spec.cvm import MONITOR, Code
from capvisor.spec.cvm_invariants import CVM_INVARIANTS, Step
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.policy import GUARDS, INTENDED, POLICIES, MonitorPolicy

MOST_REPLAYS = 1500
"""How often a program is tried with something left out."""


class LaneEvent(NamedTuple):
    """What was done in one lane."""

    kind: str
    thread: int
    name: str
    operands: tuple[Any, ...]


def events_of(systems: Systems, lane: int, count: int) -> list[LaneEvent]:
    """What the first events of a campaign were in one lane."""
    return [
        LaneEvent(event.kind, event.thread, event.name, tuple(_number(each, lane) for each in event.operands))
        for event in systems.events[:count]
        if event.lanes[lane]
    ]


def _number(operand: Any, lane: int) -> Any:
    return int(operand[lane]) if isinstance(operand, np.ndarray) else operand


class Replay:
    """Events on a reference of their own; those that can't be are left out."""

    def __init__(self, fmt: CapabilityFormat, policy: MonitorPolicy) -> None:
        self.monitor = Monitor(Memory(fmt, MEMORY_BASE, MEMORY_BYTES), policy)
        self.lines: list[str] = []
        self._agents: list[str] = []
        self._counts: dict[int, int] = {}
        self._known: set[int] = set()

    def execute(self, event: LaneEvent) -> list[Step]:
        """The steps of an event; none where it can't be."""
        if event.kind == "create":
            return self._create(*event.operands)
        if event.kind == "destroy":
            step, code = system.deploy(self.monitor, "destroy", *event.operands)
            self._say(f"deployer: destroy v{event.operands[0]}", _result(code))
            return [step]
        threads: Any = self.monitor.threads
        if event.thread >= len(threads):
            return []
        thread = threads[event.thread]
        if not thread.is_live or thread.waits or (thread.frame is not None) != (event.kind == "leave"):
            return []
        agent = self._agents[event.thread]
        if event.kind == "leave":
            step, code = system.leave(self.monitor, thread)
            self._say(f"{agent}: leave", _result(code))
        else:
            step, trap = system.instruction(self.monitor, thread, event.name, event.operands)
            text = " ".join(print_instruction(instruction_of(event.name, event.operands)).split())
            self._say(f"{agent}: {text}", "" if trap is None else f"!trap {trap.cause.name}")
        self._name_threads()
        return [step]

    def _create(self, cvm_id: int, base: int, size: int, is_purecap: bool, outer: int) -> list[Step]:
        step, code = system.deploy(self.monitor, "create", cvm_id, base, size, is_purecap=is_purecap, outer=outer)
        at = "" if cvm_id in self._known else f" at {base:#x}"
        self._known.add(cvm_id)
        inside, kind = f" in v{outer}" if outer != MONITOR else "", " purecap" if is_purecap else ""
        self._say(f"deployer: create v{cvm_id} size {size:#x}{at}{inside}{kind}", _result(code))
        if code is not Code.OK:
            return [step]
        self._counts[cvm_id] = 0
        started, _thread = system.deploy(self.monitor, "start_thread", cvm_id, 0)
        self._name_threads()
        return [step, started]

    def _name_threads(self) -> None:
        threads: Any = self.monitor.threads
        for thread in threads[len(self._agents) :]:
            number = self._counts[thread.home] = self._counts[thread.home] + 1
            self._agents.append(f"v{thread.home}" + (f"/{number}" if number > 1 else ""))

    def _say(self, text: str, outcome: str) -> None:
        self.lines.append(f"{text}  {outcome}".rstrip())


def _result(code: Code) -> str:
    return "-> ok" if code is Code.OK else f"-> refused {code.name}"


def _violates(fmt: CapabilityFormat, policy: MonitorPolicy, events: list[LaneEvent], name: str) -> bool:
    """Whether the last step violates an invariant."""
    replay, steps = Replay(fmt, policy), []
    try:
        for event in events:
            steps = replay.execute(event)
    except KeyError:
        # A thread of a cVM that isn't there any more.
        return False
    return any(found.invariant == name for step in steps for found in InvariantWatch().violated(step))


def reduced(fmt: CapabilityFormat, policy: MonitorPolicy, events: list[LaneEvent], name: str) -> list[LaneEvent]:
    """Fewer events whose last one violates an invariant still; the same ones where they don't show it by themselves."""
    if not _violates(fmt, policy, events, name):
        return events
    budget, size = MOST_REPLAYS, len(events) // 2
    while size and budget > 0:
        start, shrunk = 0, False
        while start < len(events) - 1 and budget > 0:
            fewer = events[:start] + events[min(start + size, len(events) - 1) :]
            budget -= 1
            if _violates(fmt, policy, fewer, name):
                events, shrunk = fewer, True
            else:
                start += size
        if not shrunk or size > 1:
            size //= 2
    return events


def program(fmt: CapabilityFormat, policy: MonitorPolicy, events: list[LaneEvent]) -> list[str]:
    """The events as the lines of a program of a system, which says what it violates."""
    replay, watch, violated = Replay(fmt, policy), InvariantWatch(), set()
    for event in events:
        for step in replay.execute(event):
            violated |= {found.invariant for found in watch.violated(step)}
    names = [name for name in CVM_INVARIANTS if name in violated]
    expected = [f"expect violates {', '.join(names)}"] if names else []
    at_start = list(itertools.takewhile(_is_made, replay.lines))
    regions = [line.removeprefix(_CREATE).removesuffix(_MADE) for line in at_start]
    items = [f"memory {MEMORY_BASE:#x} size {MEMORY_BYTES:#x}", f"format {fmt.name}", *_policy(policy), *regions]
    return [f"system cvm {{ {'; '.join(items)} }}", *expected, *replay.lines[len(at_start) :]]


_CREATE, _MADE = "deployer: create ", "  -> ok"


def _is_made(line: str) -> bool:
    """Whether a line creates a cVM for the first time, so that it can be there at the start."""
    return line.startswith(_CREATE) and line.endswith(_MADE) and " at " in line


def _policy(policy: MonitorPolicy) -> list[str]:
    """The policy, as an item of a system."""
    for name, preset in POLICIES.items():
        if preset == policy:
            return [] if policy == INTENDED else [f"policy {name}"]
    return [f"policy without {guard}" for guard in GUARDS if not getattr(policy, guard)]
