"""The command with programs of systems."""

import json

import pytest

from capvisor.cli.status import Status
from capvisor.fastpath.monitor import BatchMonitor
from tests.tutorial import ROOT

FILES = ROOT / "programs" / "tutorial_cvm" / "cvm_1_files.cap"
KEPT = ROOT / "programs" / "attacks" / "cvm" / "a06_kept_in_a_register.cap"
SOME = {"answer": (FILES,), "scrub": (ROOT / "programs" / "attacks" / "cvm" / "b5_left_in_memory.cap",)}
"""By a step of the fast path: programs that need it."""
MACHINE = ROOT / "programs" / "tutorial" / "01_a_capability.cap"


def test_systems_and_machines_run_side_by_side(capvisor, tmp_path) -> None:
    status, out, _err = capvisor("run", MACHINE, FILES, "--json", tmp_path / "out.json")
    assert status == Status.OK and "2 of 2 passed" in out
    machine, system = json.loads((tmp_path / "out.json").read_text())["programs"]
    assert "system" not in machine and system["system"]["calls"] == 5 and system["system"]["policy"] == "intended"


def test_another_policy_shows_what_a_guard_carries(capvisor, tmp_path) -> None:
    assert capvisor("run", KEPT)[0] == Status.OK
    path = tmp_path / "out.json"
    status, out, _err = capvisor("run", KEPT, "--policy", "without:purge_registers", "--json", path)
    assert status == Status.VIOLATION
    assert "violates C1 (authority) at bob; c5 = 0x80000100" in out
    assert f"again: capvisor run {KEPT} --policy without:purge_registers" in out
    (program,) = json.loads(path.read_text())["programs"]
    assert program["failure"]["kind"] == "violation" and program["system"]["violations"]["C8"]["line"] == 8


def test_the_trace_marks_crossings(capvisor) -> None:
    status, out, _err = capvisor("run", FILES, "--trace", "--cost")
    assert status == Status.OK
    assert "alice -> monitor" in out and "monitor -> bob" in out and "refused: LengthViolation" in out
    assert "file_probe" in out and "-> refused NOT_FOUND" in out and "mechanism" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", FILES, "--policy", "intendd"), "unknown policy `intendd`: there are intended, prototype-0.0.1"),
        (("run", FILES, "--policy", "without:nothing"), "unknown guard `nothing`"),
        (("run", FILES, "--impl", "fast"), "runs on the reference, or on both"),
        (("prove", FILES), "`capvisor prove cvm` proves its every step"),
        (("run", MACHINE, "--policy", "intended"), "--policy is for programs of a system"),
        (("run", MACHINE, FILES, "--cost"), "--cost is for programs of a system"),
        (("fuzz", "--profile", "tpt", "--format", "cc64"), "the profile `tpt` has no --format"),
        (("fuzz", "--profile", "vmm", "--engine", "hypothesis"), "the profile `vmm` has no --engine"),
        (("fuzz", FILES), "a program of a system, which `capvisor run` runs"),
    ],
)
def test_what_does_not_go_is_said(capvisor, arguments: tuple[object, ...], message: str) -> None:
    status, _out, err = capvisor(*arguments)
    assert status == Status.USAGE and message in err


def test_both_implementations_run_and_are_compared(capvisor, tmp_path) -> None:
    compared = {}
    for implementation in ("both", "reference"):
        path = tmp_path / implementation
        assert capvisor("run", FILES, "--impl", implementation, "--json", path)[0] == Status.OK
        (program,) = json.loads(path.read_text())["programs"]
        compared[implementation] = program["states_compared"]
    assert compared["both"] > program["operations"] and compared["reference"] == 0


@pytest.mark.parametrize("step", ["answer", "scrub"])
def test_implementations_that_differ_are_noticed(capvisor, monkeypatch, step: str) -> None:
    monkeypatch.setattr(BatchMonitor, step, lambda *_arguments: None)
    status, out, _err = capvisor("run", *SOME[step])
    assert status == Status.VIOLATION and "implementations differ: " in out and "fast path" in out
    assert capvisor("run", *SOME[step], "--impl", "reference")[0] == Status.OK


def test_an_error_of_the_fast_path_is_a_failure(capvisor, monkeypatch) -> None:
    def leave(*_arguments: object) -> None:
        raise IndexError("beyond")

    monkeypatch.setattr(BatchMonitor, "leave", leave)
    status, out, _err = capvisor("run", FILES)
    assert status == Status.VIOLATION and "implementations differ: " in out and "IndexError: beyond" in out


def test_the_trace_keeps_a_space_behind_a_long_name(capvisor) -> None:
    _status, out, _err = capvisor("run", FILES.with_name("cvm_3_streams.cap"), "--trace")
    assert "  receiver/2 portal_fetch" in out and "receiver/2portal" not in out


def test_fmt_formats_systems(capvisor, tmp_path) -> None:
    path = tmp_path / "a.cap"
    path.write_text('system cvm{alice size 4K;bob size 4K}\nalice:file_revoke "k"->refused NOT_FOUND\nbob:li x5,1\n')
    assert capvisor("fmt", path)[0] == Status.OK
    lines = path.read_text().splitlines()
    assert lines[1:] == ['alice: file_revoke "k"  -> refused NOT_FOUND', "bob:   li         x5, 1"]
    assert capvisor("fmt", "--check", path)[0] == Status.OK
