"""Theorems on translation pass-through: steps that keep invariants, and guards without which they don't."""

import pytest
import z3

from capvisor.model.paging import DONE, READ, UPDATE
from capvisor.model.tlb import Tlb
from capvisor.model.tpt_operations import OPERATION_RULES
from capvisor.proofs import incremental, paging, tpt, tpt_progress, tpt_runner
from capvisor.proofs.steps import StepOutcome
from capvisor.proofs.symbolic import term_of
from capvisor.proofs.theorem import Given
from capvisor.proofs.tpt_state import INDUCTIVE, AnySystem, Table
from capvisor.spec.tag_policy import INTENDED, TAG_GUARDS, TAG_POLICIES, without
from capvisor.spec.tpt import OPERATIONS
from capvisor.spec.tpt_invariants import TPT_INVARIANTS
from tests.shares import some


def fallen(name: str, policy=INTENDED, asked: tuple[str, ...] = ()) -> dict[str, str]:
    answers = tpt.prove(name, policy, timeout_s=60, asked=asked).kept
    return {each: answer.result for each, answer in answers.items() if answer.result != "unsat"}


def test_every_operation_is_a_step_and_every_stage_of_a_walk_that_isnt_done() -> None:
    assert set(tpt.steps()) == {tpt.BASE, *tpt.WALK_STEPS, *OPERATIONS, *paging.steps(), *tpt_progress.steps()}
    assert set(OPERATIONS) == set(OPERATION_RULES)
    assert set(tpt.WALK_STEPS.values()) == {READ, UPDATE} and DONE not in tpt.WALK_STEPS.values()


def test_what_is_said_of_a_state_is_supposed_and_nothing_else() -> None:
    assert {name for name, row in TPT_INVARIANTS.items() if row.of_state} == set(INDUCTIVE)


def test_a_system_as_it_is_made_has_all_invariants() -> None:
    assert fallen(tpt.BASE) == {}


@pytest.mark.parametrize("name", ["write_pte", "set_cr3", "run", "assign", "acknowledge", "merge", "dma_write"])
def test_a_step_keeps_all_invariants(name: str) -> None:
    assert fallen(name) == {}


def test_an_access_keeps_all_invariants_wherever_its_walk_has_led() -> None:
    assert fallen("store", TAG_POLICIES["intended-access"]) == {}


GUARDED = {
    "check_leaf": ("write_pte", "T1"),
    "check_root": ("walk_read", "T2"),
    "check_table_reads": ("walk_read", "T2"),
    "check_accessed_dirty_writes": ("walk_update", "T2"),
    "uniform_large_pages": ("walk_read", "T3"),
    "retag_before_shootdown": ("reclaim", "T13"),
    "wait_for_acknowledgements": ("scrub", "T5"),
    "abort_walks_on_acknowledge": ("acknowledge", "T3"),
    "shootdown_covers_large_pages": ("acknowledge", "T3"),
    "shootdown_reaches_walk_caches": ("acknowledge", "T3"),
    "scrub_on_reuse": ("assign", "T5"),
    "free_frames_only": ("claim", "T4"),
    "split_before_retag": ("reclaim", "T7"),
    "merge_one_owner": ("merge", "T7"),
    "host_only_tags": ("set_tag", "T4"),
    "check_dma": ("dma_read", "T9"),
    "flush_iotlb": ("attach", "T9"),
    "flush_on_asid_reuse": ("run", "T3"),
    "abort_walks_on_switch": ("run", "T3"),
    "unmap_on_reclaim": ("reclaim", "T11"),
}
"""Of each guard, a step and an invariant that falls in it without."""


@pytest.mark.parametrize("guard", some(list(TAG_GUARDS), 2))
def test_a_proof_rests_on_the_guard(guard: str) -> None:
    name, invariant = GUARDED[guard]
    assert fallen(name, without(guard), (invariant,)) == {invariant: "sat"}


@pytest.mark.parametrize("name", ["walk_update", "step_walk", "load", "migrate", "swap_in"])
def test_what_is_supposed_of_a_completed_step_can_hold(name: str) -> None:
    completed = [way for way in tpt.ways(name) if way.is_completed]
    assert completed
    assert any(incremental.can_hold(way, timeout_s=60) for way in completed)


def test_what_leans_on_a_step_of_a_walk_that_isnt_proved_isnt_proved() -> None:
    names = tpt_runner.needed([("load", "fill")])
    assert set(names) == {("load", "fill"), *((each, "fill") for each in ("walk_read", "walk_update", "begin_walk"))}
    load = StepOutcome("load", "fill", {"T1": "unsat"}, 1.0)
    proved = {each: StepOutcome(*each, {"T1": "unsat"}, 1.0) for each in names}
    assert tpt_runner.leaning(load, proved) == load
    told = tpt_runner.leaning(load, proved | {("walk_read", "fill"): StepOutcome("walk_read", "fill", {"T1": "sat"}, 1.0)})
    assert told.answers == {"T1": "unknown"} and "walk_read.fill" in told.reason


def test_a_step_that_looks_at_no_variant_is_proved_once() -> None:
    told: list[int] = []
    chosen = [("split", "fill"), ("split", "access")]
    found, interrupted = tpt_runner.prove(chosen, INTENDED, 60, 1, None, lambda: told.append(1))
    assert [each.is_proved for each in found] == [True, True] and not interrupted and len(told) == 2
    assert found[1].seconds == 0 and not tpt_runner.depends_on_variant(found[0])


@pytest.mark.parametrize("rows", ["translations", "tables"])
def test_looking_at_any_slot_at_once_is_looking_at_them_in_turn(rows: str) -> None:
    system = AnySystem(Given(), INTENDED)
    vcpu, frame, place = system.given.word("vcpu", 6), system.given.word("frame", 40), system.place
    in_turn = Tlb(lambda name, _empty: Table(system, name))
    for tlb in (in_turn, system.tlb):
        getattr(tlb, f"drop_{rows}")(vcpu, lambda entry: entry.frame == frame)
    slot = place.slot if rows == "translations" else place.cache_slot
    one, other = (getattr(tlb, rows)[place.vcpu, slot] for tlb in (in_turn, system.tlb))
    solver = z3.Solver()
    solver.add(*map(term_of, system.given.assumptions))
    assert solver.check() == z3.sat
    solver.add(z3.Not(z3.And(*(term_of(part == same) for part, same in zip(one, other, strict=True)))))
    assert solver.check() == z3.unsat
