"""Changes of translation pass-through that nobody has listed: some are tried, and every one has theorems that execute it."""

import pytest

from capvisor.cli.sweep import examine
from capvisor.proofs import sweep, tpt, tpt_sweep
from capvisor.proofs.sweep import TPT_MODULES, Change
from capvisor.spec.tpt import OPERATIONS

CHANGES = {change.name: change for module in TPT_MODULES for change in sweep.changes(module)}

SOME = {
    "model.tpt_operations.release: _refuse(system.tags[frame] != HOST, Code.NOT_OWNED) -> pass": "lanes_release.fill: ",
    "model.tpt_operations.split: _check_frame(system, frame) -> pass": "lanes_split.fill: ",
    "model.tlb.evict: slot < TLB_SLOTS -> slot >= TLB_SLOTS": "lanes_evict.fill: ",
}


def test_every_change_is_executed_by_a_theorem_or_it_is_said_what_notices_it() -> None:
    assert len(CHANGES) > 300
    for change in CHANGES.values():
        chosen = tpt_sweep.theorems_for(change.function)
        assert change.function in tpt_sweep.CONCRETE or chosen, change.name
        assert set(chosen) <= set(tpt.all_steps())


def test_comparisons_checks_and_parts_of_conditions_are_changed() -> None:
    dropped = {change.before for change in CHANGES.values() if change.after == "pass"}
    assert {"_check_split(system, frame)", "if entry & P == 0:"} < dropped
    assert any(name.startswith("model.tpt._translated: ") and name.endswith("self.policy.check_leaf") for name in CHANGES)


@pytest.mark.parametrize("name", SOME)
def test_a_change_is_noticed_by_a_theorem_that_executes_it(name: str) -> None:
    finding = examine(CHANGES[name], 30)
    assert finding.noticed_by.startswith(SOME[name]) and finding.by_solver


def test_a_change_that_no_theorem_notices_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpt_sweep, "falls", lambda *_arguments: "")
    change = next(change for change in CHANGES.values() if change.function == "release")
    assert not examine(change, 1).is_explained


def test_what_a_function_leads_to_is_found_beyond_it() -> None:
    assert {"assign", "_check_admission", "_check_free", "_give", "retag"} <= tpt_sweep.reached("assign")
    assert "read_entry" not in tpt_sweep.reached("load", tpt_sweep.STOPS)
    assert all(tpt_sweep.reached(name) for name in OPERATIONS)


def test_what_nothing_has_changed_falls_in_no_theorem() -> None:
    unchanged = Change(
        TPT_MODULES[3], "release", 0, "", "", sweep.inspect.getsource(tpt_sweep.importlib.import_module(TPT_MODULES[3]))
    )
    assert not examine(unchanged, 30).is_noticed
