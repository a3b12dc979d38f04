"""`capvisor corpus`: what each verb prints, writes and ends with, and one clear message for whatever is wrong."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from capvisor.campaign.findings import finding_of, save
from capvisor.campaign.unit import judge
from capvisor.cli import corpus as command
from capvisor.cli.status import Status
from capvisor.dsl.parser import parse
from capvisor.dsl.printer import print_program
from capvisor.proofs.mutants import MUTANTS, in_force
from tests.processes import until_busy
from tests.tutorial import ROOT

MACHINE = "machine cc128 { memory 0x80000000 size 4K; c1 = root }\n"
GOOD = f"# Good.\n{MACHINE}li x5, 1\nassert x5 == 1\n"
BAD = f"# Bad.\n{MACHINE}li x5, 1\nassert x5 == 2\n"
SEALED = f"{MACHINE}cmove c4, c1\ncsealentry c2, c4\nli x9, 5\ncsetboundsimm c3, c2, 16\n"
SEALED_BUG = MUTANTS["setbounds-of-sealed"]
REGRESS = ROOT / "programs" / "regress"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty corpus, in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = Path("kept")
    path.mkdir()
    return path


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def a_finding(folder: Path) -> Path:
    """A finding of a bug that has been fixed since."""
    from capvisor.campaign.case import from_program

    with in_force(SEALED_BUG):
        failure = judge(from_program(parse(SEALED)))
        assert failure is not None
        return save(finding_of(failure), folder)


# -- run -------------------------------------------------------------------------------------------------------------------


def test_the_corpus_that_ships_is_where_the_command_looks_and_passes(capvisor, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    count = len(list(REGRESS.glob("*.cap")))
    status, out, _err = capvisor("corpus", "run")
    assert status == Status.OK and f"{count} of {count} passed" in out and "programs/regress/write_to_c0.cap" in out
    assert capvisor("run", "programs/regress")[0] == Status.OK


@pytest.mark.parametrize(
    "name",
    ["setbounds-of-sealed", "fast-memory-tag", "trap-keeps-reservation", "invoke-any-type", "write-to-c0", "load-keeps-tag"],
)
def test_a_seeded_bug_makes_the_corpus_fail(capvisor, name: str) -> None:
    with in_force(MUTANTS[name]):
        status, out, _err = capvisor("corpus", "run", "--corpus", REGRESS)
    assert status == Status.VIOLATION and "FAILED: " in out and "again: capvisor run " in out


def test_run_writes_what_came_of_each_program_as_json_and_junit(capvisor, folder) -> None:
    write(folder / "bad.cap", BAD)
    write(folder / "good.cap", GOOD)
    write(folder / "sealed.cap", f"# stepping: words\n{SEALED}")
    with in_force(SEALED_BUG):
        # What was written is not held against the schema by `--json FILE`, two words.
        status, out, _err = capvisor("corpus", "run", "--corpus", folder, "--json", "out.json", "--junit", "out.xml")
    assert status == Status.VIOLATION and "1 of 3 passed" in out
    assert "kept/bad.cap:4: assertion: `assert x5 == 2` doesn't hold: x5 = 0x1" in out
    assert "(words, csetboundsimm differs registers)" in out
    document = json.loads(Path("out.json").read_text())
    assert document["kind"] == "corpus" and not document["interrupted"] and document["corpus"] == "kept"
    bad, good, sealed = document["programs"]
    assert good["passed"] and good["failure"] is None and good["judged"] == {"stepping": "lock step", "failure": None}
    assert not bad["passed"] and bad["failure"]["line"] == 4 and bad["judged"]["failure"] is None
    assert sealed["judged"] == {"stepping": "words", "failure": "csetboundsimm differs registers"}
    junit = Path("out.xml").read_text()
    assert 'tests="3"' in junit and 'failures="2"' in junit


def test_ctrl_c_ends_a_run_with_what_was_done(capvisor, folder, monkeypatch) -> None:
    for name in "abc":
        write(folder / f"{name}.cap", GOOD)
    examine = command.examine

    def interrupt(program, seed):
        if "b.cap" in program.source:
            raise KeyboardInterrupt
        return examine(program, seed)

    monkeypatch.setattr(command, "examine", interrupt)
    status, out, _err = capvisor("corpus", "run", "--corpus", folder, "--json", "out.json")
    assert status == Status.INCONCLUSIVE and "interrupted after 1 of 3 programs" in out
    assert json.loads(Path("out.json").read_text())["interrupted"]


def test_ctrl_c_is_no_defect(folder) -> None:
    for number in range(3000):
        write(folder / f"{number}.cap", GOOD.replace("li x5, 1\n", f"li x6, {number}\nli x5, 1\n"))
    arguments = [sys.executable, "-m", "capvisor", "corpus", "minimize", "--write", "--corpus", str(folder)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until_busy(process, 2)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == Status.INCONCLUSIVE and "interrupted; nothing was finished" in err
    assert len(files(folder)) == 3000


# -- list ------------------------------------------------------------------------------------------------------------------


def test_list_says_what_programs_are_for_and_which_are_none(capvisor, folder) -> None:
    write(folder / "a.cap", GOOD)
    finding = a_finding(folder)
    status, out, _err = capvisor("corpus", "list", "--corpus", folder)
    assert status == Status.OK and "2 programs, " in out
    lines = {line.split()[0]: line.split(maxsplit=3)[1:] for line in out.splitlines() if line.startswith("kept/")}
    assert [word.strip() for word in lines["kept/a.cap"]] == ["1", "1", "Good."]
    assert [word.strip() for word in lines[str(finding)]] == ["2", "2", "csetboundsimm differs registers"]
    write(folder / "broken.cap", "machine cc128 { }\nnope x1\n")
    status, out, _err = capvisor("corpus", "list", "--corpus", folder)
    assert (
        status == Status.USAGE and "UNUSABLE: kept/broken.cap:2:1: unknown operation `nope`" in out and "1 unusable" in out
    )


# -- add -------------------------------------------------------------------------------------------------------------------


def test_add_keeps_a_program_formatted_under_its_name(capvisor, folder) -> None:
    status, out, _err = capvisor("corpus", "add", write(Path("good.cap"), GOOD), "--corpus", folder)
    assert status == Status.OK and "good.cap: added as kept/good.cap" in out
    assert files(folder) == {"good.cap": print_program(parse(GOOD))}
    other = GOOD.replace("x5, 1", "x5, 7").replace("== 1", "== 7")
    status, out, _err = capvisor("corpus", "add", write(Path("good.cap"), other), "--corpus", folder)
    assert status == Status.OK and "added as kept/good-2.cap" in out and len(files(folder)) == 2
    assert capvisor("corpus", "run", "--corpus", folder)[0] == Status.OK


def test_add_makes_the_folder_where_there_is_none(capvisor, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("good.cap"), GOOD)
    assert capvisor("corpus", "add", "good.cap")[0] == Status.OK
    assert list(files(Path("programs"))) == ["regress/good.cap"]


def test_add_refuses_what_fails_and_with_failing_what_passes(capvisor, folder) -> None:
    write(Path("good.cap"), GOOD)
    write(Path("bad.cap"), BAD)
    status, out, _err = capvisor("corpus", "add", "bad.cap", "--corpus", folder)
    assert status == Status.VIOLATION and "not added: it fails" in out and "bad.cap:4: assertion" in out
    status, out, _err = capvisor("corpus", "add", "good.cap", "--failing", "--corpus", folder)
    assert status == Status.USAGE and "not added: it passes" in out and not files(folder)
    status, out, _err = capvisor("corpus", "add", "good.cap", "bad.cap", "--failing", "--corpus", folder)
    assert status == Status.USAGE and "1 of 2 added" in out and list(files(folder)) == ["bad.cap"]
    assert "which fails: so does `capvisor corpus run` until that is fixed" in out
    assert capvisor("corpus", "run", "--corpus", folder)[0] == Status.VIOLATION


def test_add_refuses_what_is_there_already_unless_it_is_forced(capvisor, folder) -> None:
    write(folder / "first.cap", GOOD)
    write(Path("same.cap"), f"# Said otherwise.\n{MACHINE}li x5, 0x1\n")
    status, out, _err = capvisor("corpus", "add", "same.cap", "--corpus", folder)
    assert status == Status.USAGE and "same.cap: not added: kept/first.cap has the same operations" in out
    assert list(files(folder)) == ["first.cap"]
    assert capvisor("corpus", "add", "same.cap", "--force", "--corpus", folder)[0] == Status.OK
    assert list(files(folder)) == ["first.cap", "same.cap"]
    status, out, _err = capvisor("corpus", "add", folder / "first.cap", "--force", "--corpus", folder)
    assert status == Status.USAGE and "it is in this corpus" in out


def test_add_takes_one_finding_of_a_signature_and_says_how_to_see_it_again(capvisor, folder) -> None:
    finding = a_finding(Path("findings"))
    assert capvisor("corpus", "add", finding, "--corpus", folder)[0] == Status.OK
    kept = folder / finding.name
    assert f"# again: capvisor run {kept}\n" in kept.read_text()
    twin = write(
        Path("findings/twin.cap"), finding.read_text().replace("csetboundsimm c3, c2, 16", "csetboundsimm c3, c2, 17")
    )
    twin.write_text(twin.read_text() + "li x7, 1\n")
    status, out, _err = capvisor("corpus", "add", twin, "--corpus", folder)
    assert status == Status.USAGE and f"{kept} has the same signature, csetboundsimm differs registers" in out


def test_twins_in_one_call_are_added_once(capvisor, folder) -> None:
    for name in ("a", "b"):
        write(Path(f"{name}.cap"), GOOD)
    status, out, _err = capvisor("corpus", "add", "a.cap", "b.cap", "--corpus", folder)
    assert status == Status.USAGE and "1 of 2 added" in out and list(files(folder)) == ["a.cap"]


# -- minimize --------------------------------------------------------------------------------------------------------------


def test_minimize_says_what_others_show_and_removes_it_only_when_told_to(capvisor, folder) -> None:
    write(folder / "both.cap", f"{MACHINE}cmove c2, c1\ncgettag x5, c1\n")
    write(folder / "one.cap", f"{MACHINE}cmove c2, c1\n")
    finding = a_finding(folder)
    write(folder / "more.cap", finding.read_text().split("\n\n")[-1].replace("# signature", "# was") + "cgetperm x6, c1\n")
    before = files(folder)
    status, out, _err = capvisor("corpus", "minimize", "--corpus", folder)
    assert status == Status.OK and files(folder) == before
    assert "kept/one.cap: would be removed: others show its 1 behaviour\n" in out and "nothing was changed" in out
    status, out, _err = capvisor("corpus", "minimize", "--write", "--corpus", folder)
    assert status == Status.OK and "kept/one.cap: removed" in out
    assert set(before) - set(files(folder)) == {"one.cap"}
    status, out, _err = capvisor("corpus", "minimize", "--corpus", folder)
    assert "removed" not in out and "nothing was changed" not in out


def test_minimize_keeps_what_fails(capvisor, folder) -> None:
    write(folder / "bad.cap", BAD)
    write(folder / "good.cap", GOOD.replace("li x5", "cmove c2, c1\nli x5"))
    status, out, _err = capvisor("corpus", "minimize", "--write", "--reduce", "--corpus", folder)
    assert status == Status.OK and len(files(folder)) == 2
    assert "kept/bad.cap: not reduced: it fails by what it expects" in out


def test_minimize_reduces_a_failing_program_only_when_told_to(capvisor, folder) -> None:
    path = write(folder / "sealed.cap", SEALED)
    with in_force(SEALED_BUG):
        status, out, _err = capvisor("corpus", "minimize", "--reduce", "--corpus", folder)
        assert status == Status.OK and "would be reduced from 4 to 2 operations" in out and path.read_text() == SEALED
        status, out, _err = capvisor("corpus", "minimize", "--reduce", "--write", "--corpus", folder)
        assert status == Status.OK and "kept/sealed.cap: reduced from 4 to 2 operations" in out
        assert capvisor("corpus", "run", "--corpus", folder)[0] == Status.VIOLATION
        status, out, _err = capvisor("corpus", "minimize", "--reduce", "--corpus", folder)
        assert "not reduced: it is as small as it gets" in out
    assert "# signature: csetboundsimm differs registers" in path.read_text()
    assert capvisor("corpus", "run", "--corpus", folder)[0] == Status.OK


def test_no_program_loses_its_assertions_by_being_reduced(capvisor, folder) -> None:
    write(folder / "sealed.cap", f"{SEALED}assert not c3.tag\n")
    with in_force(SEALED_BUG):
        out = capvisor("corpus", "minimize", "--reduce", "--write", "--corpus", folder)[1]
    assert "not reduced: it has assertions" in out and "assert not c3.tag" in files(folder)["sealed.cap"]


# -- what is wrong ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["list", "run", "minimize"])
@pytest.mark.parametrize(
    ("where", "message"),
    [("missing", "missing: no such folder"), ("empty", "empty: no .cap files in this folder"), ("good.cap", "this is none")],
)
def test_no_corpus_is_one_message(capvisor, tmp_path, monkeypatch, verb: str, where: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write(Path("good.cap"), GOOD)
    status, out, err = capvisor("corpus", verb, "--corpus", where)
    assert status == Status.USAGE and message in err and err.count("\n") == 1 and not out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add"], "Missing argument"),
        (["add", "missing.cap"], "missing.cap: no such file"),
        (["add", "broken.cap", "good.cap"], "broken.cap:2:1: unknown operation `nope`"),
        (["add", "large.cap"], "the machine's memory is too large for this one"),
        (["add", "good.cap", "--corpus", "good.cap"], "this is none"),
        (["add", "good.cap", "--corpus", "good.cap/below"], "can't make the folder good.cap/below: Not a directory"),
        (["add", "backwards.cap"], "unknown stepping `backwards`"),
        (["run", "--corpus", "."], "broken.cap:2:1: unknown operation `nope`"),
        (["minimize", "--corpus", "."], "broken.cap:2:1: unknown operation `nope`"),
        (["run", "--corpus", "kept", "--json", "missing/out.json"], "there is no folder missing"),
        (["run", "--corpus", "kept", "--junit", "kept/there.cap"], "it is an input"),
    ],
)
def test_wrong_use_is_one_message_and_nothing_is_written(capvisor, folder, arguments, message: str) -> None:
    write(Path("good.cap"), GOOD)
    write(Path("broken.cap"), "machine cc128 { }\nnope x1\n")
    write(Path("large.cap"), "machine cc128 { memory 0 size 1048576G }\nli x5, 1\n")
    write(Path("backwards.cap"), f"# stepping: backwards\n{GOOD}")
    write(folder / "there.cap", GOOD)
    status, out, err = capvisor("corpus", *arguments)
    assert status == Status.USAGE and message in err and err.startswith("capvisor: ") and not out
    assert list(files(folder)) == ["there.cap"] and not Path("programs").exists()


def test_a_folder_that_cannot_be_written_to_is_said_so(capvisor, folder, monkeypatch) -> None:
    write(Path("good.cap"), GOOD)
    write(folder / "a.cap", f"{MACHINE}cmove c2, c1\n")
    write(folder / "b.cap", f"{MACHINE}cmove c3, c1\n")

    def refuse(*_arguments, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    status, _out, err = capvisor("corpus", "add", "good.cap", "--corpus", folder)
    assert status == Status.USAGE and err == "capvisor: can't write kept/good.cap: Permission denied\n"
    monkeypatch.setattr(Path, "unlink", refuse)
    status, _out, err = capvisor("corpus", "minimize", "--write", "--corpus", folder)
    assert status == Status.USAGE and err == "capvisor: can't remove kept/b.cap: Permission denied\n"
    assert list(files(folder)) == ["a.cap", "b.cap"]


def test_values_that_are_not_found_are_inconclusive(capvisor, folder) -> None:
    write(folder / "a.cap", "machine cc128 { }\nlet x = any u64 where x & 0xffffffff == 0x12345678\nli x5, x\n")
    status, _out, err = capvisor("corpus", "run", "--corpus", folder)
    assert status == Status.INCONCLUSIVE and "no value was found" in err
    assert capvisor("corpus", "list", "--corpus", folder)[0] == Status.USAGE
