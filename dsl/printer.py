"""From the typed tree to text, in the one form that `capvisor fmt` gives: parsing it gives the same tree."""

from collections.abc import Callable

from capvisor.dsl.syntax import (
    Agent,
    Any,
    Assert,
    Binary,
    By,
    Call,
    Create,
    Destroy,
    Element,
    Enter,
    Expectation,
    Export,
    Expression,
    Fault,
    FieldOf,
    Guest,
    Initial,
    Instruction,
    Integer,
    Leave,
    Let,
    Line,
    Machine,
    Measured,
    Name,
    Object,
    ObjectItem,
    Operator,
    Part,
    Program,
    Region,
    Register,
    Relocation,
    Result,
    Setting,
    Span,
    Statement,
    System,
    Text,
    Truth,
    Unary,
    Violates,
    Word,
)
from capvisor.spec.operations import OPERATIONS, OperandKind

_MNEMONIC_COLUMNS = 11
_COMMENT_GAP = "  "
_LINE_COLUMNS = 120

# How tightly each operator binds, as in the grammar; the left side of a binary operator may be as loose as itself.
_BINDING: dict[Operator, int] = {
    Operator.IMPLIES: 1,
    Operator.OR: 2,
    Operator.AND: 3,
    Operator.EQUAL: 5,
    Operator.NOT_EQUAL: 5,
    Operator.LESS_EQUAL: 5,
    Operator.GREATER_EQUAL: 5,
    Operator.LESS: 5,
    Operator.GREATER: 5,
    Operator.BIT_OR: 6,
    Operator.BIT_XOR: 7,
    Operator.BIT_AND: 8,
    Operator.SHIFT_LEFT: 9,
    Operator.SHIFT_RIGHT: 9,
    Operator.ADD: 10,
    Operator.SUBTRACT: 10,
    Operator.MULTIPLY: 11,
}
_NOT_BINDING, _SIGN_BINDING, _ATOM_BINDING = 4, 12, 13


def print_program(program: Program) -> str:
    """The text of a program, a newline at its end; runs of blank lines become one."""
    agents = [line.statement.agent for line in program.lines if isinstance(line.statement, By)]
    columns = max((len(print_agent(agent)) for agent in agents), default=0)
    lines = [print_line(line, columns) for line in program.lines]
    kept = [line for index, line in enumerate(lines) if line or (index > 0 and lines[index - 1])]
    while kept and not kept[-1]:
        kept.pop()
    return "".join(f"{line}\n" for line in kept)


def print_line(line: Line, agent_columns: int = 0) -> str:
    statement = "" if line.statement is None else print_statement(line.statement, agent_columns)
    if line.comment is None:
        return statement
    return f"{statement}{_COMMENT_GAP}{line.comment}" if statement else line.comment


def print_statement(statement: Statement, agent_columns: int = 0) -> str:
    match statement:
        case Machine():
            return _machine(statement)
        case Let(name, Any(bits, where)):
            condition = "" if where is None else f" where {print_expression(where)}"
            return f"let {name} = any u{bits}{condition}"
        case Let(name, value):
            assert not isinstance(value, Any)
            return f"let {name} = {print_expression(value)}"
        case Initial(register, tag, high, address):
            parts = ", ".join(print_expression(part) for part in (tag, high, address))
            return f"given c{register} = capability({parts})"
        case Instruction():
            return print_instruction(statement)
        case Assert(condition):
            return f"assert {print_expression(condition)}"
        case System():
            return _system(statement)
        case By(agent, action):
            return f"{print_agent(agent):<{agent_columns}} {print_action(action)}"
        case Create(region, result):
            return f"deployer: create {_region(region)}{_result(result)}"
        case Destroy(name, result):
            return f"deployer: destroy {name}{_result(result)}"
        case Violates(names):
            return f"expect violates {', '.join(names)}"
        case Measured(what, value):
            return f"expect walk {what} {print_expression(value)}"


def _system(system: System) -> str:
    """In one line where that is short enough."""
    parts = _parts(system)
    line = f"system {system.kind} {{ {'; '.join(parts)} }}"
    if len(line) <= _LINE_COLUMNS and not system.layers:
        return line
    return "\n".join([f"system {system.kind} {{", *(f"  {part}" for part in parts), "}"])


def _parts(system: System) -> list[str]:
    parts = []
    if system.format is not None:
        parts.append(f"format {system.format}")
    if system.memory_base is not None and system.memory_size is not None:
        parts.append(f"memory {print_expression(system.memory_base)} size {print_expression(system.memory_size)}")
    parts += [_setting(setting) for setting in system.settings]
    parts += [_region(region) for region in system.regions]
    parts += [_guest(guest) for guest in system.guests]
    parts += [f"tenant {', '.join(tenant.name for tenant in system.tenants)}"] * bool(system.tenants)
    parts += [_object(each) for each in system.objects]
    parts += [_span(span) for span in system.spans]
    parts += [print_part(part) for part in system.parts]
    if system.policy is not None:
        parts.append(f"policy {system.policy}")
    parts += [f"policy without {guard}" for guard in system.without]
    parts += [_layer(layer) for layer in system.layers]
    return parts


def _layer(layer: System) -> str:
    """A layer of several, with a line for each of its parts where they don't fit into one."""
    parts = _parts(layer)
    line = f"{layer.kind} {{ {'; '.join(parts)} }}"
    if len(line) <= _LINE_COLUMNS - 2:
        return line
    return "\n".join([f"{layer.kind} {{", *(f"    {part}" for part in parts), "  }"])


def _region(region: Region) -> str:
    place = "" if region.at is None else f" at {print_expression(region.at)}"
    around = "" if region.outer is None else f" in {region.outer}"
    return f"{region.name} size {print_expression(region.size)}{place}{around}{' purecap' if region.is_purecap else ''}"


def _guest(guest: Guest) -> str:
    vcpus = "" if guest.vcpus is None else f" vcpus {print_expression(guest.vcpus)}"
    frames = f"{print_expression(guest.first)}..{print_expression(guest.last)}"
    return f"{guest.name} frames {frames}{vcpus}{' plain' * guest.is_plain}{' mapped' * guest.is_mapped}"


def _object(of_system: Object) -> str:
    items = "; ".join(_object_item(item) for item in of_system.items)
    return f"object {of_system.name} {{ {items} }}" if items else f"object {of_system.name} {{ }}"


def print_part(part: Part) -> str:
    items = "; ".join(_span(item) if isinstance(item, Span) else _setting(item) for item in part.items)
    return f"{part.kind} {part.name} {{ {items} }}" if items else f"{part.kind} {part.name} {{ }}"


def _span(span: Span) -> str:
    return f"{span.name} {print_expression(span.first)}..{print_expression(span.last)}"


def _setting(setting: Setting) -> str:
    return f"{setting.name} {print_expression(setting.value)}"


def _object_item(item: ObjectItem) -> str:
    match item:
        case Setting():
            return _setting(item)
        case Word(name, value, is_global):
            return f"{'global' if is_global else 'constant'} {name} = {print_expression(value)}"
        case Export(name, at):
            return f"export {name}" if at is None else f"export {name} at {print_expression(at)}"
        case Relocation(kind, name):
            return f"{kind} {name}"


def _fault(fault: Fault | None) -> str:
    if fault is None:
        return ""
    named = "" if fault.value is None else f" {fault.field} {print_expression(fault.value)}"
    return f"  !fault {fault.kind}{named}"


def _result(result: Result | None) -> str:
    if result is None:
        return ""
    return "  -> ok" if result.code == "OK" else f"  -> {'until' if result.is_repeated else 'refused'} {result.code}"


def print_agent(agent: Agent) -> str:
    """An agent as it stands at the start of a line, with the colon."""
    return f"{agent.name}:" if agent.thread == 1 else f"{agent.name}/{agent.thread}:"


def print_action(action: Instruction | Assert | Call | Enter | Leave) -> str:
    """What an agent does."""
    match action:
        case Call(name, operands, result, fault):
            return f"{_call(name, operands)}{_fault(fault)}{_result(result)}"
        case Enter(name, operands):
            return f"enter {_call(name, operands)}"
        case Leave(result):
            return f"leave{_result(result)}"
        case _:
            return print_statement(action)


def _call(name: str, operands: tuple[Expression | Text, ...]) -> str:
    written = (f'"{each.text}"' if isinstance(each, Text) else print_expression(each) for each in operands)
    return f"{name} {', '.join(written)}".rstrip()


def _machine(machine: Machine) -> str:
    parts = []
    if machine.memory_base is not None and machine.memory_size is not None:
        parts.append(f"memory {print_expression(machine.memory_base)} size {print_expression(machine.memory_size)}")
    parts += [f"c{register} = root" for register in machine.roots]
    return f"machine {machine.format} {{ {'; '.join(parts)} }}"


def print_instruction(instruction: Instruction) -> str:
    """An operation with its operands in the assembler's syntax, and its expectations."""
    row = OPERATIONS[instruction.name]
    operands = [_operand(kind, value) for kind, value in zip(row.operands, instruction.operands, strict=True)]
    if row.has_address_syntax:
        offset, base = operands[-2:]
        operands[-2:] = [f"{offset}({base})"]
    if row.has_address_in_parentheses:
        operands[-1] = f"({operands[-1]})"
    text = f"{instruction.name:<{_MNEMONIC_COLUMNS}}{', '.join(operands)}".rstrip()
    if len(instruction.name) >= _MNEMONIC_COLUMNS:
        text = f"{instruction.name} {', '.join(operands)}"
    return "  ".join([text, *(_expectation(expectation) for expectation in instruction.expectations)])


def instruction(name: str, operands: tuple[int, ...]) -> Instruction:
    """An operation with operands that are numbers; those above 9 are written in hexadecimal."""
    return _with_numbers(name, operands, lambda _kind, value: hex(value) if value > 9 else str(value))


def instruction_of(name: str, numbers: tuple[int, ...]) -> Instruction:
    """The same as a disassembler writes it: immediates are decimal, whole values hexadecimal."""
    return _with_numbers(name, numbers, lambda kind, value: hex(value) if kind is OperandKind.VALUE else str(value))


def _with_numbers(name: str, numbers: tuple[int, ...], write: Callable[[OperandKind, int], str]) -> Instruction:
    kinds = OPERATIONS[name].operands
    return Instruction(name, tuple(_written(kind, value, write) for kind, value in zip(kinds, numbers, strict=True)))


def _written(kind: OperandKind, value: int, write: Callable[[OperandKind, int], str]) -> Expression:
    if kind.is_register:
        return Register(value, kind.is_capability)
    if value in kind.names.values():
        return Name(next(name for name, number in kind.names.items() if number == value))
    digits = Integer(write(kind, abs(value)))
    return Unary(Operator.SUBTRACT, digits) if value < 0 else digits


def _operand(kind: OperandKind, operand: Expression) -> str:
    if kind.is_register:
        assert isinstance(operand, Register)
        return f"{'c' if kind.is_capability else 'x'}{operand.number}"
    return print_expression(operand)


def _expectation(expectation: Expectation) -> str:
    condition = "" if expectation.when is None else f" when {print_expression(expectation.when)}"
    return f"!trap {expectation.cause}{condition}"


def print_expression(expression: Expression) -> str:
    return _expression(expression, 0)


def _expression(expression: Expression, least: int) -> str:
    """The text of an expression, in parentheses where it binds less tightly than its place needs."""
    text, binding = _with_binding(expression)
    return text if binding >= least else f"({text})"


def _with_binding(expression: Expression) -> tuple[str, int]:
    match expression:
        case Integer(text):
            return text, _ATOM_BINDING
        case Truth(value):
            return "true" if value else "false", _ATOM_BINDING
        case Name(name):
            return name, _ATOM_BINDING
        case Register(number, is_capability):
            return f"{'c' if is_capability else 'x'}{number}", _ATOM_BINDING
        case FieldOf(register, name):
            return f"c{register}.{name}", _ATOM_BINDING
        case Element(name, indices):
            return f"{name}[{', '.join(print_expression(each) for each in indices)}]", _ATOM_BINDING
        case Unary(Operator.NOT, operand):
            return f"not {_expression(operand, _NOT_BINDING)}", _NOT_BINDING
        case Unary(operator, operand):
            return f"{operator.value}{_expression(operand, _SIGN_BINDING)}", _SIGN_BINDING
        case Binary(operator, left, right):
            binding = _BINDING[operator]
            if operator is Operator.IMPLIES:  # to the right
                return f"{_expression(left, binding + 1)} implies {_expression(right, binding)}", binding
            tighter = binding + 1 if operator in _COMPARISONS else binding
            return f"{_expression(left, tighter)} {operator.value} {_expression(right, binding + 1)}", binding


_COMPARISONS = {operator for operator, binding in _BINDING.items() if binding == 5}
