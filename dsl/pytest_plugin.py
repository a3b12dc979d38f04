"""The pytest plugin: programs (`*.cap`) are collected as tests.

What users' runs always load is this module alone; the language and numpy are loaded when there is a program to collect.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from capvisor.dsl.pytest_items import ProgramFile

SUFFIX = ".cap"
DEFAULT_LANES = 256
_HEAD_BYTES = 4096


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the plugin's options."""
    group = parser.getgroup("capvisor", "capvisor: programs of guest operations")
    group.addoption(
        "--no-cap", action="store_false", default=True, dest="cap_collect", help=f"Don't collect *{SUFFIX} files as tests."
    )
    group.addoption(
        "--cap-lanes",
        type=_lanes,
        default=DEFAULT_LANES,
        metavar="N",
        help="How many choices of a program's `any` values to try; 0: a single one. [default: %(default)s]",
    )
    parser.addini("cap_files", f"Whether *{SUFFIX} files are collected as tests.", type="bool", default=True)


def _lanes(text: str) -> int:
    """The argument of --cap-lanes. Raises ValueError, which pytest reports, where it is no number from 0 on."""
    lanes = int(text)
    if lanes < 0:
        raise ValueError(text)
    return lanes


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> "ProgramFile | None":
    """Collect a program as a test, unless that is switched off or the file can't be one."""
    if file_path.suffix != SUFFIX or not parent.config.getoption("cap_collect") or not parent.config.getini("cap_files"):
        return None
    if _is_binary(file_path):
        return None
    from capvisor.dsl.pytest_items import ProgramFile  # noqa: PLC0415 -- only where there is a program

    return ProgramFile.from_parent(parent, path=file_path)


def _is_binary(path: Path) -> bool:
    """Whether a file is no text, such as a capture of network packets, which has the same suffix."""
    try:
        with path.open("rb") as file:
            return b"\0" in file.read(_HEAD_BYTES)
    except OSError:
        return False
