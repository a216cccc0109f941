"""Figure of the regions in which an attack places its patches."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bdjax.plots import style

if TYPE_CHECKING:
  from matplotlib.axes import Axes


def regions(
  path: str | os.PathLike[str],
  boxes: np.ndarray,
  targets: np.ndarray,
  class_names: Sequence[str],
  image: np.ndarray,
  trigger_size: int,
) -> None:
  """Draw the region of each target label, with a trigger to scale in it.

  Labels with the same region share one outline. Where regions overlap, a legend
  names their labels, else these are written into the regions.

  Args:
    path: the PNG to write.
    boxes: int [T,4], (top, left, bottom, right) in pixels, the last two
      exclusive.
    targets: int [T], the target labels.
    class_names: of all classes.
    image: uint8 or float in [0,1], [H,W,C], drawn faintly as background.
    trigger_size: side of the square trigger in pixels.
  """
  names: dict[tuple[int, ...], list[str]] = {}
  for box, target in zip(boxes, targets, strict=True):
    names.setdefault(tuple(map(int, box)), []).append(
      style.class_name(class_names, target)
    )
  height, width = image.shape[:2]
  overlap = _any_overlap(list(names))
  with style.figure(
    path, (5.6 if overlap else 4.4, 4.4 * height / width)
  ) as figure:
    axes = figure.subplots()
    style.draw_image(axes, image, alpha=0.4, extent=(0, width, height, 0))
    for index, box in enumerate(names):
      text = _wrap(names[box])
      _draw_region(axes, index, box, trigger_size, overlap, text)
      if not overlap:
        _write_in_region(axes, box, text)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_xlabel(
      "regions of the target labels; square: a trigger, "
      f"{trigger_size}\N{MULTIPLICATION SIGN}{trigger_size} pixels",
      fontsize=8.5,
    )
    if overlap:
      axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="target")


def _wrap(names: Sequence[str]) -> str:
  """Join names with commas, four a line."""
  lines = [names[index : index + 4] for index in range(0, len(names), 4)]
  return ",\n".join(", ".join(line) for line in lines)


def _any_overlap(boxes: Sequence[tuple[int, ...]]) -> bool:
  return any(
    max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])
    for index, a in enumerate(boxes)
    for b in boxes[:index]
  )


def _draw_region(
  axes: "Axes",
  index: int,
  box: tuple[int, ...],
  trigger_size: int,
  overlap: bool,
  text: str,
) -> None:
  """Draw the outline of a region, and a trigger in its top left corner."""
  from matplotlib.patches import Rectangle

  top, left, bottom, right = box
  round_, colour = divmod(index, len(style.COLOURS))
  colour = style.COLOURS[colour]
  # Drawn within its pixels, so that neighbours do not hide each other's edge.
  inset = 0.004 * axes.get_xlim()[1]
  region = Rectangle(
    (left + inset, top + inset),
    right - left - 2 * inset,
    bottom - top - 2 * inset,
    facecolor=(colour, 0.08 if overlap else 0.16),
    edgecolor=colour,
    linestyle="--" if overlap and round_ % 2 else "-",
    linewidth=1.8,
    label=text,
  )
  trigger = Rectangle(
    (left, top), trigger_size, trigger_size, fc=(colour, 0.6), ec="w"
  )
  axes.add_patch(region)
  axes.add_patch(trigger)


def _write_in_region(axes: "Axes", box: tuple[int, ...], text: str) -> None:
  from matplotlib import patheffects

  top, left, bottom, right = box
  longest = max(len(line) for line in text.split("\n"))
  width = 4.2 * 72 * (right - left) / axes.get_xlim()[1]  # points
  axes.text(
    (left + right) / 2,
    (top + bottom) / 2,
    text,
    ha="center",
    va="center",
    fontweight="bold",
    fontsize=float(np.clip(width / (0.75 * longest), 6, 12)),
    path_effects=[patheffects.withStroke(linewidth=2.5, foreground="w")],
  )
