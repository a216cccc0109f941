import numpy as np
import pytest

from bdjax.defenses.neural_cleanse import anomaly, reference_sample
from bdjax.errors import UserError

INF = np.inf


def test_index_against_the_sample_by_hand():
  norms = np.array([100.0, 120.0, 80.0, 140.0, 30.0, 500.0])
  reference = np.array([True] * 4 + [False] * 2)
  converged = np.array([True] * 5 + [False])
  got = reference_sample.anomaly_index(norms, converged, reference)
  # The fifth against 80, 100, 120, 140: median 110, distances 30, 10, 10, 30.
  assert got[4] == pytest.approx((110 - 30) / (1.4826 * 20))
  # The first against the others of the sample: 80, 120, 140; 40, 0, 20.
  assert got[0] == pytest.approx((120 - 100) / (1.4826 * 20))
  assert np.isnan(got[5])


def test_index_of_all_classes_is_neural_cleanses():
  norms = np.array([50.0, 100.0, 110.0, 130.0, 90.0])
  everyone = np.ones(5, bool)
  got = reference_sample.anomaly_index(norms, everyone, everyone)
  np.testing.assert_allclose(
    np.abs(got), anomaly.anomaly_index(norms, everyone)
  )
  assert (got > 0).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize(
  ("norms", "message"),
  [([9, 9, 9, 9, 1], "is 0"), ([9, INF, INF, 8, 1], "needs at least 3")],
)
def test_index_that_is_not_defined(norms, message):
  reference = np.array([True] * 4 + [False])
  with pytest.raises(UserError, match=message):
    reference_sample.anomaly_index(
      np.array(norms), np.isfinite(norms), reference
    )
