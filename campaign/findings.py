"""Findings: failures made small, as files of the language that say what was expected and what happened, and run again."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from capvisor.campaign.case import Case, instruction, to_program
from capvisor.campaign.reduction import Fails, Reduction
from capvisor.campaign.reference import batch_machine
from capvisor.campaign.unit import JUDGED_LANES, Failure, advance
from capvisor.dsl.printer import print_instruction, print_program
from capvisor.dsl.states import differences
from capvisor.dsl.syntax import Expectation, Instruction, Line, Program
from capvisor.files import write_whole
from capvisor.spec.invariants import INVARIANTS
from capvisor.spec.traps import CAUSES_BY_NUMBER


@dataclass(frozen=True)
class Finding:
    """A failure as small as it could be made."""

    failure: Failure
    shrunk: bool
    """Whether it fails on its own, so that it could be made smaller."""
    details: tuple[str, ...]
    """What differs, or what the invariant says."""
    tried: int = 0
    """How many programs were tried to make it smaller."""

    @property
    def signature(self) -> str:
        return self.failure.signature

    @property
    def name(self) -> str:
        """A file's name: the operation, what went wrong, and a few digits that tell programs apart."""
        digest = hashlib.sha256(repr((self.signature, self.failure.case)).encode()).hexdigest()[:8]
        words = self.signature.replace(" registers", "-registers").lower().split()
        return "-".join([*(word.replace(".", "_") for word in words), digest])

    @property
    def title(self) -> str:
        """What went wrong, in a line."""
        operations = self.failure.case.operations
        last = print_instruction(instruction(*operations[-1])).split() if operations else ["reset"]
        text = " ".join(last)
        if self.failure.kind == "breaks":
            invariant = INVARIANTS[self.failure.what]
            return f"`{text}` breaks {invariant.name}, {invariant.title}"
        if self.failure.kind == "crashes":
            return f"`{text}` ends the fast path with {self.failure.what}"
        if self.failure.kind.startswith("peer"):
            return f"`{text}`: {self.failure.kind}: {self.failure.what}"
        return f"`{text}`: the implementations differ in {self.failure.what}"


def finding_of(failure: Failure, fails: Fails | None = None) -> Finding:
    """Make a failure small, and say what is wrong. `fails` says whether a program fails, if the judge doesn't."""
    reduction = Reduction(failure, fails=fails)
    small = reduction.run()
    if small is None:
        return Finding(failure, False, details(failure))
    return Finding(small, True, details(small), reduction.tried)


def details(failure: Failure) -> tuple[str, ...]:
    """What differs after the program, place by place; or what the invariant says."""
    if failure.kind == "breaks":
        return (INVARIANTS[failure.what].statement,)
    if failure.kind != "differs":
        return failure.notes
    hart, machine = failure.case.hart(), batch_machine(failure.case, JUDGED_LANES, 2)
    trap = None
    for name, operands in failure.case.operations:
        trap = hart.step(name, operands)
        advance(machine, [(slice(0, JUDGED_LANES), name, operands)], failure.stepping)
    found = []
    for lane in range(JUDGED_LANES):
        expected = "completed" if trap is None else f"{trap.cause.name}, {trap.value:#x}"
        number = int(machine.cause[lane])
        actual = f"{CAUSES_BY_NUMBER[number].name}, {int(machine.trap_value[lane]):#x}" if number else "completed"
        if expected != actual:
            found.append(f"trap: reference {expected}; fast path {actual}")
        found += differences(hart, machine, lane, whole_memory=True)
        if found:
            break
    return tuple(found)


def program_of(case: Case) -> Program:
    """The case as a program that expects the traps that the reference gives."""
    program, hart = to_program(case), case.hart()
    lines: list[Line] = []
    for line in program.lines:
        statement = line.statement
        if isinstance(statement, Instruction):
            name, operands = case.operations[len(lines) - 1]
            trap = hart.step(name, operands)
            if trap is not None:
                statement = replace(statement, expectations=(Expectation(trap.cause.name),))
        lines.append(Line(statement))
    return replace(program, lines=tuple(lines))


def text_of(finding: Finding, again: str) -> str:
    """The finding's file: a program, what is wrong with it as comments, and the line that shows it again."""
    comments = [finding.title, *finding.details, f"signature: {finding.signature}"]
    if finding.failure.stepping != "lock step":
        comments.append(f"stepping: {finding.failure.stepping}")
    if not finding.shrunk:
        comments.append("not made smaller: on its own, the program doesn't fail")
    comments.append(f"again: {again}")
    program = program_of(finding.failure.case)
    lines = [Line(None, f"# {comment}") for comment in comments]
    return print_program(replace(program, lines=(*lines, *program.lines)))


def save(finding: Finding, folder: Path) -> Path:
    """Write the finding's file. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{finding.name}.cap"
    again = f"capvisor run {path}"
    write_whole(path, lambda file: file.write(text_of(finding, again).encode()))
    return path


def as_json(finding: Finding) -> dict[str, Any]:
    """The finding for a report."""
    failure = finding.failure
    return {
        "signature": finding.signature,
        "title": finding.title,
        "kind": failure.kind,
        "what": failure.what,
        "stepping": failure.stepping,
        "shard": failure.shard,
        "lane": failure.lane,
        "operations": len(failure.case.operations),
        "shrunk": finding.shrunk,
        "details": list(finding.details),
        "file": f"{finding.name}.cap",
        "program": print_program(program_of(failure.case)),
    }
