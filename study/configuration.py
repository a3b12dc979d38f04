"""What is simulated: the sizes of a processor's translation structures, and what each event costs.

A configuration is a TOML file; those in presets/ are named after processors and say where their numbers come from.
"""

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from capvisor.study.errors import StudyError

LEAF_LEVELS = {"4K": 0, "2M": 1, "1G": 2}
"""By page size, the level of the table whose entry maps a page; a table of level k spans 9 * (k + 1) bits of page number."""
ENTRIES_MAXIMUM = 1 << 24
CYCLES_MAXIMUM = 1 << 24


@dataclass(frozen=True)
class Structure:
    """A set-associative structure with least-recently-used replacement."""

    entries: int
    ways: int

    @property
    def sets(self) -> int:
        return self.entries // self.ways


@dataclass(frozen=True)
class TlbLevels:
    """The first level, for instructions and for data, and the second, for both."""

    l1i: Structure
    l1d: Structure
    l2: Structure
    l2_hit_cycles: int


@dataclass(frozen=True)
class WalkCaches:
    """Sizes of the paging-structure caches, by the entry that they hold (Intel SDM 3A, 4.10.3); fully associative."""

    pde: int
    pdpte: int
    pml4e: int
    pml5e: int

    def entries(self, level: int) -> int:
        """Of the cache of entries in tables of a level, 1 for PDEs."""
        return (self.pde, self.pdpte, self.pml4e, self.pml5e)[level - 1]


@dataclass(frozen=True)
class NestedStructures:
    """What holds translations from guest-physical to host-physical addresses."""

    tlb: Structure
    walk_caches: WalkCaches


@dataclass(frozen=True)
class TableLines:
    """The part of the data caches that lines of page tables have, 64 bytes each, and what a reference costs."""

    entries: int
    ways: int
    hit_cycles: int
    miss_cycles: int

    @property
    def sets(self) -> int:
        return self.entries // self.ways


@dataclass(frozen=True)
class Tags:
    """The tags of physical frames: a cache of lines of tags, and what a look-up costs."""

    entries: int
    ways: int
    frames_per_line: int
    hit_cycles: int
    miss_cycles: int

    @property
    def sets(self) -> int:
        return self.entries // self.ways


@dataclass(frozen=True)
class Host:
    """What it costs to enter and leave the hypervisor."""

    exit_cycles: int
    hypercall_cycles: int


@dataclass(frozen=True)
class Shadow:
    """When shadow paging enters the hypervisor. `updates_per_hypercall` 0: each update of a page table is an exit."""

    exits_per_fault: int
    exits_per_update: int
    exits_per_invalidation: int
    updates_per_hypercall: int


@dataclass(frozen=True)
class Tpt:
    """What a guest that knows its host frames does for an update: one look-up in its table of them."""

    update_cycles: int


@dataclass(frozen=True)
class Shootdown:
    """What it costs to drop a page's translations from all processors, natively and in a virtual machine."""

    native_cycles: int
    virtual_cycles: int


@dataclass(frozen=True)
class Configuration:
    """Everything that a simulation depends on, apart from the trace."""

    name: str
    sources: tuple[str, ...]
    levels: int
    page_size: str
    host_page_size: str
    access_cycles: int
    tlb: TlbLevels
    walk_caches: WalkCaches
    nested: NestedStructures
    table_lines: TableLines
    tags: Tags
    host: Host
    shadow: Shadow
    tpt: Tpt
    shootdown: Shootdown

    @property
    def leaf_level(self) -> int:
        return LEAF_LEVELS[self.page_size]

    @property
    def host_leaf_level(self) -> int:
        return LEAF_LEVELS[self.host_page_size]

    @property
    def address_bits(self) -> int:
        return 12 + 9 * self.levels


class WalkMaxima(NamedTuple):
    """The most references to page tables, or tags, that one walk can make."""

    native: int
    nested: int
    tags: int


def walk_maxima(configuration: Configuration) -> WalkMaxima:
    """4 or 5 references natively and 24 or 35 nested, with 4 KiB pages; a tag for each table and one for the page."""
    tables = configuration.levels - configuration.leaf_level
    host_tables = configuration.levels - configuration.host_leaf_level
    return WalkMaxima(tables, (tables + 1) * (host_tables + 1) - 1, tables + 1)


def preset_names() -> list[str]:
    """The presets, in alphabetical order."""
    folder = resources.files("capvisor.study") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def preset(name: str, settings: Mapping[str, str] | None = None) -> Configuration:
    """The preset of this name, with these settings. Raises StudyError."""
    if name not in preset_names():
        raise StudyError(f"no preset `{name}`: there are {', '.join(preset_names())}")
    text = (resources.files("capvisor.study") / "presets" / f"{name}.toml").read_text()
    return configuration_of(tomllib.loads(text), f"preset {name}", settings or {})


def read_configuration(path: Path, settings: Mapping[str, str] | None = None) -> Configuration:
    """The configuration in a TOML file, with these settings. Raises StudyError."""
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise StudyError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: not TOML: {error}") from None
    return configuration_of(document, str(path), settings or {})


def configuration_of(document: Mapping[str, Any], where: str, settings: Mapping[str, str]) -> Configuration:
    """The configuration that a TOML document describes.

    A table inside a table of entries that is named at_2M or at_1G holds the values for pages of that size. `settings` are
    by dotted path, such as tlb.l2.entries, and come last. Raises StudyError for what is missing, unknown or impossible.
    """
    flat = dict(_flatten(document))
    size = settings.get("page_size", flat.get("page_size"))
    chosen = {path: value for path, value in flat.items() if ".at_" not in path}
    for path, value in flat.items():
        before, at, after = path.partition(".at_")
        page_size, _dot, name = after.partition(".")
        if at and page_size == size:
            chosen[f"{before}.{name}"] = value
    for path, text in settings.items():
        if path not in chosen or path in ("name", "sources"):
            close = difflib.get_close_matches(path, chosen, 1)
            hint = f"; do you mean {close[0]}?" if close else ""
            raise StudyError(f"{where}: there is no setting `{path}`{hint}")
        chosen[path] = _number(path, text) if isinstance(chosen[path], int) else text
    result: Configuration = _build(Configuration, chosen, "", where)
    if chosen:
        raise StudyError(f"{where}: unknown: {', '.join(sorted(chosen))}")
    _check(result, where)
    return result


def settings_of(configuration: Configuration) -> dict[str, int | str]:
    """Every setting by its dotted path."""
    return {path: value for path, value in _flatten_record(configuration) if path not in ("name", "sources")}


def _flatten(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _flatten_record(record: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in fields(record):
        value = getattr(record, field.name)
        if is_dataclass(value):
            yield from _flatten_record(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def _number(path: str, text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise StudyError(f"{path}: `{text}` is no whole number") from None


def _build(kind: Any, chosen: dict[str, Any], prefix: str, where: str) -> Any:
    """A record of a class from what stands under a prefix, which is taken out."""
    values: dict[str, Any] = {}
    for name, expected in get_type_hints(kind).items():
        path = prefix + name
        if is_dataclass(expected):
            values[name] = _build(expected, chosen, f"{path}.", where)
            continue
        if path not in chosen:
            raise StudyError(f"{where}: `{path}` is missing")
        value = chosen.pop(path)
        if name == "sources":
            value = tuple(value) if isinstance(value, list) else value
        wanted = (
            (tuple, "a list of texts") if name == "sources" else (str, "a text") if expected is str else (int, "a number")
        )
        if not isinstance(value, wanted[0]) or isinstance(value, bool):
            raise StudyError(f"{where}: `{path}` should be {wanted[1]}, and is {value!r}")
        values[name] = value
    return kind(**values)


def _check(configuration: Configuration, where: str) -> None:
    def insist(condition: bool, message: str) -> None:
        if not condition:
            raise StudyError(f"{where}: {message}")

    insist(configuration.levels in (4, 5), f"levels = {configuration.levels}: page tables have 4 or 5 levels")
    for name in ("page_size", "host_page_size"):
        size = getattr(configuration, name)
        insist(size in LEAF_LEVELS, f"{name} = {size!r}: pages are of {', '.join(LEAF_LEVELS)}")
    insist(
        configuration.host_leaf_level >= configuration.leaf_level,
        f"host_page_size {configuration.host_page_size} is less than page_size {configuration.page_size}: a TLB would hold "
        "splinters of a guest's page, which isn't modelled",
    )
    settings = settings_of(configuration)
    for path, value in settings.items():
        if not isinstance(value, int):
            continue
        least = 1 if path.endswith((".entries", ".ways", ".frames_per_line")) or path == "access_cycles" else 0
        most = CYCLES_MAXIMUM if "cycles" in path else ENTRIES_MAXIMUM
        insist(least <= value <= most, f"{path} = {value}: expected {least} to {most}")
        if path.endswith(".entries"):
            ways = settings[path.removesuffix("entries") + "ways"]
            whole = isinstance(ways, int) and ways > 0 and value % ways == 0
            insist(whole, f"{path} = {value} doesn't fill sets of {ways} ways")


def sweep(base: Mapping[str, str], path: str, values: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
    """For each value of a setting, the value and the settings with it."""
    return [(value, {**base, path: value}) for value in values]
