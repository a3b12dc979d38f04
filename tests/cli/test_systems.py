"""The command with programs of systems."""

import json

import pytest

from capvisor.cli.status import Status
from tests.tutorial import ROOT

FILES = ROOT / "programs" / "tutorial_cvm" / "cvm_1_files.cap"
KEPT = ROOT / "programs" / "attacks" / "cvm" / "a06_kept_in_a_register.cap"
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
        (("run", FILES, "--impl", "fast"), "runs on the reference alone"),
        (("run", MACHINE, "--policy", "intended"), "--policy is for programs of a system"),
        (("run", MACHINE, FILES, "--cost"), "--cost is for programs of a system"),
        (("fuzz", FILES), "a program of a system, which `capvisor run` runs"),
        (("prove", FILES), "a program of a system, which `capvisor run` runs"),
    ],
)
def test_what_does_not_go_is_said(capvisor, arguments: tuple[object, ...], message: str) -> None:
    status, _out, err = capvisor(*arguments)
    assert status == Status.USAGE and message in err


def test_fmt_formats_systems(capvisor, tmp_path) -> None:
    path = tmp_path / "a.cap"
    path.write_text('system cvm{alice size 4K;bob size 4K}\nalice:file_revoke "k"->refused NOT_FOUND\nbob:li x5,1\n')
    assert capvisor("fmt", path)[0] == Status.OK
    lines = path.read_text().splitlines()
    assert lines[1:] == ['alice: file_revoke "k"  -> refused NOT_FOUND', "bob:   li         x5, 1"]
    assert capvisor("fmt", "--check", path)[0] == Status.OK
