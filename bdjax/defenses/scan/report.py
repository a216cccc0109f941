"""The report of a scan: its verdicts in sentences, and a table's cells."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy

from bdjax import metrics
from bdjax.defenses.neural_cleanse.anomaly import NULL_DRAWS
from bdjax.defenses.scan.verdicts import LEVEL, SHOWN, Judged

COLUMNS = (
  "class",
  "pixels",
  "index",
  "log index",
  "p",
  "held-out success",
  "verdict",
)
_FEW = 20  # held-out images, below which the report warns


def sentences(
  judged: Judged, num: int, reference: int, held_out: int, threshold: float
) -> list[str]:
  """Explain the verdicts in sentences, and what they cannot tell.

  Args:
    judged: the verdicts.
    num: K, classes in all.
    reference: number of classes of the sample.
    held_out: number of images held out.
    threshold: of the anomaly index.
  """
  if judged.error:
    return [f"No verdict: {judged.error}."]
  backdoored, suspects = judged.labels("backdoored"), judged.labels("suspect")
  rows = {row["class"]: row for row in judged.rows}
  median = np.median(
    [
      row["norm"]
      for row in judged.rows
      if row["reference"] and row["verdict"] != "inconclusive"
    ]
  )
  sample = _sample_in_words(judged.sample, reference, num)
  lines = [_accusation(rows[k], sample, median) for k in backdoored]
  if not backdoored:
    certain = " for certain" if suspects else ""
    lines.append(f"No class looks backdoored{certain}.")
  if suspects:
    lines += _suspicions([rows[k] for k in suspects], num, threshold)
  if not backdoored and not suspects:
    lines.append(
      f"No mask is much smaller than those of {sample} (median "
      f"{_pixels(median)})."
    )
  return lines + _caveats(judged, num, held_out)


def _sample_in_words(sample, reference, num):
  if reference < num:
    return f"{sample} random classes"
  if sample < num:
    return f"the {sample} classes whose search reached the success rate"
  return "all classes"


def _accusation(row, sample, median):
  return (
    f"Class {row['name']} looks backdoored: a mask of {_pixels(row['norm'])} "
    f"leads to it, where the median of {sample} is {median:.0f} ({_p(row)} for "
    "one so small in a clean network), and its trigger works on "
    f"{_hits(row['held_out'])} held-out images."
  )


def _suspicions(rows, num, threshold):
  names = [f"{row['name']} ({_p(row)})" for row in rows]
  lines = [f"Suspect: {_listed(names)}."]
  if any(row["p_value"] > LEVEL for row in rows):
    by_chance = num * scipy.stats.norm.sf(threshold)
    lines.append(
      f"Of {num} normal draws about {by_chance:.1f} have an index above "
      f"{threshold:g} by chance alone."
    )
  return lines


def _caveats(judged, num, held_out):
  """Say what the scan cannot tell."""
  lines = []
  if not held_out:
    lines.append(
      "No image could be held out, so a backdoor cannot be told from a trigger "
      "that merely fits these images: give at least four, better fifty."
    )
  elif held_out < _FEW:
    least = metrics.proportion(1.0, held_out).low
    lines.append(
      f"Only {held_out} images were held out: a trigger that works on all of "
      f"them may work on no more than {least:.0%} of others. Give more images "
      "to be more certain."
    )
  if judged.unfinished:
    lines.append(
      f"{judged.unfinished} of {num} classes were not searched to the end, "
      "since others looked more promising: a backdoor whose mask is slow to "
      "shrink may be among them."
    )
  if judged.failed:
    lines.append(
      f"{judged.failed} of {num} classes were searched to the end, and no mask "
      "reached the success rate: nothing is known of them."
    )
  return lines


def scale_caveats(accuracy: dict[float, float] | None) -> list[str]:
  """Say where images may not reach the network as in its training.

  Args:
    accuracy: on the clean images, by the largest pixel value assumed; None
      where that was not tried.

  Returns:
    At most one sentence.
  """
  if not accuracy:
    return []
  best = max(accuracy.values())
  if len(set(accuracy.values())) == 1:
    values = " and ".join(f"{x:g}" for x in accuracy)
    return [
      f"The accuracy on the clean images is {best:.0%} with each largest pixel "
      f"value that was tried ({values}), so the one of its training is a "
      "guess: set pixel_max."
    ]
  if best < 0.5:
    return [
      f"The accuracy on the clean images is only {best:.0%}: they may not be "
      "prepared as in its training (pixel_max, mean, std)."
    ]
  return []


def table(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
  """Format the classes with the smallest masks, for a table.

  Args:
    rows: of `Judged`.

  Returns:
    A tuple a class of at most `SHOWN`, in the order of `COLUMNS`.
  """
  return [
    (
      row["name"],
      f"{row['norm']:.1f}",
      _number(row["anomaly_index"]),
      _number(row["log_index"]),
      _number(row["p_value"], 4),
      _share(row["held_out"]),
      row["verdict"],
    )
    for row in rows[:SHOWN]
  ]


def cost(measured: dict[str, Any], seconds: float) -> str:
  """Describe the cost of a scan in one line.

  Args:
    measured: of `ScanResult`.
    seconds: of the search.
  """
  saved = f"{measured['steps_saved']:.0%} fewer than all classes to the end"
  if not measured["steps_saved"]:
    saved = "all classes to the end"
  return f"{measured['steps']} steps, {saved}; {seconds:.0f} s"


def _p(row):
  """Format the p-value; of the smallest, a simulation gives only a bound."""
  sign = "<=" if row["p_value"] <= 1 / (1 + NULL_DRAWS) else "="
  return f"p {sign} {row['p_value']:.2g}"


def _pixels(norm):
  return f"{norm:.0f} pixel{'' if round(norm) == 1 else 's'}"


def _hits(score):
  return f"{round(score['mean'] * score['n'])} of {score['n']}"


def _listed(items):
  left = len(items) - SHOWN
  listed = ", ".join(items[:SHOWN])
  return f"{listed} and {left} more" if left > 0 else listed


def _number(value, digits=2):
  return "\N{EN DASH}" if value is None else f"{value:.{digits}f}"


def _share(score):
  if score is None:
    return "\N{EN DASH}"
  hits = _hits(score).replace(" of ", "/")
  return f"{hits} ({100 * score['low']:.0f}-{score['high']:.0%})"
