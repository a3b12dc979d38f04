"""Running a program whose agents perform the operations of a table: each statement is an operation or several, and each of
these a step that is held against the invariants.

A kind's own run makes the system, says who performs an operation and how one that ended is compared with what is expected.
"""

from collections.abc import Callable, Mapping
from typing import Any

from capvisor.dsl.evaluate import evaluate
from capvisor.dsl.operation_check import VALUE
from capvisor.dsl.printer import print_agent, print_expression, print_statement
from capvisor.dsl.runner import Failure, operand_report
from capvisor.dsl.syntax import Agent, Assert, By, Call, Create, Destroy, Expression, Measured, Program, Text
from capvisor.dsl.system_runner import AgentError, Executed, Follower, SystemVerdict, Violation, Watch

AT_THE_START = "at the start"
WORD = 1 << 64


class OperationFollower(Follower):
    """Does what a run does once more."""

    def step(self, name: str, operands: tuple[Any, ...]) -> None:
        """An operation."""


class OperationView:
    """The values of names, and the word that the agent was given last: the environment of expressions."""

    def __init__(self, values: Mapping[str, int], value: int | None) -> None:
        self._values, self._value = values, value

    def name(self, name: str) -> int:
        if name != VALUE:
            return self._values[name]
        if self._value is None:
            raise AgentError(f"no operation has given it a `{VALUE}` yet")
        return self._value

    def register(self, number: int) -> int:
        """There are none."""
        raise LookupError(number)

    def field(self, _register: int, name: str) -> int:
        """Nor fields of any."""
        raise LookupError(name)


class OperationRun:
    """A system while its program runs."""

    system: Any

    def __init__(
        self,
        program: Program,
        values: Mapping[str, int],
        verdict: SystemVerdict,
        watch: Callable[[Executed], None],
        invariants: Watch,
        follower: OperationFollower | None,
    ) -> None:
        self._program, self._values, self._verdict, self._watch = program, values, verdict, watch
        self._invariants, self._follower = invariants, follower
        self._given: dict[str, int] = {}
        """By agent, the word that it was given last."""
        self.line = 0
        self._statement = ""

    # -- what a kind says --------------------------------------------------------------------------------------------------

    def _view(self, agent: Agent) -> OperationView:
        """What an agent's expressions are about."""
        raise NotImplementedError

    def _operation(self, agent: Agent, call: Call) -> Failure | None:
        """Perform an operation, and compare how it ended; what went wrong."""
        raise NotImplementedError

    def _measured(self, statement: Measured) -> Failure | None:
        """Compare how much something took; what went wrong."""
        raise NotImplementedError

    def _take(self, name: str, *operands: Any) -> Any:
        """A step of the system."""
        raise NotImplementedError

    def _place(self, step: Any, found: Any) -> str:
        """Where an invariant doesn't hold, in words."""
        raise NotImplementedError

    # -- statements --------------------------------------------------------------------------------------------------------

    def execute(self, statement: By | Create | Destroy | Measured) -> Failure | None:
        """Execute a statement; what went wrong."""
        self._statement = " ".join(print_statement(statement).split())
        try:
            match statement:
                case By(agent, Assert(condition)):
                    return self._assert(agent, condition)
                case By(agent, Call() as call):
                    return self._operation(agent, call)
                case Measured():
                    return self._measured(statement)
        except AgentError as error:
            return Failure(self.line, "agent", f"`{self._statement}`: {error}")
        raise AssertionError(statement)  # the checker lets nothing else through

    def _assert(self, agent: Agent, condition: Expression) -> Failure | None:
        self._verdict.assertions += 1
        view = self._view(agent)
        if evaluate(condition, view):
            return None
        report = operand_report(condition, view)
        return Failure(self.line, "assertion", f"`assert {print_expression(condition)}` doesn't hold{report}")

    def _operands(self, call: Call, wanted: tuple[tuple[str, Any], ...], view: OperationView) -> list[int]:
        """What a call's operands are worth. Raises AgentError for what isn't a word."""
        operands = []
        for (name, _kind), operand in zip(wanted, call.operands, strict=False):
            assert not isinstance(operand, Text)
            number = evaluate(operand, view)
            if not 0 <= number < WORD:
                raise AgentError(f"`{name}` is {number:#x}, and not within 64 bits")
            operands.append(number)
        return operands

    # -- steps -------------------------------------------------------------------------------------------------------------

    def _perform(self, name: str, *operands: Any) -> Any:
        """A step, held against the invariants."""
        step = self._take(name, *operands)
        if self._follower is not None:
            self._follower.step(name, operands)
        for found in self._invariants.violated(step):
            self._verdict.violations[found.invariant] = Violation(self.line, self._statement, self._place(step, found))
        return step

    def _seen(self, agent: Agent, text: str, outcome: str, value: int | None) -> None:
        """Show a step to who watches, and keep the word that it gave."""
        who = print_agent(agent)
        if value is not None:
            self._given[who] = value
        given = "" if value is None else f" = {value:#x}"
        self._watch(Executed(self.line, who[:-1], text, f"{outcome}{given}", None, self.system, None))


def code_text(code: Any) -> str:
    """How an operation ended, in the words of the language."""
    return "ok" if code.name == "OK" else f"refused {code.name}"
