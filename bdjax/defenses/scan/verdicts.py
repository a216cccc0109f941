"""The verdicts of a scan on its classes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bdjax import metrics
from bdjax.defenses.neural_cleanse import anomaly, reference_sample
from bdjax.defenses.neural_cleanse.searches import ReverseEngineered
from bdjax.errors import UserError

VERDICTS = ("backdoored", "suspect", "clean", "inconclusive")
LEVEL = 0.05  # of the p-value
SHOWN = 10  # classes in the table and the figures


class Judged(NamedTuple):
  """The classes of a scan, the smallest mask first.

  Attributes:
    rows: a dict a class, JSON-ready.
    threshold: of the logarithmic index, for a p-value of `LEVEL`; None where
      there are no indices.
    error: why there are no indices; None where there are.
    sample: number of classes that the others are compared with.
    unfinished: number of classes that were not searched to the end.
    failed: number of classes that were, and no mask reached the success rate.
  """

  rows: list[dict[str, Any]]
  threshold: float | None
  error: str | None
  sample: int
  unfinished: int
  failed: int

  def labels(self, verdict: str) -> list[int]:
    """Return the classes of a verdict."""
    return [r["class"] for r in self.rows if r["verdict"] == verdict]


def judge(
  found: ReverseEngineered,
  frozen: np.ndarray,
  reference: np.ndarray,
  held_out: dict[int, metrics.Score],
  names: Sequence[str],
  threshold: float,
) -> Judged:
  """Judge the classes that were searched to the end.

  Those of the `SHOWN` smallest masks that were not are `inconclusive`.

  Args:
    found: of all K searches.
    frozen: bool [K], searched to the end.
    reference: bool [K], the sample to compare with.
    held_out: success of each converged class's trigger on held-out images,
      where there are some that it could be tested on.
    names: of the K classes.
    threshold: of the anomaly index.
  """
  converged = frozen & found.reached
  norms = np.where(found.reached, found.norms, np.inf).astype(np.float64)
  # Classes that had the time and no mask took no part in the comparison.
  failed = frozen & ~found.reached
  sample = int((converged & reference).sum())
  index, log_index, error = _indices(norms, converged, reference)
  null, log_threshold = None, None
  if not error:
    compared = len(norms) - int((failed & reference).sum())
    null = anomaly.null_indices(compared, sample)
    log_threshold = float(np.quantile(null, 1 - LEVEL))
  order = np.argsort(norms, kind="stable")
  ranked = order[converged[order]].tolist()
  shown = set(ranked) | {k for k in order[:SHOWN] if found.reached[k]}
  rows = []
  for k in (int(k) for k in order if k in shown):
    score = held_out.get(k)
    row = {
      "class": k,
      "name": names[k],
      "norm": float(norms[k]),
      **_rank(norms, ranked, k),
      "anomaly_index": _finite(index[k]),
      "log_index": _finite(log_index[k]),
      "p_value": _p_value(log_index[k], null),
      "held_out": score._asdict() if score else None,
      "reference": bool(reference[k]),
      "steps": int(found.steps[k]),
    }
    rows.append(row | {"verdict": verdict(row, threshold)})
  unfinished = int((~frozen).sum())
  return Judged(
    rows, log_threshold, error, sample, unfinished, int(failed.sum())
  )


def _indices(norms, converged, reference):
  """Compute both indices, and the error where there are none."""
  logs = np.log(np.maximum(norms, 1e-6))  # a mask may be of nothing
  try:
    index, log_index = (
      reference_sample.anomaly_index(values, converged, reference)
      for values in (norms, logs)
    )
    return index, log_index, None
  except UserError as error:
    nothing = np.full(len(norms), np.nan)
    return nothing, nothing, str(error)


def _rank(norms, ranked, k):
  """Return its rank among converged classes, and its norm over the next's."""
  if k not in ranked:
    return {"rank": None, "ratio_to_next": None}
  position = ranked.index(k)
  after = ranked[position + 1 : position + 2]
  ratio = float(norms[k] / norms[after[0]]) if after else None
  return {"rank": position + 1, "ratio_to_next": ratio}


def verdict(row: dict[str, Any], threshold: float) -> str:
  """Choose one of `VERDICTS` for a class.

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
    return "inconclusive"
  stands_out = row["p_value"] <= LEVEL
  if not stands_out and row["anomaly_index"] <= threshold:
    return "clean"
  score = row["held_out"]
  if score and score["high"] < 0.5:
    return "clean"
  works = score is not None and score["mean"] >= 0.5
  return "backdoored" if stands_out and works else "suspect"


def _p_value(index, null):
  return anomaly.p_value(index, null) if np.isfinite(index) else None


def _finite(value):
  return float(value) if np.isfinite(value) else None
