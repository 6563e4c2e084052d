"""The answers as a picture: packet cost and throughput as bars.

Owns the only use of matplotlib, which is installed for benchmarks alone (pip install .[bench]).
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.measure import Answers, Row

OURS, OTHERS = "#1f77b4", "#b0b0b0"
_OTHERS = ("xdp-filter", "bare", "no program", "nftables", "iptables")


def draw(answers: Answers, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    cost = [
        row for row in answers.rows if row.question == "packet cost" and row.unit == "ns" and row.baseline
    ]
    rates = [row for row in answers.rows if row.question == "throughput"]
    panels = [
        panel for panel in ((cost, "ns a packet, less the harness"), (rates, "Mpps, one CPU")) if panel[0]
    ]
    if not panels:
        return
    heights = [len(rows) for rows, _ in panels]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, 1.2 + 0.23 * sum(heights)), height_ratios=heights, squeeze=False
    )
    for (rows, title), axis in zip(panels, axes[:, 0], strict=True):
        _bars(axis, rows, title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _bars(axis: object, rows: list[Row], title: str) -> None:
    names = [row.name for row in rows]
    colours = [OTHERS if row.name.startswith(_OTHERS) else OURS for row in rows]
    axis.barh(names, [row.net for row in rows], color=colours)  # type: ignore[attr-defined]
    axis.invert_yaxis()  # type: ignore[attr-defined]
    axis.tick_params(axis="y", labelsize=7)  # type: ignore[attr-defined]
    axis.set_title(title, fontsize=9, loc="left")  # type: ignore[attr-defined]
    for place, row in enumerate(rows):
        axis.text(row.net, place, f" {row.net:.3g}", va="center", fontsize=6)  # type: ignore[attr-defined]
