"""The campaign of shared objects: tenants that don't trust each other, and the base, drawn unit by unit."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from capvisor.campaign.orc_drill import NEVER, drill
from capvisor.campaign.orc_mirror import PARTS
from capvisor.campaign.orc_moves import play
from capvisor.campaign.orc_program import PROGRAMS
from capvisor.campaign.orc_systems import Counts, Deployment, Systems
from capvisor.campaign.system_campaign import SystemCampaign, drilled, idle_groups, mostly_refused
from capvisor.campaign.unit import Outcome, Work
from capvisor.spec.formats import FORMATS
from capvisor.spec.object_policy import ObjectPolicy
from capvisor.spec.operations import OPERATIONS as INSTRUCTIONS
from capvisor.spec.orc import OPERATIONS, Code
from capvisor.spec.traps import CAUSES_BY_NUMBER

if TYPE_CHECKING:
    from capvisor.campaign.coverage import Behaviour
    from capvisor.campaign.engine import Report

PROFILE = PROGRAMS.kind.name
LANES, MOVES = 256, 40
"""Programs of a unit, and how many moves each makes."""

DRILL_LANES = 2
"""How many lanes have a drill, where a unit has one."""


class OrcCampaign(SystemCampaign):
    """Campaigns of shared objects."""

    programs, parts = PROGRAMS, PARTS

    def runs(self, work: Work, policy: ObjectPolicy) -> Iterator[tuple[Systems, Deployment]]:
        fmt, lanes = FORMATS[work.format], drilled(work, DRILL_LANES)
        if lanes:
            systems = drill(fmt, lanes, policy)
            yield systems, systems.deployment
        if work.count > lanes:
            systems = play([work.seed, work.shard], fmt, work.count - lanes, MOVES, policy, work.shard)
            yield systems, systems.deployment

    def count_refused(self, outcome: Outcome, counts: Counts) -> None:
        outcome.trapped.update(counts.trapped)
        for (_name, number), count in counts.codes.items():
            if number:
                outcome.causes[Code(number).name] += count
        for (_name, number), count in counts.causes.items():
            if number:
                outcome.causes[CAUSES_BY_NUMBER[number].name] += count

    def behaviours(self, counts: Counts) -> "set[Behaviour]":
        """How steps ended: an operation and a code, an instruction and a trap's cause."""
        codes = {(name, number, 0) for name, number in counts.codes}
        return codes | {(name, number, 1) for name, number in counts.causes}

    def ends(self) -> Mapping[str, Mapping[tuple[int, int], str]]:
        return {
            name: {(code.value, 0): code.name for code in (Code.OK, *row.refusals) if (name, code) not in NEVER}
            for name, row in OPERATIONS.items()
        }

    def idle(self, report: "Report") -> list[str]:
        refused = [f"most {what} were refused" for what, names in _TABLES.items() if mostly_refused(report, names)]
        return [*idle_groups(report), *refused]


_TABLES: dict[str, Iterable[str]] = {"operations": OPERATIONS, "instructions": INSTRUCTIONS}
CAMPAIGN = OrcCampaign()
