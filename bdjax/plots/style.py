"""Style of the figures: colours, fonts, and the writing of the file.

For the modules of this package. They draw with matplotlib's objects, not with
pyplot, so that they need no display and leave no state behind, and import them
in functions alone.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bdjax import files

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.axis import Axis
  from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, RED, GREEN, ORANGE = "#0072b2", "#d55e00", "#009e73", "#e69f00"
SKY, PINK, GREY = "#56b4e9", "#cc79a7", "#8c8c8c"
COLOURS = (BLUE, ORANGE, GREEN, RED, SKY, PINK)
# Of lines: accuracy is blue and the attack red, in that order.
LINE_COLOURS = (BLUE, RED, GREEN, ORANGE, SKY, PINK)

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
) -> Iterator["Figure"]:
  """Make a figure in the common style, and write it when the block ends.

  A block that raises writes nothing, and leaves the file as it was.

  Args:
    path: the PNG to write.
    size: width and height in inches; empty margins are cut off.

  Yields:
    The figure, to be drawn on.
  """
  import matplotlib
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  with matplotlib.rc_context(STYLE):
    drawing = Figure(figsize=size)
    FigureCanvasAgg(drawing)
    yield drawing
    with files.atomic(path) as temporary:
      drawing.savefig(
        temporary,
        format="png",
        bbox_inches="tight",
        pad_inches=0.08,
        metadata={"Software": None},
      )


def draw_image(axes: "Axes", pixels: np.ndarray, **options: Any) -> None:
  """Draw an image in its own colours, with a frame and without ticks.

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


def in_percent(axis: "Axis", decimals: int | None = 0) -> None:
  """Show fractions on an axis in percent.

  Args:
    axis: x or y.
    decimals: of the tick labels; None for as many as they need.
  """
  from matplotlib.ticker import PercentFormatter

  axis.set_major_formatter(PercentFormatter(1.0, decimals=decimals))


def mark(axes: "Axes", x: float, text: str, height: float) -> None:
  """Draw a dotted vertical line with text beside it.

  Args:
    axes: to draw on.
    x: position of the line.
    text: beside it.
    height: of the text as a share of the axes, in [0,1]: that of its upper end
      where it is 1, else that of its lower end.
  """
  axes.axvline(x, color=GREY, lw=0.8, ls=":")
  axes.annotate(
    text,
    (x, height),
    (-2, 0),
    xycoords=("data", "axes fraction"),
    textcoords="offset points",
    fontsize=7,
    rotation=90,
    ha="right",
    va="top" if height == 1 else "bottom",
  )


def class_name(class_names: Sequence[str], label: int, length: int = 14) -> str:
  """Return the name of a class, cut to at most `length` characters."""
  text = str(class_names[int(label)])
  if len(text) <= length:
    return text
  return f"{text[: length - 1]}\N{HORIZONTAL ELLIPSIS}"
