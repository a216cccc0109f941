"""Figures from results: drawing only, nothing is computed here.

Every function writes one PNG, whole or not at all. They use matplotlib's
objects, not pyplot, so that they need no display and leave no state behind.
"""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

# Okabe and Ito's colours, which the colour-blind tell apart.
_BLUE, _RED, _GREEN, _ORANGE = "#0072b2", "#d55e00", "#009e73", "#e69f00"
_SKY, _PINK, _GREY = "#56b4e9", "#cc79a7", "#8c8c8c"
_COLOURS = (_BLUE, _ORANGE, _GREEN, _RED, _SKY, _PINK)

_STYLE = {
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
  with _figure(path, (1.15 * columns + 0.35, 3.25)) as figure:
    axes = figure.subplots(2, columns, squeeze=False)
    for column in range(columns):
      top, bottom = axes[:, column]
      _image(top, clean[column])
      _image(bottom, triggered[column])
      top.set_title(_name(class_names, labels[column]), fontsize=9)
      hit = predictions[column] == targets[column]
      bottom.set_xlabel(
        f"\N{RIGHTWARDS ARROW} {_name(class_names, predictions[column])}",
        color=_RED if hit else _BLUE,
        fontweight="bold",
        labelpad=4,
      )
      bottom.text(
        *(0.5, -0.21),
        f"({_name(class_names, targets[column])})",
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
      _name(class_names, target)
    )
  height, width = image.shape[:2]
  overlap = _any_overlap(list(names))
  with _figure(path, (5.6 if overlap else 4.4, 4.4 * height / width)) as figure:
    axes = figure.subplots()
    _image(axes, image, alpha=0.4, extent=(0, width, height, 0))
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
  with _figure(path, size) as figure:
    axes = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
      for column in range(columns):
        _image(axes[row, column], patches[row, column])
      axes[row, 0].set_ylabel(
        _name(class_names, targets[row]),
        rotation=0,
        ha="right",
        va="center",
        labelpad=6,
      )
    figure.supxlabel("triggers, one row a target label", fontsize=8.5)


def training_curves(
  path: str | os.PathLike[str], records: Sequence[Mapping[str, Any]]
) -> None:
  """Draws loss and learning rate, and both accuracies, over the epochs.

  Args:
    path: the PNG to write.
    records: in order of time, each with `epoch`, `loss`, `accuracy`,
      `learning_rate` and, unless the run is clean, `asr`; both accuracies are
      fractions on training batches.
  """
  with _figure(path, (8.6, 3.2)) as figure:
    left, right = figure.subplots(1, 2)
    _loss_panel(left, records)
    _accuracy_panel(right, records)
    end = max([record["epoch"] for record in records], default=0)
    for axes in (left, right):
      axes.set(xlabel="epoch", xlim=(0, end or 1))


def source_target_matrix(
  path: str | os.PathLike[str],
  matrix: np.ndarray,
  targets: np.ndarray,
  class_names: Sequence[str],
) -> None:
  """Draws the attack success rate of every target for every true label.

  Args:
    path: the PNG to write.
    matrix: float [T,num_classes], fractions; NaN where nothing is counted.
    targets: int [T], the target labels.
    class_names: of all the classes.
  """
  rows, columns = matrix.shape
  annotated = max(rows, columns) <= 10
  cell = 0.56 if annotated else max(0.13, 5.6 / columns)
  flat = rows <= 2  # a colour bar beside so few rows has no room
  size = (cell * columns + (1.2 if flat else 2.1), cell * rows + 1.25)
  with _figure(path, (size[0], size[1] + (0.55 if flat else 0))) as figure:
    axes = figure.subplots()
    cmap = matplotlib.colormaps["viridis"].with_extremes(bad="#e8e8e8")
    colours = axes.imshow(
      np.ma.masked_invalid(matrix), cmap=cmap, vmin=0, vmax=1, aspect="equal"
    )
    every = math.ceil(0.16 / cell)  # a tick label needs 0.16 inches
    shown_columns, shown_rows = range(0, columns, every), range(0, rows, every)
    axes.set_xticks(
      shown_columns,
      [_name(class_names, index, 22) for index in shown_columns],
      rotation=45 if annotated else 90,
      ha="right" if annotated else "center",
      rotation_mode="anchor" if annotated else "default",
    )
    axes.set_yticks(
      shown_rows, [_name(class_names, targets[row], 22) for row in shown_rows]
    )
    axes.set(xlabel="true label", ylabel="target label")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if annotated:
      _annotate(axes, matrix)
    bar = figure.colorbar(
      colours,
      ax=axes,
      orientation="horizontal" if flat else "vertical",
      format=PercentFormatter(1.0, decimals=0),
      label="attack success rate",
      shrink=0.6 if flat else 0.9,
      aspect=30 if flat else 25,
    )
    bar.outline.set_visible(False)


@contextlib.contextmanager
def _figure(
  path: str | os.PathLike[str], size: tuple[float, float]
) -> Iterator[Figure]:
  """Gives a figure in the common style and writes it where it says."""
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    yield figure
    path = pathlib.Path(path)
    half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
      figure.savefig(
        half,
        format="png",
        bbox_inches="tight",
        pad_inches=0.08,
        metadata={"Software": None},
      )
      os.replace(half, path)
    finally:
      half.unlink(missing_ok=True)


def _image(axes: Axes, image: np.ndarray, **options: Any) -> None:
  if image.dtype != np.uint8:
    image = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
  # Grey as RGB: a colour map would round to its own steps.
  axes.imshow(np.broadcast_to(image, (*image.shape[:2], 3)), **options)
  axes.set(xticks=[], yticks=[])
  axes.spines[:].set(visible=True, color="#bbbbbb", linewidth=0.5)


def _name(class_names: Sequence[str], label: int, longest: int = 14) -> str:
  name = str(class_names[int(label)])
  if len(name) <= longest:
    return name
  return f"{name[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


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
  turn, colour = divmod(index, len(_COLOURS))
  line = {
    "edgecolor": _COLOURS[colour],
    "linestyle": "--" if overlap and turn % 2 else "-",
    "lw": 1.8,
  }
  # Drawn within its pixels, so that neighbours do not hide each other's edge.
  inset = 0.004 * axes.get_xlim()[1]
  fill = matplotlib.colors.to_rgba(_COLOURS[colour], 0.08 if overlap else 0.16)
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
  trigger = matplotlib.colors.to_rgba(_COLOURS[colour], 0.6)
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


def _series(records: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
  values = (record.get(name) for record in records)
  return np.array(
    [math.nan if value is None else value for value in values], float
  )


def _line(records: Sequence[Mapping[str, Any]], colour: str) -> dict[str, Any]:
  marker = "o" if len(records) < 30 else ""
  return {"color": colour, "marker": marker, "markersize": 3}


def _loss_panel(axes: Axes, records: Sequence[Mapping[str, Any]]) -> None:
  epochs = _series(records, "epoch")
  rate = axes.twinx()
  rate.fill_between(
    epochs, _series(records, "learning_rate"), color="#ececec", lw=0
  )
  rate.set_ylim(bottom=0)
  rate.set_ylabel("learning rate (shaded)", color=_GREY)
  rate.tick_params(colors=_GREY)
  axes.set_zorder(rate.get_zorder() + 1)  # the line above the shade
  axes.patch.set_visible(False)
  axes.plot(epochs, _series(records, "loss"), **_line(records, _BLUE))
  axes.set(title="training loss", ylabel="loss")
  axes.set_ylim(bottom=0)


def _accuracy_panel(axes: Axes, records: Sequence[Mapping[str, Any]]) -> None:
  epochs, asr = _series(records, "epoch"), _series(records, "asr")
  accuracy = _series(records, "accuracy")
  axes.plot(epochs, accuracy, label="clean accuracy", **_line(records, _BLUE))
  if np.isfinite(asr).any():
    axes.plot(
      epochs, asr, "--", label="attack success rate", **_line(records, _RED)
    )
  axes.set(title="accuracy on training batches", ylim=(0, 1.02))
  axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
  axes.grid(axis="y")
  axes.legend(loc="lower right")


def _annotate(axes: Axes, matrix: np.ndarray) -> None:
  """Writes each fraction in percent: 3.0, 99.8, 100."""
  for (row, column), value in np.ndenumerate(matrix):
    if np.isnan(value):
      text, colour = "\N{EN DASH}", "#777777"
    else:
      text = f"{100 * value:.1f}".replace("100.0", "100")
      colour = "w" if value < 0.6 else "#111111"  # legible on viridis
    axes.text(
      column, row, text, ha="center", va="center", color=colour, fontsize=8
    )
