"""A program as a theorem: whatever values its `any`s have, every assertion holds and every trap is as expected.

The program runs on the reference as `capvisor run` runs it, with symbolic values and a symbolic memory. It is one theorem,
about the program's own machine; registers and memory start as the machine says, so that only the `where`s are assumed.
"""

from pathlib import Path
from typing import Any

from capvisor.dsl.draw import Names
from capvisor.dsl.evaluate import evaluate, memory_of
from capvisor.dsl.parser import parse
from capvisor.dsl.runner import ReferenceRun, numbered
from capvisor.dsl.syntax import Any as AnyValue
from capvisor.dsl.syntax import Assert, Instruction, Program
from capvisor.proofs import contracts
from capvisor.proofs.memory import ArrayStore
from capvisor.proofs.symbolic import negate
from capvisor.proofs.theorem import Given, Obligation, Replay, Theorem
from capvisor.spec.formats import FORMATS

SUFFIX = ".cap"


def _holds(program: Program, given: Given) -> Any:
    """Whether a program passes with the values of a given."""
    values: dict[str, Any] = {}
    for let in program.lets:
        if isinstance(let.value, AnyValue):
            values[let.name] = given.word(let.name, let.value.bits)
            if let.value.where is not None:
                given.assume(evaluate(let.value.where, Names(values)))
        else:
            values[let.name] = evaluate(let.value, Names(values))
    run = ReferenceRun(program, values)
    if not isinstance(given, Replay):
        run.hart.memory.store = ArrayStore(run.hart.format.address_width)
    passed: Any = True
    with contracts.in_force(given):
        for _line, statement in numbered(program):
            if isinstance(statement, Assert):
                passed = passed & evaluate(statement.condition, run)
            elif isinstance(statement, Instruction):
                passed = passed & _is_as_expected(run, statement)
    return passed


def _is_as_expected(run: ReferenceRun, instruction: Instruction) -> Any:
    """Whether an operation is completed or refused as its expectations say, in the state before it."""
    conditions = [(each.cause, True if each.when is None else evaluate(each.when, run)) for each in instruction.expectations]
    outcome = run.step(instruction)
    cause = None if outcome is None else outcome[0]
    as_expected, undecided = True, True
    for expected, condition in conditions:
        applies = undecided & condition
        if expected != cause:
            as_expected = as_expected & negate(applies)
        undecided = undecided & negate(condition)
    return as_expected if cause is None else as_expected & negate(undecided)


def obligation_of(program: Program) -> Obligation:
    """The obligation that a program is."""
    statement = "whatever values the program's `any`s have, every assertion holds and every trap is as expected"
    fmt = FORMATS[program.machine.format]
    base, size = memory_of(program)
    theorem = Theorem(
        program.source,
        statement,
        program.source,
        lambda _fmt, given: _holds(program, given),
        uses=contracts.lemmas_for(each.name for each in program.statements if isinstance(each, Instruction)),
        formats=(fmt.name,),
        has_contracts=True,
        scope=f"the program's machine: {fmt.name}, {size} bytes of memory from {base:#x}, all values of its `any`s",
    )
    return Obligation(theorem, fmt)


def load(name: str) -> Obligation:
    """The obligation of an id `FILE.cap.FORMAT`, from the file."""
    path = Path(name.rsplit(".", 1)[0])
    return obligation_of(parse(path.read_text(encoding="utf-8-sig"), str(path)))
