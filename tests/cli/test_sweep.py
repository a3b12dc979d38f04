"""`capvisor prove --sweep monitor`: changes of the monitor are noticed, and it is said by whom."""

import pytest

from capvisor.cli.status import Status
from capvisor.cli.sweep import examine
from capvisor.proofs import sweep
from capvisor.proofs.sweep import EQUIVALENT, MONITOR_MODULES, Change


def changes_of(function: str) -> list[Change]:
    return [change for module in MONITOR_MODULES for change in sweep.changes(module) if change.function == function]


def only(monkeypatch: pytest.MonkeyPatch, chosen: list[Change]) -> None:
    monkeypatch.setattr(sweep, "changes", lambda module: tuple(each for each in chosen if each.module == module))


def test_every_change_of_a_call_is_noticed(capvisor, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [each for each in changes_of("file_probe") if "row" in each.before]
    assert len(chosen) == 4
    only(monkeypatch, chosen)
    status, out, _err = capvisor("prove", "--sweep", "monitor", "--workers", 1)
    assert status == Status.OK
    by_invariants, by_comparison = out.split("noticed by comparison alone")[:2]
    assert "row.is_live & (key < cvm.KEYS) -> key < cvm.KEYS" in by_invariants
    assert "monitor.answer(thread, row.top - row.base) -> pass" in by_comparison
    assert out.rstrip().endswith("4 changes: 4 noticed (1 by comparison alone), 0 survive, 0 unexplained")


def test_a_change_that_nothing_shows_is_a_gap_unless_it_is_known_to_change_nothing(
    capvisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capvisor.cli.sweep.first_found", lambda *_arguments: None)
    findings = [examine(change, 20) for change in changes_of("portal_finish")]
    assert {each.change.name for each in findings if each.is_explained} < EQUIVALENT.keys()
    assert not any(each.is_noticed for each in findings)
    only(monkeypatch, [each.change for each in findings])
    monkeypatch.setattr(sweep, "sweep", lambda *_arguments: iter(findings))
    status, out, _err = capvisor("prove", "--sweep", "monitor")
    assert status == Status.VIOLATION
    assert "NOT EXPLAINED" in out and "who serves a call isn't nested (C19)" in out
    assert out.rstrip().endswith("5 changes: 0 noticed, 5 survive, 4 unexplained")


def test_what_a_change_breaks_is_said() -> None:
    dropped = {change.before: change for change in changes_of("take_back") if change.after == "pass"}
    finding = examine(dropped["self.memory.map_granules(purged)"], 20)
    assert finding.noticed_by == "C1 after file_revoke" and not finding.compared_by


def test_everything_a_monitor_does_is_dropped_once() -> None:
    dropped = {change.before for module in MONITOR_MODULES for change in sweep.changes(module) if change.after == "pass"}
    for effect in (
        "self.withdraw(number)",
        "self.held[number, caller] = True",
        "thread.serves = False",
        "monitor.finish(thread)",
    ):
        assert effect in dropped
    assert {"if key >= cvm.KEYS:", "if row.is_busy:", "if not_(row.is_live):"} < dropped


def test_what_is_said_to_change_nothing_is_among_the_changes() -> None:
    names = {change.name for module in MONITOR_MODULES for change in sweep.changes(module)}
    assert EQUIVALENT.keys() <= names
