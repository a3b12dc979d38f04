"""What each operation does: one rule an operation, its bands always in the same order.

OPERANDS reads registers, CHECKS refuses (in the architecture's order), EFFECT writes. A rule whose whole sense is one
expression has EFFECT alone. Source of every rule: its row in `spec.operations`.
"""

from capvisor.model import bounds, capability
from capvisor.model.bits import not_, select, sign_extend
from capvisor.model.capability import Capability
from capvisor.model.machine import Hart, Register, Trap, operation
from capvisor.model.memory import Granule
from capvisor.spec.formats import Permission

# -- inspection --------------------------------------------------------------------------------------------------------


@operation("cgetperm")
def cgetperm(hart: Hart, rd: Register, cs1: Register) -> None:
    """The permissions, architectural from bit 0 and software's from bit 15."""
    # EFFECT
    hart.write_integer(rd, hart.capability(cs1).permissions)


@operation("cgettype")
def cgettype(hart: Hart, rd: Register, cs1: Register) -> None:
    """The object type; reserved ones, "unsealed" among them, are negative."""
    # EFFECT
    hart.write_integer(rd, capability.otype_as_integer(hart.capability(cs1)))


@operation("cgetbase")
def cgetbase(hart: Hart, rd: Register, cs1: Register) -> None:
    """The base."""
    # EFFECT
    hart.write_integer(rd, hart.capability(cs1).base)


@operation("cgetlen")
def cgetlen(hart: Hart, rd: Register, cs1: Register) -> None:
    """The length, or the highest address where it doesn't fit a register."""
    # OPERANDS
    length = hart.capability(cs1).length
    # EFFECT
    hart.write_integer(rd, select(length > hart.format.address_mask, hart.format.address_mask, length))


@operation("cgettop")
def cgettop(hart: Hart, rd: Register, cs1: Register) -> None:
    """The top, or the highest address where it doesn't fit a register."""
    # OPERANDS
    top = hart.capability(cs1).top
    # EFFECT
    hart.write_integer(rd, select(top > hart.format.address_mask, hart.format.address_mask, top))


@operation("cgettag")
def cgettag(hart: Hart, rd: Register, cs1: Register) -> None:
    """The tag."""
    # EFFECT
    hart.write_integer(rd, select(hart.capability(cs1).tag, 1, 0))


@operation("cgetsealed")
def cgetsealed(hart: Hart, rd: Register, cs1: Register) -> None:
    """1 if sealed, sentries included."""
    # EFFECT
    hart.write_integer(rd, select(hart.capability(cs1).is_sealed, 1, 0))


@operation("cgetoffset")
def cgetoffset(hart: Hart, rd: Register, cs1: Register) -> None:
    """The address relative to the base."""
    # EFFECT
    hart.write_integer(rd, hart.capability(cs1).offset)


@operation("cgetflags")
def cgetflags(hart: Hart, rd: Register, cs1: Register) -> None:
    """The flags."""
    # EFFECT
    hart.write_integer(rd, hart.capability(cs1).flags)


@operation("cgetaddr")
def cgetaddr(hart: Hart, rd: Register, cs1: Register) -> None:
    """The address."""
    # EFFECT
    hart.write_integer(rd, hart.capability(cs1).address)


@operation("cgethigh")
def cgethigh(hart: Hart, rd: Register, cs1: Register) -> None:
    """The upper half, as it lies in memory."""
    # EFFECT
    hart.write_integer(rd, capability.memory_meta(hart.capability(cs1)))


@operation("crrl")
def crrl(hart: Hart, rd: Register, rs1: Register) -> None:
    """The length rounded up to a representable one; 0 where that is 2**XLEN."""
    # EFFECT
    hart.write_integer(rd, bounds.representable_length(hart.format, hart.integer(rs1)))


@operation("cram")
def cram(hart: Hart, rd: Register, rs1: Register) -> None:
    """The mask that aligns a base for that length."""
    # EFFECT
    hart.write_integer(rd, bounds.alignment_mask(hart.format, hart.integer(rs1)))


# -- capability arithmetic ---------------------------------------------------------------------------------------------


@operation("csetbounds")
def csetbounds(hart: Hart, cd: Register, cs1: Register, rs2: Register) -> None:
    """Narrow cs1 to [address, address + rs2), rounded outwards to what the format can hold.

    The result is untagged when cs1 is sealed or the request leaves its bounds.
    """
    # OPERANDS
    parent, length = hart.capability(cs1), hart.integer(rs2)
    # EFFECT
    narrowed, _exact = capability.set_bounds(parent, length)
    hart.write(cd, narrowed)


@operation("csetboundsimm")
def csetboundsimm(hart: Hart, cd: Register, cs1: Register, uimm: int) -> None:
    """As csetbounds, with an immediate length."""
    # EFFECT
    narrowed, _exact = capability.set_bounds(hart.capability(cs1), uimm)
    hart.write(cd, narrowed)


@operation("csetboundsexact")
def csetboundsexact(hart: Hart, cd: Register, cs1: Register, rs2: Register) -> None:
    """As csetbounds, untagged also when the bounds had to be rounded."""
    # OPERANDS
    parent, length = hart.capability(cs1), hart.integer(rs2)
    # EFFECT
    narrowed, exact = capability.set_bounds(parent, length)
    hart.write(cd, narrowed.tagged_if(exact))


@operation("csetaddr")
def csetaddr(hart: Hart, cd: Register, cs1: Register, rs2: Register) -> None:
    """Move cs1 to an address; untagged when it is sealed or its bounds would change."""
    # EFFECT
    hart.write(cd, capability.set_address(hart.capability(cs1), hart.integer(rs2)))


@operation("csetoffset")
def csetoffset(hart: Hart, cd: Register, cs1: Register, rs2: Register) -> None:
    """Move cs1 to an offset from its base; untagged when it is sealed or the fast check refuses."""
    # EFFECT
    hart.write(cd, capability.set_offset(hart.capability(cs1), hart.integer(rs2)))


@operation("cincoffset")
def cincoffset(hart: Hart, cd: Register, cs1: Register, rs2: Register) -> None:
    """Move cs1 by an increment; untagged when it is sealed or the fast check refuses."""
    # EFFECT
    hart.write(cd, capability.increment_address(hart.capability(cs1), hart.integer(rs2)))


@operation("cincoffsetimm")
def cincoffsetimm(hart: Hart, cd: Register, cs1: Register, imm: int) -> None:
    """As cincoffset, with an immediate increment."""
    # EFFECT
    increment = imm & hart.format.address_mask
    hart.write(cd, capability.increment_address(hart.capability(cs1), increment))


@operation("candperm")
def candperm(hart: Hart, cd: Register, cs1: Register, rs2: Register) -> None:
    """Keep the permissions that rs2 has too; untagged when cs1 is sealed."""
    # EFFECT
    hart.write(cd, capability.and_permissions(hart.capability(cs1), hart.integer(rs2)))


@operation("csetflags")
def csetflags(hart: Hart, cd: Register, cs1: Register, rs2: Register) -> None:
    """Set the flags; untagged when cs1 is sealed."""
    # EFFECT
    hart.write(cd, capability.set_flags(hart.capability(cs1), hart.integer(rs2)))


@operation("csethigh")
def csethigh(hart: Hart, cd: Register, cs1: Register, rs2: Register) -> None:
    """Replace the upper half by rs2, which is in memory form; never tagged."""
    # OPERANDS
    lower, upper = hart.capability(cs1).address, hart.integer(rs2)
    # EFFECT
    hart.write(cd, capability.from_memory(hart.format, False, upper, lower))


@operation("cmove")
def cmove(hart: Hart, cd: Register, cs1: Register) -> None:
    """Copy."""
    # EFFECT
    hart.write(cd, hart.capability(cs1))


@operation("ccleartag")
def ccleartag(hart: Hart, cd: Register, cs1: Register) -> None:
    """Copy without the tag."""
    # EFFECT
    hart.write(cd, hart.capability(cs1).with_tag(False))


# -- sealing -----------------------------------------------------------------------------------------------------------


@operation("cseal")
def cseal(hart: Hart, cd: Register, cs1: Register, cs2: Register) -> None:
    """Seal cs1 with the object type at which cs2 points; untagged when cs2 may not."""
    # EFFECT
    hart.write(cd, capability.seal(hart.capability(cs1), hart.capability(cs2)))


@operation("cunseal")
def cunseal(hart: Hart, cd: Register, cs1: Register, cs2: Register) -> None:
    """Unseal cs1 by cs2, which must point at its object type; untagged when it may not."""
    # EFFECT
    hart.write(cd, capability.unseal(hart.capability(cs1), hart.capability(cs2)))


@operation("ccseal")
def ccseal(hart: Hart, cd: Register, cs1: Register, cs2: Register) -> None:
    """As cseal, but cs1 unchanged when cs2 isn't usable for sealing at all."""
    # EFFECT
    hart.write(cd, capability.conditional_seal(hart.capability(cs1), hart.capability(cs2)))


@operation("csealentry")
def csealentry(hart: Hart, cd: Register, cs1: Register) -> None:
    """Seal cs1 as an entry point."""
    # EFFECT
    hart.write(cd, capability.seal_entry(hart.capability(cs1)))


@operation("cbuildcap")
def cbuildcap(hart: Hart, cd: Register, cs1: Register, cs2: Register) -> None:
    """Tag the bits of cs2 if they are within the authority of cs1 (c0: DDC)."""
    # EFFECT
    hart.write(cd, capability.build(hart.capability_or_ddc(cs1), hart.capability(cs2)))


@operation("ccopytype")
def ccopytype(hart: Hart, cd: Register, cs1: Register, cs2: Register) -> None:
    """Point cs1 at the object type of cs2."""
    # EFFECT
    hart.write(cd, capability.copy_type(hart.capability(cs1), hart.capability(cs2)))


# -- comparison and conversion -----------------------------------------------------------------------------------------


@operation("ctestsubset")
def ctestsubset(hart: Hart, rd: Register, cs1: Register, cs2: Register) -> None:
    """Whether cs2 is within cs1 (c0: DDC)."""
    # EFFECT
    inside = capability.is_subset(hart.capability(cs2), hart.capability_or_ddc(cs1))
    hart.write_integer(rd, select(inside, 1, 0))


@operation("cseqx")
def cseqx(hart: Hart, rd: Register, cs1: Register, cs2: Register) -> None:
    """Whether two capabilities are equal in every bit and tag."""
    # EFFECT
    same = capability.equal(hart.capability(cs1), hart.capability(cs2))
    hart.write_integer(rd, select(same, 1, 0))


@operation("csub")
def csub(hart: Hart, rd: Register, cs1: Register, cs2: Register) -> None:
    """The difference of two addresses."""
    # EFFECT
    hart.write_integer(rd, hart.integer(cs1) - hart.integer(cs2))


@operation("ctoptr")
def ctoptr(hart: Hart, rd: Register, cs1: Register, cs2: Register) -> None:
    """The address of cs1 relative to the base of cs2 (c0: DDC); 0 when cs1 is untagged."""
    # OPERANDS
    pointer, region = hart.capability(cs1), hart.capability_or_ddc(cs2)
    # EFFECT
    hart.write_integer(rd, select(pointer.tag, pointer.address - region.base, 0))


@operation("cfromptr")
def cfromptr(hart: Hart, cd: Register, cs1: Register, rs2: Register) -> None:
    """cs1 (c0: DDC) at its base + rs2, or NULL when rs2 is 0."""
    # OPERANDS
    region, pointer = hart.capability_or_ddc(cs1), hart.integer(rs2)
    # EFFECT
    moved = capability.set_offset(region, pointer)
    hart.write(cd, capability.select_capability(pointer == 0, capability.null(hart.format), moved))


# -- loads and stores --------------------------------------------------------------------------------------------------


def check_authority(authority: Capability, register: Register, permission: Permission) -> None:
    """The checks with which every access by capability begins."""
    if not_(authority.tag):
        raise Trap("TagViolation", register)
    if authority.is_sealed:
        raise Trap("SealViolation", register)
    if not_(authority.permits(permission)):
        raise Trap("PermitLoadViolation" if permission is Permission.LOAD else "PermitStoreViolation", register)


def check_bounds(authority: Capability, register: Register, address: int, size_bytes: int) -> None:
    """The access must lie in the bounds of its authority."""
    if not_(capability.within_bounds(authority, address, size_bytes)):
        raise Trap("LengthViolation", register)


def load_data(hart: Hart, rd: Register, imm: int, cs1: Register, size_bytes: int, *, signed: bool) -> None:
    """Load `size_bytes` at cs1 + imm, at any alignment."""
    # OPERANDS
    authority = hart.capability(cs1)
    address = authority.address + imm & hart.format.address_mask
    # CHECKS
    check_authority(authority, cs1, Permission.LOAD)
    check_bounds(authority, cs1, address, size_bytes)
    if not_(hart.memory.contains(address, size_bytes)):
        raise Trap("LoadAccessFault", address=address)
    # EFFECT
    value = hart.memory.read(address, size_bytes)
    hart.write_integer(rd, sign_extend(value, 8 * size_bytes) if signed else value)


def store_data(hart: Hart, rs2: Register, imm: int, cs1: Register, size_bytes: int) -> None:
    """Store the low `size_bytes` of rs2 at cs1 + imm, at any alignment; the tags of the granules touched are cleared."""
    # OPERANDS
    authority, value = hart.capability(cs1), hart.integer(rs2)
    address = authority.address + imm & hart.format.address_mask
    # CHECKS
    check_authority(authority, cs1, Permission.STORE)
    check_bounds(authority, cs1, address, size_bytes)
    if not_(hart.memory.contains(address, size_bytes)):
        raise Trap("StoreAMOAccessFault", address=address)
    # EFFECT
    hart.memory.write(address, size_bytes, value)


@operation("clb")
def clb(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load a byte, sign-extended."""
    load_data(hart, rd, imm, cs1, 1, signed=True)


@operation("clh")
def clh(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load 2 bytes, sign-extended."""
    load_data(hart, rd, imm, cs1, 2, signed=True)


@operation("clw")
def clw(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load 4 bytes, sign-extended."""
    load_data(hart, rd, imm, cs1, 4, signed=True)


@operation("cld")
def cld(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load 8 bytes."""
    load_data(hart, rd, imm, cs1, 8, signed=False)


@operation("clbu")
def clbu(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load a byte, zero-extended."""
    load_data(hart, rd, imm, cs1, 1, signed=False)


@operation("clhu")
def clhu(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load 2 bytes, zero-extended."""
    load_data(hart, rd, imm, cs1, 2, signed=False)


@operation("clwu")
def clwu(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load 4 bytes, zero-extended."""
    load_data(hart, rd, imm, cs1, 4, signed=False)


@operation("clc")
def clc(hart: Hart, cd: Register, imm: int, cs1: Register) -> None:
    """Load a capability; without permission to load capabilities its tag is dropped."""
    # OPERANDS
    authority = hart.capability(cs1)
    address, size_bytes = authority.address + imm & hart.format.address_mask, hart.format.capability_bytes
    # CHECKS
    check_authority(authority, cs1, Permission.LOAD)
    check_bounds(authority, cs1, address, size_bytes)
    if address & size_bytes - 1 != 0:
        raise Trap("LoadAddressMisaligned", address=address)
    if not_(hart.memory.contains(address, size_bytes)):
        raise Trap("LoadAccessFault", address=address)
    # EFFECT
    tag, upper, lower = hart.memory.read_granule(address)
    loaded = capability.from_memory(hart.format, tag, upper, lower)
    hart.write(cd, loaded.tagged_if(authority.permits(Permission.LOAD_CAPABILITY)))


@operation("csb")
def csb(hart: Hart, rs2: Register, imm: int, cs1: Register) -> None:
    """Store a byte."""
    store_data(hart, rs2, imm, cs1, 1)


@operation("csh")
def csh(hart: Hart, rs2: Register, imm: int, cs1: Register) -> None:
    """Store 2 bytes."""
    store_data(hart, rs2, imm, cs1, 2)


@operation("csw")
def csw(hart: Hart, rs2: Register, imm: int, cs1: Register) -> None:
    """Store 4 bytes."""
    store_data(hart, rs2, imm, cs1, 4)


@operation("csd")
def csd(hart: Hart, rs2: Register, imm: int, cs1: Register) -> None:
    """Store 8 bytes."""
    store_data(hart, rs2, imm, cs1, 8)


@operation("csc")
def csc(hart: Hart, cs2: Register, imm: int, cs1: Register) -> None:
    """Store a capability with its tag; a tagged one needs permission, a tagged local one needs more."""
    # OPERANDS
    authority, stored = hart.capability(cs1), hart.capability(cs2)
    address, size_bytes = authority.address + imm & hart.format.address_mask, hart.format.capability_bytes
    # CHECKS
    check_authority(authority, cs1, Permission.STORE)
    if stored.tag & not_(authority.permits(Permission.STORE_CAPABILITY)):
        raise Trap("PermitStoreCapViolation", cs1)
    local = not_(stored.permits(Permission.GLOBAL))
    if stored.tag & local & not_(authority.permits(Permission.STORE_LOCAL_CAPABILITY)):
        raise Trap("PermitStoreLocalCapViolation", cs1)
    check_bounds(authority, cs1, address, size_bytes)
    if address & size_bytes - 1 != 0:
        raise Trap("StoreAMOAddressMisaligned", address=address)
    if not_(hart.memory.contains(address, size_bytes)):
        raise Trap("StoreAMOAccessFault", address=address)
    # EFFECT
    hart.memory.write_granule(address, Granule(stored.tag, capability.memory_meta(stored), stored.address))


# -- integer -----------------------------------------------------------------------------------------------------------


@operation("li")
def li(hart: Hart, rd: Register, value: int) -> None:
    """Load a constant."""
    # EFFECT
    hart.write_integer(rd, value)


@operation("addi")
def addi(hart: Hart, rd: Register, rs1: Register, imm: int) -> None:
    """Add an immediate."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) + imm)


@operation("slti")
def slti(hart: Hart, rd: Register, rs1: Register, imm: int) -> None:
    """Compare with an immediate, as signed numbers."""
    # EFFECT
    hart.write_integer(rd, select(signed(hart, hart.integer(rs1)) < imm, 1, 0))


@operation("sltiu")
def sltiu(hart: Hart, rd: Register, rs1: Register, imm: int) -> None:
    """Compare with a sign-extended immediate, as unsigned numbers."""
    # EFFECT
    hart.write_integer(rd, select(hart.integer(rs1) < (imm & hart.format.address_mask), 1, 0))


@operation("andi")
def andi(hart: Hart, rd: Register, rs1: Register, imm: int) -> None:
    """And with an immediate."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) & imm)


@operation("ori")
def ori(hart: Hart, rd: Register, rs1: Register, imm: int) -> None:
    """Or with an immediate."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) | imm)


@operation("xori")
def xori(hart: Hart, rd: Register, rs1: Register, imm: int) -> None:
    """Exclusive-or with an immediate."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) ^ imm)


@operation("slli")
def slli(hart: Hart, rd: Register, rs1: Register, shamt: int) -> None:
    """Shift left by a constant."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) << shamt)


@operation("srli")
def srli(hart: Hart, rd: Register, rs1: Register, shamt: int) -> None:
    """Shift right by a constant, zeros moving in."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) >> shamt)


@operation("srai")
def srai(hart: Hart, rd: Register, rs1: Register, shamt: int) -> None:
    """Shift right by a constant, copies of the sign moving in."""
    # EFFECT
    hart.write_integer(rd, signed(hart, hart.integer(rs1)) >> shamt)


@operation("add")
def add(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Add."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) + hart.integer(rs2))


@operation("sub")
def sub(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Subtract."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) - hart.integer(rs2))


@operation("and")
def and_(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """And, bit by bit."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) & hart.integer(rs2))


@operation("or")
def or_(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Or, bit by bit."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) | hart.integer(rs2))


@operation("xor")
def xor(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Exclusive-or."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) ^ hart.integer(rs2))


@operation("sll")
def sll(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Shift left by the low bits of rs2."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) << shift_amount(hart, rs2))


@operation("srl")
def srl(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Shift right by the low bits of rs2, zeros moving in."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) >> shift_amount(hart, rs2))


@operation("sra")
def sra(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Shift right by the low bits of rs2, copies of the sign moving in."""
    # EFFECT
    hart.write_integer(rd, signed(hart, hart.integer(rs1)) >> shift_amount(hart, rs2))


@operation("slt")
def slt(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Compare as signed numbers."""
    # EFFECT
    hart.write_integer(rd, select(signed(hart, hart.integer(rs1)) < signed(hart, hart.integer(rs2)), 1, 0))


@operation("sltu")
def sltu(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Compare as unsigned numbers."""
    # EFFECT
    hart.write_integer(rd, select(hart.integer(rs1) < hart.integer(rs2), 1, 0))


def signed(hart: Hart, value: int) -> int:
    """A register's value as a number in two's complement."""
    return sign_extend(value, hart.format.address_width)


def shift_amount(hart: Hart, register: Register) -> int:
    """How far a register says to shift: its lowest log2(XLEN) bits."""
    return hart.integer(register) & hart.format.address_width - 1
