"""Neural Cleanse: which classes have a mask too small to be chance.

Wang et al. (2019), section IV.B, and the authors' `mad_outlier_detection.py`,
with what they do not have: intervals over restarts, and a comparison with
clean models. On the host.
"""

import numpy as np
import scipy

from bdjax.errors import UserError
from bdjax.metrics import Score

MAD_TO_SD = 1.4826  # of a normal distribution


def anomaly_index(norms: np.ndarray, reached: np.ndarray) -> np.ndarray:
  """Distance from the median in scaled median absolute deviations.

  |l1 - median| / (1.4826 MAD). A class whose search never reached the
  success rate has no norm: it enters neither median nor MAD.

  Args:
    norms: float [K], L1 norms of the masks.
    reached: bool [K].

  Returns:
    float64 [K], at least 0; NaN where not reached.

  Raises:
    UserError: fewer than 3 classes were reached, or the MAD is 0.
  """
  reached = np.asarray(reached, bool)
  norms = np.where(reached, np.asarray(norms, np.float64), np.nan)
  middle, scale = spread(norms[reached], f"of {reached.size} classes")
  return np.abs(norms - middle) / scale


def spread(norms: np.ndarray, which: str = "classes") -> tuple[float, float]:
  """The median, and 1.4826 MAD: a standard deviation, if they are normal.

  Args:
    norms: float [K], finite.
    which: classes these are, for the error.

  Returns:
    Both, the second above 0.

  Raises:
    UserError: there are fewer than 3, or the MAD is 0.
  """
  if len(norms) < 3:
    raise UserError(
      f"{len(norms)} {which} reached the success rate, and an anomaly index "
      "takes 3; allow more steps or a lower threshold"
    )
  middle = np.median(norms)
  mad = np.median(np.abs(norms - middle))
  if mad == 0:
    raise UserError(
      "the median absolute deviation of the mask norms is 0 (half of them or "
      "more are alike), so no anomaly index is defined; search longer or with "
      "another seed"
    )
  return float(middle), float(MAD_TO_SD * mad)


def flagged(
  norms: np.ndarray, index: np.ndarray, threshold: float = 2.0
) -> list[int]:
  """The places of the classes held to be backdoored, smallest mask first.

  Only a mask below the median counts: a large one is no sign of a backdoor.

  Args:
    norms: float [K].
    index: float [K], from `anomaly_index`.
    threshold: that the index must exceed; 2 is 95% for a normal distribution.
  """
  small = _below_median(norms, index) & (index > threshold)
  return [int(k) for k in np.argsort(norms, kind="stable") if small[k]]


def statistic(norms: np.ndarray, index: np.ndarray) -> float:
  """The largest anomaly index below the median, for a model as a whole.

  Args:
    norms: float [K].
    index: float [K], from `anomaly_index`.

  Returns:
    A float; 0 if no class lies below the median.
  """
  return float(np.max(index[_below_median(norms, index)], initial=0.0))


def _below_median(norms, index):
  """Bool [K]; the median is that of the classes with an index."""
  median = np.median(norms[~np.isnan(index)])
  return ~np.isnan(index) & (norms < median)


def p_value(observed: float, null: list[float]) -> float:
  """How often a clean model looks at least as backdoored as this one.

  (1 + number of null statistics >= observed) / (1 + number of them), the
  permutation test's (Phipson and Smyth 2010): never 0, and with n clean
  models not below 1 / (1 + n).

  Args:
    observed: from `statistic`.
    null: the same of clean models, trained and searched alike.
  """
  return (1 + sum(value >= observed for value in null)) / (1 + len(null))


def over_restarts(index: np.ndarray) -> list[Score]:
  """Each class's mean anomaly index with Student's 95% interval.

  Args:
    index: float [R,K], one row a restart, each from `anomaly_index`.

  Returns:
    K scores in units of the index, cut at 0 below; `n` counts the restarts
    that reached the class. With one, the interval is [0, inf]; with none, the
    mean is NaN too.
  """
  return [_interval(column[~np.isnan(column)]) for column in index.T]


def _interval(values):
  n = len(values)
  mean = float(values.mean()) if n else float("nan")
  if n < 2:
    return Score(mean, 0.0, float("inf"), n, "restarts")
  half = scipy.stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n)
  return Score(
    mean, float(max(mean - half, 0.0)), float(mean + half), n, "restarts"
  )
