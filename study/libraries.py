"""Which library a name stands for, as a dynamic linker finds it, and what a program loads. Nothing is executed.

Sources: ld.so(8), "DESCRIPTION" and "Dynamic string tokens"; gABI, "Shared Object Dependencies"; glibc,
sysdeps/generic/dl-cache.h (the form of ld.so.cache).
"""

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from capvisor.study.elf import ElfObject, is_elf, is_loadable_here, read_elf
from capvisor.study.errors import StudyError

CACHE = Path("/etc/ld.so.cache")
_LIBRARY_FOLDER = "x86_64-linux-gnu"
DEFAULT_FOLDERS = tuple(
    Path(each)
    for each in (f"/lib/{_LIBRARY_FOLDER}", f"/usr/lib/{_LIBRARY_FOLDER}", "/lib64", "/usr/lib64", "/lib", "/usr/lib")
)
_CACHE_MAGIC = b"glibc-ld.so.cache1.1"
_CACHE_HEADER_BYTES, _CACHE_ENTRY = 48, struct.Struct("<iIIIQ")
_X86_64_LIBRARY = 0x0303


class ObjectStore:
    """Files that have been read, each once, whatever it is called."""

    def __init__(self) -> None:
        self.objects: list[ElfObject] = []
        self._by_file: dict[tuple[int, int], int] = {}

    def index(self, path: Path) -> int:
        """The place in `objects` of the one in a file. Raises StudyError."""
        try:
            status = path.stat()
        except OSError as error:
            raise StudyError(f"{path}: {error.strerror or error}") from None
        key = status.st_dev, status.st_ino
        if key not in self._by_file:
            if not path.is_file():
                raise StudyError(f"{path}: not a regular file")
            self.objects.append(read_elf(path))
            self._by_file[key] = len(self.objects) - 1
        return self._by_file[key]


@dataclass(frozen=True)
class Libraries:
    """Where libraries are looked for: `folders` before those that a file names, the cache and `defaults` after them.

    `known` are those of a directory tree, by name, and come first.
    """

    folders: tuple[Path, ...] = ()
    cache: dict[str, Path] = field(default_factory=dict)
    defaults: tuple[Path, ...] = DEFAULT_FOLDERS
    known: dict[str, Path] = field(default_factory=dict)

    def find(self, name: str, loader: ElfObject, ancestors: Sequence[ElfObject]) -> Path | None:
        """The file of a library that an object needs; `ancestors` are those that made that be loaded, itself first."""
        if "/" in name:
            return _existing([_expanded(name, loader)])
        if name in self.known:
            return self.known[name]
        return _existing(self._places(name, loader, ancestors))

    def _places(self, name: str, loader: ElfObject, ancestors: Sequence[ElfObject]) -> Iterator[Path]:
        if not loader.runpath:
            for each in ancestors:
                if not each.runpath:
                    yield from (_expanded(folder, each) / name for folder in each.rpath)
        yield from (folder / name for folder in self.folders)
        yield from (_expanded(folder, loader) / name for folder in loader.runpath)
        if name in self.cache:
            yield self.cache[name]
        yield from (folder / name for folder in self.defaults)


def _existing(places: Iterable[Path]) -> Path | None:
    return next((each for each in places if each.is_file() and is_loadable_here(each)), None)


def _expanded(text: str, elf: ElfObject) -> Path:
    """With $ORIGIN, $LIB and $PLATFORM in place; a relative folder is taken from where the command runs, as ld.so does."""
    origin = str(Path(os.path.abspath(elf.path)).parent)
    for token, value in (("ORIGIN", origin), ("LIB", f"lib/{_LIBRARY_FOLDER}"), ("PLATFORM", "x86_64")):
        text = text.replace(f"${{{token}}}", value).replace(f"${token}", value)
    return Path(text)


def read_cache(path: Path = CACHE) -> dict[str, Path]:
    """Libraries of x86-64 by name, without those for some processors only; empty where there is no cache of this form."""
    try:
        content = path.read_bytes()
    except OSError:
        return {}
    start = content.find(_CACHE_MAGIC)
    found: dict[str, Path] = {}
    if start < 0 or len(content) < start + _CACHE_HEADER_BYTES:
        return found
    (count,) = struct.unpack_from("<I", content, start + len(_CACHE_MAGIC))
    for number in range(count):
        place = start + _CACHE_HEADER_BYTES + number * _CACHE_ENTRY.size
        if place + _CACHE_ENTRY.size > len(content):
            break
        flags, key, value, _version, processors = _CACHE_ENTRY.unpack_from(content, place)
        if flags & 0xFFFF == _X86_64_LIBRARY and processors == 0:
            names = [content[start + each : content.find(b"\0", start + each)] for each in (key, value)]
            found.setdefault(os.fsdecode(names[0]), Path(os.fsdecode(names[1])))
    return found


def load(
    programs: Sequence[Path], store: ObjectStore, libraries: Libraries, problem: "Problem", only: set[int] | None = None
) -> tuple[int, ...]:
    """What these programs and libraries load together, as places in the store, breadth first, the dynamic linker last.

    What can't be found or read is left out, and `problem` is told. With `only`, nothing else is loaded or missed.
    """
    order: list[int] = []
    names: dict[str, int] = {}
    interpreters: list[tuple[str, Path]] = []
    queue: list[tuple[Path, tuple[ElfObject, ...]]] = [(each, ()) for each in programs]
    for path, ancestors in queue:
        try:
            index = store.index(path)
        except StudyError as error:
            problem(str(error))
            continue
        if index in order or (only is not None and index not in only):
            continue
        order.append(index)
        elf = store.objects[index]
        names.setdefault(elf.soname or path.name, index)
        names.setdefault(path.name, index)
        if elf.interpreter is not None:
            interpreters.append((elf.interpreter, path))
        for name in elf.needed:
            found = None if name in names else libraries.find(name, elf, (elf, *ancestors))
            if found is not None:
                queue.append((found, (elf, *ancestors)))
            elif name not in names and not any(Path(place).name == name for place, _path in interpreters):
                names[name] = -1
                if only is None:
                    problem(f"{path}: needs {name}, which isn't found")
    return _with_linker_last(order, interpreters, store, libraries, problem, only)


def _with_linker_last(
    order: list[int],
    interpreters: list[tuple[str, Path]],
    store: ObjectStore,
    libraries: Libraries,
    problem: "Problem",
    only: set[int] | None,
) -> tuple[int, ...]:
    for name, path in interpreters[:1]:
        place = libraries.known.get(Path(name).name, Path(name))
        try:
            index = store.index(place)
        except StudyError as error:
            if only is None:
                problem(f"{path}: its dynamic linker: {error}")
            continue
        if only is None or index in only:
            order = [each for each in order if each != index] + [index]
    return tuple(order)


class Problem:
    """Collects what is wrong with the input, each once, in the order in which it was found."""

    def __init__(self) -> None:
        self.messages: dict[str, None] = {}

    def __call__(self, message: str) -> None:
        """Note a problem."""
        self.messages.setdefault(message)


def elf_files(folder: Path) -> list[Path]:
    """The ELF files of a directory tree, by path; links aren't followed."""
    found = []
    for place, folders, files in os.walk(folder):
        folders.sort()
        found += [Path(place, name) for name in sorted(files) if not Path(place, name).is_symlink()]
    return [path for path in found if path.is_file() and is_elf(path)]
