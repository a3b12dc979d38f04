"""Campaigns of random programs: what `capvisor fuzz` does without files."""

import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from hypothesis.database import DirectoryBasedExampleDatabase
from rich.live import Live

from capvisor import __version__
from capvisor.campaign.against import PeerCampaign
from capvisor.campaign.engine import Campaign, Report, Settings
from capvisor.campaign.findings import AnyFinding
from capvisor.campaign.history import History
from capvisor.campaign.hypothesis_engine import HypothesisEngine
from capvisor.campaign.json_peer import JsonPeer
from capvisor.campaign.peer import Peer, PeerError
from capvisor.campaign.report import as_json, sarif
from capvisor.campaign.rvfi_peer import RvfiPeer
from capvisor.campaign.schedulers import Here, Scheduler, SchedulerError, scheduler_of
from capvisor.campaign.subjects import SYSTEMS, subject_of
from capvisor.cli.junit import Case, junit_xml
from capvisor.cli.output import PLAIN_PROGRESS_S, check_writable, console, table, write_json, write_text
from capvisor.cli.status import InputError, Status
from capvisor.dsl.profiles import KEPT_EXAMPLES
from capvisor.dsl.system import DEFAULT_POLICY
from capvisor.files import state_folder

DEFAULT_SECONDS = 60.0
_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}
PEER_TIMEOUT_S = 5.0


class Duration(click.ParamType[float]):
    """A time such as 60s, 5m or 1h."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", str(value))
        if match is None or float(match[1]) == 0:
            self.fail(f"{value}: expected a time such as 60s, 5m or 1h", param, ctx)
        return float(match[1]) * _UNITS[match[2] or ""]


@dataclass(frozen=True)
class Request:
    """What a user asked for."""

    settings: Settings
    engine: str
    workers: int
    scheduler: str | None
    against: str | None
    findings: Path
    json_path: Path | None
    junit_path: Path | None
    sarif_path: Path | None
    state: Path | None
    keep_history: bool

    @property
    def command(self) -> str:
        """The line that does the same again."""
        settings, words = self.settings, ["capvisor", "fuzz"]
        if self.engine != "bulk":
            words += ["--engine", self.engine]
        words += ["--profile", settings.profile]
        if subject_of(settings.profile).has_formats:
            words += ["--format", settings.format]
        words += ["--seed", str(settings.seed)]
        if settings.policy != DEFAULT_POLICY:
            words += ["--policy", settings.policy]
        if settings.programs is not None:
            words += ["--programs", str(settings.programs)]
        else:
            words += ["--time", f"{settings.seconds:g}s"]
        if not settings.compare:
            words.append("--invariants-only")
        if self.against is not None:
            words += ["--against", self.against]
        return shlex.join(words)


def run(request: Request) -> int:
    """Run a campaign and say what came of it; the exit status."""
    for path in (request.json_path, request.junit_path, request.sarif_path):
        check_writable(path)
    history = _history(request)
    _prepare_findings(request.findings)
    started, start = datetime.now(UTC), time.monotonic()
    peer = _peer(request)
    try:
        scheduler = _scheduler(request)
        with _progress(start) as watch:
            campaign = Campaign(request.settings, scheduler, request.findings, watch)
            try:
                note = _run(request, campaign, peer)
            finally:
                scheduler.close()
    except SchedulerError as error:
        raise InputError(str(error)) from None
    finally:
        if peer is not None:
            peer.close()
    report, seconds = campaign.report, time.monotonic() - start
    out = console(is_final=True)
    _print(out.print, request, report, seconds)
    for line in note:
        out.print(line)
    document = as_json(report)
    write_json(request.json_path, "campaign", {"engine": request.engine, **document})
    write_text(request.junit_path, junit_xml("fuzz", _cases(report, seconds)))
    if request.sarif_path is not None:
        write_json_as_is(request.sarif_path, sarif(report, request.findings, __version__))
    if history is not None:
        engine = request.engine if peer is None else f"against {peer.name}"
        if request.settings.policy != DEFAULT_POLICY:
            engine += f", {request.settings.policy}"
        try:
            history.record(report, seconds, request.workers, engine, started)
        except OSError as error:
            # What was found counts for more than what can't be kept of it.
            console(stderr=True).print(f"capvisor: this campaign isn't kept in {error.filename}: {error.strerror}")
    if report.findings:
        return Status.VIOLATION
    return Status.INCONCLUSIVE if report.interrupted or report.weaknesses else Status.OK


def write_json_as_is(path: Path, document: dict[str, Any]) -> None:
    """Write a document of a format that isn't ours."""
    write_text(path, json.dumps(document, indent=2) + "\n")


def _run(request: Request, campaign: Campaign, peer: Peer | None) -> list[str]:
    """Let the engine work; what else there is to say."""
    if peer is not None:
        against = PeerCampaign(campaign, peer)
        against.run()
        lines = [f"\n{against.checked} programs executed by {peer.name}"]
        never = getattr(peer, "never_compared", [])
        if never:
            lines.append(f"never compared, because the peer doesn't report it: {', '.join(never)}")
        return lines
    if request.engine == "hypothesis":
        # What is found here is tried first by users' own tests too: see dsl.profiles.database.
        kept = DirectoryBasedExampleDatabase((request.state or state_folder()) / KEPT_EXAMPLES)
        HypothesisEngine(campaign, kept if request.keep_history else None).run()
    else:
        campaign.run()
    if campaign.report.restarts:
        return [f"\nworkers died and were replaced {campaign.report.restarts} times; their units were done again"]
    return []


def _scheduler(request: Request) -> Scheduler:
    if request.engine == "hypothesis" or request.against is not None:
        return Here()
    return scheduler_of(request.workers, request.scheduler)


def _peer(request: Request) -> Peer | None:
    if request.against is None:
        return None
    try:
        if request.against.startswith("rvfi-dii://"):
            return RvfiPeer(request.against, PEER_TIMEOUT_S)
        return JsonPeer(request.against, PEER_TIMEOUT_S)
    except PeerError as error:
        raise InputError(f"--against {request.against}: {error}") from None


def _prepare_findings(folder: Path) -> None:
    """Raises InputError, before any work is done, where findings couldn't be written."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"can't write findings to {folder}: it is no folder")
    check_writable((folder if folder.exists() else folder.parent) / "finding.cap")


def _history(request: Request) -> History | None:
    if not request.keep_history:
        return None
    folder = request.state or state_folder()
    try:
        return History(folder)
    except OSError as error:
        where = error.filename or folder
        raise InputError(f"can't keep the campaign's history in {where}: {error.strerror} (or use --no-history)") from None


# -- progress --------------------------------------------------------------------------------------------------------------


@contextmanager
def _progress(start: float) -> Iterator[Callable[[Report], None]]:
    """A table that lives on a terminal, now and then a plain line elsewhere."""
    if not sys.stderr.isatty():
        last = [start]

        def say(report: Report) -> None:
            now = time.monotonic()
            if now - last[0] >= PLAIN_PROGRESS_S:
                last[0] = now
                console(stderr=True).print(_line(report, now - start))

        yield say
        return
    with Live(console=console(stderr=True), transient=True, refresh_per_second=4) as live:
        yield lambda report: live.update(_line(report, time.monotonic() - start))


def _line(report: Report, seconds: float) -> str:
    return (
        f"{seconds:.0f} s: {report.programs:,} programs ({report.programs / seconds:,.0f}/s), "
        f"{report.operations:,} operations ({report.operations / seconds:,.0f}/s), {report.trapped_share:.0%} refused, "
        f"{report.compared:,} states compared, {len(report.behaviours):,} behaviours, {len(report.findings)} findings"
    )


# -- what came of it -------------------------------------------------------------------------------------------------------


def _print(write: Callable[..., None], request: Request, report: Report, seconds: float) -> None:
    subject, is_system = subject_of(report.settings.profile), report.settings.profile in SYSTEMS
    concerned = "places looked at" if is_system else "steps concerned"
    rows = [
        ("programs", f"{report.programs:,}", f"{report.programs / seconds:,.0f}/s"),
        ("operations", f"{report.operations:,}", f"{report.operations / seconds:,.0f}/s"),
        ("refused", f"{sum(report.trapped.values()):,}", f"{report.trapped_share:.1%}"),
        ("whole states compared", f"{report.compared:,}", ""),
        *((f"  changed: {name}", f"{count:,}", "") for name, count in report.changed.items()),
        *((f"{name}, {row.title}", f"{report.concerned[name]:,}", concerned) for name, row in subject.invariants.items()),
        ("operations of the table", f"{len(report.executed)}", "executed"),
        ("behaviours", f"{len(report.behaviours):,}", ""),
        ("findings", f"{len(report.findings)}", ""),
    ]
    write(table(("counter", "value", ""), rows, right=(1,)), soft_wrap=False)
    for finding in report.findings:
        _print_finding(write, finding, request.findings)
    for weakness in report.weaknesses:
        write(f"\ninconclusive: {weakness}")
    if report.weaknesses:
        write("  a longer campaign may put these to the test")
    if report.interrupted:
        write("\ninterrupted: the table is of what was done, and findings are on disk. The same seed starts over.")
    write(f"\nagain: {request.command}")


def _print_finding(write: Callable[..., None], finding: AnyFinding, folder: Path) -> None:
    path = folder / f"{finding.name}.cap"
    write(f"\n{finding.title}")
    for detail in finding.details:
        write(f"  {detail}")
    for line in finding.text("").splitlines():
        if not line.startswith("#"):
            write(f"    {line}")
    write(f"  kept in {path}; again: capvisor run {path}")


def _cases(report: Report, seconds: float) -> list[Case]:
    """One case a finding, and one for what was put to the test."""
    cases = [
        Case(f"fuzz.{report.settings.profile}", each.signature, 0.0, "\n".join([each.title, *each.details]))
        for each in report.findings
    ]
    group = f"fuzz.{report.settings.profile}"
    cases.append(Case(group, "no program fails", seconds, f"{len(cases)} findings" if cases else ""))
    cases.append(Case(group, "everything is put to the test", 0.0, "; ".join(report.weaknesses), is_error=True))
    return cases
