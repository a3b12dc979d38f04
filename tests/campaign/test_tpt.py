"""Campaigns of translation pass-through: what they count, what they find, and the programs that show it."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from capvisor.campaign import tpt
from capvisor.campaign.engine import Campaign, Report, Settings
from capvisor.campaign.report import sarif
from capvisor.campaign.schedulers import Here, Scheduler
from capvisor.campaign.tpt_moves import Deployment, GuestOf
from capvisor.campaign.tpt_program import PROGRAMS, Case, LaneEvent
from capvisor.cli.main import main
from capvisor.dsl.parser import parse
from capvisor.dsl.system_runner import run_system
from capvisor.fastpath.requests import OPERATION_KERNELS
from capvisor.fastpath.walks import Walks
from capvisor.spec.tag_policy import INTENDED, TAG_POLICIES, without
from capvisor.spec.tpt import OPERATIONS
from capvisor.spec.tpt_invariants import TPT_INVARIANTS
from tests.shares import some
from tests.tutorial import ROOT


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of few programs, without a drill; the first has large systems too."""
    for name, number in {"LANES": 64, "DRILL_LANES": 0, "LARGE_LANES": 24, "MOVES": 25, "LARGE_MOVES": 16}.items():
        monkeypatch.setattr(tpt, name, number)


def report_with(scheduler: Scheduler, **settings: object) -> Report:
    try:
        return Campaign(Settings(tpt.PROFILE, **settings), scheduler).run()  # type: ignore[arg-type]
    finally:
        scheduler.close()


def runs(lines: tuple[str, ...]) -> None:
    """Hold a finding's program against what it says of itself."""
    verdict = run_system(parse("\n".join(lines) + "\n"), {})
    assert verdict.failure is None, verdict.failure


@pytest.mark.parametrize("policy", TAG_POLICIES)
def test_the_intended_policy_passes_and_a_short_campaign_leaves_nothing_untested(policy: str) -> None:
    report = report_with(Here(), seed=2, programs=40, policy=policy)
    assert report.findings == [] and report.weaknesses == []
    assert report.programs == 40
    assert report.compared == report.operations > 5_000
    assert report.concerned.keys() == TPT_INVARIANTS.keys()


@pytest.mark.usefixtures("small_units")
def test_a_campaign_says_what_it_never_put_to_the_test() -> None:
    weak = Report(Settings(tpt.PROFILE)).weaknesses
    assert {f"never done: {name}" for name in OPERATIONS} < set(weak)
    assert any(text.startswith("compared, but never changed: tags") for text in weak)
    assert any(text.startswith("never put to the test: T1, ") for text in weak)
    report = Report(Settings(tpt.PROFILE), behaviours={("release", 0, 0), ("release", 1, 0)}, operations=10)
    report.trapped["release"] = 9
    expected = {"release never ended as NOT_OWNED", "most operations were refused, or met a fault"}
    assert expected < set(report.weaknesses)


# -- flaws are found -------------------------------------------------------------------------------------------------------

SOME = ("check_table_reads", "abort_walks_on_acknowledge", "merge_one_owner")
"""Guards of each kind: a look-up, a race, large tags. docs/campaigns.md has the whole table."""


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("guard", some(SOME, 2))
def test_a_policy_without_a_guard_is_found_out_by_a_small_program_that_runs(guard: str) -> None:
    report = report_with(Here(), seed=1, programs=64 * 16, policy=f"without:{guard}", most_findings=1)
    (finding,) = report.findings
    assert finding.failure.what in TPT_INVARIANTS and finding.shrunk
    assert f"policy without {guard}" in finding.lines[0]
    assert len(finding.lines) <= 14
    runs(finding.lines)


@pytest.mark.usefixtures("small_units")
def test_a_difference_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Walks, "_leaf_needs", lambda _self, at: np.full(len(at), 0x20, np.uint64))
    (finding,) = report_with(Here(), programs=64, most_findings=1).findings
    assert finding.failure.kind == "differs" and finding.shrunk
    assert any("reference" in each and "fast path" in each for each in finding.details)
    assert len(finding.lines) <= 3
    runs(finding.lines)


@pytest.mark.usefixtures("small_units")
def test_a_fast_path_that_ends_with_an_error_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATION_KERNELS, "scrub", lambda *_arguments: np.zeros(1)[9])
    (finding,) = report_with(Here(), programs=64, most_findings=1).findings
    assert finding.signature == "scrub crashes IndexError" and finding.shrunk
    assert len(finding.lines) == 2 and finding.lines[1].startswith("host: scrub ")
    runs(finding.lines)


# -- small programs --------------------------------------------------------------------------------------------------------

FOREIGN = Case(
    Deployment(24, 5, 2, (GuestOf(0, 8, 2, False, True), GuestOf(9, 17, 1, True, True))),
    (
        LaneEvent("load", (0, 0, 1)),
        LaneEvent("attach", (0, 3)),
        LaneEvent("write_pte", (0, 4, 1, 10 << 12 | 0x167)),
        LaneEvent("begin_walk", (2, 0x1000, 2, 0)),
        LaneEvent("dma_read", (1, 3, 0)),
        LaneEvent("store", (0, 0x1000, 77, 0)),
    ),
)
"""A foreign frame is named and stored to."""


def test_events_are_left_out_numbers_made_simple_and_the_system_small() -> None:
    policy = without("check_leaf")
    small = PROGRAMS.reduced(policy, FOREIGN, "T1")
    assert small is not None and small[0].deployment.devices == 0 and len(small[0].events) <= 2
    lines = PROGRAMS.program(policy, small[0])
    assert lines[0].startswith("system tpt { frames 24; levels 5; devices 0; policy without check_leaf; vm0 frames 0..")
    runs(tuple(lines))
    again = PROGRAMS.reduced(policy, small[0], "T1")
    assert again is not None and again[0] == small[0]
    assert PROGRAMS.reduced(INTENDED, FOREIGN, "T1") is None


def test_a_program_says_who_does_what_and_how_it_ends() -> None:
    nobody = LaneEvent("load", (7, 0, 0))  # no program can name that vCPU
    switched = (LaneEvent("run", (0, 3, 1, 0)), LaneEvent("load", (0, 0, 0)), LaneEvent("split", (0,)))
    lines = PROGRAMS.program(INTENDED, FOREIGN._replace(events=(*FOREIGN.events, nobody, *switched)))
    assert lines[1:] == [
        "vm0: load 0x0, user",
        "host: attach 0, 3",
        "vm0: write_pte 4, 1, 10 << 12 | rw | A | D | G",
        "vm1: begin_walk 0x1000, fetch",
        "device1: dma_read 3, 0  !fault iommu frame 3",
        "vm0: store 0x1000, 0x4d  !fault tag frame 10",
        "host: run 0, 3, 1, 0x0",
        "cpu0: load 0x0",
        "host: split 0  -> refused NOTHING",
    ]
    runs(tuple(lines))


# -- the command -----------------------------------------------------------------------------------------------------------


def fuzz(*words: str) -> int:
    """The exit status of `capvisor fuzz`."""
    with pytest.raises(SystemExit) as ended:
        main(["fuzz", *words])
    return int(ended.value.code or 0)


def test_the_command_has_what_the_other_profiles_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder, state = tmp_path / "report.json", tmp_path / "findings", tmp_path / "state"
    words = ["--profile", "tpt", "--policy", "without:host_only_tags", "--programs", "8", "--most-findings", "1"]
    outputs = ["--json", str(path), "--junit", str(tmp_path / "junit.xml"), "--sarif", str(tmp_path / "log.sarif")]
    assert fuzz(*words, "--workers", "1", "--state", str(state), *outputs, "--findings", str(folder)) == 1
    out = capsys.readouterr().out
    assert "--seed 0 --policy without:host_only_tags --programs 8" in out
    (kept,) = folder.iterdir()
    text = kept.read_text()
    runs(tuple(text.splitlines()))
    assert f"# again: capvisor run {kept}" in text
    document = json.loads(path.read_text())
    jsonschema.validate(document, json.loads((ROOT / "cli" / "schemas" / "results.schema.json").read_text()))
    assert document["findings"][0]["what"] == "T4" and document["findings"][0]["file"] == kept.name
    (result,) = json.loads((tmp_path / "log.sarif").read_text())["runs"][0]["results"]
    assert result["ruleId"] == "T4"
    assert "breaks T4" in (tmp_path / "junit.xml").read_text()
    with pytest.raises(SystemExit):
        main(["report", "--state", str(state)])
    assert "bulk, without:host_only_tags" in capsys.readouterr().out


@pytest.mark.usefixtures("small_units")
def test_the_statements_of_a_finding_are_its_code_flow() -> None:
    report = report_with(Here(), programs=64, policy="without:check_dma", most_findings=1)
    (finding,) = report.findings
    (result,) = sarif(report, Path("findings"), "1")["runs"][0]["results"]
    steps = result["codeFlows"][0]["threadFlows"][0]["locations"]
    assert [step["location"]["message"]["text"] for step in steps] == list(finding.steps)


@pytest.mark.parametrize("words", [["--policy", "lenient"], ["--engine", "hypothesis"], ["--invariants-only"]])
def test_what_cant_be_asked_for_is_refused(words: list[str]) -> None:
    assert fuzz("--profile", "tpt", *words) == 64
