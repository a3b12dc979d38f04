"""What campaigns are about: one hart's programs, systems of cVMs, translation pass-through, shared objects, a VMM, or all.

The rest of a campaign doesn't depend on it.

A subject does units of work and says what a failure is, how it is made small and written down, and what a campaign of it
must put to the test. Another monitor becomes a subject in these steps:

1. A pair of implementations that executes events in many lanes and compares whole states: as `campaign.cvm_systems` does,
   with a mirror of the reference (`cvm_mirror`) and, for invariants as oracles, predicates on arrays (`cvm_oracles`).
2. Moves that are drawn (`cvm_moves`), and a drill that makes every call and has it refused in every way (`cvm_drill`).
3. What its programs are: how one lane's events are taken once more, made fewer and written down (`cvm_program`, as
   `campaign.programs` says).
4. What its campaign is (`cvm`, as `campaign.system_campaign` says), and a row here.

Seeds, rounds, workers, the corpus, reports, JUnit, SARIF, the history and files of findings are the same for all.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from capvisor.campaign import findings
from capvisor.campaign.findings import AnyFinding
from capvisor.campaign.recipes import PROFILES
from capvisor.campaign.system_campaign import SystemCampaign
from capvisor.campaign.systems import SystemWork
from capvisor.campaign.unit import LANES, WIDE_LANES, Outcome, Work
from capvisor.campaign.unit import perform as perform_hart
from capvisor.spec.formats import FORMATS
from capvisor.spec.invariants import INVARIANTS

if TYPE_CHECKING:
    from capvisor.campaign.engine import Report

MOSTLY_TRAPS = 0.8
"""The share of refused operations above which a campaign says little."""

ALWAYS_REFUSED = ("ecall", "ebreak")
"""Operations whose purpose it is to trap."""


@dataclass(frozen=True)
class Subject:
    """One subject of campaigns."""

    perform: Callable[[Any], Outcome]
    """Does a unit of work."""
    lanes: Callable[[bool], int]
    """How many programs a unit has, where states are compared or not."""
    weaknesses: Callable[["Report"], list[str]]
    """Why a campaign that found nothing says less than it seems."""
    finding_of: Callable[[Any, Any], AnyFinding]
    """Makes a failure small."""
    invariants: Mapping[str, Any]
    """The invariants that are oracles, by name: each with a `title` and a `statement`."""
    work: type[Work] = Work
    names_all: bool = False
    """Whether a finding's program names all that it shows, so that of findings with one program the first is enough."""
    has_formats: bool = True
    """Whether there are capabilities in it."""


def _weaknesses_of_a_hart(report: "Report") -> list[str]:
    profile, fmt = PROFILES[report.settings.profile], FORMATS[report.settings.format]
    found = []
    if report.operations and report.trapped_share > MOSTLY_TRAPS:
        found.append(f"{report.trapped_share:.0%} of all operations were refused")
    idle = [name for name in profile.operations(fmt) if not report.executed[name]]
    if idle:
        found.append(f"never executed: {', '.join(idle)}")
    refused = [name for name in profile.operations(fmt) if 0 < report.executed[name] == report.trapped[name]]
    refused = [name for name in refused if name not in ALWAYS_REFUSED]
    if refused:
        found.append(f"always refused: {', '.join(refused)}")
    if report.settings.compare:
        unchanged = [name for name in profile.comparisons if not report.changed[name]]
        if unchanged:
            found.append(f"compared, but never changed: {', '.join(unchanged)}")
    silent = [name for name in profile.invariants if not report.concerned[name]]
    if silent:
        found.append(f"never put to the test: {', '.join(silent)}")
    return found


def _lanes_of_a_hart(compare: bool) -> int:
    return LANES if compare else WIDE_LANES


HARTS = Subject(perform_hart, _lanes_of_a_hart, _weaknesses_of_a_hart, findings.finding_of, INVARIANTS)


_HAVE_FORMATS = {"cvm": True, "tpt": False, "orc": True, "vmm": False, "stack": False}
"""The profiles of which a program is a system, each of a module's name here, and whether there are capabilities in it."""


class _Systems(Mapping[str, Subject]):
    """Subjects of which a program is a system: their modules are imported when they are needed, as they are large."""

    def __iter__(self) -> Iterator[str]:
        return iter(_HAVE_FORMATS)

    def __len__(self) -> int:
        return len(_HAVE_FORMATS)

    def __contains__(self, profile: object) -> bool:
        return profile in _HAVE_FORMATS

    def __getitem__(self, profile: str) -> Subject:
        if profile not in _HAVE_FORMATS:
            raise KeyError(profile)
        return _subject(profile)


@functools.cache
def _subject(profile: str) -> Subject:
    module: Any = import_module(f"capvisor.campaign.{profile}")
    campaign: SystemCampaign = module.CAMPAIGN
    return Subject(
        campaign.perform,
        lambda _compare: int(module.LANES),
        campaign.weaknesses,
        campaign.finding_of,
        campaign.invariants,
        SystemWork,
        True,
        _HAVE_FORMATS[profile],
    )


SYSTEMS: Mapping[str, Subject] = _Systems()
"""Subjects of which a program is a system, by the profile's name."""


def subject_of(profile: str) -> Subject:
    """What campaigns of a profile are about."""
    return SYSTEMS.get(profile, HARTS)


def perform(work: Work) -> Outcome:
    """Do a unit of work, of whatever subject."""
    return subject_of(work.profile).perform(work)
