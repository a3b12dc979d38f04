"""Changes of translation pass-through's reference, one at a time: which of its theorems notices each.

Asked are the theorems that execute what is changed, in both variants of the tag check: that the fast path is the reference,
the invariants of a step, counts, refinements, progress. The first that falls, or can't be executed any more, notices it.
"""

import importlib
import types
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import get_args

from capvisor.proofs import afresh, incremental, paging, paging_lanes, tpt, tpt_lanes, tpt_progress
from capvisor.proofs.mutants import functions, source_in_force
from capvisor.proofs.steps import Proved
from capvisor.proofs.sweep import BROKEN, TPT_MODULES, Change, Finding
from capvisor.spec.tag_policy import INTENDED, TAG_GUARDS, TagCheck, TagPolicy
from capvisor.spec.tpt import OPERATIONS

WALKED = (
    "walk_read",
    "walk_update",
    tpt_progress.WALK,
    *paging.steps(),
    *paging_lanes.steps(),
    tpt_lanes.PREFIX + "begin_walk",
)
"""Theorems that execute steps of walks."""

_LANES = {operation: theorem for theorem, operation in tpt_lanes.NAMES.items()}

STOPS = ("translate", "advance")
"""What operations that make walks don't execute in theorems: contracts stand for it."""

CONCRETE = {
    "__init__": "the limits of concrete systems, which theorems don't make: tests try them",
    "set": "concrete memory, which theorems don't execute: tests and campaigns compare it",
    "drop_translations": "a loop over slots, for which a look at any slot stands: a test shows that they are the same",
    "drop_tables": "a loop over slots, for which a look at any slot stands: a test shows that they are the same",
}
"""Functions of which no theorem is, and what notices changes of them."""


@cache
def _names() -> dict[str, frozenset[str]]:
    """By simple name, the names that functions of the reference look up."""
    found: dict[str, frozenset[str]] = {}
    for module in TPT_MODULES:
        for qualified, function in functions(importlib.import_module(module)):
            name = qualified.rsplit(".", 1)[-1]
            found[name] = found.get(name, frozenset()) | frozenset(_looked_up(function.__code__))
    return found


def _looked_up(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _looked_up(constant)


def reached(root: str, stops: tuple[str, ...] = ()) -> set[str]:
    """The functions that one leads to, by simple name, itself included; not beyond some."""
    found, todo, names = set[str](), [root], _names()
    while todo:
        name = todo.pop()
        if name in names and name not in found and name not in stops:
            found.add(name)
            todo += names[name]
    return found


def theorems_for(function: str) -> list[str]:
    """The theorems that execute a function, those that are about it first."""
    found, chosen = [name for name in OPERATIONS if function in reached(name, STOPS)], list[str]()
    found.sort(key=lambda name: (name != function, name in tpt_lanes.STEPPED))
    for name in found[:3]:
        # The quicker one first.
        chosen += [name, _LANES[name]] if name in tpt_lanes.STEPPED else [_LANES[name], name]
    if function in reached("advance") | reached("begin") | {"is_canonical", "cut"}:
        chosen += WALKED
    return list(dict.fromkeys(each for each in chosen if each in tpt.all_steps()))


def examine(change: Change, timeout_s: float) -> Finding:
    """See which theorem notices a change, if one does."""
    if change.function in CONCRETE:
        return Finding(change, equivalent=CONCRETE[change.function])
    with source_in_force(change.module, change.source):
        for theorem in theorems_for(change.function):
            for where, policy in _policies(theorem).items():
                try:
                    fallen = falls(theorem, policy, timeout_s)
                except BROKEN as error:
                    fallen = type(error).__name__
                if fallen:
                    return Finding(change, noticed_by=f"{theorem}.{where}: {fallen}", by_solver=True)
    return Finding(change)


def _policies(theorem: str) -> dict[str, TagPolicy]:
    """The policies in which a theorem is asked: each variant, and of the fast path, which supposes no guard, none too."""
    variants = get_args(TagCheck) if tpt.variants(theorem) != (paging.BOTH,) else get_args(TagCheck)[:1]
    found = {variant: replace(INTENDED, tag_check=variant) for variant in variants}
    if theorem in tpt_lanes.steps():
        off = dict.fromkeys(TAG_GUARDS, False)
        found |= {f"{variant}, no guard": replace(policy, **off) for variant, policy in list(found.items())}
    return found


def falls(theorem: str, policy: TagPolicy, timeout_s: float) -> str:
    """What falls first in a theorem; empty where nothing is found to."""
    for proved in _by_way(theorem, policy, timeout_s):
        for name, kept in proved.kept.items():
            if kept.result == "sat":
                return name
    return ""


def _by_way(theorem: str, policy: TagPolicy, timeout_s: float) -> Iterator[Proved]:
    """What is found of a theorem, way by way where it has many."""
    if theorem in tpt_lanes.steps():
        asked = (tpt_lanes.SAME, tpt_lanes.RANGES)
        for way in tpt_lanes.ways(tpt_lanes.NAMES[theorem], policy):
            yield afresh.asked_of([way], asked, timeout_s)
    elif theorem in (*OPERATIONS, *tpt.WALK_STEPS):
        for way in tpt.ways(theorem, policy):
            yield incremental.asked_of([way], tpt.KEPT, timeout_s, leaner_ms=1)
    else:
        yield tpt.prove(theorem, policy, tpt.KEPT, timeout_s)
