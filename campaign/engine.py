"""A campaign: units of work by the thousand, their results merged in order, failures made small and kept.

Units are done in rounds. What a round's units may build on is what all rounds but the last one did, so that a report depends
on the seed and the number of programs alone, not on how many workers there were or which was quicker.
"""

import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

from capvisor.campaign import findings
from capvisor.campaign.coverage import Behaviour
from capvisor.campaign.findings import AnyFinding
from capvisor.campaign.recipes import Shape
from capvisor.campaign.reduction import Fails
from capvisor.campaign.schedulers import Scheduler
from capvisor.campaign.subjects import subject_of
from capvisor.campaign.systems import SystemWork
from capvisor.campaign.unit import Outcome, Work
from capvisor.dsl.system import DEFAULT_POLICY

UNITS_PER_ROUND = 16
CORPUS_SHAPES = 512
"""How many shapes are kept to be changed: the latest that did something new."""

SHAPES_TO_CHANGE = 4
"""How many of them a unit is given."""


@dataclass(frozen=True)
class Settings:
    """What a campaign is to do; `programs` or `seconds` says how long."""

    profile: str = "mixed"
    format: str = "cc128"
    seed: int = 0
    programs: int | None = None
    seconds: float | None = None
    compare: bool = True
    most_findings: int = 10
    """After so many different findings it ends."""
    policy: str = DEFAULT_POLICY
    """Of systems: the monitor's policy, a preset or `without:GUARD,...`."""


@dataclass
class Report:
    """What a campaign has done and found. Equal for equal settings, if these say how many programs."""

    settings: Settings
    programs: int = 0
    operations: int = 0
    executed: Counter[str] = field(default_factory=Counter)
    trapped: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    evaluated: Counter[str] = field(default_factory=Counter)
    concerned: Counter[str] = field(default_factory=Counter)
    behaviours: set[Behaviour] = field(default_factory=set)
    growth: list[tuple[int, int]] = field(default_factory=list)
    """After so many programs, so many behaviours: one point a round."""
    findings: list[AnyFinding] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    """By signature: in how many units it was seen."""
    interrupted: bool = False
    restarts: int = 0
    """How often workers had to be started anew. No part of the JSON report."""

    @property
    def trapped_share(self) -> float:
        """The share of operations that were refused."""
        return sum(self.trapped.values()) / max(self.operations, 1)

    @property
    def weaknesses(self) -> list[str]:
        """Why a campaign that found nothing says less than it seems: what it never put to the test."""
        return subject_of(self.settings.profile).weaknesses(self)


def _program(finding: AnyFinding) -> str:
    return str(finding.as_json()["program"])


def units(settings: Settings) -> Iterator[tuple[int, int]]:
    """Number and count of programs of each unit."""
    lanes = subject_of(settings.profile).lanes(settings.compare)
    if settings.programs is None:
        shard = 0
        while True:
            yield shard, lanes
            shard += 1
    for shard, start in enumerate(range(0, settings.programs, lanes)):
        yield shard, min(lanes, settings.programs - start)


class Campaign:
    """A campaign on a scheduler. `run` may be interrupted with Ctrl-C, and then has what was done so far."""

    def __init__(
        self,
        settings: Settings,
        scheduler: Scheduler,
        folder: Path | None = None,
        watch: Callable[[Report], None] = lambda report: None,
    ) -> None:
        """Findings are written to `folder` as soon as they are made, if one is given."""
        self.report = Report(settings)
        self._settings, self._scheduler, self._folder, self._watch = settings, scheduler, folder, watch
        self._corpus: tuple[Shape, ...] = ()
        self._units = units(settings)
        self.signatures: set[str] = set()

    def run(self) -> Report:
        """Do the work. Raises OSError where a finding can't be written."""
        started = time.monotonic()
        rounds: deque[list[tuple[Work, Future[Outcome]]]] = deque()
        try:
            while not self.is_over(started):
                while len(rounds) < 2 and (submitted := self._submit()):
                    rounds.append(submitted)
                if not rounds:
                    break
                new: list[Shape] = []
                for work, future in rounds.popleft():
                    new += self.merge(self._scheduler.result(work, future))
                    if self.is_over(started):
                        break
                self._corpus = (*self._corpus, *new)[-CORPUS_SHAPES:]
                self.report.growth.append((self.report.programs, len(self.report.behaviours)))
        except KeyboardInterrupt:
            self.report.interrupted = True
        finally:
            self.report.restarts = self._scheduler.restarts
            self._scheduler.cancel()
        return self.report

    def is_over(self, started: float) -> bool:
        """Whether its time has passed, or enough was found."""
        settings = self._settings
        late = settings.seconds is not None and time.monotonic() - started > settings.seconds
        return late or len(self.report.findings) >= settings.most_findings

    def _submit(self) -> list[tuple[Work, Future[Outcome]]]:
        """Another round, on what is known now."""
        settings, submitted = self._settings, []
        for _ in range(UNITS_PER_ROUND):
            unit = next(self._units, None)
            if unit is None:
                break
            corpus = self._some(unit[0])
            subject = subject_of(settings.profile)
            work = subject.work(settings.seed, *unit, settings.format, settings.profile, corpus, settings.compare)
            if isinstance(work, SystemWork):
                work = replace(work, policy=settings.policy)
            submitted.append((work, self._scheduler.submit(work)))
        return submitted

    def _some(self, shard: int) -> tuple[Shape, ...]:
        """Some shapes of the corpus for a unit to change: all of them would take longer to send than to use."""
        count = min(SHAPES_TO_CHANGE, len(self._corpus))
        return tuple(random.Random(f"{self._settings.seed} {shard}").sample(self._corpus, count))

    def merge(self, outcome: Outcome, fails: Fails | None = None) -> list[Shape]:
        """Add a unit's results, failures made small by what says that they fail; the shapes that did something new."""
        report, new = self.report, []
        report.programs += outcome.programs
        report.operations += outcome.operations
        report.compared += outcome.compared
        for name in ("executed", "trapped", "causes", "changed", "evaluated", "concerned"):
            getattr(report, name).update(getattr(outcome, name))
        for shape, behaviours in zip(outcome.shapes, outcome.behaviours, strict=False):
            if not behaviours <= report.behaviours:
                report.behaviours |= behaviours
                new.append(shape)
        for behaviours in outcome.behaviours[len(outcome.shapes) :]:
            report.behaviours |= behaviours
        for failure in outcome.failures:
            report.failures[failure.signature] += 1
            if failure.signature in self.signatures or len(report.findings) >= self._settings.most_findings:
                continue
            self.signatures.add(failure.signature)
            subject = subject_of(self._settings.profile)
            finding = subject.finding_of(failure, fails)
            if subject.names_all and any(_program(each) == _program(finding) for each in report.findings):
                continue
            report.findings.append(finding)
            if self._folder is not None:
                findings.save(finding, self._folder)
        self._watch(report)
        return new
