"""The campaign of translation pass-through: guests, hosts, processors and devices, drawn unit by unit.

A unit depends on the seed and its number alone. Every step is executed on the reference and on the fast path, the whole
state of every lane is compared, and the step is held against T1 to T13 in every lane.
"""

from collections import Counter
from typing import TYPE_CHECKING, cast

import numpy as np

from capvisor.campaign.systems import CRASHES, DIFFERS, Found, SystemFailure, SystemFinding, SystemWork
from capvisor.campaign.tpt_drill import DEPLOYMENT, NEVER, drill
from capvisor.campaign.tpt_mirror import PARTS
from capvisor.campaign.tpt_moves import Deployment, play
from capvisor.campaign.tpt_program import Case, Failing, events_of, program, reduced
from capvisor.campaign.tpt_systems import Systems
from capvisor.campaign.unit import Failure, Outcome, Work
from capvisor.dsl.system import DEFAULT_POLICY, policy_named
from capvisor.dsl.system_kinds import TPT
from capvisor.spec.tpt import OPERATIONS, Code, FaultKind
from capvisor.spec.tpt_invariants import TPT_INVARIANTS

if TYPE_CHECKING:
    from capvisor.campaign.coverage import Behaviour
    from capvisor.campaign.engine import Report

PROFILE = "tpt"
LANES, MOVES = 1536, 24
"""Programs of a unit, and how many moves each makes."""

LARGE_EVERY, LARGE_LANES, LARGE_MOVES = 4, 128, 24
"""Of so many units the first has large systems too, a few of which are enough."""

DRILL_EVERY, DRILL_LANES = 64, 2
"""Of so many units the first has some lanes in which everything is done, and refused for every reason."""

MOST_CRASHING = 8
"""How many lanes are tried to find one that crashes by itself."""

MOSTLY_REFUSED = 0.8
"""The share of operations that are refused or meet a fault above which a campaign says little."""


def perform(work: Work) -> Outcome:
    """Draw a unit's systems, execute their steps on both implementations and judge every one."""
    policy_name = work.policy if isinstance(work, SystemWork) else DEFAULT_POLICY
    policy = policy_named(policy_name, TPT)[1]
    outcome = Outcome(work.shard)
    drilled = min(DRILL_LANES, work.count) if work.shard % DRILL_EVERY == 0 else 0
    if drilled:
        _merge(outcome, drill(drilled, policy), DEPLOYMENT, policy_name, 0)
    large = min(LARGE_LANES, (work.count - drilled) // 2) if work.shard % LARGE_EVERY == 0 else 0
    first = drilled
    for lanes, moves, is_large in ((work.count - drilled - large, MOVES, False), (large, LARGE_MOVES, True)):
        if lanes:
            seed = [work.seed, work.shard, int(is_large)]
            _merge(outcome, *play(seed, lanes, moves, policy, is_large=is_large, turn=work.shard), policy_name, first)
            first += lanes
    return outcome


def _merge(outcome: Outcome, systems: Systems, deployment: Deployment, policy: str, first: int) -> None:
    """Add what systems did and found; the first of their lanes has that number."""
    counts = systems.counts
    outcome.programs += systems.lanes
    outcome.operations += counts.steps
    outcome.compared += counts.compared
    outcome.executed.update(counts.executed)
    for (name, number), count in counts.codes.items():
        if number:
            outcome.trapped[name] += count
            outcome.causes[Code(number).name] += count
    for (name, number), count in counts.faults.items():
        if number:
            outcome.trapped[name] += count
            outcome.causes[f"fault {FaultKind(number).name.lower()}"] += count
    outcome.changed.update(systems.mirror.changed)
    assert systems.oracles is not None
    outcome.evaluated.update(systems.oracles.evaluated)
    outcome.concerned.update(systems.oracles.concerned)
    outcome.behaviours = (*outcome.behaviours, frozenset(_behaviours(systems)))
    known = {failure.signature for failure in outcome.failures}
    for found in systems.found:
        failure = _failure(systems, found, deployment, policy, outcome.shard, first)
        if failure.signature not in known:
            known.add(failure.signature)
            outcome.failures.append(cast(Failure, failure))


def _behaviours(systems: Systems) -> "set[Behaviour]":
    """How operations ended: with a code, or with a fault."""
    counts = systems.counts
    refused = {(name, number, 0): count for (name, number), count in counts.codes.items() if number}
    faults = {(name, number, 1): count for (name, number), count in counts.faults.items() if number}
    others: Counter[str] = Counter()
    for (name, _number, _kind), count in (*refused.items(), *faults.items()):
        others[name] += count
    done = {(name, Code.OK.value, 0) for name, count in counts.executed.items() if count > others[name]}
    return done | refused.keys() | faults.keys()


def _failure(systems: Systems, found: Found, deployment: Deployment, policy: str, shard: int, first: int) -> SystemFailure:
    kind = found.what if found.what in (DIFFERS, CRASHES) else "breaks"
    what = {DIFFERS: found.details[0].split(":")[0].split()[0], CRASHES: found.details[0].split(":")[0]}.get(
        found.what, found.what
    )
    lane = _crashing_lane(systems, found, deployment) if kind == CRASHES else found.lane
    events = tuple(events_of(systems, lane, found.events))
    return SystemFailure(kind, what, found.step, events, "", policy, shard, first + lane, found.details, deployment)


def _crashing_lane(systems: Systems, found: Found, deployment: Deployment) -> int:
    """A lane that ends the fast path by itself, of the first that took part; where none does, the first."""
    fails = Failing(systems.policy, CRASHES)
    lanes = np.flatnonzero(systems.events[found.events - 1].lanes)[:MOST_CRASHING].tolist()
    cases = {lane: Case(deployment, tuple(events_of(systems, lane, found.events))) for lane in lanes}
    return next((lane for lane, case in cases.items() if fails(case)), found.lane)


class TptFinding(SystemFinding):
    """A failure of a system of translation pass-through as small as it could be made."""

    profile, invariants = PROFILE, TPT_INVARIANTS


def finding_of(failure: SystemFailure, _fails: object = None) -> TptFinding:
    """Make a failure small."""
    policy, case = policy_named(failure.policy, TPT)[1], Case(failure.start, failure.events)
    found = reduced(policy, case, failure.what if failure.kind == "breaks" else failure.kind)
    case, tried = (case, 0) if found is None else found
    return TptFinding(failure, case.events, tuple(program(policy, case)), found is not None, tried)


# -- what was never put to the test ----------------------------------------------------------------------------------------


def weaknesses(report: "Report") -> list[str]:
    """Why a campaign that found nothing says less than it seems: what was never done, never refused, never met a fault."""
    found = []
    for name, row in OPERATIONS.items():
        ends = {(code.value, 0): code.name for code in (Code.OK, *row.refusals) if (name, code) not in NEVER}
        ends |= {(kind.value, 1): f"fault {kind.name.lower()}" for kind in row.faults}
        never = [text for (number, is_fault), text in ends.items() if (name, number, is_fault) not in report.behaviours]
        if len(never) == len(ends):
            found.append(f"never done: {name}")
        elif never:
            found.append(f"{name} never ended as {', '.join(never)}")
    if sum(report.trapped.values()) > MOSTLY_REFUSED * max(report.operations, 1):
        found.append("most operations were refused, or met a fault")
    if unchanged := [name for name in PARTS if not report.changed[name]]:
        found.append(f"compared, but never changed: {', '.join(unchanged)}")
    if silent := [name for name in TPT_INVARIANTS if not report.concerned[name]]:
        found.append(f"never put to the test: {', '.join(silent)}")
    return found
