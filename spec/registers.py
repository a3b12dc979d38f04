"""The names of the 32 merged registers.

Register n is `xn` where an integer is meant and `cn` where a capability is; both are the same register. The calling
convention's names are accepted too, with `c` in front for the capability.

Source: sail-cheri-riscv, cheri_regs.sail (one merged file); RISC-V ELF psABI, "Integer Register Convention".
"""

REGISTER_COUNT = 32

DDC_INDEX = 33
"""DDC where a trap value names the register that was to authorise: special register 1, behind c0 to c31.

Source: sail-cheri-riscv, cheri_addr_checks.sail, get_cheri_mode_cap_addr (DDC_IDX); the golden traces have it.
"""

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
