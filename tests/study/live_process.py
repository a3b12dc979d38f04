"""Compares this process's memory with what the study says that relocations write; prints words that agree and that differ.

Only in pages that are read-only after relocation. What an indirect function is bound to isn't modelled, and left out.
"""

import os

import numpy as np

from capvisor.study.binding import NOTHING, bind
from capvisor.study.elf_tables import INDIRECT_FUNCTION, PAGE_BYTES, Kind
from capvisor.study.libraries import Libraries, ObjectStore, Problem
from capvisor.study.object_pages import pages_of
from capvisor.study.tenants import process, resolve

MASK = (1 << 64) - 1


def main() -> None:
    problem, store = Problem(), ObjectStore()
    (kind,) = resolve(process(os.getpid(), problem), store, Libraries(), problem)
    assert not problem.messages, problem.messages
    objects = [store.objects[index] for index in kind.objects]
    starts: dict[str, int] = {}
    with open("/proc/self/maps") as lines:
        for line in lines:
            place, *_, name = line.split()
            starts.setdefault(os.path.realpath(name), int(place.split("-")[0], 16))
    loaded = [0 if each.is_fixed else starts[str(each.path.resolve())] - each.first_page * PAGE_BYTES for each in objects]
    indirect = {
        loaded[place] + int(value)
        for place, each in enumerate(objects)
        for value in each.symbols.table["value"][each.symbols.table["info"] & 15 == INDIRECT_FUNCTION]
    }
    same = different = 0
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        for place, (elf, binding) in enumerate(
            zip(objects, bind(objects, [pages_of(each) for each in objects]), strict=True)
        ):
            first, end = (np.uint64(each * PAGE_BYTES) for each in elf.relro)
            resolved = elf.relocations.address[elf.relocations.kind == Kind.IRELATIVE]
            inside = (binding.address >= first) & (binding.address < end) & ~np.isin(binding.address, resolved)
            for address, plus, addend in zip(
                *(each[inside].tolist() for each in (binding.address, binding.plus, binding.addend)), strict=True
            ):
                expected = addend + (loaded[plus] if plus != NOTHING else 0) & MASK
                memory.seek(loaded[place] + address)
                if expected not in indirect:
                    agrees = memory.read(8) == expected.to_bytes(8, "little")
                    same, different = same + agrees, different + (not agrees)
    print(same, different)


if __name__ == "__main__":
    main()
