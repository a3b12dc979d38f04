"""Where a tenant's objects are loaded, and how many page tables map them.

Source: Linux, arch/x86/mm/mmap.c and fs/binfmt_elf.c: with address-space layout randomisation, 28 bits of page number are
drawn for where mappings end and 28 for where a position-independent executable starts; libraries follow downwards.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from capvisor.study.elf import ElfObject
from capvisor.study.elf_tables import PAGE_BYTES
from capvisor.study.object_pages import ObjectPages

EXECUTABLE_START = 0x555555554000
MAPPINGS_END = 0x7FFFF7FFF000
RANDOM_BITS = 28
_PAGES_PER_TABLE_LOG2 = 9
_TABLE_LEVELS = 4


def draws(tenants: int, seed: int) -> NDArray[np.int64]:
    """For each tenant, by how many pages its executable and its mappings are moved: int64[tenants, 2]."""
    return np.random.default_rng(seed).integers(0, 1 << RANDOM_BITS, (tenants, 2))


def load_addresses(objects: Sequence[ElfObject], moved: NDArray[np.int64]) -> NDArray[np.uint64]:
    """What is added to each object's addresses as linked, uint64[tenants, objects].

    `moved` is int64[tenants, 2], as `draws` gives it. The dynamic linker, the last object, is mapped before the libraries.
    """
    result = np.zeros((len(moved), len(objects)), np.int64)
    top = MAPPINGS_END - moved[:, 1] * PAGE_BYTES
    order = [len(objects) - 1, *range(len(objects) - 1)] if len(objects) > 1 else [0]
    for index in order:
        elf = objects[index]
        if elf.is_fixed:
            continue
        linked = elf.first_page * PAGE_BYTES
        if index == 0 and elf.interpreter is not None:
            start = EXECUTABLE_START + moved[:, 0] * PAGE_BYTES
            start += -start % elf.alignment
        else:
            start = top - elf.span_pages * PAGE_BYTES
            start -= (start - linked) % elf.alignment
            top = start
        result[:, index] = start - linked
    return result.astype(np.uint64)


def overlapping(objects: Sequence[ElfObject]) -> tuple[ElfObject, ElfObject] | None:
    """Two objects at fixed addresses that can't be loaded together, if there are such."""
    fixed = sorted((each for each in objects if each.is_fixed), key=lambda each: each.first_page)
    for before, after in pairwise(fixed):
        if before.first_page + before.span_pages > after.first_page:
            return before, after
    return None


def runs(pages: NDArray[np.int64]) -> NDArray[np.int64]:
    """First and last of each run of consecutive page numbers, int64[runs, 2]."""
    if not len(pages):
        return np.zeros((0, 2), np.int64)
    breaks = np.flatnonzero(np.diff(pages) != 1)
    return np.stack([pages[np.append(0, breaks + 1)], pages[np.append(breaks, len(pages) - 1)]], axis=1)


def table_pages(pages: Sequence[ObjectPages], loaded: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many page tables of four levels each tenant needs for its objects' pages, int64[tenants]."""
    starts, ends = [], []
    for index, each in enumerate(pages):
        moved = (loaded[:, index] // np.uint64(PAGE_BYTES)).astype(np.int64)
        for first, last in runs(each.number).tolist():
            starts.append(moved + first)
            ends.append(moved + last)
    return count_tables(np.stack(starts, axis=1), np.stack(ends, axis=1))


def count_tables(first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many page tables map these runs of pages, given as int64[spaces, runs], in each space."""
    order = np.argsort(first, axis=1)
    first, last = np.take_along_axis(first, order, 1), np.take_along_axis(last, order, 1)
    total = np.ones(len(first), np.int64)
    for level in range(1, _TABLE_LEVELS):
        start, end = first >> _PAGES_PER_TABLE_LOG2 * level, last >> _PAGES_PER_TABLE_LOG2 * level
        before = np.maximum.accumulate(end, axis=1)
        before = np.concatenate([np.full((len(end), 1), -1), before[:, :-1]], axis=1)
        total += np.maximum(end - np.maximum(start, before + 1) + 1, 0).sum(axis=1)
    return total
