"""The command: what it prints, the statuses it ends with, and one clear message for whatever is wrong."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from capvisor.cli.main import INTERRUPTED
from capvisor.cli.status import MEANINGS, Status
from tests.processes import until_busy, until_exists
from tests.tutorial import ROOT, TUTORIAL

GOOD = "machine cc128 { memory 0x80000000 size 4K; c1 = root }\nlet x = any u64\nli         x5, x\nassert x5 == x\n"
BAD = GOOD + "assert x5 < 0x8000000000000000\n"


def test_the_tutorial_runs_and_fuzzes(capvisor) -> None:
    status, out, _err = capvisor("run", ROOT / "programs" / "tutorial")
    assert status == Status.OK and f"{len(TUTORIAL)} of {len(TUTORIAL)} passed" in out
    assert len(TUTORIAL) >= 8
    status, out, _err = capvisor("fuzz", ROOT / "programs" / "tutorial", "--lanes", 3000)
    assert status == Status.OK and out.count("passed") == len(TUTORIAL)


def test_golden_vectors_conform(capvisor, tmp_path) -> None:
    status, out, _err = capvisor("conform", ROOT / "tests" / "vectors", "--json", tmp_path / "out.json")
    assert status == Status.OK and "40000 rows answered, 0 wrong" in out and "160 programs of 13516 steps" in out
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert len(results) == 24 and all(result["failed"] == 0 for result in results)


def test_run_says_how_to_see_a_failure_again(capvisor, tmp_path) -> None:
    path = tmp_path / "bad.cap"
    path.write_text(BAD)
    status, out, _err = capvisor("run", path, "--set", "x=0xffffffffffffffff", "--json", tmp_path / "out.json")
    assert status == Status.VIOLATION
    assert f"{path}:5: assertion: `assert x5 < 0x8000000000000000` doesn't hold: x5 = 0xffffffffffffffff" in out
    assert f"again: capvisor run {path} --set x=0xffffffffffffffff" in out
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["kind"] == "run" and document["programs"][0]["failure"]["line"] == 5
    assert capvisor("run", path, "--set", "x=1")[0] == Status.OK


@pytest.mark.parametrize("implementation", ["reference", "fast", "both"])
def test_the_trace_shows_what_each_step_changes(capvisor, implementation: str) -> None:
    path = ROOT / "programs" / "tutorial" / "07_tags_in_memory.cap"
    status, out, _err = capvisor(
        "run", path, "--trace", "--impl", implementation, "--set", "where_to=3", "--set", "byte=0xff"
    )
    assert status == Status.OK
    assert "c1 = 0x0 [rwxRW,0x0-0x10000000000000000]" in out
    assert "csc        c2, 0(c2)" in out and "memory 0x80000200 = 0x80000200 [rwxRW,0x80000200-0x80000220]" in out
    assert "memory 0x80000200 = 0x" in out and "c5 = 0xff000200 [rwxRW,0xff000200-0xff000220] (invalid)" in out
    assert "refused: LoadAddressMisaligned" in out


def test_fuzz_prints_a_failing_choice_as_a_program_that_fails(capvisor, tmp_path) -> None:
    path = tmp_path / "bad.cap"
    path.write_text(BAD)
    status, out, _err = capvisor("fuzz", path, "--lanes", 5000, "--seed", 1, "--json", tmp_path / "out.json")
    assert status == Status.VIOLATION
    assert "again: capvisor fuzz" in out and "--lanes 5000 --seed 1" in out
    (finding,) = json.loads((tmp_path / "out.json").read_text())["campaigns"][0]["findings"]
    alone = tmp_path / "alone.cap"
    alone.write_text(finding["program"])
    assert "let x = 0x" in finding["program"]
    assert capvisor("run", alone)[0] == Status.VIOLATION


def test_fuzz_is_reproducible(capvisor, tmp_path) -> None:
    path = tmp_path / "bad.cap"
    path.write_text(BAD)
    outputs = []
    for number in range(2):
        target = tmp_path / f"{number}.json"
        capvisor("fuzz", path, "--lanes", 20000, "--seed", 5, "--json", target)
        outputs.append(target.read_bytes())
    assert outputs[0] == outputs[1]


def test_a_check_that_never_fires_is_inconclusive(capvisor, tmp_path) -> None:
    path = tmp_path / "vacuous.cap"
    path.write_text(GOOD + "assert x == 0x123456789abcd implies c1.sealed\n")
    status, out, _err = capvisor("fuzz", path, "--lanes", 100)
    assert status == Status.INCONCLUSIVE and "never put to the test" in out


def test_fmt_formats_in_place_and_checks(capvisor, tmp_path) -> None:
    path = tmp_path / "a.cap"
    path.write_text("machine cc128 {c1=root}\ncmove c2 ,c1   # copy\n")
    assert capvisor("fmt", "--check", path)[0] == Status.VIOLATION
    assert capvisor("fmt", path)[0] == Status.OK
    assert path.read_text() == "machine cc128 { c1 = root }\ncmove      c2, c1  # copy\n"
    assert capvisor("fmt", "--check", path)[0] == Status.OK


@pytest.mark.parametrize("name", ["cc64.setaddr.npz", "cc64.setaddr.csv", "unnamed.npz"])
def test_vectors_writes_what_conform_accepts(capvisor, tmp_path, name: str) -> None:
    path = tmp_path / name
    options = ["--format", "cc64", "--operation", "setaddr"]
    status, out, _err = capvisor("vectors", *options, "-n", 200, "--seed", 3, "-o", path)
    assert status == Status.OK and "200 rows of setaddr for cc64, seed 3" in out
    again = options if name.startswith("unnamed") else []
    assert capvisor("conform", path, *again)[0] == Status.OK


def test_conform_shows_the_first_failing_row_decoded(capvisor, tmp_path) -> None:
    path = tmp_path / "cc64.setbounds.csv"
    capvisor("vectors", "--format", "cc64", "--operation", "setbounds", "-n", 20, "-o", path)
    lines = path.read_text().splitlines()
    values = lines[8].split(",")
    values[4] = hex(int(values[4], 16) ^ 0x100)
    path.write_text("\n".join([*lines[:8], ",".join(values), *lines[9:]]) + "\n")
    status, out, _err = capvisor("conform", path, "--json", tmp_path / "out.json")
    assert status == Status.VIOLATION
    assert f"{path}: row 7, reference:" in out and f"{path}: row 7, fast:" in out
    assert "out_meta" in out and "<- differs" in out and "out_meta expected is 0x" in out
    assert json.loads((tmp_path / "out.json").read_text())["results"][0]["first"]["row"] == 7


def test_conform_skips_formats_that_are_not_modelled_and_says_so(capvisor, tmp_path) -> None:
    good = tmp_path / "cc64.crrl.npz"
    capvisor("vectors", "--format", "cc64", "--operation", "crrl", "-n", 5, "-o", good)
    (tmp_path / "cc999.crrl.npz").write_bytes(good.read_bytes())
    status, out, _err = capvisor("conform", tmp_path)
    assert status == Status.OK and "skipped:" in out and "cc999.crrl.npz: no format and operation that are modelled" in out


def test_list_and_explain(capvisor) -> None:
    for what in ("operations", "formats", "traps", "registers", "fields", "vectors"):
        assert capvisor("list", what)[0] == Status.OK
    status, out, _err = capvisor("explain", "csc")
    assert status == Status.OK and "PermitStoreLocalCapViolation" in out and "def store_capability(" in out
    assert "def cseal(" in capvisor("explain", "cseal")[1]
    status, out, _err = capvisor("explain", "TagViolation")
    assert status == Status.OK and "mcause 28, capability cause 0x2" in out and "clc" in out


def test_bench_writes_its_figures(capvisor, tmp_path, monkeypatch) -> None:
    from capvisor.bench import measure
    from capvisor.cli import bench

    monkeypatch.setattr(measure, "LANES", 2000)
    monkeypatch.setattr(measure, "CAPABILITIES", 20_000)
    monkeypatch.setattr(measure, "REFERENCE_CALLS", 50)
    monkeypatch.setattr(measure, "WALKS", 2000)
    monkeypatch.setattr(measure, "WALKED_PAGES", 1024)
    assert len(bench.MEASUREMENTS) == 16
    status, out, _err = capvisor("bench", "--repeats", 1, "--json", tmp_path / "out.json")
    assert status == Status.OK and "csetbounds" in out and "C with the same formula" in out
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert len(results) == 48 and all(set(row) == {"name", "value", "unit"} and row["value"] > 0 for row in results)


WRONG_USES = [
    (["run"], "Missing argument"),
    (["run", "missing.cap"], "missing.cap: no such file"),
    (["run", "."], "no .cap files in this folder"),
    (["run", "binary.cap"], "not a text file"),
    (["run", "wrong.cap"], "wrong.cap:2:1: unknown operation `nope`"),
    (["run", "good.cap", "--set", "x"], "expected NAME=NUMBER"),
    (["run", "good.cap", "--set", "x=y"], "expected NAME=NUMBER"),
    (["run", "good.cap", "--set", "q=1"], "`q` is no `any` value of this program: it has x"),
    (["run", "good.cap", "good.cap", "--set", "x=1"], "--set needs a single program"),
    (["run", "good.cap", "--impl", "slow"], "Invalid value for '--impl'"),
    (["run", "good.cap", "--nonsense"], "No such option"),
    (["run", "good.cap", "--json", "missing/out.json"], "there is no folder missing"),
    (["run", "good.cap", "--json", "."], "it is a folder"),
    (["run", "large.cap"], "the machine's memory is too large for this one"),
    (["fuzz", "large.cap"], "the machine's memory is too large for this one"),
    (["fuzz", "good.cap", "--lanes", "0"], "0 is not in the range x>=1"),
    (["fuzz", "good.cap", "--seed", "-1"], "-1 is not in the range x>=0"),
    (["conform", "missing.npz"], "missing.npz: no such file"),
    (["conform", "good.cap"], "golden vectors are .npz or .csv files"),
    (["run", "good.cap", "--json", "good.cap"], "it is an input"),
    (["run", "good.cap", "--set", "x=1", "--set", "x=2"], "`x` is set twice"),
    (["run", "*.nothing"], "no file is matched by this pattern"),
    (["run", "/dev/zero"], "this is no program"),
    (["run", "digits.cap"], "a word of more than 400 characters"),
    (["run", "chain.cap"], "more than 150 operators in one line"),
    (["conform", "cc64.crrl.npz"], "not a whole .npz file"),
    (["conform", "cc64.decode.npz"], "no such file"),
    (["conform", "."], "not a whole .npz file"),
    (["conform", "empty"], "no golden vectors of a known format"),
    (["vectors", "--format", "cc64", "--operation", "crrl", "-o", "out.txt"], "expected a name that ends in .npz or .csv"),
    (["vectors", "--format", "cc64", "--operation", "crrl", "-n", "0", "-o", "out.npz"], "0 is not in the range x>=1"),
    (["vectors", "--format", "cc63", "--operation", "crrl", "-o", "out.npz"], "Invalid value for '--format'"),
    (["vectors", "--format", "cc64", "--operation", "crrl", "-o", "missing/out.npz"], "there is no folder missing"),
    (["explain", "csetbound"], "is no operation and no trap cause"),
    (["list", "everything"], "Invalid value"),
    (["disprove"], "No such command 'disprove'"),
    (["prove"], "say what to prove"),
    (["prove", "nothing.*"], "no obligation is called or matched by `nothing.*`"),
    (["prove", "bounds.null", "--solver", "cvc9"], "unknown solver `cvc9`"),
    (["prove", "bounds.null", "--state", "good.cap"], "can't keep answers in"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_USES, ids=[" ".join(arguments) for arguments, _ in WRONG_USES])
def test_wrong_use_gets_one_clear_message_and_status_64(capvisor, tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.cap").write_text(GOOD)
    Path("wrong.cap").write_text("machine cc128 { }\nnope x1\n")
    Path("large.cap").write_text("machine cc128 { memory 0 size 1048576G }\n")
    Path("impossible.cap").write_text("machine cc128 { }\nlet x = any u8 where x > 255\n")
    Path("digits.cap").write_text("machine cc128 { }\nli x5, " + "9" * 5000 + "\n")
    Path("chain.cap").write_text("machine cc128 { }\nli x5, " + " + ".join("1" * 2000) + "\n")
    Path("binary.cap").write_bytes(b"\xff\xfe\x00")
    Path("cc64.crrl.npz").write_bytes(b"PK\x03\x04")
    Path("empty").mkdir()
    if arguments == ["run", "."]:
        for path in Path().glob("*.cap"):
            path.unlink()
    status, out, err = capvisor(*arguments)
    assert status == Status.USAGE
    assert message in err and err.startswith("capvisor: ")
    assert not out
    assert not list(Path().glob("*.part"))


@pytest.mark.parametrize("arguments", [["run", "impossible.cap"], ["fuzz", "impossible.cap", "--lanes", "50"]])
def test_values_that_are_not_found_are_inconclusive(capvisor, tmp_path, monkeypatch, arguments) -> None:
    monkeypatch.chdir(tmp_path)
    Path("impossible.cap").write_text("machine cc128 { }\nlet x = any u64 where x & 0xffffffff == 0x12345678\n")
    status, _out, err = capvisor(*arguments)
    assert status == Status.INCONCLUSIVE and "found that" in err


@pytest.mark.parametrize(
    "text",
    [
        "machine cc128 { c1 = root }\nclc c2, 0(c1)  !trap LoadAccessFault\nclb x3, 5(c1)  !trap LoadAccessFault\n",
        "machine cc128 { memory 0xfffffffffffff000 size 4K; c1 = root }\nlet x = any u64\nli x5, x\nclb x3, -1(c1)\n",
        "machine cc64 { memory 0xfffff000 size 4K; c1 = root }\nlet x = any u64\nli x5, x\nassert x5 == x & 0xffffffff\n",
        "\ufeffmachine cc128 { }\r\nli x5, 1\r\nassert x5 == 1\r\n",
        "machine cc128 { }\nli x5, 1\ncsc c5, 0(c0)  !trap TagViolation\n",
    ],
    ids=["no memory", "memory to the end", "32 bits", "byte order mark and carriage returns", "no value"],
)
def test_unusual_programs_run_on_both_implementations(capvisor, tmp_path, text: str) -> None:
    path = tmp_path / "unusual.cap"
    path.write_text(text, newline="")
    assert capvisor("run", path)[0] == Status.OK
    assert capvisor("fuzz", path, "--lanes", 300)[0] == Status.OK


def test_output_goes_through_links_and_pipes_and_keeps_modes(capvisor, tmp_path) -> None:
    path, link = tmp_path / "a.cap", tmp_path / "link.cap"
    path.write_text("machine cc128 {}\ncmove c2,c1\n")
    path.chmod(0o640)
    link.symlink_to(path)
    assert capvisor("fmt", link)[0] == Status.OK
    assert link.is_symlink() and path.read_text().endswith("cmove      c2, c1\n")
    assert path.stat().st_mode & 0o777 == 0o640
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = run_process("run", path, "--json", fifo)
    assert json.loads(fifo.read_text())["kind"] == "run"
    assert process.wait(timeout=60) == Status.OK and fifo.is_fifo()
    process.communicate()


READER_GOES = """
import os, sys
from capvisor.cli import main, run
table = run.table
run.table = lambda *arguments, **options: [os.close(int(sys.argv[1])), table(*arguments, **options)][1]
main.main(sys.argv[2:])
"""


@pytest.mark.parametrize(("value", "expected"), [("0", Status.OK), ("0xffffffffffffffff", Status.VIOLATION)])
def test_a_reader_that_goes_away_when_the_work_is_done_changes_no_status(tmp_path, value: str, expected: Status) -> None:
    path = tmp_path / "bad.cap"
    path.write_text(BAD)
    arguments = ["run", str(path), "--set", f"x={value}", "--json", str(tmp_path / "out.json")]
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", READER_GOES, str(reader), *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=(reader,),
    )
    os.close(reader)
    os.close(writer)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == expected and not err
    assert json.loads((tmp_path / "out.json").read_text())["kind"] == "run"


def test_output_that_cannot_be_written_is_said_so(capvisor, tmp_path, monkeypatch) -> None:
    path = tmp_path / "good.cap"
    path.write_text(GOOD)

    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    status, out, err = capvisor("run", path, "--json", tmp_path / "out.json")
    assert status == Status.USAGE and "out.json: No space left on device" in err and "passed" in out
    options = ["--format", "cc64", "--operation", "crrl", "-n", 5]
    status, _out, err = capvisor("vectors", *options, "-o", tmp_path / "cc64.crrl.npz")
    assert status == Status.USAGE and "No space left on device" in err
    assert {found.name for found in tmp_path.iterdir()} == {"good.cap"}


def test_a_defect_of_ours_is_status_70_without_a_traceback(capvisor, monkeypatch) -> None:
    from capvisor.cli import explain

    monkeypatch.setattr(explain, "console", lambda: 1 / 0)
    status, _out, err = capvisor("explain", "cmove")
    assert status == Status.INTERNAL and "internal error: ZeroDivisionError" in err and "CAPVISOR_TRACEBACK=1" in err


def test_help_documents_every_exit_status(capvisor) -> None:
    status, out, _err = capvisor("--help")
    assert status == Status.OK
    for number in MEANINGS:
        assert f"{number.value} " in out
    assert capvisor("--version")[0] == Status.OK
    assert capvisor()[0] == Status.USAGE


def run_process(*arguments: object, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "capvisor", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_ctrl_c_ends_a_campaign_with_what_was_done(tmp_path) -> None:
    path = tmp_path / "good.cap"
    path.write_text(GOOD)
    process = run_process("fuzz", path, "--lanes", 2_000_000_000, "--json", tmp_path / "out.json")
    until_busy(process, 5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == Status.INCONCLUSIVE, err
    assert "interrupted" in out and "Traceback" not in err
    campaign = json.loads((tmp_path / "out.json").read_text())["campaigns"][0]
    assert campaign["interrupted"] and campaign["lanes"] > 0


SLOW_IMPORT = """
import pathlib, time
pathlib.Path(__file__).with_name("reached").touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    raise ImportError("none") from None
"""


@pytest.mark.parametrize(
    "command",
    [(sys.executable, "-m", "capvisor"), (Path(sysconfig.get_path("scripts")) / "capvisor",)],
    ids=["-m", "script"],
)
def test_ctrl_c_during_the_imports_is_said_in_one_line(tmp_path, command: tuple[object, ...]) -> None:
    (tmp_path / "click.py").write_text(SLOW_IMPORT)
    process = subprocess.Popen(
        [*map(str, command), "list", "operations"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until_exists(process, tmp_path / "reached")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (Status.INCONCLUSIVE, "", "capvisor: interrupted; nothing was finished\n")


def test_the_entry_ends_with_the_documented_status() -> None:
    assert INTERRUPTED == Status.INCONCLUSIVE


@pytest.mark.parametrize(
    "arguments",
    [
        ("corpus", "run", "programs/regress"),
        ("--help",),
        ("prove", "--help"),
        ("run", "programs/tutorial_cvm", "--trace"),
        ("fuzz", "programs/tutorial", "--lanes", "200000"),
        ("conform", "tests/vectors"),
    ],
)
def test_a_reader_that_has_gone_away_ends_the_command_without_a_word(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [sys.executable, "-m", "capvisor", *arguments], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == Status.INCONCLUSIVE and not err


ENDLESS = {
    "campaign": ("fuzz", "--programs", 2_000_000_000, "--no-history", "--workers", 1),
    "lanes": ("fuzz", "GOOD", "--lanes", 2_000_000_000),
    "steps": ("prove", "cvm", "--no-cache", "--workers", 1),
    "theorems": ("prove", "--all", "--no-cache", "--workers", 1),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_a_reader_that_goes_away_ends_work_that_writes_nothing(tmp_path, what: str) -> None:
    path = tmp_path / "good.cap"
    path.write_text(GOOD)
    with run_process(*(path if each == "GOOD" else each for each in ENDLESS[what])) as process:
        until_busy(process, 0.7)  # of the command itself, not of those who work for it
        process.stdout.close()
        assert process.wait(timeout=60) == Status.INCONCLUSIVE
        assert not process.stderr.read()


def test_a_server_goes_on_without_a_reader() -> None:
    with run_process("serve", "--rvfi-dii", 0) as process:
        assert process.stdout.readline().startswith("listening on ")
        process.stdout.close()
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == Status.OK


def test_a_reader_of_standard_error_is_not_needed() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [sys.executable, "-m", "capvisor", "run", "none.cap"], stdout=subprocess.PIPE, stderr=writer, text=True
    )
    os.close(writer)
    out, _err = process.communicate(timeout=60)
    assert process.returncode == Status.USAGE and not out


@pytest.mark.parametrize(("verb", "unneeded"), [("run", ("z3",)), ("fmt", ("z3", "numba", "capvisor.campaign.stack"))])
def test_a_verb_imports_what_it_needs(verb: str, unneeded: tuple[str, ...]) -> None:
    text = f"import sys; from capvisor.cli.verbs import capvisor; capvisor.get_command(None, '{verb}'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert f"capvisor.cli.{verb}" in done.stdout.split() and not {*unneeded} & {*done.stdout.split()}
