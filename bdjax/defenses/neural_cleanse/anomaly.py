"""Neural Cleanse: which classes have a mask too small to be chance.

The authors' `mad_outlier_detection.py`, with what they do not have: intervals
over restarts, and p-values, against clean networks or against simulated ones.
On the host.

References:
  Wang et al. (2019), Neural Cleanse: Identifying and Mitigating Backdoor
  Attacks in Neural Networks, section IV.B.
"""

from collections.abc import Sequence

import numpy as np
import scipy

from bdjax.errors import UserError
from bdjax.metrics import Score, student_interval

MAD_TO_SD = 1.4826  # of a normal distribution
NULL_DRAWS = 5000  # simulated networks; no p-value is below 1 / (1 + this)


def anomaly_index(norms: np.ndarray, reached: np.ndarray) -> np.ndarray:
  """Compute the distance from the median in scaled median absolute deviations.

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
  median, scale = median_and_mad(norms[reached], f"{reached.size} classes")
  return np.abs(norms - median) / scale


def median_and_mad(
  norms: np.ndarray, group: str = "the classes"
) -> tuple[float, float]:
  """Compute the median and the scaled median absolute deviation.

  Args:
    norms: float [K], finite.
    group: words for the classes that they belong to, for the error.

  Returns:
    (median, 1.4826 MAD): the second is above 0, and is the standard deviation
    where norms are normally distributed.

  Raises:
    UserError: there are fewer than 3, or the MAD is 0.
  """
  if len(norms) < 3:
    raise UserError(
      f"only {len(norms)} of {group} reached the success rate, and an anomaly "
      "index needs at least 3: raise steps or lower asr_threshold"
    )
  median = np.median(norms)
  mad = np.median(np.abs(norms - median))
  if mad == 0:
    raise UserError(
      "the median absolute deviation of the mask norms is 0 (at least half of "
      "them are equal), so no anomaly index is defined: raise steps or use "
      "another seed"
    )
  return float(median), float(MAD_TO_SD * mad)


def flagged(
  norms: np.ndarray, index: np.ndarray, threshold: float = 2.0
) -> list[int]:
  """Return the classes accused of a backdoor, the smallest mask first.

  Only a mask below the median counts: a large one is no sign of a backdoor.

  Args:
    norms: float [K].
    index: float [K], from `anomaly_index`.
    threshold: that the index must exceed; 2 is 95% for a normal distribution.
  """
  small = _below_median(norms, index) & (index > threshold)
  return [int(k) for k in np.argsort(norms, kind="stable") if small[k]]


def max_index(norms: np.ndarray, index: np.ndarray) -> float:
  """Compute the largest anomaly index below the median, a network's statistic.

  Args:
    norms: float [K].
    index: float [K], from `anomaly_index`.

  Returns:
    A float; 0 if no class lies below the median.
  """
  return float(np.max(index[_below_median(norms, index)], initial=0.0))


def _below_median(norms, index):
  """Tell which norms lie below the median of those with an index: bool [K]."""
  median = np.median(norms[~np.isnan(index)])
  return ~np.isnan(index) & (norms < median)


def p_value(observed: float, null: Sequence[float] | np.ndarray) -> float:
  """Compute how often a clean network looks as backdoored as this one.

  (1 + number of null statistics >= observed) / (1 + number of them), the
  permutation test's: never 0, and with n clean networks at least 1 / (1 + n).

  Args:
    observed: the statistic, for instance from `max_index`; not NaN.
    null: the same of clean networks, trained and searched alike, or from
      `null_indices`.

  Returns:
    In (0,1].

  References:
    Phipson and Smyth (2010), Permutation P-values Should Never Be Zero.
  """
  null = np.asarray(null, np.float64)
  return float((1 + np.sum(null >= observed)) / (1 + len(null)))


def null_indices(
  num: int, sample: int, draws: int = NULL_DRAWS, seed: int = 0
) -> np.ndarray:
  """Simulate the largest index of networks whose norms are all alike.

  A clean network of K classes has such an index by chance, where it is that of
  `reference_sample.anomaly_index`: Neural Cleanse's threshold of 2 takes no
  account of K, and a normal quantile for K classes none of how roughly a small
  sample tells median and MAD (with 1283 classes and a sample of 32, the
  quantile of 5% is exceeded by 27%). Meant for the index of logarithms: norms
  themselves are skewed. Of 40 random classes in each of three BadNets of
  CSAW-HackML-2020, Shapiro and Wilk's test gives the logarithms p = 0.67 to
  0.98, the norms 0.002 to 0.25.

  Args:
    num: K.
    sample: classes of the reference sample; K where that is all.
    draws: simulated networks, with norms from one normal distribution.
    seed: of the simulation.

  Returns:
    float64 [draws], ascending.
  """
  generator = np.random.default_rng(seed)
  inside = np.sort(generator.standard_normal((draws, sample)), 1)
  if sample == num:
    largest = _sample_index(inside, inside[:, 0])
  else:
    # The smallest of the others at once: P(min > x) = (1 - Phi(x))^(K - n).
    uniform = generator.random(draws)
    share = -np.expm1(np.log1p(-uniform) / (num - sample))
    outside = _sample_index(inside, scipy.stats.norm.ppf(share))
    largest = np.maximum(outside, _sample_index(inside[:, 1:], inside[:, 0]))
  return np.sort(largest)


def _sample_index(samples, values):
  """Compute the signed index of one value [D] in each sample [D,n]."""
  median = np.median(samples, 1)
  mad = np.median(np.abs(samples - median[:, None]), 1)
  return (median - values) / (MAD_TO_SD * mad)


def median_over_restarts(norms: np.ndarray) -> np.ndarray:
  """Compute the median over restarts; one that did not reach it is infinite.

  Args:
    norms: float [R,K], NaN where the success rate was not reached.

  Returns:
    float [K], NaN where at least half of them did not reach it.
  """
  median = np.median(np.where(np.isfinite(norms), norms, np.inf), 0)
  return np.where(np.isfinite(median), median, np.nan)


def over_restarts(index: np.ndarray) -> list[Score]:
  """Compute each class's mean anomaly index with Student's 95% interval.

  Args:
    index: float [R,K], one row a restart, each from `anomaly_index`.

  Returns:
    K scores in units of the index, cut at 0 below; `n` counts the restarts
    that reached the class. With one, the interval is [0, inf]; with none, the
    mean is NaN too.
  """
  return [
    student_interval(column[~np.isnan(column)], "restarts", "index")
    for column in index.T
  ]
