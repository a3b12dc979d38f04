"""What relocations write when some objects are loaded together: symbols are bound as a dynamic linker binds them.

Each write is kept as what it depends on: the load address of one object (or of none) and an addend. Sources: AMD64
supplement of the System V ABI, table 4.10; gABI, "Shared Object Dependencies" (order of search); U. Drepper, "ELF
Handling For Thread-Local Storage", section 3.4.6 (x86-64).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from capvisor.study.elf import ElfObject, width_of
from capvisor.study.elf_tables import ABSOLUTE, LOCAL, TLS_SYMBOL, UNDEFINED, WEAK, WORD_BYTES, Kind
from capvisor.study.object_pages import ObjectPages, memory_bytes

NOTHING = -1
"""In place of an object: what is written depends on no load address."""
_MASK = (1 << 64) - 1
_PLAIN = (Kind.RELATIVE, Kind.RELATIVE64, Kind.IRELATIVE)
_BOUND_WORDS = (Kind.R64, Kind.GLOB_DAT, Kind.JUMP_SLOT)
_FROM_PLACE = (Kind.PC32, Kind.PC64)


@dataclass(frozen=True)
class Write:
    """`width` bytes at an address as linked: the load address of object `plus`, less that of `minus`, and an addend.

    Where several write to the same bytes, the one of the highest `position` does so last.
    """

    position: int
    address: int
    width: int
    plus: int
    minus: int
    addend: int


@dataclass(eq=False)
class Binding:
    """What is written into one object of a program.

    Words of eight bytes: `address` uint64, `plus` int64 (an index into the program's objects, or NOTHING) and `addend`
    uint64, by address, with `position` int64 as a Write has it. Whatever is of another form is in `others`; `copies` are
    bytes that come before all of them. `unbound` are symbols that no object has.
    """

    address: NDArray[np.uint64]
    plus: NDArray[np.int64]
    addend: NDArray[np.uint64]
    position: NDArray[np.int64]
    others: list[Write] = field(default_factory=list)
    copies: list[tuple[int, bytes]] = field(default_factory=list)
    unbound: list[str] = field(default_factory=list)


def bind(objects: Sequence[ElfObject], pages: Sequence[ObjectPages]) -> list[Binding]:
    """What is written into each object of a program, whose objects stand in the order of search."""
    scope = _Scope(objects)
    bindings = [_bind(index, each, scope) for index, each in enumerate(objects)]
    for index, each in enumerate(objects):
        _copy(index, each, scope, bindings, pages)
    return bindings


class _Target(NamedTuple):
    """What a symbol stands for: `place` is the object whose load address counts, or NOTHING."""

    owner: int
    place: int
    value: int
    size: int


class _Scope:
    """The objects in the order of search, and where their thread-local storage lies."""

    def __init__(self, objects: Sequence[ElfObject]) -> None:
        self.objects = objects
        self.module: dict[int, int] = {}
        self.tls_offset: dict[int, int] = {}
        end = 0
        for index, each in enumerate(objects):
            if each.thread_local is not None:
                size, alignment = each.thread_local.size, each.thread_local.alignment
                end = -(-(end + size) // alignment) * alignment
                self.module[index], self.tls_offset[index] = len(self.module) + 1, end
        self._exported = [each.symbols.exported for each in objects]
        self._found: dict[tuple[bytes, bytes | None, bool], tuple[int, int] | None] = {}
        self.unbound: list[dict[str, None]] = [{} for _ in objects]

    def target(self, index: int, symbol: int, kind: int) -> _Target:
        """What a symbol of an object stands for in a relocation of a kind; a strong one that isn't found is noted."""
        if symbol == 0:
            return _Target(index, NOTHING, 0, 0)
        table = self.objects[index].symbols
        found = self.find(index, symbol, kind)
        if found is None:
            if table.rows[symbol].info >> 4 != WEAK:
                self.unbound[index][table.name(symbol).decode(errors="backslashreplace")] = None
            return _Target(index, NOTHING, 0, 0)
        owner, number = found
        row = self.objects[owner].symbols.rows[number]
        is_absolute = row.section == ABSOLUTE or row.info & 15 == TLS_SYMBOL
        return _Target(owner, NOTHING if is_absolute else owner, row.value, row.size)

    def find(self, index: int, symbol: int, kind: int) -> tuple[int, int] | None:
        """The object, and the symbol in it, that a symbol of an object is bound to; none if it isn't."""
        table = self.objects[index].symbols
        row = table.rows[symbol]
        visibility, is_defined = row.other & 3, row.section != UNDEFINED
        if row.info >> 4 == LOCAL or (visibility in (1, 2) and is_defined):
            return index, symbol
        name, version = table.name(symbol), table.version(symbol)
        if kind == Kind.COPY:
            return self._search(name, version, False, index)
        if (self.objects[index].is_symbolic or visibility) and is_defined:
            return index, symbol
        key = (name, version, kind == Kind.JUMP_SLOT)
        if key not in self._found:
            self._found[key] = self._search(*key)
        return self._found[key]

    def _search(self, name: bytes, version: bytes | None, is_call: bool, without: int = NOTHING) -> tuple[int, int] | None:
        for place, exported in enumerate(self._exported):
            if name in exported and place != without:
                there = self.objects[place].symbols.lookup(name, version, is_call)
                if there is not None:
                    return place, there
        return None


def _bind(index: int, elf: ElfObject, scope: _Scope) -> Binding:
    relocations = elf.relocations
    plus = np.full(len(relocations), index, np.int64)
    value = np.zeros(len(relocations), np.uint64)
    is_word = np.isin(relocations.kind, _PLAIN)
    for kind in _BOUND_WORDS:
        chosen = relocations.kind == kind
        is_word |= chosen
        symbols, which = np.unique(relocations.symbol[chosen], return_inverse=True)
        targets = [scope.target(index, symbol, kind) for symbol in symbols.tolist()]
        plus[chosen] = np.array([each.place for each in targets], np.int64)[which]
        value[chosen] = np.array([each.value for each in targets], np.uint64)[which]
    words: list[Write] = []
    others: list[Write] = []
    for position in np.flatnonzero(~is_word & ~np.isin(relocations.kind, (Kind.NONE, Kind.COPY))).tolist():
        for write in _writes(index, position, scope):
            (words if write.width == WORD_BYTES and write.minus == NOTHING else others).append(write)
    result = Binding(
        np.concatenate([relocations.address[is_word], np.array([each.address for each in words], np.uint64)]),
        np.concatenate([plus[is_word], np.array([each.plus for each in words], np.int64)]),
        np.concatenate(
            [(relocations.addend + value)[is_word], np.array([each.addend & _MASK for each in words], np.uint64)]
        ),
        np.concatenate([np.flatnonzero(is_word), np.array([each.position for each in words], np.int64)]),
        others,
        unbound=list(scope.unbound[index]),
    )
    _keep_last(result)
    return result


def _keep_last(binding: Binding) -> None:
    """In the order of addresses, of those that write to the same one only the last."""
    order = np.lexsort((binding.position, binding.address))
    address = binding.address[order]
    is_last = np.append(address[1:] != address[:-1], True)[: len(address)]
    chosen = order[is_last]
    for name in ("address", "plus", "addend", "position"):
        setattr(binding, name, getattr(binding, name)[chosen])


def _writes(index: int, position: int, scope: _Scope) -> list[Write]:
    row = scope.objects[index].relocations
    kind, address = int(row.kind[position]), int(row.address[position])
    addend, width = int(row.addend[position]), width_of(kind)
    owner, place, value, size = scope.target(index, int(row.symbol[position]), kind)
    if kind in (Kind.R32, Kind.R32S):
        return [Write(position, address, width, place, NOTHING, value + addend)]
    if kind in _FROM_PLACE:
        return [Write(position, address, width, place, index, value + addend - address)]
    if kind in (Kind.SIZE32, Kind.SIZE64):
        return [Write(position, address, width, NOTHING, NOTHING, size + addend)]
    if kind == Kind.DTPMOD64:
        return [Write(position, address, width, NOTHING, NOTHING, scope.module.get(owner, 0))]
    if kind == Kind.DTPOFF64:
        return [Write(position, address, width, NOTHING, NOTHING, value + addend)]
    offset = value + addend - scope.tls_offset.get(owner, 0)
    if kind == Kind.TPOFF64:
        return [Write(position, address, width, NOTHING, NOTHING, offset)]
    assert kind == Kind.TLSDESC
    # The function is one of the dynamic linker's, which stands last: its load address stands for it.
    linker = len(scope.objects) - 1
    return [
        Write(position, address, WORD_BYTES, linker, NOTHING, 0),
        Write(position, address + WORD_BYTES, WORD_BYTES, NOTHING, NOTHING, offset),
    ]


def _copy(index: int, elf: ElfObject, scope: _Scope, bindings: Sequence[Binding], pages: Sequence[ObjectPages]) -> None:
    """Data that an executable has its own copy of, with what relocations write into the original and wholly within it."""
    target = bindings[index]
    relocations = elf.relocations
    for position in np.flatnonzero(relocations.kind == Kind.COPY).tolist():
        symbol, address = int(relocations.symbol[position]), int(relocations.address[position])
        found = scope.find(index, symbol, Kind.COPY)
        if found is None:
            target.unbound.append(elf.symbols.name(symbol).decode(errors="backslashreplace"))
            continue
        owner, number = found
        row = scope.objects[owner].symbols.rows[number]
        start, size = row.value, min(row.size, elf.symbols.rows[symbol].size)
        target.copies.append((address, memory_bytes(scope.objects[owner], pages[owner], start, size)))
        source, last = bindings[owner], np.int64(len(relocations))
        moved = address - start
        inside = (source.address >= np.uint64(start)) & (source.address + np.uint64(WORD_BYTES) <= np.uint64(start + size))
        target.address = np.concatenate([target.address, source.address[inside] + np.uint64(moved % (1 << 64))])
        target.plus = np.concatenate([target.plus, source.plus[inside]])
        target.addend = np.concatenate([target.addend, source.addend[inside]])
        target.position = np.concatenate([target.position, source.position[inside] + last])
        _keep_last(target)
        target.others += [
            replace(each, address=each.address + moved, position=each.position + int(last))
            for each in source.others
            if start <= each.address and each.address + each.width <= start + size
        ]
