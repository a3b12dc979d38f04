"""Theorems about bounds: decoding, setting, moving, rounding.

Peers: cheriot-sail, properties/props.sail (named "cheriot:" below); sail-cheri-riscv-verif, cap_properties.sail ("riscv:").
"""

from typing import Any

from capvisor.model import bounds, capability
from capvisor.model.bits import not_, select
from capvisor.proofs.theorem import Given, implies, theorem
from capvisor.spec.formats import CapabilityFormat


def request(fmt: CapabilityFormat, given: Given) -> tuple[Any, Any]:
    """Any request [base, top) with 0 <= base <= top <= 2**A."""
    base, top = given.word("base", fmt.address_width), given.word("top", fmt.address_width + 1)
    given.assume((base <= top) & (top <= fmt.address_space))
    return base, top


def by_exponent(fmt: CapabilityFormat, given: Given, meta: Any) -> None:
    """Split by the exponent that meta stores, which takes most of the difficulty out of shifts."""
    exponent, _bottom, _top = bounds.unpack_bounds(fmt, meta)
    exact = [exponent == value for value in range(fmt.max_exponent + 1)]
    given.split([*exact, exponent > fmt.max_exponent])


@theorem(
    "bounds.null",
    "NULL has no permissions, is untagged and unsealed, has the bounds of the whole address space, and is zero in memory.",
    "cheriot: prop_nullzero, prop_null_noperms",
    mutants=("top-carry",),
)
def null(fmt: CapabilityFormat, given: Given) -> Any:
    cap = capability.null(fmt, given.word("address", fmt.address_width))
    return (
        (cap.permissions == 0)
        & not_(cap.tag)
        & not_(cap.is_sealed)
        & (capability.memory_meta(cap) == 0)
        & (cap.base == 0)
        & (cap.top == fmt.address_space)
    )


@theorem(
    "bounds.root",
    "At every address the root is tagged, unsealed, valid, has every permission and the bounds of the whole address space.",
    "cheriot: prop_mem_root, prop_exe_root, prop_seal_root; riscv: propDefaultCapEncodable",
    mutants=("top-carry",),
)
def root(fmt: CapabilityFormat, given: Given) -> Any:
    cap = capability.root(fmt, given.word("address", fmt.address_width))
    return (
        cap.tag
        & not_(cap.is_sealed)
        & (cap.permissions == fmt.permissions_mask)
        & (cap.base == 0)
        & (cap.top == fmt.address_space)
        & bounds.bounds_are_valid(fmt, cap.meta)
    )


@theorem(
    "bounds.memory_form",
    "Any bits and tag are the same after a way through memory.",
    "cheriot: prop_decEnc; riscv: propDecodeEncodable",
    mutants=("memory-form",),
)
def memory_form(fmt: CapabilityFormat, given: Given) -> Any:
    cap = given.capability(fmt, "c")
    return capability.equal(capability.from_memory(fmt, cap.tag, capability.memory_meta(cap), cap.address), cap)


@theorem(
    "bounds.types",
    "What is decoded depends on nothing of meta but the bounds, and not on more bits of it than a base and a top have; what is "
    "encoded is nothing but bounds.",
    "CHERI Concentrate, section 4; lemma for contracts",
    mutants=("validity-of-perms",),
)
def types(fmt: CapabilityFormat, given: Given) -> Any:
    meta, address, n = (given.word(name, fmt.address_width) for name in ("meta", "address", "n"))
    alone = meta & fmt.bounds.in_place
    base, top = bounds.decode_bounds(fmt, meta, address)
    other_base, other_top = bounds.decode_bounds(fmt, alone, address)
    start, end = given.word("base", fmt.address_width), given.word("top", fmt.address_width + 1)
    field, alignment, _exact = bounds.encode_bounds(fmt, start, end)
    return (
        (base == other_base)
        & (top == other_top)
        & (base <= fmt.address_mask)
        & (top <= fmt.length_mask)
        & (bounds.bounds_are_valid(fmt, meta) == bounds.bounds_are_valid(fmt, alone))
        & (
            bounds.increment_is_representable(fmt, meta, address, n)
            == bounds.increment_is_representable(fmt, alone, address, n)
        )
        & (field & ~fmt.bounds.in_place == 0)
        & (alignment < 1 << 7)
    )


@theorem(
    "bounds.ordered",
    "Valid bounds bits have base <= top, at every address.",
    "riscv: propBaseLeqTop; cheriot: prop_base_lteq_top (there switched off: false for words that aren't valid)",
    mutants=("validity-of-bottom", "validity-of-half"),
)
def ordered(fmt: CapabilityFormat, given: Given) -> Any:
    meta, address = given.word("meta", fmt.address_width), given.word("address", fmt.address_width)
    given.assume(bounds.bounds_are_valid(fmt, meta))
    base, top = bounds.decode_bounds(fmt, meta, address)
    return base <= top


@theorem(
    "bounds.valid_top",
    "FALSE: valid bounds bits have top <= 2**A. (So the invariant of tagged capabilities has to say it.)",
    "a fact about the formats; see `is_sound`",
    holds=False,
)
def valid_top(fmt: CapabilityFormat, given: Given) -> Any:
    meta, address = given.word("meta", fmt.address_width), given.word("address", fmt.address_width)
    given.assume(bounds.bounds_are_valid(fmt, meta))
    return bounds.decode_bounds(fmt, meta, address)[1] <= fmt.address_space


@theorem(
    "bounds.invalid_order",
    "FALSE: any bounds bits, valid or not, have base <= top.",
    "cheriot: prop_base_lteq_top",
    holds=False,
)
def invalid_order(fmt: CapabilityFormat, given: Given) -> Any:
    base, top = bounds.decode_bounds(fmt, given.word("meta", fmt.address_width), given.word("address", fmt.address_width))
    return base <= top


@theorem(
    "bounds.set.covers",
    "set_bounds covers what was requested.",
    "cheriot: prop_setbounds; riscv: propSetBounds",
    mutants=("set-top-rounded-down", "set-exponent-not-grown"),
)
def set_covers(fmt: CapabilityFormat, given: Given) -> Any:
    requested_base, requested_top = request(fmt, given)
    meta, _exact = bounds.set_bounds(fmt, given.word("meta", fmt.address_width), requested_base, requested_top)
    base, top = bounds.decode_bounds(fmt, meta, requested_base)
    return (base <= requested_base) & (requested_top <= top)


@theorem(
    "bounds.set.exact",
    "set_bounds says that it was exact just when the bounds are those requested.",
    "cheriot: prop_setbounds; riscv: propSetBounds",
    mutants=("set-exact-ignores-top", "set-top-rounded-twice"),
)
def set_exact(fmt: CapabilityFormat, given: Given) -> Any:
    requested_base, requested_top = request(fmt, given)
    meta, exact = bounds.set_bounds(fmt, given.word("meta", fmt.address_width), requested_base, requested_top)
    base, top = bounds.decode_bounds(fmt, meta, requested_base)
    return exact == ((base == requested_base) & (top == requested_top))


@theorem(
    "bounds.set.valid",
    "set_bounds gives valid bounds bits.",
    "riscv: propSetBoundsEncodable, propSetBoundsValid",
    mutants=("validity-of-half", "set-grown-too-early"),
)
def set_valid(fmt: CapabilityFormat, given: Given) -> Any:
    base, top = request(fmt, given)
    meta, _exact = bounds.set_bounds(fmt, given.word("meta", fmt.address_width), base, top)
    return bounds.bounds_are_valid(fmt, meta)


@theorem(
    "bounds.set.top",
    "set_bounds never gives a top above 2**A.",
    "riscv: propSetBoundsInstrValid",
    mutants=("set-top-rounded-twice",),
)
def set_top(fmt: CapabilityFormat, given: Given) -> Any:
    base, top = request(fmt, given)
    meta, _exact = bounds.set_bounds(fmt, given.word("meta", fmt.address_width), base, top)
    return bounds.decode_bounds(fmt, meta, base)[1] <= fmt.address_space


@theorem(
    "bounds.set.rest",
    "set_bounds changes nothing of meta but the bounds.",
    "CHERI ISAv9, CSetBounds",
    mutants=("set-clears-otype",),
)
def set_rest(fmt: CapabilityFormat, given: Given) -> Any:
    base, top = request(fmt, given)
    before = given.word("meta", fmt.address_width)
    after, _exact = bounds.set_bounds(fmt, before, base, top)
    mask = fmt.address_mask & ~fmt.bounds.in_place
    return before & mask == after & mask


# -- monotonicity, by lemmas: as one question it takes minutes ---------------------------------------------------------


def is_rounded(base: Any, top: Any, alignment: Any, new_base: Any, new_top: Any) -> Any:
    """Whether new_base and new_top are base and top, rounded outwards to multiples of 2**alignment."""
    return (new_base == base >> alignment << alignment) & (new_top == top + (1 << alignment) - 1 >> alignment << alignment)


def is_shaped(fmt: CapabilityFormat, base: Any, top: Any, alignment: Any) -> Any:
    """What bounds of that alignment exponent look like: multiples of it, and short enough for a mantissa.

    An alignment of 0 means that the exponent isn't internal; otherwise it is the exponent and the bits that hold it.
    """
    low = fmt.exponent_low_width
    unit = (1 << alignment) - 1
    longest = ((1 << fmt.mantissa_width - 1) - (1 << low) << alignment) >> low
    fits = (alignment == 0) & (top - base < 1 << fmt.mantissa_width - 2) | (alignment >= low) & (top - base <= longest)
    return (base <= top) & (top <= fmt.address_space) & (base & unit == 0) & (top & unit == 0) & fits


def alignment_of(fmt: CapabilityFormat, meta: Any) -> Any:
    """The exponent of the unit that meta's bounds are multiples of."""
    exponent, _bottom, _top = bounds.unpack_bounds(fmt, meta)
    internal = meta >> fmt.internal_exponent.low & 1 == fmt.internal_exponent_flag
    return select(exponent < fmt.max_exponent, exponent, fmt.max_exponent) + internal * fmt.exponent_low_width


@theorem(
    "bounds.set.rounds",
    "set_bounds rounds the request outwards to multiples of the unit that encode_bounds names, and does nothing else to it.",
    "CHERI Concentrate, section 4.1; lemma for bounds.set.monotone",
    mutants=("set-top-rounded-twice", "set-exponent-not-grown"),
)
def set_rounds(fmt: CapabilityFormat, given: Given) -> Any:
    base, top = request(fmt, given)
    meta, _exact = bounds.set_bounds(fmt, fmt.null_meta, base, top)
    _field, alignment, _exact = bounds.encode_bounds(fmt, base, top)
    return is_rounded(base, top, alignment, *bounds.decode_bounds(fmt, meta, base))


@theorem(
    "bounds.shape",
    "The bounds of a sound capability are multiples of its unit, and short enough for its mantissa.",
    "CHERI Concentrate, section 4.2; lemma for bounds.set.monotone",
    mutants=("top-wrap",),
)
def shape(fmt: CapabilityFormat, given: Given) -> Any:
    cap = given.sound_capability(fmt, "c")
    by_exponent(fmt, given, cap.meta)
    return is_shaped(fmt, *cap.bounds, alignment_of(fmt, cap.meta))


@theorem(
    "bounds.set.finer",
    "A request within bounds of some unit needs no coarser one.",
    "CHERI Concentrate, section 4.1; lemma for bounds.set.monotone",
    mutants=("set-grown-too-early",),
)
def set_finer(fmt: CapabilityFormat, given: Given) -> Any:
    parent_base, parent_top = given.word("parent_base", fmt.address_width), given.word("parent_top", fmt.address_width + 1)
    unit = given.word("unit", 6)
    given.assume((unit <= fmt.max_exponent + fmt.exponent_low_width) & is_shaped(fmt, parent_base, parent_top, unit))
    base, top = request(fmt, given)
    given.assume((parent_base <= base) & (top <= parent_top))
    given.split([unit == value for value in range(fmt.max_exponent + fmt.exponent_low_width + 1)])
    _field, alignment, _exact = bounds.encode_bounds(fmt, base, top)
    return alignment <= unit


@theorem(
    "bounds.set.monotone",
    "Bounds set within the bounds of a sound capability, rounding included, stay within them, wherever its address is.",
    "cheriot: prop_setbounds_monotonic; riscv: propSetBounds",
    uses=("bounds.set.rounds", "bounds.shape", "bounds.set.finer"),
    scope="all values at full width; the bounds, the units and the rounded bounds are any that satisfy the three lemmas",
)
def set_monotone(fmt: CapabilityFormat, given: Given) -> Any:
    width = fmt.address_width
    parent_base, parent_top, unit = (
        given.word("parent_base", width),
        given.word("parent_top", width + 1),
        given.word("unit", 6),
    )
    given.assume((unit <= fmt.max_exponent + fmt.exponent_low_width) & is_shaped(fmt, parent_base, parent_top, unit))
    base, top = request(fmt, given)
    given.assume((parent_base <= base) & (top <= parent_top))
    finer, new_base, new_top = given.word("finer", 6), given.word("new_base", width), given.word("new_top", width + 1)
    given.assume((finer <= unit) & is_rounded(base, top, finer, new_base, new_top))
    return (parent_base <= new_base) & (new_top <= parent_top)


@theorem(
    "bounds.set.monotone_directly",
    "The same without lemmas, in one question: a check of how the lemmas fit together.",
    "as bounds.set.monotone",
    formats=("cc64",),
    mutants=("set-top-rounded-twice",),
)
def set_monotone_directly(fmt: CapabilityFormat, given: Given) -> Any:
    cap = given.sound_capability(fmt, "c")
    by_exponent(fmt, given, cap.meta)
    parent_base, parent_top = cap.bounds
    base, top = request(fmt, given)
    given.assume((parent_base <= base) & (top <= parent_top))
    meta, _exact = bounds.set_bounds(fmt, cap.meta, base, top)
    new_base, new_top = bounds.decode_bounds(fmt, meta, base)
    return (parent_base <= new_base) & (new_top <= parent_top)


@theorem(
    "bounds.set.no_tighter",
    "What is rounded outwards to some unit is covered by no bounds of a coarser unit, or the same, that lie within it and are "
    "tighter.",
    "CHERI Concentrate, section 4.1; lemma for bounds.set.tightest",
    scope="all values at full width; the bounds, the units and the rounded bounds are any that satisfy the lemmas",
)
def set_no_tighter(fmt: CapabilityFormat, given: Given) -> Any:
    width = fmt.address_width
    base, top = request(fmt, given)
    unit, finer = given.word("unit", 7), given.word("finer", 7)
    new_base, new_top = given.word("new_base", width), given.word("new_top", width + 1)
    given.assume((finer <= unit) & (unit <= fmt.max_exponent + fmt.exponent_low_width))
    given.assume(is_rounded(base, top, finer, new_base, new_top))
    other_base, other_top = given.word("other_base", width), given.word("other_top", width + 1)
    given.assume(is_shaped(fmt, other_base, other_top, unit))
    inside = (other_base >= new_base) & (other_base <= base) & (other_top >= top) & (other_top <= new_top)
    return implies(inside, (other_base == new_base) & (other_top == new_top))


@theorem(
    "bounds.set.tightest",
    "No valid encoding, at whatever address, lies within the bounds that set_bounds gives, covers the request and is tighter.",
    "cheriot: prop_setbounds_precise",
    uses=(
        "bounds.set.no_tighter",
        "bounds.set.rounds",
        "bounds.set.finer",
        "bounds.set.top",
        "bounds.shape",
        "bounds.ordered",
        "bounds.types",
    ),
)
def set_tightest(fmt: CapabilityFormat, given: Given) -> Any:
    requested_base, requested_top, base, top, other = _tightest(fmt, given)
    other_base, other_top = other.bounds
    wanted = {"base": requested_base, "top": requested_top}
    unit = alignment_of(fmt, other.meta)
    _field, finer, _exact = bounds.encode_bounds(fmt, requested_base, requested_top)
    given.lean_on(fmt, "bounds.ordered", meta=other.meta, address=other.address)
    given.lean_on(fmt, "bounds.shape", c=other.with_meta(other.meta & ~fmt.reserved.in_place))
    for meta in (other.meta, other.meta & ~fmt.reserved.in_place):
        given.lean_on(fmt, "bounds.types", meta=meta, address=other.address, n=0, **wanted)
    given.lean_on(fmt, "bounds.set.top", meta=fmt.null_meta, **wanted)
    given.lean_on(fmt, "bounds.set.finer", parent_base=other_base, parent_top=other_top, unit=unit, **wanted)
    given.lean_on(fmt, "bounds.set.rounds", **wanted)
    bounds_of = {"new_base": base, "new_top": top, "other_base": other_base, "other_top": other_top}
    given.lean_on(fmt, "bounds.set.no_tighter", unit=unit, finer=finer, **wanted, **bounds_of)
    return _is_tightest(requested_base, requested_top, base, top, other)


@theorem(
    "bounds.set.tightest_directly",
    "The same without lemmas: a check of how the lemmas fit together.",
    "as bounds.set.tightest",
    formats=("cc64",),
    mutants=("set-top-rounded-twice",),
)
def set_tightest_directly(fmt: CapabilityFormat, given: Given) -> Any:
    *numbers, other = _tightest(fmt, given)
    by_exponent(fmt, given, other.meta)
    return _is_tightest(*numbers, other)


def _tightest(fmt: CapabilityFormat, given: Given) -> tuple[Any, Any, Any, Any, capability.Capability]:
    """A request, the bounds that set_bounds gives it, and any valid encoding."""
    requested_base, requested_top = request(fmt, given)
    meta, _exact = bounds.set_bounds(fmt, fmt.null_meta, requested_base, requested_top)
    base, top = bounds.decode_bounds(fmt, meta, requested_base)
    other = given.word("other_meta", fmt.address_width)
    given.assume(bounds.bounds_are_valid(fmt, other))
    cap = capability.Capability(fmt, True, other, given.word("other_address", fmt.address_width))
    return requested_base, requested_top, base, top, cap


def _is_tightest(requested_base: Any, requested_top: Any, base: Any, top: Any, other: capability.Capability) -> Any:
    other_base, other_top = other.bounds
    inside = (other_base >= base) & (other_base <= requested_base) & (other_top >= requested_top) & (other_top <= top)
    return implies(inside, (other_base == base) & (other_top == top))


@theorem(
    "bounds.set.small",
    "Every length below 2**(mantissa width - 2) has exact bounds, at every base.",
    "riscv: propSetBoundsSmallExact",
    mutants=("set-internal-too-early",),
)
def set_small(fmt: CapabilityFormat, given: Given) -> Any:
    base, top = request(fmt, given)
    given.assume(top - base < 1 << fmt.mantissa_width - 2)
    return bounds.set_bounds(fmt, fmt.null_meta, base, top)[1]


@theorem(
    "bounds.set.empty",
    "An empty request has exact bounds, at every base.",
    "riscv: propZeroLenRepresentable",
    mutants=("set-internal-too-early",),
)
def set_empty(fmt: CapabilityFormat, given: Given) -> Any:
    base = given.word("base", fmt.address_width)
    meta, exact = bounds.set_bounds(fmt, fmt.null_meta, base, base)
    decoded = bounds.decode_bounds(fmt, meta, base)
    return exact & (decoded[0] == base) & (decoded[1] == base)


@theorem(
    "bounds.set.power",
    "A power of two of bytes at a multiple of itself has exact bounds.",
    "riscv: propPowerOfTwoRepresentable",
    mutants=("set-top-rounded-twice",),
)
def set_power(fmt: CapabilityFormat, given: Given) -> Any:
    base, exponent = given.word("base", fmt.address_width), given.word("exponent", 7)
    given.assume(exponent <= fmt.address_width)
    length = 1 << exponent
    given.assume((base & length - 1 == 0) & (base + length <= fmt.address_space))
    meta, exact = bounds.set_bounds(fmt, fmt.null_meta, base, base + length)
    decoded = bounds.decode_bounds(fmt, meta, base)
    return exact & (decoded[0] == base) & (decoded[1] == base + length)


@theorem(
    "bounds.set.again",
    "The bounds of a sound capability can be set again, exactly.",
    "riscv: propSetCurrentBoundsExact, propRepresentableSetBoundsExact",
    mutants=("set-top-rounded-twice",),
)
def set_again(fmt: CapabilityFormat, given: Given) -> Any:
    cap = given.sound_capability(fmt, "c")
    by_exponent(fmt, given, cap.meta)
    base, top = cap.bounds
    meta, exact = bounds.set_bounds(fmt, cap.meta, base, top)
    decoded = bounds.decode_bounds(fmt, meta, base)
    return exact & (decoded[0] == base) & (decoded[1] == top)


@theorem(
    "bounds.move.precise",
    "set_address keeps the tag of a tagged, unsealed capability just when base and top stay what they are.",
    "cheriot: prop_setaddr; riscv: propSetOffset",
    mutants=("precise-ignores-base",),
)
def move_precise(fmt: CapabilityFormat, given: Given) -> Any:
    cap = given.capability(fmt, "c")
    given.assume(cap.tag & not_(cap.is_sealed))
    moved = capability.set_address(cap, given.word("new_address", fmt.address_width))
    return moved.tag == ((moved.base == cap.base) & (moved.top == cap.top))


@theorem(
    "bounds.move.fast_sound",
    "Where the fast check says yes, the bounds stay what they are. (Any bits, valid or not.)",
    "riscv: propIncOffset",
    mutants=("fast-limit", "fast-region", "fast-downwards"),
)
def move_fast_sound(fmt: CapabilityFormat, given: Given) -> Any:
    meta, address = given.word("meta", fmt.address_width), given.word("address", fmt.address_width)
    increment = given.word("increment", fmt.address_width)
    by_exponent(fmt, given, meta)
    fast = bounds.increment_is_representable(fmt, meta, address, increment)
    kept = bounds.address_keeps_bounds(fmt, meta, address, address + increment & fmt.address_mask)
    return implies(fast, kept)


@theorem(
    "bounds.move.fast_in_bounds",
    "From anywhere, the fast check lets a sound capability move to any address in its bounds.",
    "cheriot: prop_repbounds_c",
    mutants=("fast-region",),
)
def move_fast_in_bounds(fmt: CapabilityFormat, given: Given) -> Any:
    cap = given.sound_capability(fmt, "c")
    by_exponent(fmt, given, cap.meta)
    address = given.word("new_address", fmt.address_width)
    base, top = cap.bounds
    given.assume((base <= address) & (address < top))
    return bounds.increment_is_representable(fmt, cap.meta, cap.address, address - cap.address & fmt.address_mask)


@theorem(
    "bounds.move.one_past",
    "Between addresses from base to top (both included, as C needs it) the fast check lets a sound capability move.",
    "cheriot: prop_repbounds_c",
    mutants=("fast-region-above",),
)
def move_one_past(fmt: CapabilityFormat, given: Given) -> Any:
    cap = given.sound_capability(fmt, "c")
    by_exponent(fmt, given, cap.meta)
    address = given.word("new_address", fmt.address_width)
    base, top = cap.bounds
    given.assume((base <= address) & (address <= top) & (base <= cap.address) & (cap.address <= top))
    return bounds.increment_is_representable(fmt, cap.meta, cap.address, address - cap.address & fmt.address_mask)


@theorem(
    "bounds.move.fast_gap",
    "Where the fast check refuses a valid capability whose bounds would stay, the new address is in the last two mantissa "
    "units of the representable region or in the first, or the move is downwards from the first.",
    "the exact incompleteness of CHERI Concentrate's section 4.3",
    mutants=("fast-gap-wide",),
)
def move_fast_gap(fmt: CapabilityFormat, given: Given) -> Any:
    meta, address = given.word("meta", fmt.address_width), given.word("address", fmt.address_width)
    increment = given.word("increment", fmt.address_width)
    given.assume(bounds.bounds_are_valid(fmt, meta))
    by_exponent(fmt, given, meta)
    exponent, bottom, _top = bounds.unpack_bounds(fmt, meta)
    new_address = address + increment & fmt.address_mask
    start = ((bottom >> fmt.mantissa_width - 3) - 1 & 7) << fmt.mantissa_width - 3
    old_unit = (address >> exponent) - start & fmt.mantissa_mask
    new_unit = (new_address >> exponent) - start & fmt.mantissa_mask
    kept = bounds.address_keeps_bounds(fmt, meta, address, new_address)
    refused = not_(bounds.increment_is_representable(fmt, meta, address, increment))
    downwards = increment >> fmt.address_width - 1 == 1
    at_the_edge = (new_unit >= fmt.mantissa_mask - 1) | (new_unit == 0) | downwards & (old_unit == 0)
    return implies(kept & refused, at_the_edge)


@theorem(
    "bounds.move.region",
    "With an exponent at least two below the largest, bounds stay just within the representable region: 2**(exponent + mantissa "
    "width) bytes, aligned to an eighth of that, around the address.",
    "cheriot: prop_repbounds",
    mutants=("region-start",),
)
def move_region(fmt: CapabilityFormat, given: Given) -> Any:
    meta, address = given.word("meta", fmt.address_width), given.word("address", fmt.address_width)
    new_address = given.word("new_address", fmt.address_width)
    exponent, bottom, _top = bounds.unpack_bounds(fmt, meta)
    given.assume(exponent <= fmt.max_exponent - 3)
    given.split([exponent == value for value in range(fmt.max_exponent - 2)])
    start = ((bottom >> fmt.mantissa_width - 3) - 1 & 7) << fmt.mantissa_width - 3
    # The region's number, modulo what the address space has of them.
    count = fmt.address_width - fmt.mantissa_width
    old, new = (((a >> exponent) - start >> fmt.mantissa_width) for a in (address, new_address))
    same = (old - new << exponent) & (1 << count) - 1 == 0
    return bounds.address_keeps_bounds(fmt, meta, address, new_address) == same


@theorem(
    "bounds.round.recipe",
    "A length rounded by CRRL at a base aligned by CRAM has exact bounds, and covers the length.",
    "cheriot: prop_crrl_cram",
    mutants=("cram-short",),
)
def round_recipe(fmt: CapabilityFormat, given: Given) -> Any:
    length, base = given.word("length", fmt.address_width), given.word("base", fmt.address_width)
    rounded, mask = bounds.representable_length(fmt, length), bounds.alignment_mask(fmt, length)
    aligned = base & mask
    given.assume((rounded >= length) & (aligned + rounded <= fmt.address_space))
    return bounds.set_bounds(fmt, fmt.null_meta, aligned, aligned + rounded)[1]


@theorem(
    "bounds.round.up",
    "CRRL rounds up, or to 0 where that would be 2**A.",
    "CHERI ISAv9, CRoundRepresentableLength",
    mutants=("crrl-down",),
)
def round_up(fmt: CapabilityFormat, given: Given) -> Any:
    length = given.word("length", fmt.address_width)
    rounded = bounds.representable_length(fmt, length)
    return (rounded >= length) | (rounded == 0)


@theorem(
    "bounds.round.no_wrap",
    "CRRL doesn't wrap for lengths up to 2**A - 2**(largest exponent + 2).",
    "riscv: propRepresentableMaskLengthAbsorb",
    mutants=("crrl-down",),
)
def round_no_wrap(fmt: CapabilityFormat, given: Given) -> Any:
    length = given.word("length", fmt.address_width)
    given.assume(length <= fmt.address_space - (1 << fmt.max_exponent + 2))
    return bounds.representable_length(fmt, length) >= length


@theorem(
    "bounds.round.idempotent",
    "A rounded length stays what it is.",
    "riscv: propRepresentableLengthIdempotent",
    mutants=("crrl-one-more",),
)
def round_idempotent(fmt: CapabilityFormat, given: Given) -> Any:
    rounded = bounds.representable_length(fmt, given.word("length", fmt.address_width))
    return bounds.representable_length(fmt, rounded) == rounded


@theorem(
    "bounds.round.same_mask",
    "A length and its rounded length need the same alignment, unless rounding wrapped to 0.",
    "cheriot: prop_crrl_cram_usage; riscv: propSpecifiedRequiredAlignment",
    mutants=("crrl-one-more",),
)
def round_same_mask(fmt: CapabilityFormat, given: Given) -> Any:
    length = given.word("length", fmt.address_width)
    rounded = bounds.representable_length(fmt, length)
    given.assume((rounded != 0) | (length == 0))
    return bounds.alignment_mask(fmt, rounded) == bounds.alignment_mask(fmt, length)


@theorem(
    "bounds.round.monotone",
    "A longer length is rounded to no shorter one, where neither wraps.",
    "riscv: propRepresentableBoundsMono",
    mutants=("crrl-down",),
)
def round_monotone(fmt: CapabilityFormat, given: Given) -> Any:
    short, long = given.word("short", fmt.address_width), given.word("long", fmt.address_width)
    given.assume((short <= long) & (long <= fmt.address_space - (1 << fmt.max_exponent + 2)))
    return bounds.representable_length(fmt, short) <= bounds.representable_length(fmt, long)
