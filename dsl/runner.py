"""Running a program: on the reference, on the fast path, or on both with whole states compared after every step."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any as AnyType

import numpy as np

from capvisor.dsl.errors import ProgramError
from capvisor.dsl.evaluate import NOTHING, evaluate, memory_of
from capvisor.dsl.fields import FIELDS
from capvisor.dsl.lanes import LaneInt, as_flags, as_words
from capvisor.dsl.printer import print_expression, print_instruction
from capvisor.dsl.states import differences
from capvisor.dsl.syntax import (
    Any,
    Assert,
    Element,
    Expression,
    FieldOf,
    Instruction,
    Integer,
    Let,
    Name,
    Program,
    Register,
    Statement,
    walk,
)
from capvisor.fastpath import isa as _kernels  # declares the kernels
from capvisor.fastpath.machine import BatchMachine
from capvisor.fastpath.memory import BYTES_PER_GRANULE
from capvisor.fastpath.workspace import Causes, Flags, Workspace
from capvisor.model import capability
from capvisor.model import isa as _rules  # declares the rules
from capvisor.model.machine import Hart
from capvisor.model.memory import Memory
from capvisor.spec.formats import FORMATS
from capvisor.spec.operations import OPERATIONS, OperandKind
from capvisor.spec.traps import CAUSES_BY_NAME, CAUSES_BY_NUMBER

__all__ = ["Implementation", "LaneRun", "ReferenceRun", "Verdict", "run", "with_values"]
assert _kernels and _rules

MEMORY_SHARE = 0.8
"""How much of this machine's memory the fast path's lanes may take."""


class Implementation(Enum):
    """What `run` executes a program on."""

    REFERENCE = "reference"
    FAST = "fast"
    BOTH = "both"


def check_memory(program: Program, lanes: int) -> None:
    """Raises ProgramError if the memory of that many lanes doesn't fit this machine's."""
    _base, size = memory_of(program)
    needed = lanes * (size // FORMATS[program.machine.format].capability_bytes) * BYTES_PER_GRANULE
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > MEMORY_SHARE * available:
        raise ProgramError(
            f"the machine's memory is too large for this one: the fast path needs {needed >> 20:,} MiB "
            f"for {lanes} lane{'s' if lanes > 1 else ''}, of {available >> 20:,} MiB; run with a smaller `size`, "
            "or on the reference alone",
            program.machine.position,
            program.source,
            program.text,
        )


TrapOutcome = tuple[str, int] | None
"""What came of an operation: None if it was completed, else the cause and what mtval would hold."""


def cause_name(number: int) -> str | None:
    """The name of a cause's number; None for 0."""
    return CAUSES_BY_NUMBER[number].name if number else None


class HartView:
    """A hart of the reference, and the values of names: the environment of expressions."""

    def __init__(self, hart: Hart, values: Mapping[str, int]) -> None:
        self.hart = hart
        self._values = values

    def name(self, name: str) -> int:
        return self._values[name]

    def register(self, number: int) -> int:
        return self.hart.integer(number)

    def field(self, register: int, name: str) -> AnyType:
        return FIELDS[name].read(self.hart.capability(register))

    def holds(self, condition: Expression) -> bool:
        """A condition's truth."""
        return bool(evaluate(condition, self))

    def expected(self, instruction: Instruction) -> str | None:
        """The cause that the program expects of an operation, in the state before it."""
        for expectation in instruction.expectations:
            if expectation.when is None or evaluate(expectation.when, self):
                return expectation.cause
        return None


class ReferenceRun(HartView):
    """A program's state on the reference, and the environment of its expressions."""

    def __init__(self, program: Program, values: Mapping[str, int]) -> None:
        fmt = FORMATS[program.machine.format]
        super().__init__(Hart(Memory(fmt, *memory_of(program))), values)
        for register in program.machine.roots:
            self.hart.write(register, capability.root(fmt))
        for initial in program.initials:
            tag, high, address = (evaluate(part, self) for part in (initial.tag, initial.high, initial.address))
            mask = fmt.address_mask
            self.hart.write(initial.register, capability.from_memory(fmt, tag != 0, high & mask, address & mask))

    def step(self, instruction: Instruction) -> TrapOutcome:
        """Execute an operation; cause and trap value if it is refused."""
        trap = self.hart.step(instruction.name, operand_values(instruction, self))
        return None if trap is None else (trap.cause.name, trap.value)


class LaneRun:
    """A program's states on the fast path, one lane a choice of values, and the environment of its expressions."""

    def __init__(self, program: Program, values: Mapping[str, AnyType], lanes: int) -> None:
        self.format = FORMATS[program.machine.format]
        check_memory(program, lanes)
        self.lanes = lanes
        self.machine = BatchMachine(self.format, *memory_of(program), lanes)
        for register in program.machine.roots:
            self.machine.tags[register] = True
            self.machine.metas[register] = self.format.root_meta
        self._values = values
        self._workspace = Workspace(lanes)
        for initial in program.initials:
            tag, high, address = (evaluate(part, self) for part in (initial.tag, initial.high, initial.address))
            width, register = self.format.address_width, initial.register
            self.machine.tags[register] = as_flags(tag != 0, lanes)
            self.machine.metas[register] = as_words(high, width, lanes) ^ np.uint64(self.format.null_meta)
            self.machine.addresses[register] = as_words(address, width, lanes)

    def name(self, name: str) -> AnyType:
        return self._values[name]

    def register(self, number: int) -> LaneInt:
        return LaneInt(self.machine.addresses[number].copy())

    def field(self, register: int, name: str) -> AnyType:
        return FIELDS[name].read_lanes(self.format, self.machine.capability(register), self._workspace)

    def step(self, instruction: Instruction) -> Causes:
        """Execute an operation in every lane; the number of the cause by lane, 0 where it was completed."""
        operands = tuple(
            as_words(value, self.format.address_width, self.lanes) if isinstance(value, LaneInt) else value
            for value in operand_values(instruction, self)
        )
        self.machine.step(instruction.name, operands)
        return self.machine.cause

    def outcome(self, lane: int) -> TrapOutcome:
        """Cause and trap value of the last operation in one lane, if it was refused there."""
        name = cause_name(int(self.machine.cause[lane]))
        return None if name is None else (name, int(self.machine.trap_value[lane]))

    def expected(self, instruction: Instruction) -> tuple[Causes, list[int]]:
        """What the program expects of an operation, in the state before it.

        The number of the cause by lane, and for each expectation in how many lanes it is the one that applies.
        """
        numbers, counts = np.zeros(self.lanes, np.uint8), []
        undecided = np.ones(self.lanes, np.bool_)
        for expectation in instruction.expectations:
            applies = undecided if expectation.when is None else undecided & self.holds(expectation.when)
            numbers[applies] = CAUSES_BY_NAME[expectation.cause].number
            counts.append(int(np.count_nonzero(applies)))
            undecided = undecided & ~applies
        return numbers, counts

    def holds(self, condition: Expression) -> Flags:
        """A condition's truth by lane."""
        return as_flags(evaluate(condition, self), self.lanes)


def operand_values(instruction: Instruction, environment: AnyType) -> tuple[AnyType, ...]:
    """What an operation's operands are worth: register numbers, and the values of all else."""
    kinds = OPERATIONS[instruction.name].operands
    return tuple(
        operand_value(kind, operand, environment) for kind, operand in zip(kinds, instruction.operands, strict=True)
    )


def operand_value(kind: OperandKind, operand: Expression, environment: AnyType = NOTHING) -> AnyType:
    """What one operand is worth; without an environment, one that is made of literals alone."""
    if kind.is_register and isinstance(operand, Register):
        return operand.number
    if kind.names and isinstance(operand, Name):
        return kind.names[operand.name]
    return evaluate(operand, environment)


@dataclass(frozen=True)
class Failure:
    """What went wrong where: an assertion, a trap other than the program expects, or implementations that differ."""

    line: int
    kind: str
    message: str
    rule: str = ""
    """What was to hold, in words, where the message names it alone."""

    @property
    def text(self) -> str:
        """The message, with the rule behind it."""
        return f"{self.message}. {self.rule}" if self.rule else self.message


@dataclass
class Verdict:
    """The outcome of a run: the values it was made with, what was executed and checked, and the failure that ended it."""

    program: Program
    values: dict[str, int]
    operations: int = 0
    assertions: int = 0
    traps: int = 0
    comparisons: int = 0
    failure: Failure | None = field(default=None)

    @property
    def passed(self) -> bool:
        return self.failure is None


@dataclass(frozen=True)
class Step:
    """One executed operation, for those who watch: the state after it is in `reference` or `fast`.

    The first step has no instruction: it shows the state at the start.
    """

    line: int
    instruction: Instruction | None
    cause: str | None
    reference: ReferenceRun | None
    fast: LaneRun | None


def run(
    program: Program,
    values: dict[str, int],
    implementation: Implementation = Implementation.BOTH,
    watch: Callable[[Step], None] | None = None,
) -> Verdict:
    """Run a program with one value for each let, up to its first failure. `watch` sees every step."""
    verdict = Verdict(program, values)
    reference = None if implementation is Implementation.FAST else ReferenceRun(program, values)
    fast = None if implementation is Implementation.REFERENCE else LaneRun(program, values, 1)
    watch = watch or (lambda step: None)
    watch(Step(program.machine.position.line, None, None, reference, fast))
    for line, statement in numbered(program):
        if isinstance(statement, Instruction):
            verdict.failure = _run_instruction(line, statement, reference, fast, verdict, watch)
        elif isinstance(statement, Assert):
            verdict.failure = _run_assert(line, statement, reference, fast, verdict)
        if verdict.failure is not None:
            return verdict
    if reference is not None and fast is not None:
        found = differences(reference.hart, fast.machine, 0, whole_memory=True)
        if found:
            verdict.failure = Failure(line, "implementations differ", f"at the end: {'; '.join(found)}")
    return verdict


def numbered(program: Program) -> Iterator[tuple[int, Statement]]:
    """The statements of a program with the numbers of their lines."""
    for number, line in enumerate(program.lines, start=1):
        if line.statement is not None:
            yield line.statement.position.line or number, line.statement


def _run_instruction(
    line: int,
    instruction: Instruction,
    reference: ReferenceRun | None,
    fast: LaneRun | None,
    verdict: Verdict,
    watch: Callable[[Step], None],
) -> Failure | None:
    """Execute one operation where it is to be executed, and hold the outcomes against each other and the program."""
    outcomes: dict[str, tuple[str | None, TrapOutcome]] = {}
    if reference is not None:
        expected = reference.expected(instruction)
        outcomes["reference"] = expected, reference.step(instruction)
    if fast is not None:
        wanted = cause_name(int(fast.expected(instruction)[0][0]))
        fast.step(instruction)
        outcomes["fast path"] = wanted, fast.outcome(0)
    verdict.operations += 1
    expected, outcome = next(iter(outcomes.values()))
    cause = None if outcome is None else outcome[0]
    watch(Step(line, instruction, cause, reference, fast))
    if len(set(outcomes.values())) > 1:
        described = "; ".join(f"{who}: expected {e}, got {c}" for who, (e, c) in outcomes.items())
        return Failure(line, "implementations differ", f"`{print_instruction(instruction)}`: {described}")
    if reference is not None and fast is not None:
        verdict.comparisons += 1
        found = differences(reference.hart, fast.machine, 0)
        if found:
            return Failure(line, "implementations differ", f"`{print_instruction(instruction)}`: {'; '.join(found)}")
    verdict.traps += cause is not None
    if cause != expected:
        return Failure(line, "trap", trap_message(instruction, expected, cause))
    return None


def trap_message(instruction: Instruction, expected: str | None, cause: str | None) -> str:
    """What is wrong with the outcome of an operation."""
    wanted = f"{expected} expected" if expected else "no trap expected"
    return f"`{print_instruction(replace(instruction, expectations=()))}`: {cause or 'completed'}, {wanted}"


def _run_assert(
    line: int, statement: Assert, reference: ReferenceRun | None, fast: LaneRun | None, verdict: Verdict
) -> Failure | None:
    verdict.assertions += 1
    truths = {}
    if reference is not None:
        truths["reference"] = reference.holds(statement.condition)
    if fast is not None:
        truths["fast path"] = bool(fast.holds(statement.condition)[0])
    text = f"`assert {print_expression(statement.condition)}`"
    if len(set(truths.values())) > 1:
        return Failure(line, "implementations differ", f"{text}: {truths}")
    if not next(iter(truths.values())):
        return Failure(line, "assertion", f"{text} doesn't hold{operand_report(statement.condition, reference or fast)}")
    return None


def operand_report(condition: Expression, environment: AnyType) -> str:
    """What the named parts of a failed condition were worth."""
    parts = dict.fromkeys(part for part in walk(condition) if isinstance(part, Name | Register | FieldOf | Element))
    shown = []
    for part in parts:
        value = evaluate(part, environment)
        if isinstance(value, LaneInt | np.ndarray):
            value = value.array[0] if isinstance(value, LaneInt) else value[0]
        text = str(bool(value)).lower() if isinstance(value, bool | np.bool_) else f"{int(value):#x}"
        shown.append(f"{print_expression(part)} = {text}")
    return f": {', '.join(shown)}" if shown else ""


def with_values(program: Program, values: Mapping[str, int]) -> Program:
    """The program with its `any` values replaced by given ones: a test of just that case."""
    lines = []
    for line in program.lines:
        let = line.statement
        if isinstance(let, Let) and isinstance(let.value, Any):
            lines.append(replace(line, statement=replace(let, value=Integer(hex(values[let.name])))))
        else:
            lines.append(line)
    return replace(program, lines=tuple(lines), text="")
