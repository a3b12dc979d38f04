"""Theorems on the Intravisor: steps that keep invariants, and guards without which they don't."""

import pytest

from capvisor.model.monitor import CALL_RULES
from capvisor.proofs import cvm, cvm_guest, cvm_runner
from capvisor.proofs.composition import OUTSIDE
from capvisor.proofs.cvm_state import INDUCTIVE
from capvisor.proofs.steps import StepOutcome
from capvisor.spec.cvm import CALLS
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
from capvisor.spec.operations import OPERATIONS
from capvisor.spec.policy import INTENDED, without

TABLES = ("C2", "C16", "C19")


def fallen(name: str, invariants: tuple[str, ...], policy=INTENDED, asked: tuple[str, ...] = ()) -> dict[str, str]:
    answers = cvm.prove(name, "cc64", policy, invariants, timeout_s=120, asked=asked).kept
    return {each: answer.result for each, answer in answers.items() if answer.result != "unsat"}


def test_every_instruction_and_call_is_a_step() -> None:
    assert set(cvm.all_steps()) == {*cvm.steps(), *OPERATIONS}
    assert set(cvm.steps()) == {cvm.BASE, cvm_guest.NAME, "cinvoke", *CALLS, *cvm.DEPLOYER, OUTSIDE}
    assert {*cvm_guest.STANDS_FOR, "cinvoke"} == set(OPERATIONS)
    assert set(CALL_RULES) == set(CALLS) and set(INDUCTIVE) < set(CVM_INVARIANTS)


@pytest.mark.parametrize("name", ["cmove", "ecall", "host_time", "file_advertise"])
def test_a_step_keeps_the_tables(name: str) -> None:
    assert fallen(name, TABLES) == {}


def test_advertising_without_its_guard_makes_an_invariant_fall() -> None:
    assert fallen("file_advertise", TABLES, without("advertised_range_checked")) == {"C16": "sat"}


ALL = tuple(cvm.KEPT)


def test_a_step_keeps_all_invariants() -> None:
    assert fallen("cmove", ALL) == {}


def test_a_system_without_cvms_has_all_invariants() -> None:
    assert fallen(cvm.BASE, ALL) == {}


def test_any_step_of_a_guest_keeps_an_invariant_by_m11_and_what_is_known_before() -> None:
    assert fallen(cvm_guest.NAME, ALL, asked=("C4",)) == {}


def test_a_guests_step_leans_on_every_operation() -> None:
    names = {each.id for each in cvm_runner.lemmas([(cvm_guest.NAME, "cc64")])}
    assert {f"isa.{name}.M11.cc64" for name in ("csc", "clc", "cseal", "mret", "add")} <= names
    assert "isa.cinvoke.M11.cc64" not in names and "isa.cld.M11.cc64" not in names
    outcome = StepOutcome(cvm_guest.NAME, "cc64", {"C1": "unsat"}, 1.0)
    assert cvm_runner.leaning(outcome, {}) == outcome
    told = cvm_runner.leaning(outcome, {"isa.csc.M11.cc64": "UNKNOWN"})
    assert told.answers == {"C1": "unknown"} and "isa.csc.M11.cc64" in told.reason


def test_a_proof_rests_on_the_guard() -> None:
    assert fallen("start_thread", ALL, asked=("C17",)) == {}
    assert fallen("start_thread", ALL, without("ddc_without_store_capability"), asked=("C17",)) == {"C17": "sat"}
