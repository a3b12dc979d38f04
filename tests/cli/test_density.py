"""`capvisor density` as a user sees it."""

import json
import os
import sys
from pathlib import Path

import jsonschema
import pytest

from capvisor.cli import density
from capvisor.cli import main as command
from capvisor.cli.status import Status
from tests.study.elf_writer import PAGE, Elf, Part, R, Symbol, W, X
from tests.tutorial import ROOT

SCHEMA = json.loads((ROOT / "cli" / "schemas" / "density.schema.json").read_text())


@pytest.fixture
def capvisor(capsys):
    def run(*arguments):
        status = command.status_of(["density", *(str(argument) for argument in arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return status, captured.out, captured.err

    return run


@pytest.fixture
def library(tmp_path) -> Path:
    """Five pages: code, tables, one relocated, one written, one of zeros."""
    parts = [Part(0x0, b"\x90" * PAGE, R | X), Part(0x2000, b"data" * 2048, R | W, memory=3 * PAGE)]
    elf = Elf(parts, relocations=[(0x2008, 8, "", 0)], relro=(0x2000, 0x3000), soname="lib.so")
    return elf.write(tmp_path / "lib.so")


def rows(out: str) -> dict[str, list[str]]:
    """The lines of both tables, by their first word."""
    return {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}


def test_tables_json_and_pictures_say_the_same(capvisor, library, tmp_path) -> None:
    paths = [tmp_path / name for name in ("r.json", "p.png", "p.svg")]
    status, out, err = capvisor(
        library, "--tenants", "1,256,512", "--json", paths[0], "--plot", paths[1], "--plot", paths[2]
    )
    assert (status, err) == (Status.OK, "")
    # In units of 256 pages, a MiB: 5 n; 4 + n; 2 + 3 n.
    assert rows(out)["256"] == ["5.00", "1.02", "3.01", "3.01", "2.962", "1.000"]
    assert rows(out)["lib.so"] == ["512", "1", "1", "1", "1", "1", "10.00", "2.02", "6.01", "6.01"]
    assert "all pages are touched" in out and density.A_MODEL in out
    document = json.loads(paths[0].read_text())
    jsonschema.validate(document, SCHEMA)
    sizes = {"none": 1280 * PAGE, "pages": 260 * PAGE, "files": 770 * PAGE, "objects": 770 * PAGE}
    assert document["growth"][1]["resident_bytes"] == document["growth"][1]["by_object"][0] == sizes
    assert document["problems"] == [] and document["growth"][1]["page_table_bytes"] is None
    assert document["objects"][0]["segments"][1] == {"address": 0x2000, "file_bytes": 2 * PAGE, "memory_bytes": 3 * PAGE}
    assert paths[1].read_bytes().startswith(b"\x89PNG") and b"<svg" in paths[2].read_bytes()


def test_options_change_what_is_assumed_and_it_is_said(capvisor, library) -> None:
    for words, row, said in (
        (("--layout", "same"), ["5.00", "0.02", "3.01", "3.01"], "the same load addresses"),
        (("--written", "1"), ["5.00", "3.01", "3.01", "3.01"], "100 % of the writable pages have been changed"),
        (("--touched", "0.5"), ["2.50", "0.52", "1.51", "3.01"], "each tenant touches 50 % of its pages"),
        (
            ("--touched", "0.5", "--orc-pages", "touched"),
            ["2.50", "0.52", "1.51", "1.51"],
            "ORC's objects are there as touched",
        ),
    ):
        status, out, _err = capvisor(library, "--tenants", "256", *words)
        assert status == Status.OK and rows(out)["256"][:4] == row and said in out, words
    plain, tables = (capvisor(library, "--tenants", "256", *words)[1] for words in ((), ("--page-tables",)))
    added = float(rows(tables)["256"][0]) - float(rows(plain)["256"][0])
    assert added == pytest.approx(float(rows(tables)["page"][2]), abs=0.011) and added >= 4
    one, other = (capvisor(library, "--tenants", "256", "--seed", seed)[1] for seed in (1, 2))
    assert one.replace("seed 1", "seed 2") == other


def test_running_processes_trees_and_manifests_are_tenants(capvisor, library, tmp_path) -> None:
    (tmp_path / "m.toml").write_text('[tenant.from_manifest]\nlibraries = "lib.so"\ncount = 2\n')
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "copy.so").write_bytes(library.read_bytes())
    status, out, err = capvisor(
        tmp_path / "m.toml", f"{tree}:4", "--from-pid", os.getpid(), "--tenants", "7", "--json", tmp_path / "out.json"
    )
    assert (status, err) == (Status.OK, "") and "from_manifest:2, tree:4, " in out
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["growth"][0]["by_kind"] == [2, 4, 1]
    # The content of two files is one object of ORC.
    copies = document["growth"][0]["by_object"][:2]
    assert [each["files"] // PAGE for each in copies] == [8, 14] and [each["objects"] // PAGE for each in copies] == [8, 12]


BAD = {
    "not an ELF file": lambda path: path.write_text("#!/bin/sh\n"),
    "truncated: ": lambda path: path.write_bytes(Elf([Part(0, bytes(9000), R)]).bytes()[:5000]),
    "for another machine (AArch64, 64-bit)": lambda path: path.write_bytes(Elf([Part(0, b"", R)], machine=183).bytes()),
    "needs gone.so, which isn't found": lambda path: Elf([Part(0, b"x", R)], needed=["gone.so"]).write(path),
    "no such file or directory": lambda path: None,
    "a cycle of manifests": lambda path: path.write_text('include = "bad.toml"\n'),
    "a cycle of tenants: a -> a": lambda path: path.write_text('[tenant.a]\nextends = "a"\n'),
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_wrong_is_said_once_and_the_rest_is_computed(capvisor, library, tmp_path, message: str) -> None:
    bad = tmp_path / ("bad.toml" if "cycle" in message else "bad.so")
    BAD[message](bad)
    status, out, err = capvisor(bad, library, "--tenants", "256", "--json", tmp_path / "out.json")
    assert status == Status.USAGE
    (line,) = err.splitlines()
    assert line.startswith(f"capvisor: {bad}: ") and message in line
    document = json.loads((tmp_path / "out.json").read_text())
    jsonschema.validate(document, SCHEMA)
    assert document["problems"] == [line.removeprefix("capvisor: ")]
    assert rows(out)["lib.so"][1:6] == ["1", "1", "1", "1", "1"] and "1 problem, named on standard error" in out
    alone = capvisor(bad)
    assert alone[0] == Status.USAGE and message in alone[2]


def test_a_library_that_is_cut_off_leaves_the_rest_of_its_tenant(capvisor, library, tmp_path) -> None:
    library.write_bytes(library.read_bytes()[:6000])
    program = Elf([Part(0, b"x" * PAGE, R | X)], needed=["lib.so"], interpreter="/no/ld.so").write(tmp_path / "program")
    status, out, err = capvisor(program, "--library-path", tmp_path, "--tenants", "2")
    assert status == Status.USAGE and f"capvisor: {library}: truncated: " in err
    assert "its dynamic linker: /no/ld.so: No such file" in err and "2 problems" in out
    assert rows(out)["program"][:3] == ["2", "1", "1"]


def test_symbols_that_no_object_has_are_named(capvisor, tmp_path) -> None:
    elf = Elf([Part(0x1000, bytes(64), R | W)], [Symbol("nobody_has_it")], [(0x1000, 6, "nobody_has_it", 0)])
    status, out, _err = capvisor(elf.write(tmp_path / "x.so"), "--tenants", "1")
    assert status == Status.OK and "x.so: symbols that no loaded object has count as 0, 1 of them: nobody_has_it" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give tenants: programs, directory trees, manifests or --from-pid"),
        (("x.so", "--tenants", "0"), "'0': expected numbers from 1 to 100000 such as 1,10,100"),
        (("x.so", "--tenants", "1,,2"), "expected numbers from 1 to 100000"),
        (("x.so", "--touched", "0"), "0.0 is not in the range 0<x<=1"),
        (("x.so", "--written", "1.5"), "1.5 is not in the range 0<=x<=1"),
        (("x.so", "--plot", "p.pdf"), "p.pdf: plots are .png or .svg"),
        (("x.so", "--json", "/no/such/folder.json"), "can't write /no/such/folder.json"),
        (("--from-pid", "4194305"), "process 4194305: No such file or directory"),
    ],
)
def test_wrong_options_are_said(capvisor, tmp_path, monkeypatch, arguments, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    status, _out, err = capvisor(*arguments)
    assert status == Status.USAGE and message in err


def test_an_input_is_never_overwritten(capvisor, library) -> None:
    before = library.read_bytes()
    status, _out, err = capvisor(library, "--json", library)
    assert status == Status.USAGE and "it is an input" in err and library.read_bytes() == before


def test_a_real_program_is_found_with_its_libraries(capvisor) -> None:
    status, out, err = capvisor(sys.executable, "--tenants", "1,1000")
    assert (status, err) == (Status.OK, "") and "ld-linux-x86-64.so.2" in out
    numbers = [float(each) for each in rows(out)["1000"][:4]]
    assert numbers[0] > numbers[2] >= numbers[1] and numbers[3] >= numbers[1]
