"""Figures of the defences."""

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from bdjax.plots.style import BLUE, GREEN, GREY, RED, figure, image, name

_SAMPLES = {"calibration": GREY, "clean": BLUE, "triggered": RED}


def entropies(
  path: str | os.PathLike[str],
  samples: Mapping[str, np.ndarray],
  thresholds: Mapping[str, float],
  unit: str,
) -> None:
  """Draws STRIP's entropies as histograms, with the thresholds.

  Args:
    path: the PNG to write.
    samples: entropies, float [N], of `calibration`, `clean` and perhaps
      `triggered` inputs.
    thresholds: wanted FRR -> entropy below which an input is rejected.
    unit: of the entropies.
  """
  every = np.concatenate(list(samples.values()))
  low, high = float(every.min()), float(every.max())
  bins = np.linspace(low, high if high > low else low + 1, 61)
  with figure(path, (6.4, 3.2)) as drawing:
    axes = drawing.subplots()
    for name, values in samples.items():
      outline = name == "calibration"
      axes.hist(
        values,
        bins,
        weights=np.full(len(values), 1 / len(values)),
        histtype="step" if outline else "stepfilled",
        color=_SAMPLES[name],
        alpha=None if outline else 0.55,
        label=f"{name} ({len(values)} images)",
      )
    for rate, limit in thresholds.items():
      axes.axvline(limit, color=GREY, lw=0.8, ls=":")
      axes.annotate(
        f"{float(rate):.1%}",
        (limit, 1.0),
        xycoords=("data", "axes fraction"),
        fontsize=7,
        rotation=90,
        ha="right",
        va="top",
      )
    axes.set(
      xlabel=f"mean entropy over the overlays, {unit} (dotted: thresholds by "
      "wanted FRR)",
      ylabel="share of the images",
    )
    axes.legend()


def reversed_triggers(
  path: str | os.PathLike[str],
  masks: np.ndarray,
  patterns: np.ndarray,
  samples: np.ndarray,
  class_names: Sequence[str],
  flagged: Sequence[int],
) -> None:
  """Draws Neural Cleanse's masks, patterns and stamped samples, by class.

  Args:
    path: the PNG to write.
    masks: float [K,H,W,1] in [0,1].
    patterns: float [K,H,W,C] in [0,1].
    samples: float [K,H,W,C] in [0,1], an image stamped with each.
    class_names: of the K classes.
    flagged: labels that stand out, named in red.
  """
  rows = (masks, masks * patterns, samples)
  total = len(masks)
  columns = min(total, 10)
  bands = math.ceil(total / columns)
  size = (0.85 * columns + 0.6, 2.75 * bands)
  with figure(path, size) as drawing:
    axes = drawing.subplots(3 * bands, columns, squeeze=False)
    for panel in axes.flat:
      panel.set_axis_off()
    for label in range(total):
      band, column = divmod(label, columns)
      for row, images in enumerate(rows):
        panel = axes[3 * band + row, column]
        panel.set_axis_on()
        image(panel, images[label])
      top = axes[3 * band, column]
      red = label in flagged
      top.set_title(
        name(class_names, label, 10),
        fontsize=8.5,
        color=RED if red else "#222222",
        fontweight="bold" if red else "normal",
      )
    for band in range(bands):
      for row, text in enumerate(("mask", "mask x\npattern", "stamped")):
        axes[3 * band + row, 0].set_ylabel(text, fontsize=8)


def mask_norms(
  path: str | os.PathLike[str],
  norms: np.ndarray,
  index: np.ndarray,
  class_names: Sequence[str],
  flagged: Sequence[int],
  threshold: float,
) -> None:
  """Draws the L1 norm of every class's mask, and its anomaly index.

  Args:
    path: the PNG to write.
    norms: float [K], pixels; NaN where the search did not reach its rate.
    index: float [K]; NaN likewise.
    class_names: of the K classes.
    flagged: labels that stand out.
    threshold: of the anomaly index.
  """
  total = len(norms)
  with figure(path, (max(6.4, 0.12 * total + 2), 3.2)) as drawing:
    left, right = drawing.subplots(1, 2)
    _bars(left, norms, class_names, flagged)
    _bars(right, index, class_names, flagged)
    left.set(ylabel="L1 norm of the mask, pixels", title="size of the trigger")
    left.axhline(float(np.nanmedian(norms)), color=GREY, ls=":", lw=1)
    right.axhline(threshold, color=GREY, ls=":", lw=1)
    right.set(ylabel="anomaly index", title="its anomaly (red: flagged)")


def _bars(
  axes: Axes,
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
  every = math.ceil(len(values) / 20)
  axes.set_xticks(
    range(0, len(values), every),
    [name(class_names, label, 10) for label in labels[::every]],
    rotation=45,
    ha="right",
    rotation_mode="anchor",
  )


def pruning_curve(
  path: str | os.PathLike[str],
  curves: Mapping[str, np.ndarray],
  stops: Mapping[str, int],
  layer: str,
) -> None:
  """Draws accuracies against the share of a layer's channels pruned.

  Args:
    path: the PNG to write.
    curves: title -> float [C+1], fractions, with 0 to C channels pruned.
    stops: what is marked -> channels pruned there.
    layer: its name.
  """
  with figure(path, (6.4, 3.4)) as drawing:
    axes = drawing.subplots()
    for (title, values), colour in zip(
      curves.items(), (BLUE, RED, GREEN), strict=False
    ):
      share = np.arange(len(values)) / (len(values) - 1)
      axes.plot(share, values, color=colour, label=title)
    for count in sorted(set(stops.values())):
      text = ", ".join(text for text, c in stops.items() if c == count)
      at = count / (len(next(iter(curves.values()))) - 1)
      axes.axvline(at, color=GREY, lw=0.8, ls=":")
      axes.annotate(
        text,
        (at, 0.02),
        xycoords=("data", "axes fraction"),
        rotation=90,
        ha="right",
        fontsize=7,
      )
    axes.set(
      xlabel=f"channels of {layer} pruned, the least active first",
      ylim=(0, 1.02),
      xlim=(0, 1),
    )
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y")
    axes.legend(loc="center left")


def rounds(
  path: str | os.PathLike[str],
  steps: Sequence[str],
  curves: Mapping[str, Sequence[float]],
) -> None:
  """Draws how scores go over the rounds of a repair.

  Args:
    path: the PNG to write.
    steps: a name for each round.
    curves: title -> fractions, one a round.
  """
  with figure(path, (6.4, 3.2)) as drawing:
    axes = drawing.subplots()
    for (title, values), colour in zip(
      curves.items(), (BLUE, RED, GREEN), strict=False
    ):
      axes.plot(range(len(steps)), values, "o-", color=colour, label=title)
    every = math.ceil(len(steps) / 12)
    axes.set_xticks(range(0, len(steps), every), list(steps)[::every])
    axes.set(ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y")
    axes.legend(loc="center left")
