"""Which guard carries which invariant, shown by programs."""

import json

import pytest

from capvisor.cli.programs import find, read_any
from capvisor.dsl import guards
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
from capvisor.spec.policy import GUARDS, INTENDED, POLICIES, without
from tests.tutorial import ROOT

ATTACKS = ROOT / "programs" / "attacks" / "cvm"
NEVER = {"C9", "C19"}
"""Invariants that no guard alone carries."""


@pytest.fixture(scope="module")
def found() -> tuple[list[guards.Cell], dict[str, list]]:
    return guards.matrix([(path, read_any(path)) for path in find((ATTACKS,))])


def test_every_guard_carries_an_invariant_but_the_one_that_is_for_availability(found) -> None:
    cells, always = found
    carrying = {cell.guard for cell in cells if cell.program is not None}
    assert set(GUARDS) - carrying == {"owner_revokes"} and not always
    assert {cell.invariant for cell in cells if cell.program is not None} == set(CVM_INVARIANTS) - NEVER


def test_each_counterexample_is_short(found) -> None:
    lines = {cell.program: len(cell.program.read_text().splitlines()) for cell in found[0] if cell.program is not None}
    assert max(lines.values()) <= 25


def test_the_prototypes_have_the_flaws_that_the_attacks_show() -> None:
    stash = read_any(ATTACKS / "a05_stash.cap")
    assert guards.violated(stash, INTENDED) == ()
    assert "C8" in guards.violated(stash, POLICIES["prototype-0.0.2"])
    assert "C13" in guards.violated(read_any(ATTACKS / "a13_another_stack.cap"), without("identity_from_hardware"))


def test_the_verb_prints_the_matrix_and_writes_it(capvisor, tmp_path) -> None:
    path = tmp_path / "guards.json"
    status, out, _err = capvisor("guards", "cvm", ATTACKS / "b3_overlapping_region.cap", "--json", path)
    assert status == 0 and "regions_disjoint" in out
    written = json.loads(path.read_text())
    assert written["matrix"]["regions_disjoint"]["C2"]["verdict"] == "falls"
    assert written["matrix"]["purge_slots"]["C8"] == {"verdict": "not shown", "program": None}


def test_what_is_no_system_is_said() -> None:
    with pytest.raises(KeyError):
        without("no_such_guard")
