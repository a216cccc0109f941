"""What the figures share: colours, style, and how a file is written.

For the modules of this package. They draw with matplotlib's objects, not with
pyplot, so that they need no display and leave no state behind.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind tell apart.
BLUE, RED, GREEN, ORANGE = "#0072b2", "#d55e00", "#009e73", "#e69f00"
SKY, PINK, GREY = "#56b4e9", "#cc79a7", "#8c8c8c"
COLOURS = (BLUE, ORANGE, GREEN, RED, SKY, PINK)

STYLE = {
  "figure.dpi": 150,
  "figure.constrained_layout.use": True,
  "font.family": "DejaVu Sans",
  "font.size": 9,
  "axes.titlesize": 10,
  "axes.labelsize": 9,
  "axes.labelcolor": "#333333",
  "axes.edgecolor": "#666666",
  "axes.linewidth": 0.7,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": False,
  "grid.color": "#e4e4e4",
  "grid.linewidth": 0.7,
  "image.interpolation": "nearest",
  "image.cmap": "viridis",
  "legend.frameon": False,
  "legend.fontsize": 9,
  "lines.linewidth": 1.6,
  "text.color": "#222222",
  "xtick.color": "#555555",
  "ytick.color": "#555555",
  "xtick.labelsize": 8.5,
  "ytick.labelsize": 8.5,
}


@contextlib.contextmanager
def figure(
  path: str | os.PathLike[str], size: tuple[float, float]
) -> Iterator[Figure]:
  """Gives a figure in the common style, and writes it when the block ends.

  A block that raises writes nothing, and leaves what stood there before.

  Args:
    path: the PNG to write.
    size: width and height in inches; the margins around what is drawn are
      cut off.
  """
  with matplotlib.rc_context(STYLE):
    drawn = Figure(figsize=size)
    FigureCanvasAgg(drawn)
    yield drawn
    path = pathlib.Path(path)
    half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
      drawn.savefig(
        half,
        format="png",
        bbox_inches="tight",
        pad_inches=0.08,
        metadata={"Software": None},
      )
      os.replace(half, path)
    finally:
      half.unlink(missing_ok=True)


def image(axes: Axes, pixels: np.ndarray, **options: Any) -> None:
  """Draws an image in its own colours, framed and without ticks.

  Args:
    axes: to draw on.
    pixels: uint8 or float in [0,1], [H,W,C], C 1 or 3.
    **options: of `Axes.imshow`.
  """
  if pixels.dtype != np.uint8:
    pixels = np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
  # Grey as RGB: a colour map would round to its own steps.
  axes.imshow(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), **options)
  axes.set(xticks=[], yticks=[])
  axes.spines[:].set(visible=True, color="#bbbbbb", linewidth=0.5)


def name(class_names: Sequence[str], label: int, longest: int = 14) -> str:
  """The name of a class, cut to at most `longest` characters."""
  text = str(class_names[int(label)])
  if len(text) <= longest:
    return text
  return f"{text[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"
