"""Plots of results, PNG or SVG by the file's name. They need matplotlib (`capvisor[plots]`)."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from capvisor.study.errors import StudyError
from capvisor.study.reference import MODES
from capvisor.study.results import Result

SUFFIXES = (".png", ".svg")
COLOURS = {"native": "#4d4d4d", "nested": "#d55e00", "shadow": "#0072b2", "tpt": "#009e73"}
"""Of the modes, apart also for those who can't tell red from green (Okabe and Ito, 2008)."""


def check(path: Path) -> None:
    """Raises StudyError where no plot can be made of this name."""
    if path.suffix not in SUFFIXES:
        raise StudyError(f"{path}: plots are {' or '.join(SUFFIXES)}")
    try:
        import matplotlib.figure  # noqa: F401, PLC0415 - an extra
    except ImportError:
        raise StudyError("plots need matplotlib: install capvisor[plots]") from None


def draw(results: Sequence[Result], swept: str | None, path: Path) -> bytes:
    """The picture: slow-downs of the modes as bars, or as lines over the values of a swept setting. Raises StudyError."""

    def draw_on(axes: Any) -> None:
        if swept is None:
            (result,) = results
            heights = [each.slow_down for each in result.modes]
            bars = axes.bar(MODES, heights, color=[COLOURS[mode] for mode in MODES])
            axes.bar_label(bars, [f"{height:.3f}" for height in heights])
        else:
            for index, mode in enumerate(MODES):
                heights = [result.modes[index].slow_down for result in results]
                axes.plot(range(len(results)), heights, marker="o", label=mode, color=COLOURS[mode])
            axes.set_xticks(range(len(results)), [result.label for result in results])
            axes.set_xlabel(swept)
            axes.legend(frameon=False)
        axes.set_ylabel("modelled cycles, native = 1")
        axes.set_title(f"{results[0].configuration.name}: a model of translation costs", fontsize=9)

    return picture(path, draw_on)


def picture(path: Path, draw_on: Callable[[Any], None]) -> bytes:
    """What is drawn on the axes of a figure, as a file of this name: the same bytes each time. Raises StudyError."""
    check(path)
    import matplotlib as mpl  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    content = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with mpl.rc_context({"svg.hashsalt": "capvisor", "font.size": 9}):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        draw_on(axes)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(content, format=path.suffix[1:], dpi=150, metadata=metadata)
    return content.getvalue()
