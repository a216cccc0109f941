"""Figures of repairs of a network."""

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bdjax.plots import style

if TYPE_CHECKING:
  from matplotlib.axes import Axes


def repair_curve(
  path: str | os.PathLike[str],
  curves: Mapping[str, np.ndarray],
  stops: Mapping[str, int],
  label: str,
) -> None:
  """Draw scores against the share of a network that a repair has changed.

  Args:
    path: the PNG to write.
    curves: title -> float [n+1], fractions, with 0 to n of n parts changed.
    stops: title -> number of parts changed at a point to be marked.
    label: of the horizontal axis, for instance `channels of conv_2 pruned, the
      least active first`.
  """
  parts = len(next(iter(curves.values()))) - 1
  titles: dict[int, list[str]] = {}
  for title, stop in sorted(stops.items(), key=lambda item: item[1]):
    titles.setdefault(stop, []).append(title)
  with style.figure(path, (6.4, 3.4)) as figure:
    axes = figure.subplots()
    _draw_lines(axes, np.linspace(0, 1, parts + 1), curves, "-")
    for stop, names in titles.items():
      style.mark(axes, stop / parts, ", ".join(names), height=0.02)
    axes.set(xlabel=label, xlim=(0, 1))
    style.in_percent(axes.xaxis)


def rounds(
  path: str | os.PathLike[str],
  steps: Sequence[str],
  curves: Mapping[str, Sequence[float]],
) -> None:
  """Draw scores over the rounds of a repair.

  Args:
    path: the PNG to write.
    steps: a name for each of n rounds.
    curves: title -> float [n], fractions.
  """
  with style.figure(path, (6.4, 3.2)) as figure:
    axes = figure.subplots()
    _draw_lines(axes, range(len(steps)), curves, "o-")
    stride = math.ceil(len(steps) / 12)
    axes.set_xticks(range(0, len(steps), stride), list(steps)[::stride])


def _draw_lines(
  axes: "Axes",
  x: Sequence[float] | np.ndarray,
  curves: Mapping[str, Sequence[float] | np.ndarray],
  form: str,
) -> None:
  """Draw fractions as lines, in percent and with a legend."""
  colours = itertools.cycle(style.LINE_COLOURS)
  for title, values in curves.items():
    axes.plot(x, values, form, color=next(colours), label=title)
  axes.set(ylim=(0, 1.02))
  style.in_percent(axes.yaxis)
  axes.grid(axis="y")
  axes.legend(loc="best")
