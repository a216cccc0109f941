"""Scores against what was varied."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import PercentFormatter

from bdjax.plots import style


def sweep(
  path: str | os.PathLike[str],
  values: Sequence[float],
  title: str,
  panels: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
) -> None:
  """Draws a panel a score, a line for each of what else was varied.

  Args:
    path: the PNG to write.
    values: [V], what was varied.
    title: what that is.
    panels: title of the score -> name of the line, empty where there is but
      one -> V scores, each with `mean`, `low` and `high`, fractions.
  """
  with style.figure(path, (4.3 * len(panels), 3.2)) as figure:
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (score, lines) in zip(axes, panels.items(), strict=True):
      for i, (name, found) in enumerate(lines.items()):
        # Side by side, or the bars of one line would hide the other's.
        aside = (i - (len(lines) - 1) / 2) * (max(values) - min(values)) / 100
        means = [f["mean"] for f in found]
        below = [f["mean"] - f["low"] for f in found]
        above = [f["high"] - f["mean"] for f in found]
        panel.errorbar(
          [value + aside for value in values],
          means,
          (below, above),
          label=name,
          color=style.COLOURS[i % len(style.COLOURS)],
          marker="o",
          markersize=3,
          capsize=2,
        )
      panel.set(title=score, xlabel=title, xticks=values)
      panel.yaxis.set_major_formatter(PercentFormatter(1.0))
      panel.grid(axis="y")
    if len(axes[0].get_legend_handles_labels()[1]) > 1:
      axes[0].legend()
