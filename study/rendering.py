"""A page of an object as it is in a tenant's memory, byte by byte."""

import numpy as np
from numpy.typing import NDArray

from capvisor.study.binding import NOTHING, Binding, Write
from capvisor.study.elf import ElfObject
from capvisor.study.elf_tables import PAGE_BYTES, WORD_BYTES
from capvisor.study.object_pages import ObjectPages, page_contents

_MASK = (1 << 64) - 1


def has_odd_writes(pages: ObjectPages, rows: NDArray[np.int64], binding: Binding) -> NDArray[np.bool_]:
    """For each of these rows, whether something else than whole, aligned words is written into the page."""
    odd: set[int] = set()
    for write in binding.others:
        odd |= {write.address // PAGE_BYTES, (write.address + write.width - 1) // PAGE_BYTES}
    for address in binding.address[binding.address % np.uint64(WORD_BYTES) != 0].tolist():
        odd |= {address // PAGE_BYTES, (address + WORD_BYTES - 1) // PAGE_BYTES}
    return np.isin(pages.number[rows], np.array(sorted(odd), np.int64))


def render(elf: ElfObject, pages: ObjectPages, row: int, binding: Binding, loaded: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """The bytes of a page, uint8[PAGE_BYTES], where a program's objects have these load addresses."""
    content: NDArray[np.uint8] = page_contents(elf, pages, np.array([row]))[0]
    start = int(pages.number[row]) * PAGE_BYTES
    for address, copied in binding.copies:
        put(content, address - start, copied)
    near = np.flatnonzero(
        (binding.address + np.uint64(WORD_BYTES) > np.uint64(start)) & (binding.address < np.uint64(start + PAGE_BYTES))
    )
    words = [
        Write(
            int(binding.position[each]),
            int(binding.address[each]),
            WORD_BYTES,
            int(binding.plus[each]),
            NOTHING,
            int(binding.addend[each]),
        )
        for each in near.tolist()
    ]
    for write in sorted((*words, *binding.others), key=lambda each: each.position):
        value = write.addend
        value += int(loaded[write.plus]) if write.plus != NOTHING else 0
        value -= int(loaded[write.minus]) if write.minus != NOTHING else 0
        put(content, write.address - start, (value & _MASK).to_bytes(WORD_BYTES, "little")[: write.width])
    return content


def put(content: NDArray[np.uint8], offset: int, stored: bytes) -> None:
    """Write what of these bytes falls into a page, which they start at an offset from."""
    first, last = max(offset, 0), min(offset + len(stored), len(content))
    if first < last:
        content[first:last] = np.frombuffer(stored, np.uint8)[first - offset : last - offset]
