"""The plot of how cost grows: one column for each swept size, with seconds above and memory below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fits import QUANTITIES, Sweep

COLOURS = {"step_seconds": "#1f6f8b", "peak_bytes": "#b5523b"}


def draw(sweeps: Sequence[Sweep], file: Path) -> None:
    """Write the plot as `file` with the suffixes .svg and .png. Raises SystemExit if matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("the table is written, but the plot needs matplotlib: pip install -e '.[dev]'") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "growth", "svg.fonttype": "none", "font.size": 9})
    figure, axes = pyplot.subplots(
        len(QUANTITIES), len(sweeps), figsize=(2.9 * len(sweeps), 5.2), squeeze=False, layout="constrained"
    )
    for row, (quantity, (about, _)) in enumerate(QUANTITIES.items()):
        for column, sweep in enumerate(sweeps):
            plot, medians = axes[row][column], sweep.medians(quantity)
            least = [middle - low for middle, low, _ in sweep.spreads[quantity]]
            most = [high - middle for middle, _, high in sweep.spreads[quantity]]
            plot.errorbar(sweep.values, medians, (least, most), fmt="o", color=COLOURS[quantity], ms=4, capsize=2)
            ends = sweep.values[0], sweep.values[-1]
            xs = [ends[0] + (ends[1] - ends[0]) * i / 100 for i in range(101)]
            straight, law = sweep.line(quantity), sweep.power(quantity)
            plot.plot(xs, [straight.at(x) for x in xs], color="#555555", lw=1, label="a + b·x")
            plot.plot(xs, [law.at(x) for x in xs], color="#555555", lw=1, ls="--", label=f"x^{law.k:.2f}")
            plot.set_ylim(0, 1.1 * max(high for _, _, high in sweep.spreads[quantity]))
            plot.spines[["top", "right"]].set_visible(False)
            plot.legend(frameon=False, fontsize=8)
            if row == len(QUANTITIES) - 1:
                plot.set_xlabel(sweep.name)
            if column == 0:
                plot.set_ylabel(about)
    figure.savefig(file.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(file.with_suffix(".png"), dpi=130)
    pyplot.close(figure)
