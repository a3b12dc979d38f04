"""RVFI-DII: the packets with which TestRIG's tools inject instructions and are told what was executed, and a client.

Source: CTSRD-CHERI/TestRIG, RVFI-DII.md; for version 2, sail-riscv, model/rvfi_dii.sail. All numbers are little-endian.
"""

import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from capvisor.campaign.peer import PeerError

_Answer = TypeVar("_Answer")

END_OF_TRACE, EXECUTE, SET_VERSION = 0, 1, ord("v")
"""The commands: reset after an end-of-trace packet is answered; execute an instruction; set the version of the answers."""

VERSION_QUERY = 0x5645_5253
"""What stands for the instruction in an end-of-trace command that asks for the version instead: "VERS"."""

HALT, OFFERS_VERSION_2 = 1, 3
"""What the halt field holds at the end of a trace, and in the answer to a version query where version 2 is offered."""

VERSIONS = (1, 2)

_COMMAND = struct.Struct("<IHBB")
_VERSION_1 = struct.Struct("<10Q8B")
_HEADER = struct.Struct("<8s3Q6B2x3Q")
_INTEGER = struct.Struct("<8s3Q3B5x")
_MEMORY = struct.Struct("<8s32s32sIIQ")
_ACKNOWLEDGEMENT = struct.Struct("<8sQ")
_HEADER_MAGIC, _INTEGER_MAGIC, _MEMORY_MAGIC, _VERSION_MAGIC = b"trace-v2", b"int-data", b"mem-data", b"version="
_HAS_INTEGER, _HAS_MEMORY = 1, 2
_WORD_MASK = (1 << 64) - 1

COMMAND_BYTES = _COMMAND.size


class RvfiError(PeerError):
    """The other side can't be reached, is silent, goes away, or says what has no meaning; the message is one line."""


class MalformedPacketError(RvfiError):
    """A packet has no meaning; the message says what is wrong with it."""


# -- packets ---------------------------------------------------------------------------------------------------------------


class Command(NamedTuple):
    """What is sent to an implementation: 8 bytes."""

    command: int
    insn: int = 0
    """The instruction, a compressed one in the low half; or what the command is about."""
    time: int = 1
    """When to inject it, of which models take no notice."""

    def pack(self) -> bytes:
        return _COMMAND.pack(self.insn, self.time, self.command, 0)


def unpack_commands(data: bytes | bytearray | memoryview) -> Iterator[Command]:
    """The commands in a multiple of `COMMAND_BYTES`; the padding of each may be anything."""
    for insn, time, command, _padding in _COMMAND.iter_unpack(data):
        yield Command(command, insn, time)


class IntegerData(NamedTuple):
    """The integer registers that an instruction read and wrote; 0 where it had none."""

    rd_addr: int = 0
    rd_wdata: int = 0
    rs1_addr: int = 0
    rs1_rdata: int = 0
    rs2_addr: int = 0
    rs2_rdata: int = 0


class MemoryData(NamedTuple):
    """What an instruction read from memory and wrote to it: up to 32 bytes each, and a bit of the mask for each byte."""

    addr: int = 0
    rmask: int = 0
    rdata: int = 0
    wmask: int = 0
    wdata: int = 0


NO_INTEGER_DATA, NO_MEMORY_DATA = IntegerData(), MemoryData()


class Execution(NamedTuple):
    """What an implementation says of an instruction, or that a trace has ended.

    Version 1 has no mode, ixl and valid, but always both parts of data, of memory the lowest 8 bytes.
    """

    order: int = 0
    """How many instructions had retired before."""
    pc_rdata: int = 0
    pc_wdata: int = 0
    insn: int = 0
    trap: int = 0
    halt: int = 0
    intr: int = 0
    mode: int = 0
    """The privilege level; 3 is machine mode."""
    ixl: int = 0
    """1 is XLEN 32, 2 is XLEN 64."""
    valid: int = 0
    integer: IntegerData | None = None
    memory: MemoryData | None = None

    def pack(self, version: int) -> bytes:
        """The packet of a version."""
        return self._pack_1() if version == 1 else self._pack_2()

    def _pack_1(self) -> bytes:
        integer, memory = self.integer or NO_INTEGER_DATA, self.memory or NO_MEMORY_DATA
        return _VERSION_1.pack(
            *(self.order, self.pc_rdata, self.pc_wdata, self.insn),
            *(integer.rs1_rdata, integer.rs2_rdata, integer.rd_wdata),
            *(memory.addr, memory.rdata & _WORD_MASK, memory.wdata & _WORD_MASK),
            *(memory.rmask & 0xFF, memory.wmask & 0xFF),
            *(integer.rs1_addr, integer.rs2_addr, integer.rd_addr),
            *(self.trap, self.halt, self.intr),
        )

    def _pack_2(self) -> bytes:
        integer, memory, parts, features = self.integer, self.memory, b"", 0
        if integer is not None:
            features |= _HAS_INTEGER
            parts = _INTEGER.pack(
                *(_INTEGER_MAGIC, integer.rd_wdata, integer.rs1_rdata, integer.rs2_rdata),
                *(integer.rd_addr, integer.rs1_addr, integer.rs2_addr),
            )
        if memory is not None:
            features |= _HAS_MEMORY
            parts += _MEMORY.pack(
                *(_MEMORY_MAGIC, memory.rdata.to_bytes(32, "little"), memory.wdata.to_bytes(32, "little")),
                *(memory.rmask, memory.wmask, memory.addr),
            )
        header = _HEADER.pack(
            *(_HEADER_MAGIC, _HEADER.size + len(parts), self.order, self.insn),
            *(self.trap, self.halt, self.intr, self.mode, self.ixl, self.valid),
            *(self.pc_rdata, self.pc_wdata, features),
        )
        return header + parts


def read_execution(read: Callable[[int], bytes], version: int) -> Execution:
    """The next packet of a version from what reads so many bytes. Raises MalformedPacketError."""
    return _unpack_1(read(_VERSION_1.size)) if version == 1 else _read_2(read)


def _unpack_1(data: bytes) -> Execution:
    order, pc_rdata, pc_wdata, insn, rs1, rs2, rd, address, read, written, *small = _VERSION_1.unpack(data)
    rmask, wmask, rs1_addr, rs2_addr, rd_addr, trap, halt, intr = small
    integer = IntegerData(rd_addr, rd, rs1_addr, rs1, rs2_addr, rs2)
    memory = MemoryData(address, rmask, read, wmask, written)
    return Execution(order, pc_rdata, pc_wdata, insn, trap, halt, intr, integer=integer, memory=memory)


def _read_2(read: Callable[[int], bytes]) -> Execution:
    magic, size, order, insn, *small, pc_rdata, pc_wdata, features = _HEADER.unpack(read(_HEADER.size))
    trap, halt, intr, mode, ixl, valid = small
    _check_magic("an execution packet", magic, _HEADER_MAGIC)
    if features & ~(_HAS_INTEGER | _HAS_MEMORY):
        raise MalformedPacketError(f"malformed packet: it announces data that isn't known: features {features:#x}")
    expected = _HEADER.size
    expected += _INTEGER.size if features & _HAS_INTEGER else 0
    expected += _MEMORY.size if features & _HAS_MEMORY else 0
    if size != expected:
        raise MalformedPacketError(f"malformed packet: its size is {size} bytes, but what it announces takes {expected}")
    integer = memory = None
    if features & _HAS_INTEGER:
        magic, rd, rs1, rs2, rd_addr, rs1_addr, rs2_addr = _INTEGER.unpack(read(_INTEGER.size))
        _check_magic("integer data", magic, _INTEGER_MAGIC)
        integer = IntegerData(rd_addr, rd, rs1_addr, rs1, rs2_addr, rs2)
    if features & _HAS_MEMORY:
        magic, rdata, wdata, rmask, wmask, address = _MEMORY.unpack(read(_MEMORY.size))
        _check_magic("memory data", magic, _MEMORY_MAGIC)
        memory = MemoryData(address, rmask, int.from_bytes(rdata, "little"), wmask, int.from_bytes(wdata, "little"))
    return Execution(order, pc_rdata, pc_wdata, insn, trap, halt, intr, mode, ixl, valid, integer, memory)


def pack_acknowledgement(version: int) -> bytes:
    """The answer to a command that sets the version."""
    return _ACKNOWLEDGEMENT.pack(_VERSION_MAGIC, version)


def read_acknowledgement(read: Callable[[int], bytes]) -> int:
    """The version that was set. Raises MalformedPacketError where that isn't what is answered."""
    magic, version = _ACKNOWLEDGEMENT.unpack(read(_ACKNOWLEDGEMENT.size))
    _check_magic("the answer to a version that was set", magic, _VERSION_MAGIC)
    return int(version)


def _check_magic(what: str, found: bytes, expected: bytes) -> None:
    if found != expected:
        raise MalformedPacketError(f"malformed packet: {what} begins with {found!r}, expected {expected!r}")


# -- the client ------------------------------------------------------------------------------------------------------------

BATCH = 512
"""Instructions that are sent before the answers are read: their answers fit what a socket holds, so that nobody is stuck."""


class Client:
    """A connection to an implementation that listens, with the version of the answers agreed on.

    Every method raises RvfiError where the other side doesn't do its part; the connection is of no use then.
    """

    def __init__(self, host: str, port: int, timeout_s: float = 10.0, versions: Sequence[int] = VERSIONS) -> None:
        """`versions` are those that may be agreed on; where version 2 isn't among them, the other side isn't asked."""
        self.name = f"{host}:{port}"
        self._timeout_s = timeout_s
        self._received, self._position = b"", 0
        try:
            self._socket = socket.create_connection((host, port), timeout_s)
        except OSError as error:
            raise RvfiError(f"{self.name}: not reachable: {error.strerror or error}") from None
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.version = self._negotiate() if 2 in versions else 1
            if self.version not in versions:
                raise RvfiError(f"{self.name}: speaks version {self.version} only")
        except RvfiError:
            self.close()
            raise

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def run(self, words: Sequence[int]) -> list[Execution]:
        """Have a trace executed from reset: what is said of each word. The implementation is reset behind it."""
        executions = self.execute(words)
        self.end_trace()
        return executions

    def execute(self, words: Sequence[int]) -> list[Execution]:
        """Go on with a trace by these words."""
        executions: list[Execution] = []
        for start in range(0, len(words), BATCH):
            batch = words[start : start + BATCH]
            self._send(b"".join([_COMMAND.pack(word, 1, EXECUTE, 0) for word in batch]))
            executions += [self._execution(self.version) for _word in batch]
        for index, each in enumerate(executions):
            if each.halt:
                raise RvfiError(f"{self.name}: halted at instruction {index + 1} of {len(words)}")
        return executions

    def end_trace(self) -> None:
        """Have the implementation reset."""
        self._send(Command(END_OF_TRACE).pack())
        if not self._execution(self.version).halt:
            raise MalformedPacketError(
                f"{self.name}: malformed packet: the end of a trace is answered, but the halt field is 0"
            )

    def _negotiate(self) -> int:
        """The version that is agreed on: 2 if it is offered. Source: RVFI-DII.md, "Version negotiation"."""
        self._send(Command(END_OF_TRACE, VERSION_QUERY).pack())
        halt = self._execution(1).halt
        if not halt & HALT:
            raise MalformedPacketError(
                f"{self.name}: malformed packet: a version query is answered, but the halt field is {halt}"
            )
        if halt >> 1 == 0:
            return 1
        self._send(Command(SET_VERSION, 2).pack())
        version = self._told(read_acknowledgement)
        if version not in VERSIONS:
            raise RvfiError(f"{self.name}: speaks version {version}, which isn't known")
        return version

    def _execution(self, version: int) -> Execution:
        return self._told(lambda read: read_execution(read, version))

    def _told(self, reader: Callable[[Callable[[int], bytes]], _Answer]) -> _Answer:
        """What a reader makes of the bytes that come next."""
        try:
            return reader(self._read)
        except MalformedPacketError as error:
            raise MalformedPacketError(f"{self.name}: {error}") from None

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise RvfiError(f"{self.name}: silent: took no packets for {self._timeout_s:g} s") from None
        except OSError as error:
            raise RvfiError(f"{self.name}: closed in the middle: {error.strerror or error}") from None

    def _read(self, count: int) -> bytes:
        """The next `count` bytes."""
        while len(self._received) - self._position < count:
            self._received, self._position = self._received[self._position :] + self._more(), 0
        start, self._position = self._position, self._position + count
        return self._received[start : self._position]

    def _more(self) -> bytes:
        try:
            data = self._socket.recv(1 << 18)
        except TimeoutError:
            raise RvfiError(f"{self.name}: silent: no answer for {self._timeout_s:g} s") from None
        except OSError as error:
            raise RvfiError(f"{self.name}: closed in the middle: {error.strerror or error}") from None
        if not data:
            raise RvfiError(f"{self.name}: closed in the middle: an answer was still to come")
        return data
