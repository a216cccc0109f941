"""Figure of a sweep."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from bdjax.plots import style


def sweep(
  path: str | os.PathLike[str],
  values: Sequence[float],
  title: str,
  panels: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
) -> None:
  """Draw scores against a setting, a panel a score.

  Args:
    path: the PNG to write.
    values: float [V], of the setting.
    title: name of the setting.
    panels: title of the score -> name of the line, empty where there is only
      one -> V scores, each with `mean`, `low` and `high`, fractions.
  """
  with style.figure(path, (4.3 * len(panels), 3.2)) as figure:
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (score_title, lines) in zip(axes, panels.items(), strict=True):
      for i, (name, scores) in enumerate(lines.items()):
        # Side by side, or the bars of a line would hide those of another.
        shift = (i - (len(lines) - 1) / 2) * (max(values) - min(values)) / 100
        means = [score["mean"] for score in scores]
        below = [score["mean"] - score["low"] for score in scores]
        above = [score["high"] - score["mean"] for score in scores]
        panel.errorbar(
          [value + shift for value in values],
          means,
          (below, above),
          label=name,
          color=style.COLOURS[i % len(style.COLOURS)],
          marker="o",
          markersize=3,
          capsize=2,
        )
      panel.set(title=score_title, xlabel=title, xticks=values)
      style.in_percent(panel.yaxis, decimals=None)
      panel.grid(axis="y")
    if len(axes[0].get_legend_handles_labels()[1]) > 1:
      axes[0].legend()
