"""Strategies in tests of your own: properties of capabilities, and of single steps of a machine."""

from hypothesis import given
from hypothesis import strategies as st

from capvisor.dsl.strategies import capabilities, encodings, operations, states, words
from capvisor.model import capability
from capvisor.model.bounds import decode_bounds
from capvisor.model.capability import Capability
from capvisor.model.observation import ObservedHart, watch
from capvisor.spec.formats import CC64, CC128


@given(capabilities(CC128, tagged=True), words(64))
def test_narrowing_gives_no_more_than_there_was(cap: Capability, length: int) -> None:
    """Bounds of what CSetBounds gives, where it gives something."""
    narrowed, _exact = capability.set_bounds(cap, length)
    if narrowed.tag:
        assert cap.base <= narrowed.base <= narrowed.top <= cap.top


@given(capabilities(CC64, tagged=True, sealed=True))
def test_a_sealed_capability_cannot_be_moved(cap: Capability) -> None:
    """Whatever seals it, a type or an entry."""
    assert not capability.set_address(cap, cap.address ^ 1).tag


@given(encodings(CC64), words(32))
def test_any_bits_have_bounds(meta: int, address: int) -> None:
    """Sound or not, they are numbers of the address space."""
    base, top = decode_bounds(CC64, meta, address)
    assert 0 <= base < 1 << 32 and 0 <= top < 1 << 33


@given(states(CC128), st.lists(operations(CC128), max_size=5))
def test_c0_is_never_written(hart: ObservedHart, steps: list[tuple[str, tuple[int, ...]]]) -> None:
    """In any state, by any operation."""
    for name, operands in steps:
        step = watch(hart, name, operands)
        assert step.after.registers[0] == capability.null(CC128)
