"""Campaigns of all four systems on one machine: what they count, what they find, and the programs that show it."""

import json

import numpy as np
import pytest

from capvisor.campaign import stack
from capvisor.campaign.engine import Campaign, Report, Settings
from capvisor.campaign.report import as_json
from capvisor.campaign.schedulers import Here, Pool, Scheduler
from capvisor.campaign.stack_moves import play
from capvisor.campaign.stack_oracles import INVARIANTS
from capvisor.campaign.stack_program import PROGRAMS, Case, Player
from capvisor.campaign.stack_start import INSTRUCTION, LEAVE, Deployment, LaneEvent
from capvisor.cli.main import main
from capvisor.dsl.parser import parse
from capvisor.dsl.system_runner import run_system
from capvisor.fastpath import stack as fast
from capvisor.fastpath.stack import CVM
from capvisor.model import stack_system
from capvisor.model.stack import TPT_LAYER, VMM_LAYER
from capvisor.spec.stack_policy import INTENDED, without
from tests.shares import some


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of few programs."""
    monkeypatch.setattr(stack, "LANES", 48)
    monkeypatch.setattr(stack, "MOVES", 30)


def report_with(scheduler: Scheduler, **settings: object) -> Report:
    try:
        return Campaign(Settings(stack.PROFILE, **settings), scheduler).run()  # type: ignore[arg-type]
    finally:
        scheduler.close()


def runs(lines: tuple[str, ...]) -> None:
    """Hold a finding's program against what it says of itself."""
    verdict = run_system(parse("\n".join(lines) + "\n"), {})
    assert verdict.failure is None, verdict.failure


def test_the_intended_policy_passes_and_a_short_campaign_leaves_nothing_untested() -> None:
    report = report_with(Here(), seed=2, programs=48)
    assert report.findings == [] and report.weaknesses == []
    assert report.compared == report.operations > 10_000
    assert {name for name, count in report.concerned.items() if count} == INVARIANTS.keys()


def test_the_report_is_the_same_for_any_number_of_workers() -> None:
    settings = {"seed": 3, "programs": 16, "policy": "without:host_claims_first", "most_findings": 1}
    expected = json.dumps(as_json(report_with(Here(), **settings)))
    assert json.dumps(as_json(report_with(Pool(2), **settings))) == expected
    assert json.loads(expected)["findings"]


def test_a_campaign_says_what_it_never_put_to_the_test() -> None:
    weak = Report(Settings(stack.PROFILE)).weaknesses
    assert "never done: cvm li MOVED" in weak
    assert any(text.startswith("compared, but never changed: memory") for text in weak)
    assert any(text.startswith("never put to the test: S1, ") for text in weak)


# -- the oracles -----------------------------------------------------------------------------------------------------------

SAID = {
    "region_untagged": {"S1"},
    "tables_in_region": {"S8"},
    "extensions_check_tags": {"S2"},
    "registers_by_owner": {"S7"},
    "stop_reaches_all": {"S9"},
    "track_all_writes": {"P13"},
    "pages_bound": {"S5"},
    "base_memory_kept": {"O12"},
}


@pytest.mark.parametrize("guard", some(list(SAID), 2))
def test_what_the_oracles_find_first_is_what_the_reference_violates(guard: str) -> None:
    """In the lanes in which something is found, by the same step; and nothing by the steps before it."""
    policy = without(guard)
    systems = play([1], 16, 30, policy)
    assert systems.found, guard
    assert SAID[guard] <= {found.what for found in systems.found}
    for lane in sorted({found.lane for found in systems.found})[:3]:
        first = min(found.events for found in systems.found if found.lane == lane)
        expected = {found.what for found in systems.found if found.lane == lane and found.events == first}
        case = PROGRAMS.case_of(systems, systems.deployment, lane, first)
        player, violated = Player.at_start(policy, case.deployment), list[set[str]]()
        for event in case.events:
            violated.append(set())
            for step, _result in player.take(event):
                violated[-1] |= stack_system.violated(step) & INVARIANTS.keys()
        assert not any(violated[:-1]), (lane, first)
        assert expected <= violated[-1]


# -- flaws are found -------------------------------------------------------------------------------------------------------

SOME = ("mediator_checks_tags", "resident_first", "base_memory_kept", "pages_bound")
"""Guards of each kind. docs/campaigns.md has the whole table."""


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("guard", some(SOME, 2))
def test_a_policy_without_a_guard_is_found_out_by_a_small_program_that_runs(guard: str) -> None:
    report = report_with(Here(), seed=1, programs=48 * 12, policy=f"without:{guard}", most_findings=1)
    (finding,) = report.findings
    assert finding.failure.kind == "breaks" and finding.shrunk
    assert f"policy without {guard}" in finding.lines[0]
    assert len(finding.lines) <= 24
    runs(finding.lines)


@pytest.mark.usefixtures("small_units")
def test_a_difference_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast.BatchStack, "is_busy", lambda _self, lanes, _device: np.zeros(len(lanes), np.bool_))
    monkeypatch.setattr(PROGRAMS, "most_pairs", 4)
    (finding,) = report_with(Here(), programs=48, most_findings=1).findings
    assert finding.failure.kind == "differs" and finding.failure.step == "tpt attach"


@pytest.mark.usefixtures("small_units")
def test_a_fast_path_that_ends_with_an_error_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast.BatchStack, "is_busy", lambda *_given: np.zeros(1)[9])
    (finding,) = report_with(Here(), programs=48, most_findings=1).findings
    assert finding.failure.kind == "crashes" and finding.shrunk
    assert len(finding.lines) == 2 and finding.lines[1].startswith("host: attach ")
    runs(finding.lines)


# -- small programs --------------------------------------------------------------------------------------------------------


def test_a_program_says_who_does_what_and_how_it_ends() -> None:
    def tpt(name: str, *operands: int) -> LaneEvent:
        return LaneEvent(TPT_LAYER, TPT_LAYER, name, operands)

    def vmm(name: str, *operands: int) -> LaneEvent:
        return LaneEvent(VMM_LAYER, VMM_LAYER, name, operands)

    def alice(kind: str, name: str, *operands: int) -> LaneEvent:
        return LaneEvent(CVM, kind, name, operands, 0)

    events = (
        tpt("attach", 2, 2),
        tpt("dma_write", 2, 9, 4, 5),
        tpt("dma_write", 2, 16, 4, 5),
        vmm("load", 0, 0, 0),  # no program can say that
        vmm("output", 0, 0, 8, 1),
        vmm("mediate", 1),
        vmm("extension_read", 1, 9),
        alice("enter", "file_advertise", 1, 0x100, 16),
        alice(LEAVE, ""),
        alice(INSTRUCTION, "li", 5, 0x4000_1000),
        alice(INSTRUCTION, "ld.ddc", 6, 5),
        tpt("reclaim", 12),
        tpt("acknowledge", 0, 12),
        alice(INSTRUCTION, "li", 5, 1),
        tpt("assign", 26, 2, 30),
    )
    lines = PROGRAMS.program(INTENDED, Case(Deployment(), events))
    assert lines[1:] == [
        "host: attach 2, 2",
        "device2: dma_write 9, 4, 0x5",
        "device2: dma_write 16, 4, 0x5  !fault iommu frame 16",
        "vm0: output port, disk.data, 1  -> refused NOT_OWNER",
        "vmm: mediate disk  -> refused NOTHING",
        "probe: extension_read 9  -> refused CONFINED",
        "alice: enter file_advertise 0x1, 0x100, 0x10",
        "alice: leave",
        "alice: li x5, 0x40001000",
        "alice: ld.ddc x6, (x5)  !trap LengthViolation",
        "host: reclaim 12",
        "host: acknowledge 0, 12",
        "alice: resume  !fault tag frame 12",
        "host: assign 26, 2, 30  -> refused REGION",
    ]
    runs(tuple(lines))


# -- the command -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_units")
def test_the_command_has_the_profile(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fuzz", "--profile", "stack", "--programs", "16", "--workers", "1", "--no-history", "--seed", "5"])
    out = capsys.readouterr().out
    assert ended.value.code in (0, 2)
    assert "S9, one stop" in out and "findings" in out and "--profile stack" in out
