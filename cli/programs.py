"""Finding and reading programs."""

from collections.abc import Iterator
from pathlib import Path

from capvisor.cli.status import InputError
from capvisor.dsl.parser import parse
from capvisor.dsl.syntax import Program

SUFFIX = ".cap"
LARGEST_BYTES = 1 << 20


def find(paths: tuple[Path, ...]) -> Iterator[Path]:
    """The files that paths name: files as they are, folders for all programs in them, in the order of their names."""
    for path in paths:
        if path.is_dir():
            found = sorted(path.rglob(f"*{SUFFIX}"))
            if not found:
                raise InputError(f"{path}: no {SUFFIX} files in this folder")
            yield from found
        else:
            yield path


def read_text(path: Path) -> str:
    """The text of a program's file."""
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise InputError(f"{path}: larger than {LARGEST_BYTES >> 20} MiB: this is no program")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file (UTF-8)") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None


def read(path: Path) -> Program:
    """The program in a file. Raises InputError or ProgramError."""
    return parse(read_text(path), str(path))
