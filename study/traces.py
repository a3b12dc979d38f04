"""Readers of memory traces, as streams of chunks: however long a trace, a fixed amount of it is in memory.

valgrind's lackey (`--trace-mem=yes`), ChampSim's records, CSV and NPZ. All but NPZ may be compressed by gzip or xz, and may
come from standard input.
"""

import gzip
import lzma
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from capvisor.study import parsing
from capvisor.study.errors import StudyError
from capvisor.study.kernel import FETCH, LOAD, STORE, UNMAP
from capvisor.study.simulator import Chunk

Advance = Callable[[int], None]
BLOCK_BYTES = 1 << 22
FORMATS = ("lackey", "champsim", "csv", "npz")
_ENDINGS = {
    "lackey": (".lackey",),
    "champsim": (".champsim", ".champsimtrace", ".trace"),
    "csv": (".csv",),
    "npz": (".npz",),
}
_OPENERS: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".xz": lzma.open}
STANDARD_INPUT = Path("-")

CHAMPSIM_RECORD = np.dtype(
    [
        ("ip", "<u8"),
        ("is_branch", "u1"),
        ("branch_taken", "u1"),
        ("destination_registers", "u1", 2),
        ("source_registers", "u1", 4),
        ("destination_memory", "<u8", 2),
        ("source_memory", "<u8", 4),
    ]
)
"""One instruction (ChampSim, inc/trace_instruction.h: input_instr); memory operands of 0 are unused."""


def format_of(path: Path) -> str | None:
    """The format that a file's name says, its compression aside."""
    name = path.name
    for suffix in _OPENERS:
        name = name.removesuffix(suffix)
    for known, endings in _ENDINGS.items():
        if name.endswith(endings):
            return known
    return None


def read_trace(path: Path, format_name: str, advance: Advance = lambda _bytes: None) -> Iterator[Chunk]:
    """The chunks of a trace; `-` is standard input. Raises StudyError, with line and byte, for what isn't of the format.

    `advance` is called with how many bytes of the file have been read since it was last.
    """
    if format_name == "npz":
        yield from _read_npz(path, advance)
        return
    read = {"lackey": _read_lackey, "csv": _read_csv, "champsim": _read_champsim}[format_name]
    with _opened(path) as (raw, file):
        yield from read(_Blocks(path, raw, file, advance))


class _Blocks:
    """A file's bytes in blocks, and where the next one starts."""

    def __init__(self, path: Path, raw: IO[bytes], file: IO[bytes], advance: Advance) -> None:
        self.name = "standard input" if path == STANDARD_INPUT else str(path)
        self.byte = 0
        self._raw, self._file, self._advance, self._told = raw, file, advance, 0

    def read(self) -> bytes:
        try:
            block = self._file.read(BLOCK_BYTES)
            if self._raw.seekable():
                place = self._raw.tell()
                self._advance(place - self._told)
                self._told = place
            return block
        except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
            raise StudyError(f"{self.name}: after byte {self.byte} of what is compressed in it: {error}") from None
        except OSError as error:
            raise StudyError(f"{self.name}: after byte {self.byte}: {error.strerror or error}") from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A file as it is and as it is read."""
    if path == STANDARD_INPUT:
        yield sys.stdin.buffer, sys.stdin.buffer
        return
    try:
        with open(path, "rb") as raw:
            opener = _OPENERS.get(path.suffix)
            yield raw, raw if opener is None else opener(raw)
    except FileNotFoundError:
        raise StudyError(f"{path}: there is no such file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise StudyError(f"{path}: {error.strerror}") from None


def _read_lackey(blocks: _Blocks) -> Iterator[Chunk]:
    expected = "`I  ADDRESS,SIZE`, ` L`, ` S` or ` M` likewise with a hexadecimal address, or valgrind's own `==` lines"
    yield from _read_lines(blocks, parsing.lackey_lines, expected, "valgrind's lackey, --trace-mem=yes")


def _read_csv(blocks: _Blocks) -> Iterator[Chunk]:
    expected = "`ADDRESS` or `KIND,ADDRESS`: KIND L, S, I, map or unmap, ADDRESS in decimal or 0x hexadecimal"
    yield from _read_lines(blocks, parsing.csv_lines, expected, "CSV")


def _read_lines(blocks: _Blocks, parse: Callable[..., tuple[int, int, int]], expected: str, what: str) -> Iterator[Chunk]:
    """Text in whole lines. A line that can't be read is named by its number and its first byte, both from 1 on."""
    line, rest, found = 1, b"", False
    ended = False
    while not ended:
        block = blocks.read()
        ended = not block
        text = rest + block + (b"\n" if ended and rest else b"")
        cut = text.rfind(b"\n") + 1
        rest = text[cut:]
        if len(rest) > BLOCK_BYTES:
            raise StudyError(f"{blocks.name}: line {line}, byte {blocks.byte + 1}: a line without end; expected {expected}")
        text = text[:cut]
        if not text:
            continue
        room = len(text) // 2 + 2
        addresses, kinds = np.empty(room, np.uint64), np.empty(room, np.uint8)
        count, lines, wrong = parse(parsing.buffer_of(text), addresses, kinds, line == 1)
        if wrong >= 0:
            content = text[wrong : text.index(b"\n", wrong)][:60].decode(errors="backslashreplace")
            where = f"line {line + lines}, byte {blocks.byte + wrong + 1}"
            raise StudyError(f"{blocks.name}: {where}: `{content}` is no line of {what}; expected {expected}")
        blocks.byte += len(text)
        line += lines
        if count:
            found = True
            yield Chunk(addresses[:count], kinds[:count])
    if not found:
        raise StudyError(f"{blocks.name}: no access in it; expected {expected}")


def _read_champsim(blocks: _Blocks) -> Iterator[Chunk]:
    rest, size = b"", CHAMPSIM_RECORD.itemsize
    while block := blocks.read():
        data = rest + block
        whole = len(data) // size * size
        rest = data[whole:]
        if whole:
            yield _champsim_chunk(np.frombuffer(data[:whole], CHAMPSIM_RECORD))
            blocks.byte += whole
    if rest or not blocks.byte:
        record = blocks.byte // size + 1
        raise StudyError(
            f"{blocks.name}: record {record}, byte {blocks.byte + 1}: {len(rest)} bytes where ChampSim's have {size}: "
            "the trace is truncated, or of another format"
        )


def _champsim_chunk(records: NDArray[np.void]) -> Chunk:
    """The fetch of each instruction, then what it loads, then what it stores."""
    columns = (records["ip"][:, None], records["source_memory"], records["destination_memory"])
    addresses = np.concatenate(columns, axis=1)
    kinds = np.broadcast_to(np.array([FETCH, *[LOAD] * 4, *[STORE] * 2], np.uint8), addresses.shape)
    used = addresses != 0
    used[:, 0] = True
    return Chunk(addresses[used].astype(np.uint64), kinds[used])


def _read_npz(path: Path, advance: Advance) -> Iterator[Chunk]:
    """`address`, unsigned or whole numbers, and `kind` if there is one, indices of kernel.KINDS."""
    if path == STANDARD_INPUT:
        raise StudyError("standard input: an NPZ file can't be streamed; give its name")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if "address.npy" not in names:
                raise StudyError(f"{path}: no array `address`; there are {', '.join(names) or 'none'}")
            kinds_file = archive.open("kind.npy") if "kind.npy" in names else None
            with archive.open("address.npy") as file:
                yield from _npy_chunks(path, file, kinds_file, advance)
    except FileNotFoundError:
        raise StudyError(f"{path}: there is no such file") from None
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise StudyError(f"{path}: not a whole NPZ file: {error}") from None
    except (IsADirectoryError, PermissionError) as error:
        raise StudyError(f"{path}: {error.strerror}") from None


def _npy_chunks(path: Path, file: IO[bytes], kinds_file: IO[bytes] | None, advance: Advance) -> Iterator[Chunk]:
    dtype, length = _npy_header(path, file, "address")
    if dtype.kind not in "ui":
        raise StudyError(f"{path}: `address` has type {dtype}, and should be of whole numbers")
    if kinds_file is not None:
        kinds_dtype, kinds_length = _npy_header(path, kinds_file, "kind")
        if kinds_dtype != np.uint8 or kinds_length != length:
            raise StudyError(f"{path}: `kind` is {kinds_dtype}[{kinds_length}], and should be uint8[{length}]")
    if length == 0:
        raise StudyError(f"{path}: no access in it")
    done = 0
    while done < length:
        count = min(BLOCK_BYTES // 8, length - done)
        addresses = np.frombuffer(_exactly(path, file, count * dtype.itemsize, done), dtype).astype(np.uint64)
        kinds = np.zeros(count, np.uint8)
        if kinds_file is not None:
            kinds = np.frombuffer(_exactly(path, kinds_file, count, done), np.uint8)
            if (kinds > UNMAP).any():
                index = int((kinds > UNMAP).argmax())
                raise StudyError(f"{path}: element {done + index}: kind {kinds[index]}; they go from 0 to {UNMAP}")
        yield Chunk(addresses, kinds)
        advance(count * dtype.itemsize)
        done += count


def _npy_header(path: Path, file: IO[bytes], name: str) -> tuple[np.dtype[Any], int]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _order, dtype = read(file)
    except ValueError as error:
        raise StudyError(f"{path}: `{name}`: {error}") from None
    if len(shape) != 1 or dtype.hasobject:
        raise StudyError(f"{path}: `{name}` has shape {shape}, and should have one dimension of numbers")
    return dtype, shape[0]


def _exactly(path: Path, file: IO[bytes], size: int, element: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise StudyError(f"{path}: truncated in the block that starts at element {element}")
    return data
