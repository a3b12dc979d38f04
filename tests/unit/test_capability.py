"""Claims about capabilities, on the reference."""

from hypothesis import assume, given
from hypothesis import strategies as st

from capvisor.model import bounds, capability
from capvisor.model.capability import Capability
from capvisor.spec.formats import FORMATS, CapabilityFormat, Permission

formats = st.sampled_from(list(FORMATS.values()))


@st.composite
def derived(draw: st.DrawFn, fmt: CapabilityFormat) -> Capability:
    """A tagged, unsealed capability narrowed from the root."""
    base = draw(st.integers(0, fmt.address_mask))
    shift = draw(st.integers(0, fmt.address_width))
    length = draw(st.integers(0, fmt.address_mask - base)) >> shift
    cap, _exact = capability.set_bounds(capability.root(fmt, base), length)
    return cap


@given(formats, st.data())
def test_csetbounds_covers_the_request_and_is_exact_when_it_says_so(fmt: CapabilityFormat, data: st.DataObject) -> None:
    base = data.draw(st.integers(0, fmt.address_mask))
    length = data.draw(st.integers(0, fmt.address_space - base))
    assume(length <= fmt.address_mask)
    cap, exact = capability.set_bounds(capability.root(fmt, base), length)
    assert cap.tag and cap.base <= base and cap.top >= base + length
    assert exact == (cap.bounds == (base, base + length))
    assert bounds.bounds_are_valid(fmt, cap.meta)


@given(formats, st.data())
def test_csetbounds_clears_the_tag_when_the_request_leaves_its_parent(fmt: CapabilityFormat, data: st.DataObject) -> None:
    parent = data.draw(derived(fmt))
    length = data.draw(st.integers(0, fmt.address_mask))
    child, _exact = capability.set_bounds(parent, length)
    assert child.tag == (parent.address + length <= parent.top)
    if child.tag:
        assert parent.base <= child.base and child.top <= parent.top


@given(formats, st.data())
def test_a_moved_capability_keeps_its_bounds_or_loses_its_tag(fmt: CapabilityFormat, data: st.DataObject) -> None:
    cap = data.draw(derived(fmt))
    increment = data.draw(st.integers(0, fmt.address_mask))
    quick = capability.increment_address(cap, increment)
    precise = capability.set_address(cap, cap.address + increment & fmt.address_mask)
    assert precise.tag == (precise.bounds == cap.bounds)
    assert not quick.tag or precise.tag


@given(formats, st.data())
def test_nothing_changes_a_sealed_capability_and_keeps_its_tag(fmt: CapabilityFormat, data: st.DataObject) -> None:
    cap = data.draw(derived(fmt))
    sealed = capability.set_otype(cap, data.draw(st.integers(0, fmt.max_otype)))
    changed = [
        capability.set_bounds(sealed, 0)[0],
        capability.set_address(sealed, sealed.address),
        capability.increment_address(sealed, 0),
        capability.set_offset(sealed, sealed.offset),
        capability.and_permissions(sealed, 0),
        capability.set_flags(sealed, 1),
        capability.seal_entry(sealed),
        capability.seal(sealed, capability.root(fmt, 0)),
    ]
    assert not any(result.tag for result in changed)


@given(formats, st.data())
def test_seal_and_unseal_are_inverse_under_one_authority(fmt: CapabilityFormat, data: st.DataObject) -> None:
    cap = data.draw(derived(fmt))
    authority = capability.root(fmt, data.draw(st.integers(0, fmt.max_otype)))
    sealed = capability.seal(cap, authority)
    assert sealed.tag and sealed.is_sealed and sealed.otype == authority.address
    assert capability.unseal(sealed, authority) == cap
    assert not capability.unseal(sealed, authority.tagged_if(False)).tag
    assert not capability.unseal(sealed, capability.and_permissions(authority, ~int(Permission.UNSEAL))).tag
    assert not capability.seal(cap, capability.and_permissions(authority, ~int(Permission.SEAL))).tag


def test_reserved_object_types_cannot_be_given() -> None:
    for fmt in FORMATS.values():
        cap = capability.root(fmt, 0x1000)
        assert capability.seal(cap, capability.root(fmt, fmt.max_otype)).tag
        assert not capability.seal(cap, capability.root(fmt, fmt.max_otype + 1)).tag
        assert not capability.unseal(capability.seal_entry(cap), capability.root(fmt, fmt.otype_sentry)).tag


@given(formats, st.data())
def test_a_rebuilt_capability_is_the_original(fmt: CapabilityFormat, data: st.DataObject) -> None:
    cap = data.draw(derived(fmt))
    assert capability.build(capability.root(fmt), cap.with_tag(False)) == cap
    assert capability.is_subset(cap, capability.root(fmt))


@given(formats, st.data())
def test_the_memory_form_is_read_back(fmt: CapabilityFormat, data: st.DataObject) -> None:
    meta = data.draw(st.integers(0, fmt.address_mask))
    cap = Capability(fmt, data.draw(st.booleans()), meta, data.draw(st.integers(0, fmt.address_mask)))
    assert capability.from_memory(fmt, cap.tag, capability.memory_meta(cap), cap.address) == cap


def test_the_quick_check_refuses_the_last_unit_of_the_region_upwards_and_takes_it_downwards() -> None:
    # cc128, exponent 0: the representable region of [0x10000, 0x11000) is [0xf800, 0x13800).
    fmt = FORMATS["cc128"]
    cap, _exact = capability.set_bounds(capability.root(fmt, 0x10000), 0x1000)

    def kept(address: int, new_address: int) -> bool:
        return bounds.increment_is_representable(fmt, cap.meta, address, new_address - address & fmt.address_mask)

    assert kept(0x10000, 0x137FE) and not kept(0x10000, 0x137FF)
    assert capability.set_address(cap, 0x137FF).tag
    assert kept(0x10000, 0xF800) and not kept(0x10000, 0xF7FF)
    assert kept(0x137FF, 0xF800) and not kept(0xF800, 0xF7FF)
