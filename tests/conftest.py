"""Hypothesis profiles: `ci` is what `make test` uses, `thorough` is for an evening. And whether all cases were taken."""

import pytest
from hypothesis import HealthCheck, settings

from tests.shares import TAKES_ALL

settings.register_profile(
    "ci", max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say that of some kinds of cases only a part was taken."""
    if not TAKES_ALL:
        terminalreporter.write_line("of cases that are many of one kind (tests/shares.py) a part: `make thorough` takes all")
