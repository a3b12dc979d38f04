"""`capvisor report`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from capvisor.campaign.history import History, PastCampaign, PastFinding
from capvisor.campaign.subjects import subject_of
from capvisor.cli import history_page, plots
from capvisor.cli.options import json_option
from capvisor.cli.output import check_writable, console, table, write_json, write_text
from capvisor.cli.status import InputError, Status
from capvisor.files import STATE_FILE, state_folder

SHOWN = 20
"""How many campaigns are shown, if the user doesn't say."""

GROWTH_ROWS, GROWTH_WIDTH = 12, 50
"""The size of a plot in plain characters."""

COLUMNS = (
    "id",
    "started (UTC)",
    "profile",
    "format",
    "seed",
    "engine",
    "programs",
    "operations",
    "operations/s",
    "behaviours",
    "findings",
    "untested",
    "",
)
NUMBERS = (0, 4, 6, 7, 8, 9, 10, 11)
"""The columns of numbers."""

Write = Callable[..., None]


@click.command()
@click.option("--last", type=click.IntRange(min=1), help=f"How many campaigns, the latest.  [default: {SHOWN}]")
@click.option("--campaign", "number", metavar="ID", type=click.IntRange(min=1), help="Everything about one campaign.")
@click.option(
    "--html", "html_path", metavar="FILE", type=click.Path(path_type=Path), help="Also write it as one page, with plots."
)
@click.option(
    "--state", type=click.Path(path_type=Path), help="Folder of the history.  [default: in the user's state directory]"
)
@json_option
def report(last: int | None, number: int | None, html_path: Path | None, state: Path | None, json_path: Path | None) -> int:
    """What campaigns have done: their size, throughput, coverage and findings.

    `capvisor fuzz` without files keeps each campaign. With --campaign ID: what it executed, what was refused and why, what
    was compared, how coverage grew, and its findings as programs.
    """
    if last is not None and number is not None:
        raise InputError("--last and --campaign both say what to show: give one of them")
    path = (state or state_folder()) / STATE_FILE
    for output in (json_path, html_path):
        check_writable(output, (path,))
    campaigns = _campaigns(path, last or SHOWN, number)
    rows = [_row(each) for each in campaigns]
    write_json(json_path, "report", {"campaigns": [_as_json(each) for each in campaigns]})
    if html_path is not None:
        write_text(html_path, history_page.page(campaigns, path, COLUMNS, rows, NUMBERS))
    write = console(is_final=True).print
    if not campaigns:
        write(f"no campaigns are kept in {path}: `capvisor fuzz` without files adds one")
        return Status.OK
    write(table(COLUMNS, rows, right=NUMBERS), soft_wrap=False)
    if number is not None:
        _print_details(write, campaigns[0])
    return Status.OK


def _campaigns(path: Path, last: int, number: int | None) -> list[PastCampaign]:
    """The campaigns to show. A history that isn't there is empty, and isn't made. Raises InputError."""
    history = History(path.parent) if path.exists() else None
    if number is None:
        return [] if history is None else history.campaigns(last)
    campaign = None if history is None else history.campaign(number)
    if campaign is None:
        raise InputError(f"there is no campaign {number} in {path}: `capvisor report` lists them")
    return [campaign]


def _row(campaign: PastCampaign) -> tuple[object, ...]:
    return (
        campaign.id,
        f"{campaign.started:%Y-%m-%d %H:%M}",
        campaign.profile,
        campaign.format,
        campaign.seed,
        campaign.engine,
        f"{campaign.programs:,}",
        f"{campaign.operations:,}",
        f"{campaign.operations_per_second:,.0f}",
        f"{campaign.behaviours:,}",
        len(campaign.findings),
        len(campaign.weaknesses),
        "interrupted" if campaign.interrupted else "",
    )


def _print_details(write: Write, campaign: PastCampaign) -> None:
    compared = "every step compared with the reference" if campaign.compared else "invariants alone as oracles"
    write(f"\n{campaign.seconds:,.1f} s, workers: {campaign.workers}, capvisor {campaign.version}; {compared}")
    write(f"{campaign.trapped_share:.1%} of all operations were refused; {campaign.states_compared:,} whole states compared")
    for weakness in campaign.weaknesses:
        write(f"inconclusive: {weakness}")
    rows = [(name, f"{count:,}", *_refused(campaign, name)) for name, count in campaign.executed.items()]
    _print_table(write, ("operation", "executed", "refused", ""), rows)
    _print_table(write, ("cause of a refusal", "times"), _counts(campaign.causes))
    _print_table(write, ("compared, and changed", "times"), _counts(campaign.changed))
    concerned = campaign.concerned
    known = subject_of(campaign.profile).invariants
    invariants = [(_title(name, known), f"{n:,}", f"{concerned.get(name, 0):,}") for name, n in campaign.evaluated.items()]
    _print_table(write, ("invariant", "steps held against it", "steps it concerned"), invariants)
    growth = plots.text_bars(campaign.growth, GROWTH_ROWS, GROWTH_WIDTH)
    _print_table(write, ("programs", "behaviours", ""), [(f"{x:,}", f"{y:,}", bar) for x, y, bar in growth], right=(0, 1))
    for finding in campaign.findings:
        _print_finding(write, finding)


def _refused(campaign: PastCampaign, name: str) -> tuple[str, str]:
    """How often an operation was refused, and the share of its executions that this is."""
    refused = campaign.trapped.get(name, 0)
    return f"{refused:,}", f"{refused / max(campaign.executed[name], 1):.1%}"


def _counts(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """The most frequent first."""
    return [(name, f"{count:,}") for name, count in sorted(counts.items(), key=lambda item: -item[1])]


def _title(name: str, known: Mapping[str, Any]) -> str:
    """An invariant by its name; another version may have had others."""
    return f"{name}, {known[name].title}" if name in known else name


def _print_table(
    write: Write, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] | None = None
) -> None:
    """A table whose columns but the first are of numbers, if there is anything to put in it."""
    if rows:
        write("")
        write(table(columns, rows, right=range(1, len(columns)) if right is None else right), soft_wrap=False)


def _print_finding(write: Write, finding: PastFinding) -> None:
    write(f"\n{finding.title}")
    write(f"  {finding.file}; {finding.signature}; seen in {finding.units:,} units of work")
    for detail in finding.details:
        write(f"  {detail}")
    for line in finding.program.splitlines():
        write(f"    {line}")


def _as_json(campaign: PastCampaign) -> dict[str, Any]:
    """Everything that is kept, under the names that a campaign's own report has."""
    return {
        "id": campaign.id,
        "started": campaign.started.isoformat(),
        "seconds": campaign.seconds,
        "capvisor": campaign.version,
        "engine": campaign.engine,
        "workers": campaign.workers,
        "profile": campaign.profile,
        "format": campaign.format,
        "seed": campaign.seed,
        "compared_with_reference": campaign.compared,
        "programs": campaign.programs,
        "operations": campaign.operations,
        "operations_per_second": campaign.operations_per_second,
        "states_compared": campaign.states_compared,
        "executed": dict(campaign.executed),
        "trapped": dict(campaign.trapped),
        "causes": dict(campaign.causes),
        "comparisons_fired": dict(campaign.changed),
        "invariants_evaluated": dict(campaign.evaluated),
        "invariants_concerned": dict(campaign.concerned),
        "behaviours": campaign.behaviours,
        "growth": [list(point) for point in campaign.growth],
        "weaknesses": list(campaign.weaknesses),
        "findings": [
            {
                "signature": each.signature,
                "title": each.title,
                "details": list(each.details),
                "file": each.file,
                "program": each.program,
                "units": each.units,
            }
            for each in campaign.findings
        ],
        "interrupted": campaign.interrupted,
    }
