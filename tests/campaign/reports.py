"""A report of a campaign that never was, with something in each of its parts."""

from collections import Counter
from datetime import UTC, datetime

from capvisor.campaign.case import Case
from capvisor.campaign.engine import Report, Settings
from capvisor.campaign.findings import Finding
from capvisor.campaign.unit import Failure

STARTED = datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC)


def made_up_report(profile: str = "caps", details: tuple[str, ...] = ("c2.tag: reference true; fast path false",)) -> Report:
    case = Case("cc64", (("li", (5, 64)), ("csetbounds", (2, 1, 5))))
    failure = Failure("differs", "registers", "lock step", case, 3, 17)
    return Report(
        Settings(profile, "cc64", 7, 1024),
        programs=1024,
        operations=8000,
        executed=Counter({"csetbounds": 6000, "cld": 2000}),
        trapped=Counter({"cld": 1500}),
        causes=Counter({"TagViolation": 1000, "LengthViolation": 500}),
        compared=7900,
        changed=Counter({"registers": 5000}),
        evaluated=Counter({"M1": 8000, "M2": 8000}),
        concerned=Counter({"M1": 5000}),
        behaviours={("csetbounds", 0, 1), ("cld", 2, 3)},
        growth=[(512, 1), (1024, 2)],
        findings=[Finding(failure, True, details)],
        failures=Counter({failure.signature: 5}),
    )
