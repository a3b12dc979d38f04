"""Theorems on the Intravisor: steps that keep invariants, and guards without which they don't."""

import pytest

from capvisor.model.monitor import CALL_RULES
from capvisor.proofs import cvm
from capvisor.proofs.cvm_state import INDUCTIVE
from capvisor.spec.cvm import CALLS
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
from capvisor.spec.operations import OPERATIONS
from capvisor.spec.policy import INTENDED, without

TABLES = ("C2", "C16", "C19")


def fallen(name: str, invariants: tuple[str, ...], policy=INTENDED, asked: tuple[str, ...] = ()) -> dict[str, str]:
    answers = cvm.answers(name, "cc64", policy, invariants, timeout_s=120, asked=asked)
    return {each: answer.result for each, answer in answers.items() if answer.result != "unsat"}


def test_every_instruction_and_call_is_a_step() -> None:
    assert set(cvm.steps()) == {*OPERATIONS, *CALLS, *cvm.DEPLOYER}
    assert set(CALL_RULES) == set(CALLS) and set(INDUCTIVE) < set(CVM_INVARIANTS)


@pytest.mark.parametrize("name", ["cmove", "ecall", "host_time", "file_advertise"])
def test_a_step_keeps_the_tables(name: str) -> None:
    assert fallen(name, TABLES) == {}


def test_advertising_without_its_guard_makes_an_invariant_fall() -> None:
    assert fallen("file_advertise", TABLES, without("advertised_range_checked")) == {"C16": "sat"}


ALL = tuple(CVM_INVARIANTS)


def test_a_step_keeps_all_invariants() -> None:
    assert fallen("cmove", ALL) == {}


@pytest.mark.parametrize(
    ("name", "guard", "invariant"),
    [
        ("start_thread", "ddc_without_store_capability", "C17"),
        ("wait", "saved_context_private", "C12"),
    ],
)
def test_a_proof_rests_on_the_guard(name: str, guard: str, invariant: str) -> None:
    assert fallen(name, ALL, asked=(invariant,)) == {}
    assert fallen(name, ALL, without(guard), asked=(invariant,)) == {invariant: "sat"}
