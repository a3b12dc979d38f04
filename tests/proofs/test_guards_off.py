"""What holds with a guard off: the largest set of invariants whose proofs lean on itself alone."""

from dataclasses import replace

from capvisor.proofs import cvm, guards_off
from capvisor.proofs.cvm_runner import GUARDED, prove_step
from capvisor.proofs.steps import StepOutcome, recalled, to_keep
from capvisor.spec.policy import GUARDS, INTENDED, without

KEPT = dict.fromkeys(cvm.KEPT, "unsat")


def outcome(step: str, leans_on: dict[str, tuple[str, ...]], guards: tuple[str, ...] = (), **answers: str) -> StepOutcome:
    return StepOutcome(step, "cc64", {**KEPT, **answers}, 1.0, "", leans_on, guards)


def test_what_leans_on_what_is_lost_is_lost_too() -> None:
    steps = [outcome("one", {"C6": ("C1",), "C7": ("C6",)}), outcome("two", {"C14": ("C2",)}, C2="unknown")]
    assert guards_off.largest(("C1", "C2", "C6", "C7", "C14"), steps) == {"C1", "C6", "C7"}
    assert guards_off.largest(("C2", "C6", "C7", "C14"), steps) == set()
    assert guards_off.largest(("C4", "C5"), steps) == {"C4", "C5"}


def test_an_outcome_is_kept_and_recalled() -> None:
    leans_on = dict.fromkeys((name for name in cvm.KEPT if name != "C8"), ()) | {"C1": ("C1", "C19")}
    found = replace(outcome("wait", leans_on, ("purge_slots",), C8="unknown"), said=("distinct_otypes",))
    assert recalled("wait", "cc64", to_keep(found)) == found


def test_a_proof_is_made_anew_where_an_invariant_speaks_of_the_guard_and_holds() -> None:
    known = [replace(outcome("one", {}, ("purge_slots",)), said=("distinct_otypes",))]

    def anew(fallen: dict[str, tuple[str, ...]]) -> list[str]:
        return [guard for guard, _job in guards_off.to_prove(GUARDED, known, fallen)]

    assert anew({}) == ["distinct_otypes", "purge_slots"]
    assert anew({"distinct_otypes": ("C18",)}) == ["purge_slots"]


def test_what_the_other_steps_lose_is_neither_supposed_nor_asked_anew() -> None:
    known = [outcome("one", {}, ("purge_slots",)), outcome("two", {"C6": ("C1",), "C7": ("C6",)})]
    ((guard, job),) = guards_off.to_prove(GUARDED, known, {"purge_slots": ("C1",)}, 10)
    assert (guard, job[:3], job.timeout_s) == ("purge_slots", ("one", "cc64", without("purge_slots")), 10)
    assert set(job.supposed) == set(cvm.KEPT) - {"C1", "C6", "C7"}
    known = [outcome("one", {}, ("purge_slots",)), outcome("two", {"M8": ("C1",)})]
    assert guards_off.to_prove(GUARDED, known, {"purge_slots": ("C1",)}) == []


def test_without_a_guard_that_no_step_looks_at_all_that_leans_on_nothing_fallen_holds() -> None:
    known = [outcome("one", {"C6": ("C1",)})]
    fallen = {"purge_slots": frozenset({"C1"})}
    held, interrupted = guards_off.prove(GUARDED, known, fallen, 10, 1, None, lambda: None)
    by_guard = {each.guard: set(each.invariants) for each in held}
    assert not interrupted and set(by_guard) == set(GUARDS)
    assert by_guard["purge_slots"] == set(cvm.KEPT) - {"C1", "C6"}
    assert by_guard["distinct_otypes"] == set(cvm.KEPT)


def test_a_step_that_looks_at_a_guard_holds_by_what_is_proved_without_it() -> None:
    known = [outcome("file_advertise", {}, ("advertised_range_checked",)), outcome("wait", {"C1": ("C16",)})]
    without_it = {("file_advertise", "cc64"): outcome("file_advertise", {}, C16="sat")}
    held = guards_off.held_by(GUARDED, known, "advertised_range_checked", without_it, {})
    assert set(held.invariants) == set(cvm.KEPT) - {"C1", "C16"}
    # Nothing holds by a step that was to be proved anew and wasn't, nor where the harts' soundness doesn't.
    assert guards_off.held_by(GUARDED, known, "advertised_range_checked", {}, {}).invariants == ()
    unsound = {("file_advertise", "cc64"): outcome("file_advertise", {}, M8="unknown")}
    assert guards_off.held_by(GUARDED, known, "advertised_range_checked", unsound, {}).invariants == ()


def test_the_guards_that_a_step_looks_at_are_found() -> None:
    found = prove_step("wait", "cc64", INTENDED, ("C2", "C18", "C19"))
    assert set(found.guards) == {"handles_are_capabilities", "monitor_stack", "saved_context_private"}
    assert "distinct_otypes" in found.said and found.leans_on["C2"] == ("C2",)
