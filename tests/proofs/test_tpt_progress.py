"""Theorems on progress: shoot-downs end, and what ends enables what comes next; and changes with which they don't."""

from collections.abc import Callable
from typing import Any

import pytest

from capvisor.model import paging as model
from capvisor.model import tpt_operations
from capvisor.model.tpt import Refused
from capvisor.model.tpt_operations import OPERATION_RULES
from capvisor.proofs import incremental, tpt, tpt_progress
from capvisor.spec.tag_policy import INTENDED
from capvisor.spec.tpt import OPERATIONS, Code


def of_steps(theorem: str, *steps: str) -> dict[str, str]:
    """What a theorem comes to of some of its steps alone."""
    name, goal = tpt_progress.ASKED[theorem], tpt_progress.GOALS[theorem]

    def goals(system: Any, step: Any) -> dict[str, Any]:
        hypothesis, holds = goal(system, step)
        return {name: holds, tpt_progress.REACHED: hypothesis}

    found = {}
    for step in steps:
        ways = tpt.ways(step, INTENDED, tpt.KEPT, goals)
        assert any(tpt_progress.can_be(way, 60) for way in ways)
        found[step] = incremental.asked_of(ways, (name,), 60).kept[name].result
    return found


def changed(monkeypatch: pytest.MonkeyPatch, name: str, after: Callable[..., Any]) -> None:
    """Let an operation do something more when it is done."""
    rule = OPERATION_RULES[name]

    def other(system: Any, *operands: Any) -> Any:
        result = rule(system, *operands)
        after(system, *operands)
        return result

    monkeypatch.setitem(OPERATION_RULES, name, other)


def test_theorems_on_progress_are_among_those_of_the_system() -> None:
    assert tpt_progress.steps().keys() <= tpt.steps().keys()
    assert tpt.LEANS_ON[tpt_progress.PENDING] == ("begin_walk", *tpt.WALK_STEPS)
    assert set(tpt_progress.STEPS[tpt_progress.PENDING]) == {*tpt.WALK_STEPS, *OPERATIONS}


def test_whom_a_frame_waits_for_gets_fewer_and_an_acknowledgement_is_refused_to_none_of_them() -> None:
    steps = ("acknowledge", "reclaim", "scrub", "assign", "write_pte", "set_tag")
    assert of_steps(tpt_progress.PENDING, *steps) == dict.fromkeys(steps, "unsat")


def test_an_acknowledgement_that_leaves_the_vcpu_waited_for_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask_again(system: Any, vcpu: Any, frame: Any) -> None:
        system.pending[frame] = system.pending[frame] | 1 << vcpu

    changed(monkeypatch, "acknowledge", ask_again)
    assert of_steps(tpt_progress.PENDING, "acknowledge") == {"acknowledge": "sat"}


def test_an_acknowledgement_that_is_refused_to_one_who_is_waited_for_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = OPERATION_RULES["acknowledge"]

    def reluctant(system: Any, vcpu: Any, frame: Any) -> None:
        if system.tags.is_large(frame + 1):
            raise Refused(Code.LARGE)
        rule(system, vcpu, frame)

    monkeypatch.setitem(OPERATION_RULES, "acknowledge", reluctant)
    assert of_steps(tpt_progress.PENDING, "acknowledge") == {"acknowledge": "sat"}


def test_a_step_that_puts_a_vcpu_among_those_who_are_waited_for_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask_everybody(system: Any, frame: Any, _vm: Any, _guest_frame: Any) -> None:
        system.pending[frame + 1] = (1 << system.vcpu_count) - 1

    changed(monkeypatch, "assign", ask_everybody)
    assert of_steps(tpt_progress.PENDING, "assign") == {"assign": "sat"}


@pytest.mark.parametrize("name", tpt_progress.NEXT)
def test_what_the_host_may_do_next_is_done(name: str) -> None:
    assert of_steps(tpt_progress.REUSE, name) == {name: "unsat"}


@pytest.mark.parametrize("name", ["scrub", "assign", "migrate", "swap_out", "swap_in"])
def test_an_operation_that_is_refused_for_nothing_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpt_operations, "_check_frame", refuse_odd)
    assert of_steps(tpt_progress.REUSE, name) == {name: "sat"}


def refuse_odd(system: Any, frame: Any) -> None:
    """Refuse every second frame."""
    if (frame >= system.frame_count) | (frame & 1 != 0):
        raise Refused(Code.RANGE)


def test_a_walk_that_stops_without_a_cause_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert of_steps(tpt_progress.WALK, "walk_update") == {"walk_update": "unsat"}
    update = model.update_entry

    def stops(space: Any, walk: model.Walk) -> model.Walk:
        if walk.access == model.WRITE:
            raise model.page_fault(walk, 1)
        return update(space, walk)

    monkeypatch.setattr(model, "update_entry", stops)
    assert of_steps(tpt_progress.WALK, "walk_update") == {"walk_update": "sat"}
