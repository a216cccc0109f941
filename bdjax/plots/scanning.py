"""Figures of a scan over many classes."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from bdjax.plots.style import BLUE, GREY, ORANGE, RED, figure


def scanned_norms(
  path: str | os.PathLike[str],
  norms: np.ndarray,
  groups: Mapping[str, np.ndarray],
  flagged: Sequence[int],
) -> None:
  """Draws the mask norms of all classes, the smallest first.

  Args:
    path: the PNG to write.
    norms: float [K], pixels; inf where the search did not reach its rate.
    groups: title -> bool [K], up to three, for instance the reference sample,
      the other classes that were searched to the end, and the rest.
    flagged: labels that stand out, named.
  """
  order = np.argsort(norms, kind="stable")
  order = order[np.isfinite(norms[order])]
  place = np.empty(len(norms), int)
  place[order] = np.arange(1, len(order) + 1)
  colours = (BLUE, ORANGE, GREY)
  with figure(path, (6.4, 3.4)) as drawing:
    axes = drawing.subplots()
    for (title, chosen), colour in zip(groups.items(), colours, strict=False):
      rows = np.flatnonzero(chosen & np.isfinite(norms))
      axes.plot(
        place[rows],
        norms[rows],
        ".",
        color=colour,
        ms=3 if colour == GREY else 6,
        label=f"{title} ({len(rows)})",
      )
    for label in flagged:
      at = (place[label], norms[label])
      axes.plot(*at, "o", mfc="none", color=RED, ms=8)
      axes.annotate(f" {label}", at, color=RED, fontsize=8, ha="left", va="top")
    axes.set(
      xscale="log" if len(order) > 50 else "linear",
      yscale="log",
      xlabel="classes, the smallest mask first",
      ylabel="L1 norm of the mask, pixels",
    )
    axes.grid(axis="y")
    axes.legend()
