"""The history of campaigns as one page of HTML, which needs nothing from elsewhere."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from capvisor import __version__
from capvisor.campaign.history import PastCampaign, PastFinding
from capvisor.cli import plots
from capvisor.cli.plots import Series, element

STYLE = """
:root { color-scheme: light dark; --text: #1c2126; --soft: #5b6570; --line: #d8dde2; --page: #ffffff; --field: #f3f5f7;
  --c0: #2f6db3; --c1: #c2571a; --c2: #2b8a57; --c3: #8a4fb0; --c4: #a88400; --c5: #b8386b; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e8ec; --soft: #9aa5b1; --line: #39424c; --page: #14181c; --field: #1e242a;
    --c0: #6aa8ec; --c1: #f0935a; --c2: #5fc48d; --c3: #c291e6; --c4: #dcbb45; --c5: #f080ab; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); margin: 0 auto; padding: 1.5rem;
  max-width: 72rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; } h3 { font-size: 1rem; margin-bottom: .25rem; }
p.note { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } .number { text-align: right; }
pre { background: var(--field); padding: .75rem; overflow-x: auto; font-size: .8125rem; }
svg { display: block; width: 100%; max-width: 760px; height: auto; }
svg text { font-size: 11px; fill: var(--soft); }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); } .track { fill: var(--field); }
.curve { fill: none; stroke: var(--c); stroke-width: 1.5; } .mark, .bar { fill: var(--c); } g text { fill: var(--c); }
.colour-0 { --c: var(--c0); } .colour-1 { --c: var(--c1); } .colour-2 { --c: var(--c2); }
.colour-3 { --c: var(--c3); } .colour-4 { --c: var(--c4); } .colour-5 { --c: var(--c5); }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .875rem; }
.key { display: inline-block; width: .75rem; height: .75rem; margin-right: .35rem; background: var(--c); }
"""


def page(
    campaigns: Sequence[PastCampaign],
    source: Path,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    right: Sequence[int],
) -> str:
    """The page: a table, plots, and findings with their programs. `right` are the table's columns of numbers."""
    body = element("body", element("h1", "What campaigns have done"))
    if campaigns:
        body.extend([element("h2", "Campaigns"), element("div", _table(columns, rows, right), class_="wide")])
        body.extend(_content(campaigns))
    else:
        body.append(element("p", "No campaigns are kept."))
    body.append(element("p", f"Written by capvisor {__version__} from {source}.", class_="note"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", "capvisor: what campaigns have done"),
        element("style", STYLE),
    )
    document = ElementTree.tostring(element("html", head, body, lang="en"), encoding="unicode", method="html")
    return f"<!DOCTYPE html>\n{document}\n".encode(errors="backslashreplace").decode()


def _content(campaigns: Sequence[PastCampaign]) -> list[Element]:
    groups = plots.colours(each.profile for each in campaigns)
    growth = [Series(f"#{each.id}", _about(each), each.profile, each.growth) for each in campaigns if each.growth]
    return [
        *_weaknesses(campaigns),
        element("h2", "Coverage growth"),
        element("p", "How many behaviours had been seen after so many programs.", class_="note"),
        plots.legend(groups),
        plots.curves("Coverage growth", "programs", "behaviours", growth, groups),
        element("h2", "Throughput"),
        element("p", "Operations per second of each campaign, all workers together.", class_="note"),
        plots.legend(groups),
        plots.bars("Throughput", "campaign", "operations/s", [_throughput(each) for each in campaigns], groups),
        element("h2", "Findings"),
        *_findings(campaigns),
        element("h2", "Refused, by operation"),
        element("p", "The share of executions that ended in a trap, all these campaigns together.", class_="note"),
        plots.shares("Refused, by operation", _refused(campaigns)),
    ]


def _about(campaign: PastCampaign) -> str:
    return f"campaign {campaign.id}, {campaign.profile} {campaign.format}, seed {campaign.seed}"


def _throughput(campaign: PastCampaign) -> Series:
    speed = campaign.operations_per_second
    about = f"{_about(campaign)}: {speed:,.0f}/s, workers: {campaign.workers}"
    return Series(f"#{campaign.id}", about, campaign.profile, [(campaign.id, speed)])


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int]) -> Element:
    def cells(tag: str, values: Sequence[object]) -> Element:
        classes = ["number" if place in right else "text" for place in range(len(columns))]
        pairs = zip(values, classes, strict=True)
        return element("tr", *(element(tag, str(value), class_=name) for value, name in pairs))

    return element(
        "table", element("thead", cells("th", columns)), element("tbody", *(cells("td", values) for values in rows))
    )


def _weaknesses(campaigns: Sequence[PastCampaign]) -> list[Element]:
    """What campaigns never put to the test."""
    items = [element("li", f"#{each.id}: {weakness}") for each in campaigns for weakness in each.weaknesses]
    return [element("h3", "Never put to the test"), element("ul", *items)] if items else []


def _findings(campaigns: Sequence[PastCampaign]) -> list[Element]:
    made = [part for each in campaigns for found in each.findings for part in _finding(each, found)]
    return made or [element("p", "None.")]


def _finding(campaign: PastCampaign, found: PastFinding) -> list[Element]:
    details = [element("li", each) for each in found.details]
    return [
        element("h3", f"#{campaign.id}: {found.title}"),
        element("p", f"{found.file}; {found.signature}; seen in {found.units:,} units of work", class_="note"),
        *([element("ul", *details)] if details else []),
        element("pre", found.program),
    ]


def _refused(campaigns: Sequence[PastCampaign]) -> list[tuple[str, float, str]]:
    """Of each operation that was executed: the share that was refused, the largest first."""
    executed, trapped = _sum([each.executed for each in campaigns]), _sum([each.trapped for each in campaigns])
    rows = [(name, trapped[name] / count, f"{trapped[name]:,} of {count:,}") for name, count in executed.items() if count]
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def _sum(counters: Sequence[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counters:
        total.update(each)
    return total
