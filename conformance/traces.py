"""Files of golden instruction traces: one program a line, a JSON list of the steps that a hart took.

What a step tells is declared here, read from a file and written to one. The format is that of the traces made from the
emulators that are generated from the Sail model (CTSRD-CHERI/sail-cheri-riscv); some are in tests/vectors/.
"""

import gzip
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from capvisor.conformance.errors import VectorFileError
from capvisor.files import write_whole
from capvisor.spec.encodings import WORD_MASK
from capvisor.spec.formats import FORMATS, CapabilityFormat
from capvisor.spec.registers import REGISTER_COUNT

TRACE_SUFFIXES = (".jsonl.gz", ".jsonl")
MACHINES = {"rv64": "cc128", "rv32": "cc64"}
"""The format of the machine that a file's name begins with."""

START = 0x8000_0000
"""Where the program counter and memory begin."""
MEMORY_BYTES = 8 << 20

READ, WRITE = "->", "<-"
_KEYS = ("pc", "insn", "asm", "reg", "mem", "tags", "npc", "trap")
_FIELDS = ("tag", "sealed", "perms", "otype", "address", "base", "length")
_NAMES = {f"x{number}": number for number in range(1, REGISTER_COUNT)}
_ADDRESS_DIGITS = 16
"""How many digits a next pc has, and the pc of an instruction that wasn't fetched, on either machine."""


class TraceFileError(VectorFileError):
    """A file that can't be used as golden traces: which, where in it, and why."""


class RegisterValue(NamedTuple):
    """What a trace tells of a register: permissions as CGetPerm and the object type as CGetType return them.

    The length is top - base modulo 2**(XLEN + 1): up to 2**XLEN, more only where bits without a tag have their top below.
    """

    tag: bool
    sealed: bool
    permissions: int
    otype: int
    address: int
    base: int
    length: int


class DataAccess(NamedTuple):
    """Bytes that were read or written, as one little-endian number."""

    direction: str
    address: int
    size_bytes: int
    value: int


class TagAccess(NamedTuple):
    """The tag of a granule that was read or written."""

    direction: str
    address: int
    tag: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction: `assembly` is None, and the word 0, where PCC didn't authorise fetching it."""

    pc: int
    word: int
    assembly: str | None
    registers: dict[int, RegisterValue]
    """The registers that were written, by number; never register 0."""
    data: tuple[DataAccess, ...]
    tags: tuple[TagAccess, ...]
    next_pc: int
    trapped: bool


Program = tuple[Step, ...]


@dataclass(frozen=True)
class TraceFile:
    """Golden traces of one machine. Programs are independent: each begins at reset. Program n is the file's line n."""

    name: str
    format: CapabilityFormat
    programs: tuple[Program, ...]

    @property
    def steps(self) -> int:
        return sum(len(program) for program in self.programs)


def is_trace_name(path: Path) -> bool:
    """Whether a file's name says that it has traces."""
    return path.name.endswith(TRACE_SUFFIXES)


def format_of_name(path: Path) -> str | None:
    """The format that a file's name, which begins with rv64 or rv32, says; None for any other name."""
    return next((name for machine, name in MACHINES.items() if path.name.startswith(machine)), None)


# -- reading ---------------------------------------------------------------------------------------------------------------


def read(path: Path, format_name: str | None = None) -> TraceFile:
    """Read a file; its name says the machine, unless a format is given. Raises TraceFileError."""
    name = format_name or format_of_name(path)
    if name is None:
        raise TraceFileError(
            f"{path}: of which machine are these traces? Files are named {' or '.join(f'{m}...' for m in MACHINES)}, "
            "or say --format"
        )
    fmt = FORMATS[name]
    lines = _text(path).split("\n")
    if not lines[-1]:
        del lines[-1]
    if not lines:
        raise TraceFileError(f"{path}: no programs: the file is empty")
    return TraceFile(path.name, fmt, tuple(_program(f"{path}:{n}", fmt, line) for n, line in enumerate(lines, start=1)))


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content) if content else b""
        return content.decode()
    except FileNotFoundError:
        raise TraceFileError(f"{path}: no such file") from None
    except gzip.BadGzipFile as error:
        raise TraceFileError(f"{path}: not a gzip file, or a damaged one: {error}") from None
    except OSError as error:
        raise TraceFileError(f"{path}: can't be read: {error.strerror or error}") from None
    except EOFError:
        raise TraceFileError(f"{path}: a truncated gzip file: it ends in the middle") from None
    except zlib.error as error:
        raise TraceFileError(f"{path}: a damaged gzip file: {error}") from None
    except UnicodeDecodeError as error:
        raise TraceFileError(f"{path}: not a text file: {error}") from None


class _StepError(Exception):
    """What is wrong with a part of a step; where the step is gets known further out."""


def _program(where: str, fmt: CapabilityFormat, line: str) -> Program:
    try:
        rows = json.loads(line, object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        raise TraceFileError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise TraceFileError(f"{where}: not a list of steps: nested too deeply") from None
    except (ValueError, _StepError) as error:  # ValueError: a number of too many digits
        raise TraceFileError(f"{where}: {error}") from None
    if not isinstance(rows, list):
        raise TraceFileError(f"{where}: expected a JSON list of steps, found {_kind(rows)}")
    if not rows:
        raise TraceFileError(f"{where}: a program without steps")
    steps = []
    for number, row in enumerate(rows, start=1):
        try:
            steps.append(_step(fmt, row))
        except _StepError as problem:
            raise TraceFileError(f"{where}: step {number}: {problem}") from None
    return tuple(steps)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _value in pairs]
        raise _StepError(f"the key `{next(name for name in names if names.count(name) > 1)}` is there twice")
    return found


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _step(fmt: CapabilityFormat, row: Any) -> Step:
    _check_keys(row, _KEYS, "a step")
    if not isinstance(row["asm"], str | None):
        raise _StepError(f"asm: expected text or null, found {_kind(row['asm'])}")
    if not isinstance(row["reg"], dict):
        raise _StepError(f"reg: expected an object, found {_kind(row['reg'])}")
    trapped = _flag("trap", row["trap"])
    if row["asm"] is None and not trapped:
        raise _StepError("asm: null means that the instruction wasn't fetched, but trap is 0")
    return Step(
        _number("pc", row["pc"], fmt.address_mask),
        _number("insn", row["insn"], WORD_MASK),
        row["asm"],
        {_register(name): _register_value(fmt, f"reg {name}", value) for name, value in row["reg"].items()},
        tuple(_data_access(fmt, access) for access in _list("mem", row["mem"])),
        tuple(_tag_access(fmt, access) for access in _list("tags", row["tags"])),
        _number("npc", row["npc"], fmt.address_mask),
        trapped,
    )


def _check_keys(row: Any, keys: tuple[str, ...], what: str) -> None:
    if not isinstance(row, dict):
        raise _StepError(f"{what}: expected an object, found {_kind(row)}")
    unknown = [f"`{key[:40]}`" for key in row if key not in keys]
    missing = [f"`{key}`" for key in keys if key not in row]
    if unknown or missing:
        complaints = [f"unknown {', '.join(unknown)}"] if unknown else []
        complaints += [f"missing {', '.join(missing)}"] if missing else []
        raise _StepError(f"{what} has the wrong keys: {'; '.join(complaints)}")


def _number(key: str, value: Any, highest: int) -> int:
    """A number in hexadecimal with 0x, up to `highest`."""
    if not isinstance(value, str):
        raise _StepError(f"{key}: expected text such as 0x1F, found {_kind(value)}")
    digits = value[2:]
    if value[:2] != "0x" or not (digits.isascii() and digits.isalnum()) or len(digits) > 64:
        raise _StepError(f"{key}: `{value[:40]}` is no number such as 0x1F")
    try:
        number = int(digits, 16)
    except ValueError:
        raise _StepError(f"{key}: `{value[:40]}` is no number such as 0x1F") from None
    if number > highest:
        raise _StepError(f"{key}: {value} is too large for this machine: the most is {highest:#x}")
    return number


def _flag(key: str, value: Any) -> bool:
    if type(value) is not int or value not in (0, 1):
        raise _StepError(f"{key}: expected 0 or 1")
    return value == 1


def _list(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _StepError(f"{key}: expected a list, found {_kind(value)}")
    return value


def _register(name: str) -> int:
    if name not in _NAMES:
        raise _StepError(f"reg: `{name[:40]}` is no register that can be written: they are x1 to x{REGISTER_COUNT - 1}")
    return _NAMES[name]


def _register_value(fmt: CapabilityFormat, key: str, value: Any) -> RegisterValue:
    _check_keys(value, _FIELDS, key)
    return RegisterValue(
        _flag(f"{key} tag", value["tag"]),
        _flag(f"{key} sealed", value["sealed"]),
        _number(f"{key} perms", value["perms"], fmt.permissions_mask),
        _number(f"{key} otype", value["otype"], fmt.address_mask),
        _number(f"{key} address", value["address"], fmt.address_mask),
        _number(f"{key} base", value["base"], fmt.address_mask),
        _number(f"{key} length", value["length"], 2 * fmt.address_space - 1),
    )


def _triple(key: str, access: Any) -> tuple[str, Any, Any]:
    if not isinstance(access, list) or len(access) != 3 or access[0] not in (READ, WRITE):
        raise _StepError(f'{key}: expected ["{READ}" or "{WRITE}", address, value]')
    return access[0], access[1], access[2]


def _data_access(fmt: CapabilityFormat, access: Any) -> DataAccess:
    direction, address_text, text = _triple("mem", access)
    address = _number("mem address", address_text, fmt.address_mask)
    value = _number("mem value", text, (1 << 8 * fmt.capability_bytes) - 1)
    size_bytes, odd = divmod(len(text) - 2, 2)
    if odd or size_bytes.bit_count() != 1 or size_bytes > fmt.capability_bytes:
        raise _StepError(f"mem value: {text} has {len(text) - 2} digits: expected two a byte, of an access of this machine")
    return DataAccess(direction, address, size_bytes, value)


def _tag_access(fmt: CapabilityFormat, access: Any) -> TagAccess:
    direction, address_text, text = _triple("tags", access)
    address = _number("tags address", address_text, fmt.address_mask)
    if text not in ("0", "1"):
        raise _StepError('tags: expected the tag as "0" or "1"')
    if address % fmt.capability_bytes:
        raise _StepError(f"tags: {address:#x} isn't where a granule of {fmt.capability_bytes} bytes begins")
    return TagAccess(direction, address, text == "1")


# -- writing ---------------------------------------------------------------------------------------------------------------


def render(fmt: CapabilityFormat, program: Program) -> str:
    """The line of a file that says what a program did."""
    return json.dumps([_row(fmt, step) for step in program], separators=(",", ":"))


def write(path: Path, fmt: CapabilityFormat, programs: Iterable[Program]) -> None:
    """Write a file, compressed if its name says so; it appears whole or not at all. Raises OSError.

    The same programs give the same bytes: the compressed file says no time.
    """
    content = "".join(f"{render(fmt, program)}\n" for program in programs).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    write_whole(path, lambda file: file.write(content))


def _hex(value: int, bits: int) -> str:
    return f"0x{value:0{-(-bits // 4)}X}"


def _row(fmt: CapabilityFormat, step: Step) -> dict[str, Any]:
    width = fmt.address_width
    return {
        "pc": _hex(step.pc, 4 * _ADDRESS_DIGITS if step.assembly is None else width),
        "insn": _hex(step.word, 32),
        "asm": step.assembly,
        "reg": {f"x{number}": _register_row(fmt, value) for number, value in step.registers.items()},
        "mem": [[each.direction, _hex(each.address, width), _hex(each.value, 8 * each.size_bytes)] for each in step.data],
        "tags": [[each.direction, _hex(each.address, width), str(int(each.tag))] for each in step.tags],
        "npc": _hex(step.next_pc, 4 * _ADDRESS_DIGITS),
        "trap": int(step.trapped),
    }


def _register_row(fmt: CapabilityFormat, value: RegisterValue) -> dict[str, Any]:
    width = fmt.address_width
    return {
        "tag": int(value.tag),
        "sealed": int(value.sealed),
        "perms": _hex(value.permissions, fmt.software_permissions_shift + fmt.software_permissions.width),
        "otype": _hex(value.otype, width),
        "address": _hex(value.address, width),
        "base": _hex(value.base, width),
        "length": _hex(value.length, width + 4),
    }
