"""Who the tenants of a density study are: from programs, directory trees, running processes, and manifests in TOML."""

import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from capvisor.study.density import TenantKind
from capvisor.study.elf import ElfObject, is_elf
from capvisor.study.errors import StudyError
from capvisor.study.libraries import Libraries, ObjectStore, Problem, elf_files, load
from capvisor.study.placement import overlapping

MANIFEST_SUFFIX = ".toml"
MOST_OF_A_KIND = 1_000_000
_KEYS = ("extends", "programs", "libraries", "trees", "count")
_MAPPING = re.compile(r"([0-9a-f]+)-[0-9a-f]+ \S+ [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) (\d+)\s*(/.*)?")
_DELETED = " (deleted)"


@dataclass(frozen=True)
class Description:
    """A tenant as it was asked for. `mapped` says that `programs` are all that it loads, as is known of a process."""

    name: str
    programs: tuple[Path, ...] = ()
    libraries: tuple[Path, ...] = ()
    trees: tuple[Path, ...] = ()
    count: int = 1
    is_mapped: bool = False


def describe(arguments: Iterable[str], problem: Problem) -> list[Description]:
    """The tenants of arguments: a program, a directory tree or a manifest, the first two with `:COUNT` behind if several."""
    found: list[Description] = []
    for argument in arguments:
        path, count = _counted(argument)
        if path.suffix == MANIFEST_SUFFIX and not path.is_dir():
            found += Manifest(problem).read(path)
        elif not path.exists():
            problem(f"{path}: no such file or directory")
        elif path.is_dir():
            found.append(Description(path.resolve().name, trees=(path,), count=count))
        else:
            found.append(Description(path.name, programs=(path,), count=count))
    return found


def _counted(argument: str) -> tuple[Path, int]:
    path, colon, number = argument.rpartition(":")
    if colon and path and number.isdecimal() and 0 < int(number) <= MOST_OF_A_KIND and not Path(argument).exists():
        return Path(path), int(number)
    return Path(argument), 1


def process(number: int, problem: Problem, proc: Path = Path("/proc")) -> list[Description]:
    """The tenant that a running process is, none where it can't be read: the ELF files that it has mapped."""
    folder = proc / str(number)
    try:
        lines = (folder / "maps").read_text(errors="surrogateescape").splitlines()
        executable = Path(os.readlink(folder / "exe"))
        name = (folder / "comm").read_text().strip()
    except OSError as error:
        problem(f"process {number}: {error.strerror or error}")
        return []
    mapped: dict[Path, int] = {}
    for line in lines:
        matched = _MAPPING.fullmatch(line)
        if matched is None or matched[5] is None or matched[4] == "0":
            continue
        path = Path(matched[5])
        if path.is_relative_to("/dev"):  # Memory that processes share, which is no object.
            continue
        if matched[5].endswith(_DELETED):
            problem(f"process {number}: {matched[5].removesuffix(_DELETED)} is mapped, but has been deleted or replaced")
        elif not path.exists():
            problem(f"process {number}: {path} is mapped, but isn't found from here")
        elif path.is_file() and is_elf(path):
            if path.stat().st_ino != int(matched[4]):
                problem(f"process {number}: {path} is mapped, but has been replaced")
            else:
                mapped[path] = int(matched[1], 16)
    # Libraries are mapped downwards, as they are loaded.
    libraries = sorted((path for path in mapped if path != executable), key=lambda path: -mapped[path])
    programs = ([executable] if executable in mapped else []) + libraries
    if not programs:
        problem(f"process {number}: no ELF file is mapped")
        return []
    return [Description(name, programs=tuple(programs), is_mapped=True)]


class Manifest:
    """Reads manifests, each once; tenants of all of them may extend each other."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._read: set[Path] = set()
        self._tables: dict[str, tuple[Path, dict[str, Any]]] = {}

    def read(self, path: Path) -> list[Description]:
        """The tenants of a manifest and of those that it includes; `problem` is told of what can't be used."""
        self._read_file(path, ())
        found = []
        for name in self._tables:
            try:
                described = self._described(name, ())
            except StudyError as error:
                self._problem(str(error))
                continue
            if described.count:
                found.append(described)
        return found

    def _read_file(self, path: Path, including: tuple[Path, ...]) -> None:
        real = path.resolve()
        if real in [each.resolve() for each in including]:
            chain = " -> ".join(str(each) for each in (*including[[e.resolve() for e in including].index(real) :], path))
            self._problem(f"{including[-1]}: a cycle of manifests: {chain}")
            return
        if real in self._read:
            return
        self._read.add(real)
        try:
            document = tomllib.loads(path.read_text())
        except OSError as error:
            self._problem(f"{path}: {error.strerror or error}")
            return
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            self._problem(f"{path}: not TOML: {error}")
            return
        for name in document.keys() - {"include", "tenant"}:
            self._problem(f"{path}: unknown `{name}`: a manifest has `include` and tables `[tenant.NAME]`")
        for each in self._texts(document.get("include", []), f"{path}: `include`"):
            self._read_file(path.parent / each, (*including, path))
        tenants = document.get("tenant", {})
        if not isinstance(tenants, dict) or not all(isinstance(each, dict) for each in tenants.values()):
            self._problem(f"{path}: tenants should be tables `[tenant.NAME]`")
            return
        for name, table in tenants.items():
            if name in self._tables:
                self._problem(f"{path}: tenant `{name}` is also in {self._tables[name][0]}")
            else:
                self._tables[name] = path, table

    def _texts(self, value: Any, where: str) -> list[str]:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
            self._problem(f"{where} should be a list of texts, and is {value!r}")
            return []
        return values

    def _described(self, name: str, extending: tuple[str, ...]) -> Description:
        path, table = self._tables[name]
        where = f"{path}: tenant `{name}`"
        if name in extending:
            cycle = extending[extending.index(name) :]
            first = cycle.index(min(cycle))  # the same message, whichever of them is asked for
            names = (*cycle[first:], *cycle[: first + 1])
            raise StudyError(f"{self._tables[names[0]][0]}: tenant `{names[0]}`: a cycle of tenants: {' -> '.join(names)}")
        for key in table.keys() - set(_KEYS):
            self._problem(f"{where}: unknown `{key}`: there are {', '.join(_KEYS)}")
        result = Description(name)
        for base in self._texts(table.get("extends", []), f"{where}: `extends`"):
            if base not in self._tables:
                raise StudyError(f"{where}: extends `{base}`, which no manifest has")
            inherited = self._described(base, (*extending, name))
            result = _added(result, inherited.programs, inherited.libraries, inherited.trees)
        lists = [
            self._paths(table.get(key, []), path.parent, f"{where}: `{key}`") for key in ("programs", "libraries", "trees")
        ]
        result = _added(result, *lists)
        count = table.get("count", 1)
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MOST_OF_A_KIND:
            raise StudyError(f"{where}: `count` should be a number from 0 to {MOST_OF_A_KIND}, and is {count!r}")
        if count and not table.keys() & {"extends", "programs", "libraries", "trees"}:
            raise StudyError(f"{where}: it has no programs, libraries or trees")
        return replace(result, count=count)

    def _paths(self, value: Any, folder: Path, where: str) -> tuple[Path, ...]:
        """The files that are named or matched, relative ones from the manifest's folder."""
        found: list[Path] = []
        for text in self._texts(value, where):
            path = folder / Path(text).expanduser()
            if any(each in text for each in "*?["):
                anchor = Path(path.anchor or ".")
                matches = sorted(anchor.glob(str(path.relative_to(anchor) if path.anchor else path)))
                if not matches:
                    self._problem(f"{where}: nothing is called {path}")
                found += matches
            else:
                found.append(path)
        return tuple(found)


def _added(before: Description, programs: Sequence[Path], libraries: Sequence[Path], trees: Sequence[Path]) -> Description:
    return replace(
        before,
        programs=(*before.programs, *programs),
        libraries=(*before.libraries, *libraries),
        trees=(*before.trees, *trees),
    )


def resolve(
    descriptions: Iterable[Description], store: ObjectStore, libraries: Libraries, problem: Problem
) -> list[TenantKind]:
    """What each tenant loads. `problem` is told of what can't be, and a tenant of which nothing is left is left out."""
    kinds: list[TenantKind] = []
    for each in descriptions:
        objects = _objects(each, store, libraries, problem)
        both = overlapping([store.objects[index] for index in objects])
        if both is not None:
            problem(f"tenant `{each.name}`: {both[0].path} and {both[1].path} have fixed addresses that overlap")
        elif objects:
            kinds.append(TenantKind(each.name, objects, each.count))
    return kinds


def _objects(each: Description, store: ObjectStore, libraries: Libraries, problem: Problem) -> tuple[int, ...]:
    if each.is_mapped:
        readable = set()
        for path in each.programs:
            try:
                readable.add(store.index(path))
            except StudyError as error:
                problem(str(error))
        return load(each.programs, store, libraries, problem, readable)
    roots = [*each.programs, *each.libraries]
    known = dict(libraries.known)
    for tree in each.trees:
        found = _tree(tree, store, problem)
        roots += found
        for path in found:
            known.setdefault(path.name, path)
            known.setdefault(store.objects[store.index(path)].soname or path.name, path)
    return load(roots, store, replace(libraries, known=known), problem)


def _tree(folder: Path, store: ObjectStore, problem: Problem) -> list[Path]:
    """The objects in a directory tree, programs first."""
    if not folder.is_dir():
        problem(f"{folder}: no such directory")
        return []
    found, before = [], len(problem.messages)
    for path in elf_files(folder):
        try:
            store.index(path)
        except StudyError as error:
            problem(str(error))
        else:
            found.append(path)
    if not found and len(problem.messages) == before:
        problem(f"{folder}: there is no ELF file in it")
    return sorted(found, key=lambda path: not _is_program(store.objects[store.index(path)]))


def _is_program(elf: ElfObject) -> bool:
    return elf.is_fixed or elf.interpreter is not None
