"""Campaigns of cVMs: what they count, what they find, and the programs that show it."""

import json
from pathlib import Path

import pytest

from capvisor.campaign import cvm
from capvisor.campaign.cvm_program import Replay, events_of, program, reduced
from capvisor.campaign.cvm_systems import Systems
from capvisor.cli.main import main
from capvisor.dsl.parser import parse
from capvisor.dsl.system_runner import run_system
from capvisor.fastpath.monitor import CALL_KERNELS as KERNELS
from capvisor.fastpath.monitor import BatchMonitor, Callers
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
from capvisor.spec.formats import CC128
from capvisor.spec.policy import INTENDED, without


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cvm, "LANES", 8)
    monkeypatch.setattr(cvm, "MOVES", 12)


def runs(lines: tuple[str, ...]) -> None:
    """Hold a finding's program against what it says of itself."""
    verdict = run_system(parse("\n".join(lines) + "\n"), {})
    assert verdict.failure is None, verdict.failure


def test_the_intended_policy_passes_and_everything_is_counted() -> None:
    report = cvm.run(0, programs=16)
    assert report.findings == []
    assert report.programs == 16
    assert report.compared == report.steps > 500
    assert report.evaluated == report.watched_steps * len(CVM_INVARIANTS) > 0
    assert sum(report.calls.values()) > report.refused > 0


def test_the_same_seed_gives_the_same_report() -> None:
    first, second = (cvm.run(3, programs=16) for _ in range(2))
    first.seconds = second.seconds = 0
    assert first == second
    assert first.calls != cvm.run(4, programs=16).calls


@pytest.mark.parametrize("guard", ["distinct_otypes", "grants_without_store_capability", "advertised_range_checked"])
def test_a_policy_without_a_guard_is_found_out_by_a_program_that_runs(guard: str) -> None:
    report = cvm.run(0, policy=without(guard), programs=160, most_findings=1)
    (finding,) = report.findings
    assert finding.what in CVM_INVARIANTS
    assert f"policy without {guard}" in finding.program[0]
    runs(finding.program)


def test_a_finding_is_made_small() -> None:
    policy = without("grants_without_store_capability")
    systems, seed = Systems(CC128, 0x8000_0000, 0x1000, 1), 0
    while not systems.found:
        systems = cvm.play([9, seed], CC128, 1, 12, policy, watched=1)
        seed += 1
    found = systems.found[0]
    events = events_of(systems, 0, found.events)
    fewer = reduced(CC128, policy, events, found.what)
    assert len(fewer) < len(events)
    assert reduced(CC128, policy, fewer, found.what) == fewer
    runs(tuple(program(CC128, policy, fewer)))


def test_what_cant_be_is_left_out_of_a_replay() -> None:
    systems = cvm.play([0], CC128, 1, 5)
    replay = Replay(CC128, INTENDED)
    assert [replay.execute(event) for event in events_of(systems, 0, 99) if event.kind not in ("create", "destroy")] != []
    assert replay.lines == []


def test_a_difference_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_monitor: BatchMonitor, _who: Callers, *_arguments: object) -> None:
        pass

    monkeypatch.setitem(KERNELS, "file_advertise", nothing)
    report = cvm.run(0, programs=16, most_findings=1)
    (finding,) = report.findings
    assert finding.what == "differs"
    assert any("grants" in each for each in finding.details)
    runs(finding.program)


def test_a_campaign_that_tries_little_says_so() -> None:
    report = cvm.run(0, programs=1)
    assert any(each.startswith("never called") for each in report.weaknesses)
    assert cvm.SystemReport(0, "cc128").weaknesses


# -- the command ------------------------------------------------------------------------------------------------------------


def fuzz(*words: str) -> int:
    """The exit status of `capvisor fuzz`."""
    with pytest.raises(SystemExit) as ended:
        main(["fuzz", *words])
    return int(ended.value.code or 0)


def test_the_command_keeps_a_finding_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder = tmp_path / "report.json", tmp_path / "findings"
    words = ["--policy", "without:distinct_otypes", "--programs", "80", "--most-findings", "1", "--json", str(path)]
    assert fuzz("--profile", "cvm", *words, "--findings", str(folder)) == 1
    assert "again: capvisor fuzz --profile cvm" in capsys.readouterr().out
    (kept,) = folder.iterdir()
    runs(tuple(kept.read_text().splitlines()))
    assert json.loads(path.read_text())["findings"][0]["what"] in CVM_INVARIANTS


def test_a_small_campaign_is_inconclusive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz("--profile", "cvm", "--programs", "2", "--findings", str(tmp_path)) == 2
    assert "inconclusive: never called" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--policy", "lenient"], ["--engine", "hypothesis"], ["--invariants-only"]])
def test_what_cant_be_asked_for_is_refused(words: list[str]) -> None:
    assert fuzz("--profile", "cvm", *words) == 64


def test_a_policy_is_for_systems() -> None:
    assert fuzz("--policy", "intended") == 64
