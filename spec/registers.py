"""Registers: the 32 merged ones and their names, the special capability registers, the CSRs.

Register n is `xn` where an integer is meant and `cn` where a capability is; both are the same register. The calling
convention's names are accepted too, with `c` in front for the capability.

Source: sail-cheri-riscv, cheri_regs.sail (one merged file); RISC-V ELF psABI, "Integer Register Convention".
"""

from dataclasses import dataclass

REGISTER_COUNT = 32

PCC_INDEX = 32
"""PCC where a trap value names the register that was to authorise: special register 0, behind c0 to c31.

Source: sail-cheri-riscv, cheri_types.sail, PCC_IDX.
"""

DDC_INDEX = 33
"""DDC in a trap value: special register 1. Source: sail-cheri-riscv, cheri_types.sail, DDC_IDX; the golden traces."""


@dataclass(frozen=True)
class SpecialRegister:
    """A special capability register: its number, and what reading or writing it takes.

    Source: CHERI ISAv9, special capability registers; sail-cheri-riscv, cheri_insts.sail, CSpecialRW. Those of user and
    supervisor mode don't exist: the hart has machine mode alone.
    """

    name: str
    number: int
    is_writable: bool
    needs_system_access: bool
    resets_to_root: bool
    """Whether it holds the default capability at reset, else NULL."""
    meaning: str


SPECIAL_REGISTERS: dict[str, SpecialRegister] = {
    row.name: row
    for row in (
        SpecialRegister("pcc", 0, False, False, True, "what authorises instructions to be executed; its flags are the mode"),
        SpecialRegister("ddc", 1, True, False, True, "what authorises loads and stores in integer mode"),
        SpecialRegister("mtcc", 28, True, True, True, "PCC at the start of a trap's handler"),
        SpecialRegister("mtdc", 29, True, True, False, "for the handler's own use"),
        SpecialRegister("mscratchc", 30, True, True, False, "for the handler's own use"),
        SpecialRegister("mepcc", 31, True, True, True, "PCC where the last trap happened"),
    )
}
SPECIAL_NUMBERS: dict[str, int] = {row.name: row.number for row in SPECIAL_REGISTERS.values()}


@dataclass(frozen=True)
class StatusRegister:
    """A control and status register. Source: The RISC-V Instruction Set Manual, volume II, machine-level CSRs."""

    name: str
    number: int
    meaning: str


STATUS_REGISTERS: dict[str, StatusRegister] = {
    row.name: row
    for row in (
        StatusRegister("mstatus", 0x300, "MIE (bit 3), MPIE (bit 7); MPP (bits 11 and 12) is machine mode, always"),
        StatusRegister("mtvec", 0x305, "the address of MTCC; bits 0 and 1 are the mode, direct or vectored"),
        StatusRegister("mscratch", 0x340, "for the handler's own use"),
        StatusRegister("mepc", 0x341, "the address of MEPCC, even"),
        StatusRegister("mcause", 0x342, "why the last trap happened"),
        StatusRegister("mtval", 0x343, "more about why: an address, or register number << 5 | capability cause"),
    )
}
STATUS_NUMBERS: dict[str, int] = {row.name: row.number for row in STATUS_REGISTERS.values()}

MSTATUS_MIE, MSTATUS_MPIE, MSTATUS_MPP = 1 << 3, 1 << 7, 3 << 11
"""The fields of mstatus that a hart with machine mode alone has; MPP is read-only."""

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
