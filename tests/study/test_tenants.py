"""Who tenants are and what they load: manifests, trees, processes, and how libraries are found."""

import os
import struct
import sys
from pathlib import Path

import pytest

from capvisor.study.libraries import Libraries, ObjectStore, Problem, read_cache
from capvisor.study.tenants import Description, describe, process, resolve
from tests.study.elf_writer import Elf, Part, R, X


def elf(*needed: str, code: bytes = b"\x90", **more) -> Elf:
    return Elf([Part(0, code * 64, R | X)], needed=needed, **more)


def loaded(descriptions: list[Description], libraries: Libraries | None = None) -> tuple[dict[str, list[str]], list[str]]:
    """The paths that each tenant loads, and the problems."""
    problem, store = Problem(), ObjectStore()
    kinds = resolve(descriptions, store, libraries or Libraries(defaults=()), problem)
    return {each.name: [str(store.objects[index].path) for index in each.objects] for each in kinds}, list(problem.messages)


def program(folder: Path, *needed: str, **more) -> list[Description]:
    return [Description("p", (elf(*needed, **more).write(folder / "bin" / "p"),))]


def test_libraries_are_loaded_breadth_first_each_once_and_the_dynamic_linker_last(tmp_path) -> None:
    for name, needed in (("a.so", ("c.so", "ld.so")), ("b.so", ("c.so", "a.so")), ("c.so", ()), ("ld.so", ())):
        elf(*needed, soname=name, code=name[:1].encode()).write(tmp_path / "lib" / name)
    libraries = Libraries((tmp_path / "lib",), defaults=())
    found, problems = loaded(program(tmp_path, "a.so", "b.so", interpreter=str(tmp_path / "lib" / "ld.so")), libraries)
    assert [Path(each).name for each in found["p"]] == ["p", "a.so", "b.so", "c.so", "ld.so"] and not problems


def test_where_libraries_are_looked_for_and_in_which_order(tmp_path) -> None:
    for folder in ("rpath", "given", "runpath", "cached", "default"):
        elf(soname="x.so", code=folder[:1].encode()).write(tmp_path / folder / "x.so")
    libraries = Libraries((tmp_path / "given",), {"x.so": tmp_path / "cached" / "x.so"}, (tmp_path / "default",))

    def place(**more) -> str:
        found, problems = loaded(program(tmp_path, "x.so", **more), libraries)
        assert not problems
        return Path(found["p"][1]).parent.name

    both = {"rpath": "$ORIGIN/../rpath", "runpath": "${ORIGIN}/../runpath"}
    assert place(rpath=both["rpath"]) == "rpath"
    assert place(**both) == "given"  # with a run path, the other one doesn't count
    (tmp_path / "given" / "x.so").unlink()
    assert place(**both) == "runpath"
    assert place() == "cached"
    (tmp_path / "cached" / "x.so").unlink()
    assert place() == "default"
    # A library of another machine is passed over.
    elf(machine=183).write(tmp_path / "given" / "x.so")
    assert place() == "default"
    assert loaded(program(tmp_path, str(tmp_path / "rpath" / "x.so")), libraries)[0]["p"][1].endswith("rpath/x.so")


def test_the_search_path_of_a_program_holds_for_its_libraries_but_a_run_path_doesn_t(tmp_path) -> None:
    elf("y.so").write(tmp_path / "lib" / "x.so")
    elf().write(tmp_path / "lib" / "y.so")
    assert loaded(program(tmp_path, "x.so", rpath=str(tmp_path / "lib")))[1] == []
    found, problems = loaded(program(tmp_path, "x.so", runpath=str(tmp_path / "lib")))
    assert problems == [f"{tmp_path}/lib/x.so: needs y.so, which isn't found"]
    assert [Path(each).name for each in found["p"]] == ["p", "x.so"]


def test_the_cache_of_libraries_is_read(tmp_path) -> None:
    entries = [(0x303, "a.so", "/l/a.so", 0), (0x303, "a.so", "/l/v3/a.so", 1 << 62), (0x3, "b.so", "/l32/b.so", 0)]
    strings, rows = b"", []
    start = 48 + 24 * len(entries)
    for flags, key, value, processors in entries:
        places = []
        for text in (key, value):
            places.append(start + len(strings))
            strings += text.encode() + b"\0"
        rows.append(struct.pack("<iIIIQ", flags, *places, 0, processors))
    header = b"glibc-ld.so.cache1.1" + struct.pack("<II", len(entries), len(strings)) + bytes(20)
    content = header + b"".join(reversed(rows)) + strings
    (tmp_path / "cache").write_bytes(b"ld.so-1.7.0\0 of older systems" + content)
    assert read_cache(tmp_path / "cache") == {"a.so": Path("/l/a.so")}
    (tmp_path / "cache").write_bytes(content[:60])
    assert read_cache(tmp_path / "cache") == {} == read_cache(tmp_path / "none")


def test_a_tree_is_one_tenant_of_all_objects_in_it_that_find_each_other(tmp_path) -> None:
    elf("x.so.1", interpreter="/lib/ld.so").write(tmp_path / "t" / "bin" / "prog")
    elf(soname="x.so.1", code=b"x").write(tmp_path / "t" / "opt" / "x.so.1.2")
    elf(soname="ld.so", code=b"l").write(tmp_path / "t" / "lib" / "ld.so")
    (tmp_path / "t" / "read.me").write_text("no object")
    (tmp_path / "t" / "link.so").symlink_to(tmp_path / "t" / "opt" / "x.so.1.2")
    found, problems = loaded(describe([f"{tmp_path / 't'}:3"], Problem()))
    assert [Path(each).name for each in found["t"]] == ["prog", "x.so.1.2", "ld.so"] and not problems
    (tmp_path / "empty").mkdir()
    assert loaded([Description("e", trees=(tmp_path / "empty",))]) == ({}, [f"{tmp_path}/empty: there is no ELF file in it"])
    assert loaded([Description("n", trees=(tmp_path / "no",))]) == ({}, [f"{tmp_path}/no: no such directory"])


def manifest(tmp_path, text: str, name: str = "m.toml") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


def read(tmp_path, text: str) -> tuple[dict[str, Description], list[str]]:
    problem = Problem()
    return {each.name: each for each in describe([str(manifest(tmp_path, text))], problem)}, list(problem.messages)


def test_a_manifest_names_files_or_patterns_and_tenants_extend_each_other(tmp_path) -> None:
    for name in ("p", "one.so", "two.so"):
        elf(code=name[:1].encode()).write(tmp_path / name)
    manifest(tmp_path, '[tenant.base]\nprograms = "p"\ncount = 0\n', "base.toml")
    found, problems = read(
        tmp_path,
        'include = ["base.toml"]\n[tenant.a]\nextends = "base"\nlibraries = ["*.so"]\n'
        '[tenant.b]\nextends = ["a"]\ncount = 3\ntrees = "."\n',
    )
    assert not problems and list(found) == ["a", "b"]  # of the base there is none
    assert found["a"] == Description("a", (tmp_path / "p",), (tmp_path / "one.so", tmp_path / "two.so"))
    assert (found["b"].count, found["b"].libraries, found["b"].trees) == (3, found["a"].libraries, (tmp_path,))


GOOD = '[tenant.good]\nprograms = ["p"]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('include = "m.toml"\n' + GOOD, "m.toml: a cycle of manifests: {0}/m.toml -> {0}/m.toml"),
        ('include = "other.toml"\n' + GOOD, "other.toml: a cycle of manifests: {0}/m.toml -> {0}/other.toml -> {0}/m.toml"),
        (
            GOOD + '[tenant.a]\nextends = "b"\n[tenant.b]\nextends = "a"\n',
            "m.toml: tenant `a`: a cycle of tenants: a -> b -> a",
        ),
        (GOOD + '[tenant.a]\nextends = "no"\n', "m.toml: tenant `a`: extends `no`, which no manifest has"),
        ('include = "gone.toml"\n' + GOOD, "gone.toml: No such file or directory"),
        ('include = "p"\n' + GOOD, "p: not TOML: "),
        ("more = 1\n" + GOOD, "m.toml: unknown `more`"),
        (
            GOOD + "[tenant.a]\nprogram = 'p'\ncount = 0",
            "m.toml: tenant `a`: unknown `program`: there are extends, programs",
        ),
        (GOOD + "[tenant.a]\nprograms = 'p'\ncount = -1", "m.toml: tenant `a`: `count` should be a number from 0 to"),
        (GOOD + "[tenant.a]\nprograms = 'p'\ncount = true", "and is True"),
        (GOOD + "[tenant.a]\nprograms = 3", "`programs` should be a list of texts, and is 3"),
        (GOOD + "[tenant.a]\nlibraries = '*.none'", "`libraries`: nothing is called "),
        (GOOD + "[tenant.a]\n", "m.toml: tenant `a`: it has no programs, libraries or trees"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_said_and_the_rest_is_read(tmp_path, text: str, message: str) -> None:
    elf().write(tmp_path / "p")
    manifest(tmp_path, 'include = "m.toml"\n', "other.toml")
    found, problems = read(tmp_path, text)
    assert found["good"].programs == (tmp_path / "p",)
    assert len(problems) == 1 and message.format(tmp_path) in problems[0]


def test_a_tenant_that_two_manifests_have_is_said(tmp_path) -> None:
    elf().write(tmp_path / "p")
    manifest(tmp_path, GOOD, "other.toml")
    found, problems = read(tmp_path, 'include = ["other.toml", "other.toml"]\n' + GOOD)
    assert list(found) == ["good"] and problems == [f"{tmp_path}/m.toml: tenant `good` is also in {tmp_path}/other.toml"]


def test_objects_at_fixed_addresses_that_overlap_are_no_tenant(tmp_path) -> None:
    paths = tuple(elf(kind=2, code=name.encode()).write(tmp_path / name) for name in "ab")
    found, problems = loaded([Description("t", paths), Description("u", paths[:1])])
    assert list(found) == ["u"] and "have fixed addresses that overlap" in problems[0]


def test_a_running_process_is_the_files_that_it_has_mapped() -> None:
    problem = Problem()
    (description,) = process(os.getpid(), problem)
    found, problems = loaded([description])
    (paths,) = found.values()
    assert not problem.messages and not problems
    assert os.path.realpath(paths[0]) == os.path.realpath(sys.executable)
    assert any("libc.so" in each for each in paths) and "ld-linux" in paths[-1]


def test_what_is_wrong_with_a_process_is_said(tmp_path) -> None:
    path = elf().write(tmp_path / "p")
    folder = tmp_path / "7"
    folder.mkdir()
    (folder / "comm").write_text("name\n")
    (folder / "exe").symlink_to(path)
    inode = path.stat().st_ino

    def of(*lines: str) -> tuple[list[Description], list[str]]:
        (folder / "maps").write_text(
            "".join(f"{place:x}000-9000 r-xp 00000000 08:01 {line}\n" for place, line in enumerate(lines, 1))
        )
        problem = Problem()
        return process(7, problem, tmp_path), list(problem.messages)

    assert of(f"{inode} {path}", f"{inode} {folder / 'comm'}", "0 [heap]", "0 ") == (
        [Description("name", (path,), is_mapped=True)],
        [],
    )
    assert "deleted or replaced" in of(f"5 {path} (deleted)")[1][0]
    assert "has been replaced" in of(f"{inode + 1} {path}")[1][0]
    assert "isn't found from here" in of("5 /no/such.so")[1][0]
    assert of() == ([], ["process 7: no ELF file is mapped"])
    problem = Problem()
    assert process(8, problem, tmp_path) == [] and "process 8: No such file" in next(iter(problem.messages))


def test_counts_stand_behind_a_colon_unless_it_is_part_of_a_name(tmp_path) -> None:
    elf().write(tmp_path / "p")
    elf().write(tmp_path / "p:9")
    problem = Problem()
    counts = [each.count for each in describe([str(tmp_path / "p"), f"{tmp_path / 'p'}:4", f"{tmp_path / 'p'}:9"], problem)]
    assert counts == [1, 4, 1] and not problem.messages
    assert describe([str(tmp_path / "q")], problem) == []
    assert list(problem.messages) == [f"{tmp_path}/q: no such file or directory"]
