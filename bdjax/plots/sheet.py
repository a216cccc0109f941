"""Several figures on one page."""

import os
from collections.abc import Mapping

import matplotlib.image

from bdjax.plots.style import figure


def page(
  path: str | os.PathLike[str], panels: Mapping[str, str | os.PathLike[str]]
) -> None:
  """Draws figures that are there already on one page, two in a row.

  Args:
    path: the PNG to write.
    panels: title -> PNG.
  """
  rows = -(-len(panels) // 2)
  with figure(path, (13.0, 3.9 * rows)) as drawing:
    axes = drawing.subplots(rows, 2, squeeze=False)
    for panel in axes.flat:
      panel.set_axis_off()
    for panel, (title, file) in zip(axes.flat, panels.items(), strict=False):
      panel.imshow(matplotlib.image.imread(file), interpolation="antialiased")
      panel.set_title(title, fontweight="bold")
