"""`capvisor prove cvm`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from junitparser import JUnitXml

from capvisor.cli import prove_system
from capvisor.cli.status import Status
from capvisor.cli.step_proofs import STEP_PROOFS
from capvisor.proofs.steps import StepOutcome


def set_prover(monkeypatch, prover) -> None:
    monkeypatch.setitem(STEP_PROOFS, "cvm", replace(STEP_PROOFS["cvm"], prove=prover))


def test_a_step_is_proved_and_kept(capvisor, tmp_path) -> None:
    path = tmp_path / "result.json"
    command = ("prove", "cvm", "ecall.cc64", "--state", tmp_path, "--workers", 1)
    status, out, _err = capvisor(*command, "--json", path)
    assert status == 0 and "1 of 1 steps keep every invariant under intended" in out
    (step,) = json.loads(path.read_text())["steps"]
    assert step["step"] == "ecall" and step["is_proved"] and set(step["answers"].values()) == {"unsat"}
    assert capvisor(*command)[0] == 0


def test_bad_names_are_said(capvisor) -> None:
    status, _out, err = capvisor("prove", "cvm", "no_such_step", "--no-cache")
    assert status == 64 and "no step is called or matched by `no_such_step`" in err
    status, _out, err = capvisor("prove", "cvm", "ecall", "--policy", "none", "--no-cache")
    assert status == 64 and "unknown policy `none`" in err
    status, _out, err = capvisor("prove", "cvm", "ecall", "no_such_step", "--no-cache")
    assert status == 64 and "no step is called or matched by `no_such_step`" in err


def test_steps_are_listed_with_their_kinds_and_not_proved(capvisor, monkeypatch) -> None:
    set_prover(monkeypatch, None)
    status, out, _err = capvisor("prove", "cvm", "--list", "file_*.cc64", "create.cc128", "cjalr.cc64")
    assert status == Status.OK
    assert [line.split() for line in out.splitlines()] == [
        ["step", "kind"],
        ["file_advertise.cc64", "leave"],
        ["file_probe.cc64", "leave"],
        ["file_revoke.cc64", "leave"],
        ["create.cc128", "deploy"],
        ["cjalr.cc64", "instruction"],
    ]
    # An instruction by itself, which a guest's step stands for, is meant where nothing else is.
    for patterns in ((), ("*",), ("*.cc64",)):
        status, out, _err = capvisor("prove", "cvm", "--list", *patterns)
        listed = {line.split()[0].rpartition(".")[0]: line.split()[1] for line in out.splitlines()[1:]}
        assert status == Status.OK and listed == STEP_PROOFS["cvm"].steps()


def test_results_are_written_as_junit(capvisor, monkeypatch, tmp_path) -> None:
    found = [
        StepOutcome("ecall", "cc64", {"C1": "unsat"}, 0.5),
        StepOutcome("fence", "cc64", {"C1": "sat", "C2": "unknown"}, 0.5),
        StepOutcome("csc", "cc64", {"C1": "unsat", "C2": "unknown"}, 0.5),
        StepOutcome("clc", "cc64", {}, 0.0, "ValueError: none"),
    ]
    set_prover(monkeypatch, lambda *_arguments: (found, False))
    assert capvisor("prove", "cvm", "--no-cache", "--junit", tmp_path / "out.xml")[0] == Status.VIOLATION
    (suite,) = JUnitXml.fromfile(str(tmp_path / "out.xml"))
    assert suite.name == "prove" and (suite.tests, suite.failures, suite.errors) == (4, 1, 2)
    messages = {case.name: [each.message for each in case.result] for case in suite}
    assert messages == {
        "ecall.cc64": [],
        "fence.cc64": ["not kept: C1; not known: C2"],
        "csc.cc64": ["not known: C2"],
        "clc.cc64": ["ValueError: none"],
    }


@pytest.mark.parametrize(
    "option",
    [
        ("--all",),
        ("--matrix",),
        ("--dependencies",),
        ("--teeth",),
        ("--sweep", "all"),
        ("--solver", "bitwuzla"),
        ("--rlimit", "5"),
        ("--dump-smt", "there"),
        ("--save", "there"),
    ],
)
def test_options_that_are_not_for_steps_are_refused(capvisor, option: tuple[str, ...]) -> None:
    status, _out, err = capvisor("prove", "cvm", "ecall", *option)
    assert status == Status.USAGE and err.startswith(f"capvisor: {option[0]} isn't for steps of a system")


def test_a_policy_is_for_steps_alone(capvisor) -> None:
    status, _out, err = capvisor("prove", "bounds.null", "--policy", "intended")
    assert status == Status.USAGE and "--policy is for steps of a system alone: `capvisor prove cvm`" in err


def test_a_policy_with_guards_off_says_what_it_has_and_what_falls_by_which_program(capvisor, monkeypatch, tmp_path) -> None:
    program = Path("programs/attacks/cvm/a06_kept_in_a_register.without.cap")
    monkeypatch.setattr(prove_system.programs, "find", lambda _paths: [program])
    asked = []

    def prove(steps, policy, _timeout_s, _workers, _cache, _finished, supposed):
        asked.append((policy.purge_registers, supposed))
        leans_on = {"C2": ("C2",), "C6": ("C1",)}
        return [StepOutcome(*each, dict.fromkeys(supposed, "unsat"), 1.0, "", leans_on) for each in steps], False

    set_prover(monkeypatch, prove)
    path = tmp_path / "result.json"
    command = ("prove", "cvm", "wait.cc64", "--policy", "without:purge_registers", "--no-cache", "--json", path)
    status, out, _err = capvisor(*command)
    ((is_on, supposed),) = asked
    assert status == Status.VIOLATION and not is_on and not {"C1", "C8"} & set(supposed)
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("C")}
    assert rows["C1"] == ["falls", str(program)] and rows["C8"] == ["falls", str(program)]
    assert rows["C2"] == ["holds"] and rows["C6"] == ["unknown"]
    assert "Not all steps were asked" in out
    told = json.loads(path.read_text())["invariants"]
    assert told["C1"] == {"verdict": "falls", "program": str(program)} and told["C2"]["verdict"] == "holds"


def test_without_the_attacks_nothing_is_known_to_fall(capvisor, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    status, _out, err = capvisor("prove", "cvm", "wait.cc64", "--policy", "prototype-0.0.1", "--no-cache")
    assert status == Status.USAGE and "there is no programs/attacks/cvm here" in err
