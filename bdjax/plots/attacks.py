"""Figures of the triggers of an attack."""

import os
from collections.abc import Sequence

import numpy as np

from bdjax.plots import style

_GAIN = 10  # of the difference that a trigger makes


def examples(
  path: str | os.PathLike[str],
  clean: np.ndarray,
  triggered: np.ndarray,
  labels: np.ndarray,
  targets: np.ndarray,
  predictions: np.ndarray,
  class_names: Sequence[str],
) -> None:
  """Draw clean images above their triggered copies, one pair a column.

  Args:
    path: the PNG to write.
    clean: uint8 or float in [0,1], [N,H,W,C], C 1 or 3, N up to about 10.
    triggered: the same images with their triggers.
    labels: int [N], the true labels.
    targets: int [N], the target labels.
    predictions: int [N], of the triggered images.
    class_names: of all classes.
  """
  columns = len(clean)
  with style.figure(path, (1.15 * columns + 0.35, 3.25)) as figure:
    axes = figure.subplots(2, columns, squeeze=False)
    for column in range(columns):
      top, bottom = axes[:, column]
      style.draw_image(top, clean[column])
      style.draw_image(bottom, triggered[column])
      top.set_title(style.class_name(class_names, labels[column]), fontsize=9)
      hit = predictions[column] == targets[column]
      prediction = style.class_name(class_names, predictions[column])
      bottom.set_xlabel(
        f"\N{RIGHTWARDS ARROW} {prediction}",
        color=style.RED if hit else style.BLUE,
        fontweight="bold",
        labelpad=4,
      )
      bottom.text(
        *(0.5, -0.21),
        f"({style.class_name(class_names, targets[column])})",
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


def trigger_examples(
  path: str | os.PathLike[str],
  clean: np.ndarray,
  triggered: np.ndarray,
  titles: Sequence[str],
) -> None:
  """Draw clean images, their triggered copies and ten times the difference.

  For triggers that cover the whole image, too faint to be seen otherwise. The
  difference is absolute: black where the trigger changes nothing.

  Args:
    path: the PNG to write.
    clean: uint8 or float in [0,1], [N,H,W,C], C 1 or 3, N up to about 10.
    triggered: the same images with their triggers.
    titles: N, one above each column, for instance the target label.
  """
  clean, triggered = _in_unit_range(clean), _in_unit_range(triggered)
  rows = {
    "clean": clean,
    "triggered": triggered,
    f"difference\n\N{MULTIPLICATION SIGN} {_GAIN}": (
      _GAIN * np.abs(triggered - clean)
    ),
  }
  columns = len(clean)
  size = (1.15 * columns + 0.5, 1.15 * len(rows) + 0.3)
  with style.figure(path, size) as figure:
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, images) in zip(axes, rows.items(), strict=True):
      row[0].set_ylabel(name)
      for panel, image in zip(row, images, strict=True):
        style.draw_image(panel, image)
    for panel, title in zip(axes[0], titles, strict=True):
      panel.set_title(title, fontsize=9)


def trigger_sheet(
  path: str | os.PathLike[str],
  patches: np.ndarray,
  targets: np.ndarray,
  class_names: Sequence[str],
) -> None:
  """Draw several patches of each target label, one row a label.

  Args:
    path: the PNG to write.
    patches: uint8 or float in [0,1], [T,N,s,s,C], C 1 or 3.
    targets: int [T], the target labels.
    class_names: of all classes.
  """
  rows, columns = patches.shape[:2]
  size = (0.62 * columns + 1.1, 0.62 * rows + 0.45)
  with style.figure(path, size) as figure:
    axes = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
      for column in range(columns):
        style.draw_image(axes[row, column], patches[row, column])
      axes[row, 0].set_ylabel(
        style.class_name(class_names, targets[row]),
        rotation=0,
        ha="right",
        va="center",
        labelpad=6,
      )
    figure.supxlabel("triggers, one row a target label", fontsize=8.5)


def _in_unit_range(images: np.ndarray) -> np.ndarray:
  images = np.asarray(images)
  return images / 255.0 if images.dtype == np.uint8 else images
