"""A campaign's report for machines: JSON and SARIF. It has no times, so that equal campaigns give equal bytes."""

from pathlib import Path
from typing import Any

from capvisor.campaign.engine import Report
from capvisor.campaign.findings import AnyFinding
from capvisor.campaign.subjects import SYSTEMS

SARIF_VERSION = "2.1.0"
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def as_json(report: Report) -> dict[str, Any]:
    """What a campaign did and found, in a fixed order."""
    settings = report.settings
    return {
        "profile": settings.profile,
        "format": settings.format,
        "seed": settings.seed,
        **({"policy": settings.policy} if settings.profile in SYSTEMS else {}),
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
        "findings": [each.as_json() for each in report.findings],
        "failures": dict(sorted(report.failures.items())),
        "interrupted": report.interrupted,
    }


def sarif(report: Report, folder: Path, version: str) -> dict[str, Any]:
    """The findings as a SARIF log, with the operations that lead to each as its code flow."""
    rules: dict[str, dict[str, Any]] = {}
    for each in report.findings:
        name, about = each.rule
        rules.setdefault(name, {"id": name, "shortDescription": {"text": about}})
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


def _sarif_result(finding: AnyFinding, folder: Path) -> dict[str, Any]:
    uri = (folder / f"{finding.name}.cap").as_posix()
    lines, texts = finding.text(f"capvisor run {folder / finding.name}.cap").splitlines(), finding.steps
    first = len(lines) - len(texts) + 1

    def location(line: int, text: str) -> dict[str, Any]:
        return {
            "physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": line}},
            "message": {"text": text},
        }

    steps = [{"location": location(first + number, text)} for number, text in enumerate(texts)]
    return {
        "ruleId": finding.rule[0],
        "level": "error",
        "message": {"text": "\n".join([finding.title, *finding.details])},
        "locations": [location(max(len(lines), 1), finding.title)],
        "codeFlows": [{"threadFlows": [{"locations": steps}]}] if steps else [],
        "partialFingerprints": {"signature": finding.signature},
    }
