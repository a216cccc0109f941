"""Which of very many classes has a mask too small to be chance.

Neural Cleanse (Wang et al. 2019, section IV.B) compares every class with all
others. Where only some are searched to the end, and those the smallest
(`k_arm.py`), each is compared with a random sample of the classes instead. On
the host.
"""

import numpy as np
import scipy

from bdjax.defenses import anomaly

DRAWS = 5000  # simulated networks; no p-value is below 1 / (1 + DRAWS)


def anomaly_index(
  norms: np.ndarray, settled: np.ndarray, reference: np.ndarray
) -> np.ndarray:
  """How far below the reference sample each arm is, in its scaled MADs.

  (median - norm) / (1.4826 MAD) of the sample, an arm of it left out of its
  own median and MAD. Where the sample is all arms, none is left out: the
  index is Neural Cleanse's (`anomaly.anomaly_index`), with a sign.

  Args:
    norms: float [K], pixels, or their logarithms.
    settled: bool [K], searched to the end, with success.
    reference: bool [K], the sample.

  Returns:
    float64 [K], positive for small masks; NaN where not settled.

  Raises:
    UserError: fewer than 3 arms of the sample settled, an arm of it aside, or
      a MAD is 0.
  """
  norms = np.asarray(norms, np.float64)
  if reference.all():
    index = anomaly.anomaly_index(norms, settled)
    return np.where(norms < np.median(norms[settled]), index, -index)
  which = "classes of the reference sample"
  index = np.full(len(norms), np.nan)
  # Also where no arm would be asked for.
  anomaly.spread(norms[settled & reference], which)
  for arm in np.flatnonzero(settled):
    sample = settled & reference
    sample[arm] = False
    middle, scale = anomaly.spread(norms[sample], which)
    index[arm] = (middle - norms[arm]) / scale
  return index


def chance(
  num: int, sample: int, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
  """The largest index in networks whose norms are all of one normal law.

  What a clean network of K classes gives by chance, simulated: Neural
  Cleanse's threshold of 2 takes no account of K, and a normal quantile for K
  classes none of how roughly a small sample tells median and MAD (with 1283
  classes and a sample of 32, the quantile of 5% is exceeded by 27%). Meant for
  the index of logarithms: norms themselves are skewed. Of 40 random classes in
  each of three BadNets of CSAW-HackML-2020, Shapiro and Wilk's test gives the
  logarithms p = 0.67 to 0.98, the norms 0.002 to 0.25.

  Args:
    num: K.
    sample: arms of the reference sample; K where that is all.
    draws: simulated networks.
    seed: of the simulation.

  Returns:
    float64 [draws], ascending.
  """
  generator = np.random.default_rng(seed)
  inside = np.sort(generator.standard_normal((draws, sample)), 1)
  if sample == num:
    largest = _index(inside, inside[:, 0])
  else:
    # The smallest of the others at once: P(min > x) = (1 - Phi(x))^(K - n).
    uniform = generator.random(draws)
    share = -np.expm1(np.log1p(-uniform) / (num - sample))
    outside = _index(inside, scipy.stats.norm.ppf(share))
    largest = np.maximum(outside, _index(inside[:, 1:], inside[:, 0]))
  return np.sort(largest)


def p_value(index: float, null: np.ndarray) -> float:
  """How often a clean network has so large an index somewhere, by `chance`."""
  above = len(null) - np.searchsorted(null, index)
  return float((1 + above) / (1 + len(null)))


def _index(samples, values):
  """Of one value against one sample [n] in each row."""
  middle = np.median(samples, 1)
  mad = np.median(np.abs(samples - middle[:, None]), 1)
  return (middle - values) / (anomaly.MAD_TO_SD * mad)
