"""The matrix of operations and invariants: cells that are quick to prove, teeth, and what a cell's verdict depends on."""

import json

import pytest

from capvisor.cli import main as command
from capvisor.cli.status import Status
from capvisor.proofs import isa, machine, matrix, sweep
from capvisor.proofs.cache import Cache
from capvisor.proofs.isa import FETCH, Task, cells, columns, rows, tasks
from capvisor.proofs.mutants import MUTANTS, in_force
from capvisor.proofs.runner import Outcome, Settings, Verdict
from capvisor.proofs.teeth import bites
from capvisor.proofs.theorem import obligations
from capvisor.spec.operations import OPERATIONS
from tests.shares import some

INVARIANT_NAMES = tuple(isa.KEPT)
QUICK = (FETCH, "cmove", "csetbounds", "cunseal", "clw", "csc", "cinvoke", "cjalr", "mret", "ecall", "lr.w")
"""Rows that take seconds: `make matrix` proves all. A CSR's takes a quarter of a minute, in each of the two matrices."""


def test_the_matrix_has_a_cell_for_every_operation_invariant_and_format() -> None:
    assert set(rows()) == {FETCH, *OPERATIONS}
    assert list(columns()) == [f"M{number}" for number in range(1, 12)]
    expected = {
        f"isa.{row}.{column}.{fmt.name}" for row, formats in rows().items() for fmt in formats for column in columns()
    }
    assert set(cells()) == expected
    assert not set(cells()) & set(obligations())
    assert {name for task in tasks(cells().values()) for name in task.ids} == expected


def test_what_cells_lean_on_are_theorems() -> None:
    assert {name for cell in cells().values() for name in cell.uses} <= set(obligations())


@pytest.mark.parametrize("row", QUICK)
def test_a_row_is_proved(row: str) -> None:
    outcomes = isa.prove(Task(row, "cc64", INVARIANT_NAMES), 60)
    assert [(each.verdict, each.reason) for each in outcomes] == [(Verdict.PROVED, "")] * len(INVARIANT_NAMES)
    assert all(each.example is not None for each in outcomes)


@pytest.mark.parametrize("row", [FETCH, "add", "cbuildcap", "clw", "csc", "cjalr", "mret", "sc.c"])
def test_the_fast_path_takes_the_same_step(row: str) -> None:
    (outcome,) = isa.prove(Task(row, "cc64", (machine.NAME,)), 60)
    assert (outcome.verdict, outcome.reason) == (Verdict.PROVED, "")


def test_registers_coincide_in_every_way() -> None:
    assert [len(list(machine.coincidences(count, (0,)))) for count in range(4)] == [1, 2, 5, 15]
    assert (0, 5, 5) in machine.coincidences(3, (0,)) and (5, 6, 5) in machine.coincidences(3, (0,))
    assert (31, 0) in machine.coincidences(2, (0, 31))


@pytest.mark.parametrize("column", columns())
def test_every_column_has_teeth(column: str) -> None:
    rows_with_teeth = [row for row, name in isa.TEETH if name == column]
    assert rows_with_teeth
    for row in rows_with_teeth:
        theorem = cells()[f"isa.{row}.{column}.cc64"].theorem
        for bite in bites(theorem, 60):
            assert bite.fallen is not None, bite.mutant.name


def test_no_cell_falls_in_a_drawn_state_while_nothing_is_changed() -> None:
    for row, formats in rows().items():
        for names in (INVARIANT_NAMES, (machine.NAME,)):
            assert [isa.looked_at(Task(row, formats[-1].name, names), number)[1] for number in range(4)] == [[]] * 4


def test_the_solver_refutes_a_cell_that_drawn_states_do_not_reach(monkeypatch) -> None:
    monkeypatch.setattr(isa, "_look", lambda *_task, **_completes: ({"drawn_state": 0}, {}))
    with in_force(MUTANTS["store-any-capability"]):
        (outcome,) = isa.prove(Task("csc", "cc64", ("M6",)), 60)
        (other,) = isa.prove(Task("csc", "cc64", (machine.NAME,)), 60)
    assert {outcome.verdict, other.verdict} == {Verdict.UNKNOWN} and outcome.reason == other.reason == isa.NO_PROOF


def test_a_cell_whose_operation_is_never_completed_is_vacuous(monkeypatch) -> None:
    monkeypatch.setattr(isa, "looked_at", lambda _task, _number: (False, []))
    (outcome,) = isa.prove(Task("cmove", "cc64", ("M7",)), 60)
    assert outcome.verdict is Verdict.VACUOUS


def test_a_cell_leans_on_theorems_and_is_unknown_without_them(monkeypatch) -> None:
    cell = cells()["isa.csetbounds.M1.cc64"]
    assert "monotone.set_bounds.cc64" in cell.uses

    def unproved(needed, _settings, _finished):
        verdicts = [Verdict.UNKNOWN if each.id.startswith("monotone.") else Verdict.PROVED for each in needed]
        return [Outcome(each, verdict) for each, verdict in zip(needed, verdicts, strict=True)], False

    monkeypatch.setattr(matrix.lemmas, "prove", unproved)
    outcomes, _interrupted = matrix.prove([cell], Settings(workers=1))
    assert outcomes[-1].verdict is Verdict.UNKNOWN and "monotone.set_bounds.cc64" in outcomes[-1].reason


def test_what_was_proved_is_kept_until_a_source_changes(tmp_path, monkeypatch) -> None:
    cell = cells()["isa.cmove.M7.cc64"]
    settings = Settings(workers=1, cache=Cache(tmp_path))
    assert matrix.prove([cell], settings)[0][-1].cached == 0
    assert matrix.prove([cell], settings)[0][-1].cached == 1
    monkeypatch.setattr(matrix, "sources", lambda: "others")
    assert matrix.prove([cell], settings)[0][-1].cached == 0


def test_cells_are_proved_by_name_from_the_command(tmp_path, capsys) -> None:
    results = tmp_path / "results.json"
    arguments = ["prove", "isa.cmove.M[17].cc64", "--state", str(tmp_path), "--json", str(results)]
    assert command.status_of(arguments) == Status.OK
    found = {each["id"]: each for each in json.loads(results.read_text())["obligations"]}
    assert found["isa.cmove.M7.cc64"]["verdict"] == "PROVED" and found["isa.cmove.M7.cc64"]["mutants"] == ["write-to-c0"]
    assert command.status_of(["prove", "isa.nothing.M1.cc64"]) == Status.USAGE
    assert "isa.nothing.M1.cc64" in capsys.readouterr().err


def test_the_table_has_a_mark_for_each_format() -> None:
    proved, unknown = cells()["isa.cld.M1.cc128"], cells()["isa.cmove.M1.cc64"]
    names, marks = matrix.table_of([Outcome(proved, Verdict.PROVED), Outcome(unknown, Verdict.UNKNOWN)])
    assert names == ["M1"] and dict(marks) == {"cld": "+.", "cmove": " ?"}


SOME = {
    "capvisor.model.isa.memory": {"check_authority", "check_stored", "loaded", "store_capability"},
    "capvisor.model.machine": {"check_fetch", "check_system_access", "write"},
    "capvisor.fastpath.isa.memory": {"check_usable", "store_data"},
}
CHANGES = [change for module, names in SOME.items() for change in sweep.changes(module) if change.function in names]


@pytest.mark.parametrize("change", some(CHANGES, 2), ids=lambda change: change.name)
def test_a_cell_notices_a_dropped_guard(change: sweep.Change) -> None:
    assert sweep.examine(change, 20).noticed_by


def test_every_guard_of_the_rules_is_dropped_by_the_sweep() -> None:
    found = {module: [change.before for change in sweep.changes(module)] for module in sweep.RULE_MODULES}
    assert "check_bounds(access, size_bytes)" in found["capvisor.model.isa.memory"]
    assert "if code.otype != data.otype:" in found["capvisor.model.isa.control"]
    assert "self.check_fetch(size_bytes)" in found["capvisor.model.machine"]
