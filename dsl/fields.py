"""The fields of a capability that a program can name: one row each, with how either implementation reads it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from capvisor.dsl.lanes import LaneInt
from capvisor.fastpath import bounds as fast_bounds
from capvisor.fastpath import capability as fast_capability
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.workspace import Flags, Words, Workspace
from capvisor.model import bounds
from capvisor.model.capability import Capability
from capvisor.spec.formats import CapabilityFormat

FastReader = Callable[[CapabilityFormat, Lanes, Workspace], Any]


@dataclass(frozen=True)
class CapabilityField:
    """A field: its name, whether it is a condition (else a number), what it means, and how to read it.

    `read` gives an int or bool, `read_lanes` a LaneInt or an array of bool.
    """

    name: str
    is_condition: bool
    meaning: str
    read: Callable[[Capability], Any]
    read_lanes: FastReader


def _words(lanes: Lanes) -> Words:
    return np.empty(len(lanes.meta), np.uint64)


def _flags(lanes: Lanes) -> Flags:
    return np.empty(len(lanes.meta), np.bool_)


def _bounds(fmt: CapabilityFormat, lanes: Lanes, ws: Workspace) -> tuple[LaneInt, LaneInt]:
    base, top, high = _words(lanes), _words(lanes), _flags(lanes)
    fast_bounds.decode_bounds(fmt, lanes.meta, lanes.address, ws, base, top, high)
    return LaneInt(base), LaneInt.from_parts(top, high, fmt.address_width)


def _length(fmt: CapabilityFormat, lanes: Lanes, ws: Workspace) -> LaneInt:
    base, top = _bounds(fmt, lanes, ws)
    return top - base & fmt.length_mask


def _offset(fmt: CapabilityFormat, lanes: Lanes, ws: Workspace) -> LaneInt:
    out = _words(lanes)
    fast_capability.get_offset(fmt, lanes, ws, out)
    return LaneInt(out)


def _permissions(fmt: CapabilityFormat, lanes: Lanes, ws: Workspace) -> LaneInt:
    out = _words(lanes)
    fast_capability.get_permissions(fmt, lanes.meta, ws, out)
    return LaneInt(out)


def _otype(fmt: CapabilityFormat, lanes: Lanes, ws: Workspace) -> LaneInt:
    out = _words(lanes)
    fast_capability.get_otype(fmt, lanes.meta, ws, out)
    return LaneInt(out) & fmt.otype.mask


def _sealed(fmt: CapabilityFormat, lanes: Lanes, ws: Workspace) -> Flags:
    out = _flags(lanes)
    fast_capability.is_unsealed(fmt, lanes.meta, ws, out)
    return np.logical_not(out)


def _get_flags(fmt: CapabilityFormat, lanes: Lanes, ws: Workspace) -> LaneInt:
    out = _words(lanes)
    fast_capability.get_flags(fmt, lanes.meta, out)
    return LaneInt(out)


def _valid(fmt: CapabilityFormat, lanes: Lanes, ws: Workspace) -> Flags:
    out = _flags(lanes)
    fast_bounds.bounds_are_valid(fmt, lanes.meta, ws, out)
    return out


def _number(name: str, meaning: str, read: Callable[[Capability], int], read_lanes: FastReader) -> CapabilityField:
    return CapabilityField(name, False, meaning, read, read_lanes)


def _condition(name: str, meaning: str, read: Callable[[Capability], bool], read_lanes: FastReader) -> CapabilityField:
    return CapabilityField(name, True, meaning, read, read_lanes)


FIELDS: dict[str, CapabilityField] = {
    row.name: row
    for row in (
        _condition("tag", "the tag", lambda cap: cap.tag, lambda fmt, lanes, ws: lanes.tag.copy()),
        _number(
            "base",
            "the lowest address in bounds",
            lambda cap: cap.base,
            lambda fmt, lanes, ws: _bounds(fmt, lanes, ws)[0],
        ),
        _number(
            "top",
            "one above the highest address in bounds, up to 2**XLEN",
            lambda cap: cap.top,
            lambda fmt, lanes, ws: _bounds(fmt, lanes, ws)[1],
        ),
        _number("length", "top - base", lambda cap: cap.length, _length),
        _number(
            "address",
            "the address",
            lambda cap: cap.address,
            lambda fmt, lanes, ws: LaneInt(lanes.address.copy()),
        ),
        _number("offset", "address - base, modulo 2**XLEN", lambda cap: cap.offset, _offset),
        _number("perms", "the permissions, as cgetperm returns them", lambda cap: cap.permissions, _permissions),
        _number("otype", "the object type as stored, without a sign", lambda cap: cap.otype, _otype),
        _condition("sealed", "whether it is sealed, as a sentry or otherwise", lambda cap: cap.is_sealed, _sealed),
        _number("flags", "the flags", lambda cap: cap.flags, _get_flags),
        _condition(
            "valid",
            "whether the bounds are encoded as a tagged capability's may be",
            lambda cap: bounds.bounds_are_valid(cap.format, cap.meta),
            _valid,
        ),
    )
}
