"""`capvisor list` of what systems are made of: every row of the tables in spec/ is there, with what a user asks about."""

import pytest

from capvisor.cli.status import Status
from capvisor.spec.cvm import CALLS
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
from capvisor.spec.policy import GUARDS, POLICIES

TABLES = {"calls": CALLS, "guards": GUARDS, "policies": POLICIES, "cvm-invariants": CVM_INVARIANTS}


def lines_of(capvisor, what: str) -> dict[str, str]:
    """The rows that are printed, by their first word."""
    status, out, err = capvisor("list", what)
    assert (status, err) == (Status.OK, "")
    return {line.split()[0]: line.rstrip() for line in out.splitlines()[1:]}


@pytest.mark.parametrize("what", TABLES)
def test_every_row_is_listed_once_and_nothing_else(capvisor, what: str) -> None:
    assert list(lines_of(capvisor, what)) == list(TABLES[what])


def test_a_call_is_listed_with_its_number_its_arguments_and_why_it_may_be_refused(capvisor) -> None:
    line = lines_of(capvisor, "calls")["file_advertise"]
    assert line.split()[1:5] == ["405", "key,", "pointer,", "size"]
    assert "EXISTS, FULL, RANGE" in line and CALLS["file_advertise"].summary in line
    # A reason that follows from the arguments alone is named too.
    assert "NOT_FOUND, RANGE" in lines_of(capvisor, "calls")["file_probe"]


def test_a_guard_is_listed_with_the_policies_that_lack_it(capvisor) -> None:
    lines = lines_of(capvisor, "guards")
    assert "prototype-0.0.1, prototype-0.0.2 " in lines["distinct_otypes"]
    assert lines["ddc_without_store_capability"].split()[1] == "prototype-0.0.2"
    assert "prototype" not in lines["purge_slots"]


def test_a_policy_is_listed_with_what_is_off(capvisor) -> None:
    lines = lines_of(capvisor, "policies")
    assert lines["intended"].split()[1:] == ["none"]
    off = {name for name in GUARDS if not getattr(POLICIES["prototype-0.0.2"], name)}
    assert {word.strip(",") for word in lines["prototype-0.0.2"].split()[1:]} == off


def test_an_invariant_is_listed_with_its_statement(capvisor) -> None:
    for name, line in lines_of(capvisor, "cvm-invariants").items():
        assert CVM_INVARIANTS[name].title in line and line.endswith(CVM_INVARIANTS[name].statement)
