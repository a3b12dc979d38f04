"""The guest machine: a CHERI-RISC-V hart into which operations are injected one at a time.

State: 32 merged registers with c0 hardwired to NULL, PCC, DDC and tagged memory. A completed operation moves the program
counter by four bytes; a refused one raises `Trap` and leaves all state as it was.
"""

from collections.abc import Callable
from typing import Any

from capvisor.model import capability
from capvisor.model.capability import Capability
from capvisor.model.memory import Memory
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.operations import OPERATIONS
from capvisor.spec.registers import REGISTER_COUNT
from capvisor.spec.traps import CAUSES_BY_NAME, TrapCause

Register = int
"""A register's number, 0 to 31: in this model always a plain int."""

Rule = Callable[..., None]
RULES: dict[str, Rule] = {}
"""The rule of each operation, by name; filled by `model.isa`."""

INSTRUCTION_BYTES = 4


def operation(name: str) -> Callable[[Rule], Rule]:
    """Declare a function to be the rule of the operation of that name.

    The function takes the hart and the operands in the order of the operation's syntax.
    """
    if name not in OPERATIONS:
        raise KeyError(f"{name} has no row in spec/operations.py")

    def register(rule: Rule) -> Rule:
        RULES[name] = rule
        return rule

    return register


class Trap(Exception):
    """An operation was refused.

    `register` is the number of the capability register that was to authorise it, `address` the address of a memory
    exception; one of the two is None, as the cause has it.
    """

    def __init__(self, cause: str, register: Register | None = None, address: int | None = None) -> None:
        super().__init__(cause)
        self.cause: TrapCause = CAUSES_BY_NAME[cause]
        self.register = register
        self.address = address

    @property
    def value(self) -> int:
        """What mtval holds: register number << 5 | capability cause, or the address.

        Source: sail-cheri-riscv, cheri_addr_checks.sail, handle_cheri_cap_exception.
        """
        if self.register is None:
            assert self.address is not None
            return self.address
        return self.register << 5 | self.cause.capability_cause


class Hart:
    """One hart and its memory, reset to: all registers NULL, PCC and DDC the root capability.

    The program counter `pc` is kept beside PCC as in the Sail model (sail-cheri-riscv, cheri_pc_access.sail): PCC's own
    address is the one at which it was installed. Operations are injected, so that no fetch holds `pc` against PCC.
    """

    def __init__(self, memory: Memory, pc: int = 0) -> None:
        self.format: CapabilityFormat = memory.format
        self.memory = memory
        self.pc = pc
        self.pcc: Capability = capability.root(self.format, pc)
        self.ddc: Capability = capability.root(self.format)
        self._registers: list[Capability] = [capability.null(self.format)] * REGISTER_COUNT

    def capability(self, register: Register) -> Capability:
        """The capability in a register; c0 reads as NULL."""
        return self._registers[register]

    def capability_or_ddc(self, register: Register) -> Capability:
        """The capability in a register, where the encoding of c0 means DDC."""
        return self.ddc if register == 0 else self._registers[register]

    def integer(self, register: Register) -> int:
        """The integer in a register, which is its capability's address."""
        return self._registers[register].address

    def write(self, register: Register, value: Capability) -> None:
        """Put a capability in a register; a write to c0 is ignored."""
        if register != 0:
            self._registers[register] = value

    def write_integer(self, register: Register, value: int) -> None:
        """Put an integer in a register, modulo 2**XLEN, as NULL with that address."""
        if register != 0:
            self._registers[register] = capability.null(self.format, value & self.format.address_mask)

    def step(self, name: str, operands: tuple[Any, ...]) -> None:
        """Execute one operation of the table, its operands in the order of its syntax. Raises Trap when it is refused."""
        RULES[name](self, *operands)
        self.pc = self.pc + INSTRUCTION_BYTES & self.format.address_mask
