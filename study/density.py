"""Resident memory of many tenants, by what systems share between them: nothing, equal pages, files, or objects (ORC)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capvisor.study.binding import Binding, bind
from capvisor.study.deduplication import DifferentPages, Shares
from capvisor.study.elf import ElfObject
from capvisor.study.elf_tables import PAGE_BYTES
from capvisor.study.object_pages import ObjectPages, pages_of
from capvisor.study.placement import count_tables, draws, load_addresses, runs, table_pages

SLOT_PAGES = (256 << 20) // PAGE_BYTES
"""Where an object of ORC may be: the prototype's objects have slots of 256 MiB in the one address space."""
ORC_START = 1 << 40


class System(StrEnum):
    """What is compared."""

    NONE = "no sharing"
    PAGES = "page de-duplication"
    FILES = "shared OS"
    OBJECTS = "ORC"


@dataclass(frozen=True)
class Assumptions:
    """What a study takes for granted; the fractions are from 0 to 1."""

    touched: float = 1.0
    written: float = 0.0
    is_orc_on_demand: bool = False
    has_same_addresses: bool = False
    seed: int = 0
    counts_page_tables: bool = False


@dataclass(frozen=True)
class TenantKind:
    """Tenants that load the same objects, given by their places in the study's list, in the order of search."""

    name: str
    objects: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class ObjectSummary:
    """An object: pages by what they are, and what it may share."""

    elf: ElfObject
    pages: ObjectPages
    tenants: int

    @property
    def page_counts(self) -> dict[str, int]:
        """Code, data that is only read, relocated data, and data that is written, with and without bytes in the file."""
        pages = self.pages
        kept = ~pages.is_shadow
        zeros = pages.is_writable & (pages.file_page < 0)
        return {
            "code": int((kept & pages.is_executable).sum()),
            "read_only": int((kept & ~pages.is_executable).sum()),
            "relocated": int((pages.is_touched & ~pages.is_writable).sum()),
            "data": int((pages.is_writable & ~zeros).sum()),
            "zero": int(zeros.sum()),
        }


@dataclass(frozen=True, eq=False)
class Density:
    """The result: expected resident bytes, float64[numbers, objects] by system, and of page tables float64[numbers]."""

    numbers: tuple[int, ...]
    assumptions: Assumptions
    kinds: tuple[TenantKind, ...]
    tenants: tuple[tuple[int, ...], ...]
    """How many of each kind, for each number of tenants."""
    objects: tuple[ObjectSummary, ...]
    by_object: dict[System, NDArray[np.float64]]
    page_tables: dict[System, NDArray[np.float64]]
    unbound: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def total(self, system: System) -> NDArray[np.float64]:
        """Bytes by number of tenants, page tables included where they are counted."""
        found: NDArray[np.float64] = self.by_object[system].sum(axis=1) + self.page_tables[system]
        return found


def sequence(counts: Sequence[int], length: int) -> NDArray[np.int64]:
    """The kind of each of so many tenants, mixed as evenly as the counts allow: the one that lags behind most comes next."""
    weights = np.array(counts, np.int64)
    credit, order = np.zeros(len(weights), np.int64), []
    for _ in range(min(length, int(weights.sum()))):
        credit += weights
        order.append(int(credit.argmax()))
        credit[order[-1]] -= weights.sum()
    return np.resize(np.array(order, np.int64), length)


class _Population:
    """Tenants in their sequence, and where each has its objects."""

    def __init__(
        self, kinds: Sequence[TenantKind], objects: Sequence[ElfObject], numbers: Sequence[int], assumptions: Assumptions
    ) -> None:
        self.numbers = tuple(numbers)
        most = max(numbers)
        order = sequence([each.count for each in kinds], most)
        moved = (
            draws(1, assumptions.seed).repeat(most, 0) if assumptions.has_same_addresses else draws(most, assumptions.seed)
        )
        self._tenants = [np.flatnonzero(order == kind) for kind in range(len(kinds))]
        self._loaded = [
            load_addresses([objects[index] for index in each.objects], moved[tenants])
            for each, tenants in zip(kinds, self._tenants, strict=True)
        ]

    def tenants(self, kind: int) -> NDArray[np.int64]:
        return self._tenants[kind]

    def loaded(self, kind: int) -> NDArray[np.uint64]:
        return self._loaded[kind]


def measure(
    kinds: Sequence[TenantKind],
    objects: Sequence[ElfObject],
    numbers: Sequence[int],
    assumptions: Assumptions,
    advance: Callable[[int], None] = lambda _done: None,
) -> Density:
    """The resident bytes of the first 1..n tenants, for each n in `numbers`, which are positive.

    `objects` are different files; each kind's indices into them have the dynamic linker last, where there is one.
    `advance` is told how many objects have been read through.
    """
    pages = [pages_of(each) for each in objects]
    population = _Population(kinds, objects, numbers, assumptions)
    tenants_of = _tenants_by_object(kinds, population, len(objects))
    having = np.array([[np.searchsorted(each, n) for each in tenants_of] for n in numbers], np.float64)
    different, unbound = _different_pages(kinds, objects, pages, population, assumptions, advance)
    touched, size = assumptions.touched, PAGE_BYTES
    everything = np.array([len(each) for each in pages], np.float64)
    shadow = np.array([each.is_shadow.sum() for each in pages], np.float64)
    clean = np.array([len(np.unique(each.file_page[~each.is_shadow])) for each in pages], np.float64)
    frozen = touched if assumptions.is_orc_on_demand else 1.0
    by_object = {
        System.NONE: size * touched * having * everything,
        System.PAGES: size * different.resident(tenants_of),
        System.FILES: size * (touched * having * shadow + _there(having, touched) * clean),
        System.OBJECTS: size * (frozen * having * shadow + _of_first(objects, having, frozen) * (everything - shadow)),
    }
    tables = _page_tables(kinds, objects, pages, population, having > 0) if assumptions.counts_page_tables else None
    none = dict.fromkeys(System, np.zeros(len(numbers)))
    return Density(
        tuple(numbers),
        assumptions,
        tuple(kinds),
        tuple(tuple(int(np.searchsorted(population.tenants(kind), n)) for kind in range(len(kinds))) for n in numbers),
        tuple(ObjectSummary(*each) for each in zip(objects, pages, having[-1].astype(int).tolist(), strict=True)),
        by_object,
        none if tables is None else tables,
        unbound,
    )


def _tenants_by_object(kinds: Sequence[TenantKind], population: _Population, objects: int) -> list[NDArray[np.int64]]:
    found: list[list[NDArray[np.int64]]] = [[] for _ in range(objects)]
    for kind, each in enumerate(kinds):
        for index in each.objects:
            found[index].append(population.tenants(kind))
    return [np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64) for parts in found]


def _different_pages(
    kinds: Sequence[TenantKind],
    objects: Sequence[ElfObject],
    pages: Sequence[ObjectPages],
    population: _Population,
    assumptions: Assumptions,
    advance: Callable[[int], None],
) -> tuple[DifferentPages, dict[str, tuple[str, ...]]]:
    different = DifferentPages(population, len(objects), Shares(assumptions.touched, assumptions.written))
    unbound: dict[str, tuple[str, ...]] = {}
    for index, (elf, mapped) in enumerate(zip(objects, pages, strict=True)):
        different.add_object(index, elf, mapped)
        advance(1)
    known: dict[tuple[int, ...], list[Binding]] = {}
    for kind, each in enumerate(kinds):
        loaded = [objects[index] for index in each.objects]
        if each.objects not in known:
            known[each.objects] = bind(loaded, [pages[index] for index in each.objects])
        names = {name for binding in known[each.objects] for name in binding.unbound}
        if names:
            unbound[each.name] = tuple(sorted(names))
        for place, index in enumerate(each.objects):
            different.add_binding(kind, place, index, loaded, pages[index], known[each.objects][place])
    return different, unbound


def _there(having: NDArray[np.float64], touched: float) -> NDArray[np.float64]:
    """How probable it is that one of so many tenants has touched a page."""
    return 1 - (1 - touched) ** having


def _of_first(objects: Sequence[ElfObject], having: NDArray[np.float64], touched: float) -> NDArray[np.float64]:
    """The part of each object that is there once for all that have the same content, which the first of these has."""
    result = np.zeros(having.shape)
    same: dict[bytes, list[int]] = {}
    for index, each in enumerate(objects):
        same.setdefault(each.digest, []).append(index)
    for indices in same.values():
        first = np.array(indices)[(having[:, indices] > 0).argmax(axis=1)]
        result[np.arange(len(having)), first] = _there(having[:, indices].sum(axis=1), touched)
    return result


def _page_tables(
    kinds: Sequence[TenantKind],
    objects: Sequence[ElfObject],
    pages: Sequence[ObjectPages],
    population: _Population,
    present: NDArray[np.bool_],
) -> dict[System, NDArray[np.float64]]:
    """Bytes of page tables: each tenant's own, but in ORC those of the one address space."""
    own = np.zeros(len(population.numbers))
    shadows = np.zeros(len(population.numbers))
    for kind, each in enumerate(kinds):
        chosen = [pages[index] for index in each.objects]
        tables = np.append(0, np.cumsum(table_pages(chosen, population.loaded(kind))))
        here = np.searchsorted(population.tenants(kind), population.numbers)
        own += tables[here]
        shadows += here * sum(int(mapped.is_shadow.sum()) for mapped in chosen)
    one = np.array([_orc_tables(objects, pages, *each) for each in zip(present, shadows, strict=True)], np.float64)
    return {system: PAGE_BYTES * (one if system is System.OBJECTS else own) for system in System}


def _orc_tables(
    objects: Sequence[ElfObject], pages: Sequence[ObjectPages], present: NDArray[np.bool_], shadows: float
) -> int:
    """Of objects in slots one after the other, each content once, and all shadows behind them without a gap."""
    ranges: list[NDArray[np.int64]] = []
    slot, seen = ORC_START // PAGE_BYTES, set()
    for elf, mapped, is_present in zip(objects, pages, present.tolist(), strict=True):
        if is_present and elf.digest not in seen:
            seen.add(elf.digest)
            ranges.append(runs(mapped.number[~mapped.is_shadow]) - elf.first_page + slot)
            slot += -(-elf.span_pages // SLOT_PAGES) * SLOT_PAGES
    if shadows:
        ranges.append(np.array([[slot, slot + int(shadows) - 1]]))
    both = np.concatenate(ranges)
    return int(count_tables(both[:, 0][None], both[:, 1][None])[0])


def as_json(density: Density) -> dict[str, Any]:
    """The result as JSON; bytes are rounded to whole numbers."""

    def sizes(row: int, index: int | None) -> dict[str, int]:
        chosen = {
            system: density.total(system)[row] if index is None else density.by_object[system][row, index]
            for system in System
        }
        return {system.name.lower(): round(float(value)) for system, value in chosen.items()}

    counts = density.assumptions.counts_page_tables
    return {
        "assumptions": {**vars(density.assumptions), "page_bytes": PAGE_BYTES},
        "kinds": [
            {
                "name": each.name,
                "count": each.count,
                "objects": list(each.objects),
                "unbound": list(density.unbound.get(each.name, ())),
            }
            for each in density.kinds
        ],
        "objects": [
            {
                "path": str(each.elf.path),
                "soname": each.elf.soname,
                "sha256": each.elf.digest.hex(),
                "relocations": len(each.elf.relocations),
                "pages": each.page_counts,
                "segments": [
                    {"address": s.address, "file_bytes": s.file_size, "memory_bytes": s.memory_size}
                    for s in each.elf.segments
                ],
            }
            for each in density.objects
        ],
        "growth": [
            {
                "tenants": n,
                "by_kind": list(density.tenants[row]),
                "resident_bytes": sizes(row, None),
                "page_table_bytes": {s.name.lower(): round(float(density.page_tables[s][row])) for s in System}
                if counts
                else None,
                "by_object": [sizes(row, index) for index in range(len(density.objects))],
            }
            for row, n in enumerate(density.numbers)
        ],
    }
