"""The campaign of shared objects: tenants that don't trust each other, and the base, drawn unit by unit.

A unit depends on the seed and its number alone. Every step is executed on the reference and on the fast path, the whole
state of every lane is compared, and the step is held against O1 to O17 in every lane.
"""

from typing import TYPE_CHECKING, cast

import numpy as np

from capvisor.campaign.orc_drill import NEVER, drill
from capvisor.campaign.orc_mirror import PARTS
from capvisor.campaign.orc_moves import play
from capvisor.campaign.orc_program import Case, Failing, events_of, program, reduced
from capvisor.campaign.orc_systems import Deployment, Systems
from capvisor.campaign.systems import CRASHES, DIFFERS, Found, SystemFailure, SystemFinding, SystemWork
from capvisor.campaign.unit import Failure, Outcome, Work
from capvisor.dsl.system import DEFAULT_POLICY, policy_named
from capvisor.dsl.system_kinds import ORC
from capvisor.spec.formats import FORMATS
from capvisor.spec.operations import OPERATIONS as INSTRUCTIONS
from capvisor.spec.operations import Group
from capvisor.spec.orc import OPERATIONS, Code
from capvisor.spec.orc_invariants import ORC_INVARIANTS
from capvisor.spec.traps import CAUSES_BY_NUMBER

if TYPE_CHECKING:
    from capvisor.campaign.coverage import Behaviour
    from capvisor.campaign.engine import Report

PROFILE = "orc"
LANES, MOVES = 256, 40
"""Programs of a unit, and how many moves each makes."""

DRILL_EVERY, DRILL_LANES = 64, 2
"""Of so many units the first has some lanes in which everything is done, and refused for every reason."""

MOST_CRASHING = 8
"""How many lanes are tried to find one that crashes by itself."""

MOSTLY_REFUSED = 0.8
"""The share of refused operations, or of instructions, above which a campaign says little."""


def perform(work: Work) -> Outcome:
    """Draw a unit's systems, execute their steps on both implementations and judge every one."""
    policy_name = work.policy if isinstance(work, SystemWork) else DEFAULT_POLICY
    fmt, policy = FORMATS[work.format], policy_named(policy_name, ORC)[1]
    outcome = Outcome(work.shard)
    drilled = min(DRILL_LANES, work.count) if work.shard % DRILL_EVERY == 0 else 0
    runs = [drill(fmt, drilled, policy)] if drilled else []
    if work.count > drilled:
        runs.append(play([work.seed, work.shard], fmt, work.count - drilled, MOVES, policy, work.shard))
    first = 0
    for systems in runs:
        _merge(outcome, systems, policy_name, first)
        first += systems.lanes
    return outcome


def _merge(outcome: Outcome, systems: Systems, policy: str, first: int) -> None:
    """Add what systems did and found; the first of their lanes has that number."""
    counts = systems.counts
    outcome.programs += systems.lanes
    outcome.operations += counts.steps
    outcome.compared += counts.compared
    outcome.executed.update(counts.executed)
    outcome.trapped.update(counts.trapped)
    for (_name, number), count in counts.codes.items():
        if number:
            outcome.causes[Code(number).name] += count
    for (_name, number), count in counts.causes.items():
        if number:
            outcome.causes[CAUSES_BY_NUMBER[number].name] += count
    outcome.changed.update(systems.mirror.changed)
    assert systems.oracles is not None
    outcome.evaluated.update(systems.oracles.evaluated)
    outcome.concerned.update(systems.oracles.concerned)
    outcome.behaviours = (*outcome.behaviours, frozenset(_behaviours(systems)))
    known = {failure.signature for failure in outcome.failures}
    for found in systems.found:
        failure = _failure(systems, found, policy, outcome.shard, first)
        if failure.signature not in known:
            known.add(failure.signature)
            outcome.failures.append(cast(Failure, failure))


def _behaviours(systems: Systems) -> "set[Behaviour]":
    """How steps ended: an operation and a code, an instruction and a trap's cause."""
    counts = systems.counts
    return {(name, number, 0) for name, number in counts.codes} | {(name, number, 1) for name, number in counts.causes}


def _failure(systems: Systems, found: Found, policy: str, shard: int, first: int) -> SystemFailure:
    kind = found.what if found.what in (DIFFERS, CRASHES) else "breaks"
    detail = found.details[0].split(":")[0]
    what = {DIFFERS: _part(detail), CRASHES: detail}.get(found.what, found.what)
    lane = _crashing_lane(systems, found) if kind == CRASHES and found.events else found.lane
    events = tuple(events_of(systems, lane, found.events))
    start = systems.deployment
    return SystemFailure(
        kind, what, found.step, events, systems.format.name, policy, shard, first + lane, found.details, start
    )


def _part(difference: str) -> str:
    """The part of the state that differs, without what is of this one program."""
    words = [word for word in difference.split() if not word.removeprefix("0x").isalnum() or not any(map(str.isdigit, word))]
    return {("thread",): "registers", ("memory", "at"): "memory"}.get(tuple(words), " ".join(words))


def _crashing_lane(systems: Systems, found: Found) -> int:
    """A lane that ends an implementation by itself, of the first that took part; where none does, the first."""
    fails = Failing(systems.policy, CRASHES)
    lanes = np.flatnonzero(systems.events[found.events - 1].lanes)[:MOST_CRASHING].tolist()
    cases = {lane: _case(systems.format.name, systems.deployment, events_of(systems, lane, found.events)) for lane in lanes}
    return next((lane for lane, case in cases.items() if fails(case)), found.lane)


def _case(format_name: str, deployment: Deployment, events: object) -> Case:
    return Case(FORMATS[format_name], deployment, tuple(events))  # type: ignore[arg-type]


# -- findings --------------------------------------------------------------------------------------------------------------


class OrcFinding(SystemFinding):
    """A failure of a system of shared objects as small as it could be made."""

    profile, invariants = PROFILE, ORC_INVARIANTS

    @property
    def title(self) -> str:
        """What went wrong, in a line."""
        who, _space, error = self.failure.what.rpartition(" ")
        return f"`{self.failure.step}` ends the {who} with {error}" if self.failure.kind == CRASHES else super().title


def finding_of(failure: SystemFailure, _fails: object = None) -> OrcFinding:
    """Make a failure small."""
    policy, case = policy_named(failure.policy, ORC)[1], _case(failure.format, failure.start, failure.events)
    found = reduced(policy, case, failure.what if failure.kind == "breaks" else failure.kind)
    case, tried = (case, 0) if found is None else found
    return OrcFinding(failure, case.events, tuple(program(policy, case)), found is not None, tried)


# -- what was never put to the test ----------------------------------------------------------------------------------------


def weaknesses(report: "Report") -> list[str]:
    """Why a campaign that found nothing says less than it seems: what never ran, or was never refused."""
    found = []
    for name, row in OPERATIONS.items():
        codes = [code for code in (Code.OK, *row.refusals) if (name, code) not in NEVER]
        never = [code.name for code in codes if (name, code.value, 0) not in report.behaviours]
        if len(never) == len(codes):
            found.append(f"never done: {name}")
        elif Code.OK.name in never:
            found.append(f"always refused: {name}")
        elif never:
            found.append(f"never refused as {', '.join(never)}: {name}")
    width = FORMATS[report.settings.format].address_width
    ran = {row.group for row in INSTRUCTIONS.values() if report.executed[row.name]}
    there = {row.group for row in INSTRUCTIONS.values() if row.minimum_xlen <= width}
    idle = [group for group in Group if group in there and group not in ran]
    if idle:
        found.append(f"no instruction was executed of: {', '.join(group.value for group in idle)}")
    for what, names in (("operations", OPERATIONS), ("instructions", INSTRUCTIONS)):
        made, refused = (sum(counts[name] for name in names) for counts in (report.executed, report.trapped))
        if refused > MOSTLY_REFUSED * max(made, 1):
            found.append(f"most {what} were refused")
    if unchanged := [name for name in PARTS if not report.changed[name]]:
        found.append(f"compared, but never changed: {', '.join(unchanged)}")
    if silent := [name for name in ORC_INVARIANTS if not report.concerned[name]]:
        found.append(f"never put to the test: {', '.join(silent)}")
    return found
