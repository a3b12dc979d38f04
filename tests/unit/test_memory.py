"""Tagged memory, against a plain array of bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capvisor.model.memory import EMPTY, Granule, Memory
from capvisor.spec.formats import FORMATS, CapabilityFormat

BASE, SIZE = 0x1000, 64
accesses = st.lists(
    st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(0, SIZE - 8), st.integers(0, 2**64 - 1)), max_size=12
)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@given(accesses=accesses)
def test_data_accesses_are_those_of_little_endian_bytes(fmt: CapabilityFormat, accesses: list[tuple[int, int, int]]) -> None:
    memory, plain = Memory(fmt, BASE, SIZE), bytearray(SIZE)
    for size, offset, value in accesses:
        size = min(size, fmt.address_width // 8)  # noqa: PLW2901 - no access is wider than a register
        memory.write(BASE + offset, size, value)
        plain[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    for offset in range(SIZE - 4):
        assert memory.read(BASE + offset, 4) == int.from_bytes(plain[offset : offset + 4], "little")
    assert not any(granule.tag for _index, granule in memory.store.written())


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_a_data_store_clears_the_tags_of_just_the_granules_it_touches(fmt: CapabilityFormat) -> None:
    size = fmt.capability_bytes
    for offset in range(size, 3 * size):
        memory = Memory(fmt, BASE, 5 * size)
        for index in range(5):
            memory.write_granule(BASE + index * size, Granule(True, 1, 2))
        memory.write(BASE + offset, 4, 0)
        touched = {offset // size, (offset + 3) // size}
        assert [memory.store.get(index).tag for index in range(5)] == [index not in touched for index in range(5)]


def test_a_sweep_is_told_of_every_granule_and_where_it_is() -> None:
    memory = Memory(FORMATS["cc128"], BASE, SIZE)
    memory.write_granule(BASE, Granule(True, 5, 6))
    memory.write_granule(BASE + 32, Granule(True, 5, 6))
    memory.map_granules(lambda index, granule: Granule(granule.tag and index != 2, granule.upper, granule.lower))
    assert memory.read_granule(BASE) == Granule(True, 5, 6)
    assert memory.read_granule(BASE + 16) == EMPTY
    assert memory.read_granule(BASE + 32) == Granule(False, 5, 6)


def test_memory_ends_where_it_ends() -> None:
    memory = Memory(FORMATS["cc128"], BASE, SIZE)
    assert memory.contains(BASE, SIZE) and memory.contains(BASE + SIZE - 1, 1)
    assert not memory.contains(BASE - 1, 1) and not memory.contains(BASE + SIZE - 1, 2)
