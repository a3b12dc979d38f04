"""A lane of a campaign of cVMs as a program: its events replayed, folded into calls, made fewer, and written down."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from capvisor.campaign.cvm_moves import MEMORY_BASE, MEMORY_BYTES
from capvisor.campaign.cvm_systems import Systems
from capvisor.campaign.programs import Failing, Programs, Written, with_operand
from capvisor.campaign.systems import CrashError
from capvisor.dsl.cvm_runner import CODE_REGISTER, DATA_REGISTER, INVOKED_DATA
from capvisor.dsl.cvm_watch import InvariantWatch
from capvisor.dsl.printer import instruction_of, print_instruction
from capvisor.dsl.system_kinds import CVM
from capvisor.model import system
from capvisor.model.memory import Memory
from capvisor.model.monitor import Monitor, Thread
from capvisor.spec.cvm import (
    ARGUMENT_REGISTERS,
    CALLS,
    CALLS_BY_NUMBER,
    MONITOR,
    NUMBER_REGISTER,
    STACK_POINTER,
    STORE_SLOTS,
    Code,
)
from capvisor.spec.cvm_invariants import Step
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.policy import MonitorPolicy
from capvisor.spec.registers import REGISTER_COUNT, SPECIAL_NUMBERS

DEPLOYER = "deployer"


class Held(NamedTuple):
    """What a register holds, as an argument of a call."""

    register: int


class LaneEvent(NamedTuple):
    """What an agent did: an instruction, a whole call, its first part (`enter`) or second (`leave`), a call of the outer
    cVM's (`outer`); or the deployer: `create`, `destroy`.
    """

    kind: str
    agent: str
    name: str
    operands: tuple[Any, ...]


class Case(NamedTuple):
    """What is done in a system; all of it, cVMs are created too."""

    format: CapabilityFormat
    events: tuple[LaneEvent, ...]


def _number(operand: Any, lane: int) -> Any:
    return int(operand[lane]) if isinstance(operand, np.ndarray) else operand


class _Names:
    """The names of threads, by number: the cVM's, and how many it had before."""

    def __init__(self) -> None:
        self.agents: list[str] = []
        self.called: dict[int, int] = {}
        """The cVMs that are called otherwise than by their own numbers."""
        self._counts: dict[int, int] = {}

    def created(self, cvm_id: int) -> None:
        """A cVM was created, perhaps anew: its threads are counted from the first."""
        self._counts[cvm_id] = 0

    def update(self, threads: Any) -> None:
        """Name the threads that are new."""
        for thread in threads[len(self.agents) :]:
            number = self._counts[thread.home] = self._counts.get(thread.home, 0) + 1
            name = f"v{self.called.get(thread.home, thread.home)}"
            self.agents.append(name + (f"/{number}" if number > 1 else ""))


# -- replays ---------------------------------------------------------------------------------------------------------------


class Player(Protocol):
    """Who takes steps, on the reference alone or on both implementations; what came of them: a trap's cause, or a code."""

    monitor: Monitor

    def instruction(self, number: int, name: str, operands: tuple[Any, ...]) -> str: ...

    def leave(self, number: int) -> str: ...

    def create(self, cvm_id: int, base: int, size: int, is_purecap: bool, outer: int) -> str: ...

    def destroy(self, cvm_id: int) -> str: ...


class OnReference:
    """Steps of the reference, each given to whoever watches, as `spec.cvm_invariants` speaks of them."""

    def __init__(
        self, fmt: CapabilityFormat, policy: MonitorPolicy, watch: Callable[[Step], None] = lambda _step: None
    ) -> None:
        self.monitor, self.watch = Monitor(Memory(fmt, MEMORY_BASE, MEMORY_BYTES), policy), watch

    def instruction(self, number: int, name: str, operands: tuple[Any, ...]) -> str:
        step, trap = system.instruction(self.monitor, self.monitor.threads[number], name, operands)
        self.watch(step)
        return "" if trap is None else trap.cause.name

    def leave(self, number: int) -> str:
        step, code = system.leave(self.monitor, self.monitor.threads[number])
        self.watch(step)
        return code.name

    def create(self, cvm_id: int, base: int, size: int, is_purecap: bool, outer: int) -> str:
        step, code = system.deploy(self.monitor, "create", cvm_id, base, size, is_purecap=is_purecap, outer=outer)
        self.watch(step)
        if code is Code.OK:
            self.watch(system.deploy(self.monitor, "start_thread", cvm_id, 0)[0])
        return str(code.name)

    def destroy(self, cvm_id: int) -> str:
        step, code = system.deploy(self.monitor, "destroy", cvm_id)
        self.watch(step)
        return str(code.name)


class OnBoth:
    """Steps of both implementations in one lane. `systems.found` says where they differ."""

    def __init__(self, fmt: CapabilityFormat, policy: MonitorPolicy) -> None:
        self.systems = Systems(fmt, MEMORY_BASE, MEMORY_BYTES, 1, policy, oracles=False)
        self.monitor = self.systems.monitors[0]

    def _outcome(self) -> str:
        return self.systems.events[-1].outcomes.get(0, "")

    def instruction(self, number: int, name: str, operands: tuple[Any, ...]) -> str:
        self.systems.instruction(number, name, operands)
        return self._outcome()

    def leave(self, number: int) -> str:
        self.systems.leave(number)
        return self._outcome()

    def create(self, cvm_id: int, base: int, size: int, is_purecap: bool, outer: int) -> str:
        self.systems.create(cvm_id, np.full(1, base, np.uint64), size, is_purecap, outer)
        return self._outcome()

    def destroy(self, cvm_id: int) -> str:
        self.systems.destroy(cvm_id)
        return self._outcome()


class Replay:
    """Events taken by a player, and as lines of a program; those that can't be are left out.

    As in a program, cVMs are numbered in the order in which they are first named; they are called by what they were.
    """

    def __init__(self, player: Player) -> None:
        self.player, self.monitor = player, player.monitor
        self.lines: list[str] = []
        self._names = _Names()
        self._numbers: dict[int, int] = {}

    def thread(self, agent: str) -> Thread | None:
        """The thread that goes by this name now."""
        agents = self._names.agents
        found: Any = next((number for number in reversed(range(len(agents))) if agents[number] == agent), None)
        return None if found is None else self.monitor.threads[found]

    def execute(self, event: LaneEvent) -> None:
        """Take an event's steps, where it can be. Raises KeyError for what a program can't say."""
        if event.kind == "create":
            self._create(*event.operands)
            return
        if event.kind == "destroy":
            (cvm_id,) = event.operands
            if cvm_id in self._numbers:
                code = self.player.destroy(self._numbers[cvm_id])
                self._say(event.agent, f"destroy v{cvm_id}", _result(code))
            return
        thread = self.thread(event.agent)
        if thread is None or not thread.is_live or thread.waits or (thread.frame is not None) != (event.kind == "leave"):
            return
        match event.kind:
            case "leave":
                self._say(event.agent, "leave", _result(self.player.leave(thread.number)))
            case "call" | "enter":
                self._call(thread, event)
            case "outer":
                self._outer(thread, event)
            case _:
                cause = self.player.instruction(thread.number, event.name, event.operands)
                text = " ".join(print_instruction(instruction_of(event.name, event.operands)).split())
                self._say(event.agent, text, f"!trap {cause}" if cause else "")
        self._names.update(self.monitor.threads)

    def _create(self, cvm_id: int, base: int, size: int, is_purecap: bool, outer: int) -> None:
        if outer != MONITOR and outer not in self._numbers:
            return
        at = "" if cvm_id in self._numbers else f" at {base:#x}"
        number = self._numbers.setdefault(cvm_id, len(self._numbers) + 1)
        self._names.called[number] = cvm_id
        code = self.player.create(number, base, size, is_purecap, self._numbers.get(outer, MONITOR))
        inside, kind = f" in v{outer}" if outer != MONITOR else "", " purecap" if is_purecap else ""
        self._say(DEPLOYER, f"create v{cvm_id} size {size:#x}{at}{inside}{kind}", _result(code))
        if code == Code.OK.name:
            self._names.created(number)
            self._names.update(self.monitor.threads)

    def _call(self, thread: Thread, event: LaneEvent) -> None:
        """What a library does for a call, as `dsl.system_runner` has it."""
        if self.monitor.regions[thread.domain].outer != MONITOR:
            return
        for register, value in zip(ARGUMENT_REGISTERS, event.operands, strict=False):
            by_register = isinstance(value, Held)
            self._library(thread, "cmove" if by_register else "li", register, value[0] if by_register else value)
        self._library(thread, "li", NUMBER_REGISTER, CALLS[event.name].number)
        self._invoke(thread)
        if thread.frame is None:
            raise KeyError(event.name)
        arguments = ", ".join(f"c{each[0]}" if isinstance(each, Held) else hex(each) for each in event.operands)
        text = " ".join([event.name, arguments]).rstrip()
        if event.kind == "enter":
            self._say(event.agent, f"enter {text}", "")
        else:
            self._say(event.agent, text, _result(self.player.leave(thread.number)))

    def _outer(self, thread: Thread, event: LaneEvent) -> None:
        """A nested cVM calls the one around it, whose first instruction installs its data."""
        outer = self.monitor.regions[thread.domain].outer
        if outer == MONITOR:
            return
        self._invoke(thread)
        self._library(thread, "cspecialrw", 0, SPECIAL_NUMBERS["ddc"], INVOKED_DATA)
        self._say(event.agent, f"enter v{self._names.called[outer]}", "")

    def _invoke(self, thread: Thread) -> None:
        row, granule = self.monitor.regions[thread.domain], self.monitor.format.capability_bytes
        store = row.top - len(STORE_SLOTS) * granule
        for register, slot in ((CODE_REGISTER, "call code"), (DATA_REGISTER, "call data")):
            self._library(thread, "li", register, store + STORE_SLOTS.index(slot) * granule)
            if row.is_purecap:
                self._library(thread, "csetaddr", register, STACK_POINTER, register)
                self._library(thread, "clc", register, 0, register)
            else:
                self._library(thread, "lc.ddc", register, register)
        self._library(thread, "cinvoke", CODE_REGISTER, DATA_REGISTER)

    def _library(self, thread: Thread, name: str, *operands: int) -> None:
        """One instruction of a library. Raises KeyError where it is refused: a program can't say that."""
        if cause := self.player.instruction(thread.number, name, operands):
            raise KeyError(cause)

    def _say(self, agent: str, text: str, outcome: str) -> None:
        self.lines.append(f"{agent}: {text}  {outcome}".rstrip())


def _result(code: str) -> str:
    return "-> ok" if code == Code.OK.name else f"-> refused {code}"


# -- programs --------------------------------------------------------------------------------------------------------------


class CvmPrograms(Programs[Case]):
    """What may be left out of a system of cVMs, and how it is said."""

    kind = CVM
    most_replays, most_pairs = 600, 150
    rearranges_first = True

    def case_of(self, systems: Systems, start: None, lane: int, count: int) -> Case:  # noqa: ARG002 - always the same
        names = _Names()
        found = []
        for event in systems.events[:count]:
            names.update(systems.monitors[lane].threads[: int(event.threads[lane])])  # type: ignore[index]
            if not event.lanes[lane]:
                continue
            operands = tuple(_number(each, lane) for each in event.operands)
            if event.kind == "create":
                found.append(LaneEvent("create", DEPLOYER, "", operands))
                if event.outcomes[lane] == Code.OK.name:
                    names.created(operands[0])
            elif event.kind == "destroy":
                found.append(LaneEvent("destroy", DEPLOYER, "", operands))
            else:
                found.append(LaneEvent(event.kind, names.agents[event.thread], event.name, operands))
        return Case(systems.format, tuple(found))

    def violated(self, policy: MonitorPolicy, case: Case, *, only_last: bool = False) -> Iterator[set[str]]:
        yield set()
        watch, violated = InvariantWatch(), set[str]()
        player = OnReference(case.format, policy)
        replay = Replay(player)
        for left, event in zip(range(len(case.events))[::-1], case.events, strict=True):
            if not (only_last and left):
                player.watch = lambda step: violated.update(found.invariant for found in watch.violated(step))
            violated.clear()
            if not _can_be(replay, [event]):
                return
            yield set(violated)

    def on_both(self, policy: MonitorPolicy, case: Case) -> Systems | None:
        both = OnBoth(case.format, policy)
        try:
            can_be = _can_be(Replay(both), case.events)
        except CrashError:
            can_be = True
        return both.systems if can_be else None

    def agent_of(self, event: LaneEvent) -> str:
        return "" if event.agent == DEPLOYER else event.agent

    def simpler(self, event: LaneEvent) -> Iterable[LaneEvent]:
        """The event with one of its numbers 0 or 1; what is created stays as it is."""
        if event.kind in ("create", "destroy"):
            return
        is_number = event.kind != "instruction" or event.name == "li"
        for place, value in enumerate(event.operands):
            if is_number and isinstance(value, int) and value > 1 and not (event.name == "li" and place == 0):
                for number in (0, 1):
                    yield event._replace(operands=with_operand(event.operands, place, number))

    def rearranged(self, fails: Failing[Case], case: Case, most: int) -> tuple[Case, int]:  # noqa: ARG002 - they are few
        """Invocations as the calls that they are: what stood in the way of one may be gone now."""
        tried = 0
        for fold in reversed(folds(case, fails.policy)):
            fewer = case._replace(events=(*case.events[: fold.start], fold.instead, *case.events[fold.stop :]))
            tried += 1
            if fails(fewer):
                case = fewer
        return case, tried

    def written(self, policy: MonitorPolicy, case: Case) -> Written:
        watch, violated = InvariantWatch(), set[str]()
        player = OnReference(
            case.format, policy, lambda step: violated.update(found.invariant for found in watch.violated(step))
        )
        replay = Replay(player)
        for event in case.events:
            replay.execute(event)
        at_start = list(itertools.takewhile(_is_made, replay.lines))
        regions = [line.removeprefix(_CREATE).removesuffix(_MADE) for line in at_start]
        memory = f"memory {MEMORY_BASE:#x} size {MEMORY_BYTES:#x}"
        items = [memory, f"format {case.format.name}", *self.policy_items(policy), *regions]
        return Written(f"system cvm {{ {'; '.join(items)} }}", replay.lines[len(at_start) :], violated)


PROGRAMS = CvmPrograms()


def _can_be(replay: Replay, events: Sequence[LaneEvent]) -> bool:
    """Whether a program can say what the events are; they are taken."""
    try:
        for event in events:
            replay.execute(event)
    except KeyError:
        return False
    return True


class Fold(NamedTuple):
    """Events, from one place to another, that are one of a program."""

    start: int
    stop: int
    instead: LaneEvent


def folds(case: Case, policy: MonitorPolicy) -> list[Fold]:
    """The invocations of the monitor, and of outer cVMs: what was put into registers before isn't needed for a call."""
    replay, found, events = Replay(OnReference(case.format, policy)), [], case.events
    for place, event in enumerate(events):
        thread = replay.thread(event.agent)
        if event.name != "cinvoke" or thread is None:
            replay.execute(event)
            continue
        was_inside, domain, registers = thread.frame is not None, thread.domain, list(cast(Any, thread.hart.registers))
        replay.execute(event)
        following = events[place + 1] if place + 1 < len(events) else None
        if not was_inside and thread.frame is not None and thread.frame.number in CALLS_BY_NUMBER:
            row = CALLS_BY_NUMBER[thread.frame.number]
            words: list[Any] = list(thread.frame.arguments[: len(row.arguments)])
            if words and thread.frame.has_handle:
                words[0] = Held(_holder(registers))
            is_whole = following is not None and following[:2] == ("leave", event.agent)
            instead = LaneEvent("call" if is_whole else "enter", event.agent, row.name, tuple(words))
            found.append(Fold(place, place + 1 + is_whole, instead))
        elif thread.frame is None and thread.domain != domain and _installs_data(following, event.agent):
            found.append(Fold(place, place + 2, LaneEvent("outer", event.agent, "", ())))
    return found


def _holder(registers: list[Any]) -> int:
    """Another register that holds what the first argument's does; that one itself if there is none."""
    first = ARGUMENT_REGISTERS[0]
    others = [number for number in range(1, REGISTER_COUNT) if number != first and registers[number] == registers[first]]
    return others[0] if others else first


def _installs_data(event: LaneEvent | None, agent: str) -> bool:
    installs = ("cspecialrw", (0, SPECIAL_NUMBERS["ddc"], INVOKED_DATA))
    return event is not None and event.agent == agent and (event.name, event.operands) == installs


_CREATE, _MADE = f"{DEPLOYER}: create ", "  -> ok"


def _is_made(line: str) -> bool:
    """Whether a line creates a cVM for the first time, so that it can be there at the start."""
    return line.startswith(_CREATE) and line.endswith(_MADE) and " at " in line
