"""Figure of a scan over many classes."""

import itertools
import os
from collections.abc import Mapping, Sequence

import numpy as np

from bdjax.plots import style
from bdjax.plots.style import BLUE, GREEN, GREY, ORANGE, RED


def scanned_norms(
  path: str | os.PathLike[str],
  norms: np.ndarray,
  groups: Mapping[str, np.ndarray],
  flagged: Sequence[int],
) -> None:
  """Draw the mask norms of all classes, the smallest first.

  Args:
    path: the PNG to write.
    norms: float [K], in pixels; inf where the search did not succeed.
    groups: title -> bool [K], its classes, for instance the reference sample,
      the other classes that were searched to the end, and the rest.
    flagged: labels that are circled.
  """
  order = np.argsort(norms, kind="stable")
  order = order[np.isfinite(norms[order])]
  rank = np.empty(len(norms), int)
  rank[order] = np.arange(1, len(order) + 1)
  colours = itertools.cycle((BLUE, ORANGE, GREY, GREEN))
  with style.figure(path, (6.4, 3.4)) as figure:
    axes = figure.subplots()
    for title, members in groups.items():
      labels, colour = (
        np.flatnonzero(members & np.isfinite(norms)),
        next(colours),
      )
      axes.plot(
        rank[labels],
        norms[labels],
        ".",
        color=colour,
        ms=3 if colour == GREY else 6,
        label=f"{title} ({len(labels)})",
      )
    for label in flagged:
      point = (rank[label], norms[label])
      axes.plot(*point, "o", mfc="none", color=RED, ms=8)
      axes.annotate(f" {label}", point, color=RED, fontsize=8, va="top")
    axes.set(
      xscale="log" if len(order) > 50 else "linear",
      yscale="log",
      xlabel="classes, the smallest mask first",
      ylabel="L1 norm of the mask, pixels",
    )
    axes.grid(axis="y")
    axes.legend()
