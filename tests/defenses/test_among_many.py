import numpy as np
import pytest

from bdjax.defenses import among_many, anomaly
from bdjax.errors import UserError

INF = np.inf


def test_index_against_the_sample_by_hand():
  norms = np.array([100.0, 120.0, 80.0, 140.0, 30.0, 500.0])
  reference = np.array([True] * 4 + [False] * 2)
  settled = np.array([True] * 5 + [False])
  got = among_many.anomaly_index(norms, settled, reference)
  # The fifth against 80, 100, 120, 140: median 110, distances 30, 10, 10, 30.
  assert got[4] == pytest.approx((110 - 30) / (1.4826 * 20))
  # The first against the others of the sample: 80, 120, 140; 40, 0, 20.
  assert got[0] == pytest.approx((120 - 100) / (1.4826 * 20))
  assert np.isnan(got[5])


def test_index_of_all_classes_is_neural_cleanses():
  norms = np.array([50.0, 100.0, 110.0, 130.0, 90.0])
  everyone = np.ones(5, bool)
  got = among_many.anomaly_index(norms, everyone, everyone)
  np.testing.assert_allclose(
    np.abs(got), anomaly.anomaly_index(norms, everyone)
  )
  assert (got > 0).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize(
  ("norms", "words"),
  [([9, 9, 9, 9, 1], "is 0"), ([9, INF, INF, 8, 1], "takes")],
)
def test_index_that_is_not_defined(norms, words):
  reference = np.array([True] * 4 + [False])
  with pytest.raises(UserError, match=words):
    among_many.anomaly_index(np.array(norms), np.isfinite(norms), reference)


def test_chance_is_what_plain_simulation_gives():
  generator = np.random.default_rng(1)
  everyone = np.ones(12, bool)
  for sample in (12, 6):
    reference = np.arange(12) < sample
    plain = [
      among_many.anomaly_index(norms, everyone, reference).max()
      for norms in generator.standard_normal((1500, 12))
    ]
    got = among_many.chance(12, sample)
    assert (np.diff(got) >= 0).all()
    for share in (0.25, 0.5, 0.75):
      wanted = np.quantile(plain, share)
      assert np.quantile(got, share) == pytest.approx(wanted, rel=0.12)


def test_chance_grows_with_classes_and_shrinks_with_the_sample():
  def limit(num, sample):
    return np.quantile(among_many.chance(num, sample), 0.95)

  assert limit(1283, 32) > limit(1283, 128) > limit(100, 100) > 3


def test_p_value_by_hand():
  null = np.array([1.0, 2.0, 3.0, 4.0])
  for index, wanted in ((0.5, 1.0), (3.0, 0.6), (3.5, 0.4), (9.0, 0.2)):
    assert among_many.p_value(index, null) == pytest.approx(wanted)
