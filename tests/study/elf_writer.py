"""Writes small x86-64 ELF files, for tests that know every byte of them."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

PAGE = 4096
R, W, X = 4, 2, 1
LOAD, DYNAMIC, INTERP, TLS, RELRO = 1, 2, 3, 7, 0x6474E552
FUNCTION, OBJECT, TLS_SYMBOL = 2, 1, 6
GLOBAL, WEAK = 1, 2


@dataclass
class Part:
    """A segment: bytes at an address, which needn't be a page's first, and zeros behind them up to `memory` bytes."""

    address: int
    content: bytes
    flags: int
    memory: int | None = None


@dataclass
class Symbol:
    """A dynamic symbol; without an address it is one of another object."""

    name: str
    address: int | None = None
    size: int = 0
    kind: int = FUNCTION
    binding: int = GLOBAL
    visibility: int = 0


@dataclass
class Elf:
    """What a file is made of. Relocations are (address, type, name of the symbol or "", addend)."""

    parts: Sequence[Part]
    symbols: Sequence[Symbol] = ()
    relocations: Sequence[tuple[int, int, str, int]] = ()
    relr: Sequence[int] = ()
    needed: Sequence[str] = ()
    soname: str | None = None
    runpath: str | None = None
    rpath: str | None = None
    interpreter: str | None = None
    relro: tuple[int, int] | None = None
    tls: tuple[int, int, int] | None = None
    kind: int = 3
    machine: int = 62
    is_64: bool = True
    alignment: int = PAGE
    extra: dict[int, int] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.bytes())
        return path

    def bytes(self) -> bytes:
        """Headers and dynamic tables are in a part of their own, pages behind the last one, which is only read."""
        behind = max(each.address + (each.memory or len(each.content)) for each in self.parts)
        tables_at = -(-behind // PAGE) * PAGE + PAGE
        tables, dynamic_at, dynamic_size, interpreter_at = self._tables(tables_at)
        parts = [*self.parts, Part(tables_at, tables, R)]
        headers = [(LOAD, each.flags, each.address, each.address, len(each.content), each.memory) for each in parts]
        offset, content, places = PAGE, bytearray(PAGE), []
        for each in parts:
            offset += (each.address - offset) % PAGE
            content += b"\xee" * (offset - len(content)) + each.content  # what stands between parts is mapped with them
            places.append(offset)
            offset += len(each.content)
        rows = []
        for (kind, flags, address, _physical, size, memory), place in zip(headers, places, strict=True):
            rows.append((kind, flags, place, address, address, size, size if memory is None else memory, self.alignment))
        tables_place = places[-1]
        rows.append((DYNAMIC, R, tables_place + dynamic_at, tables_at + dynamic_at, 0, dynamic_size, dynamic_size, 8))
        if self.interpreter is not None:
            size = len(self.interpreter) + 1
            rows.append((INTERP, R, tables_place + interpreter_at, tables_at + interpreter_at, 0, size, size, 1))
        if self.relro is not None:
            rows.append((RELRO, R, 0, self.relro[0], 0, 0, self.relro[1] - self.relro[0], 1))
        if self.tls is not None:
            address, size, alignment = self.tls
            rows.append((TLS, R, 0, address, 0, 0, size, alignment))
        ident = b"\x7fELF" + bytes([2 if self.is_64 else 1, 1, 1]) + bytes(9)
        header = ident + struct.pack("<HHIQQQIHHHHHH", self.kind, self.machine, 1, 0, 64, 0, 0, 64, 56, len(rows), 64, 0, 0)
        table = b"".join(struct.pack("<IIQQQQQQ", *row) for row in rows)
        content[: len(header) + len(table)] = header + table
        return bytes(content)

    def _tables(self, start: int) -> tuple[bytes, int, int, int]:
        names = bytearray(b"\0")

        def name(text: str) -> int:
            names.extend(text.encode() + b"\0")
            return len(names) - len(text) - 1

        symbols = [bytes(24)]
        for each in self.symbols:
            section = 0 if each.address is None else 1
            info = each.binding << 4 | each.kind
            symbols.append(
                struct.pack("<IBBHQQ", name(each.name), info, each.visibility, section, each.address or 0, each.size)
            )
        numbers = {each.name: index for index, each in enumerate(self.symbols, 1)}
        rela = b"".join(
            struct.pack("<QQq", address, (numbers[symbol] << 32 if symbol else 0) | kind, addend)
            for address, kind, symbol, addend in self.relocations
        )
        # A table of one bucket, whose second number says how many symbols there are.
        hashes = struct.pack("<IIII", 1, len(symbols), 0, 0) + bytes(4 * len(symbols))
        tags: list[tuple[int, int]] = [(1, name(each)) for each in self.needed]
        for tag, text in ((14, self.soname), (15, self.rpath), (29, self.runpath)):
            if text is not None:
                tags.append((tag, name(text)))
        relr = b"".join(struct.pack("<Q", each) for each in self.relr)
        pieces = {6: b"".join(symbols), 7: rela, 36: relr, 4: hashes, 5: bytes(names)}
        content, places = bytearray(), {}
        for tag, piece in pieces.items():
            places[tag] = start + len(content)
            content += piece + bytes(-len(piece) % 8)
        interpreter_at = len(content)
        content += (self.interpreter or "").encode() + b"\0"
        content += bytes(-len(content) % 8)
        tags += [(tag, places[tag]) for tag in (4, 5, 6)] + [(10, len(names)), (11, 24)]
        if rela:
            tags += [(7, places[7]), (8, len(rela)), (9, 24)]
        if relr:
            tags += [(36, places[36]), (35, len(relr)), (37, 8)]
        tags += [*self.extra.items(), (0, 0)]
        dynamic_at = len(content)
        content += b"".join(struct.pack("<QQ", *each) for each in tags)
        return bytes(content), dynamic_at, 16 * len(tags), interpreter_at
