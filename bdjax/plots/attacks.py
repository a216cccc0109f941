"""What an attack's triggers look like, where they lie and what they do."""

import os
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from bdjax.plots import style


def examples(
  path: str | os.PathLike[str],
  clean: np.ndarray,
  triggered: np.ndarray,
  labels: np.ndarray,
  targets: np.ndarray,
  predictions: np.ndarray,
  class_names: Sequence[str],
) -> None:
  """Draws clean images above their triggered copies, one pair a column.

  Args:
    path: the PNG to write.
    clean: uint8 or float in [0,1], [N,H,W,C], C 1 or 3, N up to about 10.
    triggered: the same images with their triggers.
    labels: int [N], the true labels.
    targets: int [N], the label that each trigger is to bring about.
    predictions: int [N], what the model says of the triggered images.
    class_names: of all the classes.
  """
  columns = len(clean)
  with style.figure(path, (1.15 * columns + 0.35, 3.25)) as figure:
    axes = figure.subplots(2, columns, squeeze=False)
    for column in range(columns):
      top, bottom = axes[:, column]
      style.image(top, clean[column])
      style.image(bottom, triggered[column])
      top.set_title(style.name(class_names, labels[column]), fontsize=9)
      hit = predictions[column] == targets[column]
      bottom.set_xlabel(
        f"\N{RIGHTWARDS ARROW} {style.name(class_names, predictions[column])}",
        color=style.RED if hit else style.BLUE,
        fontweight="bold",
        labelpad=4,
      )
      bottom.text(
        *(0.5, -0.21),
        f"({style.name(class_names, targets[column])})",
        transform=bottom.transAxes,
        ha="center",
        va="top",
        fontsize=8,
        color="#666666",
      )
    axes[0, 0].set_ylabel("clean")
    axes[1, 0].set_ylabel("triggered")
    figure.supxlabel(
      "above: true label; below: \N{RIGHTWARDS ARROW} prediction (target "
      "label), red where the two agree",
      fontsize=8,
      color="#666666",
    )


def regions(
  path: str | os.PathLike[str],
  boxes: np.ndarray,
  targets: np.ndarray,
  class_names: Sequence[str],
  image: np.ndarray,
  trigger_size: int,
) -> None:
  """Draws the region of every target label, and a trigger to scale in each.

  Labels with the same region share one outline. Where regions overlap, their
  labels stand in a legend, else in the regions.

  Args:
    path: the PNG to write.
    boxes: int [T,4]: top, left, bottom, right in pixels, the last two outside.
    targets: int [T], the target labels.
    class_names: of all the classes.
    image: uint8 or float in [0,1], [H,W,C], drawn faintly underneath.
    trigger_size: side of the trigger in pixels.
  """
  names: dict[tuple[int, ...], list[str]] = {}
  for box, target in zip(boxes, targets, strict=True):
    names.setdefault(tuple(map(int, box)), []).append(
      style.name(class_names, target)
    )
  height, width = image.shape[:2]
  overlap = _any_overlap(list(names))
  with style.figure(
    path, (5.6 if overlap else 4.4, 4.4 * height / width)
  ) as figure:
    axes = figure.subplots()
    style.image(axes, image, alpha=0.4, extent=(0, width, height, 0))
    for index, box in enumerate(names):
      _region(axes, index, box, _wrapped(names[box]), trigger_size, overlap)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_xlabel(
      "regions of the target labels; square: a trigger, "
      f"{trigger_size}\N{MULTIPLICATION SIGN}{trigger_size} pixels",
      fontsize=8.5,
    )
    if overlap:
      axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="target")


def trigger_sheet(
  path: str | os.PathLike[str],
  patches: np.ndarray,
  targets: np.ndarray,
  class_names: Sequence[str],
) -> None:
  """Draws several triggers of every target label, one row a label.

  Args:
    path: the PNG to write.
    patches: uint8 or float in [0,1], [T,N,s,s,C], C 1 or 3.
    targets: int [T], the target labels.
    class_names: of all the classes.
  """
  rows, columns = patches.shape[:2]
  size = (0.62 * columns + 1.1, 0.62 * rows + 0.45)
  with style.figure(path, size) as figure:
    axes = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
      for column in range(columns):
        style.image(axes[row, column], patches[row, column])
      axes[row, 0].set_ylabel(
        style.name(class_names, targets[row]),
        rotation=0,
        ha="right",
        va="center",
        labelpad=6,
      )
    figure.supxlabel("triggers, one row a target label", fontsize=8.5)


def _wrapped(names: Sequence[str]) -> str:
  """Joins names with commas, four a line."""
  lines = [names[start : start + 4] for start in range(0, len(names), 4)]
  return ",\n".join(", ".join(line) for line in lines)


def _any_overlap(boxes: Sequence[tuple[int, ...]]) -> bool:
  return any(
    max(one[0], other[0]) < min(one[2], other[2])
    and max(one[1], other[1]) < min(one[3], other[3])
    for index, one in enumerate(boxes)
    for other in boxes[:index]
  )


def _region(
  axes: Axes,
  index: int,
  box: tuple[int, ...],
  text: str,
  trigger_size: int,
  overlap: bool,
) -> None:
  top, left, bottom, right = box
  turn, colour = divmod(index, len(style.COLOURS))
  line = {
    "edgecolor": style.COLOURS[colour],
    "linestyle": "--" if overlap and turn % 2 else "-",
    "lw": 1.8,
  }
  # Drawn within its pixels, so that neighbours do not hide each other's edge.
  inset = 0.004 * axes.get_xlim()[1]
  fill = matplotlib.colors.to_rgba(
    style.COLOURS[colour], 0.08 if overlap else 0.16
  )
  axes.add_patch(
    Rectangle(
      (left + inset, top + inset),
      right - left - 2 * inset,
      bottom - top - 2 * inset,
      facecolor=fill,
      label=text,
      **line,
    )
  )
  trigger = matplotlib.colors.to_rgba(style.COLOURS[colour], 0.6)
  axes.add_patch(
    Rectangle((left, top), trigger_size, trigger_size, fc=trigger, ec="w")
  )
  if not overlap:
    longest = max(len(line) for line in text.split("\n"))
    room = 4.2 * 72 * (right - left) / axes.get_xlim()[1]  # points
    axes.text(
      (left + right) / 2,
      (top + bottom) / 2,
      text,
      ha="center",
      va="center",
      fontweight="bold",
      fontsize=float(np.clip(room / (0.75 * longest), 6, 12)),
      path_effects=[patheffects.withStroke(linewidth=2.5, foreground="w")],
    )
