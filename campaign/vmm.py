"""The campaign of a para-pass-through VMM: guests, drivers, devices, extensions and the VMM, drawn unit by unit.

A unit depends on the seed and its number alone. Every step is executed on the reference and on the fast path, the whole
state of every lane is compared, and the step is held against P1 to P17 in every lane.
"""

from typing import TYPE_CHECKING, cast

import numpy as np

from capvisor.campaign.systems import CRASHES, DIFFERS, Found, SystemFailure, SystemFinding, SystemWork
from capvisor.campaign.unit import Failure, Outcome, Work
from capvisor.campaign.vmm_drill import DEPLOYMENT, NEVER, drill
from capvisor.campaign.vmm_moves import Deployment, play
from capvisor.campaign.vmm_program import Case, Failing, events_of, program, reduced
from capvisor.campaign.vmm_states import FIXED, PARTS
from capvisor.campaign.vmm_systems import NUMBERS, Systems
from capvisor.dsl.system import DEFAULT_POLICY, policy_named
from capvisor.dsl.system_kinds import VMM
from capvisor.spec.vmm import OPERATIONS, Code
from capvisor.spec.vmm_invariants import VMM_INVARIANTS

if TYPE_CHECKING:
    from capvisor.campaign.coverage import Behaviour
    from capvisor.campaign.engine import Report

PROFILE = "vmm"
LANES, MOVES = 1024, 30
"""Programs of a unit, and how many moves each makes."""

TINY_LANES = 128
"""How many of them have little memory, so that moving the guest comes to its end."""

LARGE_EVERY, LARGE_LANES = 4, 64
"""Of so many units the first has machines with a region of more than 4 MiB too, a few of which are enough."""

DRILL_EVERY, DRILL_LANES = 64, 6
"""Of so many units the first has some lanes in which everything is done, and refused for every reason."""

MOST_CRASHING = 8
"""How many lanes are tried to find one that crashes by itself."""

MOSTLY_REFUSED = 0.8
"""The share of operations that are refused above which a campaign says little."""


def perform(work: Work) -> Outcome:
    """Draw a unit's machines, execute their steps on both implementations and judge every one."""
    policy_name = work.policy if isinstance(work, SystemWork) else DEFAULT_POLICY
    policy = policy_named(policy_name, VMM)[1]
    outcome = Outcome(work.shard)
    drilled = min(DRILL_LANES, work.count) if work.shard % DRILL_EVERY == 0 else 0
    if drilled:
        _merge(outcome, drill(drilled, policy), DEPLOYMENT, policy_name, 0)
    left = work.count - drilled
    large = min(LARGE_LANES, left // 3) if work.shard % LARGE_EVERY == 0 else 0
    tiny = min(TINY_LANES, left // 3)
    first = drilled
    for kind, (size, lanes) in enumerate((("small", left - large - tiny), ("tiny", tiny), ("large", large))):
        if lanes:
            systems, deployment = play([work.seed, work.shard, kind], lanes, MOVES, policy, size=size)
            _merge(outcome, systems, deployment, policy_name, first)
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
    outcome.changed.update(systems.mirror.changed)
    assert systems.oracles is not None
    outcome.evaluated.update(systems.oracles.evaluated)
    outcome.concerned.update(systems.oracles.concerned)
    seen: frozenset[Behaviour] = frozenset((name, number, 0) for name, number in counts.codes)
    outcome.behaviours = (*outcome.behaviours, seen)
    known = {failure.signature for failure in outcome.failures}
    for found in systems.found:
        failure = _failure(systems, found, deployment, policy, outcome.shard, first)
        if failure.signature not in known:
            known.add(failure.signature)
            outcome.failures.append(cast(Failure, failure))


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
    fails, event = Failing(systems.policy, CRASHES), systems.events[found.events - 1]
    lanes = np.flatnonzero(event.lanes & (event.numbers == NUMBERS[found.step]))[:MOST_CRASHING].tolist()
    cases = {lane: Case(deployment, tuple(events_of(systems, lane, found.events))) for lane in lanes}
    return next((lane for lane, case in cases.items() if fails(case)), found.lane)


class VmmFinding(SystemFinding):
    """A failure of a machine with a para-pass-through VMM as small as it could be made."""

    profile, invariants = PROFILE, VMM_INVARIANTS


def finding_of(failure: SystemFailure, _fails: object = None) -> VmmFinding:
    """Make a failure small."""
    policy, case = policy_named(failure.policy, VMM)[1], Case(failure.start, failure.events)
    found = reduced(policy, case, failure.what if failure.kind == "breaks" else failure.kind)
    case, tried = (case, 0) if found is None else found
    return VmmFinding(failure, case.events, tuple(program(policy, case)), found is not None, tried)


# -- what was never put to the test ----------------------------------------------------------------------------------------


def weaknesses(report: "Report") -> list[str]:
    """Why a campaign that found nothing says less than it seems: what was never done, never refused, never looked at."""
    found = []
    for name, row in OPERATIONS.items():
        ends = [code for code in (Code.OK, *row.refusals) if (name, code) not in NEVER]
        never = [code.name for code in ends if (name, code.value, 0) not in report.behaviours]
        if len(never) == len(ends):
            found.append(f"never done: {name}")
        elif never:
            found.append(f"{name} never ended as {', '.join(never)}")
    if sum(report.trapped.values()) > MOSTLY_REFUSED * max(report.operations, 1):
        found.append("most operations were refused")
    if unchanged := [name for name in PARTS if name not in FIXED and not report.changed[name]]:
        found.append(f"compared, but never changed: {', '.join(unchanged)}")
    if silent := [name for name in VMM_INVARIANTS if not report.concerned[name]]:
        found.append(f"never put to the test: {', '.join(silent)}")
    return found
