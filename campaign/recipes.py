"""Recipes: short sequences of operations that build state worth attacking, and the profiles that mix them.

A recipe is told by a source of choices, which is a generator of random numbers or Hypothesis, what to choose; it is the same
recipe for both. What it makes is a shape: operations whose `li` name a kind of number, to be drawn for each program.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from capvisor.campaign.case import ROOTS
from capvisor.campaign.numbers import Kind, Term, terms
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.invariants import INVARIANTS
from capvisor.spec.operations import OPERATIONS, Group, OperandKind, Operation
from capvisor.spec.registers import SPECIAL_NUMBERS as SPECIAL
from capvisor.spec.registers import STATUS_NUMBERS as STATUS

Item = TypeVar("Item")

ShapedOperation = tuple[str, tuple[int | Term, ...]]
Shape = tuple[ShapedOperation, ...]
"""What programs have in common that differ in the numbers they load: operations, with terms where the numbers stand."""

REGISTERS = 8
"""Registers 1 to 8 are used, so that operands often coincide; and 0."""


COMPARISONS = ("registers", "special registers", "CSRs", "pc", "memory", "reservation", "trap")
"""The parts of a state that are compared, each of which a campaign must have seen changed."""


class Source(Protocol):
    """Where choices come from."""

    def below(self, count: int) -> int:
        """A number from 0 to count - 1, the simplest first."""


class Builder:
    """A shape in the making."""

    def __init__(self, source: Source, fmt: CapabilityFormat) -> None:
        self.source, self.format = source, fmt
        self.shape: list[ShapedOperation] = []
        self.capabilities: list[int] = list(ROOTS)
        """Registers that were last given a capability, the latest last."""

    # -- choices ---------------------------------------------------------------------------------------------------------

    def one_of(self, items: Sequence[Item]) -> Item:
        """One of some things."""
        return items[self.source.below(len(items))]

    def weighted(self, items: Sequence[tuple[int, Item]]) -> Item:
        """One of some things, each as likely as its weight says."""
        place = self.source.below(sum(weight for weight, _item in items))
        for weight, item in items:
            if place < weight:
                return item
            place -= weight
        raise AssertionError(place)

    def chance(self, one_in: int) -> bool:
        """True once in so many times."""
        return self.source.below(one_in) == one_in - 1

    def register(self) -> int:
        """Any register to be read; rarely c0."""
        return 0 if self.chance(12) else 1 + self.source.below(REGISTERS)

    def target(self) -> int:
        """A register to be written: now and then the root's, or c0."""
        if self.chance(24):
            return 0
        return 1 if self.chance(40) else 2 + self.source.below(REGISTERS - 1)

    def capability(self) -> int:
        """A register that holds a capability, as far as is known: the root or one of the latest."""
        known = self.capabilities[-4:]
        return self.one_of(known) if not self.chance(12) else self.register()

    # -- operations ------------------------------------------------------------------------------------------------------

    def emit(self, name: str, *operands: int | Term) -> None:
        """Append an operation."""
        self.shape.append((name, operands))

    def number(self, kind: Kind) -> int:
        """Load a number; the register."""
        register = 2 + self.source.below(REGISTERS - 1)
        while register in self.capabilities[-2:]:
            register = register % REGISTERS + 1
        self.emit("li", register, self.weighted(terms(kind, self.format)))
        self.capabilities = [each for each in self.capabilities if each != register] or [register]
        return register

    def derive(self, name: str, *operands: int) -> int:
        """Make a capability with an operation whose first operand is the destination; the register."""
        target = self.target()
        self.emit(name, target, *operands)
        return self.holds(target)

    def holds(self, register: int) -> int:
        """A register has been given a capability."""
        if register:
            self.capabilities = [each for each in self.capabilities if each != register] + [register]
        return register

    def at(self, kind: Kind) -> int:
        """The root, or what is left of it, at an address."""
        return self.derive("csetaddr", self.one_of((*ROOTS, self.capability())), self.number(kind))

    def operation(self, row: Operation) -> None:
        """Any operation with any operands: mostly those that hold something."""
        operands = [self.operand(kind) for kind in row.operands]
        self.emit(row.name, *operands)
        if row.operands and row.operands[0] is OperandKind.CAPABILITY_DESTINATION and isinstance(operands[0], int):
            self.holds(operands[0])

    def operand(self, kind: OperandKind) -> int | Term:
        """An operand of a kind."""
        if kind.is_destination:
            return self.target()
        if kind.is_capability:
            return self.capability() if not self.chance(8) else self.register()
        if kind.is_register:
            return self.register()
        if kind is OperandKind.VALUE:
            return self.weighted(terms(Kind.ANY, self.format))
        if kind.names and not self.chance(16):
            return self.one_of(sorted(kind.names.values()))
        low, high = kind.immediate_range(self.format.address_width)
        span = high - low
        number = self.one_of((0, 16, 1, -16, 8, high, low, self.source.below(span + 1) + low))
        number = max(low, min(high, number))
        return number - number % kind.alignment

    def group_operation(self, groups: Sequence[Group], *, suited: Callable[[Operation], bool] = lambda row: True) -> None:
        """Any operation of some groups."""
        self.operation(self.one_of(rows_of(self.format, groups, suited)))


def rows_of(
    fmt: CapabilityFormat, groups: Sequence[Group], suited: Callable[[Operation], bool] = lambda row: True
) -> list[Operation]:
    """The operations of some groups that a format's machine has."""
    return [
        row for row in OPERATIONS.values() if row.group in groups and row.minimum_xlen <= fmt.address_width and suited(row)
    ]


# -- recipes ---------------------------------------------------------------------------------------------------------------


def short_capability(b: Builder) -> None:
    """A capability over part of memory, or of any length."""
    at = b.at(b.weighted(((3, Kind.ADDRESS), (1, Kind.ANY))))
    if b.chance(4):
        b.derive("csetboundsimm", at, b.one_of((16, 32, 1, 0, 7, 64, 4095)))
    else:
        b.derive(b.one_of(("csetbounds", "csetbounds", "csetboundsexact")), at, b.number(Kind.LENGTH))


def representability_edge(b: Builder) -> None:
    """A long capability, moved to where its bounds just can, or can't, be kept."""
    at = b.at(b.one_of((Kind.ADDRESS, Kind.ANY)))
    cap = b.derive("csetbounds", at, b.number(Kind.LENGTH))
    for _ in range(1 + b.source.below(2)):
        name = b.one_of(("cincoffset", "csetaddr", "csetoffset", "cincoffsetimm", "cfromptr"))
        if name == "cincoffsetimm":
            b.derive(name, cap, b.one_of((-1, 1, 16, -16, 2047, -2048)))
        else:
            b.derive(name, cap, b.number(Kind.FAR if name != "csetaddr" else b.one_of((Kind.FAR, Kind.ADDRESS))))


def root_again(b: Builder) -> None:
    """The root's register filled anew, from DDC: what was built on a spoilt one says little."""
    b.emit("cspecialrw", b.holds(ROOTS[0]), SPECIAL["ddc"], 0)


def fewer_permissions(b: Builder) -> None:
    """A capability with some permissions gone, and perhaps its flags set."""
    cap = b.derive("candperm", b.capability(), b.number(Kind.PERMISSIONS))
    if b.chance(3):
        b.derive("csetflags", cap, b.number(Kind.SMALL))


def lengths(b: Builder) -> None:
    """What lengths are rounded to."""
    b.emit(b.one_of(("crrl", "cram")), b.target(), b.number(Kind.LENGTH))


def arithmetic(b: Builder) -> None:
    """Any operation on capabilities that neither seals nor touches memory."""
    b.group_operation((Group.ARITHMETIC, Group.COMPARISON))


def inspection(b: Builder) -> None:
    """What a capability says of itself."""
    b.group_operation((Group.INSPECTION, Group.COMPARISON))


def any_bits(b: Builder) -> None:
    """A capability of any bits, untagged; and an attempt to give it its tag."""
    cap = b.derive("csethigh", b.capability(), b.number(Kind.ANY))
    if not b.chance(3):
        b.derive("cbuildcap", b.one_of((*ROOTS, b.capability())), cap)
    if not b.chance(3):
        b.emit(b.one_of(("cgetbase", "cgettop", "cgetlen", "cgetoffset", "cgetperm", "cgettype")), b.target(), cap)


def rebuilt(b: Builder) -> None:
    """A capability that loses its tag and is built again from an authority; sometimes one that doesn't suffice."""
    cap = b.derive("ccleartag", b.capability())
    b.derive("cbuildcap", b.one_of((*ROOTS, b.capability())), cap)


def sealing_authority(b: Builder) -> int:
    """A capability that points at an object type."""
    authority = b.at(Kind.OTYPE)
    if b.chance(3):
        authority = b.derive("csetbounds", authority, b.number(Kind.SMALL))
    return authority


def sealed(b: Builder) -> None:
    """A sealed capability, and what may be tried with it."""
    cap = b.at(Kind.GRANULE) if b.chance(2) else b.capability()
    authority = sealing_authority(b)
    result = b.derive(b.one_of(("cseal", "ccseal")), cap, authority)
    if b.chance(2):
        tampered(b, result)
        return
    name = b.one_of(("cunseal", "ccopytype", "cbuildcap", "csetaddr", "cincoffset", "cgettype", "ctestsubset"))
    if name in ("cunseal", "ctestsubset"):
        b.derive(name, result, authority if not b.chance(3) else sealing_authority(b))
    elif name in ("ccopytype", "cbuildcap"):
        b.derive(name, b.one_of((*ROOTS, authority)), result)
    elif name == "cgettype":
        b.emit(name, b.target(), result)
    else:
        b.derive(name, result, b.number(Kind.SMALL))


def unsealed_by_another(b: Builder) -> None:
    """A capability sealed with one small object type, and an authority for another one, perhaps the same."""
    authority = b.at(Kind.OTYPE)
    result = b.derive("cseal", b.one_of((*ROOTS, b.capability())), authority)
    b.derive("cunseal", result, b.at(Kind.OTYPE))


def tampered(b: Builder, sealed: int) -> None:
    """An operation on a sealed capability that must not succeed, or an access by it."""
    groups = (Group.ARITHMETIC, Group.ARITHMETIC, Group.SEALING, Group.COMPARISON, Group.LOAD, Group.STORE)
    row = b.one_of(rows_of(b.format, (b.one_of(groups),), lambda row: names(row, OperandKind.CAPABILITY_SOURCE_1)))
    b.operation(row)
    b.shape[-1] = with_operand(b.shape[-1], row.operands.index(OperandKind.CAPABILITY_SOURCE_1), sealed)


def invoked_pair(b: Builder) -> None:
    """Code and data sealed, mostly together, and CInvoke."""
    code = b.at(Kind.CODE)
    data = b.derive(
        "candperm", b.one_of((*ROOTS, b.capability())), b.number(b.weighted(((3, Kind.DATA), (1, Kind.PERMISSIONS))))
    )
    authority = sealing_authority(b)
    code = b.derive("cseal", code, authority)
    if b.chance(4):
        authority = sealing_authority(b)
    data = b.derive("cseal", data, authority)
    b.emit("cinvoke", *((code, data) if not b.chance(8) else (data, code)))
    b.holds(31)


def sentry(b: Builder) -> None:
    """A sealed entry, jumped to or tampered with."""
    entry = b.derive("csealentry", b.at(Kind.CODE))
    if b.chance(4):
        b.derive("cunseal", entry, b.at(Kind.RESERVED))
    elif b.chance(3):
        b.group_operation((Group.SEALING, Group.ARITHMETIC))
    else:
        jump_to(b, b.one_of(("cjalr", "jalr.cap")), entry)


def sealing_operation(b: Builder) -> None:
    """Any operation of sealing."""
    b.group_operation((Group.SEALING,))


def memory_access(b: Builder) -> None:
    """Stores and loads by a capability over memory, often the same place in different sizes, granules straddled."""
    cap = b.at(b.weighted(((2, Kind.GRANULE), (2, Kind.ADDRESS))))
    for _ in range(1 + b.source.below(3)):
        b.group_operation((Group.LOAD, Group.STORE), suited=lambda row: names(row, OperandKind.CAPABILITY_SOURCE_1))
        b.shape[-1] = with_address(b.shape[-1], cap)


def capability_through_memory(b: Builder) -> None:
    """A capability stored and loaded again, perhaps with data stored over part of it."""
    cap = b.at(Kind.GRANULE)
    stored = b.capability()
    offset = b.one_of((0, 16, 32, 8)) if b.format.address_width == 64 else b.one_of((0, 8, 16, 4))
    b.emit("csc", stored, offset, cap)
    if not b.chance(3):
        b.emit(b.one_of(("csb", "csh", "csw")), b.register(), offset + b.source.below(b.format.capability_bytes), cap)
    b.emit("clc", b.holds(b.target()), offset, cap)
    if b.chance(3):
        b.emit("cloadtags", b.target(), cap)


def straddled(b: Builder) -> None:
    """Two capabilities next to each other, and data stored over the end of one and the beginning of the other."""
    cap, size = b.at(Kind.GRANULE), b.format.capability_bytes
    stored = b.one_of((*ROOTS, b.capability()))
    b.emit("csc", stored, 0, cap)
    b.emit("csc", stored, size, cap)
    b.group_operation(
        (Group.STORE,), suited=lambda row: row.has_address_syntax and names(row, OperandKind.CAPABILITY_SOURCE_1)
    )
    name, (value, *_where) = b.shape[-1]
    b.shape[-1] = name, (value, size - 1 - b.source.below(size // 2), cap)
    for place in range(2):
        b.emit("clc", b.holds(b.target()), place * size, cap)


def attenuated_reader(b: Builder) -> None:
    """A capability stored by one that may, and loaded by one that perhaps may not."""
    cap = b.at(Kind.GRANULE)
    b.emit("csc", b.one_of((*ROOTS, b.capability())), 0, cap)
    reader = b.derive("candperm", cap, b.number(Kind.PERMISSIONS))
    rows = rows_of(b.format, (Group.LOAD, Group.ATOMIC), reads_capabilities)
    b.operation(b.one_of(rows))
    name, operands = with_address(b.shape[-1], reader)
    kinds = OPERATIONS[name].operands
    b.shape[-1] = (
        name,
        tuple(0 if kind is OperandKind.SIGNED_IMMEDIATE else each for kind, each in zip(kinds, operands, strict=True)),
    )


def reads_capabilities(row: Operation) -> bool:
    """Whether an operation loads a capability, or tags, by a capability."""
    loads = row.operands[0] is OperandKind.CAPABILITY_DESTINATION or row.name == "cloadtags"
    return loads and names(row, OperandKind.CAPABILITY_SOURCE_1)


def line_of_tags(b: Builder) -> None:
    """The tags of a cache line."""
    cap = b.at(Kind.GRANULE)
    b.emit("csc", b.capability(), 0, cap)
    b.emit("cloadtags", b.target(), cap)


def attenuated_access(b: Builder) -> None:
    """A capability over memory with a permission or bounds missing, and an access by it."""
    cap = b.at(b.one_of((Kind.GRANULE, Kind.ADDRESS)))
    if b.chance(2):
        cap = b.derive("csetboundsimm", cap, b.one_of((16, 8, 1, 32, 15)))
    cap = b.derive("candperm", cap, b.number(Kind.PERMISSIONS))
    name = b.one_of(("csc", "clc", "csd", "cld", "csb", "clbu", "csw", "clh"))
    if OPERATIONS[name].minimum_xlen > b.format.address_width:
        name = "csw"
    b.emit(name, b.capability() if name == "csc" else b.target(), b.one_of((0, 0, 8, -1, 16)), cap)


def default_data(b: Builder) -> None:
    """DDC over part of memory, and accesses in integer mode and with explicit addressing."""
    if not b.chance(3):
        cap = b.at(b.one_of((Kind.GRANULE, Kind.ADDRESS)))
        if b.chance(3):
            cap = b.derive("csetbounds", cap, b.number(Kind.LENGTH))
        if b.chance(3):
            cap = b.derive("candperm", cap, b.number(Kind.PERMISSIONS))
        b.emit("cspecialrw", b.target(), SPECIAL["ddc"], cap)
    by_ddc = rows_of(b.format, (Group.LOAD, Group.STORE), lambda row: names(row, OperandKind.INTEGER_SOURCE_1))
    for _ in range(1 + b.source.below(2)):
        address = b.number(b.one_of((Kind.GRANULE, Kind.ADDRESS)))
        b.operation(b.one_of(by_ddc))
        b.shape[-1] = with_address(b.shape[-1], address)
    if b.chance(2):
        b.emit("cspecialrw", 0, SPECIAL["ddc"], ROOTS[0])


def reserved(b: Builder) -> None:
    """Load-reserved and store-conditional at one address, sometimes with a store or a trap in between; swaps."""
    atomic = rows_of(b.format, (Group.ATOMIC,))
    first = b.one_of([row for row in atomic if "lr." in row.name])
    suffix = first.name[-4:] if first.name.endswith((".cap", ".ddc")) else ""
    by_capability = names(first, OperandKind.CAPABILITY_SOURCE_1)
    address = b.at(Kind.GRANULE) if by_capability else b.number(Kind.GRANULE)
    b.operation(first)
    b.shape[-1] = with_address(b.shape[-1], address)
    if b.chance(6):
        b.operation(b.one_of(rows_of(b.format, (Group.STORE, Group.SYSTEM))))
    second = first.name.replace("lr.", "sc.") if not b.chance(4) else None
    alike = [
        row
        for row in atomic
        if names(row, OperandKind.CAPABILITY_SOURCE_1) == by_capability
        and row.name.endswith(suffix)
        and "lr." not in row.name
    ]
    b.operation(OPERATIONS[second] if second else b.one_of(alike))
    b.shape[-1] = with_address(b.shape[-1], address)


def swap(b: Builder) -> None:
    """An atomic swap."""
    row = b.one_of(rows_of(b.format, (Group.ATOMIC,), lambda row: "amoswap" in row.name))
    by_capability = names(row, OperandKind.CAPABILITY_SOURCE_1)
    address = b.at(Kind.GRANULE) if by_capability else b.number(Kind.GRANULE)
    b.operation(row)
    b.shape[-1] = with_address(b.shape[-1], address)


def branch(b: Builder) -> None:
    """A branch, taken or not, or a jump to an offset."""
    b.group_operation((Group.CONTROL,), suited=lambda row: not names(row, OperandKind.CAPABILITY_SOURCE_1))


def jump(b: Builder) -> None:
    """A jump to a capability or an address, perhaps one with few bounds."""
    code = b.at(Kind.CODE)
    if b.chance(4):
        code = b.derive("csetbounds", code, b.number(Kind.LENGTH))
    jump_to(b, b.one_of(("cjalr", "jalr.cap", "jalr", "jalr.pcc")), code)


def handler(b: Builder) -> None:
    """Another handler, a trap, and what it finds."""
    if b.chance(2):
        code = b.at(Kind.CODE)
        if b.chance(6):
            code = b.derive("csetbounds", code, b.number(Kind.LENGTH))
        elif b.chance(6):
            code = b.derive("candperm", code, b.number(Kind.CODE_RIGHTS))
        b.emit("cspecialrw", b.target(), SPECIAL["mtcc"], code)
    if b.chance(2):
        b.emit("cld" if b.format.address_width == 64 else "clw", b.target(), 0, 0)
    b.emit("cspecialrw", b.holds(b.target()), b.one_of((SPECIAL["mepcc"], SPECIAL["mtcc"])), 0)
    b.emit("csrrs", b.target(), b.one_of((STATUS["mcause"], STATUS["mtval"], STATUS["mepc"])), 0)
    if b.chance(2):
        b.emit("mret")


def modes(b: Builder) -> None:
    """A return to a less privileged mode, what may be done there, and a call back."""
    name = b.one_of(("mret", "mret", "sret"))
    if b.chance(2):
        b.emit("csrrs", b.target(), b.one_of((STATUS["mstatus"], STATUS["sstatus"])), b.number(Kind.STATUS))
    b.emit("cspecialrw", b.target(), SPECIAL["mepcc" if name == "mret" else "sepcc"], b.at(Kind.CODE))
    b.emit(name)
    for _ in range(1 + b.source.below(3)):
        b.group_operation((Group.SYSTEM, Group.SYSTEM, Group.CONTROL, Group.LOAD))
    b.emit("ecall")


def special_register(b: Builder) -> None:
    """A special capability register, read and written."""
    cap = b.one_of((0, b.capability(), b.at(Kind.CODE)))
    b.emit("cspecialrw", b.holds(b.target()), b.one_of(sorted(SPECIAL.values())), cap)


def status(b: Builder) -> None:
    """A CSR, read and changed."""
    value = b.number(b.one_of((Kind.STATUS, Kind.CODE, Kind.ANY)))
    rows = rows_of(b.format, (Group.SYSTEM,), lambda row: OperandKind.STATUS_REGISTER in row.operands)
    b.operation(b.one_of(rows))
    name, operands = b.shape[-1]
    if OPERATIONS[name].operands[-1] is OperandKind.INTEGER_SOURCE_1:
        b.shape[-1] = with_operand(b.shape[-1], len(operands) - 1, value)


def confined_code(b: Builder) -> None:
    """PCC with few permissions: what it may not do then."""
    code = b.derive("candperm", b.at(Kind.CODE), b.number(Kind.CODE_RIGHTS))
    jump_to(b, "jalr.cap", code)
    for _ in range(1 + b.source.below(3)):
        b.group_operation((Group.SYSTEM, Group.SYSTEM, Group.CONTROL))


def bounded_code(b: Builder) -> None:
    """PCC over a few instructions, and branches and jumps from there, taken or not."""
    code = b.derive("csetbounds", b.at(Kind.CODE), b.number(Kind.SMALL))
    jump_to(b, "jalr.cap", code)
    for _ in range(1 + b.source.below(3)):
        branch(b)


def integers(b: Builder) -> None:
    """Arithmetic on integers."""
    b.number(b.one_of((Kind.ANY, Kind.SMALL)))
    b.group_operation((Group.INTEGER,))


def anything(b: Builder) -> None:
    """Any operation at all."""
    b.group_operation(tuple(Group))


def jump_to(b: Builder, name: str, register: int) -> None:
    """A jump to what a register holds, mostly without offset."""
    has_offset = OPERATIONS[name].has_address_syntax
    b.emit(name, b.target(), *([b.one_of((0, 0, 0, 2, -4))] if has_offset else []), register)


def names(row: Operation, kind: OperandKind) -> bool:
    """Whether an operation has an operand of a kind."""
    return kind in row.operands


def with_operand(operation: ShapedOperation, place: int, value: int | Term) -> ShapedOperation:
    """The operation with another operand."""
    name, operands = operation
    return name, (*operands[:place], value, *operands[place + 1 :])


def with_address(operation: ShapedOperation, register: int) -> ShapedOperation:
    """A load or store with another register to say where: its last one."""
    _name, operands = operation
    return with_operand(operation, len(operands) - 1, register)


# -- profiles --------------------------------------------------------------------------------------------------------------

Recipe = Callable[[Builder], object]


@dataclass(frozen=True)
class Profile:
    """What a campaign is about: recipes, each with its weight, and what it must put to the test."""

    name: str
    about: str
    recipes: tuple[tuple[int, Recipe], ...]
    groups: tuple[Group, ...]
    """The groups of which each operation must run."""
    comparisons: tuple[str, ...]
    """The parts of the state (`COMPARISONS`) that the reference must change."""
    invariants: tuple[str, ...]
    """The invariants that must have something to say."""

    def operations(self, fmt: CapabilityFormat) -> tuple[str, ...]:
        """Every operation that a campaign must have executed."""
        return tuple(row.name for row in rows_of(fmt, self.groups))


_CAPS: tuple[tuple[int, Recipe], ...] = (
    *((4, short_capability), (4, representability_edge), (2, fewer_permissions), (1, lengths)),
    *((5, arithmetic), (3, inspection), (1, any_bits), (1, rebuilt), (3, root_again)),
)
_MEMORY: tuple[tuple[int, Recipe], ...] = (
    *(
        (4, memory_access),
        (3, capability_through_memory),
        (1, line_of_tags),
        (3, attenuated_access),
        (2, attenuated_reader),
        (2, straddled),
    ),
    *((3, default_data), (3, reserved), (1, swap)),
)
_SEALING: tuple[tuple[int, Recipe], ...] = (
    (4, sealed),
    (2, invoked_pair),
    (2, sentry),
    (1, unsealed_by_another),
    (2, sealing_operation),
    (1, rebuilt),
)
_CONTROL: tuple[tuple[int, Recipe], ...] = (
    *((3, branch), (3, jump), (1, sentry), (1, invoked_pair), (3, handler), (2, special_register)),
    *((3, status), (2, modes), (2, confined_code), (2, bounded_code)),
)
_SETTING: tuple[tuple[int, Recipe], ...] = ((2, short_capability), (1, fewer_permissions), (2, root_again))

PROFILES: dict[str, Profile] = {
    row.name: row
    for row in (
        Profile(
            "caps",
            "deriving, inspecting and comparing capabilities, near what bounds can represent",
            _CAPS,
            (Group.INSPECTION, Group.ARITHMETIC, Group.COMPARISON),
            ("registers", "pc"),
            ("M1", "M7", "M8"),
        ),
        Profile(
            "memory",
            "loads, stores and atomics, by capability and by DDC: permissions, bounds, granules, tags, reservations",
            (*_MEMORY, *_SETTING),
            (Group.LOAD, Group.STORE, Group.ATOMIC),
            COMPARISONS,
            ("M1", "M2", "M3", "M4", "M6", "M7", "M8"),
        ),
        Profile(
            "sealing",
            "sealing, unsealing, sentries and CInvoke",
            (*_SEALING, *_SETTING),
            (Group.SEALING,),
            ("registers", "special registers", "CSRs", "pc", "trap"),
            ("M1", "M4", "M5", "M7", "M8"),
        ),
        Profile(
            "control",
            "branches, jumps, traps, special registers and CSRs",
            (*_CONTROL, *_SETTING),
            (Group.CONTROL, Group.SYSTEM),
            ("registers", "special registers", "CSRs", "pc", "trap"),
            ("M1", "M4", "M5", "M7", "M8", "M9"),
        ),
        Profile(
            "mixed",
            "all of these, integers, and anything at all",
            (*_CAPS, *_MEMORY, *_SEALING, *_CONTROL, (3, integers), (4, anything)),
            tuple(Group),
            COMPARISONS,
            tuple(INVARIANTS),
        ),
    )
}

LENGTHS = (4, 8, 16, 24, 32)
"""How many operations a program has, at least; it ends with the recipe that goes beyond."""


def draw_shape(source: Source, fmt: CapabilityFormat, profile: Profile, focus: Sequence[Operation] = ()) -> Shape:
    """Recipes of a profile, one after the other, and in between the operations that are to be among them."""
    builder = Builder(source, fmt)
    length = builder.one_of(LENGTHS)
    waiting = list(focus)
    while len(builder.shape) < length or waiting:
        builder.weighted(profile.recipes)(builder)
        if waiting:
            focused(builder, waiting.pop())
    return tuple(builder.shape)


def focused(b: Builder, row: Operation) -> None:
    """An operation in a place where it may succeed: an access at a granule, by all that is needed."""
    if row.group not in (Group.LOAD, Group.STORE, Group.ATOMIC):
        b.operation(row)
        return
    address = b.at(Kind.GRANULE) if names(row, OperandKind.CAPABILITY_SOURCE_1) else b.number(Kind.GRANULE)
    b.operation(row)
    name, operands = with_address(b.shape[-1], address)
    if row.has_address_syntax:
        operands = (*operands[:-2], 0, address)
    b.shape[-1] = name, operands
