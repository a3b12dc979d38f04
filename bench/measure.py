"""Measurements of the reference and the fast path, each a pair of functions that time one repeat."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from capvisor.fastpath import bounds as fast_bounds
from capvisor.fastpath import isa as _kernels  # declares the kernels
from capvisor.fastpath import paging as fast_paging
from capvisor.fastpath.machine import BatchMachine
from capvisor.fastpath.workspace import BLOCK_LANES, Workspace
from capvisor.model import bounds, capability, paging
from capvisor.model import isa as _rules  # declares the rules
from capvisor.model.machine import Hart
from capvisor.model.memory import Memory
from capvisor.model.tags import TagTable
from capvisor.spec.formats import CC128
from capvisor.spec.paging import FIRST_VM, FRAME_SHIFT, WORDS_PER_FRAME, Access, Entry, Mode

assert _kernels and _rules

CAPABILITIES = 1_000_000
LANES = 100_000
MEMORY_BASE, MEMORY_BYTES = 0x8000_0000, 1024
REFERENCE_CALLS = 5_000
WALKS, WALKED_PAGES = 1_000_000, 1 << 16
STEPS = 5
"""How often one repeat executes an operation on all lanes."""

Timer = Callable[[], float]
"""Times one repeat: seconds for one capability or operation of one lane."""


@dataclass(frozen=True)
class Measurement:
    """A name, the unit of its figures ("ns" each, or "M/s" for operations), and how to get ready."""

    name: str
    unit: str
    prepare: Callable[[], tuple[Timer, Timer]]


def _timer(function: Callable[[], Any], count: int) -> Timer:
    def once() -> float:
        start = time.perf_counter()
        function()
        return (time.perf_counter() - start) / count

    function()  # warm
    return once


def _capabilities() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Metas, addresses and lengths: of capabilities derived from the root, and lengths of all sizes."""
    rng = np.random.default_rng(0)
    address = rng.integers(0, 2**64, CAPABILITIES, dtype=np.uint64)
    length = rng.integers(0, 2**64, CAPABILITIES, dtype=np.uint64) >> rng.integers(0, 64, CAPABILITIES, dtype=np.uint64)
    meta, exact, ws = (
        np.full(CAPABILITIES, CC128.root_meta, np.uint64),
        np.empty(CAPABILITIES, np.bool_),
        Workspace(CAPABILITIES),
    )
    narrowed = np.empty(CAPABILITIES, np.uint64)
    fast_bounds.set_bounds(CC128, meta, address, length, ws, narrowed, exact)
    return narrowed, address, length


def _blocks() -> list[slice]:
    return [slice(start, min(start + BLOCK_LANES, CAPABILITIES)) for start in range(0, CAPABILITIES, BLOCK_LANES)]


def _decode() -> tuple[Timer, Timer]:
    meta, address, _length = _capabilities()
    base, top, high = np.empty_like(meta), np.empty_like(meta), np.empty(CAPABILITIES, np.bool_)
    whole = Workspace(BLOCK_LANES)
    blocks = [(part, whole.narrowed(part.stop - part.start)) for part in _blocks()]

    def fast() -> None:
        for part, ws in blocks:
            fast_bounds.decode_bounds(CC128, meta[part], address[part], ws, base[part], top[part], high[part])

    pairs = list(zip(meta[:REFERENCE_CALLS].tolist(), address[:REFERENCE_CALLS].tolist(), strict=True))

    def reference() -> None:
        for m, a in pairs:
            bounds.decode_bounds(CC128, m, a)

    return _timer(fast, CAPABILITIES), _timer(reference, REFERENCE_CALLS)


def _set_bounds() -> tuple[Timer, Timer]:
    meta, address, length = _capabilities()
    out, exact = np.empty_like(meta), np.empty(CAPABILITIES, np.bool_)
    whole = Workspace(BLOCK_LANES)
    blocks = [(part, whole.narrowed(part.stop - part.start)) for part in _blocks()]

    def fast() -> None:
        for part, ws in blocks:
            fast_bounds.set_bounds(CC128, meta[part], address[part], length[part], ws, out[part], exact[part])

    rows = [column[:REFERENCE_CALLS].tolist() for column in (meta, address, length)]
    triples = [(m, a, a + n) for m, a, n in zip(*rows, strict=True)]

    def reference() -> None:
        for m, a, top in triples:
            bounds.set_bounds(CC128, m, a, top)

    return _timer(fast, CAPABILITIES), _timer(reference, REFERENCE_CALLS)


_POINTERS, _NUMBERS = (1, 2, 3, 4), (5, 6, 7, 8)
"""The registers that point anywhere into memory, and those that hold small numbers."""


def _machines() -> tuple[BatchMachine, Hart]:
    """A batch machine, each lane with pointers and numbers of its own, and a hart in the state of its first lane."""
    rng = np.random.default_rng(0)
    size = CC128.capability_bytes
    machine = BatchMachine(CC128, MEMORY_BASE, MEMORY_BYTES, LANES)
    hart = Hart(Memory(CC128, MEMORY_BASE, MEMORY_BYTES))
    for register in _POINTERS:
        addresses = np.uint64(MEMORY_BASE) + rng.integers(0, MEMORY_BYTES // size, LANES, dtype=np.uint64) * np.uint64(size)
        machine.tags[register], machine.metas[register], machine.addresses[register] = True, CC128.root_meta, addresses
        hart.write(register, capability.root(CC128, int(addresses[0])))
    for register in _NUMBERS:
        machine.addresses[register] = rng.integers(0, 4096, LANES, dtype=np.uint64)
        hart.write_integer(register, int(machine.addresses[register, 0]))
    return machine, hart


def _machine(name: str, operands: tuple[int, ...]) -> tuple[Timer, Timer]:
    machine, hart = _machines()

    def reference() -> None:
        for _ in range(REFERENCE_CALLS):
            hart.step(name, operands)

    def fast() -> None:
        for _ in range(STEPS):
            machine.step(name, operands)

    return _timer(fast, LANES * STEPS), _timer(reference, REFERENCE_CALLS)


_MIX = {
    **dict.fromkeys(("add", "sub", "and", "slt"), ("results", "numbers", "numbers")),
    **dict.fromkeys(("cincoffset", "csetbounds", "candperm"), ("results", "pointers", "numbers")),
    "cmove": ("results", "pointers"),
    "cgetlen": ("results", "pointers"),
    "clc": ("results", "zero", "pointers"),
    "csc": ("pointers", "zero", "pointers"),
    "cld": ("results", "zero", "pointers"),
    "csd": ("numbers", "zero", "pointers"),
}
"""Operations of divergent programs, with the registers of their operands: each lane draws its own."""


def _divergent() -> tuple[Timer, Timer]:
    """Each lane with an operation and registers of its own, other ones in every step; of the reference, the first lanes'."""
    machine, hart = _machines()
    rng = np.random.default_rng(0)
    registers = {"results": (9, 10, 11, 12), "pointers": _POINTERS, "numbers": _NUMBERS, "zero": (0,)}
    names = list(_MIX)
    steps = []
    for _ in range(STEPS):
        chosen, operands = rng.integers(0, len(names), LANES), np.zeros((LANES, 3), np.int64)
        for index, kinds in enumerate(_MIX.values()):
            mine = np.flatnonzero(chosen == index)
            for column, kind in enumerate(kinds):
                operands[mine, column] = rng.choice(registers[kind], len(mine))
        steps.append((chosen, operands))
    first, rows = (each[:REFERENCE_CALLS].tolist() for each in steps[0])
    program = [(names[index], tuple(row[: len(_MIX[names[index]])])) for index, row in zip(first, rows, strict=True)]

    def reference() -> None:
        for name, own in program:
            hart.step(name, own)

    def fast() -> None:
        for chosen, operands in steps:
            machine.step_divergent(names, chosen, operands)

    return _timer(fast, LANES * STEPS), _timer(reference, len(program))


_DOWN = int(Entry.P | Entry.RW | Entry.US | Entry.A | Entry.D)


def _tables(words: np.ndarray, first: int, named: np.ndarray) -> int:
    """Four levels of tables in frames from `first`, by which page n is in frame named[n]; the root's frame."""
    for _ in range(4):
        words[first * WORDS_PER_FRAME :][: len(named)] = named.astype(np.uint64) << np.uint64(FRAME_SHIFT) | np.uint64(_DOWN)
        named = np.arange(first, first + -(-len(named) // WORDS_PER_FRAME))
        first += len(named)
    return first - 1


def _walks(mode: Mode) -> tuple[Timer, Timer]:
    """Reads of any of many 4 KiB pages, by four levels of tables; nested, by four of the host's too."""
    rng = np.random.default_rng(0)
    frames = 2 * WALKED_PAGES + (WALKED_PAGES >> 7) + 16
    words = np.zeros(frames * WORDS_PER_FRAME, np.uint64)
    root = _tables(words, WALKED_PAGES, rng.permutation(WALKED_PAGES))
    nested_root = _tables(words, root + 1, np.arange(root + 1))
    space = fast_paging.Memory(words[None, :], np.full((1, frames), FIRST_VM, np.uint32))
    address = rng.integers(0, WALKED_PAGES << FRAME_SHIFT, WALKS, dtype=np.uint64)
    needed = np.full(WALKS, int(Entry.US), np.uint64)
    translation, bases = fast_paging.Translation(mode), (root << FRAME_SHIFT, nested_root << FRAME_SHIFT)

    def fast() -> None:
        fast_paging.walk(space, translation, address, bases[0], needed, FIRST_VM, bases[1])

    memory, tags = paging.SparseWords(frames), TagTable(frames)
    for place in np.flatnonzero(words).tolist():
        memory.set(*divmod(place, WORDS_PER_FRAME), int(words[place]))
    for frame in range(frames):
        tags[frame] = FIRST_VM
    first = address[:REFERENCE_CALLS].tolist()

    def reference() -> None:
        guest: Any = paging.Direct(memory, root, 4)
        if mode is Mode.NESTED:
            guest = paging.Nested(memory, root, 4, nested_root, 4)
        elif mode is Mode.TPT:
            guest = paging.Tagged(memory, root, 4, tags, FIRST_VM)
        for each in first:
            paging.translate(guest, each, Access.READ, True)

    return _timer(fast, WALKS), _timer(reference, len(first))


def _operation(name: str, *operands: int) -> Measurement:
    return Measurement(f"{name}, {LANES:.0e} lanes".replace("e+0", "e"), "M/s", lambda: _machine(name, operands))


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("decode_bounds, 1e6 capabilities", "ns", _decode),
    Measurement("set_bounds, 1e6 capabilities", "ns", _set_bounds),
    _operation("csetbounds", 2, 1, 5),
    _operation("cincoffset", 2, 1, 5),
    _operation("csetaddr", 2, 1, 5),
    _operation("cbuildcap", 2, 1, 1),
    _operation("clc", 3, 0, 1),
    _operation("csc", 1, 0, 1),
    _operation("cld", 3, 0, 1),
    _operation("csd", 5, 0, 1),
    _operation("add", 3, 5, 5),
    _operation("beq", 5, 6, 16),
    Measurement("divergent, 13 operations, 1e5 lanes", "M/s", _divergent),
    Measurement("walk, native, 1e6 addresses", "M/s", lambda: _walks(Mode.NATIVE)),
    Measurement("walk, nested, 1e6 addresses", "M/s", lambda: _walks(Mode.NESTED)),
    Measurement("walk, TPT, 1e6 addresses", "M/s", lambda: _walks(Mode.TPT)),
)
