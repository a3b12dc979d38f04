"""Why an operation may be refused: the causes, in the specification's names and codes."""

from dataclasses import dataclass

CHERI_EXCEPTION = 28
"""mcause of every capability exception. Source: sail-cheri-riscv, cheri_riscv_types.sail."""

OTHER_CAUSE = 0x20
"""What stands in a cause's number beside the exception code where it isn't a capability's."""


@dataclass(frozen=True)
class TrapCause:
    """One cause of a trap.

    `mcause` is the RISC-V exception code; `capability_cause` the five-bit CHERI cause, 0 where the exception isn't CHERI's.
    """

    name: str
    mcause: int
    capability_cause: int
    meaning: str

    @property
    def number(self) -> int:
        """One number for the pair, unique in the table and never 0; what a lane's cause array holds."""
        return self.capability_cause or OTHER_CAUSE | self.mcause


def _capability(code: int, name: str, meaning: str) -> TrapCause:
    return TrapCause(name, CHERI_EXCEPTION, code, meaning)


def _other(code: int, name: str, meaning: str) -> TrapCause:
    return TrapCause(name, code, 0, meaning)


# Capability causes: CHERI ISAv9, capability exception codes, with the names of sail-cheri-riscv, cheri_types.sail (CapEx).
# RISC-V codes: The RISC-V Instruction Set Manual, volume II, table of mcause values.
CAUSES: tuple[TrapCause, ...] = (
    _capability(0x01, "LengthViolation", "an access or target outside the capability's bounds"),
    _capability(0x02, "TagViolation", "the authorising capability has no tag"),
    _capability(0x03, "SealViolation", "the authorising capability is sealed"),
    _capability(0x04, "TypeViolation", "the object types of a sealed pair differ"),
    _capability(0x08, "UserDefViolation", "defined by software"),
    _capability(0x0B, "UnalignedBase", "the base of a code capability isn't aligned"),
    _capability(0x10, "GlobalViolation", "a local capability where a global one is needed"),
    _capability(0x11, "PermitExecuteViolation", "no permission to execute"),
    _capability(0x12, "PermitLoadViolation", "no permission to load"),
    _capability(0x13, "PermitStoreViolation", "no permission to store"),
    _capability(0x14, "PermitLoadCapViolation", "no permission to load capabilities"),
    _capability(0x15, "PermitStoreCapViolation", "no permission to store capabilities"),
    _capability(0x16, "PermitStoreLocalCapViolation", "no permission to store local capabilities"),
    _capability(0x18, "AccessSystemRegsViolation", "no permission to access system registers"),
    _capability(0x19, "PermitCInvokeViolation", "no permission to be invoked"),
    _capability(0x1C, "PermitSetCIDViolation", "no permission to set the compartment identifier"),
    _other(
        2,
        "IllegalInstruction",
        "no instruction, or one for a register that doesn't exist or is read-only, or for a more privileged mode",
    ),
    _other(3, "Breakpoint", "EBREAK"),
    _other(8, "UserEnvironmentCall", "ECALL, from user mode"),
    _other(9, "SupervisorEnvironmentCall", "ECALL, from supervisor mode"),
    _other(11, "EnvironmentCall", "ECALL, from machine mode"),
    _other(4, "LoadAddressMisaligned", "the address of a capability load isn't a multiple of the capability's size"),
    _other(5, "LoadAccessFault", "a load outside the machine's memory"),
    _other(6, "StoreAMOAddressMisaligned", "the address of a capability store isn't a multiple of the capability's size"),
    _other(7, "StoreAMOAccessFault", "a store outside the machine's memory"),
)

CAUSES_BY_NAME: dict[str, TrapCause] = {row.name: row for row in CAUSES}
CAUSES_BY_NUMBER: dict[int, TrapCause] = {row.number: row for row in CAUSES}
