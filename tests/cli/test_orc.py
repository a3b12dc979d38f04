"""The command with programs of shared objects."""

import json

import jsonschema
import pytest

from capvisor.cli import main as command
from capvisor.cli.programs import read_any
from capvisor.cli.status import Status
from capvisor.dsl.guards import length
from capvisor.dsl.syntax import Violates
from capvisor.dsl.system_kinds import ORC
from capvisor.spec.object_policy import OBJECT_GUARDS, OBJECT_POLICIES
from capvisor.spec.orc import OPERATIONS
from capvisor.spec.orc_invariants import ORC_INVARIANTS
from tests.tutorial import ROOT

SHARE = ROOT / "programs" / "tutorial_orc" / "orc_1_share.cap"
SHARED = ROOT / ORC.attacks / "b04_a_shared_global.cap"
NEVER = {"O7"}
"""What no guard carries: that a refused operation changes nothing."""


def test_a_program_runs_and_is_counted(capvisor, tmp_path) -> None:
    status, _out, _err = capvisor("run", SHARE, "--json", tmp_path / "out.json")
    assert status == Status.OK
    (program,) = json.loads((tmp_path / "out.json").read_text())["programs"]
    assert (program["operations"], program["assertions"], program["system"]["calls"]) == (21, 2, 9)


def test_a_trace_shows_slots_registers_memory_and_whose_code_is_executed(capvisor) -> None:
    status, out, _err = capvisor("run", SHARE, "--trace")
    assert status == Status.OK
    for text in (
        "slot 4 = SUBMITTED of tenant 1",
        "slot 4 = OBJECT",
        "alice -> lib",
        "lib -> alice",
        "relocate 4, tls, 64, ",
    ):
        assert text in out


def test_an_attack_works_under_the_prototype(capvisor) -> None:
    status, out, _err = capvisor("run", SHARED, "--policy", "prototype-0.1.0")
    assert status == Status.VIOLATION and "violates O4 (thread-local storage)" in out


@pytest.mark.parametrize(
    ("what", "rows"),
    [
        ("orc-operations", OPERATIONS),
        ("orc-guards", OBJECT_GUARDS),
        ("orc-policies", OBJECT_POLICIES),
        ("orc-invariants", ORC_INVARIANTS),
    ],
)
def test_tables_are_listed(capvisor, what: str, rows) -> None:
    status, out, err = capvisor("list", what)
    assert (status, err) == (Status.OK, "")
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(rows)


def test_an_operation_of_a_system_is_explained_with_its_rule(capvisor) -> None:
    status, out, _err = capvisor("explain", "publish")
    assert status == Status.OK
    assert "publish slot  (of a system orc)" in out and "refused for: RANGE, NO_TENANT, NOT_SUBMITTED" in out
    assert "def publish(" in out
    out = capvisor("explain", "create")[1]
    assert "(of a system tpt)" in out and "(of a system orc)" in out
    assert "file_probe key, location  (of a system cvm)" in capvisor("explain", "file_probe")[1]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    """The matrix of all attacks that succeed, as the command writes it."""
    path = tmp_path_factory.mktemp("guards") / "guards.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        succeed = [str(each) for each in sorted(ORC.attacks.glob("*.without.cap"))]
        assert command.status_of(["guards", "orc", *succeed, "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    jsonschema.validate(document, json.loads((ROOT / "cli" / "schemas" / "guards.schema.json").read_text()))
    return document["matrix"]


def test_the_matrix_has_a_cell_for_each_guard_and_invariant_and_every_guard_carries_one(matrix) -> None:
    assert list(matrix) == list(OBJECT_GUARDS)
    assert all(list(row) == list(ORC_INVARIANTS) for row in matrix.values())
    falls = {(guard, name) for guard, row in matrix.items() for name, cell in row.items() if cell["verdict"] == "falls"}
    assert {guard for guard, _name in falls} == OBJECT_GUARDS.keys()
    assert {name for _guard, name in falls} == ORC_INVARIANTS.keys() - NEVER


def test_a_counterexample_that_is_written_for_its_guard_says_what_falls_in_ten_lines(matrix) -> None:
    for guard, row in matrix.items():
        for name, cell in row.items():
            if cell["program"] is not None:
                program = read_any(ROOT / cell["program"])
                assert program.system is not None and program.system.without == (guard,), cell
                assert name in next(each.names for each in program.statements if isinstance(each, Violates)), cell
                assert length(program) <= 10, cell


def test_fmt_formats_programs(capvisor, tmp_path) -> None:
    path = tmp_path / "a.cap"
    path.write_text("system orc{tenant alice;object lib{global x=1}}\nalice:load lib->ok\nbase:collect lib\n")
    assert capvisor("fmt", path)[0] == Status.OK
    assert path.read_text() == (
        "system orc { tenant alice; object lib { global x = 1 } }\nalice: load lib  -> ok\nbase:  collect lib\n"
    )
    assert capvisor("fmt", "--check", path)[0] == Status.OK
