"""A plot of resident memory over the number of tenants."""

from pathlib import Path
from typing import Any

from capvisor.study.density import Density, System
from capvisor.study.plots import picture

COLOURS = {System.NONE: "#4d4d4d", System.PAGES: "#d55e00", System.FILES: "#0072b2", System.OBJECTS: "#009e73"}
WIDTHS = {System.NONE: 1.5, System.PAGES: 6.0, System.FILES: 3.5, System.OBJECTS: 1.5}
"""In points: where curves lie on each other, all are seen."""


def draw(density: Density, path: Path) -> bytes:
    """The picture, a PNG or an SVG by the file's name: both axes logarithmic. Raises StudyError."""

    def draw_on(axes: Any) -> None:
        for system in System:
            sizes = density.total(system) / (1 << 20)
            axes.plot(density.numbers, sizes, marker=".", linewidth=WIDTHS[system], label=str(system), color=COLOURS[system])
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("tenants")
        axes.set_ylabel("resident, MiB")
        axes.set_title(", ".join(f"{each.name}:{each.count}" for each in density.kinds[:6]), fontsize=9)
        axes.legend(frameon=False)

    return picture(path, draw_on)
