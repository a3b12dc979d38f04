"""How many different pages tenants have, each with its relocations applied at its own addresses.

The result is what hashing every page of every tenant would give, without doing so. Load addresses are multiples of the
page size, so the lowest twelve bits of each word of a page don't depend on them: pages whose words differ there are never
the same. Only pages that agree there are compared further; of the words that relocations write, one is compared for each
combination of objects whose addresses it depends on, since the others then agree or differ with it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from capvisor.study.binding import NOTHING, Binding
from capvisor.study.elf import ElfObject
from capvisor.study.elf_tables import PAGE_BYTES, WORD_BYTES
from capvisor.study.object_pages import ObjectPages, page_contents
from capvisor.study.rendering import has_odd_writes, put, render

_WORDS = PAGE_BYTES // WORD_BYTES
_IN_PAGE = np.uint64(PAGE_BYTES - 1)
_BLOCK = 4096
_NEVER = -1e6
"""Its exponential is 0: the logarithm of what is never the case, but finite."""


class Population(Protocol):
    """Who the tenants are."""

    numbers: tuple[int, ...]
    """Of tenants: the first so many are looked at."""

    def tenants(self, kind: int) -> NDArray[np.int64]:
        """The places of a kind's tenants in their sequence."""

    def loaded(self, kind: int) -> NDArray[np.uint64]:
        """Their load addresses, uint64[tenants of the kind, objects of the kind]."""


@dataclass(frozen=True)
class Shares:
    """What part of its pages each tenant touches, and what part of the writable ones it has changed since loading."""

    touched: float
    written: float

    def logarithm(self, is_writable: bool) -> float:
        """Of the probability that a page is not there as it was loaded."""
        there = self.touched * (1 - self.written if is_writable else 1)
        return _NEVER if there >= 1 else float(np.log1p(-there))

    @property
    def own(self) -> float:
        """Of writable pages, the part that is touched and changed."""
        return self.touched * self.written


@dataclass(frozen=True, eq=False)
class _Page:
    """A page of an object in some tenants: words with addends where `words` are relocated by the address of `plus`."""

    owner: int
    kind: int
    tenants: NDArray[np.int64]
    is_writable: bool
    content: NDArray[np.uint64]
    words: NDArray[np.int64]
    plus: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _FixedPages:
    """The pages of an object that are the same in every tenant, by rows of `pages`, and which are equal."""

    owner: int
    elf: ElfObject
    pages: ObjectPages
    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    signatures: list[bytes]

    def page(self, position: int, tenants: NDArray[np.int64]) -> _Page:
        """One of them, as a page to compare with relocated ones."""
        row = self.rows[position]
        content = page_contents(self.elf, self.pages, row[None]).view(np.uint64)[0]
        nothing = np.zeros(0, np.int64)
        return _Page(self.owner, NOTHING, tenants, bool(self.pages.is_writable[row]), content, nothing, nothing)


class DifferentPages:
    """Counts, by the first object that has each, the different pages of the first so many tenants.

    Fed with an object's pages once, and with what is written into them for each kind of tenants; `resident` then gives
    float64[numbers, objects], expected pages, once.
    """

    def __init__(self, population: Population, objects: int, shares: Shares) -> None:
        self._population, self._objects, self._shares = population, objects, shares
        self._content_ids: dict[bytes, int] = {}
        self._fixed: list[_FixedPages] = []
        self._relocated: dict[bytes, list[_Page]] = defaultdict(list)
        self._known: dict[object, NDArray[np.float64]] = {}

    def add_object(self, index: int, elf: ElfObject, pages: ObjectPages) -> None:
        """The pages of an object that no relocation touches."""
        rows = np.flatnonzero(~pages.is_touched)
        rows = rows[np.argsort(pages.file_page[rows] < 0, kind="stable")]
        in_file = int((pages.file_page[rows] >= 0).sum())
        zeros = np.zeros(PAGE_BYTES, np.uint8)
        ids = np.full(len(rows), self._content_ids.setdefault(_digest(zeros), len(self._content_ids)))
        signatures: list[bytes] = []
        for start in range(0, in_file, _BLOCK):
            block = page_contents(elf, pages, rows[start : min(start + _BLOCK, in_file)])
            for place, content in enumerate(block, start):
                ids[place] = self._content_ids.setdefault(_digest(content), len(self._content_ids))
            signatures += _signatures(block.view(np.uint64))
        signatures += _signatures(zeros.view(np.uint64)[None]) * (len(rows) - in_file)
        self._fixed.append(_FixedPages(index, elf, pages, rows, ids, signatures))

    def add_binding(
        self, kind: int, place: int, index: int, objects: Sequence[ElfObject], pages: ObjectPages, binding: Binding
    ) -> None:
        """The pages of an object that relocations touch, in the tenants of a kind, of whose objects it stands at `place`."""
        elf, rows = objects[place], np.flatnonzero(pages.is_touched)
        if not len(rows):
            return
        tenants, loaded = self._population.tenants(kind), self._population.loaded(kind)
        odd = has_odd_writes(pages, rows, binding)
        for row in rows[odd].tolist():
            self._add_odd(index, tenants, loaded, row, elf, pages, binding)
        rows = rows[~odd]
        content = page_contents(elf, pages, rows)
        number = pages.number[rows]
        for address, copied in binding.copies:
            for each, start in zip(content, (number * PAGE_BYTES).tolist(), strict=True):
                put(each, address - start, copied)
        words = content.view(np.uint64)
        page = (binding.address // np.uint64(PAGE_BYTES)).astype(np.int64)
        at = np.searchsorted(number, page)
        inside = (at < len(number)) & (number[np.minimum(at, len(number) - 1)] == page) if len(number) else at < 0
        at, word = at[inside], (binding.address[inside] & _IN_PAGE).astype(np.int64) // WORD_BYTES
        plus = binding.plus[inside]
        words[at, word] = binding.addend[inside]
        bounds = np.searchsorted(at, np.arange(len(rows) + 1))
        for position, signature in enumerate(_signatures(words)):
            here = slice(int(bounds[position]), int(bounds[position + 1]))
            is_writable = bool(pages.is_writable[rows[position]])
            bound = plus[here] != NOTHING
            made = _Page(index, kind, tenants, is_writable, words[position], word[here][bound], plus[here][bound])
            self._relocated[signature].append(made)

    def _add_odd(
        self,
        index: int,
        tenants: NDArray[np.int64],
        loaded: NDArray[np.uint64],
        row: int,
        elf: ElfObject,
        pages: ObjectPages,
        binding: Binding,
    ) -> None:
        """A page into which parts of words are written: what it is in each layout, as pages that depend on none."""
        layouts, which = np.unique(loaded, axis=0, return_inverse=True)
        nothing = np.zeros(0, np.int64)
        for number, layout in enumerate(layouts):
            content = render(elf, pages, row, binding, layout).view(np.uint64)
            those = tenants[which.reshape(-1) == number]
            page = _Page(index, NOTHING, those, bool(pages.is_writable[row]), content, nothing, nothing)
            self._relocated[_signatures(content[None])[0]].append(page)

    def resident(self, tenants_of: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
        """Expected resident pages, float64[numbers, objects], where an object is in the tenants at these places."""
        numbers = self._population.numbers
        having = np.array([[np.searchsorted(each, n) for each in tenants_of] for n in numbers], np.int64)
        total = np.zeros((len(numbers), self._objects))
        ids, owners, writable = [], [], []
        for each in self._fixed:
            also = np.array([signature in self._relocated for signature in each.signatures], bool)
            for position in np.flatnonzero(also).tolist():
                self._relocated[each.signatures[position]].append(each.page(position, tenants_of[each.owner]))
            ids.append(each.ids[~also])
            owners.append(np.full(int((~also).sum()), each.owner, np.int64))
            writable.append(each.pages.is_writable[each.rows[~also]])
        if ids:
            total += self._of_fixed(np.concatenate(ids), np.concatenate(owners), np.concatenate(writable), having)
        for group in self._relocated.values():
            for family, columns in _families(group):
                total += self._of_family(family, *columns)
        return total

    def _of_fixed(
        self, ids: NDArray[np.int64], owners: NDArray[np.int64], writable: NDArray[np.bool_], having: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Of pages that are the same in every tenant."""
        total = np.zeros((len(having), self._objects))
        if not len(ids):
            return total
        _, ids = np.unique(ids, return_inverse=True)
        weight = np.where(writable, self._shares.logarithm(True), self._shares.logarithm(False))
        for number, there in enumerate(having):
            counts = there[owners]
            total[number] = self._expected(ids, owners, weight * counts, counts > 0)
            total[number] += self._shares.own * np.bincount(owners, counts * writable, self._objects)
        return total

    def _of_family(self, family: list[_Page], plus: NDArray[np.int64], addend: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Of pages that are equal where these words are, which are given as [pages, words]."""
        key = (
            *((each.owner, each.kind, id(each.tenants), each.is_writable) for each in family),
            plus.tobytes(),
            addend.tobytes(),
        )
        if key in self._known:
            return self._known[key]
        values = []
        for each, refers, adds in zip(family, plus, addend, strict=True):
            rows = np.broadcast_to(adds, (len(each.tenants), len(adds))).copy()
            bound = np.flatnonzero(refers != NOTHING)
            if len(bound):
                rows[:, bound] += self._population.loaded(each.kind)[:, refers[bound]]
            values.append(rows)
        stacked = np.concatenate(values)
        if stacked.shape[1]:
            _, ids = np.unique(stacked, axis=0, return_inverse=True)
            ids = ids.reshape(-1)
        else:
            ids = np.zeros(len(stacked), np.int64)
        tenant = np.concatenate([each.tenants for each in family])
        lengths = [len(each.tenants) for each in family]
        owners = np.repeat(np.array([each.owner for each in family], np.int64), lengths)
        writable = np.repeat(np.array([each.is_writable for each in family], bool), lengths)
        weight = np.where(writable, self._shares.logarithm(True), self._shares.logarithm(False))
        total = np.zeros((len(self._population.numbers), self._objects))
        for number, n in enumerate(self._population.numbers):
            there = tenant < n
            total[number] = self._expected(ids, owners, weight * there, there)
            total[number] += self._shares.own * np.bincount(owners, there & writable, self._objects)
        self._known[key] = total
        return total

    def _expected(
        self, ids: NDArray[np.int64], owners: NDArray[np.int64], logarithms: NDArray[np.float64], there: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Pages that are expected to be there, by the first object that has each."""
        contents = int(ids.max(initial=-1)) + 1
        expected = -np.expm1(np.bincount(ids, logarithms, contents))
        first = np.full(contents, self._objects, np.int64)
        np.minimum.at(first, ids[there], owners[there])
        return np.bincount(first, expected, self._objects + 1)[: self._objects].astype(np.float64)


def _digest(content: NDArray[np.uint8]) -> bytes:
    return blake2b(content.data, digest_size=16).digest()


def _signatures(words: NDArray[np.uint64]) -> list[bytes]:
    """Of pages as uint64[pages, words], of what no load address changes."""
    return [blake2b(row, digest_size=16).digest() for row in (words & _IN_PAGE).astype(np.uint16)]


def _families(group: list[_Page]) -> list[tuple[list[_Page], tuple[NDArray[np.int64], NDArray[np.uint64]]]]:
    """Pages that agree wherever none of them is relocated, with the words to compare: objects, addends [pages, words]."""
    if len(group) == 1:
        (page,) = group
        plus = np.unique(page.plus)[None]
        return [(group, (plus, np.zeros(plus.shape, np.uint64)))]
    relocated = np.unique(np.concatenate([each.words for each in group]))
    alike: dict[bytes, list[_Page]] = defaultdict(list)
    for each in group:
        rest = each.content.copy()
        rest[relocated] = 0
        alike[rest.tobytes()].append(each)
    return [(family, _columns(family, relocated)) for family in alike.values()]


def _columns(family: list[_Page], relocated: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """One word for each way in which the words of pages depend on load addresses and differ by addends."""
    plus = np.full((len(family), _WORDS), NOTHING, np.int64)
    for row, each in enumerate(family):
        plus[row, each.words] = each.plus
    plus = plus[:, relocated]
    addend = np.stack([each.content[relocated] for each in family])
    addend -= addend[0].copy()
    both = np.unique(np.concatenate([plus.view(np.uint64), addend]), axis=1)
    return both[: len(family)].view(np.int64), both[len(family) :]
