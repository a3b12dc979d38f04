"""Theorems on shared objects: steps that keep invariants, and guards without which they don't."""

from collections.abc import Callable
from typing import Any

import pytest
import z3

from capvisor.model import capability
from capvisor.model.object_operations import OPERATION_RULES
from capvisor.model.object_tables import Slot
from capvisor.model.objects import ObjectMonitor
from capvisor.proofs import orc, orc_guest, orc_runner
from capvisor.proofs.orc_state import INDUCTIVE
from capvisor.proofs.steps import StepOutcome
from capvisor.spec.formats import CC64
from capvisor.spec.object_policy import INTENDED, without
from capvisor.spec.orc import OPERATIONS
from capvisor.spec.orc_invariants import ORC_INVARIANTS
from tests.shares import some

ALL = tuple(orc.KEPT)


TABLES = ("O3", "O8", "O17")


def fallen(name: str, policy=INTENDED, invariants=ALL, asked: tuple[str, ...] = ()) -> dict[str, str]:
    answers = orc.prove(name, "cc64", policy, invariants, timeout_s=60, asked=asked).kept
    return {each: answer.result for each, answer in answers.items() if answer.result != "unsat"}


def test_every_instruction_and_operation_is_a_step() -> None:
    assert set(orc.steps()) == {orc.BASE, orc_guest.NAME, orc_guest.LOADED, "cinvoke", *OPERATIONS}
    assert set(OPERATION_RULES) == set(OPERATIONS) and set(INDUCTIVE) < set(ORC_INVARIANTS)


def test_a_system_without_tenants_has_all_invariants() -> None:
    assert fallen(orc.BASE) == {}


def test_a_step_keeps_all_invariants() -> None:
    assert fallen("destroy") == {}


def test_without_its_guard_a_step_makes_an_invariant_fall() -> None:
    assert fallen("collect", without("mapped_not_collected"), TABLES, ("O8",)) == {"O8": "sat"}


def test_what_is_supposed_before_a_step_can_hold_and_the_step_be_completed() -> None:
    (way,) = (way for way in orc.ways("collect", CC64, INTENDED, ALL) if way.is_completed)
    solver = z3.SolverFor("QF_AUFBV")
    solver.add(*way.conditions)
    assert solver.check() == z3.sat


def test_a_guests_step_leans_on_every_operation() -> None:
    names = {each.id for each in orc_runner.lemmas([(orc_guest.NAME, "cc64")])}
    assert {f"isa.{name}.{row}.cc64" for name in ("csc", "clc", "csw", "add") for row in ("M2", "M11")} <= names
    assert "isa.cinvoke.M11.cc64" not in names and {"orc.mint.cc64", "orc.whole.cc64"} <= names
    outcome = StepOutcome(orc_guest.NAME, "cc64", {"O5": "unsat"}, 1.0)
    assert orc_runner.leaning(outcome, {}) == outcome
    assert orc_runner.leaning(outcome, {"isa.csw.M2.cc64": "UNKNOWN"}).answers == {"O5": "unknown"}
    assert orc_runner.leaning(outcome, {"loaded.cc64": "open"}).answers == {"O5": "unknown"}
    assert orc_runner.leaning(outcome, {"loaded.cc128": "open"}) == outcome
    assert set(orc_runner.needed([(orc_guest.NAME, "cc64")])) == {(orc_guest.NAME, "cc64"), (orc_guest.LOADED, "cc64")}


# -- what flows ------------------------------------------------------------------------------------------------------------


def of_others_registers(monitor: ObjectMonitor, _thread: Any, _slot: Any) -> None:
    monitor.threads.for_each(lambda each: each.hart.write(11, capability.null(monitor.format)))


def of_others_threads(monitor: ObjectMonitor, thread: Any, _slot: Any) -> None:
    monitor.threads.for_each(lambda each: setattr(each, "is_live", each.tenant == thread.tenant))


def of_others_memory(monitor: ObjectMonitor, _thread: Any, slot: Any) -> None:
    monitor.clear_tags(slot + 1)


def of_others_slots(monitor: ObjectMonitor, _thread: Any, slot: Any) -> None:
    monitor.slots[slot + 1] = Slot()


def of_others_mappings(monitor: ObjectMonitor, _thread: Any, _slot: Any) -> None:
    monitor.mappings.map(lambda _key, row: row._replace(identity=0))


OF_FLOWS = (*TABLES, orc.SOUND.name, "others")


@pytest.mark.parametrize(
    "change", some([of_others_registers, of_others_slots, of_others_threads, of_others_mappings, of_others_memory], 2)
)
def test_a_step_that_changes_what_another_tenant_has_is_seen(
    change: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = OPERATION_RULES["publish"]

    def publish(monitor: ObjectMonitor, thread: Any, slot: Any) -> Any:
        code = rule(monitor, thread, slot)
        change(monitor, thread, slot)
        return code

    monkeypatch.setitem(OPERATION_RULES, "publish", publish)
    assert fallen("publish", invariants=OF_FLOWS, asked=("others",)) == {"others": "sat"}


def test_a_step_changes_nothing_of_others() -> None:
    assert fallen("publish", invariants=OF_FLOWS, asked=("others",)) == {}


def test_a_thread_that_gets_what_is_anothers_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = OPERATION_RULES["publish"]

    def publish(monitor: ObjectMonitor, thread: Any, slot: Any) -> Any:
        code = rule(monitor, thread, slot)
        thread.hart.write(11, monitor.data_of(slot + 1))
        return code

    monkeypatch.setitem(OPERATION_RULES, "publish", publish)
    assert fallen("publish", invariants=("O5", *OF_FLOWS), asked=("O5",)) == {"O5": "sat"}


def test_a_thread_loads_from_its_tenants_slots_and_mapped_objects_alone() -> None:
    assert fallen(orc_guest.LOADED, asked=("sees",)) == {}
    without_authority = tuple(each for each in ALL if each != "O5")
    assert fallen(orc_guest.LOADED, invariants=without_authority, asked=("sees",)) == {"sees": "sat"}


# -- how it is asked -------------------------------------------------------------------------------------------------------


def test_goals_are_taken_apart_without_loss() -> None:
    a, b, c, d = map(z3.Bool, "abcd")
    goal = z3.Or(a, z3.And(b, z3.Or(c, z3.And(a, d))))
    clauses = list(orc.clauses(goal))
    assert not any(z3.is_and(part) for each in clauses for part in each.children())
    solver = z3.Solver()
    solver.add(z3.And(*clauses) != goal)
    assert solver.check() == z3.unsat and len(clauses) == 3
