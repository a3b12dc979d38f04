"""Named changes to the code, each of which some theorem must notice: teeth.

A mutant is one replacement in the source of a module. While it is in force, the module's functions have the code of the
changed source, so that whoever has imported them sees it.
"""

import importlib
import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from capvisor.fastpath.machine import KERNELS
from capvisor.model.machine import RULES


@dataclass(frozen=True)
class Mutant:
    """A replacement in a module's source: `before` stands there, and becomes `after`, everywhere in it."""

    name: str
    module: str
    before: str
    after: str


def _bounds(name: str, before: str, after: str) -> Mutant:
    return Mutant(name, "capvisor.model.bounds", before, after)


def _capability(name: str, before: str, after: str) -> Mutant:
    return Mutant(name, "capvisor.model.capability", before, after)


def _fast_bounds(name: str, before: str, after: str) -> Mutant:
    return Mutant(name, "capvisor.fastpath.bounds", before, after)


def _fast(name: str, before: str, after: str) -> Mutant:
    return Mutant(name, "capvisor.fastpath.capability", before, after)


def _rule(name: str, module: str, before: str, after: str) -> Mutant:
    return Mutant(name, f"capvisor.model.{module}", before, after)


def _memory(name: str, before: str, after: str) -> Mutant:
    return Mutant(name, "capvisor.fastpath.memory", before, after)


MUTANTS: dict[str, Mutant] = {
    mutant.name: mutant
    for mutant in (
        _bounds("top-carry", "+ internal + carry & 3", "+ carry & 3"),
        _bounds("top-wrap", "(length_high > 1)", "(length_high > 2)"),
        _bounds("validity-of-bottom", "(bottom >> highest - 1 == 0)", "(bottom >> highest - 1 < 4)"),
        _bounds("validity-of-half", "exponent != fmt.max_exponent - 1", "exponent != fmt.max_exponent - 3"),
        _bounds("validity-of-perms", "return whole & half", "return whole & half & (meta >> fmt.address_width - 1 == 0)"),
        _bounds(
            "set-top-rounded-down", "top_granule = top + (1 << alignment) - 1 >> alignment", "top_granule = top >> alignment"
        ),
        _bounds(
            "set-top-rounded-twice",
            "top_granule = top + (1 << alignment) - 1 >> alignment",
            "top_granule = (top >> alignment) + 1",
        ),
        _bounds("set-exponent-not-grown", "exponent = exponent + grown", "exponent = exponent + 0"),
        _bounds("set-exact-ignores-top", "exact = (base | top)", "exact = base"),
        _bounds("set-internal-too-early", "internal = length >> fmt.mantissa_width - 2 != 0", "internal = length >= 0"),
        _bounds("set-grown-too-early", "grown = internal & (", "grown = internal & (length >= 0) | internal & ("),
        _bounds(
            "set-clears-otype",
            "return meta & ~fmt.bounds.in_place | field",
            "return meta & ~fmt.otype.in_place & ~fmt.bounds.in_place | field",
        ),
        _bounds(
            "precise-ignores-base", "(base == new_base) & (top == new_top)", "(base == base) & (top - base >= 0 * new_top)"
        ),
        _bounds(
            "fast-limit",
            "increment_middle < (room - 1 & fmt.mantissa_mask)",
            "increment_middle <= (room & fmt.mantissa_mask)",
        ),
        _bounds("fast-region", "region = ((bottom >> shift) - 1 & 7)", "region = ((bottom >> shift) - 2 & 7)"),
        _bounds("fast-region-above", "region = ((bottom >> shift) - 1 & 7)", "region = ((bottom >> shift) + 1 & 7)"),
        _bounds("fast-downwards", "(increment_middle >= room)", "(increment_middle >= 0 * room)"),
        _bounds("fast-gap-wide", "increment_middle < (room - 1 &", "increment_middle < (room - 5 &"),
        _bounds("region-start", "limit = (bottom >> shift) - 1 & 7", "limit = (bottom >> shift) - 2 & 7"),
        _bounds("crrl-down", "return length + (mask ^ fmt.address_mask) & mask", "return length & mask"),
        _bounds(
            "crrl-one-more",
            "return length + (mask ^ fmt.address_mask) & mask",
            "return length + (mask ^ fmt.address_mask) + 1 & mask",
        ),
        _bounds(
            "cram-short",
            "return fmt.address_mask >> alignment << alignment",
            "return fmt.address_mask >> (alignment >> 1) << (alignment >> 1)",
        ),
        _capability("sound-with-reserved", " & (self.reserved == 0)", ""),
        _capability("memory-form", "return cap.meta ^ cap.format.null_meta", "return cap.meta"),
        _capability("andperm-or", "cap.permissions & mask", "cap.permissions | mask"),
        _capability("andperm-keeps-software", "permissions >> fmt.software_permissions_shift", "permissions >> 0"),
        _capability(
            "andperm-wide", "meta = insert(fmt.permissions, cap.meta, permissions)", "meta = cap.meta ^ permissions"
        ),
        _capability(
            "flags-wide",
            "with_meta(insert(cap.format.flags, cap.meta, flags))",
            "with_meta(cap.meta ^ flags & cap.format.address_mask)",
        ),
        _capability(
            "otype-wide",
            "insert(cap.format.otype, cap.meta, otype)",
            "cap.meta & ~cap.format.otype.in_place ^ otype << cap.format.otype.low & cap.format.address_mask ^ otype & 31",
        ),
        _capability(
            "seal-without-permission",
            "& authority.permits(Permission.SEAL)\n        & points_at_otype(authority)\n",
            "& points_at_otype(authority)\n",
        ),
        _capability(
            "seal-out-of-bounds",
            "& points_at_otype(authority)\n        & (authority.address <= cap",
            "& (authority.address <= cap",
        ),
        _capability(
            "seal-reserved", "(authority.address <= cap.format.max_otype)", "(authority.address <= cap.format.otype.mask)"
        ),
        _capability(
            "seal-by-sealed",
            "authority.tag\n        & not_(authority.is_sealed)\n        & authority.permits(Permission.SEAL)",
            "authority.tag\n        & authority.permits(Permission.SEAL)",
        ),
        _capability(
            "seal-twice",
            "return set_otype(unsealed_only(cap), authority.address)",
            "return set_otype(cap, authority.address)",
        ),
        _capability("unseal-any-type", "& (authority.address == cap.otype)\n", ""),
        _capability("unseal-any-type-refused", "(authority.address == cap.otype)", "(authority.address != cap.otype)"),
        _capability("unseal-reserved", "& not_(cap.has_reserved_otype)\n", ""),
        _capability("unseal-without-permission", "& authority.permits(Permission.UNSEAL)\n", ""),
        _capability(
            "unseal-keeps-global",
            "is_global = cap.permits(Permission.GLOBAL) & authority.permits(Permission.GLOBAL)",
            "is_global = cap.permits(Permission.GLOBAL)",
        ),
        _capability(
            "unseal-out-of-bounds",
            "& authority.permits(Permission.UNSEAL)\n        & points_at_otype(authority)\n",
            "& authority.permits(Permission.UNSEAL)\n",
        ),
        _capability(
            "ccseal-without-permission",
            "not_(authority.is_sealed) & authority.permits(Permission.SEAL) & (",
            "not_(authority.is_sealed) & (",
        ),
        _capability(
            "sentry-of-sealed",
            "return set_otype(unsealed_only(cap), cap.format.otype_sentry)",
            "return set_otype(cap, cap.format.otype_sentry)",
        ),
        _capability(
            "build-ignores-base",
            "(wanted_base >= base)\n        & (wanted_top <= top)\n        & (wanted_base <= wanted_top)",
            "(wanted_top <= top)\n        & (wanted_base <= wanted_top)",
        ),
        _capability(
            "build-ignores-permissions",
            "& (permissions & authority.permissions == permissions)\n    )\n    # The",
            ")\n    # The",
        ),
        _capability(
            "build-by-untagged",
            "Capability(fmt, unsealed_only(authority).tag, meta, wanted_base)",
            "Capability(fmt, True, meta, wanted_base)",
        ),
        _capability("build-never", "wanted.with_tag(subset & equal(derived, wanted))", "wanted.with_tag(False)"),
        _capability("build-always", "wanted.with_tag(subset & equal(derived, wanted))", "wanted.with_tag(subset)"),
        _capability("copytype-reserved", ".tagged_if(not_(sealed.has_reserved_otype))", ""),
        _capability("subset-strict", "(inner_base >= base)", "(inner_base > base)"),
        _capability("subset-ignores-top", "& (inner_top <= top)\n", ""),
        _capability("equal-ignores-tag", "(a.tag == b.tag) & (a.meta", "(a.meta"),
        _capability("equal-ignores-address", "& (a.address == b.address)", ""),
        _capability(
            "tagged-if-or",
            "Capability(self.format, self.tag & condition, self.meta",
            "Capability(self.format, self.tag | condition, self.meta",
        ),
        _capability("setbounds-tags", "cap.tag & allowed, meta", "allowed, meta"),
        _capability("setbounds-of-sealed", "allowed = not_(cap.is_sealed) & within_bounds", "allowed = within_bounds"),
        _capability(
            "setbounds-unchecked",
            "allowed = not_(cap.is_sealed) & within_bounds(cap, cap.address, length)",
            "allowed = not_(cap.is_sealed)",
        ),
        _capability(
            "move-tags",
            "cap.tag & not_(cap.is_sealed) & kept, cap.meta, address)\n\n\ndef increment",
            "not_(cap.is_sealed) & kept, cap.meta, address)\n\n\ndef increment",
        ),
        _capability(
            "move-of-sealed",
            "cap.tag & not_(cap.is_sealed) & kept, cap.meta, address)\n\n\ndef increment",
            "cap.tag & kept, cap.meta, address)\n\n\ndef increment",
        ),
        _capability(
            "increment-tags",
            "cap.tag & not_(cap.is_sealed) & kept, cap.meta, address)\n\n\ndef set_offset",
            "not_(cap.is_sealed) & kept, cap.meta, address)\n\n\ndef set_offset",
        ),
        _capability(
            "increment-of-sealed",
            "cap.tag & not_(cap.is_sealed) & kept, cap.meta, address)\n\n\ndef set_offset",
            "cap.tag & kept, cap.meta, address)\n\n\ndef set_offset",
        ),
        _capability("unsealed-only-off", "return cap.tagged_if(not_(cap.is_sealed))", "return cap"),
        Mutant("fast-log2-of-zero", "capvisor.fastpath.bits", "_FLOAT_2_52 | 1", "_FLOAT_2_52"),
        _fast_bounds("fast-decode-carry", "np.less(top, base, out=top_high)", "top_high.fill(False)"),
        _fast_bounds("fast-decode-eighth", "np.bitwise_or(short, eighth, out=short)", "np.bitwise_or(short, 0, out=short)"),
        _fast_bounds(
            "fast-decode-clamp",
            "np.minimum(exponent, fmt.max_exponent, out=exponent)",
            "np.minimum(exponent, 63, out=exponent)",
        ),
        _fast_bounds("fast-valid-half", "np.logical_or(flag, other, out=flag)", "np.logical_or(other, other, out=flag)"),
        _fast_bounds("fast-set-carry", "np.add(offset, mask, out=offset)", "np.add(offset, 0, out=offset)"),
        _fast_bounds("fast-set-grown", "np.add(top, grown, out=top)", "np.add(top, 0, out=top)"),
        _fast_bounds("fast-set-exact", "np.equal(wide, 0, out=exact)", "np.equal(offset, 0, out=exact)"),
        _fast_bounds(
            "fast-crrl", "np.bitwise_xor(out, fmt.address_mask, out=rounded)", "np.bitwise_xor(out, out, out=rounded)"
        ),
        _fast_bounds(
            "fast-set-grown-alignment", "np.add(alignment, wide, out=alignment)", "np.add(alignment, 0, out=alignment)"
        ),
        _fast_bounds(
            "fast-increment-limit",
            "np.add(limit, fmt.mantissa_mask, out=limit)",
            "np.add(limit, fmt.mantissa_mask + 1, out=limit)",
        ),
        _fast_bounds("fast-increment-region", "np.add(short, eighth, out=short)", "np.add(short, 0, out=short)"),
        _fast(
            "fast-otype-unsealed",
            "np.equal(otype, fmt.otype_unsealed << fmt.otype.low, out=out)",
            "np.equal(otype, fmt.otype_sentry << fmt.otype.low, out=out)",
        ),
        _fast(
            "fast-otype-ordinary",
            "np.less_equal(otype, fmt.max_otype << fmt.otype.low, out=out)",
            "np.less(otype, fmt.max_otype << fmt.otype.low, out=out)",
        ),
        _fast("fast-permits-any", "np.equal(ws.bounds[0], wanted, out=out)", "np.not_equal(ws.bounds[0], 0, out=out)"),
        _fast(
            "fast-permissions-hard",
            "_extract(fmt.permissions, meta, out)",
            "_extract(fmt.permissions, meta, out)\n    np.bitwise_and(out, 0x7FF, out=out)",
        ),
        _fast("fast-extract", "np.right_shift(meta, field.low, out=out)", "np.right_shift(meta, field.low + 1, out=out)"),
        _fast("fast-base-is-top", "np.copyto(out, ws.capability[0])", "np.copyto(out, ws.capability[1])"),
        _fast("fast-top-unclipped", "choose(ws.capability_flags[0], fmt.address_mask, top, out)", "np.copyto(out, top)"),
        _fast("fast-offset-added", "np.subtract(cap.address, base, out=base)", "np.add(cap.address, base, out=base)"),
        _fast("fast-length-borrow", "np.not_equal(high, borrow, out=high)", "np.not_equal(high, False, out=high)"),
        _fast("fast-within-carry", "np.less(end, address, out=end_high)", "end_high.fill(False)"),
        _fast(
            "fast-setbounds-sealed",
            "np.logical_and(allowed, unsealed, out=allowed)",
            "np.logical_and(allowed, True, out=allowed)",
        ),
        _fast("fast-move-sealed", "np.logical_and(kept, unsealed, out=kept)", "np.logical_and(kept, True, out=kept)"),
        _fast(
            "fast-flags-kept",
            "np.bitwise_and(cap.meta, fmt.address_mask & ~fmt.flags.in_place, out=meta)",
            "np.bitwise_and(cap.meta, fmt.address_mask, out=meta)",
        ),
        _fast(
            "fast-seal-any-type",
            "np.less_equal(authority.address, fmt.max_otype, out=flag)",
            "np.less_equal(authority.address, fmt.otype.mask, out=flag)",
        ),
        _fast("fast-unseal-any-type", "np.equal(scratch, authority.address, out=flag)", "flag.fill(True)"),
        _fast(
            "fast-with-otype",
            "np.bitwise_or(out_meta, (otype & fmt.otype.mask) << fmt.otype.low, out=out_meta)",
            "np.bitwise_xor(out_meta, otype & fmt.otype.mask, out=out_meta)",
        ),
        _fast(
            "fast-permissions-set",
            "np.right_shift(permissions, fmt.software_permissions_shift, out=placed)",
            "np.right_shift(permissions, fmt.software_permissions_shift + 1, out=placed)",
        ),
        _fast("fast-subset-tags", "np.equal(inner.tag, outer.tag, out=flag)", "flag.fill(True)"),
        _fast("fast-equal-address", "np.equal(a.address, b.address, out=flag)", "flag.fill(True)"),
        _fast(
            "fast-build-reserved",
            "np.bitwise_and(field, fmt.reserved.in_place, out=field)",
            "np.bitwise_and(field, 0, out=field)",
        ),
        _memory("fast-memory-end", "self.size_bytes - size_bytes, out=out", "self.size_bytes, out=out"),
        _memory("fast-memory-straddle", "np.left_shift(high, shift, out=high)", "high.fill(0)"),
        _memory("fast-memory-byte", "np.right_shift(out, shift, out=out)", "np.right_shift(out, 0, out=out)"),
        _memory("fast-memory-hole", "np.left_shift(np.uint64(mask), shift, out=hole)", "hole.fill(mask)"),
        _memory("fast-memory-tag", "np.add(address, size_bytes - 1, out=index)", "np.copyto(index, address)"),
        _memory("fast-memory-halves", "gather(self._halves, index, upper)", "gather(self._halves, index, lower)"),
        _memory("fast-memory-granule", "scatter(self._tags, index, tag, where)", "scatter(self._tags, index, True, where)"),
        _rule("fetch-anywhere", "machine", "if not_(self.pcc.permits(Permission.EXECUTE)):", "if False:"),
        _rule(
            "write-to-c0",
            "machine",
            "if register != 0:\n            self.registers[register] = value",
            "self.registers[register] = value",
        ),
        _rule("trap-keeps-reservation", "machine", "self.is_reserved = False\n        self.mepcc", "self.mepcc"),
        _rule("trap-keeps-pcc", "machine", "self.pcc, self.pc = self.mtcc, ", "self.pc = "),
        _rule(
            "system-registers-open", "machine", "if not_(self.pcc.permits(Permission.ACCESS_SYSTEM_REGISTERS)):", "if False:"
        ),
        _rule("data-keeps-tags", "memory", "Granule(False, word", "Granule(self.store.get(index).tag, word"),
        _rule(
            "load-out-of-bounds",
            "isa.memory",
            "if not_(capability.within_bounds(access.authority, access.address, size_bytes)):",
            "if False:",
        ),
        _rule("load-by-sealed", "isa.memory", "if access.authority.is_sealed:", "if False:"),
        _rule(
            "load-keeps-tag",
            "isa.memory",
            "return found.tagged_if(access.authority.permits(Permission.LOAD_CAPABILITY))",
            "return found",
        ),
        _rule(
            "store-any-capability",
            "isa.memory",
            "if stored.tag & not_(access.authority.permits(Permission.STORE_CAPABILITY)):",
            "if False:",
        ),
        _rule("invoke-any-type", "isa.control", "if code.otype != data.otype:", "if False:"),
        _rule(
            "add-subtracts", "isa.integer", "hart.integer(rs1) + hart.integer(rs2)", "hart.integer(rs1) - hart.integer(rs2)"
        ),
        _fast("fast-build-whole", "np.copyto(field, fmt.null_meta & fmt.bounds.in_place, where=high)", "high.fill(False)"),
    )
}


def functions(module: types.ModuleType) -> Iterator[tuple[str, types.FunctionType]]:
    """The functions that a module defines, methods and properties of its classes included, by qualified name."""
    for value in vars(module).values():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        members = vars(value).values() if inspect.isclass(value) else [value]
        for member in members:
            function = member.fget if isinstance(member, property) else member
            if isinstance(function, types.FunctionType) and "<" not in function.__qualname__:
                yield function.__qualname__, function


@contextmanager
def in_force(mutant: Mutant) -> Iterator[None]:
    """Let a mutant be in force. Raises ValueError where its place isn't in the source."""
    source = inspect.getsource(importlib.import_module(mutant.module))
    if mutant.before not in source:
        raise ValueError(f"mutant {mutant.name}: {mutant.module} has no `{mutant.before}`")
    with source_in_force(mutant.module, source.replace(mutant.before, mutant.after)):
        yield


@contextmanager
def source_in_force(module_name: str, source: str) -> Iterator[None]:
    """Let a module's functions have the code of another source of the same functions."""
    module = importlib.import_module(module_name)
    changed = types.ModuleType(module_name)
    rules, kernels = dict(RULES), dict(KERNELS)
    exec(compile(source, str(module.__file__), "exec"), vars(changed))
    # That has declared rules and kernels anew; those that are there get the changed code.
    RULES.update(rules)
    KERNELS.update(kernels)
    originals = dict(functions(module))
    saved = {name: function.__code__ for name, function in originals.items()}
    for name, function in functions(changed):
        originals[name].__code__ = function.__code__
    try:
        yield
    finally:
        for name, code in saved.items():
            originals[name].__code__ = code
