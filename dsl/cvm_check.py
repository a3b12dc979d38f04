"""What must be right about a program of cVMs before it is run: who acts, which calls there are, what they take."""

from collections.abc import Iterable

from capvisor.dsl.check import RESERVED, count, listed, suggest
from capvisor.dsl.check_system import SystemChecker
from capvisor.dsl.cvm_layout import Layout, key_number
from capvisor.dsl.evaluate import memory_of
from capvisor.dsl.syntax import (
    Agent,
    Assert,
    Call,
    Create,
    Destroy,
    Enter,
    Expression,
    Fault,
    FieldOf,
    Guest,
    Instruction,
    Leave,
    Name,
    Position,
    Program,
    Region,
    Register,
    Setting,
    System,
    Text,
    walk,
)
from capvisor.dsl.system_kinds import SystemKind
from capvisor.spec import cvm
from capvisor.spec.cvm import ARGUMENT_REGISTERS, CALLS, ArgumentKind, Code
from capvisor.spec.registers import REGISTER_NUMBERS

DEPLOYER = "deployer"
_WORDS = RESERVED | {DEPLOYER, "system", "policy", "format", "expect"}
"""What no cVM can be called."""


class CvmChecker(SystemChecker):
    """Walks through the statements of a program of cVMs."""

    def __init__(self, program: Program, kind: SystemKind) -> None:
        super().__init__(program, kind)
        self._layout: Layout | None = None
        self._keys: dict[int, str] = {}

    def _set_up(self, system: System) -> None:
        assert self._format is not None
        self._layout = Layout(self._format, memory_of(self._program)[0])
        numbers: tuple[Setting | Guest, ...] = (*system.settings, *system.guests)
        for each in numbers:
            raise self._error(f"a cVM is `{each.name} size SIZE`, and a system of them has no numbers", each.position)
        if not system.regions:
            raise self._error("a system needs someone to act in it: `alice size 4K`", system.position)
        for region in system.regions:
            if region.name in self._layout.placed:
                raise self._error(f"`{region.name}` is said twice", region.position)
            self._region(region)

    def _region(self, region: Region) -> None:
        """A region is placed when it is said."""
        assert self._layout is not None
        name = region.name
        if name in REGISTER_NUMBERS or name in _WORDS or not name.isidentifier():
            what = "a register" if name in REGISTER_NUMBERS else "a word of the language"
            raise self._error(
                f"`{name}` can't name a cVM: it is {what if name.isidentifier() else 'no plain name'}", region.position
            )
        if self._constant(region.size, "a region's size") <= 0:
            raise self._error("a region has at least one byte", region.size.position)
        if region.at is not None:
            self._number(region.at, "`at` needs a number")
            self._no_registers(region.at, "`at`")
            for part in walk(region.at):
                if isinstance(part, Name) and part.name in self._lets:
                    raise self._error("`at` can't use a `let`: regions are placed before values are chosen", part.position)
        if region.outer is not None:
            self._known(region.outer, region.position)
        try:
            self._layout.add(region)
        except ValueError as error:
            raise self._error(str(error), region.position) from None

    def _known(self, name: str, position: Position) -> None:
        """The name must be that of a cVM."""
        assert self._layout is not None
        placed = self._layout.placed
        if name not in placed:
            known = suggest(name, placed) or f": there are {listed(placed) or 'none yet'}"
            raise self._error(f"no cVM is called `{name}`{known}", position)

    def _value_names(self) -> Iterable[str]:
        assert self._layout is not None
        return (*self._lets, *self._layout.names())

    # -- who does what -----------------------------------------------------------------------------------------------------

    def _by(self, agent: Agent, action: Instruction | Assert | Call | Enter | Leave) -> None:
        self._agent(agent)
        self._action(action)

    def _deployed(self, statement: Create | Destroy) -> None:
        match statement:
            case Create(region, result):
                self._region(region)
                self._result(result, tuple(Code), "creating a cVM")
            case Destroy(name, result):
                self._known(name, statement.position)
                self._result(result, tuple(Code), "destroying a cVM")

    def _agent(self, agent: Agent) -> None:
        self._known(agent.name, agent.position)
        if agent.thread < 1:
            raise self._error("threads are numbered from 1", agent.position)

    def _action(self, action: Instruction | Assert | Call | Enter | Leave) -> None:
        match action:
            case Instruction():
                self._instruction(action)
            case Assert(condition):
                self._condition(condition, "`assert` needs a condition")
            case Call(fault=Fault() as fault):
                raise self._error("in a system of kind `cvm`, nothing gives a fault: say `-> refused CODE`", fault.position)
            case Call(name, operands, result):
                self._arguments(name, operands, action.position)
                self._result(result, (Code.OK, *CALLS[name].all_refusals), f"`{name}`")
            case Enter(name, operands):
                self._enter(name, operands, action.position)
            case Leave(result):
                self._result(result, tuple(Code), "a call")

    def _enter(self, name: str, operands: tuple[Expression | Text, ...], position: Position) -> None:
        assert self._layout is not None
        if name in CALLS:
            self._arguments(name, operands, position)
            return
        if name not in self._layout.placed:
            known = suggest(name, (*CALLS, *self._layout.placed))
            raise self._error(f"`{name}` is no call and no cVM{known}", position)
        if operands:
            raise self._error(f"`{name}` is a cVM: it is entered with the registers as they are", operands[0].position)

    def _arguments(self, name: str, operands: tuple[Expression | Text, ...], position: Position) -> None:
        """The operands of a call, against its row of the table."""
        row = CALLS[name]
        if len(operands) != len(row.arguments):
            takes = f"`{name}` takes `{listed(each for each, _kind in row.arguments)}`" if row.arguments else f"`{name}`"
            raise self._error(f"{takes}: {count(len(row.arguments), 'operand')}, found {len(operands)}", position)
        for place, ((argument, kind), operand) in enumerate(zip(row.arguments, operands, strict=True)):
            if isinstance(operand, Text):
                self._text(argument, kind, operand)
            elif isinstance(operand, Register):
                if operand.number in ARGUMENT_REGISTERS[:place]:
                    message = f"x{operand.number} holds an earlier argument by then: use another register"
                    raise self._error(message, operand.position)
            else:
                self._number(operand, f"`{argument}` needs a number")
                if any(isinstance(part, Register | FieldOf) for part in walk(operand)):
                    message = f"`{argument}` is a register, or a number without any: compute it in a register first"
                    raise self._error(message, operand.position)

    def _text(self, argument: str, kind: ArgumentKind, operand: Text) -> None:
        if kind is not ArgumentKind.KEY:
            raise self._error(f"`{argument}` is no key: it can't be text", operand.position)
        number = key_number(operand.text)
        other = self._keys.setdefault(number, operand.text)
        if other != operand.text:
            message = f'"{operand.text}" and "{other}" stand for the same key, {number} of {cvm.KEYS}: change one of them'
            raise self._error(message, operand.position)
