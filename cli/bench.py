"""`capvisor bench`."""

import statistics
from pathlib import Path

import click

from capvisor.bench.measure import MEASUREMENTS, Measurement
from capvisor.cli.options import json_option
from capvisor.cli.output import check_writable, console, progress, table, write_json
from capvisor.cli.status import Status


@click.command()
@click.option("--repeats", default=9, show_default=True, type=click.IntRange(min=1), help="Repeats; the median counts.")
@json_option
def bench(repeats: int, json_path: Path | None) -> int:
    """Measure the reference and the fast path on one core, and the ratio of the two in the same run.

    Each figure is the median of the repeats. Times depend on the machine and on what else it does: compare ratios.
    """
    check_writable(json_path)
    results = []
    with progress("measurements", len(MEASUREMENTS)) as advance:
        for measurement in MEASUREMENTS:
            results.append(_measure(measurement, repeats))
            advance(1)
    rows = []
    for name, unit, fast, reference, ratio in results:
        rows.append((name, _number(fast), _number(reference), unit, f"{ratio:,.0f}"))
    columns = ("what", "fast path", "reference", "unit", "fast path is quicker by")
    out = console(is_final=True)
    out.print(table(columns, rows, right=(1, 2, 4)), soft_wrap=False)
    out.print(
        "\nThe fast decode is quick by its formula, not by its language: "
        "C with the same formula is several times faster still."
    )
    records = []
    for name, unit, fast, reference, ratio in results:
        records.append({"name": f"fast {name}", "value": fast, "unit": unit})
        records.append({"name": f"reference {name}", "value": reference, "unit": unit})
        records.append({"name": f"ratio {name}", "value": ratio, "unit": "x"})
    write_json(json_path, "bench", {"repeats": repeats, "results": records})
    return Status.OK


def _number(value: float) -> str:
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def _measure(measurement: Measurement, repeats: int) -> tuple[str, str, float, float, float]:
    """Name, unit, figures of the fast path and of the reference, and their ratio: medians."""
    fast, reference = [], []
    run_fast, run_reference = measurement.prepare()
    for _ in range(repeats):
        fast.append(run_fast())
        reference.append(run_reference())
    seconds_fast, seconds_reference = statistics.median(fast), statistics.median(reference)
    ratio = statistics.median(r / f for r, f in zip(reference, fast, strict=True))
    if measurement.unit == "ns":
        return measurement.name, "ns", seconds_fast * 1e9, seconds_reference * 1e9, ratio
    return measurement.name, "M/s", 1e-6 / seconds_fast, 1e-6 / seconds_reference, ratio
