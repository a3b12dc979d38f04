"""Theorems on whole walks: how many words they read, and that the modes agree; and changes with which they don't hold."""

import pytest

from capvisor.model import paging as model
from capvisor.model.paging import DONE, READ, UPDATE
from capvisor.proofs import incremental, paging
from capvisor.spec.paging import LEVELS, Mode, walk_references


@pytest.mark.parametrize("name", paging.COUNTS)
def test_no_walk_reads_more_and_one_reads_as_many(name: str) -> None:
    kept = paging.prove(name, timeout_s=60).kept
    assert {each: found.result for each, found in kept.items()} == {paging.BOUND: "unsat", paging.REACHED: "unsat"}


def test_the_bounds_are_the_numbers_of_the_literature() -> None:
    assert [walk_references(Mode.NATIVE, levels) for levels in LEVELS] == [4, 5]
    assert [walk_references(Mode.NESTED, levels, levels) for levels in LEVELS] == [24, 35]


def test_the_potential_of_a_walk_that_begins_is_the_bound() -> None:
    for levels in LEVELS:
        begun = model.Walk(True, level=levels)
        assert paging._left(begun, 1, 0) == walk_references(Mode.NATIVE, levels)
        assert paging._left(begun, levels + 1, levels) == walk_references(Mode.NESTED, levels, levels)


@pytest.mark.parametrize("name", ["refines_native", "refines_shadow"])
def test_modes_agree(name: str) -> None:
    assert paging.prove(name, timeout_s=60).kept[paging.SAME].result == "unsat"


def test_what_is_supposed_of_a_step_of_both_modes_can_hold() -> None:
    # Entries of pages at 3 levels, and of tables at 4.
    found = paging._refined(UPDATE, is_native=False)
    assert sum(incremental.can_hold(way, timeout_s=60) for way in found) == 7


def test_a_walker_that_reads_twice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    once = model.Direct.read

    def twice(self, walk, table, index):
        once(self, walk, table, index)
        return once(self, walk, table, index)

    monkeypatch.setattr(model.Direct, "read", twice)
    kept = paging.prove("count_native", timeout_s=60).kept
    assert {found.result for found in kept.values()} == {"sat"}


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("table", lambda self, walk: walk.frame),
        ("page", lambda self, walk, base, level: (base, level)),
        ("write", lambda self, walk, table, index, value: None),
    ],
)
def test_tpt_that_checks_or_writes_less_isnt_nested_paging(monkeypatch: pytest.MonkeyPatch, part: str, changed) -> None:
    monkeypatch.setattr(model.Tagged, part, changed)
    answers = {
        incremental.asked_of(paging._refined(stage, is_native=False), (paging.SAME,), 60).kept[paging.SAME].result
        for stage in ((UPDATE,) if part == "write" else (READ,))
    }
    assert answers == {"sat"}


def test_a_shadow_page_with_other_rights_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = model.Shadow._map
    monkeypatch.setattr(model.Shadow, "_map", lambda self, found: mapped(self, found._replace(is_dirty=True)))
    assert paging.prove("refines_shadow", timeout_s=60).kept[paging.SAME].result == "sat"


def test_a_walk_that_is_done_has_no_more_to_read() -> None:
    assert paging._left(model.Walk(True, stage=DONE), 5, 4) == 0
