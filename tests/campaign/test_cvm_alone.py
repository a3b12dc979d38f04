"""The reference alone, held against the invariants: as in a campaign on both implementations, and where these differ."""

import numpy as np
import pytest

from capvisor.campaign.cvm_alone import Alone, First, UpToTheFirst, first_found
from capvisor.campaign.cvm_attacks import play
from capvisor.campaign.cvm_drill import Drill, drill
from capvisor.campaign.cvm_systems import Systems
from capvisor.campaign.systems import CRASHES
from capvisor.model.monitor import Monitor
from capvisor.spec.formats import CC64
from capvisor.spec.policy import INTENDED, without


@pytest.mark.parametrize("number", [0, 1])
def test_alone_it_takes_the_same_steps_and_is_held_against_the_same_invariants(number: int) -> None:
    both = play([7, number], CC64, 16, 20, turn=number)
    alone = play([7, number], CC64, 16, 20, turn=number, systems_type=Alone)
    assert both.found == alone.found == []
    assert both.counts == alone.counts
    assert both.oracles is not None and alone.oracles is not None
    assert (both.oracles.evaluated, both.oracles.concerned) == (alone.oracles.evaluated, alone.oracles.concerned)
    for name in ("tags", "metas", "addresses"):
        rows = slice(both.mirror.tags.shape[0])
        assert np.array_equal(getattr(both.batch.harts, name)[rows], getattr(alone.batch.harts, name)[rows])
    assert np.array_equal(both.batch.memory.halves, alone.batch.memory.halves)


def test_more_threads_than_there_was_room_for_are_held_against_them_too() -> None:
    alone = drill(CC64, 1, run=Drill.run_tables, systems_type=Alone)
    assert alone.found == [] and alone.batch.thread_counts().tolist() == [63]
    both = drill(CC64, 1, run=Drill.run_tables)
    assert both.oracles is not None and alone.oracles is not None
    assert both.oracles.evaluated == alone.oracles.evaluated


@pytest.mark.parametrize("guard", ["purge_slots", "purge_registers", "local_grants"])
def test_what_both_implementations_do_wrong_is_seen_alone(guard: str) -> None:
    systems = play([1, 0], CC64, 48, 20, without(guard))
    first = systems.found[0]
    assert play([1, 0], CC64, 48, 20, without(guard), systems_type=Alone).found[0] == first


def test_what_the_reference_alone_does_wrong_is_a_difference_and_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_found(INTENDED, UpToTheFirst) is first_found(INTENDED, Alone) is None
    monkeypatch.setattr(Monitor, "take_back", lambda *_arguments: None)
    differs = first_found(INTENDED, UpToTheFirst)
    assert differs is not None and differs.what == "differs"
    violation = first_found(INTENDED, Alone, differs.run)
    assert violation == First("C1", "file_revoke", differs.run)


def test_an_error_is_no_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Monitor, "revoke")
    found = first_found(INTENDED, Alone)
    assert found is not None and (found.what, found.step) == (CRASHES, "AttributeError")


def test_one_difference_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Monitor, "answer", lambda *_arguments: None)
    found = drill(CC64, 2, run=Drill.run_calls, systems_type=UpToTheFirst)
    assert len({each.events for each in found.found}) == 1 and len(found.found) == 2
    assert len(drill(CC64, 2, run=Drill.run_calls).events) > len(found.events)
    assert isinstance(found, Systems)
