"""The command with programs of a para-pass-through VMM."""

import json

import jsonschema
import pytest

from capvisor.cli import main as command
from capvisor.cli.programs import read_any
from capvisor.cli.status import Status
from capvisor.dsl.syntax import Violates
from capvisor.dsl.system_kinds import VMM
from capvisor.spec.vmm import OPERATIONS
from capvisor.spec.vmm_invariants import VMM_INVARIANTS
from capvisor.spec.vmm_policy import VMM_GUARDS, VMM_POLICIES
from tests.tutorial import ROOT

ENCRYPTION = ROOT / "programs" / "tutorial_vmm" / "vmm_2_storage_encryption.cap"
MOVING = ENCRYPTION.with_name("vmm_3_deployment_and_moving.cap")
PASSES = ENCRYPTION.with_name("vmm_1_what_passes_through.cap")
PLACE = ROOT / VMM.attacks / "e06_another_place.cap"
BEYOND = ROOT / VMM.attacks / "e12_beyond_4_mib.cap"
NEVER = {"P10", "P19"}
"""What no guard carries: passing through, and reasons to refuse."""


def test_programs_of_all_kinds_run_side_by_side(capvisor, tmp_path) -> None:
    tpt = ROOT / "programs" / "tutorial_tpt" / "tpt_1_first_walk.cap"
    status, out, _err = capvisor("run", tpt, ENCRYPTION, "--json", tmp_path / "out.json")
    assert status == Status.OK and "2 of 2 passed" in out
    _walk, disk = json.loads((tmp_path / "out.json").read_text())["programs"]
    assert (disk["operations"], disk["traps"], disk["system"]["calls"]) == (63, 0, 7)


def test_every_operation_is_compared_with_the_fast_path_unless_told_otherwise(capvisor, tmp_path) -> None:
    for words, compared in (((), 70), (("--impl", "both"), 70), (("--impl", "reference"), 0)):
        assert capvisor("run", ENCRYPTION, *words, "--json", tmp_path / "out.json")[0] == Status.OK
        (program,) = json.loads((tmp_path / "out.json").read_text())["programs"]
        assert program["states_compared"] == compared


def test_another_policy_shows_what_a_guard_carries(capvisor) -> None:
    status, out, _err = capvisor("run", PLACE, "--policy", "without:follow_window_moves")
    assert status == Status.VIOLATION
    assert "violates P8 (interception) at port 0x200" in out
    status, out, _err = capvisor("run", BEYOND, "--policy", "bitvisor-2009")
    assert status == Status.VIOLATION and "violates P1 (processors) at cpu0, slot 7; frame 2048, of the region" in out
    status, _out, err = capvisor("run", PLACE, "--policy", "without:check_leaf")
    assert status == Status.USAGE and "unknown guard `check_leaf`: there are filter_mappings" in err


def test_that_no_costs_are_counted_is_said(capvisor) -> None:
    status, out, _err = capvisor("run", PASSES, "--cost")
    assert status == Status.OK and "no costs are counted of a system vmm" in out


def test_the_trace_shows_what_changed(capvisor) -> None:
    texts = {
        PASSES: (
            "vmm      region 32..63                             at the start",
            "cpu0 slot 0 = frame 10, 4K rw",
            "memory 0x50 = 0x77",
            "register 1, 3 = 0x5",
            "cpu0 slot 7 = the page of zeros",
            "refused GENERAL",
            "cpu0 slot 0 = empty",
            "the machine is stopped",
        ),
        ENCRYPTION: (
            "storage disk { encrypt 0..9; deny 10..19; fault 20..29 }  at the start",
            "mediator 1 = pio out, 0 of 1 from sector 5",
            "device 1 = write_sectors, 0 of 1 from sector 5",
            "medium 1, 5 = 0x5ec85e",
            "descriptors 1 = 0x28 for the guest",
            "mediator 1 = copying out, 1 of 2 from sector 6",
            "mediator 1 = copying in, 0 of 2 from sector 6",
            "device 1 = idle",
            "mediator 1 = error",
            "port 0x8 = nobody",
            "port 0x200 = device 1, mediated",
        ),
        MOVING: (
            "deployment 1 = deploy, 0 of 4 looked at, sector 1 fetched",
            "deployed 1, 1",
            "deployment 1 = gone",
            "port 0x8 = device 1\n",
            "moving = rounds",
            "frame 10 = sent",
            "frame 10 = to be sent",
            "sent 0x50 = 0x78",
            "moving = handed over",
        ),
    }
    for path, expected in texts.items():
        status, out, _err = capvisor("run", path, "--trace")
        assert status == Status.OK
        lines = "\n".join(line.rstrip() for line in out.splitlines()) + "\n"
        assert [text for text in expected if text not in lines] == [], path


def test_a_processor_outside_is_shown(capvisor) -> None:
    out = capvisor("run", ROOT / VMM.attacks / "f03_a_hypervisor.without.cap", "--trace")[1]
    assert "cpu0 = outside" in out
    out = capvisor("run", ROOT / VMM.attacks / "f02_microcode.without.cap", "--trace")[1]
    assert "the microcode is the guest's" in out


def test_what_does_not_go_is_said(capvisor) -> None:
    for arguments, message in (
        (("fuzz", PLACE), "a program of a system, which `capvisor run` runs"),
        (("guards", "vmm", PLACE.with_name("no.cap")), "no.cap"),
        (("run", PLACE, "--impl", "fast"), "runs on the reference, or on both"),
    ):
        status, _out, err = capvisor(*arguments)
        assert status == Status.USAGE and message in err, arguments


@pytest.mark.parametrize(
    ("what", "table"),
    [
        ("vmm-operations", OPERATIONS),
        ("vmm-guards", VMM_GUARDS),
        ("vmm-policies", VMM_POLICIES),
        ("vmm-invariants", VMM_INVARIANTS),
    ],
)
def test_every_row_is_listed_once_and_nothing_else(capvisor, what: str, table) -> None:
    status, out, err = capvisor("list", what)
    assert (status, err) == (Status.OK, "")
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(table)


def test_an_operation_is_listed_with_its_agent_operands_and_ends(capvisor) -> None:
    lines = {line.split()[0]: " ".join(line.split()) for line in capvisor("list", "vmm-operations")[1].splitlines()}
    assert lines["store"].startswith("store guest slot, offset, value RANGE, STOPPED, UNMAPPED, PANIC write a block")
    assert lines["mediate"].startswith("mediate vmm device RANGE, STOPPED, NOTHING, FAILED, PANIC copy the next block")


def test_an_operation_is_explained_with_its_rule(capvisor) -> None:
    status, out, _err = capvisor("explain", "move_window")
    assert status == Status.OK and "(of a system vmm)" in out and "def move_window(system: System" in out


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    """The matrix of all attacks, as the command writes it."""
    path = tmp_path_factory.mktemp("guards") / "guards.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert command.status_of(["guards", "vmm", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    jsonschema.validate(document, json.loads((ROOT / "cli" / "schemas" / "guards.schema.json").read_text()))
    return document["matrix"]


def test_the_matrix_has_a_cell_for_each_guard_and_invariant_and_every_guard_carries_one(matrix) -> None:
    assert list(matrix) == list(VMM_GUARDS)
    assert all(list(row) == list(VMM_INVARIANTS) for row in matrix.values())
    falls = {(guard, name) for guard, row in matrix.items() for name, cell in row.items() if cell["verdict"] == "falls"}
    assert {guard for guard, _name in falls} == VMM_GUARDS.keys()
    assert {name for _guard, name in falls} == VMM_INVARIANTS.keys() - NEVER


def test_each_counterexample_says_itself_what_falls_without_which_guard(matrix) -> None:
    for guard, row in matrix.items():
        for name, cell in row.items():
            if cell["program"] is not None:
                program = read_any(ROOT / cell["program"])
                assert program.system is not None and program.system.without == (guard,), cell
                assert name in next(each.names for each in program.statements if isinstance(each, Violates)), cell


def test_fmt_formats_programs(capvisor, tmp_path) -> None:
    path = tmp_path / "a.cap"
    path.write_text("system vmm{storage disk{encrypt 0..9}}\nguest:read_sector disk,5\nvmm:mediate disk->until NOTHING\n")
    assert capvisor("fmt", path)[0] == Status.OK
    assert path.read_text().splitlines() == [
        "system vmm { storage disk { encrypt 0..9 } }",
        "guest: read_sector disk, 5",
        "vmm:   mediate disk  -> until NOTHING",
    ]
    assert capvisor("fmt", "--check", path)[0] == Status.OK
