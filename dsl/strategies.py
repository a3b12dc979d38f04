"""Hypothesis strategies: for capabilities and machines, and for programs.

`words`, `encodings`, `capabilities`, `operations` and `states` draw what a machine is made of, biased to the edges where
rules change; all tagged capabilities are sound, because they are derived from the root. A failure prints them as
expressions that make them again.

`programs()` draws whole programs that pass `dsl.check`, correct by construction; they are meant for testing tools of the
language. Their assertions and expectations are arbitrary, so most of them fail when they are run.
"""

import copy
import itertools
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from hypothesis import strategies as st
from hypothesis.vendor import pretty

from capvisor.dsl import syntax
from capvisor.dsl.fields import FIELDS
from capvisor.dsl.states import hart_granules
from capvisor.dsl.syntax import Expression, Operator
from capvisor.model import capability
from capvisor.model import isa as _rules  # declares the rules
from capvisor.model.capability import Capability
from capvisor.model.machine import Hart, Trap
from capvisor.model.memory import EMPTY, Granule, Memory
from capvisor.model.observation import NUMBERS, SPECIAL, ObservedHart, ObservedMemory
from capvisor.spec.formats import FORMATS, CapabilityFormat, Field, Permission
from capvisor.spec.operations import OPERATIONS, Group, OperandKind, Operation
from capvisor.spec.registers import MPP_SHIFT, MSTATUS_FIELDS, MSTATUS_MPP, REGISTER_COUNT, SPECIAL_REGISTERS, Privilege

assert _rules

MEMORY_BASE, MEMORY_GRANULES = 0x8000_0000, 32
"""Where the memory of a drawn state is, and how many granules it has: few, so that accesses meet."""

REGISTERS_IN_USE = 6
"""Registers below this one hold something in a drawn state, and are what most operands name: few, so that they coincide."""

GuestOperation = tuple[str, tuple[int, ...]]
"""An operation of the table, and its operands in the order of its syntax."""

NAMES = ("off", "len", "value", "where_to")
_NUMBER_OPERATORS = (
    *(Operator.ADD, Operator.SUBTRACT, Operator.MULTIPLY),
    *(Operator.BIT_AND, Operator.BIT_OR, Operator.BIT_XOR),
)
_COMPARISONS = (
    *(Operator.EQUAL, Operator.NOT_EQUAL, Operator.LESS),
    *(Operator.LESS_EQUAL, Operator.GREATER, Operator.GREATER_EQUAL),
)

registers = st.integers(0, REGISTER_COUNT - 1)


# -- numbers and encodings -------------------------------------------------------------------------------------------------


@cache
def words(bits: int, near: tuple[int, ...] = ()) -> st.SearchStrategy[int]:
    """Numbers of `bits` bits: any, and those where rules change.

    That is the ends of the range, powers of two and their neighbours, few bits shifted anywhere, and what is close to the
    numbers in `near`.
    """
    mask, few = (1 << bits) - 1, st.integers(-8, 8)
    kinds = [
        st.integers(0, min(64, mask)),
        st.integers(0, mask),
        st.tuples(st.integers(0, bits), few).map(lambda parts: (1 << parts[0]) + parts[1] & mask),
        st.tuples(st.integers(0, min(0xFFFF, mask)), st.integers(0, bits - 1)).map(
            lambda parts: parts[0] << parts[1] & mask
        ),
        st.integers(0, min(64, mask)).map(lambda distance: mask - distance),
    ]
    if near:
        close = st.tuples(st.sampled_from(near), few)
        kinds.insert(1, close.map(lambda parts: parts[0] + parts[1] & mask))
    return st.one_of(kinds)


@cache
@st.composite
def encodings(draw: st.DrawFn, fmt: CapabilityFormat) -> int:
    """The half of a capability that isn't its address, raw: any bits, or fields at their edges, valid together or not."""
    if draw(st.booleans()):
        return draw(words(fmt.address_width, (fmt.null_meta, fmt.root_meta)))
    meta = fmt.null_meta
    for field in (fmt.flags, fmt.reserved, fmt.software_permissions, fmt.permissions):
        if field.width:
            meta = capability.insert(field, meta, draw(words(field.width)))
    meta = capability.insert(fmt.otype, meta, draw(_otypes(fmt)))
    for field in (fmt.internal_exponent, fmt.top, fmt.bottom):
        meta = capability.insert(field, meta, draw(words(field.width)))
    if draw(st.booleans()):
        meta = _with_exponent(fmt, meta, draw(_exponents(fmt)))
    return meta


@cache
def _otypes(fmt: CapabilityFormat) -> st.SearchStrategy[int]:
    """Object types: few ordinary ones, so that they match, the highest, the reserved ones, any."""
    edges = (0, 1, fmt.max_otype, fmt.max_otype + 1, fmt.otype_sentry, fmt.otype_unsealed)
    return st.sampled_from(edges) | st.integers(0, fmt.otype.mask)


@cache
def _exponents(fmt: CapabilityFormat) -> st.SearchStrategy[int]:
    """Exponents that can be stored: any, those about the largest that is needed among them."""
    largest = (1 << fmt.exponent_high_width + fmt.exponent_low_width) - 1
    edges = (0, 1, fmt.max_exponent - 1, fmt.max_exponent, fmt.max_exponent + 1, largest)
    return st.sampled_from(edges) | st.integers(0, largest)


def _with_exponent(fmt: CapabilityFormat, meta: int, exponent: int) -> int:
    """`meta` with an internal exponent."""
    meta = capability.insert(fmt.internal_exponent, meta, fmt.internal_exponent_flag)
    meta = capability.insert(Field(fmt.top.low, fmt.exponent_high_width), meta, exponent >> fmt.exponent_low_width)
    return capability.insert(Field(fmt.bottom.low, fmt.exponent_low_width), meta, exponent)


# -- capabilities ----------------------------------------------------------------------------------------------------------


@cache
def capabilities(
    fmt: CapabilityFormat, *, tagged: bool | None = None, sealed: bool | None = None, near: tuple[int, ...] = ()
) -> st.SearchStrategy[Capability]:
    """Capabilities: tagged ones that are derived from the root, those without their tag, integers, arbitrary bits.

    `tagged` and `sealed` ask for just those that are, or aren't. Tagged ones are sound: narrowed, moved, short of
    permissions, of either flag, sealed with a type or as an entry, as software could have made them. Addresses are often
    close to the numbers in `near`.
    """
    derived = _derived(fmt, sealed, near)
    if tagged:
        return derived
    untagged = [_without_tag(derived), _arbitrary(fmt, sealed)]
    if not sealed:
        untagged.insert(0, _integers(fmt, near))
    return st.one_of(untagged) if tagged is False else st.one_of(*untagged, derived, derived)


@cache
@st.composite
def _integers(draw: st.DrawFn, fmt: CapabilityFormat, near: tuple[int, ...]) -> Capability:
    return capability.null(fmt, draw(words(fmt.address_width, near)))


@cache
@st.composite
def _without_tag(draw: st.DrawFn, caps: st.SearchStrategy[Capability]) -> Capability:
    return draw(caps).with_tag(False)


@cache
@st.composite
def _arbitrary(draw: st.DrawFn, fmt: CapabilityFormat, sealed: bool | None) -> Capability:
    """Any bits, untagged."""
    meta = draw(encodings(fmt))
    if sealed is True:
        meta = capability.insert(fmt.otype, meta, draw(st.integers(0, fmt.otype.mask - 1)))
    elif sealed is False:
        meta = capability.insert(fmt.otype, meta, fmt.otype_unsealed)
    return Capability(fmt, False, meta, draw(words(fmt.address_width)))


@cache
@st.composite
def _derived(draw: st.DrawFn, fmt: CapabilityFormat, sealed: bool | None, near: tuple[int, ...]) -> Capability:
    """What a few derivations make of the root; one that would lose the tag isn't made."""
    addresses = words(fmt.address_width, near)
    cap = capability.root(fmt, draw(addresses))
    for _ in range(draw(st.integers(0, 2))):
        narrowed, _exact = capability.set_bounds(cap, draw(addresses))
        cap = _kept(narrowed, cap)
        cap = _kept(capability.set_address(cap, cap.base + draw(words(fmt.address_width)) & fmt.address_mask), cap)
    cap = _pointing(draw, fmt, cap)
    cap = _limited(draw, fmt, cap)
    if sealed is False or (sealed is None and not draw(st.booleans())):
        return cap
    return _sealed(draw, fmt, cap)


def _kept(derived: Capability, otherwise: Capability) -> Capability:
    return derived if derived.tag else otherwise


def _pointing(draw: st.DrawFn, fmt: CapabilityFormat, cap: Capability) -> Capability:
    """`cap` pointing somewhere else: at an end of its bounds, just outside of them, anywhere that it can."""
    if draw(st.booleans()):
        return cap
    target = draw(words(fmt.address_width, (cap.base, cap.top)))
    return _kept(capability.set_address(cap, target), cap)


def _limited(draw: st.DrawFn, fmt: CapabilityFormat, cap: Capability) -> Capability:
    """`cap` with all permissions, without one or two, or with any, and with either flag."""
    missing = draw(_MISSING)
    cap = capability.and_permissions(cap, fmt.permissions_mask & ~missing)
    return capability.set_flags(cap, draw(st.integers(0, 1)))


_PERMISSIONS = tuple(int(permission) for permission in Permission)
_ONE = st.sampled_from(_PERMISSIONS)
_MISSING = st.one_of(st.just(0), _ONE, st.tuples(_ONE, _ONE).map(sum), words(16))


def _sealed(draw: st.DrawFn, fmt: CapabilityFormat, cap: Capability) -> Capability:
    """`cap` sealed as an entry, or with an ordinary type."""
    if draw(st.booleans()):
        return capability.seal_entry(cap)
    otype = draw(_otypes(fmt).filter(lambda each: each <= fmt.max_otype))
    return capability.seal(cap, capability.root(fmt, otype))


# -- operations ------------------------------------------------------------------------------------------------------------


@cache
def operations(fmt: CapabilityFormat, groups: tuple[Group, ...] = tuple(Group)) -> st.SearchStrategy[GuestOperation]:
    """Operations of the table that the format's machine has, each with operands that fit it.

    Most operands that are registers are among the first few, which `states` fills.
    """
    rows = [row for row in OPERATIONS.values() if row.group in groups and row.minimum_xlen <= fmt.address_width]
    return _operation_of(fmt, tuple(row.name for row in rows))


@st.composite
def _operation_of(draw: st.DrawFn, fmt: CapabilityFormat, names: tuple[str, ...]) -> GuestOperation:
    name = draw(st.sampled_from(names))
    return name, draw(operands(OPERATIONS[name], fmt))


@cache
def operands(row: Operation, fmt: CapabilityFormat) -> st.SearchStrategy[tuple[int, ...]]:
    """Operands of one operation: any that it can have, immediates mostly small."""
    return st.tuples(*(_operand_values(kind, fmt) for kind in row.operands))


@cache
def _operand_values(kind: OperandKind, fmt: CapabilityFormat) -> st.SearchStrategy[int]:
    if kind.is_register:
        few = st.integers(0, REGISTERS_IN_USE - 1)
        # Results mostly go elsewhere, so that the first registers aren't soon all overwritten.
        return st.one_of(few, registers, registers) if kind.is_destination else st.one_of(few, few, few, registers)
    if kind is OperandKind.VALUE:
        return words(fmt.address_width, (MEMORY_BASE, MEMORY_BASE + MEMORY_GRANULES * fmt.capability_bytes))
    low, high = (end // kind.alignment for end in kind.immediate_range(fmt.address_width))
    small, whole = st.integers(max(low, -32), min(high, 32)), st.integers(low, high)
    ends = st.sampled_from((low, high))
    found = st.one_of(st.just(0), small, small, whole, ends).map(lambda count: count * kind.alignment)
    if kind.names:
        named = st.sampled_from(sorted(kind.names.values()))
        return st.one_of(named, named, named, found)
    return found


@st.composite
def completed_operations(draw: st.DrawFn, hart: Hart, groups: tuple[Group, ...] = tuple(Group)) -> GuestOperation:
    """Operations of which a hart, in the state that it is in, wouldn't refuse most.

    One that would be refused gets other registers where with some it wouldn't be; now and then it is left as it is.
    """
    operation = draw(operations(hart.format, groups))
    name, values = operation
    if not is_refused(hart, operation) or draw(st.integers(0, 15)) == 15:
        return operation
    choices = [_others(hart, kind, value) for kind, value in zip(OPERATIONS[name].operands, values, strict=True)]
    tried = itertools.islice(itertools.product(*choices), _MOST_TRIED)
    others = [changed for changed in tried if not is_refused(hart, (name, changed))]
    return (name, draw(st.sampled_from(others))) if others else operation


def _others(hart: Hart, kind: OperandKind, value: int) -> Sequence[int]:
    """What an operand may become in order that its operation isn't refused: another source, no offset."""
    if kind.is_register and not kind.is_destination:
        tagged = [register for register in range(REGISTER_COUNT) if hart.registers[register].tag]
        return tuple(dict.fromkeys((*tagged[:REGISTERS_IN_USE], *range(REGISTERS_IN_USE))))
    return (0,) if kind in _OFFSETS else (value,)


_MOST_TRIED = 64
_OFFSETS = (OperandKind.SIGNED_IMMEDIATE, OperandKind.BRANCH_OFFSET, OperandKind.JUMP_OFFSET)


def is_refused(hart: Hart, operation: GuestOperation) -> bool:
    """Whether a hart would refuse an operation. The hart stays as it is."""
    memory = hart.memory
    trial = Hart(Memory(memory.format, memory.base, memory.size_bytes, copy.copy(memory.store)))
    trial.registers = copy.copy(hart.registers)
    for name in (*SPECIAL, *NUMBERS):
        setattr(trial, name, vars(hart)[name])
    try:
        trial.execute(*operation)
    except Trap:
        return True
    return False


# -- states ----------------------------------------------------------------------------------------------------------------


def hart_in_state(
    fmt: CapabilityFormat,
    *,
    registers: Mapping[int, Capability] | None = None,
    special: Mapping[str, Capability] | None = None,
    numbers: Mapping[str, int] | None = None,
    memory: Mapping[int, Capability] | None = None,
) -> ObservedHart:
    """A hart after reset but for what is given: registers, special ones and numbers by name, granules by index."""
    hart = ObservedHart(ObservedMemory(fmt, MEMORY_BASE, MEMORY_GRANULES * fmt.capability_bytes))
    for register, cap in (registers or {}).items():
        hart.write(register, cap)
    for name, value in {**(special or {}), **(numbers or {})}.items():
        setattr(hart, name, value)
    for index, cap in (memory or {}).items():
        hart.memory.store.set(index, Granule(cap.tag, capability.memory_meta(cap), cap.address))
    return hart


def states(fmt: CapabilityFormat) -> st.SearchStrategy[ObservedHart]:
    """A reference hart in a state worth attacking, whose steps can be watched (`model.observation.watch`).

    c1 holds a capability over all of memory. In most states the registers behind it, the special registers and some granules
    hold capabilities over memory, sealed ones, authorities over their types and whatever else `capabilities` draws, and PCC
    mostly authorises what is at pc. The others are as after reset: a failure is shown with one of these where that suffices.
    """
    return _state(fmt)


@cache
@st.composite
def _state(draw: st.DrawFn, fmt: CapabilityFormat) -> ObservedHart:
    if draw(st.integers(0, 3)) == 0:
        return hart_in_state(fmt, registers={1: draw(_memory(fmt))})
    held = held_capabilities(fmt)
    mixed = {1: draw(_memory(fmt))} | {register: draw(held) for register in range(2, REGISTERS_IN_USE)}
    if draw(st.booleans()):
        mixed |= draw(_sealed_pairs(fmt))
    code = _code(fmt)
    special = {name: draw(held) for name in SPECIAL_REGISTERS if name not in ("pcc", "ddc", "mtcc")}
    special |= {name: draw(st.one_of(code, code, code, held)) for name in ("pcc", "mtcc")}
    special["ddc"] = draw(st.one_of(st.just(capability.root(fmt)), _memory(fmt), held))
    pcc = special["pcc"]
    numbers = {
        "pc": draw(st.one_of(st.just(pcc.address), st.just(pcc.base), words(fmt.address_width))) & fmt.address_mask - 1,
        "privilege": draw(st.sampled_from((Privilege.MACHINE, Privilege.MACHINE, *Privilege))),
        "mstatus": draw(st.integers(0, MSTATUS_FIELDS)) & MSTATUS_FIELDS & ~MSTATUS_MPP
        | draw(st.sampled_from(Privilege)) << MPP_SHIFT,
        "mscratch": draw(words(fmt.address_width)),
        "sscratch": draw(words(fmt.address_width)),
        "is_reserved": draw(st.booleans()),
        "reservation": mixed[draw(st.integers(1, REGISTERS_IN_USE - 1))].address,
    }
    memory = draw(st.dictionaries(st.integers(0, MEMORY_GRANULES - 1), held, max_size=8))
    return hart_in_state(fmt, registers=mixed, special=special, numbers=numbers, memory=memory)


@cache
def held_capabilities(fmt: CapabilityFormat) -> st.SearchStrategy[Capability]:
    """What a place of a drawn state holds: mostly a capability over some of memory, else anything."""
    size = MEMORY_GRANULES * fmt.capability_bytes
    over, whole = _over_memory(fmt), _memory(fmt)
    anything = capabilities(fmt, near=(MEMORY_BASE, MEMORY_BASE + size, size))
    # NULL comes first: what has no part in a failure is shown as nothing.
    choices = (st.just(capability.null(fmt)), whole, over, _authorities(fmt), anything)
    return _weighted(choices, (1, 2, 4, 1, 2))


@st.composite
def _weighted(draw: st.DrawFn, choices: tuple[st.SearchStrategy[Capability], ...], weights: tuple[int, ...]) -> Capability:
    """One of several kinds of capabilities, so often as its weight says; `one_of` would count those of unions singly."""
    chosen = draw(st.integers(0, sum(weights) - 1))
    return draw(choices[bisect_right(tuple(itertools.accumulate(weights)), chosen)])


@cache
@st.composite
def _memory(draw: st.DrawFn, fmt: CapabilityFormat) -> Capability:
    """A capability over all of memory, with every permission, pointing at a granule."""
    cap, _exact = capability.set_bounds(capability.root(fmt, MEMORY_BASE), MEMORY_GRANULES * fmt.capability_bytes)
    return capability.increment_address(cap, draw(st.integers(0, MEMORY_GRANULES - 1)) * fmt.capability_bytes)


@cache
@st.composite
def _over_memory(draw: st.DrawFn, fmt: CapabilityFormat) -> Capability:
    """A capability over all of memory or some granules of it or less, perhaps beyond its end; now and then sealed."""
    granule = fmt.capability_bytes
    first = draw(st.integers(0, MEMORY_GRANULES - 1))
    cap = capability.root(fmt, MEMORY_BASE + first * granule)
    length = draw(st.sampled_from((MEMORY_GRANULES * granule, granule, 2 * granule, 1, 2, 8, 64)))
    if draw(st.booleans()):
        cap, _exact = capability.set_bounds(cap, length)
    if draw(st.booleans()):
        cap = _kept(capability.increment_address(cap, draw(st.integers(-4, 20)) & fmt.address_mask), cap)
    cap = _limited(draw, fmt, cap)
    return _sealed(draw, fmt, cap) if draw(st.integers(0, 7)) == 7 else cap


@cache
@st.composite
def _authorities(draw: st.DrawFn, fmt: CapabilityFormat) -> Capability:
    """A capability that points at an object type, few of them, to seal and unseal with."""
    cap, _exact = capability.set_bounds(capability.root(fmt, draw(st.integers(0, 2))), draw(st.integers(0, 2)))
    return _limited(draw, fmt, cap)


@cache
@st.composite
def _sealed_pairs(draw: st.DrawFn, fmt: CapabilityFormat) -> dict[int, Capability]:
    """Code and data that are sealed together, in two registers."""
    code, data = draw(st.sampled_from(tuple(itertools.permutations(range(2, REGISTERS_IN_USE), 2))))
    authority = capability.root(fmt, draw(st.integers(0, 2)))
    entry = capability.root(fmt, MEMORY_BASE + draw(st.integers(0, 8)))
    held = capability.and_permissions(draw(_over_memory(fmt)), fmt.permissions_mask & ~Permission.EXECUTE)
    return {code: capability.seal(entry, authority), data: _kept(capability.seal(held, authority), held)}


@cache
@st.composite
def _code(draw: st.DrawFn, fmt: CapabilityFormat) -> Capability:
    """A capability for PCC: executable, in either mode, mostly with much in bounds."""
    cap = capability.root(fmt, draw(st.one_of(st.integers(0, 64), words(fmt.address_width, (MEMORY_BASE,)))) & ~3)
    if draw(st.booleans()):
        cap, _exact = capability.set_bounds(
            cap, draw(st.sampled_from((4096, 64, 8, 6, 4, 2))) & fmt.address_mask - cap.address
        )
    missing = draw(st.sampled_from((0, int(Permission.ACCESS_SYSTEM_REGISTERS))))
    cap = capability.and_permissions(cap, fmt.permissions_mask & ~missing)
    return capability.set_flags(cap, draw(st.integers(0, 1)))


# -- how a failure prints them ---------------------------------------------------------------------------------------------


def _print_format(fmt: CapabilityFormat, printer: pretty.RepresentationPrinter, _cycle: bool) -> None:
    printer.text(fmt.name.upper())


def _print_capability(cap: Capability, printer: pretty.RepresentationPrinter, _cycle: bool) -> None:
    printer.text(expression(cap))


def _print_hart(hart: Hart, printer: pretty.RepresentationPrinter, _cycle: bool) -> None:
    after_reset = hart_in_state(hart.format)
    parts: dict[str, Mapping[Any, Capability | int]] = {
        "registers": {
            number: hart.registers[number]
            for number in range(1, REGISTER_COUNT)
            if hart.registers[number] != after_reset.registers[number]
        },
        "special": {name: vars(hart)[name] for name in SPECIAL if vars(hart)[name] != vars(after_reset)[name]},
        "numbers": {name: vars(hart)[name] for name in NUMBERS if vars(hart)[name] != vars(after_reset)[name]},
        "memory": {
            index: capability.from_memory(hart.format, *granule)
            for index, granule in sorted(hart_granules(hart).items())
            if granule != EMPTY
        },
    }
    with printer.group(4, "hart_in_state(", ")"):
        printer.break_()
        printer.text(f"{hart.format.name.upper()},")
        for name, part in parts.items():
            if part:
                printer.breakable()
                shown = ", ".join(f"{key!r}: {_text(value)}" for key, value in part.items())
                printer.text(f"{name}={{{shown}}},")


def _text(value: Capability | int) -> str:
    return expression(value) if isinstance(value, Capability) else str(value) if isinstance(value, bool) else hex(value)


def expression(cap: Capability) -> str:
    """Python that makes a capability again, with `capability` being `capvisor.model.capability`."""
    name = cap.format.name.upper()
    for function in (capability.null, capability.root):
        if cap == function(cap.format, cap.address):
            return f"capability.{function.__name__}({name}, {cap.address:#x})"
    return f"capability.Capability({name}, {cap.tag}, {cap.meta:#x}, {cap.address:#x})"


pretty.for_type_by_name(CapabilityFormat.__module__, CapabilityFormat.__name__, _print_format)
pretty.for_type_by_name(Capability.__module__, Capability.__name__, _print_capability)
pretty.for_type_by_name(ObservedHart.__module__, ObservedHart.__name__, _print_hart)


# -- programs --------------------------------------------------------------------------------------------------------------


@st.composite
def integers(draw: st.DrawFn) -> syntax.Integer:
    """A literal, written in any of the ways there are."""
    number = draw(st.integers(0, 2**65))
    kind = draw(st.sampled_from(["decimal", "hexadecimal", "binary", "K", "M", "G"]))
    if kind in ("K", "M", "G"):
        return syntax.Integer(f"{number % 4096}{kind}")
    return syntax.Integer({"decimal": f"{number}", "hexadecimal": hex(number), "binary": bin(number)}[kind])


def numbers(names: tuple[str, ...], *, with_registers: bool) -> st.SearchStrategy[Expression]:
    """Expressions that are numbers."""
    leaves: list[st.SearchStrategy[Expression]] = [integers()]
    if names:
        leaves.append(st.sampled_from(names).map(syntax.Name))
    if with_registers:
        leaves.append(st.builds(syntax.Register, registers, st.booleans()))
        fields = [name for name, row in FIELDS.items() if not row.is_condition]
        leaves.append(st.builds(syntax.FieldOf, registers, st.sampled_from(fields)))

    def extend(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        return st.one_of(
            st.builds(syntax.Unary, st.sampled_from([Operator.SUBTRACT, Operator.INVERT]), inner),
            st.builds(syntax.Binary, st.sampled_from(_NUMBER_OPERATORS), inner, inner),
            st.builds(
                syntax.Binary,
                st.sampled_from([Operator.SHIFT_LEFT, Operator.SHIFT_RIGHT]),
                inner,
                st.integers(0, 70).map(lambda distance: syntax.Integer(str(distance))),
            ),
        )

    return st.recursive(st.one_of(leaves), extend, max_leaves=6)


def conditions(names: tuple[str, ...], *, with_registers: bool) -> st.SearchStrategy[Expression]:
    """Expressions that are conditions."""
    inner = numbers(names, with_registers=with_registers)
    leaves: list[st.SearchStrategy[Expression]] = [
        st.builds(syntax.Truth, st.booleans()),
        st.builds(syntax.Binary, st.sampled_from(_COMPARISONS), inner, inner),
    ]
    if with_registers:
        fields = [name for name, row in FIELDS.items() if row.is_condition]
        leaves.append(st.builds(syntax.FieldOf, registers, st.sampled_from(fields)))

    def extend(part: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        return st.one_of(
            st.builds(syntax.Unary, st.just(Operator.NOT), part),
            st.builds(
                syntax.Binary,
                st.sampled_from([Operator.AND, Operator.OR, Operator.IMPLIES, Operator.EQUAL, Operator.NOT_EQUAL]),
                part,
                part,
            ),
        )

    return st.recursive(st.one_of(leaves), extend, max_leaves=5)


@st.composite
def instructions(draw: st.DrawFn, fmt: CapabilityFormat, names: tuple[str, ...] = ()) -> syntax.Instruction:
    """An operation of the table with operands that fit it, and expectations that it could meet."""
    row = draw(st.sampled_from([row for row in OPERATIONS.values() if row.minimum_xlen <= fmt.address_width]))
    operands = tuple(draw(_operand(kind, fmt, names)) for kind in row.operands)
    return syntax.Instruction(row.name, operands, draw(_expectations(row, names)))


def _operand(kind: OperandKind, fmt: CapabilityFormat, names: tuple[str, ...]) -> st.SearchStrategy[Expression]:
    if kind.is_register:
        return st.builds(syntax.Register, registers, st.just(kind.is_capability))
    if kind is OperandKind.VALUE:
        return numbers(names, with_registers=False)
    low, high = kind.immediate_range(fmt.address_width)
    literals = st.integers(low // kind.alignment, high // kind.alignment).map(lambda count: _literal(count * kind.alignment))
    return st.one_of(st.sampled_from(sorted(kind.names)).map(syntax.Name), literals) if kind.names else literals


def _literal(number: int) -> Expression:
    digits = syntax.Integer(str(abs(number)))
    return syntax.Unary(Operator.SUBTRACT, digits) if number < 0 else digits


@st.composite
def _expectations(draw: st.DrawFn, row: Operation, names: tuple[str, ...]) -> tuple[syntax.Expectation, ...]:
    causes = st.sampled_from(row.all_traps)
    found = [
        syntax.Expectation(draw(causes), draw(conditions(names, with_registers=True)))
        for _ in range(draw(st.integers(0, 2)))
    ]
    if draw(st.booleans()):
        found.append(syntax.Expectation(draw(causes)))
    return tuple(found)


@st.composite
def machines(draw: st.DrawFn) -> syntax.Machine:
    """A machine of any format, with or without memory and roots."""
    fmt = draw(st.sampled_from(list(FORMATS.values())))
    roots = tuple(draw(st.lists(st.integers(1, REGISTER_COUNT - 1), unique=True, max_size=3)))
    if draw(st.booleans()):
        return syntax.Machine(fmt.name, roots=roots)
    granules = draw(st.integers(1, 256))
    base = draw(st.integers(0, (fmt.address_space - 1) // fmt.capability_bytes - 256)) * fmt.capability_bytes
    size = syntax.Integer(hex(granules * fmt.capability_bytes))
    return syntax.Machine(fmt.name, syntax.Integer(hex(base)), size, roots)


comments = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], include_characters=" "), max_size=20).map(
    lambda text: f"# {text}".rstrip()
)


@st.composite
def programs(draw: st.DrawFn, max_lines: int = 12) -> syntax.Program:
    """A program that passes `dsl.check`: a machine, then values, operations and assertions in any order."""
    machine = draw(machines())
    fmt, names = FORMATS[machine.format], list(NAMES)
    known: tuple[str, ...] = ()
    given, begun = set(machine.roots), False
    lines = [syntax.Line(None, draw(st.none() | comments)), syntax.Line(machine, draw(st.none() | comments))]
    for _ in range(draw(st.integers(0, max_lines))):
        statement: syntax.Statement | None
        kind = draw(st.sampled_from(["given", "let", "instruction", "assert", "nothing"]))
        if kind == "given" and not begun and len(given) < REGISTER_COUNT - 4:
            register = draw(st.integers(1, REGISTER_COUNT - 1).filter(lambda number: number not in given))
            given.add(register)
            tag, high, address = (draw(numbers(known, with_registers=False)) for _ in range(3))
            statement = syntax.Initial(register, tag, high, address)
        elif kind == "let" and names:
            name = names.pop()
            where = conditions((*known, name), with_registers=False)
            any_value = st.builds(syntax.Any, st.integers(1, 64), st.none() | where)
            statement = syntax.Let(name, draw(any_value | numbers(known, with_registers=False)))
            known = (*known, name)
        elif kind == "assert":
            statement = syntax.Assert(draw(conditions(known, with_registers=True)))
        elif kind == "instruction":
            statement, begun = draw(instructions(fmt, known)), True
        else:
            statement = None
        lines.append(syntax.Line(statement, draw(st.none() | comments)))
    return syntax.Program(tuple(_one_blank_line_at_most(lines)))


def _one_blank_line_at_most(lines: list[syntax.Line]) -> list[syntax.Line]:
    """What the printer leaves: no two blank lines in a row, none at the beginning or end."""
    blank, kept = syntax.Line(), list[syntax.Line]()
    for line in lines:
        if line != blank or (kept and kept[-1] != blank):
            kept.append(line)
    while kept and kept[-1] == blank:
        kept.pop()
    return kept
