"""The command with programs of translation pass-through."""

import json

import jsonschema
import numpy as np
import pytest

from capvisor.cli import main as command
from capvisor.cli.programs import read_any
from capvisor.cli.status import Status
from capvisor.dsl.syntax import Violates
from capvisor.dsl.system_kinds import TPT
from capvisor.fastpath.requests import OPERATION_KERNELS
from capvisor.fastpath.walks import Walks
from capvisor.spec.tag_policy import TAG_GUARDS, TAG_POLICIES
from capvisor.spec.tpt import OPERATIONS
from capvisor.spec.tpt_invariants import TPT_INVARIANTS
from tests.tutorial import ROOT

WALK = ROOT / "programs" / "tutorial_tpt" / "tpt_1_first_walk.cap"
LARGE_PAGES = WALK.with_name("tpt_2_large_pages.cap")
PAGE = ROOT / TPT.attacks / "d01_a_page_of_another.cap"
NEVER = {"T6", "T10"}
"""What no guard carries: passing through, and progress."""


def test_programs_of_all_kinds_run_side_by_side(capvisor, tmp_path) -> None:
    cvm = ROOT / "programs" / "tutorial_cvm" / "cvm_1_files.cap"
    status, out, _err = capvisor("run", cvm, WALK, "--json", tmp_path / "out.json")
    assert status == Status.OK and "2 of 2 passed" in out
    files, walk = json.loads((tmp_path / "out.json").read_text())["programs"]
    assert files["states_compared"] > 0 and walk["states_compared"] > 0
    assert (walk["operations"], walk["traps"], walk["system"]["calls"]) == (15, 4, 0)


def test_every_operation_is_compared_with_the_fast_path_unless_told_otherwise(capvisor, tmp_path) -> None:
    for words, compared in (((), 550), (("--impl", "both"), 550), (("--impl", "reference"), 0)):
        assert capvisor("run", LARGE_PAGES, *words, "--json", tmp_path / "out.json")[0] == Status.OK
        (program,) = json.loads((tmp_path / "out.json").read_text())["programs"]
        assert program["states_compared"] == compared
    status, _out, err = capvisor("run", WALK, "--impl", "fast")
    assert status == Status.USAGE and "runs on the reference, or on both" in err


def test_a_difference_of_the_fast_path_is_a_failure(capvisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Walks, "_leaf_needs", lambda _self, at: np.full(len(at), 0x20, np.uint64))
    status, out, _err = capvisor("run", WALK)
    assert status == Status.VIOLATION and "implementations differ: store: differs: " in out


def test_a_fast_path_that_ends_with_an_error_is_a_failure(capvisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATION_KERNELS, "load", lambda *_arguments: np.zeros(1)[9])
    status, out, _err = capvisor("run", WALK)
    assert status == Status.VIOLATION and "implementations differ: load: crashes: IndexError: " in out


def test_that_no_costs_are_counted_is_said(capvisor) -> None:
    status, out, _err = capvisor("run", WALK, "--cost")
    assert status == Status.OK and "no costs are counted of a system tpt" in out and "mechanism" not in out


def test_the_trace_shows_what_changed(capvisor) -> None:
    status, out, _err = capvisor("run", WALK, "--trace")
    assert status == Status.OK
    for text in (
        "host     vm0 frames 1..8                     at the start",
        "cpu0 TLB 0 = 0x0 is frame 5, 4K rwx",
        "cpu0 walk cache 2 = PTEs of 0x0 in 4",
        "memory 5 = [0] 0x77",
        "fault page code 0x2",
        "fault tag frame 13",
    ):
        assert text in out
    reclaim = WALK.with_name("tpt_3_reclaim_and_reuse.cap")
    out = capvisor("run", reclaim, "--trace")[1]
    assert "tag 5 = free" in out and "pending 5 = cpu0, cpu1, cpu2" in out and "guest frame 20 of VM 3 = 5" in out
    step = capvisor("run", ROOT / TPT.attacks / "d03_an_accessed_bit.cap", "--trace")[1]
    assert "cpu0 walk = 0x1000 reads a PTE in frame 4" in step and "cpu0 walk = none" in step


def test_another_policy_shows_what_a_guard_carries(capvisor) -> None:
    status, out, _err = capvisor("run", PAGE, "--policy", "without:check_leaf")
    assert status == Status.VIOLATION
    assert "violates T1 (accesses) at data read for vm0 in frame 13, which is vm1's" in out
    status, _out, err = capvisor("run", PAGE, "--policy", "without:purge_slots")
    assert status == Status.USAGE and "unknown guard `purge_slots`: there are check_leaf" in err


def test_what_does_not_go_is_said(capvisor) -> None:
    for arguments, message in (
        (("prove", "tpt", "walk.cc64"), "no step is called or matched by `walk.cc64`"),
        (
            ("prove", WALK),
            "tpt_1_first_walk.cap: programs of a system can't be proved; `capvisor prove tpt` proves its every step",
        ),
        (("fuzz", WALK), "a program of a system, which `capvisor run` runs"),
        (("guards", "tpt", WALK.with_name("no.cap")), "no.cap"),
    ):
        status, _out, err = capvisor(*arguments)
        assert status == Status.USAGE and message in err, arguments


@pytest.mark.parametrize(
    ("what", "table"),
    [
        ("tpt-operations", OPERATIONS),
        ("tpt-guards", TAG_GUARDS),
        ("tpt-policies", TAG_POLICIES),
        ("tpt-invariants", TPT_INVARIANTS),
    ],
)
def test_every_row_is_listed_once_and_nothing_else(capvisor, what: str, table) -> None:
    status, out, err = capvisor("list", what)
    assert (status, err) == (Status.OK, "")
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(table)


def test_an_operation_is_listed_with_its_agent_operands_and_ends(capvisor) -> None:
    lines = {line.split()[0]: " ".join(line.split()) for line in capvisor("list", "tpt-operations")[1].splitlines()}
    assert lines["step_walk"].startswith("step_walk processor RANGE, NO_VM, NOTHING page, tag, nested one memory reference")
    assert lines["assign"].startswith("assign host frame, vm, guest_frame RANGE, NO_VM, NOT_FREE, PENDING")


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    """The matrix of all attacks, as the command writes it."""
    path = tmp_path_factory.mktemp("guards") / "guards.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert command.status_of(["guards", "tpt", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    jsonschema.validate(document, json.loads((ROOT / "cli" / "schemas" / "guards.schema.json").read_text()))
    return document["matrix"]


def test_the_matrix_has_a_cell_for_each_guard_and_invariant_and_every_guard_carries_one(matrix) -> None:
    assert list(matrix) == list(TAG_GUARDS)
    assert all(list(row) == list(TPT_INVARIANTS) for row in matrix.values())
    falls = {(guard, name) for guard, row in matrix.items() for name, cell in row.items() if cell["verdict"] == "falls"}
    assert {guard for guard, _name in falls} == TAG_GUARDS.keys()
    assert {name for _guard, name in falls} == TPT_INVARIANTS.keys() - NEVER


def test_each_counterexample_says_itself_what_falls_without_which_guard(matrix) -> None:
    for guard, row in matrix.items():
        for name, cell in row.items():
            if cell["program"] is not None:
                program = read_any(ROOT / cell["program"])
                assert program.system is not None and program.system.without == (guard,), cell
                assert name in next(each.names for each in program.statements if isinstance(each, Violates)), cell


def test_fmt_formats_programs(capvisor, tmp_path) -> None:
    path = tmp_path / "a.cap"
    path.write_text("system tpt{vm0 frames 0..7 mapped}\nvm0:load 0x9000!fault page code 0\nhost:reclaim 5->ok\n")
    assert capvisor("fmt", path)[0] == Status.OK
    lines = path.read_text().splitlines()
    assert lines[1:] == ["vm0:  load 0x9000  !fault page code 0", "host: reclaim 5  -> ok"]
    assert capvisor("fmt", "--check", path)[0] == Status.OK
