"""The pages of an object in memory, before any relocation: where each comes from, and which are shadowed per tenant."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from capvisor.study.elf import ElfObject, Segment, width_of
from capvisor.study.elf_tables import PAGE_BYTES, Kind

NO_FILE_PAGE = -1


@dataclass(frozen=True, eq=False)
class ObjectPages:
    """One row a page of an object that is mapped, by address; all arrays have the length of `number`.

    `number` (int64) is the page's number as linked, `file_page` (int64) the page of the file that it maps, or -1 where it
    begins as zeros. `is_writable` says that it stays so after loading, `is_touched` that a relocation writes into it.
    """

    number: NDArray[np.int64]
    file_page: NDArray[np.int64]
    zero_from: NDArray[np.int64]
    is_executable: NDArray[np.bool_]
    is_writable: NDArray[np.bool_]
    is_touched: NDArray[np.bool_]

    @property
    def is_shadow(self) -> NDArray[np.bool_]:
        """Writable or relocated: what a tenant can't share by its object or its file."""
        return self.is_writable | self.is_touched

    def __len__(self) -> int:
        return len(self.number)

    def row_of(self, page: int) -> int:
        """The row of a page that is mapped."""
        return int(np.searchsorted(self.number, page))


def pages_of(elf: ElfObject) -> ObjectPages:
    """The pages that an object's segments map. A later segment has a page that two of them name, as mmap has it.

    A segment maps whole pages of the file, also what stands in them beside it; after its bytes of the file the rest of
    the last page is zeros only where it has more memory than that (gABI, "Program Loading").
    """
    columns: list[NDArray[np.int64]] = []
    for each in elf.segments:
        first, end = each.address // PAGE_BYTES, -(-(each.address + each.memory_size) // PAGE_BYTES)
        number = np.arange(first, end, dtype=np.int64)
        in_file = -(-(each.address + each.file_size) // PAGE_BYTES) - first if each.file_size else 0
        file_page = np.full(len(number), NO_FILE_PAGE, np.int64)
        file_page[:in_file] = each.offset // PAGE_BYTES + np.arange(in_file)
        flags = np.full(len(number), each.is_executable + 2 * each.is_writable, np.int64)
        columns.append(np.stack([number, file_page, _zero_from(each, number, in_file), flags]))
    number, file_page, zero_from, flags = np.concatenate(columns, axis=1)[:, ::-1]
    _, chosen = np.unique(number, return_index=True)
    number, file_page, zero_from, flags = (each[chosen] for each in (number, file_page, zero_from, flags))
    in_relro = (number >= elf.relro[0]) & (number < elf.relro[1])
    touched = np.isin(number, _touched(elf))
    return ObjectPages(number, file_page, zero_from, flags & 1 > 0, (flags & 2 > 0) & ~in_relro, touched)


def _zero_from(segment: Segment, number: NDArray[np.int64], in_file: int) -> NDArray[np.int64]:
    """For each page, from which byte of it the file's are replaced by zeros; PAGE_BYTES where none are."""
    result = np.full(len(number), PAGE_BYTES, np.int64)
    result[in_file:] = 0
    if in_file and segment.memory_size > segment.file_size:
        result[in_file - 1] = (segment.address + segment.file_size - 1) % PAGE_BYTES + 1
    return result


def _touched(elf: ElfObject) -> NDArray[np.int64]:
    """The numbers of the pages that relocations write into."""
    relocations, parts = elf.relocations, []
    for kind in np.unique(relocations.kind).tolist():
        chosen = relocations.kind == kind
        address = relocations.address[chosen].astype(np.int64)
        if kind == Kind.NONE:
            continue
        if kind != Kind.COPY:
            parts += [address // PAGE_BYTES, (address + width_of(kind) - 1) // PAGE_BYTES]
            continue
        sizes = elf.symbols.table["size"][relocations.symbol[chosen]].astype(np.int64)
        for start, size in zip(address.tolist(), sizes.tolist(), strict=True):
            parts.append(np.arange(start // PAGE_BYTES, -(-(start + size) // PAGE_BYTES)))
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int64)


def page_contents(elf: ElfObject, pages: ObjectPages, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The bytes of some pages as they are mapped, uint8[rows, PAGE_BYTES]."""
    result = np.zeros((len(rows), PAGE_BYTES), np.uint8)
    whole = len(elf.content) // PAGE_BYTES
    by_page = np.frombuffer(elf.content, np.uint8, whole * PAGE_BYTES).reshape(whole, PAGE_BYTES)
    file_page, zero_from = pages.file_page[rows], pages.zero_from[rows]
    inside = (file_page >= 0) & (file_page < whole)
    result[inside] = by_page[file_page[inside]]
    rest = (
        np.frombuffer(elf.content, np.uint8, offset=whole * PAGE_BYTES) if len(elf.content) % PAGE_BYTES else by_page[:0, 0]
    )
    result[file_page == whole, : len(rest)] = rest
    for row in np.flatnonzero((zero_from < PAGE_BYTES) & (file_page >= 0)).tolist():
        result[row, zero_from[row] :] = 0
    return result


def memory_bytes(elf: ElfObject, pages: ObjectPages, address: int, size: int) -> bytes:
    """The bytes at an address as linked, before relocation; zeros where nothing is mapped."""
    first, last = address // PAGE_BYTES, (address + max(size, 1) - 1) // PAGE_BYTES
    found = np.zeros((last - first + 1, PAGE_BYTES), np.uint8)
    rows = np.flatnonzero((pages.number >= first) & (pages.number <= last))
    found[pages.number[rows] - first] = page_contents(elf, pages, rows)
    start = address - first * PAGE_BYTES
    return found.tobytes()[start : start + size]
