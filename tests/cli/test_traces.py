"""`capvisor conform` and `capvisor vectors` with instruction traces, as a user sees them."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from capvisor.cli.status import Status
from tests.quality.test_seeded_bugs import mutated
from tests.tutorial import ROOT

GOLDEN = ROOT / "tests" / "vectors" / "rv64-xcheri-traces.jsonl.gz"


def golden_lines(count: int) -> list[str]:
    return gzip.decompress(GOLDEN.read_bytes()).decode().splitlines()[:count]


def test_conform_replays_traces(capvisor, tmp_path) -> None:
    status, out, _err = capvisor("conform", GOLDEN, "--json", tmp_path / "out.json")
    assert status == Status.OK and "80 programs of 6790 steps replayed, 0 differ" in out
    assert "rows answered" not in out and "never compared" not in out
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [(each["implementation"], each["operation"], each["rows"]) for each in results] == [
        ("reference", "trace", 3395),
        ("fast", "trace", 3395),
    ]
    assert all(each["values_compared"] == sum(each["compared"].values()) for each in results)


def test_what_was_never_compared_is_said(capvisor, tmp_path) -> None:
    path = tmp_path / "rv64-short.jsonl"
    path.write_text(json.dumps(json.loads(golden_lines(1)[0])[:5]) + "\n")
    status, out, _err = capvisor("conform", path)
    assert status == Status.OK and "never compared, because no trace has any: fetch refused, mcause, mtval, data read" in out


@pytest.mark.parametrize("implementation", ["reference", "fast"])
def test_a_mismatch_shows_the_program_both_states_and_the_shortest_prefix(capvisor, tmp_path, implementation: str) -> None:
    path, lines = tmp_path / "rv64-wrong.jsonl", golden_lines(3)
    program = json.loads(lines[1])
    step = next(number for number, each in enumerate(program) if each["asm"].startswith("csetboundsimm"))
    (register,) = program[step]["reg"]
    program[step]["reg"][register]["tag"] = 0
    path.write_text("\n".join([lines[0], json.dumps(program), lines[2]]) + "\n")
    status, out, _err = capvisor("conform", path, "--impl", implementation, "--json", tmp_path / "out.json")
    assert status == Status.VIOLATION
    assert f"{path}: program 2, step {step + 1}, {implementation}:" in out
    assert "   1  0x800044b7  lui        x9, 524292\n" in out and out.count("<- differs") == 1
    number = register[1:]
    assert f"c{number} before is 0x" in out
    assert f"{register} tag                expected 0x0, replayed 0x1" in out
    assert f"c{number} expected is 0x" in out and "(invalid)" in out and f"c{number} replayed is 0x" in out
    assert f"The shortest prefix of the program that still fails has {step + 1} steps." in out
    assert "differ from each other" not in out
    assert "3 programs of" in out and ", 1 differ" in out
    (result,) = json.loads((tmp_path / "out.json").read_text())["results"]
    first = result["first"]
    assert (first["program"], first["step"], len(first["prefix"])) == (2, step + 1, step + 1)
    assert first["expected"] == {f"{register} tag": "0x0"} and first["actual"] == {f"{register} tag": "0x1"}
    assert first["shortest"] is None and result["failed"] == 1


def test_a_seeded_bug_is_shown_with_the_fewest_steps_that_show_it(capvisor, tmp_path) -> None:
    with mutated("model.isa.arithmetic", "hart.capability(cs1).with_tag(False)", "hart.capability(cs1)"):
        status, out, _err = capvisor("conform", GOLDEN, "--json", tmp_path / "out.json")
    assert status == Status.VIOLATION
    assert f"{GOLDEN}: program 9, step 41, reference:" in out and ", fast:" not in out
    assert (
        "The implementations differ from each other already after 1 of them:\n        0xfeb102db  ccleartag  c5, c2" in out
    )
    first = json.loads((tmp_path / "out.json").read_text())["results"][0]["first"]
    assert first["shortest"] == ["0xfeb102db  ccleartag  c5, c2"]


def test_a_word_that_encodes_nothing_and_a_refused_fetch_are_shown_as_such(capvisor, tmp_path) -> None:
    path = tmp_path / "rv64-nothing.jsonl"
    program = next(program for program in map(json.loads, golden_lines(40)) if any(each["asm"] is None for each in program))
    refused = next(number for number, each in enumerate(program) if each["asm"] is None)
    program = program[: refused + 1] + [{**program[0], "insn": "0x00000000", "asm": "illegal 0x00000000"}]
    path.write_text(json.dumps(program) + "\n")
    status, out, _err = capvisor("conform", path, "--impl", "reference")
    assert status == Status.VIOLATION
    assert f"{refused + 1:>6}  (not fetched)\n" in out
    assert "0x00000000  encodes no instruction that is modelled   <- differs" in out
    assert "refused               expected no, replayed yes" in out


@pytest.mark.parametrize(
    ("fmt", "name"), [("cc128", "rv64-mine.jsonl.gz"), ("cc64", "rv32-mine.jsonl"), ("cc64", "mine.jsonl.gz")]
)
def test_vectors_writes_traces_that_conform_accepts(capvisor, tmp_path, fmt: str, name: str) -> None:
    contents = []
    for seed in (3, 3, 4):
        status, out, _err = capvisor("vectors", "--traces", "--format", fmt, "-n", 8, "--seed", seed, "-o", tmp_path / name)
        assert status == Status.OK and f"steps of 8 programs for {fmt}, seed {seed}" in out
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1] != contents[2]
    again = ["--format", fmt] if name.startswith("mine") else []
    status, out, _err = capvisor("conform", tmp_path / name, *again)
    assert status == Status.OK and "16 programs of" in out


def test_conform_finds_vectors_and_traces_in_a_folder_and_skips_what_it_must(capvisor, tmp_path) -> None:
    shutil.copy(ROOT / "tests" / "vectors" / "cc64.crrl.npz", tmp_path)
    shutil.copy(GOLDEN, tmp_path / "deep-rv64.jsonl.gz")
    (tmp_path / "rv64-short.jsonl").write_text(golden_lines(1)[0] + "\n")
    status, out, _err = capvisor("conform", tmp_path)
    assert status == Status.OK and "4000 rows answered, 0 wrong\n2 programs of" in out
    assert "deep-rv64.jsonl.gz: instruction traces of a machine that the name doesn't say: rv64 or rv32" in out
    status, out, _err = capvisor("conform", tmp_path, "--operation", "crrl")
    assert status == Status.OK and "rv64-short.jsonl: instruction traces, which are of no operation" in out


WRONG_USES = [
    (["conform", "rv64-cut.jsonl.gz"], "rv64-cut.jsonl.gz: a truncated gzip file: it ends in the middle"),
    (["conform", "rv64-unknown.jsonl"], "rv64-unknown.jsonl:1: step 1: a step has the wrong keys: unknown `colour`"),
    (["conform", "rv64-empty.jsonl"], "no programs: the file is empty"),
    (["conform", "mine.jsonl"], "of which machine are these traces?"),
    (["conform", "rv64-missing.jsonl.gz"], "rv64-missing.jsonl.gz: no such file"),
    (["conform", "rv64-whole.jsonl", "--operation", "crrl"], "--operation crrl is for golden vectors"),
    (["conform", "rv64-whole.jsonl", "--format", "cc64"], "otype: 0xFFFFFFFFFFFFFFFF is too large for this machine"),
    (["conform", "empty"], "nor traces: rv64 or rv32... with .jsonl.gz or .jsonl at the end"),
    (["vectors", "--traces", "--operation", "crrl", "--format", "cc64", "-o", "out.jsonl"], "exclude each other"),
    (["vectors", "--format", "cc64", "-o", "out.jsonl"], "what is to be made? Say --operation"),
    (["vectors", "--traces", "--format", "cc64", "-o", "out.npz"], "a name that ends in .jsonl.gz or .jsonl"),
    (["vectors", "--operation", "crrl", "--format", "cc64", "-o", "out.jsonl"], "a name that ends in .npz or .csv"),
    (["vectors", "--traces", "--format", "cc64", "-o", "missing/out.jsonl"], "there is no folder missing"),
    (["vectors", "--traces", "-o", "out.jsonl"], "Missing option '--format'"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_USES, ids=[" ".join(arguments) for arguments, _ in WRONG_USES])
def test_wrong_use_gets_one_clear_message_and_status_64(capvisor, tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = golden_lines(1)
    Path("rv64-cut.jsonl.gz").write_bytes(GOLDEN.read_bytes()[:1000])
    Path("rv64-unknown.jsonl").write_text(json.dumps([{**json.loads(line)[0], "colour": 1}]))
    Path("rv64-empty.jsonl").write_text("")
    Path("rv64-whole.jsonl").write_text(line + "\n")
    Path("mine.jsonl").write_text(line + "\n")
    Path("empty").mkdir()
    status, out, err = capvisor(*arguments)
    assert status == Status.USAGE
    assert message in err and err.startswith("capvisor: ") and not out
    assert not list(Path().glob("out*"))
