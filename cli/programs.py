"""Finding and reading programs."""

import glob
from collections.abc import Iterator
from pathlib import Path

from capvisor.cli.status import InputError
from capvisor.dsl.parser import parse
from capvisor.dsl.syntax import Program

SUFFIX = ".cap"
LARGEST_BYTES = 1 << 20


def find(paths: tuple[Path, ...]) -> Iterator[Path]:
    """The files that paths name: files as they are, folders and patterns for all that is in them, in order of names."""
    for path in paths:
        if path.is_dir():
            found = sorted(path.rglob(f"*{SUFFIX}"))
            if not found:
                raise InputError(f"{path}: no {SUFFIX} files in this folder")
            yield from found
        elif not path.exists() and glob.has_magic(str(path)):
            matched = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
            if not matched:
                raise InputError(f"{path}: no file is matched by this pattern")
            yield from matched
        else:
            yield path


def read_text(path: Path) -> str:
    """The text of a program's file, its line ends as they are."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    if len(content) > LARGEST_BYTES:
        raise InputError(f"{path}: larger than {LARGEST_BYTES >> 20} MiB: this is no program")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file (UTF-8)") from None


def read_any(path: Path) -> Program:
    """The program in a file, of a machine or of a system. Raises InputError or ProgramError."""
    return parse(read_text(path), str(path))


def read(path: Path) -> Program:
    """The program of a machine that is in a file. Raises InputError or ProgramError."""
    program = read_any(path)
    if program.system is not None:
        kind = program.system.kind
        raise InputError(
            f"{path}: a program of a system, which `capvisor run` runs; this verb takes programs of a machine. "
            f"Systems are fuzzed by `capvisor fuzz --profile {kind}`; theorems on them are proved by `capvisor prove {kind}`"
        )
    return program
