"""Changes that nobody has listed are noticed too: the quick parts of `capvisor prove --sweep`."""

import pytest

from capvisor.proofs import runner, sweep
from capvisor.proofs.sweep import Change

assert runner  # imported for the theorems that it brings along

SOME = {
    "capvisor.model.bounds": {"bounds_are_valid"},
    "capvisor.model.capability": {"seal", "equal"},
    "capvisor.fastpath.bounds": {"increment_is_representable"},
    "capvisor.fastpath.capability": {"is_subset", "equal"},
}
CHANGES = [change for module, names in SOME.items() for change in sweep.changes(module) if change.function in names]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_a_change_is_noticed(change: Change) -> None:
    assert sweep.noticed_by(change, 20) is not None


def test_the_sweep_reaches_every_comparison_and_guard() -> None:
    found = {module: list(sweep.changes(module)) for module in sweep.MODULES}
    assert all(len(changes) >= 20 for changes in found.values())
    names = {change.name for changes in found.values() for change in changes}
    assert any("not_(cap.has_reserved_otype)" in name for name in names)
    assert set(sweep.EQUIVALENT) <= names, "an explanation of a change that isn't made any more"
