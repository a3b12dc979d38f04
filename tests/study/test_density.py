"""Resident memory of tenants: hand-computed cases, and that nothing but speed sets it apart from hashing every page."""

import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capvisor.study.binding import bind
from capvisor.study.density import Assumptions, System, TenantKind, measure, sequence
from capvisor.study.elf import read_elf
from capvisor.study.libraries import Libraries, ObjectStore, Problem, read_cache
from capvisor.study.object_pages import pages_of
from capvisor.study.placement import count_tables, draws, load_addresses
from capvisor.study.rendering import render
from capvisor.study.tenants import Description, resolve
from tests.study import brute
from tests.study.elf_writer import OBJECT, PAGE, TLS_SYMBOL, WEAK, Elf, Part, R, Symbol, W, X
from tests.tutorial import ROOT

RELATIVE, R64, PC32, COPY, GLOB_DAT, JUMP_SLOT, R32, TPOFF64, DTPMOD64, DTPOFF64, SIZE64 = (
    8,
    1,
    2,
    5,
    6,
    7,
    10,
    18,
    16,
    17,
    33,
)
NUMBERS = (1, 2, 3, 7, 40)
SYSTEMS = list(System)


def pages(found, row: int) -> dict[str, float]:
    return {system.name: float(found.total(system)[row]) / PAGE for system in System}


def library(code: bytes = b"code") -> Elf:
    """Six pages: code, one relocated, one written, one of zeros, and one of tables; a hole before the last."""
    return Elf(
        [
            Part(0x0, code.ljust(PAGE, b"\x90"), R | X),
            Part(0x2000, bytes(range(256)) * 16 + b"data" * 1024, R | W, memory=3 * PAGE),
        ],
        relocations=[(0x2008, RELATIVE, "", 0x10), (0x2010, RELATIVE, "", 0x18)],
        relro=(0x2000, 0x3000),
        soname="lib.so",
    )


def measured(paths, numbers=NUMBERS, **assumed):
    objects = [read_elf(path) for path in paths]
    return measure([TenantKind("t", tuple(range(len(paths))), 1)], objects, numbers, Assumptions(**assumed))


def test_one_library_by_hand(tmp_path) -> None:
    found = measured([library().write(tmp_path / "lib.so")])
    for row, n in enumerate(NUMBERS):
        # Five pages each. Different ones: code, data, zeros and tables, and a relocated one for each address.
        # Files and objects: code and tables once; what is relocated, written or zero for each.
        assert pages(found, row) == {"NONE": 5 * n, "PAGES": 4 + n, "FILES": 2 + 3 * n, "OBJECTS": 2 + 3 * n}
    assert found.objects[0].page_counts == {"code": 1, "read_only": 1, "relocated": 1, "data": 1, "zero": 1}


def test_the_same_addresses_make_relocated_pages_equal(tmp_path) -> None:
    found = measured([library().write(tmp_path / "lib.so")], has_same_addresses=True)
    for row, n in enumerate(NUMBERS):
        assert pages(found, row) == {"NONE": 5 * n, "PAGES": 5, "FILES": 2 + 3 * n, "OBJECTS": 2 + 3 * n}


def test_pages_that_tenants_have_written_equal_no_other(tmp_path) -> None:
    path = library().write(tmp_path / "lib.so")
    for row, n in enumerate(NUMBERS):
        # Data and zeros are each tenant's own now.
        assert pages(measured([path], written=1.0), row)["PAGES"] == 2 + 3 * n
        half = 2 + n + 2 * (0.5 * n + 1 - 0.5**n)
        assert pages(measured([path], written=0.5), row)["PAGES"] == pytest.approx(half)


def test_a_part_of_the_pages_that_is_touched_by_hand(tmp_path) -> None:
    path = library().write(tmp_path / "lib.so")
    touched, demanded = measured([path], touched=0.25), measured([path], touched=0.25, is_orc_on_demand=True)
    for row, n in enumerate(NUMBERS):
        there = 1 - 0.75**n
        expected = {"NONE": 1.25 * n, "PAGES": 4 * there + 0.25 * n, "FILES": 2 * there + 0.75 * n, "OBJECTS": 2 + 3 * n}
        assert pages(touched, row) == pytest.approx(expected)
        assert pages(demanded, row) == pytest.approx({**expected, "OBJECTS": expected["FILES"]})


def test_equal_content_in_two_files_is_one_object_but_two_files(tmp_path) -> None:
    one, two = library().write(tmp_path / "a" / "lib.so"), library().write(tmp_path / "b" / "lib.so")
    kinds = [TenantKind("a", (0,), 1), TenantKind("b", (1,), 1)]
    found = measure(kinds, [read_elf(one), read_elf(two)], (1, 2, 10), Assumptions())
    assert pages(found, 1) == {"NONE": 10, "PAGES": 6, "FILES": 10, "OBJECTS": 8}
    assert pages(found, 2) == {"NONE": 50, "PAGES": 14, "FILES": 34, "OBJECTS": 32}
    assert [float(each) / PAGE for each in found.by_object[System.OBJECTS][2]] == [17, 15]


def test_a_page_of_a_file_that_is_mapped_twice_is_resident_once_in_a_shared_system(tmp_path) -> None:
    # The last page of one segment and the first of the next, with tables behind; objects of ORC have them in memory twice.
    path = Elf([Part(0x0, b"a" * 100, R), Part(0x1064, b"b" * 100, R | X)]).write(tmp_path / "dense.so")
    for row, n in enumerate(NUMBERS):
        assert pages(measured([path]), row) == {"NONE": 3 * n, "PAGES": 2, "FILES": 2, "OBJECTS": 3}


def test_a_relocated_page_that_equals_a_plain_one_counts_once(tmp_path) -> None:
    path = library().write(tmp_path / "lib.so")
    (moved,) = load_addresses([read_elf(path)], draws(3, 0))[:1]
    alike = bytearray(bytes(range(256)) * 16)
    alike[8:16], alike[16:24] = struct.pack("<Q", int(moved[0]) + 0x10), struct.pack("<Q", int(moved[0]) + 0x18)
    other = Elf([Part(0x0, bytes(alike), R)]).write(tmp_path / "other.so")
    objects = [read_elf(path), read_elf(other)]
    kinds = [TenantKind("one", (0,), 1), TenantKind("other", (1,), 1)]
    apart = measure(kinds, objects, (2,), Assumptions(seed=1))
    together = measure(kinds, objects, (2,), Assumptions(seed=0))
    assert pages(apart, 0)["PAGES"] - pages(together, 0)["PAGES"] == 1


def test_tenants_are_mixed_as_their_counts_say() -> None:
    assert sequence([2, 1], 6).tolist() == [0, 1, 0, 0, 1, 0]
    for n in (6, 12, 600):
        assert np.bincount(sequence([1, 2, 3], n)).tolist() == [n // 6, n // 3, n // 2]


def test_page_tables_by_hand(tmp_path) -> None:
    # Two runs in one table of the lowest level: one table of each of four levels.
    assert count_tables(np.array([[5, 9]]), np.array([[6, 9]])).tolist() == [4]
    # 512 pages from page 256 are in two tables; two terabytes further up there are three more, below the same root.
    assert count_tables(np.array([[256, 1 << 29]]), np.array([[767, 1 << 29]])).tolist() == [8]
    path = library().write(tmp_path / "lib.so")
    found = measured([path], counts_page_tables=True, has_same_addresses=True)
    per_tenant = int(count_tables(*(np.array([[each]]) for each in _span(path)))[0])
    for row, n in enumerate(NUMBERS):
        tables = {system.name: float(found.page_tables[system][row]) / PAGE for system in System}
        # In ORC one table has the object, one in the next slot all shadows; both are below the same three.
        assert tables == {"NONE": per_tenant * n, "PAGES": per_tenant * n, "FILES": per_tenant * n, "OBJECTS": 5}
        assert pages(found, row)["NONE"] == (5 + per_tenant) * n


def _span(path: Path) -> tuple[int, int]:
    elf = read_elf(path)
    first = int(load_addresses([elf], draws(1, 0))[0, 0]) // PAGE
    return first, first + elf.span_pages - 1


def drawn_library(rng: random.Random, name: str, others: list[str]) -> Elf:
    """Few pages of few contents, so that equal ones are frequent, with relocations of all kinds anywhere in the data."""

    def fill() -> bytes:
        return rng.choice([bytes(PAGE), b"\x11" * PAGE, bytes([rng.randrange(3)]) * PAGE])

    data = b"".join(fill() for _ in range(rng.randrange(1, 4)))[: rng.choice([None, -100])]
    symbols = [
        Symbol(f"f{name}", 0x10, 8),
        Symbol(f"o{name}", 0x3000 + 8 * rng.randrange(4), 24, OBJECT),
        Symbol("both", 0x20, 8, visibility=rng.choice([0, 3])),
        Symbol(f"t{name}", 8, 8, TLS_SYMBOL),
        Symbol("nowhere", binding=WEAK),
    ]
    symbols += [Symbol(f"{kind}{other}", size=24, kind=OBJECT) for other in others for kind in "fo"]
    relocations = []
    for _ in range(rng.randrange(8)):
        address = 0x3000 + rng.choice(
            [0, 8, 16, 64, 128, rng.randrange(512, len(data) - 16), PAGE - 4 if len(data) > PAGE + 8 else 0]
        )
        kind = rng.choice(
            [RELATIVE] * 4 + [R64, R64, GLOB_DAT, JUMP_SLOT, PC32, R32, TPOFF64, DTPMOD64, DTPOFF64, SIZE64, 37]
        )
        wanted = (
            [f"t{name}"]
            if kind in (TPOFF64, DTPMOD64, DTPOFF64)
            else [each.name for each in symbols if each.kind != TLS_SYMBOL]
        )
        relocations.append(
            (address, kind, "" if kind in (RELATIVE, 37) else rng.choice(wanted), rng.choice([0, 8, 0x11, -8]))
        )
    if name == "a" and others and rng.random() < 0.7:
        relocations.append((0x3100 + 8 * rng.randrange(8), COPY, f"o{rng.choice(others)}", 0))
    return Elf(
        [Part(0x0, fill(), R | X), Part(0x3000, data, R | W, memory=rng.choice([None, len(data) + 5000]))],
        symbols=symbols,
        relocations=relocations,
        relro=rng.choice([None, (0x3000, 0x4000)]),
        tls=(0x0, rng.choice([16, 24]), rng.choice([8, 32])),
        soname=f"lib{name}.so",
        alignment=rng.choice([PAGE, 4 * PAGE]),
    )


@given(st.integers(0, 1 << 32))
@settings(max_examples=60)
def test_the_result_is_that_of_hashing_every_page_of_every_tenant(tmp_path_factory, seed: int) -> None:
    rng, folder = random.Random(seed), tmp_path_factory.mktemp("drawn")
    names = "abcd"[: rng.randrange(1, 5)]
    paths = [
        drawn_library(rng, name, [each for each in names if each != name and rng.random() < 0.5]).write(
            folder / f"lib{name}.so"
        )
        for name in names
    ]
    if rng.random() < 0.3:
        paths.append(folder / "again.so")
        paths[-1].write_bytes(paths[0].read_bytes())
    kinds = [
        TenantKind(str(number), tuple(rng.sample(range(len(paths)), rng.randrange(1, len(paths) + 1))), rng.randrange(1, 3))
        for number in range(rng.randrange(1, 4))
    ]
    assumptions = Assumptions(has_same_addresses=rng.random() < 0.4, seed=rng.randrange(3))
    objects, numbers = [read_elf(path) for path in paths], (1, 2, 5)
    found = measure(kinds, objects, numbers, assumptions)
    order = sequence([each.count for each in kinds], max(numbers))
    moved = draws(1, assumptions.seed).repeat(5, 0) if assumptions.has_same_addresses else draws(5, assumptions.seed)
    tenants = []
    for kind, draw in zip(order.tolist(), moved, strict=True):
        chosen = kinds[kind].objects
        bases = load_addresses([objects[index] for index in chosen], draw[None])[0].tolist()
        images = brute.load([paths[index] for index in chosen], bases)
        tenants.append(list(zip([paths[index] for index in chosen], images, strict=True)))
    for row, n in enumerate(numbers):
        assert pages(found, row) == brute.resident_pages(tenants[:n])


def test_the_result_is_that_of_hashing_every_page_of_real_programs() -> None:
    problem, store = Problem(), ObjectStore()
    described = [Description("python", (Path(sys.executable),)), Description("again", (Path(sys.executable).resolve(),))]
    (kind, _again) = resolve(described, store, Libraries(cache=read_cache()), problem)
    assert not problem.messages and len(kind.objects) > 1
    objects = [store.objects[index] for index in kind.objects]
    mapped = [pages_of(each) for each in objects]
    bindings = bind(objects, mapped)
    found = measure([kind], store.objects, (3,), Assumptions(seed=5))
    contents = set()
    for loaded in load_addresses(objects, draws(3, 5)):
        for elf, there, binding in zip(objects, mapped, bindings, strict=True):
            contents |= {render(elf, there, row, binding, loaded).tobytes() for row in range(len(there))}
    assert pages(found, 0)["PAGES"] == len(contents)


def test_what_relocations_write_is_what_a_running_process_has() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.study.live_process"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    same, different = map(int, done.stdout.split())
    assert different == 0 and same > 100


def test_a_thousand_tenants_of_thirty_objects_take_at_most_ten_seconds(tmp_path) -> None:
    names = [f"{number:02}" for number in range(30)]
    words = [(0x3000 + 16 * place, RELATIVE, "", 8 * place) for place in range(10 * PAGE // 16)]
    rng = np.random.default_rng(0)
    paths = []
    for name in names:
        parts = [Part(0x0, rng.bytes(3 * PAGE), R | X), Part(0x3000, rng.bytes(20 * PAGE), R | W, memory=30 * PAGE)]
        bound = [(0xE000 + 8 * place, R64, f"f{other}", 0) for place, other in enumerate(names)]
        symbols = [Symbol(f"f{other}", 0x10 if other == name else None) for other in names]
        elf = Elf(parts, symbols=symbols, relocations=words + bound, relro=(0x3000, 0x10000), soname=f"lib{name}.so")
        paths.append(elf.write(tmp_path / f"lib{name}.so"))
    start = time.process_time()
    found = measured(paths, (1, 10, 100, 1000))
    assert time.process_time() - start < 10
    # Ten pages of relocated words and one that refers to all thirty, in each of thirty objects; all else is equal.
    assert pages(found, 3)["PAGES"] - pages(found, 2)["PAGES"] == 30 * 11 * 900
