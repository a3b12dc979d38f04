"""A campaign's report for machines: JSON and SARIF. It has no times, so that equal campaigns give equal bytes."""

from pathlib import Path
from typing import Any

from capvisor.campaign import findings
from capvisor.campaign.case import instruction
from capvisor.campaign.engine import Report
from capvisor.campaign.findings import Finding
from capvisor.dsl.printer import print_instruction
from capvisor.spec.invariants import INVARIANTS

SARIF_VERSION = "2.1.0"
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def as_json(report: Report) -> dict[str, Any]:
    """What a campaign did and found, in a fixed order."""
    settings = report.settings
    return {
        "profile": settings.profile,
        "format": settings.format,
        "seed": settings.seed,
        "compared_with_reference": settings.compare,
        "programs": report.programs,
        "operations": report.operations,
        "states_compared": report.compared,
        "executed": dict(sorted(report.executed.items())),
        "trapped": dict(sorted(report.trapped.items())),
        "causes": dict(sorted(report.causes.items())),
        "comparisons_fired": dict(sorted(report.changed.items())),
        "invariants_evaluated": dict(sorted(report.evaluated.items())),
        "invariants_concerned": dict(sorted(report.concerned.items())),
        "behaviours": len(report.behaviours),
        "growth": [list(point) for point in report.growth],
        "weaknesses": report.weaknesses,
        "findings": [findings.as_json(each) for each in report.findings],
        "failures": dict(sorted(report.failures.items())),
        "interrupted": report.interrupted,
    }


def sarif(report: Report, folder: Path, version: str) -> dict[str, Any]:
    """The findings as a SARIF log, with the operations that lead to each as its code flow."""
    rules: dict[str, dict[str, Any]] = {}
    for each in report.findings:
        rules.setdefault(_rule(each), {"id": _rule(each), "shortDescription": {"text": _about(each)}})
    return {
        "$schema": SARIF_SCHEMA,
        "version": SARIF_VERSION,
        "runs": [
            {
                "tool": {"driver": {"name": "capvisor", "version": version, "rules": list(rules.values())}},
                "results": [_sarif_result(each, folder) for each in report.findings],
                "columnKind": "unicodeCodePoints",
            }
        ],
    }


def _rule(finding: Finding) -> str:
    failure = finding.failure
    return failure.what if failure.kind == "breaks" else failure.kind.replace(" ", "-")


def _about(finding: Finding) -> str:
    failure = finding.failure
    if failure.kind == "breaks":
        return INVARIANTS[failure.what].statement
    return {
        "differs": "The fast path's state differs from the reference's.",
        "crashes": "The fast path ends with an error.",
        "peer differs": "The peer's state differs from the reference's.",
        "peer fails": "The peer itself fails.",
    }[failure.kind]


def _sarif_result(finding: Finding, folder: Path) -> dict[str, Any]:
    uri = (folder / f"{finding.name}.cap").as_posix()
    lines = findings.text_of(finding, f"capvisor run {folder / finding.name}.cap").splitlines()
    first = len(lines) - len(finding.failure.case.operations) + 1

    def location(line: int, text: str) -> dict[str, Any]:
        return {
            "physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": line}},
            "message": {"text": text},
        }

    steps = [
        {"location": location(first + number, print_instruction(instruction(*operation)))}
        for number, operation in enumerate(finding.failure.case.operations)
    ]
    return {
        "ruleId": _rule(finding),
        "level": "error",
        "message": {"text": "\n".join([finding.title, *finding.details])},
        "locations": [location(max(len(lines), 1), finding.title)],
        "codeFlows": [{"threadFlows": [{"locations": steps}]}] if steps else [],
        "partialFingerprints": {"signature": finding.signature},
    }
