"""A unit of work: programs of one or two shapes, drawn from a seed and a number; every step of them judged."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from capvisor.campaign import coverage
from capvisor.campaign.case import Case, Operation
from capvisor.campaign.mutation import mutated
from capvisor.campaign.numbers import Term
from capvisor.campaign.oracles import ObservedMemory, Oracles
from capvisor.campaign.recipes import COMPARISONS, PROFILES, Shape, draw_shape, rows_of
from capvisor.campaign.reference import Mirror, Recording, batch_machine
from capvisor.fastpath.machine import BatchMachine
from capvisor.fastpath.workspace import Words
from capvisor.spec.encodings import encode
from capvisor.spec.formats import FORMATS, CapabilityFormat
from capvisor.spec.operations import OPERATIONS
from capvisor.spec.traps import CAUSES_BY_NUMBER

LANES = 512
"""How many programs a unit has: each of its shapes with as many choices of numbers."""

WIDE_LANES = 1 << 14
"""As many where nothing is compared with the reference, and invariants alone are the oracle."""

BLOCK_SHARE = 5 / 8
"""How much of the lanes a block has, so that there are two, the second one shorter."""

STEPPINGS = ("lock step", "divergent", "words")
"""How the fast path is told what to do: one operation for all lanes, one for each, or one word for each."""

FOCUSED = 3
"""How many operations a new shape has because it is their turn."""

IDLE: Operation = ("addi", (0, 0, 0))
"""What a shorter shape does while a longer one goes on."""

LaneOperation = tuple[str, tuple[Any, ...]]
"""An operation whose operands may be arrays of one number a lane."""


@dataclass(frozen=True)
class Work:
    """What to do: everything that a unit's result depends on."""

    seed: int
    shard: int
    count: int
    format: str
    profile: str
    corpus: tuple[Shape, ...] = ()
    """Shapes worth changing, of earlier units."""
    compare: bool = True
    """Whether every step is executed on the reference too."""


@dataclass(frozen=True)
class Failure:
    """A step that went wrong, and the program up to it."""

    kind: str
    """`differs` from the reference, `breaks` an invariant, `crashes`; of a peer: `peer differs` or `peer fails`."""
    what: str
    """The part of the state that differs, the invariant, or the error."""
    stepping: str
    case: Case
    shard: int
    lane: int
    notes: tuple[str, ...] = ()
    """What else is known of it: what a peer said."""

    @property
    def signature(self) -> str:
        """What makes two failures the same: what went wrong, by which operation."""
        name = self.case.operations[-1][0] if self.case.operations else "reset"
        return f"{name} {self.kind} {self.what}"


@dataclass
class Outcome:
    """What a unit has done and found."""

    shard: int
    shapes: tuple[Shape, ...] = ()
    programs: int = 0
    operations: int = 0
    executed: Counter[str] = field(default_factory=Counter)
    trapped: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    """Whole states compared with the reference."""
    changed: Counter[str] = field(default_factory=Counter)
    """By part of the state: how often the reference had changed it when it was compared."""
    evaluated: Counter[str] = field(default_factory=Counter)
    concerned: Counter[str] = field(default_factory=Counter)
    behaviours: tuple[frozenset[coverage.Behaviour], ...] = ()
    """What each shape did, for coverage."""
    failures: list[Failure] = field(default_factory=list)


class RandomSource:
    """Choices from a generator of random numbers."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._drawn: list[int] = []

    def below(self, count: int) -> int:
        """A number from 0 to count - 1."""
        if not self._drawn:
            self._drawn = self._rng.integers(0, 1 << 63, 256, dtype=np.uint64).tolist()
        return self._drawn.pop() % count


def stepping_of(shard: int) -> str:
    """How a unit steps: most in lock step, some otherwise."""
    return {6: "divergent", 7: "words"}.get(shard % 8, "lock step")


def perform(work: Work) -> Outcome:
    """Draw a unit's programs, execute them on both implementations and judge every step."""
    rng = np.random.default_rng([work.seed, work.shard])
    fmt, stepping = FORMATS[work.format], stepping_of(work.shard) if work.compare else "lock step"
    source = RandomSource(rng)
    parts = 1 if stepping == "lock step" or work.count < 2 else 2
    shapes = tuple(draw(source, fmt, work) for _ in range(parts))
    half = work.count // 2
    slices = (slice(0, work.count),) if parts == 1 else (slice(0, half), slice(half, work.count))
    groups = [
        _Group(part, tuple(fill(shape, rng, part.stop - part.start, fmt)))
        for shape, part in zip(shapes, slices, strict=True)
    ]
    outcome = Outcome(work.shard, shapes)
    _Run(Case(work.format, ()), groups, stepping, outcome, compare=work.compare).run()
    return outcome


def try_out(
    shape: Shape,
    operations: list[LaneOperation],
    lanes: int,
    fmt: CapabilityFormat,
    shard: int,
    stepping: str = STEPPINGS[0],
) -> Outcome:
    """Execute the programs of one shape, filled with numbers, on both implementations."""
    outcome = Outcome(shard, (shape,))
    _Run(Case(fmt.name, ()), [_Group(slice(0, lanes), tuple(operations))], stepping, outcome).run()
    return outcome


def program_of_lane(fmt: CapabilityFormat, operations: list[LaneOperation], lane: int) -> Case:
    """The program of one lane."""
    group = _Group(slice(0, lane + 1), tuple(operations))
    return group.case(Case(fmt.name, ()), lane, len(operations))


JUDGED_LANES = 3
"""In how many lanes a single program is judged: a whole block, and one that isn't."""


def judge(case: Case, stepping: str = STEPPINGS[0], *, oracles: bool = True) -> Failure | None:
    """Execute one program on both implementations, up to its first failure; without oracles, they are compared alone."""
    outcome = Outcome(0)
    if case.operations:
        _Run(case, [_Group(slice(0, JUDGED_LANES), case.operations)], stepping, outcome, oracles=oracles).run()
    return outcome.failures[0] if outcome.failures else None


def draw(source: RandomSource, fmt: CapabilityFormat, work: Work) -> Shape:
    """A new shape, or one of the corpus with changes."""
    profile = PROFILES[work.profile]
    if work.corpus and work.shard % 2:
        return mutated(work.corpus[source.below(len(work.corpus))], source, fmt, profile, work.corpus)
    # Each operation in turn, so that none is left to chance.
    rows = rows_of(fmt, profile.groups)
    first = FOCUSED * (work.shard // 2 if work.corpus else work.shard)
    return draw_shape(source, fmt, profile, [rows[(first + place) % len(rows)] for place in range(FOCUSED)])


def fill(shape: Shape, rng: np.random.Generator, lanes: int, fmt: CapabilityFormat) -> list[LaneOperation]:
    """The operations of a shape with arrays of numbers, one a lane, where it has terms."""
    return [
        (name, tuple(_numbers(each, rng, lanes, fmt) if isinstance(each, Term) else each for each in operands))
        for name, operands in shape
    ]


def _numbers(term: Term, rng: np.random.Generator, lanes: int, fmt: CapabilityFormat) -> Words:
    def below(count: int) -> Words:
        return rng.integers(0, count - 1, lanes, dtype=np.uint64, endpoint=True)

    def lookup(bases: tuple[int, ...], places: Words) -> Words:
        return np.array([base % 2**64 for base in bases], np.uint64)[places.astype(np.intp)]

    def shift(mantissa: Words, distance: Words) -> Words:
        return mantissa << distance

    numbers: Words = term.draw(below, lookup, shift) & np.uint64(fmt.address_mask)
    return numbers


@dataclass(frozen=True)
class _Group:
    """Neighbouring lanes, and the operations that they execute."""

    lanes: slice
    operations: tuple[LaneOperation, ...]

    @property
    def sample(self) -> slice:
        """The lanes whose behaviours are looked at."""
        return slice(self.lanes.start, min(self.lanes.stop, self.lanes.start + LANES))

    @property
    def count(self) -> int:
        return self.lanes.stop - self.lanes.start  # type: ignore[no-any-return]

    def at(self, step: int) -> LaneOperation:
        """The operation of a step; nothing once it has ended."""
        return self.operations[step] if step < len(self.operations) else IDLE

    def programs(self, steps: int) -> list[list[Operation]]:
        """The operations of each lane, in plain numbers."""
        programs: list[list[Operation]] = [[] for _ in range(self.count)]
        for name, operands in (self.at(step) for step in range(steps)):
            if any(isinstance(each, np.ndarray) for each in operands):
                columns = [each.tolist() if isinstance(each, np.ndarray) else [each] * self.count for each in operands]
                for program, values in zip(programs, zip(*columns, strict=True), strict=True):
                    program.append((name, values))
            else:
                for program in programs:
                    program.append((name, operands))
        return programs

    def case(self, start: Case, lane: int, steps: int) -> Case:
        """The program of one lane, up to a step."""
        own = lane - self.lanes.start
        operations = tuple(
            (name, tuple(int(each[own]) if isinstance(each, np.ndarray) else each for each in operands))
            for name, operands in (self.at(step) for step in range(steps))
        )
        return start.with_operations(operations)


class _Run:
    """The execution of groups of lanes, in step."""

    def __init__(
        self,
        start: Case,
        groups: Sequence[_Group],
        stepping: str,
        outcome: Outcome,
        *,
        compare: bool = True,
        oracles: bool = True,
    ) -> None:
        self._start, self._groups, self._stepping, self._outcome = start, groups, stepping, outcome
        self._steps = max(len(group.operations) for group in groups)
        lanes = groups[-1].lanes.stop
        self._machine = batch_machine(start, lanes, max(1, round(lanes * BLOCK_SHARE)), ObservedMemory)
        self._oracles = [Oracles(self._machine, group.lanes) for group in groups] if oracles else []
        self._mirror: Mirror | None = None
        if compare:
            programs = [program for group in groups for program in group.programs(self._steps)]
            self._recording = Recording(start, programs)
            self._mirror = Mirror(start, self._recording)
        self._alive = np.ones(lanes, np.bool_)

    def run(self) -> None:
        outcome, machine = self._outcome, self._machine
        seen: list[set[coverage.Behaviour]] = [set() for _ in self._groups]
        for step in range(self._steps):
            classes = []
            for oracles, group in zip(self._oracles, self._groups, strict=False):
                oracles.before(*group.at(step))
            for group in self._groups:
                name, operands = group.at(step)
                classes.append(coverage.classify(machine, group.sample, name, operands))
            try:
                advance(machine, [(group.lanes, *group.at(step)) for group in self._groups], self._stepping)
            except (ArithmeticError, IndexError, TypeError, ValueError, LookupError) as error:
                self._fail("crashes", type(error).__name__, self._crashing_lane(step), step)
                break
            for place, group in enumerate(self._groups):
                if step < len(group.operations):
                    seen[place] |= self._count(group, step, classes[place])
            broken = [violation for oracles in self._oracles for violation in oracles.after()]
            if self._mirror is not None:
                self._compare(self._mirror, step)
            alive = self._alive.copy()
            for violation in broken:
                lanes = violation.lanes[alive[violation.lanes]]
                if len(lanes):
                    self._fail("breaks", violation.invariant, int(lanes[0]), step)
                    self._alive[lanes] = False
            if not self._alive.any():
                break
        outcome.programs = len(self._alive)
        outcome.behaviours = tuple(frozenset(each) for each in seen)
        for oracles in self._oracles:
            outcome.evaluated.update(oracles.evaluated)
            outcome.concerned.update(oracles.concerned)
        if self._mirror is not None:
            outcome.changed.update(self._mirror.changed)

    def _count(self, group: _Group, step: int, classes: Any) -> set[coverage.Behaviour]:
        outcome, name = self._outcome, group.operations[step][0]
        causes = self._machine.cause[group.lanes]
        numbers, counts = np.unique(causes, return_counts=True)
        outcome.operations += group.count
        outcome.executed[name] += group.count
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            if number:
                outcome.trapped[name] += count
                outcome.causes[CAUSES_BY_NUMBER[number].name] += count
        return coverage.behaviours(name, causes[: len(classes)], classes)

    def _compare(self, mirror: Mirror, step: int) -> None:
        mirror.advance(step)
        parts = mirror.parts(self._machine, step)
        self._outcome.compared += parts.shape[1]
        if not parts.any():
            return
        for what, wrong in zip(COMPARISONS, parts, strict=True):
            lanes = np.flatnonzero(wrong & self._alive)
            if len(lanes):
                self._fail("differs", what, int(lanes[0]), step)
                self._alive[lanes] = False

    def _crashing_lane(self, step: int) -> int:
        """A lane whose program ends with an error by itself; where none does, the first."""
        lanes = self._groups[-1].lanes.stop
        if lanes > JUDGED_LANES:
            for group in self._groups:
                for lane in range(group.lanes.start, group.lanes.stop):
                    found = judge(group.case(self._start, lane, step + 1), self._stepping, oracles=False)
                    if found is not None and found.kind == "crashes":
                        return lane
        return 0

    def _fail(self, kind: str, what: str, lane: int, step: int) -> None:
        """A failure; of those with one signature, the first."""
        group = next(each for each in self._groups if each.lanes.start <= lane < each.lanes.stop)
        case = group.case(self._start, lane, step + 1)
        failure = Failure(kind, what, self._stepping, case, self._outcome.shard, lane)
        if all(each.signature != failure.signature for each in self._outcome.failures):
            self._outcome.failures.append(failure)


def advance(machine: BatchMachine, groups: Sequence[tuple[slice, str, tuple[Any, ...]]], stepping: str) -> None:
    """Execute one operation in each group of lanes, in one of the ways there are."""
    if stepping == "lock step":
        ((_lanes, name, operands),) = groups
        machine.step(name, operands)
        return
    if stepping == "words" and all(_has_word(name) for _lanes, name, _operands in groups):
        words = np.empty(machine.lanes, np.uint32)
        for lanes, name, operands in groups:
            words[lanes] = encode(name, operands, machine.format.address_width)
        machine.step_words(words)
        return
    chosen, columns = np.empty(machine.lanes, np.int64), np.zeros((machine.lanes, 3), np.int64)
    for number, (lanes, _name, operands) in enumerate(groups):
        chosen[lanes] = number
        for column, value in enumerate(operands):
            columns[lanes, column] = value.view(np.int64) if isinstance(value, np.ndarray) else _signed(value)
    machine.step_divergent([name for _lanes, name, _operands in groups], chosen, columns)


def _has_word(name: str) -> bool:
    """Whether an operation has a word that means it in both modes."""
    return name != "li" and OPERATIONS[name].mode is None


def _signed(value: int) -> int:
    """The number of 64 bits with a sign that has the same bits."""
    return (value & 2**64 - 1 ^ 1 << 63) - (1 << 63)
