"""Running a program of cVMs.

A call is what the library of a cVM does: it loads the sealed pair from the capability store, puts the call's number and
arguments where they belong, and invokes the pair; then comes the second part, the monitor's. Every step of it is a step of
the system, and is held against all invariants.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from capvisor.dsl.costs import Costs, WatchedMemory
from capvisor.dsl.cvm_layout import key_number, layout_of
from capvisor.dsl.cvm_watch import InvariantWatch, describe_place
from capvisor.dsl.errors import ProgramError
from capvisor.dsl.evaluate import evaluate, format_of, memory_of
from capvisor.dsl.printer import instruction_of, print_expression, print_instruction, print_statement
from capvisor.dsl.runner import Failure, HartView, operand_report, operand_values, trap_message
from capvisor.dsl.syntax import (
    Agent,
    Assert,
    By,
    Call,
    Create,
    Destroy,
    Enter,
    Expression,
    Instruction,
    Leave,
    Measured,
    Program,
    Region,
    Register,
    Result,
    Text,
)
from capvisor.dsl.system_runner import AgentError, Executed, SystemVerdict, Violation
from capvisor.model import system
from capvisor.model.machine import Trap
from capvisor.model.monitor import Monitor, Thread, ThreadList
from capvisor.spec.cvm import (
    ARGUMENT_REGISTERS,
    CALLS,
    CALLS_BY_NUMBER,
    MAX_CVMS,
    MONITOR,
    NUMBER_REGISTER,
    STACK_POINTER,
    STORE_SLOTS,
    Code,
)
from capvisor.spec.cvm_invariants import Step
from capvisor.spec.policy import MonitorPolicy

CODE_REGISTER, DATA_REGISTER, INVOKED_DATA = 28, 29, 31
"""Where a library loads the pair that it calls by, and where CInvoke leaves the data capability."""

AT_THE_MONITOR, AT_AN_END = "monitor", "end"
"""Whom a thread runs for while it is in the monitor, and when it has ended."""


class CvmFollower(Protocol):
    """Does the steps of a run once more, on another implementation, and compares whole states after each: a `Follower`."""

    def instruction(self, thread: int, name: str, numbers: tuple[int, ...]) -> None:
        """One instruction of a thread."""

    def leave(self, thread: int) -> None:
        """The second part of a call."""

    def create(self, cvm_id: int, base: int, size: int, *, is_purecap: bool, outer: int) -> None:
        """A cVM, and its first thread."""

    def destroy(self, cvm_id: int) -> None:
        """The end of a cVM."""


class CvmRun:
    """A system of cVMs while its program runs."""

    def __init__(
        self,
        program: Program,
        values: Mapping[str, int],
        policy: MonitorPolicy,
        verdict: SystemVerdict,
        watch: Callable[[Executed], None],
        invariants: InvariantWatch | None = None,
        follower: CvmFollower | None = None,
    ) -> None:
        self._program, self._values, self._verdict, self._watch = program, values, verdict, watch
        self._layout = layout_of(program).placed
        self._names = {placed.number: name for name, placed in self._layout.items()}
        self._memory = WatchedMemory(format_of(program), *memory_of(program))
        self._all = ThreadList()
        self.monitor = Monitor(self._memory, policy, threads=self._all)
        self._costs = Costs(verdict.costs)
        self._invariants = invariants or InvariantWatch()
        self._follower = follower
        self._threads: dict[Agent, Thread] = {}
        self._agents: dict[int, Agent] = {}
        """The name of each thread, by its number in the monitor."""
        self.line = 0
        self._statement = ""

    def set_up(self) -> None:
        """Create what the system has at the start. Raises ProgramError where the monitor refuses."""
        assert self._program.system is not None
        for region in self._program.system.regions:
            self.line, self._statement = region.position.line, f"the start of {region.name}"
            code = self._create(region)
            if code is not Code.OK:
                message = f"the monitor refuses to create `{region.name}`: {code.name}{self._why_refused(region, code)}"
                raise ProgramError(message, region.position, self._program.source, self._program.text)

    def execute(self, statement: By | Create | Destroy | Measured) -> Failure | None:
        """Execute a statement; what went wrong."""
        self._statement = " ".join(print_statement(statement).split())
        try:
            match statement:
                case By(agent, action):
                    return self._act(agent, action)
                case Create(region, result):
                    code = self._create(region)
                    return self._answered(code, result, self._why_refused(region, code))
                case Destroy(name, result):
                    code = self._deploy("destroy", f"destroy {name}", self._layout[name].number)
                    if self._follower is not None:
                        self._follower.destroy(self._layout[name].number)
                    return self._answered(code, result)
                case Measured():
                    raise AssertionError(statement)  # the checker lets none through
        except AgentError as error:
            return Failure(self.line, "agent", f"`{self._statement}`: {error}")

    # -- what agents do ----------------------------------------------------------------------------------------------------

    def _act(self, agent: Agent, action: Instruction | Assert | Call | Enter | Leave) -> Failure | None:
        thread = self._thread(agent)
        view = HartView(thread.hart, self._values)
        match action:
            case Assert(condition):
                self._verdict.assertions += 1
                if not view.holds(condition):
                    report = operand_report(condition, view)
                    return Failure(self.line, "assertion", f"`assert {print_expression(condition)}` doesn't hold{report}")
                return None
            case Leave(result):
                return self._answered(self._leave(thread), result)
            case Instruction():
                return self._guest_instruction(thread, view, action)
            case Enter(name) if name not in CALLS:
                self._enter_outer(thread, name)
                return None
            case Call(name, operands) | Enter(name, operands):
                self._call(thread, view, name, operands)
                return self._answered(self._leave(thread), action.result) if isinstance(action, Call) else None

    def _thread(self, agent: Agent) -> Thread:
        """The thread of that name."""
        if agent not in self._threads:
            raise AgentError("there is no such thread (yet)")
        thread = self._threads[agent]
        if not thread.is_live:
            raise AgentError("the thread has ended")
        return thread

    def _check_runs(self, thread: Thread) -> None:
        """A thread that is in the monitor, or waits, executes nothing."""
        if thread.frame is not None:
            raise AgentError("the thread is in the monitor: `leave` comes first")
        if thread.waits:
            raise AgentError("the thread waits for a call to be over")

    def _guest_instruction(self, thread: Thread, view: HartView, instruction: Instruction) -> Failure | None:
        self._check_runs(thread)
        expected = view.expected(instruction)
        numbers = operand_values(instruction, view)
        trap = self._instruction(thread, instruction.name, numbers)
        cause = None if trap is None else trap.cause.name
        if cause != expected:
            return Failure(self.line, "trap", trap_message(instruction, expected, cause))
        return None

    def _call(self, thread: Thread, view: HartView, name: str, operands: tuple[Expression | Text, ...]) -> None:
        """The first part of a call: what the library does."""
        self._check_runs(thread)
        outer = self.monitor.regions[thread.domain].outer
        if outer != MONITOR:
            raise AgentError(f"its calls go to the cVM around it: `enter {self._names[outer]}`")
        for register, operand in zip(ARGUMENT_REGISTERS, operands, strict=False):
            if isinstance(operand, Register):
                self._library(thread, name, "cmove", register, operand.number)
            else:
                value = key_number(operand.text) if isinstance(operand, Text) else evaluate(operand, view)
                self._library(thread, name, "li", register, value)
        self._library(thread, name, "li", NUMBER_REGISTER, CALLS[name].number)
        self._invoke(thread, name)
        if thread.frame is None:
            raise AgentError("what the library has loaded from the capability store doesn't lead to the monitor")

    def _enter_outer(self, thread: Thread, name: str) -> None:
        """Invoke the pair of the cVM around a nested one, whose first instruction installs its data as DDC."""
        self._check_runs(thread)
        if self.monitor.regions[thread.domain].outer != self._layout[name].number:
            raise AgentError(f"the thread doesn't run for a cVM nested in `{name}`")
        self._invoke(thread, "")
        self._library(thread, "", "cspecialrw", 0, 1, INVOKED_DATA)

    def _invoke(self, thread: Thread, call: str) -> None:
        """Load the sealed pair that a cVM calls by from its store, and invoke it."""
        row, granule = self.monitor.regions[thread.domain], self.monitor.format.capability_bytes
        store = row.top - len(STORE_SLOTS) * granule
        for register, slot in ((CODE_REGISTER, "call code"), (DATA_REGISTER, "call data")):
            address = store + STORE_SLOTS.index(slot) * granule
            self._library(thread, call, "li", register, address)
            if row.is_purecap:
                self._library(thread, call, "csetaddr", register, STACK_POINTER, register)
                self._library(thread, call, "clc", register, 0, register)
            else:
                self._library(thread, call, "lc.ddc", register, register)
        self._library(thread, call, "cinvoke", CODE_REGISTER, DATA_REGISTER)

    def _library(self, thread: Thread, call: str, name: str, *numbers: int) -> None:
        """One instruction of the library for a call, "" for one of the outer cVM. Raises AgentError where it is refused."""
        trap = self._instruction(thread, name, numbers, call)
        if trap is not None:
            text = " ".join(print_instruction(instruction_of(name, numbers)).split())
            raise AgentError(f"the library can't make the call: `{text}`: {trap.cause.name}")

    # -- steps -------------------------------------------------------------------------------------------------------------

    def _instruction(self, thread: Thread, name: str, numbers: tuple[int, ...], call: str | None = None) -> Trap | None:
        before = self._domain(thread)
        self._memory.accesses.clear()
        step, trap = system.instruction(self.monitor, thread, name, numbers)
        if self._follower is not None:
            self._follower.instruction(thread.number, name, numbers)
        self._verdict.operations += 1
        self._verdict.traps += trap is not None
        if call is None and thread.frame is not None and thread.frame.number in CALLS_BY_NUMBER:
            call = CALLS_BY_NUMBER[thread.frame.number].name
        outcome = "" if trap is None else f"refused: {trap.cause.name}"
        self._costs.instruction(self.monitor, thread, name, call, self._memory.accesses)
        self._done(step, print_instruction(instruction_of(name, numbers)), outcome, before, call)
        return trap

    def _leave(self, thread: Thread) -> Code:
        if thread.frame is None:
            raise AgentError("the thread isn't in the monitor")
        before = self._domain(thread)
        self._memory.accesses.clear()
        step, code = system.leave(self.monitor, thread)
        if self._follower is not None:
            self._follower.leave(thread.number)
        self._verdict.calls += 1
        self._verdict.refusals += code is not Code.OK
        self._costs.call(step.name, self._memory.accesses)
        self._done(step, step.name or "an unknown call", f"-> {_code_text(code)}", before, step.name)
        return code

    def _create(self, region: Region) -> Code:
        """Create a cVM, and start its first thread."""
        placed = self._layout[region.name]
        code = self._deploy(
            "create",
            f"create {region.name}",
            placed.number,
            placed.base,
            placed.size,
            is_purecap=placed.is_purecap,
            outer=placed.outer,
        )
        if self._follower is not None:
            self._follower.create(placed.number, placed.base, placed.size, is_purecap=placed.is_purecap, outer=placed.outer)
        if code is Code.OK:
            self._threads = {agent: thread for agent, thread in self._threads.items() if agent.name != region.name}
            self._deploy("start_thread", f"start {region.name}", placed.number, 0)
        return code

    def _why_refused(self, region: Region, code: Code) -> str:
        """Why the monitor refuses to create a cVM, for the end of a message."""
        if code is Code.FULL:
            has_room = self.monitor.regions.count() < MAX_CVMS
            return "; there is no object type left for it" if has_room else f"; its table holds {MAX_CVMS} cVMs"
        if code is not Code.RANGE:
            return ""
        placed, memory = self._layout[region.name], self._memory
        where = f"; [{placed.base:#x}, {placed.top:#x})"
        if placed.size <= placed.top - placed.store:
            return (
                f"; {placed.size} bytes aren't more than its store of capabilities, which takes {placed.top - placed.store}"
            )
        if not memory.contains(placed.base, placed.size):
            return f"{where} isn't within memory, [{memory.base:#x}, {memory.base + memory.size_bytes:#x})"
        around = self._layout.get(region.outer or "")
        if around is not None and (around.is_purecap or placed.is_purecap):
            return f"; only hybrid code nests, and only in hybrid code: one of `{region.name}`, `{region.outer}` is purecap"
        if around is not None and not around.base <= placed.base <= placed.top <= around.store:
            room = f"[{around.base:#x}, {around.store:#x})"
            return f"{where} isn't within `{region.outer}`, below its store of capabilities: {room}"
        regions, apart = self.monitor.regions, (placed.number, placed.outer)
        other = regions.find(
            lambda number, row: row.is_live and number not in apart and placed.base < row.top and row.base < placed.top
        )
        if other:
            return f"{where} overlaps `{self._names[other]}`, [{regions[other].base:#x}, {regions[other].top:#x})"
        return f"{where} aren't bounds that a capability can have: give it another `size`, or a rounder `at`"

    def _deploy(self, name: str, text: str, *arguments: int, **options: int) -> Code:
        step, result = system.deploy(self.monitor, name, *arguments, **options)
        code = result if isinstance(result, Code) else Code.OK
        self._done(step, text, f"-> {_code_text(code)}", "deployer", None)
        return code

    def _done(self, step: Step, text: str, outcome: str, before: str, call: str | None) -> None:
        """After a step: threads that it started, invariants, costs, and whoever watches."""
        started = list(self._name_threads())
        thread: Thread | None = step.thread
        agent = "deployer" if thread is None else _agent_text(self._agents[thread.number])
        after = before if thread is None else self._domain(thread)
        crossing = None if after == before else (before, after)
        for found in self._invariants.violated(step):
            threads = {number: _agent_text(agent) for number, agent in self._agents.items()}
            place = describe_place(step, found.place, self._names, threads)
            self._verdict.violations[found.invariant] = Violation(self.line, self._statement, place)
        self._costs.crossed(call, (crossing is not None) + (len(started) if thread is not None else 0))
        self._watch(Executed(self.line, agent, text, outcome, crossing, self.monitor, thread))
        for other in started:
            home = None if thread is None else (AT_THE_MONITOR, self._domain(other))
            name = _agent_text(self._agents[other.number])
            self._watch(Executed(self.line, name, "starts", "", home, self.monitor, other))

    def _name_threads(self) -> Iterator[Thread]:
        """Give the threads that are new their names: the cVM's, and how many it had before."""
        for thread in self._all[len(self._agents) :]:
            name = self._names[thread.home]
            agent = Agent(name, 1 + sum(each.name == name for each in self._threads))
            self._threads[agent] = thread
            self._agents[thread.number] = agent
            yield thread

    def _domain(self, thread: Thread) -> str:
        """Whom a thread runs for."""
        if not thread.is_live:
            return AT_AN_END
        return self._names[thread.domain] if thread.frame is None else AT_THE_MONITOR

    def _answered(self, code: Code, result: Result | None, why: str = "") -> Failure | None:
        """Whether a call was answered as the program says; `ok` if it says nothing."""
        expected = Code.OK if result is None else Code[result.code]
        if code is expected:
            return None
        return Failure(self.line, "result", f"`{self._statement}`: {_code_text(code)}, {_code_text(expected)} expected{why}")


def _code_text(code: Code) -> str:
    return "ok" if code is Code.OK else f"refused {code.name}"


def _agent_text(agent: Agent) -> str:
    return agent.name if agent.thread == 1 else f"{agent.name}/{agent.thread}"
