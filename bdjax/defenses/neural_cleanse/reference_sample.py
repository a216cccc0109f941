"""Anomaly index against a random sample of very many classes.

Neural Cleanse (Wang et al. 2019, section IV.B) compares every class with all
others. Where only some are searched to the end, and those the smallest
(`k_arm.py`), each is compared with a random sample of the classes instead. On
the host.
"""

import numpy as np

from bdjax.defenses.neural_cleanse import anomaly


def anomaly_index(
  norms: np.ndarray, converged: np.ndarray, reference: np.ndarray
) -> np.ndarray:
  """Compute how far below the sample each class is, in its scaled MADs.

  (median - norm) / (1.4826 MAD) of the sample, a class of it left out of its
  own median and MAD. Where the sample is all classes, none is left out: the
  index is Neural Cleanse's (`anomaly.anomaly_index`), with a sign.

  Args:
    norms: float [K], pixels, or their logarithms.
    converged: bool [K], searched to the end, with success.
    reference: bool [K], the sample.

  Returns:
    float64 [K], positive for small masks; NaN where not converged.

  Raises:
    UserError: fewer than 3 classes of the sample converged, one of them left
      out, or a MAD is 0.
  """
  norms = np.asarray(norms, np.float64)
  if reference.all():
    index = anomaly.anomaly_index(norms, converged)
    return np.where(norms < np.median(norms[converged]), index, -index)
  group = "the reference sample"
  index = np.full(len(norms), np.nan)
  # Also where no index would be computed.
  anomaly.median_and_mad(norms[converged & reference], group)
  for k in np.flatnonzero(converged):
    sample = converged & reference
    sample[k] = False
    median, scale = anomaly.median_and_mad(norms[sample], group)
    index[k] = (median - norms[k]) / scale
  return index
