"""What programs did, as behaviours: an operation, the cause for which it was refused, and what its operands were like.

Behaviours cost no instrumentation. A shape whose programs show a new one is kept, and changed for later programs.
"""

from typing import Any

import numpy as np

from capvisor.fastpath.machine import DDC, BatchMachine, Indices
from capvisor.fastpath.workspace import Causes
from capvisor.spec.operations import OPERATIONS, Group, OperandKind

Behaviour = tuple[str, int, int]
"""An operation, a cause's number (0 if completed), and a class of operands."""

_SOURCES = (
    *(OperandKind.CAPABILITY_SOURCE_1, OperandKind.CAPABILITY_SOURCE_2),
    *(OperandKind.INTEGER_SOURCE_1, OperandKind.INTEGER_SOURCE_2),
)
CLASSES_PER_CAPABILITY, CLASSES_PER_INTEGER = 16, 8


def classify(machine: BatchMachine, lanes: slice, name: str, operands: tuple[Any, ...]) -> Indices:
    """The class of an operation's operands by lane, before it is executed: one number for all of them."""
    classes = np.zeros(lanes.stop - lanes.start, np.int64)
    destination, sources = None, []
    for kind, value in zip(OPERATIONS[name].operands, operands, strict=True):
        if kind.is_register and kind.is_destination:
            destination = value
        if kind not in _SOURCES:
            continue
        sources.append(value)
        if kind.is_capability:
            classes = classes * CLASSES_PER_CAPABILITY + _capability_class(machine, lanes, value)
        else:
            classes = classes * CLASSES_PER_INTEGER + _integer_class(machine, lanes, value)
    if "ddc" in name:
        classes = classes * CLASSES_PER_CAPABILITY + _capability_class(machine, lanes, DDC)
    if OPERATIONS[name].group is Group.SYSTEM:
        classes = classes * 4 + machine.numbers["privilege"][lanes].astype(np.int64)
    # Whether operands coincide, and c0 is among them.
    coincide = destination in sources or len(set(sources)) < len(sources)
    zero = 0 in (destination, *sources)
    return classes * 4 + 2 * coincide + zero


def _capability_class(machine: BatchMachine, lanes: slice, row: int) -> Indices:
    """Tagged, sealed or not or as a sentry, with all permissions or not, flags."""
    fmt, meta = machine.format, machine.metas[row, lanes]
    otype = meta >> np.uint64(fmt.otype.low) & np.uint64(fmt.otype.mask)
    sealed = (otype != fmt.otype_unsealed).astype(np.int64) + (otype == fmt.otype_sentry)
    permissions = meta >> np.uint64(fmt.permissions.low) & np.uint64(fmt.permissions.mask)
    whole = permissions == fmt.permissions.mask
    null = meta == fmt.null_meta
    classes: Indices = machine.tags[row, lanes] + 2 * sealed + 6 * whole + 4 * null
    return classes


def _integer_class(machine: BatchMachine, lanes: slice, row: int) -> Indices:
    """Zero, small, of a mantissa's size, large, near the end, negative."""
    width, value = machine.format.address_width, machine.addresses[row, lanes]
    bounds = np.array([1, 16, 1 << 12, 1 << 16, 1 << width - 1, (1 << width) - (1 << 12)], np.uint64)
    return np.searchsorted(bounds, value, side="right")


def behaviours(name: str, causes: Causes, classes: Indices) -> set[Behaviour]:
    """What some lanes did in a step."""
    codes = np.unique(classes << 8 | causes).tolist()
    return {(name, code & 0xFF, code >> 8) for code in codes}
