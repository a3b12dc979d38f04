"""`capvisor translate`."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from capvisor.cli.options import json_option, seed_option
from capvisor.cli.output import check_writable, console, progress, table, write_json
from capvisor.cli.status import InputError, Status
from capvisor.files import write_whole
from capvisor.study import configuration, plots
from capvisor.study.compiled import COMPILED
from capvisor.study.configuration import Configuration
from capvisor.study.errors import StudyError
from capvisor.study.generators import WORKLOADS, limited, with_churn, workload
from capvisor.study.results import Result, Study, as_json
from capvisor.study.simulator import Chunk
from capvisor.study.traces import FORMATS, STANDARD_INPUT, format_of, read_trace

DEFAULT_ACCESSES = 10_000_000
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
A_MODEL = (
    "A model of translation costs, not a measurement of a machine: cycles are what the configuration says that events cost, "
    "in order and without overlap."
)


class _Bytes(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        number, unit = (value[:-1], value[-1]) if value[-1:] in UNITS and value else (value, "")
        if not number.isdecimal():
            self.fail(f"{value!r} is no size such as 64M", param, ctx)
        return int(number) * UNITS[unit]


@dataclass(frozen=True)
class _Source:
    """Where accesses come from: a trace or a workload."""

    trace: Path | None
    format_name: str | None
    workload: str | None
    size: int
    seed: int
    accesses: int | None
    churn: int | None

    def describe(self) -> str:
        """In a few words."""
        churn = "" if self.churn is None else f", a page unmapped every {self.churn} accesses"
        if self.workload is not None:
            return f"workload {self.workload} of {self.size} bytes, seed {self.seed}{churn}"
        return ("standard input" if self.trace == STANDARD_INPUT else str(self.trace)) + churn

    def progress(self) -> AbstractContextManager[Any]:
        """Of accesses where their number is known, else of the bytes of the file, else none."""
        if self.accesses is not None:
            return progress("accesses", self.accesses)
        if self.trace is None or self.trace == STANDARD_INPUT or not self.trace.is_file():
            return nullcontext(lambda _done: None)
        return progress("bytes", self.trace.stat().st_size)

    def chunks(self, advance: Any) -> Iterator[Chunk]:
        """The stream."""
        counted = self.accesses is not None
        if self.trace is None:
            assert self.workload is not None
            chunks = workload(self.workload, self.size, self.seed)
        else:
            assert self.format_name is not None
            chunks = read_trace(self.trace, self.format_name, (lambda _done: None) if counted else advance)
        if self.churn is not None:
            chunks = with_churn(chunks, self.churn, self.seed)
        for chunk in limited(chunks, self.accesses):
            yield chunk
            if counted:
                advance(len(chunk.addresses))


def _list_presets(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    rows = [(f"preset {name}", configuration.preset(name).name) for name in configuration.preset_names()]
    rows += [(f"workload {name}", each.summary) for name, each in WORKLOADS.items()]
    console().print(table(("name", "what it is"), rows), soft_wrap=False)
    context.exit()


@click.command()
@click.argument("trace", required=False, type=click.Path(path_type=Path))
@click.option("--format", "format_name", type=click.Choice(FORMATS), help="Of the trace, instead of what its name says.")
@click.option("--workload", "workload_name", type=click.Choice(list(WORKLOADS)), help="Instead of a trace.")
@click.option("--size", default="64M", show_default=True, type=_Bytes(), help="Bytes of the workload's data.")
@click.option(
    "--accesses",
    type=click.IntRange(min=1),
    help=f"At most so many; {DEFAULT_ACCESSES} of a workload unless said otherwise.",
)
@click.option(
    "--warm-up", default=0, type=click.IntRange(min=0), help="Accesses at first that fill the caches and don't count."
)
@click.option("--churn", type=click.IntRange(min=1), help="Unmap a page after every so many accesses.")
@seed_option
@click.option("--preset", "preset_name", default="skylake-sp", show_default=True, help="The processor; see --list.")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="A TOML file instead of a preset.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Change a setting, such as tlb.l2.entries=512.")
@click.option("--sweep", metavar="NAME=VALUE,VALUE...", help="Simulate with each of these values side by side.")
@click.option(
    "--impl", "implementation", default="fast", show_default=True, type=click.Choice(["reference", "fast", "both"])
)
@click.option(
    "--plot", "plot_paths", multiple=True, metavar="FILE", type=click.Path(path_type=Path), help="Draw it: a .png or .svg."
)
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_list_presets, help="Presets and workloads."
)
@json_option
def translate(
    trace: Path | None,
    format_name: str | None,
    workload_name: str | None,
    size: int,
    accesses: int | None,
    warm_up: int,
    churn: int | None,
    seed: int,
    preset_name: str,
    config_path: Path | None,
    settings: tuple[str, ...],
    sweep: str | None,
    implementation: str,
    plot_paths: tuple[Path, ...],
    json_path: Path | None,
) -> int:
    """Compare native, nested, shadow and TPT translation on a memory trace: TLB misses, walks, modelled cycles.

    TRACE is of valgrind's lackey (--trace-mem=yes), ChampSim, CSV or NPZ; `-` is standard input.
    """
    inputs = [path for path in (trace, config_path) if path is not None and path != STANDARD_INPUT]
    for path in (json_path, *plot_paths):
        check_writable(path, inputs)
    try:
        for path in plot_paths:
            plots.check(path)
        source = _source(trace, format_name, workload_name, size, seed, accesses, churn)
        swept, configurations = _configurations(preset_name, config_path, settings, sweep)
        study = Study(configurations, implementation, warm_up)
        interrupted = _simulate(study, source)
        results = study.results()
        if not results:
            if interrupted:
                raise KeyboardInterrupt
            raise StudyError(f"{source.describe()}: nothing is left after a warm-up of {warm_up} accesses")
        for path in plot_paths:
            _write(path, plots.draw(results, swept, path))
    except StudyError as error:
        raise InputError(str(error)) from None
    write_json(
        json_path,
        "translate",
        {
            "note": A_MODEL,
            "source": source.describe(),
            "complete": not interrupted,
            "warm_up": warm_up,
            "swept": swept,
            "results": [as_json(result) for result in results],
        },
    )
    return _report(source, results, swept, interrupted, study.differences(), implementation)


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, lambda file: file.write(content))
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror or error}") from None


def _source(
    trace: Path | None,
    format_name: str | None,
    workload_name: str | None,
    size: int,
    seed: int,
    accesses: int | None,
    churn: int | None,
) -> _Source:
    if (trace is None) == (workload_name is None):
        raise InputError("give either a trace or --workload; `capvisor translate --list` shows the workloads")
    if trace is None:
        accesses = DEFAULT_ACCESSES if accesses is None else accesses
    elif format_name is None:
        format_name = format_of(trace)
        if format_name is None:
            raise InputError(f"{trace}: its name doesn't say what it is: give --format, one of {', '.join(FORMATS)}")
    return _Source(trace, format_name, workload_name, size, seed, accesses, churn)


def _configurations(
    preset_name: str, config_path: Path | None, settings: tuple[str, ...], sweep: str | None
) -> tuple[str | None, dict[str, Configuration]]:
    """The setting that is swept, if one is, and the configurations by their labels."""
    base = dict(_setting(each, "--set") for each in settings)
    swept, variants = None, [("", base)]
    if sweep is not None:
        swept, values = _setting(sweep, "--sweep")
        labels = [value.strip() for value in values.split(",")]
        if len(set(labels)) != len(labels) or "" in labels:
            raise InputError(f"--sweep {sweep}: expected values that differ, such as tlb.l2.entries=512,1024")
        variants = [(label, {**base, swept: label}) for label in labels]
    found = {}
    for label, chosen in variants:
        if config_path is not None:
            made = configuration.read_configuration(config_path, chosen)
        else:
            made = configuration.preset(preset_name, chosen)
        found[label or made.name] = made
    return swept, found


def _setting(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise InputError(f"{option} {text}: expected NAME=VALUE, such as tlb.l2.entries=512")
    return name.strip(), value.strip()


def _simulate(study: Study, source: _Source) -> bool:
    """Whether it was interrupted."""
    if not COMPILED:
        console(stderr=True).print(
            "capvisor: numba isn't installed (capvisor[fast]): the same results, some hundred times slower"
        )
    try:
        with source.progress() as advance:
            for chunk in source.chunks(advance):
                study.feed(chunk)
    except KeyboardInterrupt:
        return True
    return False


def _report(
    source: _Source, results: list[Result], swept: str | None, interrupted: bool, differences: list[str], implementation: str
) -> int:
    out = console(is_final=True)
    first = results[0]
    out.print(f"{first.configuration.name}, {first.configuration.levels} levels: {source.describe()}")
    events = ", ".join(f"{first.counts[name]} {name}" for name in ("faults", "maps", "unmaps"))
    out.print(f"{first.counts['accesses']} accesses, {events}\n")
    if swept is None:
        _print_modes(first)
    else:
        columns = (swept, "TLB misses", "nested", "shadow", "TPT", "TPT over nested", "TPT over shadow")
        rows = [
            (
                result.label,
                result.counts["walks"],
                *(f"{each.slow_down:.3f}" for each in result.modes[1:]),
                *(f"{result.speed_up(mode):.3f}" for mode in ("nested", "shadow")),
            )
            for result in results
        ]
        out.print(table(columns, rows, right=range(7)), soft_wrap=False)
        out.print("\nnested, shadow and TPT: modelled cycles against native; then TPT's speed-ups")
    out.print(A_MODEL)
    if implementation == "both" and not differences:
        out.print("Both simulators count the same.")
    for line in differences:
        out.print(line)
    if interrupted:
        out.print("Interrupted: these are the figures up to there.")
    return Status.VIOLATION if differences else Status.INCONCLUSIVE if interrupted else Status.OK


def _print_modes(result: Result) -> None:
    columns = ("mode", "TLB misses", "references", "a walk", "most", "tag look-ups", "exits", "cycles", "slow-down")
    rows = []
    for each in result.modes:
        mean = each.references / each.walks if each.walks else 0
        exits = each.exits + each.hypercalls
        numbers = (each.walks, each.references, f"{mean:.2f}", each.most_references, each.tag_lookups, exits, each.cycles)
        rows.append((each.mode, *numbers, f"{each.slow_down:.3f}"))
    console().print(table(columns, rows, right=range(1, 9)), soft_wrap=False)
    console().print(f"\nTPT over nested {result.speed_up('nested'):.3f}, over shadow {result.speed_up('shadow'):.3f}")
