"""Campaigns of shared objects: what they count, what they find, and the programs that show it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from capvisor.campaign import orc
from capvisor.campaign.engine import Campaign, Report, Settings
from capvisor.campaign.orc_program import IDENTITY, PROGRAMS, Agent, Case, LaneEvent, OnBoth, Replay
from capvisor.campaign.orc_systems import Deployment
from capvisor.campaign.report import as_json, sarif
from capvisor.campaign.schedulers import Here, Pool, Scheduler
from capvisor.cli.main import main
from capvisor.dsl.parser import parse
from capvisor.dsl.system_runner import run_system
from capvisor.fastpath.objects import OPERATION_KERNELS, BatchObjects
from capvisor.model.object_operations import OPERATION_RULES
from capvisor.spec.formats import CC64, CC128, CapabilityFormat
from capvisor.spec.object_policy import INTENDED, without
from capvisor.spec.orc import OPERATIONS, Relocation
from capvisor.spec.orc_invariants import ORC_INVARIANTS
from tests.shares import some
from tests.tutorial import ROOT

ALICE, BOB = Agent(1, 0), Agent(2, 0)


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of few programs, without a drill."""
    for name, number in {"LANES": 32, "DRILL_LANES": 0}.items():
        monkeypatch.setattr(orc, name, number)


def report_with(scheduler: Scheduler, **settings: object) -> Report:
    try:
        return Campaign(Settings(orc.PROFILE, **settings), scheduler).run()  # type: ignore[arg-type]
    finally:
        scheduler.close()


def runs(lines: tuple[str, ...]) -> None:
    """Hold a finding's program against what it says of itself."""
    verdict = run_system(parse("\n".join(lines) + "\n"), {})
    assert verdict.failure is None, verdict.failure


@pytest.mark.parametrize("name", ["cc128", "cc64"])
def test_the_intended_policy_passes_and_a_short_campaign_leaves_nothing_untested(name: str) -> None:
    report = report_with(Here(), format=name, seed=2, programs=24)
    assert report.findings == [] and report.weaknesses == []
    assert report.programs == 24
    assert report.compared == report.operations > 5_000
    assert report.concerned.keys() == ORC_INVARIANTS.keys()


def test_the_report_is_the_same_for_any_number_of_workers() -> None:
    settings = {"seed": 3, "programs": 8, "policy": "without:minted_dropped", "most_findings": 2}
    expected = json.dumps(as_json(report_with(Here(), **settings)))
    assert json.dumps(as_json(report_with(Pool(2), **settings))) == expected
    assert json.loads(expected)["findings"]


def test_a_campaign_says_what_it_never_put_to_the_test() -> None:
    weak = Report(Settings(orc.PROFILE)).weaknesses
    assert {f"never done: {name}" for name in OPERATIONS} < set(weak)
    assert any(text.startswith("no instruction was executed of: ") for text in weak)
    assert any(text.startswith("compared, but never changed: registers") for text in weak)
    assert any(text.startswith("never put to the test: O1, ") for text in weak)
    report = Report(Settings(orc.PROFILE), behaviours={("unmap", 16, 0), ("collect", 0, 0), ("collect", 7, 0)})
    report.executed["bind"], report.trapped["bind"] = 10, 9
    expected = {"always refused: unmap", "collect never ended as RANGE, BUSY", "most operations were refused"}
    assert expected < set(report.weaknesses)


# -- flaws are found -------------------------------------------------------------------------------------------------------

SOME = ("sources_checked", "purge_memory", "caller_from_thread", "tls_read_only")
"""Guards of each kind; docs/campaigns.md has the whole table."""


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("guard", some(SOME, 2))
def test_a_policy_without_a_guard_is_found_out_by_a_small_program_that_runs(guard: str) -> None:
    report = report_with(Here(), seed=1, programs=32 * 8, policy=f"without:{guard}", most_findings=1)
    (finding,) = report.findings
    assert finding.failure.what in ORC_INVARIANTS and finding.shrunk
    assert f"policy without {guard}" in finding.lines[0]
    assert len(finding.lines) <= 12
    runs(finding.lines)


@pytest.mark.usefixtures("small_units")
def test_a_difference_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    purge = BatchObjects.purge

    def forgetful(batch: BatchObjects, lanes: Any, tenant: Any, slot: Any) -> None:
        """Shadows aren't purged where they are in registers: what is in slots behind the seventh stays."""
        chosen = slot < 7
        purge(batch, lanes[chosen], tenant[chosen], slot[chosen])

    monkeypatch.setattr(BatchObjects, "purge", forgetful)
    (finding,) = report_with(Here(), programs=32, most_findings=1).findings
    assert finding.failure.kind == "differs" and finding.shrunk
    assert any("reference" in each and "fast path" in each for each in finding.details)
    assert len(finding.lines) <= 7
    runs(finding.lines)


@pytest.mark.usefixtures("small_units")
def test_a_refusal_for_another_reason_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel: Callable[..., None] = OPERATION_KERNELS["allocate"]

    def otherwise(system: BatchObjects, asked: Any, slot: Any) -> None:
        kernel(system, asked, slot)
        asked.code[asked.code == 4] = 7

    monkeypatch.setitem(OPERATION_KERNELS, "allocate", otherwise)
    (finding,) = report_with(Here(), programs=32, most_findings=1).findings
    assert finding.signature == "allocate differs end"
    assert finding.details == ("end: reference NOT_FREE, fast path NO_OBJECT",)


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize(("table", "who"), [(OPERATION_KERNELS, "fast path"), (OPERATION_RULES, "reference")])
def test_an_implementation_that_ends_with_an_error_is_a_finding(
    table: dict[str, Any], who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(table, "unmap", lambda *_arguments: np.zeros(1)[9])
    (finding,) = report_with(Here(), programs=32, most_findings=1).findings
    assert finding.failure.kind == "crashes" and "IndexError" in finding.failure.what and finding.shrunk
    assert who in finding.title
    assert len(finding.lines) == 2 and ": unmap 0" in finding.lines[1]
    monkeypatch.undo()
    assert finding.text("").splitlines()[-1] == finding.lines[1]


def test_a_start_that_ends_with_an_error_or_differs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATION_KERNELS, "create", lambda *_arguments: np.zeros(1)[9])
    (finding,) = report_with(Here(), programs=2, most_findings=1).findings
    assert finding.signature == "create crashes fast path IndexError" and finding.shrunk and len(finding.lines) == 1
    monkeypatch.setitem(OPERATION_KERNELS, "create", lambda *_arguments: None)
    (finding,) = report_with(Here(), programs=2, most_findings=1).findings
    assert finding.failure.kind == "differs" and finding.shrunk and len(finding.lines) == 1


@pytest.mark.parametrize("fmt", [CC128, CC64], ids=lambda fmt: fmt.name)
def test_segments_that_reach_behind_the_end_of_memory_are_copied_as_far_as_it_goes(fmt: CapabilityFormat) -> None:
    """Without the check of segments; what would be copied lies in slot 5, and goes behind the last one, 6."""
    case = Case(
        fmt,
        Deployment(7, 1),
        (
            LaneEvent("operation", ALICE, "allocate", (5,)),
            LaneEvent("instruction", ALICE, "csc", (2, 0, 11)),
            LaneEvent("operation", ALICE, "allocate", (4,)),
            LaneEvent("operation", ALICE, "submit", (4, 1024, 0, 64)),
            LaneEvent("operation", ALICE, "publish", (4,)),
            LaneEvent("operation", ALICE, "map", (4, IDENTITY, 6)),
        ),
    )
    both = OnBoth(case, without("segments_checked"))
    replay = Replay(both)
    assert all(replay.execute(event) for event in case.events)
    assert both.systems.found == [] and both.systems.completed.all()
    granules = 7 * both.systems.batch.slot_granules
    assert all(index < granules for index, _granule in both.monitor.memory.store.written())  # type: ignore[attr-defined]


# -- small programs --------------------------------------------------------------------------------------------------------

SMUGGLED = Case(
    CC128,
    Deployment(12, 3),
    (
        LaneEvent("operation", BOB, "allocate", (7,)),
        LaneEvent("operation", ALICE, "allocate", (9,)),
        LaneEvent("instruction", ALICE, "csc", (2, 64, 11)),
        LaneEvent("operation", None, "collect", (3,)),
        LaneEvent("operation", ALICE, "submit", (9, 64, 16, 0)),
    ),
)
"""A capability is left in an image."""


def test_events_are_left_out_numbers_made_simple_and_the_system_small() -> None:
    policy = without("tags_cleared")
    small = PROGRAMS.reduced(policy, SMUGGLED, "O15")
    assert small is not None and small[0].deployment.tenants == 1 and len(small[0].events) == 3
    lines = PROGRAMS.program(policy, small[0])
    assert lines[:2] == [
        "system orc { format cc128; slots 12; policy without tags_cleared; tenant tenant1 }",
        "expect violates O15",
    ]
    runs(tuple(lines))
    again = PROGRAMS.reduced(policy, small[0], "O15")
    assert again is not None and again[0] == small[0]
    assert PROGRAMS.reduced(INTENDED, SMUGGLED, "O15") is None


def test_a_program_says_who_does_what_and_how_it_ends() -> None:
    events = (
        LaneEvent("operation", ALICE, "start", (4,)),
        LaneEvent("operation", Agent(1, 1), "allocate", (9,)),
        LaneEvent("operation", Agent(1, 1), "submit", (9, 64, 32, 0)),
        LaneEvent("operation", ALICE, "relocate", (9, int(Relocation.FUNC), 64, 2, 0)),
        LaneEvent("operation", ALICE, "relocate", (9, 7, 64, 2, 1 << 40)),
        LaneEvent("operation", ALICE, "publish", (9,)),
        LaneEvent("operation", BOB, "map", (9, 0xF3D8A2F4D4F4E4C4, 8)),
        LaneEvent("operation", BOB, "map", (9, IDENTITY, 8)),
        LaneEvent("instruction", BOB, "csd", (4, 0, 4)),
        LaneEvent("operation", None, "destroy", (2,)),
        LaneEvent("instruction", BOB, "addi", (5, 5, 1)),
        LaneEvent("instruction", Agent(3, 1), "addi", (5, 5, 1)),
    )
    lines = PROGRAMS.program(INTENDED, SMUGGLED._replace(events=events))
    assert lines == [
        "system orc { format cc128; slots 12; tenant tenant1, tenant2, tenant3 }",
        "tenant1: start 4",
        "tenant1/2: allocate 9",
        "tenant1/2: submit 9, 64, 32, 0",
        "tenant1: relocate 9, func, 64, 2, 0",
        "tenant1: relocate 9, 7, 64, 2, 0x10000000000  -> refused KIND",
        "tenant1: publish 9",
        "tenant2: map 9, 0xf3d8a2f4d4f4e4c4, 8  -> refused IDENTITY",
        "tenant2: map 9, identity[9], 8",
        "tenant2: csd x4, 0(c4)  !trap PermitStoreViolation",
        "base: destroy 2",
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
    words = ["--profile", "orc", "--policy", "without:identity_checked", "--programs", "4", "--most-findings", "1"]
    outputs = ["--json", str(path), "--junit", str(tmp_path / "junit.xml"), "--sarif", str(tmp_path / "log.sarif")]
    assert fuzz(*words, "--workers", "1", "--state", str(state), *outputs, "--findings", str(folder)) == 1
    out = capsys.readouterr().out
    assert "--seed 0 --policy without:identity_checked --programs 4" in out
    (kept,) = folder.iterdir()
    text = kept.read_text()
    runs(tuple(text.splitlines()))
    assert f"# again: capvisor run {kept}" in text
    document = json.loads(path.read_text())
    jsonschema.validate(document, json.loads((ROOT / "cli" / "schemas" / "results.schema.json").read_text()))
    assert document["findings"][0]["what"] == "O8" and document["findings"][0]["file"] == kept.name
    (result,) = json.loads((tmp_path / "log.sarif").read_text())["runs"][0]["results"]
    assert result["ruleId"] == "O8"
    assert "breaks O8" in (tmp_path / "junit.xml").read_text()
    with pytest.raises(SystemExit):
        main(["report", "--state", str(state)])
    assert "bulk, without:identity_checked" in capsys.readouterr().out


@pytest.mark.usefixtures("small_units")
def test_the_statements_of_a_finding_are_its_code_flow() -> None:
    report = report_with(Here(), programs=32, policy="without:distinct_otypes", most_findings=1)
    (finding,) = report.findings
    (result,) = sarif(report, Path("findings"), "1")["runs"][0]["results"]
    steps = result["codeFlows"][0]["threadFlows"][0]["locations"]
    assert [step["location"]["message"]["text"] for step in steps] == list(finding.steps)


@pytest.mark.parametrize("words", [["--policy", "lenient"], ["--engine", "hypothesis"], ["--invariants-only"]])
def test_what_cant_be_asked_for_is_refused(words: list[str]) -> None:
    assert fuzz("--profile", "orc", *words) == 64
