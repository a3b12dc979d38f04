"""What `pytest_plugin` collects: a program's file, and the test that it is."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any as AnyType

import pytest

from capvisor.dsl.campaign import fuzz
from capvisor.dsl.draw import fix
from capvisor.dsl.errors import ProgramError
from capvisor.dsl.parser import parse
from capvisor.dsl.runner import Failure, run
from capvisor.dsl.syntax import Any, Program
from capvisor.dsl.system_runner import run_system

SEED = 0
"""Of the values that are drawn: a test is the same every time."""


class ProgramFile(pytest.File):
    """A file with a program."""

    def collect(self) -> Iterator["ProgramItem"]:
        """The one test that a program is. Raises CollectError with the parser's message where it is none."""
        source = _shown(self.path, self.config.invocation_params.dir)
        try:
            program = parse(self.path.read_bytes().decode("utf-8-sig"), source)
        except ProgramError as error:
            raise self.CollectError(str(error)) from None
        except UnicodeDecodeError:
            raise self.CollectError(f"{source}: not a text file (UTF-8)") from None
        except OSError as error:
            raise self.CollectError(f"{source}: can't be read: {error.strerror or error}") from None
        yield ProgramItem.from_parent(self, name=self.path.stem, program=program)


class ProgramItem(pytest.Item):
    """A program as a test: its expectations and assertions hold, on implementations that agree."""

    def __init__(self, *, program: Program, **arguments: AnyType) -> None:
        super().__init__(**arguments)
        self.program = program

    def runtest(self) -> None:
        """Run the program on both implementations; where it has `any` values, then in many lanes too.

        A program of a system runs once, on the reference.
        """
        program = self.program
        try:
            values = fix(program, {}, SEED)
            verdict = run(program, values) if program.system is None else run_system(program, values)
            if verdict.failure is not None:
                raise ProgramFailedError(program, verdict.failure, verdict.values)
            lanes = self.config.getoption("cap_lanes")
            if lanes and program.system is None and any(isinstance(let.value, Any) for let in program.lets):
                self._fuzz(lanes)
        except ProgramError as error:
            raise ProgramFailedError(program, Failure(error.position.line, "can't be run", error.message)) from None

    def _fuzz(self, lanes: int) -> None:
        campaign = fuzz(self.program, lanes, SEED)
        if campaign.interrupted:
            raise KeyboardInterrupt
        for finding in campaign.findings:
            raise ProgramFailedError(self.program, finding.failure, finding.values, (finding.lanes, campaign.lanes))
        for line in campaign.untested:
            text = f"line {line}: its condition held in none of {campaign.lanes} lanes, so that it has tested nothing"
            self.add_report_section("call", "capvisor", text)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: AnyType = None) -> AnyType:
        """A failure of the program without a traceback; anything else as pytest shows it."""
        if isinstance(excinfo.value, ProgramFailedError):
            return excinfo.value.report()
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where the test is, and what it is called."""
        return self.path, 0, self.program.source


@dataclass(frozen=True)
class Place:
    """Where a program failed, as pytest's summaries and other plugins ask for it."""

    path: str
    lineno: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.lineno}: {self.message}"


@dataclass(frozen=True)
class Report:
    """A failure as pytest shows it: the text, and the place for its summaries."""

    text: str
    reprcrash: Place

    def toterminal(self, writer: AnyType) -> None:
        """Write the text to pytest's terminal writer."""
        writer.line(self.text)

    def __str__(self) -> str:
        return self.text


class ProgramFailedError(Exception):
    """A program failed: where and how, with which values, and in how many lanes of how many if in several."""

    def __init__(
        self,
        program: Program,
        failure: Failure,
        values: Mapping[str, int] | None = None,
        lanes: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(f"{program.source}:{failure.line}: {failure.kind}: {failure.text}")
        self.program = program
        self.failure = failure
        self.values = values or {}
        self.lanes = lanes

    def report(self) -> Report:
        """What is shown: place and kind, the line itself, the values, and the command that shows it again."""
        program, line = self.program, self.failure.line
        # The values of the program's `any`s: those of other lets follow.
        drawn = {
            let.name: self.values[let.name] for let in program.lets if let.name in self.values and isinstance(let.value, Any)
        }
        shared = "" if self.lanes is None else f" ({self.lanes[0]} of {self.lanes[1]} lanes)"
        parts = [f"{self}{shared}"]
        lines = program.text.splitlines()
        if 1 <= line <= len(lines):
            parts.append(f"    {lines[line - 1].strip()}")
        if drawn:
            parts.append(f"  with: {', '.join(f'{name} = {value:#x}' for name, value in drawn.items())}")
        settings = [word for name, value in drawn.items() for word in ("--set", f"{name}={value:#x}")]
        parts.append(f"  again: {shlex.join(['capvisor', 'run', program.source, *settings])}")
        return Report("\n".join(parts), Place(program.source, line, f"{self.failure.kind}: {self.failure.text}"))


def _shown(path: Path, folder: Path) -> str:
    """A path as a user would name it in a folder."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
