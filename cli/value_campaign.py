"""Programs whose `any` values are drawn: what `capvisor fuzz` does with files."""

import shlex
from pathlib import Path
from typing import Any

from capvisor.cli import programs
from capvisor.cli.output import check_writable, console, progress, table, write_json
from capvisor.cli.status import Status
from capvisor.dsl.campaign import Campaign, Finding
from capvisor.dsl.campaign import fuzz as fuzz_program
from capvisor.dsl.printer import print_program
from capvisor.dsl.runner import with_values


def run(paths: tuple[Path, ...], lanes: int, seed: int, sample: int, json_path: Path | None) -> int:
    """Run programs with drawn values for every `any`."""
    found = list(programs.find(paths))
    check_writable(json_path, found)
    files = [programs.read(path) for path in found]
    campaigns = []
    with progress("lanes", lanes * len(files)) as advance:
        for program in files:
            campaigns.append(fuzz_program(program, lanes, seed, sample, advance))
            if campaigns[-1].interrupted:
                break
    columns = (
        "program",
        "lanes",
        "discarded",
        "operations",
        "trapped",
        "assertions",
        "replayed",
        "states compared",
        "result",
    )
    out = console(is_final=True)
    out.print(table(columns, [_row(campaign) for campaign in campaigns], right=range(1, 8)), soft_wrap=False)
    for campaign in campaigns:
        for finding in campaign.findings:
            _report(out.print, campaign, finding)
        for line in campaign.untested:
            out.print(
                f"\n{campaign.program.source}:{line}: never put to the test: its condition held in none of "
                f"{campaign.lanes} lanes; try more --lanes, or mend the program"
            )
    interrupted = any(campaign.interrupted for campaign in campaigns)
    if interrupted:
        out.print("\ninterrupted: the table is of what was done. The same --seed starts over with the same values.")
    names = shlex.join(str(path) for path in paths)
    out.print(f"\nagain: capvisor fuzz {names} --lanes {lanes} --seed {seed} --sample {sample}")
    write_json(json_path, "fuzz", {"seed": seed, "lanes": lanes, "campaigns": [_as_json(c) for c in campaigns]})
    if any(campaign.findings for campaign in campaigns):
        return Status.VIOLATION
    if interrupted or any(campaign.untested for campaign in campaigns):
        return Status.INCONCLUSIVE
    return Status.OK


def _row(campaign: Campaign) -> tuple[object, ...]:
    result = "passed"
    if campaign.untested:
        result = "INCONCLUSIVE"
    if campaign.findings:
        result = f"FAILED: {len(campaign.findings)}"
    if campaign.interrupted:
        result += ", interrupted"
    trapped = sum(campaign.trapped.values()) / max(campaign.operations, 1)
    return (
        campaign.program.source,
        campaign.lanes,
        campaign.discarded,
        campaign.operations,
        f"{trapped:.1%}",
        campaign.assertions,
        campaign.replayed,
        campaign.comparisons,
        result,
    )


def _report(write: Any, campaign: Campaign, finding: Finding) -> None:
    failure = finding.failure
    where = f"{campaign.program.source}:{failure.line}"
    write(f"\n{where}: {failure.kind}: {failure.message} ({finding.lanes} of {campaign.lanes} lanes)")
    write("  one of them, as a program:\n")
    for line in print_program(with_values(campaign.program, finding.values)).splitlines():
        write(f"    {line}")


def _as_json(campaign: Campaign) -> dict[str, Any]:
    return {
        "program": campaign.program.source,
        "lanes": campaign.lanes,
        "discarded": campaign.discarded,
        "operations": campaign.operations,
        "executed": dict(sorted(campaign.executed.items())),
        "trapped": dict(sorted(campaign.trapped.items())),
        "assertions": campaign.assertions,
        "lanes_replayed": campaign.replayed,
        "states_compared": campaign.comparisons,
        "conditions_held": [
            {"line": line, "number": number, "lanes": count} for (line, number), count in sorted(campaign.checks.items())
        ],
        "untested_lines": campaign.untested,
        "interrupted": campaign.interrupted,
        "findings": [
            {
                "line": finding.failure.line,
                "kind": finding.failure.kind,
                "message": finding.failure.message,
                "lanes": finding.lanes,
                "values": finding.values,
                "program": print_program(with_values(campaign.program, finding.values)),
            }
            for finding in campaign.findings
        ],
    }
