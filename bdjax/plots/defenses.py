"""Figures of detectors: scores of inputs, and triggers found in a network."""

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bdjax.plots import style
from bdjax.plots.style import BLUE, GREY, RED

if TYPE_CHECKING:
  from matplotlib.axes import Axes

_PRODUCT = "mask \N{MULTIPLICATION SIGN}\npattern"
_SAMPLE_COLOURS = {"calibration": GREY, "clean": BLUE, "triggered": RED}


def score_histogram(
  path: str | os.PathLike[str],
  samples: Mapping[str, np.ndarray],
  thresholds: Mapping[str, float],
  label: str,
) -> None:
  """Draw the scores of an input detector as histograms, with its thresholds.

  Args:
    path: the PNG to write.
    samples: title -> scores, float [N]; `calibration`, `clean` and `triggered`
      have colours of their own, and `calibration` is an outline. Scores that
      are not finite are left out.
    thresholds: wanted false positive rate -> score at which an input is
      rejected.
    label: of the axis of scores, with their unit.
  """
  samples = {name: np.asarray(values) for name, values in samples.items()}
  samples = {n: values[np.isfinite(values)] for n, values in samples.items()}
  samples = {n: values for n, values in samples.items() if len(values)}
  values = np.concatenate([*samples.values(), list(thresholds.values())])
  low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
  bins = np.linspace(low, high if high > low else low + 1, 61)
  others = itertools.cycle((style.GREEN, style.ORANGE, style.SKY, style.PINK))
  with style.figure(path, (6.4, 3.2)) as figure:
    axes = figure.subplots()
    for name, values in samples.items():
      outline = name == "calibration"
      axes.hist(
        values,
        bins,
        weights=np.full(len(values), 1 / len(values)),
        histtype="step" if outline else "stepfilled",
        color=_SAMPLE_COLOURS.get(name) or next(others),
        alpha=None if outline else 0.55,
        label=f"{name} ({len(values)} images)",
      )
    for rate, threshold in thresholds.items():
      style.mark(axes, threshold, f"{float(rate):.1%}", height=1.0)
    note = " (dotted: thresholds by wanted FPR)" if thresholds else ""
    axes.set(xlabel=f"{label}{note}", ylabel="share of the images")
    if samples:
      axes.legend()


def reversed_triggers(
  path: str | os.PathLike[str],
  masks: np.ndarray,
  patterns: np.ndarray,
  samples: np.ndarray,
  class_names: Sequence[str],
  flagged: Sequence[int],
) -> None:
  """Draw reverse-engineered masks, patterns and stamped samples, by class.

  Args:
    path: the PNG to write.
    masks: float [K,H,W,1] in [0,1].
    patterns: float [K,H,W,C] in [0,1].
    samples: float [K,H,W,C] in [0,1], an image stamped with each trigger.
    class_names: of the K classes.
    flagged: labels whose names are drawn in red.
  """
  rows = (masks, masks * patterns, samples)
  total = len(masks)
  columns = min(total, 10)
  bands = math.ceil(total / columns)
  size = (0.85 * columns + 0.6, 2.75 * bands)
  with style.figure(path, size) as figure:
    axes = figure.subplots(3 * bands, columns, squeeze=False)
    for panel in axes.flat:
      panel.set_axis_off()
    for label in range(total):
      band, column = divmod(label, columns)
      for row, images in enumerate(rows):
        panel = axes[3 * band + row, column]
        panel.set_axis_on()
        style.draw_image(panel, images[label])
      red = label in flagged
      axes[3 * band, column].set_title(
        style.class_name(class_names, label, 10),
        fontsize=8.5,
        color=RED if red else "#222222",
        fontweight="bold" if red else "normal",
      )
    for band in range(bands):
      for row, text in enumerate(("mask", _PRODUCT, "stamped")):
        axes[3 * band + row, 0].set_ylabel(text, fontsize=8)


def mask_norms(
  path: str | os.PathLike[str],
  norms: np.ndarray,
  index: np.ndarray,
  class_names: Sequence[str],
  flagged: Sequence[int],
  threshold: float,
) -> None:
  """Draw the L1 norm of each class's mask, and its anomaly index.

  Args:
    path: the PNG to write.
    norms: float [K], in pixels; NaN where the search did not succeed.
    index: float [K]; NaN likewise.
    class_names: of the K classes.
    flagged: labels whose bars are red.
    threshold: of the anomaly index.
  """
  total = len(norms)
  with style.figure(path, (max(6.4, 0.12 * total + 2), 3.2)) as figure:
    left, right = figure.subplots(1, 2)
    _draw_bars(left, norms, class_names, flagged)
    _draw_bars(right, index, class_names, flagged)
    left.set(ylabel="L1 norm of the mask, pixels", title="size of the trigger")
    if np.isfinite(norms).any():
      left.axhline(float(np.nanmedian(norms)), color=GREY, ls=":", lw=1)
    right.axhline(threshold, color=GREY, ls=":", lw=1)
    right.set(ylabel="anomaly index", title="anomaly (red: flagged)")


def _draw_bars(
  axes: "Axes",
  values: np.ndarray,
  class_names: Sequence[str],
  flagged: Sequence[int],
) -> None:
  labels = range(len(values))
  axes.bar(
    labels,
    np.nan_to_num(np.asarray(values, float)),
    color=[RED if label in flagged else BLUE for label in labels],
  )
  for label in labels:
    if not np.isfinite(values[label]):
      axes.annotate(
        "not reached",
        (label, 0),
        rotation=90,
        ha="center",
        va="bottom",
        fontsize=7,
        color=GREY,
      )
  stride = math.ceil(len(values) / 20)
  axes.set_xticks(
    labels[::stride],
    [style.class_name(class_names, label, 10) for label in labels[::stride]],
    rotation=45,
    ha="right",
    rotation_mode="anchor",
  )
