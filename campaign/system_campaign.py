"""The campaign of a kind of system: its units, what they found made small, and what was never put to the test.

A unit depends on the seed and its number alone. Every step is executed on the reference and on the fast path, the whole
state of every lane is compared, and the step is held against all invariants in every lane. A kind says what is drawn, how it
counts what was refused, and what its programs are (`campaign.programs`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from capvisor.campaign.programs import Programs
from capvisor.campaign.systems import CRASHES, DIFFERS, Found, SystemFailure, SystemFinding, SystemWork
from capvisor.campaign.unit import Failure, Outcome, Work
from capvisor.dsl.system import DEFAULT_POLICY, policy_named
from capvisor.fastpath.workspace import Flags
from capvisor.spec.formats import FORMATS
from capvisor.spec.operations import OPERATIONS as INSTRUCTIONS
from capvisor.spec.operations import Group

if TYPE_CHECKING:
    from capvisor.campaign.coverage import Behaviour
    from capvisor.campaign.engine import Report

DRILL_EVERY = 64
"""Of so many units the first has some lanes in which everything is done, and refused for every reason."""

MOST_CRASHING = 8
"""How many lanes are tried to find one that crashes by itself."""

MOSTLY_REFUSED = 0.8
"""The share of refused operations, or of instructions, above which a campaign says little."""


def drilled(work: Work, lanes: int) -> int:
    """How many lanes of a unit have a drill, of so many that there ought to be."""
    return min(lanes, work.count) if work.shard % DRILL_EVERY == 0 else 0


class SystemCampaign(ABC):
    """What a kind of system says of its campaigns."""

    programs: Programs[Any]
    parts: Sequence[str]
    """The parts of a state that are compared, and that some step ought to change."""

    @property
    def profile(self) -> str:
        """What the command calls it."""
        return self.programs.kind.name

    @property
    def invariants(self) -> Mapping[str, Any]:
        """Those that steps are held against, by name."""
        return self.programs.kind.invariants

    @abstractmethod
    def runs(self, work: Work, policy: Any) -> Iterator[tuple[Any, Any]]:
        """A unit's systems, in which everything has been done, and what each is at the start, if that isn't always the same.

        They have `lanes`, `policy`, `counts`, `mirror.changed`, `oracles`, and what `campaign.systems.Compared` says.
        """

    @abstractmethod
    def count_refused(self, outcome: Outcome, counts: Any) -> None:
        """Add what was refused, by name and by cause."""

    @abstractmethod
    def behaviours(self, counts: Any) -> "Iterable[Behaviour]":
        """How steps ended: names, each with the number of an end, and which kind of end that is."""

    @abstractmethod
    def ends(self) -> Mapping[str, Mapping[tuple[int, int], str]]:
        """By name, all ends that there are, and what they are called: that of a step that is done is (0, 0)."""

    @abstractmethod
    def idle(self, report: "Report") -> list[str]:
        """What else wasn't done, or was mostly refused."""

    def acting(self, systems: Any, found: Found) -> Flags:
        """The lanes that took part in the step that something was found after."""
        lanes: Flags = systems.events[found.events - 1].lanes
        return lanes

    # -- units -------------------------------------------------------------------------------------------------------------

    def perform(self, work: Work) -> Outcome:
        """Draw a unit's systems, execute their steps on both implementations and judge every one."""
        policy = work.policy if isinstance(work, SystemWork) else DEFAULT_POLICY
        outcome, first = Outcome(work.shard), 0
        for systems, start in self.runs(work, policy_named(policy, self.programs.kind)[1]):
            self._merge(outcome, systems, start, policy, first)
            first += systems.lanes
        return outcome

    def _merge(self, outcome: Outcome, systems: Any, start: Any, policy: str, first: int) -> None:
        """Add what systems did and found; the first of their lanes has that number."""
        counts = systems.counts
        outcome.programs += systems.lanes
        outcome.operations += counts.steps
        outcome.compared += counts.compared
        outcome.executed.update(counts.executed)
        self.count_refused(outcome, counts)
        outcome.changed.update(systems.mirror.changed)
        assert systems.oracles is not None
        outcome.evaluated.update(systems.oracles.evaluated)
        outcome.concerned.update(systems.oracles.concerned)
        outcome.behaviours = (*outcome.behaviours, frozenset(self.behaviours(counts)))
        known = {failure.signature for failure in outcome.failures}
        for found in systems.found:
            failure = self._failure(systems, start, found, policy, outcome.shard, first)
            if failure.signature not in known:
                known.add(failure.signature)
                outcome.failures.append(cast(Failure, failure))

    def _failure(self, systems: Any, start: Any, found: Found, policy: str, shard: int, first: int) -> SystemFailure:
        kind = found.what if found.what in (DIFFERS, CRASHES) else "breaks"
        detail = found.details[0].split(":")[0]
        what = {DIFFERS: part_of(detail), CRASHES: detail}.get(found.what, found.what)
        lane = self._crashing_lane(systems, start, found) if kind == CRASHES and found.events else found.lane
        case = self.programs.case_of(systems, start, lane, found.events)
        return SystemFailure(self.profile, kind, what, found.step, case, policy, shard, first + lane, found.details)

    def _crashing_lane(self, systems: Any, start: Any, found: Found) -> int:
        """A lane that ends an implementation by itself, of the first that took part; where none does, the first."""
        programs = self.programs
        lanes = np.flatnonzero(self.acting(systems, found))[:MOST_CRASHING].tolist()
        cases = {lane: programs.case_of(systems, start, lane, found.events) for lane in lanes}
        fails = programs.fails(systems.policy, CRASHES)
        return next((lane for lane, case in cases.items() if fails(case)), found.lane)

    def finding_of(self, failure: SystemFailure, _fails: object = None) -> SystemFinding:
        """Make a failure small."""
        programs, policy = self.programs, policy_named(failure.policy, self.programs.kind)[1]
        found = programs.reduced(policy, failure.case, failure.what if failure.kind == "breaks" else failure.kind)
        case, tried = (failure.case, 0) if found is None else found
        return SystemFinding(failure, tuple(programs.program(policy, case)), found is not None, tried)

    # -- what was never put to the test ------------------------------------------------------------------------------------

    def weaknesses(self, report: "Report") -> list[str]:
        """Why a campaign that found nothing says less than it seems: what was never done, never refused, never looked at."""
        found = []
        for name, ends in self.ends().items():
            never = [end for end in ends if (name, *end) not in report.behaviours]
            if len(never) == len(ends):
                found.append(f"never done: {name}")
            elif (0, 0) in never:
                found.append(f"always refused: {name}")
            elif never:
                found.append(f"{name} never ended as {', '.join(ends[end] for end in never)}")
        found += self.idle(report)
        if unchanged := [name for name in self.parts if not report.changed[name]]:
            found.append(f"compared, but never changed: {', '.join(unchanged)}")
        if silent := [name for name in self.invariants if not report.concerned[name]]:
            found.append(f"never put to the test: {', '.join(silent)}")
        return found


def mostly_refused(report: "Report", names: Iterable[str]) -> bool:
    """Whether most of what has one of some names was refused."""
    made, refused = (sum(counts[name] for name in names) for counts in (report.executed, report.trapped))
    return refused > MOSTLY_REFUSED * max(made, 1)


def idle_groups(report: "Report") -> list[str]:
    """The groups of instructions of which none was executed, if there are any."""
    width = FORMATS[report.settings.format].address_width
    ran = {row.group for row in INSTRUCTIONS.values() if report.executed[row.name]}
    there = {row.group for row in INSTRUCTIONS.values() if row.minimum_xlen <= width}
    idle = [group.value for group in Group if group in there and group not in ran]
    return [f"no instruction was executed of: {', '.join(idle)}"] if idle else []


def part_of(difference: str) -> str:
    """The part of the state that differs, without what is of this one program."""
    words = [each.strip(",") for each in difference.split()]
    words = [each for each in words if not each.removeprefix("0x").isalnum() or not any(map(str.isdigit, each))]
    return {("thread",): "registers", ("memory", "at"): "memory"}.get(tuple(words), " ".join(words))
