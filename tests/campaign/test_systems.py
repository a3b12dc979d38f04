"""Campaigns of systems, whatever the kind: what a unit does depends on the seed and its number alone.

That a report is made of units alike for any number of workers is seen in `test_engine.py` and `test_orc.py`.
"""

import os
import subprocess
import sys

import pytest

from capvisor.campaign.subjects import SYSTEMS
from capvisor.campaign.systems import SystemWork
from tests.tutorial import ROOT

FLAWED = {
    "cvm": "without:grants_without_load_capability",
    "tpt": "without:check_root",
    "orc": "prototype-0.1.0",
    "vmm": "bitvisor-2009-without-vtd",
    "stack": "without:host_claims_first",
}
"""Of each kind, a policy of which something is found in the unit below."""


def unit_of(profile: str) -> str:
    """All that a unit says, and the first finding of it made small. It isn't one of those that have a drill."""
    subject = SYSTEMS[profile]
    outcome = subject.perform(SystemWork(3, 1, 32, "cc128", profile, policy=FLAWED[profile]))
    counters = (outcome.executed, outcome.trapped, outcome.causes, outcome.changed, outcome.evaluated, outcome.concerned)
    said = [sorted(each.items()) for each in counters]
    behaviours = [sorted(each) for each in outcome.behaviours]
    finding = subject.finding_of(outcome.failures[0], None)
    return repr(
        (outcome.programs, outcome.operations, outcome.compared, said, behaviours, outcome.failures, finding.text(""))
    )


@pytest.mark.parametrize("profile", SYSTEMS)
def test_a_unit_is_the_same_in_another_process(profile: str) -> None:
    script = f"from tests.campaign.test_systems import unit_of; print(unit_of({profile!r}))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert other.stdout.removesuffix("\n") == unit_of(profile)
