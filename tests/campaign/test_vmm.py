"""Campaigns of a para-pass-through VMM: what they count, what they find, and the programs that show it."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from capvisor.campaign import vmm
from capvisor.campaign.engine import Campaign, Report, Settings
from capvisor.campaign.report import sarif
from capvisor.campaign.schedulers import Here, Scheduler
from capvisor.campaign.vmm_moves import TINY_FRAMES, Deployment
from capvisor.campaign.vmm_program import PROGRAMS, Case, LaneEvent
from capvisor.cli.main import main
from capvisor.dsl.parser import parse
from capvisor.dsl.system_runner import run_system
from capvisor.fastpath import storage
from capvisor.fastpath.vmm import OPERATION_KERNELS
from capvisor.spec.vmm import DESCRIPTOR_COUNT_SHIFT, DESCRIPTOR_END, OPERATIONS
from capvisor.spec.vmm_invariants import VMM_INVARIANTS
from capvisor.spec.vmm_policy import INTENDED, without
from tests.shares import some
from tests.tutorial import ROOT


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of few programs, without a drill, all of small machines."""
    for name, number in {"LANES": 128, "DRILL_LANES": 0, "TINY_LANES": 0, "LARGE_LANES": 0, "MOVES": 20}.items():
        monkeypatch.setattr(vmm, name, number)


def report_with(scheduler: Scheduler, **settings: object) -> Report:
    try:
        return Campaign(Settings(vmm.PROFILE, **settings), scheduler).run()  # type: ignore[arg-type]
    finally:
        scheduler.close()


def runs(lines: tuple[str, ...]) -> None:
    """Hold a finding's program against what it says of itself."""
    verdict = run_system(parse("\n".join(lines) + "\n"), {})
    assert verdict.failure is None, verdict.failure


def test_the_intended_policy_passes_and_a_short_campaign_leaves_nothing_untested() -> None:
    report = report_with(Here(), seed=2, programs=96)
    assert report.findings == [] and report.weaknesses == []
    assert report.programs == 96
    assert report.compared == report.operations > 5_000
    assert report.concerned.keys() == VMM_INVARIANTS.keys()


def test_a_campaign_says_what_it_never_put_to_the_test() -> None:
    weak = Report(Settings(vmm.PROFILE)).weaknesses
    assert {f"never done: {name}" for name in OPERATIONS} < set(weak)
    assert any(text.startswith("compared, but never changed: vmm") for text in weak)
    assert any(text.startswith("never put to the test: P1, ") for text in weak)
    report = Report(Settings(vmm.PROFILE), behaviours={("stop", 0, 0), ("stop", 2, 0)}, operations=10)
    report.trapped["stop"] = 9
    assert {"stop never ended as NOTHING, NOT_YET", "most operations were refused"} < set(report.weaknesses)


# -- flaws are found -------------------------------------------------------------------------------------------------------

SOME = {
    "hide_whole_region": "LARGE_LANES",
    "read_back_registers": "",
    "recheck_before_write": "",
    "whole_last_round": "TINY_LANES",
}
"""Guards of each kind, and which machines it takes. docs/campaigns.md has the whole table."""


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("guard", some(list(SOME), 2))
def test_a_policy_without_a_guard_is_found_out_by_a_small_program_that_runs(
    guard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if SOME[guard]:
        monkeypatch.setattr(vmm, SOME[guard], 42)
    report = report_with(Here(), seed=1, programs=128 * 8, policy=f"without:{guard}", most_findings=1)
    (finding,) = report.findings
    assert finding.failure.what in VMM_INVARIANTS and finding.shrunk
    assert f"policy without {guard}" in finding.lines[0]
    assert len(finding.lines) <= 16 + (TINY_FRAMES if SOME[guard] == "TINY_LANES" else 0)
    runs(finding.lines)


@pytest.mark.usefixtures("small_units")
def test_what_lies_beyond_4_mib_is_found_in_public_code_of_2009(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmm, "LARGE_LANES", 32)
    report = report_with(Here(), seed=1, programs=96, policy="bitvisor-2009", most_findings=40)
    found = {finding.signature: finding for finding in report.findings}
    mapped = found["map breaks P1"]
    assert mapped.shrunk and len(mapped.lines) == 3
    runs(mapped.lines)
    assert any(signature.startswith("output breaks") for signature in found)  # unknown commands are issued


@pytest.mark.usefixtures("small_units")
def test_a_difference_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "count_of", lambda word: np.ones(len(word), np.uint64))
    (finding,) = report_with(Here(), programs=128, most_findings=1).findings
    assert finding.failure.kind == "differs" and finding.shrunk
    assert any("reference" in each and "fast path" in each for each in finding.details)
    assert len(finding.lines) <= 12
    runs(finding.lines)


@pytest.mark.usefixtures("small_units")
def test_a_fast_path_that_ends_with_an_error_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATION_KERNELS, "fetch", lambda *_arguments: np.zeros(1)[9])
    (finding,) = report_with(Here(), programs=128, most_findings=1).findings
    assert finding.signature == "fetch crashes IndexError" and finding.shrunk
    assert len(finding.lines) == 2 and finding.lines[1].startswith("vmm: fetch ")
    runs(finding.lines)


# -- small programs --------------------------------------------------------------------------------------------------------

TABLE, BUFFER = 8, 16


def foreign(*more: LaneEvent) -> Case:
    """A command whose descriptor names the region."""
    described = 15 << 3 | 1 << DESCRIPTOR_COUNT_SHIFT | DESCRIPTOR_END
    return Case(
        Deployment(40, 14, 33, 2, True, 3, ((1, 2, True),)),
        (
            LaneEvent("extension_write", (1, 9, 5)),
            LaneEvent("map", (1, 5, 3, 0, 1)),
            LaneEvent("store", (1, 5, 0, 7)),
            LaneEvent("dma_write", (3, TABLE, described)),
            LaneEvent("output", (1, 1, 0x1FC00004, TABLE)),
            LaneEvent("output", (0, 0, 0x1F1, 1)),
            LaneEvent("output", (0, 0, 0x1F3, 0xCA)),
            LaneEvent("output", (0, 0, 0x1F5, 1)),
            LaneEvent("mediate", (1,)),
            *more,
        ),
    )


def test_events_are_left_out_numbers_made_simple_and_the_machine_small() -> None:
    policy = without("descriptors_outside_region")
    small = PROGRAMS.reduced(policy, foreign(), "P9")
    assert small is not None and small[0].deployment.extensions == () and small[0].deployment.vcpus == 1
    assert len(small[0].events) <= 6
    lines = PROGRAMS.program(policy, small[0])
    runs(tuple(lines))
    again = PROGRAMS.reduced(policy, small[0], "P9")
    assert again is not None and again[0] == small[0]
    assert PROGRAMS.reduced(INTENDED, foreign(), "P9") is None


def test_a_program_says_who_does_what_and_how_it_ends() -> None:
    nobody = LaneEvent("load", (7, 0, 0))  # no program can name that vCPU
    lines = PROGRAMS.program(INTENDED, foreign(nobody, LaneEvent("begin_move", ())))
    assert lines[1:] == [
        "ext1: extension_write 9, 5",
        "guest/2: map 5, 3, 0, 1",
        "guest/2: store 5, 0, 7",
        "nic: dma_write 8, 0x78 | 1 * BLOCKS | END",
        "guest/2: output mmio, disk.mmio.descriptors, 8",
        "guest: output port, disk.count, 1",
        "guest: output port, disk.command, write_dma",
        "guest: output port, disk.start, 1",
        "vmm: mediate disk  -> refused PANIC",
        "vmm: begin_move  -> refused STOPPED",
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
    words = ["--profile", "vmm", "--policy", "without:swallow_microcode", "--programs", "30", "--most-findings", "1"]
    outputs = ["--json", str(path), "--junit", str(tmp_path / "junit.xml"), "--sarif", str(tmp_path / "log.sarif")]
    assert fuzz(*words, "--workers", "1", "--state", str(state), *outputs, "--findings", str(folder)) == 1
    out = capsys.readouterr().out
    assert "--seed 0 --policy without:swallow_microcode --programs 30" in out
    (kept,) = folder.iterdir()
    runs(tuple(kept.read_text().splitlines()))
    assert f"# again: capvisor run {kept}" in kept.read_text()
    document = json.loads(path.read_text())
    jsonschema.validate(document, json.loads((ROOT / "cli" / "schemas" / "results.schema.json").read_text()))
    assert document["findings"][0]["what"] == "P8" and document["findings"][0]["file"] == kept.name
    (result,) = json.loads((tmp_path / "log.sarif").read_text())["runs"][0]["results"]
    assert result["ruleId"] == "P8"
    assert "breaks P8" in (tmp_path / "junit.xml").read_text()
    with pytest.raises(SystemExit):
        main(["report", "--state", str(state)])
    assert "bulk, without:swallow_microcode" in capsys.readouterr().out


@pytest.mark.usefixtures("small_units")
def test_the_statements_of_a_finding_are_its_code_flow() -> None:
    report = report_with(Here(), programs=60, policy="without:confine_extensions", most_findings=1)
    (finding,) = report.findings
    (result,) = sarif(report, Path("findings"), "1")["runs"][0]["results"]
    steps = result["codeFlows"][0]["threadFlows"][0]["locations"]
    assert [step["location"]["message"]["text"] for step in steps] == list(finding.steps)


@pytest.mark.parametrize("words", [["--policy", "lenient"], ["--engine", "hypothesis"], ["--invariants-only"]])
def test_what_cant_be_asked_for_is_refused(words: list[str]) -> None:
    assert fuzz("--profile", "vmm", *words) == 64
