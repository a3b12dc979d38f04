"""Running a program of shared objects: instructions of tenants' threads, and operations, each held against O1 to O17.

What a tenant's library does is several of them, up to the first that is refused. `place`, with an object's file: it gets a
slot, stores the file's words there, submits the slot, and asks for the file's relocations and exports, one by one. `load`
publishes the object then. `call` binds an entry, keeps where to return to in c1, and invokes the pair.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from capvisor.dsl.errors import ProgramError
from capvisor.dsl.evaluate import evaluate
from capvisor.dsl.orc_check import OPTIONAL
from capvisor.dsl.orc_layout import File, Layout, word_bytes
from capvisor.dsl.orc_watch import OrcWatch, agent_text, describe_place
from capvisor.dsl.printer import instruction_of, print_action, print_expression, print_instruction, print_statement
from capvisor.dsl.runner import Failure, HartView, operand_report, operand_values, trap_message
from capvisor.dsl.syntax import (
    Agent,
    Assert,
    By,
    Call,
    Create,
    Destroy,
    Expression,
    Instruction,
    Measured,
    Name,
    Program,
    Text,
)
from capvisor.dsl.system_kinds import ENTER, LOAD, PLACE
from capvisor.dsl.system_runner import AgentError, Executed, Follower, SystemVerdict, Violation
from capvisor.model import object_system
from capvisor.model.machine import Trap
from capvisor.model.memory import Memory
from capvisor.model.object_tables import TenantThread
from capvisor.model.objects import ObjectMonitor
from capvisor.spec.object_policy import ObjectPolicy
from capvisor.spec.orc import OPERATIONS, RESULTS, Actor, Code, OperandKind, Relocation, SlotKind
from capvisor.spec.orc_invariants import Step

PLACE_REGISTER, VALUE_REGISTER, RETURN_REGISTER = 28, 29, 1
"""Where a library has the address of a word that it stores, and the word; and where a call is to return to."""

BASE_AGENT, AT_THE_START = "base", "at the start"
WORD = 1 << 64


class OrcFollower(Follower, Protocol):
    """Does what a run does once more. A thread is named by its number in the order of all threads' starts."""

    def instruction(self, thread: int, name: str, numbers: tuple[int, ...]) -> None:
        """One instruction of a thread."""

    def operation(self, thread: int | None, name: str, operands: tuple[int, ...]) -> None:
        """An operation; without a thread, the base's."""


class TableView:
    """What expressions can look up in a system, with the values of names: what the base knows."""

    def __init__(self, monitor: ObjectMonitor, values: Mapping[str, int]) -> None:
        self._monitor, self._names = monitor, values

    def name(self, name: str) -> int:
        return self._names[name]

    def element(self, name: str, *indices: int) -> int:
        """A slot's owner, an object's identity, or a word of memory."""
        if name in ("owner", "identity"):
            return int(getattr(self._monitor.slots[indices[0]], name))
        size = word_bytes(self._monitor.format)
        if not self._monitor.memory.contains(indices[0], size):
            raise AgentError(f"there is no memory at {indices[0]:#x}")
        return self._monitor.memory.read(indices[0], size)

    def register(self, number: int) -> int:
        """There are none."""
        raise LookupError(number)

    def field(self, _register: int, name: str) -> Any:
        """Nor fields of any."""
        raise LookupError(name)


class ThreadView(HartView):
    """The same for a thread, with its registers."""

    def __init__(self, monitor: ObjectMonitor, thread: TenantThread, values: Mapping[str, int]) -> None:
        super().__init__(thread.hart, values)
        self._tables = TableView(monitor, values)

    def element(self, name: str, *indices: int) -> int:
        """What the base knows of a slot, or a word of memory."""
        return self._tables.element(name, *indices)


class OrcRun:
    """A system of shared objects while its program runs."""

    def __init__(
        self,
        program: Program,
        values: Mapping[str, int],
        policy: ObjectPolicy,
        verdict: SystemVerdict,
        watch: Callable[[Executed], None],
        invariants: OrcWatch | None = None,
        follower: OrcFollower | None = None,
    ) -> None:
        self._program, self._values, self._verdict, self._watch = program, values, verdict, watch
        self._layout = Layout(program)
        self._names = {placed.number: name for name, placed in self._layout.tenants.items()}
        self.monitor = ObjectMonitor(Memory(self._layout.format, *self._layout.memory), policy)
        self._invariants = invariants or OrcWatch()
        self._follower = follower
        self._where: dict[int, str] = {}
        """Where each thread was last seen to execute, by its number."""
        self.line = 0
        self._statement = ""

    def set_up(self) -> None:
        """Create the tenants. Raises ProgramError where the base refuses."""
        system = self._program.system
        assert system is not None
        for tenant in system.tenants:
            self.line, self._statement = tenant.position.line, f"the start of {tenant.name}"
            placed = self._layout.tenants[tenant.name]
            step = self._perform(None, "create", *placed)
            if step.code is not Code.OK:
                message = f"the base refuses to create `{tenant.name}`: {step.code.name}"
                raise ProgramError(message, tenant.position, self._program.source, self._program.text)
            self._seen(None, BASE_AGENT, f"tenant {tenant.name}", AT_THE_START)

    def execute(self, statement: By | Create | Destroy | Measured) -> Failure | None:
        """Execute a statement; what went wrong."""
        self._statement = " ".join(print_statement(statement).split())
        assert isinstance(statement, By)  # the checker lets no other through
        try:
            return self._act(statement.agent, statement.action)
        except AgentError as error:
            return Failure(self.line, "agent", f"`{self._statement}`: {error}")

    def _act(self, agent: Agent, action: Any) -> Failure | None:
        thread = None if agent.name == BASE_AGENT else self._thread(agent)
        view: TableView | ThreadView
        if thread is None:
            view = TableView(self.monitor, self._values)
        else:
            view = ThreadView(self.monitor, thread, self._values)
        match action:
            case Assert(condition):
                return self._assert(view, condition)
            case Instruction():
                assert isinstance(view, ThreadView) and thread is not None
                return self._guest_instruction(thread, view, action)
            case Call():
                return self._call(thread, view, action)
        raise AssertionError(action)  # the checker lets nothing else through

    def _thread(self, agent: Agent) -> TenantThread:
        """The live thread of that name."""
        tenant, place = self._layout.tenants[agent.name].number, agent.thread - 1
        for thread in self.monitor.threads:
            if thread.is_live and (thread.tenant, thread.place) == (tenant, place):
                found: TenantThread = thread
                return found
        raise AgentError("there is no such thread")

    # -- what agents do ----------------------------------------------------------------------------------------------------

    def _assert(self, view: TableView | ThreadView, condition: Expression) -> Failure | None:
        self._verdict.assertions += 1
        if evaluate(condition, view):
            return None
        report = operand_report(condition, view)
        return Failure(self.line, "assertion", f"`assert {print_expression(condition)}` doesn't hold{report}")

    def _guest_instruction(self, thread: TenantThread, view: ThreadView, instruction: Instruction) -> Failure | None:
        expected = view.expected(instruction)
        trap = self._instruction(thread, instruction.name, operand_values(instruction, view))
        cause = None if trap is None else trap.cause.name
        if cause != expected:
            return Failure(self.line, "trap", trap_message(instruction, expected, cause))
        return None

    def _call(self, thread: TenantThread | None, view: TableView | ThreadView, call: Call) -> Failure | None:
        operands = []
        for operand in call.operands:
            assert not isinstance(operand, Text)
            number = evaluate(operand, view)
            if not 0 <= number < WORD:
                raise AgentError(f"{number:#x} isn't within 64 bits")
            operands.append(number)
        if call.name in (PLACE, LOAD):
            assert thread is not None
            code = self._place(thread, call.name == LOAD, self._file(call), *operands[1:])
        elif call.name == ENTER:
            assert thread is not None
            code = self._enter(thread, *operands)
        else:
            if len(operands) < len(OPERATIONS[call.name].operands):
                assert call.name in OPTIONAL
                operands += self._left_out(call)[len(operands) - 1 :]
            text = " ".join(print_action(replace(call, result=None)).split())
            code = self._operation(thread, text, call.name, *operands)
        expected = Code.OK if call.result is None else Code[call.result.code]
        if code is expected:
            return None
        message = f"`{self._statement}`: {_code_text(code)}, {_code_text(expected)} expected"
        return Failure(self.line, "result", message)

    def _file(self, call: Call) -> File:
        """The file that is meant by the name of an object."""
        named = call.operands[0]
        assert isinstance(named, Name)
        return self._layout.files[named.name]

    def _left_out(self, call: Call) -> list[int]:
        """What `map` takes where it isn't said: the identity of the object's file, and the first free slot."""
        named = call.operands[0]
        known = isinstance(named, Name) and named.name in self._layout.files
        identity = self._file(call).identity if known else 0
        slots = range(self.monitor.slot_count)
        free = next((slot for slot in slots if self.monitor.slots[slot].kind == SlotKind.FREE), None)
        if free is None:
            raise AgentError("no slot is free for the shadow")
        return [identity, free]

    def _enter(self, thread: TenantThread, slot: int, entry: int) -> Code:
        """What a library does to call an object."""
        code = self._operation(thread, f"bind {slot}, {entry}", "bind", slot, entry)
        if code is Code.OK:
            self._library(thread, "auipcc", RETURN_REGISTER, 0)
            self._library(thread, "cinvoke", *RESULTS)
        return code

    def _place(self, thread: TenantThread, publishes: bool, file: File, slot: int | None = None) -> Code:
        """What a library does with a file."""
        where = file.slot if slot is None else slot
        code = self._operation(thread, f"allocate {where}", "allocate", where)
        if code is not Code.OK:
            return code
        size = word_bytes(self.monitor.format)
        for offset, value in file.words.items():
            self._library(thread, "li", VALUE_REGISTER, value)
            self._library(thread, "cincoffsetimm", PLACE_REGISTER, RESULTS[0], offset)
            self._library(thread, "sd.cap" if size == DOUBLEWORD_BYTES else "sw.cap", VALUE_REGISTER, PLACE_REGISTER)
        asked: list[tuple[str, tuple[int, ...]]] = [("submit", (where, file.code, file.ro, file.data))]
        asked += [("relocate", (where, *entry)) for entry in file.relocations]
        asked += [("export", (where, place)) for place in file.exports]
        asked += [("publish", (where,))] * publishes
        for name, operands in asked:
            kinds = OPERATIONS[name].operands
            written = (_written(kind, number) for (_name, kind), number in zip(kinds, operands, strict=True))
            code = self._operation(thread, f"{name} {', '.join(written)}", name, *operands)
            if code is not Code.OK:
                return code
        return Code.OK

    def _library(self, thread: TenantThread, name: str, *numbers: int) -> None:
        """One instruction of a library. Raises AgentError where it is refused."""
        trap = self._instruction(thread, name, numbers)
        if trap is not None:
            text = " ".join(print_instruction(instruction_of(name, numbers)).split())
            raise AgentError(f"the library can't go on: `{text}`: {trap.cause.name}")

    # -- steps -------------------------------------------------------------------------------------------------------------

    def _instruction(self, thread: TenantThread, name: str, numbers: tuple[int, ...]) -> Trap | None:
        step, trap = object_system.instruction(self.monitor, thread, name, numbers)
        if self._follower is not None:
            self._follower.instruction(thread.number, name, numbers)
        self._verdict.operations += 1
        self._verdict.traps += trap is not None
        self._hold(step)
        outcome = "" if trap is None else f"refused: {trap.cause.name}"
        text = print_instruction(instruction_of(name, numbers))
        self._seen(thread, agent_text(self._names[thread.tenant], thread.place), text, outcome)
        return trap

    def _operation(self, thread: TenantThread | None, text: str, name: str, *operands: int) -> Code:
        step = self._perform(thread, name, *operands)
        self._verdict.calls += 1
        self._verdict.refusals += step.code is not Code.OK
        who = BASE_AGENT if thread is None else agent_text(self._names[thread.tenant], thread.place)
        self._seen(thread, who, text, f"-> {_code_text(step.code)}")
        code: Code = step.code
        return code

    def _perform(self, thread: TenantThread | None, name: str, *operands: int) -> Step:
        assert (thread is None) == (OPERATIONS[name].actor is Actor.BASE)
        step = object_system.perform(self.monitor, thread, name, *operands)
        if self._follower is not None:
            self._follower.operation(None if thread is None else thread.number, name, operands)
        self._hold(step)
        return step

    def _hold(self, step: Step) -> None:
        """Hold a step against the invariants."""
        for found in self._invariants.violated(step):
            place = describe_place(step, found, self._names)
            self._verdict.violations[found.invariant] = Violation(self.line, self._statement, place)

    def _seen(self, thread: TenantThread | None, who: str, text: str, outcome: str) -> None:
        """Show a step to who watches, and where its thread executes now if that is elsewhere than before."""
        crossing = None
        if thread is not None:
            now = self._executed(thread)
            before = self._where.get(thread.number, self._names[thread.tenant])
            crossing = None if now == before else (before, now)
            self._where[thread.number] = now
        self._watch(Executed(self.line, who, text, outcome, crossing, self.monitor, thread))

    def _executed(self, thread: TenantThread) -> str:
        """Whose code a thread executes: its tenant's, or an object's."""
        slot = self.monitor.slot_of(thread.hart.pcc.base)
        if self.monitor.slots[slot].kind != SlotKind.OBJECT:
            return self._names[thread.tenant]
        return next((name for name, file in self._layout.files.items() if file.slot == slot), f"object {slot}")


DOUBLEWORD_BYTES = 8
"""How large a word is that `sd` stores."""


def _written(kind: OperandKind, number: int) -> str:
    """An operand as a program has it."""
    return Relocation(number).name.lower() if kind is OperandKind.RELOCATION else str(number)


def _code_text(code: Code) -> str:
    return "ok" if code is Code.OK else f"refused {code.name}"
