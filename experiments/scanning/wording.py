"""What a scan says: the verdicts in words, and the printed report."""

import pathlib
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.table
import scipy

from bdjax import metrics
from bdjax.defenses import among_many
from experiments.scanning.verdicts import LEVEL, SHOWN, Judged

_FEW = 20  # held-out images, below which the words warn


def words(
  judged: Judged,
  num: int,
  reference: int,
  held_out: int,
  threshold: float,
  accuracy: dict[float, float] | None = None,
) -> list[str]:
  """What the verdicts mean, and what they cannot tell: sentences.

  Args:
    judged: the verdicts.
    num: K, classes in all.
    reference: classes of the sample.
    held_out: images held out.
    threshold: of the anomaly index.
    accuracy: on the clean images, by what white is taken for, where that was
      tried.
  """
  if judged.trouble:
    return [f"No verdict: {judged.trouble}.", *_scale_doubts(accuracy)]
  guilty, doubtful = judged.labels("backdoored"), judged.labels("suspect")
  by_class = {row["class"]: row for row in judged.rows}
  usual = np.median(
    [
      r["norm"]
      for r in judged.rows
      if r["reference"] and r["verdict"] != "unsettled"
    ]
  )
  sample = f"{judged.sample} random classes"
  if reference == num:
    sample = "all classes"
    if judged.sample < num:
      sample = f"the {judged.sample} classes that a mask led to"
  out = []
  for k in guilty:
    row, score = by_class[k], by_class[k]["held_out"]
    out.append(
      f"Class {row['name']} looks backdoored: a mask of {row['norm']:.0f} "
      f"pixels leads to it, where the median of {sample} is {usual:.0f} "
      f"({_p(row)} for one so small in a clean network), and its trigger works "
      f"on {_hits(score)} held-out images."
    )
  if not guilty:
    certain = " for certain" if doubtful else ""
    out.append(f"No class looks backdoored{certain}.")
  if doubtful:
    rows = [by_class[k] for k in doubtful]
    names = _listed([f"{row['name']} ({_p(row)})" for row in rows])
    out.append(f"Suspect: {names}.")
    if any(row["p_value"] > LEVEL for row in rows):
      chance = num * scipy.stats.norm.sf(threshold)
      out.append(
        f"Of {num} normal draws about {chance:.1f} have an index above "
        f"{threshold:g} by chance alone."
      )
  if not guilty and not doubtful:
    out.append(
      f"No mask is much smaller than those of {sample} ({usual:.0f} pixels)."
    )
  return out + _doubts(judged, num, held_out) + _scale_doubts(accuracy)


def _doubts(judged, num, held_out):
  """What the scan cannot tell."""
  out = []
  if not held_out:
    out.append(
      "No image could be held out, so a backdoor cannot be told from a trigger "
      "that merely fits these images: give at least four, better fifty."
    )
  elif held_out < _FEW:
    least = metrics.proportion(1.0, held_out).low
    out.append(
      f"Only {held_out} images were held out: a trigger that works on all of "
      f"them may work on no more than {least:.0%} of others. Give more images "
      "to be surer."
    )
  if judged.left:
    out.append(
      f"{judged.left} of {num} classes were left when others promised more: a "
      "backdoor whose mask is slow to shrink may be among them."
    )
  if judged.failed:
    out.append(
      f"{judged.failed} of {num} classes were searched to the end, and no mask "
      "reached the success rate: of them nothing is said."
    )
  return out


def _scale_doubts(accuracy):
  """Whether the images reach the network as in its training."""
  if not accuracy:
    return []
  best = max(accuracy.values())
  if len(set(accuracy.values())) == 1:
    return [
      f"It is right on {best:.0%} of the clean images whether white is 1 or "
      "255, so which it was in training is a guess: say it with --pixels."
    ]
  if best < 0.5:
    return [
      f"It is right on {best:.0%} of the clean images only: are they prepared "
      "as in its training (--pixels, --mean, --std)?"
    ]
  return []


def _p(row):
  """The p-value; a simulation says no more of the smallest than a bound."""
  floor = 1 / (1 + among_many.DRAWS)
  sign = "<=" if row["p_value"] <= floor else "="
  return f"p {sign} {row['p_value']:.2g}"


def _hits(score):
  return f"{round(score['mean'] * score['n'])} of {score['n']}"


def print_scan(results: dict[str, Any], directory: pathlib.Path) -> None:
  """Prints the smallest classes, and the words.

  Args:
    results: what `results.json` says.
    directory: where it stands.
  """
  table = rich.table.Table(
    title=f"scan of {results['network']['name']}",
    box=rich.box.SIMPLE_HEAD,
    title_justify="left",
  )
  for name in ("class", "pixels", "index", "log index", "p"):
    table.add_column(name, justify="right")
  table.add_column("held-out success")
  table.add_column("verdict")
  for row in results["details"]["classes"][:SHOWN]:
    table.add_row(
      row["name"],
      f"{row['norm']:.1f}",
      _number(row["anomaly_index"]),
      _number(row["log_index"]),
      _number(row["p_value"], 4),
      _share(row["held_out"]),
      row["verdict"],
    )
  console = rich.console.Console(highlight=False)
  console.print(table)
  measured = results["measured"]
  saved = f"{measured['steps_saved']:.0%} fewer than all classes to the end"
  if not measured["steps_saved"]:
    saved = "all classes to the end"
  seconds = f"{results['seconds']['search']:.0f} s"
  console.print(f"  {measured['steps']} steps, {saved}; {seconds}")
  for sentence in results["words"]:
    console.print(f"  {sentence}", soft_wrap=True)
  console.print(f"  {directory}", soft_wrap=True)


def _listed(labels):
  shown = ", ".join(map(str, labels[:SHOWN]))
  left = len(labels) - SHOWN
  return f"{shown} and {left} more" if left > 0 else shown


def _number(value, digits=2):
  return "\N{EN DASH}" if value is None else f"{value:.{digits}f}"


def _share(score):
  if score is None:
    return "\N{EN DASH}"
  hits = _hits(score).replace(" of ", "/")
  return f"{hits} ({100 * score['low']:.0f}-{score['high']:.0%})"
