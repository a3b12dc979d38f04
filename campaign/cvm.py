"""The campaign of cVMs: hostile and well-behaved compartments, drawn unit by unit, on both implementations."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from capvisor.campaign.cvm_attacks import play
from capvisor.campaign.cvm_drill import Drill, drill
from capvisor.campaign.cvm_mirror import PARTS
from capvisor.campaign.cvm_program import PROGRAMS
from capvisor.campaign.cvm_systems import Counts, Systems
from capvisor.campaign.system_campaign import SystemCampaign, drilled, idle_groups, mostly_refused
from capvisor.campaign.unit import Outcome, Work
from capvisor.spec.cvm import CALLS, Code
from capvisor.spec.formats import FORMATS
from capvisor.spec.operations import OPERATIONS
from capvisor.spec.policy import MonitorPolicy
from capvisor.spec.traps import CAUSES_BY_NAME

if TYPE_CHECKING:
    from capvisor.campaign.coverage import Behaviour
    from capvisor.campaign.engine import Report

PROFILE = PROGRAMS.kind.name
LANES, MOVES = 256, 20
"""Programs of a unit, and how many moves each makes."""

DRILL_LANES = 4
"""How many lanes have a drill, where a unit has one."""

_ENDS = {
    **{row.name: (Code.OK, *row.all_refusals) for row in CALLS.values()},
    "create": (Code.OK, Code.EXISTS, Code.FULL, Code.RANGE, Code.NOT_FOUND),
    "destroy": (Code.OK, Code.NOT_FOUND, Code.BUSY),
    "start_thread": (Code.OK,),
}
"""What calls and the deployer's operations may answer."""


class CvmCampaign(SystemCampaign):
    """Campaigns of cVMs."""

    programs, parts = PROGRAMS, PARTS

    def runs(self, work: Work, policy: MonitorPolicy) -> Iterator[tuple[Systems, None]]:
        fmt, lanes = FORMATS[work.format], drilled(work, DRILL_LANES)
        hybrid = lanes - lanes // 2
        if hybrid:
            yield drill(fmt, hybrid, policy), None
        if lanes > hybrid:
            yield drill(fmt, lanes - hybrid, policy, Drill.run_purecap), None
        if work.count > lanes:
            yield play([work.seed, work.shard], fmt, work.count - lanes, MOVES, policy, work.shard), None

    def count_refused(self, outcome: Outcome, counts: Counts) -> None:
        outcome.trapped.update(counts.trapped)
        outcome.causes.update(counts.causes)
        for (name, code), count in (*counts.calls.items(), *counts.deployed.items()):
            outcome.executed[name] += count
            if code != Code.OK.name:
                outcome.trapped[name] += count
                outcome.causes[code] += count

    def behaviours(self, counts: Counts) -> "set[Behaviour]":
        """What was answered: an operation and a trap's cause, a call and a code."""
        answers = {(name, Code[code].value, 0) for name, code in (*counts.calls, *counts.deployed)}
        return answers | {(name, CAUSES_BY_NAME[cause].number if cause else 0, 1) for name, cause in counts.outcomes}

    def ends(self) -> Mapping[str, Mapping[tuple[int, int], str]]:
        return {name: {(code.value, 0): code.name for code in codes} for name, codes in _ENDS.items()}

    def idle(self, report: "Report") -> list[str]:
        refused = [f"most {what} were refused" for what, names in _TABLES.items() if mostly_refused(report, names)]
        return [*idle_groups(report), *refused]


_TABLES: dict[str, Iterable[str]] = {"calls": CALLS, "instructions": OPERATIONS}
CAMPAIGN = CvmCampaign()
