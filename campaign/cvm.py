"""The campaign of cVMs: hostile and well-behaved compartments, drawn unit by unit, on both implementations.

A unit depends on the seed and its number alone. Every step is executed on the reference and on the fast path, and the whole
state compared; in the first lanes of a unit, every step of the reference is held against all invariants of cVMs.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from capvisor.campaign.cvm_moves import play
from capvisor.campaign.cvm_program import events_of, program, reduced
from capvisor.campaign.cvm_systems import Found, Systems
from capvisor.spec.cvm import CALLS
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
from capvisor.spec.formats import FORMATS
from capvisor.spec.policy import INTENDED, MonitorPolicy

LANES, WATCHED, MOVES = 32, 2, 20
"""Programs of a unit, in how many of them invariants are watched, and how many moves each makes."""

MOSTLY_REFUSED = 0.8
"""The share of refused calls, or of traps, above which a campaign says little."""


@dataclass(frozen=True)
class SystemFinding:
    """What a campaign found: an invariant that is violated, or a difference, with a program that shows it."""

    what: str
    title: str
    details: tuple[str, ...]
    program: tuple[str, ...]


@dataclass
class SystemReport:
    """What a campaign of cVMs has done and found."""

    seed: int
    format: str
    programs: int = 0
    steps: int = 0
    trapped: int = 0
    compared: int = 0
    watched_steps: int = 0
    evaluated: int = 0
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    findings: list[SystemFinding] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def refused(self) -> int:
        """How many calls were refused."""
        return sum(count for (_name, code), count in self.calls.items() if code != "OK")

    @property
    def weaknesses(self) -> list[str]:
        """Why a campaign that found nothing says less than it seems."""
        found = []
        made, answered = ({name for name, code in self.calls if code in codes} for codes in (_Every(), ("OK",)))
        if idle := [name for name in CALLS if name not in made]:
            found.append(f"never called: {', '.join(idle)}")
        if refused := [name for name in CALLS if name in made - answered]:
            found.append(f"always refused: {', '.join(refused)}")
        if self.calls and self.refused > MOSTLY_REFUSED * sum(self.calls.values()):
            found.append("most calls were refused")
        if self.trapped > MOSTLY_REFUSED * max(self.steps, 1):
            found.append("most instructions were refused")
        if not self.evaluated:
            found.append("no invariant was evaluated")
        return found


class _Every:
    """What contains everything."""

    def __contains__(self, _value: object) -> bool:
        return True


def run(
    seed: int,
    format_name: str = "cc128",
    policy: MonitorPolicy = INTENDED,
    programs: int | None = None,
    seconds: float | None = None,
    most_findings: int = 10,
    watch: Callable[[SystemReport], None] = lambda report: None,
) -> SystemReport:
    """Do units until there are so many programs, so much time has passed, or so much was found."""
    report, started, shard = SystemReport(seed, format_name), time.monotonic(), 0
    known: set[str] = set()
    try:
        while len(report.findings) < most_findings:
            if seconds is not None and time.monotonic() - started > seconds:
                break
            lanes = LANES if programs is None else min(LANES, programs - report.programs)
            if lanes <= 0:
                break
            systems = play([seed, shard], FORMATS[format_name], lanes, MOVES, policy, watched=min(WATCHED, lanes))
            shard += 1
            _merge(report, systems)
            for found in systems.found:
                if found.what not in known and len(report.findings) < most_findings:
                    known.add(found.what)
                    report.findings.append(_finding(systems, found))
            report.seconds = time.monotonic() - started
            watch(report)
    except KeyboardInterrupt:
        report.interrupted = True
    report.seconds = time.monotonic() - started
    return report


def _merge(report: SystemReport, systems: Systems) -> None:
    counts = systems.counts
    report.programs += systems.lanes
    for name in ("steps", "trapped", "compared", "evaluated"):
        setattr(report, name, getattr(report, name) + getattr(counts, name))
    report.watched_steps += counts.evaluated // len(CVM_INVARIANTS)
    report.calls.update(counts.calls)
    report.operations.update(counts.operations)


def _finding(systems: Systems, found: Found) -> SystemFinding:
    events = events_of(systems, found.lane, found.events)
    if found.what in CVM_INVARIANTS:
        events = reduced(systems.format, systems.policy, events, found.what)
        title = f"{found.what} ({CVM_INVARIANTS[found.what].title}) is violated"
    else:
        title = "fast path and reference differ after the last statement"
    return SystemFinding(found.what, title, found.details, tuple(program(systems.format, systems.policy, events)))
