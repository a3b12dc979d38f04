"""The campaign of translation pass-through: guests, hosts, processors and devices, drawn unit by unit."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from capvisor.campaign.system_campaign import MOSTLY_REFUSED, SystemCampaign, drilled
from capvisor.campaign.tpt_drill import DEPLOYMENT, NEVER, drill
from capvisor.campaign.tpt_mirror import PARTS
from capvisor.campaign.tpt_moves import Deployment, play
from capvisor.campaign.tpt_program import PROGRAMS
from capvisor.campaign.tpt_systems import Counts, Systems
from capvisor.campaign.unit import Outcome, Work
from capvisor.spec.tag_policy import TagPolicy
from capvisor.spec.tpt import OPERATIONS, Code, FaultKind

if TYPE_CHECKING:
    from capvisor.campaign.coverage import Behaviour
    from capvisor.campaign.engine import Report

PROFILE = PROGRAMS.kind.name
LANES, MOVES = 1536, 24
"""Programs of a unit, and how many moves each makes."""

LARGE_EVERY, LARGE_LANES, LARGE_MOVES = 4, 128, 24
"""Of so many units the first has large systems too, a few of which are enough."""

DRILL_LANES = 2
"""How many lanes have a drill, where a unit has one."""


class TptCampaign(SystemCampaign):
    """Campaigns of translation pass-through."""

    programs, parts = PROGRAMS, PARTS

    def runs(self, work: Work, policy: TagPolicy) -> Iterator[tuple[Systems, Deployment]]:
        lanes = drilled(work, DRILL_LANES)
        if lanes:
            yield drill(lanes, policy), DEPLOYMENT
        large = min(LARGE_LANES, (work.count - lanes) // 2) if work.shard % LARGE_EVERY == 0 else 0
        for count, moves, is_large in ((work.count - lanes - large, MOVES, False), (large, LARGE_MOVES, True)):
            if count:
                seed = [work.seed, work.shard, int(is_large)]
                yield play(seed, count, moves, policy, is_large=is_large, turn=work.shard)

    def count_refused(self, outcome: Outcome, counts: Counts) -> None:
        for (name, number), count in counts.codes.items():
            if number:
                outcome.trapped[name] += count
                outcome.causes[Code(number).name] += count
        for (name, number), count in counts.faults.items():
            if number:
                outcome.trapped[name] += count
                outcome.causes[f"fault {FaultKind(number).name.lower()}"] += count

    def behaviours(self, counts: Counts) -> "set[Behaviour]":
        """How operations ended: with a code, or with a fault."""
        refused = {(name, number, 0): count for (name, number), count in counts.codes.items() if number}
        faults = {(name, number, 1): count for (name, number), count in counts.faults.items() if number}
        others: Counter[str] = Counter()
        for (name, _number, _kind), count in (*refused.items(), *faults.items()):
            others[name] += count
        done = {(name, Code.OK.value, 0) for name, count in counts.executed.items() if count > others[name]}
        return done | refused.keys() | faults.keys()

    def ends(self) -> Mapping[str, Mapping[tuple[int, int], str]]:
        found = {}
        for name, row in OPERATIONS.items():
            codes = {(code.value, 0): code.name for code in (Code.OK, *row.refusals) if (name, code) not in NEVER}
            found[name] = codes | {(kind.value, 1): f"fault {kind.name.lower()}" for kind in row.faults}
        return found

    def idle(self, report: "Report") -> list[str]:
        mostly = sum(report.trapped.values()) > MOSTLY_REFUSED * max(report.operations, 1)
        return ["most operations were refused, or met a fault"] if mostly else []


CAMPAIGN = TptCampaign()
