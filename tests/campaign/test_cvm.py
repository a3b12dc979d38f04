"""Campaigns of cVMs: what they count, what they find, and the programs that show it."""

import itertools
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from capvisor.campaign import cvm
from capvisor.campaign.cvm_attacks import play
from capvisor.campaign.cvm_program import PROGRAMS, LaneEvent, OnReference, Replay
from capvisor.campaign.cvm_systems import Systems
from capvisor.campaign.engine import Campaign, Report, Settings
from capvisor.campaign.report import sarif
from capvisor.campaign.schedulers import Here, Scheduler
from capvisor.campaign.steps import StepReduction
from capvisor.cli.main import main
from capvisor.dsl.parser import parse
from capvisor.dsl.system_runner import run_system
from capvisor.fastpath.calls import CALL_KERNELS, Callers
from capvisor.fastpath.monitor import BatchMonitor
from capvisor.spec.cvm import CALLS
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
from capvisor.spec.formats import CC128
from capvisor.spec.policy import INTENDED, POLICIES, MonitorPolicy, without
from tests.shares import some
from tests.tutorial import ROOT


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of few programs, without a drill."""
    monkeypatch.setattr(cvm, "LANES", 48)
    monkeypatch.setattr(cvm, "DRILL_LANES", 0)


def report_with(scheduler: Scheduler, **settings: object) -> Report:
    try:
        return Campaign(Settings(cvm.PROFILE, **settings), scheduler).run()  # type: ignore[arg-type]
    finally:
        scheduler.close()


def runs(lines: tuple[str, ...]) -> None:
    """Hold a finding's program against what it says of itself."""
    verdict = run_system(parse("\n".join(lines) + "\n"), {})
    assert verdict.failure is None, verdict.failure


def test_the_intended_policy_passes_and_a_short_campaign_leaves_nothing_untested() -> None:
    for name in some(("cc64", "cc128"), 2):
        report = report_with(Here(), format=name, seed=2, programs=40)
        assert report.findings == [] and report.weaknesses == []
        assert report.programs == 40
        assert report.compared == report.operations > 10_000
        assert report.concerned.keys() == CVM_INVARIANTS.keys()


def test_a_campaign_says_what_it_never_put_to_the_test() -> None:
    weak = Report(Settings(cvm.PROFILE)).weaknesses
    assert {f"never done: {name}" for name in (*CALLS, "create", "destroy")} < set(weak)
    assert any(text.startswith("no instruction was executed of: ") for text in weak)
    assert any(text.startswith("compared, but never changed: registers") for text in weak)
    assert any(text.startswith("never put to the test: C1, ") for text in weak)
    report = Report(Settings(cvm.PROFILE), behaviours={("wait", 7, 0), ("file_revoke", 0, 0), ("file_revoke", 2, 0)})
    assert {"always refused: wait", "file_revoke never ended as NOT_OWNER"} < set(report.weaknesses)


# -- flaws are found -------------------------------------------------------------------------------------------------------

SOME = (
    *("distinct_otypes", "purge_slots", "purge_fetched", "advertised_range_checked", "handles_are_capabilities"),
    *("regions_disjoint", "scrub_on_create", "registers_cleared"),
)
"""Guards of each kind, whose absence is shown within a second or two; docs/campaigns.md has the whole table."""


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("guard", some(SOME, 4))
def test_a_policy_without_a_guard_is_found_out_by_a_small_program_that_runs(guard: str) -> None:
    report = report_with(Here(), seed=1, programs=48 * 24, policy=f"without:{guard}", most_findings=1)
    (finding,) = report.findings
    assert finding.failure.what in CVM_INVARIANTS and finding.shrunk
    assert f"policy without {guard}" in finding.lines[0]
    assert len(finding.lines) <= 12
    runs(finding.lines)


def test_without_owner_revokes_a_campaign_is_inconclusive() -> None:
    report = report_with(Here(), programs=4, policy="without:owner_revokes")
    assert report.findings == [] and "file_revoke never ended as NOT_OWNER" in report.weaknesses


@pytest.mark.usefixtures("small_units")
def test_findings_of_a_preset_are_of_many_kinds() -> None:
    report = report_with(Here(), seed=1, programs=48, policy="prototype-0.0.1", most_findings=5)
    assert len({finding.failure.what for finding in report.findings}) >= 3
    for finding in report.findings:
        if finding.shrunk:
            runs(finding.lines)


@pytest.mark.usefixtures("small_units")
def test_a_difference_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_monitor: BatchMonitor, _who: Callers, *_arguments: object) -> None:
        pass

    monkeypatch.setitem(CALL_KERNELS, "file_advertise", nothing)
    report = report_with(Here(), programs=8, most_findings=1)
    (finding,) = report.findings
    assert finding.signature == "file_advertise differs grants"
    assert any("grants" in each for each in finding.details)
    assert len(finding.lines) == 2
    runs(finding.lines)


def test_a_fast_path_that_ends_with_an_error_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_monitor: BatchMonitor, _who: Callers, *_arguments: object) -> None:
        raise IndexError("beyond")

    monkeypatch.setitem(CALL_KERNELS, "host_time", fails)
    report = report_with(Here(), programs=8, most_findings=1)
    (finding,) = report.findings
    assert finding.signature == "leave crashes IndexError" and finding.shrunk
    assert finding.lines[1].split()[1] == "host_time"
    runs(finding.lines)


# -- small programs --------------------------------------------------------------------------------------------------------


def test_a_finding_is_made_small_and_folded_into_calls() -> None:
    policy = without("purge_slots")
    for seed in itertools.count():
        systems = play([9, seed], CC128, 16, 12, policy)
        if systems.found:
            break
    found = systems.found[0]
    case = PROGRAMS.case_of(systems, None, found.lane, found.events)
    small = PROGRAMS.reduced(policy, case, found.what)
    assert small is not None
    assert len(small[0].events) < len(case.events) and any(event.kind == "call" for event in small[0].events)
    again = PROGRAMS.reduced(policy, small[0], found.what)
    assert again is not None and again[0] == small[0]
    runs(tuple(PROGRAMS.program(policy, small[0])))
    assert PROGRAMS.reduced(INTENDED, case, found.what) is None


def test_what_cant_be_is_left_out_of_a_replay() -> None:
    replay = Replay(OnReference(CC128, INTENDED))
    for event in (LaneEvent("instruction", "v1", "addi", (5, 5, 0)), LaneEvent("destroy", "deployer", "", (3,))):
        replay.execute(event)
    assert replay.lines == []
    replay.execute(LaneEvent("create", "deployer", "", (1, 0x8000_0400, 0x400, False, 0)))
    replay.execute(LaneEvent("instruction", "v1", "cspecialrw", (0, 1, 5)))
    with pytest.raises(KeyError):
        replay.execute(LaneEvent("call", "v1", "host_print", (0,)))


def test_steps_are_left_out_then_agents_then_made_simple() -> None:
    def fails(steps: object) -> bool:
        return ("b", 5) in steps or ("b", 1) in steps  # type: ignore[operator]

    steps = [("a", 1), ("b", 3), ("a", 2), ("b", 5), ("", 0)]
    reduction = StepReduction(steps, fails, 100, lambda step: step[0], lambda step: [(step[0], 0), (step[0], 1)])
    assert reduction.run() == [("b", 1)]
    limited = StepReduction(steps, fails, 1, lambda step: step[0])
    assert limited.run() == steps and limited.tried == 1
    assert StepReduction(steps, lambda _steps: False, 100, lambda step: step[0]).run() == steps


# -- the command -----------------------------------------------------------------------------------------------------------


def fuzz(*words: str) -> int:
    """The exit status of `capvisor fuzz`."""
    with pytest.raises(SystemExit) as ended:
        main(["fuzz", *words])
    return int(ended.value.code or 0)


def test_the_command_has_what_the_other_profiles_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder, state = tmp_path / "report.json", tmp_path / "findings", tmp_path / "state"
    words = ["--profile", "cvm", "--policy", "without:distinct_otypes", "--programs", "60", "--most-findings", "1"]
    outputs = ["--json", str(path), "--junit", str(tmp_path / "junit.xml"), "--sarif", str(tmp_path / "log.sarif")]
    assert fuzz(*words, "--workers", "1", "--state", str(state), *outputs, "--findings", str(folder)) == 1
    out = capsys.readouterr().out
    assert "again: capvisor fuzz --profile cvm --format cc128 --seed 0 --policy without:distinct_otypes --programs 60" in out
    (kept,) = folder.iterdir()
    text = kept.read_text()
    runs(tuple(text.splitlines()))
    assert f"# again: capvisor run {kept}" in text
    document = json.loads(path.read_text())
    jsonschema.validate(document, json.loads((ROOT / "cli" / "schemas" / "results.schema.json").read_text()))
    assert document["findings"][0]["what"] in CVM_INVARIANTS and document["policy"] == "without:distinct_otypes"
    assert document["findings"][0]["file"] == kept.name
    (result,) = json.loads((tmp_path / "log.sarif").read_text())["runs"][0]["results"]
    assert result["ruleId"] in CVM_INVARIANTS
    assert "breaks C" in (tmp_path / "junit.xml").read_text()
    with pytest.raises(SystemExit):
        main(["report", "--state", str(state)])
    assert "bulk, without:distinct_otypes" in capsys.readouterr().out


@pytest.mark.usefixtures("small_units")
def test_ctrl_c_loses_nothing(tmp_path: Path) -> None:
    def interrupt(_report: Report) -> None:
        raise KeyboardInterrupt

    campaign = Campaign(Settings(cvm.PROFILE, policy="without:distinct_otypes"), Here(), tmp_path, interrupt)
    report = campaign.run()
    assert report.interrupted and report.programs == cvm.LANES
    assert {path.name for path in tmp_path.iterdir()} == {f"{finding.name}.cap" for finding in report.findings} != set()


@pytest.mark.usefixtures("small_units")
def test_the_statements_of_a_finding_are_its_code_flow() -> None:
    report = report_with(Here(), programs=48, policy="without:grants_without_load_capability", most_findings=1)
    (finding,) = report.findings
    (result,) = sarif(report, Path("findings"), "1")["runs"][0]["results"]
    steps = result["codeFlows"][0]["threadFlows"][0]["locations"]
    lines = finding.text("").splitlines()
    assert [step["location"]["message"]["text"] for step in steps] == list(finding.steps)
    for step in steps:
        where = step["location"]["physicalLocation"]["region"]["startLine"]
        assert lines[where - 1] == step["location"]["message"]["text"]


@pytest.mark.parametrize("words", [["--policy", "lenient"], ["--engine", "hypothesis"], ["--invariants-only"]])
def test_what_cant_be_asked_for_is_refused(words: list[str]) -> None:
    assert fuzz("--profile", "cvm", *words) == 64


def test_a_policy_is_for_systems() -> None:
    assert fuzz("--policy", "intended") == 64


def test_every_preset_can_be_asked_for() -> None:
    assert {"intended", "prototype-0.0.1", "prototype-0.0.2"} == POLICIES.keys()
    assert isinstance(Systems(CC128, 0x8000_0000, 0x1000, 1).policy, MonitorPolicy)
    assert np.all(Systems(CC128, 0x8000_0000, 0x1000, 1).mirror.differing() == [False])
