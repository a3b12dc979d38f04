"""The invariants of the machine: predicates on one step, each said once.

A predicate is a function of a watched step (`model.observation.Step`) and of a place: any register, granule and byte of
memory. It holds of a step if it holds at every place. Values may be plain or stand for all values: what is said here is
checked while running, and proved.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from capvisor.spec.formats import Permission
from capvisor.spec.operations import Group, OperandKind
from capvisor.spec.registers import (
    MPP_SHIFT,
    MSTATUS_MIE,
    MSTATUS_MPIE,
    MSTATUS_MPP,
    SPECIAL_REGISTERS,
    SSTATUS_FIELDS,
    STATE_NUMBERS,
    SYSTEM_REGISTERS,
    Privilege,
)

Step = Any
"""A watched step: `model.observation.Step`."""

_TRAP_REGISTERS = tuple(name for name, row in SPECIAL_REGISTERS.items() if row.needs_system_access)

Cap = Any
"""A capability: `model.capability.Capability`."""


class Place(NamedTuple):
    """Anywhere in the state: a register's number, a granule's index, a byte's address."""

    register: Any
    granule: Any
    byte: Any


def implies(condition: Any, consequence: Any) -> Any:
    """Implication, as data."""
    return (condition ^ True) | consequence


def not_(condition: Any) -> Any:
    """Negation, as data."""
    return condition ^ True


def same(a: Cap, b: Cap) -> Any:
    """Whether two capabilities are the same in every bit and tag."""
    return (a.tag == b.tag) & same_bits(a, b)


def same_bits(a: Cap, b: Cap) -> Any:
    """Whether two capabilities are the same but for the tag."""
    return (a.meta == b.meta) & (a.address == b.address)


def is_within(inner: Cap, outer: Cap) -> Any:
    """Whether bounds and permissions of one capability are within those of another."""
    base, top = outer.bounds
    inner_base, inner_top = inner.bounds
    return (base <= inner_base) & (inner_top <= top) & (inner.permissions & outer.permissions == inner.permissions)


def authorises(cap: Cap, permission: Permission, address: Any, size_bytes: int) -> Any:
    """Whether a capability is tagged, unsealed, has a permission, and all of an access in its bounds."""
    base, top = cap.bounds
    usable = cap.tag & not_(cap.is_sealed) & cap.permits(permission)
    return usable & (base <= address) & (address + size_bytes <= top)


# -- what a step looks at --------------------------------------------------------------------------------------------------


def authority(step: Step) -> Cap:
    """What is to authorise the operation's accesses to memory: the capability that it names, else DDC."""
    register = step.operands.get(OperandKind.CAPABILITY_SOURCE_1)
    return step.before.special["ddc"] if register is None else step.before.registers[register]


def stored(step: Step) -> Cap:
    """The capability that the operation is to store."""
    return step.before.registers[step.operands[OperandKind.CAPABILITY_SOURCE_2]]


def granule_of(step: Step, address: Any) -> Any:
    """The index of the granule that an address is in."""
    return address - step.before.memory.base >> step.format.granule_shift


def touches(step: Step, access: Any, granule: Any) -> Any:
    """Whether an access touches a granule."""
    first, last = granule_of(step, access.address), granule_of(step, access.address + access.size_bytes - 1)
    return (first <= granule) & (granule <= last)


def has_system_access(step: Step) -> Any:
    """Whether PCC permits access to the registers of the system."""
    return step.before.special["pcc"].permits(Permission.ACCESS_SYSTEM_REGISTERS)


def may_access(step: Step, name: str) -> Any:
    """Whether a register of the system may be accessed: the mode is privileged enough, and PCC permits it."""
    return has_system_access(step) & (step.before.numbers["privilege"] >= int(SYSTEM_REGISTERS[name]))


def reachable(step: Step) -> Iterator[tuple[Any, Cap]]:
    """The capabilities that a step can reach, each with the condition on which it can.

    Those in the registers that it names, PCC and DDC; the special registers, if the mode and PCC permit access; and
    a granule that it loads, if the authority permits to load capabilities.
    """
    before = step.before
    for register in step.register_operands:
        yield True, before.registers[register]
    yield True, before.special["pcc"]
    yield True, before.special["ddc"]
    if step.row.group is Group.SYSTEM:
        for name in _TRAP_REGISTERS:
            yield may_access(step, name), before.special[name]
    for access in step.accesses:
        if access.is_capability and not access.is_store:
            loaded = before.granule(granule_of(step, access.address))
            yield authority(step).permits(Permission.LOAD_CAPABILITY), loaded


def written(step: Step, place: Place) -> Iterator[tuple[str, Cap, Cap]]:
    """Every place that holds a capability, as it was and as it is: a register, a granule, each special register.

    A refused step's PCC and MEPCC aren't among them: what a trap puts there is M4's. Nor are special registers that nothing
    was assigned to, nor memory that wasn't stored to.
    """
    yield "register", step.before.registers[place.register], step.after.registers[place.register]
    if any(access.is_store for access in step.accesses):
        yield "granule", step.before.granule(place.granule), step.after.granule(place.granule)
    for name, before in step.before.special.items():
        after = step.after.special[name]
        if after is not before and (step.trap is None or name not in ("pcc", "mepcc")):
            yield name, before, after


# -- the invariants --------------------------------------------------------------------------------------------------------


def monotone(step: Step, place: Place) -> Any:
    """M1."""
    sources = list(reachable(step))
    holds: Any = True
    for _where, before, after in written(step, place):
        derived: Any = same(before, after)
        for condition, source in sources:
            derived = derived | condition & source.tag & is_within(after, source)
        holds = holds & implies(after.tag, derived)
    return holds


def memory_safe(step: Step, place: Place) -> Any:
    """M2."""
    holds: Any = True
    elsewhere: Any = True
    for access in step.accesses:
        permission = Permission.STORE if access.is_store else Permission.LOAD
        holds = holds & authorises(authority(step), permission, access.address, access.size_bytes)
        holds = holds & step.before.memory.contains(access.address, access.size_bytes)
        if access.is_capability or step.row.group is Group.ATOMIC:
            holds = holds & (access.address & access.size_bytes - 1 == 0)
        if access.is_store:
            inside = (access.address <= place.byte) & (place.byte < access.address + access.size_bytes)
            elsewhere = elsewhere & not_(inside)
    before, after = step.before.memory, step.after.memory
    return holds & implies(
        elsewhere & before.contains(place.byte, 1), before.read(place.byte, 1) == after.read(place.byte, 1)
    )


def tags_kept(step: Step, place: Place) -> Any:
    """M3."""
    before, after = step.before.granule(place.granule), step.after.granule(place.granule)
    untouched: Any = True
    holds: Any = True
    for access in step.accesses:
        if access.is_store:
            here = touches(step, access, place.granule)
            untouched = untouched & not_(here)
            holds = holds & implies(here, after.tag == stored(step).tag if access.is_capability else not_(after.tag))
    holds = holds & implies(untouched, same(before, after))
    kinds = step.row.operands
    if OperandKind.CAPABILITY_DESTINATION not in kinds and step.row.name != "cinvoke":
        old, new = step.before.registers[place.register], step.after.registers[place.register]
        holds = holds & (same(old, new) | not_(new.tag))
    return holds


def refusal_changes_nothing(step: Step, place: Place) -> Any:
    """M4."""
    if step.trap is None:
        return True
    before, after, trap = step.before, step.after, step.trap
    pcc, pc = before.special["pcc"], before.numbers["pc"]
    holds: Any = trap.cause.name in step.row.all_traps
    holds = holds & same(before.registers[place.register], after.registers[place.register])
    holds = holds & same(before.granule(place.granule), after.granule(place.granule))
    for name in ("ddc", *_TRAP_REGISTERS):
        if name == "mepcc":
            continue
        holds = holds & same(before.special[name], after.special[name])
    for name in STATE_NUMBERS:
        if name in ("privilege", "mstatus", "mcause", "mtval"):
            continue
        holds = holds & (before.numbers[name] == after.numbers[name])
    holds = holds & (after.numbers["mcause"] == trap.cause.mcause) & (after.numbers["mtval"] == trap.value)
    enabled = before.numbers["mstatus"] & MSTATUS_MIE != 0
    status, moved_fields = after.numbers["mstatus"], MSTATUS_MIE | MSTATUS_MPIE | MSTATUS_MPP
    holds = holds & ((status & MSTATUS_MPIE != 0) == enabled) & (status & MSTATUS_MIE == 0)
    holds = holds & ((status & MSTATUS_MPP) >> MPP_SHIFT == before.numbers["privilege"])
    holds = holds & (status & ~moved_fields == before.numbers["mstatus"] & ~moved_fields)
    holds = holds & (after.numbers["privilege"] == int(Privilege.MACHINE))
    holds = holds & not_(after.numbers["is_reserved"])
    handler, mtcc = after.special["pcc"], before.special["mtcc"]
    holds = holds & same(handler, mtcc) & (after.numbers["pc"] == mtcc.address & step.format.address_mask - 3)
    saved = after.special["mepcc"]
    moved = (
        implies(pcc.is_sealed, pcc.address == pc) & (saved.bounds[0] == pcc.bounds[0]) & (saved.bounds[1] == pcc.bounds[1])
    )
    holds = holds & (saved.meta == pcc.meta) & (saved.address == pc) & implies(saved.tag, pcc.tag & moved)
    return holds


def sealed_kept(step: Step, place: Place) -> Any:
    """M5."""
    holds: Any = True
    for _access in step.accesses:
        holds = holds & not_(authority(step).is_sealed)
    sources = list(reachable(step))
    for where, before, after in written(step, place):
        derived: Any = same(before, after)
        for condition, source in sources:
            intact = not_(source.is_sealed) | same_bits(after, source)
            derived = derived | condition & source.tag & is_within(after, source) & intact
        holds = holds & implies(after.tag, derived | opened(step, where, after))
    return holds


def opened(step: Step, where: str, cap: Cap) -> Any:
    """Whether a capability may be an opened one: by CUnseal with authority, CInvoke, a jump or return to a sentry."""
    before, fmt = step.before, step.format

    def operand(kind: OperandKind) -> Cap:
        return before.registers[step.operands[kind]]

    first, second = OperandKind.CAPABILITY_SOURCE_1, OperandKind.CAPABILITY_SOURCE_2
    match step.row.name, where:
        case "cunseal", "register":
            sealed, by = operand(first), operand(second)
            allowed = authorises(by, Permission.UNSEAL, by.address, 1) & (by.address == sealed.otype)
            return allowed & sealed.tag & not_(sealed.has_reserved_otype) & is_within(cap, sealed)
        case "cinvoke", "register" | "pcc":
            code, data = operand(first), operand(second)
            paired = code.tag & data.tag & (code.otype == data.otype) & not_(code.has_reserved_otype)
            permitted = code.permits(Permission.CINVOKE | Permission.EXECUTE) & data.permits(Permission.CINVOKE)
            return (
                paired
                & permitted
                & not_(data.permits(Permission.EXECUTE))
                & is_within(cap, code if where == "pcc" else data)
            )
        case (("cjalr" | "jalr.cap"), "pcc"):
            sentry = operand(first)
            unmoved = step.operands.get(OperandKind.SIGNED_IMMEDIATE, 0) == 0
            return sentry.tag & (sentry.otype == fmt.otype_sentry) & unmoved & is_within(cap, sentry)
        case (("mret" | "sret"), "pcc"):
            sentry = before.special["mepcc" if step.row.name == "mret" else "sepcc"]
            return sentry.tag & (sentry.otype == fmt.otype_sentry) & is_within(cap, sentry)
    return False


def capability_permissions_obeyed(step: Step, place: Place) -> Any:
    """M6."""
    holds: Any = True
    for access in step.accesses:
        if not access.is_capability:
            continue
        by = authority(step)
        if access.is_store:
            here = granule_of(step, access.address) == place.granule
            needed = by.permits(Permission.STORE_CAPABILITY)
            local = not_(stored(step).permits(Permission.GLOBAL))
            needed = needed & implies(local, by.permits(Permission.STORE_LOCAL_CAPABILITY))
            holds = holds & implies(here & step.after.granule(place.granule).tag, needed)
        else:
            got = step.after.registers[place.register]
            changed = not_(same(got, step.before.registers[place.register]))
            reads_tags = OperandKind.INTEGER_DESTINATION in step.row.operands
            holds = holds & implies(changed & got.tag | reads_tags, by.permits(Permission.LOAD_CAPABILITY))
    return holds


def zero_is_null(step: Step, place: Place) -> Any:
    """M7."""
    return is_null(step.after.registers[0])


def is_null(cap: Cap) -> Any:
    """Whether a capability is NULL."""
    return not_(cap.tag) & (cap.meta == cap.format.null_meta) & (cap.address == 0)


def sound_kept(step: Step, place: Place) -> Any:
    """M8."""
    holds: Any = True
    for _where, _before, after in written(step, place):
        holds = holds & implies(after.tag, after.is_sound)
    for name in ("pcc", "mepcc"):
        holds = holds & implies(step.after.special[name].tag, step.after.special[name].is_sound)
    return holds & (step.after.numbers["pc"] & 1 == 0) & has_modes(step.after.numbers)


def has_modes(numbers: Any) -> Any:
    """Whether the hart is in a mode that there is, and MPP holds one."""
    mode, previous = numbers["privilege"], (numbers["mstatus"] & MSTATUS_MPP) >> MPP_SHIFT
    return (mode <= int(Privilege.MACHINE)) & (mode != 2) & (previous != 2)


def system_access_needed(step: Step, place: Place) -> Any:
    """M9."""
    if step.trap is not None:
        return True
    before, after = step.before.numbers, step.after.numbers
    holds: Any = after["privilege"] <= before["privilege"]
    for name in sorted(step.touched):
        holds = holds & may_access(step, name)
    own = before["mstatus"] & ~SSTATUS_FIELDS == after["mstatus"] & ~SSTATUS_FIELDS
    return holds & implies(before["privilege"] < int(Privilege.MACHINE), own)


# -- when an invariant has something to say: what a campaign counts --------------------------------------------------------


def tags_something(step: Step) -> Any:
    """The step leaves a tagged capability in a register or granule that held something else."""
    holds: Any = False
    for register in step.register_operands:
        before, after = step.before.registers[register], step.after.registers[register]
        holds = holds | after.tag & not_(same(before, after))
    for access in step.accesses:
        if access.is_store and access.is_capability:
            holds = holds | step.after.granule(granule_of(step, access.address)).tag
    return holds


def accesses_memory(step: Step) -> Any:
    """The step accesses memory."""
    return bool(step.accesses)


def accesses_capabilities(step: Step) -> Any:
    """The step accesses a whole capability in memory."""
    return any(access.is_capability for access in step.accesses)


def stores(step: Step) -> Any:
    """The step stores."""
    return any(access.is_store for access in step.accesses)


def is_refused(step: Step) -> Any:
    """The step is refused."""
    return step.trap is not None


def sees_sealed(step: Step) -> Any:
    """The step names a sealed capability."""
    holds: Any = False
    for register in step.register_operands:
        source = step.before.registers[register]
        holds = holds | source.tag & source.is_sealed
    return holds


def writes_zero(step: Step) -> Any:
    """The step's destination is c0."""
    return any(kind.is_destination and value == 0 for kind, value in step.operands.items())


def touches_system(step: Step) -> Any:
    """The step is completed, and reads or writes a register of the system."""
    return step.trap is None and bool(step.touched)


Predicate = Callable[[Step, Place], Any]


@dataclass(frozen=True)
class Invariant:
    """One invariant: what it says, where it is from, and the predicate; and of which steps it says something."""

    name: str
    title: str
    statement: str
    source: str
    holds: Predicate
    concerns: Callable[[Step], Any]


INVARIANTS: dict[str, Invariant] = {
    row.name: row
    for row in (
        Invariant(
            "M1",
            "monotonicity",
            "Each tagged capability that a step puts anywhere has bounds and permissions within those of one tagged "
            "capability that the step could reach before. A trap puts MTCC in PCC, just that.",
            "CHERI ISAv9, reachable capability monotonicity; Nienhuis et al., IEEE S&P 2020",
            monotone,
            tags_something,
        ),
        Invariant(
            "M2",
            "memory safety",
            "Each access lies in memory and in the bounds of the authorising capability, which is tagged, unsealed and"
            " has the permission; capabilities and atomic accesses are aligned. No other byte of memory changes.",
            "CHERI ISAv9, loads and stores",
            memory_safe,
            accesses_memory,
        ),
        Invariant(
            "M3",
            "tags",
            "Only a store moves a granule's tag: one of data clears those of all granules that it touches, one of a "
            "capability leaves that capability's; and a register that isn't a capability's destination is tagged only "
            "if it was so before.",
            "CHERI ISAv9, tagged memory",
            tags_kept,
            stores,
        ),
        Invariant(
            "M4",
            "refusal",
            "A refused step changes the trap state alone, as the trap defines it: mcause, mtval, mstatus, the mode "
            "(machine), MEPCC (PCC at pc), PCC and pc (MTCC), the reservation. Its cause is one that the table names.",
            "The RISC-V Instruction Set Manual, volume II, traps; sail-cheri-riscv, cheri_sys_exceptions.sail",
            refusal_changes_nothing,
            is_refused,
        ),
        Invariant(
            "M5",
            "sealing",
            "A sealed capability is not dereferenced, and what is derived from it is untagged or the same, unless it "
            "is opened: by CUnseal with an unsealed authority that points at its type in bounds and may unseal; by "
            "CInvoke, a pair of one ordinary type that may be invoked, the code executable and the data not; by a jump"
            " or return to a sentry itself.",
            "CHERI ISAv9, sealed capabilities",
            sealed_kept,
            sees_sealed,
        ),
        Invariant(
            "M6",
            "capability permissions",
            "A tag is loaded only by an authority with permission to load capabilities, stored only by one that may "
            "store them, and that of a local capability only by one that may store local ones.",
            "CHERI ISAv9, permissions",
            capability_permissions_obeyed,
            accesses_capabilities,
        ),
        Invariant("M7", "c0", "c0 stays NULL.", "CHERI ISAv9, merged register file", zero_is_null, writes_zero),
        Invariant(
            "M8",
            "the invariant",
            "Every tagged capability has valid bounds with base <= top <= 2**A, and no reserved bits; pc is even; the mode "
            "and MPP are modes that there are.",
            "CHERI ISAv9, tagged capabilities; the bound of the top is ours",
            sound_kept,
            tags_something,
        ),
        Invariant(
            "M9",
            "system access",
            "The special registers of traps and the CSRs are read or written only with permission to access system "
            "registers and in a mode that is privileged enough, and supervisor mode changes only its part of mstatus; "
            "no step makes the mode more privileged. Traps themselves excepted.",
            "CHERI ISAv9, Permit_Access_System_Registers; The RISC-V Instruction Set Manual, volume II, privilege levels",
            system_access_needed,
            touches_system,
        ),
    )
}
