"""Figure of the success of an attack by true label and target label."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bdjax.plots import style

if TYPE_CHECKING:
  from matplotlib.axes import Axes


def source_target_matrix(
  path: str | os.PathLike[str],
  matrix: np.ndarray,
  targets: np.ndarray,
  class_names: Sequence[str],
) -> None:
  """Draw the attack success rate of each target label for each true label.

  Args:
    path: the PNG to write.
    matrix: float [T,K], fractions; NaN where no image counts.
    targets: int [T], the target labels.
    class_names: of all K classes.
  """
  import matplotlib

  rows, columns = matrix.shape
  annotated = max(rows, columns) <= 10
  cell = 0.56 if annotated else max(0.13, 5.6 / columns)
  flat = rows <= 2  # too few for a colour bar beside them
  size = (cell * columns + (1.2 if flat else 2.1), cell * rows + 1.25)
  with style.figure(path, (size[0], size[1] + (0.55 if flat else 0))) as figure:
    axes = figure.subplots()
    cmap = matplotlib.colormaps["viridis"].with_extremes(bad="#e8e8e8")
    colours = axes.imshow(
      np.ma.masked_invalid(matrix), cmap=cmap, vmin=0, vmax=1, aspect="equal"
    )
    names = [
      style.class_name(class_names, label, 22) for label in range(columns)
    ]
    _name_ticks(axes, names, [names[target] for target in targets], cell)
    axes.set(xlabel="true label", ylabel="target label")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if annotated:
      _annotate(axes, matrix)
    bar = figure.colorbar(
      colours,
      ax=axes,
      orientation="horizontal" if flat else "vertical",
      label="attack success rate",
      shrink=0.6 if flat else 0.9,
      aspect=30 if flat else 25,
    )
    bar.outline.set_visible(False)
    style.in_percent(bar.ax.xaxis if flat else bar.ax.yaxis)


def _name_ticks(
  axes: "Axes", columns: Sequence[str], rows: Sequence[str], cell: float
) -> None:
  """Write names at columns and rows, whose cells measure `cell` inches."""
  slanted = max(len(columns), len(rows)) <= 10
  stride = math.ceil(0.16 / cell)  # a tick label needs 0.16 inches
  axes.set_xticks(
    range(0, len(columns), stride),
    columns[::stride],
    rotation=45 if slanted else 90,
    ha="right" if slanted else "center",
    rotation_mode="anchor" if slanted else "default",
  )
  axes.set_yticks(range(0, len(rows), stride), rows[::stride])


def _annotate(axes: "Axes", matrix: np.ndarray) -> None:
  """Write each fraction in percent: 3.0, 99.8, 100."""
  for (row, column), value in np.ndenumerate(matrix):
    if np.isnan(value):
      text, colour = "\N{EN DASH}", "#777777"
    else:
      text = f"{100 * value:.1f}".replace("100.0", "100")
      colour = "w" if value < 0.6 else "#111111"  # legible on viridis
    axes.text(
      column, row, text, ha="center", va="center", color=colour, fontsize=8
    )
