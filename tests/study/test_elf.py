"""ELF files: what is read of them, what is wrong with them, and what relocations write, each by hand."""

import random
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from capvisor.study.binding import NOTHING, bind
from capvisor.study.elf import ElfObject, parse_elf, read_elf
from capvisor.study.elf_tables import relr_addresses
from capvisor.study.errors import StudyError
from capvisor.study.libraries import Libraries, ObjectStore, Problem, read_cache
from capvisor.study.object_pages import page_contents, pages_of
from capvisor.study.rendering import render
from capvisor.study.tenants import Description, resolve
from tests.study.elf_writer import OBJECT, PAGE, TLS_SYMBOL, WEAK, Elf, Part, R, Symbol, W, X

MASK = (1 << 64) - 1
LOCAL = 0


def parsed(elf: Elf, name: str = "a.so") -> ElfObject:
    return parse_elf(elf.bytes(), Path(name), (0, 0))


def data(size: int = PAGE) -> Part:
    return Part(0x3000, bytes(size), R | W)


def written(elves: list[Elf], bases: list[int], which: int = 0, page: int = 3) -> bytes:
    """A page of one of these objects as it is when they are loaded at these addresses."""
    objects = [parsed(each, f"{number}.so") for number, each in enumerate(elves)]
    mapped = [pages_of(each) for each in objects]
    binding = bind(objects, mapped)[which]
    row = mapped[which].row_of(page)
    return render(objects[which], mapped[which], row, binding, np.array(bases, np.uint64)).tobytes()


def word(content: bytes, offset: int) -> int:
    return int.from_bytes(content[offset : offset + 8], "little")


def test_segments_are_what_the_headers_of_real_files_say() -> None:
    problem, store = Problem(), ObjectStore()
    resolve([Description("python", (Path(sys.executable),))], store, Libraries(cache=read_cache()), problem)
    assert len(store.objects) > 1 and not problem.messages
    for found in store.objects:
        content = found.path.read_bytes()
        offset, size, count = (*struct.unpack_from("<Q", content, 32), *struct.unpack_from("<HH", content, 54))
        rows = [struct.unpack_from("<IIQQQQQQ", content, offset + size * number) for number in range(count)]
        loads = [(row[2], row[3], row[5], row[6], bool(row[1] & 2), bool(row[1] & 1)) for row in rows if row[0] == 1]
        assert [tuple(vars(each).values()) for each in found.segments] == loads and loads
        mapped = {page for row in loads for page in range(row[1] // PAGE, -(-(row[1] + row[3]) // PAGE))}
        assert set(pages_of(found).number.tolist()) == mapped


def test_a_page_has_what_stands_beside_a_segment_but_zeros_where_there_is_more_memory() -> None:
    beside = parsed(Elf([Part(0x10, b"a" * 16, R), Part(0x3000, b"b" * 16, R)]))
    more = parsed(Elf([Part(0x10, b"a" * 16, R), Part(0x3000, b"b" * 16, R | W, memory=PAGE + 1), Part(0x6000, b"c", R)]))
    first = page_contents(beside, pages_of(beside), np.array([0]))[0].tobytes()
    assert first[:4] != bytes(4) and first[16:32] == b"a" * 16 and first[32:40] == b"\xee" * 8
    second, third = page_contents(more, pages_of(more), np.array([1, 2]))
    assert second.tobytes() == (b"b" * 16).ljust(PAGE, b"\0") and not third.any()


def test_a_page_of_the_file_that_two_segments_map_is_one_page_of_it() -> None:
    # Linked without separate code: the second segment begins within the first's last page of the file.
    found = pages_of(parsed(Elf([Part(0x0, b"a" * 100, R), Part(0x1064, b"b" * 100, R | X)])))
    assert found.file_page.tolist()[:2] == [1, 1] and found.number.tolist()[:2] == [0, 1]


@pytest.mark.parametrize(
    ("kind", "symbol", "addend", "expected"),
    [
        (8, "", 0x18, 0x100018),  # RELATIVE: the object's own address and the addend
        (37, "", 0x18, 0x100018),  # IRELATIVE: of the function that would choose
        (38, "", 0x18, 0x100018),
        (1, "there", 5, 0x200045),  # 64: the symbol and the addend
        (6, "there", 0, 0x200040),  # GLOB_DAT
        (7, "there", 0, 0x200040),  # JUMP_SLOT, as after the first call
        (1, "own", 0, 0x100020),
        (1, "weak", 7, 7),  # nobody has it
        (1, "first", 0, 0x100028),  # both have it: the first in the order of search
        (33, "there", 1, 25),  # SIZE64
        (24, "there", 0, (0x200040 - 0x103008) & MASK),  # PC64: from the place itself
        (16, "thread", 0, 2),  # DTPMOD64: the second object with thread-local storage
        (17, "thread", 1, 9),  # DTPOFF64
        (18, "thread", 0, (8 - 96) & MASK),  # TPOFF64: 24 bytes, then 48 behind them, aligned to 32: they end at 96
    ],
)
def test_what_a_relocation_writes(kind: int, symbol: str, addend: int, expected: int) -> None:
    names = [Symbol("own", 0x20), Symbol("there"), Symbol("weak", binding=WEAK), Symbol("first", 0x28)]
    names.append(Symbol("thread", kind=TLS_SYMBOL))
    one = Elf([Part(0, bytes(64), R | X), data()], names, [(0x3008, kind, symbol, addend)], tls=(0, 24, 8))
    others = [Symbol("there", 0x40, 24), Symbol("first", 0x48), Symbol("thread", 8, 8, TLS_SYMBOL)]
    two = Elf([Part(0, bytes(128), R | X), data()], others, tls=(0, 48, 32))
    assert word(written([one, two], [0x100000, 0x200000]), 8) == expected


def test_a_thread_local_descriptor_is_two_words() -> None:
    one = Elf([data()], [Symbol("t", 8, 8, TLS_SYMBOL)], [(0x3008, 36, "t", 0)], tls=(0, 24, 8))
    content = written([one, Elf([data()])], [0x100000, 0x700000])
    assert (word(content, 8), word(content, 16)) == (0x700000, (8 - 24) & MASK)


def test_narrow_relocations_write_four_bytes_and_the_last_of_several_wins() -> None:
    relocations = [(0x3008, 1, "s", 0), (0x3008, 10, "s", 1), (0x300A, 8, "", 0x7), (0x3010, 8, "", 1), (0x3010, 8, "", 2)]
    content = written([Elf([Part(0, bytes(64), R), data()], [Symbol("s", 0x20)], relocations)], [0x12345000])
    assert content[8:24].hex(" ") == "21 50 07 50 34 12 00 00 02 50 34 12 00 00 00 00"


def test_an_executable_has_its_own_copy_of_data_and_of_what_is_relocated_in_it() -> None:
    program = Elf([data()], [Symbol("o", 0x3020, 24, OBJECT)], [(0x3020, 5, "o", 0)])
    library = Elf([Part(0x3000, b"x" * PAGE, R | W)], [Symbol("o", 0x3100, 24, OBJECT)], [(0x3108, 8, "", 0x50)])
    content = written([program, library], [0x100000, 0x200000])
    assert content[0x20:0x28] == b"x" * 8 and word(content, 0x28) == 0x200050 and content[0x30:0x39] == b"x" * 8 + b"\0"
    # The library itself is bound to the executable's copy.
    library.symbols, library.relocations = [*library.symbols], [*library.relocations, (0x3000, 6, "o", 0)]
    assert word(written([program, library], [0x100000, 0x200000], 1), 0) == 0x103020


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, 0x100020),
        ({"visibility": 3}, 0x200030),  # protected: its own
        ({"visibility": 2}, 0x200030),  # hidden
        ({"binding": LOCAL}, 0x200030),
    ],
)
def test_an_object_uses_its_own_symbol_only_where_it_may_not_be_replaced(changed: dict, expected: int) -> None:
    first = Elf([Part(0, bytes(64), R)], [Symbol("s", 0x20)])
    second = Elf([Part(0, bytes(64), R), data()], [Symbol("s", 0x30, **changed)], [(0x3000, 1, "s", 0)])
    assert word(written([first, second], [0x100000, 0x200000], 1), 0) == expected
    second.symbols, second.extra = [Symbol("s", 0x30)], {16: 0}  # DT_SYMBOLIC
    assert word(written([first, second], [0x100000, 0x200000], 1), 0) == 0x200030


def test_symbols_that_nobody_has_are_named() -> None:
    one = parsed(
        Elf([data()], [Symbol("gone"), Symbol("weak", binding=WEAK)], [(0x3000, 1, "gone", 0), (0x3008, 1, "weak", 0)])
    )
    (binding,) = bind([one], [pages_of(one)])
    assert binding.unbound == ["gone"] and set(binding.plus.tolist()) == {NOTHING}


def test_relative_relocations_may_be_packed() -> None:
    assert relr_addresses(struct.pack("<QQQ", 0x3000, 0b1011, 0x4000)) == [0x3000, 0x3008, 0x3018, 0x4000]
    assert relr_addresses(struct.pack("<QQQ", 0x3000, 1, 0b11)) == [0x3000, 0x3008 + 63 * 8]
    part = Part(0x3000, struct.pack("<4Q", 0x10, 0x20, 0x30, 0x40), R | W, memory=PAGE)
    content = written([Elf([part], relr=[0x3000, 0b101])], [0x100000])
    assert [word(content, place) for place in (0, 8, 16, 24)] == [0x100010, 0x20, 0x100030, 0x40]


WRONG = {
    "not an ELF file": b"#!/bin/sh\n",
    "truncated: 20 bytes, and an ELF header has 64": Elf([data()]).bytes()[:20],
    "truncated: its program headers end at byte": Elf([data()]).bytes()[:100],
    "truncated: a segment ends at byte": Elf([data()]).bytes()[:-1000],
    "for another machine (AArch64, 64-bit)": Elf([data()], machine=183).bytes(),
    "for another machine (i386, 32-bit)": Elf([data()], machine=3, is_64=False).bytes(),
    "for another machine (number 999, 64-bit)": Elf([data()], machine=999).bytes(),
    "a relocatable file: expected an executable or a shared object": Elf([data()], kind=1).bytes(),
    "a core dump": Elf([data()], kind=4).bytes(),
    "relocations of type 99 aren't modelled": Elf([data()], relocations=[(0x3000, 99, "", 0)]).bytes(),
    "a relocation at 0x9999000, where nothing is loaded": Elf([data()], relocations=[(0x9999000, 8, "", 0)]).bytes(),
    "a relocation at 0x3ffc, where nothing is loaded": Elf([data()], relocations=[(0x3FFC, 8, "", 0)]).bytes(),
    "16 bytes in the file and 8 in memory": Elf([Part(0, bytes(16), R, memory=8)]).bytes(),
    "at most 16 GiB": Elf([Part(0, bytes(16), R, memory=1 << 40)]).bytes(),
    "no power of two": Elf([data()], alignment=5000).bytes(),
    "relocations without addends": Elf([data()], extra={17: 0x3000, 18: 16, 19: 16}).bytes(),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_with_a_file_is_said(message: str) -> None:
    with pytest.raises(StudyError) as caught:
        parse_elf(WRONG[message], Path("f.so"), (0, 0))
    assert str(caught.value).startswith("f.so: ") and message in str(caught.value)


def test_a_file_that_can_t_be_read_is_said(tmp_path) -> None:
    with pytest.raises(StudyError, match="No such file"):
        read_elf(tmp_path / "no.so")


def test_no_file_however_broken_is_more_than_a_message() -> None:
    """Cut off anywhere, and with bytes changed anywhere in its headers and tables."""
    elf = Elf(
        [Part(0, bytes(64), R | X), data()],
        [Symbol("s", 0x20), Symbol("o", 0x3000, 8, OBJECT)],
        [(0x3000, 8, "", 4), (0x3008, 1, "s", 4)],
        relr=[0x3010, 3],
        needed=["libc.so.6"],
        soname="f.so",
        interpreter="/lib/ld.so",
        relro=(0x3000, 0x4000),
        tls=(0, 8, 8),
    )
    whole, rng = elf.bytes(), random.Random(0)
    outcomes = {True: 0, False: 0}
    tables = len(whole) - 900
    for _ in range(1500):
        broken = bytearray(whole[: rng.choice([len(whole)] * 3 + [rng.randrange(len(whole))])])
        for _change in range(rng.randrange(3)):
            place = rng.choice([rng.randrange(64 + 56 * 7), rng.randrange(tables, len(whole))])
            if place < len(broken):
                broken[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        try:
            found = parse_elf(bytes(broken), Path("f.so"), (0, 0))
            bind([found], [pages_of(found)])
        except StudyError:
            outcomes[False] += 1
        else:
            outcomes[True] += 1
    assert min(outcomes.values()) > 100
