"""`capvisor corpus`: programs that are kept, because they found something once, executed again."""

import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from capvisor.campaign.corpus import (
    Content,
    Result,
    Share,
    Shown,
    content_of,
    examine,
    is_reducible,
    needed,
    operations_of,
    reduced,
    shown_by,
    signature_of,
    stepping_of,
    title_of,
    told_again,
)
from capvisor.cli import programs
from capvisor.cli.junit import Case, junit_xml
from capvisor.cli.options import json_option, paths_argument, seed_option
from capvisor.cli.output import check_writable, console, progress, table, write_json, write_text
from capvisor.cli.status import InputError, Status
from capvisor.dsl.errors import ProgramError
from capvisor.dsl.parser import parse
from capvisor.dsl.printer import print_program
from capvisor.dsl.syntax import Program

DEFAULT_FOLDER = Path("programs/regress")

_Command = TypeVar("_Command", bound=Callable[..., Any])

corpus_option = click.option(
    "--corpus",
    "folder",
    metavar="FOLDER",
    default=DEFAULT_FOLDER,
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where the programs are.",
)


@click.group()
def corpus() -> None:
    """Keep programs that found something, and execute them again.

    A corpus is a folder of programs, *.cap.
    """


def find(folder: Path) -> list[Path]:
    """The files of a corpus. Raises InputError where there is none, or nothing in it."""
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; `capvisor corpus add FILE --corpus {folder}` begins a corpus there")
    if not folder.is_dir():
        raise InputError(f"{folder}: a corpus is a folder of {programs.SUFFIX} files, and this is none")
    return list(programs.find((folder,)))


# -- list ------------------------------------------------------------------------------------------------------------------


@corpus.command("list")
@corpus_option
def show(folder: Path) -> int:
    """Show what is there, and what for.

    Sizes, behaviours (what the operations of a program do), the signature of a finding or else the first comment.
    Ends with status 64 if a file can't be read as a program.
    """
    rows: list[tuple[object, ...]] = []
    together: set[Shown] = set()
    broken = 0
    for path in find(folder):
        try:
            program = programs.read(path)
            behaviours = shown_by(program)
        except (InputError, ProgramError) as error:
            broken += 1
            rows.append((path, "-", "-", f"UNUSABLE: {str(error).splitlines()[0]}"))
            continue
        together |= behaviours
        rows.append((path, operations_of(program), len(behaviours), signature_of(program) or title_of(program)))
    out = console(is_final=True)
    out.print(table(("program", "operations", "behaviours", "what for"), rows, right=(1, 2)), soft_wrap=False)
    out.print(f"\n{_count(len(rows), 'program')}, {len(together)} behaviours{f', {broken} unusable' if broken else ''}")
    return Status.USAGE if broken else Status.OK


# -- add -------------------------------------------------------------------------------------------------------------------


@dataclass
class _Known:
    """What a corpus has already, and where."""

    contents: dict[Content, Path]
    signatures: dict[str, Path]
    names: set[str]

    @classmethod
    def of(cls, folder: Path) -> "_Known":
        """What is in a folder, if there is one."""
        known = cls({}, {}, set())
        if folder.is_dir():
            for path in sorted(folder.rglob(f"*{programs.SUFFIX}")):
                known.add(path, programs.read(path))
            known.names |= {path.name for path in folder.iterdir()}
        return known

    def add(self, path: Path, program: Program) -> None:
        """Know one more."""
        self.contents.setdefault(content_of(program), path)
        signature = signature_of(program)
        if signature is not None:
            self.signatures.setdefault(signature, path)
        self.names.add(path.name)

    def twin(self, program: Program) -> str | None:
        """Why a program is nothing new; None if it is."""
        same = self.contents.get(content_of(program))
        if same is not None:
            return f"{same} has the same operations"
        same = self.signatures.get(signature_of(program) or "")
        return None if same is None else f"{same} has the same signature, {signature_of(program)}"

    def free_name(self, path: Path) -> str:
        """A file's name, made unique."""
        stem, name, number = path.stem, f"{path.stem}{programs.SUFFIX}", 1
        while name in self.names:
            number += 1
            name = f"{stem}-{number}{programs.SUFFIX}"
        return name


@corpus.command()
@paths_argument
@corpus_option
@click.option("--failing", is_flag=True, help="Add programs that fail: findings that nobody has fixed yet.")
@click.option("--force", is_flag=True, help="Add what has the same operations or signature as another one too.")
def add(paths: tuple[Path, ...], folder: Path, failing: bool, force: bool) -> int:
    """Add programs: files, or folders of *.cap.

    They must pass on both implementations, or with --failing fail, and be none that is there already. Others are refused:
    status 1 if one that is to pass fails, else 64. Those that aren't refused are added all the same, formatted, each under
    its name or one like it.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: a corpus is a folder of {programs.SUFFIX} files, and this is none")
    found = [(path, programs.read(path)) for path in programs.find(paths)]
    known, inside, status = _Known.of(folder), folder.resolve(), Status.OK
    lines, accepted = [], []
    for path, program in found:
        if path.resolve().is_relative_to(inside):
            twin: str | None = "it is in this corpus"
        else:
            twin = None if force else known.twin(program)
        if twin is not None:
            lines.append(f"{path}: not added: {twin}")
            status = status or Status.USAGE
            continue
        result = examine(program)
        if result.passed is failing:
            status = Status.USAGE if failing and status is not Status.VIOLATION else Status.VIOLATION
            why = "it passes: leave out --failing" if failing else "it fails, and --failing wasn't given"
            lines.append(f"{path}: not added: {why}{''.join(_indented(path, result))}")
            continue
        target = folder / known.free_name(path)
        known.add(target, program)
        accepted.append((target, print_program(told_again(program, f"capvisor run {target}"))))
        note = ", which fails: so does `capvisor corpus run` until that is fixed" if failing else ""
        lines.append(f"{path}: added as {target}{note}{''.join(_indented(path, result))}")
    _write(folder, accepted)
    out = console(is_final=True)
    for line in lines:
        out.print(line)
    if len(found) > 1:
        out.print(f"\n{len(accepted)} of {len(found)} added")
    return status


def _write(folder: Path, files: Iterable[tuple[Path, str]]) -> None:
    """Write files, and the folder if it isn't there. Raises InputError."""
    for path, text in files:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"can't make the folder {folder}: {error.strerror or error}") from None
        write_text(path, text)


def _indented(path: Path, result: Result) -> Iterable[str]:
    """What is wrong with a program, on lines of their own."""
    return (f"\n  {path}:{message}" for message in result.messages)


# -- run -------------------------------------------------------------------------------------------------------------------


@corpus.command()
@corpus_option
@seed_option
@json_option
@click.option(
    "--junit", "junit_path", metavar="FILE", type=click.Path(path_type=Path), help="Also write the result as JUnit XML."
)
def run(folder: Path, seed: int, json_path: Path | None, junit_path: Path | None) -> int:
    """Execute all programs again, and judge them.

    On both implementations: states are compared, traps and assertions are held against what programs expect, and every step
    is judged as in a campaign, the fast path told what to do in the way in which the program was found.
    """
    paths = find(folder)
    for path in (json_path, junit_path):
        check_writable(path, paths)
    files = [programs.read(path) for path in paths]
    for program in files:
        stepping_of(program)
    results, cases, interrupted = [], [], False
    try:
        with progress("programs", len(files)) as advance:
            for program in files:
                start = time.monotonic()
                result = examine(program, seed)
                results.append(result)
                cases.append(_junit(result, time.monotonic() - start))
                advance(1)
    except KeyboardInterrupt:
        interrupted = True
    _print(results, len(files), seed, interrupted)
    content = {"corpus": str(folder), "seed": seed, "interrupted": interrupted, "programs": [_as_json(r) for r in results]}
    write_json(json_path, "corpus", content)
    if junit_path is not None:
        write_text(junit_path, junit_xml("corpus", cases))
    if not all(result.passed for result in results):
        return Status.VIOLATION
    return Status.INCONCLUSIVE if interrupted else Status.OK


def _print(results: list[Result], total: int, seed: int, interrupted: bool) -> None:
    out = console(is_final=True)
    columns = ("program", "operations", "traps", "assertions", "states compared", "stepping", "result")
    out.print(table(columns, [_row(result) for result in results], right=(1, 2, 3, 4)), soft_wrap=False)
    for result in results:
        if not result.passed:
            source = result.verdict.program.source
            out.print("")
            for message in result.messages:
                out.print(f"{source}:{message}")
            if not result.verdict.passed:
                chosen = ["--seed", str(seed)] if result.verdict.values else []
                out.print(f"  again: {shlex.join(['capvisor', 'run', source, *chosen, '--trace'])}")
    if interrupted:
        out.print(f"\ninterrupted after {len(results)} of {total} programs")
    out.print(f"\n{sum(result.passed for result in results)} of {len(results)} passed")


def _row(result: Result) -> tuple[object, ...]:
    verdict = result.verdict
    if result.passed:
        outcome = "passed"
    elif verdict.failure is not None:
        outcome = f"FAILED: {verdict.failure.kind}, line {verdict.failure.line}"
    else:
        assert result.failure is not None
        outcome = f"FAILED: {result.failure.signature}"
    stepping = result.stepping if result.judged else "-"
    numbers = (verdict.operations, verdict.traps, verdict.assertions, verdict.comparisons)
    return (verdict.program.source, *numbers, stepping, outcome)


def _junit(result: Result, seconds: float) -> Case:
    source = Path(result.verdict.program.source)
    return Case("corpus", source.stem, seconds, "\n".join(f"{source}:{message}" for message in result.messages))


def _as_json(result: Result) -> dict[str, Any]:
    verdict, failure = result.verdict, result.failure
    wrong = verdict.failure
    return {
        "program": verdict.program.source,
        "signature": signature_of(verdict.program),
        "values": verdict.values,
        "operations": verdict.operations,
        "traps": verdict.traps,
        "assertions": verdict.assertions,
        "states_compared": verdict.comparisons,
        "passed": result.passed,
        "failure": None if wrong is None else {"line": wrong.line, "kind": wrong.kind, "message": wrong.message},
        "judged": {
            "stepping": result.stepping if result.judged else None,
            "failure": None if failure is None else failure.signature,
        },
    }


# -- minimize --------------------------------------------------------------------------------------------------------------


@corpus.command()
@corpus_option
@click.option("--reduce", "reduce", is_flag=True, help="Also make failing programs smaller; seconds for each.")
@click.option("--write", is_flag=True, help="Do it, and not only say what would be done.")
def minimize(folder: Path, reduce: bool, write: bool) -> int:
    """Find programs that aren't needed.

    They are those that show nothing which others of the corpus don't show, in behaviours: an operation, why it was refused,
    and what its operands were like. Findings, which have a `# signature:`, stay in any case, as do programs that fail.
    """
    paths = find(folder)
    files = [programs.read(path) for path in paths]
    written: list[tuple[Path, str]] = []
    lines, shares = [], []
    with progress("programs", len(files)) as advance:
        for path, program in zip(paths, files, strict=True):
            result, kept = examine(program), program
            if reduce and not result.passed:
                text, why = _reduce(path, result)
                if text is None:
                    lines.append(f"{path}: not reduced: {why}")
                else:
                    kept = parse(text, str(path))
                    written.append((path, text))
                    sizes = f"from {operations_of(program)} to {_count(operations_of(kept), 'operation')}"
                    lines.append(f"{path}: {'reduced' if write else 'would be reduced'} {sizes}")
            stays = not result.passed or signature_of(kept) is not None
            shares.append(Share(str(path), shown_by(kept), operations_of(kept), stays))
            advance(1)
    staying = needed(shares)
    removed = [share for share in shares if share.name not in staying]
    for share in removed:
        others = _count(len(share.behaviours), "behaviour")
        lines.append(f"{share.name}: {'removed' if write else 'would be removed'}: others show its {others}")
    if write:
        _write(folder, written)
        _remove(Path(share.name) for share in removed)
    out = console(is_final=True)
    for line in lines:
        out.print(line)
    together = frozenset[Shown]().union(*(share.behaviours for share in shares))
    out.print(
        f"{_count(len(staying), 'program')} of {len(shares)} {'show' if len(staying) > 1 else 'shows'} "
        f"all {len(together)} behaviours"
    )
    if (removed or written) and not write:
        out.print("nothing was changed: --write does it")
    return Status.OK


def _reduce(path: Path, result: Result) -> tuple[str | None, str]:
    """The text of a smaller program; or None, and why there is none."""
    program = result.verdict.program
    if result.failure is None:
        return None, "it fails by what it expects, not by what both implementations do"
    if not is_reducible(program):
        return None, "it has assertions or `any` values, which would be lost"
    text = reduced(program, result.failure, f"capvisor run {path}")
    return text, "it is as small as it gets"


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            path.unlink()
        except OSError as error:
            raise InputError(f"can't remove {path}: {error.strerror or error}") from None


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
