"""What each implementation answers to the questions of golden vectors.

Both give every output column of `spec.vectors` as uint64 arrays. `bounds_valid` says whether a decoder accepts the encoding
at all, as the C library's does: every encoding of the ISAv9 formats is accepted. (Whether a tagged capability may have it
is another question, which `bounds_are_valid` answers.)
"""

from collections.abc import Callable, Mapping

import numpy as np

from capvisor.fastpath import bounds as fast_bounds
from capvisor.fastpath import capability as fast_capability
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.workspace import Words, Workspace
from capvisor.model import bounds, capability
from capvisor.model.capability import Capability
from capvisor.spec.formats import CapabilityFormat

Row = Mapping[str, int]
Columns = Mapping[str, Words]
ACCEPTED = 1

_WORD = (1 << 64) - 1


def _bounds_columns(cap: Capability) -> dict[str, int]:
    base, top = cap.bounds
    return {"base": base, "top_lo": top & _WORD, "top_hi": top >> 64}


def _decode(fmt: CapabilityFormat, row: Row) -> dict[str, int]:
    cap = capability.from_memory(fmt, False, row["mem_meta"], row["address"])
    return {
        "raw_meta": cap.meta,
        **_bounds_columns(cap),
        "otype": cap.otype,
        "perms": cap.permissions,
        "flags": cap.flags,
        "reserved": cap.reserved << fmt.reserved.low,
        "bounds_valid": ACCEPTED,
    }


def _setbounds(fmt: CapabilityFormat, row: Row) -> dict[str, int]:
    parent = Capability(fmt, bool(row["in_tag"]), row["in_meta"], row["in_address"])
    narrowed, exact = capability.set_bounds(parent, row["length"])
    return {"out_meta": narrowed.meta, "out_tag": narrowed.tag, "exact": exact, **_bounds_columns(narrowed)}


def _setaddr(fmt: CapabilityFormat, row: Row) -> dict[str, int]:
    cap = Capability(fmt, bool(row["in_tag"]), row["in_meta"], row["in_address"])
    increment = row["new_address"] - cap.address & fmt.address_mask
    moved = capability.increment_address(cap, increment)
    return {
        "fast": bounds.increment_is_representable(fmt, cap.meta, cap.address, increment),
        "precise": bounds.address_keeps_bounds(fmt, cap.meta, cap.address, row["new_address"]),
        "out_tag": moved.tag,
        **_bounds_columns(moved),
    }


def _crrl(fmt: CapabilityFormat, row: Row) -> dict[str, int]:
    return {
        "representable_length": bounds.representable_length(fmt, row["length"]),
        "alignment_mask": bounds.alignment_mask(fmt, row["length"]),
    }


def _perms(fmt: CapabilityFormat, row: Row) -> dict[str, int]:
    cap = Capability(fmt, False, row["in_meta"], 0)
    changed = capability.set_permissions(cap, row["new_perms"])
    return {
        "in_perms": cap.permissions,
        "ok": changed.permissions == row["new_perms"],
        "out_meta": changed.meta,
        "out_perms": changed.permissions,
    }


_REFERENCE: dict[str, Callable[[CapabilityFormat, Row], dict[str, int]]] = {
    "decode": _decode,
    "setbounds": _setbounds,
    "setaddr": _setaddr,
    "crrl": _crrl,
    "perms": _perms,
}


def reference_answers(operation: str, fmt: CapabilityFormat, inputs: Columns) -> dict[str, Words]:
    """The reference's output columns, row by row."""
    answer, names = _REFERENCE[operation], list(inputs)
    rows = zip(*(inputs[name].tolist() for name in names), strict=True)
    answers = [answer(fmt, dict(zip(names, row, strict=True))) for row in rows]
    return {name: np.array([row[name] for row in answers], np.uint64) for name in answers[0]}


class _Fast:
    """The fast path's answers for one set of inputs."""

    def __init__(self, fmt: CapabilityFormat, inputs: Columns) -> None:
        self.fmt, self.inputs = fmt, inputs
        self.rows = len(next(iter(inputs.values())))
        self.ws = Workspace(self.rows)

    def words(self) -> Words:
        return np.empty(self.rows, np.uint64)

    def lanes(self, meta: Words, address: Words) -> Lanes:
        tag = self.inputs["in_tag"] != 0 if "in_tag" in self.inputs else np.zeros(self.rows, np.bool_)
        return Lanes(tag, meta, address)

    def empty(self) -> Lanes:
        return Lanes(np.empty(self.rows, np.bool_), self.words(), self.words())

    def bounds(self, meta: Words, address: Words) -> dict[str, Words]:
        base, top, high = self.words(), self.words(), np.empty(self.rows, np.bool_)
        fast_bounds.decode_bounds(self.fmt, meta, address, self.ws, base, top, high)
        # Bit A of the top: a column of its own where A is 64, part of the low one elsewhere.
        above = np.zeros(self.rows, np.uint64)
        if self.fmt.address_width == 64:
            above = high.astype(np.uint64)
        else:
            top |= high.astype(np.uint64) << np.uint64(self.fmt.address_width)
        return {"base": base, "top_lo": top, "top_hi": above}

    def decode(self) -> dict[str, Words]:
        meta, otype, perms, flags = self.words(), self.words(), self.words(), self.words()
        fast_capability.to_memory(self.fmt, self.inputs["mem_meta"], meta)
        fast_capability.get_otype(self.fmt, meta, self.ws, otype)
        fast_capability.get_permissions(self.fmt, meta, self.ws, perms)
        fast_capability.get_flags(self.fmt, meta, flags)
        return {
            "raw_meta": meta,
            **self.bounds(meta, self.inputs["address"]),
            "otype": otype & np.uint64(self.fmt.otype.mask),
            "perms": perms,
            "flags": flags,
            "reserved": meta & np.uint64(self.fmt.reserved.in_place),
            "bounds_valid": np.full(self.rows, ACCEPTED, np.uint64),
        }

    def setbounds(self) -> dict[str, Words]:
        parent, out = self.lanes(self.inputs["in_meta"], self.inputs["in_address"]), self.empty()
        exact = np.empty(self.rows, np.bool_)
        fast_capability.set_bounds(self.fmt, parent, self.inputs["length"], self.ws, out, exact)
        return {
            "out_meta": out.meta,
            "out_tag": out.tag.astype(np.uint64),
            "exact": exact.astype(np.uint64),
            **self.bounds(out.meta, out.address),
        }

    def setaddr(self) -> dict[str, Words]:
        fmt, ws, address = self.fmt, self.ws, self.inputs["new_address"]
        cap, out = self.lanes(self.inputs["in_meta"], self.inputs["in_address"]), self.empty()
        increment = (address - cap.address) & np.uint64(fmt.address_mask)
        fast, precise = np.empty(self.rows, np.bool_), np.empty(self.rows, np.bool_)
        fast_bounds.increment_is_representable(fmt, cap.meta, cap.address, increment, ws, fast)
        fast_bounds.address_keeps_bounds(fmt, cap.meta, cap.address, address, ws, precise)
        fast_capability.increment_address(fmt, cap, increment, ws, out)
        return {
            "fast": fast.astype(np.uint64),
            "precise": precise.astype(np.uint64),
            "out_tag": out.tag.astype(np.uint64),
            **self.bounds(out.meta, out.address),
        }

    def crrl(self) -> dict[str, Words]:
        length, mask = self.words(), self.words()
        fast_bounds.representable_length(self.fmt, self.inputs["length"], self.ws, length)
        fast_bounds.alignment_mask(self.fmt, self.inputs["length"], self.ws, mask)
        return {"representable_length": length, "alignment_mask": mask}

    def perms(self) -> dict[str, Words]:
        before, meta, after = self.words(), self.words(), self.words()
        fast_capability.get_permissions(self.fmt, self.inputs["in_meta"], self.ws, before)
        fast_capability.set_permissions(self.fmt, self.inputs["in_meta"], self.inputs["new_perms"], self.ws, meta)
        fast_capability.get_permissions(self.fmt, meta, self.ws, after)
        ok = (after == self.inputs["new_perms"]).astype(np.uint64)
        return {"in_perms": before, "ok": ok, "out_meta": meta, "out_perms": after}


def fast_answers(operation: str, fmt: CapabilityFormat, inputs: Columns) -> dict[str, Words]:
    """The fast path's output columns, all rows at once."""
    method: Callable[[_Fast], dict[str, Words]] = getattr(_Fast, operation)
    return method(_Fast(fmt, inputs))


ANSWERS: dict[str, Callable[[str, CapabilityFormat, Columns], dict[str, Words]]] = {
    "reference": reference_answers,
    "fast": fast_answers,
}
