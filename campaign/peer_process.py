"""A process that is spoken to in lines: started, held to a time limit, ended together with all that it has started."""

import contextlib
import os
import selectors
import shlex
import signal
import subprocess
import time
import weakref
from collections import deque

from capvisor.campaign.peer import PeerError

LINE_BYTES = 1 << 20
"""The longest line that is taken from a peer."""

GRACE_S = 1.0
"""How long a process whose input or output is closed is given to exit by itself."""

_CHUNK_BYTES = 1 << 16
_KEPT_ERROR_BYTES = 4096
_SHOWN_ERROR_LINES = 3
_SHOWN_CHARACTERS = 160


class PeerProcess:
    """A command, started without a shell, in a process group of its own.

    Reading and writing are interleaved, so that neither side waits for the other with a full pipe. What it writes to its
    standard error is kept, and the end of it shown when it exits. Raises PeerError where the command can't be started.
    """

    def __init__(self, command: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                _arguments(command), bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except (OSError, ValueError) as error:
            raise PeerError(f"can't be started: {error}") from None
        self._selector = selectors.DefaultSelector()
        self._end = weakref.finalize(self, _end, self._process, self._selector)
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._input, self._output, self._errors = self._process.stdin, self._process.stdout, self._process.stderr
        for stream in (self._input, self._output, self._errors):
            os.set_blocking(stream.fileno(), False)
        self._selector.register(self._output, selectors.EVENT_READ, self._read)
        self._selector.register(self._errors, selectors.EVENT_READ, self._read_errors)
        self._outgoing = b""
        self._lines: deque[bytes] = deque()
        self._partial = b""
        self._last_errors = b""
        self._is_output_closed = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, line: bytes) -> None:
        """Have a line written, as far as the process takes it while its answers are received."""
        if not self._outgoing:
            self._selector.register(self._input, selectors.EVENT_WRITE, self._write)
        self._outgoing += line + b"\n"

    def receive(self) -> bytes:
        """The next line that the process writes. Raises PeerError where none comes within the time limit."""
        deadline = time.monotonic() + self._timeout_s
        while not self._lines:
            if self._is_output_closed:
                raise PeerError(self._last_words() or "closed its output, and goes on running")
            if len(self._partial) > LINE_BYTES:
                raise PeerError(f"a line of more than {LINE_BYTES} bytes: {shortened(self._partial)}")
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise PeerError(self._silence())
            for key, _events in self._selector.select(remaining_s):
                key.data()
        return self._lines.popleft()

    def close(self) -> None:
        """Close its input, give it a moment to exit, and end it."""
        if self._end.alive:
            if self._outgoing:
                self._stop_writing()
            self._input.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
        self._end()

    def kill(self) -> None:
        """End it at once."""
        self._end()

    def _write(self) -> None:
        try:
            written = os.write(self._input.fileno(), self._outgoing)
        except BrokenPipeError:
            # It doesn't listen any more: what its output says, or its exit, tells why.
            written = len(self._outgoing)
        self._outgoing = self._outgoing[written:]
        if not self._outgoing:
            self._stop_writing()

    def _stop_writing(self) -> None:
        self._outgoing = b""
        self._selector.unregister(self._input)

    def _read(self) -> None:
        chunk = os.read(self._output.fileno(), _CHUNK_BYTES)
        if not chunk:
            self._is_output_closed = True
            self._selector.unregister(self._output)
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        self._lines.extend(lines)

    def _read_errors(self) -> bool:
        """Keep what was written to the standard error; whether there may be more."""
        try:
            chunk = os.read(self._errors.fileno(), _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk and self._errors in self._selector.get_map():
            self._selector.unregister(self._errors)
        self._last_errors = (self._last_errors + chunk)[-_KEPT_ERROR_BYTES:]
        return bool(chunk)

    def _silence(self) -> str:
        if self._process.poll() is not None:
            return self._last_words()
        unfinished = f"; of its line there is {shortened(self._partial)}" if self._partial else ""
        return f"no answer within {self._timeout_s:g} s{unfinished}"

    def _last_words(self) -> str:
        """How it exited, with the end of its standard error; nothing if it is still running."""
        try:
            status = self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return ""
        while self._read_errors():
            pass
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        lines = [line.strip() for line in self._last_errors.decode(errors="replace").splitlines() if line.strip()]
        return f"{how}: {' | '.join(lines[-_SHOWN_ERROR_LINES:])}" if lines else how


def _arguments(command: str) -> list[str]:
    arguments = shlex.split(command)
    if not arguments:
        raise ValueError("the command is empty")
    return arguments


def _end(process: subprocess.Popen[bytes], selector: selectors.BaseSelector) -> None:
    """Kill a process and those that it has started, and let go of its pipes."""
    selector.close()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        assert stream is not None
        stream.close()


def shortened(line: bytes) -> str:
    """A line as it can be shown within a message."""
    text = line.decode(errors="backslashreplace").encode("unicode_escape").decode()
    return f"`{text if len(text) <= _SHOWN_CHARACTERS else f'{text[:_SHOWN_CHARACTERS]}...'}`"
