"""RVFI-DII: packets as they lie on the wire, a server that TestRIG's tools can drive, a peer that our campaigns drive."""

import contextlib
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from capvisor.campaign.case import Case
from capvisor.campaign.peer import PeerError
from capvisor.campaign.rvfi_dii import (
    BATCH,
    END_OF_TRACE,
    EXECUTE,
    HALT,
    SET_VERSION,
    VERSION_QUERY,
    Client,
    Command,
    Execution,
    IntegerData,
    MalformedPacketError,
    MemoryData,
    RvfiError,
    pack_acknowledgement,
    read_acknowledgement,
    read_execution,
    unpack_commands,
)
from capvisor.campaign.rvfi_machines import MACHINES, ReferenceRvfi, written_register
from capvisor.campaign.rvfi_peer import GRANULES_READ_BACK, Injected, RvfiPeer, difference, load_immediate, script
from capvisor.campaign.rvfi_server import COMMANDS_AT_A_TIME, UNSENT_BYTES, Server, Session
from capvisor.cli.main import status_of
from capvisor.cli.status import Status
from capvisor.conformance.traces import READ, Program, read
from capvisor.spec.encodings import encode
from capvisor.spec.formats import CC64, CC128
from tests.quality.test_seeded_bugs import mutated
from tests.tutorial import ROOT

GOLDEN = read(ROOT / "tests" / "vectors" / "rv64-xcheri-traces.jsonl.gz").programs
by_machine = pytest.mark.parametrize("machine", MACHINES)


def word(name: str, *operands: int) -> int:
    return encode(name, operands, 64)


class Running:
    """A server in a thread of its own, and what it has logged."""

    def __init__(self, machine: str = "reference") -> None:
        self.lines: list[str] = []
        self.server = Server(MACHINES[machine](), 0, log=self.lines.append)
        self.port = self.server.port
        self.url = f"rvfi-dii://{self.server.address}"
        self._thread = threading.Thread(target=self.server.serve)
        self._thread.start()

    def logged(self, pattern: str) -> bool:
        """Whether a line is logged that matches, within some seconds."""
        return self.within(lambda: any(re.search(pattern, line) for line in self.lines))

    def within(self, holds: Callable[[], bool]) -> bool:
        """Whether something comes to hold within some seconds."""
        until = time.monotonic() + 20
        while not holds():
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    @property
    def unsent_bytes(self) -> int:
        """How many bytes of answers the client hasn't taken yet."""
        client = self.server._client
        return 0 if client is None else len(client.unsent)

    def raw(self) -> socket.socket:
        """A connection without a client's manners."""
        return socket.create_connection(("127.0.0.1", self.port), 10)

    def close(self) -> None:
        self.server.stop()
        self._thread.join(10)
        assert not self._thread.is_alive()
        self.server.close()


@contextlib.contextmanager
def running(machine: str = "reference") -> Iterator[Running]:
    server = Running(machine)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def reference() -> Iterator[Running]:
    with running() as server:
        yield server


def reader_of(data: bytes):
    """What reads so many of the bytes."""
    left = bytearray(data)

    def read_bytes(count: int) -> bytes:
        assert len(left) >= count
        taken = bytes(left[:count])
        del left[:count]
        return taken

    return read_bytes


# -- packets ---------------------------------------------------------------------------------------------------------------


def test_commands_are_laid_out_as_specified() -> None:
    assert Command(EXECUTE, 0x1234_5678, 0xABCD).pack() == bytes.fromhex("78563412 cdab 01 00")
    assert Command(END_OF_TRACE, VERSION_QUERY).pack() == b"SREV" + bytes.fromhex("0100 00 00")
    assert Command(SET_VERSION, 2).pack() == bytes.fromhex("02000000 0100 76 00")
    assert list(unpack_commands(bytes.fromhex("78563412 cdab 01 ff"))) == [Command(EXECUTE, 0x1234_5678, 0xABCD)]


EVERYTHING = Execution(
    *(0x0101, 0x0202, 0x0303, 0x0404, 5, 6, 7, 3, 2, 1),
    IntegerData(0x11, 0x1212, 0x13, 0x1414, 0x15, 0x1616),
    MemoryData(0x2121, 0xFFFF, (0x22 << 120) | 0x2323, 0xF_FFFF, (0x24 << 152) | 0x2525),
)


def test_version_1_is_laid_out_as_specified() -> None:
    expected = struct.pack("<4Q", 0x0101, 0x0202, 0x0303, 0x0404)  # order, pc before and behind, instruction
    expected += struct.pack("<3Q", 0x1414, 0x1616, 0x1212)  # rs1, rs2, rd
    expected += struct.pack("<3Q", 0x2121, 0x2323, 0x2525)  # address, read and written
    expected += bytes([0xFF, 0xFF, 0x13, 0x15, 0x11, 5, 6, 7])  # masks, rs1, rs2, rd, trap, halt, intr
    assert EVERYTHING.pack(1) == expected and len(expected) == 88
    empty = Execution(halt=3).pack(1)
    assert empty == bytes(86) + b"\x03\x00"


def test_version_2_is_laid_out_as_specified() -> None:
    header = b"trace-v2" + struct.pack("<3Q", 192, 0x0101, 0x0404) + bytes([5, 6, 7, 3, 2, 1, 0, 0])
    header += struct.pack("<3Q", 0x0202, 0x0303, 0b11)
    integer = b"int-data" + struct.pack("<3Q", 0x1212, 0x1414, 0x1616) + bytes([0x11, 0x13, 0x15]) + bytes(5)
    memory = b"mem-data" + bytes.fromhex("2323") + bytes(13) + b"\x22" + bytes(16)
    memory += bytes.fromhex("2525") + bytes(17) + b"\x24" + bytes(12) + struct.pack("<2IQ", 0xFFFF, 0xF_FFFF, 0x2121)
    assert (len(header), len(integer), len(memory)) == (64, 40, 88)
    assert EVERYTHING.pack(2) == header + integer + memory
    sizes = {part: len(EVERYTHING._replace(**{part: None}).pack(2)) for part in ("integer", "memory")}
    assert sizes == {"integer": 152, "memory": 104}
    assert len(Execution(halt=HALT).pack(2)) == 64
    assert pack_acknowledgement(2) == b"version=" + bytes([2]) + bytes(7)


def numbers(bits: int):
    return st.integers(0, (1 << bits) - 1)


INTEGER = st.builds(IntegerData, *(numbers(bits) for bits in (8, 64, 8, 64, 8, 64)))
WIDE = st.builds(MemoryData, *(numbers(bits) for bits in (64, 32, 256, 32, 256)))
NARROW = st.builds(MemoryData, *(numbers(bits) for bits in (64, 8, 64, 8, 64)))
FIELDS = [numbers(bits) for bits in (64, 64, 64, 64, 8, 8, 8)]


@given(numbers(8), numbers(32), numbers(16))
def test_commands_come_back(command: int, insn: int, at: int) -> None:
    assert list(unpack_commands(Command(command, insn, at).pack() * 2)) == [Command(command, insn, at)] * 2


@given(st.builds(Execution, *FIELDS, *[st.just(0)] * 3, INTEGER, NARROW))
def test_packets_of_version_1_come_back(execution: Execution) -> None:
    assert read_execution(reader_of(execution.pack(1)), 1) == execution


@given(st.builds(Execution, *FIELDS, numbers(8), numbers(8), numbers(8), st.none() | INTEGER, st.none() | WIDE))
def test_packets_of_version_2_come_back(execution: Execution) -> None:
    assert read_execution(reader_of(execution.pack(2)), 2) == execution


@pytest.mark.parametrize(
    ("place", "byte", "message"),
    [
        (0, ord("T"), "an execution packet begins with b'Trace-v2', expected b'trace-v2'"),
        (8, 191, "its size is 191 bytes, but what it announces takes 192"),
        (57, 1, "it announces data that isn't known: features 0x103"),
        (64, 0, "integer data begins with"),
        (104, 0, "memory data begins with"),
    ],
)
def test_a_malformed_packet_is_refused_with_what_is_wrong(place: int, byte: int, message: str) -> None:
    data = bytearray(EVERYTHING.pack(2))
    data[place] = byte
    with pytest.raises(MalformedPacketError, match=re.escape(message)):
        read_execution(reader_of(bytes(data)), 2)
    with pytest.raises(MalformedPacketError, match="the answer to a version that was set begins with"):
        read_acknowledgement(reader_of(b"Version=" + bytes(8)))


# -- the machines ----------------------------------------------------------------------------------------------------------


@by_machine
def test_what_is_reported_of_an_instruction(machine: str) -> None:
    hart = MACHINES[machine]()

    def told(name: str, *operands: int) -> Execution:
        return hart.execute(word(name, *operands))

    first = told("addi", 5, 0, -1)
    assert first[:10] == (0, 0x8000_0000, 0x8000_0004, word("addi", 5, 0, -1), 0, 0, 0, 3, 2, 1)
    assert first.integer == IntegerData(5, (1 << 64) - 1) and first.memory is None
    assert told("addi", 0, 5, 1).integer is None
    assert told("fence").integer is None
    for name, operands in load_immediate(6, 0x8000_0103, 64):
        told(name, *operands)
    stored = told("sh", 5, -1, 6)
    assert stored.memory == MemoryData(0x8000_0102, wmask=0b11, wdata=0xFFFF) and stored.integer is None
    loaded = told("lw", 7, -1, 6)
    assert loaded.memory == MemoryData(0x8000_0102, 0b1111, 0xFFFF) and loaded.integer == IntegerData(7, 0xFFFF)
    told("andi", 6, 6, -16)
    # The upper half of the root capability; the lower one is its address, 0.
    address, upper = 0x8000_0100, CC128.root_meta ^ CC128.null_meta
    capability = told("sc", 1, 0, 6)
    assert capability.memory == MemoryData(address, wmask=0xFFFF, wdata=upper << 64) and capability.integer is None
    swapped = told("amoswap.d", 8, 5, 6)
    assert swapped.memory == MemoryData(address, 0xFF, 0, 0xFF, (1 << 64) - 1) and swapped.integer == IntegerData(8, 0)
    told("lr.d", 8, 6)
    assert told("sc.d", 9, 5, 6).memory == MemoryData(address, wmask=0xFF, wdata=(1 << 64) - 1)
    failed = told("sc.d", 9, 5, 6)
    assert failed.integer == IntegerData(9, 1) and failed.memory is None
    assert told("cclear", 1, 0b0010_0100).integer == IntegerData(13, 0)
    fault = told("ld", 8, 0, 0)
    assert (fault.trap, fault.pc_wdata, fault.integer, fault.memory) == (1, 0, None, MemoryData(0))
    assert told("cclear", 0, 0b0000_0001).integer is None  # DDC alone
    refused = told("lc", 8, 1, 2)
    assert (refused.trap, refused.pc_rdata, refused.memory) == (1, 4, None)
    illegal = hart.execute(0)
    assert (illegal.trap, illegal.insn, illegal.order) == (1, 0, refused.order)
    hart.reset()
    assert told("cgetaddr", 5, 5)[:3] == (0, 0x8000_0000, 0x8000_0004)


@by_machine
def test_an_instruction_that_pcc_does_not_let_be_fetched_is_not_known(machine: str) -> None:
    hart = MACHINES[machine]()
    for name, *operands in (("cspecialrw", 2, 0, 0), ("csetboundsimm", 2, 2, 18), ("jalr.cap", 0, 2)):
        assert not hart.execute(word(name, *operands)).trap
    nop = word("addi", 0, 0, 0)
    for _ in range(4):
        assert not hart.execute(nop).trap
    # The first half of the instruction is in bounds, the second isn't.
    half = hart.execute(nop)
    assert (half.trap, half.insn) == (1, nop)
    for name, *operands in (("csetboundsimm", 2, 2, 4), ("jalr.cap", 0, 2), ("addi", 0, 0, 0)):
        assert not hart.execute(word(name, *operands)).trap
    outside = hart.execute(nop)
    assert (outside.trap, outside.insn) == (1, 0)
    # A handler without a tag.
    hart.reset()
    for name, *operands in (("ccleartag", 2, 2), ("cspecialrw", 0, 28, 2)):
        assert not hart.execute(word(name, *operands)).trap
    refused = [hart.execute(each) for each in (word("ecall"), nop)]
    assert [(each.trap, each.insn) for each in refused] == [(1, word("ecall")), (1, 0)]


def test_the_register_that_is_written() -> None:
    assert written_register("sc.d.cap", (4, 5)) == 4 and written_register("sc.cap", (4, 5)) == 0
    assert written_register("cinvoke", (4, 5)) == 31 and written_register("csd", (4, 8, 5)) == 0
    assert written_register("cclear", (3, 0)) == 0 and written_register("cclear", (3, 0x81)) == 31


def holds(program: Program, executions: list[Execution], version: int) -> None:
    """Hold what is said of a program against its golden steps."""
    shown = (1 << 64) - 1 if version == 1 else (1 << 256) - 1
    for step, said in zip(program, executions, strict=True):
        assert (said.pc_rdata, said.pc_wdata, said.trap) == (step.pc, step.next_pc, step.trapped)
        if step.trapped:
            continue
        assert said.insn == step.word
        integer = said.integer if said.integer is not None and said.integer.rd_addr else None
        assert (integer is not None) == bool(step.registers)
        if integer is not None:
            assert step.registers[integer.rd_addr].address == integer.rd_wdata
        for access in step.data[-1:]:
            assert said.memory is not None
            mask = (1 << access.size_bytes) - 1 & ((1 << 8) - 1 if version == 1 else -1)
            found = said.memory[1:3] if access.direction == READ else said.memory[3:]
            assert (said.memory.addr, *found) == (access.address, mask, access.value & shown)


@by_machine
@pytest.mark.parametrize("version", [1, 2])
def test_golden_traces_are_replayed_through_a_socket(machine: str, version: int) -> None:
    with running(machine) as server, Client("127.0.0.1", server.port, versions=(version,)) as client:
        assert client.version == version
        for program in GOLDEN[:12]:
            holds(program, client.run([step.word for step in program]), version)


def test_the_implementations_say_the_same() -> None:
    one, other = (MACHINES[name]() for name in MACHINES)
    for program in GOLDEN:
        one.reset()
        other.reset()
        for step in program:
            assert one.execute(step.word) == other.execute(step.word)


# -- the server ------------------------------------------------------------------------------------------------------------


def test_versions_are_negotiated_byte_by_byte(reference: Running) -> None:
    with reference.raw() as raw:
        exchange = raw.makefile("rwb", buffering=0)

        def answered(command: Command, size: int) -> bytes:
            exchange.write(command.pack())
            data = b""
            while len(data) < size:
                data += exchange.read(size - len(data))
            return data

        assert answered(Command(EXECUTE, word("addi", 1, 0, 1)), 88)[86] == 0  # version 1 until something else is asked for
        assert answered(Command(END_OF_TRACE, VERSION_QUERY), 88) == bytes(86) + b"\x03\x00"
        # The query is no end of the trace.
        assert read_execution(reader_of(answered(Command(EXECUTE, word("addi", 1, 1, 1)), 88)), 1).integer[:2] == (1, 2)
        assert answered(Command(SET_VERSION, 2), 16) == b"version=" + bytes([2]) + bytes(7)
        assert answered(Command(EXECUTE, word("addi", 1, 1, 1)), 104)[:8] == b"trace-v2"
        assert read_execution(reader_of(answered(Command(END_OF_TRACE), 64)), 2) == Execution(halt=HALT)
        # The version stays, the machine is reset.
        said = read_execution(reader_of(answered(Command(EXECUTE, word("addi", 1, 1, 1)), 104)), 2)
        assert said.pc_rdata == 0x8000_0000 and said.integer == IntegerData(1, 1)
        assert answered(Command(SET_VERSION, 1), 16)[8] == 1
        assert read_execution(reader_of(answered(Command(END_OF_TRACE), 88)), 1).halt == HALT


def test_a_session_takes_commands_in_pieces() -> None:
    session, commands = Session(ReferenceRvfi()), Command(EXECUTE, word("addi", 1, 0, 7)).pack() * 3
    answers = b""
    for place in range(len(commands)):
        session.receive(commands[place : place + 1])
        answers += session.work()
    assert len(answers) == 3 * 88 and not session.has_work
    session.receive(commands + b"\0")
    assert len(session.work(2)) == 2 * 88 and session.has_work
    session.work()
    assert session.rest_bytes == 1


def test_more_is_sent_than_sockets_hold_before_an_answer_is_read(reference: Running) -> None:
    count = 120 * BATCH
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        raw.connect(("127.0.0.1", reference.port))
        raw.sendall(Command(EXECUTE, word("addi", 1, 1, 1)).pack() * count + Command(END_OF_TRACE).pack())
        raw.shutdown(socket.SHUT_WR)
        # The server stops working, and waits, when so much hasn't been read.
        assert reference.within(lambda: reference.unsent_bytes >= UNSENT_BYTES)
        time.sleep(0.1)
        assert reference.unsent_bytes < UNSENT_BYTES + 88 * COMMANDS_AT_A_TIME
        data = b"".join(iter(lambda: raw.recv(1 << 20), b""))
    assert len(data) == 88 * (count + 1)
    last = read_execution(reader_of(data[-176:-88]), 1)
    assert last.order == count - 1 and last.integer[:2] == (1, count)
    assert reference.logged(": left$")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (Command(9), "malformed packet: unknown command 0x09; known are 0x00, 0x01 and 0x76"),
        (Command(SET_VERSION, 3), "malformed packet: version 3 is asked for, but there are 1 and 2"),
    ],
)
def test_a_malformed_packet_ends_the_connection_and_not_the_server(
    reference: Running, command: Command, message: str
) -> None:
    with reference.raw() as raw:
        raw.sendall(command.pack())
        assert raw.recv(100) == b""
    assert reference.logged(re.escape(message))
    with Client("127.0.0.1", reference.port) as client:
        assert len(client.run([word("addi", 1, 1, 1)])) == 1


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (Command(EXECUTE, 0x13).pack()[:5], "left in the middle of a packet, 5 bytes of it sent"),
        (Command(EXECUTE, 0x13).pack() * 40_000, "left"),
    ],
)
def test_a_client_that_leaves_in_the_middle_makes_room_for_the_next(reference: Running, sent: bytes, message: str) -> None:
    with reference.raw() as raw:
        raw.sendall(sent)
    assert reference.logged(message)
    with Client("127.0.0.1", reference.port) as client:
        assert client.run([word("addi", 1, 0, 1)])[0].order == 0


def test_a_second_client_is_sent_away_at_once_and_the_first_is_not_disturbed(reference: Running) -> None:
    with Client("127.0.0.1", reference.port) as client:
        client.execute([word("addi", 1, 0, 1)])
        with reference.raw() as second:
            assert second.recv(100) == b""
        assert reference.logged("sent away: 127.0.0.1:[0-9]+ is being served")
        with pytest.raises(RvfiError, match="closed in the middle"):
            Client("127.0.0.1", reference.port)
        assert client.execute([word("addi", 1, 1, 1)])[0].integer == IntegerData(1, 2)
    with Client("127.0.0.1", reference.port) as third:
        assert third.run([word("addi", 1, 1, 1)])[0].integer == IntegerData(1, 1)


def test_answers_are_not_held_back(reference: Running) -> None:
    with Client("127.0.0.1", reference.port) as client:
        client.execute([word("addi", 1, 1, 1)])
        connection = reference.server._client.connection
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_thousands_of_instructions_are_served_a_second(reference: Running) -> None:
    words = [step.word for program in GOLDEN for step in program]
    with Client("127.0.0.1", reference.port) as client:
        started = time.monotonic()
        for _ in range(3):
            client.run(words)
        assert 3 * len(words) / (time.monotonic() - started) > 3000  # 50,000 and more on a machine that is otherwise idle


# -- the client ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def answering(*answers: bytes) -> Iterator[int]:
    """Something that listens, and gives these answers whatever it is sent. Gives the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _where = listener.accept()
            with connection:
                for answer in answers:
                    if not connection.recv(1 << 16):
                        return
                    connection.sendall(answer)
                time.sleep(0.6)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


OFFER = Execution(halt=3).pack(1)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([b""], "silent: no answer for 0.3 s"),
        ([Execution().pack(1)], "malformed packet: a version query is answered, but the halt field is 0"),
        ([OFFER, pack_acknowledgement(3)], "speaks version 3, which isn't known"),
        ([OFFER, b"version:" + bytes(8)], "malformed packet: the answer to a version that was set begins with"),
        ([OFFER, pack_acknowledgement(2), b"nonsense" * 8], "malformed packet: an execution packet begins with b'nonsense'"),
        ([OFFER, pack_acknowledgement(2), Execution(halt=1).pack(2)], "halted at instruction 1 of 1"),
        ([OFFER, pack_acknowledgement(2), Execution().pack(2), Execution().pack(2)], "the end of a trace is answered, but"),
    ],
)
def test_what_is_wrong_with_the_other_side_is_told_in_a_line(answers: list[bytes], message: str) -> None:
    with (
        answering(*answers) as port,
        pytest.raises(RvfiError, match=re.escape(message)) as raised,
        Client("127.0.0.1", port, timeout_s=0.3) as client,
    ):
        client.run([0x13])
    assert str(raised.value).startswith(f"127.0.0.1:{port}: ") and "\n" not in str(raised.value)


def test_an_implementation_of_version_1_is_spoken_to_in_it() -> None:
    said = Execution(0, 0x8000_0000, 0x8000_0004, 0x13)
    answers = Execution(halt=1).pack(1), said.pack(1), Execution(halt=1).pack(1)
    with answering(*answers) as port, Client("127.0.0.1", port, timeout_s=1) as client:
        assert client.version == 1
        assert client.run([0x13])[0][:4] == said[:4]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_what_can_not_be_reached_is_told() -> None:
    with pytest.raises(RvfiError, match="not reachable: Connection refused"):
        Client("127.0.0.1", free_port())
    with pytest.raises(PeerError, match="not reachable"):
        RvfiPeer(f"rvfi-dii://127.0.0.1:{free_port()}")


# -- the peer --------------------------------------------------------------------------------------------------------------


@example(0x7FFF_FFFF)
@example(0x7FFF_F800)
@example(0x8000_0000)
@example(-0x8000_0000)
@example(0x7FFF_FFFF_FFFF_FFFF)
@given(st.integers(-(1 << 63), (1 << 64) - 1) | st.builds(lambda n, low: n + (1 << low), numbers(12), st.integers(0, 63)))
def test_any_number_can_be_loaded(value: int) -> None:
    for fmt, most in ((CC128, 8), (CC64, 2)):
        machine, operations = ReferenceRvfi(fmt), load_immediate(5, value, fmt.address_width)
        for name, operands in operations:
            assert not machine.execute(encode(name, operands, fmt.address_width)).trap
        assert machine.hart.registers[5].address == value & fmt.address_mask
        assert len(operations) <= most


CASES = [
    (),
    (("li", (2, 0x1234_5678_9ABC_DEF0)), ("csetaddr", (3, 1, 2)), ("candperm", (4, 3, 2)), ("csetboundsimm", (5, 3, 100))),
    (("li", (2, 0x8000_0040)), ("csetaddr", (3, 1, 2)), ("sc.cap", (1, 3)), ("lc.cap", (4, 3)), ("sb.cap", (2, 3))),
    (("li", (2, 5)), ("csetaddr", (3, 1, 2)), ("cseal", (4, 1, 3)), ("lw.cap", (5, 4)), ("cunseal", (6, 4, 3))),
    (("cclear", (0, 0b1011_0111)), ("csetflags", (9, 9, 9)), ("cspecialrw", (7, 1, 8)), ("lw.ddc", (5, 4)), ("ecall", ())),
    (("cspecialrw", (2, 0, 0)), ("csetboundsimm", (2, 2, 64)), ("jalr.cap", (3, 2)), *([("addi", (4, 4, 1))] * 20)),
]


@by_machine
def test_a_peer_that_is_right_is_found_to_be_right(machine: str) -> None:
    with running(machine) as server, RvfiPeer(server.url) as peer:
        assert peer.name == server.url
        for operations in CASES:
            assert peer.check(Case("cc128", operations)) is None


def test_a_peer_of_version_1_is_checked_too(reference: Running) -> None:
    with RvfiPeer(reference.url, versions=(1,)) as peer:
        assert [peer.check(Case("cc128", operations)) for operations in CASES] == [None] * len(CASES)


# What stands in a module, what the bug makes of it, the case that shows it, at which step and where.
BUGS = [
    (
        "fastpath.isa.memory",
        "np.logical_and(loaded.tag, may_load, out=loaded.tag)",
        "loaded.tag.fill(False)",
        2,
        3,
        "c4.tag",
    ),
    ("fastpath.memory", "scatter(self._tags, index, False, where)", "pass", 2, 4, "memory at 0x80000040: tag"),
    ("fastpath.machine", "capability.copy(block.special(MTCC), pcc)", "pass", 3, 3, "pc"),
    ("fastpath.machine", 'np.copyto(block.number("mtval"), block.trap_value)', "pass", 3, 3, "mtval"),
]


@pytest.mark.parametrize(("module", "before", "after", "number", "step", "what"), BUGS, ids=[each[1][:40] for each in BUGS])
def test_a_seeded_bug_is_found(module: str, before: str, after: str, number: int, step: int, what: str) -> None:
    case = Case("cc128", CASES[number])
    with running("fast") as server, RvfiPeer(server.url) as peer:
        assert peer.check(case) is None
        with mutated(module, before, after):
            found = peer.check(case)
        assert found is not None and (found.step, found.what) == (step, what)
        assert peer.check(case) is None


SAID = Execution(
    *(0, 0x8000_0000, 0x8000_0004, 0x13, 0, 0, 0, 3, 2, 1),
    IntegerData(5, 0x55),
    MemoryData(0x8000_0010, 0xFF, 0x1122, 0xFFFF, 0x33 << 64 | 0x44),
)
OTHERWISE = {
    "trap": (SAID._replace(trap=1), "reference executed, peer refused"),
    "pc": (SAID._replace(pc_wdata=0), "reference 0x80000004, peer 0x0"),
    "register that is written": (SAID._replace(integer=None), "reference x5, peer x0"),
    "x5": (SAID._replace(integer=IntegerData(5, 0x54)), "reference 0x55, peer 0x54"),
    "bytes written to memory": (SAID._replace(memory=None), "reference 0xffff, peer 0x0"),
    "address written to": (SAID._replace(memory=SAID.memory._replace(addr=0)), "reference 0x80000010, peer 0x0"),
    "memory at 0x80000010": (
        SAID._replace(memory=SAID.memory._replace(wdata=0x44)),
        "reference 0x330000000000000044, peer 0x44",
    ),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_what_a_peer_says_otherwise_is_told(what: str) -> None:
    injected = Injected(SAID.insn, 3, None, SAID)
    assert difference(injected, SAID, 64, 2) is None
    actual, message = OTHERWISE[what]
    found = difference(injected, actual, 64, 2)
    assert found is not None and (found.step, found.what, str(found)) == (3, what, f"{what}: {message}")
    reading = difference(injected._replace(what="c5.base"), actual, 64, 2)
    assert reading is not None and "c5.base" in reading.what


def test_what_a_peer_reads_is_compared_where_it_says_so() -> None:
    injected = Injected(SAID.insn, 3, None, SAID)
    assert difference(injected, SAID._replace(memory=SAID.memory._replace(rmask=0, rdata=9)), 64, 2) is None
    assert difference(injected, SAID._replace(memory=SAID.memory._replace(rdata=9)), 64, 2) is not None
    # Version 1 has no room for the upper half of what is written.
    narrow = SAID.memory._replace(wmask=0xFF, wdata=0x44)
    assert difference(injected, SAID._replace(memory=narrow), 64, 1) is None
    # Where both refuse, nothing but pc counts.
    refused = Injected(0x13, 0, None, SAID._replace(trap=1))
    assert difference(refused, SAID._replace(trap=1, insn=0, integer=None, memory=None), 64, 2) is None


def test_what_is_injected_reads_all_that_a_case_writes() -> None:
    injected = script(Case("cc128", CASES[2]))
    read_back = {each.what for each in injected}
    assert {
        "c3.tag",
        "c3.perms",
        "c3.otype",
        "c3.base",
        "c3.length",
        "c3.address",
        "c3.high",
        "c2.tag",
        "c2.high",
    } <= read_back
    assert {"ddc.address", "mepcc.high", "memory at 0x80000040", "memory at 0x80000040: tag"} <= read_back
    assert {each.step for each in injected} == set(range(5))
    # Nothing of the case is written by it.
    written = {each.expected.integer.rd_addr for each in injected if each.what and each.expected.integer}
    assert written == {31}
    cleared = {each.what for each in script(Case("cc128", CASES[4])) if each.step == 0}
    assert {f"c{register}.tag" for register in (1, 2, 4, 5, 7)} <= cleared and "c3.tag" not in cleared
    refused = script(Case("cc128", CASES[3]))
    assert {"mtval", "mcause"} <= {each.what for each in refused}


def test_the_register_to_read_into_is_one_that_the_case_leaves_alone() -> None:
    def scratch(*operations) -> set[int]:
        injected = script(Case("cc128", operations))
        return {each.expected.integer.rd_addr for each in injected if each.what and each.expected.integer}

    assert scratch(("addi", (31, 30, 0))) == {29}
    assert scratch(("cclear", (3, 0b1100_0000)), ("addi", (1, 1, 0))) == {29}
    assert scratch(("cinvoke", (1, 2))) == {30}
    assert scratch(*(("addi", (register, 0, 1)) for register in range(32))) == set()


def test_memory_is_read_back_within_limits() -> None:
    base = (("li", (2, 0x8000_0000)), ("csetaddr", (3, 1, 2)))
    stores = (("csb", (2, 0, 3)), ("cincoffsetimm", (3, 3, 16))) * 3 * GRANULES_READ_BACK
    places = {each.what for each in script(Case("cc128", (*base, *stores))) if each.what and each.what.endswith(": tag")}
    # In integer mode the word of `csb` is that of `sb`.
    assert len(places) == GRANULES_READ_BACK


def test_a_peer_of_another_kind_is_an_error(reference: Running) -> None:
    with RvfiPeer(reference.url) as peer:
        with pytest.raises(PeerError, match="a machine of XLEN 64; cc64 is for XLEN 32"):
            peer.check(Case("cc64", (("addi", (1, 1, 1)),)))
        with pytest.raises(PeerError, match="step 1: addi can't be encoded: 5000 doesn't fit 12 bits"):
            peer.check(Case("cc128", (("addi", (1, 1, 5000)),)))


@pytest.mark.parametrize(
    "url", ["http://localhost:1", "rvfi-dii://localhost", "rvfi-dii://h:x", "rvfi-dii://h:99999", "rvfi-dii://[h:5", "h:5"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(PeerError, match="expected rvfi-dii://HOST:PORT"):
        RvfiPeer(url)


def test_after_an_error_the_next_case_is_tried_anew() -> None:
    server = Running()
    with RvfiPeer(server.url) as peer:
        port = server.port
        server.close()
        with pytest.raises(PeerError, match="closed in the middle"):
            peer.check(Case("cc128", CASES[1]))
        with pytest.raises(PeerError, match="not reachable"):
            peer.check(Case("cc128", CASES[1]))
        again = Server(ReferenceRvfi(), port, log=lambda line: None)
        thread = threading.Thread(target=again.serve)
        thread.start()
        assert peer.check(Case("cc128", CASES[1])) is None
        again.stop()
        thread.join()
        again.close()


# -- the command -----------------------------------------------------------------------------------------------------------


IGNORING_INTERRUPTS = ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")
"""Starts a command as a script's shell starts those in the background."""


@by_machine
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_where_it_listens_and_ends_cleanly(machine: str, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*IGNORING_INTERRUPTS, sys.executable, "-m", "capvisor", "serve", "--rvfi-dii", "0", "--impl", machine],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        found = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)\n", process.stdout.readline())
        assert found
        with Client("127.0.0.1", int(found[1])) as client:
            assert client.run([word("addi", 1, 0, 1)])[0].integer == IntegerData(1, 1)
        process.send_signal(number)
        output, errors = process.communicate(timeout=20)
    assert process.returncode == Status.OK and output == ""
    assert errors.splitlines()[0].endswith(": connected") and errors.splitlines()[-1] == "interrupted: no longer listening"


def test_a_port_that_is_in_use_is_one_clear_message(reference: Running, capsys) -> None:
    assert status_of(["serve", "--rvfi-dii", str(reference.port)]) == Status.USAGE
    assert capsys.readouterr().err == f"capvisor: can't listen on 127.0.0.1:{reference.port}: Address already in use\n"
    assert status_of(["serve", "--rvfi-dii", "0", "--host", "no.such.host.invalid"]) == Status.USAGE
    assert "can't listen on no.such.host.invalid:0: " in capsys.readouterr().err
    for arguments in (["serve"], ["serve", "--rvfi-dii", "65536"], ["serve", "--rvfi-dii", "0", "--impl", "both"]):
        assert status_of(arguments) == Status.USAGE
