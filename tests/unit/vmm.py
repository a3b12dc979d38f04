"""A small machine with a para-pass-through VMM for tests, and the invariants after each step."""

from typing import Any

from capvisor.model.vmm import Deployment, Extension, System
from capvisor.model.vmm_devices import descriptor
from capvisor.model.vmm_system import perform, violated
from capvisor.spec.vmm import OPERATIONS, Code, Phase, Register, Rule, Space
from capvisor.spec.vmm_policy import INTENDED, VmmPolicy
from capvisor.spec.vmm_words import Step

KEY, SECRET = 0x4B1D, 0x5EC2E7
FIRST, BEHIND, FRAMES = 64, 1100, 1280
DISK, NETWORK, DEPLOYED = 1, 2, 3
PLAIN, ENCRYPTED, DENIED, FAULTY = 0, 16, 32, 48
"""The first sectors of each rule on DISK; 16 of each."""
TABLE, BUFFER = 4 << 3, 5 << 3
"""Where the guest has its descriptors, and its buffer."""
READ_SECTORS, WRITE_SECTORS, READ_DMA, WRITE_DMA = 0x20, 0x30, 0xC8, 0xCA
TO_GUEST, TO_MEDIUM = 9, 1
"""The bus master's command, by direction."""


class Rig:
    """Two vCPUs. DISK is mediated, of NETWORK nothing is, and an image of four sectors is deployed to DEPLOYED. Extension 1
    may write frames 40 to 43, extension 2 may read them.
    """

    watches = True
    """Whether the invariants are looked at after each step."""

    def __init__(self, policy: VmmPolicy = INTENDED, **made: Any) -> None:
        self.system = system = System(FRAMES, (FIRST, BEHIND), 2, 3, policy, **made)
        self.violated: set[str] = set()
        system.set_key(KEY)
        for device in (DISK, DEPLOYED):
            system.add_storage(device)
        system.deployments[DEPLOYED] = Deployment(Phase.DEPLOY, 4)
        for lba in range(4):
            system.images[DEPLOYED, lba] = 0xD0 + lba
        for rule, first in ((Rule.ENCRYPTED, ENCRYPTED), (Rule.DENIED, DENIED), (Rule.FAULTY, FAULTY)):
            for lba in range(first, first + 16):
                system.rules[DISK, lba] = rule
        for device in (DISK, NETWORK, DEPLOYED):
            for space in Space:
                system.place_window(device, space, window(device, space))
        system.extensions[1] = Extension(True, 40, 44, True)
        system.extensions[2] = Extension(True, 40, 44)

    def do(self, name: str, *operands: Any) -> Step:
        step = perform(self.system, name, *operands)
        assert step.code is Code.OK or step.code in OPERATIONS[name].refusals, step
        if self.watches:
            self.violated |= violated(step)
        return step

    def must(self, name: str, *operands: Any) -> Any:
        """An operation that has to complete."""
        step = self.do(name, *operands)
        assert step.is_completed, step
        return step.value

    # -- the guest

    def output(self, register: Register, value: int, device: int = DISK, space: Space = Space.PORT) -> Code:
        step = self.do("output", 0, space, window(device, space) << 3 | register, value)
        return step.code

    def input(self, register: Register, device: int = DISK, space: Space = Space.PORT) -> Any:
        return self.do("input", 0, space, window(device, space) << 3 | register).value

    def command(self, opcode: int, lba: int, count: int = 1, device: int = DISK) -> Code:
        """Write registers and a command."""
        self.output(Register.COUNT, count, device)
        self.output(Register.LBA, lba, device)
        return self.output(Register.COMMAND, opcode, device)

    def put(self, address: int, word: int) -> None:
        """The guest's processor writes a block."""
        self.must("map", 1, 7, address >> 3, 0, 1)
        self.must("store", 1, 7, address & 7, word)

    def get(self, address: int) -> Any:
        """The guest's processor reads a block."""
        self.must("map", 1, 7, address >> 3, 0, 0)
        return self.must("load", 1, 7, address & 7)

    def describe(self, *parts: tuple[int, int], device: int = DISK) -> None:
        """Write descriptors of so many blocks from an address on, and say where they are."""
        for number, (address, count) in enumerate(parts):
            word = descriptor(address, count)
            self.put(TABLE + number, word if number + 1 == len(parts) else word & ~(1 << 63))
        self.output(Register.DESCRIPTORS, TABLE, device)

    def finish(self, device: int = DISK) -> None:
        """Let the device and its mediator go on until nothing moves any more."""
        for _ in range(100):
            moved = [self.do(name, device).is_completed for name in ("mediate", "transfer")]
            if not any(moved) and not self.input(Register.MASTER_STATUS, device):
                break

    def write_port(self, lba: int, *words: int, device: int = DISK) -> None:
        """Write sectors by the data port; what is refused isn't done."""
        self.command(WRITE_SECTORS, lba, len(words), device)
        for word in words:
            self.output(Register.DATA, word, device)

    def read_port(self, lba: int, count: int = 1, device: int = DISK) -> list[Any]:
        """Read sectors by the data port."""
        self.command(READ_SECTORS, lba, count, device)
        return [self.input(Register.DATA, device) for _ in range(count)]

    def write_dma(self, lba: int, *words: int, device: int = DISK) -> None:
        """Write sectors by DMA, from BUFFER on."""
        for number, word in enumerate(words):
            self.put(BUFFER + number, word)
        self.describe((BUFFER, len(words)), device=device)
        self.command(WRITE_DMA, lba, len(words), device)
        self.output(Register.START, TO_MEDIUM, device)
        self.finish(device)

    def read_dma(self, lba: int, count: int = 1, device: int = DISK) -> list[Any]:
        """Read sectors by DMA, to BUFFER."""
        self.describe((BUFFER, count), device=device)
        self.command(READ_DMA, lba, count, device)
        self.output(Register.START, TO_GUEST, device)
        self.finish(device)
        return [self.get(BUFFER + number) for number in range(count)]


def window(device: int, space: Space) -> int:
    """Where a device's registers are at first."""
    return 0x20 + device if space is Space.PORT else (1240 << 6) + device


def cipher_text(lba: int, word: int) -> int:
    """What the tests' cipher makes of a word."""
    return word + KEY + (lba << 8) & (1 << 64) - 1
