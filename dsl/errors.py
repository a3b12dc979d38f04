"""What can be wrong with a program, said to the person who wrote it."""

from capvisor.dsl.syntax import Position


class ProgramError(Exception):
    """A program that can't be run: what is wrong, and where.

    `str()` of it is `file:line:column: message`, followed by the line with a mark under the place.
    """

    def __init__(self, message: str, position: Position, source: str = "<program>", text: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.position = position
        self.source = source
        self.text = text

    def __str__(self) -> str:
        where = f"{self.source}:{self.position.line}:{self.position.column}: {self.message}"
        lines = self.text.split("\n")
        if not 1 <= self.position.line <= len(lines):
            return where
        line = lines[self.position.line - 1].replace("\t", " ").rstrip("\r")
        return f"{where}\n    {line}\n    {' ' * (self.position.column - 1)}^"


class NoValuesError(ProgramError):
    """No values were found for a program's `any`: there may be some nevertheless."""
