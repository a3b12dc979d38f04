"""What must be right about a program whose agents perform the operations of a table, and no instructions: names, operands.

A kind's own checker says who acts, what a system of the kind is made of, and which row of the table an operation has.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from capvisor.dsl.check import count, listed, suggest
from capvisor.dsl.check_system import SystemChecker
from capvisor.dsl.errors import ProgramError
from capvisor.dsl.syntax import (
    Element,
    Expression,
    FieldOf,
    Instruction,
    Let,
    Name,
    Position,
    Program,
    Register,
    Setting,
    Text,
    walk,
)
from capvisor.dsl.system_kinds import SystemKind

VALUE = "value"
"""The word that the agent's last operation gave."""


class OperationChecker(SystemChecker):
    """Walks through the statements of such a program."""

    _tables: Mapping[str, tuple[str, ...]] = {}
    """What expressions can look up, and by what."""
    _states: tuple[str, ...] = (VALUE,)
    """The names whose values change while a program runs."""

    def __init__(self, program: Program, kind: SystemKind) -> None:
        super().__init__(program, kind)
        self._constants: dict[str, int] = {}
        """What names are worth before the program runs."""

    # -- what there is -----------------------------------------------------------------------------------------------------

    def _settings(
        self, settings: Iterable[Setting], ranges: Mapping[str, tuple[int, int]], what: str, others: str
    ) -> dict[str, int]:
        """The numbers that are given for something, by name: each of a known name, in its range, once.

        `others` ends the message for an unknown name: what else there could be.
        """
        numbers: dict[str, int] = {}
        for setting in settings:
            name = setting.name
            if name not in ranges:
                known = suggest(name, ranges) or f": there are {listed(ranges)}{others}"
                raise self._error(f"{what} has no number `{name}`{known}", setting.position)
            if name in numbers:
                raise self._error(f"`{name}` is said twice", setting.position)
            numbers[name] = self._constant(setting.value, f"`{name}`")
            low, high = ranges[name]
            if not low <= numbers[name] <= high:
                raise self._error(f"`{name}` is {low} to {high}", setting.value.position)
        return numbers

    # -- names -------------------------------------------------------------------------------------------------------------

    def _let(self, let: Let) -> None:
        if let.name in self._constants or let.name in self._states:
            raise self._error(f"`{let.name}` can't name a value: it is a word of the language", let.position)
        super()._let(let)

    def _value_names(self) -> Iterable[str]:
        return (*self._lets, *self._constants, *self._states)

    def _no_registers(self, expression: Expression, where: str) -> None:
        for part in walk(expression):
            if isinstance(part, Element) or (isinstance(part, Name) and part.name in self._states):
                message = f"{where} can't read `{part.name}`: its value is chosen before the program runs"
                raise self._error(message, part.position)
        super()._no_registers(expression, where)

    def _is_condition(self, expression: Expression) -> bool:
        if isinstance(expression, Register | FieldOf):
            message = f"a system {self._kind.name} has no registers: use names, such as `{VALUE}`"
            raise self._error(message, expression.position)
        return super()._is_condition(expression)

    def _element(self, element: Element) -> bool:
        if element.name not in self._tables:
            known = suggest(element.name, self._tables) or f": there are {listed(self._tables)}"
            raise self._error(f"there is no table `{element.name}`{known}", element.position)
        keys = self._tables[element.name]
        if len(element.indices) != len(keys):
            raise self._error(f"`{element.name}` is by {listed(keys)}: `{element.name}[{listed(keys)}]`", element.position)
        for index in element.indices:
            self._number(index, f"`{element.name}` needs a number")
        return False

    # -- operations --------------------------------------------------------------------------------------------------------

    def _unknown(self, instruction: Instruction) -> ProgramError:
        """What is wrong with an operation that isn't in the table."""
        known = suggest(instruction.name, self._kind.calls) or f": `capvisor list {self._kind.name}-operations` shows them"
        return self._error(f"unknown operation `{instruction.name}`{known}", instruction.position)

    def _written(
        self,
        name: str,
        wanted: tuple[tuple[str, Any], ...],
        operands: tuple[Expression | Text, ...],
        position: Position,
        optional: int = 0,
    ) -> None:
        """The operands of an operation, against those that it takes; so many of the last may be left out."""
        if not len(wanted) - optional <= len(operands) <= len(wanted):
            takes = f"`{name}` takes `{listed(each for each, _kind in wanted)}`" if wanted else f"`{name}`"
            last = "the last" if optional == 1 else f"the last {optional}"
            left_out = f", {last} may be left out" if optional else ""
            raise self._error(f"{takes}: {count(len(wanted), 'operand')}{left_out}, found {len(operands)}", position)
        for (each, _kind), operand in zip(wanted, operands, strict=False):
            if isinstance(operand, Text):
                raise self._error(f"`{each}` is a number: it can't be text", operand.position)
            self._number(operand, f"`{each}` needs a number")
