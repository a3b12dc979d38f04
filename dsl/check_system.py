"""What must be right about a program of any kind of system: its order, its system's settings, results, what it violates.

What a kind's own statements mean is for the checker that its row names.
"""

from collections.abc import Iterable
from enum import Enum
from pkgutil import resolve_name

from capvisor.dsl.check import Checker, listed, suggest
from capvisor.dsl.errors import ProgramError
from capvisor.dsl.evaluate import DEFAULT_FORMAT, memory_of
from capvisor.dsl.syntax import (
    Agent,
    Assert,
    By,
    Call,
    Create,
    Destroy,
    Enter,
    Initial,
    Instruction,
    Leave,
    Let,
    Machine,
    Measured,
    Object,
    Part,
    Program,
    Result,
    Span,
    System,
    Tenant,
    Violates,
)
from capvisor.dsl.system_kinds import SYSTEM_KINDS, SystemKind, examples
from capvisor.spec.formats import FORMATS
from capvisor.spec.operations import OPERATIONS


def check_system(program: Program) -> None:
    """Raises ProgramError for the first thing that is wrong with a program of a system."""
    system = program.system
    assert system is not None
    if system.kind not in SYSTEM_KINDS:
        known = suggest(system.kind, SYSTEM_KINDS) or f": there is {listed(SYSTEM_KINDS)}"
        message = f"unknown kind of system `{system.kind}`{known}"
        raise ProgramError(message, system.position, program.source, program.text)
    kind = SYSTEM_KINDS[system.kind]
    checker: SystemChecker = resolve_name(kind.checker)(program, kind)
    checker.check()


class SystemChecker(Checker):
    """Walks through the statements of a program of a system."""

    _has_objects = False
    """Whether there are tenants and objects in systems of the kind."""
    _has_parts = False
    """Whether there are devices and the like."""
    _has_layers = False
    """Whether it is made of other systems."""
    _repeats = False
    """Whether an operation may be repeated until it is refused."""

    def __init__(self, program: Program, kind: SystemKind) -> None:
        super().__init__(program)
        self._kind = kind
        self._is_set_up = False
        self._violates: Violates | None = None

    def check(self) -> None:
        """Look at every statement, in order."""
        for statement in self._program.statements:
            if not isinstance(statement, System) and not self._is_set_up:
                raise self._error(f"the system must come first: {examples()}", statement.position)
            match statement:
                case System():
                    self._system(statement)
                case Let():
                    self._let(statement)
                case By(agent, action):
                    self._by(agent, action)
                case Create() | Destroy():
                    self._deployed(statement)
                case Violates():
                    self._expected(statement)
                case Measured():
                    self._measured(statement)
                case Machine():
                    raise self._error("a program has a system or a machine, not both", statement.position)
                case Initial():
                    message = "`given` is for a machine: a system's registers are what the system starts with"
                    raise self._error(message, statement.position)
                case Instruction() | Assert():
                    raise self._error("say who does that, as in `alice: li x5, 1`", statement.position)

    # -- the system --------------------------------------------------------------------------------------------------------

    def _system(self, system: System) -> None:
        if self._is_set_up:
            raise self._error("a program has one system", system.position)
        name = system.format or DEFAULT_FORMAT
        if name not in FORMATS:
            raise self._error(f"unknown capability format `{name}`{suggest(name, FORMATS)}", system.position)
        self._format = FORMATS[name]
        self._memory(system.memory_base, system.memory_size, "the system's memory")
        if system.memory_base is not None and memory_of(self._program)[0] == 0:
            raise self._error("a system's memory can't begin at address 0", system.memory_base.position)
        policies, guards = self._kind.policies, self._kind.guards
        if system.policy is not None and system.policy not in policies:
            known = suggest(system.policy, policies) or f": there are {listed(policies)}"
            raise self._error(f"unknown policy `{system.policy}`{known}", system.position)
        for guard in system.without:
            if guard not in guards:
                known = suggest(guard, guards) or f": there are {listed(guards)}"
                raise self._error(f"unknown guard `{guard}`{known}", system.position)
        others: tuple[Tenant | Object, ...] = (*system.tenants, *system.objects)
        if system.layers and not self._has_layers:
            layer = system.layers[0]
            message = f"a system of kind `{self._kind.name}` has no layers, as `{layer.kind}`: `{self._kind.example}`"
            raise self._error(message, layer.position)
        parts: tuple[Span | Part, ...] = (*system.spans, *system.parts)
        if parts and not self._has_parts:
            message = f"a system of kind `{self._kind.name}` has no `{parts[0].name}` of this form: `{self._kind.example}`"
            raise self._error(message, parts[0].position)
        if others and not self._has_objects:
            message = f"a system of kind `{self._kind.name}` has no tenants and objects: `{self._kind.example}`"
            raise self._error(message, others[0].position)
        self._is_set_up = True
        self._set_up(system)

    def _operation_names(self) -> Iterable[str]:
        return (*OPERATIONS, *self._kind.calls)

    def _set_up(self, system: System) -> None:
        """What the system has at the start."""
        raise NotImplementedError

    # -- who does what -----------------------------------------------------------------------------------------------------

    def _by(self, agent: Agent, action: Instruction | Assert | Call | Enter | Leave) -> None:
        """What an agent does."""
        raise NotImplementedError

    def _deployed(self, statement: Create | Destroy) -> None:
        """What the deployer does."""
        raise self._error(f"nothing is deployed in a system of kind `{self._kind.name}`", statement.position)

    def _measured(self, statement: Measured) -> None:
        """What a statement says of how much something took."""
        raise self._error(f"nothing walks in a system of kind `{self._kind.name}`", statement.position)

    def _result(self, result: Result | None, possible: Iterable[Enum], what: str) -> None:
        if result is None:
            return
        if result.is_repeated and not self._repeats:
            raise self._error("a result is `-> ok` or `-> refused CODE`", result.position)
        codes = self._kind.codes
        if result.code not in codes.__members__:
            names = [name for name in codes.__members__ if name != "OK"]
            known = suggest(result.code, names) or f": there are {listed(names)}"
            raise self._error(f"unknown code `{result.code}`{known}", result.position)
        if codes[result.code] not in possible:
            names = [code.name for code in possible if code.name != "OK"]
            reasons = f"only with {listed(names)}" if names else "with no code"
            raise self._error(f"{what} is never refused with {result.code}: {reasons}", result.position)

    def _expected(self, statement: Violates) -> None:
        if self._violates is not None:
            line = self._violates.position.line
            raise self._error(f"what is violated is said in one line, here in line {line}", statement.position)
        self._violates = statement
        for name in statement.names:
            if name not in self._kind.invariants:
                known = suggest(name, self._kind.invariants) or f": there are {listed(self._kind.invariants)}"
                raise self._error(f"unknown invariant `{name}`{known}", statement.position)
