"""`capvisor density`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from capvisor.cli.options import json_option, seed_option
from capvisor.cli.output import check_writable, console, progress, table, write_json
from capvisor.cli.status import InputError, Status
from capvisor.files import write_whole
from capvisor.study import density_plot, plots
from capvisor.study.density import Assumptions, Density, System, TenantKind, as_json, measure
from capvisor.study.errors import StudyError
from capvisor.study.libraries import Libraries, ObjectStore, Problem, read_cache
from capvisor.study.tenants import describe, process, resolve

NUMBERS = "1,2,5,10,20,50,100,200,500,1000"
MOST_TENANTS = 100_000
MIB = 1 << 20
A_MODEL = (
    "A model of what is resident right after loading, from the files; heap, stacks, the kernel and what programs map "
    "later aren't counted."
)


class _Numbers(click.ParamType[tuple[int, ...]]):
    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in value.split(",")]
        if not all(word.isascii() and word.isdecimal() and 1 <= int(word) <= MOST_TENANTS for word in words):
            self.fail(f"{value!r}: expected numbers from 1 to {MOST_TENANTS} such as 1,10,100", param, ctx)
        return tuple(sorted({int(word) for word in words}))


@click.command()
@click.argument("tenants", nargs=-1, metavar="[TENANT]...")
@click.option(
    "--from-pid", "pids", multiple=True, metavar="PID", type=click.IntRange(min=1), help="A running process, as a tenant."
)
@click.option(
    "--tenants", "numbers", default=NUMBERS, show_default=True, metavar="N,N...", type=_Numbers(), help="How many there are."
)
@click.option(
    "--touched",
    default=1.0,
    show_default=True,
    metavar="FRACTION",
    type=click.FloatRange(0, 1, min_open=True),
    help="Part of its pages that each tenant touches, each page independently.",
)
@click.option(
    "--written",
    default=0.0,
    show_default=True,
    metavar="FRACTION",
    type=click.FloatRange(0, 1),
    help="Part of its writable pages that each tenant has changed since loading, so that they equal no other.",
)
@click.option(
    "--layout",
    default="random",
    show_default=True,
    type=click.Choice(["random", "same"]),
    help="Load addresses that differ from tenant to tenant, or don't.",
)
@seed_option
@click.option(
    "--orc-pages",
    default="whole",
    show_default=True,
    type=click.Choice(["whole", "touched"]),
    help="ORC's objects are there whole, since they are verified whole, or as far as --touched says.",
)
@click.option("--page-tables", is_flag=True, help="Count them too.")
@click.option(
    "--library-path",
    "folders",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Look there for libraries too.",
)
@click.option(
    "--plot", "plot_paths", multiple=True, metavar="FILE", type=click.Path(path_type=Path), help="Draw it: a .png or .svg."
)
@json_option
def density(
    tenants: tuple[str, ...],
    pids: tuple[int, ...],
    numbers: tuple[int, ...],
    touched: float,
    written: float,
    layout: str,
    seed: int,
    orc_pages: str,
    page_tables: bool,
    folders: tuple[Path, ...],
    plot_paths: tuple[Path, ...],
    json_path: Path | None,
) -> int:
    """Compare what many tenants keep in memory under no sharing, page de-duplication, a shared OS, and ORC.

    TENANT is a program or a library, a directory tree of them, or a manifest (.toml); the first two with :COUNT behind for
    several. Their libraries are found as a dynamic linker finds them; nothing is executed. What can't be used is named, the
    rest is computed, and the status is 64 then.
    """
    if not tenants and not pids:
        raise InputError("give tenants: programs, directory trees, manifests or --from-pid; see `capvisor density --help`")
    for path in (json_path, *plot_paths):
        check_writable(path, [Path(each) for each in tenants])
    problem, store = Problem(), ObjectStore()
    try:
        for path in plot_paths:
            plots.check(path)
        kinds = _kinds(tenants, pids, folders, store, problem)
        assumptions = Assumptions(touched, written, orc_pages == "touched", layout == "same", seed, page_tables)
        with progress("objects", len(store.objects)) as advance:
            found = measure(kinds, store.objects, numbers, assumptions, advance) if kinds else None
        if found is not None:
            for path in plot_paths:
                _write(path, density_plot.draw(found, path))
    except StudyError as error:
        raise InputError(str(error)) from None
    for message in problem.messages:
        console(stderr=True).print(f"capvisor: {message}")
    if found is None:
        if problem.messages:
            return Status.USAGE
        raise InputError("there is no tenant to compute: all counts are 0")
    content = {"note": A_MODEL, "problems": list(problem.messages), **as_json(found)}
    write_json(json_path, "density", content)
    _report(found, len(problem.messages))
    return Status.USAGE if problem.messages else Status.OK


def _kinds(
    tenants: Sequence[str], pids: Sequence[int], folders: Sequence[Path], store: ObjectStore, problem: Problem
) -> list[TenantKind]:
    descriptions = describe(tenants, problem)
    for pid in pids:
        descriptions += process(pid, problem)
    return resolve(descriptions, store, Libraries(tuple(folders), read_cache()), problem)


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, lambda file: file.write(content))
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror or error}") from None


def _report(found: Density, problems: int) -> None:
    out = console(is_final=True)
    mix = ", ".join(f"{each.name}:{each.count}" for each in found.kinds)
    out.print(f"tenants {mix}; {sum(1 for each in found.objects if each.tenants)} objects; resident MiB\n")
    columns = ("tenants", *System, "ORC/pages", "ORC/files")
    rows = []
    for row, number in enumerate(found.numbers):
        sizes = {system: float(found.total(system)[row]) for system in System}
        ratios = (sizes[System.OBJECTS] / sizes[each] if sizes[each] else 1.0 for each in (System.PAGES, System.FILES))
        rows.append((number, *(_mib(sizes[system]) for system in System), *(f"{ratio:.3f}" for ratio in ratios)))
    out.print(table(columns, rows, right=range(len(columns))), soft_wrap=False)
    tenants = "1 tenant" if found.numbers[-1] == 1 else f"{found.numbers[-1]} tenants"
    out.print(f"\nof {tenants}, by object; pages of one copy, then resident MiB\n")
    _print_objects(found)
    out.print(f"\n{_assumed(found.assumptions)}\n{A_MODEL}")
    for name, symbols in found.unbound.items():
        shown = ", ".join(symbols[:3]) + (", ..." if len(symbols) > 3 else "")
        out.print(f"{name}: symbols that no loaded object has count as 0, {len(symbols)} of them: {shown}")
    if problems:
        what = "1 problem" if problems == 1 else f"{problems} problems"
        out.print(f"Not everything could be computed: {what}, named on standard error.")


def _print_objects(found: Density) -> None:
    kinds = ("code", "read-only", "relocated", "data", "zero")
    columns = ("object", "tenants", *kinds, *System)
    rows: list[tuple[object, ...]] = []
    for index, each in enumerate(found.objects):
        if each.tenants:
            sizes = (_mib(float(found.by_object[system][-1, index])) for system in System)
            rows.append((each.elf.path.name, each.tenants, *each.page_counts.values(), *sizes))
    if found.assumptions.counts_page_tables:
        rows.append(("page tables", found.numbers[-1], *("",) * 5, *(_mib(float(found.page_tables[s][-1])) for s in System)))
    console().print(table(columns, rows, right=range(1, len(columns))), soft_wrap=False)


def _mib(size: float) -> str:
    return f"{size / MIB:.2f}"


def _assumed(assumptions: Assumptions) -> str:
    touched, written = "all pages are touched", "no page has been changed since loading"
    if assumptions.touched < 1:
        touched = f"each tenant touches {100 * assumptions.touched:g} % of its pages"
    if assumptions.written > 0:
        written = f"{100 * assumptions.written:g} % of the writable pages have been changed since loading"
    layout = "the same" if assumptions.has_same_addresses else "random"
    drawn = "" if assumptions.has_same_addresses else f", seed {assumptions.seed}"
    orc = "as touched" if assumptions.is_orc_on_demand else "whole"
    return f"Assumed: {touched}; {written}; {layout} load addresses{drawn}; ORC's objects are there {orc}."
