"""Scores: equations on arrays, on the host."""

from typing import NamedTuple

import numpy as np
import scipy


class Score(NamedTuple):
  """A mean with its 95% interval.

  Attributes:
    mean: the estimate: a fraction, or in units of its own.
    low: lower end.
    high: upper end.
    n: how many observations the interval rests on.
    over: what those are: `test images`, `seeds`, `restarts` or `labels`.
  """

  mean: float
  low: float
  high: float
  n: int
  over: str


def proportion(mean: float, n: int) -> Score:
  """Wilson's 95% interval of a share of `n` test images.

  Wilson (1927). It does not shrink to a point at 0 and 1 as the normal
  interval does. Where each image was tried several times, `mean` is over all
  tries and `n` still counts images: the tries of one image are not
  independent, so they narrow nothing.

  Args:
    mean: share in [0,1].
    n: images, at least 1.
  """
  z = scipy.stats.norm.ppf(0.975)
  middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
  spread = mean * (1 - mean) / n + z * z / (4 * n * n)
  half = z / (1 + z * z / n) * np.sqrt(spread)
  # At the ends the interval closes exactly; rounding must not cut the mean.
  low, high = min(middle - half, mean), max(middle + half, mean)
  return Score(
    float(mean), float(max(low, 0.0)), float(min(high, 1.0)), n, "test images"
  )


def over_seeds(values: list[float]) -> Score:
  """Student's 95% interval of the mean of independent runs.

  Args:
    values: one score a run, fractions; with one the interval is [0,1].
  """
  score = difference_over_seeds(values)
  return score._replace(low=max(score.low, 0.0), high=min(score.high, 1.0))


def difference_over_seeds(values: list[float]) -> Score:
  """Student's 95% interval of the mean difference of paired runs.

  Args:
    values: one difference of two fractions a seed; with one the interval is
      [-1,1].
  """
  if len(values) < 2:
    return Score(values[0], -1.0, 1.0, 1, "seeds")
  return mean_over_seeds(values)


def mean_over_seeds(values: list[float]) -> Score:
  """Student's 95% interval of the mean of any figure.

  Args:
    values: one a seed, at least two.
  """
  n, mean = len(values), float(np.mean(values))
  half = scipy.stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
  return Score(mean, float(mean - half), float(mean + half), n, "seeds")


def difference(first: Score, second: Score) -> Score:
  """The difference of two shares of the same test images, with its interval.

  Newcombe (1998), method 10: the Wilson intervals combined, as if the two
  were independent, which for two models on one test set is on the wide side.

  Args:
    first: from `proportion`.
    second: likewise.
  """
  mean = first.mean - second.mean
  low = np.hypot(first.mean - first.low, second.high - second.mean)
  high = np.hypot(first.high - first.mean, second.mean - second.low)
  return Score(
    mean, float(mean - low), float(mean + high), first.n, "test images"
  )


def auroc(
  low: np.ndarray, high: np.ndarray, seed: int = 0, resamples: int = 1000
) -> Score:
  """Area under the ROC curve, with a bootstrap interval.

  The chance that a member of `low` is less than one of `high`, ties counting
  half (Hanley and McNeil 1982); 0.5 tells nothing. The interval is the
  percentile bootstrap's, both samples drawn anew as if they were independent,
  which for an image with and without a trigger is on the wide side. At 0 and
  1 it is a point: no resample differs.

  Args:
    low: float [M], for instance entropies of triggered inputs.
    high: float [N], of clean ones.
    seed: of the resampling.
    resamples: how many.
  """

  def area(low, high):
    both = np.concatenate([low, high], -1)
    ranks = scipy.stats.rankdata(both, axis=-1)[..., : low.shape[-1]]
    n, m = low.shape[-1], high.shape[-1]
    return 1 - (ranks.sum(-1) - n * (n + 1) / 2) / (n * m)

  mean = float(area(low, high))
  alike = np.unique(np.concatenate([low, high])).size == 1
  if alike or mean in (0.0, 1.0) or min(len(low), len(high)) < 2:
    ends = mean, mean  # what every resample gives
  else:
    found = scipy.stats.bootstrap(
      (low, high),
      lambda a, b, axis: area(a, b),
      n_resamples=resamples,
      batch=50,
      method="percentile",
      vectorized=True,
      rng=np.random.default_rng(seed),
    )
    ends = found.confidence_interval
  number = min(len(low), len(high))
  return Score(mean, float(ends[0]), float(ends[1]), number, "test images")


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
  """The share of predictions int [N] that equal the labels int [N]."""
  return float(np.mean(predictions == labels))


def success_matrix(
  predictions: np.ndarray,
  labels: np.ndarray,
  targets: np.ndarray,
  counts: np.ndarray,
  num_classes: int,
) -> np.ndarray:
  """Attack success rate from each source label to each target.

  Args:
    predictions: int [D,T,N], of every test image triggered towards target t
      in draw d.
    labels: int [N], the true ones.
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
  """The share of triggered images classified as the target, per target.

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
  """The share of triggered images still given their true label, per target.

  Args and result as for `attack_success_rate`, with labels int [N].
  """
  hits = (predictions == labels) & counts
  with np.errstate(invalid="ignore"):
    return hits.sum(-1) / counts.sum(-1)
