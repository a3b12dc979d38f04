"""A corpus: programs that are kept because of what they once found, or what they show, and executed again and again.

They are files of the language. Those that a campaign has found say so in comments: `# signature:` what went wrong, and
`# stepping:` how the fast path was told what to do, where that wasn't one operation for all lanes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from capvisor.campaign import coverage
from capvisor.campaign.case import from_program
from capvisor.campaign.coverage import Behaviour
from capvisor.campaign.findings import Finding, details, finding_of, text_of
from capvisor.campaign.unit import JUDGED_LANES, STEPPINGS, Failure, judge
from capvisor.dsl.draw import Names, fix
from capvisor.dsl.errors import ProgramError
from capvisor.dsl.evaluate import evaluate, memory_of
from capvisor.dsl.printer import print_expression, print_program, print_statement
from capvisor.dsl.runner import Failure as RunFailure
from capvisor.dsl.runner import LaneRun, Verdict, check_memory, numbered, operand_value, operand_values, run
from capvisor.dsl.syntax import Any, Assert, Expression, Initial, Instruction, Let, Line, Position, Program
from capvisor.spec.operations import OPERATIONS

CRASHES = (ArithmeticError, IndexError, TypeError, ValueError, LookupError)
"""What a defect of an implementation may end a run with."""

SIGNATURE, STEPPING, AGAIN = "signature", "stepping", "again"
"""What the comments of a finding's file begin with, before a colon."""

Shown = tuple[str, Behaviour]
"""A format, and a behaviour in it."""

Content = tuple[object, ...]
"""What a program executes: equal for programs that do the same, whatever they expect and say of it."""


# -- what a file says of itself --------------------------------------------------------------------------------------------


def remark(program: Program, key: str) -> tuple[str, int] | None:
    """What follows `# key:` in the first line of that kind, and the line's number; None where there is none."""
    for number, line in enumerate(program.lines, start=1):
        if line.statement is None and line.comment is not None:
            found, colon, text = line.comment.lstrip("# ").partition(":")
            if colon and found == key:
                return text.strip(), number
    return None


def signature_of(program: Program) -> str | None:
    """The signature of the failure that a program was kept for, where a campaign has found it."""
    found = remark(program, SIGNATURE)
    return found[0] if found else None


def stepping_of(program: Program) -> str:
    """How the fast path is to be told what to do. Raises ProgramError where a file names a way that there isn't."""
    found = remark(program, STEPPING)
    if found is None:
        return STEPPINGS[0]
    stepping, number = found
    if stepping not in STEPPINGS:
        message = f"unknown stepping `{stepping}`: there are {', '.join(STEPPINGS)}"
        raise ProgramError(message, Position(number, 1), program.source, program.text)
    return stepping


def title_of(program: Program) -> str:
    """The first comment of a program; empty where it has none."""
    for line in program.lines:
        if line.comment is not None and line.comment.strip("# "):
            return line.comment.strip("# ")
    return ""


def told_again(program: Program, command: str) -> Program:
    """The program, its comment that says how to see it again with another command, where it has one."""
    found = remark(program, AGAIN)
    if found is None:
        return program
    number = found[1]
    line = Line(None, f"# {AGAIN}: {command}")
    return replace(program, lines=(*program.lines[: number - 1], line, *program.lines[number:]))


# -- what a program does ---------------------------------------------------------------------------------------------------


def operations_of(program: Program) -> int:
    """How many operations a program has."""
    return sum(isinstance(statement, Instruction) for statement in program.statements)


def content_of(program: Program) -> Content:
    """The machine and the operations of a program, its constants by their values."""
    machine = program.machine
    parts: list[object] = [machine.format, memory_of(program), machine.roots]
    constants: dict[str, object] = {}
    for statement in program.statements:
        if isinstance(statement, Let):
            value = None if isinstance(statement.value, Any) else _worth(statement.value, constants)
            if isinstance(value, int):
                constants[statement.name] = value
            else:
                parts.append(print_statement(statement))
        elif isinstance(statement, Initial):
            halves = (_worth(each, constants) for each in (statement.tag, statement.high, statement.address))
            parts.append((statement.register, *halves))
        elif isinstance(statement, Instruction):
            kinds = OPERATIONS[statement.name].operands
            operands = (
                operand_value(kind, each) if kind.is_register or kind.names else _worth(each, constants)
                for kind, each in zip(kinds, statement.operands, strict=True)
            )
            parts.append((statement.name, *operands))
    return tuple(parts)


def _worth(expression: Expression, constants: dict[str, object]) -> object:
    """An expression's value; its text, where that depends on an `any`."""
    try:
        return evaluate(expression, Names(constants))
    except LookupError:
        return print_expression(expression)


def behaviours_of(program: Program) -> frozenset[Behaviour]:
    """What a program does on the fast path, step by step in one lane, with one choice for each `any`, always the same.

    Raises ProgramError where its machine doesn't fit this one, NoValuesError where no choice is found.
    """
    lane = LaneRun(program, fix(program, {}, 0), 1)
    found: set[Behaviour] = set()
    for statement in program.statements:
        if not isinstance(statement, Instruction):
            continue
        try:
            classes = coverage.classify(lane.machine, slice(0, 1), statement.name, operand_values(statement, lane))
            causes = lane.step(statement)
        except CRASHES:
            break
        found |= coverage.behaviours(statement.name, causes, classes)
    return frozenset(found)


def shown_by(program: Program) -> frozenset[Shown]:
    """What a program has a share in a corpus for: its behaviours, which are others in another format."""
    return frozenset((program.machine.format, each) for each in behaviours_of(program))


# -- whether it passes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What came of a program: as a program of the language, and as a case with every step judged."""

    verdict: Verdict
    stepping: str
    judged: bool
    """Whether its steps were judged: a program with `given` registers, or without memory, starts where no case does."""
    failure: Failure | None

    @property
    def passed(self) -> bool:
        return self.verdict.passed and self.failure is None

    @property
    def messages(self) -> tuple[str, ...]:
        """What is wrong, each in a line, without the name of the file."""
        lines = []
        if self.verdict.failure is not None:
            failure = self.verdict.failure
            lines.append(f"{failure.line}: {failure.kind}: {failure.message}")
        if self.failure is not None:
            finding = Finding(self.failure, False, details(self.failure) if self.failure.kind != "crashes" else ())
            lines.append(f" {'; '.join((finding.title, *finding.details))} ({self.stepping}, {finding.signature})")
        return tuple(lines)


def examine(program: Program, seed: int = 0) -> Result:
    """Execute a program on both implementations, as the language has it and as its finding was judged: oracles and all.

    Raises ProgramError where its machine doesn't fit this one, NoValuesError where values for an `any` aren't found.
    """
    values, stepping = fix(program, {}, seed), stepping_of(program)
    check_memory(program, JUDGED_LANES)
    verdict = _run(program, values)
    _base, size = memory_of(program)
    if size == 0 or next(program.initials, None) is not None:
        return Result(verdict, stepping, False, None)
    return Result(verdict, stepping, True, judge(from_program(program, values), stepping))


def _run(program: Program, values: dict[str, int]) -> Verdict:
    """As `capvisor run`, but an implementation that crashes is a failure like others."""
    steps = 0

    def count(_step: object) -> None:
        nonlocal steps
        steps += 1

    try:
        return run(program, values, watch=count)
    except CRASHES as error:
        lines = [number for number, statement in numbered(program) if isinstance(statement, Instruction)]
        # The first thing to be watched is the state at the start.
        line = lines[min(max(steps - 1, 0), len(lines) - 1)] if lines else program.machine.position.line
        failure = RunFailure(line, "crash", f"{type(error).__name__}: {error}")
        return Verdict(program, values, operations=max(steps - 1, 0), failure=failure)


# -- making it smaller -----------------------------------------------------------------------------------------------------


def is_reducible(program: Program) -> bool:
    """Whether a program's operations are all that it says: smaller ones could keep no assertion, and no choice of values."""
    for statement in program.statements:
        if isinstance(statement, Assert) or (isinstance(statement, Let) and isinstance(statement.value, Any)):
            return False
    return True


def reduced(program: Program, failure: Failure, again: str) -> str | None:
    """The text of a smaller program that fails in the same way; None where there is none. Takes seconds.

    A finding's comments are made anew; those of others stay, before what is said of the failure.
    """
    finding = finding_of(failure)
    if not finding.shrunk or finding.failure.case == from_program(program):
        return None
    text = text_of(finding, again)
    if signature_of(program) is not None:
        return text
    first = next(place for place, line in enumerate(program.lines) if line.statement is not None)
    return print_program(replace(program, lines=program.lines[:first])) + text


# -- which of them are needed ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """A program of a corpus: what it shows, its size, and whether it stays in any case."""

    name: str
    behaviours: frozenset[Shown]
    operations: int
    stays: bool


def needed(shares: Sequence[Share]) -> frozenset[str]:
    """Names of programs that together show all behaviours: those that stay, then whichever shows the most that is new.

    Of equals the one with fewer operations, then the first by name. Source: the greedy cover of Chvatal, 1979.
    """
    kept = {share.name for share in shares if share.stays}
    missing = frozenset().union(*(share.behaviours for share in shares))
    missing -= frozenset().union(*(share.behaviours for share in shares if share.stays))
    while missing:
        best = min(shares, key=lambda share: (-len(share.behaviours & missing), share.operations, share.name))
        kept.add(best.name)
        missing -= best.behaviours
    return frozenset(kept)
