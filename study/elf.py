"""Executables and libraries of x86-64: what is loaded of a file, and what its dynamic linker needs to know.

Source: System V ABI (gABI), chapters 4 and 5. Headers, segments and the dynamic section are read with pyelftools, large
tables with numpy.
"""

import hashlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile

from capvisor.study.elf_tables import (
    NO_SYMBOLS,
    PAGE_BYTES,
    WORD_BYTES,
    Kind,
    Relocations,
    Symbols,
    joined,
    read_rela,
    read_symbols,
    read_version_names,
    relr_addresses,
    symbol_bytes,
)
from capvisor.study.errors import StudyError

MOST_BYTES = 1 << 34
"""Of memory that an object may ask for."""
_MAGIC = b"\x7fELF"
_ADDRESS_BITS = 47
_HEADER_BYTES = 64
_CLASS_64, _LITTLE_ENDIAN, _X86_64 = 2, 1, 62
_TYPES = {1: "a relocatable file", 2: "an executable", 3: "a shared object", 4: "a core dump"}
_MACHINES = {3: "i386", 8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 22: "S390", 40: "Arm", 62: "x86-64", 183: "AArch64"}
_MACHINES |= {243: "RISC-V", 258: "LoongArch"}
_DF_SYMBOLIC = 2
_WIDTHS = {Kind.PC32: 4, Kind.R32: 4, Kind.R32S: 4, Kind.SIZE32: 4, Kind.TLSDESC: 16}


@dataclass(frozen=True)
class Segment:
    """A loadable part: bytes of the file from `offset` at `address`, zeros up to `memory_size`."""

    offset: int
    address: int
    file_size: int
    memory_size: int
    is_writable: bool
    is_executable: bool


@dataclass(frozen=True)
class ThreadLocal:
    """The initial image of an object's thread-local storage."""

    size: int
    alignment: int


@dataclass(frozen=True, eq=False)
class ElfObject:
    """An executable or a library. `digest` stands for its content, `file_id` for the file; addresses are as linked."""

    path: Path
    file_id: tuple[int, int]
    digest: bytes
    content: bytes
    is_fixed: bool
    interpreter: str | None
    soname: str | None
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]
    segments: tuple[Segment, ...]
    alignment: int
    relro: tuple[int, int]
    thread_local: ThreadLocal | None
    is_symbolic: bool
    relocations: Relocations
    symbols: Symbols

    @property
    def first_page(self) -> int:
        return min(each.address for each in self.segments) // PAGE_BYTES

    @property
    def span_pages(self) -> int:
        """From the first page to the last, holes included."""
        return -(-max(each.address + each.memory_size for each in self.segments) // PAGE_BYTES) - self.first_page


def width_of(kind: int) -> int:
    """How many bytes a relocation of a kind writes; a COPY's are its symbol's."""
    return _WIDTHS.get(Kind(kind), WORD_BYTES)


def is_elf(path: Path) -> bool:
    """Whether a regular file starts as an ELF file does."""
    try:
        with path.open("rb") as file:
            return file.read(4) == _MAGIC
    except OSError:
        return False


def is_loadable_here(path: Path) -> bool:
    """Whether a dynamic linker of x86-64 would take this library, rather than look in the next folder."""
    try:
        with path.open("rb") as file:
            header = file.read(20)
    except OSError:
        return True  # to be complained of, as a dynamic linker does
    return len(header) < 20 or (header[4:6] == bytes([_CLASS_64, _LITTLE_ENDIAN]) and header[18:20] == b"\x3e\0")


def read_elf(path: Path) -> ElfObject:
    """The object in a file. Raises StudyError for what is no ELF file, is cut off, of another machine, or inconsistent."""
    try:
        content = path.read_bytes()
        status = path.stat()
    except OSError as error:
        raise StudyError(f"{path}: {error.strerror or error}") from None
    return parse_elf(content, path, (status.st_dev, status.st_ino))


def parse_elf(content: bytes, path: Path, file_id: tuple[int, int]) -> ElfObject:
    """The object that these bytes of a file are. Raises StudyError as `read_elf` does."""
    _check_header(content, path)
    try:
        return _parse(content, path, file_id)
    except (
        ELFError,
        ConstructError,
        struct.error,
        ValueError,
        IndexError,
        KeyError,
        AssertionError,
        OverflowError,
    ) as error:
        raise StudyError(f"{path}: not a consistent ELF file: {str(error) or type(error).__name__}") from None
    except (AttributeError, TypeError, StopIteration):
        raise StudyError(f"{path}: not a consistent ELF file: a table that its headers name is missing") from None


def _check_header(content: bytes, path: Path) -> None:
    if content[:4] != _MAGIC:
        raise StudyError(f"{path}: not an ELF file")
    if len(content) < _HEADER_BYTES:
        raise StudyError(f"{path}: truncated: {len(content)} bytes, and an ELF header has {_HEADER_BYTES}")
    kind, machine = struct.unpack_from("<HH" if content[5] == _LITTLE_ENDIAN else ">HH", content, 16)
    if content[4] != _CLASS_64 or content[5] != _LITTLE_ENDIAN or machine != _X86_64:
        name = _MACHINES.get(machine, f"number {machine}")
        bits = {1: "32-bit", 2: "64-bit"}.get(content[4], "unknown class")
        raise StudyError(f"{path}: for another machine ({name}, {bits}): only 64-bit x86-64 is studied")
    if kind not in (2, 3):
        raise StudyError(f"{path}: {_TYPES.get(kind, f'of type {kind}')}: expected an executable or a shared object")
    for what, place, sizes in (("program", 32, 54), ("section", 40, 58)):
        (offset,), (size, count) = struct.unpack_from("<Q", content, place), struct.unpack_from("<HH", content, sizes)
        if count and offset + size * count > len(content):
            raise StudyError(f"{path}: truncated: its {what} headers end at byte {offset + size * count} of {len(content)}")


def _parse(content: bytes, path: Path, file_id: tuple[int, int]) -> ElfObject:
    file = ELFFile(io.BytesIO(content))
    segments, alignment, relro, thread_local, interpreter, dynamic = [], PAGE_BYTES, (0, 0), None, None, None
    for each in file.iter_segments():
        kind, end = each["p_type"], each["p_offset"] + each["p_filesz"]
        if kind in ("PT_LOAD", "PT_DYNAMIC", "PT_INTERP", "PT_TLS") and end > len(content):
            raise StudyError(f"{path}: truncated: a segment ends at byte {end} of {len(content)}")
        if kind == "PT_LOAD" and each["p_memsz"]:
            flags = int(each["p_flags"])
            sizes = (each["p_offset"], each["p_vaddr"], each["p_filesz"], each["p_memsz"])
            segments.append(Segment(*sizes, bool(flags & 2), bool(flags & 1)))
            alignment = max(alignment, int(each["p_align"]))
        elif kind == "PT_GNU_RELRO":
            # Only whole pages are protected (glibc, elf/dl-reloc.c: _dl_protect_relro).
            relro = each["p_vaddr"] // PAGE_BYTES, (each["p_vaddr"] + each["p_memsz"]) // PAGE_BYTES
        elif kind == "PT_TLS":
            thread_local = ThreadLocal(each["p_memsz"], max(each["p_align"], 1))
        elif kind == "PT_INTERP":
            interpreter = content[each["p_offset"] : end].rstrip(b"\0").decode()
        elif isinstance(each, DynamicSegment):
            dynamic = each
    _check_segments(segments, alignment, path)
    tables = _Dynamic(content, dynamic, segments, path)
    if tables.has_rel:
        raise StudyError(f"{path}: relocations without addends (DT_REL), which x86-64 doesn't have")
    relocations = tables.relocations()
    symbols = tables.symbols()
    _check_relocations(relocations, symbols, segments, path)
    return ElfObject(
        path,
        file_id,
        hashlib.sha256(content).digest(),
        content,
        file["e_type"] == "ET_EXEC",
        interpreter,
        tables.text("DT_SONAME"),
        tuple(tables.texts("DT_NEEDED")),
        tuple(_folders(tables.text("DT_RPATH"))),
        tuple(_folders(tables.text("DT_RUNPATH"))),
        tuple(segments),
        alignment,
        relro,
        thread_local,
        tables.is_symbolic,
        relocations,
        symbols,
    )


def _folders(text: str | None) -> Iterator[str]:
    yield from (each for each in (text or "").split(":") if each)


def _check_segments(segments: list[Segment], alignment: int, path: Path) -> None:
    if not segments:
        raise StudyError(f"{path}: nothing of it is loaded: it has no PT_LOAD segment")
    if alignment & (alignment - 1) or alignment > MOST_BYTES:
        raise StudyError(f"{path}: a segment's alignment is {alignment}, which is no power of two up to {MOST_BYTES}")
    for each in segments:
        if each.file_size > each.memory_size:
            raise StudyError(f"{path}: a segment has {each.file_size} bytes in the file and {each.memory_size} in memory")
        if (each.address - each.offset) % PAGE_BYTES:
            raise StudyError(f"{path}: a segment's address and offset differ within a page: it can't be mapped")
        if each.memory_size > MOST_BYTES or each.address + each.memory_size > 1 << _ADDRESS_BITS:
            raise StudyError(
                f"{path}: a segment of {each.memory_size} bytes at 0x{each.address:x}: at most {MOST_BYTES >> 30} GiB, "
                f"below 2**{_ADDRESS_BITS}"
            )


def _check_relocations(relocations: Relocations, symbols: Symbols, segments: list[Segment], path: Path) -> None:
    unknown = sorted(set(np.unique(relocations.kind).tolist()) - set(Kind))
    if unknown:
        raise StudyError(f"{path}: relocations of type {unknown[0]} aren't modelled")
    if len(relocations) and int(relocations.symbol.max()) >= max(len(symbols.table), 1):
        raise StudyError(f"{path}: a relocation names symbol {int(relocations.symbol.max())} of {len(symbols.table)}")
    inside = np.zeros(len(relocations), bool)
    widths = np.array([width_of(kind) for kind in relocations.kind.tolist()], np.uint64)
    for each in segments:
        start, end = np.uint64(each.address), np.uint64(each.address + each.memory_size)
        fits = (relocations.address >= start) & (relocations.address < end)
        inside |= fits & (widths <= np.where(fits, end - relocations.address, 0))
    outside = ~inside & (relocations.kind != Kind.NONE)
    if outside.any():
        raise StudyError(f"{path}: a relocation at 0x{int(relocations.address[outside][0]):x}, where nothing is loaded")


class _Dynamic:
    """What the dynamic section names, from the file's bytes."""

    def __init__(self, content: bytes, segment: DynamicSegment | None, segments: list[Segment], path: Path) -> None:
        self._content, self._segment, self._segments, self._path = content, segment, segments, path
        self._values: dict[str, int] = {}
        self._texts: dict[str, list[str]] = {}
        for tag in segment.iter_tags() if segment is not None else ():
            name = str(tag.entry.d_tag)
            self._values.setdefault(name, int(tag.entry.d_val))
            if name in ("DT_NEEDED", "DT_SONAME", "DT_RPATH", "DT_RUNPATH"):
                self._texts.setdefault(name, []).append(getattr(tag, name[3:].lower()))
        self.has_rel = "DT_REL" in self._values
        self.is_symbolic = "DT_SYMBOLIC" in self._values or bool(self._values.get("DT_FLAGS", 0) & _DF_SYMBOLIC)

    def texts(self, name: str) -> list[str]:
        """Of all tags of a name."""
        return self._texts.get(name, [])

    def text(self, name: str) -> str | None:
        """Of the first tag of a name."""
        return next(iter(self.texts(name)), None)

    def _offset(self, name: str, size: int) -> int:
        address = self._values[name]
        for each in self._segments:
            if each.address <= address and address + size <= each.address + each.file_size:
                return address - each.address + each.offset
        raise StudyError(f"{self._path}: {name} names {size} bytes at 0x{address:x}, which no segment has in the file")

    def _table(self, name: str, size_name: str) -> bytes:
        if name not in self._values:
            return b""
        size = self._values[size_name]
        start = self._offset(name, size)
        return self._content[start : start + size]

    def relocations(self) -> Relocations:
        """Relative ones first, then the table, then the PLT's: as glibc applies them."""
        where = str(self._path)
        addresses = relr_addresses(self._table("DT_RELR", "DT_RELRSZ"))
        tables = []
        if addresses:
            addends = [self._word(address) for address in addresses]
            kinds, zeros = np.full(len(addresses), Kind.RELATIVE, np.uint32), np.zeros(len(addresses), np.uint32)
            tables.append(Relocations(np.array(addresses, np.uint64), kinds, zeros, np.array(addends, np.uint64)))
        tables.append(read_rela(self._table("DT_RELA", "DT_RELASZ"), where))
        tables.append(read_rela(self._table("DT_JMPREL", "DT_PLTRELSZ"), where))
        return joined(tables)

    def _word(self, address: int) -> int:
        for each in self._segments:
            if each.address <= address and address + WORD_BYTES <= each.address + each.memory_size:
                start = address - each.address
                stored = self._content[each.offset + start : each.offset + min(start + WORD_BYTES, each.file_size)]
                return int.from_bytes(stored, "little")
        raise StudyError(f"{self._path}: a relocation at 0x{address:x}, where nothing is loaded")

    def symbols(self) -> Symbols:
        """The dynamic symbols, none where there is no table of them."""
        if self._segment is None or not {"DT_SYMTAB", "DT_STRTAB", "DT_STRSZ"} <= self._values.keys():
            return NO_SYMBOLS
        count = max(self._segment.num_symbols(), 1)
        start = self._offset("DT_SYMTAB", symbol_bytes(count))
        strings = self._table("DT_STRTAB", "DT_STRSZ")
        versions, names = None, {}
        if "DT_VERSYM" in self._values:
            place = self._offset("DT_VERSYM", 2 * count)
            versions = self._content[place : place + 2 * count]
            ranges = []
            for name in ("DT_VERDEF", "DT_VERNEED"):
                there = self._values.get(f"{name}NUM", 0) if name in self._values else 0
                ranges.append((self._offset(name, 1) if there else 0, there))
            names = read_version_names(self._content, ranges[0], ranges[1], strings)
        return read_symbols(self._content[start : start + symbol_bytes(count)], strings, versions, names)
