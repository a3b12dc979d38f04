"""The systems on each other: what lies below a monitor, what the layers give, and what two accesses come to."""

from dataclasses import replace

import pytest
import z3

from capvisor.model.memory import Granule
from capvisor.proofs import composition, cvm, runner
from capvisor.proofs.theorem import obligations, queries
from capvisor.spec.composition import HELD
from capvisor.spec.tpt_invariants import TPT_INVARIANTS
from capvisor.spec.vmm_invariants import VMM_INVARIANTS


def is_refuted(name: str) -> bool:
    """Whether a theorem, whose assumptions can hold, falls."""
    asked = queries(obligations()[name])
    solver = z3.Solver()
    solver.add(*asked.assumptions)
    assert solver.check() == z3.sat
    solver.add(asked.refuted)
    result = solver.check()
    assert result != z3.unknown
    return result == z3.sat


def test_what_lies_below_keeps_the_monitors_invariants() -> None:
    found = cvm.prove(composition.OUTSIDE, "cc64")
    assert set(found.kept) == set(cvm.KEPT)
    assert {each.result for each in found.kept.values()} == {"unsat"}


def test_what_would_make_capabilities_below_would_break_them(monkeypatch) -> None:
    def get(store: composition.ChangedBelow, index: object) -> Granule:
        _tag, upper, lower = store._other.get(index)
        return True, upper, lower

    monkeypatch.setattr(composition.ChangedBelow, "get", get)
    found = cvm.prove(composition.OUTSIDE, "cc64", asked=("C1", "C2", "M8"))
    assert {name: each.result for name, each in found.kept.items()} == {"C1": "sat", "C2": "unsat", "M8": "sat"}


@pytest.mark.parametrize("name", ["frames", "region", "guests", "cvms", "tenants", "stack"])
def test_what_the_layers_come_to(name: str) -> None:
    assert not is_refuted(f"composition.{name}.cc64")


@pytest.mark.parametrize("place", HELD)
@pytest.mark.parametrize("whose", ["cvm", "tenant"])
def test_what_a_thread_accesses_is_its_cvms_or_tenants(whose: str, place: str) -> None:
    assert not is_refuted(f"composition.{whose}_{place}.cc64")


def test_the_granule_of_what_is_theirs_is_granted_to_them() -> None:
    assert not is_refuted("composition.granules.cc128")


@pytest.mark.parametrize("guard", ["mediator_checks_tags", "extensions_check_tags", "host_claims_first"])
def test_the_owner_of_a_frame_is_looked_up_by_each_guard(monkeypatch, guard: str) -> None:
    monkeypatch.setattr(composition, "STACK_INTENDED", replace(composition.STACK_INTENDED, **{guard: False}))
    assert is_refuted("composition.frames.cc64")


@pytest.mark.parametrize("name", ["T1", "T9"])
def test_frames_are_granted_by_what_is_said_of_touches(monkeypatch, name: str) -> None:
    said = replace(TPT_INVARIANTS[name], of_step=lambda *_arguments: True)
    monkeypatch.setitem(composition.TPT_INVARIANTS, name, said)
    assert is_refuted("composition.frames.cc64")


@pytest.mark.parametrize("name", ["P1", "P2", "P9"])
def test_the_region_is_kept_by_what_is_said_of_touches(monkeypatch, name: str) -> None:
    said = replace(VMM_INVARIANTS[name], of_step=lambda *_arguments: True)
    monkeypatch.setitem(composition.VMM_INVARIANTS, name, said)
    assert is_refuted("composition.region.cc64")


@pytest.mark.parametrize("name", ["guests", "stack"])
def test_nobody_would_be_apart_without_owners(monkeypatch, name: str) -> None:
    monkeypatch.setattr(composition, "is_granted_frame", lambda _access: True)
    assert is_refuted(f"composition.{name}.cc64")


@pytest.mark.parametrize(
    ("where", "without"),
    [("register", "O5"), ("ddc", "O5"), ("pcc", "O11")],
)
def test_a_tenant_would_access_others_memory_without_what_is_said_of_what_it_holds(monkeypatch, where, without) -> None:
    left = tuple(each for each in composition.OBJECTS_INDUCTIVE if each != without)
    monkeypatch.setattr(composition, "OBJECTS_INDUCTIVE", left)
    assert is_refuted(f"composition.tenant_{where}.cc64")


@pytest.mark.parametrize("where", HELD)
def test_a_cvm_would_access_others_memory_without_authority(monkeypatch, where: str) -> None:
    monkeypatch.setattr(composition, "INDUCTIVE", tuple(each for each in composition.INDUCTIVE if each != "C1"))
    assert is_refuted(f"composition.cvm_{where}.cc64")


def test_two_cvms_of_a_guest_would_meet_elsewhere_if_regions_overlapped(monkeypatch) -> None:
    monkeypatch.setattr(composition, "INDUCTIVE", tuple(each for each in composition.INDUCTIVE if each != "C2"))
    assert is_refuted("composition.cvms.cc64")


def test_a_region_that_ends_within_a_granule_would_not_be_granted_whole(monkeypatch) -> None:
    monkeypatch.setattr(composition, "INDUCTIVE", tuple(each for each in composition.INDUCTIVE if each != "C19"))
    assert is_refuted("composition.granules.cc128")


def test_two_tenants_would_meet_in_what_one_of_them_stores_to(monkeypatch) -> None:
    monkeypatch.setattr(composition, "is_tenants", lambda *_arguments: True)
    assert is_refuted("composition.tenants.cc64")


@pytest.mark.parametrize("name", ["cvms", "stack"])
def test_monitors_would_meet_elsewhere_if_tables_mapped_pages_twice(monkeypatch, name: str) -> None:
    monkeypatch.setattr(composition, "_is_injective", lambda *_accesses: True)
    assert is_refuted(f"composition.{name}.cc64")


def test_what_breaks_it_is_not_taken_for_a_counterexample() -> None:
    outcome = runner.Outcome(obligations()["composition.guests.cc64"], runner.Verdict.PROVED)
    runner._refute(outcome, {})
    assert outcome.verdict is runner.Verdict.UNKNOWN and "can't be replayed" in outcome.reason
