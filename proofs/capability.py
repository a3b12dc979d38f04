"""Theorems about capabilities: permissions, sealing, building, comparing, tags, and the invariant of tagged capabilities.

Peers as in `proofs.bounds`; what they lack is marked "no peer".
"""

from collections.abc import Callable
from typing import Any

from capvisor.model import bounds, capability
from capvisor.model.bits import not_, select
from capvisor.model.capability import Capability
from capvisor.proofs.bounds import alignment_of, by_exponent
from capvisor.proofs.theorem import Given, implies, same_but, theorem
from capvisor.spec.formats import CapabilityFormat, Permission
from capvisor.spec.invariants import is_within

# -- permissions and flags -----------------------------------------------------------------------------------------------


@theorem(
    "permissions.and",
    "CAndPerm leaves just the permissions that the mask has too, and changes nothing else of the bits.",
    "cheriot: prop_andperms (there switched off: its generation never finished)",
    mutants=("andperm-or", "andperm-keeps-software"),
)
def permissions_and(fmt: CapabilityFormat, given: Given) -> Any:
    cap, mask = given.capability(fmt, "c"), given.word("mask", fmt.address_width)
    result = capability.and_permissions(cap, mask)
    return (
        (result.permissions == cap.permissions & mask)
        & same_but(cap, result, "permissions", "software_permissions")
        & (result.address == cap.address)
    )


@theorem(
    "permissions.monotone",
    "No permission appears by CAndPerm, whatever the mask.",
    "no peer proves it: cheriot's prop_andperms is switched off",
    mutants=("andperm-or",),
)
def permissions_monotone(fmt: CapabilityFormat, given: Given) -> Any:
    cap, mask = given.capability(fmt, "c"), given.word("mask", fmt.address_width)
    result = capability.and_permissions(cap, mask)
    return result.permissions & cap.permissions == result.permissions


@theorem(
    "permissions.set",
    "Permissions that were set are read back, as far as the format has them.",
    "CHERI ISAv9, CGetPerm",
    mutants=("andperm-keeps-software",),
)
def permissions_set(fmt: CapabilityFormat, given: Given) -> Any:
    cap, wanted = given.capability(fmt, "c"), given.word("permissions", fmt.address_width)
    return capability.set_permissions(cap, wanted).permissions == wanted & fmt.permissions_mask


@theorem(
    "flags.set",
    "CSetFlags sets the flags, and changes nothing else of the bits.",
    "CHERI ISAv9, CSetFlags",
    mutants=("flags-wide",),
)
def flags_set(fmt: CapabilityFormat, given: Given) -> Any:
    cap, wanted = given.capability(fmt, "c"), given.word("flags", fmt.address_width)
    result = capability.set_flags(cap, wanted)
    return (result.flags == wanted & fmt.flags.mask) & same_but(cap, result, "flags") & (result.address == cap.address)


# -- sealing -------------------------------------------------------------------------------------------------------------


def in_bounds(cap: Capability) -> Any:
    """Whether the address is in the bounds."""
    base, top = cap.bounds
    return (base <= cap.address) & (cap.address < top)


@theorem(
    "sealing.seal",
    "A capability sealed with its tag was tagged and unsealed; the authority was tagged, unsealed, had permission to seal and an "
    "address in its bounds, which is now the object type and no reserved one; nothing else changed.",
    "riscv: propSealEncodable (encodability only); no peer has the rule",
    mutants=("seal-without-permission", "seal-out-of-bounds", "seal-reserved", "seal-by-sealed", "seal-twice"),
)
def sealing_seal(fmt: CapabilityFormat, given: Given) -> Any:
    cap, authority = given.capability(fmt, "c"), given.capability(fmt, "authority")
    sealed = capability.seal(cap, authority)
    allowed = (
        cap.tag
        & not_(cap.is_sealed)
        & authority.tag
        & not_(authority.is_sealed)
        & authority.permits(Permission.SEAL)
        & in_bounds(authority)
        & (authority.address <= fmt.max_otype)
    )
    outcome = (sealed.otype == authority.address) & same_but(cap, sealed, "otype") & (sealed.address == cap.address)
    return (sealed.tag == allowed) & implies(sealed.tag, outcome & sealed.is_sealed)


@theorem(
    "sealing.unseal",
    "A capability unsealed with its tag was tagged and sealed with no reserved type; the authority was tagged, unsealed, had "
    "permission to unseal and pointed, in its bounds, at that type; only the type changed, and GLOBAL if the authority lacks it.",
    "riscv: propUnsealEncodable (encodability only); no peer has the rule",
    mutants=(
        "unseal-any-type",
        "unseal-reserved",
        "unseal-without-permission",
        "unseal-keeps-global",
        "unseal-out-of-bounds",
    ),
)
def sealing_unseal(fmt: CapabilityFormat, given: Given) -> Any:
    cap, authority = given.capability(fmt, "c"), given.capability(fmt, "authority")
    opened = capability.unseal(cap, authority)
    allowed = (
        cap.tag
        & cap.is_sealed
        & not_(cap.has_reserved_otype)
        & authority.tag
        & not_(authority.is_sealed)
        & authority.permits(Permission.UNSEAL)
        & in_bounds(authority)
        & (authority.address == cap.otype)
    )
    is_global = cap.permits(Permission.GLOBAL) & authority.permits(Permission.GLOBAL)
    kept = cap.permissions & ~int(Permission.GLOBAL) | select(is_global, int(Permission.GLOBAL), 0)
    outcome = (
        not_(opened.is_sealed)
        & (opened.permissions == kept)
        & same_but(cap, opened, "otype", "permissions")
        & (opened.address == cap.address)
    )
    return (opened.tag == allowed) & implies(opened.tag, outcome)


@theorem(
    "sealing.inverse",
    "What one global authority seals it unseals again, bit for bit.",
    "no peer",
    mutants=("unseal-any-type-refused",),
)
def sealing_inverse(fmt: CapabilityFormat, given: Given) -> Any:
    cap, authority = given.capability(fmt, "c"), given.capability(fmt, "authority")
    given.assume(authority.permits(Permission.SEAL | Permission.UNSEAL | Permission.GLOBAL))
    sealed = capability.seal(cap, authority)
    return implies(sealed.tag, capability.equal(capability.unseal(sealed, authority), cap))


@theorem(
    "sealing.conditional",
    "CCSeal gives the capability as it was where the authority is untagged, out of bounds or points at type -1, or the capability is "
    "sealed; elsewhere, with a tag, it gives what CSeal gives.",
    "CHERI ISAv9, CCSeal",
    mutants=("ccseal-without-permission",),
)
def sealing_conditional(fmt: CapabilityFormat, given: Given) -> Any:
    cap, authority = given.capability(fmt, "c"), given.capability(fmt, "authority")
    result, sealed = capability.conditional_seal(cap, authority), capability.seal(cap, authority)
    unchanged = capability.equal(result, cap)
    unusable = not_(authority.tag) | cap.is_sealed | not_(in_bounds(authority)) | (authority.address == fmt.address_mask)
    return implies(unusable, unchanged) & implies(not_(unusable), not_(result.tag) | capability.equal(result, sealed))


@theorem(
    "sealing.entry",
    "A sentry differs from its origin in nothing but the type, and has the origin's tag only if that was unsealed.",
    "CHERI ISAv9, CSealEntry",
    mutants=("sentry-of-sealed",),
)
def sealing_entry(fmt: CapabilityFormat, given: Given) -> Any:
    cap = given.capability(fmt, "c")
    sentry = capability.seal_entry(cap)
    rest = same_but(cap, sentry, "otype") & (sentry.address == cap.address) & (sentry.otype == fmt.otype_sentry)
    return rest & (sentry.tag == cap.tag & not_(cap.is_sealed))


@theorem(
    "sealing.reserved",
    "No authority seals with a reserved type or unseals a sentry.",
    "CHERI ISAv9, CSeal and CUnseal",
    mutants=("seal-reserved", "unseal-reserved"),
)
def sealing_reserved(fmt: CapabilityFormat, given: Given) -> Any:
    cap, authority = given.capability(fmt, "c"), given.capability(fmt, "authority")
    sealed, opened = capability.seal(cap, authority), capability.unseal(capability.seal_entry(cap), authority)
    return implies(sealed.tag, not_(sealed.has_reserved_otype)) & not_(opened.tag)


# -- building, copying a type, comparing -----------------------------------------------------------------------------------


@theorem(
    "build.subset",
    "What CBuildCap tags is within the bounds and permissions of a tagged, unsealed authority, is unsealed or a sentry, and has the "
    "requested bits but for the type.",
    "riscv: propBuildCapValidEq",
    mutants=("build-ignores-base", "build-ignores-permissions", "build-by-untagged"),
)
def build_subset(fmt: CapabilityFormat, given: Given) -> Any:
    authority, requested = given.sound_capability(fmt, "authority"), given.capability(fmt, "requested")
    built = capability.build(authority, requested)
    base, top = authority.bounds
    built_base, built_top = built.bounds
    inside = (
        authority.tag
        & not_(authority.is_sealed)
        & (base <= built_base)
        & (built_base <= built_top)
        & (built_top <= top)
        & (built.permissions & authority.permissions == built.permissions)
        & (not_(built.is_sealed) | (built.otype == fmt.otype_sentry))
    )
    return implies(built.tag, inside) & same_but(requested, built, "otype") & (built.address == requested.address)


@theorem(
    "build.recovers",
    "Whatever set_bounds and a representable move derive from the root, CBuildCap recovers from the root and the untagged bits.",
    "riscv: propBuildCapValidEq",
    mutants=("build-never",),
)
def build_recovers(fmt: CapabilityFormat, given: Given) -> Any:
    root = capability.root(fmt, given.word("base", fmt.address_width))
    narrowed, _exact = capability.set_bounds(root, given.word("length", fmt.address_width))
    cap = capability.increment_address(narrowed, given.word("increment", fmt.address_width))
    by_exponent(fmt, given, cap.meta)
    return implies(cap.tag, capability.equal(capability.build(root, cap.with_tag(False)), cap))


@theorem(
    "copy_type",
    "A copied type is tagged only if it is an ordinary one and the bounds stay; the address is then the type.",
    "CHERI ISAv9, CCopyType",
    mutants=("copytype-reserved",),
)
def copy_type(fmt: CapabilityFormat, given: Given) -> Any:
    cap, sealed = given.capability(fmt, "c"), given.capability(fmt, "sealed")
    result = capability.copy_type(cap, sealed)
    kept = (result.base == cap.base) & (result.top == cap.top)
    ordinary = sealed.otype <= fmt.max_otype
    return implies(result.tag, (result.address == sealed.otype) & ordinary & kept & cap.tag & not_(cap.is_sealed))


@theorem("subset.reflexive", "A capability is a subset of itself.", "CHERI ISAv9, CTestSubset", mutants=("subset-strict",))
def subset_reflexive(fmt: CapabilityFormat, given: Given) -> Any:
    cap = given.capability(fmt, "c")
    return capability.is_subset(cap, cap)


@theorem(
    "subset.transitive", "A subset of a subset is a subset.", "CHERI ISAv9, CTestSubset", mutants=("subset-ignores-top",)
)
def subset_transitive(fmt: CapabilityFormat, given: Given) -> Any:
    a, b, c = (given.capability(fmt, name) for name in "abc")
    both = capability.is_subset(a, b) & capability.is_subset(b, c)
    inside = (c.base <= a.base) & (a.top <= c.top) & (a.permissions & c.permissions == a.permissions) & (a.tag == c.tag)
    return implies(both, capability.is_subset(a, c) & inside)


@theorem(
    "subset.equal",
    "Equal capabilities have the same fields and are subsets of each other.",
    "CHERI ISAv9, CSetEqualExact",
    mutants=("equal-ignores-tag", "equal-ignores-address"),
)
def subset_equal(fmt: CapabilityFormat, given: Given) -> Any:
    a, b = given.capability(fmt, "a"), given.capability(fmt, "b")
    same = (a.tag == b.tag) & (a.meta == b.meta) & (a.address == b.address)
    return (capability.equal(a, b) == same) & implies(same, capability.is_subset(a, b) & capability.is_subset(b, a))


# -- tags and the invariant ------------------------------------------------------------------------------------------------

# Every way to derive a capability from one or two others: its name, and the function of the claim's values. A third value is
# any number of the address width.
_Derivation = Callable[[Capability, Capability, Any], Capability]
DERIVATIONS: dict[str, _Derivation] = {
    "set_bounds": lambda cap, other, n: capability.set_bounds(cap, n)[0],
    "set_address": lambda cap, other, n: capability.set_address(cap, n),
    "increment_address": lambda cap, other, n: capability.increment_address(cap, n),
    "set_offset": lambda cap, other, n: capability.set_offset(cap, n),
    "and_permissions": lambda cap, other, n: capability.and_permissions(cap, n),
    "set_flags": lambda cap, other, n: capability.set_flags(cap, n),
    "seal": lambda cap, other, n: capability.seal(cap, other),
    "conditional_seal": lambda cap, other, n: capability.conditional_seal(cap, other),
    "unseal": lambda cap, other, n: capability.unseal(cap, other),
    "seal_entry": lambda cap, other, n: capability.seal_entry(cap),
    "copy_type": lambda cap, other, n: capability.copy_type(cap, other),
    "build": lambda cap, other, n: capability.build(cap, other),
}

_NEEDS_SPLIT = {"set_address", "increment_address", "set_offset", "copy_type"}

_TAG_MUTANTS = {
    "set_bounds": ("setbounds-tags",),
    "unseal": ("tagged-if-or",),
    "seal": ("tagged-if-or",),
    "conditional_seal": ("tagged-if-or",),
    "copy_type": ("tagged-if-or",),
    "and_permissions": ("tagged-if-or",),
    "set_flags": ("tagged-if-or",),
    "seal_entry": ("tagged-if-or",),
    "set_address": ("move-tags",),
    "increment_address": ("increment-tags",),
    "set_offset": ("increment-tags",),
    "build": ("build-by-untagged",),
}


def _declare_tag(name: str, derive: _Derivation) -> None:
    @theorem(
        f"tags.{name}",
        f"{name} never gives a tag to what was derived from an untagged capability.",
        "CHERI ISAv9, provenance; no peer has it operation by operation",
        mutants=_TAG_MUTANTS[name],
    )
    def tag(fmt: CapabilityFormat, given: Given) -> Any:
        cap, other = given.capability(fmt, "c"), given.capability(fmt, "other")
        return implies(derive(cap, other, given.word("n", fmt.address_width)).tag, cap.tag)


_SEALED_MUTANTS = {
    "set_bounds": ("setbounds-of-sealed",),
    "set_address": ("move-of-sealed",),
    "increment_address": ("increment-of-sealed",),
    "set_offset": ("increment-of-sealed",),
    "and_permissions": ("unsealed-only-off",),
    "set_flags": ("unsealed-only-off",),
    "seal": ("seal-twice",),
    "seal_entry": ("sentry-of-sealed",),
    "copy_type": ("move-of-sealed",),
}


def _declare_sealed(name: str, derive: _Derivation) -> None:
    @theorem(
        f"sealed.{name}",
        f"{name} never gives a tag to what was derived from a sealed capability.",
        "CHERI ISAv9: a sealed capability is immutable; no peer",
        mutants=_SEALED_MUTANTS[name],
    )
    def sealed(fmt: CapabilityFormat, given: Given) -> Any:
        cap, other = given.capability(fmt, "c"), given.capability(fmt, "other")
        given.assume(cap.is_sealed)
        return not_(derive(cap, other, given.word("n", fmt.address_width)).tag)


_MONOTONE_MUTANTS = {
    "set_bounds": ("setbounds-unchecked",),
    "set_address": ("precise-ignores-base",),
    "increment_address": ("fast-region",),
    "set_offset": ("fast-region",),
    "copy_type": ("precise-ignores-base",),
    "and_permissions": ("andperm-or",),
    "set_flags": ("flags-wide",),
    "seal": ("otype-wide",),
    "conditional_seal": ("otype-wide",),
    "unseal": ("otype-wide",),
    "seal_entry": ("otype-wide",),
    "build": ("build-ignores-permissions",),
}
_MONOTONE_LEMMAS = ("bounds.set.monotone", "bounds.set.rounds", "bounds.set.finer", "bounds.shape")


def _declare_monotone(name: str, derive: _Derivation) -> None:
    lemmas = _MONOTONE_LEMMAS if name == "set_bounds" else ()
    moves = ", and the very same where it only moves" if name in _NEEDS_SPLIT else ""

    @theorem(
        f"monotone.{name}",
        f"What {name} tags has bounds and permissions within those of the sound capability that it was derived from{moves}.",
        "CHERI ISAv9, monotonicity; cheriot: prop_setbounds_monotonic, prop_andperms; riscv: propSetBounds",
        mutants=_MONOTONE_MUTANTS[name],
        uses=lemmas,
    )
    def monotone(fmt: CapabilityFormat, given: Given) -> Any:
        cap = given.sound_capability(fmt, "c")
        other, number = given.capability(fmt, "other"), given.word("n", fmt.address_width)
        if name in _NEEDS_SPLIT:
            by_exponent(fmt, given, cap.meta)
        result = derive(cap, other, number)
        if lemmas:
            _lean_on_monotonicity(fmt, given, cap, number, result)
        kept = (result.base == cap.base) & (result.top == cap.top) if moves else True
        return implies(result.tag, is_within(result, cap) & kept)


def _lean_on_monotonicity(fmt: CapabilityFormat, given: Given, cap: Capability, length: Any, result: Capability) -> None:
    """The four lemmas on what set_bounds makes of a capability."""
    base, top = cap.address, cap.address + length
    unit, parent = alignment_of(fmt, cap.meta), {"parent_base": cap.base, "parent_top": cap.top}
    _field, finer, _exact = bounds.encode_bounds(fmt, base, top)
    given.lean_on(fmt, "bounds.shape", c=cap)
    given.lean_on(fmt, "bounds.set.finer", **parent, unit=unit, base=base, top=top)
    given.lean_on(fmt, "bounds.set.rounds", base=base, top=top)
    rounded = {"finer": finer, "new_base": result.base, "new_top": result.top}
    given.lean_on(fmt, "bounds.set.monotone", **parent, unit=unit, base=base, top=top, **rounded)


_INVARIANT_MUTANTS = {
    "set_bounds": ("setbounds-unchecked",),
    "set_address": ("precise-ignores-base",),
    "increment_address": ("fast-region",),
    "set_offset": ("fast-region",),
    "copy_type": ("precise-ignores-base",),
    "and_permissions": ("andperm-wide",),
    "set_flags": ("flags-wide",),
    "seal": ("otype-wide",),
    "conditional_seal": ("otype-wide",),
    "unseal": ("otype-wide",),
    "seal_entry": ("otype-wide",),
    "build": ("build-always",),
}


def _declare_invariant(name: str, derive: _Derivation) -> None:
    @theorem(
        f"invariant.{name}",
        f"What {name} tags satisfies the invariant (valid bounds, base <= top <= 2**A, no reserved bits) if its sources did.",
        "riscv: prop...Encodable, per operation; the invariant with the top's bound is ours",
        mutants=_INVARIANT_MUTANTS[name],
    )
    def invariant(fmt: CapabilityFormat, given: Given) -> Any:
        cap = given.sound_capability(fmt, "c")
        other = given.capability(fmt, "other")
        if name in _NEEDS_SPLIT:
            by_exponent(fmt, given, cap.meta)
        result = derive(cap, other, given.word("n", fmt.address_width))
        return implies(result.tag, result.is_sound)


for _name, _derive in DERIVATIONS.items():
    _declare_tag(_name, _derive)
    if _name in _SEALED_MUTANTS:
        _declare_sealed(_name, _derive)
    _declare_invariant(_name, _derive)
    _declare_monotone(_name, _derive)


@theorem(
    "invariant.root",
    "The root satisfies the invariant at every address: the base of the induction.",
    "cheriot: prop_setbounds_monotonic_root (added after a reader noticed that the base was missing)",
    mutants=("validity-of-perms",),
)
def invariant_root(fmt: CapabilityFormat, given: Given) -> Any:
    return capability.root(fmt, given.word("address", fmt.address_width)).is_sound


@theorem(
    "invariant.fields",
    "What satisfies the invariant has no bit but those of its fields: permissions, flags, object type and bounds.",
    "CHERI ISAv9, section 3.5: reserved bits are zero",
    mutants=("sound-with-reserved",),
)
def invariant_fields(fmt: CapabilityFormat, given: Given) -> Any:
    cap = given.sound_capability(fmt, "c")
    fields = (fmt.permissions, fmt.software_permissions, fmt.flags, fmt.otype, fmt.bounds)
    return cap.meta & ~sum(field.in_place for field in fields) == 0


@theorem(
    "bounds.valid_field",
    "Whether bounds bits are valid depends on nothing of meta but the bounds.",
    "CHERI Concentrate, section 4.2",
    mutants=("validity-of-perms",),
)
def valid_field(fmt: CapabilityFormat, given: Given) -> Any:
    a, b = given.word("a", fmt.address_width), given.word("b", fmt.address_width)
    given.assume((a ^ b) & fmt.bounds.in_place == 0)
    return bounds.bounds_are_valid(fmt, a) == bounds.bounds_are_valid(fmt, b)
