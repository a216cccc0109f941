import numpy as np
import pytest

from bdjax.defenses.neural_cleanse import anomaly, reference_sample
from bdjax.errors import UserError

ALL = np.ones(5, bool)


def test_index_by_hand():
  # Median 30; distances 28, 10, 0, 10, 20, whose median is 10.
  norms = np.array([2.0, 20, 30, 40, 50])
  index = anomaly.anomaly_index(norms, ALL)
  expected = np.array([28, 10, 0, 10, 20]) / 14.826
  np.testing.assert_allclose(index, expected, rtol=1e-12)
  assert anomaly.max_index(norms, index) == pytest.approx(28 / 14.826)
  assert anomaly.flagged(norms, index) == []  # 1.89
  assert anomaly.flagged(norms, index, 1.8) == [0]


def test_index_needs_no_scale_and_no_order():
  rng = np.random.default_rng(1)
  norms = rng.random(11) * 100
  index = anomaly.anomaly_index(norms, np.ones(11, bool))
  order = rng.permutation(11)
  scaled = anomaly.anomaly_index(7 * norms[order] + 3, np.ones(11, bool))
  np.testing.assert_allclose(scaled, index[order], rtol=1e-9)


def test_only_small_masks_are_flagged_smallest_first():
  norms = np.array([100.0, 101, 99, 1, 300, 102, 98, 5])
  index = anomaly.anomaly_index(norms, np.ones(8, bool))
  assert index[4] > 2
  assert anomaly.flagged(norms, index) == [3, 7]
  assert anomaly.max_index(norms, index) == index[3]


def test_nothing_below_the_median():
  norms, index = np.array([3.0, 3, 3, 4]), np.array([1.0, 2, 3, 4])
  assert anomaly.max_index(norms, index) == 0
  assert anomaly.flagged(norms, index) == []


def test_not_reached_is_never_a_small_norm():
  norms = np.array([10.0, 2, 20, 30, 40, 50])
  reached = np.array([False, True, True, True, True, True])
  index = anomaly.anomaly_index(norms, reached)
  assert np.isnan(index[0])
  np.testing.assert_array_equal(
    index[1:], anomaly.anomaly_index(norms[1:], ALL)
  )
  for absent in (0.0, np.nan):
    norms[0] = absent
    np.testing.assert_array_equal(index, anomaly.anomaly_index(norms, reached))
    assert anomaly.flagged(norms, index, 1.8) == [1]
    assert anomaly.max_index(norms, index) == index[1]


@pytest.mark.parametrize(
  "norms,reached,message",
  [
    ([5, 5, 5, 5, 1], ALL, "deviation of the mask norms is 0"),
    ([1, 2, 3, 4, 5], np.arange(5) < 2, "2 of 5 classes reached"),
    ([np.nan] * 5, ~ALL, "0 of 5 classes reached"),
  ],
)
def test_no_index(norms, reached, message):
  with pytest.raises(UserError, match=message) as error:
    anomaly.anomaly_index(np.array(norms, float), reached)
  assert "\n" not in str(error.value)


def test_p_value_by_hand():
  null = [1.0, 2.0, 3.0, 4.0]
  for observed, expected in ((0.5, 1), (3.0, 0.6), (3.5, 0.4), (9.0, 0.2)):
    assert anomaly.p_value(observed, null) == pytest.approx(expected)
    assert anomaly.p_value(observed, np.array(null)) == pytest.approx(expected)
  assert anomaly.p_value(5.0, [1.0] * 19) == pytest.approx(1 / 20)
  assert anomaly.p_value(0.5, []) == 1


def test_null_is_what_plain_simulation_gives():
  generator = np.random.default_rng(1)
  everyone = np.ones(12, bool)
  for sample in (12, 6):
    reference = np.arange(12) < sample
    plain = [
      reference_sample.anomaly_index(norms, everyone, reference).max()
      for norms in generator.standard_normal((1500, 12))
    ]
    got = anomaly.null_indices(12, sample)
    assert (np.diff(got) >= 0).all()
    for share in (0.25, 0.5, 0.75):
      expected = np.quantile(plain, share)
      assert np.quantile(got, share) == pytest.approx(expected, rel=0.12)


def test_null_grows_with_classes_and_shrinks_with_the_sample():
  def limit(num, sample):
    return np.quantile(anomaly.null_indices(num, sample), 0.95)

  assert limit(1283, 32) > limit(1283, 128) > limit(100, 100) > 3


def test_median_over_restarts_by_hand():
  norms = np.array([[1.0, 1, np.nan], [3, np.nan, np.nan], [9, 5, 2]])
  got = anomaly.median_over_restarts(norms)
  np.testing.assert_array_equal(got, [3, 5, np.nan])


def test_intervals_over_restarts_by_hand():
  index = np.array(
    [[1.0, 0.1, 4, np.nan], [2, 0.3, np.nan, np.nan], [3, 5, np.nan, np.nan]]
  )
  scores = anomaly.over_restarts(index)
  assert [s.n for s in scores] == [3, 3, 1, 0]
  assert {(s.over, s.unit) for s in scores} == {("restarts", "index")}
  # t(0.975, 2) = 4.3027, sd 1.
  half = 4.30265273 / np.sqrt(3)
  assert scores[0].mean == 2
  assert scores[0].low == 0  # 2 - half is negative
  assert scores[0].high == pytest.approx(2 + half)
  assert scores[1].low == 0
  assert scores[2][:3] == (4, 0, np.inf)
  assert np.isnan(scores[3].mean)
  close = anomaly.over_restarts(index[:, :1] + 10)[0]
  assert close.low == pytest.approx(12 - half)
