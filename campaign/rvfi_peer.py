"""A peer that is driven by RVFI-DII: any TestRIG implementation, which executes a case and is read back by instructions.

A peer's machine is in TestRIG's reset state, and so is the reference's here; of a case only the operations count. RVFI shows
no more of a register than the number in it: what is in capabilities is read by inspection instructions, injected behind
those that write registers, into a register that the case doesn't use. What is injected is executed by the reference too, and
compared alike.
"""

import contextlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from capvisor.campaign.case import Case
from capvisor.campaign.peer import PeerDifference, PeerError
from capvisor.campaign.rvfi_dii import NO_INTEGER_DATA, NO_MEMORY_DATA, VERSIONS, Client, Execution, RvfiError
from capvisor.campaign.rvfi_machines import ReferenceRvfi
from capvisor.model import capability
from capvisor.spec.encodings import encode
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.operations import OPERATIONS
from capvisor.spec.registers import REGISTER_COUNT, SPECIAL_REGISTERS, STATUS_NUMBERS

Operation = tuple[str, tuple[int, ...]]

SCHEME = "rvfi-dii"

TAG_AND_METADATA = (("tag", "cgettag"), ("high", "cgethigh"))
"""What isn't the address, in two inspections: enough where an integer is expected."""

INSPECTIONS = (
    ("tag", "cgettag"),
    ("perms", "cgetperm"),
    ("otype", "cgettype"),
    ("base", "cgetbase"),
    ("length", "cgetlen"),
    ("address", "cgetaddr"),
    ("high", "cgethigh"),
)
"""What is read of a capability, and by which instruction."""

GRANULES_READ_BACK = 32
"""Granules of memory that are read back, tags included, at the end of a case: as many as a campaign's memory has."""


# -- numbers ---------------------------------------------------------------------------------------------------------------


def load_immediate(rd: int, value: int, xlen: int) -> list[Operation]:
    """Instructions that put `value`, modulo 2**xlen, in a register: LUI and ADDI, for long numbers with shifts between."""
    sign = 1 << xlen - 1
    value = ((value & (1 << xlen) - 1) ^ sign) - sign
    low = ((value & 0xFFF) ^ 0x800) - 0x800
    upper = value - low
    if upper == 0:
        return [("addi", (rd, 0, low))]
    if -(1 << 31) <= value < 1 << 31:
        # The sum wraps around at 32 bits: next to 2**31 what LUI loads is negative.
        add = "addiw" if xlen == 64 else "addi"
        return [("lui", (rd, upper >> 12 & 0xFFFFF)), *([(add, (rd, rd, low))] if low else [])]
    shift = (upper & -upper).bit_length() - 1
    rest = load_immediate(rd, upper >> shift, xlen)
    return [*rest, ("slli", (rd, rd, shift)), *([("addi", (rd, rd, low))] if low else [])]


# -- what is to be executed ------------------------------------------------------------------------------------------------


class Injected(NamedTuple):
    """An instruction that is injected, and what the reference says of it."""

    word: int
    step: int
    """Index of the case's operation that it is, or that it follows."""
    what: str | None
    """What it reads, where it isn't of the case itself."""
    expected: Execution


class _Script:
    """A case in the making: instructions, executed by the reference one after the other."""

    def __init__(self, case: Case) -> None:
        self.format: CapabilityFormat = case.capability_format
        self.injected: list[Injected] = []
        self.step = -1
        self._machine = ReferenceRvfi(self.format)
        self._used = used_registers(case.operations)
        free = [register for register in range(REGISTER_COUNT - 1, 0, -1) if register not in self._used]
        self._scratch = free[0] if free else None
        self._touched: set[int] = set()

    def operation(self, step: int, name: str, operands: tuple[int, ...]) -> None:
        """An operation of the case, and what is to be read behind it."""
        self.step = step
        for each in self._instructions(name, operands):
            execution = self._execute(*each)
            if execution.trap:
                for number in ("mtval", "mcause"):
                    self._read("csrrs", (STATUS_NUMBERS[number], 0), number)
        if execution.trap:
            return
        if execution.memory is not None and execution.memory.wmask:
            size, last = self.format.capability_bytes, execution.memory.wmask.bit_length() - 1
            self._touched |= {place // size * size for place in (execution.memory.addr, execution.memory.addr + last)}
        for register in sorted(self._written(name, operands, execution)):
            self._inspect(register)

    def finish(self) -> None:
        """What is to be read at the end: the registers of the case, special registers, memory that was written."""
        if self._scratch is None:
            return
        for register in sorted(self._used):
            self._inspect(register)
        for special in SPECIAL_REGISTERS.values():
            for field, reader in TAG_AND_METADATA:
                self._read("cspecialrw", (special.number, 0), f"{special.name}.address")
                self._read(reader, (self._scratch,), f"{special.name}.{field}")
        for address in sorted(self._touched)[:GRANULES_READ_BACK]:
            for field, reader in TAG_AND_METADATA:
                for each in load_immediate(self._scratch, address, self.format.address_width):
                    self._execute(*each, what=f"the address {address:#x}")
                self._read("lc.ddc", (self._scratch,), f"memory at {address:#x}")
                self._read(reader, (self._scratch,), f"memory at {address:#x}: {field}")

    def _instructions(self, name: str, operands: tuple[int, ...]) -> list[Operation]:
        """What an operation is in instructions: all are one, but `li` is none."""
        if name != "li":
            return [(name, operands)]
        register, value = operands
        return load_immediate(register, value, self.format.address_width)

    def _execute(self, name: str, operands: tuple[int, ...], what: str | None = None) -> Execution:
        try:
            word = encode(name, operands, self.format.address_width)
        except ValueError as error:
            raise PeerError(f"step {self.step + 1}: {name} can't be encoded: {error}") from None
        execution = self._machine.execute(word)
        self.injected.append(Injected(word, self.step, what, execution))
        return execution

    def _read(self, name: str, operands: tuple[int, ...], what: str) -> None:
        """Read something into the scratch register."""
        if self._scratch is not None:
            self._execute(name, (self._scratch, *operands), what)

    def _inspect(self, register: int) -> None:
        """Read all that there is to a register."""
        held = self._machine.hart.registers[register]
        is_integer = held == capability.null(self.format, held.address)
        for field, reader in TAG_AND_METADATA if is_integer else INSPECTIONS:
            self._read(reader, (register,), f"c{register}.{field}")

    def _written(self, name: str, operands: tuple[int, ...], execution: Execution) -> set[int]:
        """The registers that an operation has written."""
        written = cleared_registers(*operands) if name == "cclear" else set()
        return written | ({execution.integer.rd_addr} if execution.integer is not None else set())


def cleared_registers(quarter: int, mask: int) -> set[int]:
    """The registers that CClear clears; DDC aside."""
    return {8 * quarter + bit for bit in range(8) if mask >> bit & 1} - {0}


def used_registers(operations: Iterable[Operation]) -> set[int]:
    """The registers that operations name, or use without that; c0 aside."""
    used = set()
    for name, operands in operations:
        kinds = OPERATIONS[name].operands
        used |= {operand for kind, operand in zip(kinds, operands, strict=True) if kind.is_register}
        if name == "cclear":
            used |= cleared_registers(*operands)
        if name == "cinvoke":
            used.add(REGISTER_COUNT - 1)
    return used - {0}


def script(case: Case) -> list[Injected]:
    """What is to be injected for a case, with what the reference says of each. Raises PeerError where that can't be said."""
    making = _Script(case)
    for step, (name, operands) in enumerate(case.operations):
        making.operation(step, name, operands)
    making.finish()
    return making.injected


# -- comparing -------------------------------------------------------------------------------------------------------------


def difference(injected: Injected, actual: Execution, xlen: int, version: int) -> PeerDifference | None:
    """The first difference between what the reference and a peer say of an instruction.

    Compared are whether it was refused, pc behind it and, where it wasn't refused, the register that it wrote with the
    number, and what it wrote to memory; what it read, where the peer says what that is. Nothing else is the same on all
    implementations.
    Source: QuickCheckVEngine, RVFI_DII/RVFI.hs, rvfiCheck.
    """
    expected, mask = injected.expected, (1 << xlen) - 1
    pairs: list[tuple[str, object, object]] = [("trap", _outcome(expected), _outcome(actual))]
    pairs.append(("pc", expected.pc_wdata, actual.pc_wdata & mask))
    if not expected.trap:
        pairs += _register_pairs(expected, actual, mask) + _memory_pairs(expected, actual, mask, version)
    for what, mine, theirs in pairs:
        if mine != theirs:
            return PeerDifference(injected.step, _what(injected, what), _spelled(mine), _spelled(theirs))
    return None


def _what(injected: Injected, what: str) -> str:
    """What differs, in the case's terms."""
    if injected.what is not None:
        return injected.what if what == "register" else f"{what} where {injected.what} is read"
    integer = injected.expected.integer
    return f"x{integer.rd_addr}" if what == "register" and integer is not None else what


def _outcome(execution: Execution) -> str:
    return "refused" if execution.trap else "executed"


def _register_pairs(expected: Execution, actual: Execution, mask: int) -> list[tuple[str, object, object]]:
    mine, theirs = expected.integer or NO_INTEGER_DATA, actual.integer or NO_INTEGER_DATA
    written = ("register that is written", f"x{mine.rd_addr}", f"x{theirs.rd_addr}")
    return [written, ("register", mine.rd_wdata, theirs.rd_wdata & mask)] if mine.rd_addr else [written]


def _memory_pairs(expected: Execution, actual: Execution, mask: int, version: int) -> list[tuple[str, object, object]]:
    mine, theirs = expected.memory or NO_MEMORY_DATA, actual.memory or NO_MEMORY_DATA
    # Version 1 says no more than eight bytes of an access.
    shown = 0xFF if version == 1 else (1 << 32) - 1
    pairs: list[tuple[str, object, object]] = [("bytes written to memory", mine.wmask & shown, theirs.wmask & shown)]
    if mine.wmask:
        stored = _bits(mine.wmask & shown)
        pairs.append(("address written to", mine.addr, theirs.addr & mask))
        pairs.append((f"memory at {mine.addr:#x}", mine.wdata & stored, theirs.wdata & stored))
    both = _bits(mine.rmask & theirs.rmask)
    if both:
        pairs.append(("address read from", mine.addr, theirs.addr & mask))
        pairs.append((f"memory at {mine.addr:#x}", mine.rdata & both, theirs.rdata & both))
    return pairs


def _bits(byte_mask: int) -> int:
    """The bits of the bytes that a mask names."""
    return sum(0xFF << 8 * place for place in range(byte_mask.bit_length()) if byte_mask >> place & 1)


def _spelled(value: object) -> str:
    return f"{value:#x}" if isinstance(value, int) else str(value)


# -- the peer --------------------------------------------------------------------------------------------------------------


def host_and_port(url: str) -> tuple[str, int]:
    """What rvfi-dii://HOST:PORT names. Raises PeerError."""
    host = port = None
    with contextlib.suppress(ValueError):  # the port is no number or too large, or brackets don't match
        parts = urlsplit(url)
        if parts.scheme == SCHEME and not parts.path.strip("/"):
            host, port = parts.hostname, parts.port
    if not host or not port:
        raise PeerError(f"{url}: expected {SCHEME}://HOST:PORT, such as {SCHEME}://127.0.0.1:5000")
    return host, port


class RvfiPeer:
    """The implementation at rvfi-dii://HOST:PORT. Raises PeerError where that isn't what is given, or nothing is there."""

    def __init__(self, url: str, timeout_s: float = 10.0, versions: Sequence[int] = VERSIONS) -> None:
        self.name = url
        self._host, self._port = host_and_port(url)
        self._timeout_s, self._versions = timeout_s, versions
        self._client: Client | None = self._connect()

    def __enter__(self) -> "RvfiPeer":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def check(self, case: Case) -> PeerDifference | None:
        """Have the case executed and compared; the first difference, if there is one. Raises PeerError.

        After an error the next case is tried with a new connection.
        """
        injected = script(case)
        if self._client is None:
            self._client = self._connect()
        try:
            said = self._client.run([each.word for each in injected])
        except RvfiError:
            self.close()
            raise
        xlen, version = case.capability_format.address_width, self._client.version
        ixl = next((each.ixl for each in said if each.ixl), xlen // 32)
        if ixl != xlen // 32:
            raise PeerError(f"{self.name}: a machine of XLEN {32 * ixl}; {case.format} is for XLEN {xlen}")
        for mine, theirs in zip(injected, said, strict=True):
            found = difference(mine, theirs, xlen, version)
            if found is not None:
                return found
        return None

    def _connect(self) -> Client:
        return Client(self._host, self._port, self._timeout_s, self._versions)
