"""Page of several figures."""

import os
from collections.abc import Mapping

from bdjax.plots import style


def page(
  path: str | os.PathLike[str], panels: Mapping[str, str | os.PathLike[str]]
) -> None:
  """Draw existing figures on one page, two in a row.

  Args:
    path: the PNG to write.
    panels: title -> PNG to read.
  """
  import matplotlib.image

  rows = -(-len(panels) // 2)
  with style.figure(path, (13.0, 3.9 * rows)) as figure:
    axes = figure.subplots(rows, 2, squeeze=False)
    for panel in axes.flat:
      panel.set_axis_off()
    for panel, (title, file) in zip(axes.flat, panels.items(), strict=False):
      panel.imshow(matplotlib.image.imread(file), interpolation="antialiased")
      panel.set_title(title, fontweight="bold")
