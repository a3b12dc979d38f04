"""Fuzzing the `any` values of a program: many lanes on the fast path, a sample of them replayed on the reference."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from capvisor.dsl.draw import Values, draw, in_lane, select_lanes
from capvisor.dsl.errors import NoValuesError
from capvisor.dsl.evaluate import memory_of
from capvisor.dsl.printer import print_expression
from capvisor.dsl.runner import (
    Failure,
    Implementation,
    LaneRun,
    ReferenceRun,
    TrapOutcome,
    cause_name,
    check_memory,
    numbered,
    run,
    trap_message,
)
from capvisor.dsl.states import differences
from capvisor.dsl.syntax import Any, Assert, Binary, Instruction, Operator, Program
from capvisor.fastpath.memory import BYTES_PER_GRANULE
from capvisor.spec.formats import FORMATS

CHUNK_BYTES = 1 << 28
"""How much memory the lanes of one chunk may take; a chunk's lanes are drawn and run together."""

CHUNK_LANES = 1 << 14
"""How many lanes a chunk has, where their memory is small enough."""


@dataclass(frozen=True)
class Finding:
    """A failure, and the values with which it came about."""

    failure: Failure
    values: dict[str, int]
    lanes: int
    """In how many lanes this line failed in this way."""


@dataclass
class Campaign:
    """What a campaign has done and found. Equal for equal program, lanes, seed and sample."""

    program: Program
    seed: int
    lanes: int = 0
    discarded: int = 0
    """Lanes for which no values were found that satisfy every `where`."""
    operations: int = 0
    executed: Counter[str] = field(default_factory=Counter)
    trapped: Counter[str] = field(default_factory=Counter)
    assertions: int = 0
    replayed: int = 0
    comparisons: int = 0
    """Whole states compared with the reference."""
    checks: dict[tuple[int, int], int] = field(default_factory=dict)
    """By line, and number within the line, of a conditional check: in how many lanes its condition held."""
    findings: list[Finding] = field(default_factory=list)
    interrupted: bool = False

    @property
    def untested(self) -> list[int]:
        """Lines whose check never fired: an `implies` whose left side, or a `when`, held in no lane."""
        return sorted({line for (line, _number), count in self.checks.items() if count == 0})


def chunk_lanes(program: Program) -> int:
    """How many lanes are drawn and run together; a property of the program, so that results don't depend on the machine."""
    _base, size = memory_of(program)
    lane_bytes = size // FORMATS[program.machine.format].capability_bytes * BYTES_PER_GRANULE
    return max(1, min(CHUNK_LANES, CHUNK_BYTES // max(lane_bytes, 1)))


def fuzz(
    program: Program,
    lanes: int,
    seed: int,
    sample: int = 16,
    progress: Callable[[int], None] = lambda lanes: None,
) -> Campaign:
    """Run a program in `lanes` lanes with drawn values; in each chunk, replay `sample` lanes on the reference.

    Ctrl-C ends the campaign early, with what was done so far. Raises NoValuesError where not one choice of values was found
    that satisfies the program's `where`s.
    """
    campaign = Campaign(program, seed)
    size = chunk_lanes(program)
    check_memory(program, min(size, lanes))
    try:
        for chunk, start in enumerate(range(0, lanes, size)):
            _Chunk(campaign, chunk, min(size, lanes - start), sample).run()
            progress(min(size, lanes - start))
    except KeyboardInterrupt:
        campaign.interrupted = True
    if campaign.lanes == 0 and not campaign.interrupted:
        let = next(let for let in program.lets if isinstance(let.value, Any) and let.value.where is not None)
        message = f"no values were found that satisfy the `where` of `{let.name}` and its like, in {lanes} lanes"
        raise NoValuesError(message, let.position, program.source, program.text)
    return campaign


class _Chunk:
    """Some lanes of a campaign: their values, and their run through the program."""

    def __init__(self, campaign: Campaign, number: int, lanes: int, sample: int) -> None:
        self._campaign = campaign
        self._program = campaign.program
        rng = np.random.default_rng([campaign.seed, number])
        values, met = draw(self._program, rng, lanes)
        campaign.discarded += int((~met).sum())
        self._lanes = int(met.sum())
        if self._lanes == 0:
            return
        self._values: Values = select_lanes(values, met)
        picked = rng.choice(self._lanes, min(sample, self._lanes), replace=False)
        self._replayed = len(picked)
        self._sample = {int(lane): ReferenceRun(self._program, in_lane(self._values, int(lane))) for lane in np.sort(picked)}

    def run(self) -> None:
        if self._lanes == 0:
            return
        fast = LaneRun(self._program, self._values, self._lanes)
        failed = np.zeros(self._lanes, np.bool_)
        for line, statement in numbered(self._program):
            if isinstance(statement, Instruction):
                self._instruction(fast, line, statement, failed)
            elif isinstance(statement, Assert):
                self._assert(fast, line, statement, failed)
        self._compare_memory(fast, line)
        self._campaign.lanes += self._lanes
        self._campaign.replayed += self._replayed

    def _instruction(self, fast: LaneRun, line: int, instruction: Instruction, failed: np.ndarray) -> None:
        campaign = self._campaign
        expected, applied = fast.expected(instruction)
        for lane, reference in list(self._sample.items()):
            self._agree(lane, line, "expected trap", reference.expected(instruction), cause_name(int(expected[lane])))
        references = {lane: reference.step(instruction) for lane, reference in self._sample.items()}
        causes = fast.step(instruction)
        campaign.operations += self._lanes
        campaign.executed[instruction.name] += self._lanes
        campaign.trapped[instruction.name] += int(np.count_nonzero(causes))
        for index, (expectation, count) in enumerate(zip(instruction.expectations, applied, strict=True)):
            if expectation.when is not None:
                self._count_check(line, index, count)
        self._replay(fast, line, references)
        wrong = (causes != expected) & ~failed
        if wrong.any():
            lane = self._simplest(wrong)
            names = [cause_name(int(number)) for number in (expected[lane], causes[lane])]
            self._find(Failure(line, "trap", trap_message(instruction, names[0], names[1])), lane, int(wrong.sum()))
            failed |= wrong

    def _agree(self, lane: int, line: int, what: str, reference: object, fast: object) -> None:
        """A lane of the sample in which implementations differ is found, and not compared again."""
        if reference != fast and lane in self._sample:
            message = f"{what}: reference {reference}, fast path {fast}"
            self._find(Failure(line, "implementations differ", message), lane, 1)
            del self._sample[lane]

    def _replay(self, fast: LaneRun, line: int, references: dict[int, TrapOutcome]) -> None:
        """Compare the sample's states after an operation."""
        for lane, outcome in references.items():
            if lane not in self._sample:
                continue
            self._campaign.comparisons += 1
            self._agree(lane, line, "trap", outcome, fast.outcome(lane))
            found = differences(self._sample[lane].hart, fast.machine, lane) if lane in self._sample else []
            if found:
                self._find(Failure(line, "implementations differ", "; ".join(found)), lane, 1)
                del self._sample[lane]

    def _compare_memory(self, fast: LaneRun, line: int) -> None:
        """At the end, all of memory, also where it is too large to be looked through after every step."""
        for lane, reference in list(self._sample.items()):
            found = differences(reference.hart, fast.machine, lane, whole_memory=True)
            if found:
                self._find(Failure(line, "implementations differ", "; ".join(found)), lane, 1)

    def _assert(self, fast: LaneRun, line: int, statement: Assert, failed: np.ndarray) -> None:
        campaign, condition = self._campaign, statement.condition
        campaign.assertions += self._lanes
        if isinstance(condition, Binary) and condition.operator is Operator.IMPLIES:
            self._count_check(line, 0, int(np.count_nonzero(fast.holds(condition.left))))
        held = fast.holds(condition)
        for lane, reference in list(self._sample.items()):
            self._agree(lane, line, f"`assert {print_expression(condition)}`", reference.holds(condition), bool(held[lane]))
        wrong = ~held & ~failed
        if wrong.any():
            message = f"`assert {print_expression(condition)}` doesn't hold"
            self._find(Failure(line, "assertion", message), self._simplest(wrong), int(wrong.sum()))
            failed |= wrong

    def _count_check(self, line: int, number: int, lanes: int) -> None:
        checks = self._campaign.checks
        checks[line, number] = checks.get((line, number), 0) + lanes

    def _simplest(self, lanes: np.ndarray) -> int:
        """Of the lanes marked (or the first thousand of them), the one with the shortest values."""
        marked: list[int] = np.flatnonzero(lanes)[:1000].tolist()
        return min(marked, key=lambda lane: sum(value.bit_length() for value in in_lane(self._values, lane).values()))

    def _find(self, failure: Failure, lane: int, lanes: int) -> None:
        """Record a failure; one finding a line and kind, the first, with the number of lanes."""
        findings = self._campaign.findings
        for index, known in enumerate(findings):
            if (known.failure.line, known.failure.kind) == (failure.line, failure.kind):
                findings[index] = Finding(known.failure, known.values, known.lanes + lanes)
                return
        values = in_lane(self._values, lane)
        if failure.kind == "assertion":
            # The reference says with which values the condition fails.
            replayed = run(self._program, values, Implementation.REFERENCE).failure
            if replayed is None or replayed.line != failure.line:
                message = f"{failure.message} on the fast path; the reference: {replayed or 'passes'}"
                failure = Failure(failure.line, "implementations differ", message)
            else:
                failure = replayed
        findings.append(Finding(failure, values, lanes))
