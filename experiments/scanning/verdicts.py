"""What a scan says: verdicts, words and a table."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.box
import rich.console
import rich.table
from scipy import stats

from bdjax import metrics
from bdjax.defenses import among_many
from bdjax.defenses.neural_cleanse import Reversed
from bdjax.errors import UserError

VERDICTS = ("backdoored", "suspect", "clean", "unsettled")
LEVEL = 0.05  # of the p-value
SHOWN = 10  # classes in the table and the figures
_FEW = 20  # held-out images, below which the words warn


class Judged(NamedTuple):
  """Classes of a scan, the smallest mask first.

  Attributes:
    rows: a dict a class, JSON-ready.
    threshold: of the logarithmic index, for a p-value of `LEVEL`; None where
      there are no indices.
    trouble: why there are no indices; None where there are.
    sample: classes that they are compared with.
    left: classes that were not searched to the end.
    failed: classes that were, and no mask reached the success rate.
  """

  rows: list[dict[str, Any]]
  threshold: float | None
  trouble: str | None
  sample: int
  left: int
  failed: int

  def labels(self, verdict: str) -> list[int]:
    """The classes of a verdict."""
    return [r["class"] for r in self.rows if r["verdict"] == verdict]


def judge(
  found: Reversed,
  frozen: np.ndarray,
  reference: np.ndarray,
  held_out: dict[int, metrics.Score],
  names: Sequence[str],
  threshold: float,
) -> Judged:
  """Verdicts on the classes that were searched to the end.

  Also on those of the `SHOWN` smallest masks that were not: `unsettled`.

  Args:
    found: of all K searches.
    frozen: bool [K], searched to the end.
    reference: bool [K], the sample to compare with.
    held_out: success of each settled class's trigger on held-out images, where
      there are some that it could be tried on.
    names: of the K classes.
    threshold: of the anomaly index.
  """
  settled = frozen & found.reached
  norms = np.where(found.reached, found.norms, np.inf).astype(np.float64)
  # Arms that had the time and no mask took no part in the comparison.
  failed = frozen & ~found.reached
  sample = int((settled & reference).sum())
  index, log_index, trouble = _indices(norms, settled, reference)
  null = None
  if not trouble:
    null = among_many.chance(len(norms) - (failed & reference).sum(), sample)
  order = np.argsort(norms, kind="stable")
  ended = order[settled[order]].tolist()
  shown = set(ended) | {k for k in order[:SHOWN] if found.reached[k]}
  rows = []
  for k in (int(k) for k in order if k in shown):
    score = held_out.get(k)
    row = {
      "class": k,
      "name": names[k],
      "norm": float(norms[k]),
      **_standing(norms, ended, k),
      "anomaly_index": _finite(index[k]),
      "log_index": _finite(log_index[k]),
      "p_value": _p_value(log_index[k], null),
      "held_out": score._asdict() if score else None,
      "reference": bool(reference[k]),
      "steps": int(found.steps[k]),
    }
    rows.append(row | {"verdict": verdict(row, threshold)})
  threshold = None if trouble else float(np.quantile(null, 1 - LEVEL))
  return Judged(
    rows, threshold, trouble, sample, int((~frozen).sum()), int(failed.sum())
  )


def _indices(norms, settled, reference):
  """Both indices, and why there are none where there are none."""
  logs = np.log(np.maximum(norms, 1e-6))  # a mask may be of nothing
  try:
    index = among_many.anomaly_index(norms, settled, reference)
    return index, among_many.anomaly_index(logs, settled, reference), None
  except UserError as error:
    nothing = np.full(len(norms), np.nan)
    return nothing, nothing, str(error)


def _standing(norms, ended, k):
  """Its rank among the classes that ended, and its norm over the next's."""
  if k not in ended:
    return {"rank": None, "ratio_to_next": None}
  place = ended.index(k)
  after = ended[place + 1 : place + 2]
  ratio = float(norms[k] / norms[after[0]]) if after else None
  return {"rank": place + 1, "ratio_to_next": ratio}


def verdict(row: dict[str, Any], threshold: float) -> str:
  """One of `VERDICTS` for a class.

  Backdoored: smaller than chance gives among so many classes, by the index of
  logarithms, and the trigger works on most held-out images. Clean: neither
  that, nor an anomaly index over its threshold; or the trigger surely fails on
  most held-out images: then it is no backdoor, but fits the images that it was
  made from. Suspect: what lies between.

  Args:
    row: with `anomaly_index`, `p_value` and `held_out`.
    threshold: of the anomaly index.
  """
  if row["anomaly_index"] is None:
    return "unsettled"
  stands_out = row["p_value"] <= LEVEL
  if not stands_out and row["anomaly_index"] <= threshold:
    return "clean"
  score = row["held_out"]
  if score and score["high"] < 0.5:
    return "clean"
  works = score is not None and score["mean"] >= 0.5
  return "backdoored" if stands_out and works else "suspect"


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
      chance = num * stats.norm.sf(threshold)
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


def _p_value(index, null):
  return among_many.p_value(index, null) if np.isfinite(index) else None


def _finite(value):
  return float(value) if np.isfinite(value) else None


def _number(value, digits=2):
  return "\N{EN DASH}" if value is None else f"{value:.{digits}f}"


def _share(score):
  if score is None:
    return "\N{EN DASH}"
  hits = _hits(score).replace(" of ", "/")
  return f"{hits} ({100 * score['low']:.0f}-{score['high']:.0%})"
