"""Findings: failures made small, as files of the language that say what was expected and what happened, and run again."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from capvisor.campaign.case import Case, to_program
from capvisor.campaign.reduction import Fails, Reduction
from capvisor.campaign.reference import batch_machine
from capvisor.campaign.unit import JUDGED_LANES, Failure, advance
from capvisor.dsl.printer import instruction, print_instruction, print_program
from capvisor.dsl.states import differences
from capvisor.dsl.syntax import Expectation, Instruction, Line, Program
from capvisor.files import write_whole
from capvisor.spec.invariants import INVARIANTS
from capvisor.spec.traps import CAUSES_BY_NUMBER


class AnyFinding(Protocol):
    """A failure, as small as it could be made: what reports, histories and files say of it."""

    @property
    def signature(self) -> str:
        """What makes two failures the same."""

    @property
    def name(self) -> str:
        """The name of its file."""

    @property
    def title(self) -> str:
        """What went wrong, in a line."""

    @property
    def details(self) -> tuple[str, ...]:
        """What differs, or what the invariant says."""

    @property
    def rule(self) -> tuple[str, str]:
        """What kind of failure it is, by a short name and in a sentence."""

    @property
    def steps(self) -> tuple[str, ...]:
        """The program's statements that are executed: the last lines of its file."""

    def text(self, again: str) -> str:
        """The finding's file: a program, what is wrong with it as comments, and the line that shows it again."""

    def as_json(self) -> dict[str, Any]:
        """The finding for a report."""


@dataclass(frozen=True)
class Finding:
    """A failure of one hart's program as small as it could be made."""

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
        return file_name(self.signature, self.failure.case)

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

    @property
    def rule(self) -> tuple[str, str]:
        """What kind of failure it is."""
        return rule_of(self.failure.kind, self.failure.what, INVARIANTS)

    @property
    def steps(self) -> tuple[str, ...]:
        """The operations."""
        return tuple(print_instruction(instruction(*each)) for each in self.failure.case.operations)

    def text(self, again: str) -> str:
        """The finding's file."""
        return text_of(self, again)

    def as_json(self) -> dict[str, Any]:
        """The finding for a report."""
        return as_json(self)


KINDS = {
    "differs": "The fast path's state differs from the reference's.",
    "crashes": "The fast path ends with an error.",
    "peer differs": "The peer's state differs from the reference's.",
    "peer fails": "The peer itself fails.",
}
"""Kinds of failures, beside `breaks` an invariant."""


def rule_of(kind: str, what: str, invariants: Mapping[str, Any]) -> tuple[str, str]:
    """A kind of failure by a short name and in a sentence: an invariant's, if one is broken."""
    return (what, invariants[what].statement) if kind == "breaks" else (kind.replace(" ", "-"), KINDS[kind])


def file_name(signature: str, program: object) -> str:
    """A file's name: what went wrong, and a few digits that tell programs apart."""
    digest = hashlib.sha256(repr((signature, program)).encode()).hexdigest()[:8]
    words = signature.replace(" registers", "-registers").lower().split()
    return "-".join([*(word.replace(".", "_") for word in words), digest])


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


def save(finding: AnyFinding, folder: Path) -> Path:
    """Write the finding's file. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{finding.name}.cap"
    again = f"capvisor run {path}"
    write_whole(path, lambda file: file.write(finding.text(again).encode()))
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
