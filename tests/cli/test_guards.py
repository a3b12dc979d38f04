"""Which guard carries which invariant: what falls is shown by short programs, what holds is proved elsewhere and kept."""

import json
from dataclasses import fields
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import jsonschema
import pytest

from capvisor.cli import main as command
from capvisor.cli.programs import find, read_any
from capvisor.cli.status import Status
from capvisor.dsl import guards
from capvisor.dsl.cvm_watch import InvariantWatch
from capvisor.dsl.guards import Cell
from capvisor.dsl.syntax import Violates
from capvisor.dsl.system_kinds import CVM, SYSTEM_KINDS, SystemKind
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
from capvisor.spec.policy import GUARDS, INTENDED, POLICIES, without
from tests.docs.generator import load_generator
from tests.tutorial import ROOT

ATTACKS = ROOT / "programs" / "attacks" / "cvm"
OVERLAP = ATTACKS / "b3_overlapping_region.without.cap"
SCHEMA = json.loads((ROOT / "cli" / "schemas" / "guards.schema.json").read_text())
REDUNDANT = {"owner_revokes"}
"""Guards that no invariant needs: docs/guards.md says why."""
NEVER = {"C9"}
"""Invariants that no guard alone carries."""
LONGEST = 10


def matrix_of(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    document = json.loads(path.read_text())
    jsonschema.validate(document, SCHEMA)
    matrix: dict[str, dict[str, dict[str, Any]]] = document["matrix"]
    return matrix


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> Any:
    """The matrix of all attacks, as the command writes it, run once for all tests here."""
    path = tmp_path_factory.mktemp("guards") / "guards.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert command.status_of(["guards", "cvm", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    jsonschema.validate(document, SCHEMA)
    return document


@pytest.fixture(scope="module")
def falls(document) -> list[tuple[str, str, Path]]:
    """Guard, invariant and program of each cell that falls."""
    matrix = document["matrix"]
    return [
        (guard, name, ROOT / cell["program"])
        for guard, row in matrix.items()
        for name, cell in row.items()
        if cell["verdict"] == "falls"
    ]


def test_the_matrix_has_a_cell_for_each_guard_and_invariant(document) -> None:
    assert list(document["matrix"]) == list(document["guards"]) == list(GUARDS)
    assert all(list(row) == list(document["invariants"]) == list(CVM_INVARIANTS) for row in document["matrix"].values())
    cells = [cell for row in document["matrix"].values() for cell in row.values()]
    assert all((cell["verdict"] == "falls") == (cell["program"] is not None) for cell in cells)


def test_every_guard_carries_an_invariant_but_the_one_that_is_for_availability(falls) -> None:
    assert set(GUARDS) - {guard for guard, _name, _path in falls} == REDUNDANT
    assert {name for _guard, name, _path in falls} == set(CVM_INVARIANTS) - NEVER
    page = (ROOT / "docs" / "guards.md").read_text()
    assert all(f"`{guard}`" in page.partition("## What no invariant needs")[2] for guard in REDUNDANT)


def test_each_counterexample_is_short_and_says_itself_what_falls_without_which_guard(falls) -> None:
    for guard, name, path in falls:
        program = read_any(path)
        assert guards.length(program) <= LONGEST, path
        assert program.system is not None and program.system.without == (guard,), path
        assert name in next(each.names for each in program.statements if isinstance(each, Violates)), path


def test_the_page_shows_the_matrix(document) -> None:
    generate = load_generator()
    page = (ROOT / "docs" / "guards.md").read_text()
    assert generate.with_guards(page, document) == page, "out of date: python docs/generate.py guards"
    changed = json.loads(json.dumps(document))
    changed["matrix"]["purge_slots"]["C4"] = {"verdict": "holds", "program": None}
    assert generate.with_guards(page, changed) != page


def test_the_prototypes_have_the_flaws_that_the_attacks_show() -> None:
    stash = read_any(ATTACKS / "a05_stash.cap")
    assert guards.violated(stash, INTENDED) == ()
    assert "C8" in guards.violated(stash, POLICIES["prototype-0.0.2"])
    assert "C13" in guards.violated(read_any(ATTACKS / "a13_another_stack.cap"), without("identity_from_hardware"))


@pytest.mark.parametrize("guard", GUARDS)
def test_looking_at_the_steps_that_differ_finds_what_looking_at_all_does(guard: str) -> None:
    for name in ("a05_stash.cap", "b6_left_in_registers.cap", "b8_saved_context.cap"):
        program = read_any(ATTACKS / name)
        watch = InvariantWatch()
        guards.violated(program, INTENDED, watch)
        found = guards.violated(program, without(guard), InvariantWatch(watch.taken))
        assert found == guards.violated(program, without(guard)), name


def test_a_program_without_a_policy_of_its_own_is_run_without_each_guard() -> None:
    cells, always = guards.matrix(CVM, [(path, read_any(path)) for path in (ATTACKS / "b3_overlapping_region.cap", OVERLAP)])
    assert [cell for cell in cells if cell.invariant == "C2" and cell.program] == [Cell("regions_disjoint", "C2", OVERLAP)]
    assert {cell.guard for cell in cells if cell.program and cell.invariant == "C18"} == {
        "distinct_otypes",
        "ddc_without_store_capability",
    }
    assert not always


def test_the_verb_prints_what_falls_what_holds_and_what_is_not_known(capvisor, tmp_path) -> None:
    proofs, written = tmp_path / "proofs.json", tmp_path / "guards.json"
    proved = {"purge_slots": {"C2": {"verdict": "holds", "seconds": 2.5}, "C4": {"verdict": "unknown", "seconds": 60}}}
    proofs.write_text(json.dumps({"cvm": proved}))
    status, out, _err = capvisor("guards", "cvm", OVERLAP, "--programs", "--proofs", proofs, "--json", written)
    assert status == Status.OK
    assert "- 3 fall" in out and "+ 1 hold" in out and "? 392 are open" in out
    assert f"regions_disjoint  C2         {OVERLAP}" in out
    matrix = matrix_of(written)
    assert matrix["regions_disjoint"]["C2"] == {"verdict": "falls", "program": str(OVERLAP)}
    assert matrix["purge_slots"]["C2"] == {"verdict": "holds", "program": None}
    assert matrix["purge_slots"]["C4"] == {"verdict": "unknown", "program": None}


def test_a_program_outweighs_a_kept_proof_and_that_is_said(capvisor, tmp_path) -> None:
    proofs, written = tmp_path / "proofs.json", tmp_path / "guards.json"
    proofs.write_text('{"cvm": {"regions_disjoint": {"C2": {"verdict": "holds", "seconds": 1}}}}')
    status, out, _err = capvisor("guards", "cvm", OVERLAP, "--proofs", proofs, "--json", written)
    assert status == Status.VIOLATION and f"C2 is kept as proved without regions_disjoint, and falls: {OVERLAP}" in out
    assert matrix_of(written)["regions_disjoint"]["C2"]["verdict"] == "falls"


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (None, "can't read"),
        ("{", "no kept proofs"),
        ('{"cvm": {"purge_slots": []}}', "no kept proofs"),
        ('{"cvm": {"purge_slots": {"C2": {"verdict": "holds"}}}}', "no kept proofs"),
        ('{"cvm": {"no_such_guard": {"C2": {"verdict": "holds", "seconds": 1}}}}', "no such guard or invariant"),
    ],
)
def test_kept_proofs_that_are_none_are_refused(capvisor, tmp_path, kept: str | None, message: str) -> None:
    proofs = tmp_path / "proofs.json"
    if kept is not None:
        proofs.write_text(kept)
    status, _out, err = capvisor("guards", "cvm", OVERLAP, "--proofs", proofs)
    assert status == Status.USAGE and message in err


def test_what_is_no_guard_and_no_system_is_said(capvisor) -> None:
    with pytest.raises(KeyError):
        without("no_such_guard")
    status, _out, err = capvisor("guards", "cvm", ROOT / "programs" / "tutorial" / "01_a_capability.cap")
    assert status == Status.USAGE and "no program of a system cvm" in err


@pytest.mark.parametrize("kind", SYSTEM_KINDS.values(), ids=SYSTEM_KINDS)
def test_a_kind_of_system_has_what_the_matrix_of_guards_needs(kind: SystemKind) -> None:
    switches = [each.name for each in fields(kind.policy) if isinstance(getattr(kind.intended, each.name), bool)]
    assert switches == list(kind.guards)
    assert all(getattr(kind.intended, guard) for guard in kind.guards)
    assert all(isinstance(each, kind.policy) for each in kind.policies.values())
    assert callable(resolve_name(kind.runner))
    programs = [read_any(path) for path in find((ROOT / kind.attacks,))]
    assert programs and all(guards.kind_of(program) is kind for program in programs)
