"""Figure of a training."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bdjax.plots import style

if TYPE_CHECKING:
  from matplotlib.axes import Axes


def training_curves(
  path: str | os.PathLike[str], records: Sequence[Mapping[str, Any]]
) -> None:
  """Draw loss and learning rate, and both accuracies, over the epochs.

  Args:
    path: the PNG to write.
    records: in order of time, each with `epoch`, `loss`, `accuracy`,
      `learning_rate` and, unless the run is clean, `asr`; `accuracy` and `asr`
      are fractions of training batches.
  """
  with style.figure(path, (8.6, 3.2)) as figure:
    left, right = figure.subplots(1, 2)
    _draw_loss(left, records)
    _draw_accuracies(right, records)
    end = max([record["epoch"] for record in records], default=0)
    for axes in (left, right):
      axes.set(xlabel="epoch", xlim=(0, end or 1))


def _series(records: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
  values = (record.get(name) for record in records)
  return np.array(
    [math.nan if value is None else value for value in values], float
  )


def _line_style(
  records: Sequence[Mapping[str, Any]], colour: str
) -> dict[str, Any]:
  marker = "o" if len(records) < 30 else ""
  return {"color": colour, "marker": marker, "markersize": 3}


def _draw_loss(axes: "Axes", records: Sequence[Mapping[str, Any]]) -> None:
  epochs = _series(records, "epoch")
  rate = axes.twinx()
  rate.fill_between(
    epochs, _series(records, "learning_rate"), color="#ececec", lw=0
  )
  rate.set_ylim(bottom=0)
  rate.set_ylabel("learning rate (shaded)", color=style.GREY)
  rate.tick_params(colors=style.GREY)
  axes.set_zorder(rate.get_zorder() + 1)  # the line above the shading
  axes.patch.set_visible(False)
  axes.plot(
    epochs, _series(records, "loss"), **_line_style(records, style.BLUE)
  )
  axes.set(title="training loss", ylabel="loss")
  axes.set_ylim(bottom=0)


def _draw_accuracies(
  axes: "Axes", records: Sequence[Mapping[str, Any]]
) -> None:
  epochs, asr = _series(records, "epoch"), _series(records, "asr")
  accuracy = _series(records, "accuracy")
  axes.plot(
    epochs, accuracy, label="clean accuracy", **_line_style(records, style.BLUE)
  )
  if np.isfinite(asr).any():
    axes.plot(
      epochs,
      asr,
      "--",
      label="attack success rate",
      **_line_style(records, style.RED),
    )
  axes.set(title="accuracy on training batches", ylim=(0, 1.02))
  style.in_percent(axes.yaxis)
  axes.grid(axis="y")
  axes.legend(loc="lower right")
