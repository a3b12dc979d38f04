"""`capvisor prove stack`: every supposition has what gives it, and the state of that is told."""

import json
from dataclasses import replace

from capvisor.cli import prove_stack, prove_system
from capvisor.cli.prove_stack import CHECKED, FALLS, OPEN, PROVED, TRUSTED
from capvisor.cli.status import Status
from capvisor.cli.step_proofs import STEP_PROOFS
from capvisor.dsl.system_kinds import SYSTEM_KINDS
from capvisor.proofs import runner, stack_steps
from capvisor.proofs.cache import Cache
from capvisor.proofs.runner import Verdict
from capvisor.proofs.steps import TOGETHER, StepOutcome, keep_whole
from capvisor.proofs.theorem import THEOREMS, obligations
from capvisor.spec.composition import LAYERS, SUPPOSITIONS
from capvisor.spec.stack_invariants import STACK_INVARIANTS
from capvisor.spec.stack_policy import STACK_GUARDS


def kept_by(system: str) -> tuple[str, ...]:
    guarded = STEP_PROOFS[system].guarded
    assert guarded is not None
    return guarded.kept


def test_what_gives_a_supposition_is_there() -> None:
    for row in SUPPOSITIONS.values():
        assert row.name.split(".")[0] == row.layer and row.layer in LAYERS
        for name in row.invariants:
            system, invariant = name.split(".")
            assert invariant in (stack_steps.KEPT if system == "stack" else kept_by(system)), name
        for name in row.steps:
            system, step = name.split(".")
            assert step in STEP_PROOFS[system].steps(), name
        for name in row.checked:
            system, invariant = name.split(".")
            assert invariant in (STACK_INVARIANTS if system == "stack" else kept_by(system)), name
        assert set(row.theorems) <= set(THEOREMS)
        assert set(row.guards) <= set(STACK_GUARDS)
        assert row.trusted or row.invariants or row.steps or row.theorems or row.checked, row.name
    assert {row.layer for row in SUPPOSITIONS.values()} == set(LAYERS)


def test_every_guard_of_the_stack_and_every_theorem_is_for_something() -> None:
    assert {guard for row in SUPPOSITIONS.values() for guard in row.guards} == set(STACK_GUARDS)
    given = {name for row in SUPPOSITIONS.values() for name in row.theorems}
    assert given == {each.theorem.id for each in prove_stack.theorems()}


def test_the_state_of_a_supposition_is_the_least_of_what_gives_it() -> None:
    verdicts = {name: [Verdict.PROVED, Verdict.PROVED] for row in SUPPOSITIONS.values() for name in row.theorems}
    kept = {system: frozenset(kept_by(system)) for system in LAYERS} | {"stack": frozenset(stack_steps.KEPT)}
    found = {name: prove_stack._state(row, verdicts, kept) for name, row in SUPPOSITIONS.items()}
    assert found["tpt.devices"] == found["cvm.memory"] == PROVED and found["tpt.host"] == TRUSTED
    assert OPEN not in found.values()
    checked = replace(SUPPOSITIONS["cvm.memory"], checked=("stack.S3",))
    assert prove_stack._state(checked, verdicts, kept) == CHECKED
    assert prove_stack._state(SUPPOSITIONS["cvm.memory"], verdicts, kept | {"stack": frozenset(("S4", "S5"))}) == OPEN
    row = SUPPOSITIONS["cvm.private"]
    assert prove_stack._state(row, verdicts, kept | {"tpt": kept["tpt"] - {"T9"}}) == OPEN
    assert prove_stack._state(SUPPOSITIONS["cvm.memory"], verdicts, kept | {"cvm": kept["cvm"] - {"C10"}}) == OPEN
    assert prove_stack._state(row, verdicts | {"composition.guests": [Verdict.PROVED, Verdict.UNKNOWN]}, kept) == OPEN
    assert prove_stack._state(row, verdicts | {"composition.guests": [Verdict.REFUTED, Verdict.PROVED]}, kept) == FALLS
    assert prove_stack._state(row, {}, kept) == OPEN


def test_the_table_says_what_is_open(capvisor, monkeypatch, tmp_path) -> None:
    known = obligations()
    monkeypatch.setattr(prove_stack, "theorems", lambda: [known["composition.stack.cc64"]])
    monkeypatch.setattr(prove_stack.runner, "with_lemmas", list)
    monkeypatch.setattr(prove_stack, "step_keys", lambda: [("start", "all")])
    path = tmp_path / "stack.json"
    command = ("prove", "stack", "--state", tmp_path, "--workers", 1, "--json", path, "--junit", tmp_path / "stack.xml")
    status, out, _err = capvisor(*command)
    assert status == Status.INCONCLUSIVE and "`capvisor prove tpt`" in out
    told = {row["name"]: row["states"]["cc64"] for row in json.loads(path.read_text())["suppositions"]}
    assert told["cvm.private"] == OPEN and told["vmm.guest"] == TRUSTED
    assert (tmp_path / "stack.xml").exists()


def test_what_all_steps_keep_is_remembered(tmp_path) -> None:
    cache = Cache(tmp_path)
    for system, fmt in (("tpt", TOGETHER), ("cvm", "cc64")):
        assert prove_stack._kept(system, "cc64", cache) == frozenset()
        keep_whole(system, fmt, SYSTEM_KINDS[system].intended, ("T1", "C1"), cache)
        assert prove_stack._kept(system, "cc64", cache) == {"T1", "C1"}
    assert prove_stack._kept("tpt", "cc128", cache) == {"T1", "C1"} and not prove_stack._kept("cvm", "cc128", cache)


def outcome(step: str, fmt: str, result: str, *leant_on: str) -> StepOutcome:
    answers = dict.fromkeys(kept_by("tpt"), "unsat") | {"T1": result}
    return StepOutcome(step, fmt, answers, 0.0, "", {"T2": leant_on})


def test_a_part_of_a_system_is_not_remembered_as_the_whole(tmp_path) -> None:
    tools, policy, cache = STEP_PROOFS["tpt"], SYSTEM_KINDS["tpt"].intended, Cache(tmp_path)
    keys = [(step, fmt) for step in tools.steps() for fmt in tools.formats(step)]
    outcomes = [outcome(*key, "unsat") for key in keys]
    prove_system._keep_whole("tpt", policy, outcomes[1:], keys[1:], {}, cache)
    prove_system._keep_whole("tpt", policy, outcomes[1:], keys, {}, cache)
    assert not prove_stack._kept("tpt", "cc64", cache)
    # What leans in one part on what isn't known in another isn't kept.
    outcomes[0], outcomes[-1] = outcome(*keys[0], "unknown"), outcome(*keys[-1], "unsat", "T1")
    prove_system._keep_whole("tpt", policy, outcomes, keys, {}, cache)
    assert prove_stack._kept("tpt", "cc64", cache) == set(kept_by("tpt")) - {"T1", "T2"}


def test_the_whole_needs_every_theorem(capvisor, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(prove_stack, "SUPPOSITIONS", {"vmm.guest": SUPPOSITIONS["vmm.guest"]})
    monkeypatch.setattr(prove_stack.stack_steps, "prove_all", lambda *_arguments: ([], False))
    for verdict, expected in ((Verdict.PROVED, Status.OK), (Verdict.UNKNOWN, Status.INCONCLUSIVE)):
        outcomes = [runner.Outcome(each, verdict) for each in prove_stack.theorems()]
        monkeypatch.setattr(prove_stack.runner, "prove", lambda *_arguments, outcomes=outcomes: (outcomes, False))
        assert capvisor("prove", "stack", "--state", tmp_path)[0] == expected


def test_what_all_steps_keep_across_layers_leans_on_what_layers_keep() -> None:
    layers = {"tpt": frozenset(("T3", "T13"))}

    def found(*leant_on: str) -> list[StepOutcome]:
        return [StepOutcome("tpt.store", "all", {"S2": "unsat", "S9": "sat"}, 0.0, "", {"S2": leant_on})]

    keys = [("tpt.store", "all")]
    kept = prove_stack.across(found("tpt.T3"), keys, layers)
    assert "S2" in kept and "S9" not in kept
    assert "S2" not in prove_stack.across(found("tpt.T5"), keys, layers)
    assert not prove_stack.across(found(), [*keys, ("tpt.load", "all")], layers)


def test_suppositions_are_listed_and_nothing_is_proved(capvisor) -> None:
    status, out, _err = capvisor("prove", "stack", "--list")
    assert status == Status.OK and all(name in out for name in SUPPOSITIONS)


def test_what_it_would_ignore_is_refused(capvisor) -> None:
    status, _out, err = capvisor("prove", "stack", "--teeth")
    assert status == 64 and "--teeth isn't for steps of a system" in err
