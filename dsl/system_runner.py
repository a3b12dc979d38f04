"""Running a program of a system: every agent's statements in the order in which they are written, on the reference.

What is the same for every kind of system is here: the order of things, expectations of violations, the verdict. A kind's row
names the class that does the rest, a `SystemRun`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, NamedTuple, Protocol

from capvisor.dsl.runner import Failure, Verdict, numbered
from capvisor.dsl.syntax import By, Create, Destroy, Measured, Program, Violates
from capvisor.dsl.system import constants_of, policy_of
from capvisor.dsl.system_kinds import kind_of


@dataclass(frozen=True)
class Violation:
    """An invariant that a statement violated: where it stands, and the place that it doesn't hold at."""

    line: int
    statement: str
    place: str


@dataclass
class SystemVerdict(Verdict):
    """The outcome of a run of a system: beside what every verdict has, its calls, violations and costs."""

    policy: str = ""
    calls: int = 0
    refusals: int = 0
    violations: dict[str, Violation] = field(default_factory=dict)
    costs: dict[str, Any] = field(default_factory=dict)
    """By mechanism: a dataclass of counts."""


class Executed(NamedTuple):
    """One step, for those who watch: who took it, what it was, what came of it, and whose turn it is if that has changed."""

    line: int
    agent: str
    text: str
    outcome: str
    crossing: tuple[str, str] | None
    system: Any
    """The reference's system after the step."""
    thread: Any
    """The thread of it that took the step, if one did."""


class Watch(Protocol):
    """Holds a system's steps against the invariants of its kind, one after the other, from the first on.

    It is made with the steps of another run, which violated nothing: what this run begins with of them
    needn't be looked at again.
    """

    taken: list[Any]
    """The steps so far."""

    def __init__(self, harmless: Sequence[Any] = ()) -> None: ...

    def violated(self, step: Any) -> Sequence[Any]:
        """The invariants that the step violates, and that no step before it did."""


class Follower(Protocol):
    """Does the steps of a run once more, on another implementation; a kind's run knows how to tell it of them."""

    @property
    def compared(self) -> int:
        """How many states were compared."""

    def difference(self) -> str | None:
        """The first step whose states differ, and how; None where there is none."""


class SystemRun(Protocol):
    """A system while its program runs: what the class is that a kind names as its `runner`."""

    line: int
    """Where the statement stands that is executed."""

    def __init__(
        self,
        program: Program,
        values: Mapping[str, int],
        policy: Any,
        verdict: "SystemVerdict",
        watch: Callable[["Executed"], None],
        invariants: Any = None,
        follower: Any = None,
    ) -> None: ...

    def set_up(self) -> None:
        """Make what the system has at the start. Raises ProgramError where that is refused."""

    def execute(self, statement: By | Create | Destroy | Measured) -> Failure | None:
        """Execute a statement; what went wrong."""


class AgentError(Exception):
    """An agent can't do what a statement says: the message says why."""


def run_system(
    program: Program,
    values: dict[str, int],
    policy: tuple[str, Any] | None = None,
    watch: Callable[[Executed], None] | None = None,
    follower: Follower | None = None,
) -> SystemVerdict:
    """Run a program of a system with one value for each let, up to its first failure; under another policy if one is given.

    `watch` sees every step; `follower`, of the same memory and policy, does it too. Raises ProgramError where the system
    can't be set up.
    """
    assert program.system is not None
    name, chosen = policy or policy_of(program.system)
    verdict = SystemVerdict(program, values, policy=name)
    run = run_of(program, values, chosen, verdict, watch, None, follower)
    expected = next((each for each in program.statements if isinstance(each, Violates)), Violates(()))
    run.set_up()
    for line, statement in numbered(program):
        run.line = line
        failure = run.execute(statement) if isinstance(statement, By | Create | Destroy | Measured) else None
        verdict.failure = _differs(run.line, follower) or _unexpected(verdict, expected) or failure
        verdict.comparisons = 0 if follower is None else follower.compared
        if verdict.failure is not None:
            return verdict
    missing = [name for name in expected.names if name not in verdict.violations]
    if missing:
        message = f"{_title(program, missing[0])} was to be violated, and holds at every step"
        verdict.failure = Failure(expected.position.line, "violation", message)
    return verdict


def _differs(line: int, follower: Follower | None) -> Failure | None:
    """A difference between the implementations."""
    found = None if follower is None else follower.difference()
    return None if found is None else Failure(line, "implementations differ", found)


def _unexpected(verdict: SystemVerdict, expected: Violates) -> Failure | None:
    """A violation that the program doesn't expect."""
    for name, violation in verdict.violations.items():
        if name not in expected.names:
            message = f"`{violation.statement}` violates {_title(verdict.program, name)} at {violation.place}"
            return Failure(violation.line, "violation", message, kind_of(verdict.program).invariants[name].statement)
    return None


def _title(program: Program, name: str) -> str:
    return f"{name} ({kind_of(program).invariants[name].title})"


def run_of(
    program: Program,
    values: Mapping[str, int],
    policy: Any,
    verdict: SystemVerdict,
    watch: Callable[[Executed], None] | None = None,
    invariants: Watch | None = None,
    follower: Follower | None = None,
) -> SystemRun:
    """The run of a program on a system of its kind, not set up yet."""
    known = {**values, **constants_of(program)}
    run: SystemRun = resolve_name(kind_of(program).runner)(
        program, known, policy, verdict, watch or (lambda _step: None), invariants, follower
    )
    return run
