"""The campaign of cVMs: hostile and well-behaved compartments, drawn unit by unit, on both implementations.

A unit depends on the seed and its number alone. Every step is executed on the reference and on the fast path, the whole
state of every lane is compared, and the step is held against all invariants of cVMs in every lane.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from capvisor.campaign.cvm_attacks import play
from capvisor.campaign.cvm_drill import Drill, drill
from capvisor.campaign.cvm_mirror import PARTS
from capvisor.campaign.cvm_program import Failing, events_of, program, reduced
from capvisor.campaign.cvm_systems import CRASHES, DIFFERS, Found, Systems
from capvisor.campaign.systems import SystemFailure, SystemFinding, SystemWork
from capvisor.campaign.unit import Failure, Outcome, Work
from capvisor.dsl.system import DEFAULT_POLICY, policy_named
from capvisor.dsl.system_kinds import CVM
from capvisor.spec.cvm import CALLS, Code
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
from capvisor.spec.formats import FORMATS
from capvisor.spec.operations import OPERATIONS, Group
from capvisor.spec.traps import CAUSES_BY_NAME

if TYPE_CHECKING:
    from capvisor.campaign.coverage import Behaviour
    from capvisor.campaign.engine import Report

PROFILE = "cvm"
LANES, MOVES = 256, 20
"""Programs of a unit, and how many moves each makes."""

DRILL_EVERY, DRILL_LANES = 64, 4
"""Of so many units the first has some lanes in which every call is made, and refused for every reason."""

MOST_CRASHING = 8
"""How many lanes are tried to find one that crashes by itself."""

MOSTLY_REFUSED = 0.8
"""The share of refused calls, or of instructions, above which a campaign says little."""


def perform(work: Work) -> Outcome:
    """Draw a unit's systems, execute their steps on both implementations and judge every one."""
    policy_name = work.policy if isinstance(work, SystemWork) else DEFAULT_POLICY
    fmt, policy = FORMATS[work.format], policy_named(policy_name, CVM)[1]
    outcome = Outcome(work.shard)
    drilled = min(DRILL_LANES, work.count) if work.shard % DRILL_EVERY == 0 else 0
    hybrid = drilled - drilled // 2
    runs = [drill(fmt, hybrid, policy)] if hybrid else []
    if drilled > hybrid:
        runs.append(drill(fmt, drilled - hybrid, policy, Drill.run_purecap))
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
    outcome.causes.update(counts.causes)
    for (name, code), count in (*counts.calls.items(), *counts.deployed.items()):
        outcome.executed[name] += count
        if code != Code.OK.name:
            outcome.trapped[name] += count
            outcome.causes[code] += count
    outcome.changed.update(systems.mirror.changed)
    if systems.oracles is not None:
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
    """What was answered: an operation and a trap's cause, a call and a code."""
    counts = systems.counts
    answers = {(name, Code[code].value, 0) for name, code in (*counts.calls, *counts.deployed)}
    return answers | {(name, CAUSES_BY_NAME[cause].number if cause else 0, 1) for name, cause in counts.outcomes}


def _failure(systems: Systems, found: Found, policy: str, shard: int, first: int) -> SystemFailure:
    kind = found.what if found.what in (DIFFERS, CRASHES) else "breaks"
    what = {DIFFERS: _part(found.details[0]), CRASHES: found.details[0].split(":")[0]}.get(found.what, found.what)
    lane = _crashing_lane(systems, found) if kind == CRASHES else found.lane
    events = tuple(events_of(systems, lane, found.events))
    return SystemFailure(kind, what, found.step, events, systems.format.name, policy, shard, first + lane, found.details)


def _crashing_lane(systems: Systems, found: Found) -> int:
    """A lane that ends the fast path by itself, of the first that took part; where none does, the first."""
    fails = Failing(systems.format, systems.policy, CRASHES)
    lanes = np.flatnonzero(systems.events[found.events - 1].lanes)[:MOST_CRASHING].tolist()
    return next((lane for lane in lanes if fails(events_of(systems, lane, found.events))), found.lane)


def _part(difference: str) -> str:
    """The part of the state that differs, without what is of this one program."""
    name = difference.split(":", maxsplit=1)[0]
    words = [word for word in name.split() if not word.removeprefix("0x").isalnum() or not any(map(str.isdigit, word))]
    return {("thread",): "registers", ("memory", "at"): "memory"}.get(tuple(words), " ".join(words))


# -- findings --------------------------------------------------------------------------------------------------------------


class CvmFinding(SystemFinding):
    """A failure of a system of cVMs as small as it could be made."""

    profile, invariants = PROFILE, CVM_INVARIANTS


def finding_of(failure: SystemFailure, _fails: object = None) -> CvmFinding:
    """Make a failure small."""
    fmt, policy = FORMATS[failure.format], policy_named(failure.policy, CVM)[1]
    found = reduced(fmt, policy, failure.events, failure.what if failure.kind == "breaks" else failure.kind)
    events, tried = (list(failure.events), 0) if found is None else found
    lines = tuple(program(fmt, policy, events))
    return CvmFinding(failure, tuple(events), lines, found is not None, tried)


# -- what was never put to the test ----------------------------------------------------------------------------------------

_DEPLOYED: Mapping[str, Sequence[Code]] = {
    "create": (Code.OK, Code.EXISTS, Code.FULL, Code.RANGE, Code.NOT_FOUND),
    "destroy": (Code.OK, Code.NOT_FOUND, Code.BUSY),
    "start_thread": (Code.OK,),
}
"""What the deployer's operations may answer."""


def weaknesses(report: "Report") -> list[str]:
    """Why a campaign that found nothing says less than it seems: what never ran, or was never refused."""
    found = []
    for name, codes in {**{row.name: (Code.OK, *row.all_refusals) for row in CALLS.values()}, **_DEPLOYED}.items():
        never = [code.name for code in codes if (name, code.value, 0) not in report.behaviours]
        if len(never) == len(codes):
            found.append(f"never called: {name}")
        elif Code.OK.name in never:
            found.append(f"always refused: {name}")
        elif never:
            found.append(f"never refused as {', '.join(never)}: {name}")
    width = FORMATS[report.settings.format].address_width
    ran = {row.group for row in OPERATIONS.values() if report.executed[row.name]}
    idle = [group for group in Group if group not in ran and _has_operations(group, width)]
    if idle:
        found.append(f"no instruction was executed of: {', '.join(group.value for group in idle)}")
    calls, instructions = (sum(counts[name] for name in CALLS) for counts in (report.executed, report.trapped)), OPERATIONS
    made, refused = calls
    if refused > MOSTLY_REFUSED * max(made, 1):
        found.append("most calls were refused")
    if sum(report.trapped[name] for name in instructions) > MOSTLY_REFUSED * max(report.operations, 1):
        found.append("most instructions were refused")
    if unchanged := [name for name in PARTS if not report.changed[name]]:
        found.append(f"compared, but never changed: {', '.join(unchanged)}")
    if silent := [name for name in CVM_INVARIANTS if not report.concerned[name]]:
        found.append(f"never put to the test: {', '.join(silent)}")
    return found


def _has_operations(group: Group, width: int) -> bool:
    return any(row.group is group and row.minimum_xlen <= width for row in OPERATIONS.values())
