"""Steps of the four systems together: what they keep across layers, and guards of the stack without which they don't."""

import pytest

from capvisor.proofs import incremental, stack_steps
from capvisor.proofs.stack_steps import (
    BASE,
    BIND,
    BLOCK,
    COMMANDED,
    GRANULE,
    KEPT,
    LEAVING,
    PLACED,
    RESIDENT,
    SUPPOSED,
    SWEEP,
    TRACKED,
    UNTAGGED,
    UNWRITTEN,
    WHOLE,
    ways,
)
from capvisor.proofs.tpt import WALK_STEPS
from capvisor.spec import tpt as tpt_spec
from capvisor.spec import vmm as vmm_spec
from capvisor.spec.stack_invariants import STACK_INVARIANTS
from capvisor.spec.stack_policy import INTENDED, STACK_GUARDS, StackPolicy, without
from tests.shares import some


def fallen(name: str, part: str = WHOLE, policy: StackPolicy = INTENDED, asked: tuple[str, ...] = ()) -> set[str]:
    """What isn't kept, by a part of a step that can be completed."""
    asked = asked or stack_steps.asked_in(name)
    found = ways(name, part, policy, asked)
    assert any(each.is_completed and incremental.can_hold(each, 60) for each in found)
    kept = incremental.asked_of(found, asked, 120, 1).kept
    assert {each.result for each in kept.values()} <= {"sat", "unsat"}
    return {each for each, answer in kept.items() if answer.result == "sat"}


def test_every_operation_of_both_machines_is_a_step_and_what_monitors_do_to_memory() -> None:
    of_layers = {f"tpt.{name}" for name in (*WALK_STEPS, *tpt_spec.OPERATIONS)} | {
        f"vmm.{name}" for name in vmm_spec.OPERATIONS
    }
    assert set(stack_steps.steps()) == {BASE, BLOCK, GRANULE, SWEEP, BIND} | of_layers


def test_all_that_is_said_across_layers_is_asked_of_some_step_but_what_theorems_say() -> None:
    asked = {each for name in stack_steps.steps() for each in stack_steps.asked_in(name)}
    assert asked == set(KEPT) and set(STACK_INVARIANTS) - asked == {"S6"}


def test_the_machine_as_it_is_made_has_what_is_supposed() -> None:
    assert set(stack_steps.asked_in(BASE)) == set(SUPPOSED) and fallen(BASE) == set()


@pytest.mark.parametrize("name", ["tpt.write_pte", "tpt.assign", "tpt.reclaim", "tpt.attach", BIND, "vmm.dma_write"])
def test_a_step_keeps_what_is_said_across_layers(name: str) -> None:
    assert fallen(name) == set()


FALLS = {
    "region_untagged": ("tpt.claim", WHOLE, UNTAGGED),
    "tables_in_region": ("tpt.write_pte", WHOLE, "S8"),
    "host_claims_first": ("vmm.store", WHOLE, "S2"),
    "mediator_checks_tags": ("vmm.mediate", WHOLE, "S2"),
    "extensions_check_tags": ("vmm.extension_write", WHOLE, "S2"),
    "registers_by_owner": ("vmm.output", "start", "S7"),
    "attach_idle": ("tpt.attach", WHOLE, COMMANDED),
    "stop_reaches_all": ("tpt.flush", WHOLE, "S9"),
    "track_all_writes": ("tpt.write_pte", WHOLE, TRACKED),
    "dma_clears_tags": ("tpt.dma_write", WHOLE, "S3"),
    "pages_bound": (BIND, WHOLE, "S5"),
    "resident_first": (SWEEP, WHOLE, RESIDENT),
    "base_memory_kept": ("tpt.write_pte", WHOLE, UNWRITTEN),
}


@pytest.mark.parametrize("guard", some(list(STACK_GUARDS), 2))
def test_without_a_guard_it_falls(guard: str) -> None:
    name, part, falls = FALLS[guard]
    assert fallen(name, part, without(guard), (falls,)) == {falls}


@pytest.mark.parametrize(("left_out", "name", "falls"), [(PLACED, "tpt.assign", "S4"), (LEAVING, GRANULE, PLACED)])
def test_what_others_rest_on_is_needed(monkeypatch, left_out: str, name: str, falls: str) -> None:
    monkeypatch.setattr(stack_steps, "SUPPOSED", tuple(each for each in SUPPOSED if each != left_out))
    assert falls in fallen(name, asked=(falls,))
