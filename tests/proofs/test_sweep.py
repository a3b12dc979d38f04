"""Changes that nobody has listed are noticed too: the quick parts of `capvisor prove --sweep`, and the sweep's own means."""

import pytest

from capvisor.proofs import runner, sweep
from capvisor.proofs.mutants import source_in_force
from capvisor.proofs.sweep import Change
from capvisor.proofs.theorem import obligations
from tests.shares import some

assert runner  # imported for the theorems that it brings along

SOME = {
    "capvisor.model.bounds": {"bounds_are_valid", "decode_bounds", "encode_bounds"},
    "capvisor.model.capability": {"seal", "equal", "build"},
    "capvisor.fastpath.bounds": {"increment_is_representable"},
    "capvisor.fastpath.capability": {"is_subset", "equal"},
}
CHANGES = [change for module, names in SOME.items() for change in sweep.changes(module) if change.function in names]


@pytest.mark.parametrize("change", some(CHANGES, 2), ids=lambda change: change.name)
def test_a_change_is_noticed_or_equivalent(change: Change) -> None:
    assert sweep.examine(change, 20).is_explained


def test_no_theorem_falls_on_drawn_values_while_nothing_is_changed() -> None:
    chosen = [each for each in obligations().values() if each.theorem.holds and each.theorem.mutants]
    assert len(chosen) > 100
    assert [each.id for each in chosen if sweep._falls_on_drawn_values(each)] == []


def test_a_change_that_no_theorem_can_see_is_a_gap_and_one_that_changes_nothing_is_equivalent() -> None:
    module = "capvisor.model.bounds"
    change = next(change for change in sweep.changes(module) if change.name.endswith("-> base != new_base"))
    assert sweep.examine(change, 20).noticed_by
    with source_in_force(module, change.source):
        assert not sweep._gives_the_same(
            Change(module, change.function, 0, "", "", sweep.inspect.getsource(sweep.bounds)), 20
        )
    same = Change(module, change.function, 0, "", "", sweep.inspect.getsource(sweep.bounds))
    finding = sweep.examine(same, 20)
    assert not finding.noticed_by and "proved" in finding.equivalent


def test_the_sweep_reaches_every_comparison_and_guard() -> None:
    found = {module: list(sweep.changes(module)) for module in sweep.MODULES}
    assert all(len(changes) >= 20 for changes in found.values())
    names = {change.name for changes in found.values() for change in changes}
    assert any("not_(cap.has_reserved_otype)" in name for name in names)
