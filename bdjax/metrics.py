"""Scores and their intervals: equations on arrays, on the host."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy

# The range of each unit: an interval is cut to it, and is all of it where one
# observation leaves the spread unknown.
_RANGES = {
  "share": (0.0, 1.0),
  "index": (0.0, np.inf),
  "bits": (0.0, np.inf),
  "ms": (0.0, np.inf),
  "count": (0.0, np.inf),
  "pixels": (0.0, np.inf),
  "number": (-np.inf, np.inf),
}
UNITS = tuple(_RANGES)


class Score(NamedTuple):
  """An estimate with its 95% interval.

  Attributes:
    mean: the estimate, in `unit`.
    low: lower end of the interval; -inf where nothing bounds it.
    high: upper end; inf likewise.
    n: number of observations that the interval rests on.
    over: the observations, in the plural: `test images`, `seeds`, `restarts`.
    unit: one of `UNITS`: `share` (in [0,1]), `index` (an anomaly index),
      `bits`, `ms`, `count`, `pixels`, or `number` for any other.
  """

  mean: float
  low: float
  high: float
  n: int
  over: str
  unit: str = "share"


def proportion(mean: float, n: int, over: str = "test images") -> Score:
  """Compute Wilson's 95% interval of a share of `n` observations.

  It does not shrink to a point at 0 and 1 as the normal interval does. Where
  each image was tried several times, `mean` is over all tries and `n` still
  counts images: the tries of one image are not independent, so they narrow
  nothing.

  Args:
    mean: share in [0,1].
    n: number of observations, at least 1.
    over: the observations, in the plural.

  Returns:
    The share with its interval.

  References:
    Wilson (1927), Probable Inference, the Law of Succession, and Statistical
    Inference.
  """
  z = scipy.stats.norm.ppf(0.975)
  middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
  variance = mean * (1 - mean) / n + z * z / (4 * n * n)
  half = z / (1 + z * z / n) * np.sqrt(variance)
  # At the ends the interval closes exactly; rounding must not cut the mean.
  low, high = min(middle - half, mean), max(middle + half, mean)
  return Score(
    float(mean), float(max(low, 0.0)), float(min(high, 1.0)), n, over
  )


def student_interval(
  values: Sequence[float] | np.ndarray,
  over: str,
  unit: str = "share",
  limits: tuple[float, float] | None = None,
) -> Score:
  """Compute Student's 95% interval of a mean.

  Args:
    values: float [n], independent observations.
    over: the observations, in the plural.
    unit: of the values, one of `UNITS`.
    limits: lower and upper limit of the interval; None for those of the unit.

  Returns:
    The mean with its interval, which is `limits` where n is 1; of no values
    the mean is NaN.
  """
  values = np.asarray(values, float)
  n, (lowest, highest) = values.size, limits or _RANGES[unit]
  mean = float(values.mean()) if n else float("nan")
  if n < 2:
    return Score(mean, lowest, highest, n, over, unit)
  half = scipy.stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n)
  low, high = max(mean - half, lowest), min(mean + half, highest)
  return Score(mean, float(low), float(high), n, over, unit)


def over_seeds(
  values: Sequence[float] | np.ndarray, unit: str = "share"
) -> Score:
  """Compute Student's 95% interval of the mean of independent runs.

  Args:
    values: float [n], one score a run.
    unit: of the scores, one of `UNITS`.

  Returns:
    The mean with its interval, which of one run is the whole range of the unit.
  """
  return student_interval(values, "seeds", unit)


def difference_over_seeds(values: Sequence[float] | np.ndarray) -> Score:
  """Compute Student's 95% interval of the mean difference of paired runs.

  Args:
    values: float [n], one difference of two shares a seed.

  Returns:
    The mean with its interval, which of one pair is [-1,1].
  """
  return student_interval(values, "seeds", limits=(-1.0, 1.0))


def difference(first: Score, second: Score) -> Score:
  """Compute the difference of two shares of the same observations.

  The Wilson intervals are combined as if the two were independent, which for
  two models on one test set is on the wide side.

  Args:
    first: from `proportion`.
    second: likewise.

  Returns:
    `first` minus `second` with its 95% interval.

  References:
    Newcombe (1998), Interval Estimation for the Difference Between Independent
    Proportions, method 10.
  """
  mean = first.mean - second.mean
  low = np.hypot(first.mean - first.low, second.high - second.mean)
  high = np.hypot(first.high - first.mean, second.mean - second.low)
  return Score(mean, float(mean - low), float(mean + high), first.n, first.over)


def auroc(
  low: np.ndarray,
  high: np.ndarray,
  over: str = "test images",
  *,
  seed: int = 0,
  resamples: int = 1000,
) -> Score:
  """Compute the area under the ROC curve, with a bootstrap interval.

  The area is the chance that a member of `low` is less than one of `high`,
  ties counting half; 0.5 is chance. The interval is the percentile bootstrap's,
  both samples drawn anew as if they were independent, which for an image with
  and without a trigger is on the wide side. At 0 and 1 it is a point: no
  resample differs.

  Args:
    low: float [M], for instance entropies of triggered inputs.
    high: float [N], of clean ones.
    over: the observations, in the plural.
    seed: of the resampling.
    resamples: number of bootstrap samples.

  Returns:
    The area in [0,1]; its `n` is the smaller of M and N.

  References:
    Hanley and McNeil (1982), The Meaning and Use of the Area under a Receiver
    Operating Characteristic (ROC) Curve.
  """
  mean = float(_area(low, high))
  constant = np.unique(np.concatenate([low, high])).size == 1
  if constant or mean in (0.0, 1.0) or min(len(low), len(high)) < 2:
    ends = mean, mean  # what every resample gives
  else:
    ends = scipy.stats.bootstrap(
      (low, high),
      lambda low, high, axis: _area(low, high),
      n_resamples=resamples,
      batch=50,
      method="percentile",
      vectorized=True,
      rng=np.random.default_rng(seed),
    ).confidence_interval
  n = min(len(low), len(high))
  return Score(mean, float(ends[0]), float(ends[1]), n, over)


def _area(low, high):
  """Compute the area from ranks; low [...,M] and high [...,N] -> [...]."""
  m, n = low.shape[-1], high.shape[-1]
  ranks = scipy.stats.rankdata(np.concatenate([low, high], -1), axis=-1)
  return 1 - (ranks[..., :m].sum(-1) - m * (m + 1) / 2) / (m * n)


def defense_effectiveness_rate(
  before: tuple[float, float], after: tuple[float, float]
) -> float:
  """Compute the defence effectiveness rate (DER) of a repair.

  DER = (max(0, dASR) - max(0, dACC) + 1) / 2, where dASR is the fall of the
  attack success rate and dACC that of clean accuracy: 1 where the attack is
  gone for free, 0.5 where nothing changed, less where accuracy falls by more
  than the attack.

  Args:
    before: clean accuracy and attack success rate before it, shares.
    after: the same after it.

  Returns:
    A share in [0,1].

  References:
    Zhu, Wei, Shen, Fan and Wu (2023), Enhancing Fine-Tuning Based Backdoor
    Defense with Sharpness-Aware Minimization.
  """
  accuracy_fall = before[0] - after[0]
  asr_fall = before[1] - after[1]
  return (max(0.0, asr_fall) - max(0.0, accuracy_fall) + 1) / 2


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
  """Compute the share of predictions int [N] that equal the labels int [N]."""
  return float(np.mean(predictions == labels))


def success_matrix(
  predictions: np.ndarray,
  labels: np.ndarray,
  targets: np.ndarray,
  counts: np.ndarray,
  num_classes: int,
) -> np.ndarray:
  """Compute the attack success rate from each source label to each target.

  Args:
    predictions: int [D,T,N], of every test image triggered towards each of T
      targets in each of D draws.
    labels: int [N], the true labels.
    targets: int [T].
    counts: bool [T,N], the images that count for each target.
    num_classes: K.

  Returns:
    float64 [T,K], fractions; NaN where no image counts, as where the source
    is the target.
  """
  hits = (predictions == targets[None, :, None]).mean(0)  # [T,N]
  sources = np.eye(num_classes)[labels]  # [N,K]
  with np.errstate(invalid="ignore"):
    return ((hits * counts) @ sources) / (counts @ sources)


def attack_success_rate(
  predictions: np.ndarray, targets: np.ndarray, counts: np.ndarray
) -> np.ndarray:
  """Compute the attack success rate of each target.

  It is the share of triggered images that are classified as the target.

  Args:
    predictions: int [D,T,N], as in `success_matrix`.
    targets: int [T].
    counts: bool [T,N], the images that count for each target; never those
      whose true label it is.

  Returns:
    float64 [D,T], fractions; NaN for a target for which no image counts.
  """
  hits = (predictions == targets[None, :, None]) & counts
  with np.errstate(invalid="ignore"):
    return hits.sum(-1) / counts.sum(-1)


def robust_accuracy(
  predictions: np.ndarray, labels: np.ndarray, counts: np.ndarray
) -> np.ndarray:
  """Compute the robust accuracy under the trigger of each target.

  It is the share of triggered images that still get their true label.

  Args:
    predictions: int [D,T,N], as in `success_matrix`.
    labels: int [N], the true labels.
    counts: bool [T,N], the images that count for each target.

  Returns:
    float64 [D,T], fractions; NaN for a target for which no image counts.
  """
  hits = (predictions == labels) & counts
  with np.errstate(invalid="ignore"):
    return hits.sum(-1) / counts.sum(-1)
