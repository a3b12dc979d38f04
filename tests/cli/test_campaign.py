"""`capvisor fuzz` without files: what it prints and writes, its statuses, and messages for whatever is wrong."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import pytest

from capvisor.cli.status import Status
from capvisor.proofs.mutants import Mutant, in_force
from tests.tutorial import ROOT

BUG = Mutant("seeded", "capvisor.fastpath.capability", "np.equal(inner.tag, outer.tag, out=flag)", "flag.fill(True)")
PEER = f"{sys.executable} {ROOT / 'docs' / 'examples' / 'peer.py'}"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_a_campaign_passes_and_writes_the_same_report_again(capvisor, tmp_path) -> None:
    arguments = ("fuzz", "--profile", "caps", "--programs", 30_000, "--seed", 1)
    status, out, _err = capvisor(*arguments, "--workers", 1, "--json", tmp_path / "one.json")
    assert status == Status.OK, out
    assert "whole states compared" in out and "M1, monotonicity" in out
    assert "again: capvisor fuzz --profile caps --format cc128 --seed 1 --programs 30000" in out
    capvisor(*arguments, "--workers", 2, "--json", tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    document = json.loads((tmp_path / "one.json").read_text())
    assert document["programs"] == 30_000 and document["findings"] == [] and document["comparisons_fired"]["registers"] > 0
    assert not (tmp_path / "findings").exists()


def test_a_campaign_that_left_something_untested_is_inconclusive(capvisor) -> None:
    status, out, _err = capvisor("fuzz", "--programs", 64, "--workers", 1)
    assert status == Status.INCONCLUSIVE and "inconclusive: never executed: " in out


@pytest.mark.parametrize("engine", ["bulk", "hypothesis"])
def test_a_finding_is_kept_as_a_program_and_reported_in_every_form(capvisor, tmp_path, engine: str) -> None:
    with in_force(BUG):
        status, out, _err = capvisor(
            *("fuzz", "--engine", engine, "--profile", "caps", "--time", "60s", "--workers", 1, "--most-findings", 1),
            *("--junit", "x.xml", "--sarif", "x.sarif", "--json", tmp_path / "x.json"),
        )
        (path,) = (tmp_path / "findings").glob("*.cap")
        assert status == Status.VIOLATION and f"kept in findings/{path.name}" in out
        assert capvisor("run", path)[0] == Status.VIOLATION
    assert capvisor("run", path)[0] == Status.OK
    suite = ElementTree.parse("x.xml").getroot()
    failed = [case.get("name") or "" for case in suite.iter("testcase") if case.find("failure") is not None]
    assert any(name.startswith("ctestsubset differs") for name in failed)
    (result,) = json.loads((tmp_path / "x.sarif").read_text())["runs"][0]["results"]
    assert result["ruleId"] == "differs" and result["codeFlows"]
    (finding,) = json.loads((tmp_path / "x.json").read_text())["findings"]
    assert finding["shrunk"] and finding["operations"] <= 5 and finding["file"] == path.name


def test_a_peer_that_agrees_and_one_that_lies(capvisor, tmp_path) -> None:
    status, out, _err = capvisor("fuzz", "--against", PEER, "--programs", 40, "--profile", "caps")
    assert status == Status.OK and "40 programs executed by" in out
    liar = tmp_path / "liar.py"
    source = (ROOT / "docs" / "examples" / "peer.py").read_text()
    liar.write_text(source.replace("machine.step(", "machine.numbers['mscratch'] += 1; machine.step("))
    assert liar.read_text() != source
    status, out, _err = capvisor("fuzz", "--against", f"{sys.executable} {liar}", "--programs", 40, "--most-findings", 1)
    assert status == Status.VIOLATION and "peer differs" in out and "mscratch" in out


def test_a_peer_that_dies_is_said_to(capvisor) -> None:
    status, _out, err = capvisor("fuzz", "--against", "no-such-command-at-all", "--programs", 8)
    assert status == Status.USAGE and "no-such-command-at-all" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--time 5x", "expected a time such as 60s, 5m or 1h"),
        ("--time 0s", "expected a time"),
        ("--time 5s --programs 5", "give one of them"),
        ("--engine hypothesis --invariants-only", "for the bulk engine alone"),
        ("--engine hypothesis --scheduler tcp://x:1", "for the bulk engine alone"),
        ("--findings file", "it is no folder"),
        ("--json nowhere/x.json", "there is no folder nowhere"),
        ("--against rvfi-dii://127.0.0.1:9", "127.0.0.1"),
        ("--profile nonsense", "nonsense"),
    ],
)
def test_what_can_not_be_done_is_said_before_any_work(capvisor, tmp_path, arguments: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    status, _out, err = capvisor("fuzz", *shlex.split(arguments))
    assert status == Status.USAGE and message in err


def test_ctrl_c_ends_a_campaign_with_what_was_done(tmp_path) -> None:
    code = "import sys; from capvisor.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "fuzz", "--time", "10m", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    time.sleep(9)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == Status.INCONCLUSIVE, err
    assert "interrupted: the table is of what was done" in out and "Traceback" not in out + err


def test_invariants_alone_are_an_oracle(capvisor) -> None:
    status, out, _err = capvisor("fuzz", "--invariants-only", "--programs", 100_000, "--workers", 1, "--profile", "sealing")
    assert status == Status.OK and re.search(r"whole states compared +0", out) and "changed: registers" not in out
