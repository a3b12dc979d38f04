"""A TestRIG implementation: a machine behind a socket, driven by RVFI-DII.

One client is served at a time; one that comes meanwhile is closed at once, without a word. When the client leaves, the next
one finds a machine that is reset, and version 1 of the answers.
"""

import contextlib
import selectors
import socket
from collections.abc import Callable

from capvisor.campaign.rvfi_dii import (
    COMMAND_BYTES,
    END_OF_TRACE,
    EXECUTE,
    HALT,
    OFFERS_VERSION_2,
    SET_VERSION,
    VERSION_QUERY,
    VERSIONS,
    Command,
    Execution,
    MalformedPacketError,
    pack_acknowledgement,
    unpack_commands,
)
from capvisor.campaign.rvfi_machines import RvfiMachine

LOOPBACK = "127.0.0.1"

COMMANDS_AT_A_TIME = 1024
"""Commands that are carried out before the sockets are looked at again."""

UNSENT_BYTES = 1 << 20
"""While so many bytes of answers wait for the client to read them, no more commands are carried out."""

_RECEIVED_BYTES = 1 << 16


class Session:
    """What one client has agreed on and sent, and the answers to it. Opens with a machine that is reset."""

    def __init__(self, machine: RvfiMachine) -> None:
        self._machine = machine
        self._pending = bytearray()
        self.version = 1
        machine.reset()

    def receive(self, data: bytes) -> None:
        """Take what the client sent."""
        self._pending += data

    @property
    def has_work(self) -> bool:
        """Whether a whole command waits."""
        return len(self._pending) >= COMMAND_BYTES

    @property
    def rest_bytes(self) -> int:
        """How many bytes of a command that isn't complete wait, when there is no work."""
        return len(self._pending)

    def work(self, count: int = COMMANDS_AT_A_TIME) -> bytes:
        """The answers to up to `count` commands. Raises MalformedPacketError."""
        size = min(count, len(self._pending) // COMMAND_BYTES) * COMMAND_BYTES
        commands = self._pending[:size]
        del self._pending[:size]
        return b"".join([self._answer(command) for command in unpack_commands(commands)])

    def _answer(self, command: Command) -> bytes:
        if command.command == EXECUTE:
            return self._machine.execute(command.insn).pack(self.version)
        if command.command == END_OF_TRACE:
            if command.insn == VERSION_QUERY:
                return Execution(halt=OFFERS_VERSION_2).pack(1)
            self._machine.reset()
            return Execution(halt=HALT).pack(self.version)
        if command.command == SET_VERSION:
            if command.insn not in VERSIONS:
                raise MalformedPacketError(f"version {command.insn} is asked for, but there are 1 and 2")
            self.version = command.insn
            return pack_acknowledgement(self.version)
        raise MalformedPacketError(f"unknown command {command.command:#04x}; known are 0x00, 0x01 and 0x76")


class _Client:
    """A client that is connected: its socket, and the answers that it hasn't taken yet."""

    def __init__(self, connection: socket.socket, name: str, session: Session) -> None:
        self.connection, self.name, self.session = connection, name, session
        self.unsent = bytearray()
        self.sends_no_more = False

    @property
    def may_work(self) -> bool:
        return self.session.has_work and len(self.unsent) < UNSENT_BYTES


class Server:
    """A machine that listens. Raises OSError where it can't listen there.

    A client that has sent all it will is not in the way of the next one, which waits until the first has its answers.
    `log` is told a line when a client comes, leaves or is sent away.
    """

    def __init__(self, machine: RvfiMachine, port: int, host: str = LOOPBACK, log: Callable[[str], None] = print) -> None:
        self._machine, self._log = machine, log
        family, kind, protocol, _name, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self._listener = socket.socket(family, kind, protocol)
        try:
            # So that the port is free again at once after an end.
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(where)
            self._listener.listen()
        except OSError:
            self._listener.close()
            raise
        self._listener.setblocking(False)
        self._client: _Client | None = None
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._stopping = False

    @property
    def address(self) -> str:
        """Where it listens, as HOST:PORT."""
        return _spelled(self._listener.getsockname())

    @property
    def port(self) -> int:
        """The port, which is another one than asked for where that was 0."""
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more, and let the client go."""
        if self._client is not None:
            self._client.connection.close()
            self._client = None
        for each in (self._listener, self._woken, self._waker, self._selector):
            each.close()

    def stop(self) -> None:
        """Have `serve` return soon. May be called from another thread."""
        self._stopping = True
        self._waker.send(b"\0")

    def serve(self) -> None:
        """Serve one client after the other, until stopped or interrupted."""
        while not self._stopping:
            busy = self._client is not None and self._client.may_work
            ready = {key.fileobj: events for key, events in self._selector.select(0 if busy else None)}
            if self._client is not None:
                self._attend(self._client, ready.get(self._client.connection, 0))
            if self._listener in ready and self._listener in self._selector.get_map():
                self._accept()

    # -- the client ------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            connection, where = self._listener.accept()
        except OSError:  # it has left already
            return
        name = _spelled(where)
        if self._client is not None:
            self._log(f"{name}: sent away: {self._client.name} is being served")
            connection.close()
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client = _Client(connection, name, Session(self._machine))
        self._selector.register(connection, selectors.EVENT_READ)
        self._log(f"{name}: connected")

    def _attend(self, client: _Client, events: int) -> None:
        """Read what the client sent, work on it, and send answers, as far as that goes without waiting."""
        try:
            if events & selectors.EVENT_READ:
                self._receive(client)
            if client.may_work:
                client.unsent += client.session.work()
            self._send(client)
        except MalformedPacketError as error:
            self._leave(client, f"malformed packet: {error}; connection closed")
        except OSError as error:
            self._leave(client, f"left in the middle: {error.strerror or error}")
        else:
            self._look_out(client)

    def _receive(self, client: _Client) -> None:
        data = client.connection.recv(_RECEIVED_BYTES)
        client.session.receive(data)
        if not data:
            client.sends_no_more = True
            self._selector.unregister(self._listener)

    def _send(self, client: _Client) -> None:
        with contextlib.suppress(BlockingIOError):
            while client.unsent:
                del client.unsent[: client.connection.send(client.unsent)]

    def _look_out(self, client: _Client) -> None:
        """What to wait for next; where nothing can come any more, the client is done."""
        if client.sends_no_more and not client.session.has_work and not client.unsent:
            rest = client.session.rest_bytes
            self._leave(client, f"left in the middle of a packet, {rest} bytes of it sent" if rest else "left")
            return
        events = 0 if client.sends_no_more else selectors.EVENT_READ
        events |= selectors.EVENT_WRITE if client.unsent else 0
        registered = client.connection in self._selector.get_map()
        if not events:
            # Only work is left to do, without waiting.
            if registered:
                self._selector.unregister(client.connection)
        elif registered:
            self._selector.modify(client.connection, events)
        else:
            self._selector.register(client.connection, events)

    def _leave(self, client: _Client, why: str) -> None:
        if client.connection in self._selector.get_map():
            self._selector.unregister(client.connection)
        if client.sends_no_more:
            self._selector.register(self._listener, selectors.EVENT_READ)
        client.connection.close()
        self._client = None
        self._log(f"{client.name}: {why}")


def _spelled(where: tuple[str, int] | tuple[str, int, int, int]) -> str:
    host, port = where[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
