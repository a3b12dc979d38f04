"""The campaign of a para-pass-through VMM: guests, drivers, devices, extensions and the VMM, drawn unit by unit."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from capvisor.campaign.system_campaign import MOSTLY_REFUSED, SystemCampaign, drilled
from capvisor.campaign.systems import Found
from capvisor.campaign.unit import Outcome, Work
from capvisor.campaign.vmm_drill import DEPLOYMENT, NEVER, drill
from capvisor.campaign.vmm_moves import Deployment, play
from capvisor.campaign.vmm_program import PROGRAMS
from capvisor.campaign.vmm_states import FIXED, PARTS
from capvisor.campaign.vmm_systems import NUMBERS, Counts, Systems
from capvisor.fastpath.workspace import Flags
from capvisor.spec.vmm import OPERATIONS, Code
from capvisor.spec.vmm_policy import VmmPolicy

if TYPE_CHECKING:
    from capvisor.campaign.coverage import Behaviour
    from capvisor.campaign.engine import Report

PROFILE = PROGRAMS.kind.name
LANES, MOVES = 1024, 30
"""Programs of a unit, and how many moves each makes."""

TINY_LANES = 128
"""How many of them have little memory, so that moving the guest comes to its end."""

LARGE_EVERY, LARGE_LANES = 4, 64
"""Of so many units the first has machines with a region of more than 4 MiB too, a few of which are enough."""

DRILL_LANES = 6
"""How many lanes have a drill, where a unit has one."""


class VmmCampaign(SystemCampaign):
    """Campaigns of a para-pass-through VMM."""

    programs, parts = PROGRAMS, tuple(name for name in PARTS if name not in FIXED)

    def runs(self, work: Work, policy: VmmPolicy) -> Iterator[tuple[Systems, Deployment]]:
        lanes = drilled(work, DRILL_LANES)
        if lanes:
            yield drill(lanes, policy), DEPLOYMENT
        left = work.count - lanes
        large = min(LARGE_LANES, left // 3) if work.shard % LARGE_EVERY == 0 else 0
        tiny = min(TINY_LANES, left // 3)
        for kind, (size, count) in enumerate((("small", left - large - tiny), ("tiny", tiny), ("large", large))):
            if count:
                yield play([work.seed, work.shard, kind], count, MOVES, policy, size=size)

    def count_refused(self, outcome: Outcome, counts: Counts) -> None:
        for (name, number), count in counts.codes.items():
            if number:
                outcome.trapped[name] += count
                outcome.causes[Code(number).name] += count

    def behaviours(self, counts: Counts) -> "set[Behaviour]":
        return {(name, number, 0) for name, number in counts.codes}

    def ends(self) -> Mapping[str, Mapping[tuple[int, int], str]]:
        return {
            name: {(code.value, 0): code.name for code in (Code.OK, *row.refusals) if (name, code) not in NEVER}
            for name, row in OPERATIONS.items()
        }

    def idle(self, report: "Report") -> list[str]:
        mostly = sum(report.trapped.values()) > MOSTLY_REFUSED * max(report.operations, 1)
        return ["most operations were refused"] if mostly else []

    def acting(self, systems: Systems, found: Found) -> Flags:
        event = systems.events[found.events - 1]
        lanes: Flags = event.lanes & (event.numbers == NUMBERS[found.step])
        return lanes


CAMPAIGN = VmmCampaign()
