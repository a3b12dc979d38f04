"""The campaign of all four systems on one machine: VMs and their guests, the host, devices, extensions and the VMM."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from capvisor.campaign.stack_mirror import PARTS
from capvisor.campaign.stack_moves import play
from capvisor.campaign.stack_oracles import INVARIANTS
from capvisor.campaign.stack_program import PROGRAMS
from capvisor.campaign.stack_start import Deployment
from capvisor.campaign.stack_systems import Counts, Systems
from capvisor.campaign.system_campaign import MOSTLY_REFUSED, SystemCampaign
from capvisor.campaign.unit import Outcome, Work
from capvisor.spec.stack import Code
from capvisor.spec.stack_policy import StackPolicy

if TYPE_CHECKING:
    from capvisor.campaign.coverage import Behaviour
    from capvisor.campaign.engine import Report

PROFILE = PROGRAMS.kind.name
LANES, MOVES = 384, 100
"""Programs of a unit, and how many moves each makes."""


class StackCampaign(SystemCampaign):
    """Campaigns of all four systems."""

    programs, parts = PROGRAMS, PARTS

    @property
    def invariants(self) -> Mapping[str, Any]:
        return INVARIANTS

    def runs(self, work: Work, policy: StackPolicy) -> Iterator[tuple[Systems, Deployment]]:
        systems = play([work.seed, work.shard], work.count, MOVES, policy)
        yield systems, systems.deployment

    def count_refused(self, outcome: Outcome, counts: Counts) -> None:
        for (name, end), count in counts.ends.items():
            if end:
                outcome.trapped[name] += count
                outcome.causes[end] += count

    def behaviours(self, counts: Counts) -> "Iterable[Behaviour]":
        return {(f"{name} {end}".rstrip(), 0, 0) for name, end in counts.ends}

    def ends(self) -> Mapping[str, Mapping[tuple[int, int], str]]:
        return {f"{name} {code.name}": {(0, 0): code.name} for code, name in _REFUSED.items()}

    def idle(self, report: "Report") -> list[str]:
        mostly = sum(report.trapped.values()) > MOSTLY_REFUSED * max(report.operations, 1)
        return ["most operations were refused"] if mostly else []


_REFUSED: dict[Any, str] = {
    Code.STOPPED: "tpt write_pte",
    Code.REGION: "tpt assign",
    Code.NOT_HOST: "vmm load",
    Code.NOT_OWNER: "vmm output",
    Code.BUSY: "tpt attach",
    Code.KEPT: "tpt write_pte",
    Code.MOVED: "cvm li",
}
"""By why the layers below don't let something begin, what is refused so; NO_VCPU can't be, as every VM has its own."""

CAMPAIGN = StackCampaign()
