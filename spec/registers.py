"""Registers: the 32 merged ones and their names, the special capability registers, the CSRs.

Register n is `xn` where an integer is meant and `cn` where a capability is; both are the same register. The calling
convention's names are accepted too, with `c` in front for the capability.

Source: sail-cheri-riscv, cheri_regs.sail (one merged file); RISC-V ELF psABI, "Integer Register Convention".
"""

from dataclasses import dataclass
from enum import IntEnum

REGISTER_COUNT = 32

PCC_INDEX = 32
"""PCC where a trap value names the register that was to authorise: special register 0, behind c0 to c31.

Source: sail-cheri-riscv, cheri_types.sail, PCC_IDX.
"""

DDC_INDEX = 33
"""DDC in a trap value: special register 1. Source: sail-cheri-riscv, cheri_types.sail, DDC_IDX; the golden traces."""


class Privilege(IntEnum):
    """The modes of a hart by privilege, in the encoding of MPP. Source: The RISC-V Instruction Set Manual, volume II."""

    USER = 0
    SUPERVISOR = 1
    MACHINE = 3


@dataclass(frozen=True)
class SpecialRegister:
    """A special capability register: its number, and what reading or writing it takes.

    Source: CHERI ISAv9, special capability registers; sail-cheri-riscv, cheri_insts.sail, CSpecialRW. Those for traps into
    user mode don't exist: extension N isn't there.
    """

    name: str
    number: int
    is_writable: bool
    privilege: Privilege
    """The least privileged mode that may access it. Above user mode PCC must permit access to system registers too."""
    resets_to_root: bool
    """Whether it holds the default capability at reset, else NULL."""
    meaning: str

    @property
    def needs_system_access(self) -> bool:
        """Whether PCC must permit access to system registers."""
        return self.privilege > Privilege.USER


SPECIAL_REGISTERS: dict[str, SpecialRegister] = {
    row.name: row
    for row in (
        SpecialRegister(
            "pcc", 0, False, Privilege.USER, True, "what authorises instructions; its flags are the mode of encodings"
        ),
        SpecialRegister("ddc", 1, True, Privilege.USER, True, "what authorises loads and stores in integer mode"),
        SpecialRegister("stcc", 12, True, Privilege.SUPERVISOR, True, "as MTCC; no trap goes there, as none is delegated"),
        SpecialRegister("stdc", 13, True, Privilege.SUPERVISOR, False, "for the supervisor's own use"),
        SpecialRegister("sscratchc", 14, True, Privilege.SUPERVISOR, False, "for the supervisor's own use"),
        SpecialRegister("sepcc", 15, True, Privilege.SUPERVISOR, True, "where SRET goes"),
        SpecialRegister("mtcc", 28, True, Privilege.MACHINE, True, "PCC at the start of a trap's handler"),
        SpecialRegister("mtdc", 29, True, Privilege.MACHINE, False, "for the handler's own use"),
        SpecialRegister("mscratchc", 30, True, Privilege.MACHINE, False, "for the handler's own use"),
        SpecialRegister("mepcc", 31, True, Privilege.MACHINE, True, "PCC where the last trap happened"),
    )
}
SPECIAL_NUMBERS: dict[str, int] = {row.name: row.number for row in SPECIAL_REGISTERS.values()}


@dataclass(frozen=True)
class StatusRegister:
    """A control and status register. Source: The RISC-V Instruction Set Manual, volume II, CSRs."""

    name: str
    number: int
    meaning: str
    part_of: str = ""
    """The register that holds it, if it isn't state of its own: a special register, whose address it is, or mstatus."""

    @property
    def privilege(self) -> Privilege:
        """The least privileged mode that may access it: two bits of its number."""
        return Privilege(self.number >> 8 & 3)


STATUS_REGISTERS: dict[str, StatusRegister] = {
    row.name: row
    for row in (
        StatusRegister("sstatus", 0x100, "the supervisor's part of mstatus: SIE, SPIE, SPP and, of RV64, UXL", "mstatus"),
        StatusRegister("stvec", 0x105, "the address of STCC; bits 0 and 1 are the mode, direct or vectored", "stcc"),
        StatusRegister("sscratch", 0x140, "for the supervisor's own use"),
        StatusRegister("sepc", 0x141, "the address of SEPCC, even", "sepcc"),
        StatusRegister("scause", 0x142, "for the supervisor: no trap writes it, as none is delegated"),
        StatusRegister("stval", 0x143, "for the supervisor: no trap writes it, as none is delegated"),
        StatusRegister("mstatus", 0x300, "SIE, MIE, SPIE, MPIE (bits 1, 3, 5, 7), SPP (8), MPP (11, 12); UXL, SXL"),
        StatusRegister("mtvec", 0x305, "the address of MTCC; bits 0 and 1 are the mode, direct or vectored", "mtcc"),
        StatusRegister("mscratch", 0x340, "for the handler's own use"),
        StatusRegister("mepc", 0x341, "the address of MEPCC, even", "mepcc"),
        StatusRegister("mcause", 0x342, "why the last trap happened"),
        StatusRegister("mtval", 0x343, "more about why: an address, or register number << 5 | capability cause"),
    )
}
STATUS_NUMBERS: dict[str, int] = {row.name: row.number for row in STATUS_REGISTERS.values()}

STATE_NUMBERS: tuple[str, ...] = ("privilege", *(row.name for row in STATUS_REGISTERS.values() if not row.part_of))
"""The numbers of a hart's state beside pc and its reservation: the mode, and the CSRs that aren't part of others."""

SYSTEM_REGISTERS: dict[str, Privilege] = {
    **{row.name: row.privilege for row in SPECIAL_REGISTERS.values() if row.needs_system_access},
    **{row.name: row.privilege for row in STATUS_REGISTERS.values() if not row.part_of},
    "mstatus": Privilege.SUPERVISOR,
}
"""The registers of the system that are state of their own, with the least privileged mode that may access them.

Supervisor mode has a part of mstatus.
"""

MSTATUS_SIE, MSTATUS_MIE, MSTATUS_SPIE, MSTATUS_MPIE, MSTATUS_SPP, MSTATUS_MPP = (
    1 << 1,
    1 << 3,
    1 << 5,
    1 << 7,
    1 << 8,
    3 << 11,
)
MPP_SHIFT, SPP_SHIFT = 11, 8
SSTATUS_FIELDS = MSTATUS_SIE | MSTATUS_SPIE | MSTATUS_SPP
MSTATUS_FIELDS = SSTATUS_FIELDS | MSTATUS_MIE | MSTATUS_MPIE | MSTATUS_MPP
"""The fields of mstatus that can be written; the others read as 0, but for those of `STATUS_WIDTHS`. MPP is never 2."""

STATUS_WIDTHS: dict[tuple[str, int], int] = {
    ("mstatus", 32): 0,
    ("sstatus", 32): 0,
    ("mstatus", 64): 2 << 32 | 2 << 34,
    ("sstatus", 64): 2 << 32,
}
"""What mstatus and sstatus hold beside, by XLEN: UXL and SXL, which say 64 bits."""

ABI_NAMES: tuple[str, ...] = (
    *("zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1"),
    *(f"a{i}" for i in range(8)),
    *(f"s{i}" for i in range(2, 12)),
    *(f"t{i}" for i in range(3, 7)),
)

REGISTER_NUMBERS: dict[str, int] = {
    name: number
    for number, abi in enumerate(ABI_NAMES)
    for name in (f"x{number}", f"c{number}", abi, "cnull" if number == 0 else f"c{abi}")
} | {"fp": 8, "cfp": 8}
