"""Relocations, symbols and symbol versions of an ELF file, as arrays.

Sources: System V ABI (gABI), chapters 4 and 5; its AMD64 supplement, section 4.4; the Linux Standard Base core
specification, section 10.7 (symbol versions); the proposal of relative relocations in gABI's list (DT_RELR).
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capvisor.study.errors import StudyError

PAGE_BYTES = 4096
WORD_BYTES = 8
HIDDEN_VERSION = 0x8000
FIRST_NAMED_VERSION = 2
UNDEFINED, ABSOLUTE = 0, 0xFFF1
LOCAL, GLOBAL, WEAK, UNIQUE = 0, 1, 2, 10
NOTYPE, OBJECT, FUNCTION, COMMON, TLS_SYMBOL, INDIRECT_FUNCTION = 0, 1, 2, 5, 6, 10
_EXPORTED_TYPES = (NOTYPE, OBJECT, FUNCTION, COMMON, TLS_SYMBOL, INDIRECT_FUNCTION)
_EXPORTED_VISIBILITIES = (0, 3)
"""Default and protected."""


class Kind(IntEnum):
    """Relocation types that a dynamic linker meets on x86-64 (AMD64 supplement, table 4.10)."""

    NONE = 0
    R64 = 1
    PC32 = 2
    COPY = 5
    GLOB_DAT = 6
    JUMP_SLOT = 7
    RELATIVE = 8
    R32 = 10
    R32S = 11
    DTPMOD64 = 16
    DTPOFF64 = 17
    TPOFF64 = 18
    PC64 = 24
    SIZE32 = 32
    SIZE64 = 33
    TLSDESC = 36
    IRELATIVE = 37
    RELATIVE64 = 38


_RELA = np.dtype([("address", "<u8"), ("kind", "<u4"), ("symbol", "<u4"), ("addend", "<u8")])
_SYMBOL = np.dtype([("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")])


@dataclass(frozen=True)
class Relocations:
    """Relocations in the order in which they are applied; `address`, `addend` uint64, `kind`, `symbol` uint32."""

    address: NDArray[np.uint64]
    kind: NDArray[np.uint32]
    symbol: NDArray[np.uint32]
    addend: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.address)


class Row(NamedTuple):
    """A symbol: an offset into the strings, and Elf64_Sym's other fields."""

    name: int
    info: int
    other: int
    section: int
    value: int
    size: int


@dataclass(frozen=True)
class Symbols:
    """The dynamic symbol table: a record of arrays, the string table, versions by symbol and names by version."""

    table: NDArray[Any]
    strings: bytes
    versions: NDArray[np.uint16] | None = None
    version_names: Mapping[int, bytes] = field(default_factory=dict)

    def name(self, index: int) -> bytes:
        """Of a symbol."""
        start = self.rows[index].name
        end = self.strings.find(b"\0", start)
        return self.strings[start : end if end >= 0 else None]

    def version(self, index: int) -> bytes | None:
        """The name of a symbol's version, if it has one."""
        if self.versions is None:
            return None
        number = int(self.versions[index]) & ~HIDDEN_VERSION
        return self.version_names.get(number) if number >= FIRST_NAMED_VERSION else None

    @cached_property
    def rows(self) -> list[Row]:
        """The table as Python's numbers."""
        return [Row(*each) for each in self.table.tolist()]

    @cached_property
    def exported(self) -> dict[bytes, list[int]]:
        """The symbols that others may be bound to, by name; an undefined one with a value is a function's PLT entry."""
        table = self.table
        bound, kinds = table["info"] >> 4, table["info"] & 15
        wanted = np.isin(bound, (GLOBAL, WEAK, UNIQUE)) & np.isin(kinds, _EXPORTED_TYPES)
        wanted &= np.isin(table["other"] & 3, _EXPORTED_VISIBILITIES)
        wanted &= (table["value"] != 0) | (
            ((table["section"] == ABSOLUTE) | (kinds == TLS_SYMBOL)) & (table["section"] != 0)
        )
        found: dict[bytes, list[int]] = {}
        for index in np.flatnonzero(wanted).tolist():
            found.setdefault(self.name(index), []).append(index)
        return found

    def lookup(self, name: bytes, version: bytes | None, is_call: bool) -> int | None:
        """The symbol that a reference of this name and version is bound to here. Only calls do without PLT entries."""
        for index in self.exported.get(name, ()):
            if is_call and self.rows[index].section == UNDEFINED:
                continue
            if self.versions is None:
                return index
            is_hidden, here = bool(self.versions[index] & HIDDEN_VERSION), self.version(index)
            if version is not None and here == version:
                return index
            if not is_hidden and (version is None or here is None):
                return index
        return None


NO_SYMBOLS = Symbols(np.zeros(0, _SYMBOL), b"")


def read_rela(table: bytes, where: str) -> Relocations:
    """A table of Elf64_Rela. Raises StudyError."""
    if len(table) % _RELA.itemsize:
        raise StudyError(f"{where}: a relocation table of {len(table)} bytes, which isn't a multiple of {_RELA.itemsize}")
    rows = np.frombuffer(table, _RELA)
    return Relocations(rows["address"], rows["kind"], rows["symbol"], rows["addend"])


def relr_addresses(table: bytes) -> list[int]:
    """The addresses in a table of relative relocations (DT_RELR): an even entry is one, an odd one maps those after it."""
    found, place = [], 0
    for (entry,) in struct.iter_unpack("<Q", table[: len(table) // WORD_BYTES * WORD_BYTES]):
        if entry & 1 == 0:
            found.append(entry)
            place = entry + WORD_BYTES
            continue
        found += [place + WORD_BYTES * bit for bit in range(63) if entry >> bit + 1 & 1]
        place += 63 * WORD_BYTES
    return found


def joined(tables: list[Relocations]) -> Relocations:
    """One after the other."""
    if not tables:
        return Relocations(np.zeros(0, np.uint64), np.zeros(0, np.uint32), np.zeros(0, np.uint32), np.zeros(0, np.uint64))
    return Relocations(
        np.concatenate([each.address for each in tables]),
        np.concatenate([each.kind for each in tables]),
        np.concatenate([each.symbol for each in tables]),
        np.concatenate([each.addend for each in tables]),
    )


def read_symbols(table: bytes, strings: bytes, versions: bytes | None, version_names: Mapping[int, bytes]) -> Symbols:
    """The symbol table from its parts, all as they are in the file."""
    rows = np.frombuffer(table[: len(table) // _SYMBOL.itemsize * _SYMBOL.itemsize], _SYMBOL)
    numbers = None if versions is None else np.frombuffer(versions[: 2 * len(rows)], "<u2")
    return Symbols(rows, strings, numbers, version_names)


def symbol_bytes(count: int) -> int:
    """Of a table of so many symbols."""
    return count * _SYMBOL.itemsize


def read_version_names(
    content: bytes, definitions: tuple[int, int], needs: tuple[int, int], strings: bytes
) -> dict[int, bytes]:
    """Names by version number, from the offsets and counts of DT_VERDEF and DT_VERNEED. Raises struct.error."""

    def string(start: int) -> bytes:
        return strings[start : strings.find(b"\0", start)]

    names = {}
    place, count = definitions
    for _ in range(count):
        _version, flags, number, _count, _hash, first, following = struct.unpack_from("<HHHHIII", content, place)
        (name,) = struct.unpack_from("<I", content, place + first)
        if not flags & 1:  # else it is the file's own name
            names[number] = string(name)
        if not following:
            break
        place += following
    place, count = needs
    for _ in range(count):
        _version, entries, _file, first, following = struct.unpack_from("<HHIII", content, place)
        entry = place + first
        for _ in range(entries):
            _hash, _flags, number, name, step = struct.unpack_from("<IHHII", content, entry)
            names[number & ~HIDDEN_VERSION] = string(name)
            if not step:
                break
            entry += step
        if not following:
            break
        place += following
    return names
