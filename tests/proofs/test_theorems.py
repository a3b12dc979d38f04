"""The theorems hold, say something, and have teeth. The slow ones, and all of cc128, are `make prove`'s."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from capvisor.model import capability
from capvisor.model.capability import Capability
from capvisor.proofs import contracts, isa, runner, solve
from capvisor.proofs.cache import Cache
from capvisor.proofs.mutants import MUTANTS, Mutant, in_force
from capvisor.proofs.runner import Settings, Verdict, prove, with_lemmas
from capvisor.proofs.solve import Answer
from capvisor.proofs.teeth import bites
from capvisor.proofs.theorem import THEOREMS, Obligation, Theorem, implies, obligations, queries, replay
from capvisor.spec.formats import CC64, FORMATS
from tests.shares import some
from tests.tutorial import ROOT

SLOW = {"bounds.set.tightest_directly", "bounds.set.monotone_directly", "bounds.set.again", "build.recovers"}
APART = {name for name in THEOREMS if name.startswith("composition.")}
"""Of any states, which values of symbols alone don't say: tests/proofs/test_composition.py breaks what they suppose."""
QUICK = [each for each in obligations().values() if each.format is CC64 and each.theorem.id not in SLOW | APART]


def outcome_of(obligation: Obligation, **settings: object) -> runner.Outcome:
    """Proved in this process, question by question."""
    asked = queries(obligation)
    pending = runner._Pending(obligation, asked.key(), asked.labels)
    for label in asked.labels:
        pending.answers[label, "z3"] = solve.ask(
            "z3", asked.conditions(label), asked.symbols, float(settings.get("timeout_s", 60))
        )
    return runner._judge(pending, ("z3",))


@pytest.mark.parametrize("obligation", some(QUICK, 2), ids=lambda each: each.id)
def test_a_theorem_comes_out_as_stated(obligation: Obligation) -> None:
    outcome = outcome_of(obligation)
    assert outcome.as_expected, (outcome.verdict, outcome.reason, outcome.counterexample)
    assert outcome.example is not None
    if obligation.theorem.holds:
        assert replay(obligation, outcome.example) == (True, True)


def test_there_are_at_least_35_properties_of_both_formats() -> None:
    both = [each for each in THEOREMS.values() if set(each.formats) == set(FORMATS)]
    assert len(both) >= 35
    assert all(each.statement and each.source for each in THEOREMS.values())
    assert all(each.statement.startswith("FALSE") != each.holds for each in THEOREMS.values())


@pytest.mark.parametrize("theorem", [each for each in THEOREMS.values() if each.mutants], ids=lambda each: each.id)
def test_each_named_mutant_breaks_its_theorem(theorem: Theorem) -> None:
    found = list(bites(theorem, 20))
    assert [bite.mutant.name for bite in found] == list(theorem.mutants)
    assert all(bite.fallen is not None for bite in found)


def test_a_mutant_that_breaks_nothing_is_seen(monkeypatch) -> None:
    harmless = Mutant("harmless", "capvisor.model.bounds", "exact = (base | top)", "exact = (top | base)")
    monkeypatch.setitem(MUTANTS, "harmless", harmless)
    (bite,) = bites(replace(THEOREMS["bounds.round.up"], mutants=("harmless",)), 20)
    assert bite.fallen is None


def test_every_theorem_that_executes_code_names_a_mutant_and_every_mutant_is_used() -> None:
    without = {each.id for each in THEOREMS.values() if each.holds and not each.mutants}
    # They execute no code, or suppose of it what their lemmas say: the lemmas have the teeth.
    assert without == {"bounds.set.monotone", "bounds.set.no_tighter", "bounds.set.tightest", *APART}
    assert {each.id for each in THEOREMS.values() if not each.replays} == APART
    of_theorems, of_cells = ({name for each in chosen for name in each.mutants} for chosen in (THEOREMS.values(), _cells()))
    assert of_theorems | of_cells == set(MUTANTS)


def _cells() -> list[Theorem]:
    return [cell.theorem for cell in isa.cells().values()]


def test_a_mutant_leaves_nothing_behind() -> None:
    obligation = obligations()["bounds.set.covers.cc64"]
    key = queries(obligation).key()
    with in_force(MUTANTS["set-top-rounded-down"]):
        assert queries(obligation).key() != key
    assert queries(obligation).key() == key


# -- verdicts ------------------------------------------------------------------------------------------------------------


def lemma(claim, **changes: object) -> Obligation:
    return Obligation(replace(Theorem("test", "a test", "none", claim), **changes), CC64)


def test_assumptions_that_nothing_satisfies_are_vacuous() -> None:
    def claim(_fmt, given):
        x = given.word("x", 8)
        given.assume((x < 5) & (x > 5))
        return x == 1

    assert outcome_of(lemma(claim)).verdict is Verdict.VACUOUS


def test_a_split_with_a_gap_is_an_error() -> None:
    def claim(_fmt, given):
        x = given.word("x", 8)
        given.split([x < 100, x > 100])
        return x != 100

    outcome = outcome_of(lemma(claim))
    assert outcome.verdict is Verdict.ERROR and "cases" in outcome.reason


def test_a_counterexample_that_does_not_fail_again_is_an_error(monkeypatch) -> None:
    obligation = obligations()["bounds.valid_top.cc64"]
    assert outcome_of(obligation).verdict is Verdict.REFUTED
    monkeypatch.setattr(runner, "replay", lambda obligation, values: (True, True))
    outcome = outcome_of(obligation)
    assert outcome.verdict is Verdict.ERROR and "defect of the prover" in outcome.reason


def test_solvers_that_disagree_are_an_error() -> None:
    obligation = obligations()["bounds.null.cc64"]
    pending = runner._Pending(obligation, "", ("assumptions", "0"))
    pending.answers = {("assumptions", "z3"): Answer("sat", 0), ("assumptions", "bitwuzla"): Answer("sat", 0)}
    pending.answers |= {("0", "z3"): Answer("unsat", 0), ("0", "bitwuzla"): Answer("sat", 0, {})}
    assert runner._judge(pending, ("z3", "bitwuzla")).verdict is Verdict.ERROR


def test_what_leans_on_an_unproved_lemma_is_unknown(monkeypatch) -> None:
    chosen = [obligations()["bounds.set.monotone.cc64"]]
    assert [each.theorem.id for each in with_lemmas(chosen)][-1] == "bounds.set.monotone"
    assert len(with_lemmas(chosen)) == 4
    monkeypatch.setitem(
        THEOREMS, "bounds.shape", replace(THEOREMS["bounds.shape"], claim=lambda fmt, given: given.word("x", 8) > 7)
    )
    run = runner._Run(with_lemmas(chosen), Settings(), lambda outcome: None)
    for obligation in run._chosen:
        run._outcomes[obligation.id] = outcome_of(obligation)
    run._hold_back()
    verdicts = {name: outcome.verdict for name, outcome in run._outcomes.items()}
    assert verdicts["bounds.shape.cc64"] is Verdict.REFUTED
    assert verdicts["bounds.set.monotone.cc64"] is Verdict.UNKNOWN
    assert "bounds.shape.cc64" in run._outcomes["bounds.set.monotone.cc64"].reason


def test_theorems_in_a_circle_are_refused(monkeypatch) -> None:
    monkeypatch.setitem(THEOREMS, "bounds.shape", replace(THEOREMS["bounds.shape"], uses=("bounds.set.monotone",)))
    with pytest.raises(ValueError, match=r"in a circle: bounds\.set\.monotone"):
        with_lemmas([obligations()["bounds.set.monotone.cc64"]])


# -- runs ----------------------------------------------------------------------------------------------------------------

FEW = [
    each for each in QUICK if each.theorem.id in ("bounds.null", "bounds.valid_top", "permissions.and", "bounds.round.up")
]


def test_a_second_run_is_answered_from_the_cache(tmp_path: Path) -> None:
    for expected in (0, 2):
        outcomes, interrupted = prove(FEW, Settings(cache=Cache(tmp_path)))
        assert not interrupted and all(outcome.as_expected for outcome in outcomes)
        assert all(outcome.cached == expected for outcome in outcomes)
    with in_force(MUTANTS["crrl-down"]):
        (pending,) = [queries(each).key() for each in FEW if each.theorem.id == "bounds.round.up"]
    assert Cache(tmp_path).get(f"{pending}:0:{solve.version('z3')}") is None


def test_two_solvers_agree() -> None:
    outcomes, _interrupted = prove(FEW, Settings(solvers=("z3", "bitwuzla")))
    assert all(outcome.as_expected and outcome.questions == 4 for outcome in outcomes)


def test_questions_are_written_as_smtlib_that_another_solver_reads(tmp_path: Path) -> None:
    import bitwuzla

    prove(FEW[:2], Settings(dump=tmp_path))
    files = sorted(tmp_path.glob("*.smt2"))
    assert len(files) == 4
    for path in files:
        text = path.read_text()
        parser = bitwuzla.Parser(bitwuzla.TermManager(), bitwuzla.Options())
        parser.parse(text.replace("(check-sat)", ""), True, False)
        result = str(parser.bitwuzla().check_sat()).rsplit(".", 1)[-1].lower()
        assert f"(set-info :status {result})" in text or "(set-info :status unknown)" in text


def test_a_question_without_enough_time_is_unknown() -> None:
    slow = obligations()["bounds.set.exact.cc128"]
    assert outcome_of(slow, timeout_s=0.01).verdict is Verdict.UNKNOWN


def test_the_command_proves_and_reports(tmp_path: Path) -> None:
    from capvisor.cli import main as command
    from capvisor.cli.status import Status

    arguments = [
        "prove",
        "bounds.null",
        "bounds.valid_top.cc64",
        "--state",
        str(tmp_path),
        "--json",
        str(tmp_path / "out.json"),
    ]
    assert command.status_of(arguments) == Status.OK
    document = json.loads((tmp_path / "out.json").read_text())
    jsonschema.validate(document, json.loads((ROOT / "cli" / "schemas" / "results.schema.json").read_text()))
    rows = document["obligations"]
    assert [(row["id"], row["verdict"]) for row in rows] == [
        ("bounds.null.cc128", "PROVED"),
        ("bounds.null.cc64", "PROVED"),
        ("bounds.valid_top.cc64", "REFUTED"),
    ]
    assert command.status_of(["prove", "--list", "sealing.*"]) == Status.OK
    slow = ["prove", "bounds.set.exact.cc128", "--timeout", "0.1", "--no-cache"]
    assert command.status_of(slow) == Status.INCONCLUSIVE


def test_the_command_shows_teeth_and_what_leans_on_what(capsys) -> None:
    from capvisor.cli import main as command
    from capvisor.cli.status import Status

    assert command.status_of(["prove", "--teeth", "bounds.null"]) == Status.OK
    assert "top-carry" in capsys.readouterr().out
    assert command.status_of(["prove", "--dependencies", "bounds.set.monotone.cc64"]) == Status.OK
    out = capsys.readouterr().out
    assert "bounds.set.monotone.cc64" in out and "bounds.set.finer.cc64" in out


def test_a_bound_on_steps_makes_a_question_unknown_everywhere_alike() -> None:
    (outcome,), _interrupted = prove([obligations()["bounds.set.exact.cc64"]], Settings(rlimit=1000))
    assert outcome.verdict is Verdict.UNKNOWN and "resource limit" in outcome.reason


def _die(*_arguments: object) -> Answer:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_questions_of_a_killed_worker_are_asked_again() -> None:
    run = runner._Run(with_lemmas(FEW[:2]), Settings(), lambda outcome: None)
    run._workers.submit(_die)
    outcomes, interrupted = run.run()
    assert not interrupted and len(outcomes) == 2 and all(outcome.as_expected for outcome in outcomes)


def test_a_question_that_kills_its_worker_twice_is_unknown(monkeypatch) -> None:
    monkeypatch.setattr(runner, "_answer", _die)
    outcomes, interrupted = prove(FEW[:1], Settings())
    assert not interrupted and outcomes[0].verdict is Verdict.UNKNOWN
    assert "a worker process was killed" in outcomes[0].reason


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    arguments = ["bounds.null", "kernels.address_keeps_bounds", "--workers", "1"]
    arguments += ["--state", str(tmp_path), "--json", str(tmp_path / "j")]
    process = subprocess.Popen(
        [sys.executable, "-m", "capvisor", "prove", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(tmp_path.glob("*.sqlite")):
        time.sleep(0.1)
    while time.monotonic() < deadline and len(Cache(tmp_path)) < 5:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 2 and "Traceback" not in err
    assert "interrupted: what was answered is kept" in out and "bounds.null.cc64" in out
    assert [each["id"] for each in json.loads((tmp_path / "j").read_text())["obligations"]][:1] == ["bounds.null.cc128"]


# -- lemmas and contracts --------------------------------------------------------------------------------------------------


def test_a_lemma_that_is_not_named_is_refused() -> None:
    def claim(fmt, given):
        given.lean_on(fmt, "bounds.round.up", length=given.word("length", 32))
        return True

    with pytest.raises(ValueError, match=r"leans on bounds\.round\.up without naming it"):
        queries(lemma(claim))


def test_a_lemma_says_of_values_what_its_theorem_says_and_no_more() -> None:
    def claim(fmt, given):
        length, top = given.word("length", 32), given.word("top", 33)
        given.lean_on(fmt, "bounds.round.no_wrap", length=length)
        # Of a base and a top that are in the wrong order the theorem says nothing.
        given.lean_on(fmt, "bounds.set.covers", base=length, top=top, meta=fmt.null_meta)
        return top >= length

    undeclared = lemma(claim)
    declared = replace(undeclared, theorem=replace(undeclared.theorem, uses=("bounds.round.no_wrap", "bounds.set.covers")))
    assert outcome_of(declared).verdict is Verdict.REFUTED


def test_contracts_stand_for_functions_and_not_for_more_than_is_proved() -> None:
    def moved(fmt, given, *, goal):
        with contracts.in_force(given):
            cap = given.sound_capability(fmt, "c")
            result = capability.increment_address(cap, given.word("n", fmt.address_width))
            return implies(result.tag, goal(cap, result))

    def first_attempt(goal) -> str:
        obligation = lemma(lambda fmt, given: moved(fmt, given, goal=goal))
        uses = ("bounds.types", "invariant.increment_address", "monotone.increment_address")
        asked = queries(replace(obligation, theorem=replace(obligation.theorem, uses=uses, has_contracts=True)))
        return solve.ask("z3", asked.abstract, {}, 20).result

    assert first_attempt(lambda cap, result: result.is_sound & (result.base == cap.base)) == "unsat"
    assert first_attempt(lambda cap, result: result.base <= result.address) == "sat"
    # What is true of the function, but not among its theorems, takes the function itself.
    assert first_attempt(lambda cap, result: (cap.length < 1 << 30) | (result.base & 1 == 0)) == "sat"
    assert outcome_of(lemma(lambda fmt, given: long_is_aligned(given.sound_capability(fmt, "c")))).verdict is Verdict.PROVED


def long_is_aligned(cap: Capability) -> object:
    return (cap.length < 1 << 30) | (cap.base & 1 == 0)


def test_the_lemmas_of_operations_are_those_of_what_their_rules_call() -> None:
    assert contracts.lemmas_for(["li", "cgetbase"]) == ("bounds.types",)
    expected = {f"{kind}.{name}" for kind in ("invariant", "monotone") for name in ("set_offset", "increment_address")}
    assert set(contracts.lemmas_for(["csetoffset"])) == {"bounds.types", *expected}
